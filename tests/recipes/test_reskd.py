"""ResKD's recipes: their names, what they train, what they cost and what they claim."""

import numpy as np
import pytest

from marey.errors import UsageError
from marey.models.cost import macs
from marey.models.shell import shell
from marey.recipes.catalog import describe_recipe, list_recipes, load_recipe
from marey.recipes.reskd import BASELINES, PAIRS, TEACHERS
from marey.recipes.schema import Distill, Model
from marey.weights.published import RELEASES

# name: teacher, student, data, classes, frames, epochs, README's figure of the student
CONFIGS = {
    "rkd_r152_1x1x16_200e_actnet": ("tsn_r152", "tsn_r50", "ActivityNet v1.3", 200, 16, 200, 80.0),
    "rkd_r50_1x1x16_200e_actnet": ("tsn_r50", "tsn_r50", "ActivityNet v1.3", 200, 16, 200, None),
    "rkd_r152_1x1x16_200e_fcvid": ("tsn_r152", "tsn_r50", "FCVID", 239, 16, 200, None),
    "rkd_r152_1x1x8_100e_minik": ("tsn_r152", "tsn_r50", "Mini-Kinetics", 200, 8, 100, 75.4),
    "rkd_r50_1x1x8_100e_minik": ("tsn_r50", "tsn_r50", "Mini-Kinetics", 200, 8, 100, None),
    "rkd_tsm_1x1x8_100e_sthv2": ("tsm_r50", "tsm_r50", "Something-Something V2", 174, 8, 100, 60.6),
    "rkd_slowonly_8x8x1_150e_k400": ("slowonly_r50", "slowonly_r50", "Kinetics-400", 400, 8, 150, 72.7),
    "rkd_swins_32x2x1_60e_k400": ("swin3d_b", "swin3d_s", "Kinetics-400", 400, 32, 60, 80.0),
}
ROWS = PAIRS | TEACHERS | BASELINES


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pair_is_that_of_its_configuration(name):
    teacher, student, dataset, classes, frames, epochs, figure = CONFIGS[name]
    recipe = load_recipe(name)
    assert (recipe.distill.teacher.name, recipe.model.name) == (teacher, student)
    assert recipe.model.num_classes == recipe.distill.teacher.num_classes == classes
    assert (recipe.clips.frames, recipe.clips.crop, recipe.clips.input_size) == (frames, 224, 112)
    assert (recipe.training.epochs, recipe.distill.statistics) == (epochs, "batch")
    untrimmed = classes in (200, 239) and frames == 16
    # whatever a list's rows have, and however it is written: mAP is what is reported
    assert (recipe.data.labels, recipe.data.multi_label) == (("one", True) if untrimmed else ("each", None))
    assert recipe.data.format == "auto"
    weights = recipe.distill.teacher.weights
    if name == "rkd_r50_1x1x8_100e_minik":
        assert weights is None, "its teacher was not published"
    else:
        release = RELEASES[weights]
        assert (release.model, release.dataset, release.num_classes) == (teacher, dataset, classes)
        assert release.recipe in TEACHERS
    if figure is None:
        assert recipe.published is None
    else:
        metric = "map" if classes == 200 and frames == 16 else "top1"
        assert recipe.published.metrics == {metric: figure / 100}
        assert "224 reduced to 112" in recipe.published.protocol
    swin = student.startswith("swin")
    assert (recipe.distill.feature_mse, recipe.distill.map_kl) == ((0, 200) if swin else (100, 0))
    assert (recipe.distill.map_mean, recipe.distill.drop_path) == (
        ("elements", True) if swin else ("positions", False)
    )
    plan = recipe.training.optimizer
    assert (plan.kind, plan.groups) == (("adamw", "tables") if swin else ("sgd", "all"))


