"""3D residual network with chosen temporal kernels: SlowOnly is a setting of it, CSN shares its unit.

Source: open-mmlab/mmaction2@v0.24.1:mmaction/models/backbones/resnet3d.py.
Shapes: B clips, C channels, T frames, H x W pixels; kernels and strides are (time, height, width).
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from marey.models.parts import Residual, plan

Triple = tuple[int, int, int]


def unit(
    channels: int,
    out: int,
    kernel: Triple = (1, 1, 1),
    stride: Triple = (1, 1, 1),
    *,
    groups: int = 1,
    relu: bool = True,
    gamma: float = 1.0,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Convolution of odd kernel that keeps the size at stride 1, batch norm, ReLU.

    The convolution starts Kaiming-normal over its fan-out, the norm with weight `gamma` and bias 0.
    """
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = nn.Conv3d(channels, out, kernel, stride, padding, groups=groups, bias=False)
    bn = nn.BatchNorm3d(out, eps)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.constant_(bn.weight, gamma)
    layers: dict[str, nn.Module] = {"conv": conv, "bn": bn}
    return nn.Sequential(OrderedDict(layers, relu=nn.ReLU(inplace=True)) if relu else OrderedDict(layers))


def bottlenecks(
    depth: int, width: int, times: Sequence[Sequence[int]], *, last_gamma: float = 1.0
) -> tuple[list[nn.Sequential], int]:
    """The four stages, which halve H and W from stage 2 on and never T, and the channels they end with.

    A block is 1x1x1 or 3x1x1, then 1x3x3 with the stride, then 1x1x1.

    depth       50, 101 or 152
    times       for stages 1 to 4, lengths in time of the blocks' first convolutions, repeated in turn
    last_gamma  weight that the last norm of a block starts with; 0 makes the block start as its shortcut
    """
    stages = []
    for stage, lengths in zip(plan(depth, width), times, strict=True):
        blocks = []
        for place, (before, middle, after, side) in enumerate(stage):
            stride = (1, side, side)
            units = [
                unit(before, middle, (lengths[place % len(lengths)], 1, 1)),
                unit(middle, middle, (1, 3, 3), stride),
                unit(middle, after, relu=False, gamma=last_gamma),
            ]
            changes = side > 1 or before != after
            shortcut = unit(before, after, stride=stride, relu=False) if changes else None
            blocks.append(Residual(*units, shortcut=shortcut))
        stages.append(nn.Sequential(*blocks))
    return stages, after
