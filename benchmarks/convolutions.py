"""Ways to compute CSN's convolutions on the CPU, in GMAC/s beside a matrix product.

python benchmarks/convolutions.py [--threads 1] [--precision 32|bf16] [--compile] [--train]

Depthwise 3x3x3 and pointwise 1x1x1 convolutions of a 32 x 224 x 224 clip, with bias and ReLU; best of the
rounds. On one thread processor time is taken, which a busy machine lengthens least.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line sets it

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marey.jobs.bench import relative_difference
from marey.models.depthwise import DepthwiseConv3d

LAST = torch.channels_last_3d
# channels, frames, side, stride
DEPTHWISE = ((64, 32, 56, 1), (128, 32, 56, 2), (128, 16, 28, 1), (256, 8, 14, 1), (512, 4, 7, 1))
# channels before and after, frames, side
POINTWISE = ((64, 256, 32, 56), (256, 64, 32, 56), (128, 512, 16, 28), (512, 128, 16, 28), (1024, 256, 8, 14))

Way = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def conv(x: Tensor, w: Tensor, b: Tensor, stride: int) -> Tensor:
    """torch's convolution, then ReLU in place."""
    return F.relu_(F.conv3d(x, w, b, stride, w.shape[2] // 2, 1, x.shape[1] // w.shape[1]))


def contiguous(x: Tensor, w: Tensor, b: Tensor, stride: int) -> Tensor:
    """The same on the clip's channels in planes; what it costs to get there is not counted."""
    return conv(x, w, b, stride)


def fused(x: Tensor, w: Tensor, b: Tensor, stride: int) -> Tensor:
    """oneDNN with the ReLU in the same pass, as folded networks call it."""
    padding, groups = [w.shape[2] // 2] * 3, x.shape[1] // w.shape[1]
    given: Any = (x, w, b, padding, [stride] * 3, [1] * 3, groups, "relu", [], "")
    return torch.ops.mkldnn._convolution_pointwise(*given)


def three_2d(x: Tensor, w: Tensor, b: Tensor, stride: int) -> Tensor:
    """Three 2D depthwise convolutions of all frames, added with a shift in time."""
    frames = x.transpose(1, 2).flatten(0, 1)
    before, here, after = (
        F.conv2d(frames, w[:, :, k], b if k == 1 else None, stride, 1, 1, x.shape[1]) for k in range(3)
    )
    here[1:] += before[:-1]
    here[:-1] += after[1:]
    return F.relu_(here[::stride].unsqueeze(0).transpose(1, 2))


def shifts(x: Tensor, w: Tensor, b: Tensor, stride: int) -> Tensor:
    """27 multiply-adds of shifted clips."""
    rows = F.pad(x.permute(0, 2, 3, 4, 1), (0, 0, 1, 1, 1, 1, 1, 1))
    sizes = [(side - 1) // stride + 1 for side in x.shape[2:]]
    total, weights = b.repeat(1, *sizes, 1), w[:, 0].permute(1, 2, 3, 0).contiguous()
    for k in range(27):
        place = (k // 9, k // 3 % 3, k % 3)
        seen = tuple(
            slice(at, at + stride * (size - 1) + 1, stride) for at, size in zip(place, sizes, strict=True)
        )
        total.addcmul_(rows[:, *seen], weights[place])
    return F.relu_(total).permute(0, 4, 1, 2, 3)


def linear(x: Tensor, w: Tensor, b: Tensor, stride: int) -> Tensor:
    """A matrix product of [B, T, H, W, C]; strided clips are copied first."""
    rows = x[:, :, ::stride, ::stride, ::stride].permute(0, 2, 3, 4, 1)
    return F.relu_(F.linear(rows, w.flatten(1), b)).permute(0, 4, 1, 2, 3)


def best(run: Callable[[], Any], threads: int, rounds: int) -> float:
    clock = time.thread_time if threads == 1 else time.perf_counter
    found = []
    for _ in range(rounds + 1):
        start = clock()
        run()
        found.append(clock() - start)
    return min(found[1:])


def training(rounds: int, threads: int) -> None:
    """Forward and backward of the depthwise layers, milliseconds, in float32; gradients are compared."""
    for channels, frames, side, stride in DEPTHWISE:
        ours = DepthwiseConv3d(channels, stride)
        plain = nn.Conv3d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        plain.load_state_dict(ours.state_dict())
        clip = torch.randn(1, frames, side, side, channels).permute(0, 4, 1, 2, 3)
        line = f"3x3x3  {channels:4} {frames:3}x{side}x{side} /{stride}, forward and backward, ms"
        found: dict[str, tuple[Tensor, ...]] = {}
        for name, conv, x in (
            ("contiguous", plain, clip.contiguous()),
            ("conv3d", plain, clip),
            ("DepthwiseConv3d", ours, clip),
        ):
            x = x.clone(memory_format=torch.preserve_format).requires_grad_()
            above = torch.ones_like(conv(x)) / channels

            def run(conv: nn.Module = conv, x: Tensor = x, above: Tensor = above) -> tuple[Tensor, ...]:
                return torch.autograd.grad(conv(x), (x, *conv.parameters()), above)

            found[name] = run()
            line += f"  {name} {1000 * best(run, threads, rounds):.1f}"
        for got, want in zip(found["DepthwiseConv3d"], found["contiguous"], strict=True):
            assert relative_difference(got, want) < 1e-4
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--train", action="store_true", help="depthwise layers forward and backward instead")
    parser.add_argument("--compile", action="store_true", help="the shifted sum by torch.compile, too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.train:
        training(given.rounds, given.threads)
        return
    torch.set_grad_enabled(False)
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    square = torch.randn(2048, 2048).to(dtype)
    rate = 2048**3 / best(lambda: square @ square, given.threads, given.rounds) / 1e9
    print(f"matrix product {rate:.1f} GMAC/s, {given.threads} threads, {dtype}")
    depthwise: dict[str, Way] = {
        "contiguous": contiguous, "conv3d": conv, "fused": fused, "three 2d": three_2d, "27 shifts": shifts,
    }  # fmt: skip
    if given.compile:
        depthwise["compiled shifts"] = torch.compile(shifts)
    pointwise: dict[str, Way] = {"contiguous": contiguous, "conv3d": conv, "linear": linear, "fused": fused}
    shapes = [(depthwise, (c, c, 1, 3, t, s, stride)) for c, t, s, stride in DEPTHWISE]
    shapes += [(pointwise, (c, out, c, 1, t, s, 1)) for c, out, t, s in POINTWISE]
    for ways, (before, after, inside, kernel, frames, side, stride) in shapes:
        x = torch.randn(1, frames, side, side, before).to(dtype).permute(0, 4, 1, 2, 3)
        w = torch.randn(after, inside, *[kernel] * 3).to(dtype).contiguous(memory_format=LAST)
        b = torch.randn(after).to(dtype)
        want = conv(x.float(), w.float(), b.float(), stride)
        work = want[0, 0].numel() * w.numel() / 1e9
        line = f"{kernel}x{kernel}x{kernel}  {before:4} -> {after:4} {frames:3}x{side}x{side} /{stride}"
        for name, way in ways.items():
            clip = x.contiguous() if way is contiguous else x
            difference = relative_difference(way(clip, w, b, stride), want)
            assert difference < (1e-5 if dtype is torch.float32 else 0.05), (name, difference)
            seconds = best(lambda: way(clip, w, b, stride), given.threads, given.rounds)  # noqa: B023
            line += f"  {name} {work / seconds:.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
