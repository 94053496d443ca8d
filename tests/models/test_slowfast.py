"""SlowFast: agreement with three originals, windows of the classifier, frames of the slow pathway."""

from pathlib import Path

import pytest
import torch

from marey.errors import UsageError
from marey.models import build
from marey.models.cost import macs
from tests.models.published import clip_of, published
from tests.oracles import load_case, relative_error

FOLDER = Path(__file__).parent / "oracles" / "slowfast"
CASES = sorted(FOLDER.glob("*.json"))
SMALL = {"width": 16, "beta": 4}


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
@torch.inference_mode()
def test_network_agrees_with_the_original(path):
    case = load_case(path)
    model, report = published(case)
    clip = clip_of(case)
    maps = dict(zip(("slow", "fast"), model.features(clip), strict=True))
    for name, want in case["features"].items():
        assert list(maps[name].shape) == want["shape"]
        assert relative_error(maps[name].flatten()[:8], want["first8"]) < 1e-4
        assert maps[name].mean().item() == pytest.approx(want["mean"], rel=1e-4)
    logits = model(clip)
    assert logits.shape == (1, case["classes"])
    assert relative_error(logits, [case["logits"]]) < case["tolerance"] / 10
    assert relative_error(model.head(model.embed(clip)), [case["logits"]]) < case["tolerance"] / 10
    assert sum(p.numel() for p in model.parameters()) == case["parameters"]
    assert (report.source, report.head, report.left_out, report.fresh) == (case["layout"], "loaded", {}, ())
    for more in case.get("more", ()):
        want = torch.tensor(more["logits"]).view(1, -1, case["classes"])
        assert relative_error(model.places(clip_of(more)), want) < case["tolerance"] / 10
    if scaled := case.get("scaled_head"):
        model.head.weight.mul_(scaled["factor"])
        scores = model(clip_of(scaled)).softmax(1)
        assert relative_error(scores, [scaled["scores"]]) < case["tolerance"]


@pytest.mark.parametrize(
    ("name", "overrides", "parameters", "multiply_adds"),
    [  # of the original networks on 32 x 224 x 224, 400 classes
        ("slowfast_r50", {}, 34_566_488, 50.31),
        ("slowfast_r50", {"alpha": 8, "lateral_kernel": 5}, 34_480_216, 27.64),
        ("slowfast_r101", {}, 62_826_968, 96.40),
        ("slowfast_r50", {"style": "mmaction2"}, 34_565_560, 50.31),
        ("slowfast_r101", {"style": "mmaction2", "lateral_kernel": 7}, 62_912_312, 96.71),
        ("slowfast_r101_alphaction", {"num_classes": 11}, 61_927_043, 120.01),
    ],
)
def test_sizes_are_the_published_ones(name, overrides, parameters, multiply_adds):
    with torch.device("meta"):
        model = build(name, **overrides)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert macs(model, (3, 32, 224, 224)) / 1e9 == pytest.approx(multiply_adds, abs=0.006)


@pytest.mark.parametrize(
    ("style", "alpha", "frames", "seen"),
    [
        ("pyslowfast", 4, 32, [0, 4, 8, 13, 17, 22, 26, 31]),
        ("pyslowfast", 8, 32, [0, 10, 20, 31]),
        ("pyslowfast", 4, 64, [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]),
        ("pyslowfast", 4, 16, [0, 5, 10, 15]),
        ("alphaction", 4, 64, list(range(0, 64, 4))),
        ("alphaction", 4, 32, [0, 4, 8, 12, 16, 20, 24, 28]),
        ("alphaction", 4, 16, [0, 4, 8, 12]),
        ("mmaction2", 8, 32, [0, 8, 16, 24]),
    ],
)
def test_the_slow_pathway_sees_the_frames_that_its_style_says(style, alpha, frames, seen):
    model = build("slowfast_r50", 2, style=style, alpha=alpha, **SMALL)
    given = []
    model.trunk.stem.slow.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    model.features(torch.arange(frames).float().view(1, 1, -1, 1, 1).expand(1, 3, -1, 32, 32))
    assert given[0][0, 0, :, 0, 0].tolist() == seen


