"""Depthwise 3x3x3 convolution whose gradients are fast on CPUs, too.

oneDNN has fast kernels for its forward pass and for depthwise 2D convolutions in both directions, but none
for the gradients in 3D: torch's take five to twenty times as long as the forward pass. So the gradient of the
clip is computed as the convolution that it is, and those of strided clips and of the weights as sums over the
three frames that the kernel sees. `benchmarks/convolutions.py --train` compares.
Shapes: B clips, C channels, T frames, H x W pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LAST = torch.channels_last_3d


class DepthwiseConv3d(nn.Conv3d):
    """An `nn.Conv3d` of 3x3x3 with a group per channel and no bias, that keeps the size at stride 1.

    stride  in time, height and width alike
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__(channels, channels, 3, stride, 1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, T, H, W] -> [B, C, T', H', W']."""
        if not (x.device.type == "cpu" and torch.is_grad_enabled()) or _elsewhere():
            return super().forward(x)
        y: Tensor = _Depthwise.apply(x.contiguous(memory_format=LAST), self.weight, self.stride[0])
        return y


def _elsewhere() -> bool:
    """Whether something else decides what runs: a compiler, or autocast."""
    return torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv3d(x, weight, None, stride, 1, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        above = grads[0].contiguous(memory_format=LAST)
        by_clip, by_weight = ctx.needs_input_grad[:2]
        if by_clip and ctx.stride == 1:
            clip = F.conv3d(above, weight.flip(2, 3, 4), None, 1, 1, 1, len(weight))
            parts = _by_frames(x, weight, above, 1, [False, by_weight])[1]
            return clip, parts, None
        return *_by_frames(x, weight, above, ctx.stride, [by_clip, by_weight]), None


def _by_frames(
    x: Tensor, weight: Tensor, above: Tensor, stride: int, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of clip and weight where wanted, each the sum of 2D ones over the frames of the kernel."""
    clip = torch.zeros_like(x) if wanted[0] else None
    parts = []
    length = above.shape[2]
    for k in range(3):  # frame t of the result saw frame stride * t + k - 1
        first = 1 if k == 0 else 0
        last = length - 1 if stride * (length - 1) + k - 1 < x.shape[2] else length - 2
        seen = slice(stride * first + k - 1, stride * last + k, stride)
        found = (None, torch.zeros_like(weight[:, :, k]))
        if first <= last and any(wanted):
            found = torch.ops.aten.convolution_backward(
                _frames(above[:, :, first : last + 1]), _frames(x[:, :, seen]), weight[:, :, k].contiguous(),
                None, [stride] * 2, [1] * 2, [1] * 2, False, [0] * 2, len(weight), [*wanted, False],
            )[:2]  # fmt: skip
            if clip is not None:
                clip[:, :, seen] += found[0].view(len(x), -1, *found[0].shape[1:]).transpose(1, 2)
        parts.append(found[1])
    return clip, torch.stack(parts, 2) if wanted[1] else None


def _frames(x: Tensor) -> Tensor:
    """Clips [B, C, T, H, W] -> frames [B * T, C, H, W], both channels last in memory."""
    rows = x.permute(0, 2, 3, 4, 1)
    return rows.reshape(-1, *rows.shape[2:]).permute(0, 3, 1, 2)
