"""Losses against values worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from marey.training.losses import (
    classification_loss,
    multi_label_loss,
    soft_label_loss,
    soft_targets,
    tagging_loss,
)
from tests.oracles import drawn_input

SLOWFAST = json.loads((Path(__file__).parent / "oracles" / "slowfast.json").read_text())
LOGITS = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])  # probabilities 1/4 3/4, and 1/2 1/2


def test_hard_and_soft_targets_give_the_same_loss():
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert classification_loss(LOGITS, torch.tensor([1, 0])).item() == pytest.approx(expected)
    soft = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert classification_loss(LOGITS, soft).item() == pytest.approx(expected)


def test_smoothing_moves_weight_to_every_class():
    soft = torch.tensor([[0.05, 0.95], [0.95, 0.05]])
    expected = classification_loss(LOGITS, soft).item()
    got = classification_loss(LOGITS, torch.tensor([1, 0]), smoothing=0.1).item()
    assert got == pytest.approx(expected)


def test_class_weights_weigh_each_clip_by_its_class():
    weights = torch.tensor([3.0, 1.0])
    expected = (1 * math.log(4 / 3) + 3 * math.log(2)) / 4
    hard = classification_loss(LOGITS, torch.tensor([1, 0]), class_weights=weights)
    soft = classification_loss(LOGITS, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), class_weights=weights)
    assert hard.item() == pytest.approx(expected)
    assert soft.item() == pytest.approx(expected)


def test_several_labels_are_judged_class_by_class():
    targets = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    expected = (math.log(2) + math.log(4 / 3) + 2 * math.log(2)) / 4
    assert multi_label_loss(LOGITS, targets).item() == pytest.approx(expected)


def test_half_precision_logits_are_judged_in_float32():
    big = torch.tensor([[300.0, 0.0]], dtype=torch.bfloat16)
    assert classification_loss(big, torch.tensor([1])).dtype == torch.float32


@pytest.mark.parametrize("case", SLOWFAST["soft_cross_entropy"], ids=lambda case: case["logits"])
def test_soft_targets_give_the_loss_of_pyslowfast(case):
    seed = int(case["logits"].rpartition(" ")[2].rstrip(")"))
    logits, target = 3 * drawn_input([4, 11], seed), drawn_input([4, 11], seed + 100).softmax(1)
    assert classification_loss(logits, target).item() == pytest.approx(case["mean"], rel=1e-6)
    alone = [classification_loss(logits[i : i + 1], target[i : i + 1]).item() for i in range(4)]
    assert alone == pytest.approx(case["none"], rel=1e-6)


def test_soft_targets_of_labels_give_the_same_loss_as_smoothed_labels():
    labels, logits = torch.tensor([1, 0, 4]), drawn_input([3, 5], 1)
    for smoothing in (0.0, 0.1):
        soft = soft_targets(labels, 5, smoothing)
        assert soft.sum(1).tolist() == pytest.approx([1, 1, 1])
        expected = classification_loss(logits, labels, smoothing=smoothing)
        assert classification_loss(logits, soft).item() == pytest.approx(expected.item(), rel=1e-6)
    several = torch.tensor([[1.0, 1.0, 0.0]])
    assert soft_targets(several, 3, 0.1) is several


def test_the_tagging_loss_is_a_sum_over_classes_and_of_no_opinion_as_published():
    nothing = torch.zeros(3, 3862, dtype=torch.bool)
    assert tagging_loss(torch.zeros(3, 3862), nothing).item() == pytest.approx(3862 * math.log(2), rel=1e-6)
    sure = tagging_loss(torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[False, True]]))
    assert sure.item() == pytest.approx(math.log(2) + math.log(4 / 3))


NIGHTCRAWLER = json.loads((Path(__file__).parent / "oracles" / "nightcrawler.json").read_text())


def nightcrawler_draws():
    rng = np.random.RandomState(0)
    logits = torch.from_numpy((2 * rng.standard_normal((6, 11))).astype(np.float32))
    return logits, torch.from_numpy(rng.randint(0, 11, 6)), torch.from_numpy(rng.dirichlet(np.ones(11), 6))


def test_mixed_targets_and_their_loss_are_nightcrawler_s():
    logits, labels, _ = nightcrawler_draws()
    for case in NIGHTCRAWLER["mixup"]:
        soft = soft_targets(labels, 11, 0.1)
        mixed = case["lam"] * soft + (1 - case["lam"]) * soft.flip(0)
        assert mixed.numpy() == pytest.approx(np.array(case["targets"]), abs=1e-6)
        assert classification_loss(logits, mixed).item() == pytest.approx(case["loss"], abs=1e-6)


def test_the_divergence_from_soft_labels_is_nightcrawler_s():
    """To what half precision leaves."""
    logits, _, probabilities = nightcrawler_draws()
    for temperature, want in NIGHTCRAWLER["kl"]:
        got = soft_label_loss(logits, probabilities.float(), temperature).item()
        assert got == pytest.approx(want, abs=1e-3 * 0.16)
