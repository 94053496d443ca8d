"""2D residual network, run on every frame: the trunk of TSN and TSM.

He et al., arXiv:1512.03385, with the stride on the 3x3 convolution as in torchvision.
Shapes: F frames (those of all clips in a row), C channels, H x W pixels.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from marey.models.parts import Residual, plan


def unit(channels: int, out: int, kernel: int = 1, stride: int = 1, *, relu: bool = True) -> nn.Sequential:
    """Square convolution that keeps the size at stride 1, batch norm, ReLU.

    The convolution starts Kaiming-normal over its fan-out, the norm with weight 1 and bias 0.
    """
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    layers: dict[str, nn.Module] = {"conv": conv, "bn": nn.BatchNorm2d(out)}
    return nn.Sequential(OrderedDict(layers, relu=nn.ReLU(inplace=True)) if relu else OrderedDict(layers))


def trunk(depth: int, width: int) -> tuple[nn.Module, nn.Module, list[nn.Sequential], int]:
    """Stem, pool, the four stages, and the channels they end with; the map is 1/32 of H and W.

    Depths 18 and 34 have blocks of two 3x3 convolutions, the others 1x1, 3x3 and 1x1.
    """
    stages = []
    for stage in plan(depth, width):
        blocks = []
        for before, middle, after, stride in stage:
            if depth < 50:
                units = [unit(before, middle, 3, stride), unit(middle, after, 3, relu=False)]
            else:
                units = [
                    unit(before, middle),
                    unit(middle, middle, 3, stride),
                    unit(middle, after, relu=False),
                ]
            changes = stride > 1 or before != after
            shortcut = unit(before, after, 1, stride, relu=False) if changes else None
            blocks.append(Residual(*units, shortcut=shortcut))
        stages.append(nn.Sequential(*blocks))
    return unit(3, width, 7, 2), nn.MaxPool2d(3, 2, 1), stages, after


def to_frames(clip: Tensor) -> Tensor:
    """Clips [B, C, T, H, W] -> frames [B * T, C, H, W] in channels_last memory order.

    Nothing is copied when the clip is a permuted [B, T, H, W, C] tensor, as preprocessing gives it.
    """
    return clip.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def to_clips(frames: Tensor, length: int) -> Tensor:
    """Frames [N * length, C, H, W] -> clips [N, C, length, H, W], without copying."""
    return frames.view(-1, length, *frames.shape[1:]).transpose(1, 2)
