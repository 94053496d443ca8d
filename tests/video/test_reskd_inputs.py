"""Frames, crops and pixels of ResKD's teachers and students, against numbers of its own pipeline."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from marey.video import sampling, transforms
from marey.video.preprocess import Preprocess, Protocol, normalize

ORACLES = Path(__file__).parent / "oracles"
SAMPLING = json.loads((ORACLES / "reskd_sampling.json").read_text())
PIPELINE = json.loads((ORACLES / "reskd_pipeline.json").read_text())


def named(cases):
    return [pytest.param(case, id=case["name"]) for case in cases]


def arguments(case):
    return {"length": case["clip_len"], "interval": case["frame_interval"], "clips": case["num_clips"]}


# Which frames


@pytest.mark.parametrize("case", named(SAMPLING["test_mode"]))
def test_a_test_takes_the_frames_that_reskd_takes(case):
    for n, expected in case["frames"].items():
        index = sampling.clip_test(int(n), twice=case.get("twice_sample", False), **arguments(case))
        assert (index.ravel() + case["start_index"]).tolist() == expected, n


@pytest.mark.parametrize("case", named(SAMPLING["train_mode"]["cases"]))
def test_training_draws_within_reskds_ranges_and_reaches_them(case):
    for n, (lowest, highest) in case["lowest_and_highest_drawn"].items():
        draws = [
            sampling.clip_train(int(n), rng=sampling.generator(0, 0, i), **arguments(case)).ravel()
            for i in range(400)
        ]
        index = np.stack(draws) + case["start_index"]
        low, high = index.min(0), index.max(0)
        assert (low >= lowest).all() and (high <= highest).all(), n
        free = np.subtract(highest, lowest)
        few = free < 30  # 400 draws miss one of 31 values once in half a million
        assert (low[few] == np.array(lowest)[few]).all() and (high[few] == np.array(highest)[few]).all(), n
        assert (high - low >= 0.95 * free - 1).all(), n


def test_a_short_video_ends_with_its_first_frame_again():
    index = sampling.clip_train(5, length=1, clips=16, rng=sampling.generator(0, 0, 0)).ravel()
    assert index[-1] == 0 and index[-2] == 4, "round(15 * 5 / 16) is frame 5, which wraps"


# Which crops


def multi_scale_id(case):
    return f"{case['image_wh']} -> {case['input_size']}"


@pytest.mark.parametrize("case", SAMPLING["multi_scale_crop"]["cases"], ids=multi_scale_id)
def test_multi_scale_crops_have_reskds_candidates_in_its_order(case):
    size = tuple(case["image_wh"])
    sizes = transforms.scale_sizes(size, case["input_size"], (1.0, 0.875, 0.75, 0.66), 1)
    assert [list(one) for one in sizes] == [c["crop_wh"] for c in case["candidates"]]
    for one, candidate in zip(sizes, case["candidates"], strict=True):
        boxes = transforms.grid_boxes(size, one, 13)
        assert [list(box[:2]) for box in boxes] == candidate["offsets_xy"]
        assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {one}


# Which pixels


class Frames:
    """The oracle's frames, by its formulas, as a video."""

    fps = 25.0

    def __init__(self, kind, count, height, width, seed):
        if kind == "noise":
            pixels = np.random.RandomState(seed).randint(0, 256, (count, height, width, 3))
        else:
            t, y, x, c = np.ogrid[:count, :height, :width, :3]
            pixels = np.floor(
                127.5 + 80 * np.sin(0.11 * x + 0.5 * c + 0.3 * t + seed) + 45 * np.cos(0.07 * y - 0.2 * c)
            )
        self.pixels = torch.from_numpy(pixels.astype(np.uint8))

    def __len__(self):
        return len(self.pixels)

    def frames(self, indices):
        return self.pixels[torch.as_tensor(np.asarray(indices))]


def plan(case, **fields):
    crops = "three" if case["path"] == "test_three" else "center"
    single = case["clip_len"] == 1
    return Preprocess(
        frames=case["clips"] if single else case["clip_len"],
        sampling="segments" if single else "clip",
        short_side=case["short_side"],
        crop=case["crop"],
        resize="opencv",
        test=Protocol(clips=1 if single else case["clips"], crops=crops),
        **fields,
    )


