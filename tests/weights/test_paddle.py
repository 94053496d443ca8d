"""Paddle's formats against files that Paddle 1.8.5 wrote, and NeXtVLAD's names against its network."""

import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from marey.errors import WeightsError
from marey.models.nextvlad import NeXtVLAD
from marey.weights.create import create_model, open_model
from marey.weights.detect import candidates
from marey.weights.load import load_weights
from marey.weights.paddle import NAMES, read_combined, read_folder
from marey.weights.reading import read_weights
from tests.models.test_nextvlad import case_of, videos, weight
from tests.oracles import relative_error

FOLDER = Path(__file__).parent / "oracles" / "paddle"
TINY = {"cluster_size": 16, "hidden_size": 64, "groups": 4, "gating_reduction": 4}
SHAPES = {
    "eigen_param": [6],
    "video_fc_expansion_w": [6, 4],
    "video_fc_expansion_b": [4],
    "video_cluster_weights2": [3, 2],
    "batch_norm_0.w_0": [4],
    "batch_norm_0.b_0": [4],
    "batch_norm_0.w_1": [4],
    "batch_norm_0.w_2": [4],
    "batch_norm_10.w_0": [3],
    "logits_clf_bias": [5],
}


def written(value):
    """A tensor as Paddle 1.x writes it."""
    description = b"\x08\x05" + b"".join(b"\x10" + varint(size) for size in value.shape)
    return bytes(16) + struct.pack("<i", len(description)) + description + value.astype("<f4").tobytes()


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The small network's weights in each format; the folder has no scales, as the early releases."""
    case, folder = case_of("network_small_eval"), tmp_path_factory.mktemp("paddle")
    values = {name: weight(name, shape).numpy() for name, (shape, _) in case["state_dict"].items()}
    (folder / "pickled.pdparams").write_bytes(pickle.dumps(values, protocol=2))
    (folder / "combined").write_bytes(b"".join(written(values[name]) for name in sorted(values)))
    (folder / "parts").mkdir()
    for name in sorted(values):
        (folder / "parts" / name).write_bytes(written(values[name]))
    with tarfile.open(folder / "parts.tar.gz", "w:gz") as archive:
        archive.add(folder / "parts", "nextvlad_youtube8m")
    return folder


@pytest.mark.parametrize("read", ["tiny.pdparams", "tiny_folder", "tiny_combined.pdparams"])
def test_what_paddle_wrote_is_read(read):
    path = FOLDER / read
    found = read_combined(path, list(SHAPES)) if "combined" in read else read_weights(path)[0]
    assert {name: list(value.shape) for name, value in found.items()} == SHAPES
    for name, value in found.items():
        np.testing.assert_array_equal(value.numpy(), weight(name, SHAPES[name], "fmt").numpy())


@pytest.mark.parametrize("name", ["pickled.pdparams", "combined", "parts", "parts.tar.gz"])
@torch.inference_mode()
def test_every_format_gives_the_published_logits(published, name):
    case = case_of("network_small_eval")
    model = NeXtVLAD(50, **TINY).eval()
    report = load_weights(model, published / name)
    assert (report.source, report.head, report.left_out) == ("paddle", "loaded", {})
    assert report.loaded == 42
    assert relative_error(model(*videos(case)), case["logits"]) < 5e-6


@pytest.mark.parametrize("name", ["pickled.pdparams", "combined", "parts", "parts.tar.gz"])
@torch.inference_mode()
def test_every_format_opens_without_being_told_its_sizes(published, name, capsys):
    case = case_of("network_small_eval")
    model = open_model(published / name)
    assert model.spec["overrides"] == TINY
    assert (model.preprocess, model.class_names, model.num_classes) == (None, None, 50)
    assert relative_error(model(*videos(case)), case["logits"]) < 5e-6
    assert "no class names" in capsys.readouterr().err


def test_sizes_of_other_networks_are_found_too():
    settings = {"rgb": 12, "audio": 6, "cluster_size": 5, "groups": 4, "expansion": 2, "hidden_size": 24}
    settings |= {"gating_reduction": 3, "audio_cluster_size": 3, "audio_groups": 2, "whitened": False}
    for options in (settings, {**settings, "audio": 0, "audio_cluster_size": None, "audio_groups": None}):
        (fit,) = candidates(NeXtVLAD(7, **options).state_dict())
        wanted = {key: value for key, value in options.items() if value is not None}
        assert {"groups": 8, "expansion": 2, **fit.overrides} == wanted


