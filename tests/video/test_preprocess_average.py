"""Averages over views against published numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from marey.errors import MareyError
from marey.video.preprocess import average_views
from tests.oracles import drawn_input

ORACLE = json.loads((Path(__file__).parents[1] / "metrics" / "oracles" / "metrics.json").read_text())[
    "average_clips"
]


def drawn():
    """Logits of two videos of three views: what the oracle drew after its other numbers."""
    rng = np.random.RandomState(7)
    for top in (16, 20):
        rng.rand(60, 20)
        rng.randint(0, top, 60)
    rng.rand(60, 20)
    rng.rand(60, 20)
    return torch.from_numpy(rng.standard_normal((6, 5)).astype(np.float32))


@pytest.mark.parametrize("how", ["prob", "score"])
def test_averages_are_the_published_ones(how):
    logits = drawn()
    got = torch.cat([average_views(logits[:3], how), average_views(logits[3:], how)])
    np.testing.assert_allclose(got.numpy(), ORACLE[how], atol=1e-7)


def test_the_mean_is_a_third_of_pyslowfast_s_sum_of_three_views():
    summed = [  # of 3 views of 2 videos, Andy1621/Nightcrawler@259fa5b9:slowfast/utils/meters.py
        [0.474000871181, 0.42870503664, 0.885641396046, 0.316546708345, 0.895106077194],
        [0.892937839031, 0.968043625355, 1.06481993198, 0.0674232691526, 0.0067753335461],
    ]
    logits = 2 * drawn_input([6, 5], 300)
    got = torch.stack([average_views(logits[:3]), average_views(logits[3:])])
    np.testing.assert_allclose(3 * got.numpy(), summed, atol=1e-6)


def test_the_largest_probabilities_are_pyslowfast_s_ensemble_by_max():
    largest = [  # of the same views, ENSEMBLE_METHOD max
        [0.44745066762, 0.288376152515, 0.834601759911, 0.205202996731, 0.840200841427],
        [0.888011991978, 0.962317585945, 0.98824685812, 0.063746958971, 0.00331626925617],
    ]
    logits = 2 * drawn_input([6, 5], 300)
    got = torch.stack([average_views(logits[:3], "max"), average_views(logits[3:], "max")])
    np.testing.assert_allclose(got.numpy(), largest, atol=1e-6)
    several = average_views(logits, "max", multi_label=True)
    assert torch.allclose(several, logits.sigmoid().max(0).values)


def test_with_several_labels_each_class_has_a_probability_of_its_own():
    expected = (1 / (1 + np.exp(-drawn().double().numpy()))).mean(0)
    np.testing.assert_allclose(average_views(drawn(), multi_label=True).numpy(), expected, atol=1e-6)


def test_none_keeps_every_view():
    assert torch.equal(average_views(drawn(), "none"), drawn())


def test_what_cannot_be_averaged_is_refused():
    for logits, how in ((torch.zeros(5), "prob"), (torch.zeros(0, 5), "score"), (torch.zeros(2, 5), "probs")):
        with pytest.raises(MareyError):
            average_views(logits, how)
