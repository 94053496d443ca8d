"""From a recipe to what a job works with: lists, a recipe without gaps, the network."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn

from marey.data.lists import ClipList, check_labels, read_list, same_classes
from marey.errors import DataError, UsageError, WeightsError
from marey.recipes.schema import Data, Recipe
from marey.weights.create import create_model
from marey.weights.load import LoadReport


class Lists(NamedTuple):
    """The lists of a recipe; what it does not name is None."""

    train: ClipList | None
    val: ClipList | None
    test: ClipList | None

    def given(self) -> list[ClipList]:
        """Those that are there."""
        return [clips for clips in self if clips is not None]


def open_lists(data: Data, *, training: bool) -> Lists:
    """Read the lists that a training or a test needs; test falls back to val.

    Raises UsageError NO_DATA when the recipe does not say where the videos are, DataError for wrong lists.
    """
    names = {"train": data.train, "val": data.val} if training else {"test": data.test or data.val}
    needed = "train" if training else "test"
    if names[needed] is None:
        raise UsageError(
            "NO_DATA", f"no {needed} videos; give data.{needed}=LIST (a file or a folder per class)"
        )
    read = {
        name: read_list(
            path,
            format=data.format,
            root=data.root,
            classes=data.classes,
            multi_label=data.multi_label,
            template=data.template,
        )
        for name, path in names.items()
        if path is not None
    }
    return Lists(read.get("train"), read.get("val"), read.get("test"))


def complete(recipe: Recipe, lists: Lists) -> Recipe:
    """The recipe with everything filled in that the data decides: class count, kind of labels, full paths.

    Raises DataError LABEL_RANGE or LABEL_BASE when labels and class count disagree, LABEL_NAMES when the
    lists' names do, LABEL_COUNT for clips without a label.
    """
    given = lists.given()
    if any(len(clips.unlike(0)) < len(clips) and not clips.multi_label for clips in given):
        raise DataError("LABEL_COUNT", "training and testing need a label for every clip; some list has none")
    names = same_classes(*given)
    count = recipe.model.num_classes or max(len(names or ()), *(clips.num_classes for clips in given))
    for clips in given:
        check_labels(clips, count if recipe.model.num_classes else None)
    data = recipe.data
    return msgspec.structs.replace(
        recipe,
        model=msgspec.structs.replace(recipe.model, num_classes=count),
        data=msgspec.structs.replace(
            data,
            multi_label=any(clips.multi_label for clips in given),
            **{name: _full(getattr(data, name)) for name in ("train", "val", "test", "root", "classes")},
        ),
    )


def _full(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)  # noqa: PTH100 - a link stays a link


def class_names(lists: Lists, count: int) -> tuple[str, ...]:
    """Names in label order; a label without a name is called by its number."""
    names = same_classes(*lists.given()) or ()
    return (*names, *(str(label) for label in range(len(names), count)))


def build_model(recipe: Recipe, seed: int) -> tuple[nn.Module, LoadReport | None]:
    """The recipe's network, drawn from the seed, with its starting weights."""
    torch.manual_seed(seed)
    plan = recipe.model
    model = create_model(plan.name, plan.num_classes, weights=plan.weights, **plan.options)
    return model, getattr(model, "load_report", None)


def trained_model(
    recipe: Recipe, checkpoint: str | os.PathLike[str], lists: Lists
) -> tuple[nn.Module, tuple[str, ...]]:
    """The recipe's network with a checkpoint's weights, and the class names, which must be the list's.

    Raises WeightsError WEIGHTS_MISMATCH for another class count, DataError LABEL_NAMES when the names, or
    their order, differ from the checkpoint's.
    """
    names = class_names(lists, recipe.model.num_classes or 0)
    model: Any = create_model(recipe.model.name, len(names), weights=checkpoint, **recipe.model.options)
    if model.load_report.head != "loaded":
        raise WeightsError(
            "WEIGHTS_MISMATCH",
            f"{checkpoint} has no classifier for {len(names)} classes: {model.load_report.summary()}",
        )
    own = model.class_names
    if own is not None and lists.given()[0].classes is not None and tuple(own) != names:
        clips = lists.given()[0]
        wrong = next(i for i, pair in enumerate(zip(own, names, strict=True)) if pair[0] != pair[1])
        raise DataError(
            "LABEL_NAMES",
            f"label {wrong} is {own[wrong]!r} in {checkpoint}, but {names[wrong]!r} in {clips.name}; "
            "give the list the checkpoint's class names (data.classes=FILE)",
        )
    return model.eval(), tuple(own or names)


def decoding_workers(data: Data) -> int:
    """How many processes decode."""
    return cores() if data.workers < 0 else data.workers


def cores() -> int:
    """Cores that this process may use, at most eight."""
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(free, 8)


def run_of_checkpoint(checkpoint: str | os.PathLike[str]) -> Path | None:
    """The run folder that a checkpoint lies in, or None."""
    folder = Path(checkpoint).resolve().parent
    return (
        folder.parent if folder.name == "checkpoints" and (folder.parent / "recipe.json").exists() else None
    )
