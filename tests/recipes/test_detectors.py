"""Recipes of detectors against the schedules and figures that MMAction2 0.24.1 gives for AVA."""

import csv
import io
import math

import pytest

from marey.data.ava import AVA
from marey.errors import UsageError
from marey.jobs.boxes import window_size
from marey.models import build
from marey.recipes.ava import ROWS_OF_DETECTORS
from marey.recipes.catalog import describe_recipe, list_recipes, load_recipe
from marey.training.optim import lr_factor
from marey.weights.published import RELEASES

# open-mmlab/mmaction2@v0.24.1:configs/detection/{ava,lfb}: the configurations, and mAP of their README.md
TABLE = """\
name,frames,interval,batch,lr,decay,epochs,rates,warmup,map
ava.slowonly_kinetics_pretrained_r50_4x16x1_20e_ava_rgb,4,16,16,0.2,1e-5,20,10 15,5 epochs,20.1
ava.slowonly_omnisource_pretrained_r50_4x16x1_20e_ava_rgb,4,16,16,0.2,1e-5,20,10 15,5 epochs,21.8
ava.slowonly_nl_kinetics_pretrained_r50_4x16x1_10e_ava_rgb,4,16,12,0.3,1e-6,10,4 6 8,800 updates,21.75
ava.slowonly_nl_kinetics_pretrained_r50_8x8x1_10e_ava_rgb,8,8,6,0.15,1e-6,10,4 6 8,1600 updates,23.79
ava.slowonly_kinetics_pretrained_r101_8x8x1_20e_ava_rgb,8,8,6,0.075,1e-5,20,10 15,5 epochs,24.6
ava.slowonly_omnisource_pretrained_r101_8x8x1_20e_ava_rgb,8,8,6,0.075,1e-5,20,10 15,5 epochs,25.9
ava.slowfast_kinetics_pretrained_r50_4x16x1_20e_ava_rgb,32,2,9,0.1125,1e-5,20,10 15,5 epochs,24.4
ava.slowfast_context_kinetics_pretrained_r50_4x16x1_20e_ava_rgb,32,2,9,0.1125,1e-5,20,10 15,5 epochs,25.4
ava.slowfast_kinetics_pretrained_r50_8x8x1_20e_ava_rgb,32,2,5,0.075,1e-5,20,10 15,5 epochs,25.5
ava.slowfast_kinetics_pretrained_r50_8x8x1_cosine_10e_ava22_rgb,32,2,6,0.075,1e-5,10,cosine,2 epochs,26.1
ava.slowfast_temporal_max_kinetics_pretrained_r50_8x8x1_cosine_10e_ava22_rgb,32,2,6,0.075,1e-5,10,cosine,2 epochs,26.4
ava.slowfast_temporal_max_focal_alpha3_gamma1_kinetics_pretrained_r50_8x8x1_cosine_10e_ava22_rgb,32,2,6,0.075,1e-5,10,cosine,2 epochs,26.8
lfb.lfb_nl_kinetics_pretrained_slowonly_r50_4x16x1_20e_ava_rgb,4,16,12,0.15,1e-5,20,10 15,5 epochs,24.11
lfb.lfb_avg_kinetics_pretrained_slowonly_r50_4x16x1_20e_ava_rgb,4,16,12,0.15,1e-5,20,10 15,5 epochs,20.17
lfb.lfb_max_kinetics_pretrained_slowonly_r50_4x16x1_20e_ava_rgb,4,16,12,0.15,1e-5,20,10 15,5 epochs,22.15
"""  # noqa: E501
ROWS = list(csv.DictReader(io.StringIO(TABLE)))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_recipe_is_what_its_configuration_says(row):
    recipe = load_recipe(row["name"])
    clips, training, optimizer = recipe.clips, recipe.training, recipe.training.optimizer
    assert (clips.frames, clips.interval) == (int(row["frames"]), int(row["interval"]))
    assert (clips.sampling, clips.jitter, clips.short_side) == ("key", True, 256)
    assert (clips.train_short_side, clips.crop, clips.train_crop, clips.flip) == (
        (256, 320),
        256,
        "random",
        0.5,
    )
    assert (training.batch, training.epochs) == (int(row["batch"]), int(row["epochs"]))
    assert training.reference_batch == 8 * training.batch
    assert (optimizer.kind, optimizer.momentum, optimizer.groups) == ("sgd", 0.9, "all")
    assert (optimizer.lr, optimizer.weight_decay) == (float(row["lr"]), float(row["decay"]))
    assert optimizer.clip_norm == 40
    assert recipe.published.metrics == {"map": pytest.approx(float(row["map"]) / 100)}
    assert recipe.data.key_frames == AVA
    assert (recipe.data.threshold, recipe.data.most) == (0.9, 1000)
    assert (recipe.boxes.iou, recipe.boxes.most, recipe.boxes.smallest, recipe.boxes.single) == (
        0.9,
        32,
        0,
        False,
    )
    focal = "focal" in row["name"]
    assert (recipe.boxes.alpha, recipe.boxes.gamma) == ((3, 1) if focal else (1, 0))
    assert (recipe.testing.threshold, recipe.testing.protocol) == (0.002, "mmaction2")
    assert recipe.model.num_classes == 81
    kind, _, length = describe_recipe(row["name"]).partition(" ")
    assert kind
    assert length


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_rates_rise_and_fall_as_configured(row):
    training = load_recipe(row["name"]).training

    def rate(epoch, iteration, each=1000):
        return lr_factor(
            training.schedule, epoch=epoch, iteration=iteration, per_epoch=each, epochs=training.epochs
        )

    count, unit = row["warmup"].split()
    start, length = (0.1, 1000 * int(count)) if unit == "epochs" else (0.01, int(count))
    decay = 1.0
    for update in (0, 1, length // 3, length - 1, length):
        epoch, iteration = divmod(update, 1000)
        if row["rates"] == "cosine":
            decay = (1 + math.cos(math.pi * update / 10_000)) / 2
        rising = start + (1 - start) * min(update / length, 1)
        assert rate(epoch, iteration) == pytest.approx(decay * rising)
    if row["rates"] != "cosine":
        for number, milestone in enumerate(map(int, row["rates"].split()), start=1):
            assert rate(milestone, 0) == pytest.approx(0.1**number)
            assert rate(milestone - 1, 999) == pytest.approx(0.1 ** (number - 1))
    else:
        assert rate(9, 999) < 1e-7


@pytest.mark.parametrize("name", [row["name"] for row in ROWS])
def test_a_detector_starts_from_the_recognizer_of_its_own_kind(name):
    recipe = load_recipe(name)
    start = RELEASES[recipe.model.weights]
    assert f"{start.model}_det" == recipe.model.name
    assert start.dataset == "Kinetics-400"
    assert ("_omni_" in start.name.replace("without_omni", "")) == ("omnisource" in name)
    assert (start.overrides.get("non_local") is not None) == ("_nl_kinetics" in name and "lfb" not in name)
    same = {"alpha", "lateral_kernel", "non_local"}
    for key in same:
        assert start.overrides.get(key) == recipe.model.options.get(key)


def test_every_published_detector_has_a_recipe_and_builds():
    wanted = {row["name"] for row in ROWS}
    assert set(list_recipes("lfb.*")) == {name for name in wanted if name.startswith("lfb")}
    assert set(list_recipes("ava.*")) == {n for n in wanted if n.startswith("ava")} | {"ava.own_boxes"}
    assert len(ROWS_OF_DETECTORS) == 12
    for name in ("lfb.lfb_nl_kinetics_pretrained_slowonly_r50_4x16x1_20e_ava_rgb", "ava.own_boxes"):
        recipe = load_recipe(name)
        model = build(
            recipe.model.name, recipe.model.num_classes or 81, **{**recipe.model.options, "width": 8}
        )
        assert (
            window_size(recipe)
            == {"window": model.window, "per_step": model.per_step}
            == {"window": 60, "per_step": 5}
        )
    assert (
        load_recipe("lfb_max_kinetics_pretrained_slowonly_r50_4x16x1_20e_ava_rgb").model.options["long_term"]
        == "max"
    )


def test_own_boxes_count_from_the_beginning_of_a_film():
    recipe = load_recipe("own_boxes", {"model.name": "slowfast_r50_det"})
    assert recipe.model.name == "slowfast_r50_det"
    assert (recipe.clips.frames, recipe.clips.sampling) == (32, "key")
    assert recipe.data.key_frames.start == 0
    assert recipe.boxes.smallest == 8


def test_what_has_no_meaning_for_boxes_is_refused():
    for key, value in (
        ("training.label_smoothing", 0.1),
        ("training.class_weights", "balanced"),
        ("training.precise_bn", 5),
        ("training.augment.copies", 2),
        ("model.name", "slowonly_r50"),
        ("clips.sampling", "clip"),
    ):
        with pytest.raises(UsageError) as told:
            load_recipe("own_boxes", {key: value})
        assert told.value.code in ("RECIPE_KIND", "PREPROCESS_INVALID"), key
    with pytest.raises(UsageError, match="boxes"):
        load_recipe("finetune", {"model.name": "slowonly_r50_det"})
