"""All networks: agreement with the original implementations, sizes, names, refusals."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marey.errors import UsageError
from marey.models import DETECTORS, MODELS, build, list_models
from marey.models.slowonly import SlowOnly
from marey.models.tsm import TSM
from marey.models.tsn import TSN
from marey.weights.load import load_weights
from tests.oracles import (
    drawn_case,
    load_case,
    relative_error,
)

FOLDER = Path(__file__).parent / "oracles"
CASES = sorted(p for p in FOLDER.glob("*.json") if p.stem != "nonlocal")
SMALLEST = ("tsn_r18", "tsm_r18", "slowonly_r50", "csn_ir_r50", "csn_ip_r50", "r2plus1d_r34")


def case_model(case):
    """The network of a case with its drawn weights, and its input as our networks take it."""
    weights, clip = drawn_case(case)
    model = build(case["model"], **case["overrides"]).eval()
    load_weights(model, weights)
    return model, clip


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
@torch.inference_mode()
def test_network_agrees_with_the_original(path):
    case = load_case(path)
    model, clip = case_model(case)
    logits = model(clip)
    assert logits.shape == (case["rows"], 400)
    assert relative_error(logits, case["logits"]) < max(1e-5, 3 * case["noise"])
    assert sum(p.numel() for p in model.parameters()) == case["parameters"]


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
@torch.inference_mode()
def test_features_are_the_map_of_the_original(path):
    case = load_case(path)
    model, clip = case_model(case)
    maps, want = model.features(clip), case["layer4"]
    rows = maps.transpose(1, 2).flatten(0, 1) if case["input"]["frames_first"] else maps
    assert list(rows.shape) == want["shape"]
    assert relative_error(rows.flatten()[:8], want["first8"]) < 1e-4
    assert (rows.mean().item(), rows.std().item()) == pytest.approx((want["mean"], want["std"]), rel=1e-4)
    assert relative_error(model.head(model.embed(clip)), case["logits"]) < max(1e-5, 3 * case["noise"])


@pytest.mark.parametrize("path", CASES[:1], ids=lambda p: p.stem)
@torch.inference_mode()
def test_the_reference_tells_a_reversed_clip_from_a_right_one(path):
    case = load_case(path)
    model, clip = case_model(case)
    assert relative_error(model(clip.flip(2)), case["logits"]) > 1e-3


@pytest.mark.parametrize(
    ("name", "overrides", "parameters", "without_norms"),
    [  # measured on the original networks with 400 classes
        ("csn_ir_r50", {}, 13_131_152, 13_078_032),
        ("csn_ip_r50", {}, 14_396_176, 14_335_504),
        ("csn_ir_r101", {}, 22_213_776, 22_108_432),
        ("csn_ip_r101", {}, 24_601_616, 24_480_016),
        ("csn_ir_r152", {}, 29_703_568, 29_552_144),
        ("csn_ip_r152", {}, 33_016_592, 32_841_232),
        ("r2plus1d_r34", {}, 63_697_175, None),
        ("slowonly_r50", {}, 32_454_096, 32_400_976),
        ("slowonly_r101", {}, 60_359_120, 60_253_776),
        ("slowonly_r50", {"non_local": "embedded_gaussian"}, 39_808_464, None),
        ("tsn_r50", {}, 24_327_632, 24_274_512),
        ("tsn_r101", {}, 43_319_760, 43_214_416),
        ("tsn_r152", {}, 58_963_408, 58_811_984),
        ("tsm_r50", {}, 24_327_632, 24_274_512),
        ("tsm_r101", {}, 43_319_760, 43_214_416),
        ("tsm_r152", {}, 58_963_408, 58_811_984),
        ("tsm_r50", {"non_local": "dot_product"}, 31_682_000, None),
        ("tsm_r50", {"non_local": "gaussian"}, 28_007_888, None),
    ],
)
def test_parameters_are_as_many_as_published(name, overrides, parameters, without_norms):
    with torch.device("meta"):
        model = build(name, **overrides)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d)]
    assert sum(p.numel() for p in model.parameters()) == parameters
    if without_norms:
        assert parameters - sum(p.numel() for m in norms for p in m.parameters()) == without_norms


@pytest.mark.parametrize(
    ("name", "classes", "parameters"), [("tsn_r18", 739, 11_555_619), ("tsn_r18", 69, 11_211_909)]
)
def test_small_networks_have_the_parameters_of_their_releases(name, classes, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build(name, classes).parameters()) == parameters


def test_names_are_listed_sorted_and_by_pattern():
    assert list_models() == sorted([*MODELS, *DETECTORS])
    assert list_models("slowonly*_det") == ["slowonly_r101_det", "slowonly_r50_det"]
    assert list_models("tsm*") == ["tsm_r101", "tsm_r152", "tsm_r18", "tsm_r34", "tsm_r50"]
    assert list_models("no*") == []


def test_parameter_names_need_no_arithmetic():
    names = set(build("slowonly_r50", 2, width=8).state_dict())
    assert {
        "trunk.stem.conv.weight",
        "trunk.stem.bn.running_mean",
        "trunk.stage1.0.conv1.conv.weight",
        "trunk.stage1.0.conv1.bn.bias",
    } <= names
    assert {
        "trunk.stage1.0.shortcut.conv.weight",
        "trunk.stage4.2.conv3.bn.weight",
        "head.weight",
        "head.bias",
    } <= names
    assert set(build("tsm_r50", 2, width=8).state_dict()) == names


@pytest.mark.parametrize(
    ("name", "overrides", "code", "text"),
    [
        ("tsm_r51", {}, "UNKNOWN_NAME", "tsm_r50"),
        ("tsm_r50", {"segment": 8}, "UNKNOWN_OVERRIDE", "segments"),
        ("slowonly_r50", {"shift_div": 8}, "UNKNOWN_OVERRIDE", "known are"),
        ("tsm_r50", {"segments": "8"}, "BAD_VALUE", "'8'"),
        ("tsm_r50", {"width": True}, "BAD_VALUE", "True"),
        ("tsm_r50", {"segments": 0}, "BAD_VALUE", "segments is 0"),
        ("tsm_r50", {"segments": 5, "temporal_pool": True}, "BAD_VALUE", "even"),
        ("tsn_r50", {"dropout": 1.0}, "BAD_VALUE", "dropout 1.0"),
        ("tsn_r50", {"frozen_stages": 5}, "BAD_VALUE", "frozen_stages 5"),
        ("tsn_r50", {"width": 0}, "BAD_VALUE", "width is 0"),
        ("tsm_r50", {"non_local": "gausian"}, "BAD_VALUE", "gaussian"),
        ("tsm_r18", {"non_local": "gaussian"}, "BAD_VALUE", "non_local_blocks"),
        (
            "tsm_r18",
            {"non_local": "gaussian", "non_local_blocks": ((), (0,))},
            "BAD_VALUE",
            "each of 4 stages",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(name, overrides, code, text):
    with torch.device("meta"), pytest.raises(UsageError) as error:
        build(name, **overrides)
    assert error.value.code == code
    assert text in error.value.message


@pytest.mark.parametrize(("network", "depth"), [(SlowOnly, 34), (SlowOnly, 20), (TSN, 20), (TSM, 51)])
def test_depths_that_do_not_exist_are_refused_with_those_that_do(network, depth):
    with (
        torch.device("meta"),
        pytest.raises(UsageError, match=rf"is {depth}; needed: one of \(.*50, 101, 152"),
    ):
        network(depth)


@pytest.mark.parametrize("name", SMALLEST)
def test_one_step_down_the_gradient_lowers_the_loss(name):
    torch.manual_seed(0)
    model = build(name, 3, width=8, dropout=0.0)
    clip, label = torch.randn(4, 3, 8, 32, 32), torch.tensor([0, 1, 2, 0])
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(model(clip), label)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", SMALLEST)
@torch.inference_mode()
def test_a_clips_logits_depend_neither_on_its_neighbours_nor_on_its_layout_in_memory(name):
    torch.manual_seed(1)
    model = build(name, 5, width=16).eval()
    clips = torch.randn(3, 8, 32, 48, 3).permute(0, 4, 1, 2, 3)
    together = model(clips)
    alone = torch.cat([model(clip[None]) for clip in clips])
    assert relative_error(together, alone) < 1e-5
    assert relative_error(model(clips.contiguous()), together) < 1e-5


@pytest.mark.parametrize("name", SMALLEST)
@torch.inference_mode()
def test_logits_are_raw_in_training_and_in_evaluation(name):
    model = build(name, 4, width=8, norm_eval=True, dropout=0.0)
    clip = torch.randn(2, 3, 8, 32, 32)
    trained, evaluated = model.train()(clip), model.eval()(clip)
    assert torch.equal(trained, evaluated)
    assert not torch.allclose(evaluated.sum(1), torch.ones(2))


@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 5), batch=st.integers(1, 3), classes=st.integers(1, 7))
@torch.inference_mode()
def test_shapes_are_as_documented(frames, batch, classes):
    clip = torch.randn(batch, 3, 2 * frames, 32, 64)
    for name, overrides in (("tsn_r18", {}), ("tsm_r18", {"segments": 2 * frames}), ("slowonly_r50", {})):
        model = build(name, classes, width=8, **overrides).eval()
        channels = 64 * (4 if "50" in name else 1)
        assert model(clip).shape == (batch, classes)
        assert model.embed(clip).shape == (batch, channels) == (batch, model.head.in_features)
        assert model.features(clip).shape == (batch, channels, 2 * frames, 1, 2)


@pytest.mark.parametrize("frames", [1, 5, 8, 9])
@torch.inference_mode()
def test_networks_that_halve_time_take_any_length(frames):
    clip = torch.randn(2, 3, frames, 32, 64)
    for name, channels, sides in (("csn_ip_r50", 256, (1, 2)), ("r2plus1d_r34", 64, (2, 4))):
        model = build(name, 3, width=8).eval()
        assert model(clip).shape == (2, 3)
        assert model.embed(clip).shape == (2, channels) == (2, model.head.in_features)
        assert model.features(clip).shape == (2, channels, (frames + 7) // 8, *sides)
