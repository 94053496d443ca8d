"""Nightcrawler's recipes hold the values of its config.yaml and run.sh files, and of its tables."""

import pytest
import torch

from marey.models.shell import shell
from marey.recipes.catalog import list_recipes, load_recipe
from marey.training.optim import lr_factor
from marey.weights.published import RELEASES

# network, start, weight decay, epochs, dropout, top-1 on ARID after step 1 and stages 1 to 4
RUNS = {
    "uniformer_b32_k600": (
        "uniformer_b", "uniformer_base_k600_32x4", 0.03, 20, None, (62.64, 83.50, 87.84, 89.48, 89.91)
    ),
    "uniformer_b32_ssv2": (
        "uniformer_b", "uniformer_base_sthv2_32_prek400", 0.03, 30, None, (58.90, 81.04, 85.95, 88.74, 90.25)
    ),
    "mvit_b32_k600": ("mvit_b_32x3", "mvit_b_32x3_k600", 0.1, 20, 0.5, (58.14, 81.68, 86.63, 88.75, 90.30)),
    "sf32_k700": (
        "slowfast_r101_alphaction", "SlowFast-ResNet101-8x8.pth", 0.03, 40, 0.3,
        (57.79, 80.78, 85.63, 88.59, 89.49),
    ),
}  # fmt: skip
FOLDERS = ("exp_adapt_bn", *(f"exp_pseudo_stage{stage}" for stage in (1, 2, 3, 4)))
EXPERT = "exp_experts_uniformer_b32_ssv2"
NAMES = [f"{folder}_{run}" for folder in FOLDERS for run in RUNS] + [EXPERT]

# epochs of the whole, epoch, rate: what upstream's lr_policy gives
RATES = (
    *((20, 0, 1e-6), (20, 5, 5.05e-5), (20, 10, 1e-4), (20, 15, 5.05e-5), (20, 18, 1.0453658778440109e-5)),
    *((30, 9.5, 9.505e-5), (30, 15, 8.55017856687341e-5), (40, 18, 8.362196501476348e-5)),
)


def test_there_are_four_of_each_kind_and_an_expert():
    assert {name.partition(".")[2] for name in list_recipes("nightcrawler.*")} == set(NAMES)
    assert len(NAMES) == 4 + 16 + 1


@pytest.mark.parametrize("name", NAMES)
def test_what_all_share(name):
    recipe = load_recipe(name)
    plan, clips = recipe.training, recipe.clips
    made = plan.optimizer
    assert (plan.batch, plan.reference_batch, plan.accumulate, plan.validate_every) == (8, 32, 1, 1)
    assert (made.kind, made.lr, made.betas, made.clip_norm) == ("adamw", 1e-4, (0.9, 0.999), 20.0)
    assert (made.groups, made.decay_tables, made.layer_decay) == ("vectors", True, 1.0)
    augment = plan.augment
    assert (augment.copies, augment.rand.layers, augment.rand.magnitude, augment.rand.spread) == (
        2,
        4,
        7,
        0.5,
    )
    assert (augment.erasing.probability, augment.erasing.area) == (0.25, (0.02, 1 / 3))
    assert augment.erasing.aspect == (0.3, 1 / 0.3)
    mixing = augment.mixing
    assert (mixing.probability, mixing.mixup, mixing.cutmix, mixing.cutmix_share) == (1, 0.8, 1.0, 0.5)
    assert (plan.label_smoothing, plan.ema, plan.precise_bn) == (0.1, 0, 200)
    assert (clips.frames, clips.crop, clips.train_crop, clips.flip) == (32, 224, "area", 0.5)
    assert clips.mean == (0.45 * 255,) * 3 and clips.std == (0.225 * 255,) * 3
    assert (clips.channel_order, clips.light, clips.short_side) == ("rgb", None, None)
    for seen in (clips.val, clips.test):
        (light,) = seen.lights
        assert (light.gamma, light.gain, light.decoded) == (0.25, 1.0, True)
        assert (seen.clips, seen.crops, seen.short_side) == (1, "center", 224)
    assert recipe.model.num_classes == 11
    assert (recipe.adapt.same, recipe.adapt.dropout, recipe.adapt.share) == (True, True, 1.0)


