"""The non-local block: agreement with the original in all its modes."""

from pathlib import Path

import pytest
import torch

from marey.models import build
from marey.models.nonlocal_ import NonLocal
from tests.oracles import drawn_input, filled, load_case, non_local_table, relative_error

CASE = load_case(Path(__file__).parent / "oracles" / "nonlocal.json")


def ours(name):
    return name.replace(".0.", ".").replace("conv_out", "out").replace("g.conv", "g").replace(
        "theta.conv", "theta").replace("phi.conv", "phi")  # fmt: skip


@pytest.mark.parametrize("kind", CASE["cases"])
@torch.inference_mode()
def test_block_agrees_with_the_original(kind):
    case = CASE["cases"][kind]
    block = NonLocal(16, case["mode"], scale=case["use_scale"], sub_sample=case["sub_sample"]).eval()
    weights = filled(non_local_table(16, case["mode"], case["sub_sample"]), f"{CASE['salt']}{kind}.")
    block.load_state_dict({ours(name): value for name, value in weights.items()})
    clip = drawn_input(CASE["input"]["shape"], CASE["input"]["seed"])
    for form in (torch.contiguous_format, torch.channels_last_3d):
        got = block(clip.contiguous(memory_format=form)).flatten()[::7][:200]
        assert relative_error(got, case["every_7th"]) < 1e-5


@pytest.mark.parametrize("mode", ["embedded_gaussian", "gaussian", "dot_product"])
def test_a_fresh_block_changes_nothing_and_can_learn(mode):
    block = NonLocal(8, mode)
    x = torch.randn(2, 8, 3, 4, 4)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.out.bn.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["tsm_r50", "slowonly_r50"])
def test_networks_carry_blocks_where_the_zoo_has_them(name):
    with torch.device("meta"):
        model = build(name, non_local="dot_product")
    places = [n.removesuffix(".non_local") for n, m in model.named_modules() if isinstance(m, NonLocal)]
    assert places == [
        "trunk.stage2.0",
        "trunk.stage2.2",
        "trunk.stage3.0",
        "trunk.stage3.2",
        "trunk.stage3.4",
    ]


def test_only_embedded_gaussian_is_scaled_and_by_default_only_in_slowonly():
    with torch.device("meta"):
        scales = [
            next(m.scale for m in build(name, non_local=mode).modules() if isinstance(m, NonLocal))
            for name in ("slowonly_r50", "tsm_r50")
            for mode in ("embedded_gaussian", "gaussian")
        ]
    assert scales == [256**-0.5, 1.0, 1.0, 1.0]


@torch.inference_mode()
def test_in_tsm_positions_of_a_pass_see_each_other_and_those_of_another_pass_do_not():
    torch.manual_seed(0)
    options = {"non_local": "dot_product", "non_local_blocks": [[], [0], [], []], "segments": 2, "width": 16}
    model = build("tsm_r18", 3, **options).eval()
    model.trunk.stage2[0].non_local.out.bn.weight.fill_(1.0)
    clip = torch.randn(1, 3, 4, 64, 64)
    other = clip.clone()
    other[:, :, 3] += 1
    assert torch.equal(model(clip)[0], model(other)[0])
    assert not torch.allclose(model(clip)[1], model(other)[1])
