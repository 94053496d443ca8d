"""MViT: tokens become fewer and wider from stage to stage, and keys and values fewer than queries.

Fan et al., "Multiscale Vision Transformers", arXiv:2104.11227 (version 1), and Li et al., "MViTv2",
arXiv:2112.01526 (version 2); numbers from facebookresearch/SlowFast@287ec007:slowfast/models/attention.py and
video_model_builder.py. Shapes: B clips, C channels, T x H x W places of a grid, N = 1 + T * H * W tokens, the
first of which is the class token, h heads of W channels; kernels and strides are (time, height, width).
"""

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import UsageError
from marey.models.depthwise import DepthwiseConv3d
from marey.models.transformer import MLP, DropPath, TokenBlock, Transformer, drop_rates

Triple = tuple[int, int, int]
EPS = 1e-6  # of all layer norms
PATCH, STEP = (3, 7, 7), (2, 4, 4)  # kernel and stride of the patch embedding
HALVE = (1, 2, 2)  # stride of the queries where a stage begins
FEWEST_KEYS = (1, 8, 8)  # stride of keys and values before the first such block; each of these halves it


class Pool(NamedTuple):
    """A depthwise convolution of queries, keys or values on their grid."""

    kernel: Triple
    stride: Triple


class Place(NamedTuple):
    """Where a block stands.

    before, attended, after   channels before it, of its attention, after it
    heads    parts that attend on their own
    queries  how queries are pooled, None: not
    keys     how keys and values are
    size     its grid before the queries are pooled
    """

    before: int
    attended: int
    after: int
    heads: int
    queries: Pool | None
    keys: Pool | None
    size: Triple


def plan(
    version: int,
    depth: int,
    starts: tuple[int, ...],
    kernel: tuple[int, ...],
    channels: int,
    size: Triple,
    heads: int = 1,
) -> list[Place]:
    """All blocks. Where a stage starts, queries are pooled and width and heads double.

    In version 1 the channels double one block earlier, in its two layers, and only starting blocks pool
    queries; in version 2 they double in the attention of the starting block.

    kernel  of the pooling; (): one more than the stride on every axis that it shortens
    heads   of the first stage
    """
    keys, places = FEWEST_KEYS, []
    for number in range(depth):
        stride = HALVE if number in starts else (1, 1, 1)
        if number in starts:
            heads *= 2
            keys = _divided(keys, HALVE)
        wider = number + (2 - version) in starts  # version 1 looks one block ahead
        after = 2 * channels if wider else channels
        attended = after if version == 2 else channels
        queries = _pool(kernel, stride) if number in starts or version == 2 else None
        places.append(Place(channels, attended, after, heads, queries, _pool(kernel, keys), size))
        channels, size = after, pooled(size, queries)
    return places


