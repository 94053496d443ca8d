"""From a recipe to what a job works with: lists, a recipe without gaps, the network."""

import os
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn

from marey.classes import FILES
from marey.classes import class_names as shipped_names
from marey.data.labels import mirror_pairs
from marey.data.lists import ClipList, check_labels, read_list, same_classes
from marey.errors import DataError, UsageError, WeightsError
from marey.models import MODELS
from marey.recipes.schema import AnyRecipe, Data, KeyData, Model, Recipe, Records
from marey.video.preprocess import Preprocess
from marey.weights.create import create_model
from marey.weights.load import LoadReport

SPLITS = {  # how splits are called in lists and folders
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate"),
    "test": ("test", "testing"),
}


class Lists(NamedTuple):
    """The lists of a recipe; what it does not name is None."""

    train: ClipList | None
    val: ClipList | None
    test: ClipList | None

    def given(self) -> list[ClipList]:
        """Those that are there."""
        return [clips for clips in self if clips is not None]


def open_lists(data: Data, *, training: bool, classes: Sequence[str] | None = None) -> Lists:
    """Read the lists that a training or a test needs; test falls back to val.

    classes  names in label order that the lists must follow; None: data.classes, else the first list's own
    Raises UsageError NO_DATA when the recipe does not say where the videos are, DataError for wrong lists.
    """
    needed = "train" if training else "test"
    paths, splits = _paths(data, training)
    if needed not in paths:
        hint = f"give data.{needed}=LIST, a list file or a folder with a folder per class"
        raise UsageError("NO_DATA", f"the recipe names no {needed} videos; {hint}")
    read: dict[str, ClipList] = {}
    for name, path in paths.items():
        first = read["train"].classes if "train" in read else None
        read[name] = read_list(
            path,
            format=data.format,
            root=data.root,
            classes=data.classes or classes or first,
            multi_label=data.multi_label,
            template=data.template,
            first_label=data.first_label,
            split=splits.get(name),
        )
        mixed = read[name].splits
        if name not in splits and len(mixed) > 1:
            raise UsageError(
                "SPLITS_MIXED",
                f"{path} holds the splits {', '.join(mixed)}; give it as data.splits, not as data.{name}",
            )
    return Lists(read.get("train"), read.get("val"), read.get("test"))


