"""A name, perhaps with weights, becomes a network that carries its preprocessing and class names."""

import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
from torch import Tensor, nn

from marey.errors import UsageError, WeightsError, unknown
from marey.models import DETECTORS, MODELS, NETWORKS, build
from marey.video.preprocess import Preprocess, Protocol
from marey.weights import reskd
from marey.weights.detect import Identity, identify
from marey.weights.load import fill, held_classes, of_boxes, recognise, trunk_alone
from marey.weights.native import Card, read_card
from marey.weights.onnx import open_onnx
from marey.weights.published import RELEASES, Release, family_preprocess, locate
from marey.weights.reading import read_weights
from marey.weights.releases import ava


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> nn.Module:
    """A network of `marey.list_models()`, in training mode, with fresh weights or those of a file or release.

    num_classes  rows of the classifier; None: as many as the weights have, else 400 (nextvlad: 3862,
                 detectors: 81). Weights of another number leave the classifier fresh and load the rest
    weights      a file in any published layout, a checkpoint, a 2D ImageNet file (.pth), or a release's name.
                 A detector also starts from its recognizer's, with its settings
    overrides    keyword arguments of the network's class, for example segments=16 (see its docstring)

    The network has `preprocess` (of the checkpoint or release, else its family's), `class_names` (None where
    unknown), `spec` (these arguments as plain data) and, with weights, `load_report`; with those of a
    checkpoint also `metadata`, its Card as a plain dict. Fresh weights come from torch's global generator.
    Raises UsageError for names and values that do not fit, with the nearest ones, and WeightsError as
    `load_weights` does.
    """
    if weights is None:
        return _assemble(name, num_classes, None, None, overrides)
    path = locate(weights)
    tensors, metadata = read_weights(path)
    origin = read_card(metadata, tensors, path) if metadata else RELEASES.get(path.stem)
    if origin is not None and origin.model != name:
        if name != f"{origin.model}_det":
            raise UsageError(
                "WEIGHTS_MODEL", f"{os.fspath(weights)!r} belongs to {origin.model}, not to {name}"
            )
        given = {**_trunk_settings(name, origin), **overrides}
        return _assemble(name, num_classes, tensors, None, given, start=origin.preprocess)
    return _assemble(name, num_classes, tensors, origin, overrides)


def open_model(source: str | os.PathLike[str]) -> nn.Module:
    """The network of a checkpoint, a release or another published file, in evaluation mode, ready to predict.

    It has what `create_model` gives it. An .onnx file of `marey export` gives an `OnnxModel`, which only
    predicts. Of other files the network is found as `identify` says; what is assumed is told on stderr.
    Raises WeightsError: WEIGHTS_CARD where a checkpoint contradicts itself, and those of `identify`,
    `load_weights` and `open_onnx`.
    """
    path = locate(source)
    if path.suffix == ".onnx":
        return open_onnx(path)
    if path.suffix == ".pt2":
        raise WeightsError(
            "WEIGHTS_UNSAFE",
            f"{str(path)!r}: loading a .pt2 runs what it asks for; take the checkpoint, or export to ONNX",
        )
    tensors, metadata = read_weights(path)
    origin: Card | Release | Identity | None
    origin = read_card(metadata, tensors, path) if metadata else RELEASES.get(path.stem)
    if origin is None or getattr(origin, "headless", False):
        origin = identify(path, tensors)
    model: Any = _assemble(origin.model, None, tensors, origin, {})
    if isinstance(origin, Identity):
        for note in origin.notes:
            print(f"marey: {path.name}: {note}", file=sys.stderr)
    network: nn.Module = model.eval()
    return network


