"""Video Swin: agreement with the original and with torchvision, its windows, its masks."""

import hashlib
from pathlib import Path

import pytest
import torch
from torchvision.models.video.swin_transformer import SwinTransformer3d

from marey.errors import UsageError
from marey.models import build
from marey.models.cost import macs
from marey.models.swin import APART, WindowAttention, apart, fit_window, relative_index
from marey.weights.load import load_weights
from tests.models.published import clip_of, losses_of_a_step, published
from tests.oracles import load_case, relative_error

FOLDER = Path(__file__).parent / "oracles" / "swin"
WINDOWS = load_case(FOLDER / "windows.json")
SMALL = {"channels": 12, "depths": (2, 2), "heads": (2, 3), "window": (4, 3, 3)}
CASES = [
    pytest.param(path, marks=[pytest.mark.slow] * ("_b_" in path.stem), id=path.stem)
    for path in sorted(FOLDER.glob("video_swin*.json"))
]


@pytest.mark.parametrize("path", CASES)
@torch.inference_mode()
def test_network_agrees_with_the_original(path):
    case = load_case(path)
    model, report = published(case)
    maps, want = model.features(clip_of(case)), case["features"]["map"]
    rows = maps.permute(0, 2, 3, 4, 1)
    assert list(rows.shape) == want["shape"]
    assert relative_error(rows.flatten()[:8], want["first8"]) < 1e-4
    assert rows.std().item() == pytest.approx(want["std"], rel=1e-4)
    assert sum(p.numel() for p in model.parameters()) == case["parameters"]
    assert (report.source, report.head, report.fresh) == ("video-swin", "loaded", ())
    for given in (case, *case.get("more", ())):
        logits = model(clip_of(given))
        assert relative_error(logits, [given["logits"]]) < case["tolerance"] / 10


@pytest.mark.parametrize("size", [(8, 24, 24), (9, 25, 50), (2, 16, 40), (16, 64, 32)])
@torch.inference_mode()
def test_network_agrees_with_torchvision_at_any_size(size):
    torch.manual_seed(0)
    options = {"num_heads": [2, 3], "window_size": [4, 3, 3], "num_classes": 7}
    theirs = SwinTransformer3d([2, 4, 4], 12, [2, 2], stochastic_depth_prob=0.0, **options).eval()
    for p in theirs.parameters():
        p += 0.2 * torch.randn_like(p)
    model = build("swin3d_t", 7, **SMALL).eval()
    report = load_weights(model, theirs.state_dict())
    assert (report.source, report.head, report.fresh) == ("torchvision", "loaded", ())
    clip = torch.randn(2, 3, *size)
    assert relative_error(model(clip), theirs(clip)) < 1e-5


@pytest.mark.parametrize(
    ("name", "overrides", "parameters", "multiply_adds"),
    [  # of the original networks on 32 x 224 x 224
        ("swin3d_t", {}, 28_158_070, 87.76),
        ("swin3d_s", {}, 49_816_678, 165.68),
        ("swin3d_b", {}, 88_048_984, 281.33),
        ("swin3d_b", {"window": (16, 7, 7), "num_classes": 174}, 88_834_038, 320.36),
    ],
)
def test_sizes_are_the_published_ones(name, overrides, parameters, multiply_adds):
    with torch.device("meta"):
        model = build(name, **overrides)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert macs(model, (3, 32, 224, 224)) / 1e9 == pytest.approx(multiply_adds, abs=0.006)


def sha1(index):
    return hashlib.sha1(index.contiguous().numpy().tobytes(), usedforsecurity=False).hexdigest()[:16]


@pytest.mark.parametrize("want", WINDOWS["relative_position_index"], ids=lambda w: str(w["window"]))
def test_relative_index_is_that_of_the_original(want):
    index = relative_index(tuple(want["window"]))
    assert index[0, :10].tolist() == want["row0_first10"]
    assert (index.sum(), index.max() + 1) == (want["sum"], want["table_rows"])
    assert sha1(index) == want["sha1_int64_bytes"]


@pytest.mark.parametrize("want", WINDOWS["slices"], ids=lambda w: str(w["used_window"]))
def test_short_axes_take_the_first_rows_of_the_index_as_the_original_does(want):
    attention = WindowAttention(1, 1, tuple(want["window"]), (0, 0, 0))
    attention.table.data[:, 0] = torch.arange(len(attention.table))
    got = attention.bias(want["n"])[0].long()
    assert sha1(got) == want["sha1_int64_bytes"]


