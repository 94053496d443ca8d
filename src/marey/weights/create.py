"""A name, perhaps with weights, becomes a network that carries its preprocessing and class names."""

import os
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor, nn

from marey.errors import UsageError, unknown
from marey.models import MODELS, build
from marey.video.preprocess import Preprocess
from marey.weights.load import class_count, load_weights
from marey.weights.native import KEY, Card, load_checkpoint, read_card
from marey.weights.published import RELEASES, Release, family_preprocess, locate
from marey.weights.reading import read_weights


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> nn.Module:
    """A network of `marey.list_models()`, in training mode, with fresh weights or those of a file or release.

    num_classes  rows of the classifier; None: as many as the weights have, else 400. Other weights than
                 that leave the classifier fresh and load the rest
    weights      a file in any published layout, a checkpoint, a 2D ImageNet file (.pth), or a release's name
    overrides    keyword arguments of the network's class, for example segments=16 (see its docstring)

    The network has `preprocess` (of the checkpoint or release, else its family's), `class_names` (None where
    unknown), `spec` (these arguments as plain data) and, with weights, `load_report`. Fresh weights come from
    torch's global generator. Raises UsageError for names and values that do not fit, with the nearest ones,
    and WeightsError as `load_weights` does.
    """
    tensors, origin = None, None
    if weights is not None:
        tensors, origin = _read(weights)
        if origin is not None and origin.model != name:
            raise UsageError(
                "WEIGHTS_MODEL", f"{os.fspath(weights)!r} belongs to {origin.model}, not to {name}"
            )
        if num_classes is None:
            num_classes = class_count(tensors)
    given = {**origin.overrides, **overrides} if origin else overrides
    model: Any = build(name, 400 if num_classes is None else num_classes, **given)
    model.spec = {"name": name, "num_classes": model.num_classes, "overrides": given}
    model.preprocess = origin.preprocess if origin else family_preprocess(name, getattr(model, "segments", 8))
    if "segments" in overrides:
        model.preprocess = msgspec.structs.replace(model.preprocess, frames=model.segments)
    model.class_names = None
    if tensors is not None:
        model.load_report = load_weights(model, tensors)
        if origin and model.load_report.head == "loaded":
            model.class_names = origin.class_names
    network: nn.Module = model
    return network


def starting_preprocess(
    name: str, weights: str | os.PathLike[str] | None = None, segments: int = 8
) -> Preprocess:
    """What a network of that name is fed when it starts from these weights, or from none: the preprocessing
    of the checkpoint or release, else that of the network's family."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    origin = None if weights is None else _read(weights)[1]
    return origin.preprocess if origin else family_preprocess(name, segments)


def _read(weights: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Card | Release | None]:
    """A file's tensors and, where it is a checkpoint or a release, what belongs to them."""
    path = locate(weights)
    tensors, metadata = read_weights(path)
    return tensors, read_card(metadata[KEY], tensors, path) if KEY in metadata else RELEASES.get(path.stem)


def open_model(source: str | os.PathLike[str]) -> nn.Module:
    """The network of a checkpoint or a release (by name or file), in evaluation mode, ready to predict."""
    path = Path(source)
    if not path.exists():
        path = locate(source)
    if path.stem in RELEASES:
        return create_model(RELEASES[path.stem].model, weights=path).eval()
    return load_checkpoint(path)
