"""CSN, the channel-separated network: its 3x3x3 convolutions are depthwise, 1x1x1 ones mix the channels.

Tran et al., "Video Classification with Channel-Separated Convolutional Networks", arXiv:1904.02811; numbers
from open-mmlab/mmaction2@v0.24.1:mmaction/models/backbones/resnet3d_csn.py.
Shapes: B clips, C channels, T frames, H x W pixels; kernels and strides are (time, height, width).
"""

from typing import Literal, get_args

from torch import nn

from marey.errors import UsageError, unknown
from marey.models.parts import Residual, ResNet, plan, unit

Mode = Literal["ir", "ip"]
DEPTHS = (50, 101, 152)
EPS = 1e-3  # of all batch norms, as in Caffe2, where the published weights come from


class CSN(ResNet):
    """3D ResNet of bottlenecks 1x1x1, depthwise 3x3x3, 1x1x1; stages 2 to 4 halve T, H and W.

    depth          50, 101 or 152
    mode           "ir", interaction-reduced, as above; "ip", interaction-preserved: one more 1x1x1
                   convolution, without ReLU, before the depthwise one
    num_classes    rows of the classifier
    dropout        share of pooled features dropped in training
    width          channels of the stem, 64 as published; all stages scale with it
    norm_eval, bn_frozen, frozen_stages, zero_init_residual   see `marey.models.parts.ResNet`

    A clip of 32 x 224 x 224 becomes a map of 4 x 7 x 7 before pooling; any T, H and W will do.
    """

    def __init__(
        self,
        depth: int,
        mode: str,
        num_classes: int = 400,
        *,
        dropout: float = 0.5,
        width: int = 64,
        norm_eval: bool = False,
        bn_frozen: bool = False,
        frozen_stages: int = -1,
        zero_init_residual: bool = False,
    ) -> None:
        if mode not in get_args(Mode):
            raise unknown("mode of CSN", str(mode), get_args(Mode), "BAD_VALUE")
        if depth not in DEPTHS:
            raise UsageError("BAD_VALUE", f"depth of CSN is {depth}; needed: one of {DEPTHS}")
        stem = unit(3, width, (3, 7, 7), (1, 2, 2), eps=EPS)
        trunk: dict[str, nn.Module] = {"stem": stem, "pool": nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))}
        for name, places in plan(depth, width).items():
            blocks = []
            for before, middle, after, stride, changes in places:
                conv1 = unit(before, middle, (1, 1, 1), eps=EPS)
                conv2 = [unit(middle, middle, (3, 3, 3), stride, groups=middle, eps=EPS)]
                if mode == "ip":
                    conv2.insert(0, unit(middle, middle, (1, 1, 1), relu=False, eps=EPS))
                conv3 = unit(middle, after, (1, 1, 1), relu=False, eps=EPS)
                shortcut = unit(before, after, (1, 1, 1), stride, relu=False, eps=EPS) if changes else None
                blocks.append(Residual(conv1, nn.Sequential(*conv2), conv3, shortcut=shortcut))
            trunk[name] = nn.Sequential(*blocks)
        super().__init__(
            trunk,
            after,
            num_classes,
            dropout=dropout,
            head_std=0.01,
            norm_eval=norm_eval,
            bn_frozen=bn_frozen,
            frozen_stages=frozen_stages,
            zero_init_residual=zero_init_residual,
        )
