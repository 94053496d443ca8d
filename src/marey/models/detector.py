"""Detectors: what each person of a clip does, where others have found the persons.

Fast R-CNN (arXiv:1504.08083) on video networks, as in open-mmlab/mmaction2@v0.24.1:configs/detection: the
network's map is averaged over time, cut out at each box, pooled and classified; several classes may be right.
Shapes: B clips, C channels, T frames, H x W pixels, R boxes of all clips in a row, S slots of a window of a
feature bank.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from marey.errors import UsageError, unknown
from marey.models.longterm import operator
from marey.models.nonlocal_ import ZOO_PLACES
from marey.models.parts import Residual, ResNet
from marey.models.slowfast import SlowFast
from marey.models.slowonly import SlowOnly

TimePool = Literal["mean", "max"]
CELL = 16  # pixels of a clip's side that one position of the map stands for


class Detector(ResNet):
    """What detectors add to a video network: cutting boxes out of its map, and classifying them.

    long_term      None, or how a box uses its window of a feature bank: "nl" attends to it, "avg" and "max"
                   pool it (see `marey.models.longterm`); the result joins the box's own features
    window, per_step   time steps of such a window and slots of each: a bank has window * per_step of them
    bank_channels  channels of the bank; 0: as many as the box has
    latent, long_term_layers, long_term_dropout, pre_activate   of "nl"
    context        each box also gets the map of its whole clip, which doubles the channels
    time_pool      "mean" or "max" over the frames
    bins           cells on each side of a box
    samples        points on each side of a cell whose mean it is; 0: as many as it has positions of the map
    aligned        positions of the map are the middles of their pixels; else corners, and a box is at least
                   one position large

    The last stage of the network keeps H and W, so that the map has 1/16 of the clip's; weights are those of
    recognizers. Dropout comes before the pooling of a box: it drops single cells.
    """

    def attach(
        self,
        *,
        channels: int,
        num_classes: int,
        long_term: str | None,
        window: int,
        per_step: int,
        bank_channels: int,
        latent: int,
        long_term_layers: int,
        long_term_dropout: float,
        pre_activate: bool,
        context: bool,
        time_pool: str,
        bins: int,
        samples: int,
        aligned: bool,
    ) -> None:
        """Turn the recognizer that was just built into a detector; `channels` are its map's."""
        if time_pool not in get_args(TimePool):
            raise unknown("time_pool", str(time_pool), get_args(TimePool), "BAD_VALUE")
        if min(window, per_step, bins) < 1 or min(bank_channels, samples) < 0:
            raise UsageError(
                "BAD_VALUE",
                f"window is {window}, per_step {per_step}, bins {bins}, bank_channels {bank_channels}, "
                f"samples {samples}; needed: 1 or more of the first three, 0 or more of the others",
            )
        for block in self.trunk.stage4.modules():  # type: ignore[union-attr]
            if isinstance(block, Residual):
                _keep_size(block)
        self.context, self.time_pool = context, time_pool
        self.bins, self.samples, self.aligned = bins, samples, aligned
        self.window, self.per_step = window, per_step
        self.box_channels = channels = channels * (2 if context else 1)
        self.bank_channels = bank_channels or channels
        self.long_term: nn.Module | None = None
        if long_term is not None:
            self.long_term, added = operator(
                long_term,
                channels,
                self.bank_channels,
                latent=latent,
                layers=long_term_layers,
                dropout=long_term_dropout,
                pre_activate=pre_activate,
            )
            channels += added
        self.head = nn.Linear(channels, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def beside(self, clip: Tensor) -> tuple[Any, ...]:
        """What `forward` takes beside clips to measure or compare networks: each whole, in one box."""
        whole = [0.0, 0.0, float(clip.shape[-1]), float(clip.shape[-2])]
        boxes = [torch.tensor([whole], device="cpu") for _ in clip]
        if self.long_term is None:
            return (boxes,)
        return boxes, clip.new_ones(len(clip), self.window * self.per_step, self.bank_channels)

    def pooled(self, clip: Tensor) -> Tensor:
        """The map that boxes are cut from: float [B, 3, T, H, W] -> float [B, C, H / 16, W / 16]."""
        return _over_time(self.features(clip), self.time_pool)

    def regions(self, clip: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """What is cut out at each box: float [B, 3, T, H, W], B x [N, 4] -> float [R, C, bins, bins].

        boxes  of each clip, float left, top, right, bottom in pixels of the clip; parts outside are cut off.
               A box without area gives zeros where it is `aligned` and has no fixed `samples`

        Raises UsageError BOXES for boxes of another shape or number, or turned around.
        """
        _check(boxes, len(clip))
        where = self.pooled(clip).float()
        moved = [box.to(where) for box in boxes]
        size = (self.bins, self.bins)
        cut: Tensor = roi_align(where, moved, size, 1 / CELL, self.samples, self.aligned)
        if self.context:
            numbers = [number for number, box in enumerate(boxes) for _ in range(len(box))]
            of_clip = torch.tensor(numbers, dtype=torch.int64, device=where.device)
            whole = _binned(_binned(where, 2, self.bins), 3, self.bins)
            cut = torch.cat([cut, whole[of_clip]], dim=1)
        return cut

    def box_features(self, clip: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """The pooled vector of each box, which a feature bank stores: as `regions` -> float [R, C]."""
        return _largest(self.regions(clip, boxes))

    def classify(self, regions: Tensor, bank: Tensor | None = None) -> Tensor:
        """Raw logits of what was cut out: float [R, C, bins, bins], [R, S, C'] -> float [R, num_classes].

        Raises UsageError BANK where there is a bank and the detector takes none, or the other way round, or
        where it is of another shape.
        """
        if self.long_term is None:
            if bank is not None:
                raise UsageError("BANK", "this detector takes no bank; create it with long_term=...")
            pooled = _largest(self.dropout(regions))
        else:
            short = _largest(regions)
            want = (len(short), self.window * self.per_step, self.bank_channels)
            if bank is None or bank.shape != want:
                got = "none" if bank is None else f"one of shape {list(bank.shape)}"
                raise UsageError(
                    "BANK",
                    f"this detector needs a window of a bank for each of {want[0]} boxes, of shape "
                    f"{list(want)} (boxes, window * per_step, channels), and was given {got}",
                )
            pooled = self.dropout(torch.cat([short, self.long_term(short, bank.to(short))], dim=1))
        logits: Tensor = self.head(pooled)
        return logits

    def forward(  # type: ignore[override]
        self, clip: Tensor, boxes: Sequence[Tensor], bank: Tensor | None = None
    ) -> Tensor:
        """Raw logits of each box: float [B, 3, T, H, W], B x [N, 4] -> float [R, num_classes].

        bank  float [R, window * per_step, bank_channels], a window for each box, where long_term is set

        There may be no box at all. Raises UsageError BOXES and BANK, see `regions` and `classify`.
        """
        return self.classify(self.regions(clip, boxes), bank)


class SlowOnlyDetector(Detector, SlowOnly):  # type: ignore[misc]  # `forward` takes boxes, too
    """SlowOnly that classifies boxes.

    depth, width, non_local, ...   see `marey.models.slowonly.SlowOnly`
    dropout   share of cells dropped in training, before they are pooled; with long_term of what is classified
    long_term, window, ...         see `Detector`
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 81,
        *,
        long_term: str | None = None,
        window: int = 60,
        per_step: int = 5,
        bank_channels: int = 0,
        latent: int = 512,
        long_term_layers: int = 2,
        long_term_dropout: float = 0.2,
        pre_activate: bool = True,
        context: bool = False,
        time_pool: str = "mean",
        bins: int = 8,
        samples: int = 0,
        aligned: bool = True,
        dropout: float = 0.5,
        width: int = 64,
        non_local: str | None = None,
        non_local_scale: bool = True,
        non_local_sub_sample: bool = True,
        non_local_blocks: tuple[tuple[int, ...], ...] = ZOO_PLACES,
        norm_eval: bool = False,
        frozen_stages: int = -1,
    ) -> None:
        super().__init__(
            depth,
            num_classes,
            dropout=dropout,
            width=width,
            non_local=non_local,
            non_local_scale=non_local_scale,
            non_local_sub_sample=non_local_sub_sample,
            non_local_blocks=non_local_blocks,
            norm_eval=norm_eval,
            frozen_stages=frozen_stages,
        )
        self.attach(
            channels=self.head.in_features,
            num_classes=num_classes,
            long_term=long_term,
            window=window,
            per_step=per_step,
            bank_channels=bank_channels,
            latent=latent,
            long_term_layers=long_term_layers,
            long_term_dropout=long_term_dropout,
            pre_activate=pre_activate,
            context=context,
            time_pool=time_pool,
            bins=bins,
            samples=samples,
            aligned=aligned,
        )


class SlowFastDetector(Detector, SlowFast):  # type: ignore[misc]  # `forward` takes boxes, too
    """SlowFast that classifies boxes; the slow pathway's channels come first.

    depth, style, alpha, ...   see `marey.models.slowfast.SlowFast`
    dropout   share of cells dropped in training, before they are pooled; with long_term of what is classified
    long_term, window, ...     see `Detector`
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 81,
        *,
        long_term: str | None = None,
        window: int = 60,
        per_step: int = 5,
        bank_channels: int = 0,
        latent: int = 512,
        long_term_layers: int = 2,
        long_term_dropout: float = 0.2,
        pre_activate: bool = True,
        context: bool = False,
        time_pool: str = "mean",
        bins: int = 8,
        samples: int = 0,
        aligned: bool = True,
        style: str = "mmaction2",
        alpha: int = 4,
        beta: int = 8,
        lateral_kernel: int = 7,
        fast_depth: int = 0,
        temporal_blocks: tuple[int, ...] = (),
        dropout: float = 0.5,
        width: int = 64,
        norm_eval: bool = False,
        frozen_stages: int = -1,
    ) -> None:
        super().__init__(
            depth,
            num_classes,
            style=style,
            alpha=alpha,
            beta=beta,
            lateral_kernel=lateral_kernel,
            fast_depth=fast_depth,
            temporal_blocks=temporal_blocks,
            dropout=dropout,
            width=width,
            norm_eval=norm_eval,
            frozen_stages=frozen_stages,
        )
        self.attach(
            channels=self.head.in_features,
            num_classes=num_classes,
            long_term=long_term,
            window=window,
            per_step=per_step,
            bank_channels=bank_channels,
            latent=latent,
            long_term_layers=long_term_layers,
            long_term_dropout=long_term_dropout,
            pre_activate=pre_activate,
            context=context,
            time_pool=time_pool,
            bins=bins,
            samples=samples,
            aligned=aligned,
        )

    def pooled(self, clip: Tensor) -> Tensor:
        """The map that boxes are cut from: float [B, 3, T, H, W] -> float [B, C, H / 16, W / 16]."""
        maps = SlowFast.features(self, clip)
        # bringing the shorter map to the longer one's frames repeats its own, which changes no pooling
        return torch.cat(
            [_over_time(maps[path], self.time_pool) for path in sorted(self.chosen.joined)], dim=1
        )


def _keep_size(block: Residual) -> None:
    for unit in (block.conv2, block.shortcut):
        if unit is not None:
            unit.conv.stride = (1, 1, 1)  # type: ignore[assignment]


def _over_time(maps: Tensor, how: str) -> Tensor:
    return maps.mean(dim=2) if how == "mean" else maps.amax(dim=2)


def _binned(x: Tensor, dim: int, bins: int) -> Tensor:
    """Means over the bins of an axis, as of `adaptive_avg_pool2d`, whose gradient CUDA cannot repeat."""
    size = x.shape[dim]
    edges = [(size * place // bins, -(-size * (place + 1) // bins)) for place in range(bins)]
    return torch.stack([x.narrow(dim, low, high - low).mean(dim) for low, high in edges], dim)


def _largest(regions: Tensor) -> Tensor:
    """Over the cells of a box: [R, C, bins, bins] -> [R, C]; gradients go to the first of equal cells."""
    return regions.flatten(2).max(dim=2).values


def _check(boxes: Sequence[Tensor], clips: int) -> None:
    if len(boxes) != clips:
        raise UsageError("BOXES", f"boxes of {len(boxes)} clips came with {clips} clips")
    for number, box in enumerate(boxes):
        if box.ndim != 2 or box.shape[1] != 4 or not box.is_floating_point():
            raise UsageError(
                "BOXES",
                f"boxes of clip {number} are {box.dtype} {list(box.shape)}; needed: float [N, 4]",
            )
        if not bool((box[:, 2:] >= box[:, :2]).all()):
            raise UsageError(
                "BOXES",
                f"a box of clip {number} ends before it starts, or is no number; needed: left, top, right, "
                "bottom",
            )