@torch.inference_mode()
def test_scales_that_a_file_lacks_are_those_of_youtube_8m(published, tmp_path):
    values, _ = read_weights(published / "parts")
    scale = values.pop("eigen_param")
    model = NeXtVLAD(50, **TINY)
    report = load_weights(model, values)
    assert report.loaded == 41
    assert "rgb.scale" in report.fresh
    assert not torch.equal(model.rgb.scale, scale)
    (tmp_path / "combined").write_bytes(b"".join(written(values[name].numpy()) for name in sorted(values)))
    assert sorted(read_weights(tmp_path / "combined")[0]) == sorted(set(NAMES) - {"eigen_param"})


def test_the_class_count_is_that_of_the_file(published):
    model = create_model("nextvlad", weights=published / "combined", **TINY)
    assert (model.num_classes, model.load_report.head) == (50, "loaded")
    other = create_model("nextvlad", 7, weights=published / "combined", **TINY)
    assert other.load_report.head == "fresh"
    with pytest.raises(WeightsError) as error:
        create_model("nextvlad", weights=published / "combined", **TINY | {"hidden_size": 32})
    assert error.value.code == "WEIGHTS_MISMATCH"


def test_square_matrices_are_turned_too(published):
    """With as many inputs as outputs a shape does not tell."""
    values, _ = read_weights(published / "combined")
    values["gating_fc1_weights"] = torch.arange(64.0 * 64).view(64, 64)
    values["gating_fc2_weights"] = values["gating_fc1_weights"] + 1
    for leaf in ("w_0", "b_0", "w_1", "w_2"):
        values[f"batch_norm_5.{leaf}"] = torch.ones(64)
    model = NeXtVLAD(50, **TINY | {"gating_reduction": 1})
    load_weights(model, values)
    assert torch.equal(model.squeeze.weight, values["gating_fc1_weights"].T)


def test_a_tensor_is_missed_and_one_too_many_noticed(published):
    values, _ = read_weights(published / "combined")
    for changed in (
        {k: v for k, v in values.items() if k != "audio_cluster_weights"},
        values | {"x": torch.ones(2)},
    ):
        with pytest.raises(WeightsError) as error:
            load_weights(NeXtVLAD(50, **TINY), changed)
        assert error.value.code == "WEIGHTS_MISMATCH"


GOOD = written(np.ones((2, 3)))


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (GOOD[:-1], "WEIGHTS_DAMAGED", "24 bytes of numbers are announced, 23 are there"),
        (GOOD[:18], "WEIGHTS_DAMAGED", "near byte"),
        (GOOD + b"x", "WEIGHTS_DAMAGED", "1 bytes after"),
        (GOOD.replace(b"\x08\x05", b"\x08\x09"), "WEIGHTS_DAMAGED", "unknown type of numbers, 9"),
        (GOOD.replace(b"\x10\x03", b"\x18\x03"), "WEIGHTS_DAMAGED", "unknown field, 3"),
        (bytes(12) + b"\x01" + GOOD[13:], "WEIGHTS_DAMAGED", "another version"),
        (bytes(16) + struct.pack("<i", 8) + b"\x08\x05\x10" + varint(2**34), "WEIGHTS_DAMAGED", "announced"),
        (b"hello", "WEIGHTS_FORMAT", "no tensor of Paddle"),
    ],
)
def test_damage_is_named(tmp_path, data, code, reason):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a").write_bytes(data)
    with pytest.raises(WeightsError, match=reason) as error:
        read_weights(tmp_path / "parts")
    assert error.value.code == code
    assert "parts/a" in error.value.message


def test_dimensions_may_be_packed_and_levels_are_skipped(tmp_path):
    description = b"\x08\x05\x12\x02\x02\x03"
    levels = struct.pack("<IQQ", 0, 1, 16) + bytes(16) + struct.pack("<Ii", 0, len(description))
    (tmp_path / "a").write_bytes(levels + description + np.arange(6, dtype="<f4").tobytes())
    assert read_combined(tmp_path / "a", ["x"])["x"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_unnamed_tensors_of_another_network_are_refused():
    with pytest.raises(WeightsError, match="10 tensors without names") as error:
        read_weights(FOLDER / "tiny_combined.pdparams")
    assert error.value.code == "WEIGHTS_LAYOUT"


def test_folders_and_archives_that_hold_no_tensors_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="holds no tensors") as error:
        read_folder(tmp_path)
    assert error.value.code == "WEIGHTS_FORMAT"
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(WeightsError) as error:
        read_weights(tmp_path / "a.tar.gz")
    assert error.value.code == "WEIGHTS_DAMAGED"