def batch_of(case):
    """uint8 [N, T, 224, 224, 3] as the pipeline gives it, and which are mirrored."""
    video, preprocess = Frames(**case["frames"]), plan(case)
    if case["path"] != "train":
        return preprocess.views(video, preprocess.test).batch(), None
    size = transforms.to_short_side((case["frames"]["width"], case["frames"]["height"]), case["short_side"])
    box = tuple(case["draws"]["crop_box_xyxy"])
    cut = transforms.crop_resize(video.pixels, size, box, (case["crop"],) * 2, "opencv")
    assert cut.sum(dtype=torch.int64) == case["expected"]["second_resize_uint8_sum"]
    return cut[None], torch.tensor([case["draws"]["flip"]])


def as_published(clip, case):
    """[N, 3, T, H, W] -> [N * T, 3, H, W] for 2D networks; ours is [views, 3, T, H, W] in the same order."""
    return clip.transpose(1, 2).flatten(0, 1) if case["layout"] == "NCHW" else clip


def assert_met(clip, expected):
    whole = clip.double()
    assert float(whole.mean()) == pytest.approx(expected["mean"], abs=2e-6)
    assert float(whole.std(correction=0)) == pytest.approx(expected["std"], abs=2e-6)
    assert float(whole.norm()) == pytest.approx(expected["norm"], rel=1e-6)
    np.testing.assert_allclose(clip.flatten()[:8], expected["first8"], atol=2e-6)
    for index, value in expected["samples"]:
        assert float(clip[tuple(index)]) == pytest.approx(value, abs=2e-6), index


@pytest.mark.parametrize("number", range(len(PIPELINE["cases"])))
def test_teacher_and_student_inputs_are_reskds(number):
    case = PIPELINE["cases"][number]
    expected, (batch, mirrored) = case["expected"], batch_of(case)
    frames = Frames(**case["frames"])
    size = transforms.to_short_side((frames.pixels.shape[2], frames.pixels.shape[1]), case["short_side"])
    assert list(size) == expected["resized_wh"]
    if "resized_uint8_sum" in expected:
        resized = transforms.resize(frames.pixels, size, "opencv")
        assert resized.sum(dtype=torch.int64) == expected["resized_uint8_sum"]
    row = normalize(batch, plan(case), mirrored)[0, :, 0, 0, :6].T  # as the network gets it, mirrored
    pixels = row * torch.tensor(plan(case).std) + torch.tensor(plan(case).mean)
    assert pixels.round().tolist() == expected["uint8_first_frame_row0_first6"]
    teacher = normalize(batch, plan(case), mirrored)
    given = as_published(teacher, case)
    assert_met(given.reshape(expected["teacher_input"]["shape"]), expected["teacher_input"])
    for side, wanted in expected["student_inputs"].items():
        student = normalize(batch, plan(case, input_size=int(side)), mirrored)
        assert_met(as_published(student, case).reshape(wanted["shape"]), wanted)
    half = normalize(batch, plan(case, input_size=112), mirrored)
    means = teacher.unflatten(4, (112, 2)).mean(5).unflatten(3, (112, 2)).mean(4)
    assert float((half - means).abs().max()) < 5e-7, "112 is the mean of every four pixels"


def test_three_crops_lie_left_right_middle_and_views_go_crop_by_crop():
    case = next(c for c in PIPELINE["cases"] if c["path"] == "test_three")
    video, preprocess = Frames(**case["frames"]), plan(case)
    views = preprocess.views(video, preprocess.test)
    assert views.numbers.tolist() == [0, 1, 2, 3]
    boxes, _ = transforms.crop_boxes("three", (299, 224), 224)
    assert boxes.tolist() == case["expected"]["crop_boxes_xyxy"]
    means = normalize(views.batch(), preprocess).mean((1, 2, 3, 4))
    np.testing.assert_allclose(means, case["expected"]["mean_per_view"], atol=2e-6)


def test_the_input_size_is_part_of_what_a_checkpoint_says():
    case = PIPELINE["cases"][0]
    kept = msgspec.json.decode(msgspec.json.encode(plan(case, input_size=112)), type=Preprocess)
    assert kept.input_size == 112 and kept.plan(kept.test).input_size == 112
