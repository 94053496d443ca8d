"""Video Swin: attention within windows of a clip, which every second block shifts by half their size.

Liu et al., "Video Swin Transformer", arXiv:2106.13230; numbers and quirks from
SwinTransformer/Video-Swin-Transformer@db018fb8:mmaction/models/backbones/swin_transformer.py.
Shapes: B clips, C channels, T x H x W frames and pixels of a map, N tokens of a window; maps lie
[B, T, H, W, C]. Windows, shifts and strides are (time, height, width).
"""

from collections import OrderedDict
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import UsageError
from marey.models.attention import biased_attention
from marey.models.transformer import MLP, DropPath, TokenBlock, Transformer, drop_rates

Triple = tuple[int, int, int]
PATCH = (2, 4, 4)
EPS = 1e-5  # of all layer norms
APART = -100.0  # added to the products of tokens that a shift brought together from opposite ends


def relative_index(window: Triple) -> Tensor:
    """Row of the bias table for each pair of tokens of a window, whose order is t, h, w: int64 [N, N]."""
    axes = torch.meshgrid(*[torch.arange(side) for side in window], indexing="ij")
    index = torch.zeros((), dtype=torch.int64)
    for places, side in zip(axes, window, strict=True):
        distance = places.reshape(-1, 1) - places.reshape(1, -1)
        index = index * (2 * side - 1) + distance + side - 1
    return index


def fit_window(size: Triple, window: Triple, shift: Triple) -> tuple[Triple, Triple]:
    """The window and shift that a map of that size really gets: on short axes all of it, and no shift."""
    fits = [(side, 0) if side <= w else (w, s) for side, w, s in zip(size, window, shift, strict=True)]
    (t, shift_t), (h, shift_h), (w, shift_w) = fits
    return (t, h, w), (shift_t, shift_h, shift_w)


def _apart(window: Triple, shift: Triple, ends: tuple[bool, ...], device: torch.device) -> Tensor:
    """APART for pairs of tokens that were not neighbours before the shift, else 0: float [N, N].

    ends  for each axis, whether the window is the last one, which holds both ends of the map
    """
    labels = torch.zeros((), dtype=torch.int64, device=device)
    for side, step, end in zip(window, shift, ends, strict=True):
        label = (torch.arange(side, device=device) >= side - step) & end
        labels = (labels.unsqueeze(-1) * 2 + label).reshape(-1) if labels.ndim else label.long()
    return (labels[:, None] != labels[None, :]) * APART


_kept_apart = lru_cache(maxsize=256)(_apart)


def apart(window: Triple, shift: Triple, ends: tuple[bool, ...], device: torch.device) -> Tensor:
    """`_apart`, computed once; not while a compiler watches, whose stand-ins for tensors must not be kept."""
    if torch.compiler.is_compiling():
        return _apart(window, shift, ends, device)
    with torch.inference_mode(False):
        return _kept_apart(window, shift, ends, device)


