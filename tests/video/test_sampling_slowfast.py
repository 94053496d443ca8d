"""Frames, sizes and crops by PySlowFast's rules against its own, with its own draws."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from marey.errors import UsageError
from marey.video import sampling
from marey.video.preprocess import Preprocess, Protocol
from marey.video.sampling import generator
from marey.video.transforms import area_crop, area_size, crop_boxes, to_short_side

ORACLE = json.loads((Path(__file__).parent / "oracles" / "slowfast_sampling.json").read_text())


class Python(random.Random):
    """Python's generator behind the names of numpy's."""

    def integers(self, low, high, size, endpoint):
        assert endpoint and size == (1, len(low))
        return np.array([[self.randint(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)]])


def dense(case):
    rule = "slowfast_offset" if case["use_offset"] else "slowfast"
    return Preprocess(frames=case["num_frames"], interval=case["rate"], rule=rule)


def test_dense_clips_of_a_test_are_the_published_ones():
    assert len(ORACLE["dense_test"]) > 20
    for case in ORACLE["dense_test"]:
        index = dense(case).pick_test(case["frames"], Protocol(clips=case["num_clips"]))
        assert index.shape == (case["num_clips"], case["num_frames"]) and index.dtype == np.int64
        assert index[case["clip"]].tolist() == case["index"], case


def test_dense_clips_of_training_are_those_of_the_same_draws():
    for case in ORACLE["dense_train"]:
        clips = Preprocess(frames=case["num_frames"], interval=case["rate"], rule="slowfast")
        assert clips.pick_train(case["frames"], Python(case["seed"])).tolist() == case["index"], case


def test_windows_start_and_end_where_the_published_ones_do():
    for case in ORACLE["clip_start_end"]:
        starts = sampling.spread_starts(
            case["video"], case["clip_size"], case["num_clips"], offset=case["use_offset"]
        )
        start = starts[case["clip"]]
        assert [start, start + case["clip_size"] - 1] == pytest.approx(case["start_end"])


def test_another_rate_stretches_the_window():
    """32 x 2 at 30 fps are 128 frames at 60: every fourth and a bit, in training and test."""
    clips = Preprocess(frames=32, interval=2, rule="slowfast_offset", target_fps=30)
    assert clips.pick_test(128, Protocol(), 60.0)[0].tolist() == [int(127 / 31 * i) for i in range(32)]
    assert clips.pick_train(128, generator(0, 0, 0), 60.0)[-1] == 127
    assert clips.span(60.0) == 128 and Preprocess(frames=32, interval=2, rule="slowfast").span() == 64


def test_sparse_frames_are_the_published_ones():
    for case in ORACLE["sparse_test"]:
        for rule in ("slowfast_offset", "1.x"):
            clips = Preprocess(frames=case["num_frames"], sampling="uniform", rule=rule)
            index = clips.pick_test(case["frames"], Protocol(clips=case["views"]))
            assert index.tolist() == case["index"], case
    for case in ORACLE["sparse_train"]:
        clips = Preprocess(frames=case["num_frames"], sampling="uniform", rule="slowfast_offset")
        assert clips.pick_train(case["frames"], Python(case["seed"])).tolist() == case["index"], case


def test_the_middle_of_each_part_is_pyslowfast_s_own_sparse_rule():
    for case in ORACLE["sparse_middle"]:
        clips = Preprocess(frames=case["num_frames"], sampling="uniform", rule="slowfast")
        assert clips.pick_test(case["frames"], Protocol()).tolist() == [case["index"]]


def test_short_sides_are_the_published_ones():
    for case in ORACLE["short_side"]:
        height, width = case["result"]
        assert to_short_side((case["width"], case["height"]), case["short_side"], down=True) == (
            width,
            height,
        )


def test_a_short_side_drawn_by_its_inverse_is_the_published_one():
    """Sizes (width, height) of 320x240 by numpy's legacy seeds 0 to 5, scales 256 to 320."""
    clips = Preprocess(
        rule="slowfast", train_short_side=(256, 320), inverse_short_side=True, train_crop="center"
    )
    sizes = [clips._draw_box((320, 240), np.random.RandomState(seed))[0] for seed in range(6)]
    assert sizes == [(374, 281), (386, 290), (385, 289), (374, 281), (344, 258), (404, 303)]
    with pytest.raises(UsageError, match="inverse_short_side needs"):
        Preprocess(inverse_short_side=True)


def test_a_short_side_drawn_evenly_is_the_published_one():
    clips = Preprocess(rule="slowfast", train_short_side=(256, 320), train_crop="center")
    sizes = [clips._draw_box((320, 240), np.random.RandomState(seed))[0] for seed in range(6)]
    assert sizes == [(388, 291), (377, 283), (378, 284), (388, 291), (424, 318), (360, 270)]


