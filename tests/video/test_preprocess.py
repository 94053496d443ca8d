"""Whole pipelines against the published bits, every published row, and laws of the views."""

import json
import re
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import booleans, integers, sampled_from

from marey.errors import MareyError, MediaError, UsageError
from marey.video.preprocess import Preprocess, Protocol, normalize
from marey.video.sampling import generator

ORACLES = Path(__file__).parent / "oracles"
PIPELINES = {c["name"]: c for c in json.loads((ORACLES / "preprocess.json").read_text())["cases"]}
ROWS = json.loads((ORACLES / "recipe_rows.json").read_text())["rows"]
ROWS = [row for row in ROWS if "Imgaug" not in row[2]]  # random augmentation is not part of a Preprocess


class Memory:
    """A video held in memory that remembers what it was asked for."""

    def __init__(self, pixels, fps=25.0):
        self.pixels, self.fps, self.calls = pixels, fps, []

    def __len__(self):
        return len(self.pixels)

    def frames(self, indices):
        self.calls.append(list(indices))
        return self.pixels[torch.as_tensor(np.asarray(indices))]


def noise(count=90, height=48, width=64, seed=0):
    return torch.from_numpy(
        np.random.RandomState(seed).randint(0, 256, (count, height, width, 3)).astype(np.uint8)
    )


def numbered(count=40, height=36, width=48):
    """Frame i has the value i everywhere; the columns' numbers stand in the last channel."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, height, width, 3)
    pixels[..., 2] = torch.arange(width, dtype=torch.uint8)
    return Memory(pixels)


def published(case, mode):
    """Preprocess and test protocol of an oracle's pipeline."""
    segments = case["frames"] == 1
    return Preprocess(
        frames=case["clips"] if segments else case["frames"],
        interval=case["interval"],
        sampling="segments" if segments else "clip",
        short_side=case["short_side"],
        resize=mode,
        mean=tuple(case["mean"]),
        std=tuple(case["std"]),
        crop=case["crop"],
        test=Protocol(clips=1 if segments else case["clips"], crops=case["crops"]),
    )


def check_pipeline(case, mode):
    preprocess, video = published(case, mode), Memory(noise())
    views = preprocess.views(video, preprocess.test)
    shape = case["tensor"]["shape"]
    where = np.random.RandomState(5).randint(0, np.prod(shape), 32)
    crc32, values, sums, done = 0, np.zeros(32), np.zeros(2), 0
    for k in range(len(views)):  # one view at a time: the whole tensor takes up to 755 MB
        batch = views.batch(k, k + 1)
        crc32 = zlib.crc32(batch.numpy().tobytes(), crc32)
        clip = normalize(batch, preprocess)[0]
        flat = (
            (clip.transpose(0, 1) if len(shape) == 4 else clip).reshape(-1).double().numpy()
        )  # NCHW or NCTHW
        sums += flat.sum(), (flat**2).sum()
        mine = (where >= done) & (where < done + len(flat))
        values[mine] = flat[where[mine] - done]
        done += len(flat)
    mean, std = sums[0] / done, np.sqrt(sums[1] / done - (sums[0] / done) ** 2)
    exact = mode == "opencv"
    assert done == np.prod(shape)
    assert (crc32 == case["crc32"]) == exact
    assert np.abs(values - case["tensor"]["values"]).max() < (1e-6 if exact else 0.02)
    assert mean == pytest.approx(case["tensor"]["mean"], abs=1e-6 if exact else 0.005)
    assert std == pytest.approx(case["tensor"]["std"], abs=1e-6 if exact else 0.005)


@pytest.mark.parametrize("mode", ["opencv", "bilinear"])
@pytest.mark.parametrize("name", PIPELINES)
def test_test_pipelines_give_the_published_tensors(name, mode):
    check_pipeline(PIPELINES[name], mode)


