"""Recipes of SlowFast, MViT, UniFormer and Video Swin against what their sources configure.

The tables here: facebookresearch/SlowFast@287ec007:configs, Sense-X/UniFormer@52a0415e (run.sh of
video_classification/exp) and SwinTransformer/Video-Swin-Transformer@db018fb8:configs/recognition/swin.
oracles/mmaction2_slowfast_swin.csv holds the rows of open-mmlab/mmaction2@v0.24.1 and @4d6c9347.
"""

import csv
import math
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from marey.models import build
from marey.recipes.catalog import describe_recipe, list_recipes, load_recipe
from marey.training.optim import lr_factor
from marey.weights.published import RELEASES

ROWS = list(csv.DictReader((Path(__file__).parent / "oracles/mmaction2_slowfast_swin.csv").open()))
FAMILIES = ("mvit", "slowfast", "swin", "uniformer")
NAMES = [f"{family}.{name}" for family in FAMILIES for name in import_module(f"marey.recipes.{family}").ROWS]
MMACTION = sorted({row["config"] for row in ROWS if "multigrid" not in row["config"]})

# epochs, warm-up, rate, its start and end, decay, videos an update, drop path, largest norm
STRONG = {
    "MVIT_B_16x4_CONV": (200, 30, 1e-4, 1e-6, 1e-6, 0.05, 16, 0.2, 1.0),
    "MVIT_B_32x3_CONV": (200, 30, 1e-4, 1e-6, 1e-6, 0.05, 16, 0.3, 1.0),
    "MVIT_B_32x3_CONV_K600": (200, 30, 1e-4, 1e-6, 1e-6, 0.05, 16, 0.3, 1.0),
    "MVITv2_S_16x4": (200, 30, 1e-4, 1e-6, 1e-6, 0.05, 16, 0.2, 1.0),
    "MVITv2_B_32x3": (200, 30, 1e-4, 1e-6, 1e-6, 0.05, 16, 0.3, 1.0),
    "SSv2_MVITv2_S_16x4": (100, 3, 0.0025, 1e-4, 1e-6, 1e-4, 16, 0.4, None),
    "SSv2_MVITv2_B_32x3": (100, 3, 0.0015, 1e-4, 1e-6, 1e-4, 16, 0.4, None),
    "SSv2_MVITv2_L_40x3": (40, 3, 0.00125, 1e-6, 1e-6, 1e-4, 8, 0.75, 2.0),
    "uniformer_s8x8_k400": (100, 10, 4e-4, 1e-6, 1e-6, 0.05, 128, 0.1, 20.0),
    "uniformer_s16x4_k400": (110, 10, 1e-4, 1e-6, 1e-6, 0.05, 32, 0.1, 20.0),
    "uniformer_s16x8_k400": (110, 10, 1e-4, 1e-6, 1e-6, 0.05, 32, 0.1, 20.0),
    "uniformer_s32x4_k400": (110, 10, 1e-4, 1e-6, 1e-6, 0.05, 32, 0.1, 20.0),
    "uniformer_b8x8_k400": (100, 10, 2e-4, 1e-6, 1e-6, 0.05, 64, 0.3, 20.0),
    "uniformer_b16x4_k400": (110, 10, 1.25e-4, 1e-6, 1e-6, 0.05, 40, 0.3, 20.0),
    "uniformer_b16x8_k400": (110, 10, 1.25e-4, 1e-6, 1e-6, 0.05, 40, 0.3, 20.0),
    "uniformer_b32x4_k400": (110, 10, 1e-4, 1e-6, 1e-6, 0.05, 32, 0.3, 20.0),
    "uniformer_s16x4_k600": (110, 10, 3e-4, 1e-6, 1e-6, 0.05, 96, 0.1, 20.0),
    "uniformer_s16x8_k600": (110, 10, 1e-4, 1e-6, 1e-6, 0.05, 32, 0.1, 20.0),
    "uniformer_b16x4_k600": (110, 10, 1.25e-4, 1e-6, 1e-6, 0.05, 40, 0.3, 20.0),
    "uniformer_b16x8_k600": (110, 10, 1.25e-4, 1e-6, 1e-6, 0.05, 32, 0.3, 20.0),
    "uniformer_b32x4_k600": (110, 10, 4e-4, 4e-6, 4e-6, 0.05, 128, 0.3, 20.0),  # four machines
    "uniformer_s16_sthv1_prek400": (60, 5, 2e-4, 1e-6, 1e-6, 0.05, 32, 0.2, 20.0),
    "uniformer_s32_sthv1_prek600": (60, 5, 2e-4, 1e-6, 1e-6, 0.05, 32, 0.3, 20.0),
    "uniformer_b16_sthv1_prek400": (60, 5, 2.5e-4, 1e-6, 1e-6, 0.05, 40, 0.6, 20.0),
    "uniformer_b16_sthv1_prek600": (60, 5, 2.5e-4, 1e-6, 1e-6, 0.05, 40, 0.5, 20.0),
    "uniformer_b32_sthv1_prek600": (60, 5, 2e-4, 1e-6, 1e-6, 0.05, 32, 0.6, 20.0),
    "uniformer_s16_sthv2_prek400": (50, 5, 2e-4, 1e-6, 1e-6, 0.05, 32, 0.3, 20.0),
    "uniformer_s32_sthv2_prek600": (50, 5, 2e-4, 1e-6, 1e-6, 0.05, 32, 0.3, 20.0),
    "uniformer_b16_sthv2_prek400": (50, 5, 2.5e-4, 1e-6, 1e-6, 0.05, 40, 0.4, 20.0),
    "uniformer_b16_sthv2_prek600": (50, 5, 2.5e-4, 1e-6, 1e-6, 0.05, 40, 0.5, 20.0),
    "uniformer_b32_sthv2_prek400": (50, 5, 2e-4, 1e-6, 1e-6, 0.05, 32, 0.5, 20.0),
    "uniformer_b32_sthv2_prek600": (50, 5, 2e-4, 1e-6, 1e-6, 0.05, 32, 0.5, 20.0),
}
SLOWFAST = {  # epochs, warm-up, rate, its start, decay, videos an update, milestones
    "SLOWFAST_4x16_R50": (196, 34, 0.1, 0.01, 1e-4, 64, ()),
    "SLOWFAST_8x8_R50": (196, 34, 0.1, 0.01, 1e-4, 64, ()),
    "SLOW_4x16_R50": (196, 34, 0.1, 0.01, 1e-4, 64, ()),
    "SLOW_8x8_R50": (196, 34, 0.1, 0.01, 1e-4, 64, ()),
    "SLOWFAST_8x8_R50_stepwise": (239, 34, 0.1, 0.01, 1e-4, 64, (94, 154, 196)),
    "SLOWFAST_16x8_R50": (22, 0.19, 0.03, 1e-4, 1e-6, 16, (14, 18)),
}
SWIN = {  # epochs, rate, decay, videos an update, drop path, start
    "swin_tiny_patch244_window877_kinetics400_1k": (30, 1e-3, 0.02, 256, 0.1, "swin_tiny_patch4_window7_224"),
    "swin_small_patch244_window877_kinetics400_1k": (
        30,
        1e-3,
        0.02,
        512,
        0.1,
        "swin_small_patch4_window7_224",
    ),
    "swin_base_patch244_window877_kinetics400_1k": (30, 1e-3, 0.05, 512, 0.3, "swin_base_patch4_window7_224"),
    "swin_base_patch244_window877_kinetics400_22k": (
        30,
        3e-4,
        0.05,
        512,
        0.2,
        "swin_base_patch4_window7_224_22k",
    ),
    "swin_base_patch244_window877_kinetics600_22k": (
        30,
        3e-4,
        0.05,
        512,
        0.2,
        "swin_base_patch4_window7_224_22k",
    ),
    "swin_base_patch244_window1677_sthv2": (
        60,
        3e-4,
        0.05,
        512,
        0.4,
        "swin_base_patch244_window1677_kinetics400_22k",
    ),
}


