"""Augmentations against PySlowFast's numbers, with its own draws, and against Pillow frame by frame."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from marey.errors import UsageError
from marey.training.losses import soft_targets
from marey.video import augment
from marey.video.augment import (
    OPERATIONS,
    Augment,
    Change,
    Erasing,
    Mixing,
    RandAugment,
    apply,
    change,
    cut,
    draw_box,
    draw_changes,
    draw_mixture,
    erase,
    mix,
    mix_targets,
    rand_augment,
    random_erase,
)
from marey.video.sampling import generator
from tests.oracles import drawn_input

ORACLE = json.loads((Path(__file__).parent / "oracles" / "augment.json").read_text())
PUBLISHED = RandAugment(layers=4, magnitude=7.0, spread=0.5)


class Upstream:
    """The generators that the original draws from: Python's and numpy's, behind numpy's newer names."""

    def __init__(self, seed, *, legacy=False):
        self.python, self.numpy, self.legacy = random.Random(seed), np.random.RandomState(seed), legacy

    def random(self):
        return self.numpy.rand() if self.legacy else self.python.random()

    def uniform(self, low, high):
        return self.python.uniform(low, high)

    def normal(self, mean, deviation):
        return self.python.gauss(mean, deviation)

    def beta(self, a, b):
        return self.numpy.beta(a, b)

    def integers(self, low, high=None, size=None):
        if size is not None or self.legacy:
            return self.numpy.choice(low, size) if size is not None else self.numpy.randint(low, high)
        return self.python.randint(low, high - 1)


def summary_is(tensor, expected):
    """The original's [B, C, T, H, W] or [T, C, H, W] in its shape, mean, deviation and first values."""
    assert list(tensor.shape) == expected["shape"]
    assert tensor.mean().item() == pytest.approx(expected["mean"], rel=1e-6, abs=1e-8)
    assert tensor.std(correction=0).item() == pytest.approx(expected["std"], rel=1e-6)
    assert tensor.flatten()[:8].tolist() == pytest.approx(expected["first8"], rel=1e-6)


# RandAugment: what is drawn ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", ORACLE["drawn"], ids=lambda case: f"seed {case['seed']}")
def test_the_original_s_draws_give_the_original_s_changes(case):
    got = draw_changes(PUBLISHED, Upstream(case["seed"]))
    assert [name for name, _ in got] == [name for name, _ in case["applied"]]
    assert [amount for _, amount in got] == pytest.approx([amount for _, amount in case["applied"]])


def test_strength_becomes_the_published_amounts():
    assert list(OPERATIONS) == ORACLE["order"]
    for name, levels in ORACLE["levels"]:
        for strength, amount in levels:
            assert change(name, strength).amount == pytest.approx(amount), (name, strength)


def test_only_operations_with_two_directions_turn_about():
    turned = {name: change(name, 5, negative=True).amount for name in OPERATIONS}
    assert turned["rotate"] == -15 and turned["color"] == pytest.approx(1 - 0.45)
    assert turned["posterize"] == change("posterize", 5).amount
    assert turned["solarize_add"] == change("solarize_add", 5).amount == 55


def test_settings_move_the_draws_as_they_say():
    def drawn(**settings):
        return [draw_changes(RandAugment(**settings), generator(0, 0, i)) for i in range(400)]

    assert all(len(changes) == 3 for changes in drawn(layers=3, probability=1.0))
    assert not any(drawn(layers=3, probability=0.0))
    made = sum(map(len, drawn(layers=4, probability=0.25)))
    assert made == pytest.approx(400, rel=0.15)
    fixed = {
        c.amount
        for changes in drawn(layers=4, magnitude=5.0, spread=0.0)
        for c in changes
        if c[0] == "rotate"
    }
    assert fixed == {-15.0, 15.0}
    spread = [abs(c.amount) / 3 for changes in drawn(layers=4) for c in changes if c[0] == "rotate"]
    assert np.mean(spread) == pytest.approx(7, abs=0.2) and np.std(spread) == pytest.approx(0.5, abs=0.15)
    names = [c.name for changes in drawn(layers=4, probability=1.0) for c in changes]
    assert {names.count(name) for name in OPERATIONS} <= set(range(70, 150)), "1600 / 15 = 107 each"


