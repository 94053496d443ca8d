"""Proposals are the same whatever file they come from; what is wrong is named by key frame, box, column."""

import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marey.data.proposals import Proposals, read_proposals, recall, write_proposals
from marey.errors import DataError, UsageError, WeightsError
from marey.metrics.ava_tables import Faults

TABLES = {
    "-5KQ,0902": np.array([[0.1, 0.2, 0.5, 0.75, 0.99], [0.25, 0.25, 1.0, 1.0, 0.5]]),
    "b_c,1798": np.array([[0.0, 0.0, 0.125, 1.0, 1.0]]),
}


def same(one, other):
    assert list(one.keys) == list(other.keys)
    for key in one.keys:
        for a, b in zip(one.all_of(key), other.all_of(key), strict=True):
            np.testing.assert_array_equal(a, b)


def refusal(path):
    with pytest.raises(DataError) as error:
        read_proposals(path)
    assert (
        "\n" not in error.value.message or error.value.code == "AVA_ROWS" or "faults" in error.value.message
    )
    return error.value


@pytest.mark.parametrize("protocol", range(6))
def test_published_pickles_are_read(tmp_path, protocol):
    path = tmp_path / "train.pkl"
    path.write_bytes(pickle.dumps({**TABLES, "none,0903": np.empty((0, 5))}, protocol))
    found = read_proposals(path)
    same(found, Proposals.of({**TABLES, "none,0903": []}))
    assert len(found) == 3 and found.select("none,0903")[0].shape == (0, 4)


def test_a_pickle_that_asks_for_more_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "train.pkl", tmp_path / "trace"

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    path.write_bytes(pickle.dumps({"a,0902": Hostile()}))
    with pytest.raises(WeightsError) as error:
        read_proposals(path)
    assert error.value.code == "WEIGHTS_UNSAFE" and not trace.exists()


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
@pytest.mark.parametrize("columns", [4, 5])
def test_what_is_written_is_read_again(tmp_path, suffix, columns):
    made = Proposals.of({key: table[:, :columns] for key, table in TABLES.items()})
    write_proposals(tmp_path / f"p{suffix}", made)
    same(read_proposals(tmp_path / f"p{suffix}"), made)


