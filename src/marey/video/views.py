"""What a Preprocess reads from, and what it hands on: training clips and the views of a test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marey.video.sampling import Indices


class Source(Protocol):
    """What frames come from: `marey.video.reader.Video`, or anything like it."""

    @property
    def fps(self) -> float:
        """Frames per second."""

    def __len__(self) -> int: ...

    def frames(self, indices: Sequence[int] | Indices) -> Tensor:
        """The frames asked for, uint8 `[T, H, W, 3]`."""


class TrainClip(NamedTuple):
    """One training sample: frames uint8 `[T, crop, crop, 3]`, and whether `normalize` shall mirror them."""

    frames: Tensor
    mirrored: bool


@dataclass(frozen=True)
class Views:
    """A video's views, cut from its resized frames only when they are needed; view = crop * K + clip.

    frames   uint8 `[N, h, w, 3]`, every frame that some clip holds, once
    index    int64 `[K, T]`, the clips, as rows of `frames`
    boxes    int64 `[C, 4]`, the crops; left, top, right, bottom
    mirror   bool `[C]`, which crops are mirrored
    numbers  int64 `[N]`, frame numbers of `frames` in the video
    """

    frames: Tensor
    index: Indices
    boxes: Indices
    mirror: NDArray[np.bool_]
    numbers: Indices

    def __len__(self) -> int:
        return len(self.index) * len(self.boxes)

    def batch(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Views start..stop-1, or up to the last: uint8 `[n, T, crop, crop, 3]`."""
        chosen = range(len(self))[start:stop]
        side = int(self.boxes[0, 2] - self.boxes[0, 0])
        views = torch.empty((len(chosen), self.index.shape[1], side, side, 3), dtype=torch.uint8)
        for view, number in zip(views, chosen, strict=True):
            crop, clip = divmod(number, len(self.index))
            left, top, right, bottom = self.boxes[crop]
            cut, rows = self.frames[:, top:bottom, left:right], torch.from_numpy(self.index[clip])
            torch.index_select(cut, 0, rows, out=view)  # 20 times as fast as cut[rows]
            if self.mirror[crop]:
                view.copy_(view.flip(2))
        return views
