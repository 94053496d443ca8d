"""Recognizers side by side: Marey's folded networks, MMAction2's own modules and torchvision's, on one clip.

    make bench-peers                       # sets up the peers' environment in build/peers and runs this
    build/peers/bin/python benchmarks/recognizers.py [--train] [--rounds 5] [--threads N] [--case WORDS]
                                           [--out FILE.md] [--tuned | --apart]

The same weights, the same clip, one process, in turns; outputs, and in training the gradients' length, are
compared before anything is timed. With --apart each is timed in a process of its own, still in turns, with
the environment that its users have. What the columns mean stands in benchmarks/README.md.
"""

import argparse
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from subprocess import run as command
from types import ModuleType
from typing import Any, NamedTuple

if "--tuned" in sys.argv:  # before torch is imported
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marey.jobs.bench import BACKWARD, MIB, gemm, peak_memory, relative_difference, timed
from marey.jobs.doctor import environment
from marey.models import build
from marey.models.cost import macs
from marey.models.fold import folded
from marey.weights.load import load_weights

CPU = torch.device("cpu")
OURS = "Marey"
SETTINGS = {"THP_MEM_ALLOC_ENABLE": "1"}  # those of the `marey` command
TOLERANCE, STEP_TOLERANCE = 1e-4, 1e-3  # gradients through batch norms of one clip carry rounding further
PEERS = ("mmaction2", "pytorchvideo", "pyslowfast")
SHARES = {"p", "drop_prob", "rate"}  # what classes call the share that they drop in training
Pass = Callable[[Tensor], Tensor]


class Case(NamedTuple):
    """A network under our name, its clip, and who else has it: builders of theirs, by who they are."""

    title: str
    name: str
    overrides: dict[str, Any]
    shape: tuple[int, int, int]
    theirs: dict[str, Callable[[], nn.Module]]


class Measured(NamedTuple):
    """What was found of one contestant; seconds per round, and how many times as long as Marey."""

    seconds: list[float]
    ratios: list[float]
    shares: list[float]
    memory: float
    difference: float


# The peers ---------------------------------------------------------------------------------------------


class Theirs(nn.Module):
    """Backbone and head of MMAction2, called as its recognizers call them."""

    def __init__(self, backbone: nn.Module, head: nn.Module, *, frames: bool = False) -> None:
        super().__init__()
        self.backbone, self.cls_head, self.frames = backbone, head, frames

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of a clip [B, 3, T, H, W]."""
        if not self.frames:
            return self.cls_head(self.backbone(clip))
        count = clip.shape[2]
        return self.cls_head(self.backbone(clip.transpose(1, 2).flatten(0, 1)), count)


def mmaction2() -> tuple[Any, Any]:
    """Its backbones and heads. The wheel lacks a sub-package that they import and that nothing here uses."""
    for name in ("drn", "drn.drn"):
        stand_in: Any = ModuleType(f"mmaction.models.localizers.{name}")
        stand_in.DRN = nn.Module
        sys.modules.setdefault(stand_in.__name__, stand_in)
    from mmaction.models import backbones, heads

    return backbones, heads


def their_csn(depth: int) -> nn.Module:
    backbones, heads = mmaction2()
    backbone = backbones.ResNet3dCSN(
        pretrained2d=False, pretrained=None, depth=depth, with_pool2=False, bottleneck_mode="ir",
        norm_eval=False, zero_init_residual=False,
    )  # fmt: skip
    return Theirs(backbone, heads.I3DHead(num_classes=400, in_channels=2048))


def their_slowonly() -> nn.Module:
    backbones, heads = mmaction2()
    backbone = backbones.ResNet3dSlowOnly(
        depth=50, pretrained=None, lateral=False, conv1_kernel=(1, 7, 7), conv1_stride_t=1, pool1_stride_t=1,
        inflate=(0, 0, 1, 1), norm_eval=False,
    )  # fmt: skip
    return Theirs(backbone, heads.I3DHead(num_classes=400, in_channels=2048))


def their_tsm() -> nn.Module:
    backbones, heads = mmaction2()
    backbone = backbones.ResNetTSM(
        depth=50, pretrained=None, pretrained2d=False, num_segments=8, shift_div=8, norm_eval=False
    )
    head = heads.TSMHead(num_classes=400, in_channels=2048, num_segments=8, is_shift=True)
    return Theirs(backbone, head, frames=True)


class TorchvisionFrames(nn.Module):
    """torchvision's ResNet-50 on every frame, logits averaged: what TSN computes."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        self.net = resnet50(num_classes=400)

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of a clip [B, 3, T, H, W]."""
        rows = self.net(clip.transpose(1, 2).flatten(0, 1))
        return rows.view(len(clip), -1, rows.shape[1]).mean(1)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As torchvision's files hold it."""
        return self.net.state_dict(*args, **kwargs)


