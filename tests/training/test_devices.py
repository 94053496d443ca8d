"""Devices that are asked for by name; no machine has a sixty-fourth GPU."""

import pytest
import torch
from lightning_fabric.accelerators import cuda

import marey
from marey import cli
from marey.errors import EnvironmentFault, UsageError
from marey.jobs.doctor import environment
from marey.training.devices import accelerators, device_of
from marey.training.distributed import launch

ABSENT = "cuda:63"


def test_a_device_that_is_there_is_given():
    assert device_of("cpu") == torch.device("cpu")
    assert device_of(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_doctor_lists_the_same_devices(monkeypatch):
    listed = [device["name"] for device in environment()["devices"]]
    assert listed == ["cpu", *accelerators()]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert accelerators()[:2] == ["cuda:0", "cuda:1"]


def test_a_missing_device_is_a_fault_of_the_environment_that_names_those_that_are_there():
    with pytest.raises(EnvironmentFault, match=r"^cannot use 'cuda:63': .*; here are cpu") as error:
        device_of(ABSENT)
    assert (error.value.code, error.value.exit_code) == ("NO_ACCELERATOR", 5)
    assert "\n" not in error.value.message


def test_what_is_no_device_is_wrong_use():
    for ask in (lambda: device_of("cpuu"), lambda: launch(accelerator="cpuu")):
        with pytest.raises(UsageError, match=r"'cpuu'.*cpu") as error:
            ask()
        assert (error.value.code, error.value.exit_code) == ("UNKNOWN_NAME", 2)


def test_predictions_on_a_missing_device_end_with_the_code_of_it():
    network = marey.create_model("tsn_r18", num_classes=2)
    with pytest.raises(EnvironmentFault, match=ABSENT):
        next(iter(marey.predict(network, "clip.mp4", device=ABSENT)))


def test_the_command_ends_with_five(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["marey", "bench", "tsn_r18", "--device", ABSENT])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 5
    assert capsys.readouterr().err.startswith("marey: NO_ACCELERATOR: cannot use 'cuda:63'")


def test_more_devices_than_there_are_is_the_same_fault(monkeypatch):
    with pytest.raises(EnvironmentFault, match="64 x cuda") as error:
        launch(accelerator="cuda", devices=64)
    assert error.value.code == "NO_ACCELERATOR"
    monkeypatch.setattr(cuda, "num_cuda_devices", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(EnvironmentFault, match=r"requested gpu: \[0, 1\]"):
        launch(accelerator="cuda", devices=2)
