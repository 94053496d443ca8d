"""Index sets against the numbers of both published generations, and laws that hold for any video."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import booleans, floats, integers, sampled_from

from marey.errors import MediaError, UsageError
from marey.video import sampling
from marey.video.sampling import generator

ORACLE = json.loads((Path(__file__).parent / "oracles" / "sampling.json").read_text())


def cases(section):
    return [pytest.param(case, id=case["name"]) for case in ORACLE[section]]


def assert_met(index, expected):
    flat = index.ravel()
    assert index.dtype == np.int64
    if isinstance(expected, list):
        assert flat.tolist() == expected
        return
    crc32 = zlib.crc32(flat.astype("<i4").tobytes())
    assert {"n": len(flat), "sum": flat.sum(), "crc32": crc32} == {
        k: expected[k] for k in ("n", "sum", "crc32")
    }
    assert index[:, 0].tolist() == expected.get("starts", index[:, 0].tolist())


@pytest.mark.parametrize("case", cases("clip_test"))
def test_clips_of_a_test_start_where_the_published_ones_do(case):
    for rule in case["rules"]:
        for n, expected in case["expected"].items():
            assert_met(sampling.clip_test(int(n), rule=rule, **case["arguments"]), expected)


@pytest.mark.parametrize("section", ["dense_test", "untrimmed", "uniform_test", "skeleton_test"])
def test_the_other_samplers_give_the_published_frames(section):
    assert ORACLE[section]
    for case in ORACLE[section]:
        for n, expected in case["expected"].items():
            assert_met(getattr(sampling, section)(int(n), **case["arguments"]), expected)


def drawn_starts(n, arguments, draws):
    rng = generator(1, 2, n)
    return np.array([sampling.clip_train(n, rng=rng, **arguments)[:, 0] for _ in range(draws)])


@pytest.mark.parametrize("case", cases("clip_train"))
def test_training_starts_stay_in_the_published_ranges_and_reach_both_ends(case):
    for n, (kind, ranges) in case["ranges"].items():
        low, high = np.array(ranges).T % int(n)  # a fixed start may be n, which is looped to 0
        width = int((high - low).max()) + 1
        starts = drawn_starts(int(n), case["arguments"], 25 * width if kind == "independent" else 3)
        assert ((starts >= low) & (starts <= high)).all(), (n, kind)
        assert (starts.min(0) == low).all() and (starts.max(0) == high).all(), (n, kind)


def test_starts_are_sorted_where_the_video_has_fewer_places_than_clips():
    # n = 10 frames, spans of 4: seven places for eight clips, so the places are drawn and sorted
    starts = drawn_starts(10, {"length": 4, "interval": 1, "clips": 8}, 300)
    assert (np.diff(starts, axis=1) >= 0).all()
    assert set(starts.ravel()) == set(range(7))
    assert len({tuple(row) for row in starts}) > 250


@pytest.mark.parametrize("case", cases("uniform_train"))
def test_uniform_training_frames_fill_the_published_ranges(case):
    for n, ranges in case["ranges"].items():
        low, high = np.array(ranges).T
        rng = generator(0, 0, 0)
        draws = np.concatenate(
            [sampling.uniform_train(int(n), rng=rng, **case["arguments"]) for _ in range(400)]
        )
        assert (draws.min(0) == low).all() and (draws.max(0) == high).all()


def test_dense_training_windows_start_anywhere_they_fit():
    rng = generator(0, 0, 0)
    draws = [sampling.dense_train(70, length=1, clips=8, rng=rng)[:, 0] for _ in range(200)]
    assert {int(index[0]) for index in draws} == set(range(7))
    assert all(np.diff(index).tolist() == [8] * 7 for index in draws)


def test_frames_after_the_end_are_looped_or_held():
    # frames 4, 7, 10, 13 of a video of 8
    index = np.array([[4.0, 7.0, 10.0, 13.0]])
    assert sampling.fold(index, 8).tolist() == [[4, 7, 2, 5]]
    assert sampling.fold(index, 8, "repeat_last").tolist() == [[4, 7, 7, 7]]
    assert sampling.fold(index + 9, 8, "repeat_last").tolist() == [[0, 0, 0, 0]]
    assert sampling.fold(np.array([[3.9, 8.5]]), 8).tolist() == [[3, 0]]


def test_jitter_moves_every_frame_by_less_than_the_interval():
    still = sampling.clip_train(64, length=8, interval=8, rng=generator(0, 0, 0))
    moves = np.concatenate(
        [
            sampling.clip_train(64, length=8, interval=8, jitter=True, rng=generator(0, 0, i)) - still
            for i in range(60)
        ]
    )
    assert moves.min() == 0 and moves.max() == 7
    assert len({tuple(row) for row in moves}) == 60


def test_a_short_video_sampled_twice_gets_half_the_clips_under_the_old_rule():
    assert sampling.clip_test(10, length=8, interval=2, clips=3, twice=True).shape == (3, 8)
    assert sampling.clip_test(16, length=8, interval=2, clips=3, twice=True).shape == (6, 8)


def test_target_fps_spans_the_same_time_at_any_rate():
    for fps in (15.0, 30.0, 60.0):
        index = sampling.clip_test(int(20 * fps), length=16, interval=4, rule="1.x", fps=fps, target_fps=30)
        assert (index[0, -1] - index[0, 0]) / fps == pytest.approx(64 / 30, abs=2 / fps)
        train = sampling.clip_train(
            int(20 * fps), length=16, interval=4, rng=generator(0, 0, 0), fps=fps, target_fps=30
        )
        assert (np.diff(train) >= 0).all()
        assert (train[0, -1] - train[0, 0]) / fps == pytest.approx(64 / 30, abs=2 / fps)


def test_halves_are_rounded_as_the_originals_steps_round_them():
    # 14 gaps of 29 free frames: 7 * (29 / 14) is above 14.5 in float64, 7 * 29 / 14 is not
    starts = sampling.clip_test(45, length=16, clips=15, rule="1.x")[:, 0]
    assert (starts[0], starts[7], starts[14]) == (0, 15, 29)
    starts = sampling.clip_test(131, length=16, clips=15, rule="1.x")[:, 0]
    assert (starts[0], starts[7], starts[14]) == (0, 57, 115)  # 57.499..., then


def test_single_frames_stand_in_the_middle_of_their_parts_at_any_rate():
    arguments = {"length": 1, "interval": 4, "clips": 3, "rule": "1.x"}
    plain = sampling.clip_test(90, **arguments)
    assert plain[:, 0].tolist() == [15, 45, 75]
    assert np.array_equal(sampling.clip_test(90, fps=60.0, target_fps=30.0, **arguments), plain)


@given(
    n=integers(1, 400),
    clips=integers(1, 12),
    length=integers(1, 64),
    interval=integers(1, 8),
    seed=integers(0, 2**64 - 1),
    keep_tail=booleans(),
    jitter=booleans(),
    bound=sampled_from(["loop", "repeat_last"]),
    fps=sampled_from([None, 12.5, 30.0, 59.94]),
)
def test_every_sampler_returns_frames_that_exist(
    n, clips, length, interval, seed, keep_tail, jitter, bound, fps
):
    rng = generator(seed, 0, 0)
    common = {"length": length, "interval": interval, "clips": clips}
    target = None if fps is None else 25.0
    sets = [
        sampling.clip_train(n, **common, rng=rng, keep_tail=keep_tail, jitter=jitter, out_of_bound=bound),
        sampling.clip_train(n, **common, rng=rng, keep_tail=keep_tail, fps=fps, target_fps=target),
        sampling.clip_test(n, **common, out_of_bound=bound),
        sampling.clip_test(n, **common, rule="1.x", out_of_bound=bound, fps=fps, target_fps=target),
        sampling.dense_train(n, **common, rng=rng),
        sampling.dense_test(n, **common)[:clips],
        sampling.uniform_train(n, length=length, clips=clips, rng=rng),
        sampling.uniform_test(n, length=length, clips=clips),
        sampling.skeleton_test(n, length=length, clips=clips),
    ]
    assert all(index.shape == (clips, length) for index in sets)
    sets += [
        sampling.untrimmed(n, length=length, every=interval),
        sampling.skeleton_train(n, length=length, rng=rng),
    ]
    for index in sets:
        assert index.dtype == np.int64 and index.size and index.min() >= 0 and index.max() < n


def test_draws_depend_on_seed_epoch_and_index_and_on_nothing_else():
    first = generator(1, 2, 3).random(5).tolist()
    assert generator(1, 2, 3).random(5).tolist() == first
    others = [
        generator(*key).random(5).tolist() for key in ((2, 1, 3), (1, 3, 2), (1, 2, 4), (0, 2, 3), (2, 2, 3))
    ]
    assert all(first[0] not in other for other in others)


def test_neighbouring_samples_draw_independently():
    draws = np.array([generator(0, 0, i).random() for i in range(4000)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(draws, [generator(0, 1, i).random() for i in range(4000)])[0, 1]) < 0.05


def test_windows_start_every_so_many_seconds_and_the_last_ends_with_the_video():
    seconds = np.arange(100) / 10
    assert sampling.windows(seconds, every=2, span=20).tolist() == [0, 20, 40, 60, 80]
    assert sampling.windows(seconds, every=2, span=30).tolist() == [0, 20, 40, 60, 70]
    assert sampling.windows(seconds, every=4, span=20).tolist() == [0, 40, 80]  # gaps are meant
    assert sampling.windows(seconds, every=2, span=200).tolist() == [0]


def test_windows_of_a_variable_rate_follow_the_time_stamps():
    seconds = np.concatenate([np.arange(0, 4, 0.5), np.arange(4, 8, 0.1)]) + 3.0
    starts = sampling.windows(seconds, every=1, span=2)
    assert (seconds[starts] - 3.0)[:8] == pytest.approx(np.arange(8), abs=1e-9)


@given(
    n=integers(1, 500),
    span=integers(1, 90),
    every=floats(0.05, 8),
    fps=sampled_from([10.0, 25.0, 29.97, 60.0]),
)
def test_windows_cover_the_video_or_leave_gaps_on_purpose(n, span, every, fps):
    starts = sampling.windows(np.arange(n) / fps, every=every, span=span)
    assert starts[0] == 0 and (np.diff(starts) > 0).all() and starts[-1] <= max(n - span, 0)
    if every * fps <= span - 1:
        assert starts[-1] + span >= n and (np.diff(starts) <= span).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: sampling.clip_test(9, length=2, clips=2, twice=True, rule="1.x"),
        lambda: sampling.clip_test(9, length=2, target_fps=30.0, rule="0.x"),
        lambda: sampling.clip_test(9, length=1, target_fps=30.0, twice=True, rule="1.x"),
        lambda: sampling.clip_test(9, length=1, target_fps=0.0, rule="1.x"),
        lambda: sampling.clip_test(9, length=1, target_fps=30.0, fps=0.0, rule="1.x"),
        lambda: sampling.clip_test(9, length=0),
        lambda: sampling.clip_train(9, length=1, interval=0, rng=generator(0, 0, 0)),
        lambda: sampling.dense_test(9, length=1, positions=0),
        lambda: sampling.windows(np.arange(5.0), every=0, span=2),
        lambda: sampling.windows(np.arange(5.0), every=float("nan"), span=2),
        lambda: generator(-1, 0, 0),
        lambda: generator(0, 0, 2**64),
    ],
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(UsageError):
        call()


def test_a_video_without_frames_is_refused():
    with pytest.raises(MediaError) as error:
        sampling.clip_test(0, length=8)
    assert error.value.code == "MEDIA_EMPTY"
