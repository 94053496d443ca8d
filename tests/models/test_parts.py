"""What the residual networks share: fresh weights, and what freezing holds still."""

import copy

import pytest
import torch
from torch import nn

from marey.models import build
from marey.models.parts import Residual

NORMS = nn.BatchNorm2d | nn.BatchNorm3d


def norms(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, NORMS)}


def moved(model, steps=1):
    """Names of what a training step changes: parameters and buffers."""
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        model(torch.randn(2, 3, 8, 32, 32)).square().sum().backward()
        optimizer.step()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", ["tsn_r50", "slowonly_r50"])
def test_fresh_convolutions_are_kaiming_normal_over_their_fan_out(name):
    torch.manual_seed(0)
    for conv in build(name, 2, width=32).modules():
        if isinstance(conv, nn.Conv2d | nn.Conv3d) and conv.weight.numel() > 20_000:
            fan_out = conv.out_channels * conv.weight[0, 0].numel()
            assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
            assert abs(conv.weight.mean().item()) < 0.05 * (2 / fan_out) ** 0.5
            assert conv.bias is None


@pytest.mark.parametrize(("name", "std"), [("tsn_r50", 0.01), ("slowonly_r50", 0.01), ("tsm_r50", 0.001)])
def test_fresh_classifiers_have_the_published_spread(name, std):
    torch.manual_seed(0)
    head = build(name, 400, width=8).head
    assert head.weight.std().item() == pytest.approx(std, rel=0.02)
    assert not head.bias.any()


@pytest.mark.parametrize(("name", "last"), [("slowonly_r50", 0.0), ("tsm_r50", 1.0), ("tsn_r50", 1.0)])
def test_only_slowonly_starts_with_blocks_that_are_their_shortcuts(name, last):
    for place, norm in norms(build(name, 2, width=8)).items():
        assert (norm.weight == (last if "conv3" in place else 1.0)).all()
        assert not norm.bias.any()
        assert (norm.eps, norm.momentum) == (1e-5, 0.1)


def test_fresh_weights_repeat_with_the_seed():
    def draw(seed):
        torch.manual_seed(seed)
        return build(
            "tsm_r18", 3, width=8, non_local="gaussian", non_local_blocks=((), (0,), (), ())
        ).state_dict()

    first, again, other = draw(4), draw(4), draw(5)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["trunk.stem.conv.weight"], other["trunk.stem.conv.weight"])


def test_norm_eval_holds_all_statistics_but_lets_weights_learn():
    model = build("slowonly_r50", 3, width=8, norm_eval=True).train()
    assert model.training
    assert not any(norm.training for norm in norms(model).values())
    changed = moved(model, steps=2)
    assert not any("running" in name or "num_batches" in name for name in changed)
    assert {"trunk.stem.bn.weight", "trunk.stage4.2.conv3.bn.bias", "head.weight"} <= changed


def part_of(name):
    """ "trunk.stage2" of "trunk.stage2.0.conv1.bn.bias"."""
    return ".".join(name.split(".")[: 2 if name.startswith("trunk") else 1])


@pytest.mark.parametrize("stages", [0, 1, 3, 4])
def test_frozen_stages_do_not_change_at_all_and_the_rest_does(stages):
    model = build("tsn_r18", 3, width=8, frozen_stages=stages).train()
    parts = ("trunk.stem", "trunk.stage1", "trunk.stage2", "trunk.stage3", "trunk.stage4")
    changed = moved(model)
    assert {part_of(name) for name in changed} == {*parts[stages + 1 :], "head"}
    frozen = [p for name, p in model.named_parameters() if part_of(name) in parts[: stages + 1]]
    assert not any(p.requires_grad for p in frozen)


def test_partial_bn_leaves_only_the_first_norm_alive():
    model = build("tsm_r18", 3, width=8, partial_bn=True).train()
    assert [name for name, norm in norms(model).items() if norm.training] == ["trunk.stem.bn"]
    changed = moved(model)
    assert {name for name in changed if ".bn." in name} == {
        *(
            f"trunk.stem.bn.{leaf}"
            for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        )
    }
    assert "trunk.stage3.0.conv1.conv.weight" in changed


def test_without_freezing_everything_changes():
    model = build("tsn_r18", 3, width=8).train()
    assert moved(model) == set(model.state_dict())


def test_freezing_survives_a_change_of_mode_and_a_copy():
    model = copy.deepcopy(build("tsn_r18", 3, width=8, norm_eval=True)).eval().train()
    assert not any(norm.training for norm in norms(model).values())
    assert model.dropout.training
    assert not model.eval().dropout.training


@torch.inference_mode()
def test_evaluation_does_not_depend_on_freezing():
    clip, logits = torch.randn(1, 3, 8, 32, 32), []
    for overrides in ({}, {"norm_eval": True}, {"frozen_stages": 2}, {"partial_bn": True}):
        torch.manual_seed(2)
        logits.append(build("tsn_r18", 3, width=8, **overrides).eval()(clip))
    assert all(torch.equal(rows, logits[0]) for rows in logits)


@pytest.mark.parametrize(
    ("overrides", "learns"),
    [
        ({}, lambda _part, _norm: True),
        ({"norm_eval": True}, lambda _part, _norm: True),
        ({"frozen_stages": 2}, lambda part, _norm: part in ("trunk.stage3", "trunk.stage4", "head")),
        ({"partial_bn": True}, lambda part, norm: not norm or part == "trunk.stem"),
        (
            {"partial_bn": True, "frozen_stages": 0},
            lambda part, norm: not norm and part != "trunk.stem",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("name", ["tsn_r18", "tsm_r18"])
def test_gradients_are_where_something_learns_and_nowhere_else(name, overrides, learns):
    model = build(name, 3, width=8, **overrides).train()
    model(torch.randn(2, 3, 8, 32, 32)).square().sum().backward()
    for key, parameter in model.named_parameters():
        wanted = learns(part_of(key), ".bn." in key)
        assert (parameter.grad is not None) == parameter.requires_grad == wanted, key
        assert not wanted or parameter.grad.isfinite().all()


def test_a_frozen_norm_in_training_uses_its_running_statistics():
    torch.manual_seed(0)
    model = build("tsn_r18", 3, width=8, norm_eval=True, dropout=0.0).train()
    clip = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        for norm in norms(model).values():
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
        assert torch.equal(model(clip), model.eval()(clip))
        live = build("tsn_r18", 3, width=8, dropout=0.0)
        live.load_state_dict(model.state_dict())
        assert not torch.allclose(live.train()(clip), model(clip))


@pytest.mark.parametrize("name", ["csn_ip_r50", "r2plus1d_r34", "tsn_r18", "tsn_r50", "tsm_r18"])
def test_blocks_that_start_as_their_shortcuts_do_nothing_else(name):
    torch.manual_seed(0)
    options = {"segments": 2} if name.startswith("ts") else {}
    model = build(name, 3, width=8, zero_init_residual=True, **options).eval()
    blocks = [m for m in model.modules() if isinstance(m, Residual)]
    assert len(blocks) >= 8
    for block in blocks:
        channels = next(m for m in block.conv1.modules() if hasattr(m, "in_channels")).in_channels
        flat = isinstance(next(m for m in block.modules() if isinstance(m, NORMS)), nn.BatchNorm2d)
        x = torch.randn(2, channels, *((8, 8) if flat else (2, 8, 8)))
        kept = x if block.shortcut is None else block.shortcut(x)
        torch.testing.assert_close(block(x), kept.relu())
