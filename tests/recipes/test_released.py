"""Published recipes against the tables and configurations of their source.

../weights/oracles/published_rows.csv holds what open-mmlab/mmaction2@v0.24.1 and @4d6c9347 print and
configure, row by row.
"""

import csv
import math
import re
from importlib import import_module
from pathlib import Path

import pytest

from marey.recipes.catalog import describe_recipe, list_recipes, load_recipe
from marey.training.optim import lr_factor
from marey.weights.published import IMAGENET_FILES, RELEASES

ROWS = list(csv.DictReader((Path(__file__).parents[1] / "weights/oracles/published_rows.csv").open()))
FAMILIES = ("csn", "slowonly", "tsm", "tsn")
TABLES = {family: import_module(f"marey.recipes.{family}").ROWS for family in FAMILIES}
NAMES = [(family, name) for family, table in TABLES.items() for name in table]
LEFT_OUT = {  # why no recipe has that name: as the modules say
    "backbones": r"mobilenet|mobileone|swin|rn101|dense161",
    "augmentation": r"tsm_r50_(flip_|ptv_)?(randaugment|augmix)_1x1x8_50e_sthv1_rgb",
    "blending": r"tsm_r50_(mixup|cutmix)_1x1x8_50e_sthv1_rgb",
    "losses": r"tsn_r18_1x1x8_100e_hvu_|tsn_r101_1x1x5_50e_mmit_rgb|\(mean of the six HVU",
    "wrong hash": r"slowonly_r50-in1k-pre-nl-embedded-gaussian_8xb16-8x8x1-",
}
MEANT = re.compile(r"(ir|ip)csn_(bnfrozen_)?r(50|152)_32x2x1[_-]180e")  # not as upstream has it: see csn.py
IMAGENET = {
    "torchvision://resnet50": "resnet50-0676ba61",
    "torchvision://resnet101": "resnet101-63fe2227",
}


def rows_of(name):
    return [row for row in ROWS if row["config"] == name]


def test_every_published_configuration_has_a_recipe_or_a_reason():
    names = {name for _, name in NAMES}
    published = {row["config"] for row in ROWS}
    assert names <= published
    reasons = re.compile("|".join(LEFT_OUT.values()))
    assert [name for name in sorted(published - names) if not reasons.search(name)] == []
    assert [name for name in names if reasons.search(name)] == []
    assert len(names) == 117


def test_the_nine_csn_rows_of_the_zoo_are_there_with_their_figures():
    """Table of the README of v0.24.1."""
    table = {
        "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb": ("csn_ir_r50", 123.675, 73.6, 91.3),
        "ircsn_ig65m_pretrained_bnfrozen_r50_32x2x1_58e_kinetics400_rgb": (
            "csn_ir_r50",
            123.675,
            79.0,
            94.2,
        ),
        "ircsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb": ("csn_ir_r152", 110.2008, 76.5, 92.1),
        "ircsn_sports1m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": (
            "csn_ir_r152",
            110.2008,
            78.2,
            93.0,
        ),
        "ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": (
            "csn_ir_r152",
            123.675,
            82.76,
            95.68,
        ),
        "ipcsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb": ("csn_ip_r152", 110.2008, 77.8, 92.8),
        "ipcsn_sports1m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": (
            "csn_ip_r152",
            110.2008,
            78.8,
            93.5,
        ),
        "ipcsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": (
            "csn_ip_r152",
            123.675,
            82.5,
            95.3,
        ),
        "ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb": ("csn_ir_r152", 123.675, 80.14, 94.93),
    }
    for name, (model, red, top1, top5) in table.items():
        recipe = load_recipe(name)
        assert (recipe.model.name, recipe.clips.mean[0]) == (model, red)
        assert recipe.published.metrics == {"top1": round(top1 / 100, 6), "top5": round(top5 / 100, 6)}
        assert recipe.published.protocol == "10 clips of 32 frames x 3 crops of 256"


@pytest.mark.parametrize(("family", "name"), NAMES)
def test_training_is_that_of_the_configuration(family, name):
    row = rows_of(name)[0]
    recipe = load_recipe(f"{family}.{name}")
    training, optimizer = recipe.training, recipe.training.optimizer
    if not (MEANT.match(name) and recipe.clips.rule == "1.x"):
        batch = int(row["batch_per_gpu"] or 32)
        reference = int(row["base_batch_size"] or 8 * batch)
        stated = (training.epochs, training.batch, training.reference_batch, optimizer.lr)
        assert stated == (int(row["epochs"]), batch, reference, float(row["lr"]))
    assert optimizer.weight_decay == float(re.search("wd ([0-9.e-]+)", row["optimizer"])[1])
    assert optimizer.clip_norm == float(row["grad_clip"])
    assert optimizer.groups == ("tsm" if "Constructor" in row["optimizer"] else "all")
    assert (optimizer.kind, optimizer.momentum, optimizer.head_factor) == ("sgd", 0.9, 5.0)
    assert recipe.model.num_classes == int(row["num_classes"])