def starting_preprocess(
    name: str, weights: str | os.PathLike[str] | None = None, segments: int = 8
) -> Preprocess:
    """What a network of that name is fed when it starts from these weights, or from none: the preprocessing
    of the checkpoint or release, else that of the network's family."""
    if name not in NETWORKS:
        raise unknown("model", name, NETWORKS)
    if weights is not None:
        path = locate(weights)
        tensors, metadata = read_weights(path)
        if origin := read_card(metadata, tensors, path) if metadata else RELEASES.get(path.stem):
            if origin.preprocess is None:
                raise UsageError("NO_CLIPS", f"{os.fspath(weights)!r} takes features of frames, not clips")
            starts = name == f"{origin.model}_det"
            return ava.started(origin.preprocess) if starts else origin.preprocess
    return family_preprocess(name, segments)


TRAINING = {"num_classes", "dropout", "norm_eval", "frozen_stages"}  # arguments that no trunk depends on


def _trunk_settings(name: str, origin: Card | Release) -> dict[str, Any]:
    """Arguments by which a detector has the trunk of the recognizer that it starts from."""
    theirs = inspect.signature(MODELS[origin.model]).parameters
    ours, settings = inspect.signature(DETECTORS[name]).parameters, dict[str, Any]()
    for key in sorted((theirs.keys() & ours.keys()) - TRAINING):
        value = origin.overrides.get(key, theirs[key].default)
        if value != ours[key].default:
            settings[key] = value
    return settings


def _fitted(clips: Preprocess, frames: int, crop: int) -> Preprocess:
    """The same for clips of another size; short sides keep their ratio to the crop, so that it fits."""
    if clips.input_size:
        return msgspec.structs.replace(clips, frames=frames, input_size=crop)

    def scaled(side: int | None) -> int | None:
        return None if side is None else round(side * crop / clips.crop)

    sides: dict[str, Any] = {}
    for name in ("val", "test"):
        p: Protocol = getattr(clips, name)
        sides[name] = msgspec.structs.replace(p, short_side=scaled(p.short_side), crop=scaled(p.crop))
    if clips.train_short_side:
        sides["train_short_side"] = tuple(map(scaled, clips.train_short_side))
    short = scaled(clips.short_side)
    return msgspec.structs.replace(clips, frames=frames, crop=crop, short_side=short, **sides)


def _assemble(
    name: str,
    num_classes: int | None,
    tensors: Mapping[str, Tensor] | None,
    origin: Card | Release | Identity | None,
    overrides: dict[str, Any],
    *,
    start: Preprocess | None = None,
) -> nn.Module:
    """The network, its weights if there are any, and what belongs to it.

    start  what the recognizer was fed that a detector starts from; None: the tensors are the network's own
    """
    found = None if tensors is None else recognise(tensors)
    if found is not None and name in DETECTORS and (start or of_boxes(found) is False):
        found = trunk_alone(found)
    if num_classes is None:
        held = held_classes(tensors, found) if tensors and found else None
        num_classes = held or {"nextvlad": 3862, **dict.fromkeys(DETECTORS, 81)}.get(name, 400)
    given = {**origin.overrides, **overrides} if origin else overrides
    model: Any = build(name, num_classes, **given)
    model.spec = {"name": name, "num_classes": num_classes, "overrides": given}
    if origin is not None:
        model.preprocess = origin.preprocess
    elif start is not None:
        model.preprocess = ava.started(start)
    elif name != "nextvlad":  # it is fed features, not clips
        model.preprocess = family_preprocess(name, getattr(model, "segments", 8))
        if found is not None and found.layout is not None and found.layout.source == reskd.SOURCE:
            model.preprocess = reskd.student_clips(model.preprocess)
    if "segments" in overrides:
        model.preprocess = msgspec.structs.replace(model.preprocess, frames=model.segments)
    if hasattr(model, "clip_size"):  # MViT takes clips of one size only
        model.preprocess = _fitted(model.preprocess, *model.clip_size[:2])
    model.class_names = None
    if tensors is not None and found is not None:
        model.load_report = fill(model, tensors, found)
        if origin and model.load_report.head == "loaded":
            model.class_names = origin.class_names
    if isinstance(origin, Card):
        model.metadata = msgspec.to_builtins(origin)
    network: nn.Module = model
    return network
