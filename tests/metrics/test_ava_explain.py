"""A result of zero says why: every mistake is recognised, and a good result is not suspected."""

import numpy as np
import pytest

from marey.metrics.ava import frame_map
from marey.metrics.ava_explain import explain
from marey.metrics.ava_tables import make_rows

NAMES = {action: f"action {action}" for action in range(1, 31)}


def rows(seed=0, scores=True):
    """Two persons in each of 40 key frames, two actions each."""
    rng = np.random.default_rng(seed)
    keys = [f"{video},{second:04d}" for video in ("film", "play") for second in range(902, 922)]
    low = rng.uniform(0.0, 0.3, (80, 2)) + [[0.0, 0.0], [0.45, 0.0]] * 40
    boxes = np.concatenate([low, low + np.array([0.2, 0.5])], axis=1)
    actions = np.stack([rng.integers(1, 20, 80), rng.integers(20, 31, 80)], axis=1)
    return make_rows(
        np.repeat(keys, 4).tolist(),
        boxes.repeat(2, axis=0),
        actions.reshape(-1),
        rng.random(160) if scores else np.zeros(160),
    )


def report(found, truth=None, excluded=(), names=NAMES):
    truth = rows(scores=False) if truth is None else truth
    result = frame_map(truth, found, names=names, excluded=excluded)
    return result, "\n".join(explain(result, truth, found))


def test_a_good_result_has_numbers_and_no_suspicion():
    result, text = report(rows())
    assert result.map == 1.0
    assert text.splitlines() == [
        "160 results in 40 key frames; 160 true rows in 40; 40 key frames are in both",
        "160 results count, 160 of them are right",
    ]


def moved(found, **columns):
    return found._replace(**columns)


FOUND = rows()
MISTAKES = {
    "nothing was run": (FOUND.take(np.zeros(160, bool)), "there are no results"),
    "pixels": (moved(FOUND, boxes=FOUND.boxes * 320), "are pixels"),
    "width and height": (
        moved(FOUND, boxes=np.concatenate([FOUND.boxes[:, :2], FOUND.boxes[:, 2:] - FOUND.boxes[:, :2]], 1)),
        "look like x, y, width, height",
    ),
    "rows before columns": (moved(FOUND, boxes=FOUND.boxes[:, [1, 0, 3, 2]]), "look like y1, x1, y2, x2"),
    "actions from 0": (moved(FOUND, action=FOUND.action - 1), "seem to count from 0"),
    "actions from 2": (moved(FOUND, action=FOUND.action + 1), "seem to count from 2"),
    "unknown actions": (moved(FOUND, action=FOUND.action + 40), "have actions 41 to 70, classes are 1 to 30"),
    "wrong actions": (moved(FOUND, action=31 - FOUND.action), "their actions are others"),
    "wrong persons": (moved(FOUND, boxes=FOUND.boxes * 0.05), "of other persons, videos or moments"),
    "seconds from 0": (moved(FOUND, second=FOUND.second - 900), "moved by 900 s, 100% of the true rows"),
    "frame numbers": (moved(FOUND, second=FOUND.second * 30), "look like frame numbers"),
    "other names": (moved(FOUND, videos=("film.mp4", "play.mp4")), "are of 'film.mp4', truth of 'film'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_recognised(name):
    found, text = MISTAKES[name]
    result, said = report(found)
    assert result.map < 0.2
    assert text in said.splitlines()[-1]


def test_other_causes_and_what_was_left_out():
    excluded = [f"{v},{s:04d}" for v in ("film", "play") for s in range(902, 922)]
    assert "all results are in excluded key frames" in report(FOUND, excluded=excluded)[1]
    assert "160 results in excluded frames" in report(FOUND, excluded=excluded)[1]
    same = moved(FOUND, extra=np.full(160, 0.5))
    assert "all results have the same score" in report(same)[1]
    assert "no class that counts has truth" in report(FOUND, names={77: "x"})[1]
    _, text = report(FOUND, names=NAMES | {action: f"action {action}" for action in range(31, 41)})
    assert "10 classes have no truth and no AP: action 31, action 32" in text
