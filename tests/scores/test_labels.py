"""Pseudo-labels: what they hold, that files bring them back, and the published lists."""

import gzip

import numpy as np
import pytest

from marey.errors import DataError
from marey.scores.labels import (
    FACTS,
    Origin,
    pseudo_labels,
    read_ids,
    read_labels,
    read_truth,
    truth_of,
    write_labels,
    write_published_labels,
)
from marey.scores.presets import load_preset
from marey.scores.select import NONE, Filters, parse_policy
from marey.scores.vote import combine
from tests.scores.draws import drawn, load

TRUTH, MEMBERS = drawn(load("stages"))
NAMES = [f"{row}.mp4" for row in range(len(TRUTH))]
CLASSES = ["Drink", "Jump", "Pick", "Pour", "Push", "Run", "Sit", "Stand", "Turn", "Walk", "Wave"]
EXCERPT = load("excerpt")


def made(policy="quantile:0.5", filters=None, **fields):
    combined = combine(load_preset("nightcrawler-2022/stage1"), MEMBERS)
    return pseudo_labels(NAMES, combined, parse_policy(policy), filters, **fields)


def same(one, other):
    assert (one.ids, one.reasons) == (other.ids, other.reasons)
    for name in ("labels", "kept", "probabilities", "previous"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype and np.array_equal(a, b), name
    for name in FACTS:
        assert np.array_equal(one.facts[name], other.facts[name]), name
    assert one.members.keys() == other.members.keys()
    for name, (best, sure) in one.members.items():
        assert np.array_equal(best, other.members[name][0]) and np.array_equal(sure, other.members[name][1])


def test_a_table_says_of_every_video_what_was_found_and_why():
    labels = made(filters=Filters(agreement=0.75), classes=CLASSES, weigh=True)
    rows = np.arange(len(labels))
    said = np.stack([best for best, _ in labels.members.values()])
    assert labels.facts["agreement"] == pytest.approx((said == labels.labels).mean(axis=0))
    assert labels.facts["confidence"] == pytest.approx(labels.probabilities[rows, labels.labels])
    assert labels.probabilities.argmax(axis=1).tolist() == labels.labels.tolist()
    above = labels.facts["confidence"] >= labels.facts["threshold"]
    assert np.array_equal(labels.kept, above & (labels.facts["agreement"] >= 0.75))
    assert np.array_equal(labels.facts["weight"], np.where(labels.kept, labels.facts["confidence"], 0))
    assert set(labels.reasons) == {"kept", "threshold", "agreement"}
    origin = labels.origin
    assert origin.thresholds[3] == labels.facts["threshold"][labels.labels == 3][0]
    assert origin.filters.agreement == 0.75 and origin.labels_used == ""
    assert np.array_equal(made().facts["weight"], made().kept), "else rows weigh 1"


def test_labels_that_were_used_are_remembered():
    labels = made("fbeta:1", truth=TRUTH, origin=Origin(round=3, labels_used="weights"))
    assert labels.origin.round == 3
    assert labels.origin.labels_used == "weights; thresholds were found with true labels of the target"


def test_the_round_before_is_matched_by_name():
    first = made("quantile:0.3")
    second = made("quantile:0.9", Filters(stable=True), previous=first)
    assert np.array_equal(second.previous, np.where(first.kept, first.labels, -1))
    assert second.kept.sum() > first.kept.sum()
    swapped = combine(load_preset("nightcrawler-2022/stage1"), {k: v[:, ::-1] for k, v in MEMBERS.items()})
    third = pseudo_labels(NAMES, swapped, parse_policy("global:0"), Filters(stable=True), previous=first)
    assert set(third.reasons) == {"kept", "stable"}
    assert np.array_equal(third.kept, ~first.kept | (third.labels == first.labels))


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_a_table_comes_back_from_its_file(tmp_path, suffix, classes):
    """CSV holds everything but the origin; a class without a threshold has an empty cell."""
    labels = made("fixed:0.5,none,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9", classes=classes, previous=made())
    assert NONE in labels.facts["threshold"]
    write_labels(tmp_path / f"x{suffix}", labels)
    got = read_labels(tmp_path / f"x{suffix}")
    same(got, labels)
    assert got.classes == (None if classes is None else tuple(classes))
    assert got.origin == (labels.origin if suffix == ".parquet" else Origin())


def test_the_columns_of_a_csv_are_the_documented_ones(tmp_path):
    write_labels(tmp_path / "x.csv", made(classes=CLASSES))
    head, first, *_ = (tmp_path / "x.csv").read_text().splitlines()
    assert head.startswith(
        "id,label,kept,reason,confidence,threshold,margin,entropy,agreement,previous,weight,prob_Drink,prob_Jump"
    )
    assert head.endswith("label_ssv2,label_uni,label_mvit,label_slowfast,confidence_ssv2,confidence_uni,"
                         "confidence_mvit,confidence_slowfast")  # fmt: skip
    assert first.startswith("0.mp4,5,1,kept,0.7615")


# Published lists --------------------------------------------------------------------------------------


def excerpt(stage):
    return [row for row in EXCERPT["rows"] if row[0] == stage]


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_published_rows_are_read_and_are_as_right_as_is_said(tmp_path, stage):
    rows, want = excerpt(stage), EXCERPT["expected"][f"stage{stage}"]
    file = tmp_path / "stage.csv.gz"
    short = [",".join([row[1], str(row[2]), *(f"{p:.9g}".lstrip("0") for p in row[4:])]) for row in rows]
    file.write_bytes(gzip.compress("\n".join(short).encode()))
    labels = read_labels(file)
    assert labels.ids == tuple(row[1] for row in rows) and labels.kept.all()
    assert np.array_equal(labels.probabilities, np.array([row[4:] for row in rows], np.float32))
    assert np.array_equal(labels.labels, labels.probabilities.argmax(axis=1))
    truth = truth_of(labels.ids, {row[1]: row[3] for row in rows if row[3] is not None})
    known = truth >= 0
    assert (int(known.sum()), int((truth == labels.labels)[known].sum())) == (
        want["with_truth"],
        want["correct"],
    )


def test_published_rows_are_written_as_doubles_and_come_back_to_the_bit(tmp_path):
    """float32 0.015513935 is 0.015513935126364231 as a double; rows that are not kept are not written."""
    labels = made()
    write_published_labels(tmp_path / "x.csv", labels)
    again = read_labels(tmp_path / "x.csv")
    kept = np.flatnonzero(labels.kept)
    assert again.ids == tuple(labels.ids[row] for row in kept)
    assert np.array_equal(again.probabilities, labels.probabilities[kept])
    write_published_labels(tmp_path / "y.csv", again)
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "y.csv").read_bytes()
    (tmp_path / "z.csv").write_text("2.mp4,1,.015513935,.9\n")
    write_published_labels(tmp_path / "w.csv", read_labels(tmp_path / "z.csv"))
    assert (tmp_path / "w.csv").read_bytes() == b"2.mp4,1,0.015513935126364231,0.8999999761581421\n"


