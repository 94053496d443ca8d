"""Depthwise 3D convolution whose gradients are fast on CPUs, too.

oneDNN has fast kernels for its forward pass and for depthwise 3x3 convolutions in both directions, but none
for the gradients in 3D or of larger kernels: torch's take five to twenty times as long as the forward pass.
So the gradient of the clip is computed as the convolution that it is, and those of strided clips and of the
weights as sums over the frames that the kernel sees, 3x3 at a time. `benchmarks/convolutions.py --train`
compares.
Shapes: B clips, C channels, T frames, H x W pixels; kernels and strides are (time, height, width).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LAST = torch.channels_last_3d
Triple = tuple[int, int, int]


class DepthwiseConv3d(nn.Conv3d):
    """An `nn.Conv3d` with a group per channel, that keeps the size at stride 1.

    stride  in time, height and width, or of all alike
    kernel  odd lengths
    """

    def __init__(
        self, channels: int, stride: int | Triple = 1, kernel: Triple = (3, 3, 3), *, bias: bool = False
    ) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        super().__init__(channels, channels, kernel, stride, padding, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, T, H, W] -> [B, C, T', H', W']."""
        if not (x.device.type == "cpu" and torch.is_grad_enabled()) or _elsewhere():
            return super().forward(x)
        y: Tensor = _Depthwise.apply(
            x.contiguous(memory_format=LAST), self.weight, self.bias, self.stride, self.padding
        )
        return y


def _elsewhere() -> bool:
    """Whether something else decides what runs: a compiler, or autocast."""
    return torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple, padding: Triple
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv3d(x, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        above = grads[0].contiguous(memory_format=LAST)
        by_clip, by_weight, by_bias = ctx.needs_input_grad[:3]
        bias = above.sum((0, 2, 3, 4)) if by_bias else None
        if by_clip and ctx.stride == (1, 1, 1):
            clip = F.conv3d(above, weight.flip(2, 3, 4), None, 1, ctx.padding, 1, len(weight))
            found = _by_frames(x, weight, above, ctx.stride, ctx.padding, [False, by_weight])[1]
            return clip, found, bias, None, None
        return *_by_frames(x, weight, above, ctx.stride, ctx.padding, [by_clip, by_weight]), bias, None, None


def _by_frames(
    x: Tensor, weight: Tensor, above: Tensor, stride: Triple, padding: Triple, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of clip and weight where wanted: for each frame of the kernel those of a 2D convolution."""
    clip = torch.zeros_like(x) if wanted[0] else None
    weights = torch.zeros_like(weight) if wanted[1] else None
    length, step = above.shape[2], stride[0]
    for rows, columns, part, pads in _tiles(x, weight, stride, padding) if any(wanted) else ():
        for k in range(weight.shape[2]):  # frame t of the result saw frame step * t + k - padding[0]
            ahead = k - padding[0]
            first = max(0, -(ahead // step))
            last = min(length - 1, (x.shape[2] - 1 - ahead) // step)
            if first > last:
                continue
            seen = slice(step * first + ahead, step * last + ahead + 1, step)
            found = torch.ops.aten.convolution_backward(
                _frames(above[:, :, first : last + 1]), _frames(part[:, :, seen]),
                weight[:, :, k, rows, columns].contiguous(), None, stride[1:], pads, [1] * 2, False, [0] * 2,
                len(weight), [*wanted, False],
            )  # fmt: skip
            if clip is not None:
                clip[:, :, seen] += found[0].view(len(x), -1, *found[0].shape[1:]).transpose(1, 2)
            if weights is not None:
                weights[:, :, k, rows, columns] = found[1]
    return clip, weights


def _tiles(
    x: Tensor, weight: Tensor, stride: Triple, padding: Triple
) -> list[tuple[slice, slice, Tensor, list[int]]]:
    """Parts of the kernel, in height and width, and what they see of x with which padding of it.

    At stride 1 they are 3x3, and overlap where threes do not fill it; at other strides there is one.
    """
    height, width = weight.shape[3:]
    if stride != (1, 1, 1) or max(height, width) <= 3 or min(height, width) < 3:
        return [(slice(None), slice(None), x, list(padding[1:]))]
    padded = F.pad(x, (padding[2], padding[2], padding[1], padding[1]))
    tiles = []
    for top in _starts(height):
        for left in _starts(width):
            bottom, right = padded.shape[3] - (height - 3 - top), padded.shape[4] - (width - 3 - left)
            part = padded[:, :, :, top:bottom, left:right].contiguous(memory_format=LAST)
            tiles.append((slice(top, top + 3), slice(left, left + 3), part, [0, 0]))
    return tiles


def _starts(length: int) -> list[int]:
    """Where threes start that cover so many."""
    return [*range(0, length - 3, 3), length - 3]


def _frames(x: Tensor) -> Tensor:
    """Clips [B, C, T, H, W] -> frames [B * T, C, H, W], both channels last in memory."""
    rows = x.permute(0, 2, 3, 4, 1)
    return rows.reshape(-1, *rows.shape[2:]).permute(0, 3, 1, 2)