def test_all_are_listed_under_their_names():
    assert {name.partition(".")[2] for name in list_recipes("reskd.*")} == ROWS.keys()
    assert (len(PAIRS), len(TEACHERS) - 1, len(BASELINES)) == (8, 7, 10), "one teacher was not published"
    line = describe_recipe("rkd_r152_1x1x16_200e_actnet")
    assert line.startswith(
        "tsn_r50 at 112 pixels, 16 frames, ActivityNet v1.3, 17.2 GMACs a view, taught by tsn_r152 at 224"
    )


COSTS = {}
for key, row in ROWS.items():
    side = row.clips.plan(row.clips.test).input_size
    COSTS[row.model, row.clips.frames, side] = (key, row)


@pytest.mark.parametrize("case", COSTS, ids=str)
def test_costs_are_counted(case):
    model, frames, side = case
    name, row = COSTS[case]
    recipe = load_recipe(f"reskd.{name}")
    options = {"segments": frames} if model.startswith("ts") else {}
    network = shell(model, recipe.model.num_classes, **options)
    assert macs(network, (3, frames, side, side)) / 1e9 == pytest.approx(row.gmacs, abs=0.06)
    alike = [
        r.gmacs
        for r in ROWS.values()
        if (r.model, r.clips.frames, r.clips.plan(r.clips.test).input_size) == case
    ]
    assert len(set(alike)) == 1


def test_baselines_see_small_crops_and_three_of_them_cover_their_side():
    for row in BASELINES.values():
        assert row.clips.input_size is None and row.clips.plan(row.clips.val).crop == row.clips.crop
    for name, sides in {
        "tsn_r50_160p_1x1x16_50e_actnet": (180, 160),
        "tsn_r50_96p_1x1x16_50e_actnet": (108, 96),
        "tsn_r50_72p_1x1x16_50e_actnet": (80, 72),
        "slowonly_r50_112p_8x8x1_150e_k400": (128, 112),
    }.items():
        assert (ROWS[name].clips.short_side, ROWS[name].clips.crop) == sides


@pytest.mark.parametrize(
    ("side", "sizes"), [(160, {180, 157, 135, 118}), (96, {108, 94, 81, 71}), (72, {80, 70, 60, 52})]
)
def test_scaled_crops_of_baselines_snap_to_the_short_side_and_not_to_the_crop(side, sizes):
    """int(short side x 1, 0.875, 0.75, 0.66); 94 and 70 are within two pixels of the crop, and stay."""
    clips = load_recipe(f"tsn_r50_{side}p_1x1x16_50e_actnet").clips
    boxes = [clips._draw_box((320, 240), np.random.default_rng(seed))[1] for seed in range(100)]
    assert {box[2] - box[0] for box in boxes} | {box[3] - box[1] for box in boxes} == sizes


def test_own_pairs_halve_the_crop_of_the_teacher():
    recipe = load_recipe("distill", ["distill.teacher.name=slowonly_r50", "model.name=mvit_v2_s"])
    assert (recipe.clips.frames, recipe.clips.interval, recipe.clips.crop, recipe.clips.input_size) == (
        4,
        16,
        224,
        112,
    )
    assert recipe.model.options == {"crop": 112, "frames": 4}
    assert (recipe.distill.teacher.name, recipe.distill.statistics, recipe.distill.logit_kl) == (
        "slowonly_r50",
        "running",
        1,
    )
    assert load_recipe("distill", {"distill.teacher.options.width": 8}).distill.teacher.options == {
        "width": 8
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"feature_mse": 1.0, "temperature": 4.0}, {"logit_kl": 1.0, "map_mean": "elements"},
        {"logit_kl": 1.0, "projection": True}, {"logit_kl": 0.0}, {"logit_kl": 1.0, "temperature": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_a_loss_that_has_no_weight_are_refused(fields):
    with pytest.raises(UsageError, match="distill: ") as error:
        Distill(teacher=Model(name="tsm_r18"), **fields)
    assert error.value.code == "RECIPE_VALUE"
