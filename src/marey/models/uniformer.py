"""UniFormer: the first two stages mix neighbours by convolution, the last two all tokens by attention.

Li et al., "UniFormer: Unified Transformer for Efficient Spatiotemporal Representation Learning",
arXiv:2201.04676; numbers from Sense-X/UniFormer@52a0415e:video_classification/slowfast/models/uniformer.py.
Shapes: B clips, C channels, T x H x W frames and pixels of a map, N = T * H * W tokens; kernels and strides
are (time, height, width). Maps are [B, C, T, H, W] and lie channels last in memory: tokens are views of them.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import UsageError
from marey.models.depthwise import DepthwiseConv3d
from marey.models.transformer import MLP, DropPath, TokenBlock, Transformer, drop_rates

LOCAL = (True, True, False, False)  # stages of convolutions; the others attend
EMBED_EPS, BLOCK_EPS = 1e-5, 1e-6  # of layer norms behind patch embeddings and in blocks


class Embed(nn.Module):
    """Patches become tokens: a convolution, then layer norm over the channels."""

    def __init__(
        self, channels: int, out: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, out, kernel, stride, (kernel[0] // 2, 0, 0))
        self.norm = nn.LayerNorm(out, EMBED_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, T, H, W] -> float [B, C', T', H', W'], channels last in memory."""
        y: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 4, 1))
        return y.permute(0, 4, 1, 2, 3)


class Pointwise(nn.Conv3d):
    """A 1x1x1 convolution, computed as the matrix product that it is of maps with their channels last."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, T, H, W] -> float [B, C', T, H, W]."""
        y = F.linear(x.permute(0, 2, 3, 4, 1), self.weight.flatten(1), self.bias)
        return y.permute(0, 4, 1, 2, 3)


class ConvMLP(nn.Module):
    """Two 1x1x1 convolutions with GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Pointwise(channels, hidden), Pointwise(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, T, H, W] -> the same shape."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class LocalBlock(TokenBlock):
    """Each token gathers from its 5x5x5 neighbours, with weights that are learnt and not computed."""

    def __init__(self, channels: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.pos_embed = DepthwiseConv3d(channels, bias=True)
        self.norm1 = nn.BatchNorm3d(channels)
        self.conv1, self.conv2 = Pointwise(channels, channels), Pointwise(channels, channels)
        self.attn = DepthwiseConv3d(channels, kernel=(5, 5, 5), bias=True)
        self.norm2 = nn.BatchNorm3d(channels)
        self.mlp = ConvMLP(channels, hidden)
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, T, H, W] -> the same shape."""
        x = x + self.pos_embed(x)
        x = x + self.drop_path(self.conv2(self.attn(self.conv1(self.norm1(x)))))
        y: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return y


class Attention(nn.Module):
    """Every token gathers from all tokens of its row."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, N, C] -> the same shape."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gathered = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.proj(gathered.transpose(1, 2).flatten(2))
        return y


class GlobalBlock(TokenBlock):
    """Attention among all tokens of a clip, then two layers."""

    def __init__(self, channels: int, heads: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.pos_embed = DepthwiseConv3d(channels, bias=True)
        self.norm1 = nn.LayerNorm(channels, BLOCK_EPS)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, BLOCK_EPS)
        self.mlp = MLP(channels, hidden, channels)
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, T, H, W] -> the same shape."""
        x = (x + self.pos_embed(x)).permute(0, 2, 3, 4, 1)
        x = x + self.gathered(x)
        y: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return y.permute(0, 4, 1, 2, 3)

    def gathered(self, x: Tensor) -> Tensor:
        """The attention's branch: float [B, T, H, W, C] -> the same shape."""
        branch: Tensor = self.drop_path(self.attn(self.norm1(x.flatten(1, 3))))
        return branch.view(x.shape)


class SplitBlock(GlobalBlock):
    """Attention in time at each place, and on what it gives attention in space within each frame.

    The branch in time only feeds that in space, which is added to what the branch in time started from.
    """

    def __init__(self, channels: int, heads: int, hidden: int, drop: float) -> None:
        super().__init__(channels, heads, hidden, drop)
        self.t_norm = nn.LayerNorm(channels, BLOCK_EPS)
        self.t_attn = Attention(channels, heads)

    def gathered(self, x: Tensor) -> Tensor:
        """Float [B, T, H, W, C] -> the same shape."""
        tokens = x.flatten(2, 3)
        rows = self.t_norm(tokens).transpose(1, 2).flatten(0, 1)
        in_time = self.t_attn(rows).unflatten(0, (x.shape[0], -1)).transpose(1, 2)
        tokens = tokens + self.drop_path(in_time)
        in_space = self.attn(self.norm1(tokens).flatten(0, 1))
        branch: Tensor = self.drop_path(in_space.view(x.shape))
        return branch


class UniFormer(Transformer):
    """Two stages of local and two of global blocks, batch norm, pooled over all, linear classifier.

    num_classes  rows of the classifier
    depths       blocks of stages 1 to 4
    channels     of stages 1 to 4
    head_width   channels that attend together
    mlp_ratio    channels between the two layers of a block, over its own
    split        attention in time and in space one after the other in place of all at once
    overlap      the patch embeddings of stages 2 to 4 look at three frames in place of one (STD upstream)
    drop_path    share of a block's branches dropped in training: of the last block; it rises evenly from 0
    dropout      share of pooled features dropped in training

    Takes clips of any T, and of H and W from 32 on; T is halved, rounded up, and H and W become 1/32.
    """

    def __init__(
        self,
        num_classes: int = 400,
        *,
        depths: tuple[int, ...] = (3, 4, 8, 3),
        channels: tuple[int, ...] = (64, 128, 320, 512),
        head_width: int = 64,
        mlp_ratio: float = 4.0,
        split: bool = False,
        overlap: bool = False,
        drop_path: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        if (
            len(channels) != 4
            or len(depths) != 4
            or min(channels) < 1
            or head_width < 1
            or any(c % head_width for c in channels[2:])
        ):
            raise UsageError(
                "BAD_VALUE",
                f"depths is {depths}, channels {channels}, head_width {head_width}; needed: four, and the "
                "last two channels multiples of head_width",
            )
        trunk: dict[str, nn.Module] = {}
        before = 3
        for number, rates in enumerate(drop_rates(drop_path, tuple(depths))):
            width = channels[number]
            hidden = int(mlp_ratio * width)
            embed = Embed(before, width, (3, 4, 4), (2, 4, 4))
            if number:
                embed = Embed(before, width, (3 if overlap else 1, 2, 2), (1, 2, 2))
            layers: dict[str, nn.Module] = {"embed": embed}
            for place, rate in enumerate(rates):
                if LOCAL[number]:
                    layers[str(place)] = LocalBlock(width, hidden, rate)
                else:
                    block = SplitBlock if split else GlobalBlock
                    layers[str(place)] = block(width, width // head_width, hidden, rate)
            trunk[f"stage{number + 1}"] = nn.Sequential(OrderedDict(layers))
            before = width
        trunk["norm"] = nn.BatchNorm3d(width)
        super().__init__(nn.Sequential(OrderedDict(trunk)), width, num_classes, dropout=dropout)
        for module in self.modules():
            if isinstance(module, SplitBlock):  # attention in time starts as nothing
                nn.init.zeros_(module.t_attn.qkv.weight)
                nn.init.ones_(module.t_attn.proj.weight)
