"""Many files of records, TFRecord or packed, as one numbered row, and which of them a step takes.

Where the records of the files are is found once and may be kept in an index. Which records a step takes is
arithmetic on (seed, epoch, step, rank, world), so that a run continues at any step as if it had not stopped.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from marey.data.packed import SUFFIX, Packed, is_packed
from marey.data.tfrecord import Report, find_records
from marey.errors import DataError, UsageError
from marey.files import replacing
from marey.video.sampling import generator

Ints = NDArray[np.int64]

SUFFIXES = (".tfrecord", ".tfrecords", SUFFIX)
RECORDS = "records"  # where `marey features` puts them in its folder
_ORDER = 2**64 - 2  # the order's own stream of random numbers, where no record's number reaches


class Shards:
    """The records of many files, numbered through: `len(shards)`, `shards.place(number)`.

    paths   the files, in order
    counts  int64 [files], records of each
    lost    what find_records reported: files of which only the first records can be read
    """

    def __init__(self, paths: Sequence[str], spans: Sequence[Ints], lost: Sequence[DataError] = ()) -> None:
        self.paths, self.lost = tuple(paths), tuple(lost)
        self.counts = np.array([len(span) for span in spans], np.int64)
        self._ends = np.cumsum(self.counts)
        self._spans = np.concatenate([np.empty((0, 2), np.int64), *spans])

    def __len__(self) -> int:
        return len(self._spans)

    def fingerprint(self) -> str:
        """16 hex digits: equal where files of the same names hold records of the same lengths."""
        names = [os.path.basename(path).encode() for path in self.paths]  # noqa: PTH119
        told = b"\0".join([*names, self.counts.tobytes(), self._spans.tobytes()])
        return hashlib.sha256(told).hexdigest()[:16]

    def place(self, number: int) -> "Place":
        """Where record `number` of all is."""
        return self.places([number])[0]

    def places(self, numbers: Sequence[int]) -> "list[Place]":
        """Where some records are; finding them at once is several times as fast."""
        shards = np.searchsorted(self._ends, numbers, side="right")
        firsts = np.asarray(numbers) - (self._ends - self.counts)[shards]
        rows = zip(shards.tolist(), firsts.tolist(), self._spans[numbers].tolist(), strict=True)
        return [Place(self.paths[shard], first, *span) for shard, first, span in rows]


class Place(NamedTuple):
    """A record: its file, its number there, the byte it begins at, the length of its payload."""

    path: str
    number: int
    offset: int
    length: int

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.path}#{self.number}"


def list_shards(source: str | os.PathLike[str]) -> list[str]:
    """Files that a user names: a folder of .tfrecord or packed files, a pattern, a file, or a list of files.

    A folder that `marey features` filled stands for the records in it. A list (.list or .txt) has a path a
    line, relative ones start from its folder; blank lines are skipped.
    Raises DataError NOT_FOUND, NO_ACCESS, LIST_EMPTY.
    """
    path = Path(source)
    try:
        if path.is_dir():
            folder = path / RECORDS if (path / RECORDS).is_dir() else path
            found = sorted(str(file) for file in folder.iterdir() if file.name.endswith(SUFFIXES))
        elif path.suffix in (".list", ".txt") and path.is_file():
            lines = map(str.strip, path.read_text(encoding="utf-8").splitlines())
            found = [str(path.parent / line) for line in lines if line]
        elif path.is_file():
            found = [str(path)]
        else:
            folder = path.parent
            found = sorted(str(file) for file in folder.glob(path.name)) if folder.is_dir() else []
            if not found:
                raise DataError("NOT_FOUND", f"no file, folder or list {str(path)!r}, and no files match it")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("NO_ACCESS", f"cannot read {str(path)!r}: {error}") from error
    if not found:
        raise DataError("LIST_EMPTY", f"{path}: no files of records ({', '.join(SUFFIXES)}) in it")
    return found


def open_shards(
    paths: Iterable[str | os.PathLike[str]],
    *,
    index: str | os.PathLike[str] | None = None,
    damaged: Report | None = None,
) -> Shards:
    """Find the records of files; payloads are not read.

    index    a file that keeps what was found; files of another size or time are looked at again
    damaged  called for a file that can only be read in part, instead of raising
    Raises as `find_records` and `Packed`; of a packed file all or nothing can be read.
    """
    names = [os.fspath(path) for path in paths]
    known = _read_index(index)
    spans: list[Ints] = []
    whole: list[tuple[str, int, int, Ints]] = []
    lost: list[DataError] = []
    for name in names:
        stamp = _stamp(name)
        before = len(lost)
        found = known.get((name, *stamp))
        if found is None:
            found = _packed(name, lost) if is_packed(name) else find_records(name, damaged=lost.append)
        for error in lost[before:]:
            if damaged is None:
                raise error
            damaged(error)
        spans.append(found)
        if len(lost) == before:
            whole.append((name, *stamp, found))
    if index is not None:
        _write_index(index, whole)
    return Shards(names, spans, lost)


def _packed(name: str, lost: list[DataError]) -> Ints:
    try:
        return Packed(name).spans
    except DataError as error:
        lost.append(error)
        return np.empty((0, 2), np.int64)


def _stamp(name: str) -> tuple[int, int]:
    try:
        found = Path(name).stat()
    except OSError as error:
        raise DataError("NOT_FOUND", f"{name}: {error.strerror}") from None
    return found.st_size, found.st_mtime_ns


def _read_index(index: str | os.PathLike[str] | None) -> dict[tuple[str, int, int], Ints]:
    """What an index file knows; nothing where it cannot be read, because it can be made again."""
    try:
        if index is None:
            return {}
        with np.load(index, allow_pickle=False) as file:
            names, stamps, spans = file["names"], file["stamps"], file["spans"]
        ends = np.cumsum(stamps[:, 2])[:-1]
        parts = np.split(spans, ends)
        return {
            (str(name), int(size), int(time)): part
            for name, (size, time, _), part in zip(names, stamps, parts, strict=True)
        }
    except (OSError, ValueError, KeyError, IndexError, EOFError):
        return {}


def _write_index(index: str | os.PathLike[str], rows: list[tuple[str, int, int, Ints]]) -> None:
    names = np.array([row[0] for row in rows], np.str_)
    stamps = np.array([(row[1], row[2], len(row[3])) for row in rows], np.int64).reshape(-1, 3)
    spans = np.concatenate([np.empty((0, 2), np.int64), *(row[3] for row in rows)])
    with replacing(index) as part, part.open("wb") as file:
        np.savez(file, names=names, stamps=stamps, spans=spans)


def record_order(counts: Ints, *, seed: int, epoch: int, window: int = 16) -> Ints:
    """int64 [sum of counts]: the records of an epoch, each once.

    The files are shuffled, then the records of every `window` files together: what is read at a time comes
    from so many files. `window` as large as there are files shuffles everything, 1 gives batches of one or
    two files, as upstream.
    """
    if window < 1:
        raise UsageError("BAD_VALUE", f"window is {window}; it counts files and must be 1 or more")
    rng = generator(seed, epoch, _ORDER)
    files = rng.permutation(len(counts))
    starts = np.cumsum(counts) - counts
    order = [np.empty(0, np.int64)]
    for first in range(0, len(files), window):
        numbers = [np.arange(starts[f], starts[f] + counts[f]) for f in files[first : first + window]]
        order.append(rng.permutation(np.concatenate(numbers)))
    return np.concatenate(order)


def step_records(order: Ints, step: int, batch: int, world: int = 1, rank: int = 0) -> Ints:
    """int64: the records of process `rank` in a step; over all steps and ranks, each of the order once.

    A step takes batch * world consecutive ones. In the last step processes may have fewer, or none.
    """
    return order[step * batch * world : (step + 1) * batch * world][rank::world]
