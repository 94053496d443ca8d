"""Learning rates against mmcv 1.7.2 hooks and mmengine 0.10.7 schedulers, run with the published configs
(open-mmlab/mmaction2@v0.24.1 and @4d6c9347); keys are "epoch.iteration", ten iterations an epoch. Rates and
groups of PySlowFast are those of oracles/slowfast.json."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from marey.errors import UsageError
from marey.models import MODELS
from marey.models.transformer import layer_numbers
from marey.training.distributed import launch
from marey.training.loop import Outcome, train_steps
from marey.training.optim import Optimizer, Schedule, build_optimizer, lr_factor, parameter_groups, set_lr
from tests.oracles import drawn_input, filled

CASES = json.loads((Path(__file__).parent / "oracles" / "schedules.json").read_text())
SLOWFAST = json.loads((Path(__file__).parent / "oracles" / "slowfast.json").read_text())
NEXTVLAD = json.loads((Path(__file__).parent / "oracles" / "nextvlad.json").read_text())
NEW = {"warmup_rule": "1.x", "warmup_per": "epoch"}
SETTINGS = {
    "0.x csn_58e": Schedule(kind="step", milestones=(32, 48), warmup_epochs=16),
    "0.x slowonly_256e": Schedule(kind="cosine"),
    "0.x slowonly_imagenet_150e": Schedule(kind="step", milestones=(90, 130), warmup_epochs=10),
    "0.x tsn_100e": Schedule(kind="step", milestones=(40, 80)),
    "0.x tsm_50e": Schedule(kind="step", milestones=(20, 40)),
    "0.x csn_180e": Schedule(kind="cosine", warmup_epochs=40),
    "1.x csn_58e": Schedule(kind="step", milestones=(32, 48), warmup_epochs=16, **NEW),
    "1.x slowonly_256e": Schedule(kind="cosine", cosine_from=34, warmup_epochs=34, **NEW),
    "1.x tsm_50e": Schedule(kind="step", milestones=(25, 45), warmup_epochs=5, **NEW),
    "1.x tsn_100e": Schedule(kind="step", milestones=(40, 80), warmup_rule="1.x"),
    "1.x swin_30e": Schedule(kind="cosine", warmup_epochs=2.5, warmup_rule="1.x"),
}


@pytest.mark.parametrize("name", CASES)
def test_learning_rates_are_those_of_the_original_schedulers(name):
    case = CASES[name]
    for key, expected in case["values"].items():
        epoch, iteration = map(int, key.split("."))
        factor = lr_factor(
            SETTINGS[name], epoch=epoch, iteration=iteration, per_epoch=10, epochs=case["epochs"]
        )
        assert case["lr"] * factor == pytest.approx(expected, rel=1e-8), key


def test_a_warm_up_of_part_of_an_epoch_ends_with_a_whole_iteration():
    """LinearLR(end=2.5, convert_to_iter_based) and CosineAnnealingLR(T_max=30) of mmengine 0.10.7."""
    for per_epoch, wanted in (
        (7, {(1, 0): 0.49239759291904234, (2, 1): 0.9334383990962642, (2, 2): 0.9890738003669026}),
        (13, {(1, 0): 0.4761116782492006, (2, 4): 0.9603587545497988, (2, 5): 0.9890738003669025}),
    ):
        for (epoch, iteration), factor in wanted.items():
            got = lr_factor(
                SETTINGS["1.x swin_30e"], epoch=epoch, iteration=iteration, per_epoch=per_epoch, epochs=30
            )
            assert got == pytest.approx(factor, rel=1e-8), (per_epoch, epoch, iteration)


def pyslowfast(settings):
    """The Schedule of a PySlowFast configuration, and its base rate."""
    base = settings["BASE_LR"]
    shared = {
        "warmup_epochs": settings["WARMUP_EPOCHS"],
        "warmup_start": settings["WARMUP_START_LR"] / base,
        "warmup_rule": "slowfast",
        "per": "iteration",
    }
    if "STEPS" in settings:
        schedule = Schedule(kind="step", milestones=tuple(settings["STEPS"][1:]), gamma=0.1, **shared)
    else:
        begin = settings["WARMUP_EPOCHS"] if settings["COSINE_AFTER_WARMUP"] else 0
        schedule = Schedule(
            kind="cosine", cosine_from=begin, final=settings["COSINE_END_LR"] / base, **shared
        )
    return schedule, base * (settings["NUM_SHARDS"] if "BASE_LR_SCALE_NUM_SHARDS" in settings else 1)


@pytest.mark.parametrize("case", SLOWFAST["learning_rate"], ids=lambda case: case["name"])
def test_learning_rates_are_those_of_pyslowfast(case):
    schedule, base = pyslowfast(case["settings"])
    for position, expected in zip(case["epoch"], case["lr"], strict=True):
        epoch, iteration = divmod(round(position * 1200), 1200)
        factor = lr_factor(
            schedule, epoch=epoch, iteration=iteration, per_epoch=1200, epochs=case["settings"]["MAX_EPOCH"]
        )
        assert base * factor == pytest.approx(expected, rel=1e-8), position


def test_learning_rates_are_those_of_nightcrawler():
    cases = json.loads((Path(__file__).parent / "oracles" / "nightcrawler.json").read_text())["lr"]
    for epochs, warmup, position, expected in cases:
        settings = {"BASE_LR": 1e-4, "WARMUP_START_LR": 1e-6, "COSINE_END_LR": 1e-6, "MAX_EPOCH": epochs}
        schedule, base = pyslowfast(settings | {"WARMUP_EPOCHS": warmup, "COSINE_AFTER_WARMUP": True})
        epoch, iteration = divmod(round(position * 100), 100)
        factor = lr_factor(schedule, epoch=epoch, iteration=iteration, per_epoch=100, epochs=epochs)
        assert base * factor == pytest.approx(expected, rel=1e-8), (epochs, position)
    assert len(cases) == 30


def by_samples(step, batch, per_epoch=1000, **settings):
    """The factor of a step that lies somewhere in an epoch."""
    schedule = Schedule(kind="samples", **{"gamma": 0.8, **settings})
    epoch, iteration = divmod(step, per_epoch)
    return lr_factor(
        schedule, epoch=epoch, iteration=iteration, per_epoch=per_epoch, epochs=9999, batch=batch
    )


@pytest.mark.parametrize(
    "case", NEXTVLAD["cases"], ids=lambda case: f"{case['batch']}-{case['decay_examples']}"
)
def test_rates_by_samples_are_those_of_paddle(case):
    settings = {"samples": case["decay_examples"], "gamma": case["decay"], "until": case["max_iter"]}
    for step, rate in case["lr_at_step"]:
        factor = by_samples(step, case["batch"], **settings)
        assert case["base"] * factor == pytest.approx(rate, rel=1e-6)


def test_a_short_schedule_by_samples_is_that_of_a_run_of_paddle():
    case = NEXTVLAD["small_schedule_run"]
    rates = [
        case["base"] * by_samples(step, 160, per_epoch=7, samples=1000, until=case["max_iter"])
        for step in range(26)
    ]
    assert rates == pytest.approx(case["lr_of_steps_0_to_25"], rel=1e-6)


def test_rates_by_samples_are_those_of_tensorflow():
    for batch, step, rate in NEXTVLAD["tensorflow_original"]["batch_step_lr"]:
        factor = by_samples(step, batch, samples=2_000_000, counted="samples")
        assert 2e-4 * factor == pytest.approx(rate, rel=1e-6)


def test_a_batch_larger_than_the_period_of_samples_is_refused():
    with pytest.raises(UsageError, match="no batch of 10"):
        by_samples(0, 10, samples=5)


def test_the_warm_up_of_whole_epochs_stands_still_within_them():
    schedule = Schedule(warmup_rule="slowfast", warmup_per="epoch", warmup_epochs=4, warmup_start=0.0)
    factors = [lr_factor(schedule, epoch=1, iteration=i, per_epoch=10, epochs=20) for i in (0, 9)]
    assert factors[0] == factors[1] == pytest.approx((1 + np.cos(np.pi / 5)) / 2 / 4)


def test_fractional_epochs_move_the_cosine_within_an_epoch():
    schedule = Schedule(kind="cosine", per="iteration")
    assert lr_factor(schedule, epoch=1, iteration=5, per_epoch=10, epochs=3) == pytest.approx(0.5)
    assert lr_factor(schedule, epoch=2, iteration=9, per_epoch=10, epochs=3) < 0.01


def test_tsm_has_the_groups_of_its_paper_s_code():
    """Counts of TSM-R50 with 400 classes (open-mmlab/mmaction2@v0.24.1, TSMOptimizerConstructor)."""
    with torch.device("meta"):
        model = MODELS["tsm_r50"](num_classes=400)
    groups = parameter_groups(model, Optimizer(groups="tsm", weight_decay=1e-4))
    rows = [
        (g["name"], len(g["params"]), sum(p.numel() for p in g["params"]), g["factor"], g["weight_decay"])
        for g in groups
    ]
    assert rows == [
        ("first conv weight", 1, 9_408, 1, 1e-4),
        ("other weights", 52, 23_445_504, 1, 1e-4),
        ("batch norm", 106, 53_120, 1, 0),
        ("classifier weight", 1, 819_200, 5, 1e-4),
        ("classifier bias", 1, 400, 10, 0),
    ]


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("uniformer_s", "uniformer_s"),
        ("uniformer_b", "uniformer_b"),
        ("mvit_b_32x3", "mvit_b_32x3"),
        ("slowfast_r101_alphaction", "nightcrawler_sf_r101"),
    ],
)
def test_vectors_have_the_groups_of_pyslowfast(name, case):
    with torch.device("meta"):
        model = MODELS[name](num_classes=11)
    model.requires_grad_(True)  # the original counts what feeds nothing, too; here that is frozen
    groups = parameter_groups(model, Optimizer(kind="adamw", groups="vectors", weight_decay=0.05))
    rows = [
        {
            "weight_decay": g["weight_decay"],
            "tensors": len(g["params"]),
            "numbers": sum(map(torch.numel, g["params"])),
        }
        for g in groups
    ]
    assert rows == SLOWFAST["parameter_groups"][case]


def test_tables_are_spared_on_demand():
    with torch.device("meta"):
        models = {name: MODELS[name](num_classes=11) for name in ("mvit_b_16x4", "swin3d_t")}
    for name, tables in (("mvit_b_16x4", 4), ("swin3d_t", 12)):
        sizes = []
        for decayed in (True, False):
            settings = Optimizer(groups="vectors", decay_tables=decayed)
            sizes.append({g["name"]: len(g["params"]) for g in parameter_groups(models[name], settings)})
        assert sizes[0]["decayed"] - sizes[1]["decayed"] == tables, (
            "class token and positions; tables of windows"
        )
        assert sizes[1]["not decayed"] - sizes[0]["not decayed"] == tables


def test_layers_have_rates_that_fall_towards_the_first():
    """LAYER_DECAY ** (DEPTH + 1 - id): 0 for patches, positions and class token, i + 1 for block i."""
    with torch.device("meta"):
        model = MODELS["mvit_b_16x4"](num_classes=5)
    layers = layer_numbers(model)
    settings = Optimizer(groups="vectors", layer_decay=0.9)
    groups = parameter_groups(model, settings, layers)
    rates = {id(p): g["factor"] for g in groups for p in g["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert len(found) == sum(len(g["params"]) for g in groups)
    for name in ("trunk.patches.cls_token", "trunk.patches.pos_space", "trunk.patches.proj.weight"):
        assert found[name] == pytest.approx(0.9**17)
    assert found["trunk.blocks.0.norm1.weight"] == pytest.approx(0.9**16)
    assert found["trunk.blocks.15.mlp.fc2.bias"] == pytest.approx(0.9)
    assert found["trunk.norm.weight"] == found["head.weight"] == found["head.bias"] == 1
    decays = {g["name"]: g["weight_decay"] for g in groups}
    assert decays == {"decayed": 1e-4, "not decayed": 0.0}


def test_what_stands_between_blocks_goes_with_the_later_one():
    with torch.device("meta"):
        numbers = layer_numbers(MODELS["uniformer_s"](num_classes=5))
    assert numbers["trunk.stage1.embed.proj.weight"] == 0
    assert numbers["trunk.stage1.2.norm1.weight"] == 3
    assert numbers["trunk.stage2.embed.proj.weight"] == numbers["trunk.stage2.0.norm1.weight"] == 4
    assert numbers["trunk.norm.weight"] == numbers["head.weight"] == 3 + 4 + 8 + 3 + 1


def test_a_network_without_blocks_of_tokens_has_no_layers():
    with pytest.raises(UsageError, match="layer_decay"):
        layer_numbers(nn.Linear(2, 2))


def test_the_backbone_may_have_a_rate_of_its_own():
    with torch.device("meta"):
        model = MODELS["swin3d_t"](num_classes=5)
    for kind in ("all", "vectors"):
        groups = parameter_groups(model, Optimizer(groups=kind, backbone_factor=0.1))
        rates = {id(p): g["factor"] for g in groups for p in g["params"]}
        slow = {name: rates[id(p)] for name, p in model.named_parameters()}
        assert {name for name, rate in slow.items() if rate == 1} == {"head.weight", "head.bias"}
        assert {rate for name, rate in slow.items() if not name.startswith("head")} == {0.1}


def test_norms_alone_are_spared_where_biases_decay():
    """PySlowFast without ZERO_WD_1D_PARAM: the classifier's bias is the only bias, and it decays."""
    with torch.device("meta"):
        model = MODELS["slowfast_r50"](num_classes=5)
    groups = {g["name"]: g for g in parameter_groups(model, Optimizer(groups="norms"))}
    assert groups.keys() == {"batch norm", "decayed"}
    assert sorted(p.ndim for p in groups["decayed"]["params"])[:2] == [1, 2]
    assert any(p is model.head.bias for p in groups["decayed"]["params"])
    assert groups["batch norm"]["weight_decay"] == 0


