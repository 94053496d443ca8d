"""`marey bench`: how fast networks run on this machine, how near to its matrix products, in how much memory.

Everything is timed in turns, round by round, so that whatever else the machine does meets all alike.
"""

import ctypes
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import EnvironmentFault, MareyError, UsageError, unknown
from marey.jobs.progress import Progress
from marey.models import DETECTORS, NETWORKS, list_models
from marey.models.cost import macs, parameters
from marey.models.detector import Detector
from marey.models.fold import ONEDNN, folded
from marey.models.recompute import recompute_blocks
from marey.training.devices import device_of
from marey.weights.create import create_model, open_model

MIB = 1 << 20
SIDES = {"cpu": 2048, "cuda": 8192}  # of the square matrices: large enough to be as fast as they get
BACKWARD = 3  # a training pass in units of a forward pass: by weights and by inputs once more
TF32 = 5e-3  # cuDNN's own rounding, where it is allowed; else the first of these
TOLERANCES = {"32": 1e-5, "bf16": 0.1}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one network; a pass is one batch forward, in training also backward.

    milliseconds       of a pass: median, lowest and highest of the rounds
    gmacs              1e9 multiply-adds of one clip forward, see `marey.models.cost`
    gmacs_per_second   of the median pass; a training pass counts three times a forward one
    gemm               gmacs_per_second of a large matrix product in the same precision, on as many threads
    share              gmacs_per_second over gemm, the median of the rounds' ratios
    memory             MiB that a pass takes on top of weights and clip at its peak; None: not known here
    difference         relative, of the outputs, from the network as it was built, in float32
    """

    model: str
    input: str
    batch: int
    device: str
    threads: int
    precision: str
    training: bool
    compiled: bool
    parameters: int
    milliseconds: tuple[float, float, float]
    clips_per_second: float
    gmacs: float
    gmacs_per_second: float
    gemm: float
    share: float
    memory: float | None
    difference: float


class Contestant(NamedTuple):
    """A network made ready: `run` is one pass, `work` its multiply-adds."""

    name: str
    shape: tuple[int, int, int]
    run: Callable[[], Any]
    work: int
    gmacs: float
    parameters: int
    memory: float | None
    difference: float


def bench(
    names: Sequence[str],
    *,
    size: str | None = None,
    batch: int = 1,
    threads: int | None = None,
    rounds: int = 5,
    precision: str = "32",
    train: bool = False,
    checkpoint_activations: bool = False,
    compiled: bool = False,
    device: str | None = None,
) -> list[Row]:
    """Time networks: inference as `marey test` runs it, on the folded copy, or training steps.

    names      of `marey.list_models()`, with fresh weights, or patterns of them; checkpoints; releases
    size       clips as frames x height x width, "32x224x224"; None: as the network's preprocessing gives them
    threads    of torch, None: as many as there are
    precision  "32", or "bf16": weights cast for inference, autocast in training
    train      forward, loss and backward, without dropout and without the optimiser's step
    compiled   by torch.compile
    Raises MareyError OUTPUT_DIFFERS when what is timed does not give what the network as built gives, and
    EnvironmentFault COMPILE_FAILED.
    """
    if precision not in TOLERANCES:
        raise unknown("precision", precision, TOLERANCES)
    place = device_of(device)
    wanted: list[str] = []
    for name in names:
        found = [one for one in list_models(name) if one not in DETECTORS]  # these need boxes beside clips
        wanted += found or [name]
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        progress = Progress("measuring")
        progress(0, rounds + 1)
        ready = [
            _ready(name, size, batch, place, precision, train, checkpoint_activations, compiled)
            for name in wanted
        ]
        product = gemm(precision, place)
        progress(1, rounds + 1)
        seconds: dict[str, list[float]] = {one.name: [] for one in ready}
        rates: dict[str, list[float]] = {one.name: [] for one in ready}
        for number in range(rounds):
            first = number % len(ready)
            for one in [*ready[first:], *ready[:first]]:
                rates[one.name].append(product())
                seconds[one.name].append(timed(one.run, place))
            progress(number + 2, rounds + 1)
    finally:
        used = torch.get_num_threads()
        torch.set_num_threads(before)
    return [
        Row(
            model=one.name,
            input="x".join(map(str, one.shape)),
            batch=batch,
            device=str(place),
            threads=used,
            precision=precision,
            training=train,
            compiled=compiled,
            parameters=one.parameters,
            milliseconds=(1000 * median(took), 1000 * min(took), 1000 * max(took)),
            clips_per_second=batch / median(took),
            gmacs=one.gmacs,
            gmacs_per_second=one.work / median(took) / 1e9,
            gemm=median(rates[one.name]) / 1e9,
            share=median(one.work / t / r for t, r in zip(took, rates[one.name], strict=True)),
            memory=one.memory,
            difference=one.difference,
        )
        for one in ready
        for took in [seconds[one.name]]
    ]


def lines(rows: Sequence[Row]) -> list[str]:
    """The rows as a table for people."""
    head = ("model", "input", "batch", "ms", "range", "clips/s", "GMACs", "GMAC/s", "GEMM", "share")
    table = [(*head, "MiB", "differs")]
    for row in rows:
        middle, low, high = row.milliseconds
        figures = (f"{middle:.1f}", f"{low:.1f}..{high:.1f}", f"{row.clips_per_second:.2f}")
        rates = (f"{row.gmacs:.2f}", f"{row.gmacs_per_second:.1f}", f"{row.gemm:.1f}", f"{row.share:.0%}")
        memory = "" if row.memory is None else f"{row.memory:.0f}"
        table.append(
            (row.model, row.input, f"{row.batch}", *figures, *rates, memory, f"{row.difference:.0e}")
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(_aligned, range(len(row)), row, widths)) for row in table]


def _aligned(column: int, text: str, width: int) -> str:
    return text.ljust(width) if column < 2 else text.rjust(width)


# What is run -------------------------------------------------------------------------------------------


def _ready(
    name: str,
    size: str | None,
    batch: int,
    place: torch.device,
    precision: str,
    train: bool,
    checkpoint_activations: bool,
    compiled: bool,
) -> Contestant:
    model, shape = _network(name, size)
    cost, count = macs(model, (3, *shape)), parameters(model)
    model = model.to(place).train(train)
    clip = torch.randn(batch, *shape, 3, device=place).permute(0, 4, 1, 2, 3)  # as preprocessing lays it
    if train:
        for dropout in model.modules():
            if isinstance(dropout, nn.Dropout):
                dropout.p = 0.0  # or no two passes give the same
    with nullcontext() if train else torch.inference_mode():
        want = model(clip).detach()
    network: Any = model if train else folded(model)
    del model
    if train and checkpoint_activations:
        recompute_blocks(network)
    if precision == "bf16" and not train:
        network, clip = network.to(torch.bfloat16), clip.to(torch.bfloat16)
    network = torch.compile(network) if compiled else network
    run = _training_pass(network, clip, precision) if train else torch.inference_mode()(lambda: network(clip))
    try:
        got = run()
    except RuntimeError as error:
        if not compiled:
            raise
        reason = str(error).strip().partition("\n")[0]
        raise EnvironmentFault("COMPILE_FAILED", f"torch.compile cannot compile {name}: {reason}") from error
    difference = relative_difference(got, want)
    tolerance = TOLERANCES[precision]
    if precision == "32" and place.type == "cuda" and torch.backends.cudnn.allow_tf32:
        tolerance = TF32
    if not difference <= tolerance:
        raise MareyError(
            "OUTPUT_DIFFERS",
            f"what is timed of {name} differs from the network as built by {difference:.1e} (relative), "
            f"more than {tolerance:.0e}; please report this with the versions of `marey doctor`",
        )
    timed(run, place)  # what is slow the first time
    with peak_memory(place) as peak:
        run()
    work = batch * cost * (BACKWARD if train else 1)
    memory = peak[0] / MIB if peak else None
    return Contestant(name, shape, run, work, cost / 1e9, count, memory, difference)


def _network(name: str, size: str | None) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network in evaluation mode, and the frames, height and width of its clips."""
    shape = None if size is None else parse_size(size)
    if name not in NETWORKS:
        model: Any = open_model(name)
    else:
        counts = shape is not None and "segments" in inspect.signature(NETWORKS[name]).parameters
        overrides: dict[str, Any] = {"segments": shape[0]} if counts and shape else {}
        model = create_model(name, **overrides)
    plan = model.preprocess
    if isinstance(model, Detector):
        raise UsageError("NO_CLIPS", f"{name} takes boxes beside clips; measure the recognizer of its trunk")
    if plan is None:
        raise UsageError(
            "NO_CLIPS", f"{name} takes features of frames, not clips; there is nothing to measure"
        )
    side = plan.input_size or plan.crop
    return model.eval(), shape or (plan.frames, side, side)


