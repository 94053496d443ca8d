"""SlowOnly: the slow pathway of SlowFast alone, a 3D network that never shortens time.

Feichtenhofer et al., "SlowFast Networks for Video Recognition", arXiv:1812.03982; numbers from
open-mmlab/mmaction2@v0.24.1:mmaction/models/backbones/resnet3d_slowonly.py.
Shapes: B clips, C channels, T frames, H x W pixels.
"""

from torch import Tensor, nn

from marey.errors import UsageError
from marey.models.nonlocal_ import ZOO_PLACES, NonLocal, place_non_local
from marey.models.parts import CELL, Residual, ResNet, joint_logits, plan, unit, window_means

BOTTLENECKS = (50, 101, 152)
LENGTHS = {"stage1": 1, "stage2": 1, "stage3": 3, "stage4": 3}  # in time, of a block's first convolution


class SlowOnly(ResNet):
    """3D ResNet with temporal kernels (3x1x1) in stages 3 and 4 only; pooled over all, linear classifier.

    depth              50, 101 or 152
    num_classes        rows of the classifier
    dropout            share of pooled features dropped in training
    width              channels of the stem, 64 as published; all stages scale with it
    non_local          None, "embedded_gaussian", "gaussian" or "dot_product": blocks of that kind
    non_local_scale    divide the products of embedded_gaussian by the root of their length
    non_local_sub_sample  keys and values are max-pooled 2 x 2 in space
    non_local_blocks   after which blocks, for stages 1 to 4
    crop               side of the training crop in pixels: larger clips are classified at every place that a
                       window of that size finds, and probabilities averaged, as PySlowFast does in tests; 0:
                       always pooled over everything, as MMAction2 does
    independent        each class is a question of its own: where there are several places, sigmoids of them
                       are averaged. A training on clips with several labels sets it
    norm_eval, frozen_stages   see `marey.models.parts.ResNet`

    Takes clips of any T; 4x16 and 8x8 (frames x interval) are the same network.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 400,
        *,
        dropout: float = 0.5,
        width: int = 64,
        non_local: str | None = None,
        non_local_scale: bool = True,
        non_local_sub_sample: bool = True,
        non_local_blocks: tuple[tuple[int, ...], ...] = ZOO_PLACES,
        crop: int = 0,
        independent: bool = False,
        norm_eval: bool = False,
        frozen_stages: int = -1,
    ) -> None:
        if depth not in BOTTLENECKS:
            raise UsageError("BAD_VALUE", f"depth of SlowOnly is {depth}; needed: one of {BOTTLENECKS}")
        stem = unit(3, width, (1, 7, 7), (1, 2, 2))
        trunk: dict[str, nn.Module] = {"stem": stem, "pool": nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))}
        for name, places in plan(depth, width).items():
            blocks = []
            for before, middle, after, side, changes in places:
                stride = (1, side, side)
                units = [
                    unit(before, middle, (LENGTHS[name], 1, 1)),
                    unit(middle, middle, (1, 3, 3), stride),
                    unit(middle, after, (1, 1, 1), relu=False, gamma=0.0),  # a block starts as its shortcut
                ]
                shortcut = unit(before, after, (1, 1, 1), stride, relu=False) if changes else None
                blocks.append(Residual(*units, shortcut=shortcut))
            trunk[name] = nn.Sequential(*blocks)
        if non_local is not None:
            place_non_local(
                trunk,
                non_local_blocks,
                lambda _, c: NonLocal(c, non_local, scale=non_local_scale, sub_sample=non_local_sub_sample),
            )
        super().__init__(
            trunk,
            after,
            num_classes,
            dropout=dropout,
            head_std=0.01,
            norm_eval=norm_eval,
            frozen_stages=frozen_stages,
        )
        self.window, self.independent = -(-crop // CELL), independent

    def forward(self, clip: Tensor) -> Tensor:
        """Raw logits: float [B, 3, T, H, W] -> float [B, num_classes].

        For clips larger than `crop`, what softmax (or sigmoid, if `independent`) turns into the mean of all
        places' probabilities.
        """
        if not self.window:
            return super().forward(clip)
        places = self.head(self.dropout(window_means(self.features(clip), self.window)))
        return joint_logits(places, independent=self.independent)
