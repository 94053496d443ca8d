"""The training loop: one explicit function that takes batches and yields what each step did."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from lightning_fabric.fabric import Fabric
from torch import Tensor, nn

from marey.errors import MareyError
from marey.training.distributed import anyone
from marey.training.optim import set_lr


class Batch(Protocol):
    """What one step learns from, whatever it holds.

    real is how many of its samples count: 0 for a stand-in that keeps processes in step and changes nothing.
    """

    @property
    def real(self) -> int:
        """Samples that count."""


B = TypeVar("B", bound=Batch)


class Outcome(NamedTuple):
    """What a network made of a batch: the loss to learn from, and terms that are only written down."""

    loss: Tensor
    terms: Mapping[str, Tensor] = MappingProxyType({})


class Step(NamedTuple):
    """What a step did: its number in the epoch, mean loss, samples, learning rate, seconds waited and taken,
    and its other terms."""

    number: int
    loss: float
    clips: int
    lr: float
    waited: float
    seconds: float
    terms: Mapping[str, float] = MappingProxyType({})


def train_steps(
    fabric: Fabric,
    model: Any,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[B],
    *,
    outcome_of: Callable[[Any, B], Outcome],
    rate_of: Callable[[int], float],
    seed_of: Callable[[int], int],
    steps: int,
    first: int = 0,
    accumulate: int = 1,
    clip_norm: float | None = None,
    clip_each: bool = False,
) -> Iterator[Step]:
    """Train on the batches, which are the steps `first` .. `steps` - 1 of an epoch.

    outcome_of  runs the network on a batch; gradients must pass through the call of the network itself
    rate_of   learning rate of an update (counted in the epoch); every `accumulate` steps make one
    seed_of   seed of a step's dropout, so that a resumed run draws what the unbroken one drew
    clip_norm  largest 2-norm of the gradients of an update: all together, or with clip_each of each parameter
    Raises MareyError LOSS_NOT_FINITE before the step changes anything.
    """
    started = time.perf_counter()
    for number, batch in enumerate(batches, first):
        waited = time.perf_counter() - started
        update = number // accumulate
        share = min(accumulate, steps - update * accumulate)  # the epoch's last update may have fewer steps
        closing = (number + 1) % accumulate == 0 or number + 1 == steps
        lr = rate_of(update)
        torch.manual_seed(seed_of(number))
        model.train(batch.real > 0)  # a stand-in must not enter the batch-norm statistics
        with fabric.no_backward_sync(model, enabled=not closing):
            loss, terms = outcome_of(model, batch)
            value = float(loss.detach())
            if anyone(fabric, value != value or value in (float("inf"), float("-inf"))):
                raise MareyError("LOSS_NOT_FINITE", f"the loss of step {number} is {value}")
            fabric.backward(loss * (0.0 if batch.real == 0 else 1.0 / share))
        if closing:
            if clip_norm is not None and clip_each:
                for parameter in model.parameters():
                    nn.utils.clip_grad_norm_(parameter, clip_norm)
            elif clip_norm is not None:
                fabric.clip_gradients(model, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
            set_lr(optimizer, lr)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        named = {name: float(term) for name, term in terms.items()}
        yield Step(number, value, batch.real, lr, waited, seconds, named)
        started = time.perf_counter()
