"""Optimisers and learning-rate schedules, as settings and pure functions.

The schedules of MMAction2 0.x (mmcv 1.7 hooks) and 1.x (mmengine 0.10 schedulers) and of PySlowFast
(facebookresearch/SlowFast@287ec007:slowfast/utils/lr_policy.py) differ in how warm-up is counted and where it
leads; all are here because published accuracies depend on them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from marey.errors import UsageError

Norm = nn.modules.batchnorm._BatchNorm
AnyNorm = (Norm, nn.LayerNorm, nn.GroupNorm)
Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


class Optimizer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which optimiser, and what reaches which parameter.

    kind         "sgd", "adam" or "adamw"
    lr           learning rate at the recipe's reference batch
    momentum     of SGD; its buffers start with the first gradient
    nesterov     of SGD: look ahead by one momentum step
    betas        of Adam and AdamW: decay of the first and second moment
    weight_decay  pull of the weights towards 0; as a gradient in SGD and Adam, decoupled in AdamW
    groups       what does not decay. "all": everything does; "norms": batch and layer norms; "vectors":
                 tensors with one axis (biases, norms); "tables": position tables and class tokens, which
                 learn at the full rate; "head": all but the classifier; "tsm": five groups. See
                 `parameter_groups`
    decay_tables  with groups "norms" and "vectors": position tables and class tokens decay too, as PySlowFast
                 has it
    head_factor  with groups "tsm": rate of the classifier's weight relative to lr; its bias twice that
    backbone_factor  rate of everything but the classifier relative to lr (not with groups "tsm")
    layer_decay  rate of a transformer's layer relative to that of the layer after it; 1: all alike
    clip_norm    gradients are scaled down to this 2-norm; None leaves them
    clip_each    each parameter's gradient is scaled down on its own, not all of them together
    """

    kind: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    groups: Literal["all", "norms", "vectors", "tables", "head", "tsm"] = "all"
    decay_tables: bool = True
    head_factor: float = 5.0
    backbone_factor: float = 1.0
    layer_decay: float = 1.0
    clip_norm: float | None = 40.0
    clip_each: bool = False

    def __post_init__(self) -> None:
        if (
            not self.lr > 0
            or self.weight_decay < 0
            or (self.clip_norm is not None and not self.clip_norm > 0)
        ):
            raise UsageError(
                "RECIPE_VALUE", "optimizer: lr and clip_norm must be above 0, weight_decay not below 0"
            )
        if not (0 < self.layer_decay <= 1 and self.backbone_factor > 0):
            raise UsageError(
                "RECIPE_VALUE",
                "optimizer: layer_decay must be above 0 and at most 1, backbone_factor above 0",
            )
        if self.clip_each and self.clip_norm is None:
            raise UsageError("RECIPE_VALUE", "optimizer: clip_each needs a clip_norm")
        if self.groups == "tsm" and (self.layer_decay, self.backbone_factor) != (1, 1):
            raise UsageError("RECIPE_VALUE", "optimizer: groups 'tsm' have their own rates of the layers")
        if self.groups not in ("norms", "vectors") and not self.decay_tables:
            raise UsageError(
                "RECIPE_VALUE", "optimizer: decay_tables=false needs groups 'norms' or 'vectors'"
            )


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the learning rate moves.

    kind           "step" multiplies by gamma at each milestone; "cosine" falls to `final` at the last epoch;
                   "samples" multiplies by gamma whenever so many samples were seen
    milestones     epochs, counted from 0
    gamma          factor of a step
    samples        with kind "samples": how many, over all processes
    counted        with kind "samples": in "updates", as many whole ones as fit, or one by one in "samples"
    until          with counted "updates": the rate stays from this update of the training on
    per            "epoch": one value an epoch; "iteration": follows fractional epochs
    cosine_from    epoch at which the cosine begins (1.x lets it begin after the warm-up)
    final          where the cosine ends, as a share of the full rate
    warmup_epochs  length of a linear rise to the full rate
    warmup_updates  its length in updates instead (warmup_per "iteration", warmup_rule "0.x")
    warmup_start   where the rise begins, as a share of the full rate
    warmup_per     the rise moves every "iteration" or every "epoch"
    warmup_rule    "0.x": full rate right after the warm-up's last unit, or where it ends within
                   an iteration from the next epoch on; "1.x": full rate in its last unit; "slowfast": no
                   share of the moving rate, but a line to what the rate is after the warm-up
    """

    kind: Literal["constant", "step", "cosine", "samples"] = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    samples: int = 0
    counted: Literal["updates", "samples"] = "updates"
    until: int | None = None
    per: Literal["epoch", "iteration"] = "epoch"
    cosine_from: float = 0.0
    final: float = 0.0
    warmup_epochs: float = 0.0
    warmup_updates: int = 0
    warmup_start: float = 0.1
    warmup_per: Literal["iteration", "epoch"] = "iteration"
    warmup_rule: Literal["0.x", "1.x", "slowfast"] = "0.x"

    def __post_init__(self) -> None:
        if self.kind == "step" and not self.milestones:
            raise UsageError("RECIPE_VALUE", "schedule: kind 'step' needs milestones, for example [20,40]")
        if (self.kind == "samples") != (self.samples > 0):
            raise UsageError("RECIPE_VALUE", "schedule: kind 'samples' needs samples, and samples that kind")
        if self.kind == "samples" and self.warmup_rule == "slowfast":
            raise UsageError("RECIPE_VALUE", "schedule: kind 'samples' has no warmup_rule 'slowfast'")
        if self.until is not None and (self.until < 1 or (self.kind, self.counted) != ("samples", "updates")):
            raise UsageError("RECIPE_VALUE", "schedule: until is an update, counted with kind 'samples'")
        other = self.warmup_epochs or (self.warmup_per, self.warmup_rule) != ("iteration", "0.x")
        if self.warmup_updates < 0 or (self.warmup_updates and other):
            raise UsageError(
                "RECIPE_VALUE",
                "schedule: warmup_updates stands instead of warmup_epochs, with warmup_per iteration and "
                "warmup_rule 0.x",
            )
        if not 0 <= self.final <= 1 or (self.final and self.kind != "cosine"):
            raise UsageError(
                "RECIPE_VALUE", "schedule: final is where the cosine ends, 0..1 of the full rate"
            )


def lr_factor(
    schedule: Schedule, *, epoch: int, iteration: int, per_epoch: int, epochs: int, batch: int = 1
) -> float:
    """What the base learning rate is multiplied by in this iteration (both count from 0; iteration within
    the epoch, per_epoch of them).

    batch  samples of an iteration, over all processes; only kind "samples" asks
    """
    if schedule.kind == "samples":
        update = epoch * per_epoch + iteration
        return _by_samples(schedule, update, batch) * _warmup(schedule, update, per_epoch)
    position = epoch + (iteration / per_epoch if schedule.per == "iteration" else 0)
    if schedule.warmup_rule == "slowfast":
        risen = epoch + (iteration / per_epoch if schedule.warmup_per == "iteration" else 0)
        if risen < schedule.warmup_epochs:
            top = _decay(schedule, schedule.warmup_epochs, epochs)
            return schedule.warmup_start + (top - schedule.warmup_start) * risen / schedule.warmup_epochs
        return _decay(schedule, position, epochs)
    warm = _warmup(schedule, _held(schedule, epoch, iteration, per_epoch), per_epoch)
    return _decay(schedule, position, epochs) * warm


def _held(schedule: Schedule, epoch: int, iteration: int, per_epoch: int) -> int:
    """The iteration, from the first, that the warm-up counts.

    mmcv sets the full rate in the very iteration that ends the warm-up, or else with the next epoch: where an
    end lies between two iterations, the last rate before it holds for the rest of the epoch (mmcv 1.4.0,
    hooks/lr_updater.py).
    """
    done, end = epoch * per_epoch + iteration, schedule.warmup_epochs * per_epoch
    if (schedule.warmup_rule, schedule.warmup_per, schedule.per) != ("0.x", "iteration", "epoch"):
        return done
    cut = end != int(end) and done > end and int(end) // per_epoch == epoch
    return int(end) if cut else done


def _decay(schedule: Schedule, position: float, epochs: int) -> float:
    if schedule.kind == "step":
        return schedule.gamma ** sum(milestone <= position for milestone in schedule.milestones)
    if schedule.kind == "cosine":
        done = (position - schedule.cosine_from) / (epochs - schedule.cosine_from)
        left = (1 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2
        return schedule.final + (1 - schedule.final) * left
    return 1.0


def _by_samples(schedule: Schedule, update: int, batch: int) -> float:
    """In updates as PaddlePaddle/models@b71cf63:PaddleCV/video/models/nextvlad/nextvlad.py counts, in samples
    as linrongc/youtube-8m@4810b4e:train.py."""
    if not 1 <= batch <= schedule.samples:
        raise UsageError(
            "BAD_VALUE", f"schedule: a period of {schedule.samples} samples has no batch of {batch} in it"
        )
    if schedule.counted == "samples":
        return schedule.gamma ** (update * batch // schedule.samples)
    every = schedule.samples // batch
    last = update if schedule.until is None else schedule.until - 1
    return schedule.gamma ** (min(update, last) // every)


def _warmup(schedule: Schedule, iteration: int, per_epoch: int) -> float:
    unit = per_epoch if schedule.warmup_per == "epoch" else 1
    length = schedule.warmup_updates or schedule.warmup_epochs * per_epoch / unit
    if schedule.warmup_rule == "1.x" and unit == 1:
        length = int(length)  # mmengine 0.10.7 counts whole iterations
    if iteration // unit >= length:
        return 1.0
    last = length - (1 if schedule.warmup_rule == "1.x" else 0)
    done = min(iteration // unit / last, 1.0) if last > 0 else 1.0
    return schedule.warmup_start + (1 - schedule.warmup_start) * done


def parameter_groups(
    model: nn.Module, optimizer: Optimizer, layers: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for torch optimisers; each has `factor`, its learning rate relative to the base rate.

    "vectors" (facebookresearch/SlowFast@287ec007:slowfast/models/optimizer.py): batch norm without decay,
    what has several axes with, what has one without; position tables and class tokens, which are neither
    weight nor bias of a layer, by `decay_tables`. Each is split by layer where layers have their own rates.
    "norms": batch, layer and group norm without decay, tables by `decay_tables`, the rest with: PySlowFast
    where ZERO_WD_1D_PARAM is off, and MMAction2 1.x, SwinOptimWrapperConstructor.
    "tables": tables without decay and not by `backbone_factor`, the rest with decay: what mmcv's default
    constructor makes of the settings of SwinTransformer/Video-Swin-Transformer@db018fb8, where of several
    names that match a parameter the longest counts.
    "head": the classifier `head` with decay, everything else without.
    "tsm" (MMAction2 v0.24.1, TSMOptimizerConstructor): weights x1 with decay, biases x2 without, batch norm
    x1 without decay, the classifier's weight x head_factor with and its bias x2 head_factor without decay.
    Parameters that are frozen are left out.

    layers  with layer_decay: number of each parameter's layer, see `marey.models.transformer.layer_numbers`
    """
    if optimizer.groups == "tsm":
        return _tsm_groups(model, optimizer)
    norms, norms_or_alike = (
        {id(p) for m in model.modules() if isinstance(m, kind) for p in m.parameters(recurse=False)}
        for kind in (Norm, AnyNorm)
    )
    deepest = max(layers.values()) if layers else 0
    found: dict[tuple[str, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        kind, how = "all", optimizer.groups
        table = name.rpartition(".")[2] not in ("weight", "bias")
        own = name.removeprefix("network.")  # of a network inside of a learner
        if how != "all":
            vector = parameter.ndim < 2 if how == "vectors" else id(parameter) in norms_or_alike
            free = table if how == "tables" else vector or (table and not optimizer.decay_tables)
            free = not name.startswith("head.") if how == "head" else free
            kind = "not decayed" if free else "decayed"
            kind = "batch norm" if id(parameter) in norms and how not in ("tables", "head") else kind
        full = own.startswith(("head.", "projection.")) or (how == "tables" and table)
        factor = 1.0 if full else optimizer.backbone_factor
        if layers:
            factor *= optimizer.layer_decay ** (deepest - layers.get(own, deepest))
        found.setdefault((kind, factor), []).append(parameter)
    order = ("all", "batch norm", "decayed", "not decayed")
    groups = [
        _group(
            kind, found[kind, factor], factor, optimizer.weight_decay if kind in ("all", "decayed") else 0.0
        )
        for kind, factor in sorted(found, key=lambda key: (order.index(key[0]), key[1]))
    ]
    return [group for group in groups if group["params"]]


def _tsm_groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    weighted = [m for m in model.modules() if isinstance(m, Weighted)]
    first = next(m for m in weighted if not isinstance(m, nn.Linear))
    last = [m for m in weighted if isinstance(m, nn.Linear)][-1]
    others = [m for m in weighted if m is not first and m is not last]
    norms = [m for m in model.modules() if isinstance(m, Norm)]
    decay, head = optimizer.weight_decay, optimizer.head_factor
    groups = [
        _group("first conv weight", [first.weight], 1.0, decay),
        _group("first conv bias", [first.bias], 2.0, 0.0),
        _group("other weights", [m.weight for m in others], 1.0, decay),
        _group("other biases", [m.bias for m in others], 2.0, 0.0),
        _group("batch norm", [p for m in norms for p in (m.weight, m.bias)], 1.0, 0.0),
        _group("classifier weight", [last.weight], head, decay),
        _group("classifier bias", [last.bias], 2 * head, 0.0),
    ]
    grouped = {id(p) for group in groups for p in group["params"]}
    groups.append(_group("everything else", [p for p in trained if id(p) not in grouped], 1.0, decay))
    return [group for group in groups if group["params"]]


def _group(name: str, parameters: Sequence[Tensor | None], factor: float, decay: float) -> dict[str, Any]:
    trained = [p for p in parameters if p is not None and p.requires_grad]
    return {"name": name, "params": trained, "factor": factor, "weight_decay": decay}


def build_optimizer(
    model: nn.Module, optimizer: Optimizer, layers: Mapping[str, int] | None = None
) -> torch.optim.Optimizer:
    """The torch optimiser over the model's trained parameters; `set_lr` gives it its rate at each step."""
    groups = parameter_groups(model, optimizer, layers)
    if optimizer.kind == "adam":  # fused: several times as fast where matrices are large
        return torch.optim.Adam(groups, lr=optimizer.lr, betas=optimizer.betas, fused=True)
    if optimizer.kind == "adamw":
        return torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas)
    return torch.optim.SGD(groups, lr=optimizer.lr, momentum=optimizer.momentum, nesterov=optimizer.nesterov)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its rate: lr times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
