"""Accuracy against published numbers and against definitions written out sample by sample."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import integers

from marey.errors import DataError, MareyError
from marey.metrics.topk import (
    class_accuracy,
    confusion_matrix,
    mean_class_accuracy,
    multi_label_top_k_accuracy,
    top_k_accuracy,
)

ORACLE = json.loads((Path(__file__).parent / "oracles" / "metrics.json").read_text())


def drawn():
    """Scores and labels of the oracle: without ties, then with many."""
    rng = np.random.RandomState(7)
    plain = rng.rand(60, 20), rng.randint(0, 16, 60)
    ties = np.round(rng.rand(60, 20) * 6) / 6, rng.randint(0, 20, 60)
    return plain, ties


def test_the_drawn_scores_are_those_of_the_oracle():
    (scores, labels), _ = drawn()
    assert scores.ravel()[:4].tolist() == ORACLE["plain"]["first_scores"]
    assert labels.tolist() == ORACLE["plain"]["labels"]


def test_accuracies_without_ties_are_the_published_ones():
    (scores, labels), _ = drawn()
    assert [top_k_accuracy(scores, labels, k) for k in (1, 2, 5)] == ORACLE["plain"]["top1,top2,top5"]
    assert mean_class_accuracy(scores, labels) == pytest.approx(
        ORACLE["plain"]["mean_class_accuracy"], abs=1e-15
    )
    only_true = ORACLE["plain"]["mean over true classes only"]
    assert mean_class_accuracy(scores, labels, classes="true") == pytest.approx(only_true, abs=1e-15)


def test_equal_scores_are_ranked_by_ascending_class():
    _, (scores, labels) = drawn()
    rule = next(v for k, v in ORACLE["ties"].items() if k.startswith("rule A"))
    assert {f"top{k}": top_k_accuracy(scores, labels, k) for k in (1, 2, 5)} == rule
    expected = ORACLE["ties"]["mean_class_accuracy (argmax, lowest index wins)"]
    assert mean_class_accuracy(scores, labels) == pytest.approx(expected, abs=1e-15)
    assert [top_k_accuracy(np.zeros((4, 4)), np.arange(4), k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


@given(seed=integers(0, 999), rows=integers(1, 30), classes=integers(1, 12), k=integers(1, 15))
def test_top_k_counts_the_samples_whose_label_a_stable_sort_puts_first(seed, rows, classes, k):
    rng = np.random.RandomState(seed)
    scores, labels = rng.randint(0, 4, (rows, classes)) / 4, rng.randint(0, classes, rows)
    hits = [
        y in sorted(range(classes), key=lambda c: (-s[c], c))[:k] for s, y in zip(scores, labels, strict=True)
    ]
    assert top_k_accuracy(scores, labels, k) == pytest.approx(sum(hits) / rows)


@given(seed=integers(0, 999), rows=integers(1, 40), classes=integers(1, 9))
def test_the_confusion_matrix_counts_every_pair_once(seed, rows, classes):
    rng = np.random.RandomState(seed)
    labels, predicted = rng.randint(0, classes, rows), rng.randint(0, classes, rows)
    expected = np.zeros((classes, classes), int)
    for row, column in zip(labels, predicted, strict=True):
        expected[row, column] += 1
    matrix = confusion_matrix(labels, predicted, classes)
    assert matrix.dtype == np.int64 and matrix.tolist() == expected.tolist()
    counts, shares = class_accuracy(matrix)
    for c in range(classes):
        own = predicted[labels == c]
        assert counts[c] == len(own)
        assert np.isnan(shares[c]) if not len(own) else shares[c] == pytest.approx((own == c).mean())


def test_a_class_that_is_only_predicted_counts_as_wrong():
    scores = np.eye(3)[[0, 0, 2, 2]]  # predicted 0 0 2 2, true 0 0 0 1
    labels = np.array([0, 0, 0, 1])
    assert mean_class_accuracy(scores, labels) == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert mean_class_accuracy(scores, labels, classes="true") == pytest.approx((2 / 3 + 0) / 2)


def test_float32_scores_are_compared_as_they_are():
    scores = np.array([[0.1, 0.2, 0.2 + 1e-7]], np.float32)
    assert top_k_accuracy(scores, [2], 1) == 1.0


RESKD = json.loads((Path(__file__).parent / "oracles" / "reskd_mean_ap.json").read_text())


def test_single_label_figures_are_reskds():
    expected, scores = RESKD["single_label_metrics"], np.array(RESKD["scores"], np.float32)
    labels = np.array(expected["labels"])
    assert labels.tolist() == [row[0] for row in RESKD["labels"]]
    assert top_k_accuracy(scores, labels, 1) == pytest.approx(expected["top1"], abs=1e-12)
    assert top_k_accuracy(scores, labels, 5) == pytest.approx(expected["top5"], abs=1e-12)
    mean = mean_class_accuracy(scores, labels)
    assert mean == pytest.approx(expected["mean_class_accuracy"], abs=1e-12)


def hot(labels, classes):
    targets = np.zeros((len(labels), classes), int)
    for row, several in enumerate(labels):
        targets[row, list(several)] = 1
    return targets


def test_any_of_several_labels_among_the_best_is_a_hit():
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2]])
    targets = hot([(1, 2), (0, 1), (), (1,)], 3)
    assert multi_label_top_k_accuracy(scores, targets, 1) == pytest.approx(1 / 3), (
        "equal scores: lowest class"
    )
    assert multi_label_top_k_accuracy(scores, targets, 2) == 1.0
    assert np.isnan(multi_label_top_k_accuracy(scores, np.zeros((4, 3)), 1))
    for wrong in ((scores, targets[:2], 1), (scores, targets, 0)):
        with pytest.raises(MareyError):
            multi_label_top_k_accuracy(*wrong)


def test_on_single_labels_both_top_k_agree_and_stay_within_one():
    scores, labels = np.array(RESKD["scores"]), np.array(RESKD["single_label_metrics"]["labels"])
    for k in (1, 3, 5, 12, 20):
        assert multi_label_top_k_accuracy(scores, hot([[y] for y in labels], 12), k) == top_k_accuracy(
            scores, labels, k
        )
        assert 0 <= multi_label_top_k_accuracy(scores, hot(RESKD["labels"], 12), k) <= 1


@pytest.mark.parametrize(
    ("scores", "labels", "code"),
    [
        ([[0.1, np.nan]], [0], "SCORES_NAN"),
        ([[0.1, 0.2]], [2], "LABEL_RANGE"),
        ([[0.1, 0.2]], [-1], "LABEL_RANGE"),
        ([[0.1, 0.2]], [0, 1], "SCORES_SHAPE"),
        ([[0.1, 0.2]], [0.0], "SCORES_SHAPE"),
        ([0.1, 0.2], [0], "SCORES_SHAPE"),
        (np.zeros((0, 3)), np.zeros(0, int), "SCORES_SHAPE"),
    ],
)
def test_scores_and_labels_that_make_no_sense_are_refused(scores, labels, code):
    for metric in (top_k_accuracy, mean_class_accuracy):
        with pytest.raises(MareyError) as error:
            metric(scores, labels)
        assert error.value.code == code
        assert isinstance(error.value, DataError) == (code == "LABEL_RANGE")


def test_other_impossible_arguments_are_refused():
    with pytest.raises(MareyError, match="k >= 1"):
        top_k_accuracy([[0.1, 0.2]], [0], 0)
    with pytest.raises(MareyError, match="predictions"):
        confusion_matrix([0, 1], [0], 2)
    with pytest.raises(DataError, match="prediction 2 of row 1"):
        confusion_matrix([0, 1], [0, 2], 2)
