"""Learning rates against mmcv 1.7.2 hooks and mmengine 0.10.7 schedulers, run with the published configs
(open-mmlab/mmaction2@v0.24.1 and @4d6c9347); keys are "epoch.iteration", ten iterations an epoch."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from marey.errors import UsageError
from marey.models import MODELS
from marey.training.optim import Optimizer, Schedule, build_optimizer, lr_factor, parameter_groups, set_lr

CASES = json.loads((Path(__file__).parent / "oracles" / "schedules.json").read_text())
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


def test_frozen_parameters_are_in_no_group():
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    for kind in ("all", "tsm"):
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


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"weight_decay": -1}, {"clip_norm": 0}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(UsageError):
        Optimizer(**wrong)
    with pytest.raises(UsageError, match="milestones"):
        Schedule(kind="step")
