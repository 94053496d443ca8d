"""The training of NeXtVLAD against Paddle's and TensorFlow's schedules and by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from marey.errors import UsageError
from marey.training.tagging import samples_factor, tagging_loss, tagging_optimizer

ORACLE = json.loads((Path(__file__).parent / "oracles" / "tagging.json").read_text())


@pytest.mark.parametrize(
    "case", ORACLE["cases"], ids=lambda case: f"{case['batch']}-{case['decay_examples']}"
)
def test_rates_are_those_of_paddle(case):
    for step, rate in case["lr_at_step"]:
        factor = samples_factor(
            step,
            batch=case["batch"],
            samples=case["decay_examples"],
            decay=case["decay"],
            max_steps=case["max_iter"],
        )
        assert case["base"] * factor == pytest.approx(rate, rel=1e-6)


def test_a_short_schedule_is_that_of_a_run_of_paddle():
    case = ORACLE["small_schedule_run"]
    rates = [
        case["base"] * samples_factor(step, batch=160, samples=1000, max_steps=case["max_iter"])
        for step in range(26)
    ]
    assert rates == pytest.approx(case["lr_of_steps_0_to_25"], rel=1e-6)


def test_rates_are_those_of_tensorflow():
    for batch, step, rate in ORACLE["tensorflow_original"]["batch_step_lr"]:
        assert 2e-4 * samples_factor(step, batch=batch, max_steps=None) == pytest.approx(rate, rel=1e-6)


def test_the_loss_of_no_opinion_is_published():
    assert tagging_loss(torch.zeros(3, 3862), torch.zeros(3, 3862, dtype=torch.bool)).item() == pytest.approx(
        3862 * math.log(2), rel=1e-6
    )


def test_only_the_classifier_decays():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    model = Network()
    optimizer = tagging_optimizer(model, lr=0.1)
    before = [p.clone() for p in model.body.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    start = model.head.weight.detach().clone()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.body.parameters(), strict=True))
    # Adam's first step is lr * g / (|g| + 1e-8), with g = 1e-5 * w
    g = 1e-5 * start
    torch.testing.assert_close(model.head.weight.detach(), start - 0.1 * g / (g.abs() + 1e-8))


def test_a_batch_larger_than_the_period_is_refused():
    with pytest.raises(UsageError):
        samples_factor(0, batch=10, samples=5)
