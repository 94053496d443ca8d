"""Surer on unlabelled clips: the affine parameters of norms are moved to lower the entropy of what is said.

After Tent (Wang et al. 2021, arXiv 2006.10726), with two guards against its collapse into one class: clips
that the network is undecided about may be left out (SAR, Niu et al. 2023), and the entropy of the mean
prediction may be raised at the same time (SHOT, Liang et al. 2020). All other weights stay as they are, so it
also serves networks whose norms have no statistics to measure (MViT).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from marey.errors import DataError, MareyError, UsageError
from marey.training.adapt import live_norms

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


class Sharpened(NamedTuple):
    """One step: mean entropy of the batch before it, over that of equal classes (0..1), and the share of its
    clips that it learned from."""

    entropy: float
    used: float


def affine_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of all norms but frozen batch norms, each once."""
    live = {id(norm) for norm in live_norms(model).values()}
    norms = [m for m in model.modules() if isinstance(m, NORMS)]
    norms = [m for m in norms if not isinstance(m, _BatchNorm) or id(m) in live or m.running_mean is None]
    return list(dict.fromkeys(p for norm in norms for p in norm.parameters(recurse=False)))


def relative_entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax of each row over that of equal classes: float [B], 0 sure, 1 undecided."""
    logs = F.log_softmax(logits.float(), dim=1)
    return -(logs.exp() * logs).sum(1) / torch.log(torch.tensor(float(logits.shape[1])))


def lower_entropy(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    lr: float = 1e-3,
    reliable: float = 1.0,
    diversity: float = 0.0,
) -> list[Sharpened]:
    """One step of Adam for every batch, on the affine parameters of the norms alone. No label is read.

    batches    what the network takes, float [B, 3, T, H, W], on its device
    reliable   clips of more entropy than this share of the largest are left out (SAR: 0.4)
    diversity  weight of the entropy of the mean prediction, which is raised
    Live batch norms normalise by the batch, and their running statistics move along with their momentum:
    measure them anew afterwards (`recompute_batch_norm`). Dropout is off. Modes and gradients are afterwards
    what they were. Raises UsageError ADAPT_NORMS for a network without such parameters, DataError NO_BATCHES,
    MareyError STATISTICS_NOT_FINITE.
    """
    moved = affine_parameters(model)
    if not moved:
        raise UsageError("ADAPT_NORMS", "the network has no norm with scale and shift that could be adapted")
    chosen = {id(p) for p in moved}
    wanted = {p: p.requires_grad for p in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    optimizer = torch.optim.Adam(moved, lr=lr)
    steps: list[Sharpened] = []
    try:
        for parameter in wanted:
            parameter.requires_grad_(id(parameter) in chosen)
        norms = live_norms(model).values()
        model.eval()
        for norm in norms:
            norm.training = True
        for batch in batches:
            logits = model(batch)
            entropy = relative_entropy(logits)
            if not entropy.isfinite().all():
                raise MareyError(
                    "STATISTICS_NOT_FINITE",
                    f"the network gives NaN or infinite logits after {len(steps)} steps",
                )
            sure = entropy.detach() <= reliable
            steps.append(Sharpened(float(entropy.detach().mean()), float(sure.float().mean())))
            if not sure.any():
                continue
            loss = entropy[sure].mean()
            if diversity:
                mean = logits.float().softmax(1)[sure].mean(0, keepdim=True)
                loss = loss - diversity * relative_entropy(mean.clamp_min(1e-12).log()).sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    finally:
        for parameter, wants in wanted.items():
            parameter.requires_grad_(wants)
        for parameter in moved:
            parameter.grad = None
        for module, mode in modes.items():
            module.training = mode
    if not steps:
        raise DataError("NO_BATCHES", "there was no batch of clips to adapt to")
    return steps
