"""Published and own weights go into a network: all of them, or none."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from marey.errors import WeightsError
from marey.weights import openmmlab, torchvision
from marey.weights.names import Match
from marey.weights.published import locate
from marey.weights.reading import read_weights, unwrap

LAYOUTS = {"mmaction2": openmmlab, "torchvision": torchvision}
HEAD = ("head.weight", "head.bias")


class LoadReport(msgspec.Struct, frozen=True):
    """What a load did.

    source    "mmaction2", "torchvision" or "marey"
    loaded    tensors of the network that were filled
    left_out  tensors of the file that were not used, and why
    head      "loaded", or "fresh": the classifier keeps the values it had
    fresh     tensors of the network that keep the values they had
    """

    source: str
    loaded: int
    left_out: dict[str, str]
    head: Literal["loaded", "fresh"]
    fresh: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for a person."""
        reasons = "; ".join(sorted(set(self.left_out.values())))
        out = f", {len(self.left_out)} of the file left out ({reasons})" if self.left_out else ""
        return f"{self.loaded} tensors loaded ({self.source} layout){out}; classifier {self.head}"


def load_weights(model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Any]) -> LoadReport:
    """Fill a network from a file, a release's name, or a state_dict in any published layout.

    The layout is found from the names. Every tensor of the file must have its place and every one of the
    network its tensor, in the same shape; only the classifier may be absent, or of another class count, and
    then stays as it is (`report.head == "fresh"`). A 2D ImageNet file also leaves non-local blocks as they
    are; into 3D networks it is inflated. On any error the network is unchanged.

    Raises WeightsError: WEIGHTS_LAYOUT, WEIGHTS_MISMATCH, WEIGHTS_NOT_FINITE, and those of `read_weights`.
    """
    tensors = (
        unwrap(source, "the state_dict") if isinstance(source, Mapping) else read_weights(locate(source))[0]
    )
    own = model.state_dict()
    kind, found, may_lack = "marey", Match(dict(zip(tensors, tensors, strict=True)), {}, {}, []), ()
    for name, layout in LAYOUTS.items():
        if not layout.SIGNS.isdisjoint(tensors):
            kind, found, may_lack = name, layout.translate(tensors, model), layout.MAY_LACK
    if own.keys().isdisjoint(found.filled):
        names = ", ".join(map(repr, list(tensors)[:3]))
        raise WeightsError(
            "WEIGHTS_LAYOUT", f"no known layout names its tensors {names}; known: {[*LAYOUTS, 'marey']}"
        )
    values, left_out = _fit(own, tensors, found, may_lack)
    for name, value in values.items():
        if not value.isfinite().all():
            raise WeightsError("WEIGHTS_NOT_FINITE", f"the file's {name!r} holds NaN or infinity")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    fresh = tuple(sorted(own.keys() - values.keys()))
    return LoadReport(kind, len(values), left_out, "fresh" if HEAD[0] in fresh else "loaded", fresh)


def class_count(tensors: Mapping[str, Tensor]) -> int | None:
    """Rows of the classifier that a file holds, or None where it holds none that could be used."""
    for name in (HEAD[0], openmmlab.HEAD):
        if name in tensors:
            return len(tensors[name])
    return None


def _fit(
    own: dict[str, Tensor], tensors: dict[str, Tensor], found: Match, may_lack: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The checked value of each of our tensors, and what of the file is left out and why."""
    values: dict[str, Tensor] = {}
    left_out, unexpected, unfit = dict(found.left_out), list(found.unknown), []
    for ours, theirs in found.filled.items():
        value = tensors[theirs]
        if ours not in own:
            unexpected.append(theirs)
            continue
        target = own[ours]
        if found.marks.get(ours) == "inflate" and (value.ndim, target.ndim) == (4, 5):
            steps = target.shape[2]
            value = (value / steps).unsqueeze(2).expand(-1, -1, steps, -1, -1)
        plain = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        alike = plain and value.is_floating_point() == target.is_floating_point()
        if alike and value.shape == target.shape:
            values[ours] = value
        elif alike and ours in HEAD and value.ndim and value[:1].shape == target[:1].shape:
            left_out[theirs] = f"{len(value)} classes in the file, {len(target)} in the network"
        else:
            unfit.append(f"{theirs} {list(value.shape)} for {list(target.shape)}")
            values[ours] = target
    no_head = values.keys().isdisjoint(HEAD)
    missing = []
    for name in own.keys() - values.keys():
        may = name.endswith(".num_batches_tracked") or (no_head and name in HEAD)
        if not may and not any(part in name for part in may_lack):
            missing.append(name)
    if missing or unexpected or unfit:
        raise _mismatch(missing=missing, unexpected=unexpected, unfit=unfit)
    return values, left_out


def _mismatch(*, missing: list[str], unexpected: list[str], unfit: list[str]) -> WeightsError:
    parts = []
    for what, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape or kind", unfit),
    ):
        shown = ", ".join(name if name.isprintable() else ascii(name) for name in sorted(names)[:3])
        if names:
            parts.append(f"{len(names)} {what} ({shown[:300]}{', ...' if len(names) > 3 else ''})")
    return WeightsError(
        "WEIGHTS_MISMATCH",
        f"the file does not fit the network; tensors: {'; '.join(parts)}; nothing was loaded. Create the "
        "model that the file belongs to (depth, width, non_local=... and so on)",
    )
