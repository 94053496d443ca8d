"""The command line itself: its version, lists of nothing."""

import subprocess
import sys

import pytest
import torch
import typer

import marey
from marey import cli
from marey.cli.run import recipes
from marey.errors import UsageError


def test_the_version_is_told_without_loading_torch():
    code = (
        "import sys; sys.argv = ['marey', '--version']\n"
        "import marey.cli\n"
        "try:\n    marey.cli.main()\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"marey {marey.__version__}\n"), done.stderr


def test_a_pattern_that_no_recipe_matches_is_an_error_and_not_an_empty_list():
    with pytest.raises(UsageError, match=r"'\*tsm_r51\*' takes a part") as error:
        recipes("tsm_r51")
    assert error.value.code == "UNKNOWN_RECIPE"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"), 5),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), 5),
        (MemoryError(), 5),
    ],
    ids=str,
)
def test_memory_that_runs_out_is_one_line_that_says_what_takes_less(monkeypatch, capsys, error, code):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(cli, "app", full)
    monkeypatch.setattr("sys.argv", ["marey", "train"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == code and len(lines) == 1
    assert lines[0].startswith("marey: OUT_OF_MEMORY: ") and "training.batch" in lines[0]


def test_other_errors_of_torch_keep_their_traceback(monkeypatch):
    def wrong(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(cli, "app", wrong)
    monkeypatch.setattr("sys.argv", ["marey", "train"])
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main()


def commands(group=None, words=()):
    """Every command with its options by name."""
    group = typer.main.get_command(cli.app) if group is None else group
    for name, command in getattr(group, "commands", {}).items():
        yield " ".join((*words, name)), {word: one for one in command.params for word in one.opts}
        yield from commands(command, (*words, name))


def test_one_network_takes_a_device_and_runs_of_several_processes_an_accelerator():
    device, accelerator = {}, {}
    for name, options in commands():
        assert not {"--device", "--accelerator"} <= options.keys(), name
        assert "--accelerator" in options or "--devices" not in options, name
        device |= {name: options["--device"].help} if "--device" in options else {}
        accelerator |= {name: options["--accelerator"].help} if "--accelerator" in options else {}
    assert {"predict", "features", "bench", "bank build", "report resolution"} <= device.keys()
    assert accelerator.keys() == {"train", "test", "adapt run", "adapt score"}
    assert len(set(device.values())) == len(set(accelerator.values())) == 1  # told in the same words