@pytest.mark.parametrize("stage", range(5))
@pytest.mark.parametrize("run", RUNS)
def test_what_each_run_sets(run, stage):
    recipe = load_recipe(f"{FOLDERS[stage]}_{run}")
    model, start, decay, epochs, dropout, figures = RUNS[run]
    assert (recipe.model.name, recipe.training.optimizer.weight_decay) == (model, decay)
    assert recipe.training.epochs == epochs
    options = recipe.model.options
    assert options.get("drop_path") == (None if run == "sf32_k700" else 0.3)
    assert options.get("dropout") == dropout
    assert recipe.published.metrics == {"top1": pytest.approx(figures[stage] / 100)}
    assert recipe.clips.sampling == "uniform"
    assert recipe.clips.average == ("prob" if run.startswith("mvit") else "score")
    if stage == 0:
        assert recipe.model.weights == start and recipe.adapt.pseudo is None
        if run != "sf32_k700":
            assert RELEASES[start].model == model
    else:
        assert f"/nightcrawler.{FOLDERS[stage - 1]}_{run}/" in f"/{recipe.model.weights}"
        pseudo = recipe.adapt.pseudo
        assert (pseudo.ending, pseudo.soft, pseudo.weight, pseudo.labels) == ("shorter", False, 1.0, None)


def test_the_expert_samples_densely_and_is_like_its_sparse_brother_otherwise():
    one, other = load_recipe(EXPERT), load_recipe("exp_pseudo_stage4_uniformer_b32_ssv2")
    assert one.training == other.training and one.adapt == other.adapt
    assert (one.clips.sampling, one.clips.interval, one.clips.frames) == ("clip", 2, 32)
    assert one.published.metrics == {"top1": 0.8951}
    # 100 frames: a window of 64 in the middle, 32 values from 18 to 81, cut off
    expected = torch.linspace(18, 81, 32).long().tolist()
    assert one.clips.pick_test(100, one.clips.test).tolist() == [expected]


def test_frames_are_spread_as_in_the_source():
    """get_seq_frames of ug2_sparse.py, by hand: parts of 99 / 32 frames, half a part into each."""
    clips = load_recipe(NAMES[0]).clips
    part = 99 / 32
    assert clips.pick_test(100, clips.test).tolist() == [[round(part * i) + int(part / 2) for i in range(32)]]
    assert clips.pick_test(5, clips.test)[0].tolist() == [0] * 5 + [1] * 7 + [2] * 9 + [3] * 7 + [4] * 4


@pytest.mark.parametrize(("epochs", "epoch", "rate"), RATES)
def test_the_rate_is_upstreams(epochs, epoch, rate):
    names = {20: "uniformer_b32_k600", 30: "uniformer_b32_ssv2", 40: "sf32_k700"}
    plan = load_recipe(f"exp_adapt_bn_{names[epochs]}").training
    whole, part = int(epoch), round(92 * (epoch % 1))
    factor = lr_factor(plan.schedule, epoch=whole, iteration=part, per_epoch=92, epochs=epochs, batch=8)
    assert plan.optimizer.lr * factor == pytest.approx(rate, rel=1e-6)


def test_the_networks_have_the_sources_parameters():
    counts = {"uniformer_b32_ssv2": 49613643, "mvit_b32_k600": 52816139, "sf32_k700": 61927043}
    for run, count in counts.items():
        model = load_recipe(f"exp_adapt_bn_{run}").model
        network = shell(model.name, model.num_classes, **model.options)
        assert sum(p.numel() for p in network.parameters()) == count