def sampling_of(text):
    """ "32x2x10" or "dense 1x1x8 range 64 positions 10" or "1x1x8 twice" as settings, and clips per video."""
    length, interval, clips = map(int, re.search(r"(\d+)x(\d+)x(\d+)", text).groups())
    if "dense" in text:
        return {"sampling": "dense", "frames": clips}, 1
    if length == 1:
        return {"sampling": "segments", "frames": clips}, 1
    return {"sampling": "clip", "frames": length, "interval": interval}, clips


def short_of(text):
    found = re.search(r"resize short (\d+)", text)
    return int(found.group(1)) if found else None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " | ".join(row[:5]))
def test_every_published_row_can_be_expressed(row):
    _, train_frames, train_space, test_frames, test_space, clips, crops = row
    settings = sampling_of(train_frames)[0] | {"short_side": short_of(train_space), "flip": 0.0}
    if found := re.search(r"MultiScaleCrop (\d+) scales (\S+) gap (\d) fixed (\d+)", train_space):
        settings |= {"train_crop": f"multiscale{found.group(4)}", "scale_gap": int(found.group(3))}
        settings |= {"scales": tuple(map(float, found.group(2).split("/")))}
    if "flip 0.5" in train_space:
        settings |= {"flip": 0.5, "flip_labels": ((86, 87),) if "label-swap" in train_space else ()}
    crop = int(re.search(r"resize! (\d+)x", train_space).group(1))
    kind, side = re.search(r"(Center|Three|Ten)Crop (\d+)", test_space).groups()
    tested, each = sampling_of(test_frames)
    protocol = Protocol(
        clips=each,
        crops=kind.lower(),
        crop=int(side),
        short_side=short_of(test_space),
        twice="twice" in test_frames,
        **tested,
    )
    preprocess = Preprocess(crop=crop, test=protocol, **settings)
    video = Memory(torch.zeros(100, 256, 340, 3, dtype=torch.uint8))
    frames = preprocess.train(video, generator(0, 0, 0)).frames
    assert frames.shape == (preprocess.frames, crop, crop, 3)
    views = preprocess.views(video, preprocess.test)
    per_clip = protocol.frames if tested["sampling"] != "clip" else 1
    assert len(views.index) * per_clip == int(clips) and len(views.boxes) == int(crops)
    assert views.batch(0, 1).shape == (1, protocol.frames, int(side), int(side), 3)


def test_views_are_ordered_by_crop_then_clip():
    preprocess = Preprocess(frames=4, interval=2, short_side=None, crop=36)
    views = preprocess.views(numbered(), Protocol(clips=2, crops="three", crop=36))
    batch = views.batch()
    assert len(views) == 6 and batch.shape == (6, 4, 36, 36, 3)
    # 0.x: parts of (40 - 8 + 1) / 2 = 16.5 frames, clips at their centres 8 and 24
    assert batch[:, :, 0, 0, 0].tolist() == [[8, 10, 12, 14], [24, 26, 28, 30]] * 3
    assert batch[:, 0, 0, 0, 2].tolist() == [0, 0, 12, 12, 6, 6]  # left, right, middle
    assert torch.equal(views.batch(2, 5), batch[2:5]) and len(views.batch(4, 99)) == 2


def test_ten_crops_are_each_followed_by_their_mirror_image():
    preprocess = Preprocess(frames=1, short_side=None, crop=20)
    batch = preprocess.views(numbered(), Protocol(crops="ten", crop=20)).batch()
    assert torch.equal(batch[1::2], batch[0::2].flip(3))
    assert batch[0::2, 0, 0, 0, 2].tolist() == [0, 28, 0, 28, 14]


def test_segments_make_one_view_and_sampling_twice_makes_two():
    preprocess = Preprocess(frames=8, sampling="segments", short_side=None, crop=36)
    views = preprocess.views(numbered(32), Protocol(crop=36, twice=True))
    assert views.batch()[:, :, 0, 0, 0].tolist() == [list(range(2, 32, 4)), list(range(0, 32, 4))]


