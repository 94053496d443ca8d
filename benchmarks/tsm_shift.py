"""Ways to shift channels in time, on the CPU: milliseconds for one clip of 8 frames.

python benchmarks/tsm_shift.py [THREADS]
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from marey.models.tsm import TimeShift

SHAPES = (
    (64, 56),
    (256, 56),
    (512, 28),
    (1024, 14),
    (2048, 7),
)  # channels, side: what conv1 of a ResNet-50 sees


def empty(x: Tensor) -> Tensor:
    """Three slices copied into an empty tensor."""
    fold, out = x.shape[1] // 8, torch.empty_like(x)
    out[:-1, :fold], out[-1, :fold] = x[1:, :fold], 0
    out[1:, fold : 2 * fold], out[0, fold : 2 * fold] = x[:-1, fold : 2 * fold], 0
    out[:, 2 * fold :] = x[:, 2 * fold :]
    return out


def clone(x: Tensor) -> Tensor:
    """A copy, and two slices of it overwritten."""
    fold, out = x.shape[1] // 8, x.clone()
    out[:-1, :fold], out[-1, :fold] = x[1:, :fold], 0
    out[1:, fold : 2 * fold], out[0, fold : 2 * fold] = x[:-1, fold : 2 * fold], 0
    return out


def concatenated(x: Tensor) -> Tensor:
    """Padded pieces side by side."""
    fold = x.shape[1] // 8
    ahead = F.pad(x[1:, :fold], (0, 0, 0, 0, 0, 0, 0, 1))
    back = F.pad(x[:-1, fold : 2 * fold], (0, 0, 0, 0, 0, 0, 1, 0))
    joined = torch.cat((ahead, back, x[:, 2 * fold :]), 1)
    return joined.contiguous(memory_format=torch.channels_last)


def ours(x: Tensor) -> Tensor:
    """As `clone`, with a gradient of its own."""
    return TimeShift(8, 8)(x)


def milliseconds(way: Callable[[Tensor], Tensor], x: Tensor, gradient: bool) -> float:
    best = float("inf")
    for _ in range(9):
        start = time.perf_counter()
        y = way(x.requires_grad_(gradient))
        if gradient:
            y.backward(x.detach())
        best = min(best, time.perf_counter() - start)
    return 1000 * best


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    ways = (empty, clone, concatenated, ours)
    print(f"{'channels x side':16}{'gradient':>9}" + "".join(f"{way.__name__:>14}" for way in ways))
    for gradient in (False, True):
        for channels, side in SHAPES:
            x = torch.randn(8, channels, side, side).to(memory_format=torch.channels_last)
            assert all(torch.equal(way(x), ours(x)) for way in ways)
            times = "".join(f"{milliseconds(way, x, gradient):14.2f}" for way in ways)
            print(f"{channels:8} x {side:<5}{gradient!s:>9}{times}")


if __name__ == "__main__":
    main()
