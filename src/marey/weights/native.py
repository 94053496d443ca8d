"""Marey's own checkpoints: safetensors whose metadata holds all that a prediction needs."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from marey.errors import MareyError, UsageError, WeightsError
from marey.files import replacing
from marey.models import build
from marey.video.preprocess import Preprocess

KEY = "marey"  # of the metadata entry that holds the card, as JSON
FORMAT = 1


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint says of itself.

    format, marey     version of this layout, and of the toolkit that wrote it
    model, num_classes, overrides   arguments of `create_model`
    preprocess        what the network is fed; None: it takes features of frames, as wide as its arguments say
    class_names       in label order, or None
    recipe, metrics   the resolved recipe of the run, and what was measured when it was saved
    sha256            of the tensors, see `digest`
    features          of a network that takes features: who made those that it was trained on
    """

    format: int
    marey: str
    model: str
    num_classes: int
    overrides: dict[str, Any]
    preprocess: Preprocess | None
    class_names: tuple[str, ...] | None
    recipe: dict[str, Any]
    metrics: dict[str, float | None]
    sha256: str
    features: dict[str, Any] | None = None


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    preprocess: Preprocess | None,
    class_names: Sequence[str] | None,
    recipe: Mapping[str, Any],
    metrics: Mapping[str, float | None],
    features: Mapping[str, Any] | None = None,
) -> None:
    """Write a network made by `create_model` and everything that belongs to it to one .safetensors file.

    preprocess  None for a network that takes features
    features  of a network that takes features: what `FeatureCard.identity` gives, None for YouTube-8M's own
    The file is whole or not there: it is written aside, synced and renamed. Raises UsageError where the model
    or the class names are not of its kind, EnvironmentFault where the disk fails.
    """
    plain: Any = model
    if getattr(plain, "spec", None) is None:
        raise UsageError(
            "NO_SPEC", "only a network made by marey.create_model can be saved with its arguments"
        )
    names = None if class_names is None else tuple(class_names)
    if names is not None and len(names) != plain.num_classes:
        raise UsageError("CLASS_NAMES", f"{len(names)} class names for {plain.num_classes} classes")
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    card = Card(
        format=FORMAT,
        marey=version("marey"),
        model=plain.spec["name"],
        num_classes=plain.num_classes,
        overrides=plain.spec["overrides"],
        preprocess=preprocess,
        class_names=names,
        recipe=dict(recipe),
        metrics=dict(metrics),
        sha256=digest(tensors),
        features=None if features is None else dict(features),
    )
    metadata = {KEY: msgspec.json.encode(card).decode()}
    with replacing(path) as part:
        safetensors.torch.save_file(tensors, part, metadata)


def read_card(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor], where: str | os.PathLike[str]
) -> Card | None:
    """The card of a checkpoint, or None where a file has none.

    It is checked against the file's tensors before a network is built from it; raises WEIGHTS_CARD.
    """
    if KEY not in metadata:
        return None
    try:
        card = msgspec.json.decode(metadata[KEY], type=Card)
        with torch.device("meta"):  # takes no memory, whatever size the card claims
            shell = build(card.model, card.num_classes, **card.overrides).state_dict()
    except (msgspec.MsgspecError, MareyError, RuntimeError, TypeError) as error:
        raise WeightsError("WEIGHTS_CARD", f"{os.fspath(where)!r} has an unusable card: {error}") from None
    fits = shell.keys() == tensors.keys()
    for name in shell if fits else ():
        fits = fits and shell[name].shape == tensors[name].shape
    if not fits or card.format != FORMAT or digest(tensors) != card.sha256:
        raise WeightsError(
            "WEIGHTS_CARD",
            f"{os.fspath(where)!r} does not hold the tensors of {card.model} that its card tells of (layout "
            f"{card.format}, written by marey {card.marey}): it is damaged, or a newer marey is needed",
        )
    return card


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is a checkpoint; nothing else of it is looked at."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return KEY in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False


def card_model(metadata: Mapping[str, str]) -> str | None:
    """The network that a checkpoint's card names, unchecked; None where a file has none."""
    try:
        card = msgspec.json.decode(metadata.get(KEY, "{}"))
    except msgspec.MsgspecError:
        return None
    name = card.get("model") if isinstance(card, dict) else None
    return name if isinstance(name, str) else None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, as hex, over names, types, shapes and bytes of CPU tensors in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
