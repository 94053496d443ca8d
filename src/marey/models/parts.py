"""What the residual networks share: the block, the plan of the stages, the classifier, freezing.

He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
Shapes: B clips, C channels, T frames, H x W pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import UsageError

# depth: (channels at a block's end over those in its middle, blocks of stages 1 to 4)
DEPTHS: dict[int, tuple[int, tuple[int, int, int, int]]] = {
    18: (1, (2, 2, 2, 2)),
    34: (1, (3, 4, 6, 3)),
    50: (4, (3, 4, 6, 3)),
    101: (4, (3, 4, 23, 3)),
    152: (4, (3, 8, 36, 3)),
}
Norm = nn.BatchNorm2d | nn.BatchNorm3d


class Place(NamedTuple):
    """Where a block stands: channels before it, in its middle and after it, and its stride in H and W."""

    before: int
    middle: int
    after: int
    stride: int


def plan(depth: int, width: int) -> list[list[Place]]:
    """The blocks of stages 1 to 4; the middle channels double and the map halves from stage to stage.

    depth  18, 34, 50, 101 or 152
    width  channels of the stem, 64 as published
    """
    if width < 1:
        raise UsageError("BAD_VALUE", f"width is {width}; it counts channels and must be 1 or more")
    expansion, counts = DEPTHS[depth]
    before, stages = width, []
    for number, count in enumerate(counts):
        middle = width << number
        stages.append([Place(before, middle, middle * expansion, 2 if number else 1)])
        before = middle * expansion
        stages[-1] += [Place(before, middle, before, 1)] * (count - 1)
    return stages


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

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, ...] -> float [B, C', ...]."""
        y: Tensor = self.conv2(self.conv1(x))
        if self.conv3 is not None:
            y = self.conv3(y)
        y += x if self.shortcut is None else self.shortcut(x)
        y = F.relu(y, inplace=True)
        return y if self.non_local is None else self.non_local(y)


class ResNet(nn.Module):
    """Stem, pool, four stages and a linear classifier: the frame of TSN, TSM, SlowOnly and CSN.

    `preprocess`, `class_names` and `spec` are set by `marey.create_model`. The freezing switches hold from
    construction on (meaning: open-mmlab/mmaction2@v0.24.1:mmaction/models/backbones/resnet.py):

    norm_eval      batch norms use their running statistics and never update them; weight and bias learn
    bn_frozen      with norm_eval, weight and bias of batch norms are fixed too; alone, as upstream, nothing
    frozen_stages  -1 none; 0 the stem; k the stem and stages 1 to k: fixed, as in evaluation
    partial_bn     all batch norms but the first: fixed, as in evaluation

    Fresh weights come from torch's global generator: `torch.manual_seed` makes them repeatable. The
    classifier's are normal of `head_std`, its bias is 0.
    """

    preprocess: Any = None
    class_names: tuple[str, ...] | None = None
    spec: dict[str, Any] | None = None

    def __init__(
        self,
        stem: nn.Module,
        pool: nn.Module,
        stages: Sequence[nn.Sequential],
        channels: int,
        num_classes: int,
        *,
        dropout: float,
        head_std: float,
        norm_eval: bool,
        frozen_stages: int,
        bn_frozen: bool = False,
        partial_bn: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1 or not 0 <= dropout < 1 or not -1 <= frozen_stages <= 4:
            raise UsageError(
                "BAD_VALUE",
                f"num_classes is {num_classes}, dropout {dropout}, frozen_stages {frozen_stages}; "
                "needed: 1 or more, 0 to below 1, -1 (none) to 4 (all)",
            )
        self.stem, self.pool = stem, pool
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)
        nn.init.normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)
        self.num_classes = num_classes
        norms = [module for module in self.modules() if isinstance(module, Norm)]
        fixed: list[nn.Module] = [stem, *stages][: frozen_stages + 1]
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
        x = self.stage1(self.pool(self.stem(clip)))
        maps: Tensor = self.stage4(self.stage3(self.stage2(x)))
        return maps

    def embed(self, clip: Tensor) -> Tensor:
        """The pooled vector: float [B, 3, T, H, W] -> float [B, C]."""
        return self.features(clip).mean(dim=(2, 3, 4))

    def forward(self, clip: Tensor) -> Tensor:
        """Raw logits: float [B, 3, T, H, W] -> float [B, num_classes]."""
        logits: Tensor = self.head(self.dropout(self.features(clip).mean(dim=(2, 3, 4))))
        return logits
