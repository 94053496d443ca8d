"""Average precision against published numbers and against its definition, threshold by threshold."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import integers

from marey.errors import MareyError
from marey.metrics import mean_ap
from marey.metrics.mean_ap import (
    average_precision,
    mean_average_precision,
    mmit_mean_average_precision,
    sample_average_precision,
)

ORACLE = json.loads((Path(__file__).parent / "oracles" / "metrics.json").read_text())


def drawn():
    rng = np.random.RandomState(7)
    for shape, top in (((60, 20), 16), ((60, 20), 20)):  # what the oracle drew before
        rng.rand(*shape)
        rng.randint(0, top, 60)
    scores, targets = rng.rand(60, 20), rng.rand(60, 20) < 0.12
    targets[:, 2], targets[:, 5], targets[3] = False, True, False
    return scores, targets.astype(int)


def by_definition(scores, positive):
    """Sum over distinct thresholds, descending, of the step of recall times the precision there."""
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        hits = (positive & taken).sum()
        area += (hits / positive.sum() - recall) * hits / taken.sum()
        recall = hits / positive.sum()
    return area


def test_the_published_values_are_met():
    scores, targets = drawn()
    expected = ORACLE["multi_label"]
    assert targets.sum() == expected["positives"]
    per_class = np.array([np.nan if v is None else v for v in expected["per_class_ap"]])
    np.testing.assert_allclose(average_precision(scores, targets), per_class, atol=1e-14)
    assert mean_average_precision(scores, targets) == pytest.approx(
        expected["mean_average_precision"], abs=1e-14
    )
    left_out = expected["mmit_mean_average_precision, without sample 3"]
    assert mmit_mean_average_precision(scores, targets) == pytest.approx(left_out, abs=1e-14)
    assert np.flatnonzero(np.isnan(sample_average_precision(scores, targets))).tolist() == [3]


def test_equal_scores_form_one_threshold_as_published():
    scores, targets = drawn()
    scores, expected = np.round(scores * 4) / 4, ORACLE["multi_label_ties"]
    assert mean_average_precision(scores, targets) == pytest.approx(
        expected["mean_average_precision"], abs=1e-14
    )
    left_out = expected["mmit_mean_average_precision, without sample 3"]
    assert mmit_mean_average_precision(scores, targets) == pytest.approx(left_out, abs=1e-14)


def test_the_figures_of_reskd_on_activitynet_like_labels_are_met():
    expected = json.loads((Path(__file__).parent / "oracles" / "reskd_mean_ap.json").read_text())
    scores = np.array(expected["scores"], np.float32)  # with ties, as its softmax outputs have
    targets = np.zeros(scores.shape, int)
    for row, labels in enumerate(expected["labels"]):
        targets[row, labels] = 1
    per_class = average_precision(scores, targets)
    without = np.flatnonzero(np.isnan(per_class)).tolist()
    assert without == expected["classes_without_positives"]
    known = [np.nan if value is None else value for value in expected["per_class"]]
    np.testing.assert_allclose(per_class, known, atol=1e-11)
    mean = mean_average_precision(scores, targets)
    assert mean == pytest.approx(expected["mean_average_precision"], abs=1e-11)


@given(seed=integers(0, 999), rows=integers(1, 40), classes=integers(1, 6), levels=integers(1, 9))
def test_every_class_follows_the_definition(seed, rows, classes, levels):
    rng = np.random.RandomState(seed)
    scores, targets = rng.randint(0, levels, (rows, classes)) / 8, rng.rand(rows, classes) < 0.3
    got = average_precision(scores, targets)
    for c in range(classes):
        if not targets[:, c].any():
            assert np.isnan(got[c])
        else:
            assert got[c] == pytest.approx(by_definition(scores[:, c], targets[:, c]), abs=1e-12)
    np.testing.assert_array_equal(sample_average_precision(scores.T, targets.T), got)


def test_a_table_of_several_blocks_gives_the_same(monkeypatch):
    scores, targets = drawn()
    whole = average_precision(scores, targets)
    monkeypatch.setattr(mean_ap, "BLOCK", 130)  # two classes of 60 samples at a time
    np.testing.assert_array_equal(average_precision(scores, targets), whole)


def test_only_ones_are_positive():
    scores = np.array([[0.9], [0.8], [0.7]])
    assert mean_average_precision(scores, np.array([[-1], [1], [2]])) == pytest.approx(1 / 2)


def test_without_any_positive_the_mean_is_not_a_number():
    assert np.isnan(mean_average_precision(np.ones((3, 2)), np.zeros((3, 2))))
    assert np.isnan(mmit_mean_average_precision(np.ones((3, 2)), np.zeros((3, 2))))


@pytest.mark.parametrize(
    ("scores", "targets", "code"),
    [
        ([[np.nan, 0.1]], [[0, 1]], "SCORES_NAN"),
        ([[0.2, 0.1]], [[0, 1, 1]], "SCORES_SHAPE"),
        ([0.2, 0.1], [0, 1], "SCORES_SHAPE"),
    ],
)
def test_scores_that_make_no_sense_are_refused(scores, targets, code):
    for metric in (mean_average_precision, mmit_mean_average_precision):
        with pytest.raises(MareyError) as error:
            metric(scores, targets)
        assert error.value.code == code