def rate(recipe, epoch):
    """Learning rate at a fractional epoch."""
    training = recipe.training
    whole = int(epoch)
    factor = lr_factor(
        training.schedule,
        epoch=whole,
        iteration=round(1000 * (epoch - whole)),
        per_epoch=1000,
        epochs=training.epochs,
    )
    return training.optimizer.lr * factor


def pyslowfast_cosine(epoch, base, end, begin, epochs):
    return end + (base - end) * (math.cos(math.pi * (epoch - begin) / (epochs - begin)) + 1) / 2


def drop_path(recipe):
    """Share of the last block's branches."""
    with torch.device("meta"):
        network = build(recipe.model.name, 5, **recipe.model.options)
    return max(m.rate for m in network.modules() if type(m).__name__ == "DropPath")


def test_every_published_row_has_its_recipe():
    trained = {
        name
        for name, release in RELEASES.items()
        if release.model.startswith(("slowfast", "mvit", "swin3d", "uniformer"))
        and release.recipe
        and "multigrid" not in name
        and not release.model.endswith("_det")  # test_detectors.py
        and release.source != "reskd"  # test_reskd.py
    }
    known = {name.partition(".")[2] for name in NAMES}
    assert {RELEASES[name].recipe for name in trained} <= known
    assert known - {RELEASES[name].recipe for name in trained} == {
        "SLOW_4x16_R50",
        "SLOW_8x8_R50",  # networks of another family
        "uniformer_s32x4_k400",  # whose file is not published
    }
    assert len(NAMES) == len(set(NAMES)) == 8 + 21 + 12 + 29
    assert {*STRONG, *SLOWFAST, *SWIN, *MMACTION} <= known
    assert set(NAMES) <= set(list_recipes())


