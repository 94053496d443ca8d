"""Published files become checkpoints that need nothing else, with the same logits."""

import json
import sys

import pytest
import torch

from marey import cli
from marey.errors import UsageError, WeightsError
from marey.jobs import convert as module
from marey.jobs.convert import convert
from marey.weights.create import create_model, open_model
from tests.oracles import filled, mmaction_table
from tests.weights.files import as_0x, tiny
from tests.weights.test_detect import ALL_BLOCKS, BASIC, ZOO_NON_LOCAL, release  # noqa: F401

W = {"width": 8}


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "some.pth"
    torch.save(as_0x(tiny(classes=7)), path)
    return path


def test_the_checkpoint_computes_what_the_file_does(published, tmp_path, capsys):
    done = convert(published, tmp_path / "out.safetensors", verify=True)
    assert (done.model, done.num_classes, done.overrides) == ("tsn_r18", 7, W)
    assert (done.absolute, done.relative) == (0.0, 0.0)
    model, other = open_model(done.out), create_model("tsn_r18", weights=published, **W).eval()
    clip = torch.randn(1, 3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(clip), other(clip))
    assert model.preprocess == other.preprocess
    assert model.metadata["recipe"]["converted"]["file"] == "some.pth"
    assert capsys.readouterr().err == ""


def test_a_release_brings_its_preprocessing_and_class_names(release, tmp_path):  # noqa: F811
    path, _ = release
    done = convert(path, tmp_path / "out.safetensors", verify=True)
    assert (done.release, done.class_names, done.notes) == ("tiny_20260101-00000000", True, ())
    model = open_model(done.out)
    assert (model.preprocess.frames, model.segments, model.class_names[399]) == (16, 16, "zumba")
    origin = model.metadata["recipe"]["converted"]
    assert origin["release"] == "tiny_20260101-00000000"
    assert origin["license"] == "Apache-2.0"
    assert len(origin["sha256"]) == 64


@pytest.mark.parametrize(
    ("table", "arguments"),
    [
        ({"depth": 50, "csn": "ir"}, {}),
        ({"depth": 50, "time": (1, 1, 3, 3)}, {}),
        ({"depth": 50, "shifted": ALL_BLOCKS, "pooled": True}, {}),
        (
            {"depth": 50, "shifted": ALL_BLOCKS, "non_local": ZOO_NON_LOCAL},
            {"model": "tsm_r50", "overrides": {"non_local": "embedded_gaussian"}},
        ),
    ],
)
def test_networks_of_each_kind_survive(tmp_path, table, arguments):
    torch.save(filled(mmaction_table(width=8, classes=5, **table)), tmp_path / "x.pth")
    done = convert(tmp_path / "x.pth", tmp_path / "x.safetensors", verify=True, **arguments)
    assert done.absolute == 0.0
    assert open_model(done.out).spec["overrides"] == done.overrides


def test_a_checkpoint_that_computes_something_else_is_not_written(published, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"what was there")
    opened = module.open_model

    def changed(path):
        model = opened(path)
        with torch.no_grad():
            model.head.bias[0] += 0.01
        return model

    monkeypatch.setattr(module, "open_model", changed)
    with pytest.raises(WeightsError) as error:
        convert(published, out, verify=True, force=True)
    assert (error.value.code, error.value.exit_code) == ("CONVERT_DIFFERS", 4)
    assert out.read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "some.pth"]


def test_logits_that_are_no_numbers_are_not_called_equal(published, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_logits", lambda network, clip: torch.full((1, 7), torch.nan))
    with pytest.raises(WeightsError, match="infinite logits"):
        convert(published, tmp_path / "out.safetensors", verify=True)
    assert not (tmp_path / "out.safetensors").exists()


def test_nothing_is_replaced_unless_told(published, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"what was there")
    with pytest.raises(UsageError) as error:
        convert(published, out)
    assert error.value.code == "OUT_EXISTS"
    assert out.read_bytes() == b"what was there"
    convert(published, out, force=True)
    with pytest.raises(UsageError) as error:  # not even then the source itself
        convert(out, out, force=True)
    assert error.value.code == "OUT_EXISTS"
    with pytest.raises(UsageError) as error:
        convert(out, tmp_path / "again.safetensors")
    assert error.value.code == "IS_CHECKPOINT"
    with pytest.raises(UsageError) as error:
        convert(published, tmp_path / "out.pth")
    assert error.value.code == "OUT_SUFFIX"


def run(capsys, *words):
    """(exit code, stdout, stderr) of a command line."""
    old, sys.argv = sys.argv, ["marey", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv = old
    return end.value.code, *capsys.readouterr()


def test_the_command_tells_what_it_did_and_what_it_assumed(tmp_path, capsys):
    torch.save(tiny(shifted=BASIC), tmp_path / "x.pth")
    out = tmp_path / "x.safetensors"
    code, text, err = run(capsys, "convert", tmp_path / "x.pth", out, "segments=4", "--verify")
    assert code == 0
    assert text.startswith(f"{out}: tsm_r18 ")
    assert "segments=4" in text
    assert "largest difference of the logits 0, relative 0" in text
    assert "note: tensors do not show shift_div: shift_div=8 assumed" in err
    code, text, _ = run(capsys, "convert", tmp_path / "x.pth", out, "--force", "--json")
    told = json.loads(text)
    assert (code, told["model"], told["overrides"], told["absolute"]) == (0, "tsm_r18", W, None)
    assert len(told["notes"]) == 2
    code, _, err = run(capsys, "convert", tmp_path / "x.pth", out)
    assert (code, "OUT_EXISTS" in err) == (2, True)
