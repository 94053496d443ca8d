"""Activation checkpointing: blocks keep their input only and run again in the backward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174. A third more arithmetic buys
the memory of what happens inside the blocks.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from marey.errors import UsageError
from marey.models.parts import Residual
from marey.models.transformer import TokenBlock


def recompute_blocks(model: nn.Module) -> None:
    """Change the network in place: same outputs, gradients and running statistics, less memory in training.

    Without gradients its blocks run as before. Raises UsageError BAD_VALUE for a network without such blocks.
    """
    blocks = [module for module in model.modules() if isinstance(module, Residual | TokenBlock)]
    if not blocks:
        raise UsageError("BAD_VALUE", f"{type(model).__name__} has no blocks to checkpoint")
    for block in blocks:
        norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
        block.forward = partial(_run, block.forward, norms)  # type: ignore[method-assign]


def _run(forward: Callable[[Tensor], Tensor], norms: list[_BatchNorm], x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _on_copies(norms)

    y: Tensor = checkpoint(forward, x, use_reentrant=False, context_fn=contexts)
    return y


@contextmanager
def _on_copies(norms: list[_BatchNorm]) -> Iterator[None]:
    """What updates running statistics meets copies of them: the first pass has entered this batch already."""
    before = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    try:
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
