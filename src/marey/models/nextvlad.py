"""NeXtVLAD: the frame features of a video become one descriptor, and that becomes tags.

Lin, Xiao and Fan, "NeXtVLAD: An Efficient Neural Network to Aggregate Frame-level Features for Large-scale
Video Classification", arXiv:1811.05014. By default the network of PaddlePaddle/models@b71cf63:PaddleCV/video
(K=128, G=8, 89 M parameters), exactly as it computes there; settings give the authors' TensorFlow network
(linrongc/youtube-8m@4810b4e). Shapes: B videos of up to T frames, D features of a frame and stream, X the
expansion, G groups, K clusters, F = X * D / G.
"""

from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import UsageError

EIGENVALUES = "youtube8m_eigenvalues.txt"
HALF_STEP = 4 / 512


class BatchNorm(nn.BatchNorm1d):
    """Over rows [N, C], as Paddle has it: the running variance is of all rows, not of all but one.

    Fewer than two rows have no variance: they are normalised as in evaluation, and nothing is updated.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, C] -> float [N, C]."""
        if not self.training or len(x) < 2:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        assert self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = self.running_var.clone()
        y = F.batch_norm(x, self.running_mean, unbiased, self.weight, self.bias, True, share, self.eps)
        with torch.no_grad():
            kept = self.running_var * (1 - share)
            self.running_var.copy_(kept + (unbiased - kept) * ((len(x) - 1) / len(x)))
        return y


