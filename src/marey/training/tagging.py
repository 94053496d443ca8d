"""How NeXtVLAD is trained on YouTube-8M: loss, optimiser, and a learning rate that falls by samples.

As PaddlePaddle/models@b71cf63:PaddleCV/video/models/nextvlad does it. That configuration also names a
gradient clipping of 1.0, which no release ever applied.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import UsageError


def tagging_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sigmoid cross entropy, summed over classes, mean over videos.

    logits [B, C]; targets [B, C], 0 or 1
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return losses.sum(dim=1).mean()


def tagging_optimizer(model: nn.Module, *, lr: float = 2e-4, head_decay: float = 1e-5) -> torch.optim.Adam:
    """Adam; `head_decay` times its weights is added to the gradient of the classifier `model.head`, alone."""
    head = {id(parameter) for parameter in model.get_submodule("head").parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if id(p) in head], "weight_decay": head_decay},
        {"params": [p for p in model.parameters() if id(p) not in head]},
    ]
    return torch.optim.Adam(groups, lr=lr, fused=True)


def samples_factor(
    step: int, *, batch: int, samples: int = 2_000_000, decay: float = 0.8, max_steps: int | None = 700_000
) -> float:
    """What the base learning rate is multiplied by in step 0, 1, ...: `decay` for every `samples` seen.

    batch      videos of a step, in all processes together
    max_steps  the rate falls every samples // batch steps as long as that is below this, as in Paddle; None:
               whenever so many samples are full, as in linrongc/youtube-8m@4810b4e:train.py
    """
    if batch < 1 or samples < batch:
        raise UsageError("BAD_VALUE", f"batch is {batch}, samples {samples}; needed: 1 or more, and no fewer")
    if max_steps is None:
        return decay ** (step * batch // samples)
    every = samples // batch
    return decay ** min(step // every, (max_steps - 1) // every)