def test_crops_are_the_published_ones():
    """Left or top, right or bottom, and the middle; index 0, 2, 1 upstream."""
    met = 0
    for case in ORACLE["uniform_crop"]:
        size, crop = (case["width"], case["height"]), case["size"]
        kind, place = ("center", 0) if case["index"] == 1 else ("three", case["index"] // 2)
        if kind == "three" and min(size) > crop:
            continue  # three crops that do not cover the frame are refused
        left, top = crop_boxes(kind, size, crop, flush=True)[0][place, :2].tolist()
        assert [top, left] == case["top_left"], case
        met += 1
    assert met >= 15


class Tries:
    """Python's generator behind the names of numpy's, in the original's order: a try's area and shape, then
    those of the next, and where the box lies, top first. `count` tries are drawn; the others never fit."""

    def __init__(self, seed, count):
        self.random, self.calls, self.fitted = random.Random(seed), 0, False
        drawn = [
            (self.random.uniform(0.08, 1), self.random.uniform(np.log(0.75), np.log(1.3333)))
            for _ in range(count)
        ]
        self.tries = [*drawn, *[(9.0, 0.0)] * (10 - count)]

    def uniform(self, low, high, size):
        self.calls += 1
        return np.array([share if self.calls == 2 else aspect for share, aspect in self.tries])[:size]

    def integers(self, low, high):
        if self.fitted:
            return self.top
        self.fitted = True  # asked for the left side first, which is drawn after the top
        share, aspect = [one for one in self.tries if one[0] < 9][-1]
        height = area_size(share * 320 * 240, np.exp(aspect))[1]
        self.top = self.random.randint(0, 240 - height)
        return self.random.randint(low, high - 1)


def test_random_areas_are_those_of_the_same_draws():
    for case in ORACLE["area"]:
        for count in range(1, 11):
            draws = Tries(case["seed"], count)
            box = area_crop((320, 240), draws, aspect=(0.75, 1.3333), square=False)
            if draws.fitted:
                break
        top, left, height, width = case["top_left_height_width"]
        assert box == (left, top, left + width, top + height), case


def test_a_crop_that_never_fits_falls_back_to_the_published_one():
    for case in ORACLE["area_fallback"]:
        height, width = case["input"]
        box = area_crop((width, height), generator(0, 0, 0), area=(9, 9), aspect=(0.75, 1.3333), square=False)
        top, left, h, w = case["top_left_height_width"]
        assert box == (left, top, left + w, top + h)


class Wide:
    """A video of 341 x 258 whose pixels say where they are."""

    fps = 30.0

    def __len__(self):
        return 40

    def frames(self, indices):
        rows = torch.arange(258).view(1, -1, 1, 1) % 256
        columns = torch.arange(341).view(1, 1, -1, 1) % 256
        pixels = torch.cat(
            [rows.expand(1, 258, 341, 1), columns.expand(1, 258, 341, 1), columns * 0 + rows * 0], 3
        )
        return pixels.to(torch.uint8).expand(len(indices), -1, -1, -1).contiguous()


def test_a_preprocess_of_this_rule_cuts_by_it():
    shared = {"frames": 4, "interval": 4, "crop": 97, "short_side": None, "train_crop": "center", "flip": 0}
    new, old = (Preprocess(rule=rule, **shared) for rule in ("slowfast", "0.x"))
    corners = [c.views(Wide(), Protocol()).batch()[0, 0, 0, 0].tolist() for c in (new, old)]
    assert corners == [[81, 122, 0], [80, 122, 0]], "161 / 2 rounded up and down"
    trained = [c.train(Wide(), generator(0, 0, 0)).frames[0, 0, 0].tolist() for c in (new, old)]
    assert trained == corners


def test_a_preprocess_of_this_rule_resizes_by_it():
    """341 x 258 to a short side of 111: 146.7 wide."""
    shared = {"frames": 4, "short_side": 111, "crop": 111, "train_crop": "center", "flip": 0}
    new, old = (Preprocess(rule=rule, **shared) for rule in ("slowfast", "0.x"))
    assert [c.views(Wide(), Protocol(crops="three")).boxes[1, 2] for c in (new, old)] == [146, 147]
    ends = [c.train(Wide(), generator(0, 0, 0)).frames[0, 0, -1, 1].item() for c in (new, old)]
    assert ends == pytest.approx([128.5 * 341 / width - 256.5 for width in (146, 147)], abs=1)
    assert ends[0] > ends[1]


def test_a_preprocess_of_this_rule_falls_back_by_it():
    """No area crop fits into 341 x 2; the centred box is 3 x 2, or 2 x 2."""

    class Flat(Wide):
        def frames(self, indices):
            return super().frames(indices)[:, :2]

    shared = {"frames": 4, "short_side": None, "crop": 8, "flip": 0}
    new, old = (Preprocess(rule=rule, **shared) for rule in ("slowfast", "0.x"))
    lefts = [c.train(Flat(), generator(0, 0, 0)).frames[0, 0, :, 1].tolist() for c in (new, old)]
    assert [(min(left), max(left)) for left in lefts] == [(169, 171), (169, 170)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling": "dense"},
        {"sampling": "segments"},
        {"jitter": True, "interval": 2},
        {"out_of_bound": "repeat_last"},
        {"keep_tail": True},
        {"test": Protocol(twice=True)},
        {"test": Protocol(crops="ten")},
        {"test": Protocol(sampling="segments")},
        {"sampling": "uniform", "rule": "slowfast", "test": Protocol(clips=2)},
    ],
)
def test_what_this_rule_does_not_know_is_refused(wrong):
    with pytest.raises(UsageError, match="rule slowfast") as error:
        Preprocess(**({"rule": "slowfast_offset"} | wrong))
    assert error.value.code == "PREPROCESS_INVALID"