def parse_size(text: str) -> tuple[int, int, int]:
    """ "32x224x224" -> (32, 224, 224). Raises UsageError INPUT_SIZE."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            "INPUT_SIZE", f"{text!r} is no size of a clip; write frames x height x width, as 32x224x224"
        )
    frames, height, width = map(int, parts)
    return frames, height, width


def _training_pass(network: Any, clip: Tensor, precision: str) -> Callable[[], Tensor]:
    def run() -> Tensor:
        network.zero_grad(set_to_none=True)
        with torch.autocast(clip.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits: Tensor = network(clip)
        labels = torch.zeros(len(logits), dtype=torch.long, device=clip.device)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        return logits.detach()

    return run


def relative_difference(got: Tensor, want: Tensor) -> float:
    """Euclidean distance over the length of what is wanted, in float64."""
    want = want.double()
    return float((got.double() - want).norm() / want.norm())


# How it is measured ------------------------------------------------------------------------------------


def timed(run: Callable[[], Any], place: torch.device) -> float:
    """Seconds of one pass."""
    _wait(place)
    start = time.perf_counter()
    run()
    _wait(place)
    return time.perf_counter() - start


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def gemm(precision: str, place: torch.device) -> Callable[[], float]:
    """A function that measures, once, how many multiply-adds a second a large matrix product does.

    The faster of torch's and, on CPUs, oneDNN's: which of the two libraries is, depends on the processor.
    """
    side = SIDES.get(place.type, 2048)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.randn(side, side, device=place).to(dtype) for _ in range(2))
    ways: list[Callable[[], Any]] = [lambda: torch.mm(one, other)]
    if ONEDNN and place.type == "cpu":
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(one, other, None, "none", [], ""))
    for way in ways:
        way()
    return lambda: side**3 / min(timed(way, place) for way in ways)


@contextmanager
def peak_memory(place: torch.device) -> Iterator[list[int]]:
    """Bytes by which memory grows inside the block at its peak, in a list that is empty where it is unknown.

    On CUDA what torch allocates, elsewhere the resident memory of the process, which Linux tells.
    """
    found: list[int] = []
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
        start = torch.cuda.memory_allocated(place)
        yield found
        found.append(torch.cuda.max_memory_allocated(place) - start)
        return
    start = _resident("VmRSS") if _forget_peak() else -1
    yield found
    if start >= 0:
        found.append(max(0, _resident("VmHWM") - start))


def _forget_peak() -> bool:
    """Give freed memory back, and let the kernel's high-water mark start anew."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError, TypeError):  # no glibc, no Linux
        return False
    return True


def _resident(field: str) -> int:
    rows = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(row.split()[1]) for row in rows if row.startswith(field))