def test_every_frame_that_is_needed_is_asked_for_once_and_in_ascending_order():
    video, preprocess = Memory(noise()), Preprocess(frames=8, interval=2, short_side=64, crop=64)
    views = preprocess.views(video, Protocol(clips=25, crops="three"))
    asked = [number for call in video.calls for number in call]
    assert asked == sorted(set(asked)) == sorted(set(views.numbers[views.index].ravel().tolist()))
    assert len(asked) > 64 and max(map(len, video.calls)) == 64  # full-size frames are held 64 at a time
    video.calls.clear()
    clip = preprocess.train(video, generator(0, 0, 1))
    (asked,) = video.calls
    assert asked == sorted(set(asked)) and len(asked) == 8 and clip.frames.shape == (8, 64, 64, 3)


def test_views_hold_no_pixel_outside_all_crops():
    preprocess = Preprocess(frames=2, short_side=None, crop=20)
    views = preprocess.views(numbered(), preprocess.val)
    assert views.frames.shape == (2, 20, 20, 3) and views.boxes.tolist() == [[0, 0, 20, 20]]
    assert views.batch()[0, 0, 0, :, 2].tolist() == list(range(14, 34))


def test_a_part_of_a_video_is_treated_like_a_video_of_its_own():
    preprocess = Preprocess(frames=4, interval=2, short_side=None, crop=36)
    video = numbered()
    part = Memory(video.pixels[10:25])
    ours, expected = (
        preprocess.views(video, preprocess.val, within=range(10, 25)),
        preprocess.views(part, preprocess.val),
    )
    assert torch.equal(ours.batch(), expected.batch()) and (ours.numbers == expected.numbers + 10).all()
    clip = preprocess.train(video, generator(0, 0, 5), within=range(10, 25))
    assert torch.equal(clip.frames, preprocess.train(part, generator(0, 0, 5)).frames)
    for call in (preprocess.views, preprocess.train):
        with pytest.raises(MediaError):
            call(
                video, preprocess.val if call == preprocess.views else generator(0, 0, 0), within=range(9, 9)
            )


def test_a_training_sample_depends_on_its_generator_only():
    preprocess = Preprocess(frames=4, interval=2, short_side=48, crop=40, color_jitter=(0.4, 0.4, 0.4, 0.1))
    first, again, other = (preprocess.train(Memory(noise()), generator(7, 1, i)) for i in (3, 3, 4))
    assert torch.equal(first.frames, again.frames) and first.mirrored == again.mirrored
    assert not torch.equal(first.frames, other.frames)


def test_a_clip_is_mirrored_as_often_as_asked():
    preprocess = Preprocess(frames=1, short_side=None, crop=8, flip=0.25)
    video = numbered(2, 8, 10)
    share = np.mean([preprocess.train(video, generator(0, 0, i)).mirrored for i in range(1500)])
    assert share == pytest.approx(0.25, abs=0.04)


def test_a_random_short_side_reaches_both_ends():
    preprocess = Preprocess(
        frames=1, train_short_side=(10, 12), crop=10, train_crop="center", resize="opencv", flip=0.0
    )
    video = numbered(1, 40, 20)  # 20 columns shown on 10, 11 or 12 pixels, of which the crop takes 10
    rows = [preprocess.train(video, generator(0, 0, i)).frames[0, 0, :, 2].tolist() for i in range(60)]
    # pixel d lies at column (d + 0.5) * 20 / width - 0.5: 0.5 to 18.5, 0.41 to 16.77, and from d = 1 2 to 17
    assert {row[-1] - row[0] for row in rows} == {18, 17, 15}