@pytest.mark.parametrize("name", STRONG)
def test_transformers_are_trained_as_configured(name):
    epochs, warm, base, start, end, decay, videos, drop, norm = STRONG[name]
    recipe = load_recipe(name)
    training, optimizer = recipe.training, recipe.training.optimizer
    assert (training.epochs, training.reference_batch) == (epochs, videos)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.groups) == (decay, norm, "vectors")
    assert optimizer.lr == pytest.approx(base) and optimizer.decay_tables
    large = "_L_" in name
    sides = (356, 446) if large else (256, 320)
    jitter = (sides, True, "random") if name.startswith("SSv2") else (None, False, "area")
    clips = recipe.clips
    assert (clips.train_short_side, clips.inverse_short_side, clips.train_crop) == jitter
    if name.startswith("SSv2"):
        assert (optimizer.kind, optimizer.momentum, optimizer.nesterov) == ("sgd", 0.9, True)
    else:
        assert (optimizer.kind, optimizer.betas) == ("adamw", (0.9, 0.999))
    for epoch in (warm, (warm + epochs) / 2, epochs - 0.5):
        assert rate(recipe, epoch) == pytest.approx(pyslowfast_cosine(epoch, base, end, warm, epochs))
    for epoch in (0, 0.5, warm - 0.25):
        assert rate(recipe, epoch) == pytest.approx(start + epoch * (base - start) / warm)
    augment = training.augment
    assert augment.copies == (1 if name.startswith("SSv2") else 2)
    assert (augment.rand.layers, augment.rand.magnitude, augment.rand.spread) == (4, 7, 0.5)
    mixing = augment.mixing
    assert (mixing.probability == 1) == (not large)
    assert (mixing.probability or 1, mixing.mixup, mixing.cutmix, mixing.cutmix_share) == (1, 0.8, 1, 0.5)
    assert (augment.erasing.probability, training.label_smoothing) == (0.25, 0.1)
    assert drop_path(recipe) == pytest.approx(drop)
    machines = 4 if name == "uniformer_b32x4_k600" else 1
    assert training.batch * 8 * machines == videos


