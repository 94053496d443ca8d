"""Clips around key frames: frame numbers and boxes as published, and boxes that stay on what they mean."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import booleans, integers, sampled_from

from marey.errors import UsageError
from marey.video.preprocess import Preprocess, Protocol, normalize
from marey.video.sampling import around, generator

ORACLES = Path(__file__).parent / "oracles"
FRAMES = json.loads((ORACLES / "key_frames.json").read_text())
BOXES = json.loads((ORACLES / "key_boxes.json").read_text())
AVA = Preprocess(
    frames=4,
    interval=16,
    sampling="key",
    jitter=True,
    train_short_side=(256, 320),
    crop=256,
    train_crop="random",
)


class Drawn:
    """A generator whose draws are known; each must lie within what is asked for."""

    def __init__(self, *, jitter=None, whole=(), flip=1.0):
        self.jitter, self.whole, self.flip, self.asked = jitter, list(whole), flip, []

    def integers(self, low, high, size=None, endpoint=False):
        self.asked.append((low, high))
        if size is not None:
            return np.array(self.jitter)
        value = self.whole.pop(0)
        assert low <= value < high + endpoint
        return value

    def random(self):
        return self.flip


class Still:
    """A video whose frames are all alike."""

    fps = 30.0

    def __init__(self, picture, count=200):
        self.picture, self.count, self.read = torch.from_numpy(picture), count, []

    def __len__(self):
        return self.count

    def frames(self, indices):
        self.read.append(list(indices))
        return self.picture[None].expand(len(indices), -1, -1, -1).contiguous()


@pytest.mark.parametrize(
    "case", FRAMES["cases"], ids=lambda c: f"{c['length']}x{c['interval']}@{c['second']}"
)
def test_frames_around_a_key_frame_are_the_published_ones(case):
    rng = None if case["jitter"] is None else Drawn(jitter=case["jitter"])
    file = 30 * (case["second"] - 900) + 1
    index = around(file, length=case["length"], interval=case["interval"], first=0, last=26999, rng=rng)
    assert index.tolist() == case["files"]
    if rng is not None:
        low, high = rng.asked[0]
        assert [low, high - 1] == FRAMES["jitter"][str(case["interval"])]


@pytest.mark.parametrize("case", BOXES["cases"], ids=lambda c: f"{c['size']}")
def test_boxes_follow_a_clip_exactly_as_published(case):
    width, height = case["size"]
    video = Still(np.zeros((height, width, 3), np.uint8))
    true, proposed = (np.array(case["boxes"][name]) for name in ("gt_bboxes", "proposals"))
    p = msgspec.structs.replace(AVA, jitter=False, short_side=case["short_side"])
    rng = None
    if case["crop"]:
        left, top, *_ = case["crop"]
        rng = Drawn(whole=[case["short_side"], left, top], flip=0.0 if case["mirrored"] else 0.9)
    clip = p.key_clip(video, 100, (true, proposed), rng=rng)
    assert clip.mirrored == case["mirrored"]
    size = (256, 256) if case["crop"] else tuple(case["resized"])
    assert tuple(clip.frames.shape) == (4, *size[::-1], 3)
    for moved, name in zip(clip.boxes, ("gt_bboxes", "proposals"), strict=True):
        assert moved.dtype == np.float32
        assert moved.tolist() == np.float32(case["result"][name]).tolist()


@settings(max_examples=40, deadline=None)
@given(
    seed=integers(0, 10_000),
    crop=sampled_from(["random", "center", "area", "multiscale13"]),
    mode=sampled_from(["bilinear", "opencv"]),
    train=booleans(),
)
def test_a_box_stays_on_the_thing_it_means(seed, crop, mode, train):
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(60, 120)), int(rng.integers(60, 120))
    x1, y1 = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
    x2, y2 = int(rng.integers(x1 + 15, width)), int(rng.integers(y1 + 15, height))
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y1:y2, x1:x2] = 255
    box = np.array([[x1 / width, y1 / height, x2 / width, y2 / height]])
    p = Preprocess(
        frames=2, sampling="key", short_side=64, train_short_side=(64, 80), crop=64, train_crop=crop,
        resize=mode, mean=(0, 0, 0), std=(255, 255, 255),
    )  # fmt: skip
    clip = p.key_clip(Still(picture), 9, (box,), rng=generator(seed, 0, 0) if train else None)
    shown = normalize(clip.frames[None], p, torch.tensor([clip.mirrored]))[0, 0, 0].numpy()
    ((left, top, right, bottom),) = clip.boxes[0]
    rows, columns = np.arange(shown.shape[0])[:, None] + 0.5, np.arange(shown.shape[1]) + 0.5
    inner = (columns > left + 2) & (columns < right - 2) & (rows > top + 2) & (rows < bottom - 2)
    outer = (columns < left - 3) | (columns > right + 3) | (rows < top - 3) | (rows > bottom + 3)
    assert (shown[inner] > 0.9).all()
    assert (shown[outer] < 0.1).all()


def test_only_frames_that_are_needed_are_read_each_once():
    video = Still(np.zeros((64, 64, 3), np.uint8), count=40)
    p = Preprocess(frames=4, interval=16, sampling="key", short_side=64, crop=64, train_crop="center")
    assert p.key_clip(video, 2, ()).frames.shape[0] == 4
    assert p.key_clip(video, 39, (), last=30).frames.shape[0] == 4
    assert video.read == [[0, 2, 18], [7, 23, 30]]


def test_frames_jitter_also_at_an_interval_of_one():
    video = Still(np.zeros((64, 64, 3), np.uint8), count=40)
    p = Preprocess(frames=8, interval=1, sampling="key", jitter=True, short_side=64, crop=64)
    for seed in range(20):
        p.key_clip(video, 20, (), rng=generator(seed, 0, 0))
    moved = {tuple(read) for read in video.read}
    assert len(moved) > 10 and {n for read in moved for n in read} == set(range(15, 24))
    with pytest.raises(UsageError, match="jitter needs key sampling"):
        Preprocess(interval=1, jitter=True)


def test_a_clip_and_its_boxes_are_a_function_of_the_draws():
    rng = np.random.default_rng(0)
    video = Still(rng.integers(0, 256, (300, 400, 3)).astype(np.uint8))
    boxes = rng.random((3, 2, 2)).cumsum(1).reshape(3, 4) / 2
    first, again, other = (AVA.key_clip(video, 90, (boxes,), rng=generator(1, 2, i)) for i in (3, 3, 4))
    assert torch.equal(first.frames, again.frames) and np.array_equal(first.boxes[0], again.boxes[0])
    assert not np.array_equal(first.boxes[0], other.boxes[0])


def test_no_boxes_are_a_table_of_no_boxes():
    clip = AVA.key_clip(Still(np.zeros((300, 300, 3), np.uint8)), 90, (np.empty((0, 4)),))
    assert clip.boxes[0].shape == (0, 4) and clip.boxes[0].dtype == np.float32


def test_key_sampling_has_no_clips_without_key_frames():
    with pytest.raises(UsageError, match="key sampling") as error:
        AVA.pick_train(100, np.random.default_rng(0))
    assert error.value.code == "PREPROCESS_INVALID"
    with pytest.raises(UsageError, match="key frames"):
        AVA.pick_test(100, Protocol())
    with pytest.raises(UsageError, match="rule slowfast knows no key sampling"):
        Preprocess(sampling="key", rule="slowfast")
    with pytest.raises(UsageError, match="input_size"):
        msgspec.structs.replace(AVA, input_size=224)
