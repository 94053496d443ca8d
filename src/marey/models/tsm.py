"""TSM, the temporal shift module: a 2D network whose blocks look one frame ahead and one back.

Lin et al., "TSM: Temporal Shift Module for Efficient Video Understanding", arXiv:1811.08383; numbers from
open-mmlab/mmaction2@v0.24.1:mmaction/models/{backbones/resnet_tsm.py,heads/tsm_head.py}.
Shapes: B clips, C channels, T frames, H x W pixels; S segments, the frames of one pass through time.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import UsageError
from marey.models.nonlocal_ import ZOO_PLACES, NonLocal, place_non_local
from marey.models.parts import ResNet
from marey.models.resnet import to_clips, to_frames, trunk


class Shift(torch.autograd.Function):
    """Some channels of [N * S, C, H, W] moved by a frame within each pass of S frames, zero at the ends.

    A copy of all, then two slices of it: no dearer than the other ways in `benchmarks/tsm_shift.py`; the
    gradient, the shift with directions exchanged, is six to ten times cheaper than recorded slice copies.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, segments: int, ahead: slice, back: slice) -> Tensor:
        """Channels `ahead` show the next frame, channels `back` the previous one, the others their own."""
        ctx.segments, ctx.ahead, ctx.back = segments, ahead, back
        shifted = x.clone()
        old = x.view(-1, segments, *x.shape[1:])
        new = shifted.view(old.shape)
        new[:, :-1, ahead] = old[:, 1:, ahead]
        new[:, -1, ahead] = 0
        new[:, 1:, back] = old[:, :-1, back]
        new[:, 0, back] = 0
        return shifted

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, None, None, None]:
        """What looked ahead came from one frame later, and the other way round."""
        return Shift.apply(grads[0], ctx.segments, ctx.back, ctx.ahead), None, None, None


class TimeShift(nn.Module):
    """The first 1 / shift_div of the channels look one frame ahead, as many after them one back."""

    def __init__(self, segments: int, shift_div: int) -> None:
        super().__init__()
        self.segments = segments
        self.shift_div = shift_div

    def forward(self, x: Tensor) -> Tensor:
        """Float [N * S, C, H, W] -> the same shape."""
        fold = x.shape[1] // self.shift_div
        shifted: Tensor = Shift.apply(x, self.segments, slice(0, fold), slice(fold, 2 * fold))
        return shifted


def _shift_blocks(stage: nn.Sequential, every: int, segments: int, shift_div: int) -> None:
    """Let the first unit of blocks 0, every, 2 * every, ... see shifted frames."""
    blocks: list[Any] = list(stage)
    for block in blocks[::every]:
        layers = dict(block.conv1.named_children())
        block.conv1 = nn.Sequential(OrderedDict(shift=TimeShift(segments, shift_div), **layers))


class FrameNonLocal(NonLocal):
    """The non-local block on frames: every position attends to all positions of the S frames of its pass."""

    def __init__(self, channels: int, mode: str, *, scale: bool, segments: int) -> None:
        super().__init__(channels, mode, scale=scale)
        self.segments = segments

    def forward(self, x: Tensor) -> Tensor:
        """Float [N * S, C, H, W] -> the same shape."""
        return to_frames(super().forward(to_clips(x, self.segments)))


