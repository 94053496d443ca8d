"""`marey convert`: a published weight file becomes a checkpoint, with all that belongs to it."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from marey.errors import UsageError, WeightsError
from marey.files import replacing
from marey.jobs.setup_features import layout_of
from marey.models.detector import Detector
from marey.video.preprocess import Preprocess
from marey.weights.create import create_model, open_model
from marey.weights.detect import Identity, identify
from marey.weights.load import load_weights
from marey.weights.native import KEY, save_checkpoint
from marey.weights.published import RELEASES, locate
from marey.weights.reading import read_weights

TOLERANCE = 1e-5  # of the largest logit; the same weights give 0


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion did.

    source, out  the files
    release      the release that the source is, or None
    model, num_classes, overrides   arguments of `create_model`
    class_names  whether the checkpoint knows them
    loaded       tensors
    left_out     tensors of the source that were not used, and why
    notes        what was assumed
    absolute, relative   with verify: the largest difference of both files' logits for one clip, and its share
                 of the largest logit
    """

    source: str
    out: str
    release: str | None
    model: str
    num_classes: int
    overrides: dict[str, Any]
    class_names: bool
    loaded: int
    left_out: dict[str, str]
    notes: tuple[str, ...]
    absolute: float | None = None
    relative: float | None = None

    def lines(self) -> list[str]:
        """For people."""
        settings = "".join(f" {key}={value}" for key, value in self.overrides.items())
        names = "class names known" if self.class_names else "class names unknown"
        rows = [f"{self.out}: {self.model}{settings}, {self.num_classes} classes, {names}"]
        rows.append(f"{self.loaded} tensors of {self.source}, release {self.release or 'unknown'}")
        rows += [f"{name} left out: {why}" for name, why in self.left_out.items()]
        if self.absolute is not None:
            rows.append(f"largest difference of the logits {self.absolute:.3g}, relative {self.relative:.3g}")
        return rows


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    verify: bool = False,
    force: bool = False,
) -> Converted:
    """Write a checkpoint with the weights of a published file, its network's name, preprocessing and classes.

    source     a file in any published layout, or a release's name
    out        a name that ends with .safetensors
    model      a network's name, or that of the release it is like; None: found from the file
    overrides  arguments of the network that the file does not show
    verify     run both networks on one drawn clip and compare; WeightsError CONVERT_DIFFERS if they disagree
    force      replace `out`

    Raises UsageError OUT_SUFFIX, OUT_EXISTS, IS_CHECKPOINT, and what `identify` and `load_weights` raise. On
    any error `out` is what it was.
    """
    out, path = Path(out), locate(source)
    if out.suffix != ".safetensors":
        raise UsageError("OUT_SUFFIX", f"{str(out)!r}: checkpoints are written as .safetensors")
    if out.exists() and (not force or out.samefile(path)):
        raise UsageError("OUT_EXISTS", f"{str(out)!r} is there already; give another name, or --force")
    tensors, metadata = read_weights(path)
    if KEY in metadata:
        raise UsageError("IS_CHECKPOINT", f"{str(path)!r} is a checkpoint of Marey already")
    found = identify(path, tensors, model=model, overrides=overrides)
    network: Any = create_model(found.model, found.num_classes, **found.overrides)
    report = load_weights(network, tensors)
    with replacing(out) as part:
        save_checkpoint(
            part,
            network,
            preprocess=found.preprocess,
            class_names=found.class_names,
            recipe={"converted": _origin(path, found)},
            metrics={},
        )
        absolute, relative = _compare(network, part, found.preprocess) if verify else (None, None)
    return Converted(
        source=str(path),
        out=str(out),
        release=found.release,
        model=found.model,
        num_classes=found.num_classes,
        overrides=found.overrides,
        class_names=found.class_names is not None,
        loaded=report.loaded,
        left_out=report.left_out,
        notes=found.notes,
        absolute=absolute,
        relative=relative,
    )


def _origin(path: Path, found: Identity) -> dict[str, Any]:
    """Where the weights come from, as the checkpoint keeps it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    release = RELEASES.get(found.release or "")
    stated = {"url": release.url, "license": release.license} if release else {}
    return {"file": path.name, "sha256": digest, "release": found.release, **stated}


def _compare(network: nn.Module, part: Path, preprocess: Preprocess | None) -> tuple[float, float]:
    """Largest difference of the logits, absolute and as a share of the largest logit."""
    draws = torch.Generator().manual_seed(0)
    inputs: list[Any]
    if preprocess is None:  # stored bytes of frames
        layout = layout_of(network)
        widths = [width for width in (layout.rgb, layout.audio) if width]
        inputs = [
            torch.randint(0, 256, (1, 30, width), generator=draws, dtype=torch.uint8) for width in widths
        ]
    else:
        side = preprocess.input_size or preprocess.crop
        inputs = [torch.randn((1, 3, preprocess.frames, side, side), generator=draws)]
        inputs += network.beside(inputs[0]) if isinstance(network, Detector) else ()
    want, got = _logits(network, inputs), _logits(open_model(part), inputs)
    if not want.isfinite().all():
        raise WeightsError(
            "CONVERT_DIFFERS",
            "the file's network gives infinite logits for the drawn input, so nothing can be compared and "
            "nothing was written; try without --verify if you trust the file",
        )
    absolute = float((got - want).abs().max())
    relative = absolute / max(float(want.abs().max()), 1e-30)
    if not relative <= TOLERANCE:  # NaN is no agreement
        raise WeightsError(
            "CONVERT_DIFFERS",
            f"the checkpoint gives other logits than the file: they differ by {absolute:.3g}, relative "
            f"{relative:.3g}; nothing was written",
        )
    return absolute, relative


@torch.inference_mode()
def _logits(network: nn.Module, inputs: Sequence[Any]) -> Tensor:
    logits: Tensor = network.eval()(*inputs)
    return logits.double()
