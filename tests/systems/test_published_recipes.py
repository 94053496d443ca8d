"""Published recipes of every family run as they are, on small pictures, short clips and slim networks."""

import pytest
import torch

import marey

SLIM = {
    "mvit.MVIT_B_16x4_CONV": {"frames": 4, "crop": 32, "channels": 8, "depth": 3, "starts": [1]},
    "mvit.SSv2_MVITv2_S_16x4": {"frames": 4, "crop": 32, "channels": 8, "depth": 3, "starts": [1]},
    "slowfast.SLOWFAST_8x8_R50": {"width": 8, "beta": 4},
    "slowfast.slowfast_r50_8xb8-8x8x1-steplr-256e_kinetics400-rgb": {"width": 8, "beta": 4},
    "uniformer.uniformer_s16x4_k400": {
        "depths": [1, 1, 1, 1],
        "channels": [8, 8, 16, 16],
        "head_width": 8,
    },
    "uniformer.uniformer_b16_sthv2_prek600": {
        "depths": [1, 1, 1, 1],
        "channels": [8, 8, 16, 16],
        "head_width": 8,
    },
    "swin.swin_tiny_patch244_window877_kinetics400_1k": {
        "channels": 8,
        "depths": [2, 2],
        "heads": [1, 2],
        "window": [2, 2, 2],
    },
    "swin.swin_base_patch244_window1677_sthv2": {
        "channels": 8,
        "depths": [2, 2],
        "heads": [1, 2],
        "window": [2, 2, 2],
    },
}


@pytest.mark.parametrize("name", SLIM)
def test_a_published_recipe_trains_and_is_tested(name, tiny, tmp_path):
    recipe = marey.load_recipe(name)
    settings = {
        "model.num_classes": None,
        "model.weights": None,
        "model.options": {**recipe.model.options, **SLIM[name]},
        "clips.frames": 4,
        "clips.short_side": 32,
        "clips.train_short_side": [32, 40] if recipe.clips.train_short_side else None,
        "clips.crop": 32,
        "clips.val.short_side": 32,
        "clips.val.crop": 32,
        "clips.test.short_side": 32,
        "clips.test.crop": 32,
        "training.epochs": 1,
        "training.batch": 2,
        "training.accumulate": 1,
        "training.precise_bn": min(recipe.training.precise_bn, 2),
        "data.train": tiny["data.train"],
        "data.val": tiny["data.val"],
        "data.workers": 0,
    }
    found = marey.train(name, settings, out=tmp_path)
    measured = marey.test(found.run / "recipe.json", found.checkpoint)
    plan, done = recipe.clips.plan(recipe.clips.test), measured["protocol"]
    assert (done["clips"], done["crops"], done["sampling"]) == (plan.clips, plan.crops, plan.sampling)
    assert done["average"] == recipe.clips.average
    assert torch.tensor(measured["metrics"]["loss"]).isfinite()
