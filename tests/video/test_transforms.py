"""Pixels against OpenCV's own results, a formula written out per pixel, and colorsys."""

import colorsys
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers
from torch.nn.functional import interpolate

from marey.video.sampling import generator
from marey.video.transforms import color_jitter, crop_resize, resize

OPENCV = json.loads((Path(__file__).parent / "oracles" / "opencv_resize.json").read_text())


def noise(count, height, width, seed=0):
    return torch.from_numpy(
        np.random.RandomState(seed).randint(0, 256, (count, height, width, 3)).astype(np.uint8)
    )


def smooth(count, height, width):
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    waves = torch.stack([torch.sin(x + y), torch.cos(x - y), torch.sin(2 * x)], -1)
    return (waves * 100 + 128).to(torch.uint8).expand(count, -1, -1, -1).contiguous()


@pytest.mark.parametrize("case", OPENCV["cases"], ids=str)
def test_the_opencv_mode_gives_the_bits_of_opencv(case):
    width, height, new_width, new_height, crc32 = case
    image = np.random.RandomState(width * 1000 + height).randint(0, 256, (height, width, 3)).astype(np.uint8)
    got = resize(torch.from_numpy(image)[None], (new_width, new_height), "opencv")
    assert got.shape == (1, new_height, new_width, 3) and got.dtype == torch.uint8
    assert zlib.crc32(got.numpy().tobytes()) == crc32


def one_pixel(image, size, x, y):
    """OpenCV's fixed-point bilinear value of one target pixel, written out in Python integers."""
    height, width = image.shape[:2]
    sides = []
    for d, source, target in ((x, width, size[0]), (y, height, size[1])):
        place = np.float32((d + 0.5) * (source / target) - 0.5)
        first = int(np.floor(place))
        sides.append((first, np.float32(place - first)))
    (left, fx), (top, fy) = sides
    if left < 0 or left >= width - 1:
        left, fx = max(0, min(left, width - 1)), np.float32(0)
    a = [int(np.rint((np.float32(1) - fx) * np.float32(2048))), int(np.rint(fx * np.float32(2048)))]
    b = [int(np.rint((np.float32(1) - fy) * np.float32(2048))), int(np.rint(fy * np.float32(2048)))]
    rows = [max(0, min(top + k, height - 1)) for k in (0, 1)]
    lines = [
        image[r, left].astype(int) * a[0] + image[r, min(left + 1, width - 1)].astype(int) * a[1]
        for r in rows
    ]
    return ((b[0] * (lines[0] >> 4) >> 16) + (b[1] * (lines[1] >> 4) >> 16) + 2) >> 2


@settings(max_examples=60, deadline=None)
@given(*[integers(1, 60)] * 4, integers(0, 9999))
def test_every_pixel_of_the_opencv_mode_follows_the_formula(width, height, new_width, new_height, seed):
    frames, rng = noise(2, height, width, seed), np.random.RandomState(seed)
    got = resize(frames, (new_width, new_height), "opencv").numpy()
    for _ in range(8):
        k, x, y = rng.randint(2), rng.randint(new_width), rng.randint(new_height)
        assert got[k, y, x].tolist() == one_pixel(frames[k].numpy(), (new_width, new_height), x, y).tolist()


@pytest.mark.parametrize("size", [(85, 64), (40, 30), (64, 100), (20, 15)])
def test_the_bilinear_mode_is_within_one_level_of_exact_arithmetic(size):
    frames = noise(3, 48, 64)
    exact = interpolate(frames.permute(0, 3, 1, 2).double(), size=size[::-1], mode="bilinear").permute(
        0, 2, 3, 1
    )
    got = resize(frames, size)
    assert got.shape == (3, size[1], size[0], 3) and got.dtype == torch.uint8
    assert (got.double() - exact).abs().max() < 1.01
    assert (got.int() - resize(frames, size, "opencv").int()).abs().max() <= 2