@pytest.mark.parametrize("name", SLOWFAST)
def test_slowfast_is_trained_as_configured(name):
    epochs, warm, base, start, decay, videos, milestones = SLOWFAST[name]
    recipe = load_recipe(name)
    training, optimizer = recipe.training, recipe.training.optimizer
    assert (training.epochs, training.reference_batch, training.precise_bn) == (epochs, videos, 200)
    assert (optimizer.kind, optimizer.lr, optimizer.nesterov) == ("sgd", base, True)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.groups) == (decay, None, "norms")

    def planned(epoch):
        if milestones:
            return base * 0.1 ** sum(m <= epoch for m in milestones)
        return pyslowfast_cosine(epoch, base, 0, 0, epochs)

    for epoch in (warm + 0.001, *milestones, epochs / 2, epochs - 0.25):
        assert rate(recipe, epoch) == pytest.approx(planned(epoch))
    for epoch in (0, warm / 4):
        assert rate(recipe, round(epoch, 3)) == pytest.approx(
            start + round(epoch, 3) * (planned(warm) - start) / warm
        )
    assert (recipe.clips.train_short_side, recipe.clips.train_crop) == ((256, 320), "random")
    assert recipe.clips.inverse_short_side == (name == "SLOWFAST_16x8_R50")


@pytest.mark.parametrize("name", SWIN)
def test_swin_is_trained_as_its_authors_configure_it(name):
    epochs, base, decay, videos, drop, start = SWIN[name]
    recipe = load_recipe(name)
    training, optimizer = recipe.training, recipe.training.optimizer
    assert (training.epochs, training.reference_batch, recipe.model.weights) == (epochs, videos, start)
    assert 8 * training.batch * training.accumulate == videos
    assert (optimizer.kind, optimizer.lr, optimizer.weight_decay) == ("adamw", base, decay)
    assert (optimizer.groups, optimizer.backbone_factor, optimizer.clip_norm) == ("tables", 0.1, None)
    assert drop_path(recipe) == pytest.approx(drop)
    assert rate(recipe, 0) == pytest.approx(0.1 * base)
    assert rate(recipe, 1.25) == pytest.approx(0.55 * base * (1 + math.cos(math.pi / epochs)) / 2)
    assert rate(recipe, 10.9) == pytest.approx(base * (1 + math.cos(math.pi * 10 / epochs)) / 2)
    strong = name.endswith("sthv2")
    augment = training.augment
    assert (augment.rand.layers, augment.erasing.probability) == ((4, 0.25) if strong else (0, 0))
    assert training.label_smoothing == (0.1 if strong else 0)
    assert (augment.copies, augment.mixing.probability) == (1, 0)


