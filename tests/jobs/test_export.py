"""`marey export`: every kind of network, its logits for every batch, nothing half-written, and predict."""

import json
import sys
from copy import deepcopy

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from marey import cli
from marey.errors import EnvironmentFault, MareyError, UsageError, WeightsError
from marey.jobs import export as module
from marey.jobs.export import KINDS, export
from marey.jobs.predict import predict
from marey.models import list_models
from marey.models.shell import shell
from marey.models.tsm import TimeShift
from marey.video.preprocess import Preprocess
from marey.video.synthetic import render_moving_shapes
from marey.weights import onnx as reading
from marey.weights.create import create_model, open_model
from marey.weights.native import save_checkpoint
from marey.weights.onnx import open_onnx

SWIN = {"channels": 12, "depths": (2, 1), "heads": (2, 3), "window": (4, 3, 3)}
MVIT = {"frames": 4, "crop": 64, "channels": 8, "depth": 2, "starts": (1,)}
UNIFORMER = {"depths": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "head_width": 8}
W = {"width": 8}
HERE = {"non_local": "dot_product", "non_local_blocks": ((), (0,), (1,), ())}
NETWORKS = [  # one of each kind, and what changes its operations
    ("csn_ir_r50", W),
    ("r2plus1d_r34", W),
    ("slowfast_r50", {**W, "crop": 32}),  # four places
    ("slowonly_r50", {**W, "non_local": "embedded_gaussian"}),
    ("tsn_r18", W),
    ("tsm_r18", {**W, "segments": 4}),
    ("tsm_r18", {**W, "segments": 4, "temporal_pool": True, **HERE}),
    ("swin3d_t", SWIN),
    ("mvit_b_16x4", MVIT),
    ("mvit_v2_s", MVIT),
    ("uniformer_s", UNIFORMER),
    ("uniformer_s", {**UNIFORMER, "split": True}),
]
FREE = [("csn_ir_r50", W, "9x64x64"), ("uniformer_s", UNIFORMER, "4x64x64")]


def network(name, overrides, classes=5):
    """A small one whose norms and classifier do something."""
    torch.manual_seed(0)
    model = create_model(name, classes, **overrides).eval()
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
    nn.init.normal_(model.head.weight)
    nn.init.normal_(model.head.bias)
    return model


def clip(*shape):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(7)).permute(0, 4, 1, 2, 3)