# Lists ------------------------------------------------------------------------------------------------


def test_lists_of_true_classes_and_of_names(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("path,label\nDrink/1.mp4,0\n2.mp4,-1\n3.mp4,7,0.1\n")
    assert read_truth(file) == {"Drink/1.mp4": 0, "3.mp4": 7}
    assert read_ids(file) == ("Drink/1.mp4", "2.mp4", "3.mp4")
    assert truth_of(("3.mp4", "4.mp4"), read_truth(file)).tolist() == [7, -1]
    for text, code in (("a,0\nb,x\n", "LIST_LINES"), ("a,0\na,1\n", "SCORES_DUPLICATE")):
        file.write_text(text)
        with pytest.raises(DataError, match="line 2") as error:
            read_truth(file)
        assert error.value.code == code
    file.write_text("label,split,path\n4,train,a b.mp4\n-1,val,c.mp4\n")
    assert read_truth(file) == {"a b.mp4": 4} and read_ids(file) == ("a b.mp4", "c.mp4")
    with pytest.raises(DataError) as error:
        read_truth(tmp_path / "missing.csv")
    assert error.value.code == "LIST_FORMAT"


@pytest.mark.parametrize(
    "text",
    ["", "a,0\n", "a,x,0.5,0.5\n", "a,0,0.5,0.5\nb,0,1\n", "id,label\na,0\n", "a,9,1,0\n", "a,-1,1,0\n"],
)
def test_a_file_without_pseudo_labels_is_named(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    (tmp_path / "x.parquet").write_text(text)
    for suffix in ("csv", "parquet"):
        with pytest.raises(DataError, match=rf"x\.{suffix}") as error:
            read_labels(tmp_path / f"x.{suffix}")
        assert error.value.code == "LABELS_FORMAT"
