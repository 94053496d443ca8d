"""Temperature, reliability and agreement by hand, by definition, and by brute force."""

import numpy as np
import pytest

from marey.errors import DataError
from marey.scores.calibrate import (
    calibration_error,
    disagreement,
    entropy,
    fit_temperature,
    log_loss,
    margin,
    reliability,
    tempered,
    wilson,
)
from marey.scores.table import softmax

RNG = np.random.RandomState(1)
LOGITS = RNG.standard_normal((800, 6)) * 2
# labels drawn from the probabilities at temperature 2.5: the logits are over-confident by that much
LABELS = np.array([RNG.choice(6, p=row / row.sum()) for row in softmax(LOGITS / 2.5).astype(np.float64)])


def test_a_temperature_is_the_one_of_least_loss():
    got = fit_temperature(softmax(LOGITS), LABELS)
    grid = np.exp(np.linspace(np.log(1.5), np.log(4), 300))
    best = grid[np.argmin([log_loss(softmax(LOGITS / t), LABELS) for t in grid])]
    assert got == pytest.approx(best, rel=0.01) and got == pytest.approx(2.5, rel=0.15)
    some = np.where(np.arange(800) % 2, LABELS, -1)
    half = np.arange(800) % 2 == 1
    assert fit_temperature(softmax(LOGITS), some) == pytest.approx(
        fit_temperature(softmax(LOGITS[half]), LABELS[half])
    )
    with pytest.raises(DataError) as error:
        fit_temperature(softmax(LOGITS), np.full(800, -1))
    assert error.value.code == "TRUTH_MISSING"


def test_probabilities_at_another_temperature_are_those_of_the_divided_logits():
    assert tempered(softmax(LOGITS), 3.0) == pytest.approx(softmax(LOGITS / 3), abs=1e-6)
    assert tempered(softmax(LOGITS), 0.01).max(axis=1).mean() > 0.95
    assert tempered(0.95 * softmax(LOGITS), 2.0) == pytest.approx(tempered(softmax(LOGITS), 2.0), abs=1e-6)


def test_calibrating_lowers_the_calibration_error():
    def error(probabilities):
        right = probabilities.argmax(axis=1) == LABELS
        return calibration_error(reliability(probabilities.max(axis=1), right))

    before = error(softmax(LOGITS))
    after = error(tempered(softmax(LOGITS), fit_temperature(softmax(LOGITS), LABELS)))
    assert before > 0.2 and after < 0.05


def test_reliability_by_hand():
    sure = np.array([0.05, 0.55, 0.58, 0.95, 1.0], np.float32)
    right = np.array([False, True, False, True, True])
    low, middle, high = reliability(sure, right)
    assert (low.low, low.high, low.rows, low.right) == (0.0, pytest.approx(0.1), 1, 0.0)
    assert (middle.rows, middle.right) == (2, 0.5) and middle.confidence == pytest.approx(0.565)
    assert (high.rows, high.right) == (2, 1.0)
    assert calibration_error([low, middle, high]) == pytest.approx((0.05 + 2 * 0.065 + 2 * 0.025) / 5)
    assert [b.rows for b in reliability(sure, right, (0.0, 0.56, 1.0))] == [2, 3]
    assert calibration_error([]) == 0.0


def test_the_published_stage_four_is_as_sure_as_is_said():
    """Its reliability table: rows and share right per bin, labelled rows."""
    from tests.scores.draws import ORACLES

    tables = np.load(ORACLES / "tables.npz")
    truth, labels = tables["truth"].astype(int), tables["label4"].astype(int)
    known = truth >= 0
    bins = reliability(
        tables["confidence4"][known], (truth == labels)[known], (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    )
    assert [b.rows for b in bins] == [232, 160, 244, 1043, 3477, 1051]
    assert [round(100 * b.right) for b in bins] == [46, 55, 67, 84, 95, 98]


def test_margin_and_entropy_by_hand():
    table = np.array([[0.5, 0.3, 0.2], [1 / 3] * 3, [1.0, 0.0, 0.0]])
    assert margin(table) == pytest.approx([0.2, 0.0, 1.0])
    want = -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2)) / np.log(3)
    assert entropy(table) == pytest.approx([want, 1.0, 0.0])
    assert entropy(0.3 * table) == pytest.approx([want, 1.0, 0.0]), "whatever the rows sum to"


def test_wilson_s_interval():
    """Wikipedia's formula, written another way; a share of 1 is not certain."""
    low, high = wilson(8, 10)
    z = 1.96
    for bound in (low, high):  # the interval's ends solve |p - 0.8| = z sqrt(p (1 - p) / n)
        assert abs(bound - 0.8) == pytest.approx(z * (bound * (1 - bound) / 10) ** 0.5, rel=1e-6)
    assert wilson(10, 10)[0] < 0.8 and wilson(0, 0) == (0.0, 1.0)
    assert all(wilson(0, n)[0] >= 0 and wilson(n, n)[1] <= 1 for n in range(1, 200)), "no share"


def test_agreement_by_hand():
    members = {"a": np.array([0, 0, 1, 1]), "b": np.array([0, 0, 1, 0]), "c": np.array([1, 1, 0, 0])}
    got = disagreement(members, 2)
    assert got.names == ("a", "b", "c") and got.unanimous == 0.0
    assert got.agreement.tolist() == [[1, 0.75, 0], [0.75, 1, 0.25], [0, 0.25, 1]]
    assert got.kappa[0, 1] == pytest.approx((0.75 - 0.5) / 0.5)  # by chance 0.5 x 0.75 + 0.5 x 0.25
    assert got.kappa[0, 2] == pytest.approx(-1.0)
    assert disagreement({"a": members["a"], "b": members["a"]}, 2).unanimous == 1.0