@pytest.mark.parametrize(("family", "name"), NAMES)
def test_the_rate_moves_as_the_configuration_says(family, name):
    """At the beginning, in the middle of the warm-up, around every milestone, and at the end."""
    row = rows_of(name)[0]
    recipe = load_recipe(f"{family}.{name}")
    text, epochs = row["schedule"], recipe.training.epochs
    if MEANT.match(name) and recipe.clips.rule == "1.x":  # as that of 0.x, which has its own test below
        text = "cosine to 0; warm-up linear from x0.1 over 40 epochs"

    def factor(epoch, iteration=0):
        return lr_factor(
            recipe.training.schedule, epoch=epoch, iteration=iteration, per_epoch=10, epochs=epochs
        )

    warm = re.search(r"over ([0-9]+) epochs|epochs 0-([0-9]+);", text)
    warm = int(warm[1] or warm[2]) if warm else 0
    new = "->1" in text
    steps = re.match(r"(?:.*; )?step \[([0-9, ]*)\]", text)
    if warm:
        assert factor(0) == pytest.approx(0.1)
        full = warm - 1 if new else warm
        assert factor(full // 2) == pytest.approx(
            (0.1 + 0.9 * (full // 2) / full) * (1 if new or steps else cosine(full // 2 / epochs))
        )
        assert factor(1, 5) > factor(1) or new
    for milestone in map(int, filter(None, steps[1].split(", "))) if steps else ():
        assert factor(milestone) == pytest.approx(0.1 * factor(milestone - 1, 9))
    if "cosine" in text:
        begin = warm if new else 0
        middle = (begin + epochs) // 2
        assert factor(middle) == pytest.approx(cosine((middle - begin) / (epochs - begin)))
        assert (factor(middle, 5) < factor(middle)) == ("by_epoch=False" in text)
    else:
        last = 0.1 ** len(re.findall("[0-9]+", steps[1]))
        assert factor(epochs - 1, 9) == pytest.approx(last)


def cosine(part):
    return (1 + math.cos(math.pi * part)) / 2


@pytest.mark.parametrize(("family", "name"), NAMES)
def test_the_start_is_that_of_the_configuration(family, name):
    row = rows_of(name)[0]
    recipe = load_recipe(f"{family}.{name}")
    wanted = row["load_from"] or row["pretrained_arg"]
    wanted = IMAGENET.get(wanted, wanted.rpartition("/")[2].removesuffix(".pth")) or None
    assert recipe.model.weights == wanted
    if wanted:
        assert wanted in RELEASES or wanted in IMAGENET_FILES
    if wanted in RELEASES:
        assert RELEASES[wanted].model == recipe.model.name


@pytest.mark.parametrize(("family", "name"), NAMES)
def test_the_figure_is_one_of_the_rows_by_the_recipes_protocol(family, name):
    recipe = load_recipe(f"{family}.{name}")
    shown = recipe.published.metrics.get("top1"), recipe.published.metrics.get("top5")
    figures = []
    for row in rows_of(name):
        last = [re.findall("[0-9.]+", row[key]) for key in ("top1", "top5")]
        place = -1 if "efficient" in row["top1"] else 0  # "efficient / accurate", or one of several files
        figures.append(tuple(round(float(one[place]) / 100, 6) if one else None for one in last))
    assert shown in figures
    plan = recipe.clips.plan(recipe.clips.test)
    crops = {"center": 1, "three": 3, "ten": 10}[plan.crops]
    assert crops == int(row["test_crops"])
    assert recipe.published.protocol.endswith(f" x {crops} crop{'s' * (crops > 1)} of {plan.crop}")
    assert recipe.published.dataset == row["dataset"]
    assert f"top1 {100 * shown[0]:.2f}" in describe_recipe(recipe.name)


def test_from_scratch_batch_norms_learn_and_the_cosine_is_the_meant_one():
    for name in list_recipes("csn.*180e*"):
        recipe = load_recipe(name)
        assert (recipe.model.options["norm_eval"], recipe.model.options["bn_frozen"]) == (False, False)
        assert (recipe.training.epochs, recipe.training.schedule.kind) == (180, "cosine")
        assert (recipe.training.optimizer.lr, recipe.training.reference_batch) == (0.08, 32)
    for name in list_recipes("csn.*58e*"):
        frozen = name != "csn.ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb"
        options = load_recipe(name).model.options
        assert (options.get("norm_eval", False), options.get("bn_frozen", False)) == (frozen, frozen)
