"""The command line itself: its version, lists of nothing."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer

import marey
from marey import Preprocess, cli
from marey.cli.run import recipes
from marey.data.clips import Failure
from marey.errors import UsageError
from marey.jobs.demo import Demo
from marey.jobs.predict import Prediction, Score
from marey.jobs.scoring import Scoring
from marey.scores.table import score_table


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
    """Every command, groups left out, with its options by name."""
    group = typer.main.get_command(cli.app) if group is None else group
    for name, command in getattr(group, "commands", {}).items():
        if not hasattr(command, "commands"):
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


def test_every_command_with_a_result_prints_it_as_json_too():
    without = {name for name, options in commands() if "--json" not in options}
    assert without == {"recipe", "adapt report"}  # which prints JSON alone, and the name of a file


def printed(monkeypatch, capsys, *words):
    """The exit code of a command in this process, what it prints, and its errors."""
    monkeypatch.setattr("sys.argv", ["marey", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, *capsys.readouterr()


def test_the_demo_tells_programs_what_it_found(monkeypatch, capsys):
    seen = Prediction("a.mp4", classes=(Score(1, "jump", 0.75),))
    found = Demo(0.5, 8, [seen], Path("demo/report.html"), Path("demo/best.safetensors"))
    monkeypatch.setattr("marey.jobs.demo.demo", lambda *_, **__: found)
    assert printed(monkeypatch, capsys, "demo")[:2] == (
        0,
        "test accuracy 50.0% on 8 clips\na.mp4  jump 75.0%\nreport demo/report.html\n",
    )
    code, out, _ = printed(monkeypatch, capsys, "demo", "--json")
    assert (code, json.loads(out)) == (
        0,
        {
            "accuracy": 0.5,
            "clips": 8,
            "predictions": [{"source": "a.mp4", "classes": [{"label": 1, "name": "jump", "score": 0.75}]}],
            "report": "demo/report.html",
            "checkpoint": "demo/best.safetensors",
        },
    )


def test_scoring_tells_programs_what_it_wrote_and_what_failed(monkeypatch, capsys):
    bad = Failure(1, "b.mp4", "NOT_MEDIA", "no video")
    table = score_table(["a.mp4"], logits=[[1.0, 2.0]], clips=3)
    monkeypatch.setattr("marey.jobs.scoring.score_videos", lambda *_, **__: Scoring(table, [bad]))
    network = SimpleNamespace(preprocess=Preprocess())
    monkeypatch.setattr("marey.weights.create.open_model", lambda _: network)
    words = "adapt", "score", "best.safetensors", "list.csv", "--out", "scores.parquet"
    want = "scores.parquet: 1 videos, 3 views each\n", "b.mp4: NOT_MEDIA: no video\n"
    assert printed(monkeypatch, capsys, *words) == (3, *want)
    code, out, said = printed(monkeypatch, capsys, *words, "--json")
    assert (code, said) == (3, want[1])
    assert json.loads(out) == {
        "out": "scores.parquet",
        "videos": 1,
        "views": 3,
        "failed": [{"index": 1, "path": "b.mp4", "code": "NOT_MEDIA", "message": "no video"}],
    }
