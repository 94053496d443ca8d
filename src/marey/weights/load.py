"""Published and own weights go into a network: all of them, or none."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from marey.errors import WeightsError
from marey.models import MODELS
from marey.models.detector import Detector
from marey.weights import alphaction, openmmlab, paddle, pyslowfast, reskd, swin, torchvision, uniformer, vmz
from marey.weights.names import Layout, Match
from marey.weights.native import card_model
from marey.weights.published import locate
from marey.weights.reading import read_weights, unwrap

LAYOUTS: tuple[Layout, ...] = (
    openmmlab.LAYOUT,
    *reskd.LAYOUTS,
    torchvision.LAYOUT,
    torchvision.MVIT,
    *vmz.LAYOUTS,
    alphaction.LAYOUT,
    pyslowfast.SLOWFAST,
    pyslowfast.SLOW,
    pyslowfast.MULTISCALE,
    *swin.LAYOUTS,
    uniformer.LAYOUT,
    paddle.LAYOUT,
)
HEAD = ("head.weight", "head.bias")


class LoadReport(msgspec.Struct, frozen=True):
    """What a load did.

    source    whose layout the file has: "mmaction2", "reskd", "torchvision", "vmz", ... or "marey"
    loaded    tensors of the network that were filled
    left_out  tensors of the file that were not used, and why
    head      "loaded", or "fresh": the classifier keeps the values it had
    fresh     tensors of the network that keep the values they had
    resized   tensors of the network whose values were made for another size, and from which to which shape
    """

    source: str
    loaded: int
    left_out: dict[str, str]
    head: Literal["loaded", "fresh"]
    fresh: tuple[str, ...] = ()
    resized: dict[str, str] = {}

    def summary(self) -> str:
        """One line for a person."""
        reasons = "; ".join(sorted(set(self.left_out.values())))
        out = f", {len(self.left_out)} of the file left out ({reasons})" if self.left_out else ""
        fit = f", {len(self.resized)} of them resized" if self.resized else ""
        return f"{self.loaded} tensors loaded{fit} ({self.source} layout){out}; classifier {self.head}"


def load_weights(model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Any]) -> LoadReport:
    """Fill a network from a file, a release's name, or a state_dict in any published layout.

    The layout is found from the names. Every tensor of the file must have its place and every one of the
    network its tensor, in the same shape; only the classifier may be absent, or of another class count, and
    then stays as it is (`report.head == "fresh"`). A 2D ImageNet file also leaves non-local blocks as they
    are; into 3D networks it is inflated. Of a recognizer's file a detector takes the trunk: its classifier
    and its long-term operator stay as they are; so does a detector with a long-term operator of one without.
    On any error the network is unchanged.

    Raises WeightsError: WEIGHTS_LAYOUT, WEIGHTS_MISMATCH, WEIGHTS_NOT_FINITE, and those of `read_weights`.
    """
    if isinstance(source, Mapping):
        tensors = unwrap(source, "the state_dict")
        metadata: dict[str, str] = {}
    else:
        tensors, metadata = read_weights(locate(source))
    found = recognise(tensors)
    if isinstance(model, Detector) and card_model(metadata) in MODELS:
        found = trunk_alone(found)
    return fill(model, tensors, found)


def recognise(tensors: Mapping[str, Tensor]) -> Match:
    """What a file's tensors are called here, by the layout that its names tell.

    Raises WEIGHTS_MISMATCH where two of its names would fill one of ours.
    """
    for layout in LAYOUTS:
        if not layout.signs.isdisjoint(tensors):
            break
    else:
        return Match(None, dict(zip(tensors, tensors, strict=True)), {}, {}, [])
    found = Match(layout, {}, {}, {}, [])
    spelt = layout.spell(tensors) if layout.spell else {}
    for theirs in tensors:
        hits = []
        for row in layout.rows:
            if hit := row.theirs.fullmatch(spelt.get(theirs, theirs)):
                hits.append((row, hit))
        if len(hits) != 1:
            found.unknown.append(theirs)
            continue
        row, hit = hits[0]
        if row.ours is None:
            found.left_out[theirs] = row.mark
            continue
        ours = row.ours.format(**hit.groupdict())
        if ours in found.filled:
            raise WeightsError(
                "WEIGHTS_MISMATCH", f"{found.filled[ours]!r} and {theirs!r} of the file both mean {ours!r}"
            )
        found.filled[ours] = theirs
        if row.mark:
            found.marks[ours] = row.mark
    return found


def class_count(tensors: Mapping[str, Tensor]) -> int | None:
    """Rows of the classifier that a file holds, or None where it holds none that could be used."""
    return held_classes(tensors, recognise(tensors))


def held_classes(tensors: Mapping[str, Tensor], found: Match) -> int | None:
    """Rows of the classifier among recognised tensors, or None where there is none."""
    held = found.filled.get(HEAD[0])
    if held is None:
        return None
    return tensors[held].shape[-1 if found.marks.get(HEAD[0]) == "transpose" else 0]


def of_boxes(found: Match) -> bool | None:
    """Whether a file's classifier takes boxes, as a detector's does; None: our own names do not tell."""
    return None if found.layout is None else found.marks.get(HEAD[0]) == "boxes"


def trunk_alone(found: Match, why: str = "it classifies whole clips, the network boxes") -> Match:
    """A recognizer's tensors as a detector takes them, or a baseline's with a bank: but the classifier."""
    out = {found.filled[name]: why for name in HEAD if name in found.filled}
    filled = {ours: theirs for ours, theirs in found.filled.items() if theirs not in out}
    return found._replace(filled=filled, left_out={**found.left_out, **out})


def fill(model: nn.Module, tensors: Mapping[str, Tensor], found: Match) -> LoadReport:
    """Copy the recognised tensors into the network, as `load_weights` says."""
    own, layout = model.state_dict(), found.layout
    if isinstance(model, Detector) and of_boxes(found) is False:
        found = trunk_alone(found)
    elif isinstance(model, Detector) and _of_baseline(model, tensors, found):
        found = trunk_alone(found, "it classifies boxes alone, the network with a bank")
    elif not isinstance(model, Detector) and of_boxes(found):
        raise WeightsError(
            "WEIGHTS_MISMATCH",
            "the file classifies boxes, the network whole clips; create a detector, as slowonly_r50_det",
        )
    if own.keys().isdisjoint(found.filled):
        names = ", ".join(map(repr, list(tensors)[:3]))
        known = [*dict.fromkeys(layout.source for layout in LAYOUTS), "marey"]
        raise WeightsError("WEIGHTS_LAYOUT", f"no known layout names its tensors {names}; known: {known}")
    if layout and layout.check:
        layout.check(found, model)
    values, left_out, resized = _fit(model, tensors, found)
    for name, value in values.items():
        if not value.isfinite().all():
            raise WeightsError("WEIGHTS_NOT_FINITE", f"the file's {name!r} holds NaN or infinity")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    source = layout.source if layout else "marey"
    fresh = tuple(sorted(own.keys() - values.keys()))
    head: Literal["loaded", "fresh"] = "fresh" if HEAD[0] in fresh else "loaded"
    return LoadReport(source, len(values), left_out, head, fresh, resized)


def _of_baseline(model: Detector, tensors: Mapping[str, Tensor], found: Match) -> bool:
    """Whether the network takes a bank and the file's classifier does not."""
    head = tensors.get(found.filled.get(HEAD[0], ""))
    return model.long_term is not None and head is not None and head.shape[1:] == (model.box_channels,)