@pytest.mark.parametrize("want", WINDOWS["masks"], ids=lambda w: f"{w['size']} {w['window']}")
def test_windows_shifts_and_masks_are_those_of_the_original(want):
    window, shift = fit_window(*(tuple(want[k]) for k in ("size", "window", "shift")))
    assert (list(window), list(shift)) == (want["used_window"], want["used_shift"])
    counts = [-(-side // w) for side, w in zip(want["size"], window, strict=True)]
    assert [n * w for n, w in zip(counts, window, strict=True)] == want["padded"]
    masked, each = 0, []
    for place in torch.cartesian_prod(*[torch.arange(n) for n in counts]).tolist():
        ends = tuple(s > 0 and p == n - 1 for p, n, s in zip(place, counts, shift, strict=True))
        each.append(int((apart(window, shift, ends, torch.device("cpu")) == APART).sum()))
        masked += each[-1]
    assert (len(each), masked) == (want["windows"], want["masked_pairs"])
    assert [each[0], each[-1]] == want["masked_pairs_of_first_and_last_window"]


def test_masks_and_indices_are_computed_once():
    first = apart((2, 3, 3), (1, 1, 1), (True, False, True), torch.device("cpu"))
    assert apart((2, 3, 3), (1, 1, 1), (True, False, True), torch.device("cpu")) is first
    names = set(build("swin3d_t", 2, **SMALL).state_dict())
    assert not [name for name in names if "index" in name]


def test_gradients_are_those_of_attention_written_out():
    torch.manual_seed(0)
    attention = WindowAttention(6, 2, (2, 2, 2), (1, 1, 1)).double()
    x = torch.randn(1, 4, 4, 4, 6, dtype=torch.double, requires_grad=True)
    weight = torch.randn(1, 4, 4, 4, 6, dtype=torch.double)

    def written_out(x):
        rolled = x.roll((-1, -1, -1), (1, 2, 3))
        labels = torch.zeros(4, 4, 4)
        for number, spans in enumerate(
            (t, h, w)
            for t in ((0, 2), (2, 3), (3, 4))
            for h in ((0, 2), (2, 3), (3, 4))
            for w in ((0, 2), (2, 3), (3, 4))
        ):
            (a, b), (c, d), (e, f) = spans
            labels[a:b, c:d, e:f] = number
        out = torch.zeros_like(x)
        for t, h, w in torch.cartesian_prod(*[torch.arange(0, 4, 2)] * 3).tolist():
            part = (slice(t, t + 2), slice(h, h + 2), slice(w, w + 2))
            qkv = attention.qkv(rolled[0][part].reshape(8, 6)).view(8, 3, 2, 3)
            label = labels[part].flatten()
            bias = attention.table[attention.index.flatten()].view(8, 8, 2)
            heads = []
            for head in range(2):
                q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
                logits = q @ k.t() * 3**-0.5 + bias[..., head]
                logits = logits + (label[:, None] != label[None]) * -100.0
                heads.append(logits.softmax(1) @ v)
            out = out.clone()
            out[(0, *part)] = attention.proj(torch.cat(heads, 1)).view(2, 2, 2, 6)
        return out.roll((1, 1, 1), (1, 2, 3))

    ours, theirs = attention(x), written_out(x)
    assert torch.allclose(ours, theirs, atol=1e-12)
    inputs = [x, attention.table, attention.qkv.weight, attention.proj.bias]
    for got, want in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((theirs * weight).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(got, want, atol=1e-10)


def test_one_step_down_the_gradient_lowers_the_loss():
    torch.manual_seed(0)
    model = build("swin3d_t", 3, dropout=0.0, drop_path=0.0, **SMALL)
    clip = torch.randn(3, 3, 8, 40, 40)
    before, after = losses_of_a_step(model, clip)
    assert after < before


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"heads": (5, 6, 12, 24)}, "heads"),
        ({"heads": (3, 6)}, "as many heads"),
        ({"window": (8, 7)}, "window"),
        ({"window": (8, 7, 0)}, "window"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"depths": (2, 0, 2, 2)}, "depths"),
        ({"dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, text):
    with torch.device("meta"), pytest.raises(UsageError) as error:
        build("swin3d_t", 2, **overrides)
    assert error.value.code == "BAD_VALUE"
    assert text in error.value.message
