"""R(2+1)D: every 3D convolution is one over the picture, then one over time, with a ReLU between.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", arXiv:1711.11248, as
facebookresearch/VMZ@4cc542d5 builds it on torchvision's VideoResNet; MMAction2's R(2+1)D differs.
Shapes: B clips, C channels, T frames, H x W pixels; kernels and strides are (time, height, width).
"""

from torch import nn

from marey.errors import UsageError
from marey.models.parts import Residual, ResNet, plan, unit

DEPTHS = (34, 50, 101, 152)
EPS = 1e-3  # of all batch norms, as in Caffe2, where the published weights come from


class R2Plus1D(ResNet):
    """3D ResNet of split convolutions; stages 2 to 4 halve T, H and W; there is no pooling after the stem.

    depth          34: blocks of two split 3x3x3 convolutions; 50, 101, 152: 1x1x1, one that is split, 1x1x1
    num_classes    rows of the classifier
    dropout        share of pooled features dropped in training
    width          channels of the stem, 64 as published; all stages scale with it
    norm_eval, frozen_stages, zero_init_residual   see `marey.models.parts.ResNet`

    A clip of 32 x 112 x 112 becomes a map of 4 x 7 x 7 before pooling; any T, H and W will do.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 400,
        *,
        dropout: float = 0.0,
        width: int = 64,
        norm_eval: bool = False,
        frozen_stages: int = -1,
        zero_init_residual: bool = False,
    ) -> None:
        if depth not in DEPTHS:
            raise UsageError("BAD_VALUE", f"depth of R(2+1)D is {depth}; needed: one of {DEPTHS}")
        between = max(1, 45 * width // 64)
        stem = nn.Sequential(
            unit(3, between, (1, 7, 7), (1, 2, 2), eps=EPS), unit(between, width, (3, 1, 1), eps=EPS)
        )
        trunk: dict[str, nn.Module] = {"stem": stem}
        for name, places in plan(depth, width).items():
            blocks = []
            for before, middle, after, side, changes in places:
                units: list[nn.Module]
                if depth < 50:
                    units = [split(before, middle, side), split(middle, after, relu=False)]
                else:
                    units = [
                        unit(before, middle, (1, 1, 1), eps=EPS),
                        split(middle, middle, side),
                        unit(middle, after, (1, 1, 1), relu=False, eps=EPS),
                    ]
                shortcut = unit(before, after, (1, 1, 1), side, relu=False, eps=EPS) if changes else None
                blocks.append(Residual(*units, shortcut=shortcut))
            trunk[name] = nn.Sequential(*blocks)
        super().__init__(
            trunk,
            after,
            num_classes,
            dropout=dropout,
            head_std=0.01,
            norm_eval=norm_eval,
            frozen_stages=frozen_stages,
            zero_init_residual=zero_init_residual,
        )


def split(channels: int, out: int, side: int = 1, *, relu: bool = True) -> nn.Sequential:
    """1x3x3 and 3x1x1 in place of 3x3x3; as many channels between as make the weights equally many."""
    between = 27 * channels * out // (9 * channels + 3 * out)
    return nn.Sequential(
        unit(channels, between, (1, 3, 3), (1, side, side), eps=EPS),
        unit(between, out, (3, 1, 1), (side, 1, 1), relu=relu, eps=EPS),
    )
