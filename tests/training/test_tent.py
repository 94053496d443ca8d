"""Entropy is lowered by the norms' scales and shifts alone, and the guards do what they say."""

import math

import pytest
import torch
from torch import nn

from marey.errors import DataError, MareyError, UsageError
from marey.models import build
from marey.training.tent import affine_parameters, lower_entropy, relative_entropy
from tests.oracles import drawn_input


def network(norm=nn.BatchNorm1d):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), norm(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 4))


def batches(count=12):
    return [drawn_input([16, 8], number) for number in range(count)]


def test_relative_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)], [0.0, 80.0]])
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    assert relative_entropy(logits).tolist() == pytest.approx([1.0, quarter, 0.0], abs=1e-6)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_only_scales_and_shifts_move_and_entropy_falls(norm):
    model = network(norm).train()
    model[4].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.named_parameters()}
    steps = lower_entropy(model, batches() * 3, lr=0.02)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"1.weight", "1.bias"}
    assert steps[-1].entropy < steps[0].entropy - 0.05 and steps[0].used == 1.0
    assert [p.requires_grad for p in model.parameters()] == [True] * 4 + [False, True]
    assert all(p.grad is None for p in model.parameters()) and all(m.training for m in model.modules())


def test_dropout_is_off_and_the_same_batches_give_the_same_network():
    states = []
    for _ in range(2):
        model = network().eval()
        torch.manual_seed(len(states))
        lower_entropy(model, batches(4), lr=0.02)
        states.append(model.state_dict())
        assert not any(m.training for m in model.modules())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_clips_that_are_undecided_are_left_out():
    model = network().eval()
    before = [p.clone() for p in affine_parameters(model)]
    assert [step.used for step in lower_entropy(model, batches(2), reliable=0.0)] == [0.0, 0.0]
    assert all(torch.equal(a, b) for a, b in zip(before, affine_parameters(model), strict=True))
    half = lower_entropy(model, batches(1), reliable=0.9)[0].used
    assert 0 < half < 1


def test_diversity_keeps_classes_apart():
    """Driven hard, entropy alone ends in fewer classes than with the mean prediction spread."""
    spread = []
    for weight in (0.0, 2.0):
        model = network().eval()
        lower_entropy(model, batches() * 10, lr=0.1, diversity=weight)
        said = model(torch.cat(batches())).softmax(1).mean(0)
        spread.append(-(said * said.log()).sum().item())
    assert spread[1] > spread[0]


def test_frozen_norms_stay_and_video_networks_are_taken():
    torch.manual_seed(0)
    model = build("tsm_r18", 3, segments=2, width=4, norm_eval=True)
    with pytest.raises(UsageError) as error:
        lower_entropy(model, [drawn_input([2, 3, 2, 32, 32], 0)])
    assert error.value.code == "ADAPT_NORMS"
    model = build("tsm_r18", 3, segments=2, width=4)
    assert len(affine_parameters(model)) == 40
    assert len(lower_entropy(model, [drawn_input([2, 3, 2, 32, 32], 0)])) == 1


def test_nothing_to_learn_from_and_values_that_are_not_finite_are_refused():
    model = network()
    with pytest.raises(DataError) as error:
        lower_entropy(model, [])
    assert error.value.code == "NO_BATCHES"
    with pytest.raises(MareyError) as error:
        lower_entropy(model, [torch.full((4, 8), float("nan"))])
    assert error.value.code == "STATISTICS_NOT_FINITE"
    assert all(p.requires_grad for p in model.parameters()) and model.training
