"""VMZ's files: both spellings of every name, and the same network from either."""

import hashlib
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from marey.errors import WeightsError
from marey.models import build
from marey.weights.create import create_model
from marey.weights.load import class_count, load_weights, recognise
from marey.weights.reading import read_weights
from marey.weights.vmz import spell
from tests.oracles import (
    caffe2_name,
    drawn_case,
    filled,
    load_case,
    mmaction_table,
    r2plus1d_table,
    relative_error,
    videoresnet_name,
)

NAMES = load_case(Path(__file__).parent / "oracles" / "vmz_names.json")
CASES = Path(__file__).parents[1] / "models" / "oracles"
NETWORKS = {
    "ir_csn_50": ("csn_ir_r50", 50, "ir"),
    "ip_csn_50": ("csn_ip_r50", 50, "ip"),
    "ir_csn_101": ("csn_ir_r101", 101, "ir"),
    "ip_csn_101": ("csn_ip_r101", 101, "ip"),
    "ir_csn_152": ("csn_ir_r152", 152, "ir"),
    "ip_csn_152": ("csn_ip_r152", 152, "ip"),
    "r2plus1d_34": ("r2plus1d_r34", 34, None),
    "r2plus1d_152": ("r2plus1d_r152", 152, None),
}


def tables(key, **options):
    """(Caffe2's name, VMZ's, MMAction2's or "", shape) of every tensor; counters have no name in Caffe2."""
    _, depth, csn = NETWORKS[key]
    table = mmaction_table(depth, csn=csn, **options) if csn else r2plus1d_table(depth, **options)
    for name, shape in table.items():
        vmz = videoresnet_name(name, csn) if csn else name
        yield caffe2_name(vmz, depth, csn, options.get("classes", 400)), vmz, name if csn else "", shape


def as_blobs(weights, depth, csn, classes=400):
    """The weights as a Caffe2 file holds them: arrays without counters, by Caffe2's names."""
    names = {name: caffe2_name(name, depth, csn, classes) for name in weights}
    return {blob: weights[name].numpy() for name, blob in names.items() if blob}


@pytest.mark.parametrize("key", sorted(NAMES.keys() - {"source", "digest"}))
def test_the_names_are_those_that_the_projects_own_converter_gives(key):
    lines = sorted(" ".join(filter(None, row[:3])) + "\n" for row in tables(key) if row[0])
    assert len(lines) == NAMES[key]["entries"]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == NAMES[key]["digest"]


@pytest.mark.parametrize("key", NETWORKS)
def test_every_spelling_of_a_tensor_means_the_same_of_ours(key):
    rows = [row for row in tables(key, classes=5) if row[0]]
    value = torch.zeros(1)
    ours = []
    for column in (0, 1, 2)[: 3 if NETWORKS[key][2] else 2]:
        found = recognise({row[column]: value for row in rows})
        assert not found.unknown
        assert not found.left_out
        back = {theirs: name for name, theirs in found.filled.items()}
        ours.append([back[row[column]] for row in rows])
    assert ours[0] == ours[1] == ours[-1]
    with torch.device("meta"):
        model = build(NETWORKS[key][0])
    assert set(ours[0]) == {name for name in model.state_dict() if "num_batches" not in name}


@pytest.mark.parametrize("case", ["vmz_ipcsn_r50", "vmz_r2plus1d_r34"])
@torch.inference_mode()
def test_a_pickle_of_python_2_gives_the_logits_of_the_original(tmp_path, case):
    case = load_case(CASES / f"{case}.json")
    weights, clip = drawn_case(case)
    blobs = as_blobs(weights, case["table"]["depth"], case["table"].get("csn"))
    (tmp_path / "file.pkl").write_bytes(pickle2({"blobs": blobs}, 2))
    model = build(case["model"]).eval()
    report = load_weights(model, tmp_path / "file.pkl")
    assert (report.source, report.head, report.loaded) == ("vmz", "loaded", len(blobs))
    assert all(name.endswith("num_batches_tracked") for name in report.fresh)
    assert relative_error(model(clip), case["logits"]) < 1e-5


@pytest.mark.parametrize("protocol", [0, 1, 2])
@pytest.mark.parametrize("wrapped", [True, False], ids=["blobs", "bare"])
def test_every_protocol_of_python_2_gives_the_arrays(tmp_path, wrapped, protocol):
    weights = filled({vmz: shape for _, vmz, _, shape in tables("ip_csn_50", classes=3, width=8)})
    blobs = as_blobs(weights, 50, "ip", 3)
    (tmp_path / "file.pkl").write_bytes(pickle2({"blobs": blobs} if wrapped else blobs, protocol))
    got, _ = read_weights(tmp_path / "file.pkl")
    assert got.keys() == blobs.keys()
    assert all(np.array_equal(got[name].numpy(), blobs[name]) for name in blobs)


@pytest.mark.parametrize("name", ["ircsn_r50", "ircsn_r152", "ipcsn_r152"])
@torch.inference_mode()
def test_mmaction2s_weights_under_vmzs_names_give_the_logits_of_the_original(tmp_path, name):
    case = load_case(CASES / f"{name}.json")
    weights, clip = drawn_case(case)
    depth, csn = case["table"].values()
    torch_names = {videoresnet_name(n, csn): v for n, v in weights.items()}
    torch.save(torch_names, tmp_path / "file.pth")
    (tmp_path / "file.pkl").write_bytes(pickle.dumps({"blobs": as_blobs(torch_names, depth, csn)}, 2))
    for file in ("file.pth", "file.pkl"):
        model = build(case["model"]).eval()
        assert load_weights(model, tmp_path / file).source == "vmz"
        assert relative_error(model(clip), case["logits"]) < 1e-5


