"""MViT: agreement with the original and with torchvision, its plan of blocks, its positions."""

from pathlib import Path

import pytest
import torch
from torchvision.models.video.mvit import MSBlockConfig
from torchvision.models.video.mvit import MViT as Theirs

from marey.errors import UsageError
from marey.models import build
from marey.models.cost import macs
from marey.models.mvit import plan, relative_rows
from marey.weights.load import load_weights
from marey.weights.published import RELEASES
from tests.models.published import clip_of, losses_of_a_step, published
from tests.oracles import load_case, relative_error

FOLDER = Path(__file__).parent / "oracles" / "mvit"
DISTANCES = load_case(FOLDER / "distances.json")
SMALL = {"frames": 4, "crop": 64, "channels": 8, "depth": 4, "starts": (1, 3)}
CASES = [  # of version 2 only a large one is there; tests with torchvision run the same code in small
    pytest.param(path, marks=[pytest.mark.slow] * ("_32x3" in path.stem), id=path.stem)
    for path in sorted(FOLDER.glob("mvit*.json"))
]


@pytest.mark.parametrize("path", CASES)
@torch.inference_mode()
def test_network_agrees_with_the_original(path):
    case = load_case(path)
    model, report = published(case)
    tokens, want = model.tokens(clip_of(case)), case["features"]["tokens"]
    assert list(tokens.shape) == want["shape"]
    assert relative_error(tokens.flatten()[:8], want["first8"]) < 1e-4
    assert tokens.std().item() == pytest.approx(want["std"], rel=1e-4)
    assert relative_error(model.head(tokens[:, 0]), [case["logits"]]) < case["tolerance"] / 10
    assert sum(p.numel() for p in model.parameters()) == case["parameters"]
    assert (report.source, report.head, report.left_out, report.fresh) == ("pyslowfast", "loaded", {}, ())


