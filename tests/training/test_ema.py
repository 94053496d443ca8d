"""The moving average of weights, by hand."""

import copy

import pytest
import torch
from torch import nn

from marey.training.ema import update_average


def test_the_average_keeps_its_share_once_the_start_is_past():
    average, model = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(average.weight, 1.0)
    nn.init.constant_(model.weight, 3.0)
    before = model.weight.clone()
    update_average(average, model, decay=0.9, updates=10_000)
    assert average.weight.item() == pytest.approx(0.9 * 1 + 0.1 * 3)
    assert torch.equal(model.weight, before)


def test_the_first_updates_weigh_more():
    """d = (1 + n) / (10 + n) while that is below the decay: 2/11, then 3/12."""
    average, model = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 0.0)
    expected = 0.0
    for updates, value in ((1, 4.0), (2, 8.0)):
        nn.init.constant_(model.weight, value)
        update_average(average, model, decay=0.999, updates=updates)
        kept = (1 + updates) / (10 + updates)
        expected = kept * expected + (1 - kept) * value
        assert average.weight.item() == pytest.approx(expected, rel=1e-6)


def test_statistics_are_averaged_and_counters_copied():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = copy.deepcopy(model)
    model.train()(torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0)))
    was, now = average[1].running_var.clone(), model[1].running_var.clone()
    update_average(average, model, decay=0.5, updates=1000)
    assert torch.allclose(average[1].running_var, (was + now) / 2)
    assert average[1].num_batches_tracked == 1


def test_frozen_weights_stay_to_the_bit():
    model = nn.Linear(3, 3)
    average = copy.deepcopy(model)
    for updates in range(1, 20):
        update_average(average, model, decay=0.99, updates=updates)
    assert torch.equal(average.weight, model.weight)