@pytest.mark.parametrize("kind", ["norms", "tables"])
def test_swin_s_tables_norms_and_backbone_have_their_own_settings(kind):
    """(rate, decay) in MMAction2 1.x, where all settings that match multiply, and by mmcv's longest name."""
    with torch.device("meta"):
        model = MODELS["swin3d_t"](num_classes=5)
    settings = {"decay_tables": False} if kind == "norms" else {}
    groups = parameter_groups(
        model, Optimizer(groups=kind, backbone_factor=0.1, weight_decay=0.02, **settings)
    )
    rows = {id(p): (g["factor"], g["weight_decay"]) for g in groups for p in g["params"]}
    found = {name: rows[id(p)] for name, p in model.named_parameters()}
    assert found["trunk.stage1.0.attn.table"] == {"norms": (0.1, 0.0), "tables": (1.0, 0.0)}[kind]
    for name in ("trunk.stage1.0.norm1.bias", "trunk.patches.norm.weight", "trunk.norm.weight"):
        assert found[name] == {"norms": (0.1, 0.0), "tables": (0.1, 0.02)}[kind]
    for name in (
        "trunk.stage1.0.attn.qkv.bias",
        "trunk.patches.proj.weight",
        "trunk.stage4.1.mlp.fc1.weight",
    ):
        assert found[name] == (0.1, 0.02)
    assert found["head.weight"] == found["head.bias"] == (1.0, 0.02)


