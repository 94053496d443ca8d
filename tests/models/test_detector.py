"""Detectors against MMAction2's: logits, features, gradients and what is refused.

oracles/detection/: outputs of open-mmlab/mmaction2@v0.24.1 with mmcv 1.7.2 on drawn weights.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from marey.data.bank import Bank, BankCard, Rows
from marey.errors import UsageError
from marey.models import DETECTORS, MODELS, build
from marey.models.detector import Detector
from marey.models.fold import folded
from marey.models.longterm import operator
from marey.weights.load import load_weights, recognise
from tests.models.published import detector_table
from tests.oracles import checksum, drawn_input, filled, load_case, relative_error

FOLDER = Path(__file__).parent / "oracles/detection"
SMALL = {"width": 8, "latent": 12, "window": 4, "per_step": 2}
FAST = {**SMALL, "width": 16, "beta": 4}
BOX = torch.tensor([[2.0, 3.0, 40.5, 50.0], [0.0, 0.0, 95.0, 63.0], [10.0, 10.0, 10.0, 10.0]])


def case_model(name):
    case = load_case(FOLDER / f"{name}.json")
    torch.manual_seed(0)
    model = build(case["model"], case["classes"], **case["overrides"]).eval()
    table = detector_table(model)
    if "head" in name:
        table = {key: shape for key, shape in table.items() if key.startswith("roi_head.")}
    assert (len(table), checksum(table)) == (case["tensors"], case["table_crc32"])
    return case, model, filled(table, case["salt"])


def boxes_of(case):
    return [torch.tensor(rows) for rows in case["boxes"]]


def bank_of(case):
    """The bank of a case: features drawn by video and second, held as our banks hold them."""
    videos = {}
    for number, (video, persons) in enumerate(case["persons"].items(), 1):
        seconds = [int(second) for second, count in persons.items() for _ in range(count)]
        drawn = [drawn_input([count, 2048], 100000 * number + int(s)) for s, count in persons.items()]
        videos[video] = Rows(seconds, torch.cat(drawn))
    card = BankCard(model="x", model_sha256=None, channels=2048, dtype=case["bank_dtype"])
    return Bank.of(card, videos)


def windows(case, clips):
    keys = [(key.split(",")[0], int(key.split(",")[1])) for key in case["keys"]]
    return bank_of(case).look_up([keys[clip] for clip in clips])


@pytest.mark.parametrize(
    "name", ["slowonly_r50_4x16x1_ava", "slowfast_r50_4x16x1_ava", "lfb_nl_slowonly_r50_ava"]
)
@torch.inference_mode()
def test_logits_are_the_originals(name):
    case, model, weights = case_model(name)
    report = load_weights(model, weights)
    assert (report.source, report.head, report.left_out, report.fresh) == ("mmaction2", "loaded", {}, ())
    clip, boxes = drawn_input(**case["input"]), boxes_of(case)
    bank = None
    if model.long_term is not None:
        bank = windows(case, [number for number, rows in enumerate(boxes) for _ in rows])
        assert bank.dtype == torch.float16
    logits = model(clip, boxes, bank)
    assert relative_error(logits, case["logits"]) < 3e-6
    if "pooled" in case.get("stages", {}):
        regions = model.regions(clip, boxes)
        for key, value in (
            ("feature", model.pooled(clip)),
            ("roi features", regions),
            ("pooled", model.box_features(clip, boxes)),
        ):
            want = case["stages"][key]
            assert relative_error(value.flatten()[:8], want["first8"]) < 1e-5
            assert (value.mean().item(), value.std().item()) == pytest.approx(
                (want["mean"], want["std"]), rel=1e-5
            )


@torch.inference_mode()
def test_a_bank_stores_what_the_original_infers():
    case, model, weights = case_model("lfb_infer_slowonly_r50_ava")
    load_weights(model, weights)
    found = model.box_features(drawn_input(**case["input"]), boxes_of(case))
    want = [row for second in case["features"].values() for rows in second.values() for row in rows]
    assert found.shape == (len(want), 2048)
    for row, one in zip(found, want, strict=True):
        half = row.half().float()
        assert relative_error(row[: len(one["first"])], one["first"]) < 1e-5
        assert row.sum().item() == pytest.approx(one["sum"], rel=1e-5)
        assert row.norm().item() == pytest.approx(one["l2"], rel=1e-5)
        assert relative_error(half[: len(one["first_float16"])], one["first_float16"]) < 1e-3
        assert half.sum().item() == pytest.approx(one["sum_float16"], rel=1e-4)


@pytest.mark.parametrize("kind", ["nl", "avg", "max"])
@torch.inference_mode()
def test_long_term_operators_are_the_originals(kind):
    case, model, weights = case_model(f"lfb_{kind}_head")
    state = model.state_dict()
    for ours, theirs in recognise(weights).filled.items():
        state[ours].copy_(weights[theirs].reshape(state[ours].shape))
    bank = windows(case, case["clip_of_box"])
    assert [int((rows != 0).any(1).sum()) for rows in bank] == case["filled"]
    regions = drawn_input(**case["input"]).squeeze(2)
    assert relative_error(model.classify(regions, bank), case["logits"]) < 3e-6


@pytest.mark.parametrize("number", range(3))
@torch.inference_mode()
def test_boxes_are_cut_out_as_the_original_does(number, monkeypatch):
    case = load_case(FOLDER / "roi_align.json")
    settings, output = case["variants"][number].values()
    where, want = drawn_input(**case["input"]), torch.tensor(output)
    model = build("slowonly_r50_det", **SMALL, **settings)
    monkeypatch.setattr(model, "pooled", lambda clip: where)
    cut = model.regions(torch.zeros(2, 3, 4, 128, 192), boxes_of(case))
    order = sorted(range(len(want)), key=lambda number: case["order"][number])
    assert (cut - want[order]).abs().max() < 1e-6
    assert bool(cut[order.index(5)].any()) == bool(settings)  # a box without area


class Original(nn.Module):
    """The operator as the original writes it: 3D convolutions, [R, C, S, 1, 1], norms over [C, 1, 1, 1]."""

    def __init__(self, channels, latent, layers, pre):
        super().__init__()
        self.pre, self.ends = pre, nn.ModuleList([nn.Conv3d(channels, latent, 1) for _ in range(2)])
        self.rows = nn.ModuleList(
            nn.ModuleList(
                [*(nn.Conv3d(latent, latent, 1) for _ in range(4)), nn.LayerNorm([latent, 1, 1, 1])]
            )
            for _ in range(layers)
        )

    def forward(self, x, bank):
        a, b = self.ends[0](x[:, :, None, None, None]), self.ends[1](bank.transpose(1, 2)[..., None, None])
        for theta, phi, g, out, norm in self.rows:
            q, k, v = (layer(y).flatten(2) for layer, y in ((theta, a), (phi, b), (g, b)))
            p = torch.softmax(q.transpose(1, 2) @ k / q.shape[1] ** 0.5, -1)
            y = (v @ p.transpose(1, 2))[..., None, None]
            y = out(F.relu(norm(y))) if self.pre else norm(out(y))
            a = a + y if self.pre else F.relu(a + y)
        return a.flatten(1)


@pytest.mark.parametrize("pre", [True, False])
def test_the_operators_variants_and_gradients_are_those_of_its_definition(pre):
    torch.manual_seed(0)
    ours, latent = operator("nl", 24, 24, latent=10, layers=3, dropout=0.3, pre_activate=pre)
    ours, theirs = ours.eval().double(), Original(24, 10, 3, pre).double()
    pairs = [(ours.short, theirs.ends[0]), (ours.long, theirs.ends[1])]
    for layer, row in zip(ours.layers.values(), theirs.rows, strict=True):
        parts = (layer.theta, layer.phi, layer.value, layer.out, layer.norm)
        pairs += zip(parts, row, strict=True)
    for mine, its in pairs:
        for p, q in zip(mine.parameters(), its.parameters(), strict=True):
            nn.init.normal_(q, std=0.3)
            p.data.copy_(q.data.reshape(p.shape))
    x, bank = torch.randn(5, 24).double().requires_grad_(), torch.randn(5, 7, 24).double()
    got, want = ours(x, bank), theirs(x, bank)
    assert (latent, got.shape) == (10, (5, 10))
    assert relative_error(got.detach(), want.detach()) < 1e-12
    (grad,) = torch.autograd.grad(got.square().sum(), x, retain_graph=True)
    (wanted,) = torch.autograd.grad(want.square().sum(), x, retain_graph=True)
    assert relative_error(grad, wanted) < 1e-12
    got.square().sum().backward()
    want.square().sum().backward()
    for mine, its in pairs:
        for p, q in zip(mine.parameters(), its.parameters(), strict=True):
            assert (p.grad - q.grad.reshape(p.shape)).abs().max() < 1e-12 * (1 + q.grad.abs().max())


def test_pooling_operators_count_empty_slots():
    bank = torch.zeros(2, 6, 3)
    bank[0, 1], bank[1, 2] = torch.tensor([6.0, -6.0, 3.0]), -1.0
    average, _ = operator("avg", 5, 3, latent=1, layers=1, dropout=0, pre_activate=True)
    maximum, channels = operator("max", 5, 3, latent=1, layers=1, dropout=0, pre_activate=True)
    assert average(torch.zeros(2, 5), bank).tolist() == [[1.0, -1.0, 0.5], [pytest.approx(-1 / 6)] * 3]
    assert (channels, maximum(torch.zeros(2, 5), bank).tolist()) == (3, [[6.0, 0.0, 3.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("long_term", [None, "nl", "max"])
@pytest.mark.parametrize("name", ["slowonly_r50_det", "slowfast_r50_det"])
def test_there_may_be_no_box_in_some_clips_or_in_none(name, long_term):
    torch.manual_seed(1)
    settings = {**(FAST if "fast" in name else SMALL), "long_term": long_term}
    model, clip = build(name, 7, **settings), torch.randn(3, 3, 8, 64, 96)
    none, sizes = torch.zeros(0, 4), (0, 8, model.bank_channels)
    bank = None if long_term is None else torch.zeros(sizes)
    logits = model(clip, [none] * 3, bank)
    assert (logits.shape, model.box_features(clip, [none] * 3).shape) == ((0, 7), (0, model.box_channels))
    logits.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    model.eval()
    many = None if long_term is None else torch.randn(6, *sizes[1:])
    with torch.inference_mode():
        mixed = model(clip, [BOX, none, BOX], many)
        last = model(clip[2:], [BOX], None if many is None else many[3:])
        fold = folded(model)(clip, [BOX, none, BOX], many)
    assert torch.allclose(mixed[3:], last, rtol=1e-4, atol=1e-6)
    assert relative_error(fold, mixed) < 1e-5


@torch.inference_mode()
def test_a_detector_is_its_recognizer_where_the_map_of_the_last_stage_keeps_its_size():
    """The whole clip in one box of 8 x 8 cells, pooled by hand: the same trunk, but for the last stride."""
    torch.manual_seed(2)
    for name, settings in (("slowonly_r50", {"width": 8}), ("slowfast_r50", {"width": 16, "beta": 4})):
        style = {"style": "mmaction2"} if "fast" in name else {}
        model = build(name, 5, **settings, **style).eval()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm3d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
        detector = build(f"{name}_det", 5, **settings).eval()
        load_weights(detector, model.state_dict())
        clip = torch.randn(1, 3, 8, 128, 128)
        blocks = model.trunk.stage4
        for block in (blocks.slow[0], blocks.fast[0]) if "fast" in name else (blocks[0],):
            block.conv2.conv.stride = block.shortcut.conv.stride = (1, 1, 1)
        maps = model.features(clip)
        maps = maps if "fast" in name else (maps,)
        want = torch.cat([one.mean(2) for one in maps], 1)
        assert want.shape[2:] == (8, 8)
        assert torch.equal(detector.pooled(clip), want)
        assert not torch.equal(detector.pooled(clip), torch.cat([one.amax(2) for one in maps], 1))


@pytest.mark.parametrize("bins", [8, 3])
@torch.inference_mode()
def test_context_adds_the_whole_clips_map_and_time_can_be_pooled_by_maximum(bins):
    torch.manual_seed(3)
    plain = build("slowonly_r50_det", 5, **SMALL, time_pool="max", bins=bins).eval()
    model = build("slowonly_r50_det", 5, **SMALL, time_pool="max", context=True, bins=bins).eval()
    state = {name: value for name, value in plain.state_dict().items() if not name.startswith("head")}
    model.load_state_dict(state, strict=False)
    clip = torch.randn(2, 3, 4, 80, 160)
    regions, alone = model.regions(clip, [BOX, BOX[:1]]), plain.regions(clip, [BOX, BOX[:1]])
    where = plain.features(clip).amax(2)
    assert torch.equal(plain.pooled(clip), where)
    assert torch.equal(regions[:, :256], alone)
    whole = F.adaptive_avg_pool2d(where, bins)
    assert torch.allclose(regions[:, 256:], whole[[0, 0, 0, 1]], rtol=1e-5, atol=1e-6)


def test_dropout_drops_single_cells_before_they_are_pooled():
    model = build("slowonly_r50_det", 5, **SMALL, dropout=0.5)
    nn.init.eye_(model.head.weight)
    regions = torch.arange(64.0).view(8, 8).expand(400, 256, 8, 8)
    torch.manual_seed(0)
    pooled = model.classify(regions)  # the largest kept cell, twice as large
    share = [(pooled == 2 * value).float().mean().item() for value in (63, 62, 61)]
    assert share == pytest.approx([0.5, 0.25, 0.125], abs=0.03)
    model.eval()
    assert (model.classify(regions) == 63).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"long_term": "men"}, "known are avg, max, nl|did you mean"),
        ({"time_pool": "avg"}, "mean"),
        ({"window": 0}, "window is 0"),
        ({"bins": 0}, "bins 0"),
        ({"samples": -1}, "samples -1"),
        ({"long_term": "nl", "long_term_layers": 0}, "long_term_layers 0"),
        ({"long_term": "nl", "long_term_dropout": 1.0}, "long_term_dropout 1.0"),
        ({"dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, text):
    with torch.device("meta"), pytest.raises(UsageError, match=text) as error:
        build("slowonly_r50_det", 5, **{**SMALL, **settings})
    assert error.value.code == "BAD_VALUE"


def test_boxes_and_banks_that_do_not_fit_are_refused():
    clip = torch.zeros(2, 3, 4, 32, 32)
    plain, model = (build("slowonly_r50_det", 5, **SMALL, long_term=kind) for kind in (None, "avg"))
    none, turned, bank = torch.zeros(0, 4), BOX[:, [2, 1, 0, 3]], torch.zeros(3, 8, 256)
    for code, network, given in (
        ("BOXES", plain, ([BOX],)),
        ("BOXES", plain, ([BOX, torch.zeros(0)],)),
        ("BOXES", plain, ([BOX, BOX.int()],)),
        ("BOXES", plain, ([BOX, turned],)),
        ("BOXES", plain, ([BOX, BOX * np.nan],)),
        ("BANK", plain, ([BOX, none], bank)),
        ("BANK", model, ([BOX, none],)),
        ("BANK", model, ([BOX, BOX], bank)),
        ("BANK", model, ([BOX, none], bank[:, :4])),
        ("BANK", model, ([BOX, none], bank[:, :, :4])),
    ):
        with pytest.raises(UsageError) as error:
            network(clip, *given)
        assert error.value.code == code
    assert model(clip, [BOX, none], bank.half()).shape == (3, 5)


def test_detectors_are_named_after_recognizers_and_have_their_parameters():
    for name in DETECTORS:
        recognizer = name.removesuffix("_det")
        with torch.device("meta"):
            style = {"style": "mmaction2"} if "fast" in name else {}
            detector, model = build(name, 400), build(recognizer, 400, **style)
        assert isinstance(detector, Detector)
        assert recognizer in MODELS
        shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (detector, model)]
        assert shapes[0] == shapes[1]
