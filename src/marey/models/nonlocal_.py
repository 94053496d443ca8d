"""The non-local block: every position of a clip attends to all others.

Wang et al., "Non-local Neural Networks", arXiv:1711.07971; the variants are those of mmcv 1.7.2 NonLocal3d.
Shapes: B clips, C channels, K = C // 2 inner channels, T frames, H x W pixels, P = T * H * W positions.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import UsageError, unknown
from marey.models.parts import Norm, unit

Mode = Literal["embedded_gaussian", "gaussian", "dot_product"]

# after blocks 0, 2 of stage 2 and 0, 2, 4 of stage 3, as in every published network with non-local blocks
ZOO_PLACES: tuple[tuple[int, ...], ...] = ((), (0, 2), (0, 2, 4), ())


class NonLocal(nn.Module):
    """x plus a projection of what every position gathers from all positions.

    channels    C
    mode        weights of the gathering: "embedded_gaussian" softmax(theta(x) phi(x)), "gaussian"
                softmax(x x), "dot_product" theta(x) phi(x) / number of keys
    scale       embedded_gaussian only: products are divided by sqrt(K) before the softmax
    sub_sample  keys and values are max-pooled 2 x 2 in space
    """

    def __init__(self, channels: int, mode: str, *, scale: bool = True, sub_sample: bool = True) -> None:
        super().__init__()
        if mode not in get_args(Mode):
            raise unknown("mode of non_local", str(mode), get_args(Mode), "BAD_VALUE")
        inner = channels // 2
        self.mode = mode
        self.scale = inner**-0.5 if scale and mode == "embedded_gaussian" else 1.0
        self.g = nn.Conv3d(channels, inner, 1)
        self.theta = nn.Identity() if mode == "gaussian" else nn.Conv3d(channels, inner, 1)
        self.phi = nn.Identity() if mode == "gaussian" else nn.Conv3d(channels, inner, 1)
        self.pool = nn.MaxPool3d((1, 2, 2)) if sub_sample else nn.Identity()
        for conv in (self.g, self.theta, self.phi):
            if isinstance(conv, nn.Conv3d) and conv.bias is not None:
                nn.init.normal_(conv.weight, std=0.01)
                nn.init.zeros_(conv.bias)
        self.out = unit(inner, channels, (1, 1, 1), relu=False, gamma=0.0)  # the block starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, T, H, W] -> the same shape."""
        queries = _rows(self.theta(x))
        keys = _rows(self.pool(self.phi(x)))
        values = _rows(self.pool(self.g(x)))
        if self.mode == "dot_product":
            gathered = queries @ (keys.transpose(1, 2) @ values) / keys.shape[1]
        else:
            q, k, v = (rows.unsqueeze(1) for rows in (queries, keys, values))  # ONNX knows it with heads only
            gathered = F.scaled_dot_product_attention(q, k, v, scale=self.scale).squeeze(1)
        out: Tensor = self.out(gathered.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:]))
        return x + out


def _rows(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, P, C]."""
    return x.flatten(2).transpose(1, 2)


def place_non_local(
    trunk: dict[str, nn.Module], places: Sequence[Sequence[int]], build: Callable[[str, int], nn.Module]
) -> None:
    """Set `non_local` of the named blocks.

    places  for stages 1 to 4, the blocks after which one stands, counted from 0
    build   (name of the stage, channels) -> the non-local block
    """
    stages: dict[str, Any] = {name: layer for name, layer in trunk.items() if name.startswith("stage")}
    counts = [len(stage) for stage in stages.values()]
    if len(places) != 4 or any(
        not 0 <= p < n for wanted, n in zip(places, counts, strict=False) for p in wanted
    ):
        raise UsageError(
            "BAD_VALUE",
            f"non_local_blocks is {places}; needed: for each of 4 stages the blocks, counted from 0, of "
            f"{counts} there are; for example {ZOO_PLACES} in depth 50",
        )
    for (name, stage), wanted in zip(stages.items(), places, strict=True):
        channels = [module.num_features for module in stage.modules() if isinstance(module, Norm)][-1]
        for place in wanted:
            stage[place].non_local = build(name, channels)
