"""Selections against the published tables, the published search, and small tables worked out by hand."""

import numpy as np
import pytest

from marey.errors import DataError, UsageError
from marey.scores.presets import load_preset
from marey.scores.select import (
    NONE,
    Filters,
    Fixed,
    Precision,
    agreement,
    confidence_of,
    parse_policy,
    search_as_published,
    select,
    thresholds,
)
from marey.scores.vote import combine
from tests.scores.draws import ORACLES, drawn, load, noisy_truth

POLICIES = load("threshold_policies")["expected"]
SEARCH = load("threshold_search")
PUBLISHED = load("published")["expected"]
TABLES = np.load(ORACLES / "tables.npz")
TRUTH = TABLES["truth"].astype(np.int64)


def stage4():
    """Labels and probabilities of the published stage 4: only the confidence of each row is kept here."""
    labels, rows = TABLES["label4"].astype(np.int64), np.arange(len(TRUTH))
    probabilities = np.zeros((len(rows), 11), np.float32)
    probabilities[rows, labels] = TABLES["confidence4"]
    return labels, probabilities


@pytest.mark.parametrize("name", POLICIES)
def test_policies_keep_of_the_published_table_what_they_must(name):
    want, (labels, probabilities) = POLICIES[name], stage4()
    text = name.replace("precision>=", "precision:").replace("F", "fbeta:").replace(" ", ":")
    got = select(probabilities, labels, parse_policy(text), truth=TRUTH)
    assert [None if value == NONE else value for value in got.thresholds] == want["thresholds"]
    assert int(got.kept.sum()) == want["kept"]
    assert np.bincount(labels[got.kept], minlength=11).tolist() == want["kept_per_class"]
    known = got.kept & (TRUTH >= 0)
    right = (labels == TRUTH)[known]
    assert (len(right), int(right.sum())) == (want["kept_labelled"], want["correct"])
    assert right.mean() == want["accuracy"]


@pytest.mark.parametrize("stage", "1234")
def test_the_published_labels_are_as_right_as_is_said(stage):
    want, labels = PUBLISHED[f"stage{stage}"], TABLES[f"label{stage}"].astype(np.int64)
    known = (labels >= 0) & (TRUTH >= 0)
    assert int((labels >= 0).sum()) == want["rows"] and int(known.sum()) == want["arid"]
    assert np.bincount(labels[labels >= 0], minlength=11).tolist() == want["label_histogram"]
    assert int((labels == TRUTH)[known].sum()) == want["correct"]
    assert (labels == TRUTH)[known].mean() == want["accuracy"]


@pytest.mark.parametrize("stage", "123")
def test_no_published_row_lies_below_the_thresholds_of_its_preset(stage):
    least = TABLES[f"least{stage}"]
    given = np.array(load_preset(f"nightcrawler-2022/stage{stage}").select.thresholds)
    assert (least >= given).all() and (least[TABLES[f"least{stage}"] > 0] - given).min() < 1e-3
    assert least == pytest.approx(np.array(PUBLISHED[f"stage{stage}"]["smallest_max_prob"]), abs=1e-6)
    whole = np.unpackbits(TABLES[f"whole{stage}"])[: len(TRUTH)].astype(bool)
    assert int(whole.sum()) == PUBLISHED[f"stage{stage}"]["rows_summing_to_1"]


def test_the_published_search_prints_the_same_points():
    truth, members = drawn(SEARCH)
    labels = noisy_truth(SEARCH["input"]["seed"] + 1, truth, SEARCH["input"]["rate"])
    got = combine(load_preset("nightcrawler-2022/stage1"), members)
    for label, want in SEARCH["expected"].items():
        found = search_as_published(got.labels, got.probabilities.max(axis=1), labels, int(label))
        assert [list(point) for point in found] == want["records"]
        assert found[0].score == pytest.approx(3 * found[0].precision), "recall never enters"
    with pytest.raises(DataError) as error:
        search_as_published(got.labels, got.probabilities.max(axis=1), labels, 11)
    assert error.value.code == "TRUTH_MISSING"


# By hand ----------------------------------------------------------------------------------------------

LABELS = np.array([0, 0, 0, 0, 1, 1])
SURE = np.array([0.9, 0.8, 0.8, 0.6, 0.7, 0.5], np.float32)
REAL = np.array([0, 1, 0, 0, 1, -1])


def rows(labels=LABELS, sure=SURE, classes=3):
    """Probabilities with this confidence; the rest lies in the next class."""
    table = np.zeros((len(labels), classes), np.float32)
    table[np.arange(len(labels)), labels] = sure
    table[np.arange(len(labels)), (labels + 1) % classes] = 1 - sure
    return table


