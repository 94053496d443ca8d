"""Networks without weights: names and shapes of everything, in no memory and little time."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from marey.models import build

_DRAWN = {Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.fill_, Tensor.zero_}
_SAME = {F.batch_norm, F.layer_norm, F.gelu, F.relu, F.dropout} | _DRAWN


class ShapesOnly(TorchFunctionMode):
    """Leaves out what no shape depends on: drawing fresh weights, norms and activations.

    On the meta device these take most of the time of building and of running a network.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called in place of every function of torch."""
        return args[0] if func in _SAME else func(*args, **(kwargs or {}))


def shell(name: str, num_classes: int = 400, **overrides: Any) -> nn.Module:
    """The network that `marey.models.build` makes, on torch's meta device."""
    with torch.device("meta"), ShapesOnly():
        return build(name, num_classes, **overrides)