@pytest.mark.parametrize("name", MMACTION)
def test_mmaction2_s_recipes_say_what_its_configurations_say(name):
    rows = [row for row in ROWS if row["config"] == name]
    row, recipe = rows[0], load_recipe(name)
    training, optimizer, clips = recipe.training, recipe.training.optimizer, recipe.clips
    batch = int(row["batch_per_gpu"])
    assert (training.epochs, training.batch) == (int(row["epochs"]), batch)
    assert training.reference_batch == int(row["base_batch_size"] or (256 if "32xb8" in name else 8 * batch))
    assert optimizer.lr == float(row["lr"])
    assert optimizer.weight_decay == float(re.search("wd ([0-9.e-]+)", row["optimizer"])[1])
    assert optimizer.clip_norm == (float(row["grad_clip"]) if row["grad_clip"] else None)
    assert recipe.model.num_classes == int(row["num_classes"])
    frames, interval, _ = map(int, row["train_sampling"].split("x"))
    assert (clips.sampling, clips.frames, clips.interval) == ("clip", frames, interval)
    assert (clips.short_side == 256) == ("resize short 256" in row["train_space"])
    assert bool(clips.flip_labels) == ("label-swap" in row["train_space"])
    start = (row["pretrained_arg"] or row["load_from"]).rpartition("/")[2].removesuffix(".pth")
    assert recipe.model.weights == (start or None)
    figures = [tuple(round(float(one[k]) / 100, 6) for k in ("top1", "top5")) for one in rows]
    assert tuple(recipe.published.metrics.values()) in figures
    swin = name.startswith("swin")
    assert optimizer.kind == ("adamw" if swin else "sgd")
    if swin:
        assert (optimizer.groups, optimizer.decay_tables, optimizer.backbone_factor) == ("norms", False, 0.1)
        drops = {"tiny": 0.1, "small": 0.2, "base": 0.3, "large": 0.4}
        assert drop_path(recipe) == pytest.approx(drops[name.split("-")[1]])
    text, base, epochs = row["schedule"], optimizer.lr, training.epochs
    assert rate(recipe, 0) == pytest.approx(0.1 * base)
    if "cosine" in text:
        for epoch in (epochs // 2, epochs - 1):
            assert rate(recipe, epoch) == pytest.approx(base * (1 + math.cos(math.pi * epoch / epochs)) / 2)
            assert rate(recipe, epoch) == rate(recipe, epoch + 0.5)
    else:
        for number, place in enumerate(map(int, re.search(r"\[(.*)\]", text)[1].split(","))):
            assert rate(recipe, place - 1) == pytest.approx(base * 0.1**number)
            assert rate(recipe, place) == pytest.approx(base * 0.1 ** (number + 1))
    if "iterations" not in text:
        warm = float(re.search(r"(?:over|epochs 0-)\s?([0-9.]+)", text)[1])
        top = base * ((1 + math.cos(math.pi * int(warm / 2) / epochs)) / 2 if "cosine" in text else 1)
        assert rate(recipe, warm / 2) == pytest.approx(
            0.55 * top, rel=1e-3
        )  # halfway up, with each iteration


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_its_network_and_its_start(name):
    recipe = load_recipe(name)
    clips, model = recipe.clips, recipe.model
    with torch.device("meta"):
        network = build(model.name, model.num_classes, **model.options)
    if hasattr(network, "clip_size"):
        assert network.clip_size == (clips.frames, clips.crop, clips.crop)
    if hasattr(network, "alpha"):
        assert clips.frames % network.alpha == 0
    if model.weights:
        start = RELEASES[model.weights]
        assert start.model == model.name
        with torch.device("meta"):
            began = build(start.model, 5, **start.overrides)
        same = {key: value.shape for key, value in began.state_dict().items() if not key.startswith("head")}
        ours = {key: value.shape for key, value in network.state_dict().items() if not key.startswith("head")}
        assert same == ours
    published = recipe.published
    assert f"top1 {100 * published.metrics['top1']:.2f}" in describe_recipe(name)
    assert published.source.partition(":")[0] in (
        "facebookresearch/SlowFast@287ec007",
        "Sense-X/UniFormer@52a0415e",
        "SwinTransformer/Video-Swin-Transformer@db018fb8",
        "open-mmlab/mmaction2@v0.24.1",
        "open-mmlab/mmaction2@4d6c9347",
    )


def test_starts_are_those_that_the_names_tell():
    for name in NAMES:
        weights = load_recipe(name).model.weights
        if "prek" in name:
            size = {"s": "small", "b": "base"}[name.split("uniformer_")[1][0]]
            assert weights == f"uniformer_{size}_{name.rpartition('_pre')[2]}_16x4"
        elif name.startswith("uniformer"):
            assert weights.endswith("_in1k")
        elif name.startswith("mvit.MVIT"):
            assert weights is None
    assert load_recipe("SLOWFAST_16x8_R50").model.weights == "SLOWFAST_8x8_R50"


def test_figures_without_a_file_stand_in_the_row():
    """UniFormer-S on 32 frames of Kinetics-400: 82.0, no link."""
    recipe = load_recipe("uniformer_s32x4_k400")
    assert (recipe.published.metrics, recipe.clips.frames) == ({"top1": 0.82}, 32)