def test_adamw_has_its_published_constants_and_decouples_the_decay():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    optimizer = build_optimizer(model, Optimizer(kind="adamw", lr=0.1, weight_decay=0.5, groups="vectors"))
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)
    model.weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, rel=1e-6)


def test_only_the_classifier_decays_and_by_its_gradient():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    settings = Optimizer(kind="adam", lr=0.1, weight_decay=1e-5, groups="head", clip_norm=None)
    optimizer = build_optimizer(model, settings)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)
    before = [p.clone() for p in model["body"].parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    start = {name: p.detach().clone() for name, p in model["head"].named_parameters()}
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model["body"].parameters(), strict=True))
    for name, weight in model["head"].named_parameters():
        g = 1e-5 * start[name]  # Adam's first step is lr * g / (|g| + 1e-8)
        torch.testing.assert_close(weight.detach(), start[name] - 0.1 * g / (g.abs() + 1e-8))


@pytest.mark.parametrize(("each", "expected"), [(False, [0.8, 0.6]), (True, [1.0, 1.0])])
def test_gradients_are_clipped_together_or_each_alone(each, expected):
    """Gradients 4 and 3, largest norm 1; plain SGD at a rate of 1 shows them."""
    fabric = launch(accelerator="cpu")
    model = nn.Linear(1, 1)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    plain = Optimizer(lr=1.0, momentum=0.0, weight_decay=0.0)
    network, optimizer = fabric.setup(model, build_optimizer(model, plain))

    class One:
        real = 1

    def outcome(network, batch):
        return Outcome((network(torch.full((1, 1), 4 / 3)) * 3).sum())

    steps = train_steps(
        fabric, network, optimizer, [One()], outcome_of=outcome, rate_of=lambda _: 1.0,
        seed_of=lambda _: 0, steps=1, clip_norm=1.0, clip_each=each,
    )  # fmt: skip
    assert len(list(steps)) == 1
    assert [-p.item() for p in model.parameters()] == pytest.approx(expected, rel=1e-5)