def close(got, want, tolerance=1e-4):
    return got.shape == want.shape and (got - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize(("name", "overrides"), NETWORKS, ids=str)
@torch.inference_mode()
def test_onnxruntime_gives_the_logits_of_every_kind_of_network(name, overrides, tmp_path):
    model = network(name, overrides)
    done = export(model, tmp_path / "x.onnx", size="4x64x64")
    assert done.input == ("batch", "3", "4", "64", "64")
    assert 0 < done.relative <= 1e-4
    opened = open_model(tmp_path / "x.onnx")
    for batch in (1, 2, 5):
        assert close(opened(clip(batch, 4, 64, 64)), model(clip(batch, 4, 64, 64)))
    proto = onnx.load(tmp_path / "x.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert not {node.domain for node in proto.graph.node} - {""}, "operators that not every runtime has"
    kinds = {node.op_type for node in proto.graph.node}
    assert "ScatterND" not in kinds, "what shifted channels become where they are written into slices"
    assert name == "uniformer_s" or "BatchNormalization" not in kinds, (
        "norms are folded, but those before sums"
    )


@pytest.mark.parametrize(("name", "overrides"), [NETWORKS[i] for i in (5, 9)], ids=str)
@torch.inference_mode()
def test_torch_gives_them_too(name, overrides, tmp_path):
    model = network(name, overrides)
    done = export(model, tmp_path / "x.pt2", format="torch", size="4x64x64")
    assert done.relative <= 1e-4
    files = {"marey": ""}
    program = torch.export.load(tmp_path / "x.pt2", extra_files=files).module()
    for batch in (1, 2, 5):
        assert close(program(clip(batch, 4, 64, 64)), model(clip(batch, 4, 64, 64)))
    assert json.loads(files["marey"])["model"] == name


@pytest.mark.parametrize(("name", "overrides", "size"), FREE, ids=str)
@torch.inference_mode()
def test_lengths_and_sizes_can_be_left_free(name, overrides, size, tmp_path):
    model = network(name, overrides)
    done = export(model, tmp_path / "x.onnx", size=size, any_frames=True, any_size=True)
    assert done.input == ("batch", "3", "frames", "height", "width")
    opened = open_onnx(tmp_path / "x.onnx")
    for shape in ((1, 9, 64, 64), (3, 14, 70, 110), (2, 2, 32, 40)):  # the last ones torch would refuse
        assert close(opened(clip(*shape)), model(clip(*shape)))
    with pytest.raises(MareyError, match="clip of 4 x 0 x 8") as error:
        opened(clip(1, 4, 0, 8))
    assert error.value.code == "EXPORT_FAILED"


def test_what_a_network_does_not_allow_is_said_before_anything_is_done(tmp_path):
    def refused(*given, **options):
        with pytest.raises(UsageError) as error:
            export(*given, tmp_path / "x.onnx", **options)
        assert error.value.code == "EXPORT_UNSUPPORTED"
        assert error.value.message.startswith("not supported: ")
        return error.value.message

    assert "segments" in refused(create_model("tsm_r18", 5, **W), any_frames=True)
    assert "windows" in refused(create_model("swin3d_t", 5, **SWIN), any_size=True)
    assert "begins at 9" in refused(create_model("csn_ir_r50", 5, **W), size="8x64x64", any_frames=True)
    other = nn.Linear(3, 3)
    assert "Linear does not take clips alone" in refused(other)
    assert not list(tmp_path.iterdir())


def test_every_network_that_takes_clips_is_of_a_kind_that_can_be_exported():
    kinds = {name: type(shell(name)) for name in list_models()}
    assert [name for name in list_models() if kinds[name] not in KINDS] == [
        name for name in list_models() if name == "nextvlad" or name.endswith("_det")
    ]


def test_an_export_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    out = tmp_path / "x.onnx"
    out.write_bytes(b"what was there")
    fold = module.folded

    def changed(model):
        copy = fold(model)
        copy.head.bias.data[0] += 0.01 * model(clip(1, 2, 64, 64)).abs().max()
        return copy

    monkeypatch.setattr(module, "folded", changed)
    model = network("tsn_r18", W)
    with pytest.raises(MareyError) as error:
        export(model, out, size="2x64x64", force=True)
    assert (error.value.code, error.value.exit_code) == ("EXPORT_DIFFERS", 4)

    def broken(model):
        copy = fold(model)
        copy.head.forward = lambda x: x[:, : int(x.sum())]  # depends on values
        return copy

    monkeypatch.setattr(module, "folded", broken)
    with pytest.raises(MareyError) as error:
        export(model, out, size="2x64x64", force=True)
    assert (error.value.code, error.value.exit_code) == ("EXPORT_FAILED", 4)
    with pytest.raises(UsageError) as error:
        export(model, out, size="2x64x64")
    assert error.value.code == "OUT_EXISTS"
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    assert out.read_bytes() == b"what was there"
    for name, options, code in (
        ("x.pt", {}, "OUT_SUFFIX"),
        ("x.onnx", {"format": "torch"}, "OUT_SUFFIX"),
        ("x.trt", {"format": "tensorrt"}, "UNKNOWN_NAME"),
        ("y.onnx", {"size": "2x64"}, "INPUT_SIZE"),
    ):
        with pytest.raises(UsageError) as error:
            export(model, tmp_path / name, **options)
        assert error.value.code == code


def test_a_size_that_the_network_does_not_take_is_its_own_error(tmp_path):
    with pytest.raises(UsageError) as error:
        export(create_model("tsm_r18", 5, **W, segments=4), tmp_path / "x.onnx", size="6x64x64")
    assert error.value.code == "CLIP_LENGTH"
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for call in (lambda: export("tsn_r18", tmp_path / "x.onnx"), lambda: open_model("tests/x.onnx")):
        with pytest.raises(EnvironmentFault, match=r"pip install 'marey\[export\]'") as error:
            call()
        assert (error.value.code, error.value.exit_code) == ("EXTRA_MISSING", 5)


@torch.inference_mode()
def test_the_shift_of_exported_networks_is_the_shift():
    x = torch.randn(12, 17, 3, 5)
    for forth in (True, False):
        shift = TimeShift(4, 8)
        want = shift(x, forth)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            assert torch.equal(shift(x, forth), want)


# Predicting with an export -----------------------------------------------------------------------------

PLAN = Preprocess(frames=4, sampling="segments", short_side=64, crop=64)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """best.safetensors, made.onnx of it, and clip.mp4."""
    folder = tmp_path_factory.mktemp("exported")
    render_moving_shapes(folder / "clips", train=1, val=1, test=1, size=(80, 64), frames=20)
    next(folder.glob("clips/test/*/*.mp4")).rename(folder / "clip.mp4")
    save_checkpoint(
        folder / "best.safetensors",
        network("tsm_r18", {**W, "segments": 4}, 3),
        preprocess=PLAN,
        class_names=("left", "right", "up"),
        recipe={"data": {"multi_label": True}},
        metrics={"top1": 0.5},
    )
    export(open_model(folder / "best.safetensors"), folder / "made.onnx")
    return folder


def run(capsys, *words):
    """(exit code, stdout, stderr) of a command line."""
    old, sys.argv = sys.argv, ["marey", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv = old
    return end.value.code, *capsys.readouterr()


def test_the_command_writes_a_file_that_predict_uses_like_the_checkpoint(place, capsys):
    out = place / "x.onnx"
    code, text, err = run(capsys, "export", place / "best.safetensors", "--out", out, "--json")
    told = json.loads(text)
    assert (code, err) == (0, "")
    assert (told["model"], told["input"], told["class_names"]) == (
        "tsm_r18",
        ["batch", "3", "4", "64", "64"],
        True,
    )
    assert told["bytes"] == out.stat().st_size
    assert 0 < told["relative"] <= 1e-4 and min(told["milliseconds"]) > 0
    want, got = (list(predict(place / name, place / "clip.mp4")) for name in ("best.safetensors", "x.onnx"))
    assert [c.name for c in got[0].classes] == [c.name for c in want[0].classes]
    assert np.allclose([c.score for c in got[0].classes], [c.score for c in want[0].classes], rtol=1e-4)
    assert sum(c.score for c in got[0].classes) != pytest.approx(1, abs=1e-3), "several labels: sigmoids"
    card = {entry.key: entry.value for entry in onnx.load(out).metadata_props}["marey"]
    model = open_model(place / "best.safetensors")
    told = json.loads(card)
    assert (told["class_names"], told["metrics"]) == (["left", "right", "up"], {"top1": 0.5})
    assert told["sha256"] == model.metadata["sha256"]
    opened = open_model(out)
    assert (opened.preprocess, opened.spec) == (model.preprocess, model.spec)
    code, text, _ = run(capsys, "export", place / "best.safetensors", "--out", out, "--force", "--any-size")
    assert code == 0
    assert "input batch x 3 x 4 x height x width" in text
    assert "times the speed" in text
    code, text, _ = run(capsys, "predict", place / "clip.mp4", "--checkpoint", out, "--every", "0.3s")
    assert code == 0
    assert len(text.splitlines()) > 1


def test_what_an_export_cannot_do_is_said(place, capsys, tmp_path):
    out = tmp_path / "x.onnx"
    model = open_model(place / "best.safetensors")
    export(model, out, size="4x32x32")
    opened = open_model(out)
    assert deepcopy(opened) is opened
    for call, code in (
        (lambda: opened(clip(1, 4, 64, 64)), "CLIP_SIZE"),
        (lambda: opened.embed(clip(1, 4, 32, 32)), "EXPORT_LOGITS"),
        (lambda: opened.features(clip(1, 4, 32, 32)), "EXPORT_LOGITS"),
        (lambda: export(out, tmp_path / "y.onnx"), "EXPORT_UNSUPPORTED"),
    ):
        with pytest.raises(UsageError) as error:
            call()
        assert error.value.code == code
    (seen,) = predict(out, place / "clip.mp4")
    assert (seen.code, "exported for 4 x 32 x 32" in seen.message) == ("CLIP_SIZE", True)
    code, _, err = run(capsys, "bench", out)
    assert (code, "EXPORT_LOGITS" in err) == (2, True)
    export(model, tmp_path / "x.pt2", format="torch")
    with pytest.raises(WeightsError, match=r"x\.pt2") as error:
        open_model(tmp_path / "x.pt2")
    assert error.value.code == "WEIGHTS_UNSAFE"


def made_of(path, out, change):
    """The ONNX file, changed."""
    proto = onnx.load(path)
    change(proto)
    onnx.save(proto, out)


def outside(proto):
    """The first weight lies in a file elsewhere."""
    tensor = next(t for t in proto.graph.initializer if t.raw_data)
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", str(size))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def renamed(proto):
    next(node for node in proto.graph.node if "logits" in node.output).output[0] = "other"
    proto.graph.output[0].name = "other"


def more_names(proto):
    card = json.loads(proto.metadata_props[0].value)
    proto.metadata_props[0].value = json.dumps(card | {"class_names": ["a"] * 4})


def more_classes(proto):
    card = json.loads(proto.metadata_props[0].value)
    proto.metadata_props[0].value = json.dumps(card | {"num_classes": 4, "class_names": None})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (outside, "WEIGHTS_DAMAGED"),
        (renamed, "WEIGHTS_CARD"),
        (more_names, "WEIGHTS_CARD"),
        (more_classes, "WEIGHTS_CARD"),
        (lambda proto: proto.ClearField("metadata_props"), "WEIGHTS_CARD"),
        (lambda proto: setattr(proto.metadata_props[0], "value", "{}"), "WEIGHTS_CARD"),
    ],
)
def test_files_of_others_are_refused(place, tmp_path, change, code):
    (tmp_path / "deep").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 20))
    made_of(place / "made.onnx", tmp_path / "deep" / "y.onnx", change)
    with pytest.raises(WeightsError) as error:
        open_onnx(tmp_path / "deep" / "y.onnx")
    assert error.value.code == code


def test_what_is_no_onnx_file_is_damaged_and_what_is_not_there_not_found(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"<html>" * 100)
    for name, code in (("x.onnx", "WEIGHTS_DAMAGED"), ("y.onnx", "WEIGHTS_NOT_FOUND")):
        with pytest.raises(WeightsError) as error:
            reading.open_onnx(tmp_path / name)
        assert error.value.code == code
