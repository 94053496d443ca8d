"""Attention with a learnt summand: outputs and gradients of the written-out formula."""

import pytest
import torch

from marey.models import attention
from marey.models.attention import biased_attention

SHAPES = [(3, 2, 5, 4), (1, 3, 7, 2), (4, 1, 3, 8), (5, 4, 6, 3)]


def inputs(shape, dtype=torch.float64):
    torch.manual_seed(0)
    parts = [2 * torch.randn(shape, dtype=dtype) for _ in range(3)]
    parts.append(3 * torch.randn(shape[1], shape[2], shape[2], dtype=dtype))
    return [part.requires_grad_() for part in parts]


def written_out(q, k, v, bias):
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias).softmax(3)
    return weights @ v


def step(attend, parts, above):
    gathered = attend(*parts)
    return [gathered.detach(), *torch.autograd.grad(gathered, parts, above)]


@pytest.mark.parametrize("cached", [1, 50, 1 << 18])  # heads one by one, some windows at a time, all
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_the_formula(shape, cached, monkeypatch):
    monkeypatch.setattr(attention, "CACHED", cached)
    parts, above = inputs(shape), torch.randn(shape, dtype=torch.float64)
    for got, want in zip(step(biased_attention, parts, above), step(written_out, parts, above), strict=True):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)


def test_nothing_of_the_size_of_all_products_is_kept():
    parts = inputs((6, 2, 40, 4), torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        biased_attention(*parts)
    assert max(kept) == parts[3].numel() < 6 * 2 * 40 * 40


@pytest.mark.parametrize("learnt", [True, False])
def test_without_a_gradient_of_the_summand_torchs_kernel_runs(learnt):
    parts = inputs((2, 3, 5, 4))
    parts[3].requires_grad_(learnt)
    name = type(biased_attention(*parts).grad_fn).__name__
    assert (name == "_BiasedBackward") == learnt
    with torch.inference_mode():
        assert torch.allclose(biased_attention(*parts), written_out(*parts), atol=1e-12)


def test_autocast_keeps_to_torchs_own():
    with torch.autocast("cpu", torch.bfloat16):
        parts = [part.detach().float().requires_grad_() for part in inputs((2, 3, 5, 4))]
        assert type(biased_attention(*parts).grad_fn).__name__ != "_BiasedBackward"
