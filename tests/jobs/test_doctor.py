"""What the doctor finds, on this machine and on machines where something is broken."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from marey.errors import MediaError
from marey.jobs import doctor as module
from marey.jobs.doctor import doctor, environment, lines, required


@pytest.fixture(autouse=True)
def needed(monkeypatch):
    monkeypatch.setattr(module, "required", lambda: ["torch", "av", "numpy"])


def check(facts, name):
    return next(check for check in facts["checks"] if check["name"] == name)


def test_a_sound_machine_passes_and_every_fact_is_told():
    facts = doctor()
    assert facts["ok"], facts["checks"]
    text = "\n".join(lines(facts))
    for word in (
        torch.__version__.split("+")[0],
        "libavcodec",
        "cpu:",
        "decode with pyav",
        "GiB",
        facts["cache"],
    ):
        assert word in text
    assert "everything needed works" in text
    assert json.loads(json.dumps(facts)) == facts


def test_the_environment_of_a_machine_does_not_change_from_call_to_call():
    first = environment()
    assert first == environment()
    assert first["packages"]["torch"] == importlib.metadata.version("torch")
    assert first["python"] == ".".join(map(str, sys.version_info[:3]))
    assert first["decoder"]["name"] in ("pyav", "torchcodec")
    assert first["threads"]["torch"] == torch.get_num_threads()
    assert first["devices"][0]["memory"] > 1 << 28


def test_a_decoder_that_gives_other_frames_is_found_out(monkeypatch):
    from marey.video.reader import Video

    frames = Video.frames
    monkeypatch.setattr(
        Video, "frames", lambda self, indices: frames(self, [min(i + 1, 29) for i in indices])
    )
    facts = doctor()
    assert not facts["ok"]
    assert check(facts, "decode with pyav")["state"] == "broken"
    assert "[0, 29, 7, 7, 18] were asked for" in check(facts, "decode with pyav")["text"]
    assert "something needed is broken" in lines(facts)[-1]


def test_a_broken_torchcodec_is_a_warning_only(monkeypatch):
    def broken(decoder):
        if decoder == "torchcodec":
            raise MediaError("DECODER_MISSING", "no FFmpeg\nhere")
        return "fine"

    monkeypatch.setattr(module, "_decode", broken)
    version = module._version
    monkeypatch.setattr(module, "_version", lambda name: "0.17" if name == "torchcodec" else version(name))
    facts = doctor()
    assert facts["ok"]
    assert check(facts, "decode with torchcodec") == {
        "name": "decode with torchcodec",
        "state": "warning",
        "text": "no FFmpeg here",
    }


def test_a_decoder_that_is_demanded_but_unknown_is_broken(monkeypatch):
    monkeypatch.setenv("MAREY_DECODER", "nonsense")
    facts = doctor()
    assert not facts["ok"]
    assert "nonsense" in check(facts, "decoder")["text"]
    assert facts["environment"]["decoder"]["name"] is None


def test_a_package_that_cannot_be_imported_is_named_without_a_traceback(tmp_path):
    (tmp_path / "av.py").write_text("raise ImportError('libavcodec.so.62: cannot open shared object file')")
    code = "import json; from marey.jobs import doctor as d; f = d.doctor(); d.lines(f); print(json.dumps(f))"
    command = [sys.executable, "-c", code]
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    facts = json.loads(done.stdout)
    assert not facts["ok"]
    assert "libavcodec.so.62" in check(facts, "av")["text"]
    assert "pip install" in check(facts, "av")["text"]


def test_every_package_that_marey_requires_is_found_under_the_name_it_is_imported_by(monkeypatch):
    monkeypatch.undo()
    assert "pillow" in required()
    assert list(module._packages()) == []


def test_little_disk_is_a_warning(monkeypatch):
    usage = module.shutil.disk_usage(".")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    facts = doctor()
    assert facts["ok"]
    assert check(facts, "disk")["state"] == "warning"
    assert "0.0 GiB" in check(facts, "disk")["text"]


def test_required_packages_are_those_of_the_metadata_without_extras(monkeypatch):
    monkeypatch.undo()
    wanted = [
        "torch>=2.11",
        "lightning-fabric>=2.6",
        "av",
        'torchcodec>=0.12; extra == "fast"',
        'x==1; extra == "y"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    assert required() == ["torch", "lightning-fabric", "av"]


def test_the_folder_for_downloads_is_the_one_that_weights_use(monkeypatch, tmp_path):
    monkeypatch.setenv("MAREY_CACHE", str(tmp_path / "not" / "yet"))
    facts = doctor()
    assert facts["cache"] == str(tmp_path / "not" / "yet")
    assert facts["disk"].keys() == {str(Path.cwd()), str(tmp_path)}
