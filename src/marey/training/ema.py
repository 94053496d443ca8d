"""A second copy of the network whose weights are the moving average of those that training passes through."""

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, *, decay: float, updates: int) -> None:
    """Move the average towards the model: average = d * average + (1 - d) * model, in place.

    d is `decay`, but at most (1 + updates) / (10 + updates), so that the start is soon forgotten. The
    statistics of batch norms are averaged alike; what is no real number (their counters) is copied.

    updates  of the optimiser so far, this one included
    """
    kept = min(decay, (1 + updates) / (10 + updates))
    means, values = _tensors(average), _tensors(model)
    for mean, value in zip(means, values, strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - kept)
        else:
            mean.copy_(value)


def _tensors(model: nn.Module) -> list[Tensor]:
    state: dict[str, Any] = model.state_dict()
    return list(state.values())
