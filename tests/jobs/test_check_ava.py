"""`marey data check-ava`: every mistake in AVA's files is named with its place; good files are all good."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from marey.cli import app
from marey.data.ava import AVA, KeyFrames
from marey.jobs.check_ava import as_json, check_ava, lines
from marey.video.synthetic import render_numbered

OWN = KeyFrames(fps=10)
ROWS = (
    "a,0001,0.1,0.1,0.5,0.9,1,0\na,0001,0.1,0.1,0.5,0.9,3,0\na,0003,0.5,0.1,0.9,0.9,1,0\nb,0002,0,0,1,1,2,7\n"
)


@pytest.fixture
def files(tmp_path):
    """A set without fault: two videos of 4 s, the second as a folder of frames."""
    media = tmp_path / "media"
    media.mkdir()
    render_numbered(media / "a.mp4", frames=40, fps=10, size=(64, 48))
    (media / "b").mkdir()
    for i in range(40):
        Image.new("RGB", (64, 48)).save(media / "b" / f"img_{i + 1:05}.jpg")
    (tmp_path / "train.csv").write_text(ROWS)
    (tmp_path / "excluded.csv").write_text("a,0003\n")
    (tmp_path / "actions.csv").write_text("1,stand\n2,sit\n3,wave\n")
    boxes = {
        "a,0001": [[0.1, 0.1, 0.5, 0.9, 0.99]],
        "a,0003": [[0.5, 0.1, 0.9, 0.9, 0.95]],
        "b,0002": [[0, 0, 1, 1, 1]],
    }
    (tmp_path / "boxes.pkl").write_bytes(pickle.dumps({key: np.array(box) for key, box in boxes.items()}))
    return tmp_path


def report(files, **other):
    given = {
        "key_frames": OWN, "proposals": files / "boxes.pkl", "exclusions": files / "excluded.csv",
        "label_map": files / "actions.csv", "media": files / "media", "num_classes": 4, "quiet": True,
    }  # fmt: skip
    return check_ava([files / "train.csv"], **(given | other))


def problems(found):
    return [(problem.severity, problem.code, problem.message) for problem in found.problems]


def test_good_files_are_all_good(files):
    found = report(files)
    assert found.ok and problems(found) == []
    assert found.facts[str(files / "train.csv")] == {
        "rows": 4, "videos": 2, "key frames": 3, "persons": 3, "actions of a person": 4 / 3, "actions": 3,
        "first second": 1.0, "last second": 3.0, "excluded": 1, "key frames with proposals": 3,
        "proposals of a key frame": 1.0, "recall of proposals": 1.0,
    }  # fmt: skip
    assert lines(found)[-1] == "all good"
    assert json.loads(as_json(found))["ok"] is True


MISTAKES = {
    "a wrong row": (
        "train.csv",
        "c,0001,0,0,2,1,1,0\n",
        "error",
        "AVA_BOX",
        "line 5, column x2: 2 is not in 0..1",
    ),
    "a wrong time": (
        "train.csv",
        "a,2.5,0,0,1,1,1,0\n",
        "error",
        "AVA_SECOND",
        "line 5, column second: 2.5 is no key",
    ),
    "a high action": (
        "train.csv",
        "a,0001,0,0,1,1,4,0\n",
        "error",
        "AVA_ACTION",
        "line 5, column action: 4 is above 3",
    ),
    "a repeated row": (
        "train.csv",
        "b,0002,0,0,1,1,2,7\n",
        "warning",
        "AVA_DUPLICATE",
        "1 rows repeat another, such as that of line 4",
    ),
    "one person twice": (
        "train.csv",
        "b,0002,0,0,1,0.5,2,7\n",
        "warning",
        "AVA_ENTITY",
        "entity 7 in 'b,0002'",
    ),
    "no proposals": (
        "train.csv",
        "b,0003,0,0,1,1,2,7\n",
        "warning",
        "AVA_PROPOSALS",
        "1 key frames have no proposals, and are shown whole: b,0003",
    ),
    "no video": (
        "train.csv",
        "c,0001,0,0,1,1,1,0\n",
        "error",
        "AVA_MEDIA",
        "no folder or video is called 'c'",
    ),
    "a short video": (
        "train.csv",
        "a,0004,0,0,1,1,1,0\n",
        "error",
        "MEDIA_TRUNCATED",
        "ends at 4.0 s, before its key frame at 4 s",
    ),
    "a wrong exclusion": (
        "excluded.csv",
        "a\n",
        "error",
        "AVA_COLUMNS",
        "line 2: 1 columns; expected 2 (video,second)",
    ),
    "a wrong label map": ("actions.csv", "0,run\n", "error", "AVA_LABELS", "action 0 is below 1"),
    "an action without rows": (
        "actions.csv",
        "4,run\n",
        "warning",
        "CLASS_MISSING",
        "1 of 4 actions have no row: 4 (run)",
    ),
    "wrong proposals": (
        "boxes.pkl",
        None,
        "error",
        "AVA_BOX",
        "key 'b,0002', box 1, column x2: 64 is not in 0..1",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_place(files, name):
    file, more, severity, code, text = MISTAKES[name]
    if more is None:
        boxes = {
            "a,0001": [[0.1, 0.1, 0.5, 0.9, 0.99]],
            "a,0003": [[0.5, 0.1, 0.9, 0.9, 0.9]],
            "b,0002": [[0, 0, 64, 48, 1]],
        }
        (files / file).write_bytes(pickle.dumps(boxes))
    else:
        (files / file).write_text((files / file).read_text() + more)
    found = report(files)
    mine = [one for one in problems(found) if one[:2] == (severity, code)]
    assert mine and text in mine[0][2]
    assert found.ok == (severity == "warning") and found.codes[code] >= 1
    told = "\n".join(lines(found))
    assert f"{severity} {code}: 1" in told and text in told


def test_frames_at_another_rate_are_recognised(files):
    """25 of 30 frames a second were extracted, so that the folder seems to end early."""
    found = report(files, key_frames=KeyFrames(fps=12), proposals=None)
    assert ("error", "MEDIA_TRUNCATED") not in [one[:2] for one in problems(found)]
    (files / "train.csv").write_text("b,0003,0,0,1,1,1,0\n")
    found = report(files, key_frames=KeyFrames(fps=15), proposals=None, label_map=None)
    assert [one[2] for one in problems(found)] == [
        "ends at 2.7 s, before its key frame at 3 s: its 40 frames look like 10 per second, not 15"
    ]


def test_files_of_different_sets_do_not_go_together(files):
    (files / "val.csv").write_text("a,0002,0,0,1,1,1,0\n")
    (files / "boxes.json").write_text(json.dumps({"x,0001": [[0, 0, 1, 1, 1]]}))
    (files / "few.json").write_text(json.dumps({"a,0001": [[0, 0, 0.1, 0.1, 1]], "b,0002": [], "a,0003": []}))
    found = check_ava([files / "train.csv", files / "val.csv"], key_frames=OWN, quiet=True)
    assert "1 videos are in" in problems(found)[0][2] and problems(found)[0][1] == "LEAK"
    text = problems(report(files, proposals=files / "boxes.json"))[0][2]
    assert text == "no key frame has proposals, not a,0001, a,0003, b,0002; the file has x,0001"
    found = report(files, proposals=files / "few.json")
    assert [one[2] for one in problems(found)] == ["0% of the persons are proposed; is it of other videos?"]
    assert problems(report(files, proposals=files / "missing.csv"))[0][1] == "NOT_FOUND"
    assert problems(report(files, media=files / "missing"))[0][1] == "NOT_FOUND"
    (files / "some.csv").write_text("1,stand\n2,sit\n")
    named = problems(report(files, label_map=files / "some.csv"))
    assert (
        named[0][1] == "AVA_UNNAMED"
        and "1 rows have 1 actions that the label map does not name" in named[0][2]
    )


def test_results_are_measured_and_a_low_one_explained(files):
    (files / "results.csv").write_text(ROWS.replace(",0\n", ",0.5\n").replace(",7\n", ",0.25\n"))
    found = report(files, results=files / "results.csv")
    facts = found.facts[str(files / "train.csv")]
    assert found.ok and problems(found) == []
    assert facts["mAP at 0.5, mmaction2"] == facts["mAP at 0.5, activitynet"] == 1.0
    assert facts["mAP of person movement, mmaction2"] == 1.0
    (files / "results.csv").write_text("a,901,0.1,0.1,0.5,0.9,1,0.5\nb,902,0,0,1,1,1,0.25\n")
    found = report(files, results=files / "results.csv")
    assert found.facts[str(files / "train.csv")]["mAP at 0.5, mmaction2"] == 0.0
    assert problems(found)[0][:2] == ("warning", "AVA_RESULTS")
    assert "moved by -900 s" in problems(found)[0][2]
    (files / "results.csv").write_text("a,901,0.1,0.1,0.5,0.9,1,high\n")
    found = report(files, results=files / "results.csv")
    assert problems(found)[0][1] == "AVA_SCORE" and not found.ok


def test_the_command_ends_with_three_where_there_are_errors(files):
    words = ["data", "check-ava", str(files / "train.csv"), "--proposals", str(files / "boxes.pkl")]
    words += ["--label-map", str(files / "actions.csv"), "--media", str(files / "media"), "--workers", "0"]
    own = CliRunner().invoke(app, [*words, "--own", "--fps", "10", "--json"])
    assert own.exit_code == 0 and json.loads(own.stdout)["ok"]
    ava = CliRunner().invoke(app, words)
    assert ava.exit_code == 3 and "error AVA_SECOND: 4" in ava.stdout
    assert "from 902 to 1798 s every 1 s" in ava.stdout and "there are errors" in ava.stdout
    assert AVA.first == 902