class Stream(nn.Module):
    """One NeXtVLAD pool: the frames of a stream become a descriptor of F * K numbers.

    features  D; X * D must be a multiple of groups
    offset    what is added to q * 4/255 - 2, where q is the stored byte
    scale     factors of the D features
    l2_floor  a cluster's length is sqrt(max(sum, 1e-12)), else sqrt(sum + 1e-12)
    pad_to    0: batch norm never sees padding; else, in training, its statistics are taken over so many
              frames of every video, the missing ones being zeros
    """

    scale: Tensor | None

    def __init__(
        self,
        features: int,
        clusters: int,
        groups: int,
        expansion: int,
        *,
        offset: float,
        scale: Tensor | None,
        eps: float,
        momentum: float,
        pad_to: int,
        l2_floor: bool,
    ) -> None:
        super().__init__()
        if min(features, clusters, groups, expansion) < 1 or expansion * features % groups:
            raise UsageError(
                "BAD_VALUE",
                f"{features} features times an expansion of {expansion} in {groups} groups and {clusters} "
                "clusters: all must be 1 or more, and the product a multiple of the groups",
            )
        wide = expansion * features
        self.clusters, self.groups, self.offset = clusters, groups, offset
        self.pad_to, self.l2_floor = pad_to, l2_floor
        self.register_buffer("scale", scale)
        self.expansion = linear(features, wide)
        self.attention = linear(wide, groups)
        self.assignment = linear(wide, groups * clusters, bias=False)
        self.assignment_norm = BatchNorm(groups * clusters, eps, momentum)
        self.centres = nn.Parameter(torch.randn(clusters, wide // groups) * (2 / clusters) ** 0.5)
        self.norm = BatchNorm(wide // groups * clusters, eps, momentum)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Stored bytes [B, T, D] and the number of frames of each video, int [B] -> float [B, F * K]."""
        if self.training and self.pad_to > frames.shape[1]:
            frames = F.pad(frames, (0, 0, 0, self.pad_to - frames.shape[1]))
        videos, length = frames.shape[:2]
        real = torch.arange(length, device=frames.device) < lengths[:, None]
        if self.training and self.pad_to:
            weights, wide = self.assign(self.dequantised(frames, real).flatten(0, 1))
            weights = weights * real.flatten()[:, None]
        elif bool(real.all()):
            weights, wide = self.assign(self.dequantised(frames, None).flatten(0, 1))
        else:  # only what is there is computed; the rest is zero afterwards
            place = real.flatten().nonzero().flatten()
            weights, wide = self.assign(self.dequantised(frames.flatten(0, 1)[place], None))
            weights = weights.new_zeros(len(real.flatten()), weights.shape[1]).index_copy(0, place, weights)
            wide = wide.new_zeros(len(weights), wide.shape[1]).index_copy(0, place, wide)
        weights = weights.view(videos, length * self.groups, self.clusters)
        wide = wide.view(videos, length * self.groups, -1)
        pooled = wide.transpose(1, 2) @ weights - weights.sum(1)[:, None] * self.centres.T  # [B, F, K]
        pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
        squares = pooled.square().sum(1, keepdim=True)
        pooled = pooled / (squares.clamp(min=1e-12) if self.l2_floor else squares + 1e-12).sqrt()
        y: Tensor = self.norm(pooled.flatten(1))
        return y

    def assign(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [N, D] -> the share of each group and cluster [N, G * K], and what is shared [N, G * F]."""
        wide = self.expansion(x)
        share = self.assignment_norm(self.assignment(wide)).view(-1, self.groups, self.clusters).softmax(2)
        return (share * self.attention(wide).sigmoid()[:, :, None]).flatten(1), wide

    def dequantised(self, stored: Tensor, real: Tensor | None) -> Tensor:
        """Stored bytes as features; frames that `real` leaves out were zeros before the scaling."""
        x = stored.to(self.expansion.weight.dtype) * (4 / 255) + (self.offset - 2)
        if real is not None:
            x = torch.where(real[..., None], x, self.offset - HALF_STEP)
        return x if self.scale is None else x * self.scale


class NeXtVLAD(nn.Module):
    """Tags of a video from its frame features as YouTube-8M stores them.

        logits = model(rgb, audio, lengths)        # probabilities are their sigmoid

    rgb, audio     features of a frame; audio=0: there is no such stream
    cluster_size   K; audio_cluster_size: that of the audio stream where it differs
    groups         G; audio_groups likewise
    expansion      X
    hidden_size    width of the layer that the gates act on
    gating_reduction  the gates see hidden_size / gating_reduction numbers
    dropout        share of the descriptor that is dropped in training
    inverted_dropout  what is kept is scaled up in training; without it, and as Paddle has it, everything is
                   scaled down in evaluation
    whitened       rgb is YouTube-8M's, whose whitening is undone by its 1024 eigenvalues
    bn_eps, bn_momentum  of all batch norms
    pad_to         in training, batch norm over frames also sees zeros up to so many frames of a video, as the
                   TensorFlow network did with 300; 0: padding is never seen
    l2_floor       a cluster's numbers are divided by sqrt(max(sum of squares, 1e-12)), as in TensorFlow, not
                   by sqrt(sum of squares + 1e-12), as in Paddle: it shows in videos of one or two frames

    `spec`, `preprocess` and `class_names` are set by `marey.create_model`. Fresh weights come from torch's
    global generator, Gaussian of variance 2 / inputs; batch norms start as identity, biases at 0.
    """

    preprocess: Any = None
    class_names: tuple[str, ...] | None = None
    spec: dict[str, Any] | None = None

    def __init__(
        self,
        num_classes: int = 3862,
        *,
        rgb: int = 1024,
        audio: int = 128,
        cluster_size: int = 128,
        groups: int = 8,
        expansion: int = 2,
        hidden_size: int = 2048,
        gating_reduction: int = 8,
        dropout: float = 0.5,
        audio_cluster_size: int | None = None,
        audio_groups: int | None = None,
        inverted_dropout: bool = False,
        whitened: bool = True,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
        pad_to: int = 0,
        l2_floor: bool = False,
    ) -> None:
        super().__init__()
        reduced = hidden_size // gating_reduction if gating_reduction > 0 else 0
        if num_classes < 1 or reduced < 1 or not 0 <= dropout < 1 or audio < 0 or pad_to < 0:
            raise UsageError(
                "BAD_VALUE",
                f"num_classes is {num_classes}, hidden_size {hidden_size} / gating_reduction "
                f"{gating_reduction} (both at least 1), dropout {dropout} (0 to below 1), audio {audio} and "
                f"pad_to {pad_to} (at least 0)",
            )
        if whitened and rgb != 1024:
            raise UsageError(
                "BAD_VALUE", f"rgb={rgb} cannot be YouTube-8M's 1024 features; give whitened=False for others"
            )
        norm: dict[str, Any] = {
            "eps": bn_eps,
            "momentum": bn_momentum,
            "pad_to": pad_to,
            "l2_floor": l2_floor,
        }
        scale, offset = (whitening(), 0.0) if whitened else (None, HALF_STEP)
        self.rgb = Stream(rgb, cluster_size, groups, expansion, offset=offset, scale=scale, **norm)
        width = self.rgb.norm.num_features
        self.audio: Stream | None = None
        if audio:
            sizes = audio_cluster_size or cluster_size, audio_groups or groups, expansion
            self.audio = Stream(audio, *sizes, offset=HALF_STEP, scale=None, **norm)
            width += self.audio.norm.num_features
        self.dropout, self.inverted_dropout = dropout, inverted_dropout
        self.hidden = linear(width, hidden_size, bias=False)
        self.hidden_norm = BatchNorm(hidden_size, bn_eps, bn_momentum)
        self.squeeze = linear(hidden_size, reduced, bias=False)
        self.squeeze_norm = BatchNorm(reduced, bn_eps, bn_momentum)
        self.excite = linear(reduced, hidden_size, bias=False)
        self.head = linear(hidden_size, num_classes)
        self.num_classes = num_classes

    def features(self, rgb: Tensor, audio: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """The descriptor of the streams; arguments as `forward` -> float [B, sum of F * K]."""
        for stream in (rgb, audio):
            if stream is not None and stream.is_floating_point():
                _check_bytes(stream)
        if lengths is None:
            both = [rgb.shape[1], rgb.shape[1] if audio is None else audio.shape[1]]
            lengths = torch.tensor([both], device=rgb.device).expand(len(rgb), 2)
        pairs = lengths.to(rgb.device).expand(2, -1).T if lengths.ndim == 1 else lengths.to(rgb.device)
        parts = [self.rgb(rgb, pairs[:, 0])]
        if self.audio is not None:
            if audio is None:
                raise UsageError(
                    "FEATURE_MISSING", "the network has an audio stream; give it audio, or audio=0"
                )
            parts.append(self.audio(audio, pairs[:, 1]))
        return torch.cat(parts, dim=1)

    def embed(self, rgb: Tensor, audio: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """The gated layer before the classifier; arguments as `forward` -> float [B, hidden_size]."""
        v = F.dropout(self.features(rgb, audio, lengths), self.dropout, self.training)
        if not self.inverted_dropout:
            v = v * (1 - self.dropout)
        u: Tensor = self.hidden_norm(self.hidden(v))
        gates: Tensor = self.excite(F.relu(self.squeeze_norm(self.squeeze(u)))).sigmoid()
        return u * gates

    def forward(self, rgb: Tensor, audio: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Raw logits, float [B, num_classes].

        rgb, audio  stored bytes [B, T, D], uint8 or float of 0..255; frames after the last are ignored
        lengths     int [B], frames of each video, or [B, 2], those of rgb and of audio; None: all are frames
        Raises UsageError FEATURE_RANGE, FEATURE_MISSING.
        """
        logits: Tensor = self.head(self.embed(rgb, audio, lengths))
        return logits


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer that starts Gaussian of variance 2 / inputs, its bias at 0."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=(2 / inputs) ** 0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def whitening() -> Tensor:
    """float32 [1024]: by what YouTube-8M's visual features were divided, nearly."""
    text = files(__package__).joinpath(EIGENVALUES).read_text(encoding="ascii")
    rows = [line for line in text.splitlines() if not line.startswith("#")]
    values = torch.tensor([float(value) for row in rows for value in row.split()], dtype=torch.float64)
    return (values.sqrt() + 1e-4).float()


def _check_bytes(stream: Tensor) -> None:
    low, high = (float(value) for value in stream.aminmax()) if stream.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 255):
        raise UsageError(
            "FEATURE_RANGE",
            f"features from {low:.4g} to {high:.4g} were given, the stored bytes, 0 to 255, are needed; "
            "marey.data.youtube8m.as_bytes turns what they stand for back into them",
        )