def torchvision_r2plus1d() -> nn.Module:
    """VMZ's R(2+1)D-34 of torchvision's parts, changed as VMZ changes it. MMAction2's is another network."""
    from torchvision.models.video import resnet as parts

    split = parts.Conv2Plus1D
    net = parts.VideoResNet(parts.BasicBlock, [split] * 4, [3, 4, 6, 3], parts.R2Plus1dStem, num_classes=400)
    for stage, channels, between in ((net.layer2, 128, 288), (net.layer3, 256, 576), (net.layer4, 512, 1152)):
        stage[0].conv2[0] = split(channels, channels, between)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.eps = 1e-3
    return net


CASES = [
    Case("ir-CSN-50", "csn_ir_r50", {}, (32, 224, 224), {"MMAction2": lambda: their_csn(50)}),
    Case("ir-CSN-152", "csn_ir_r152", {}, (32, 224, 224), {"MMAction2": lambda: their_csn(152)}),
    Case("SlowOnly-R50", "slowonly_r50", {}, (8, 224, 224), {"MMAction2": their_slowonly}),
    Case("TSM-R50", "tsm_r50", {}, (8, 224, 224), {"MMAction2": their_tsm}),
    Case("TSN-R50", "tsn_r50", {}, (8, 224, 224), {"torchvision": TorchvisionFrames}),
    Case("R(2+1)D-34", "r2plus1d_r34", {}, (16, 112, 112), {"torchvision": torchvision_r2plus1d}),
]


def drawn(model: nn.Module) -> nn.Module:
    """In evaluation mode, with norms as after a training: fresh ones would hide mistakes in folding."""
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
            for value in (norm.weight, getattr(norm, "running_var", None)):
                if value is not None:
                    nn.init.uniform_(value, 0.5, 1.0)
            for value in (norm.bias, getattr(norm, "running_mean", None)):
                if value is not None:
                    nn.init.normal_(value, std=0.1)
    model.train(False)  # `eval` of some returns nothing
    return model


# Measuring ---------------------------------------------------------------------------------------------


class Step:
    """Forward, loss and backward pass with nothing dropped; gradients stay in the network."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        for module in model.modules():
            if type(module).__name__ in ("Dropout", "StochasticDepth", "DropPath"):
                for name in SHARES & vars(module).keys():
                    setattr(module, name, 0.0)

    def __call__(self, clip: Tensor) -> Tensor:
        """Logits of a clip [B, 3, T, H, W]."""
        self.model.zero_grad(set_to_none=True)
        logits = self.model(clip)
        F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)).backward()
        return logits.detach()

    def length(self) -> Tensor:
        """Of the last step's gradient, all parameters together."""
        return torch.stack([p.grad.norm() for p in self.model.parameters() if p.grad is not None]).norm()


def contestants(case: Case, *, train: bool) -> Iterator[tuple[str, Pass, Tensor]]:
    """Who runs it, what runs, and the clip as it meets it: Marey last."""
    clip = torch.randn(1, *case.shape, 3, generator=torch.manual_seed(1)).permute(0, 4, 1, 2, 3)
    for who, builder in case.theirs.items():
        theirs = drawn(builder())
        ours = build(case.name, 400, **case.overrides).eval()
        print(load_weights(ours, dict(theirs.state_dict())).summary(), file=sys.stderr)
        if isinstance(theirs, TorchvisionFrames):  # the classifier of such files is ImageNet's and left out
            ours.head.load_state_dict(theirs.net.fc.state_dict())
        ready = Step(theirs) if train else torch.inference_mode()(theirs)
        yield who, ready, clip.contiguous()
        yield f"{who}, channels last", ready, clip
    yield OURS, Step(ours) if train else torch.inference_mode()(folded(ours)), clip


def outcome(network: Pass, clip: Tensor) -> list[Tensor]:
    """What has to be equal: logits, and the length of the gradient."""
    logits = network(clip)
    return [logits, network.length()] if isinstance(network, Step) else [logits]


