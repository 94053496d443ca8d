"""Weights go into the network they belong to, all or none."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from marey.errors import WeightsError
from marey.models import build
from marey.weights.load import load_weights
from tests.oracles import (
    ALL_BLOCKS,
    BLOCKS,
    ZOO_NON_LOCAL,
    checksum,
    drawn_case,
    drawn_input,
    filled,
    load_case,
    mmaction_table,
    relative_error,
    torchvision_table,
)
from tests.weights.files import AsNamed, as_0x, as_1x, as_bare, as_parallel, tiny

CASES = Path(__file__).parents[1] / "models" / "oracles"
INFLATION = load_case(Path(__file__).parent / "oracles" / "inflation.json")
R18 = tuple((s, b) for s in (1, 2, 3, 4) for b in (0, 1))
EVERY_SECOND = tuple((s, b) for s, n in enumerate(BLOCKS[101], 1) for b in range(0, n, 2))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def refused(model, weights, code="WEIGHTS_MISMATCH"):
    """The message with which the weights are refused, the model being left as it was."""
    before = state(model)
    with pytest.raises(WeightsError) as error:
        load_weights(model, weights)
    assert error.value.code == code
    assert unchanged(model, before)
    return error.value.message


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [as_0x, as_1x, as_parallel, as_bare])
@torch.inference_mode()
def test_a_published_network_computes_the_same_from_every_wrapping(tmp_path, wrap, legacy):
    case = load_case(CASES / "tsm_temporal_pool_r50_8seg.json")
    weights, clip = drawn_case(case)
    torch.save(
        wrap(weights), tmp_path / "file.pth", pickle_module=AsNamed if wrap is as_1x else pickle,
        _use_new_zipfile_serialization=not legacy,
    )  # fmt: skip
    model = build(case["model"], **case["overrides"]).eval()
    report = load_weights(model, tmp_path / "file.pth")
    assert (report.source, report.loaded, report.head, report.left_out, report.fresh) == (
        "mmaction2", len(weights), "loaded", {}, ())  # fmt: skip
    assert relative_error(model(clip), case["logits"]) < 1e-5


@pytest.mark.parametrize(
    ("name", "overrides", "table"),
    [
        ("tsn_r18", {}, {"depth": 18}),
        ("tsn_r34", {}, {"depth": 34}),
        ("tsn_r152", {}, {"depth": 152}),
        ("tsm_r18", {}, {"depth": 18, "shifted": R18}),
        ("tsm_r101", {}, {"depth": 101, "shifted": EVERY_SECOND}),
        ("slowonly_r101", {}, {"depth": 101, "time": (1, 1, 3, 3)}),
        ("tsm_r50", {"non_local": "gaussian"},
         {"depth": 50, "shifted": ALL_BLOCKS, "non_local": ZOO_NON_LOCAL, "mode": "gaussian"}),
        ("tsm_r50", {"non_local": "dot_product", "temporal_pool": True},
         {"depth": 50, "shifted": ALL_BLOCKS, "non_local": ZOO_NON_LOCAL, "pooled": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_every_tensor_of_a_file_fills_exactly_one_of_the_network(name, overrides, table):
    model = build(name, 7, width=8, **overrides)
    weights = filled(mmaction_table(**table, classes=7, width=8))
    report = load_weights(model, weights)
    assert report.loaded == len(weights) == len(model.state_dict())
    assert (report.head, report.left_out, report.fresh) == ("loaded", {}, ())
    assert torch.equal(model.trunk.stem.conv.weight, weights["backbone.conv1.conv.weight"])
    assert torch.equal(model.head.bias, weights["cls_head.fc_cls.bias"])
    last = next(v for n, v in weights.items() if "layer3" in n and "1.conv2.bn.running_var" in n)
    assert torch.equal(model.trunk.stage3[1].conv2.bn.running_var, last)


def test_another_class_count_loads_all_but_the_classifier_and_says_so():
    model = build("tsn_r18", 400, width=8)
    before = state(model)
    report = load_weights(model, tiny(classes=174))
    assert report.head == "fresh"
    assert report.fresh == ("head.bias", "head.weight")
    assert report.left_out == dict.fromkeys(
        ("cls_head.fc_cls.weight", "cls_head.fc_cls.bias"), "174 classes in the file, 400 in the network"
    )
    assert torch.equal(model.head.weight, before["head.weight"])
    assert torch.equal(model.trunk.stage4[1].conv2.conv.weight, tiny()["backbone.layer4.1.conv2.conv.weight"])
    assert report.summary() == (
        f"{len(before) - 2} tensors loaded (mmaction2 layout), 2 of the file left out "
        "(174 classes in the file, 400 in the network); classifier fresh"
    )


def test_a_backbone_saved_alone_leaves_the_classifier_fresh():
    weights = {n.removeprefix("backbone."): v for n, v in tiny().items() if n.startswith("backbone.")}
    model = build("tsn_r18", 400, width=8)
    report = load_weights(model, weights)
    assert (report.source, report.head, report.loaded) == ("mmaction2", "fresh", len(weights))


def test_counters_that_old_files_lack_stay_and_are_named():
    weights = {n: v for n, v in tiny().items() if "num_batches" not in n}
    report = load_weights(build("tsn_r18", 400, width=8), weights)
    assert len(report.fresh) == 20
    assert all(name.endswith("num_batches_tracked") for name in report.fresh)
    assert report.head == "loaded"


def test_constants_of_the_preprocessing_are_left_out_with_their_reason():
    weights = tiny() | {"data_preprocessor.mean": torch.zeros(3), "data_preprocessor.std": torch.ones(3)}
    report = load_weights(build("tsn_r18", 400, width=8), weights)
    assert set(report.left_out) == {"data_preprocessor.mean", "data_preprocessor.std"}


def test_half_precision_files_and_arrays_become_the_networks_type():
    halves = {n: v.half().numpy() if v.is_floating_point() else v.numpy() for n, v in tiny().items()}
    model = build("tsn_r18", 400, width=8)
    load_weights(model, halves)
    assert model.trunk.stem.conv.weight.dtype == torch.float32
    assert relative_error(model.trunk.stem.conv.weight.detach(), tiny()["backbone.conv1.conv.weight"]) < 1e-3


def test_our_own_state_dict_goes_back_in():
    torch.manual_seed(0)
    one, other = build("slowonly_r50", 3, width=8), build("slowonly_r50", 3, width=8)
    report = load_weights(other, one.state_dict())
    assert (report.source, report.head) == ("marey", "loaded")
    assert unchanged(other, one.state_dict())


def without(*names):
    return {name: value for name, value in tiny().items() if name not in names}


def but(**changes):
    """The weights with some of backbone.conv1, or others under their full names, replaced."""
    full = {name.replace("__", "."): value for name, value in changes.items()}
    return tiny() | {f"backbone.conv1.{n}" if n[:2] in ("co", "bn") else n: v for n, v in full.items()}


WRONG = {
    "a missing tensor": (
        without("backbone.layer2.0.conv1.conv.weight"),
        "1 missing (trunk.stage2.0.conv1.conv.weight)",
    ),
    "half a classifier": (without("cls_head.fc_cls.bias"), "1 missing (head.bias)"),
    "an unexpected tensor": (but(backbone__layer5__0__conv1__conv__weight=torch.zeros(2)), "1 unexpected"),
    "an unknown name": (but(neck__weight=torch.zeros(2)), "1 unexpected (neck.weight)"),
    "another shape": (but(conv__weight=torch.zeros(8, 3, 5, 5)), "[8, 3, 5, 5] for [8, 3, 7, 7]"),
    "another type": (but(bn__bias=torch.zeros(8, dtype=torch.int64)), "1 of another shape or kind"),
    "a sparse tensor": (but(bn__bias=torch.zeros(8).to_sparse()), "1 of another shape or kind"),
    "a tensor without memory": (but(bn__bias=torch.zeros(8, device="meta")), "1 of another shape or kind"),
    "a wider classifier": (but(cls_head__fc_cls__weight=torch.zeros(174, 99)), "[174, 99] for [400, 64]"),
    "a classifier in two sizes": (but(cls_head__fc_cls__bias=torch.zeros(174)), "1 missing (head.bias)"),
    "the same tensor twice": (tiny() | {"conv1.bn.bias": torch.zeros(8)}, "both mean 'trunk.stem.bn.bias'"),
    "a deeper network": (filled(mmaction_table(34, width=8)), "unexpected"),
    "a 3D network": (filled(mmaction_table(50, width=8, time=(1, 1, 3, 3))), "of another shape"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_files_that_do_not_fit_are_refused_whole(kind):
    weights, text = WRONG[kind]
    assert text in refused(build("tsn_r18", 400, width=8), weights)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(bad):
    weights = tiny()
    weights["backbone.layer3.1.conv2.bn.running_mean"][3] = bad
    message = refused(build("tsn_r18", 400, width=8), weights, "WEIGHTS_NOT_FINITE")
    assert "trunk.stage3.1.conv2.bn.running_mean" in message


def test_a_file_of_no_known_layout_is_refused_with_what_it_holds():
    message = refused(build("tsn_r18", 2, width=8), {"encoder.w": torch.zeros(2, 2)}, "WEIGHTS_LAYOUT")
    assert "'encoder.w'" in message
    assert "torchvision" in message


def test_what_is_shifted_must_be_the_same_in_file_and_network():
    tsm, tsn = build("tsm_r18", 400, width=8), build("tsn_r18", 400, width=8)
    assert "6 more against nothing" in refused(tsn, tiny(shifted=R18))
    assert "shifted in time: nothing against trunk.stage1.0.conv1" in refused(tsm, tiny())
    assert "trunk.stage1.1.conv1" in refused(tsm, tiny(shifted=R18[:1]))
    all_shifted = tuple((s, b) for s, n in enumerate(BLOCKS[101], 1) for b in range(n))
    weights = filled(mmaction_table(101, width=8, classes=3, shifted=all_shifted))
    assert "shifted in time" in refused(build("tsm_r101", 3, width=8), weights)


def test_temporal_pooling_must_be_the_same_in_file_and_network():
    pooled = filled(mmaction_table(18, width=8, shifted=R18, pooled=True))
    assert "temporal_pool" in refused(build("tsm_r18", width=8), pooled)
    assert "temporal_pool" in refused(build("tsm_r18", width=8, temporal_pool=True), tiny(shifted=R18))
    assert load_weights(build("tsm_r18", width=8, temporal_pool=True), pooled).head == "loaded"


def test_non_local_blocks_must_be_the_same_in_file_and_network():
    with_blocks = filled(mmaction_table(50, width=8, classes=3, time=(1, 1, 3, 3), non_local=ZOO_NON_LOCAL))
    assert "non_local=" in refused(build("slowonly_r50", 3, width=8), with_blocks)
    gaussian = build("slowonly_r50", 3, width=8, non_local="gaussian")
    assert "20 unexpected" in refused(gaussian, with_blocks)
    fewer = build("slowonly_r50", 3, width=8, non_local="dot_product", non_local_blocks=((), (0,), (), ()))
    assert "non_local=" in refused(fewer, with_blocks)


@torch.inference_mode()
def test_non_local_blocks_that_attend_to_all_positions_load_into_their_like_only():
    """mmcv names what it pools `g.0` and `phi.0`; the tensors are the same without."""
    table = {"depth": 50, "width": 8, "classes": 3, "time": (1, 1, 3, 3), "non_local": ZOO_NON_LOCAL}
    whole, halved = (filled(mmaction_table(**table, sub_sample=pools)) for pools in (False, True))
    one = build("slowonly_r50", 3, width=8, non_local="embedded_gaussian")
    other = build("slowonly_r50", 3, width=8, non_local="embedded_gaussian", non_local_sub_sample=False)
    assert load_weights(other, whole).loaded == len(whole)
    assert "non_local_sub_sample=" in refused(other, halved)
    assert "non_local_sub_sample=" in refused(one, whole)
    load_weights(one, {n.replace(".g.", ".g.0.").replace(".phi.", ".phi.0."): v for n, v in whole.items()})
    clip = drawn_input((1, 3, 2, 64, 64), 0)
    assert relative_error(one.eval()(clip), other.eval()(clip)) > 1e-3


@pytest.mark.parametrize("name", INFLATION["targets"])
@torch.inference_mode()
def test_2d_weights_become_what_the_original_makes_of_them(name):
    want = INFLATION["targets"][name]
    table = torchvision_table(50)
    assert checksum(table) == INFLATION["table_crc32"]
    model = build(name).eval()
    report = load_weights(model, filled(table, INFLATION["salt"]))
    assert (report.source, report.head, set(report.left_out)) == (
        "torchvision",
        "fresh",
        {"fc.weight", "fc.bias"},
    )
    own = {n: v for n, v in model.state_dict().items() if "num_batches" not in n and not n.startswith("head")}
    assert len(own) == want["tensors"]
    assert sum(v.double().sum().item() for v in own.values()) == pytest.approx(want["sum"], rel=1e-6)
    assert sum(v.double().abs().sum().item() for v in own.values()) == pytest.approx(
        want["abs_sum"], rel=1e-6
    )
    for theirs, figures in want["selected"].items():
        ours = theirs.replace("layer", "stage").replace(".net.", ".").replace("downsample", "shortcut")
        value = own[f"trunk.{ours if 'stage' in ours else ours.replace('conv1.', 'stem.')}"]
        assert value.double().sum().item() == pytest.approx(figures["sum"], rel=1e-6, abs=1e-4)
        assert value.flatten()[:4].tolist() == pytest.approx(figures["first4"], rel=1e-6)
    clip = drawn_input(want["input"]["shape"], want["input"]["seed"])
    maps = model.features(clip if clip.ndim == 5 else clip[None].transpose(1, 2))
    maps = maps if clip.ndim == 5 else maps[0].transpose(0, 1)
    assert list(maps.shape) == want["output"]["shape"]
    assert relative_error(maps.flatten()[:8], want["output"]["first8"]) < 1e-4
    assert (maps.mean().item(), maps.std().item()) == pytest.approx(
        (want["output"]["mean"], want["output"]["std"]), rel=1e-5
    )


def test_2d_weights_leave_non_local_blocks_as_they_are_and_name_them():
    model = build("slowonly_r50", width=64, non_local="gaussian")
    weights = {n: v for n, v in filled(torchvision_table(50)).items() if "num_batches" not in n}
    report = load_weights(model, weights)
    assert any(".non_local.g.weight" in name for name in report.fresh)
    assert not model.trunk.stage2[0].non_local.out.bn.weight.any()


def test_temporal_kernels_hold_the_2d_weight_in_equal_parts():
    model, weights = build("slowonly_r50"), filled(torchvision_table(50))
    load_weights(model, weights)
    got, flat = model.trunk.stage4[1].conv1.conv.weight.detach(), weights["layer4.1.conv1.weight"]
    assert all(np.allclose(got[:, :, t].numpy(), flat.numpy() / 3, rtol=1e-6) for t in range(3))
    assert torch.equal(model.trunk.stage1[1].conv1.conv.weight[:, :, 0], weights["layer1.1.conv1.weight"])