def _fit(
    model: nn.Module, tensors: Mapping[str, Tensor], found: Match
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """The checked value of each of our tensors; what is left out and why; what was resized."""
    own, values, resized = model.state_dict(), dict[str, Tensor](), dict[str, str]()
    adapt = found.layout.adapt if found.layout else None
    left_out, unexpected, unfit = dict(found.left_out), list(found.unknown), []
    for ours, theirs in found.filled.items():
        value = tensors[theirs]
        if ours not in own:
            unexpected.append(theirs)
            continue
        target = own[ours]
        plain = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        numbers = value.is_floating_point() and value.numel() > 0
        if found.marks.get(ours) == "transpose":
            value = value.T if value.ndim == 2 else value
        elif found.marks.get(ours) == "inflate" and (value.ndim, target.ndim) == (4, 5):
            steps = target.shape[2]
            value = (value / steps).unsqueeze(2).expand(-1, -1, steps, -1, -1)
        elif adapt and ours in found.marks and plain and numbers and value.shape != target.shape:
            before, value = value, adapt(found.marks[ours], value, target, model)
            if value.numel() != before.numel():
                resized[ours] = f"{list(before.shape)} to {list(value.shape)}"
        alike = plain and value.is_floating_point() == target.is_floating_point()
        if alike and value.shape == target.shape:
            values[ours] = value
        elif alike and ours in HEAD and value.ndim and value[:1].shape == target[:1].shape:
            left_out[theirs] = f"{len(value)} classes in the file, {len(target)} in the network"
        else:
            unfit.append(f"{theirs} {list(value.shape)} for {list(target.shape)}")
            values[ours] = target
    may_lack = found.layout.may_lack if found.layout else ()
    if values.keys().isdisjoint(HEAD):
        may_lack += (*HEAD, "long_term.")
    missing = []
    for name in own.keys() - values.keys():
        needed = not name.endswith(".num_batches_tracked")
        for part in may_lack:
            needed = needed and part not in name
        if needed:
            missing.append(name)
    if missing or unexpected or unfit:
        raise _mismatch(own, found, missing=missing, unexpected=unexpected, unfit=unfit)
    return values, left_out, resized


def _mismatch(own: Mapping[str, Tensor], found: Match, **lists: list[str]) -> WeightsError:
    parts = []
    for what, names in lists.items():
        what = "of another shape or kind" if what == "unfit" else what
        shown = ", ".join(name if name.isprintable() else ascii(name) for name in sorted(names)[:3])
        if names:
            parts.append(f"{len(names)} {what} ({shown[:300]}{', ...' if len(names) > 3 else ''})")
    theirs, ours = _plan(found.filled), _plan(own)
    differ = f"; the file is {theirs}, the network {ours}" if theirs != ours else ""
    return WeightsError(
        "WEIGHTS_MISMATCH",
        f"the file does not fit the network; tensors: {'; '.join(parts)}{differ}; nothing was loaded. Create "
        "the model that the file belongs to (depth, width, style=..., non_local=... and so on)",
    )


def _plan(names: Mapping[str, Any]) -> str:
    """What the names of a residual network tell of it: "CSN ip, 3 + 4 + 6 + 3 blocks"."""
    blocks = {tuple(name.split(".")[1:3]) for name in names if name.startswith("trunk.stage")}
    counts = [sum(stage == f"stage{number}" for stage, _ in blocks) for number in (1, 2, 3, 4)]
    kind = ""
    for sign, what in (
        ("trunk.stage1.0.conv2.0.conv.weight", "CSN ir, "),
        ("trunk.stage1.0.conv2.1.conv.weight", "CSN ip, "),
        ("trunk.stem.0.conv.weight", "R(2+1)D, "),
    ):
        kind = what if sign in names else kind
    return f"{kind}{' + '.join(map(str, counts))} blocks"
