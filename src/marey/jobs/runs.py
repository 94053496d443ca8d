"""Run folders, `runs/<recipe>/<n>/`: numbered, never overwritten, always the same file names."""

import csv
import io
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import msgspec

from marey.errors import UsageError
from marey.files import replacing
from marey.recipes.schema import AnyRecipe

COLUMNS = (
    *("step", "epoch", "lr", "loss", "loss_class", "loss_distill", "loss_source", "loss_target"),
    *("top1", "gap", "hit1", "perr"),
    *("clips_per_second", "data_share", "skipped", "padded"),
    *("val_loss", "val_top1", "val_top5", "val_mean_class", "val_map", "val_mmit_map"),
    *("val_gap", "val_hit1", "val_perr", "val_map_2018"),
    *("recall", "precision", "recall_top3", "precision_top3"),
)
# A run may go on with other values of these: they are about the machine, or about when to give up.
FREE = frozenset(
    {
        *("data.workers", "data.seconds", "data.max_bad", "data.max_bad_test"),
        *("training.save_minutes", "testing.views_per_forward"),
    }
)


class Run:
    """One run's folder and what is written there. `quiet` processes write nothing."""

    def __init__(self, folder: Path, *, quiet: bool = False) -> None:
        self.folder = folder
        self.quiet = quiet
        self.recipe = folder / "recipe.json"
        self.metrics = folder / "metrics.csv"
        self.state = folder / "checkpoints" / "resume.pt"
        self.last = folder / "checkpoints" / "last.safetensors"
        self.best = folder / "checkpoints" / "best.safetensors"
        self.results = folder / "results.json"
        self.scores = folder / "scores.parquet"

    def say(self, text: str) -> None:
        """One line for people: to stderr and, with the time, to log.txt."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)
            with self._append("log.txt") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def write_json(self, path: Path, value: Any) -> None:
        """A readable JSON file, whole or not at all."""
        if not self.quiet:
            with replacing(path) as part:
                part.write_text(plain_json(value) + "\n", encoding="utf-8")

    def add_metrics(self, row: Mapping[str, float | int | None]) -> None:
        """One row of metrics.csv; columns that were not measured stay empty."""
        if self.quiet:
            return
        cells = {name: _cell(row.get(name)) for name in COLUMNS}
        new = not self.metrics.exists()
        with self._append("metrics.csv") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(cells)

    def forget_after(self, step: int) -> None:
        """Drop the metrics rows of steps beyond `step`: the resumed run will write them again."""
        if self.quiet or not self.metrics.exists():
            return
        with self.metrics.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["step"].isdigit() and int(row["step"]) <= step]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        with replacing(self.metrics) as part:
            part.write_text(text.getvalue(), encoding="utf-8", newline="")

    def _append(self, name: str) -> TextIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        return (self.folder / name).open("a", encoding="utf-8", newline="")


def _cell(value: float | int | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def plain_json(value: Any) -> str:
    """Readable JSON in ASCII: a name that is no text in UTF-8 comes through, and back, as it is."""
    return json.dumps(msgspec.to_builtins(value), indent=2)


def new_run(root: Path, recipe: AnyRecipe) -> Path:
    """The next free folder for this recipe; it is made, so that no other run takes it."""
    parent = root / recipe.name
    parent.mkdir(parents=True, exist_ok=True)
    number = max((int(f.name) for f in parent.iterdir() if f.name.isdigit()), default=0) + 1
    while True:
        try:
            (parent / str(number)).mkdir()
        except FileExistsError:
            number += 1
        else:
            return parent / str(number)


def last_run(root: Path, recipe: AnyRecipe) -> Path | None:
    """The newest folder of this recipe, or None.

    Raises UsageError RESUME_MISMATCH, naming the fields, when the recipe there is not this one.
    """
    parent = root / recipe.name
    numbers = [int(f.name) for f in parent.iterdir() if f.name.isdigit()] if parent.is_dir() else []
    if not numbers:
        return None
    folder = parent / str(max(numbers))
    check_same(folder, recipe)
    return folder


def check_same(folder: Path, recipe: AnyRecipe) -> None:
    """Refuse to continue a run under another recipe; only FREE fields may differ."""
    file = folder / "recipe.json"
    if not file.exists():
        return
    before, now = flat(msgspec.json.decode(file.read_bytes())), flat(msgspec.to_builtins(recipe))
    changed = [key for key in now if key not in FREE and before.get(key) != now[key]]
    if changed:
        raise UsageError(
            "RESUME_MISMATCH",
            f"{folder} was run with another {', '.join(changed[:5])}; give the same values, or start anew "
            "without --resume",
        )


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dicts as one dict: dotted keys, values as JSON."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: msgspec.json.encode(tree)}
    return {
        k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()
    }