def torchvision_network(version, crop, heads):
    """Theirs, of the same plan; all of its parameters are drawn."""
    size = (2, crop // 4, crop // 4)
    blocks = []
    for place in plan(version, 4, (1, 3), (3, 3, 3), 8, size, heads):
        pools = [(p.kernel, p.stride) if p else ((), ()) for p in (place.queries, place.keys)]
        widths = (place.before, place.after)
        kernels = [list(kernel) for kernel, _ in pools]
        strides = [list(stride) for _, stride in pools]
        blocks.append(MSBlockConfig(place.heads, *widths, *kernels, *strides))
    second = version == 2
    theirs = Theirs((crop, crop), 4, blocks, second, not second, second, second, num_classes=5).eval()
    for p in theirs.parameters():
        p += 0.3 * torch.randn_like(p)
    return theirs


@pytest.mark.parametrize(("version", "crop", "heads"), [(1, 64, 1), (1, 96, 2), (2, 64, 2), (2, 96, 1)])
@torch.inference_mode()
def test_network_agrees_with_torchvision(version, crop, heads):
    torch.manual_seed(0)
    model = build("mvit_b_16x4", 5, version=version, **{**SMALL, "crop": crop, "heads": heads}).eval()
    theirs = torchvision_network(version, crop, heads)
    report = load_weights(model, theirs.state_dict())
    assert (report.source, report.head, report.left_out, report.fresh) == ("torchvision", "loaded", {}, ())
    clip = torch.randn(2, 3, 4, crop, crop)
    want = theirs(clip)
    assert relative_error(model(clip), want) < 1e-5
    assert relative_error(model(clip.flip(3)), want) > 1e-2
    assert torch.allclose(model.head(model.embed(clip)), model(clip), atol=1e-5)
    assert model.features(clip).shape == (2, 32, 2, crop // 16, crop // 16)


@pytest.mark.parametrize(
    ("name", "classes", "frames", "parameters", "multiply_adds"),
    [  # of the original networks on 224 x 224; version 2 spends more products here, see RelativePositions
        ("mvit_b_16x4", 400, 16, 36_610_672, 70.60),
        ("mvit_b_32x3", 400, 32, 53_115_280, 235.78),
        ("mvit_b_32x3", 11, 32, 52_816_139, None),
        ("mvit_v2_s", 400, 16, 34_537_744, None),
        ("mvit_v2_b", 400, 32, 51_230_128, None),
    ],
)
def test_sizes_are_the_published_ones(name, classes, frames, parameters, multiply_adds):
    with torch.device("meta"):
        model = build(name, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    if multiply_adds:
        assert macs(model, (3, frames, 224, 224)) / 1e9 == pytest.approx(multiply_adds, abs=0.006)


@pytest.mark.parametrize("case", DISTANCES["cases"], ids=lambda c: f"{c['q']} to {c['k']}")
def test_distances_are_those_of_the_original(case):
    rows = relative_rows(case["q"], case["k"])
    assert rows.shape == (case["q"], case["k"])
    assert rows.max() < case["table_rows"]
    assert [rows[i].tolist() for i in (0, 1, -1)] == [case[k] for k in ("row0", "row1", "last_row")]
    assert rows.sum() == case["sum"]


def test_distances_that_no_float32_holds_round_as_in_the_original():
    """MViTv2 L has 39 queries and 10 keys on an axis: its row 0 is 35, 31, ..., 7, 3, 0 by either rule, but
    of the last column, whose distances are whole, some fall a row short."""
    rows = relative_rows(39, 10)
    exact = (10 * torch.arange(39)[:, None] + 39 * (9 - torch.arange(10))) // 10
    assert rows[0].tolist() == exact[0].tolist() == [35, 31, 27, 23, 19, 15, 11, 7, 3, 0]
    assert set((exact - rows).unique().tolist()) == {0, 1}
    assert (exact != rows).sum() == 38


def test_the_large_network_is_the_published_one():
    """213.1 million parameters for 174 classes (projects/mvitv2/README.md); tables of halved sides."""
    release = RELEASES["MViTv2_L_40x3_ssv2_f309603968"]
    with torch.device("meta"):
        model = build(release.model, 174, **release.overrides)
    assert sum(p.numel() for p in model.parameters()) == 213_129_534
    relative = [block.attn.relative for block in model.trunk.blocks]
    places = (0, 2, 8, 9, 44, 45)
    assert [len(relative[i].h) for i in places] == [155, 77, 37, 37, 37, 17]
    assert [relative[i].queries[1] for i in places] == [78, 39, 20, 20, 10, 10]
    assert {len(r.t) for r in relative} == {39}
    assert model.trunk.blocks[0].attn.heads == 2


def test_blocks_are_planned_as_published():
    first = plan(1, 16, (1, 3, 14), (3, 3, 3), 96, (8, 56, 56))
    assert [(p.before, p.after, p.heads) for p in first[:4]] == [
        (96, 192, 1), (192, 192, 2), (192, 384, 2), (384, 384, 4),
    ]  # fmt: skip
    assert [p.queries.stride if p.queries else None for p in first[:4]] == [None, (1, 2, 2), None, (1, 2, 2)]
    assert [p.keys.stride[1] for p in first] == [8, 4, 4, *[2] * 11, 1, 1]
    deep = plan(1, 24, (2, 5, 21), (), 96, (16, 56, 56))
    assert deep[0].keys == ((1, 9, 9), (1, 8, 8))
    assert deep[5].queries == ((1, 3, 3), (1, 2, 2))
    assert [p.keys for p in deep[21:]] == [None] * 3
    second = plan(2, 16, (1, 3, 14), (3, 3, 3), 96, (8, 56, 56))
    assert (second[1].before, second[1].attended, second[1].after) == (96, 192, 192)
    assert all(p.queries.kernel == (3, 3, 3) for p in second)


@pytest.mark.parametrize("crop", [56, 100])
@torch.inference_mode()
def test_sizes_that_the_strides_do_not_divide_will_do(crop):
    model = build("mvit_b_16x4", 5, version=2, **{**SMALL, "crop": crop}).eval()
    assert model(torch.randn(1, 3, 4, crop, crop)).shape == (1, 5)


@pytest.mark.parametrize("version", [1, 2])
def test_one_step_down_the_gradient_lowers_the_loss(version):
    torch.manual_seed(0)
    model = build("mvit_b_16x4", 3, version=version, dropout=0.0, drop_path=0.0, **SMALL)
    clip = torch.randn(3, 3, 4, 64, 64)
    before, after = losses_of_a_step(model, clip)
    assert after < before


@pytest.mark.parametrize("shape", [(8, 64, 64), (4, 96, 64), (4, 32, 32)])
def test_clips_of_another_size_are_refused(shape):
    with pytest.raises(UsageError) as error:
        build("mvit_b_16x4", 3, **SMALL)(torch.zeros(1, 3, *shape))
    assert error.value.code == "CLIP_SIZE"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"version": 3}, "version is 3"),
        ({"crop": 16}, "crop 16"),
        ({"pool_kernel": (3, 3)}, "pool_kernel"),
        ({"heads": 5}, "heads is 5"),
        ({"starts": (1, 16)}, "starts is (1, 16)"),
        ({"drop_path": 1.5}, "drop_path is 1.5"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, text):
    with torch.device("meta"), pytest.raises(UsageError) as error:
        build("mvit_b_16x4", 2, **overrides)
    assert error.value.code == "BAD_VALUE"
    assert text in error.value.message