@pytest.mark.parametrize("classes", [359, 487])
@pytest.mark.parametrize("caffe2", [True, False], ids=["pkl", "pth"])
def test_other_data_sets_bring_their_class_count(tmp_path, classes, caffe2):
    weights = filled({vmz: shape for _, vmz, _, shape in tables("ir_csn_50", classes=classes, width=8)})
    blobs = as_blobs(weights, 50, "ir", classes)
    assert f"last_out_L{classes}_w" in blobs
    file = tmp_path / ("file.pkl" if caffe2 else "file.pth")
    file.write_bytes(pickle.dumps(blobs, 2)) if caffe2 else torch.save(weights, file)
    assert class_count(weights) == classes
    model = create_model("csn_ir_r50", weights=file, width=8)
    assert (model.num_classes, model.load_report.head) == (classes, "loaded")
    assert torch.equal(model.head.bias, weights["fc.bias"])
    other = create_model("csn_ir_r50", 400, weights=file, width=8)
    assert other.load_report.head == "fresh"
    assert f"{classes} classes in the file, 400 in the network" in other.load_report.summary()


def test_running_blocks_and_endings_are_spelt_out():
    names = [f"comp_{i}_conv_1_w" for i in range(16)]
    spelt = spell(
        [*names, "comp_7_spatbn_2_middle_riv", "shortcut_projection_13_spatbn_rm", "last_out_L359_b"]
    )
    assert spelt["comp_0_conv_1_w"] == "stage1.0.conv_1.weight"
    assert spelt["comp_15_conv_1_w"] == "stage4.2.conv_1.weight"
    assert spelt["comp_7_spatbn_2_middle_riv"] == "stage3.0.spatbn_2_middle.running_var"
    assert spelt["shortcut_projection_13_spatbn_rm"] == "stage4.0.shortcut_spatbn.running_mean"
    assert spelt["last_out_L359_b"] == "last_out.bias"


@pytest.mark.parametrize(
    "change", [{"comp_16_conv_1_w": 1}, {"comp_0_conv_7_w": 1}, {"lr": 1}, {"comp_3_x": 1}]
)
def test_blobs_that_do_not_belong_are_refused(change):
    weights = filled({blob: shape for blob, _, _, shape in tables("ir_csn_50", classes=3, width=8) if blob})
    model = build("csn_ir_r50", 3, width=8)
    with pytest.raises(WeightsError) as error:
        load_weights(model, weights | dict.fromkeys(change, torch.zeros(2)))
    assert error.value.code == "WEIGHTS_MISMATCH"


def test_a_network_of_the_other_kind_is_refused_with_both():
    weights = filled({blob: shape for blob, _, _, shape in tables("ip_csn_50", classes=3, width=8) if blob})
    with pytest.raises(WeightsError, match=r"the file is CSN ip.*the network CSN ir"):
        load_weights(build("csn_ir_r50", 3, width=8), weights)
    with pytest.raises(WeightsError, match=r"the file is CSN ip.*the network R\(2\+1\)D"):
        load_weights(build("r2plus1d_r34", 3, width=8), weights)


def pickle2(blobs, protocol):
    """What Python 2's `pickle.dumps` writes for names and float32 arrays: byte strings, unescaped or not."""
    out = io.BytesIO()

    def put(data):
        out.write(data)

    def text(data):
        if protocol == 0:
            put(b"S" + repr(data).encode()[1:] + b"\n")
        elif len(data) < 256:
            put(b"U" + bytes([len(data)]) + data)
        else:
            put(b"T" + struct.pack("<i", len(data)) + data)

    def number(value):
        put(b"I%d\n" % value if protocol == 0 else b"J" + struct.pack("<i", value))

    def sized(items):
        put(b"(")
        for item in items:
            item()
        put(b"t")

    def array(value):
        put(b"cnumpy.core.multiarray\n_reconstruct\n")
        sized([lambda: put(b"cnumpy\nndarray\n"), lambda: sized([lambda: number(0)]), lambda: text(b"b")])
        put(b"R")
        sized(
            [
                lambda: number(1),
                lambda: sized([lambda n=n: number(n) for n in value.shape]),
                lambda: dtype(),
                lambda: put(b"I00\n" if protocol < 2 else b"\x89"),
                lambda: text(value.tobytes()),
            ]
        )
        put(b"b")

    def dtype():
        put(b"cnumpy\ndtype\n")
        sized([lambda: text(b"f4"), lambda: number(0), lambda: number(1)])
        put(b"R")
        sized([lambda: number(3), lambda: text(b"<"), *[lambda: put(b"N")] * 3, *[lambda: number(-1)] * 2,
               lambda: number(0)])  # fmt: skip
        put(b"b")

    def mapping(content):
        put(b"(d" if protocol == 0 else b"}")
        for name, value in content.items():
            text(name.encode())
            mapping(value) if isinstance(value, dict) else array(np.ascontiguousarray(value))
            put(b"s")

    if protocol == 2:
        put(b"\x80\x02")
    mapping(blobs)
    put(b".")
    return out.getvalue()
