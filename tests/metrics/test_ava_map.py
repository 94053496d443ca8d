"""Frame mAP against the two original evaluators, and against a slow and plain one on drawn rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marey.errors import DataError, UsageError
from marey.metrics.ava import frame_map, overlaps, result_rows
from marey.metrics.ava_tables import csv_lines, key_of, make_rows, read_exclusions, read_label_map, read_rows

ORACLES = Path(__file__).parent / "oracles"
EXPECTED = json.loads((ORACLES / "ava" / "expected.json").read_text())["results"]
NAMES = read_label_map(ORACLES / "ava" / "labels.pbtxt")
assert read_label_map(ORACLES / "ava" / "labels_v2.pbtxt") == NAMES  # the other syntax
EXCLUDED = read_exclusions(ORACLES / "ava" / "excluded.csv")
WRITTEN = json.loads((ORACLES / "ava_results.json").read_text())


def values(array):
    return [None if np.isnan(value) else value for value in array]


@pytest.mark.parametrize("file", EXPECTED)
@pytest.mark.parametrize("protocol", ["mmaction2", "activitynet"])
def test_ap_is_that_of_the_original_evaluators(file, protocol):
    truth = read_rows(ORACLES / "ava" / "gt.csv", "truth")
    found = read_rows(ORACLES / "ava" / file, "result")
    result = frame_map(truth, found, names=NAMES, excluded=EXCLUDED, protocol=protocol, ties=True)
    expected = EXPECTED[file][protocol]
    assert result.map == pytest.approx(expected["map"], abs=1e-11)
    assert result.names == tuple(NAMES.values())
    assert values(result.ap) == [
        None if expected["ap"][name] is None else pytest.approx(expected["ap"][name], abs=1e-11)
        for name in result.names
    ]
    if protocol == "mmaction2":
        ties = EXPECTED[file].get("ties") or {"ap": {name: [ap, ap] for name, ap in expected["ap"].items()}}
        for place, bound in enumerate((result.lowest, result.highest)):
            known = [name for name in result.names if ties["ap"][name][place] is not None]
            wanted = [ties["ap"][name][place] for name in known]
            np.testing.assert_allclose(bound[np.isin(result.names, known)], wanted, atol=1e-11)


def plain(truth, found, listed, excluded, protocol):
    """The rules in loops: {class: AP}, None for a class without truth."""
    keys = {"truth": truth.keys(), "found": found.keys()}
    frames: dict = {}
    for key, row in zip(keys["found"], zip(found.boxes, found.action, found.extra, strict=True), strict=True):
        if row[1] in listed and (protocol == "activitynet" or key not in excluded):
            frames.setdefault(key, []).append(row)
    true: dict = {}
    for key, box, action in zip(keys["truth"], truth.boxes, truth.action, strict=True):
        if action in listed and (protocol == "activitynet" or key not in excluded):
            true.setdefault((key, action), []).append(box)
    if protocol == "activitynet":
        frames = {key: rows for key, rows in frames.items() if key in keys["truth"]}
    result = {}
    for action in listed:
        total = sum(len(boxes) for (_, one), boxes in true.items() if one == action)
        ranking = []
        for key, rows in frames.items():
            taken = set()
            for box, one, score in sorted(rows, key=lambda row: -row[2]):
                if one != action or box[0] >= box[2] or box[1] >= box[3]:
                    continue
                shared = [plain_iou(box, other) for other in true.get((key, action), ())]
                best = int(np.argmax(shared)) if shared else -1
                right = best >= 0 and shared[best] >= 0.5 and best not in taken
                taken |= {best} if right else set()
                ranking.append((score, right))
        ranking = sorted(ranking, key=lambda item: item[0])[::-1]
        hits, ap, points = 0, 0.0, []
        for place, (_, right) in enumerate(ranking, start=1):
            hits += right
            points.append((hits / max(total, 1), hits / place))
        for place, (recall, _) in enumerate(points):
            before = points[place - 1][0] if place else 0.0
            ap += (recall - before) * max(precision for _, precision in points[place:])
        result[action] = ap if total else None
    return result


def plain_iou(a, b):
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), grouped=st.booleans(), protocol=st.sampled_from(["mmaction2", "activitynet"])
)
def test_ap_is_that_of_a_plain_evaluator(seed, grouped, protocol):
    rng = np.random.default_rng(seed)
    keys = [f"{video},{second:04d}" for video in "ab" for second in range(4)]

    def rows(count, keys, scored):
        low = rng.integers(0, 3, (count, 2)) / 10
        boxes = np.concatenate([low, low + rng.integers(3, 6, (count, 2)) / 10], axis=1)
        if scored and count:
            boxes[rng.random(count) < 0.1] = [0.5, 0.1, 0.5, 0.9]  # no area
        chosen = [keys[i] for i in rng.integers(0, len(keys), count)]
        scores = rng.integers(1, 8, count) / 8 if scored else np.zeros(count)
        return make_rows(sorted(chosen) if grouped else chosen, boxes, rng.integers(1, 5, count), scores)

    truth, found = rows(int(rng.integers(1, 25)), keys[:6], False), rows(int(rng.integers(0, 60)), keys, True)
    names, excluded = {1: "a", 2: "b", 4: "d"}, {keys[1], "c,0001"}
    if protocol == "activitynet":  # its heap orders equal scores of a key frame by box
        found = found._replace(extra=(np.arange(len(found.extra)) * 7 % 61 + 1) / 64)
        truth = truth.take(np.lexsort((*truth.boxes[:, [2, 3, 0, 1]].T, truth.second, truth.video)))
    result = frame_map(truth, found, names=names, excluded=excluded, protocol=protocol, ties=True)
    expected = plain(truth, found, names, excluded, protocol)
    assert values(result.ap) == [
        None if ap is None else pytest.approx(ap, abs=1e-12) for ap in expected.values()
    ]
    known = [ap for ap in expected.values() if ap is not None]
    assert result.map == pytest.approx(np.mean(known)) if known else np.isnan(result.map)
    sure = ~np.isnan(result.ap)
    assert (result.lowest[sure] <= result.ap[sure] + 1e-12).all()
    assert (result.ap[sure] <= result.highest[sure] + 1e-12).all()


def test_the_fifty_best_of_a_key_frame_count_for_activitynet():
    boxes = [[0, 0, 1, 1]] * 60
    truth = make_rows(["a,0000"], boxes[:1], [1], [0])
    found = make_rows(["a,0000"] * 60, boxes, [1] * 10 + [2] * 50, [*np.arange(10, 0, -1) / 100, *[0.5] * 50])
    results = {
        p: frame_map(truth, found, names={1: "a", 2: "b"}, protocol=p) for p in ("mmaction2", "activitynet")
    }
    assert results["mmaction2"].map == 1.0 and results["activitynet"].map == 0.0
    assert results["activitynet"].counts["results beyond the best 50 of a frame"] == 10


def test_a_full_heap_keeps_what_came_first_of_equal_scores():
    boxes = [[0, 0, 1, 1]] * 51
    truth, names = make_rows(["a,0000"], boxes[:1], [2], [0]), {1: "a", 2: "b"}
    found = make_rows(["a,0000"] * 51, boxes, [1] * 50 + [2], [0.5] * 51)
    surer = found._replace(extra=np.array([0.5] * 50 + [0.6]))
    assert frame_map(truth, found, names=names, protocol="activitynet").map == 0.0
    assert frame_map(truth, surer, names=names, protocol="activitynet").map == 1.0


def test_a_box_claims_the_first_of_the_truths_that_it_overlaps_equally():
    """The surer box claims the first truth, which the other overlaps alone: there is no second choice."""
    first, second = [0, 0, 0.75, 1], [0.25, 0, 1, 1]
    truth = make_rows(["a,0000"] * 2, [first, second], [1, 1], [0, 0])
    found = make_rows(["a,0000"] * 2, [[0.125, 0, 0.875, 1], first], [1, 1], [0.9, 0.5])
    assert frame_map(truth, found).matched.tolist() == [1]
    assert frame_map(truth.take(np.array([1, 0])), found).matched.tolist() == [2]


@pytest.mark.parametrize("protocol", ["mmaction2", "activitynet"])
def test_of_truths_overlapped_equally_the_highest_entity_is_claimed(protocol):
    """Both originals sort the truths of a key frame by their eighth column, as they do results by score."""
    first, second = [0, 0, 0.75, 1], [0.25, 0, 1, 1]
    found = make_rows(["a,0000"] * 2, [[0.125, 0, 0.875, 1], first], [1, 1], [0.9, 0.5])
    for entities, matched in (([7, 3], 1), ([3, 7], 2)):
        for order in ([0, 1], [1, 0]):
            truth = make_rows(["a,0000"] * 2, [first, second], [1, 1], entities).take(np.array(order))
            assert frame_map(truth, found, protocol=protocol).matched.tolist() == [matched]


def test_actions_may_have_any_number():
    truth = make_rows(["a,0000"] * 3, [[0, 0, 1, 1]] * 3, [40_000, 7, 70_000], [0, 0, 0])
    assert values(frame_map(truth, truth._replace(extra=truth.extra + 0.5)).ap) == [1.0, 1.0, 1.0]


def test_key_frames_of_other_videos_are_told_apart_however_late_they_are():
    """17592186.044416 s are 2^44 microseconds: a whole number of videos further where both share 64 bits."""
    box = [[0, 0, 1, 1]]
    truth = make_rows(["a,17592186.044416", "b,0000"], box * 2, [1, 2], [0, 0])
    for key, ap in (("b,0000", [0, 1]), ("a,17592186.044416", [1, 0]), ("a,999999999.999999", [0, 0])):
        found = make_rows([key] * 2, box * 2, [1, 2], [0.9, 0.9])
        assert values(frame_map(truth, found).ap) == ap, key


def test_what_counts_is_counted():
    keys = ["a,0001", "a,0002", "b,0001"]
    truth = make_rows(keys[:2], [[0, 0, 1, 1], [0, 0, 0.5, 0.5]], [1, 15], [0, 0])
    boxes = [[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [0.5, 0.5, 0.5, 1], [0, 0, 1, 1]]
    found = make_rows([*keys, "a,0001", "a,0001"], boxes, [1, 15, 1, 1, 64], [0.5, 0.6, 0.7, 0.8, 0.9])
    result = frame_map(
        truth, found, names={1: "stand", 15: "answer", 30: "dig"}, excluded=["a,0002", "z,0009"]
    )
    assert values(result.ap) == [0.5, None, None] and result.map == 0.5
    assert result.truths.tolist() == [1, 0, 0] and result.results.tolist() == [2, 0, 0]
    assert result.matched.tolist() == [1, 0, 0] and result.groups() == {"person movement": 0.5}
    assert result.counts == {
        "truths": 2, "results": 5, "frames of the truth": 2, "frames of the results": 3, "frames in both": 2,
        "truths of other classes": 0, "results of other classes": 1, "results in excluded frames": 1,
        "results without area": 1, "matched": 1, "results in frames without truth": 1,
    }  # fmt: skip
    assert frame_map(truth, found).map == 0.75  # all classes of the truth


def test_nothing_gives_nothing():
    none = make_rows([], [], [], [])
    truth = make_rows(["a,0001"], [[0, 0, 1, 1]], [1], [0])
    assert frame_map(truth, none, ties=True).map == 0.0
    assert np.isnan(frame_map(none, truth, names={1: "a"}).map)
    assert np.isnan(frame_map(truth, truth, names={2: "b"}).map)


def test_what_cannot_be_evaluated_is_refused():
    truth = make_rows(["a,0001"], [[0, 0, 1, 1]], [1], [0])
    with pytest.raises(UsageError, match="did you mean activitynet"):
        frame_map(truth, truth, protocol="activitynot")
    with pytest.raises(DataError, match="line 1 has no score") as error:
        frame_map(truth, truth._replace(extra=np.array([np.nan])))
    assert error.value.code == "AVA_SCORE"


def test_overlaps_are_exact():
    a = np.array([[0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 0, 0]], float)
    b = np.array([[1, 0, 3, 1], [1, 1, 2, 2], [0, 0, 0, 1]], float)
    assert overlaps(a[:2], b[:2]).tolist() == [1 / 3, 0] and np.isnan(overlaps(a[2], b[2]))


# From scores ------------------------------------------------------------------------------------------


def detected():
    size = np.float32([*WRITTEN["size"], *WRITTEN["size"]])
    for frame in WRITTEN["frames"]:
        boxes = np.array(frame["boxes"], np.float32).reshape(-1, 4) / size
        logits = np.array(frame["logits"], np.float32).reshape(-1, 9)
        yield key_of(frame["video"], frame["second"]), boxes, 1 / (1 + np.exp(-logits))


def test_results_are_written_as_mmaction2_does():
    rows = result_rows(list(detected()), threshold=WRITTEN["threshold"])
    assert list(csv_lines(rows, decimals=3)) == WRITTEN["csv"]
    expected = [
        [*detection[:4], action, detection[4]]
        for frame in WRITTEN["frames"]
        for action, of_class in enumerate(frame["detections"], start=1)
        for detection in of_class
    ]
    np.testing.assert_allclose(np.column_stack([rows.boxes, rows.action, rows.extra]), expected, rtol=1e-6)


def test_thresholds_by_class_custom_actions_and_single_ones():
    frames = [("v,0001", [[0, 0, 1, 1], [0, 0, 0.5, 1]], [[0.9, 0.2, 0.6], [0.9, 0.5, 0.3]])]
    assert result_rows(frames, threshold=[0, 0.3, 0.3]).extra.tolist() == [0.5, 0.6]  # strictly above
    custom = result_rows(frames, custom=[11, 3])
    assert custom.action.tolist() == [11, 11, 3, 3] and custom.extra.tolist() == [0.2, 0.5, 0.6, 0.3]
    single = result_rows(frames, single=True)
    assert list(zip(single.action.tolist(), single.extra.tolist(), strict=True)) == [(1, 0.5), (2, 0.6)]
    same = [("v,0001", [[0, 0, 1, 1]], np.float32([[0, 0.002, 0.0021]]))]  # float32(0.002) is above 0.002
    assert result_rows(same).action.tolist() == [2]
    nothing = result_rows([("v,0001", np.empty((0, 4)), np.empty((0, 3)))])
    assert len(nothing.action) == 0 and len(result_rows([]).action) == 0