@pytest.mark.parametrize("kind", ["area", "multiscale5", "multiscale13", "random", "center"])
@pytest.mark.parametrize("mode", ["bilinear", "opencv"])
def test_every_training_crop_gives_the_size_asked_for(kind, mode):
    preprocess = Preprocess(frames=3, interval=4, short_side=40, crop=32, train_crop=kind, resize=mode)
    frames, mirrored = preprocess.train(Memory(noise(5, 30, 44)), generator(0, 0, 0))
    assert frames.shape == (3, 32, 32, 3) and frames.dtype == torch.uint8 and isinstance(mirrored, bool)
    assert not torch.equal(frames[0], frames[1])  # frames 0, 4, 8 of 5 are 0, 4 and again 3


@settings(max_examples=150, deadline=None)
@given(
    n=integers(1, 300),
    frames=integers(1, 32),
    interval=integers(1, 8),
    kind=sampled_from(["clip", "segments", "dense", "untrimmed", "uniform"]),
    rule=sampled_from(["0.x", "1.x"]),
    clips=integers(1, 6),
    twice=booleans(),
    seed=integers(0, 99),
)
def test_picked_frames_exist_and_do_not_repeat_in_a_long_enough_video(
    n, frames, interval, kind, rule, clips, twice, seed
):
    many = kind in ("clip", "uniform")
    twice = twice and kind in ("clip", "segments") and (rule == "0.x" or kind == "segments")
    preprocess = Preprocess(
        frames=frames, interval=interval if kind in ("clip", "untrimmed") else 1, sampling=kind, rule=rule
    )
    index = preprocess.pick_test(n, Protocol(clips=clips if many else 1, twice=twice))
    rows = [*index]
    if kind != "untrimmed":
        rows.append(preprocess.pick_train(n, generator(seed, 0, 0)))
    for row in rows:
        assert row.dtype == np.int64 and row.shape == (frames,) and row.min() >= 0 and row.max() < n
    if kind != "untrimmed" and n >= preprocess.span():
        kept = index if kind == "uniform" else rows  # random frames of neighbouring parts may be equal
        assert all((np.diff(row) > 0).all() for row in kept)