def test_gradients_are_clipped_as_in_the_original():
    case = SLOWFAST["gradient_clip"]
    model = nn.Linear(3, 2)
    model.load_state_dict(filled({name: tuple(p.shape) for name, p in model.named_parameters()}, "clip"))
    model(10 * drawn_input([5, 3], 600)).square().sum().backward()
    fabric = launch(accelerator="cpu")
    norm = fabric.clip_gradients(model, torch.optim.SGD(model.parameters()), max_norm=case["max_norm"])
    assert norm.item() == pytest.approx(case["norm_before"])
    assert model.weight.grad.flatten().tolist() == pytest.approx(case["weight_grad_after"], rel=1e-6)


def test_frozen_parameters_are_in_no_group():
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    for kind in ("all", "tsm", "vectors", "norms", "tables", "head"):
        held = {id(p) for g in parameter_groups(model, Optimizer(groups=kind)) for p in g["params"]}
        assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_set_lr_gives_each_group_its_factor():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(model, Optimizer(groups="tsm", head_factor=3.0))
    set_lr(optimizer, 0.5)
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == {
        "first conv weight": 0.5,
        "first conv bias": 1.0,
        "classifier weight": 1.5,
        "classifier bias": 3.0,
    }


def test_sgd_steps_as_the_formula_says():
    """v = 0.9 v + (g + wd w); w -= lr v, by hand for two steps."""
    weight = nn.Parameter(torch.tensor([2.0]))
    module = nn.Module()
    module.weight = weight
    optimizer = build_optimizer(module, Optimizer(lr=0.1, momentum=0.9, weight_decay=0.5))
    for _ in range(2):
        weight.grad = torch.tensor([1.0])
        optimizer.step()
    first = 2.0 - 0.1 * (1 + 0.5 * 2.0)
    assert weight.item() == pytest.approx(first - 0.1 * (0.9 * 2.0 + 1 + 0.5 * first))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0},
        {"weight_decay": -1},
        {"clip_norm": 0},
        {"layer_decay": 0},
        {"layer_decay": 1.1},
        {"backbone_factor": 0},
        {"groups": "tsm", "layer_decay": 0.9},
        {"groups": "tsm", "backbone_factor": 0.1},
        {"decay_tables": False},
        {"clip_norm": None, "clip_each": True},
    ],
)
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(UsageError):
        Optimizer(**wrong)
    with pytest.raises(UsageError, match="milestones"):
        Schedule(kind="step")
    with pytest.raises(UsageError, match="final"):
        Schedule(kind="step", milestones=(1,), final=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "samples"},
        {"kind": "cosine", "samples": 5},
        {"kind": "samples", "samples": 5, "warmup_rule": "slowfast"},
        {"kind": "samples", "samples": 5, "until": 0},
        {"kind": "samples", "samples": 5, "until": 9, "counted": "samples"},
        {"until": 9},
    ],
)
def test_schedules_that_contradict_themselves_are_refused(wrong):
    with pytest.raises(UsageError) as error:
        Schedule(**wrong)
    assert error.value.code == "RECIPE_VALUE"


