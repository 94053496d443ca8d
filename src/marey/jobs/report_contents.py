"""What a run folder holds, as far as the report shows it."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marey.jobs.charts import Floats
from marey.jobs.examples import Scores, read_scores


class Contents(NamedTuple):
    """What was found in a run folder; what is not there is None or empty, and `missing` says so.

    metrics  column of metrics.csv -> float64 [rows], NaN where not measured
    """

    folder: Path
    recipe: dict[str, Any] | None
    metrics: dict[str, Floats]
    environment: dict[str, Any] | None
    results: dict[str, Any] | None
    scores: Scores | None
    log: list[str]
    missing: list[str]


def read_folder(folder: Path) -> Contents:
    """Everything of a run folder that the report shows."""
    missing: list[str] = []

    def read(name: str, reader: Callable[[Path], Any], otherwise: Any = None) -> Any:
        try:
            return reader(folder / name)
        except FileNotFoundError:
            missing.append(name)
        except (OSError, ValueError, KeyError) as error:
            missing.append(f"{name}, which cannot be read: {error}")
        return otherwise

    results = read("results.json", _json)
    alone = (results or {}).get("unit") in ("videos", "key frames")  # then scores are not kept there
    return Contents(
        folder=folder,
        recipe=read("recipe.json", _json),
        metrics=read("metrics.csv", _columns, {}),
        environment=read("environment.json", _json),
        results=results,
        scores=None if alone else read("scores.parquet", read_scores),
        log=read("log.txt", _text_lines, []),
        missing=missing,
    )


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")
    return value


def _columns(path: Path) -> dict[str, Floats]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    return {
        name: np.array([_number(row[name]) for row in rows]) for name in (rows[0] if rows else ()) if name
    }


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _text_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
