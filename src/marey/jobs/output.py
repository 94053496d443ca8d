"""Predictions as files: JSON lines, CSV or Parquet, complete or not at all."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from marey.errors import UsageError
from marey.files import replacing
from marey.jobs.predict import Prediction

SCHEMA = pa.schema(
    [
        *(("source", pa.string()), ("start", pa.float64()), ("end", pa.float64())),
        *(
            ("names", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float32())),
            ("notes", pa.list_(pa.string())),
        ),
        *(("code", pa.string()), ("message", pa.string())),
    ]
)


def write_predictions(predictions: Iterable[Prediction], path: Path) -> Iterator[Prediction]:
    """Pass predictions on while writing them to a .jsonl, .csv or .parquet file.

    Lists (names, scores, notes) are joined by ";" in CSV. Raises UsageError OUT_SUFFIX for another suffix.
    """
    check_suffix(path)
    return _whole(WRITERS[path.suffix.lower()], predictions, path)


def check_suffix(path: Path) -> None:
    """Raises UsageError OUT_SUFFIX for a file that predictions are not written as."""
    if path.suffix.lower() not in WRITERS:
        raise UsageError("OUT_SUFFIX", f"{str(path)!r}: predictions are written as .jsonl, .csv or .parquet")


def _whole(writer: Any, predictions: Iterable[Prediction], path: Path) -> Iterator[Prediction]:
    with replacing(path) as part:
        yield from writer(predictions, part)


def _jsonl(predictions: Iterable[Prediction], part: Path) -> Iterator[Prediction]:
    with part.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(prediction.json() + "\n")
            yield prediction


def _csv(predictions: Iterable[Prediction], part: Path) -> Iterator[Prediction]:
    with part.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, SCHEMA.names)
        table.writeheader()
        for prediction in predictions:
            row = _row(prediction)
            table.writerow({k: ";".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})
            yield prediction


def _parquet(predictions: Iterable[Prediction], part: Path) -> Iterator[Prediction]:
    with pq.ParquetWriter(part, SCHEMA) as table:
        for prediction in predictions:
            table.write_table(pa.Table.from_pylist([_row(prediction)], schema=SCHEMA))
            yield prediction


def _row(prediction: Prediction) -> dict[str, Any]:
    plain = {name: getattr(prediction, name) for name in ("source", "start", "end", "code", "message")}
    best = prediction.classes
    lists = {
        "names": [c.name for c in best],
        "scores": [c.score for c in best],
        "notes": list(prediction.notes),
    }
    return plain | lists


WRITERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
