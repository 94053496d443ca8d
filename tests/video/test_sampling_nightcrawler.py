"""Frames and crops as Nightcrawler takes them, against its own code."""

import json
from pathlib import Path

import numpy as np

from marey.video.preprocess import Preprocess, Protocol
from marey.video.transforms import crop_boxes, to_short_side

ORACLE = json.loads((Path(__file__).parent / "oracles" / "nightcrawler_sampling.json").read_text())


class Ends:
    """A generator that draws the lower bounds, or the upper ones, and checks that both are meant."""

    def __init__(self, upper):
        self.upper = upper

    def integers(self, low, high, size, endpoint):
        assert endpoint
        return np.array([high if self.upper else low])


def test_uniform_frames_of_tests_are_the_published_ones():
    for frames, length, views, want in ORACLE["sparse_test"]:
        clips = Preprocess(frames=frames, sampling="uniform", rule="slowfast_offset")
        got = clips.pick_test(length, Protocol(clips=views))
        assert got.tolist() == want, (frames, length, views)
    assert len(ORACLE["sparse_test"]) == 52


def test_uniform_frames_of_training_lie_between_the_published_bounds():
    for frames, length, want in ORACLE["sparse_train"]:
        clips = Preprocess(frames=frames, sampling="uniform", rule="slowfast_offset")
        ends = [clips.pick_train(length, Ends(upper)).tolist() for upper in (False, True)]
        assert [list(pair) for pair in zip(*ends, strict=True)] == want, (frames, length)


def test_the_expert_s_frames_are_the_published_ones():
    for frames, stride, length, views, want in ORACLE["dense_test"]:
        clips = Preprocess(frames=frames, interval=stride, rule="slowfast_offset")
        assert clips.pick_test(length, Protocol(clips=views)).tolist() == want, (
            frames,
            stride,
            length,
            views,
        )


def test_crops_lie_where_the_published_ones_do():
    """In the source from left to right; our order is left, right, middle."""
    for height, width, high, wide, corners in ORACLE["crops"]:
        size = to_short_side((width, height), 224, down=True)
        assert size == (wide, high)
        three, _ = crop_boxes("three", size, 224, flush=True)
        assert sorted([top, left] for left, top, _, _ in three.tolist()) == sorted(corners)
        one, _ = crop_boxes("center", size, 224, flush=True)
        assert one[0, 1::-1].tolist() == corners[1]
