"""From lists to a trained classifier: runs, their folders, resuming, processes, bad input."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

import marey
from marey.errors import DataError, EnvironmentFault, MareyError, UsageError
from marey.recipes.catalog import load_recipe

from .conftest import arguments, only_run
from .conftest import marey as command


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """A tiny run, trained once in this process."""
    from .conftest import TINY

    paths = {"data.train": str(shapes.train), "data.val": str(shapes.val), "data.test": str(shapes.test)}
    return marey.train("demo.moving_shapes", TINY | paths, out=tmp_path_factory.mktemp("runs"))


def same_weights(one, other) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def test_a_run_leaves_everything_under_fixed_names(trained, shapes):
    names = {f.relative_to(trained.run).as_posix() for f in trained.run.rglob("*") if f.is_file()}
    assert names >= {
        *("recipe.json", "metrics.csv", "log.txt", "environment.json", "results.json", "scores.parquet"),
        *(
            "report.html",
            "checkpoints/best.safetensors",
            "checkpoints/last.safetensors",
            "checkpoints/resume.pt",
        ),
    }
    assert not [name for name in names if name.endswith(".part")]
    recipe = load_recipe(trained.run / "recipe.json")
    assert recipe.model.num_classes == 6
    assert recipe.data.train == str(shapes.train)
    rows = list(csv.DictReader((trained.run / "metrics.csv").open()))
    steps = [int(row["step"]) for row in rows if row["loss"]]
    assert steps == list(range(1, 2 * 5 + 1)), "36 clips in batches of 8 are 5 steps, two epochs"
    assert [row["step"] for row in rows if row["val_top1"]] == ["5", "10"]


def test_a_second_run_takes_the_next_number(tiny, tmp_path):
    tiny = tiny | {"training.epochs": 1, "data.workers": 0}
    first, second = (marey.train("demo.moving_shapes", tiny, out=tmp_path).run for _ in range(2))
    assert (first.name, second.name) == ("1", "2")
    assert same_weights(first / "checkpoints/last.safetensors", second / "checkpoints/last.safetensors")


def test_results_do_not_depend_on_the_number_of_workers(trained, tiny, tmp_path):
    other = marey.train("demo.moving_shapes", tiny | {"data.workers": 0}, out=tmp_path)
    assert same_weights(
        trained.run / "checkpoints/last.safetensors", other.run / "checkpoints/last.safetensors"
    )


def test_a_saved_checkpoint_scores_what_it_scored_when_it_was_saved(trained, shapes, tmp_path):
    found = marey.test(
        trained.run / "recipe.json",
        trained.checkpoint,
        {"data.test": str(shapes.val)},
        out=tmp_path / "r.json",
    )
    assert found["metrics"] == pytest.approx(trained.metrics, abs=1e-6)
    assert json.loads((tmp_path / "r.json").read_text())["metrics"] == found["metrics"]


def test_metrics_agree_with_the_saved_scores(trained, shapes, tmp_path):
    found = marey.test(trained.run / "recipe.json", trained.checkpoint, out=tmp_path / "results.json")
    table = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert found["evaluated"] == found["listed"] == len(table) == 18
    hits = [np.argmax(row["scores"]) == row["label"][0] for row in table]
    assert found["metrics"]["top1"] == pytest.approx(np.mean(hits))
    assert np.sum(found["confusion"]) == 18
    assert all(sum(row["scores"]) == pytest.approx(1, abs=1e-5) for row in table)
    listed = [line.split(",")[0] for line in shapes.test.read_text().splitlines()[1:]]
    assert [os.path.relpath(row["path"], shapes.test.parent) for row in table] == listed


def test_predictions_need_only_the_checkpoint_and_agree_with_the_test(trained, shapes, tmp_path):
    alone = tmp_path / "elsewhere.safetensors"
    shutil.copy(trained.checkpoint, alone)
    marey.test(trained.run / "recipe.json", trained.checkpoint, out=tmp_path / "results.json")
    table = pq.read_table(tmp_path / "results.parquet").to_pylist()
    for row, seen in zip(table, marey.predict(alone, shapes.test, top=6), strict=True):
        scores = {c.label: c.score for c in seen.classes}
        assert [scores[i] for i in range(6)] == pytest.approx(row["scores"], abs=1e-5)
        assert {c.name for c in seen.classes} > {"move_left", "turn_clockwise"}


@pytest.mark.slow
def test_two_processes_test_to_the_last_digit_what_one_does(trained, tmp_path):
    for devices in (1, 2):
        done = command(
            "test",
            trained.run / "recipe.json",
            "--checkpoint",
            trained.checkpoint,
            "--accelerator",
            "cpu",
            "--devices",
            devices,
            "--out",
            tmp_path / f"{devices}.json",
        )
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert one["metrics"] == two["metrics"]
    assert one["evaluated"] == two["evaluated"] == 18
    assert one["confusion"] == two["confusion"]
    scores = [pq.read_table(tmp_path / f"{n}.parquet").to_pylist() for n in (1, 2)]
    assert [row["path"] for row in scores[0]] == [row["path"] for row in scores[1]]


@pytest.mark.slow
def test_two_processes_train_together(tiny, tmp_path):
    words = arguments(tiny | {"training.batch": 4, "training.epochs": 1})
    done = command(
        "train", "demo.moving_shapes", *words, "--out", tmp_path, "--accelerator", "cpu", "--devices", 2
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((only_run(tmp_path) / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows if row["loss"]] == [1, 2, 3, 4, 5]
    assert done.stdout.count("\ncheckpoint ") == 1, "only the first process prints"


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(tiny, tmp_path):
    """Five SIGKILLs at random moments, then to the end; beside it the same run undisturbed."""
    words = arguments(tiny | {"training.epochs": 6, "training.save_minutes": 0})
    start = [sys.executable, "-m", "marey", "train", "demo.moving_shapes", *words, "--deterministic", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    began = time.monotonic()
    subprocess.run([*start, whole], env=environment, check=True, capture_output=True)
    took = time.monotonic() - began
    draw = random.Random(3)
    for _ in range(5):
        process = subprocess.Popen(
            [*start, broken, "--resume"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(draw.uniform(0.4, 0.9) * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*start, broken, "--resume"], env=environment, check=True, capture_output=True)
    one, other = only_run(whole), only_run(broken)
    for name in ("last", "best"):
        assert same_weights(
            one / f"checkpoints/{name}.safetensors", other / f"checkpoints/{name}.safetensors"
        )
    tables = [list(csv.DictReader((run / "metrics.csv").open())) for run in (one, other)]
    kept = ("step", "epoch", "lr", "loss", "skipped", "val_loss", "val_top1")
    assert [[row[c] for c in kept] for row in tables[0]] == [[row[c] for c in kept] for row in tables[1]]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_saves_and_says_so(tiny, tmp_path, number):
    words = arguments(tiny | {"training.epochs": 200})
    process = subprocess.Popen(
        [sys.executable, "-m", "marey", "train", "demo.moving_shapes", *words, "--out", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for line in process.stderr:
        if line.startswith("epoch 1."):
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "INTERRUPTED" in errors and "--resume" in errors
    assert "Traceback" not in errors
    assert (only_run(tmp_path) / "checkpoints" / "resume.pt").exists()


def test_an_interrupted_run_cannot_be_continued_under_another_recipe(trained, tiny):
    with pytest.raises(UsageError, match=r"training\.optimizer\.lr") as error:
        marey.train(
            "demo.moving_shapes",
            tiny | {"training.optimizer.lr": 0.5},
            out=trained.run.parent.parent,
            resume=True,
        )
    assert error.value.code == "RESUME_MISMATCH"


def test_a_finished_run_resumed_stays_as_it_is(trained, tiny):
    before = (trained.run / "checkpoints/last.safetensors").read_bytes()
    again = marey.train("demo.moving_shapes", tiny, out=trained.run.parent.parent, resume=True)
    assert again.run == trained.run
    assert (trained.run / "checkpoints/last.safetensors").read_bytes() == before


def test_accumulated_steps_make_one_update(tiny, tmp_path):
    """Without dropout and with frozen batch norms, 2 x 4 clips give the update of 8."""
    same = tiny | {"training.epochs": 1, "data.workers": 0, "clips.flip": 0, "clips.flip_labels": []}
    same["model.options"] = {"width": 8, "segments": 4, "dropout": 0.0, "norm_eval": True}
    whole = marey.train("demo.moving_shapes", same, out=tmp_path / "whole", validate=False)
    parts = marey.train(
        "demo.moving_shapes",
        same | {"training.batch": 4, "training.accumulate": 2},
        out=tmp_path / "parts",
        validate=False,
    )
    one, other = (load_file(run.run / "checkpoints/last.safetensors") for run in (whole, parts))
    assert all(one[k].allclose(other[k], atol=1e-4, rtol=1e-3) for k in one if "head" in k)


# Bad input -----------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(shapes, tmp_path):
    """The training list with two bad files: one is no video, one is missing."""
    rows = shapes.train.read_text().splitlines()
    folder = shapes.train.parent
    lines = [rows[0], *(f"{folder}/{row}" for row in rows[1:])]
    (tmp_path / "broken.mp4").write_bytes(os.urandom(2000))
    lines[3] = f"{tmp_path}/broken.mp4," + lines[3].partition(",")[2]
    lines[9] = f"{tmp_path}/missing.mp4," + lines[9].partition(",")[2]
    file = tmp_path / "damaged.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_bad_videos_are_skipped_counted_and_named_up_to_the_limit(tiny, damaged, tmp_path):
    run = marey.train(
        "demo.moving_shapes", tiny | {"data.train": str(damaged), "data.max_bad": 0.06}, out=tmp_path / "runs"
    ).run
    log = (run / "log.txt").read_text()
    assert "broken.mp4: NOT_MEDIA" in log and "missing.mp4: NOT_FOUND" in log
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert rows[-2]["skipped"] == "2" or rows[-1]["skipped"] == "2"


def test_more_bad_videos_than_the_limit_end_the_run(tiny, damaged, tmp_path):
    with pytest.raises(DataError, match=r"(?s)(broken|missing)\.mp4") as error:
        marey.train("demo.moving_shapes", tiny | {"data.train": str(damaged)}, out=tmp_path / "runs")
    assert error.value.code == "TOO_MANY_BAD"


def test_a_run_that_met_too_many_bad_videos_goes_on_as_its_message_says(tiny, damaged, tmp_path):
    tiny = tiny | {
        "data.train": str(damaged),
        "data.val": str(damaged),
        "data.workers": 0,
        "training.epochs": 1,
    }
    with pytest.raises(DataError, match=r"more than the 1\.00%"):
        marey.train("demo.moving_shapes", tiny, out=tmp_path / "runs")
    allowed = tiny | {"data.max_bad": 0.06}
    with pytest.raises(DataError, match=r"data\.max_bad_test=0\.05"):
        marey.train("demo.moving_shapes", allowed, out=tmp_path / "runs", resume=True)
    allowed["data.max_bad_test"] = 0.06
    done = marey.train("demo.moving_shapes", allowed, out=tmp_path / "runs", resume=True)
    assert (done.run.name, done.skipped) == ("1", 2)
    assert load_recipe(done.run / "recipe.json").data.max_bad_test == 0.06


def test_an_evaluation_refuses_an_incomplete_list_unless_allowed(trained, damaged, tmp_path):
    with pytest.raises(DataError, match=r"2 of 36") as error:
        marey.test(
            trained.run / "recipe.json",
            trained.checkpoint,
            {"data.test": str(damaged)},
            out=tmp_path / "r.json",
        )
    assert error.value.code == "INCOMPLETE"
    found = marey.test(
        trained.run / "recipe.json",
        trained.checkpoint,
        {"data.test": str(damaged), "data.max_bad_test": 0.1},
        out=tmp_path / "r.json",
    )
    assert (found["evaluated"], found["listed"]) == (34, 36)
    assert sorted(f["code"] for f in found["failed"]) == ["NOT_FOUND", "NOT_MEDIA"]


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"data.train": None}, "NO_DATA"),
        ({"data.train": "nowhere.csv"}, "NOT_FOUND"),
        ({"model.num_classes": 4}, "LABEL_RANGE"),
        ({"model.name": "tsm_r19"}, "UNKNOWN_NAME"),
        ({"model.options": {"widht": 8}}, None),
        ({"model.weights": "nowhere.pth"}, None),
    ],
)
def test_what_is_wrong_is_said_before_the_first_step(tiny, tmp_path, overrides, code):
    with pytest.raises(MareyError) as error:
        marey.train("demo.moving_shapes", tiny | overrides, out=tmp_path)
    assert code is None or error.value.code == code
    assert not list(tmp_path.glob("*/*/metrics.csv"))


def test_validation_that_was_asked_for_needs_a_list(tiny, tmp_path):
    with pytest.raises(UsageError, match=r"data\.val"):
        marey.train("demo.moving_shapes", tiny | {"data.val": None}, out=tmp_path, validate=True)


def test_a_full_disk_ends_the_run_and_keeps_the_last_state(tiny, tmp_path, monkeypatch):
    from marey import files

    first = marey.train("demo.moving_shapes", tiny | {"training.epochs": 1, "data.workers": 0}, out=tmp_path)
    state = first.run / "checkpoints" / "resume.pt"
    before = state.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    from marey.training.checkpoint import load_state, save_state

    with pytest.raises(EnvironmentFault, match="space") as error:
        save_state(state, {"step": 1})
    assert (error.value.code, error.value.exit_code) == ("DISK_FULL", 5)
    assert load_state(state) is not None
    assert before in [f.read_bytes() for f in state.parent.glob("resume*.pt")]
    assert not list(state.parent.glob("*.part"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_clips(tiny, tmp_path):
    wild = tiny | {
        "training.optimizer.lr": 1e30,
        "training.optimizer.clip_norm": None,
        "training.schedule.warmup_epochs": 0,
    }
    with pytest.raises(MareyError, match="mp4") as error:
        marey.train("demo.moving_shapes", wild, out=tmp_path)
    assert error.value.code == "LOSS_NOT_FINITE"


# Starting from weights ------------------------------------------------------------------------------------


def test_other_classes_keep_all_but_the_head_and_say_so(trained, tiny, shapes, tmp_path):
    lines = shapes.train.read_text().splitlines()
    folder = shapes.train.parent
    few = [
        lines[0],
        *(f"{folder}/{line}" for line in lines[1:] if "move_down" in line or "move_left" in line),
    ]
    file = tmp_path / "two.csv"
    file.write_text("\n".join(few) + "\n")
    run = marey.train(
        "demo.moving_shapes",
        tiny
        | {
            "data.train": str(file),
            "data.val": None,
            "model.weights": str(trained.checkpoint),
            "training.epochs": 1,
            "training.optimizer.lr": 1e-12,
            "clips.flip": 0,
            "clips.flip_labels": [],
        },
        out=tmp_path,
    ).run
    assert load_recipe(run / "recipe.json").model.num_classes == 2
    old, new = load_file(trained.checkpoint), load_file(run / "checkpoints/last.safetensors")
    assert new["head.weight"].shape[0] == 2
    assert new["trunk.stem.conv.weight"].allclose(old["trunk.stem.conv.weight"], atol=1e-6)
    assert "6 classes in the file, 2 in the network" in (run / "log.txt").read_text()


def test_several_labels_are_trained_and_measured(shapes, tiny, tmp_path):
    lines = shapes.train.read_text().splitlines()[1:]
    folder = shapes.train.parent
    rows = ["path,label"] + [
        f"{folder}/{path},{label}" + (";5" if label == "0" else "")
        for path, label, _ in (x.split(",") for x in lines)
    ]
    file = tmp_path / "several.csv"
    file.write_text("\n".join(rows) + "\n")
    several = tiny | {
        "data.train": str(file),
        "data.val": str(file),
        "clips.flip": 0,
        "clips.flip_labels": [],
    }
    trained = marey.train("demo.moving_shapes", several | {"training.epochs": 1}, out=tmp_path)
    assert 0 < trained.metrics["map"] <= 1
    found = marey.test(trained.run / "recipe.json", trained.checkpoint, {"data.test": str(file)})
    assert set(found["metrics"]) == {"map", "mmit_map", "top1", "top5", "loss"}
    assert found["metrics"]["map"] == pytest.approx(trained.metrics["map"], abs=1e-6)
    (seen,) = marey.predict(trained.checkpoint, lines and f"{folder}/{lines[0].split(',')[0]}", top=6)
    assert abs(sum(c.score for c in seen.classes) - 1) > 1e-3, "each class has a probability of its own"
