"""Networks without weights: names and shapes of everything, in no memory and little time."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from marey.models import build


class ShapesOnly(TorchFunctionMode):
    """Leaves out what no shape depends on: drawing fresh weights, and batch norms.

    On the meta device these two take most of the time of building and of running a network.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called in place of every function of torch."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if func is F.batch_norm:
            return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


def shell(name: str, num_classes: int = 400, **overrides: Any) -> nn.Module:
    """The network that `marey.models.build` makes, on torch's meta device."""
    with torch.device("meta"), ShapesOnly():
        return build(name, num_classes, **overrides)
