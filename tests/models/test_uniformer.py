"""UniFormer: agreement with the original, its split attention, its sizes."""

from pathlib import Path

import pytest
import torch

from marey.errors import UsageError
from marey.models import build
from marey.models.cost import macs
from marey.models.uniformer import GlobalBlock, SplitBlock
from tests.models.published import clip_of, losses_of_a_step, published
from tests.oracles import load_case, relative_error

FOLDER = Path(__file__).parent / "oracles" / "uniformer"
SMALL = {"depths": (1, 1, 2, 1), "channels": (8, 16, 24, 32), "head_width": 8}
CASES = [
    pytest.param(path, marks=[pytest.mark.slow] * ("_b_" in path.stem), id=path.stem)
    for path in sorted(FOLDER.glob("*.json"))
]


@pytest.mark.parametrize("path", CASES)
@torch.inference_mode()
def test_network_agrees_with_the_original(path):
    case = load_case(path)
    model, report = published(case)
    maps, want = model.features(clip_of(case)), case["features"]["map"]
    assert list(maps.shape) == want["shape"]
    assert relative_error(maps.flatten()[:8], want["first8"]) < 1e-4
    assert maps.std().item() == pytest.approx(want["std"], rel=1e-4)
    logits = model(clip_of(case))
    assert relative_error(logits.flatten(), case["logits"]) < case["tolerance"] / 10
    assert relative_error(model(clip_of(case).flip(2)).flatten(), case["logits"]) > 1e-3
    assert sum(p.numel() for p in model.parameters()) == case["parameters"]
    assert (report.source, report.head, report.left_out, report.fresh) == ("uniformer", "loaded", {}, ())


@pytest.mark.parametrize(
    ("name", "classes", "frames", "parameters", "multiply_adds"),
    [  # of the original networks on 224 x 224
        ("uniformer_s", 400, 16, 21_400_400, 41.66),
        ("uniformer_s", 400, 8, 21_400_400, 17.57),
        ("uniformer_s", 400, 32, 21_400_400, 109.45),
        ("uniformer_b", 400, 16, 49_813_200, 96.55),
        ("uniformer_b", 600, 32, 49_915_800, 258.25),
        ("uniformer_b", 174, 8, 49_697_262, 40.13),
        ("uniformer_b", 11, 32, 49_613_643, 258.25),
    ],
)
def test_sizes_are_the_published_ones(name, classes, frames, parameters, multiply_adds):
    with torch.device("meta"):
        model = build(name, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert macs(model, (3, frames, 224, 224)) / 1e9 == pytest.approx(multiply_adds, abs=0.006)


@pytest.mark.parametrize("size", [(8, 64, 64), (7, 37, 90), (1, 32, 32)])
@torch.inference_mode()
def test_any_size_of_clip_will_do(size):
    model = build("uniformer_s", 5, **SMALL).eval()
    clip = torch.randn(2, 3, *size)
    frames, *sides = (-(-size[0] // 2), size[1] // 32, size[2] // 32)
    assert model.features(clip).shape == (2, 32, frames, *sides)
    assert model.embed(clip).shape == (2, 32)
    assert model(clip).shape == (2, 5)


@torch.inference_mode()
def test_split_blocks_start_as_attention_in_space_alone():
    torch.manual_seed(0)
    model = build("uniformer_s", 5, split=True, **SMALL).eval()
    block = model.trunk.stage3[1]
    assert isinstance(block, SplitBlock)
    x = torch.randn(2, 24, 3, 4, 4)
    alone = GlobalBlock(24, 3, 96, 0.0).eval()
    alone.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith("t_")})
    frames = x + block.pos_embed(x)
    branch = alone.attn(alone.norm1(frames.transpose(1, 2).flatten(0, 1).flatten(2).transpose(1, 2)))
    want = frames + branch.view(2, 3, 4, 4, 24).permute(0, 4, 1, 2, 3)
    tokens = want.permute(0, 2, 3, 4, 1)
    want = tokens + block.mlp(block.norm2(tokens))
    assert torch.allclose(block(x).permute(0, 2, 3, 4, 1), want, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"split": True, "overlap": True}])
def test_one_step_down_the_gradient_lowers_the_loss(options):
    torch.manual_seed(0)
    model = build("uniformer_s", 3, drop_path=0.0, **SMALL, **options)
    if options:
        for block in (*model.trunk.stage3[1:], *model.trunk.stage4[1:]):
            torch.nn.init.normal_(block.t_attn.qkv.weight, std=0.02)
    clip = torch.randn(3, 3, 4, 64, 64)
    before, after = losses_of_a_step(model, clip)
    assert after < before


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"channels": (64, 128, 320)}, "channels"),
        ({"depths": (3, 4, 8)}, "depths"),
        ({"head_width": 48}, "head_width 48"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, text):
    with torch.device("meta"), pytest.raises(UsageError) as error:
        build("uniformer_s", 2, **overrides)
    assert error.value.code == "BAD_VALUE"
    assert text in error.value.message
