"""From a recipe of boxes to what its jobs work with: key frames, proposals, banks, names of actions."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from marey.data.ava import AvaSet, ava_set, find_media, proposed_set
from marey.data.bank import Bank
from marey.data.proposals import read_proposals
from marey.errors import DataError, UsageError
from marey.metrics.ava_tables import Kind, Rows, read_exclusions, read_label_map, read_rows
from marey.recipes.schema import BoxRecipe, KeySplit

NO_ACTION = "no action"  # what column 0 of the classes is called


class Split(NamedTuple):
    """A split that is there.

    name      what messages call it: its annotation, or its proposals
    frames    its key frames, whose media are known
    truth     all rows of the annotation; None: there is no annotation
    excluded  names of key frames that do not count
    bank      feature bank of its videos, where the network wants one
    """

    name: str
    frames: AvaSet
    truth: Rows | None
    excluded: frozenset[str]
    bank: Bank | None


class KeyLists(NamedTuple):
    """The splits of a recipe, what it does not name being None, and the actions' names by number."""

    train: Split | None
    val: Split | None
    test: Split | None
    actions: Mapping[int, str] | None

    def given(self) -> list[Split]:
        """Those that are there."""
        return [split for split in (self.train, self.val, self.test) if split is not None]


def open_keys(recipe: BoxRecipe, *, training: bool) -> KeyLists:
    """Read the splits that a training or a test needs; test falls back to val.

    Raises UsageError NO_DATA naming the key that is missing, BANK_MODEL for a bank of another network;
    DataError BANK_VIDEO for one without all of the videos, and for what is wrong in a file.
    """
    data = recipe.data
    actions = None if data.label_map is None else read_label_map(data.label_map)
    if not training:
        there = "test" if data.test != KeySplit() else "val"
        return KeyLists(None, None, open_split(recipe, there, actions), actions)
    train = open_split(recipe, "train", actions, training=True)
    val = None if data.val == KeySplit() else open_split(recipe, "val", actions)
    return KeyLists(train, val, None, actions)


def open_split(
    recipe: BoxRecipe,
    name: str,
    actions: Mapping[int, str] | None = None,
    *,
    training: bool = False,
    banked: bool = True,
    annotated: bool = True,
) -> Split:
    """One split, "train", "val" or "test", of a recipe. Raises as `open_keys`.

    training   as a training needs it: without excluded key frames and those without a person
    banked     open its bank, too, where the network takes one
    annotated  key frames are those of the annotation, where there is one; else those that proposals name
    """
    data, split = recipe.data, getattr(recipe.data, name)
    needed = {"media": split.media}
    needed |= {"annotation": split.annotation} if training else {"proposals": split.proposals}
    if banked and recipe.model.options.get("long_term"):
        needed["bank"] = split.bank
    missing = [f"data.{name}.{key}" for key, value in needed.items() if value is None]
    if missing:
        raise UsageError("NO_DATA", f"the recipe does not say {' nor '.join(missing)}; see docs/detection.md")
    proposals = None if split.proposals is None else read_proposals(split.proposals)
    excluded = frozenset() if split.excluded is None else read_exclusions(split.excluded)
    count, custom = _classes(recipe, actions), data.actions or None
    kind: Kind = "annotation" if training else "truth"
    truth = None if split.annotation is None else read_rows(split.annotation, kind)
    if truth is not None and annotated:
        frames = ava_set(
            truth,
            proposals=proposals,
            excluded=excluded,
            training=training,
            num_classes=count,
            custom=custom,
            threshold=data.threshold,
            most=data.most,
        )
    else:
        assert proposals is not None
        frames = proposed_set(proposals, num_classes=count, threshold=data.threshold, most=data.most)
    _with_media(frames, split.media, data.template)
    bank = None
    if "bank" in needed:
        bank = Bank(str(split.bank), model_sha256=data.bank_weights)
        _check_bank(bank, frames.videos)
    return Split(str(split.annotation or split.proposals), frames, truth, excluded, bank)


def _classes(recipe: BoxRecipe, actions: Mapping[int, str] | None) -> int:
    """Columns of the labels: as the network has, else one more than there are actions."""
    if recipe.model.num_classes is not None:
        return recipe.model.num_classes
    if recipe.data.actions:
        return len(recipe.data.actions) + 1
    if actions is not None:
        return max(actions) + 1
    files = {split.annotation for split in (recipe.data.train, recipe.data.val, recipe.data.test)} - {None}
    return 1 + max((int(read_rows(str(f), "truth").action.max(initial=1)) for f in files), default=1)


def _with_media(frames: AvaSet, root: str, template: str | None) -> None:
    media, missing = find_media(root, frames.videos)
    if missing:
        raise DataError(
            "AVA_MEDIA",
            f"{len(missing)} of {len(frames.videos)} videos are not in {root}: {', '.join(missing[:3])}; "
            "put a file or a folder of frames of that name there, or take their rows out",
        )
    frames.media, frames.template = media, template


def _check_bank(bank: Bank, videos: Sequence[str]) -> None:
    absent = [video for video in videos if video not in bank.videos]
    if absent:
        raise DataError(
            "BANK_VIDEO",
            f"the bank {str(bank.path)!r} lacks {len(absent)} of {len(videos)} videos: "
            f"{', '.join(absent[:3])}; build the rest by the same `marey bank build`",
        )


def complete(recipe: BoxRecipe, lists: KeyLists) -> BoxRecipe:
    """The recipe with everything filled in that the data decides: classes, full paths, whose bank it is.

    Raises UsageError BANK_MODEL where the banks of two splits are of different networks.
    """
    data = recipe.data
    paths = {name: _full_split(getattr(data, name)) for name in ("train", "val", "test")}
    hashes = [split.bank.card.model_sha256 for split in lists.given() if split.bank is not None]
    for split in lists.given():
        if split.bank is not None and split.bank.card.model_sha256 != hashes[0]:
            raise UsageError(
                "BANK_MODEL",
                f"{split.bank.path} was made with other weights than the bank of another split; make both "
                "with the same checkpoint",
            )
    count = max(split.frames.num_classes for split in lists.given())
    return msgspec.structs.replace(
        recipe,
        model=msgspec.structs.replace(recipe.model, num_classes=count),
        data=msgspec.structs.replace(
            data,
            label_map=_full(data.label_map),
            bank_weights=hashes[0] if hashes else data.bank_weights,
            **paths,
        ),
    )


def class_names(recipe: BoxRecipe, actions: Mapping[int, str] | None) -> tuple[str, ...]:
    """Names of the columns; an action without a name is called by its number, column 0 `no action`."""
    count = recipe.model.num_classes or 0
    numbers = recipe.data.actions or range(1, count)
    return (NO_ACTION, *((actions or {}).get(number, str(number)) for number in numbers))


def counted(recipe: BoxRecipe, actions: Mapping[int, str] | None) -> dict[int, str] | None:
    """Actions, by their numbers in the annotation, that count in an evaluation; None: all in the truth."""
    chosen = recipe.data.actions
    if actions is None and not chosen:
        return None
    return {n: (actions or {}).get(n, str(n)) for n in chosen or sorted(actions or ())}


def _full_split(split: KeySplit) -> KeySplit:
    return KeySplit(**{name: _full(getattr(split, name)) for name in split.__struct_fields__})


def _full(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)  # noqa: PTH100 - a link stays a link
