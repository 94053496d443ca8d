"""Batch norm fitted to given clips: its running statistics are measured anew, the weights stay as they are.

"Precise batch norm" as facebookresearch/SlowFast applies it after an epoch (fvcore@0.1.5:nn/precise_bn.py),
with two differences: dropout and the like are off while it measures (unless wanted), and several processes
measure together. Clips of another domain adapt a network to it, without labels; how far is an option.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning_fabric.fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from marey.errors import DataError, MareyError, UsageError
from marey.training.distributed import gather


class Statistics(NamedTuple):
    """What a batch norm saw: values per channel, their mean and biased variance, float64 [C] on the CPU.

    uses  how often it was used, once per batch in most networks
    """

    values: int
    mean: Tensor
    var: Tensor
    uses: int = 1


def recompute_batch_norm(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    fabric: Fabric | None = None,
    share: float = 1.0,
    which: slice | None = None,
    dropout: bool = False,
) -> dict[str, Statistics]:
    """Replace the running statistics of every live batch norm by those of all the batches together.

    mean = sum b_k m_k / sum b_k, var = sum b_k (m_k^2 + v_k) / sum b_k - mean^2, where b_k counts the values
    per channel of batch k (clips x frames x height x width at that layer), m_k is its mean and v_k its biased
    variance: the mean and biased variance of all values at once. No momentum enters.

    batches  what the network takes, float [B, 3, T, H, W], on its device
    fabric   several processes measure together, each on its own batches, and end with the same statistics
    share    of the new in what is set, means and variances each: below 1 some of the old stays
    which    only some of the live norms, in the order of the network: slice(0, 5) the first five,
             slice(-1, None) the last. The others normalise by their running statistics, here as in use
    dropout  dropout and drop path are active while it measures, as in the published runs
    Returns what was measured, as `measure_batch_norm` does. The model changes only when all is measured;
    `kept_statistics` before and `restore_statistics` after bring back what was.
    """
    if not 0 < share <= 1:
        raise UsageError(
            "ADAPT_SHARE", f"the share of new statistics must be above 0, at most 1, not {share}"
        )
    norms = live_norms(model)
    measured = measure_batch_norm(model, batches, fabric=fabric, which=which, dropout=dropout)
    with torch.no_grad():
        for name, found in measured.items():
            norm = norms[name]
            for buffer, new in ((norm.running_mean, found.mean), (norm.running_var, found.var)):
                buffer.copy_(new if share == 1 else torch.lerp(buffer.cpu().double(), new, share))
            norm.num_batches_tracked.add_(found.uses)
    return measured


def kept_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers of every live batch norm, by their names in the state_dict."""
    return {
        f"{name}.{key}".lstrip("."): buffer.clone()
        for name, norm in live_norms(model).items()
        for key, buffer in norm.named_buffers(recurse=False)
    }


def restore_statistics(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Put back what `kept_statistics` copied: a network that knows two domains changes between them."""
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, value in kept.items():
            buffers[name].copy_(value)


def measure_batch_norm(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    fabric: Fabric | None = None,
    which: slice | None = None,
    dropout: bool = False,
) -> dict[str, Statistics]:
    """Statistics of every live batch norm over the batches, by the module's name; the model stays as it is.

    While it measures, a live batch norm (of those chosen) normalises with the batch's own statistics, as in
    training, and everything else is in evaluation mode, unless `dropout`; nothing records gradients. A norm
    that the batches do not reach is left out; a model without live norms is not run. Raises DataError
    NO_BATCHES where there was no batch in any process, MareyError STATISTICS_NOT_FINITE.
    """
    live = live_norms(model)
    norms = {name: live[name] for name in list(live)[which or slice(None)]}
    if not norms:
        return {}
    total: dict[str, Statistics] = {}
    with _measuring(model, norms, total, dropout), torch.no_grad():
        for batch in batches:
            model(batch)
    parts = [total] if fabric is None else gather(fabric, total)
    if not any(parts):
        raise DataError("NO_BATCHES", "no batch reached a batch norm that was to be measured; give it clips")
    merged: dict[str, Statistics] = {}
    for part in parts:
        for name, found in part.items():
            merged[name] = together(merged[name], found) if name in merged else found
    for name, found in merged.items():
        if not (found.mean.isfinite().all() and found.var.isfinite().all()):
            raise MareyError(
                "STATISTICS_NOT_FINITE",
                f"the batches give batch norm {name!r} values that are NaN or infinite; nothing was changed, "
                "look at weights and clips",
            )
    return merged


def live_norms(model: nn.Module) -> dict[str, Any]:
    """The batch norms that training would update, by name: not those that `model.train()` leaves frozen."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        return {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
        }
    finally:
        for module, mode in modes.items():
            module.training = mode


def together(one: Statistics, other: Statistics) -> Statistics:
    """The statistics of both sets of values as one (Chan, Golub, LeVeque 1983): no large squares cancel."""
    values = one.values + other.values
    share, apart = other.values / values, other.mean - one.mean
    return Statistics(
        values,
        one.mean + share * apart,
        (1 - share) * one.var + share * other.var + share * (1 - share) * apart**2,
        one.uses + other.uses,
    )


@contextmanager
def _measuring(
    model: nn.Module, norms: dict[str, Any], total: dict[str, Statistics], dropout: bool
) -> Iterator[None]:
    """Every use of a norm adds to `total`; afterwards modes, buffers and momentum are what they were."""
    modes = {module: module.training for module in model.modules()}
    before = {name: [b.clone() for b in norm.buffers(recurse=False)] for name, norm in norms.items()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    hooks = [
        norm.register_forward_hook(partial(_add, name=name, total=total)) for name, norm in norms.items()
    ]
    try:
        model.train(dropout)
        for module in model.modules() if dropout else ():
            if isinstance(module, _BatchNorm):
                module.eval()
        for norm in norms.values():
            norm.training = True
            norm.reset_running_stats()  # a NaN in there would outlast any momentum
            norm.momentum = 1.0  # the running statistics are the last batch's
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, norm in norms.items():
            norm.momentum = momenta[name]
            for buffer, value in zip(norm.buffers(recurse=False), before[name], strict=True):
                buffer.copy_(value)
        for module, mode in modes.items():
            module.training = mode


def _add(norm: Any, inputs: tuple[Tensor], _: Tensor, *, name: str, total: dict[str, Statistics]) -> None:
    clips = inputs[0]
    means = getattr(norm, "part_means", norm.running_mean.unsqueeze(0))  # of `training.norm_parts`
    variances = getattr(norm, "part_variances", norm.running_var.unsqueeze(0))
    parts = zip(means.cpu().double(), variances.cpu().double(), strict=True)
    for number, (mean, unbiased) in enumerate(parts):
        values = clips[number :: len(means)].numel() // clips.shape[1]
        if values:
            found = Statistics(values, mean, unbiased * ((values - 1) / values), int(number == 0))
            total[name] = together(total[name], found) if name in total else found