def _divided(sides: Triple, by: Triple) -> Triple:
    return (max(sides[0] // by[0], 1), max(sides[1] // by[1], 1), max(sides[2] // by[2], 1))


def _pool(kernel: tuple[int, ...], stride: Triple) -> Pool | None:
    """None where nothing would be mixed."""
    sides = tuple(kernel) or tuple(step + 1 if step > 1 else 1 for step in stride)
    pool = Pool((sides[0], sides[1], sides[2]), stride)
    return None if pool == Pool((1, 1, 1), (1, 1, 1)) else pool


def pooled(size: Triple, pool: Pool | None) -> Triple:
    """The grid after pooling."""
    if pool is None:
        return size
    t, h, w = (
        (side + 2 * (k // 2) - k) // step + 1
        for side, k, step in zip(size, pool.kernel, pool.stride, strict=True)
    )
    return t, h, w


def relative_rows(queries: int, keys: int) -> Tensor:
    """Row of a table of relative positions for each query and key on one axis: int64 [queries, keys].

    Both are spread over the same extent; distances are in steps of the finer one, rounded down, from 0. The
    sums are published in float32 and in this order, which puts some that are whole (9 x 3.9 for 39 and 10)
    a row too low: MViTv2 L has learnt them so.
    """
    q, k = torch.arange(queries, dtype=torch.float32).unsqueeze(1), torch.arange(keys, dtype=torch.float32)
    step = max(queries / keys, 1.0)
    distance = q * max(keys / queries, 1.0) - k * step
    return (distance + (keys - 1) * step).long()


class Pooling(nn.Module):
    """Depthwise convolution of tokens on their grid, one kernel for all heads; layer norm of all tokens."""

    def __init__(self, width: int, size: Triple, pool: Pool) -> None:
        super().__init__()
        self.conv = DepthwiseConv3d(width, pool.stride, pool.kernel)
        self.norm = nn.LayerNorm(width, EPS)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, N, h, W] -> float [B, N', h, W]."""
        batch, _, heads, width = x.shape
        first, rest = x[:, :1], x[:, 1:].transpose(1, 2).reshape(batch * heads, *self.size, width)
        rest = self.conv(rest.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        rest = rest.reshape(batch, heads, -1, width).transpose(1, 2)
        y: Tensor = self.norm(torch.cat([first, rest], dim=1))
        return y


class RelativePositions(nn.Module):
    """Learnt vectors of distances in time, height and width; their products with queries add to attention.

    The sum over three axes is written as one product: queries get a channel for each step of each axis, with
    their product with the distance to it, and keys get a one where they stand and zeros else. So attention
    runs in one kernel and no array of queries by keys is made.

    queries, keys  grids
    nominal        sizes that the tables are made for: T, and the larger of the grids' H and W
    """

    places: Tensor

    def __init__(self, width: int, queries: Triple, keys: Triple, nominal: tuple[int, int]) -> None:
        super().__init__()
        self.queries, self.keys = queries, keys
        for axis, rows in zip(
            "thw", (2 * nominal[0] - 1, 2 * nominal[1] - 1, 2 * nominal[1] - 1), strict=True
        ):
            table = nn.Parameter(torch.empty(rows, width))
            nn.init.trunc_normal_(table, std=0.02)
            self.register_parameter(axis, table)
        for axis, q, k in zip("thw", queries, keys, strict=True):
            self.register_buffer(f"rows_{axis}", relative_rows(q, k), persistent=False)
        grid = torch.cartesian_prod(*[torch.arange(side) for side in keys])
        ones = [F.one_hot(column, side) for column, side in zip(grid.unbind(1), keys, strict=True)]
        places = F.pad(
            torch.cat(ones, 1), (0, -(width + sum(keys)) % 8, 1, 0)
        ).float()  # the class token: zeros
        self.register_buffer("places", places, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values, float [B, h, N, W] -> the same, wider; values are filled up with zeros."""
        grid = q[:, :, 1:].view(*q.shape[:2], *self.queries, -1)
        steps = []
        for axis, letter, side in zip("thw", "xyz", range(3), strict=True):
            table: Tensor = getattr(self, axis)
            length = 2 * max(self.queries[side], self.keys[side]) - 1
            if len(table) != length:  # of a grid that the strides do not divide
                table = F.interpolate(table.t()[None], length, mode="linear")[0].t()
            vectors = table[getattr(self, f"rows_{axis}")]
            steps.append(torch.einsum(f"bhxyzc,{letter}kc->bhxyzk", grid, vectors))
        extra = self.places.shape[1]
        more = F.pad(torch.cat(steps, -1).flatten(2, 4), (0, extra - sum(self.keys), 1, 0))
        scaled = q * q.shape[-1] ** -0.5
        places = self.places.to(k.dtype).expand(*k.shape[:2], -1, -1)
        return torch.cat([scaled, more], -1), torch.cat([k, places], -1), F.pad(v, (0, extra))


class Attention(nn.Module):
    """Attention of pooled queries to pooled keys and values.

    In version 2 with relative positions, and with the pooled queries added to what they gather.
    """

    def __init__(self, place: Place, version: int, nominal: tuple[int, int]) -> None:
        super().__init__()
        self.heads = place.heads
        width = place.attended // place.heads
        self.qkv = nn.Linear(place.before, 3 * place.attended)
        self.q = Pooling(width, place.size, place.queries) if place.queries else nn.Identity()
        self.k = Pooling(width, place.size, place.keys) if place.keys else nn.Identity()
        self.v = Pooling(width, place.size, place.keys) if place.keys else nn.Identity()
        self.relative = None
        if version == 2:
            queries, keys = pooled(place.size, place.queries), pooled(place.size, place.keys)
            self.relative = RelativePositions(width, queries, keys, nominal)
        self.proj = nn.Linear(place.attended, place.attended)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, N, C] -> float [B, N', C'], N' as the queries are pooled."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (self.q(q), self.k(k), self.v(v)))
        if self.relative is None:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            wide_q, wide_k, wide_v = self.relative(q, k, v)
            y = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=1.0)[..., : q.shape[-1]]
            y = torch.cat([y[:, :, :1], y[:, :, 1:] + q[:, :, 1:]], dim=2)  # the class token gathers only
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


class Block(TokenBlock):
    """Pooled attention, then two layers.

    Where the channels double, `proj` widens the normalised tokens and what they were before is dropped.
    """

    def __init__(
        self, place: Place, version: int, nominal: tuple[int, int], ratio: float, drop: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(place.before, EPS)
        self.attn = Attention(place, version, nominal)
        self.norm2 = nn.LayerNorm(place.attended, EPS)
        self.mlp = MLP(place.attended, int(ratio * place.attended), place.after)
        self.proj = nn.Linear(place.before, place.after) if place.before != place.after else None
        self.drop_path = DropPath(drop)
        self.version, self.size = version, place.size
        self.halves = place.queries is not None and place.queries.stride == HALVE

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, N, C] -> float [B, N', C']."""
        normed = self.norm1(x)
        attended = self.drop_path(self.attn(normed))
        if self.version == 2 and self.proj is not None:
            x = self.proj(normed)
        x = self.kept(x) + attended
        normed = self.norm2(x)
        if self.version == 1 and self.proj is not None:
            x = self.proj(normed)
        y: Tensor = x + self.drop_path(self.mlp(normed))
        return y

    def kept(self, x: Tensor) -> Tensor:
        """The tokens past the attention, the largest of 3 x 3 where it halves: [B, N, C] -> [B, N', C]."""
        if not self.halves:
            return x
        grid = x[:, 1:].transpose(1, 2).reshape(x.shape[0], -1, *self.size)
        grid = F.max_pool3d(grid, (1, 3, 3), HALVE, (0, 1, 1))
        return torch.cat([x[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class Patches(nn.Module):
    """Overlapping patches become tokens, behind a class token; version 1 adds a vector for each place.

    size  grid of the patches
    """

    def __init__(self, channels: int, version: int, size: Triple) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, channels, PATCH, STEP, (1, 3, 3))
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels))
        self.placed = version == 1
        if self.placed:
            self.pos_space = nn.Parameter(torch.empty(1, size[1] * size[2], channels))
            self.pos_time = nn.Parameter(torch.empty(1, size[0], channels))
            self.pos_class = nn.Parameter(torch.empty(1, 1, channels))
        for name, p in self.named_parameters(recurse=False):
            if name != "proj":
                nn.init.trunc_normal_(p, std=0.02)

    def forward(self, clip: Tensor) -> Tensor:
        """Float [B, 3, T, H, W] -> float [B, N, C]."""
        x = self.proj(clip).flatten(2).transpose(1, 2)
        first: Tensor = self.cls_token
        if self.placed:
            x = x + (self.pos_time.unsqueeze(2) + self.pos_space.unsqueeze(1)).flatten(1, 2)
            first = first + self.pos_class
        return torch.cat([first.expand(x.shape[0], -1, -1), x], dim=1)


class MViT(Transformer):
    """Blocks of pooled attention; the class token is classified linearly.

    num_classes  rows of the classifier
    version      1 or 2, see `plan`, `Attention` and `Patches`
    frames, crop   T, and H and W, of the clips: no others are taken, since positions are learnt for these.
                 Files for others are resized when they are loaded
    depth        blocks
    starts       blocks with which a new stage starts, counted from 0
    pool_kernel  of the pooling of queries, keys and values; (): as the strides ask for
    channels     of the first stage
    heads        of the first stage, parts that attend on their own
    mlp_ratio    channels between the two layers of a block, over its own
    drop_path    share of a block's branches dropped in training: of the last block; it rises evenly from 0
    dropout      share of the class token's channels dropped before the classifier in training
    """

    def __init__(
        self,
        num_classes: int = 400,
        *,
        version: int = 1,
        frames: int = 16,
        crop: int = 224,
        depth: int = 16,
        starts: tuple[int, ...] = (1, 3, 14),
        pool_kernel: tuple[int, ...] = (3, 3, 3),
        channels: int = 96,
        heads: int = 1,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.2,
        dropout: float = 0.5,
    ) -> None:
        if version not in (1, 2) or channels < 1 or frames < 2 or crop < 32 or len(pool_kernel) not in (0, 3):
            raise UsageError(
                "BAD_VALUE",
                f"version is {version}, frames {frames}, crop {crop}, channels {channels}, pool_kernel "
                f"{pool_kernel}; needed: 1 or 2, 2 or more, 32 or more, 1 or more, () or three lengths",
            )
        if not all(0 < start < depth for start in starts):
            raise UsageError(
                "BAD_VALUE", f"starts is {starts}; needed: blocks from 1 to {depth - 1}, the last"
            )
        if heads < 1 or channels % heads:
            raise UsageError("BAD_VALUE", f"heads is {heads}; needed: a divisor of the channels, {channels}")
        size = pooled((frames, crop, crop), Pool(PATCH, STEP))
        trunk: dict[str, nn.Module] = {"patches": Patches(channels, version, size)}
        places = plan(version, depth, tuple(starts), tuple(pool_kernel), channels, size, heads)
        time, side = frames // STEP[0], crop // STEP[1]
        blocks = []
        for place, rate in zip(places, drop_rates(drop_path, (depth,))[0], strict=True):
            steps = [pool.stride[1] if pool else 1 for pool in (place.queries, place.keys)]
            blocks.append(Block(place, version, (time, side // min(steps)), mlp_ratio, rate))
            side //= steps[0]
        trunk["blocks"] = nn.Sequential(*blocks)
        trunk["norm"] = nn.LayerNorm(places[-1].after, EPS)
        super().__init__(nn.Sequential(OrderedDict(trunk)), places[-1].after, num_classes, dropout=dropout)
        self.clip_size = (frames, crop, crop)
        self.size = pooled(places[-1].size, places[-1].queries)

    def tokens(self, clip: Tensor) -> Tensor:
        """All tokens behind the last norm: float [B, 3, T, H, W] -> float [B, N, C].

        Raises UsageError CLIP_SIZE for clips of other T, H or W than the network is made for.
        """
        if clip.shape[2:] != self.clip_size:
            raise UsageError(
                "CLIP_SIZE",
                f"a clip of {tuple(clip.shape[2:])} came to a network for {self.clip_size}; create it with "
                "frames=... and crop=... to suit",
            )
        x: Tensor = self.trunk(clip)
        return x

    def features(self, clip: Tensor) -> Tensor:
        """The map without the class token: float [B, 3, T, H, W] -> float [B, C, T / 2, H / 32, W / 32]."""
        return self.tokens(clip)[:, 1:].transpose(1, 2).reshape(clip.shape[0], -1, *self.size)

    def embed(self, clip: Tensor) -> Tensor:
        """The class token: float [B, 3, T, H, W] -> float [B, C]."""
        return self.tokens(clip)[:, 0]
