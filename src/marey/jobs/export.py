"""`marey export`: a network as one file for other programs, compared with the original before it is there.

What is written is the folded copy, see `marey.models.fold`: its norms are part of the convolutions.
"""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from marey.errors import MareyError, UsageError, unknown
from marey.files import replacing
from marey.jobs.bench import parse_size, timed
from marey.models import NETWORKS
from marey.models.csn import CSN
from marey.models.fold import folded
from marey.models.mvit import MViT
from marey.models.r2plus1d import R2Plus1D
from marey.models.slowfast import SlowFast
from marey.models.slowonly import SlowOnly
from marey.models.swin import Swin3D
from marey.models.tsm import TSM
from marey.models.tsn import TSN
from marey.models.uniformer import UniFormer
from marey.weights.create import create_model, open_model
from marey.weights.native import FORMAT, KEY, Card, digest
from marey.weights.onnx import INPUT, OUTPUT, OnnxModel, extra, open_onnx

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4  # of the largest logit; float32 in another order of sums gives 1e-7 to 1e-5
ROUNDS = 5
Shape = tuple[int, int, int]  # frames, height, width
Run = Callable[[Tensor], Tensor]


class Free(NamedTuple):
    """From how many frames, and pixels of a side, an exported network takes any number; or why it does not.

    Below, some map of the network would be one place wide, and torch.export takes that for a special case.
    """

    frames: int | str
    side: int | str