def test_other_spellings_of_the_same(tmp_path):
    (tmp_path / "bare.csv").write_text(
        "-5KQ,0902,0.1,0.2,0.5,0.75,,0.99\nb_c,1798,0,0,0.125,1,3,1\n-5KQ,0902,0.25,0.25,1,1,,0.5\n\n"
    )
    same(read_proposals(tmp_path / "bare.csv"), Proposals.of(TABLES))
    items = [
        {"video": "-5KQ", "second": 902, "box": [20, 20, 100, 75], "width": 200, "height": 100,
         "score": 0.99},
        {"image_id": "-5KQ,902", "bbox": [50, 25, 150, 75], "width": 200, "height": 100, "score": 0.5,
         "category_id": 1},
        {"key": "b_c,1798", "box": [0, 0, 0.125, 1], "score": 1},
        {"key": "b_c,1798", "box": [0, 0, 1, 1], "score": 1, "category_id": 18},
    ]  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(items))
    (tmp_path / "coco.jsonl").write_text("\n".join(map(json.dumps, items)) + "\n")
    for name in ("coco.json", "coco.jsonl"):
        found = read_proposals(tmp_path / name)
        same(found, Proposals.of(TABLES))
        assert found.notes == ("1 of 4 boxes have a category_id other than 1 and are left out",)
    short = {
        "video": ["a"],
        "second": pa.array([3], pa.int16()),
        "x1": [0],
        "y1": [0.0],
        "x2": [1],
        "y2": [1.0],
    }
    pyarrow.parquet.write_table(pa.table(short), tmp_path / "p.parquet")
    same(read_proposals(tmp_path / "p.parquet"), Proposals.of({"a,0003": [[0, 0, 1, 1]]}))
    mixed = {"video": ["b", "a", "b"], "second": [3.0, 1.0, 3.0], "x1": [0.5, 0.0, 0.25]}
    mixed |= {"y1": [0.0] * 3, "x2": [1.0] * 3, "y2": [1.0] * 3, "score": [0.5, 0.25, 0.75]}
    pyarrow.parquet.write_table(pa.table(mixed), tmp_path / "p.parquet")
    boxes = {"b,0003": [[0.5, 0, 1, 1, 0.5], [0.25, 0, 1, 1, 0.75]], "a,0001": [[0, 0, 1, 1, 0.25]]}
    same(read_proposals(tmp_path / "p.parquet"), Proposals.of(boxes))
    mixed["video"][1] = None
    pyarrow.parquet.write_table(pa.table(mixed), tmp_path / "p.parquet")
    with pytest.raises(DataError, match="row 1, column video: no key frame is named"):
        read_proposals(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("table", "code", "text"),
    [
        ({"abc": [[0, 0, 1, 1, 1]]}, "AVA_KEY", "key 'abc': names no key frame"),
        ({"a,b,0902": [[0, 0, 1, 1, 1]]}, "AVA_KEY", "'a,b,0902'"),
        ({"a,0902": [[0, 0, 1]]}, "AVA_COLUMNS", "an array of shape [1, 3]"),
        ({"a,0902": [[0, 0, 1, "x", 1]]}, "AVA_COLUMNS", "no table of numbers"),
        ({"a,0902": [[0, 0, 1, 1, 1], [0, 1.2, 1, 1.5, 1]]}, "AVA_BOX", "'a,0902', box 2, column y1: 1.2 is"),
        ({"a,0902": [[10, 10, 200, 100, 1]]}, "AVA_BOX", "these are pixels"),
        ({"b,0902": [], "a,0902": [[0.5, 0, 0.3, 1, 1]]}, "AVA_BOX", "box 1, column x2: 0.3 lies before x1"),
        ({"a,0902": [[0, 0, 1, 1, 7]]}, "AVA_SCORE", "'a,0902', box 1, column score: 7 is not in 0..1"),
        ([1, 2], "AVA_COLUMNS", "item 1: expected an object"),
        ([{"video": "a", "box": [0, 0, 1, 1]}], "AVA_KEY", "item 1: neither"),
        ([{"video": "a", "second": np.inf, "box": [0, 0, 1, 1]}], "AVA_KEY", "item 1: neither"),
        ([{"key": "a,0902", "box": [0, 0, 1]}], "AVA_BOX", "item 1, column box"),
        ([{"key": "a,0902", "bbox": [0, 0, 9, 9], "width": 0, "height": 9}], "AVA_BOX", "item 1, column box"),
        ({}, "AVA_EMPTY", "no key frame"),
        (3, "AVA_FORMAT", "expected an object by key frame"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, table, code, text):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(table))
    error = refusal(path)
    assert error.code == code
    assert text in error.message and str(path) in error.message


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("a,0902,0,0,1", "AVA_COLUMNS", ":1"),
        ("a,0902,0,zero,1,1,1", "AVA_BOX", "line 1, column y1: 'zero' is no number"),
        ("a,soon,0,0,1,1,1", "AVA_SECOND", "line 1, column second: 'soon'"),
        ("a,1e400,0,0,1,1,1", "AVA_SECOND", "line 1, column second: 1e400 is no time stamp"),
        ("a,0902,0,0,1,1,", "AVA_SCORE", "line 1, column score: '' is no number"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_by_line_and_column(tmp_path, line, code, text):
    (tmp_path / "p.csv").write_text(f"{line}\n")
    error = refusal(tmp_path / "p.csv")
    assert error.code == code
    assert text in error.message or code == "AVA_COLUMNS"


def test_files_that_are_none(tmp_path):
    assert refusal(tmp_path / "missing.pkl").code == "NOT_FOUND"
    for name in ("p.parquet", "p.json", "p.txt"):
        (tmp_path / name).write_text("{not")
        assert refusal(tmp_path / name).code == "AVA_FORMAT"
    pyarrow.parquet.write_table(pa.table({"video": ["a"]}), tmp_path / "p.parquet")
    assert "no column second" in refusal(tmp_path / "p.parquet").message
    with pytest.raises(UsageError) as error:
        write_proposals(tmp_path / "p.pkl", Proposals.of(TABLES))
    assert error.value.code == "OUT_SUFFIX"


def test_collected_faults_leave_the_other_boxes(tmp_path):
    path = tmp_path / "p.json"
    table = {
        "a,0902": [[0, 0, 1, 1, 1], [0, 0, 9, 1, 1], [0, 0, 0.5, 1, 0.5]],
        "x": [],
        "b,0903": [[0, 0, 1, 1, 3]],
    }
    path.write_text(json.dumps(table))
    faults = Faults(path)
    found = read_proposals(path, faults)
    assert faults.counts == {"AVA_KEY": 1, "AVA_BOX": 1, "AVA_SCORE": 1}
    same(found, Proposals.of({"a,0902": [[0, 0, 1, 1, 1], [0, 0, 0.5, 1, 0.5]], "b,0903": []}))


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0, 1), st.integers(1, 4))
def test_the_boxes_that_count_are_those_of_the_rule(scores, threshold, most):
    table = [[i / 10, 0, 1, 1, score] for i, score in enumerate(scores)]
    boxes, kept = Proposals.of({"a,0000": table}).select("a,0000", threshold=threshold, most=most)
    expected = [row for row in table if row[4] >= min(threshold, max(scores, default=0))][:most]
    assert boxes.tolist() == [row[:4] for row in expected]
    assert kept.tolist() == [row[4] for row in expected]
    assert len(boxes) > 0 or not scores


def test_a_key_frame_that_is_not_listed_is_one_box():
    boxes, scores = Proposals.of(TABLES).select("a,0001")
    assert boxes.tolist() == [[0, 0, 1, 1]] and scores.tolist() == [1]


def test_recall_counts_the_true_boxes_that_are_proposed():
    true = {
        "-5KQ,0902": [[0.1, 0.2, 0.5, 0.7], [0.25, 0.25, 1, 1]],
        "b_c,1798": [[0.5, 0, 1, 1]],
        "no,0001": [[0, 0, 1, 1]],
    }
    proposals = Proposals.of(TABLES)
    assert recall(true, proposals) == 1 / 4  # the second's proposal scores too little
    assert recall(true, proposals, threshold=0.5) == 2 / 4
    assert np.isnan(recall({}, proposals))