# RandAugment: pixels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ORACLE["pixels"], ids=lambda row: row[0])
def test_pixels_are_those_of_the_original(row):
    name, amount, mean, deviation, first, there = row
    image = (np.random.RandomState(77).standard_normal((24, 32, 3)).astype(np.float32) * 40 + 128).clip(
        0, 255
    )
    frames = torch.from_numpy(image.astype(np.uint8))[None]
    before = frames.clone()
    (got,) = apply(frames, [Change(name, amount)])
    assert torch.equal(frames, before), "the given frames are left as they are"
    assert got.dtype == torch.uint8
    assert got.double().mean().item() == pytest.approx(mean, abs=1e-8)
    assert got.double().std(correction=0).item() == pytest.approx(deviation, abs=1e-8)
    assert got.flatten()[:6].tolist() == first
    assert got[12, 16].tolist() == there


def affine(coefficients):
    return lambda image: image.transform(
        image.size,
        Image.Transform.AFFINE,
        coefficients(*image.size),
        resample=Image.Resampling.BICUBIC,
        fillcolor=(128, 128, 128),
    )


PILLOW = {
    "auto_contrast": lambda _: ImageOps.autocontrast,
    "equalize": lambda _: ImageOps.equalize,
    "invert": lambda _: ImageOps.invert,
    "rotate": lambda a: (
        lambda image: image.rotate(a, resample=Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))
    ),
    "posterize": lambda a: lambda image: ImageOps.posterize(image, int(a)),
    "solarize": lambda a: lambda image: ImageOps.solarize(image, int(a)),
    "solarize_add": lambda a: (
        lambda image: image.point([i + int(a) if i < 128 else i for i in range(256)] * 3)
    ),
    "color": lambda a: lambda image: ImageEnhance.Color(image).enhance(a),
    "contrast": lambda a: lambda image: ImageEnhance.Contrast(image).enhance(a),
    "brightness": lambda a: lambda image: ImageEnhance.Brightness(image).enhance(a),
    "sharpness": lambda a: lambda image: ImageEnhance.Sharpness(image).enhance(a),
    "shear_x": lambda a: affine(lambda w, h: (1, a, 0, 0, 1, 0)),
    "shear_y": lambda a: affine(lambda w, h: (1, 0, 0, a, 1, 0)),
    "translate_x": lambda a: affine(lambda w, h: (1, 0, a * w, 0, 1, 0)),
    "translate_y": lambda a: affine(lambda w, h: (1, 0, 0, 0, 1, a * h)),
}
WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def frames_of(kind):
    """uint8 [3, 61, 84, 3]: noise; or smooth with flat and clipped parts, unlike from frame to frame."""
    rng = np.random.RandomState(4)
    if kind == "noise":
        return torch.from_numpy(rng.randint(0, 256, (3, 61, 84, 3)).astype(np.uint8))
    coarse = torch.from_numpy(rng.rand(3, 3, 8, 10).astype(np.float32))
    fine = torch.nn.functional.interpolate(coarse, (61, 84), mode="bicubic")
    frames = ((fine * 1.5 - 0.25).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    frames[:, 20:40, 20:50] = torch.tensor([7, 200, 255], dtype=torch.uint8)
    frames[2] //= 3
    return frames


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("strength", [0, 3.5, 7, 9.9])
def test_all_frames_at_once_give_what_pillow_gives_one_by_one(name, kind, strength):
    frames = frames_of(kind)
    for negative in (False, True):
        amount = change(name, strength, negative).amount
        run = PILLOW[name](amount)
        images = [np.asarray(run(Image.fromarray(frame))) for frame in frames.numpy()]
        got, want = apply(frames, [Change(name, amount)]), torch.from_numpy(np.stack(images))
        if name not in WARPS:
            assert torch.equal(got, want)
            continue
        apart = (got.int() - want.int()).abs()
        assert apart.max() <= 1, "a float32 sum beside a whole number"
        assert (apart > 0).float().mean() < 2e-3


def test_extremes_do_not_break():
    flat = torch.full((2, 5, 4, 3), 60, dtype=torch.uint8)
    for name in OPERATIONS:
        for strength in (0, 10):
            got = apply(flat, [change(name, strength)])
            assert got.shape == flat.shape and got.dtype == torch.uint8
    assert torch.equal(augment.equalize(flat), flat) and torch.equal(augment.auto_contrast(flat), flat)
    assert not apply(flat, [change("posterize", 10)]).any()
    assert torch.equal(augment.sharpness(flat[:, :2], 1.9), flat[:, :2])


def test_a_clip_s_changes_depend_on_its_own_generator_alone():
    batch = torch.stack([frames_of("noise"), frames_of("smooth"), frames_of("noise")])
    settings = RandAugment(layers=4, probability=1.0)
    together = rand_augment(batch, settings, [generator(0, 3, i) for i in (5, 6, 7)])
    (alone,) = rand_augment(batch[1:2], settings, [generator(0, 3, 6)])
    assert torch.equal(together[1], alone)
    assert not torch.equal(together[0], together[2]), "the same clip, other draws"
    assert torch.equal(together[1], apply(batch[1], draw_changes(settings, generator(0, 3, 6))))
    assert rand_augment(batch, RandAugment(), []) is batch


# Erasing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ORACLE["erasing"], ids=lambda case: f"seed {case['seed']}")
def test_the_original_s_draws_erase_the_original_s_box(case):
    """A clip of zeros, [T, C, H, W] = [4, 3, 32, 40] upstream; its noise is drawn frame after frame."""
    box = draw_box(Erasing(probability=case["probability"]), (40, 32), Upstream(case["seed"]))
    if case["box_top_left_height_width"] is None:
        assert box is None
        return
    top, left, height, width = case["box_top_left_height_width"]
    assert box == (left, top, left + width, top + height)
    clip = torch.zeros(3, 4, 32, 40)
    erase(clip, box, torch.Generator().manual_seed(case["seed"]))
    summary_is(clip.transpose(0, 1), case["erased"])


def test_erasing_takes_its_share_of_clips_areas_and_shapes():
    settings = Erasing(probability=0.4, area=(0.1, 0.2), aspect=(1.5, 3.0))
    boxes = [draw_box(settings, (200, 100), generator(0, 0, i)) for i in range(1000)]
    found = np.array([box for box in boxes if box is not None])
    assert len(found) == pytest.approx(400, abs=50)
    width, height = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
    shares, aspects = width * height / 20_000, height / width
    assert shares.min() == pytest.approx(0.1, abs=0.01) and shares.max() == pytest.approx(0.2, abs=0.01)
    assert 1.4 < aspects.min() < 1.6 and 2.7 < aspects.max() < 3.2
    assert (found >= 0).all() and (found[:, 2] <= 200).all() and (found[:, 3] <= 100).all()


def test_erased_clips_have_noise_in_their_boxes_only():
    clips = torch.zeros(3, 3, 4, 20, 24)
    settings = Erasing(probability=1.0)
    assert random_erase(clips, settings, [generator(0, 0, i) for i in range(3)]) is clips
    for number, clip in enumerate(clips):
        left, top, right, bottom = draw_box(settings, (24, 20), generator(0, 0, number))
        inside = clip[:, :, top:bottom, left:right]
        assert inside.ne(0).all() and clip.count_nonzero() == inside.numel()
        assert not torch.equal(inside[:, 0], inside[:, 1]), "noise of its own for every frame"
    again = random_erase(torch.zeros(1, 3, 4, 20, 24), settings, [generator(0, 0, 1)])
    assert torch.equal(again[0], clips[1])
    assert not random_erase(torch.zeros(1, 3, 1, 9, 9), Erasing(), [generator(0, 0, 1)]).any()


# Mixing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ORACLE["mixing"], ids=lambda case: f"seed {case['seed']}")
def test_the_original_s_draws_mix_as_the_original(case):
    settings = Mixing(probability=1.0, mixup=0.8, cutmix=1.0, cutmix_share=0.5)
    mixture = draw_mixture(settings, (10, 12), Upstream(case["seed"], legacy=True))
    assert (mixture.box is not None) == case["cutmix"]
    if case["cutmix"]:
        top, bottom, left, right = case["box_y0_y1_x0_x1"]
        assert mixture.box == (left, top, right, bottom)
    assert mixture.share == pytest.approx(case.get("corrected_lambda", case["drawn_lambda"]), rel=1e-9)
    summary_is(mix(drawn_input([4, 3, 2, 12, 10], case["seed"]), mixture), case["mixed_input"])
    targets = mix_targets(soft_targets(torch.tensor([3, 0, 10, 3]), 11, 0.1), mixture)
    assert torch.allclose(targets, torch.tensor(case["target"]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", ORACLE["targets"])
def test_targets_are_those_of_the_original(case):
    soft = soft_targets(torch.tensor(case["labels"]), case["num_classes"], case["smoothing"])
    got = mix_targets(soft, augment.Mixture(case["lambda"]))
    assert torch.allclose(got, torch.tensor(case["target"]), rtol=1e-6, atol=1e-8)


def test_a_cut_exchanges_the_box_and_says_what_is_left():
    mixture = cut(0.75, (8, 8), (4, 4))
    assert mixture == (0.75, (2, 2, 6, 6))
    corner = cut(0.75, (8, 8), (0, 7))
    assert corner.box == (0, 5, 2, 8) and corner.share == 1 - 6 / 64
    clips = torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 3, 2, 8, 8).clone()
    mixed = mix(clips, mixture)
    assert mixed[0].mean().item() == 0.25 and mixed[1].mean().item() == 0.75
    assert mixed[0, :, :, 2:6, 2:6].eq(1).all()


def test_mixing_settings_move_the_draws_as_they_say():
    def drawn(**settings):
        return [draw_mixture(Mixing(**settings), (50, 40), generator(0, 0, i)) for i in range(600)]

    assert sum(m is not None for m in drawn(probability=0.3)) == pytest.approx(180, abs=40)
    assert all(m.box is None for m in drawn(probability=1.0, cutmix_share=0.0))
    assert all(m.box is not None for m in drawn(probability=1.0, cutmix_share=1.0))
    for name in ("mixup", "cutmix"):
        only = {"probability": 1.0, "cutmix_share": float(name == "cutmix")}
        edges, middle = (np.std([m.share for m in drawn(**only, **{name: alpha})]) for alpha in (0.1, 50.0))
        assert edges > 0.2 and middle < 0.15, "a small alpha draws shares near 0 and 1"


@pytest.mark.parametrize(
    ("struct", "wrong"),
    [
        (RandAugment, {"layers": -1}),
        (RandAugment, {"magnitude": 11}),
        (RandAugment, {"spread": -1}),
        (RandAugment, {"probability": 2}),
        (Erasing, {"probability": -0.1}),
        (Erasing, {"area": (0.5, 0.2)}),
        (Erasing, {"aspect": (0, 1)}),
        (Mixing, {"probability": 1.5}),
        (Mixing, {"mixup": 0}),
        (Mixing, {"cutmix_share": 2}),
        (Augment, {"copies": 0}),
    ],
)
def test_senseless_settings_are_refused(struct, wrong):
    with pytest.raises(UsageError, match="augment") as error:
        struct(**wrong)
    assert error.value.code == "RECIPE_VALUE"