@pytest.mark.parametrize("mode", ["bilinear", "opencv"])
def test_a_part_of_a_resized_frame_is_that_part(mode):
    frames = noise(2, 90, 120)
    for size in ((60, 45), (171, 128), (120, 90)):
        whole = resize(frames, size, mode)
        assert torch.equal(resize(frames, size, mode, (7, 3, 50, 41)), whole[:, 3:41, 7:50])


def test_frames_of_the_right_size_are_returned_as_they_are():
    frames = noise(2, 48, 64)
    assert torch.equal(resize(frames, (64, 48)), frames)
    assert torch.equal(resize(frames, (64, 48), "opencv"), frames)


def test_the_opencv_mode_of_training_makes_both_published_steps():
    frames = noise(2, 90, 120)
    first = resize(frames, (171, 128), "opencv")
    expected = resize(first[:, 10:90, 20:140], (64, 64), "opencv")
    assert torch.equal(crop_resize(frames, (171, 128), (20, 10, 140, 90), (64, 64), "opencv"), expected)


def test_one_resample_shows_the_same_part_of_the_picture_as_two():
    frames, size, box = smooth(2, 240, 320), (171, 128), (20, 10, 140, 110)
    one, two = (crop_resize(frames, size, box, (96, 96), mode).int() for mode in ("bilinear", "opencv"))
    shifted = crop_resize(frames, size, (24, 10, 144, 110), (96, 96), "opencv").int()
    assert (one - two).abs().max() <= 4
    assert (shifted - two).abs().max() > 8


def jittered(frames, seed=0, **strength):
    values = [strength.get(k, 0.0) for k in ("brightness", "contrast", "saturation", "hue")]
    return color_jitter(frames, generator(seed, 0, 0), tuple(values))


def test_no_strength_changes_no_pixel():
    assert torch.equal(jittered(noise(2, 20, 20)), noise(2, 20, 20))


def test_brightness_multiplies_every_frame_by_one_factor():
    frames = noise(3, 20, 20) // 2 + 20  # nothing is clipped at a factor up to 1.5
    bright = jittered(frames, brightness=0.5).double()
    factor = (bright.sum() / frames.double().sum()).item()
    assert 0.5 <= factor <= 1.5 and abs(factor - 1) > 0.01
    assert (bright - frames.double() * factor).abs().max() < 0.6


def test_contrast_keeps_each_frames_mean_and_saturation_each_pixels_gray():
    weights = torch.tensor([0.2989, 0.587, 0.114]).double()
    frames = noise(3, 40, 40) // 3 + 80
    gray = frames.double() @ weights
    changed = jittered(frames, contrast=0.5).double() @ weights
    assert (changed.mean((1, 2)) - gray.mean((1, 2))).abs().max() < 0.2
    assert (changed.std((1, 2)) / gray.std((1, 2)) - 1).abs().min() > 0.02
    dull = jittered(frames, saturation=0.5)
    assert (dull.double() @ weights - gray).abs().max() < 0.6 and not torch.equal(dull, frames)


def test_hue_turns_every_pixel_by_the_same_whole_steps_of_180():
    frames = noise(1, 12, 12)
    turned = jittered(frames, hue=0.5).reshape(-1, 3).tolist()
    pixels = (frames.reshape(-1, 3).double() / 255).tolist()
    errors = {}
    for step in range(-90, 91):
        turn = [colorsys.rgb_to_hsv(*p) for p in pixels]
        turn = [colorsys.hsv_to_rgb((h + step / 180) % 1, s, v) for h, s, v in turn]
        errors[step] = np.abs(np.array(turn) * 255 - turned).max()
    assert min(errors.values()) < 0.6 and sorted(errors.values())[2] > 2  # -90 and 90 are one turn


def test_jitter_treats_all_frames_alike_and_depends_on_its_generator_only():
    frames = noise(1, 16, 16).expand(4, -1, -1, -1)
    strength = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.1}
    first = jittered(frames, seed=3, **strength)
    assert all(torch.equal(first[0], frame) for frame in first)
    assert torch.equal(first, jittered(frames, seed=3, **strength))
    assert not torch.equal(first, jittered(frames, seed=4, **strength))
    assert torch.equal(frames[0], noise(1, 16, 16)[0])
