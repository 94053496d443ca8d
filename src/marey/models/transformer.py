"""What the transformers share: two layers between attentions, dropped branches, the frame around a network.

Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv:2010.11929; dropped branches from Huang et al.,
"Deep Networks with Stochastic Depth", arXiv:1603.09382.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import UsageError


class DropPath(nn.Module):
    """In training a sample's branch is left out with this probability, else divided by the rest of it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, ...] -> the same shape."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)


class TokenBlock(nn.Module):
    """One of a network's many blocks, tensor in and tensor out: what activation checkpointing runs anew."""


class MLP(nn.Module):
    """Linear, GELU, linear, on the last axis."""

    def __init__(self, channels: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """Float [..., C] -> float [..., C']."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Transformer(nn.Module):
    """A trunk that makes maps of clips, and a linear classifier of their mean: the frame of the transformers.

    `preprocess`, `class_names` and `spec` are set by `marey.create_model`.
    """

    preprocess: Any = None
    class_names: tuple[str, ...] | None = None
    spec: dict[str, Any] | None = None

    def __init__(
        self, trunk: nn.Module, channels: int, num_classes: int, *, dropout: float, head_std: float = 0.02
    ) -> None:
        super().__init__()
        if num_classes < 1 or not 0 <= dropout < 1:
            raise UsageError(
                "BAD_VALUE",
                f"num_classes is {num_classes}, dropout {dropout}; needed: 1 or more, 0 to below 1",
            )
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)
        self.num_classes = num_classes
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=head_std if module is self.head else 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def features(self, clip: Tensor) -> Tensor:
        """The map before pooling: float [B, 3, T, H, W] -> float [B, C, T', H', W']."""
        maps: Tensor = self.trunk(clip)
        return maps

    def embed(self, clip: Tensor) -> Tensor:
        """The pooled vector: float [B, 3, T, H, W] -> float [B, C]."""
        return self.features(clip).mean(dim=(2, 3, 4))

    def forward(self, clip: Tensor) -> Tensor:
        """Raw logits: float [B, 3, T, H, W] -> float [B, num_classes]."""
        logits: Tensor = self.head(self.dropout(self.embed(clip)))
        return logits


def drop_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """The share of dropped branches of each block, rising evenly from 0 to `rate`, for each stage.

    Raises UsageError BAD_VALUE where `rate` is not from 0 to below 1 or there is a stage without blocks.
    """
    if not 0 <= rate < 1 or min(depths, default=0) < 1:
        raise UsageError(
            "BAD_VALUE", f"drop_path is {rate}, depths {depths}; needed: 0 to below 1, and 1 or more each"
        )
    steps = max(sum(depths) - 1, 1)
    rates, block = [], 0
    for depth in depths:
        rates.append([rate * (block + number) / steps for number in range(depth)])
        block += depth
    return rates


def layer_numbers(model: nn.Module) -> dict[str, int]:
    """Number of the layer that each parameter belongs to, for rates that fall from the last to the first.

    Block i is layer i + 1. Layer 0 is what stands before the first block, what stands between two blocks goes
    with the later one, what follows the last is a layer of its own. Raises UsageError BAD_VALUE where the
    network has no blocks of tokens.
    """
    blocks = [name for name, module in model.named_modules() if isinstance(module, TokenBlock)]
    if not blocks:
        raise UsageError("BAD_VALUE", f"{type(model).__name__} has no blocks of tokens, so no layer_decay")
    numbers, passed = {}, 0
    for name, _ in model.named_parameters():
        number = next((i for i, block in enumerate(blocks) if name.startswith(f"{block}.")), None)
        if number is not None:
            passed = number + 1
        numbers[name] = passed + (number is None and passed > 0)
    return numbers