class WindowAttention(nn.Module):
    """Attention within windows, with a learnt bias for every relative position.

    channels, heads  C, and how many parts of them attend on their own
    window, shift    configured; smaller maps get less, see `fit_window`
    """

    index: Tensor

    def __init__(self, channels: int, heads: int, window: Triple, shift: Triple) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        rows = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.table = nn.Parameter(torch.empty(rows, heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer("index", relative_index(window), persistent=False)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def bias(self, tokens: int) -> Tensor:
        """What is added to the products of so many tokens: float [heads, N, N].

        A window smaller than configured takes the first rows and columns of the index, as upstream does. That
        is the geometry where only time is shorter, and other but constant pairs where H or W is.
        """
        index = self.index[:tokens, :tokens].reshape(-1)
        return self.table.t().contiguous().index_select(1, index).view(self.heads, tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, T, H, W, C] -> the same shape."""
        size = x.shape[1:4]
        window, shift = fit_window((size[0], size[1], size[2]), self.window, self.shift)
        pads = [-side % w for side, w in zip(size, window, strict=True)]
        if any(pads):
            x = F.pad(x, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))  # zeros, which take part in attention
        if any(shift):
            x = x.roll([-step for step in shift], (1, 2, 3))
        qkv = self.qkv(x)
        bias = self.bias(window[0] * window[1] * window[2])
        y = self._over_axes(qkv, window, shift, bias, ())
        y = self.proj(y)
        if any(shift):
            y = y.roll(shift, (1, 2, 3))
        whole: Tensor = y[:, : size[0], : size[1], : size[2]]
        return whole

    def _over_axes(
        self, qkv: Tensor, window: Triple, shift: Triple, bias: Tensor, ends: tuple[bool, ...]
    ) -> Tensor:
        """Cuts the last windows of each shifted axis from the others, so that each part has one mask.

        ends  of the axes that are cut already, whether this part is the last one
        """
        if len(ends) == 3:
            if any(ends):
                bias = bias + apart(window, shift, ends, bias.device).to(bias.dtype)
            return self._attend(qkv, window, bias)
        axis = len(ends) + 1
        if not shift[axis - 1]:
            return self._over_axes(qkv, window, shift, bias, (*ends, False))
        side, last = qkv.shape[axis], window[axis - 1]
        first, second = torch.split(qkv, [side - last, last], axis)
        done = (
            self._over_axes(first, window, shift, bias, (*ends, False)),
            self._over_axes(second, window, shift, bias, (*ends, True)),
        )
        return torch.cat(done, axis)

    def _attend(self, qkv: Tensor, window: Triple, bias: Tensor) -> Tensor:
        """Attention in whole windows: float [B, T, H, W, 3 * C] -> float [B, T, H, W, C]."""
        batch, *size = qkv.shape[:4]
        (t, h, w), (a, b, c) = (side // step for side, step in zip(size, window, strict=True)), window
        cut = qkv.view(batch, t, a, h, b, w, c, 3, self.heads, -1).permute(7, 0, 1, 3, 5, 8, 2, 4, 6, 9)
        q, k, v = cut.reshape(3, batch * t * h * w, self.heads, a * b * c, -1)
        y = biased_attention(q, k, v, bias)
        y = y.view(batch, t, h, w, self.heads, a, b, c, -1).permute(0, 1, 5, 2, 6, 3, 7, 4, 8)
        return y.reshape(batch, *size, -1)


class Block(TokenBlock):
    """Window attention, then two layers; each on normalised tokens and added to its input."""

    def __init__(
        self, channels: int, heads: int, window: Triple, shift: Triple, ratio: float, drop: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, EPS)
        self.attn = WindowAttention(channels, heads, window, shift)
        self.norm2 = nn.LayerNorm(channels, EPS)
        self.mlp = MLP(channels, int(ratio * channels), channels)
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, T, H, W, C] -> the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        y: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return y


class Patches(nn.Module):
    """Every 2 x 4 x 4 pixels become a token; what is missing to whole patches is zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, channels, PATCH, PATCH)
        self.norm = nn.LayerNorm(channels, EPS)

    def forward(self, clip: Tensor) -> Tensor:
        """Float [B, 3, T, H, W] -> float [B, T / 2, H / 4, W / 4, C], rounded up."""
        pads = [-side % step for side, step in zip(clip.shape[2:], PATCH, strict=True)]
        if any(pads):
            clip = F.pad(clip, (0, pads[2], 0, pads[1], 0, pads[0]))
        x: Tensor = self.norm(self.proj(clip).permute(0, 2, 3, 4, 1))
        return x


class Merge(nn.Module):
    """Four neighbours in H and W become one token of twice the channels; time is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels, EPS)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, T, H, W, C] -> float [B, T, H / 2, W / 2, 2 * C], rounded up."""
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        y: Tensor = self.reduction(self.norm(torch.cat(corners, dim=-1)))
        return y


class Swin3D(Transformer):
    """Four stages of window attention on patches, pooled over all, linear classifier.

    num_classes  rows of the classifier
    channels     C of the first stage; each later stage has twice as many
    depths       blocks of stages 1 to 4
    heads        parts that attend on their own, for stages 1 to 4
    window       time, height and width of windows, in patches of 2 x 4 x 4 pixels
    mlp_ratio    channels between the two layers, over C
    drop_path    share of a block's branches dropped in training: of the last block; it rises evenly from 0
    dropout      share of pooled features dropped in training

    Takes clips of any T, H and W.
    """

    def __init__(
        self,
        num_classes: int = 400,
        *,
        channels: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: tuple[int, ...] = (8, 7, 7),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        dropout: float = 0.5,
    ) -> None:
        whole = len(heads) == len(depths) and all(
            (channels << s) % max(h, 1) == 0 for s, h in enumerate(heads)
        )
        if channels < 1 or not whole or min(heads) < 1 or len(window) != 3 or min(window) < 1:
            raise UsageError(
                "BAD_VALUE",
                f"channels is {channels}, depths {depths}, heads {heads}, window {window}; needed: as many "
                "heads as depths, each a divisor of its stage's channels, and a window of three sides",
            )
        sides = (window[0], window[1], window[2])
        half = (window[0] // 2, window[1] // 2, window[2] // 2)
        trunk: dict[str, nn.Module] = {"patches": Patches(channels)}
        for number, rates in enumerate(drop_rates(drop_path, tuple(depths))):
            width = channels << number
            layers: dict[str, nn.Module] = {}
            for place, rate in enumerate(rates):
                shift = half if place % 2 else (0, 0, 0)
                layers[str(place)] = Block(width, heads[number], sides, shift, mlp_ratio, rate)
            if number + 1 < len(depths):
                layers["merge"] = Merge(width)
            trunk[f"stage{number + 1}"] = nn.Sequential(OrderedDict(layers))
        trunk["norm"] = nn.LayerNorm(width, EPS)
        super().__init__(
            nn.Sequential(OrderedDict(trunk)), width, num_classes, dropout=dropout, head_std=0.01
        )
        self.window = sides

    def features(self, clip: Tensor) -> Tensor:
        """The map before pooling: [B, 3, T, H, W] -> float [B, C, T / 2, H / 32, W / 32], rounded up."""
        return super().features(clip).permute(0, 4, 1, 2, 3)