class Apart:
    """A contestant in a process of its own, which is at rest until it is called."""

    def __init__(self, module: str, number: int, who: str, *, train: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        given = (far, module, number, who, torch.get_num_threads(), train)
        kept = dict(os.environ)
        os.environ.update(SETTINGS if who == OURS else {})
        context.Process(target=serve, args=given, daemon=True).start()
        os.environ.clear()
        os.environ.update(kept)
        self.pipe.recv()

    def __call__(self) -> float:
        """Seconds of one pass."""
        self.pipe.send(True)
        return float(self.pipe.recv())


def serve(pipe: Any, module: str, number: int, who: str, threads: int, train: bool) -> None:
    """Run a contestant of a module's case, once before it is ready and then whenever the pipe says so."""
    torch.set_num_threads(threads)
    found = contestants(importlib.import_module(module).CASES[number], train=train)
    network, clip = next((network, clip) for name, network, clip in found if name == who)
    del found
    network(clip)
    pipe.send(True)
    with suppress(EOFError):
        while pipe.recv():
            pipe.send(timed(lambda: network(clip), CPU))


def measure(
    case: Case,
    rounds: int,
    product: Callable[[], float],
    *,
    train: bool,
    apart: tuple[str, int] | None = None,
) -> tuple[dict[str, Measured], list[float]]:
    """All contestants in turn, a round starting with another one each time; and the rates of the product.

    apart   the module and the number in its CASES, where each is to run in a process of its own
    """
    ready = list(contestants(case, train=train))
    wanted = outcome(*ready[-1][1:])
    memory, differences = {}, {}
    for who, network, clip in ready:
        found = outcome(network, clip)
        differences[who] = max(relative_difference(g, w) for g, w in zip(found, wanted, strict=True))
        if not differences[who] <= (STEP_TOLERANCE if train else TOLERANCE):
            sys.exit(f"{case.title}: {who} gives other outputs, not measured: {differences[who]:.1e}")
        del found
        with peak_memory(CPU) as peak:
            network(clip)
        memory[who] = peak[0] / MIB if peak else float("nan")
    clocks: dict[str, Callable[[], float]]
    if apart:
        clocks = {who: Apart(*apart, who, train=train) for who, _, _ in ready}
    else:
        clocks = {who: partial(timed, partial(network, clip), CPU) for who, network, clip in ready}
    seconds: dict[str, list[float]] = {who: [] for who in clocks}
    rates = []
    for number in range(rounds):
        rates.append(product())
        start = number % len(ready)
        for who in [*clocks][start:] + [*clocks][:start]:
            seconds[who].append(clocks[who]())
    work = macs(build(case.name, 400, **case.overrides), (3, *case.shape)) * (BACKWARD if train else 1)
    found = {
        who: Measured(
            took,
            [s / own for s, own in zip(took, seconds[OURS], strict=True)],
            [work / s / rate for s, rate in zip(took, rates, strict=True)],
            memory[who],
            differences[who],
        )
        for who, took in seconds.items()
    }
    return found, rates


# Report ------------------------------------------------------------------------------------------------

HEAD = ("network", "clip", "GMACs", "who", "ms (range)", "times Marey (range)", "of GEMM", "MiB", "differs")


def rows(case: Case, found: dict[str, Measured]) -> Iterator[str]:
    gmacs = macs(build(case.name, 400, **case.overrides), (3, *case.shape)) / 1e9
    for who, each in found.items():
        ms = [1000 * s for s in each.seconds]
        own = who == OURS
        ratio = "1" if own else f"{median(each.ratios):.2f} ({min(each.ratios):.2f}..{max(each.ratios):.2f})"
        yield _row(
            case.title, "x".join(map(str, case.shape)), f"{gmacs:.1f}", who,
            f"{median(ms):.0f} ({min(ms):.0f}..{max(ms):.0f})", ratio, f"{median(each.shares):.0%}",
            f"{each.memory:.0f}", f"{each.difference:.0e}",
        )  # fmt: skip


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def about(what: str, threads: int, *, train: bool) -> list[str]:
    from importlib.metadata import version

    found = environment()
    revision = command(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    device, packages = found["devices"][0], found["packages"]
    peers = ", ".join(f"{name} {version(name)}" for name in PEERS)
    return [
        f"# {what.capitalize()}, {date.today()}, {threads} threads",
        "",
        f"Commit {revision.stdout.strip()}, {device['model']}, {threads} threads, torch {packages['torch']}, "
        f"torchvision {packages['torchvision']}, {peers}, float32, batch 1, "
        f"{'training steps' if train else 'inference'}; the machine's load at the start "
        f"{os.getloadavg()[0]:.2f}:",
        "",
        f"    {' '.join(['python', *sys.argv])}",
        "",
    ]


def main(cases: list[Case] = CASES, what: str = "recognizers", about_it: str | None = __doc__) -> None:
    """Measure the cases that the command line asks for; the report is called after `what`."""
    parser = argparse.ArgumentParser(
        description=about_it, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", action="store_true", help="training steps in place of inference")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tuned", action="store_true", help="all in the environment that `marey` sets")
    parser.add_argument("--apart", action="store_true", help="each in its users' environment and own process")
    parser.add_argument("--case", default="", help="only networks whose name holds this")
    parser.add_argument("--out", type=Path, help="report; default: named by date, threads and kind")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    chosen = [(number, case) for number, case in enumerate(cases) if given.case in case.title]
    if not chosen:
        sys.exit(f"--case {given.case}: there are {', '.join(case.title for case in cases)}")
    product = gemm("32", CPU)
    text, rates, started = about(what, given.threads, train=given.train), [], time.monotonic()
    table = [_row(*HEAD), _row(*["---"] * len(HEAD))]
    for number, case in chosen:
        apart = (Path(sys.argv[0]).stem, number) if given.apart else None
        found, some = measure(case, given.rounds, product, train=given.train, apart=apart)
        rates += some
        table += rows(case, found)
        print("\n".join(rows(case, found)), flush=True)
    text += [
        f"A matrix product ran at {median(rates) / 1e9:.1f} GMAC/s ({min(rates) / 1e9:.1f}.."
        f"{max(rates) / 1e9:.1f}). {given.rounds} rounds, {time.monotonic() - started:.0f} s in all.",
        "",
        *table,
    ]
    kind = what + "-training" * given.train + "-apart" * given.apart
    default = Path(__file__).parent / f"{date.today()}-{given.threads}core-{kind}.md"
    (given.out or default).write_text("\n".join(text) + "\n", encoding="utf-8")
    print(given.out or default)


if __name__ == "__main__":
    main()
