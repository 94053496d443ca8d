"""Operators that tell a person's features of what a film showed many seconds before and after.

Wu et al., "Long-Term Feature Banks for Detailed Video Understanding", arXiv:1812.05038; numbers from
open-mmlab/mmaction2@v0.24.1:mmaction/models/heads/fbo_head.py.
Shapes: R boxes, C channels of a box, B channels of the bank, S slots of a window. A window is a number of
time steps with a number of slots each; slots that nobody fills are zero and count as the others.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import UsageError, unknown

Kind = Literal["nl", "avg", "max"]


class Average(nn.Module):
    """The mean over all slots, empty ones included."""

    def forward(self, _: Tensor, bank: Tensor) -> Tensor:
        """Float [R, C] and [R, S, B] -> float [R, B]."""
        return bank.mean(dim=1)


class Maximum(nn.Module):
    """The maximum over all slots; an empty one is 0."""

    def forward(self, _: Tensor, bank: Tensor) -> Tensor:
        """Float [R, C] and [R, S, B] -> float [R, B]."""
        return bank.amax(dim=1)


class Attention(nn.Module):
    """A box attends to the slots of its window.

    theta, phi, value  of the box, of the slots for comparing, and of the slots for gathering
    norm               over the channels; before `out` where pre_activate, else behind it
    out                what is added to the box
    """

    def __init__(self, channels: int, *, dropout: float, pre_activate: bool) -> None:
        super().__init__()
        self.theta, self.phi = _linear(channels, channels), _linear(channels, channels)
        self.value, self.out = _linear(channels, channels), _linear(channels, channels)
        self.norm, self.dropout = nn.LayerNorm(channels), nn.Dropout(dropout)
        self.pre_activate = pre_activate

    def forward(self, x: Tensor, bank: Tensor) -> Tensor:
        """Float [R, L] and [R, S, L] -> float [R, L]."""
        products = torch.einsum("rc,rsc->rs", self.theta(x), self.phi(bank))
        weights = (products * x.shape[1] ** -0.5).softmax(dim=1)
        found = torch.einsum("rs,rsc->rc", weights, self.value(bank))
        if self.pre_activate:
            return x + self.dropout(self.out(F.relu(self.norm(found))))  # type: ignore[no-any-return]
        return F.relu(x + self.dropout(self.norm(self.out(found))))


class NonLocalOperator(nn.Module):
    """Some layers of attention of a box to its window, which stays the same from layer to layer.

    channels, bank_channels   C and B
    latent        L, channels of what is compared and gathered
    layers        how many
    dropout       share of values dropped in training: of the box, of the slots, and of what a layer adds
    pre_activate  norm and ReLU come before a layer's last projection, as published; else the norm comes
                  behind it and the ReLU after the sum
    """

    def __init__(
        self,
        channels: int,
        bank_channels: int,
        *,
        latent: int = 512,
        layers: int = 2,
        dropout: float = 0.2,
        pre_activate: bool = True,
    ) -> None:
        super().__init__()
        self.short, self.long = _linear(channels, latent), _linear(bank_channels, latent)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleDict()  # counted from 1, as in the files
        for number in range(layers):
            self.layers[str(number + 1)] = Attention(latent, dropout=dropout, pre_activate=pre_activate)

    def forward(self, x: Tensor, bank: Tensor) -> Tensor:
        """Float [R, C] and [R, S, B] -> float [R, L]."""
        x, bank = self.dropout(self.short(x)), self.dropout(self.long(bank))
        for layer in self.layers.values():
            x = layer(x, bank)
        return x


def operator(
    kind: str,
    channels: int,
    bank_channels: int,
    *,
    latent: int,
    layers: int,
    dropout: float,
    pre_activate: bool,
) -> tuple[nn.Module, int]:
    """The operator of that kind, and how many channels it gives; see `NonLocalOperator`."""
    if kind not in get_args(Kind):
        raise unknown("long_term", str(kind), get_args(Kind), "BAD_VALUE")
    if kind == "avg":
        return Average(), bank_channels
    if kind == "max":
        return Maximum(), bank_channels
    if latent < 1 or layers < 1 or not 0 <= dropout < 1:
        raise UsageError(
            "BAD_VALUE",
            f"latent is {latent}, long_term_layers {layers}, long_term_dropout {dropout}; needed: 1 or more, "
            "1 or more, 0 to below 1",
        )
    settings = {"latent": latent, "layers": layers}
    made = NonLocalOperator(channels, bank_channels, dropout=dropout, pre_activate=pre_activate, **settings)
    return made, latent


def _linear(channels: int, out: int) -> nn.Linear:
    layer = nn.Linear(channels, out)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer
