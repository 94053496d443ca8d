"""A user's own audio features, found by the names of videos: in a folder, an .npz or a Parquet file."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from marey.errors import DataError

SUFFIXES = (".npy", ".npz", ".safetensors")
Rows = NDArray[Any]


class OwnAudio:
    """Arrays [rows, width] by the ids of videos.

    source  a folder with a .npy, .npz or .safetensors for each video; an .npz with an array for each; or a
            Parquet file with columns `id` and `features`: a row per video, each a list of lists, or a row per
            frame, each a list
    ids     of the videos. One is looked for as it is, without its suffix, and, where no two videos have the
            same, by its file's name without folder and suffix

    All arrays are uint8, stored bytes as YouTube-8M has them, or all are floats. Raises DataError NOT_FOUND,
    AUDIO_FEATURES.
    """

    def __init__(self, source: str | os.PathLike[str], ids: Iterable[str]) -> None:
        self.source = Path(source)
        names = list(ids)
        stems = Counter(Path(name).stem for name in names)
        self._shared = {stem for stem, count in stems.items() if count > 1}
        self.width, self.bytes = 0, False
        self._table: dict[str, Rows] | None = None
        self._archive: Any = None
        try:
            if self.source.suffix == ".parquet":
                self._table = _parquet(self.source)
            elif self.source.suffix == ".npz":
                self._archive = np.load(self.source, allow_pickle=False)
            elif not self.source.is_dir():
                raise self._missing()
        except FileNotFoundError:
            raise self._missing() from None
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise self._wrong(f"cannot be read ({error})") from None
        first = next((rows for rows in map(self._rows, names) if rows is not None), None)
        if first is None:
            raise self._wrong(f"nothing for any of {len(names)} videos, as {names[0]!r}")
        self._check(first, "")
        self.width, self.bytes = first.shape[1], first.dtype == np.uint8

    def __call__(self, name: str) -> Rows | None:
        """The features of a video, uint8 or float32 [rows, width], or None where there are none."""
        rows = self._rows(name)
        if rows is None:
            return None
        self._check(rows, name)
        if rows.shape[1] != self.width or (rows.dtype == np.uint8) != self.bytes:
            kind = "bytes" if self.bytes else "floats"
            reason = f"{rows.dtype} {list(rows.shape)}, but those before it are {kind} [rows, {self.width}]"
            raise self._wrong(f"{name!r} is {reason}")
        return rows if self.bytes else rows.astype(np.float32)

    def _names(self, name: str) -> list[str]:
        path = Path(name)
        plain = [name, str(path.with_suffix(""))]
        return plain if path.stem in self._shared else [*plain, path.stem]

    def _rows(self, name: str) -> Rows | None:
        for key in self._names(name):
            try:
                if self._table is not None and key in self._table:
                    return self._table[key]
                if self._archive is not None and key in self._archive.files:
                    found: Rows = self._archive[key]
                    return found
                if self._table is None and self._archive is None:
                    for suffix in SUFFIXES:
                        file = self.source / (key.lstrip("/") + suffix)
                        if file.is_file():
                            return _array(file)
            except (OSError, ValueError, EOFError, KeyError, safetensors.SafetensorError) as error:
                raise self._wrong(f"{key!r} cannot be read ({error})") from None
        return None

    def _check(self, rows: Rows, name: str) -> None:
        wrong = rows.ndim != 2 or not rows.shape[1] or (rows.dtype != np.uint8 and rows.dtype.kind != "f")
        if wrong or not np.isfinite(rows).all():
            reason = f"{rows.dtype} {list(rows.shape)}; needed are finite floats or uint8, [rows, width]"
            raise self._wrong(f"{name!r} is {reason}" if name else reason)

    def _wrong(self, reason: str) -> DataError:
        return DataError("AUDIO_FEATURES", f"audio features {str(self.source)!r}: {reason}")

    def _missing(self) -> DataError:
        reason = "no folder, and no .npz or .parquet file"
        return DataError("NOT_FOUND", f"audio features {str(self.source)!r}: {reason}")


def _array(file: Path) -> Rows:
    """The array of a file: its only one, or that called `features` or `audio`."""
    if file.suffix == ".npy":
        found: Rows = np.load(file, allow_pickle=False)
        return found
    arrays: dict[str, Rows] = (
        safetensors.numpy.load_file(file)
        if file.suffix == ".safetensors"
        else dict(np.load(file, allow_pickle=False))
    )
    for name in ("features", "audio"):
        if name in arrays:
            return arrays[name]
    if len(arrays) != 1:
        raise ValueError(
            f"it holds {', '.join(sorted(arrays)) or 'nothing'}, none is called features or audio"
        )
    return next(iter(arrays.values()))


def _parquet(file: Path) -> dict[str, Rows]:
    table = pq.read_table(file, columns=["id", "features"])
    kind = table.schema.field("features").type
    inner = kind.value_type
    nested = pa.types.is_list(inner) or pa.types.is_large_list(inner) or pa.types.is_fixed_size_list(inner)
    leaf = inner.value_type if nested else inner
    dtype = np.dtype(leaf.to_pandas_dtype())
    found: dict[str, list[Rows]] = {}
    for name, value in zip(table.column("id").to_pylist(), table.column("features"), strict=True):
        rows = value.as_py()
        found.setdefault(str(name), []).append(np.array(rows if nested else [rows], dtype))
    return {name: np.concatenate(parts) for name, parts in found.items()}
