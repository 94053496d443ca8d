"""Activation checkpointing: the same training step, with less kept for the backward pass."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from marey.errors import UsageError
from marey.models import build
from marey.models.fold import folded
from marey.models.recompute import recompute_blocks
from tests.models.small import SLIM
from tests.oracles import relative_error

NETWORKS = [
    *SLIM,
    ("tsn_r18", {}),
    ("tsm_r50", {"norm_eval": True}),
    ("slowonly_r50", {"non_local": "embedded_gaussian", "frozen_stages": 1}),
    ("csn_ir_r50", {}),
    ("csn_ip_r50", {"norm_eval": True, "bn_frozen": True}),
    ("r2plus1d_r34", {}),
]
LABELS = torch.tensor([0, 2])


def pair(name, overrides):
    torch.manual_seed(0)
    model = build(name, 3, **{} if (name, overrides) in SLIM else {"width": 8}, dropout=0.5, **overrides)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)  # some start at 0, which lets no gradient through
    copy = deepcopy(model)
    recompute_blocks(copy)
    return model, copy


def step(model, clip):
    """A training step up to the gradients, with the dropout of a seed; bytes kept for the backward pass."""
    kept = {}

    def keep(tensor):
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(model.train()(clip), LABELS)
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize(("name", "overrides"), NETWORKS, ids=str)
def test_gradients_and_running_statistics_are_those_of_the_plain_network(name, overrides):
    model, copy = pair(name, overrides)
    for seed in (2, 3):
        clip = torch.randn(2, 3, 8, 64, 64, generator=torch.manual_seed(seed))
        kept, less = step(model, clip), step(copy, clip)
        assert less < 0.7 * kept
    for (key, one), (other_key, other) in zip(model.named_parameters(), copy.named_parameters(), strict=True):
        assert key == other_key
        assert (one.grad is None) == (other.grad is None) == (not one.requires_grad)
        if one.grad is not None and not torch.equal(one.grad, other.grad):  # MViT's last queries get zeros
            assert relative_error(other.grad, one.grad) < 1e-6
    for (key, one), (_, other) in zip(model.named_buffers(), copy.named_buffers(), strict=True):
        assert torch.equal(one, other), key


def test_statistics_move_once_for_every_batch():
    _, copy = pair("csn_ir_r50", {})
    step(copy, torch.randn(2, 3, 8, 32, 32))
    norms = [m for m in copy.modules() if isinstance(m, nn.BatchNorm3d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}
    assert sum(norm.running_var.eq(1).all() for norm in norms) == 0


def test_the_network_can_be_saved_folded_and_run_without_gradients():
    model, copy = pair("slowonly_r50", {})
    clip = torch.randn(2, 3, 4, 32, 32)
    assert copy.state_dict().keys() == model.state_dict().keys()
    with torch.inference_mode():
        want = model.eval()(clip)
        assert torch.equal(copy.eval()(clip), want)
        assert relative_error(folded(copy)(clip), want) < 1e-5


def test_a_network_without_blocks_is_refused():
    with pytest.raises(UsageError, match="Linear has no blocks"):
        recompute_blocks(nn.Linear(2, 2))
