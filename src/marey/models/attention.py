"""Attention with a learnt summand, whose gradient is fast and small on CPUs, too.

torch's fused kernels for CPUs know no gradient of what is added to the products, so that it falls back on
whole arrays of queries by keys, kept for the backward pass. Here the forward pass is the fused kernel's,
which also gives the logarithm of each row's sum, and the backward pass computes the weights again, some
windows or heads at a time, as in Dao et al., "FlashAttention", arXiv:2205.14135.
Shapes: B windows, h heads of C channels, N tokens.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CACHED = 1 << 18  # products of queries and keys at a time: with their gradients a few MB


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Queries, keys, values, float [B, h, N, C], and what is added to products, [h, N, N] -> [B, h, N, C]."""
    wanted = torch.is_grad_enabled() and bias.requires_grad and q.device.type == "cpu"
    if not wanted or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0))
    gathered: Tensor = _Biased.apply(q, k, v, bias)
    return gathered


class _Biased(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        y, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=bias.unsqueeze(0)
        )
        ctx.save_for_backward(q, k, v, bias, y, sums)
        gathered: Tensor = y
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, bias, y, sums = ctx.saved_tensors
        above = grads[0].contiguous()
        own = (above * y).sum(-1, keepdim=True)
        sums, scale = sums.unsqueeze(-1), q.shape[-1] ** -0.5
        q = q * scale
        to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        to_bias = torch.zeros_like(bias)
        fit = max(1, CACHED // bias[0].numel())
        heads = min(fit, len(bias))
        windows = max(1, fit // heads)
        for first in range(0, len(bias), heads):
            some = slice(first, first + heads)
            for start in range(0, len(q), windows):
                at = slice(start, start + windows), some
                weights = (q[at] @ k[at].transpose(2, 3)).add_(bias[some]).sub_(sums[at]).exp_()
                slopes = (above[at] @ v[at].transpose(2, 3)).sub_(own[at]).mul_(weights)
                to_bias[some] += slopes[0] if len(slopes) == 1 else slopes.sum(0)
                to_q[at] = slopes @ k[at]
                to_k[at] = slopes.transpose(2, 3) @ q[at]
                to_v[at] = weights.transpose(2, 3) @ above[at]
        return to_q.mul_(scale), to_k, to_v, to_bias
