"""Features on disk: a file per video, and an index with a line per vector."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray

from marey.files import replacing
from marey.jobs.manifest import Entry, Manifest, digest

Format = Literal["safetensors", "npz", "parquet"]
KEY = "marey"  # of the metadata entry that says what a file is, as JSON


def file_of(path: str, format: Format) -> str:
    """Where the features of a video lie in the folder; its full path alone decides."""
    name = digest(path.encode("utf-8", "surrogateescape"))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(path).stem)[:60].strip(".")
    return f"data/{name[:2]}/{stem}-{name[:12]}.{format}"


def write_features(
    path: Path, features: NDArray[Any], seconds: NDArray[np.float64], about: dict[str, Any], format: Format
) -> None:
    """One file: `features` [rows, C], `seconds` [rows, 2] (start and end of each row), and what it is."""
    text = json.dumps(about)
    with replacing(path) as part:
        if format == "safetensors":
            safetensors.numpy.save_file({"features": features, "seconds": seconds}, part, {KEY: text})
        elif format == "npz":
            with part.open("wb") as file:
                np.savez(file, features=features, seconds=seconds, about=np.array(text))
        else:
            flat = pa.array(features.reshape(-1))
            table = pa.table(
                {
                    "start": seconds[:, 0],
                    "end": seconds[:, 1],
                    "features": pa.FixedSizeListArray.from_arrays(flat, features.shape[1]),
                }
            )
            pq.write_table(table.replace_schema_metadata({KEY: text}), part)


def write_index(manifest: Manifest, path: Path) -> tuple[int, int]:
    """JSON lines over everything in the folder, by source and time; how many vectors, and failed videos.

    source, start, end, file, row, frames   where the vector of these seconds is, and the frames they hold
    notes                                   what was unusual about the video, where anything was
    source, code, message                   instead, a video that could not be read
    """
    rows = failed = 0

    def write(entries: list[Entry]) -> None:
        nonlocal rows, failed
        rows = failed = 0
        with replacing(path) as part, part.open("w", encoding="ascii") as file:
            for entry in sorted(entries, key=lambda entry: (entry.result["source"], entry.key)):
                lines = _lines(entry)
                rows, failed = rows + len(lines) * (entry.file is not None), failed + (entry.file is None)
                file.writelines(json.dumps(line) + "\n" for line in lines)

    manifest.publish(write)
    return rows, failed


def _lines(entry: Entry) -> list[dict[str, Any]]:
    source = {"source": entry.result["source"]}
    if entry.file is None:
        return [source | {"code": entry.code, "message": entry.message}]
    notes = {"notes": entry.result["notes"]} if entry.result["notes"] else {}
    return [
        source | {"start": start, "end": end, "file": entry.file, "row": row, "frames": frames} | notes
        for row, (start, end, frames) in enumerate(entry.result["spans"])
    ]
