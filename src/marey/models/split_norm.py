"""Batch norms that see a batch in parts, each with its own statistics, as if each were on a GPU of its own.

What a network learns depends on how many clips share a mean and a variance; published 3D networks were
trained with 8 on each GPU. Wu et al., "A Multigrid Method for Efficiently Training Video Models",
arXiv:1912.00998; numbers from facebookresearch/SlowFast@287ec007:slowfast/models/batchnorm_helper.py.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marey.errors import UsageError


class SplitBatchNorm3d(nn.BatchNorm3d):
    """A batch norm that in training sees the clips n, n + parts, n + 2 * parts, ... on their own.

    Weight and bias are shared. The running statistics are those of all parts together: the mean of their
    means; the mean of their variances, and the variance of their means. In evaluation it is as any other, and
    so are its tensors in a state_dict.

    part_means, part_variances  running statistics of the parts, float [parts, C]
    """

    part_means: Tensor
    part_variances: Tensor

    def split(self, parts: int) -> None:
        """From now on see so many parts, whose statistics start as those of the whole."""
        assert self.running_mean is not None and self.running_var is not None
        self.register_buffer("part_means", self.running_mean.repeat(parts, 1), persistent=False)
        self.register_buffer("part_variances", self.running_var.repeat(parts, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, T, H, W] -> the same shape."""
        if not self.training:
            return super().forward(x)
        parts = len(self.part_means)
        y = torch.empty_like(x)
        for number, statistics in enumerate(zip(self.part_means, self.part_variances, strict=True)):
            part = x[number::parts]
            if len(part):  # a batch may be smaller
                y[number::parts] = F.batch_norm(
                    part, *statistics, self.weight, self.bias, True, self.momentum or 0.0, self.eps
                )
        self._join()
        return y

    @torch.no_grad()
    def _join(self) -> None:
        assert self.running_mean is not None and self.running_var is not None
        self.running_mean.copy_(self.part_means.mean(0))
        self.running_var.copy_(self.part_variances.mean(0) + self.part_means.var(0, correction=0))
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

    def reset_running_stats(self) -> None:
        """As of any batch norm, and of its parts."""
        super().reset_running_stats()
        if hasattr(self, "part_means"):
            self.part_means.zero_()
            self.part_variances.fill_(1)


def split_batch_norms(model: nn.Module, parts: int) -> None:
    """Change the network's 3D batch norms in place; its state_dict stays as it is.

    Raises UsageError BAD_VALUE where there are none: norms of 2D networks see frames of clips in a row.
    """
    norms: list[Any] = [module for module in model.modules() if type(module) is nn.BatchNorm3d]
    if not norms:
        raise UsageError("BAD_VALUE", f"{type(model).__name__} has no 3D batch norms to split")
    for norm in norms:
        norm.__class__ = SplitBatchNorm3d
        norm.split(parts)


def part_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of all parts, by their names among the buffers: no state_dict holds them."""
    return {name: buffer for name, buffer in model.named_buffers() if ".part_" in f".{name}"}
