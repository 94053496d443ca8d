"""Annotations become the published samples, of AVA and of anything else; media are found by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marey.data.ava import AVA, KeyFrames, ava_set, check_rows, find_media, proposed_set
from marey.data.proposals import Proposals
from marey.errors import DataError, UsageError
from marey.metrics.ava_tables import Faults, make_rows, read_exclusions, read_rows

ORACLE = json.loads((Path(__file__).parent / "oracles" / "ava" / "dataset.json").read_text())


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("\n".join(ORACLE["rows"]) + "\n")
    return read_rows(path, "annotation")


@pytest.mark.parametrize("case", ORACLE["frames"])
def test_rows_become_the_published_samples(case, rows, tmp_path):
    (tmp_path / "excluded.csv").write_text("\n\n".join(ORACLE["excluded"]) + "\n\n")
    custom = ORACLE["custom"] if "custom" in case else None
    frames = ava_set(
        rows,
        proposals=Proposals.of(ORACLE["proposals"]),
        excluded=read_exclusions(tmp_path / "excluded.csv"),
        training="train" in case,
        num_classes=ORACLE["num_classes"] if custom is None else len(custom) + 1,
        custom=custom,
        most=ORACLE["most"],
    )
    expected = ORACLE["frames"][case]
    assert [frames.key(i) for i in range(len(frames))] == [one["key"] for one in expected]
    for frame, one in zip(frames, expected, strict=True):
        assert frame.boxes.tolist() == one["boxes"]
        assert [np.flatnonzero(row).tolist() for row in frame.labels] == one["labels"]
        assert set(np.unique(frame.labels)) <= {0.0, 1.0} and not frame.labels[:, 0].any()
        assert frame.entities.tolist() == one["entities"]
        assert frame.proposals.tolist() == one["proposals"]
        assert (None if frame.scores is None else frame.scores.tolist()) == one["scores"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 2), st.integers(1, 5), st.booleans()
        ),
        min_size=1,
        max_size=30,
    )
)
def test_grouping_equals_a_plain_one(entries):
    """Rows: video, second, which of three boxes, action, whether the row ends after the second."""
    boxes = [[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.6], [0, 0, 1, 1]]
    made = make_rows(
        [f"{video},{second:04d}" for video, second, *_ in entries],
        [[np.nan] * 4 if bare else boxes[box] for *_, box, _, bare in entries],
        [0 if bare else action for *_, action, bare in entries],
        [np.nan if bare else box for *_, box, _, bare in entries],
    )
    plain: dict[str, dict[int, set[int]]] = {}
    for video, second, box, action, bare in entries:
        persons = plain.setdefault(f"{video},{second:04d}", {})
        if not bare:
            persons.setdefault(box, set()).add(action)
    found = {
        frame.key: {
            boxes.index(box): set(np.flatnonzero(row).tolist())
            for box, row in zip(frame.boxes.tolist(), frame.labels, strict=True)
        }
        for frame in ava_set(made, num_classes=6)
    }
    assert list(found.items()) == list(plain.items())
    if any(plain.values()):
        trained = [frame.key for frame in ava_set(made, num_classes=6, training=True)]
        assert trained == [key for key, persons in plain.items() if persons]


def test_training_says_what_it_leaves_out(rows):
    frames = ava_set(rows, training=True, excluded={"vid00-_x,0903", "vid01-_x,0904"})
    assert frames.notes == ("2 excluded key frames are left out",)
    assert frames[0].proposals.shape == (0, 4) and frames[0].scores is None
    assert frames.persons == sum(len(frame.boxes) for frame in frames)
    with pytest.raises(DataError) as error:
        ava_set(rows, training=True, excluded={frame.key for frame in ava_set(rows)})
    assert error.value.code == "AVA_EMPTY"


def test_an_action_beyond_the_classes_names_its_line(rows):
    with pytest.raises(DataError, match=r"line 1 .*column action: 14.* 7 rows") as error:
        ava_set(rows, num_classes=13)
    assert error.value.code == "AVA_ACTION"


@pytest.mark.parametrize(
    ("custom", "num_classes"), [([3, 3], 3), ([0, 1], 3), ([1, 2], 4), ([1, 2, 3], 3), ([], 2)]
)
def test_custom_classes_must_fit(rows, custom, num_classes):
    with pytest.raises(UsageError) as error:
        ava_set(rows, custom=custom, num_classes=num_classes)
    assert error.value.code == "AVA_CLASSES"


def test_proposals_alone_are_key_frames_where_nobody_is_labelled():
    proposals = Proposals.of({"b,0003": [[0, 0, 0.5, 0.5, 0.95]], "a,0002.5": np.empty((0, 5))})
    frames = proposed_set(proposals, num_classes=4)
    assert [(f.key, f.video, f.second) for f in frames] == [("b,0003", "b", 3.0), ("a,0002.5", "a", 2.5)]
    assert frames[0].labels.shape == (0, 4) and frames[0].proposals.tolist() == [[0, 0, 0.5, 0.5]]
    assert frames[1].proposals.shape == (0, 4)


def test_key_frames_are_counted_at_any_rate_from_any_start():
    assert (AVA.frame(902), AVA.frame(1798)) == (60, 26940)
    assert AVA.limit(27030) == 26998 and AVA.limit(100) == 99
    own = KeyFrames(fps=12.5, start=2, step=0.4)
    assert own.frame(2.8) == 10 and own.limit(50) == 49
    assert own.wrong(np.array([1.6, 2.0, 2.3, 2.4, 400.0])).tolist() == [True, False, True, False, False]
    assert AVA.wrong(np.array([901.0, 902, 902.5, 1798, 1799])).tolist() == [True, False, True, False, True]
    with pytest.raises(UsageError, match="step 0"):
        KeyFrames(step=0)


def test_rows_are_checked_against_key_frames_and_the_number_of_actions(rows):
    faults = Faults("train.csv")
    second, action = rows.second.copy(), rows.action.copy()
    second[3], action[5] = 902.5, 99
    check_rows(rows._replace(second=second, action=action), faults, key_frames=AVA, most=80)
    assert [text for _, text in faults.shown] == [
        "line 4, column second: 902.5 is no key frame: from 902 to 1798 s every 1 s",
        "line 6, column action: 99 is above 80",
    ]
    assert faults.counts == {"AVA_SECOND": 1, "AVA_ACTION": 1}


def test_media_are_found_by_name_and_missing_ones_named(tmp_path):
    (tmp_path / "-a_b.c").mkdir()
    (tmp_path / "film.mkv").touch()
    (tmp_path / "film.txt").touch()
    found, missing = find_media(tmp_path, ["film", "-a_b.c", "other", "film"])
    assert found == {"film": str(tmp_path / "film.mkv"), "-a_b.c": str(tmp_path / "-a_b.c")}
    assert missing == ("other",)
    (tmp_path / "film.mp4").touch()
    with pytest.raises(DataError, match="twice") as error:
        find_media(tmp_path, ["film"])
    assert error.value.code == "AVA_MEDIA"
    with pytest.raises(DataError) as error:
        find_media(tmp_path / "nowhere", ["film"])
    assert error.value.code == "NOT_FOUND"
