"""Tags of videos as files: JSON lines, CSV, Parquet, or what the YouTube-8M challenge takes."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from marey.errors import UsageError
from marey.files import replacing

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("classes", pa.list_(pa.int32())),
        ("names", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("comparable", pa.bool_()),
        ("code", pa.string()),
        ("message", pa.string()),
    ]
)


class Tags(msgspec.Struct, frozen=True, omit_defaults=True):
    """The best tags of a video, surest first: classes, their names (numbers where unknown), probabilities.

    id          of the video, or the name of a record that cannot be read
    comparable  False: the network was trained on features of another kind, so the scores mean nothing
    code, message  of a record that cannot be read: why
    """

    id: str
    classes: tuple[int, ...]
    names: tuple[str, ...]
    scores: tuple[float, ...]
    comparable: bool = True
    code: str | None = None
    message: str | None = None

    def json(self) -> str:
        """One line of JSON."""
        return json.dumps(msgspec.to_builtins(self), ensure_ascii=False)


def check_out(path: str | os.PathLike[str], *, submission: bool = False) -> None:
    """Raises UsageError OUT_SUFFIX for a file that tags are not written to."""
    suffixes = [".csv"] if submission else [*WRITERS]
    if Path(path).suffix.lower() not in suffixes:
        kind = "a submission is" if submission else "tags are"
        raise UsageError("OUT_SUFFIX", f"{os.fspath(path)!r}: {kind} written as {', '.join(suffixes)}")


def write_tags(tags: Iterable[Tags], path: str | os.PathLike[str], *, submission: bool = False) -> int:
    """Write tags to a .jsonl, .csv or .parquet file, whole or not at all; gives the number of rows.

    submission  the CSV of the YouTube-8M challenge: VideoId and LabelConfidencePairs, "class score ...";
                records that cannot be read have no row there
    Raises UsageError OUT_SUFFIX.
    """
    path = Path(path)
    check_out(path, submission=submission)
    writer = _submission if submission else WRITERS[path.suffix.lower()]
    count = 0
    with replacing(path) as part, writer(part) as write:
        for one in tags:
            if not submission or one.code is None:
                write(one)
                count += 1
    return count


@contextmanager
def _jsonl(part: Path) -> Iterator[Callable[[Tags], Any]]:
    with part.open("w", encoding="utf-8") as file:
        yield lambda one: file.write(one.json() + "\n")


@contextmanager
def _csv(part: Path) -> Iterator[Callable[[Tags], Any]]:
    with part.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(SCHEMA.names)
        yield lambda one: table.writerow(
            [
                *(one.id, *(";".join(map(str, part)) for part in (one.classes, one.names, one.scores))),
                *(str(one.comparable).lower(), one.code, one.message),
            ]
        )


@contextmanager
def _parquet(part: Path) -> Iterator[Callable[[Tags], Any]]:
    with pq.ParquetWriter(part, SCHEMA) as table:
        held: list[dict[str, Any]] = []

        def write(one: Tags) -> None:
            held.append(msgspec.structs.asdict(one))
            if len(held) == 1000:
                flush()

        def flush() -> None:
            table.write_table(pa.Table.from_pylist(held, schema=SCHEMA))
            held.clear()

        yield write
        flush()


@contextmanager
def _submission(part: Path) -> Iterator[Callable[[Tags], Any]]:
    with part.open("w", encoding="utf-8", newline="\n") as file:
        file.write("VideoId,LabelConfidencePairs\n")

        def write(one: Tags) -> None:
            pairs = (f"{c} {score:g}" for c, score in zip(one.classes, one.scores, strict=True))
            file.write(f"{one.id},{' '.join(pairs)}\n")

        yield write


WRITERS: dict[str, Callable[[Path], Any]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