def test_a_warm_up_may_be_counted_in_updates():
    """mmcv 1.7.2, LrUpdaterHook with warmup_by_epoch=False: linear from the ratio, full at warmup_iters."""
    schedule = Schedule(kind="step", milestones=(4, 6, 8), warmup_updates=800, warmup_start=0.01)
    for update in (0, 1, 299, 300, 301, 799, 800, 801, 1199):
        epoch, iteration = divmod(update, 300)  # the warm-up ends within the third epoch
        regular = 0.1 ** sum(milestone <= epoch for milestone in (4, 6, 8))
        wanted = regular * (1 - (1 - update / 800) * (1 - 0.01)) if update < 800 else regular
        found = lr_factor(schedule, epoch=epoch, iteration=iteration, per_epoch=300, epochs=10)
        assert found == pytest.approx(wanted, rel=1e-12)
    assert lr_factor(schedule, epoch=4, iteration=0, per_epoch=100, epochs=10) == pytest.approx(
        0.1 * (0.01 + 0.99 * 400 / 800)  # what it is a share of moves meanwhile
    )
    for wrong in (
        {"warmup_epochs": 1.0},
        {"warmup_per": "epoch"},
        {"warmup_rule": "1.x"},
        {"warmup_updates": -1},
    ):
        with pytest.raises(UsageError, match="warmup_updates"):
            Schedule(**{"kind": "constant", "warmup_updates": 10} | wrong)
