"""AVA's tables are read as written; what is wrong is named by line and column."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marey.errors import DataError
from marey.metrics import ava_tables
from marey.metrics.ava_tables import (
    Faults,
    csv_lines,
    key_of,
    make_rows,
    read_exclusions,
    read_label_map,
    read_rows,
    split_key,
    write_annotations,
    write_results,
)

GOOD = "-5KQ_6BBWC4,0902,0.077,0.151,0.283,0.811,80,1\nvideo,1798,0,0,1,1,9,0\n"


def written(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("fast", [True, False])
def test_rows_are_read_as_they_are_written(tmp_path, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(ava_tables, "_fast_rows", lambda *_: None)
    rows = read_rows(written(tmp_path, GOOD), "annotation")
    assert rows.videos == ("-5KQ_6BBWC4", "video") and rows.keys() == ["-5KQ_6BBWC4,0902", "video,1798"]
    assert rows.boxes.tolist() == [[0.077, 0.151, 0.283, 0.811], [0, 0, 1, 1]]
    assert (rows.action.tolist(), rows.extra.tolist(), rows.lines.tolist()) == ([80, 9], [1, 0], [1, 2])
    results = read_rows(written(tmp_path, GOOD.replace(",1\n", ",0.25\n")), "result")
    assert results.extra.tolist() == [0.25, 0]
    excluded = read_exclusions(written(tmp_path, "a,0902\nb,1000.5\n"))
    assert excluded == {"a,0902", "b,1000.5"}


def test_both_ways_of_reading_agree(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    low = rng.random((300, 2)) / 2
    keys = [f"v{rng.integers(5)},{rng.integers(900, 990):04d}" for _ in range(300)]
    made = make_rows(keys, np.c_[low, low + 0.4], rng.integers(1, 81, 300), rng.integers(0, 9, 300))
    write_annotations(tmp_path / "a.csv", made)
    fast = read_rows(tmp_path / "a.csv", "annotation")
    monkeypatch.setattr(ava_tables, "_fast_rows", lambda *_: None)
    slow = read_rows(tmp_path / "a.csv", "annotation")
    assert fast.videos == slow.videos == made.videos
    for one, other in zip(fast[1:], slow[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(fast.boxes, made.boxes, atol=5e-7)
    np.testing.assert_array_equal(fast.action, made.action)


def test_truth_may_have_key_frames_without_anybody(tmp_path):
    rows = read_rows(written(tmp_path, f"{GOOD}\nvideo,0003\nvideo,0004,0,0,1,1,2\n"), "truth")
    assert rows.action.tolist() == [80, 9, 0, 2] and np.isnan(rows.boxes[2]).all()
    assert rows.lines.tolist() == [1, 2, 4, 5] and np.isnan(rows.extra[2:]).all()


FAULTS = {
    "a,0902,0,0,1,1,1": ("AVA_COLUMNS", "line 2: 7 columns; expected 8 (video,second,x1,y1,x2,y2,action,"),
    "a;0902;0;0;1;1;1;0": ("AVA_COLUMNS", "by commas, not semicolons"),
    "a\t0902\t0\t0\t1\t1\t1\t0": ("AVA_COLUMNS", "by commas, not tabs"),
    ",0902,0,0,1,1,1,0": ("AVA_VIDEO", "line 2, column video: is empty"),
    "a,early,0,0,1,1,1,0": ("AVA_SECOND", "line 2, column second: 'early' is no number"),
    "a,-3,0,0,1,1,1,0": ("AVA_SECOND", "line 2, column second: -3 is no time stamp"),
    "a,0902,left,0,1,1,1,0": ("AVA_BOX", "line 2, column x1: 'left' is no number"),
    "a,0902,0,0,nan,1,1,0": ("AVA_BOX", "line 2, column x2: 'nan' is no number"),
    "a,0902,0,0,1,1.5,1,0": ("AVA_BOX", "line 2, column y2: 1.5 is not in 0..1"),
    "a,0902,0.5,0,0.4,1,1,0": ("AVA_BOX", "line 2, column x2: 0.4 lies before x1"),
    "a,0902,0,0.5,1,0.25,1,0": ("AVA_BOX", "line 2, column y2: 0.25 lies before y1"),
    "a,0902,0,0,1,1,0,0": ("AVA_ACTION", "line 2, column action: 0; actions count from 1"),
    "a,0902,0,0,1,1,run,0": ("AVA_ACTION", "line 2, column action: 'run' is no whole number"),
    "a,0902,0,0,1,1,1.5,0": ("AVA_ACTION", "'1.5' is no whole number"),
    "a,0902,0,0,1,1,1,who": ("AVA_ENTITY", "line 2, column entity: 'who' is no whole number"),
    "a,0902,{0},0,1,1,1,1": ("AVA_BOX", "'{0}' is no number"),
}  # fmt: skip


@pytest.mark.parametrize("line", FAULTS)
def test_a_wrong_row_is_named(tmp_path, line):
    code, text = FAULTS[line]
    path = written(tmp_path, f"b,0902,0,0,1,1,1,0\n{line}\n")
    with pytest.raises(DataError) as error:
        read_rows(path, "annotation")
    assert error.value.code == code
    assert text in error.value.message and error.value.message.startswith(str(path))
    faults = Faults(path)
    assert len(read_rows(path, "annotation", faults).video) == 1 and faults.counts == {code: 1}


def test_pixels_are_recognised_and_many_faults_counted(tmp_path):
    path = written(tmp_path, "a,0902,10,20,110,220,1,0\n" * 50 + "a,0902,0,0,1,1,0,0\n")
    with pytest.raises(DataError) as error:
        read_rows(path, "annotation")
    assert error.value.code == "AVA_ROWS" and "51 faults, the first 20" in error.value.message
    assert "divide them by width and height" in error.value.message
    assert len(error.value.message.splitlines()) == 21


def test_a_little_beyond_the_frame_is_taken_and_more_is_told_what_to_do(tmp_path):
    rows = read_rows(written(tmp_path, "a,0902,-0.01,0,1.01,1,1,0\n"), "annotation")
    assert rows.boxes.tolist() == [[-0.01, 0, 1.01, 1]]
    with pytest.raises(
        DataError, match=r"line 1, column x2: 1\.02 is not in 0\.\.1.*; cut boxes at"
    ) as error:
        read_rows(written(tmp_path, "a,0902,0,0,1.02,1,1,0\n"), "annotation")
    assert error.value.code == "AVA_BOX"


def test_a_header_is_named_and_blank_lines_do_not_shift_the_numbers(tmp_path):
    with pytest.raises(DataError, match="line 1: a header; the table has none"):
        read_rows(written(tmp_path, "video,second,x,y,x,y,action,entity\n" + GOOD), "annotation")
    with pytest.raises(DataError, match="line 4, column action"):
        read_rows(written(tmp_path, "\n\n" + GOOD.replace("9,0", "0,0")), "annotation")


def test_results_need_finite_numbers_only(tmp_path):
    rows = read_rows(written(tmp_path, "a,902,-3,5,-4,700,1,1.5\n"), "result")
    assert rows.boxes.tolist() == [[-3, 5, -4, 700]]
    for line in ("a,902,0,0,inf,1,1,0.5\n", "a,902,0,0,1,1,1,inf\n", "a,902,0,0,1,1,1,\n"):
        with pytest.raises(DataError) as error:
            read_rows(written(tmp_path, line), "result")
        assert error.value.code in ("AVA_BOX", "AVA_SCORE")


@pytest.mark.parametrize("other", ["", "b,902,0,0,1,1,2,0.25\n"])
def test_a_result_without_score_counts_as_sure(tmp_path, other):
    rows = read_rows(written(tmp_path, f"a,902,0,0,1,1,1\n{other}"), "result")
    assert rows.extra.tolist() == [1.0, 0.25][: len(rows.extra)]


def test_files_that_are_none(tmp_path):
    for path, code in ((tmp_path / "none.csv", "NOT_FOUND"), (tmp_path, "NO_ACCESS")):
        for read in (lambda p: read_rows(p, "truth"), read_label_map):
            with pytest.raises(DataError) as error:
                read(path)
            assert error.value.code == code
    with pytest.raises(DataError) as error:
        read_rows(written(tmp_path, "\n"), "truth")
    assert error.value.code == "AVA_EMPTY"
    assert read_exclusions(written(tmp_path, "")) == frozenset()


# Names of key frames ----------------------------------------------------------------------------------


@given(
    st.text(st.characters(blacklist_characters=",\n"), min_size=1), st.integers(0, 10**7), st.integers(0, 999)
)
def test_names_of_key_frames_are_read_again(video, whole, milli):
    key = key_of(video, whole + milli / 1000)
    assert split_key(key) == (video, pytest.approx(whole + milli / 1000, abs=1e-9))
    assert key_of(*split_key(key)) == key


def test_names_of_key_frames():
    assert (key_of("a", 2), key_of("a", 902.5), key_of("a", 12345)) == ("a,0002", "a,0902.5", "a,12345")
    for wrong in ("a", "a,", ",0902", "a,b,0902", "a,x", "a,-1", "a,1e3", ""):
        assert split_key(wrong) is None
    with pytest.raises(DataError) as error:
        make_rows(["a:0902"], [[0, 0, 1, 1]], [1], [0])
    assert error.value.code == "AVA_KEY"


def test_results_are_written_with_all_their_digits(tmp_path):
    rows = make_rows(["a,0002", "a,0002.5"], [[0, 0.1234567, 1, 1]] * 2, [3, 80], [0.00250001, 0.5])
    assert list(csv_lines(rows)) == [
        "a,2,0.000000,0.123457,1.000000,1.000000,3,0.002500",
        "a,2.5,0.000000,0.123457,1.000000,1.000000,80,0.500000",
    ]
    write_results(tmp_path / "r.csv", rows)
    again = read_rows(tmp_path / "r.csv", "result")
    np.testing.assert_allclose(again.boxes, rows.boxes, atol=5e-7)
    assert again.keys() == rows.keys() and again.action.tolist() == [3, 80]


# Label maps -------------------------------------------------------------------------------------------


def test_label_maps_of_every_syntax(tmp_path):
    expected = {2: "walk", 7: "talk to (e.g., self)"}
    texts = {
        "a.pbtxt": 'item {\n  name: "walk"\n  id: 2\n}\nitem {\n  name: "talk to (e.g., self)"\n  id: 7\n}\n',
        "b.pbtxt": 'label {\nname: "walk"\nlabel_id: 2\nlabel_type: PERSON_MOVEMENT\n}\n'
        'label {\n\tname:"talk to (e.g., self)"\n\tlabel_id:7\n}\n',
        "c.csv": 'id,name\n2,walk\n7,"talk to (e.g., self)"\n',
    }
    for name, text in texts.items():
        assert read_label_map(written(tmp_path, text, name)) == expected
    assert read_label_map(written(tmp_path, "walk\nrun\n", "d.txt")) == {1: "walk", 2: "run"}


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.pbtxt", 'item {\n  id: 2\n  name: "walk"\n}\n', ":2: an id before its name"),
        ("a.pbtxt", 'item {\n  name: "walk"\n  id: two\n}\n', ":3: id 'two' is no whole number"),
        ("a.pbtxt", 'name: "a"\nid: 1\nname: "b"\nid: 1\n', ":4: action 1 is named twice"),
        ("a.csv", "0,walk\n", ":1: action 0 is below 1"),
        ("a.csv", "1,walk\nrun\n", ":2: expected `id,name`"),
        ("a.pbtxt", "# nothing\n", ": no action is named"),
    ],
)
def test_a_wrong_label_map_is_named(tmp_path, name, text, line):
    with pytest.raises(DataError) as error:
        read_label_map(written(tmp_path, text, name))
    assert error.value.code == "AVA_LABELS" and line in error.value.message
