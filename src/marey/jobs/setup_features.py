"""From a recipe for features of frames to what its jobs work with: records, a recipe without gaps, names."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from torch import nn

from marey.data.clips import Failure
from marey.data.feature_card import (
    YOUTUBE8M,
    FeatureCard,
    feature_card,
    not_comparable,
    read_feature_card,
)
from marey.data.labels import read_classes
from marey.data.shards import Shards, list_shards, open_shards
from marey.data.youtube8m import Layout, read_vocabulary
from marey.errors import DataError, UsageError
from marey.recipes.schema import Records, TagRecipe


class RecordLists(NamedTuple):
    """The records of a recipe; what it does not name is None.

    card    what the features are; None: YouTube-8M's own
    names   of the tags, in label order; None: not known
    labels  how many tags the features' cards tell of; 0: nothing
    """

    train: Shards | None
    val: Shards | None
    test: Shards | None
    card: FeatureCard | None
    names: tuple[str, ...] | None
    labels: int

    def given(self) -> list[Shards]:
        """Those that are there."""
        return [shards for shards in (self.train, self.val, self.test) if shards is not None]


def open_records(data: Records, *, training: bool) -> RecordLists:
    """Find the records that a training or a test needs; test falls back to val.

    Raises UsageError NO_DATA; DataError LABEL_NAMES where names differ, FEATURES_MIXED where features do, and
    what `list_shards` raises and `open_shards` reports of a place without a single readable record.
    """
    if training:
        paths = {"train": data.train, "val": data.val}
    else:
        paths = {"test": data.test or data.val}
    needed = next(iter(paths))
    if paths[needed] is None:
        hint = f"give data.{needed}=RECORDS, a folder of .tfrecord files, a pattern, or a list"
        raise UsageError("NO_DATA", f"the recipe names no {needed} records; {hint}")
    found = {name: records(path, _index(data, name)) for name, path in paths.items() if path is not None}
    files = [file for shards in found.values() for file in shards.paths]
    names, labels = _names(data.classes, files)
    card = feature_card(files)
    if card is not None and card.longest > data.max_frames:
        what = f"the longest video has {card.longest} frames, of which the first {data.max_frames} are taken"
        print(f"marey: {what} (data.max_frames)", file=sys.stderr)
    return RecordLists(found.get("train"), found.get("val"), found.get("test"), card, names, labels)


def records(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], index: Path | None = None
) -> Shards:
    """All records of what a user names; files that can be read in part, or not at all, are in `lost`.

    Raises DataError where there is none, and what `list_shards` raises.
    """
    several = [sources] if isinstance(sources, str | os.PathLike) else sources
    files = [file for source in several for file in list_shards(source)]
    shards = open_shards(files, index=index, damaged=lambda error: None)
    if not len(shards):
        named = ", ".join(str(source) for source in several)
        raise next(iter(shards.lost), DataError("LIST_EMPTY", f"{named}: there is no record in it"))
    return shards


def _index(data: Records, name: str) -> Path | None:
    return None if data.index is None else Path(data.index) / f"{name}.npz"


def lost_records(shards: Shards) -> list[Failure]:
    """Ends of files that cannot be read: how many records they held, nobody knows; each counts as one."""
    return [Failure(-1, error.message.partition(": ")[0], error.code, error.message) for error in shards.lost]


def tag_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of tags in label order: YouTube-8M's vocabulary.csv, or any file that `read_classes` reads."""
    if Path(path).suffix == ".csv":
        return read_vocabulary(path)
    return read_classes(path)


def _names(classes: str | None, files: Sequence[str]) -> tuple[tuple[str, ...] | None, int]:
    """Names and number of the tags; every folder of features agrees with them as far as both go."""
    names = None if classes is None else tag_names(classes)
    whence, labels = classes, len(names or ())
    for folder in sorted({os.path.dirname(file) or "." for file in files}):  # noqa: PTH120
        card = read_feature_card(folder)
        if card is None:
            continue
        labels = max(labels, card.num_classes)
        for label, (one, other) in enumerate(zip(names or (), card.class_names or (), strict=False)):
            if one != other:
                raise DataError(
                    "LABEL_NAMES",
                    f"label {label} is {one!r} in {whence}, but {other!r} in {folder}; make the features "
                    "with the same names (`marey features --classes FILE`)",
                )
        if len(card.class_names or ()) > len(names or ()):
            names, whence = card.class_names, folder
    return names, labels