@pytest.mark.parametrize(
    ("policy", "want"),
    [
        ("quantile:0.5", [0.8, 0.7, NONE]),  # 2 of 4; the third equals the second
        ("quantile:0.25", [0.9, NONE, NONE]),
        ("quantile:1", [0.6, 0.5, NONE]),
        ("budget:1", [0.9, 0.7, NONE]),
        ("budget:9", [0.6, 0.5, NONE]),
        ("budget:0", [NONE] * 3),
        ("global:0.75", [0.75] * 3),
        ("fixed:0.5,none,0", [0.5, NONE, 0.0]),
        ("precision:0.7", [0.6, 0.7, NONE]),  # 1/1, then 2/3 (a tie), then 3/4
        ("precision:0.9", [0.9, 0.7, NONE]),
        ("fbeta:1", [0.6, 0.7, NONE]),
        ("fbeta:0.1", [0.9, 0.7, NONE]),  # precision nearly alone
    ],
)
def test_thresholds_by_hand(policy, want):
    got = thresholds(parse_policy(policy), LABELS, SURE, 3, REAL)
    assert got.tolist() == pytest.approx([float(np.float32(v)) if v not in (0.75, 0.5) else v for v in want])


def test_a_class_that_is_never_right_enough_can_fall_back_on_a_share():
    wrong = np.where(LABELS == 0, 1, REAL)
    assert thresholds(Precision(at_least=0.9), LABELS, SURE, 3, wrong)[0] == NONE
    assert thresholds(Precision(at_least=0.9, otherwise=0.25), LABELS, SURE, 3, wrong)[0] == pytest.approx(
        0.9
    )
    assert thresholds(Precision(at_least=0.7, rows=5), LABELS, SURE, 3, REAL)[0] == NONE


def test_only_policies_that_say_so_read_the_truth():
    class Sealed(np.ndarray):
        def __array_ufunc__(self, *_, **__):
            raise AssertionError("a true label was read")

    sealed = REAL.view(Sealed)
    for policy in ("quantile:0.5", "budget:2", "global:0.5", "fixed:0,0,0"):
        assert select(rows(), LABELS, parse_policy(policy), truth=sealed).kept.any()
    with pytest.raises(AssertionError, match="was read"):
        select(rows(), LABELS, parse_policy("fbeta:1"), truth=sealed)
    for truth in (None, np.full(6, -1)):
        with pytest.raises(UsageError) as error:
            select(rows(), LABELS, parse_policy("precision:0.9"), truth=truth)
        assert error.value.code == "TRUTH_MISSING"


def test_filters_give_the_first_reason_that_holds():
    members = [LABELS, np.array([0, 1, 0, 0, 1, 1]), np.array([0, 1, 0, 2, 1, 1])]
    everything = parse_policy("global:0")
    assert agreement(members, LABELS).tolist() == pytest.approx([1, 1 / 3, 1, 2 / 3, 1, 1])

    def reasons(policy=everything, **fields):
        previous = fields.pop("previous", None)
        found = select(rows(), LABELS, policy, Filters(**fields), members=members, previous=previous)
        assert found.kept.tolist() == [reason == "kept" for reason in found.reasons]
        return found.reasons

    kept = "kept"
    assert reasons(agreement=2 / 3) == (kept, "agreement", kept, kept, kept, kept)
    assert reasons(margin=0.5) == (kept, kept, kept, "margin", "margin", "margin")
    assert reasons(entropy=0.6) == (kept, kept, kept, "entropy", kept, "entropy")
    assert reasons(stable=True, previous=np.array([0, 1, -1, 0, 1, 0])) == (
        *(kept, "stable", kept, kept, kept, "stable"),
    )
    assert reasons(most=0.5) == (kept, kept, kept, "most", kept, kept)
    assert reasons(parse_policy("global:0.65"), agreement=1.0, most=1 / 6) == (
        *(kept, "agreement", "most", "threshold", kept, "threshold"),
    )
    for fields in ({"agreement": 0.5}, {"stable": True}):
        with pytest.raises(UsageError) as error:
            select(rows(), LABELS, everything, Filters(**fields))
        assert error.value.code == "POLICY"


@pytest.mark.parametrize(
    "text", ["quantile:2", "quantile:x", "budget:-1", "budget:0.5", "fbeta:0", "best", "fixed:"]
)
def test_a_policy_that_makes_no_sense_is_refused(text):
    with pytest.raises(UsageError) as error:
        parse_policy(text)
    assert error.value.code == "POLICY"


def test_confidence_may_be_the_margin_or_the_lack_of_entropy():
    """Three rows whose order differs by what is meant."""
    table = np.array([[0.5, 0.5, 0.0], [0.45, 0.3, 0.25], [0.5, 0.25, 0.25]], np.float32)
    labels = table.argmax(axis=1)
    best = {by: int(confidence_of(table, labels, by).argmax()) for by in ("probability", "margin", "entropy")}
    assert best == {"probability": 0, "margin": 2, "entropy": 0}
    worst = {by: int(confidence_of(table, labels, by).argmin()) for by in ("margin", "entropy")}
    assert worst == {"margin": 0, "entropy": 1}
    got = select(table, labels, parse_policy("budget:1"), by="margin")
    assert got.kept.tolist() == [False, False, True] and got.thresholds[0] == pytest.approx(0.25)
    with pytest.raises(UsageError, match="margin"):
        select(table, labels, parse_policy("budget:1"), by="margins")


def test_fixed_thresholds_need_one_for_each_class():
    with pytest.raises(UsageError, match="2 fixed thresholds for 3 classes"):
        select(rows(), LABELS, Fixed(thresholds=(0.5, 0.5)))
