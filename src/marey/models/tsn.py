"""TSN, the temporal segment network: a 2D network sees a few frames spread over the video.

Wang et al., "Temporal Segment Networks", arXiv:1608.00859; numbers from
open-mmlab/mmaction2@v0.24.1:mmaction/models/{backbones/resnet.py,heads/tsn_head.py}.
Shapes: B clips, C channels, T frames (the segments), H x W pixels.
"""

from torch import Tensor

from marey.models.parts import ResNet, frame_trunk, to_clips, to_frames


class TSN(ResNet):
    """2D ResNet on every frame, features averaged over all frames, dropout, linear classifier.

    depth          18, 34, 50, 101 or 152
    num_classes    rows of the classifier
    segments       frames that the default preprocessing takes; the network itself takes any number
    dropout        share of pooled features dropped in training, one mask per clip
    head_std       of the fresh classifier's weights
    width          channels of the stem, 64 as published; all stages scale with it
    norm_eval, frozen_stages, partial_bn, zero_init_residual   see `marey.models.parts.ResNet`
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 400,
        *,
        segments: int = 3,
        dropout: float = 0.4,
        head_std: float = 0.01,
        width: int = 64,
        norm_eval: bool = False,
        frozen_stages: int = -1,
        zero_init_residual: bool = False,
        partial_bn: bool = False,
    ) -> None:
        super().__init__(
            *frame_trunk(depth, width),
            num_classes,
            dropout=dropout,
            head_std=head_std,
            norm_eval=norm_eval,
            frozen_stages=frozen_stages,
            zero_init_residual=zero_init_residual,
            partial_bn=partial_bn,
        )
        self.segments = segments

    def features(self, clip: Tensor) -> Tensor:
        """The map of every frame: float [B, 3, T, H, W] -> float [B, C, T, H/32, W/32]."""
        return to_clips(self.trunk(to_frames(clip)), clip.shape[2])

    def forward(self, clip: Tensor) -> Tensor:
        """Raw logits: float [B, 3, T, H, W] -> float [B, num_classes]."""
        frames = self.trunk(to_frames(clip)).mean(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(frames.view(clip.shape[0], -1, frames.shape[1]).mean(dim=1)))
        return logits