def _paths(data: Data, training: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Which list each part is read from, and which split of it where there is one list for all."""
    if data.splits is None:
        given = {"train": data.train, "val": data.val} if training else {"test": data.test or data.val}
        return {name: path for name, path in given.items() if path is not None}, {}
    if data.train or data.val or data.test:
        raise UsageError("NO_DATA", "give either data.splits, or data.train, data.val and data.test")
    there = read_list(data.splits, format=data.format, root=data.root, template=data.template).splits
    found = {name: next((s for s in SPLITS[name] if s in there), None) for name in SPLITS}
    wanted = {name: found[name] for name in ("train", "val")}
    if not training:
        wanted = {"test": found["test"] or found["val"]}
    splits = {name: split for name, split in wanted.items() if split is not None}
    return dict.fromkeys(splits, data.splits), splits


def complete(recipe: Recipe, lists: Lists) -> Recipe:
    """The recipe with everything filled in that the data decides: class count, labels, full paths.

    A network that averages over places is told whether each class is a question of its own. Where clips are
    mirrored and the recipe names no pairs of classes that a mirror exchanges, the class names give them
    ("turn left", "turn right").

    Raises DataError LABEL_RANGE or LABEL_BASE when labels and class count disagree, LABEL_NAMES when the
    lists' names do, LABEL_COUNT for clips without a label.
    """
    given = lists.given()
    if any(len(clips.unlike(0)) < len(clips) and not clips.multi_label for clips in given):
        raise DataError("LABEL_COUNT", "training and testing need a label for every clip; some list has none")
    if recipe.data.labels != "each" and lists.train and len(lists.train.unlike(0)) < len(lists.train):
        raise DataError(
            "LABEL_COUNT",
            f"data.labels={recipe.data.labels} needs a label for every clip of {lists.train.name}",
        )
    names = same_classes(*given)
    fixed = recipe.model.num_classes
    count = fixed or max(len(names or ()), *(clips.num_classes for clips in given))
    for clips in given:
        check_labels(clips, None if clips is lists.train and fixed is None else count)
    data = recipe.data
    full = {name: full_path(getattr(data, name)) for name in ("train", "val", "test", "splits", "root")}
    if data.classes is not None and Path(data.classes).exists():  # else a data set whose names ship
        full["classes"] = full_path(data.classes)
    several = any(clips.multi_label for clips in given)
    data = msgspec.structs.replace(data, multi_label=several, **full)
    options, network = segmented(recipe.model, recipe.clips.frames), MODELS.get(recipe.model.name)
    if data.independent and network and "independent" in signature(network).parameters:
        options = {"independent": True, **options}
    return msgspec.structs.replace(
        recipe,
        model=msgspec.structs.replace(recipe.model, num_classes=count, options=options),
        data=data,
        clips=_mirrored(recipe.clips, names),
    )


def _mirrored(clips: Preprocess, names: Sequence[str] | None) -> Preprocess:
    """The preprocessing with the pairs of classes that its flips exchange."""
    if not clips.flip or clips.flip_labels or names is None:
        return clips
    return msgspec.structs.replace(clips, flip_labels=mirror_pairs(names))


def segmented(plan: Model, frames: int) -> dict[str, Any]:
    """A network's options, with as many segments as the clips have frames where the network counts them."""
    if plan.name not in MODELS or "segments" not in signature(MODELS[plan.name]).parameters:
        return plan.options
    if plan.options.get("segments", frames) != frames:
        raise UsageError(
            "CLIP_LENGTH", f"model.options.segments is {plan.options['segments']}, but clips.frames {frames}"
        )
    return {**plan.options, "segments": frames}


def full_path(path: str | None) -> str | None:
    """An absolute path of a path."""
    return None if path is None else os.path.abspath(path)  # noqa: PTH100 - a link stays a link


def class_names(lists: Lists, count: int) -> tuple[str, ...]:
    """Names in label order; a label without a name is called by its number."""
    names = same_classes(*lists.given()) or ()
    return (*names, *(str(label) for label in range(len(names), count)))


def build_model(recipe: AnyRecipe, seed: int) -> tuple[nn.Module, LoadReport | None]:
    """The recipe's network, drawn from the seed, with its starting weights."""
    torch.manual_seed(seed)
    plan = recipe.model
    model = create_model(plan.name, plan.num_classes, weights=plan.weights, **plan.options)
    return model, getattr(model, "load_report", None)


def sized(recipe: Recipe, classes: int) -> Recipe:
    """The recipe with a class count."""
    return msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, num_classes=classes))


def trained_model(recipe: AnyRecipe, checkpoint: str | os.PathLike[str]) -> nn.Module:
    """The recipe's network with a checkpoint's weights, for as many classes as the checkpoint has.

    Where its classes are those of a data set whose names ship, but in an order of their own (UniFormer's
    releases), the classifier's rows are put in that of the data set, which lists of numbers follow.

    Raises WeightsError WEIGHTS_MISMATCH when the recipe says another class count, or there is no classifier.
    """
    plan = recipe.model
    model: Any = create_model(plan.name, plan.num_classes, weights=checkpoint, **plan.options)
    if model.load_report.head != "loaded":
        raise WeightsError(
            "WEIGHTS_MISMATCH",
            f"{checkpoint} has no classifier for {model.num_classes} classes: {model.load_report.summary()}",
        )
    _official_order(model)
    return model.eval()  # type: ignore[no-any-return]


def _official_order(model: Any) -> None:
    names = known_names(model) or ()
    for dataset in FILES:
        official = shipped_names(dataset) or ()
        if names != official and sorted(names) == sorted(official):
            rows = torch.tensor([names.index(name) for name in official])
            with torch.no_grad():
                for tensor in model.head.parameters():
                    tensor.copy_(tensor[rows])
            model.class_names = official


def known_names(model: nn.Module) -> tuple[str, ...] | None:
    """The class names a network carries, None where they are only the labels' numbers."""
    names: tuple[str, ...] | None = getattr(model, "class_names", None)
    return None if names is None or names == tuple(map(str, range(len(names)))) else names


def decoding_workers(data: Data | KeyData | Records) -> int:
    """How many processes read."""
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