@torch.inference_mode()
def test_a_large_clip_is_classified_at_every_place_of_the_window_and_probabilities_averaged():
    torch.manual_seed(2)
    model = build("slowfast_r50", 5, crop=64, **SMALL).eval()
    clip = torch.randn(2, 3, 8, 96, 128)
    places = model.places(clip)
    assert places.shape == (2, 2 * 3, 5)
    assert torch.allclose(model(clip).softmax(1), places.softmax(2).mean(1), atol=1e-6)
    slow, fast = model.features(clip)
    corner = torch.cat([m[..., :2, :2].mean((2, 3, 4)) for m in (slow, fast)], 1)
    assert torch.allclose(model.head(corner), places[:, 0], atol=1e-5)
    whole = build("slowfast_r50", 5, crop=0, **SMALL).eval()
    whole.load_state_dict(model.state_dict())
    assert torch.allclose(whole(clip), whole.head(whole.embed(clip)), atol=1e-5)


@pytest.mark.parametrize("name", ["slowfast_r50", "slowonly_r50"])
@torch.inference_mode()
def test_of_independent_classes_sigmoids_are_averaged(name):
    torch.manual_seed(2)
    small = SMALL if name == "slowfast_r50" else {"width": 8}
    model = build(name, 5, crop=64, independent=True, **small).eval()
    model.head.weight *= 100
    clip = torch.randn(2, 3, 8, 96, 64)
    rows = model.features(clip)
    rows = [m.mean(2, keepdim=True) for m in (rows if isinstance(rows, tuple) else (rows,))]
    places = [torch.cat([m[..., y : y + 2, :].mean((2, 3, 4)) for m in rows], 1) for y in (0, 1)]
    want = torch.stack([model.head(place).sigmoid() for place in places]).mean(0)
    assert torch.allclose(model(clip).sigmoid(), want, atol=1e-6)
    model.independent = False
    assert not torch.allclose(model(clip).sigmoid(), want, atol=1e-2)


def test_blocks_beyond_temporal_blocks_look_at_single_frames():
    model = build("slowfast_r101", 2, temporal_blocks=(3, 4, 6, 3), **SMALL)
    for path in ("slow", "fast"):
        stage = getattr(model.trunk.stage3, path)
        assert [block.conv1.conv.kernel_size[0] for block in stage] == [3] * 6 + [1] * 17
    assert [b.conv1.conv.kernel_size[0] for b in model.trunk.stage1.fast] == [3, 3, 3]


def test_the_fast_pathway_can_have_another_depth():
    model = build("slowfast_r101", 2, fast_depth=50, style="mmaction2", **SMALL)
    assert (len(model.trunk.stage3.slow), len(model.trunk.stage3.fast)) == (23, 6)


@pytest.mark.parametrize("style", ["pyslowfast", "mmaction2", "alphaction"])
def test_one_step_down_the_gradient_lowers_the_loss(style):
    torch.manual_seed(0)
    model = build("slowfast_r50", 3, style=style, dropout=0.0, **SMALL)
    clip, label = torch.randn(4, 3, 8, 32, 32), torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(model(clip), label)
        optimizer.zero_grad()
        loss.backward()
        for name, p in model.named_parameters():
            unused = style == "alphaction" and name.startswith("trunk.stage4.fast.")
            assert p.requires_grad != unused
            assert unused or p.grad.isfinite().all()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"style": "slowfast"}, "style"),
        ({"alpha": 0}, "alpha is 0"),
        ({"lateral_kernel": 4}, "lateral_kernel 4"),
        ({"beta": 128}, "beta 128"),
        ({"temporal_blocks": (3, 4)}, "temporal_blocks"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, text):
    with pytest.raises(UsageError) as error:
        build("slowfast_r50", 2, **overrides)
    assert error.value.code == "BAD_VALUE"
    assert text in error.value.message


def test_clips_that_alpha_does_not_divide_are_refused():
    with pytest.raises(UsageError) as error:
        build("slowfast_r50", 2, **SMALL)(torch.zeros(1, 3, 10, 32, 32))
    assert error.value.code == "CLIP_LENGTH"