class TSM(ResNet):
    """2D ResNet with shifted blocks; classified frame by frame, logits averaged over the segments.

    The first unit of a block sees shifted frames; the shortcut does not. Every block is shifted, or every
    second one (0, 2, ...) in networks whose stage 3 has 23 blocks or more (depths 101 and 152).

    depth              18, 34, 50, 101 or 152
    num_classes        rows of the classifier
    segments           S, the frames of one pass; a clip holds k * S frames and gives k rows
    dropout            share of pooled features dropped in training, a mask per frame
    width              channels of the stem, 64 as published; all stages scale with it
    shift_div          1 / shift_div of the channels look ahead, as many back
    temporal_pool      halve the frames before stage 2: maximum over 3 frames at stride 2
    non_local          None, "embedded_gaussian", "gaussian" or "dot_product": blocks of that kind
    non_local_scale    divide the products of embedded_gaussian by the root of their length
    non_local_blocks   after which blocks, for stages 1 to 4
    norm_eval, frozen_stages, partial_bn   see `marey.models.parts.ResNet`
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 400,
        *,
        segments: int = 8,
        dropout: float = 0.5,
        width: int = 64,
        shift_div: int = 8,
        temporal_pool: bool = False,
        non_local: str | None = None,
        non_local_scale: bool = False,
        non_local_blocks: tuple[tuple[int, ...], ...] = ZOO_PLACES,
        norm_eval: bool = False,
        frozen_stages: int = -1,
        partial_bn: bool = False,
    ) -> None:
        if segments < 1 or shift_div < 2 or (temporal_pool and segments % 2):
            raise UsageError(
                "BAD_VALUE",
                f"segments is {segments}, shift_div {shift_div}; needed: segments 1 or more, even with "
                "temporal_pool, and shift_div 2 or more",
            )
        stem, pool, stages, channels = trunk(depth, width)
        later = segments // 2 if temporal_pool else segments  # frames of a pass from stage 2 on
        every = 2 if len(stages[2]) >= 23 else 1
        _shift_blocks(stages[0], every, segments, shift_div)
        for stage in stages[1:]:
            _shift_blocks(stage, every, later, shift_div)
        if non_local is not None:
            place_non_local(
                stages,
                non_local_blocks,
                lambda stage, c: FrameNonLocal(
                    c, non_local, scale=non_local_scale, segments=later if stage > 1 else segments
                ),
            )
        super().__init__(
            stem,
            pool,
            stages,
            channels,
            num_classes,
            dropout=dropout,
            head_std=0.001,
            norm_eval=norm_eval,
            frozen_stages=frozen_stages,
            partial_bn=partial_bn,
        )
        self.segments = segments
        self.temporal_pool = temporal_pool

    def features(self, clip: Tensor) -> Tensor:
        """The map of every frame: float [B, 3, k * S, H, W] -> float [B, C, T', H/32, W/32].

        T' is k * S, or half of it with temporal_pool.
        """
        if clip.shape[2] % self.segments:
            raise UsageError(
                "CLIP_LENGTH",
                f"a clip of {clip.shape[2]} frames came to a network of {self.segments} segments; "
                "give a multiple, or create the model with segments=...",
            )
        x = self.stage1(self.pool(self.stem(to_frames(clip))))
        if self.temporal_pool:
            x = to_frames(F.max_pool3d(to_clips(x, self.segments), (3, 1, 1), (2, 1, 1), (1, 0, 0)))
        maps: Tensor = self.stage4(self.stage3(self.stage2(x)))
        return to_clips(maps, maps.shape[0] // clip.shape[0])

    def embed(self, clip: Tensor) -> Tensor:
        """Pooled vectors: float [B, 3, k * S, H, W] -> float [B * k, C], the passes of a sample in a row."""
        frames = self.features(clip).mean(dim=(3, 4)).transpose(1, 2)
        passes = clip.shape[0] * clip.shape[2] // self.segments
        return frames.reshape(passes, -1, frames.shape[2]).mean(dim=1)

    def forward(self, clip: Tensor) -> Tensor:
        """Raw logits: float [B, 3, k * S, H, W] -> float [B * k, num_classes], rows as in `embed`.

        For clips of S frames that is one row per clip. With k > 1 (several passes of one video handed over
        as one clip) the rows of a sample are averaged by whoever reads them, as upstream's head leaves it.
        """
        frames = self.features(clip).mean(dim=(3, 4)).transpose(1, 2)
        logits: Tensor = self.head(self.dropout(frames))
        passes = clip.shape[0] * clip.shape[2] // self.segments
        return logits.reshape(passes, -1, self.num_classes).mean(dim=1)