def test_normalising_subtracts_the_mean_divides_by_std_and_keeps_the_layout():
    preprocess, batch = Preprocess(), noise(6, 5, 7).view(2, 3, 5, 7, 3)
    out = normalize(batch, preprocess)
    expected = (batch.double() - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    assert out.shape == (2, 3, 3, 5, 7) and out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    assert (out.permute(0, 2, 3, 4, 1) - expected).abs().max() < 1e-6
    bgr = normalize(batch, msgspec.structs.replace(preprocess, channel_order="bgr"))
    expected = (batch.flip(4).double() - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    assert (bgr.permute(0, 2, 3, 4, 1) - expected).abs().max() < 1e-6


def test_only_the_marked_clips_are_mirrored():
    preprocess, batch = Preprocess(), noise(6, 5, 7).view(3, 2, 5, 7, 3)
    before = batch.clone()
    out, plain = (
        normalize(batch, preprocess, torch.tensor([False, True, False])),
        normalize(batch, preprocess),
    )
    assert torch.equal(out[1], plain[1].flip(3)) and torch.equal(out[[0, 2]], plain[[0, 2]])
    assert torch.equal(batch, before)


def test_a_mirror_exchanges_the_labels_of_a_pair():
    preprocess = Preprocess(flip_labels=((86, 87), (93, 94)))
    assert [preprocess.mirror_label(label) for label in (86, 87, 93, 94, 5)] == [87, 86, 94, 93, 5]


def test_preprocessing_survives_json():
    preprocess = Preprocess(
        frames=16,
        interval=4,
        rule="1.x",
        target_fps=30.0,
        train_short_side=(256, 320),
        flip_labels=((1, 2),),
        color_jitter=(0.5, 0.5, 0.5, 0.1),
        test=Protocol(clips=10, crops="three", crop=256),
    )
    text = msgspec.json.encode(preprocess)
    assert msgspec.json.decode(text, type=Preprocess) == preprocess
    assert msgspec.convert(msgspec.to_builtins(preprocess), Preprocess) == preprocess


def test_json_with_a_misspelt_or_impossible_field_is_refused():
    with pytest.raises(msgspec.ValidationError, match="cropp"):
        msgspec.json.decode(b'{"cropp": 224}', type=Preprocess)
    with pytest.raises(UsageError, match="std"):
        msgspec.json.decode(b'{"std": [1, 0, 1]}', type=Preprocess)


@pytest.mark.parametrize(
    "fields",
    [
        {"frames": 0},
        {"interval": 0},
        {"interval": 2, "sampling": "segments"},
        {"target_fps": 30.0},
        {"target_fps": 0.0, "rule": "1.x"},
        {"target_fps": 30.0, "rule": "1.x", "sampling": "uniform"},
        {"jitter": True},
        {"jitter": True, "sampling": "segments"},
        {"keep_tail": True, "sampling": "uniform"},
        {"out_of_bound": "repeat_last", "sampling": "dense"},
        {"sampling": "dense", "frames": 65},
        {"crop": 0},
        {"short_side": 0},
        {"train_short_side": (320, 256)},
        {"train_crop": "random", "crop": 257},
        {"train_crop": "center", "train_short_side": (200, 300)},
        {"scales": ()},
        {"scales": (1.5,)},
        {"scale_gap": -1},
        {"scale_snap": 0},
        {"flip": 1.5},
        {"flip": float("nan")},
        {"flip_labels": ((1, 2), (2, 3))},
        {"flip": 0.0, "flip_labels": ((1, 2),)},
        {"color_jitter": (0.5, 0.5, 0.5, 0.6)},
        {"color_jitter": (-0.1, 0.5, 0.5, 0.1)},
        {"std": (1.0, 0.0, 1.0)},
        {"val": Protocol(clips=0)},
        {"val": Protocol(crop=257)},
        {"test": Protocol(crops="three")},
        {"test": Protocol(crops="three", crop=256, short_side=224)},
        {"test": Protocol(clips=2), "sampling": "segments"},
        {"test": Protocol(interval=2), "sampling": "uniform"},
        {"test": Protocol(sampling="dense", frames=65)},
        {"test": Protocol(twice=True), "rule": "1.x"},
        {"test": Protocol(twice=True), "sampling": "dense"},
        {"test": Protocol(sampling="uniform"), "rule": "1.x", "target_fps": 30.0},
    ],
    ids=str,
)
def test_a_combination_that_makes_no_sense_is_refused(fields):
    with pytest.raises(UsageError) as error:
        Preprocess(**fields)
    assert error.value.code == "PREPROCESS_INVALID" and "\n" not in str(error.value)


def test_a_protocol_takes_from_the_preprocessing_what_it_leaves_out():
    preprocess = Preprocess(frames=4, interval=16, short_side=128, crop=112)
    plan = preprocess.plan(Protocol(clips=10, crops="three", crop=128))
    assert msgspec.to_builtins(plan) == {
        "sampling": "clip", "frames": 4, "interval": 16, "clips": 10, "positions": 10, "twice": False,
        "lights": (), "short_side": 128, "crops": "three", "crop": 128, "input_size": 128,
    }  # fmt: skip
    assert preprocess.plan(Protocol()).crop == 112 and preprocess.plan(Protocol(frames=9)).frames == 9


def test_a_protocol_given_later_is_checked_too():
    with pytest.raises(UsageError):
        Preprocess(rule="1.x").pick_test(100, Protocol(twice=True))
    with pytest.raises(UsageError, match="train"):
        Preprocess(sampling="untrimmed").pick_train(100, generator(0, 0, 0))


def test_frames_that_a_crop_does_not_fit_are_an_error_and_not_stretched():
    preprocess = Preprocess(frames=1, short_side=None, train_crop="random")
    for call in (
        lambda: preprocess.train(numbered(), generator(0, 0, 0)),
        lambda: preprocess.views(numbered(), preprocess.val),
    ):
        with pytest.raises(MareyError) as error:
            call()
        assert error.value.code == "FRAME_TOO_SMALL"