def complete(recipe: TagRecipe, lists: RecordLists) -> TagRecipe:
    """The recipe with everything filled in that the data decides: widths, class count, full paths.

    Raises UsageError RECIPE_VALUE where the number of tags is not known, or features of another kind would be
    unwhitened as YouTube-8M's; UsageError CLASS_NAMES for more names than classes.
    """
    options, card = dict(recipe.model.options), lists.card
    if card is not None:
        if options.get("whitened", True):
            raise UsageError(
                "RECIPE_VALUE",
                "these features are not YouTube-8M's own, whose whitening the network undoes; give "
                "model.options.whitened=false, or take the recipe own_tags",
            )
        options = {"rgb": card.rgb, "audio": card.audio} | options
    count = recipe.model.num_classes or len(lists.names or ()) or lists.labels
    if not count:
        raise UsageError(
            "RECIPE_VALUE",
            "nothing says how many tags there are; give model.num_classes, or data.classes=FILE",
        )
    if len(lists.names or ()) > count:
        raise UsageError("CLASS_NAMES", f"{len(lists.names or ())} class names for {count} classes")
    data = recipe.data
    full = {name: _full(getattr(data, name)) for name in ("train", "val", "test", "index", "classes")}
    return msgspec.structs.replace(
        recipe,
        model=msgspec.structs.replace(recipe.model, num_classes=count, options=options),
        data=msgspec.structs.replace(data, **full),
    )


def _full(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)  # noqa: PTH100 - a link stays a link


def class_names(lists: RecordLists, count: int) -> tuple[str, ...]:
    """Names in label order; a label without a name is called by its number."""
    names = lists.names or ()
    return (*names, *(str(label) for label in range(len(names), count)))


def takes_features(model: nn.Module) -> bool:
    """Whether a network takes features of frames, not clips."""
    return hasattr(model, "rgb")


def layout_of(model: nn.Module, *, max_frames: int | None = None) -> Layout:
    """What records must hold for a `nextvlad`. Raises UsageError NO_CLIPS for other networks.

    max_frames  None: as many as it was trained with, where a checkpoint says so, else 300
    """
    rgb, audio = getattr(model, "rgb", None), getattr(model, "audio", None)
    if rgb is None:
        raise UsageError("NO_CLIPS", "the network takes clips, not features of frames; tags need `nextvlad`")
    width = audio.expansion.in_features if audio is not None else 0
    classes: Any = model.num_classes
    card = getattr(model, "metadata", None) or {}
    known = card.get("recipe", {}).get("data", {}).get("max_frames", 300)
    return Layout(
        rgb=rgb.expansion.in_features,
        audio=width,
        num_classes=int(classes),
        max_frames=known if max_frames is None else max_frames,
    )


def trained_on(model: nn.Module) -> str | None:
    """Of which features a network knows the meaning: a fingerprint, or YOUTUBE8M; None: not known.

    A checkpoint says so itself, and without a word it is YouTube-8M's own; a network that undoes YouTube-8M's
    whitening is for these alone.
    """
    card = getattr(model, "metadata", None)
    if card and card.get("features"):
        return str(card["features"]["fingerprint"])
    whitened = getattr(getattr(model, "rgb", None), "scale", None) is not None
    return YOUTUBE8M if card or whitened else None


def comparable(model: nn.Module, shards: Shards) -> bool:
    """Whether the features of these records are those that the network knows; if not, stderr says why.

    Raises DataError FEATURES_MIXED, FEATURES_CARD.
    """
    why = not_comparable(trained_on(model), feature_card(shards.paths))
    if why is not None:
        print(f"marey: {why}", file=sys.stderr)
    return why is None
