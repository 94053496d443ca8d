"""Tagging metrics against the official code's values, against their definition, and in pieces."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from

from marey.errors import DataError, MareyError
from marey.metrics import gap as module
from marey.metrics.gap import TaggingMetrics, gap, measure, multi_hot, ranked

CASES = json.loads((Path(__file__).parent / "oracles" / "gap.json").read_text())["cases"]


def drawn(spec):
    """Scores and labels of a case: positives tend to score u ** 1/4, negatives u ** power_neg."""
    rng = np.random.RandomState(spec["seed"])
    labels = np.zeros((spec["videos"], spec["classes"]), np.float32)
    low, high = spec["positives"]
    for row in labels:
        row[rng.choice(spec["classes"], rng.randint(low, high + 1), replace=False)] = 1
    u = rng.uniform(size=labels.shape)
    negative = u
    for _ in range(spec["power_neg"].bit_length() - 1):
        negative = negative * negative
    scores = np.where(labels > 0, np.sqrt(np.sqrt(u)), negative)
    if spec.get("round"):
        scores = np.floor(scores * spec["round"]) / spec["round"]
    labels[spec.get("empty", [])] = 0
    return (scores * spec.get("scale", 1.0)).astype(np.float32), labels


def in_batches(scores, labels, *, k, batch):
    metrics = TaggingMetrics(scores.shape[1], k)
    for first in range(0, len(scores), batch):
        metrics.add(scores[first : first + batch], labels[first : first + batch])
    return metrics.result()


@pytest.mark.parametrize("name", CASES)
def test_the_official_values_are_met(name):
    case, spec = CASES[name], CASES[name]["spec"]
    scores, labels = drawn(spec)
    assert labels.sum() == case["checksum"]["positives"]
    assert scores.astype(np.float64).sum() == pytest.approx(case["checksum"]["predictions_sum"], rel=1e-12)
    found = in_batches(scores, labels, k=spec["k"], batch=spec["batch"])
    assert found.videos == spec["videos"]
    assert found.hit_at_1 == pytest.approx(case["hit_at_one"], abs=1e-6)  # upstream averages in float32
    assert (~np.isnan(found.ap)).sum() == case["classes_with_positives"]
    if case["ties"]:
        low, high = case["gap_bounds"]
        assert low - 1e-12 <= found.gap <= high + 1e-12
        low, high = case["perr_bounds"]
        assert low - 1e-12 <= found.perr <= high + 1e-12
        return
    assert found.gap == pytest.approx(case["gap"], abs=1e-12)
    assert found.perr == pytest.approx(case["perr"], abs=1e-12)
    assert found.map_2018 == pytest.approx(case["map_over_all_classes_2018"], abs=1e-12)
    expected = case["map_over_classes_with_positives"]
    assert np.isnan(found.map) if expected is None else found.map == pytest.approx(expected, abs=1e-12)
    for number, one in enumerate(case["batches"]):  # what a training log shows
        rows = slice(number * spec["batch"], (number + 1) * spec["batch"])
        alone = measure(scores[rows], labels[rows], spec["k"])
        assert alone.gap == pytest.approx(one["gap"], abs=1e-12)
        assert alone.perr == pytest.approx(one["perr"], abs=1e-12)


def by_definition(scores, labels, k):
    """GAP and the AP of each class from lists of pairs, sorted by score, then video, then class."""
    pairs = []
    for video, row in enumerate(scores):
        best = sorted(range(len(row)), key=lambda c, row=row: (-row[c], c))[:k]
        pairs += [(-row[c], video, rank, c, labels[video, c]) for rank, c in enumerate(best)]
    pairs.sort()

    def ap(hits, positives):
        right = [i for i, hit in enumerate(hits) if hit]
        return sum((n + 1) / (i + 1) for n, i in enumerate(right)) / positives if positives else np.nan

    classes = [
        ap([pair[4] for pair in pairs if pair[3] == c], labels[:, c].sum()) for c in range(labels.shape[1])
    ]
    return ap([pair[4] for pair in pairs], max(labels.sum(), 1)), classes


@settings(deadline=None)
@given(integers(0, 10**6), integers(1, 12), sampled_from([1, 3, 20]), sampled_from([2, 1000]))
def test_ties_go_to_the_lower_class_then_to_the_earlier_video(seed, batch, k, steps):
    rng = np.random.RandomState(seed)
    scores = (rng.randint(-steps, steps, (12, 7)) / steps).astype(np.float32)
    labels = rng.rand(12, 7) < 0.3
    found = in_batches(scores, labels, k=k, batch=batch)
    overall, classes = by_definition(scores.tolist(), labels, k)
    assert found.gap == pytest.approx(overall, abs=1e-12)
    np.testing.assert_allclose(found.ap, classes, atol=1e-12)


def test_pieces_and_a_file_change_nothing(monkeypatch):
    rng = np.random.RandomState(0)
    scores, labels = rng.standard_normal((500, 40)).astype(np.float32), rng.rand(500, 40) < 0.1
    whole = measure(scores, labels)
    monkeypatch.setattr(module, "AT_ONCE", 700)
    monkeypatch.setattr(module, "IN_MEMORY", 1000)
    in_pieces = in_batches(scores, labels, k=20, batch=33)
    assert in_pieces[:5] == pytest.approx(whole[:5], abs=1e-12)
    np.testing.assert_allclose(in_pieces.ap, whole.ap, atol=1e-12)


def test_result_may_be_asked_for_on_the_way():
    rng = np.random.RandomState(1)
    scores, labels = rng.rand(8, 5), rng.rand(8, 5) < 0.4
    metrics = TaggingMetrics(5)
    metrics.add(scores[:3], labels[:3])
    assert metrics.result().gap == gap(scores[:3], labels[:3])
    metrics.add(scores[3:], labels[3:])
    metrics.add(scores[:0], labels[:0])
    assert metrics.result().gap == gap(scores, labels)


def test_a_perfect_ranking_gives_one_and_labels_beyond_k_cap_it():
    labels = np.eye(4, 30, dtype=bool)
    assert measure(labels.astype(float), labels)[:4] == (1, 1, 1, 1)
    many = np.ones((1, 25), bool)
    assert gap(np.linspace(1, 2, 25)[None], many) == pytest.approx(20 / 25)


def test_a_score_of_zero_does_not_count_in_perr():
    scores = np.array([[0.5, 0.0, 0.0]])
    assert measure(scores, np.array([[1, 1, 0]])).perr == 0.5
    assert measure(scores, np.array([[1, 1, 0]]), k=1).perr == 0.5


@given(integers(0, 10**6), sampled_from([3, 50]))
def test_ranked_is_a_stable_sort(seed, steps):
    rng = np.random.RandomState(seed)
    scores = np.round(rng.standard_normal((6, 15)) * steps)
    for k in (1, 4, 15, 20):
        np.testing.assert_array_equal(ranked(scores, k), np.argsort(-scores, axis=1, kind="stable")[:, :k])


def test_wrong_arguments_are_named():
    metrics = TaggingMetrics(3)
    with pytest.raises(MareyError, match="no video") as error:
        metrics.result()
    assert error.value.code == "NO_VIDEOS"
    for scores, labels in ((np.zeros((2, 4)), np.zeros((2, 4))), (np.zeros((2, 3)), np.zeros((1, 3)))):
        with pytest.raises(MareyError) as error:
            metrics.add(scores, labels)
        assert error.value.code == "SCORES_SHAPE"
    with pytest.raises(MareyError) as error:
        metrics.add(np.full((1, 3), np.nan), np.zeros((1, 3)))
    assert error.value.code == "SCORES_NAN"
    with pytest.raises(MareyError) as error:
        TaggingMetrics(3, k=0)
    assert error.value.code == "METRIC_ARGUMENT"


def test_lists_of_labels_become_a_table():
    table = multi_hot([[1, 1], [], [0, 2]], 3)
    assert table.tolist() == [
        [False, True, False],
        [False] * 3,
        [True, False, True],
    ]
    for wrong in (-1, 3):
        with pytest.raises(DataError, match=f"video b: label {wrong} is outside 0..2") as error:
            multi_hot([[0], [1, wrong]], 3, ["video a", "video b"])
        assert error.value.code == "LABEL_RANGE"


@pytest.mark.parametrize("spool", [False, True])
def test_parts_that_are_joined_give_the_same_bits(spool, monkeypatch):
    """As several processes measure: each its own part; scores are coarse, so that there are many ties."""
    rng = np.random.default_rng(5)
    scores, labels = rng.integers(0, 9, (200, 30)) / 9, rng.random((200, 30)) < 0.1
    if spool:
        monkeypatch.setattr(module, "IN_MEMORY", 1000)
    monkeypatch.setattr(module, "ONE_PART", 7 * module.PAIR.itemsize)
    whole = measure(scores, labels, 5)
    joined = TaggingMetrics(30, 5)
    for first, last in ((0, 90), (90, 90), (90, 200)):
        part = TaggingMetrics(30, 5)
        part.add(scores[first:last], labels[first:last])
        joined.join(part.counts(), part.pairs())
    found = joined.result()
    for name, value in whole._asdict().items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
    assert found.positives.tolist() == labels.sum(0).tolist()
