"""What the residual networks share: the plan of the stages, the unit, the block, the frame around them.

He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385, with the stride on the 3x3
convolution as in torchvision. Shapes: B clips, C channels, T frames, H x W pixels; 2D networks see F = B * T
frames in a row. Kernels and strides are (height, width) or (time, height, width).
"""

from collections import OrderedDict
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import UsageError
from marey.models.depthwise import DepthwiseConv3d

# depth: (channels at a block's end over those in its middle, blocks of stages 1 to 4)
DEPTHS: dict[int, tuple[int, tuple[int, int, int, int]]] = {
    18: (1, (2, 2, 2, 2)),
    34: (1, (3, 4, 6, 3)),
    50: (4, (3, 4, 6, 3)),
    101: (4, (3, 4, 23, 3)),
    152: (4, (3, 8, 36, 3)),
}
Norm = nn.BatchNorm2d | nn.BatchNorm3d
CELL = 32  # pixels of a clip's side that one position of the last map stands for


class Place(NamedTuple):
    """Where a block stands: channels before it, in its middle and after it, and its stride in H and W.

    changes  whether its output has another shape than its input, so that the shortcut must adapt it
    """

    before: int
    middle: int
    after: int
    stride: int
    changes: bool


def plan(depth: int, width: int) -> dict[str, list[Place]]:
    """The blocks of stages 1 to 4; the middle channels double and the map halves from stage to stage.

    depth  18, 34, 50, 101 or 152
    width  channels of the stem, 64 as published
    """
    if width < 1:
        raise UsageError("BAD_VALUE", f"width is {width}; it counts channels and must be 1 or more")
    if depth not in DEPTHS:
        raise UsageError("BAD_VALUE", f"depth is {depth}; needed: one of {tuple(DEPTHS)}")
    expansion, counts = DEPTHS[depth]
    before, stages = width, {}
    for number, count in enumerate(counts):
        middle = width << number
        after = middle * expansion
        stride = 2 if number else 1
        first = Place(before, middle, after, stride, stride > 1 or before != after)
        stages[f"stage{number + 1}"] = [first] + [Place(after, middle, after, 1, False)] * (count - 1)
        before = after
    return stages


def unit(
    channels: int,
    out: int,
    kernel: tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    relu: bool = True,
    gamma: float = 1.0,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Convolution of odd kernel (2D or 3D) that keeps the size at stride 1, batch norm, ReLU.

    The convolution starts Kaiming-normal over its fan-out, the norm with weight `gamma` and bias 0.
    """
    convolution: Any = nn.Conv3d if len(kernel) == 3 else nn.Conv2d
    reach = (kernel[0] // 2, kernel[-2] // 2, kernel[-1] // 2)[-len(kernel) :]
    padding = reach if dilation == 1 else tuple(side * dilation for side in reach)
    if groups == channels == out and kernel == (3, 3, 3) and isinstance(stride, int) and dilation == 1:
        conv = DepthwiseConv3d(channels, stride)
    else:
        conv = convolution(channels, out, kernel, stride, padding, dilation, groups, bias=False)
    bn = nn.BatchNorm3d(out, eps) if len(kernel) == 3 else nn.BatchNorm2d(out, eps)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.constant_(bn.weight, gamma)
    layers: dict[str, nn.Module] = {"conv": conv, "bn": bn}
    return nn.Sequential(OrderedDict(layers, relu=nn.ReLU(inplace=True)) if relu else OrderedDict(layers))


class Residual(nn.Module):
    """Two or three units in a row, added to the input, then ReLU and the non-local block if there is one.

    conv1, conv2, conv3  the units: convolution, batch norm, ReLU; the last one without ReLU
    shortcut             what the input passes where the block changes its shape, else None
    """

    def __init__(self, *units: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.conv2 = units[:2]
        self.conv3 = units[2] if len(units) > 2 else None
        self.shortcut = shortcut
        self.non_local: nn.Module | None = None

    def start_as_shortcut(self) -> None:
        """Weight 0 for the batch norm that ends the units."""
        last: Any = [m for m in (self.conv3 or self.conv2).modules() if isinstance(m, Norm)][-1]
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, ...] -> float [B, C', ...]."""
        y: Tensor = self.conv2(self.conv1(x))
        if self.conv3 is not None:
            y = self.conv3(y)
        y += x if self.shortcut is None else self.shortcut(x)
        y = F.relu(y, inplace=True)
        return y if self.non_local is None else self.non_local(y)


class ResNet(nn.Module):
    """A trunk that makes maps of clips, and a linear classifier: the frame of the residual networks.

    trunk  the layers in their order: "stem", "pool" and "stage1" to "stage4", and what stands between

    `preprocess`, `class_names` and `spec` are set by `marey.create_model`. The freezing switches hold from
    construction on (meaning: open-mmlab/mmaction2@v0.24.1:mmaction/models/backbones/resnet.py):

    norm_eval      batch norms use their running statistics and never update them; weight and bias learn
    bn_frozen      with norm_eval, weight and bias of batch norms are fixed too; alone, as upstream, nothing
    frozen_stages  -1 none; 0 the stem; k the stem and stages 1 to k: fixed, as in evaluation
    partial_bn     all batch norms but the first: fixed, as in evaluation
    zero_init_residual  fresh blocks start as their shortcuts: the weight of each one's last batch norm is 0
                   (Goyal et al., arXiv:1706.02677, section 5.1)

    Fresh weights come from torch's global generator: `torch.manual_seed` makes them repeatable. The
    classifier's are normal of `head_std`, its bias is 0.
    """

    preprocess: Any = None
    class_names: tuple[str, ...] | None = None
    spec: dict[str, Any] | None = None

    def __init__(
        self,
        trunk: dict[str, nn.Module],
        channels: int,
        num_classes: int,
        *,
        dropout: float,
        head_std: float,
        norm_eval: bool,
        frozen_stages: int,
        bn_frozen: bool = False,
        partial_bn: bool = False,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1 or not 0 <= dropout < 1 or not -1 <= frozen_stages <= 4:
            raise UsageError(
                "BAD_VALUE",
                f"num_classes is {num_classes}, dropout {dropout}, frozen_stages {frozen_stages}; "
                "needed: 1 or more, 0 to below 1, -1 (none) to 4 (all)",
            )
        self.trunk = nn.Sequential(OrderedDict(trunk))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)
        nn.init.normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)
        self.num_classes = num_classes
        norms: list[nn.Module] = []
        for module in self.modules():
            if isinstance(module, Norm):
                norms.append(module)
            if isinstance(module, Residual) and zero_init_residual:
                module.start_as_shortcut()
        fixed: list[nn.Module] = []
        for name in ("stem", "stage1", "stage2", "stage3", "stage4")[: frozen_stages + 1]:
            fixed.append(trunk[name])
        if partial_bn:
            fixed += norms[1:]
        if bn_frozen and norm_eval:
            fixed += norms
        for module in fixed:
            module.requires_grad_(False)
        self._held = [*fixed, *norms] if norm_eval else fixed

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._held:
            module.eval()
        return self

    def features(self, clip: Tensor) -> Tensor:
        """The map before pooling: float [B, 3, T, H, W] -> float [B, C, T', H', W']."""
        maps: Tensor = self.trunk(clip)
        return maps

    def embed(self, clip: Tensor) -> Tensor:
        """The pooled vector: float [B, 3, T, H, W] -> float [B, C]."""
        return self.features(clip).mean(dim=(2, 3, 4))

    def forward(self, clip: Tensor) -> Tensor:
        """Raw logits: float [B, 3, T, H, W] -> float [B, num_classes]."""
        logits: Tensor = self.head(self.dropout(self.trunk(clip).mean(dim=(2, 3, 4))))
        return logits


