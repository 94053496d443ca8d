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
from marey.models.parts import ResNet, frame_trunk, to_clips, to_frames


class TimeShift(nn.Module):
    """The first 1 / shift_div of the channels look one frame ahead, as many after them one back.

    A copy of all, then two slices of it: no dearer than the other ways in `benchmarks/tsm_shift.py`.
    """

    def __init__(self, segments: int, shift_div: int) -> None:
        super().__init__()
        self.segments = segments
        self.shift_div = shift_div

    def forward(self, x: Tensor, forth: bool = True) -> Tensor:
        """Float [N * S, C, H, W] -> the same shape; zero at the ends of each pass of S frames.

        forth  False: with directions exchanged, which is the gradient
        """
        if x.requires_grad and torch.is_grad_enabled():
            learnt: Tensor = _Shift.apply(x, self, forth)
            return learnt
        fold = x.shape[1] // self.shift_div
        ahead, back = slice(0, fold), slice(fold, 2 * fold)
        if not forth:
            ahead, back = back, ahead
        old = x.view(-1, self.segments, *x.shape[1:])
        if torch.compiler.is_compiling():  # exported graphs are a fifth as long without writes to slices
            end = (0, 0) * 3
            later, earlier = F.pad(old[:, 1:], (*end, 0, 1)), F.pad(old[:, :-1], (*end, 1, 0))
            parts = (later, earlier) if forth else (earlier, later)
            moved = [part[:, :, i * fold : (i + 1) * fold] for i, part in enumerate(parts)]
            return torch.cat([*moved, old[:, :, 2 * fold :]], 2).view(x.shape)
        shifted = x.clone()
        new = shifted.view(old.shape)
        new[:, :-1, ahead] = old[:, 1:, ahead]
        new[:, -1, ahead] = 0
        new[:, 1:, back] = old[:, :-1, back]
        new[:, 0, back] = 0
        return shifted


class _Shift(torch.autograd.Function):
    """The shift with its gradient in one step, six to ten times cheaper than that of recorded slices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: TimeShift, forth: bool) -> Tensor:
        ctx.shift, ctx.forth = shift, forth
        return shift.forward(x, forth)  # torch records nothing in here

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """What looked ahead came from one frame later, and the other way round."""
        return ctx.shift.forward(grads[0], not ctx.forth), None, None


class TimePool(nn.Module):
    """Half of the frames: the maximum over 3 frames at every second one, within each pass of S frames."""

    def __init__(self, segments: int) -> None:
        super().__init__()
        self.segments = segments

    def forward(self, x: Tensor) -> Tensor:
        """Float [N * S, C, H, W] -> float [N * S / 2, C, H, W]."""
        return to_frames(F.max_pool3d(to_clips(x, self.segments), (3, 1, 1), (2, 1, 1), (1, 0, 0)))


class FrameNonLocal(NonLocal):
    """The non-local block on frames: every position attends to all positions of the S frames of its pass."""

    def __init__(self, channels: int, mode: str, *, scale: bool, sub_sample: bool, segments: int) -> None:
        super().__init__(channels, mode, scale=scale, sub_sample=sub_sample)
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
    non_local_sub_sample  keys and values are max-pooled 2 x 2 in space
    non_local_blocks   after which blocks, for stages 1 to 4
    norm_eval, frozen_stages, partial_bn, zero_init_residual   see `marey.models.parts.ResNet`
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
        non_local_sub_sample: bool = True,
        non_local_blocks: tuple[tuple[int, ...], ...] = ZOO_PLACES,
        norm_eval: bool = False,
        frozen_stages: int = -1,
        zero_init_residual: bool = False,
        partial_bn: bool = False,
    ) -> None:
        if segments < 1 or shift_div < 2 or (temporal_pool and segments % 2):
            raise UsageError(
                "BAD_VALUE",
                f"segments is {segments}, shift_div {shift_div}; needed: segments 1 or more, even with "
                "temporal_pool, and shift_div 2 or more",
            )
        layers, channels = frame_trunk(depth, width)
        stages: Any = layers
        every = 2 if len(stages["stage3"]) >= 23 else 1
        trunk: dict[str, nn.Module] = {}
        frames = segments  # of a pass, where we are
        for name in layers:
            if name == "stage2" and temporal_pool:
                trunk["time_pool"] = TimePool(segments)
                frames = segments // 2
            if name.startswith("stage"):
                for block in list(stages[name])[::every]:
                    shift = TimeShift(frames, shift_div)
                    block.conv1 = nn.Sequential(
                        OrderedDict(shift=shift, **dict(block.conv1.named_children()))
                    )
            trunk[name] = layers[name]
        if non_local is not None:
            place_non_local(
                trunk,
                non_local_blocks,
                lambda name, c: FrameNonLocal(
                    c,
                    non_local,
                    scale=non_local_scale,
                    sub_sample=non_local_sub_sample,
                    segments=segments if name == "stage1" else frames,
                ),
            )
        super().__init__(
            trunk,
            channels,
            num_classes,
            dropout=dropout,
            head_std=0.001,
            norm_eval=norm_eval,
            frozen_stages=frozen_stages,
            zero_init_residual=zero_init_residual,
            partial_bn=partial_bn,
        )
        self.segments = segments
        self.temporal_pool = temporal_pool

    def features(self, clip: Tensor) -> Tensor:
        """The map of every frame: float [B, 3, k * S, H, W] -> float [B, C, T', H/32, W/32].

        T' is k * S, or half of it with temporal_pool.
        """
        maps = self.trunk(to_frames(clip, self.segments))
        return to_clips(maps, len(maps) // len(clip))

    def embed(self, clip: Tensor) -> Tensor:
        """Pooled vectors: float [B, 3, k * S, H, W] -> float [B * k, C], the passes of a sample in a row."""
        frames = self.trunk(to_frames(clip, self.segments)).mean(dim=(2, 3))
        passes = clip.shape[0] * clip.shape[2] // self.segments
        vectors: Tensor = frames.view(passes, -1, frames.shape[1]).mean(dim=1)
        return vectors

    def forward(self, clip: Tensor) -> Tensor:
        """Raw logits: float [B, 3, k * S, H, W] -> float [B * k, num_classes], rows as in `embed`.

        For clips of S frames that is one row per clip. With k > 1 (several passes of one video handed over
        as one clip) the rows of a sample are averaged by whoever reads them, as upstream's head leaves it.
        """
        frames = self.trunk(to_frames(clip, self.segments)).mean(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(frames))
        passes = clip.shape[0] * clip.shape[2] // self.segments
        return logits.view(passes, -1, self.num_classes).mean(dim=1)
