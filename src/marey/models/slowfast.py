"""SlowFast: a wide pathway sees few frames, a narrow one all of them and tells the wide one what moved.

Feichtenhofer et al., "SlowFast Networks for Video Recognition", arXiv:1812.03982. Three code bases published
weights for networks that differ in details, which are the styles below: facebookresearch/SlowFast@287ec007,
open-mmlab/mmaction2@v1.2.0 and MVIG-SJTU/AlphAction@4ea202d7 (as in Andy1621/Nightcrawler@259fa5b9).
Shapes: B clips, C channels, T frames, H x W pixels; kernels and strides are (time, height, width).
"""

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from marey.errors import UsageError, unknown
from marey.models.parts import CELL, Place, Residual, ResNet, joint_logits, plan, unit, window_means

Source = Literal["pyslowfast", "mmaction2", "alphaction"]
Pair = tuple[Tensor, Tensor]  # maps of the slow and of the fast pathway
SLOW_LENGTHS = (1, 1, 3, 3)  # in time, of a block's first convolution; of the fast pathway 3 everywhere


class Style(NamedTuple):
    """What a code base does its own way.

    lateral  the convolution from fast to slow: "norm" with batch norm and ReLU, "plain", or "bias" with bias
    spread   the slow pathway's frames lie evenly from first to last; else every alpha-th from the first
    joined   the pathways whose pooled channels are classified, in order: 0 slow, 1 fast
    padding  of the pooling after the stem
    dilated  stage 4 keeps H and W; its 3x3 convolutions reach 2 apart
    crop     default of the argument `crop`
    """

    lateral: str
    spread: bool
    joined: tuple[int, ...]
    padding: int
    dilated: bool
    crop: int


STYLES: dict[str, Style] = {
    "pyslowfast": Style("norm", spread=True, joined=(0, 1), padding=1, dilated=False, crop=224),
    "mmaction2": Style("plain", spread=False, joined=(1, 0), padding=1, dilated=False, crop=0),
    "alphaction": Style("bias", spread=False, joined=(0,), padding=0, dilated=True, crop=0),
}


@lru_cache
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def spread(frames: int, count: int) -> list[int]:
    """So many frame numbers from first to last, with the rounding of torch's linspace.

    They are plain numbers to `torch.compile`, and once asked for also to `torch.export`.
    """
    numbers: list[int] = torch.linspace(0, frames - 1, count, device="cpu").long().tolist()
    return numbers


class Stage(nn.Module):
    """A stage of both pathways, after which the fast one is added to the slow one's channels.

    slow, fast  the layers of the pathways
    lateral     fast map -> channels that the slow map gets behind its own; None in the last stage
    """

    def __init__(self, slow: nn.Module, fast: nn.Module, lateral: nn.Module | None = None) -> None:
        super().__init__()
        self.slow, self.fast, self.lateral = slow, fast, lateral

    def forward(self, maps: Pair) -> Pair:
        """Both maps, float [B, C, T, H, W] each with its own C and T -> both maps."""
        slow, fast = self.slow(maps[0]), self.fast(maps[1])
        return (slow, fast) if self.lateral is None else (torch.cat([slow, self.lateral(fast)], dim=1), fast)