WINDOWS = "windows are laid for one size of clips"
POSITIONS = "positions are learnt for one size of clips"
COUNTED = "the places that are pooled are counted"
KINDS: dict[type[nn.Module], Free] = {  # what can be exported
    CSN: Free(9, 64),
    MViT: Free(POSITIONS, POSITIONS),
    R2Plus1D: Free(9, 64),
    SlowFast: Free("the slow pathway's frames are picked by number", COUNTED),
    SlowOnly: Free(2, 64),
    Swin3D: Free(WINDOWS, WINDOWS),
    TSM: Free("a clip holds one frame for each of its segments", 64),
    TSN: Free(2, 64),
    UniFormer: Free(3, 64),
}


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What an export did.

    input         sides of the clips: batch, channels, frames, height, width; names where any number will do
    bytes         of the file
    absolute, relative   largest difference of the logits from the original's, and its share of the largest
    milliseconds  of one clip, in torch as `marey predict` runs the network, and by the exported one: medians
    """

    out: str
    format: str
    model: str
    num_classes: int
    class_names: bool
    input: tuple[str, ...]
    bytes: int
    absolute: float
    relative: float
    milliseconds: tuple[float, float]

    def lines(self) -> list[str]:
        """For people."""
        names = "class names known" if self.class_names else "class names unknown"
        before, after = self.milliseconds
        return [
            f"{self.out}: {self.model}, {self.num_classes} classes, {names}, {self.bytes / 1e6:.1f} MB",
            f"input {' x '.join(self.input)}",
            f"largest difference of the logits {self.absolute:.3g}, relative {self.relative:.3g}",
            f"one clip: {before:.1f} ms before, {after:.1f} ms after ({before / after:.2f} times the speed)",
        ]


def export(
    source: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str = "onnx",
    size: str | None = None,
    any_frames: bool = False,
    any_size: bool = False,
    force: bool = False,
) -> Exported:
    """Write a network for onnxruntime ("onnx", to .onnx) or for `torch.export.load` ("torch", to .pt2).

    source      a network made by `create_model`, one of `marey.list_models()` with fresh weights, a
                checkpoint, a release
    size        clips as frames x height x width, "32x224x224"; None: as the test protocol gives them
    any_frames, any_size   the file takes clips of other lengths, or of other heights and widths; of any
                batch it always does
    force       replace `out`

    The file carries the card of a checkpoint (`marey.weights.native.Card`): network, preprocessing, class
    names. It is loaded again and compared with the original on drawn clips of several batches and, where they
    are free, lengths and sizes. Raises UsageError OUT_SUFFIX, OUT_EXISTS, EXPORT_UNSUPPORTED with the reason,
    before any work; EnvironmentFault EXTRA_MISSING; MareyError EXPORT_FAILED, EXPORT_DIFFERS; and what
    `open_model` raises. On any error `out` is what it was.
    """
    out = Path(out)
    if format not in SUFFIXES:
        raise unknown("format", format, SUFFIXES)
    if out.suffix != SUFFIXES[format]:
        raise UsageError("OUT_SUFFIX", f"{str(out)!r}: files of {format} end with {SUFFIXES[format]}")
    if out.exists() and not force:
        raise UsageError("OUT_EXISTS", f"{str(out)!r} is there already; give another name, or --force")
    if format == "onnx":
        extra("onnx", "onnxruntime", "onnxscript")
    model = _network(source)
    shape = _shape(model, size)
    free = _free(model, shape, any_frames=any_frames, any_size=any_size)
    card, copy = _card(model), folded(model)
    if not isinstance(source, nn.Module) and os.fspath(source) in NETWORKS:
        print(f"marey: {source} is exported with fresh weights", file=sys.stderr)
    clips = _clips(shape, free)
    with torch.inference_mode():
        want = [model(clip) for clip in clips]  # first of all: it also says what is wrong with a size
    with replacing(out) as part:
        _write(copy, shape, free, card, part, format)
        run = _opened(part, format)
        with torch.inference_mode():
            absolute, relative = _compare([run(clip) for clip in clips], want)
            before, after = _speed((copy, run), clips[0])
        length = part.stat().st_size
    return Exported(
        out=str(out),
        format=format,
        model=card.model,
        num_classes=card.num_classes,
        class_names=card.class_names is not None,
        input=("batch", "3", *(name if axis in free else str(shape[axis]) for axis, name in enumerate(AXES))),
        bytes=length,
        absolute=absolute,
        relative=relative,
        milliseconds=(1000 * before, 1000 * after),
    )


# What is exported --------------------------------------------------------------------------------------

AXES = ("frames", "height", "width")


def _network(source: nn.Module | str | os.PathLike[str]) -> Any:
    """In evaluation mode."""
    if isinstance(source, nn.Module):
        model: Any = source.eval()
    elif os.fspath(source) in NETWORKS:
        model = create_model(os.fspath(source)).eval()
    else:
        model = open_model(source)
    if isinstance(model, OnnxModel):
        raise UsageError("EXPORT_UNSUPPORTED", f"not supported: {str(source)!r} is an export already")
    if type(model) not in KINDS:
        raise UsageError(
            "EXPORT_UNSUPPORTED",
            f"not supported: {type(model).__name__} does not take clips alone; exported are networks of the "
            "kinds " + ", ".join(sorted(kind.__name__ for kind in KINDS)),
        )
    if getattr(model, "spec", None) is None:
        raise UsageError("NO_SPEC", "only a network made by marey.create_model can be exported with its card")
    return model


def _shape(model: Any, size: str | None) -> Shape:
    plan = model.preprocess.plan(model.preprocess.test)
    return parse_size(size) if size else (plan.frames, plan.input_size, plan.input_size)


def _free(model: nn.Module, shape: Shape, *, any_frames: bool, any_size: bool) -> dict[int, int]:
    """Axes of `shape` that the file leaves free, each with the least number that it takes."""
    kind = KINDS[type(model)]
    if isinstance(model, SlowOnly) and model.window:
        kind = kind._replace(side=COUNTED)
    free = {}
    for axis in (*[0] * any_frames, *[1, 2] * any_size):
        least, what = (kind.frames, "length") if axis == 0 else (kind.side, "height and width")
        if isinstance(least, str):
            raise UsageError(
                "EXPORT_UNSUPPORTED",
                f"not supported: any {what} in {type(model).__name__}: {least}",
            )
        if shape[axis] < least:
            raise UsageError(
                "EXPORT_UNSUPPORTED",
                f"not supported: any {what} from {shape[axis]} on; it begins at {least}, see --input",
            )
        free[axis] = least
    return free


def _card(model: Any) -> Card:
    """That of the checkpoint, or what is known."""
    known = getattr(model, "metadata", {})
    return Card(
        format=FORMAT,
        marey=version("marey"),
        model=model.spec["name"],
        num_classes=model.num_classes,
        overrides=model.spec["overrides"],
        preprocess=model.preprocess,
        class_names=model.class_names,
        recipe=known.get("recipe", {}),
        metrics=known.get("metrics", {}),
        sha256=digest({name: value.cpu() for name, value in model.state_dict().items()}),
    )


# How ---------------------------------------------------------------------------------------------------


def _write(copy: nn.Module, shape: Shape, free: dict[int, int], card: Card, part: Path, format: str) -> None:
    """Trace the network and write the file, with its card."""
    axes = {0: torch.export.Dim("batch", min=1)}
    axes |= {2 + axis: torch.export.Dim(AXES[axis], min=least) for axis, least in free.items()}
    clip = torch.zeros(2, *shape, 3).permute(0, 4, 1, 2, 3)  # one of a batch of one would be special
    text = msgspec.json.encode(card).decode()
    try:
        with torch.no_grad(), _silence():
            program = torch.export.export(copy, (clip,), dynamic_shapes=(axes,))
            if format == "torch":
                file = io.BytesIO()
                torch.export.save(program, file, extra_files={KEY: text})
                part.write_bytes(file.getbuffer())
                return
            made: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
            )
            proto = made.model_proto  # made anew each time it is asked for
            entry = proto.metadata_props.add()
            entry.key, entry.value = KEY, text
            part.write_bytes(proto.SerializeToString())
    except (MareyError, OSError):
        raise
    except Exception as error:  # torch's exporters raise whatever comes
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        reason = f"{type(first).__name__}: {str(first).strip().partition(chr(10))[0]}"
        raise MareyError("EXPORT_FAILED", f"{card.model} cannot be exported: {reason:.300}") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Exporters print and warn of their own affairs."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _opened(part: Path, format: str) -> Run:
    """The file just written, as a function."""
    if format == "onnx":
        return open_onnx(part)
    loaded: Any = torch.export.load(io.BytesIO(part.read_bytes()))  # ours: it would run what a stranger wrote
    program: nn.Module = loaded.module()
    return program


def _clips(shape: Shape, free: dict[int, int]) -> list[Tensor]:
    """Drawn clips, always the same: one, three at once, and two of other sides where those are free."""
    draws = torch.Generator().manual_seed(0)
    frames, height, width = (
        side + more * (axis in free) for axis, (side, more) in enumerate(zip(shape, (3, 32, 48), strict=True))
    )
    sizes = [(1, *shape), (3, *shape), *[(2, frames, height, width)] * bool(free)]
    return [torch.randn((*size, 3), generator=draws).permute(0, 4, 1, 2, 3) for size in sizes]


def _compare(got: list[Tensor], want: list[Tensor]) -> tuple[float, float]:
    """Largest difference of the logits, absolute and as a share of the largest logit."""
    if [value.shape for value in got] != [value.shape for value in want]:
        raise MareyError("EXPORT_DIFFERS", "the export gives logits of another shape; nothing was written")
    pairs = [(g.double(), w.double()) for g, w in zip(got, want, strict=True)]
    absolute = max(float((g - w).abs().max()) for g, w in pairs)
    relative = max(float((g - w).abs().max() / w.abs().max()) for g, w in pairs)
    if not relative <= TOLERANCE:  # NaN is no agreement
        raise MareyError(
            "EXPORT_DIFFERS",
            f"the export gives other logits: they differ by {absolute:.3g}, relative {relative:.3g}, "
            f"more than {TOLERANCE:.0e}; nothing was written",
        )
    return absolute, relative


def _speed(runs: tuple[Run, Run], clip: Tensor) -> tuple[float, float]:
    """Seconds of one pass of each, medians of passes in turns."""
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + ROUNDS):
        for run, seconds in zip(runs, took, strict=True):
            seconds.append(timed(lambda run=run: run(clip), clip.device))  # type: ignore[misc]
    return median(took[0][1:]), median(took[1][1:])  # the first is slow
