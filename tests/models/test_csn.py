"""CSN: its shapes, what is depthwise, what has no ReLU, what is frozen, and the errors of its names."""

import pytest
import torch
from torch import nn

from marey.errors import UsageError, WeightsError
from marey.models import build
from marey.models.csn import CSN
from marey.weights.load import load_weights
from tests.models.test_parts import moved, norms
from tests.oracles import filled, mmaction_table, torchvision_table


def weights(depth, csn, **options):
    return filled(mmaction_table(depth, csn=csn, width=8, classes=3, **options))


@pytest.mark.parametrize("name", ["csn_ir_r50", "csn_ip_r152"])
def test_a_clip_shrinks_as_the_paper_says(name):
    with torch.device("meta"):
        model, x = build(name), torch.zeros(1, 3, 32, 224, 224)
    shapes = [(x := layer(x)).shape[1:] for layer in model.trunk]
    assert shapes == [
        (64, 32, 112, 112),
        (64, 32, 56, 56),
        (256, 32, 56, 56),
        (512, 16, 28, 28),
        (1024, 8, 14, 14),
        (2048, 4, 7, 7),
    ]


@pytest.mark.parametrize(("mode", "mixing"), [("ir", 2), ("ip", 3)])
def test_channels_mix_in_1x1x1_convolutions_only(mode, mixing):
    model = build(f"csn_{mode}_r50", 2, width=8)
    for block in (block for stage in model.trunk[2:] for block in stage):
        convs = [m for n, m in block.named_modules() if isinstance(m, nn.Conv3d) and "shortcut" not in n]
        wide = [c for c in convs if c.kernel_size == (3, 3, 3)]
        assert [c.groups for c in wide] == [wide[0].in_channels]
        assert [c.kernel_size for c in convs if c.groups == 1] == [(1, 1, 1)] * mixing
    relus = [name for name, m in model.trunk.stage1[0].named_modules() if isinstance(m, nn.ReLU)]
    assert relus == ["conv1.relu", f"conv2.{mode == 'ip':d}.relu"]


def test_norms_have_the_epsilon_of_caffe2_and_no_block_starts_as_its_shortcut():
    for norm in norms(build("csn_ip_r50", 2, width=8)).values():
        assert (norm.eps, norm.momentum) == (1e-3, 0.1)
        assert norm.weight.eq(1).all()
        assert not norm.bias.any()


def test_frozen_norms_learn_nothing_and_everything_else_learns():
    model = build("csn_ir_r50", 3, width=8, norm_eval=True, bn_frozen=True).train()
    assert not any(norm.training for norm in norms(model).values())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".bn." not in name)
    changed = moved(model, steps=2)
    assert changed == {name for name, _ in model.named_parameters() if ".bn." not in name}


def test_frozen_norms_get_no_gradient_and_hand_it_on():
    model = build("csn_ip_r50", 3, width=8, norm_eval=True, bn_frozen=True).train()
    model(torch.randn(1, 3, 4, 32, 32)).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (".bn." in name)
    assert model.trunk.stem.conv.weight.grad.any()


@pytest.mark.parametrize(
    ("overrides", "statistics", "learn"),
    [
        ({}, True, True),
        ({"norm_eval": True}, False, True),
        ({"bn_frozen": True}, True, True),  # upstream freezes only where norm_eval holds the statistics
        ({"norm_eval": True, "bn_frozen": True}, False, False),
    ],
)
def test_norm_switches_do_what_they_say(overrides, statistics, learn):
    changed = moved(build("csn_ir_r50", 3, width=8, **overrides).train(), steps=2)
    assert any("running" in name for name in changed) == statistics
    assert any(name.endswith(("bn.weight", "bn.bias")) for name in changed) == learn


def test_frozen_stages_join_with_frozen_norms():
    model = build("csn_ir_r50", 3, width=8, norm_eval=True, bn_frozen=True, frozen_stages=2).train()
    changed = moved(model)
    assert {".".join(n.split(".")[:2]) for n in changed} == {
        "trunk.stage3",
        "trunk.stage4",
        "head.weight",
        "head.bias",
    }
    assert not any(".bn." in name for name in changed)


@torch.inference_mode()
def test_evaluation_does_not_depend_on_freezing():
    clip, logits = torch.randn(1, 3, 8, 32, 32), []
    for overrides in (
        {},
        {"norm_eval": True},
        {"bn_frozen": True},
        {"norm_eval": True, "bn_frozen": True},
        {"frozen_stages": 4},
    ):
        model = build("csn_ir_r50", 3, width=8, **overrides)
        load_weights(model, weights(50, "ir"))
        logits.append(model.train().eval()(clip))
    assert all(torch.equal(rows, logits[0]) for rows in logits)


def test_a_mode_or_depth_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(UsageError, match=r"'irr'.*did you mean ir") as error:
        CSN(50, "irr")
    assert error.value.code == "BAD_VALUE"
    with pytest.raises(UsageError, match=r"depth of CSN is 34.*50, 101, 152"):
        CSN(34, "ir")
    with pytest.raises(UsageError, match="did you mean csn_ip_r50"):
        build("csn_ip_r51")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ((50, "ip"), "the file is CSN ip, 3 + 4 + 6 + 3 blocks, the network CSN ir, 3 + 4 + 6 + 3 blocks"),
        ((101, "ir"), "the file is CSN ir, 3 + 4 + 23 + 3 blocks, the network CSN ir, 3 + 4 + 6 + 3 blocks"),
        ((152, "ip"), "the file is CSN ip, 3 + 8 + 36 + 3 blocks"),
    ],
    ids=str,
)
def test_a_file_of_another_mode_or_depth_is_refused_with_both(file, text):
    with pytest.raises(WeightsError) as error:
        load_weights(build("csn_ir_r50", 3, width=8), weights(*file))
    assert error.value.code == "WEIGHTS_MISMATCH"
    assert text in error.value.message


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_a_backbone_loads_with_and_without_its_prefix_but_only_whole(prefix):
    full = {n: v for n, v in weights(50, "ip").items() if n.startswith("backbone.")}
    file = {f"{prefix}{name.removeprefix('backbone.')}": value for name, value in full.items()}
    model = build("csn_ip_r50", 5, width=8)
    report = load_weights(model, file)
    assert (report.head, report.loaded, report.fresh) == ("fresh", len(file), ("head.bias", "head.weight"))
    assert torch.equal(
        model.trunk.stage2[1].conv2[1].conv.weight, full["backbone.layer2.1.conv2.1.conv.weight"]
    )
    file.pop(f"{prefix}layer3.5.conv2.1.bn.running_var")
    with pytest.raises(WeightsError, match=r"1 missing \(trunk.stage3.5.conv2.1.bn.running_var\)"):
        load_weights(model, file)


def test_a_2d_network_never_starts_csn():
    model = build("csn_ir_r50", 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match="CSN is never started from one") as error:
        load_weights(model, filled(torchvision_table(50)))
    assert error.value.code == "WEIGHTS_MISMATCH"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