class SlowFast(ResNet):
    """Two 3D ResNets of bottlenecks: the slow one on T / alpha frames, the fast one, narrower, on all T.

    depth            50, 101 or 152
    num_classes      rows of the classifier
    style            "pyslowfast", "mmaction2" or "alphaction": whose details (lateral connections, frames of
                     the slow pathway, order of the classifier's channels, last stage); see `Style`
    alpha            frames of the fast pathway for one of the slow one; T must be a multiple of it
    beta             width of the slow pathway over that of the fast one
    lateral_kernel   length in time of the lateral convolutions, odd
    fast_depth       depth of the fast pathway, where it differs; 0: as the slow one's
    temporal_blocks  how many blocks of stages 1 to 4, counted from the first, may look at other frames, for
                     example (3, 4, 6, 3) in PySlowFast's R101_50_50; (): all
    crop             side of the training crop in pixels: larger clips are classified at every place that a
                     window of that size finds, as PySlowFast does in tests; 0: always pooled over everything;
                     None: 224 in style "pyslowfast", else 0
    independent      each class is a question of its own: where there are several places, sigmoids of them
                     are averaged. A training on clips with several labels sets it
    dropout          share of pooled features dropped in training
    width            channels of the slow stem, 64 as published; all stages scale with it
    norm_eval, frozen_stages   see `marey.models.parts.ResNet`

    Takes whole clips and picks the slow pathway's frames itself. 8x8 (alpha 4) and 4x16 (alpha 8) both see 32
    frames. In style "alphaction" stage 4 of the fast pathway runs and feeds nothing; it is kept, and frozen.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 400,
        *,
        style: str = "pyslowfast",
        alpha: int = 4,
        beta: int = 8,
        lateral_kernel: int = 7,
        fast_depth: int = 0,
        temporal_blocks: tuple[int, ...] = (),
        crop: int | None = None,
        independent: bool = False,
        dropout: float = 0.5,
        width: int = 64,
        norm_eval: bool = False,
        frozen_stages: int = -1,
    ) -> None:
        if style not in STYLES:
            raise unknown("style of SlowFast", style, get_args(Source), "BAD_VALUE")
        if (
            alpha < 1
            or lateral_kernel % 2 == 0
            or not 1 <= beta <= width
            or len(temporal_blocks) not in (0, 4)
        ):
            raise UsageError(
                "BAD_VALUE",
                f"alpha is {alpha}, lateral_kernel {lateral_kernel}, beta {beta}, temporal_blocks "
                f"{temporal_blocks}; needed: 1 or more, an odd number, 1 to the width, () or four numbers",
            )
        chosen = STYLES[style]
        fast_width = width // beta

        def lateral(channels: int) -> nn.Module:
            kernel, stride = (lateral_kernel, 1, 1), (alpha, 1, 1)
            if chosen.lateral == "norm":
                return unit(channels, 2 * channels, kernel, stride)
            padding = (lateral_kernel // 2, 0, 0)
            conv = nn.Conv3d(channels, 2 * channels, kernel, stride, padding, bias=chosen.lateral == "bias")
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            return conv

        stems = [unit(3, width, (1, 7, 7), (1, 2, 2)), unit(3, fast_width, (5, 7, 7), (1, 2, 2))]
        for stem in stems:
            stem.add_module("pool", nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, chosen.padding, chosen.padding)))
        trunk: dict[str, nn.Module] = {"stem": Stage(stems[0], stems[1], lateral(fast_width))}
        slow_plan, fast_plan = plan(depth, width), plan(fast_depth or depth, fast_width)
        told = 2 * fast_width  # channels that the slow pathway gets from the fast one
        for number, name in enumerate(slow_plan):
            last = name == "stage4"
            dilated = last and chosen.dilated
            first, *others = slow_plan[name]
            slow = [first._replace(before=first.before + told), *others]
            limit = temporal_blocks[number] if temporal_blocks else len(slow) + len(fast_plan[name])
            channels = fast_plan[name][-1].after
            trunk[name] = Stage(
                _blocks(slow, SLOW_LENGTHS[number], limit, dilated=dilated),
                _blocks(fast_plan[name], 3, limit, dilated=dilated),
                None if last else lateral(channels),
            )
            told = 2 * channels
        channels_of = (slow_plan["stage4"][-1].after, channels)
        super().__init__(
            trunk,
            sum(channels_of[path] for path in chosen.joined),
            num_classes,
            dropout=dropout,
            head_std=0.01,
            norm_eval=norm_eval,
            frozen_stages=frozen_stages,
        )
        self.alpha, self.chosen, self.independent = alpha, chosen, independent
        self.window = -(-(chosen.crop if crop is None else crop) // CELL)
        if 1 not in chosen.joined:
            trunk["stage4"].fast.requires_grad_(False)

    def features(self, clip: Tensor) -> Pair:  # type: ignore[override]
        """The slow and the fast map before pooling.

        Float [B, 3, T, H, W] -> float [B, C, T / alpha, H', W'] and [B, C / beta, T, H', W']; H' and W' are
        1/32 of the clip's, in style "alphaction" 1/16. Raises UsageError CLIP_LENGTH where alpha does not
        divide T.
        """
        frames = clip.shape[2]
        if frames % self.alpha:
            raise UsageError(
                "CLIP_LENGTH",
                f"a clip of {frames} frames came to a SlowFast of alpha {self.alpha}; give a multiple",
            )
        if self.chosen.spread:
            slow = clip[:, :, spread(frames, frames // self.alpha)]
        else:
            slow = clip[:, :, :: self.alpha]
        maps: Pair = self.trunk((slow, clip))
        return maps

    def embed(self, clip: Tensor) -> Tensor:
        """The pooled vector, pathways in the order of the style: float [B, 3, T, H, W] -> float [B, C]."""
        maps = self.features(clip)
        return torch.cat([maps[path].mean(dim=(2, 3, 4)) for path in self.chosen.joined], dim=1)

    def forward(self, clip: Tensor) -> Tensor:
        """Raw logits: float [B, 3, T, H, W] -> float [B, num_classes].

        For clips larger than `crop`, what softmax (or sigmoid, if `independent`) turns into the mean of all
        places' probabilities.
        """
        return joint_logits(self.places(clip), independent=self.independent)

    def places(self, clip: Tensor) -> Tensor:
        """Raw logits of every place that a window of `crop` finds, row by row.

        Float [B, 3, T, H, W] -> float [B, places, num_classes].
        """
        maps = self.features(clip)
        pooled = [window_means(maps[path], self.window) for path in self.chosen.joined]
        logits: Tensor = self.head(self.dropout(torch.cat(pooled, dim=2)))
        return logits


def _blocks(places: list[Place], length: int, limit: int, *, dilated: bool) -> nn.Sequential:
    """A stage of one pathway; the blocks from number `limit` on look at single frames."""
    blocks = []
    for number, (before, middle, after, side, changes) in enumerate(places):
        stride = (1, 1, 1) if dilated else (1, side, side)
        units = [
            unit(before, middle, (length if number < limit else 1, 1, 1)),
            unit(middle, middle, (1, 3, 3), stride, dilation=2 if dilated else 1),
            unit(middle, after, (1, 1, 1), relu=False, gamma=0.0),  # a block starts as its shortcut
        ]
        shortcut = unit(before, after, (1, 1, 1), stride, relu=False) if changes else None
        blocks.append(Residual(*units, shortcut=shortcut))
    return nn.Sequential(*blocks)