def window_means(maps: Tensor, window: int) -> Tensor:
    """Means over time and over every square of so many positions, row by row; 0: over everything.

    Float [B, C, T, H, W] -> float [B, places, C].
    """
    means = maps.mean(dim=2)
    sides = [min(window or side, side) for side in means.shape[2:]]
    return F.avg_pool2d(means, sides, stride=1).flatten(2).transpose(1, 2)


def joint_logits(logits: Tensor, *, independent: bool = False) -> Tensor:
    """Logits of places -> what softmax turns into the mean of their probabilities; if independent, sigmoid.

    Float [B, places, classes] -> float [B, classes].
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    if independent:
        return F.logsigmoid(logits).logsumexp(1) - F.logsigmoid(-logits).logsumexp(1)
    return logits.log_softmax(2).logsumexp(1) - torch.tensor(logits.shape[1]).log().item()


def frame_trunk(depth: int, width: int) -> tuple[dict[str, nn.Module], int]:
    """The trunk of 2D networks, run on every frame, and the channels of its map, which is 1/32 of H and W.

    Depths 18 and 34 have blocks of two 3x3 convolutions, the others 1x1, 3x3 and 1x1.
    """
    trunk: dict[str, nn.Module] = {"stem": unit(3, width, (7, 7), 2), "pool": nn.MaxPool2d(3, 2, 1)}
    for name, places in plan(depth, width).items():
        blocks = []
        for before, middle, after, stride, changes in places:
            if depth < 50:
                units = [unit(before, middle, (3, 3), stride), unit(middle, after, (3, 3), relu=False)]
            else:
                units = [
                    unit(before, middle, (1, 1)),
                    unit(middle, middle, (3, 3), stride),
                    unit(middle, after, (1, 1), relu=False),
                ]
            shortcut = unit(before, after, (1, 1), stride, relu=False) if changes else None
            blocks.append(Residual(*units, shortcut=shortcut))
        trunk[name] = nn.Sequential(*blocks)
    return trunk, after


def to_frames(clip: Tensor, segments: int = 1) -> Tensor:
    """Clips [B, C, k * segments, H, W] -> frames [B * k * segments, C, H, W] in channels_last memory order.

    Nothing is copied when the clip is a permuted [B, T, H, W, C] tensor, as preprocessing gives it. Raises
    UsageError where the frames are no whole number of passes of so many segments.
    """
    if clip.shape[2] % segments:
        raise UsageError(
            "CLIP_LENGTH",
            f"a clip of {clip.shape[2]} frames came to a network of {segments} segments; "
            "give a multiple, or create the model with segments=...",
        )
    return clip.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def to_clips(frames: Tensor, length: int) -> Tensor:
    """Frames [N * length, C, H, W] -> clips [N, C, length, H, W], without copying."""
    return frames.view(-1, length, *frames.shape[1:]).transpose(1, 2)
