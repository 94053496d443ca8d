"""Marey's own checkpoints: safetensors whose metadata holds all that a prediction needs."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec
import safetensors.torch
import torch
from torch import Tensor, nn

from marey.errors import MareyError, UsageError, WeightsError
from marey.files import replacing
from marey.models import build
from marey.video.preprocess import Preprocess
from marey.weights.load import load_weights
from marey.weights.reading import read_weights

KEY = "marey"  # of the metadata entry that holds the card, as JSON
FORMAT = 1


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint says of itself.

    format, marey     version of this layout, and of the toolkit that wrote it
    model, num_classes, overrides   arguments of `create_model`
    preprocess        what the network is fed
    class_names       in label order, or None
    recipe, metrics   the resolved recipe of the run, and what was measured when it was saved
    sha256            of the tensors, see `digest`
    """

    format: int
    marey: str
    model: str
    num_classes: int
    overrides: dict[str, Any]
    preprocess: Preprocess
    class_names: tuple[str, ...] | None
    recipe: dict[str, Any]
    metrics: dict[str, float | None]
    sha256: str


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    preprocess: Preprocess,
    class_names: Sequence[str] | None,
    recipe: Mapping[str, Any],
    metrics: Mapping[str, float | None],
) -> None:
    """Write a network made by `create_model` and everything that belongs to it to one .safetensors file.

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
    )
    metadata = {KEY: msgspec.json.encode(card).decode()}
    with replacing(path) as part:
        safetensors.torch.save_file(tensors, part, metadata)


def load_checkpoint(path: str | os.PathLike[str]) -> nn.Module:
    """The network of a checkpoint, in evaluation mode, with `preprocess`, `class_names`, `spec`, `metadata`.

    `metadata` is the Card as a plain dict. Raises WeightsError: WEIGHTS_CARD where the file is not one of
    ours or contradicts itself, and those of `load_weights`.
    """
    tensors, metadata = read_weights(path)
    if KEY not in metadata:
        raise WeightsError(
            "WEIGHTS_CARD",
            f"{os.fspath(path)!r} does not say which network it belongs to; marey.create_model(NAME, "
            "weights=FILE) takes such files",
        )
    card = read_card(metadata[KEY], tensors, path)
    model: Any = build(card.model, card.num_classes, **card.overrides)
    load_weights(model, tensors)
    model.preprocess, model.class_names = card.preprocess, card.class_names
    model.spec = {"name": card.model, "num_classes": card.num_classes, "overrides": card.overrides}
    model.metadata = msgspec.to_builtins(card)
    network: nn.Module = model.eval()
    return network


def read_card(text: str, tensors: Mapping[str, Tensor], where: str | os.PathLike[str]) -> Card:
    """The card of a file, checked against the file's tensors before a network is built from it."""
    try:
        card = msgspec.json.decode(text, type=Card)
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


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, as hex, over names, types, shapes and bytes of CPU tensors in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
