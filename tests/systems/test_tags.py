"""From records of features to tags: trained, killed and continued, tested by several processes, predicted."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from typer import Exit

import marey
from marey.cli.run import predict
from marey.data import shards
from marey.data.feature_card import FeatureCard, write_feature_card
from marey.data.planted import write_planted_records
from marey.data.shards import open_shards
from marey.data.workers import Pool
from marey.data.youtube8m import Layout, collate, read_videos
from marey.errors import DataError, UsageError
from marey.jobs.compare import compare
from marey.jobs.extract import extract_features
from marey.jobs.tagging import Tagging
from marey.jobs.tags import tag_records
from marey.weights.create import open_model, starting_preprocess

from .conftest import arguments, only_run
from .conftest import marey as command

LAYOUT = Layout(rgb=16, audio=8, num_classes=12)
SMALL = {
    "model.num_classes": 12,
    "model.options.rgb": 16,
    "model.options.audio": 8,
    "model.options.cluster_size": 4,
    "model.options.hidden_size": 32,
    "model.options.dropout": 0.1,
    "training.batch": 32,
    "training.optimizer.lr": 0.02,
    "training.log_every": 4,
    "data.workers": 0,
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """480 training, 130 validation and 130 test records of 12 tags, in 4 files each."""
    folder = tmp_path_factory.mktemp("planted")
    return write_planted_records(
        folder, train=480, val=130, test=130, shards=4, layout=LAYOUT, frames=(4, 12), noise=0.5
    )


@pytest.fixture(scope="module")
def small(planted):
    """Overrides that make `own_tags` small and point it at the records."""
    return SMALL | {"data.train": str(planted.train), "data.val": str(planted.val)}


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A run of eight epochs."""
    return marey.train("own_tags", small | {"training.epochs": 8}, out=tmp_path_factory.mktemp("runs"))


def same_weights(one, other) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def whole(folder):
    """All videos of a folder in one batch."""
    return collate(
        [video for path in sorted(folder.iterdir()) for video in read_videos(path, LAYOUT)], LAYOUT
    )


def plain_gap(scores, labels, k=20):
    """GAP by its definition, pair by pair."""
    pairs = []
    for row, positive in zip(scores.tolist(), labels.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda c: -row[c])[:k]
        pairs += [(row[c], positive[c]) for c in best]
    pairs.sort(key=lambda pair: -pair[0])
    total = found = 0
    for rank, (_, right) in enumerate(pairs, start=1):
        found += right
        total += found / rank if right else 0
    return total / labels.sum()


# Training ---------------------------------------------------------------------------------------------


def test_planted_tags_are_found_far_better_than_by_their_frequency(trained, planted):
    train, val = whole(planted.train), whole(planted.val)
    baseline = plain_gap(train.labels.float().mean(0).expand(130, -1).numpy(), val.labels.numpy())
    network = open_model(trained.checkpoint)
    with torch.inference_mode():
        scores = network(val.rgb, val.audio, val.lengths).sigmoid().numpy()
    found = trained.metrics["gap"]
    assert found == pytest.approx(plain_gap(scores, val.labels.numpy()), abs=1e-6)
    assert baseline < 0.45
    assert found > baseline + 0.33


def test_a_run_leaves_curves_classes_and_a_report(trained):
    rows = list(csv.DictReader((trained.run / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows if row["val_gap"]] == [15 * n for n in range(1, 9)]
    logged = [row for row in rows if row["loss"]]
    assert [int(row["step"]) for row in logged[:5]] == [4, 8, 12, 15, 19]
    assert all(0 <= float(row[name]) <= 1 for row in logged for name in ("gap", "hit1", "perr"))
    assert float(logged[-1]["gap"]) > float(logged[0]["gap"])
    results = json.loads((trained.run / "results.json").read_text())
    assert results["metrics"].keys() == {"gap", "hit1", "perr", "map", "map_2018", "loss"}
    assert results["evaluated"] == results["listed"] == 130
    assert len(results["per_class"]) == 12
    report = (trained.run / "report.html").read_text()
    for text in (
        "12 classes, weakest first",
        "Best validation GAP",
        "130 of 130",
        "Hit@1",
        "videos of the list",
    ):
        assert text in report
    assert "Not here" not in report


def test_the_checkpoint_scores_what_it_scored_and_needs_nothing_else(trained, planted, tmp_path):
    alone = tmp_path / "elsewhere.safetensors"
    shutil.copy(trained.checkpoint, alone)
    for batch in (40, 7):
        words = {"data.test": str(planted.val), "testing.batch": batch, "data.workers": 0}
        found = marey.test("own_tags", alone, words, out=tmp_path / "results.json")
        assert found["metrics"] == pytest.approx(trained.metrics, abs=1e-5)
    assert json.loads((tmp_path / "results.json").read_text())["evaluated"] == 130
    compared = compare(trained.run, tmp_path)
    assert [row.difference for row in compared.metrics] == pytest.approx([0] * 6, abs=1e-5)
    fields = {field.name: (field.a, field.b) for field in compared.fields}
    assert fields["settings.testing.batch"] == (40, 7) and "fingerprint" not in fields
    model = open_model(alone)
    assert model.preprocess is None
    assert model.metadata["recipe"]["name"] == "nextvlad.own_tags"
    assert model.metadata["metrics"] == pytest.approx(trained.metrics)


def task(small, world=1, rank=0):
    """The task of one process of several, without the others."""
    recipe, lists = Tagging.prepare(marey.load_recipe("own_tags", small), None)
    fabric = SimpleNamespace(world_size=world, global_rank=rank, device=torch.device("cpu"))
    return Tagging(recipe, lists, fabric=fabric, run=None, pool=Pool(0, 60), seed=3)


def test_an_index_finds_the_records_once(small, tmp_path, monkeypatch):
    wanted = small | {"data.index": str(tmp_path / "index")}
    first = task(wanted)
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"train.npz", "val.npz"}
    monkeypatch.setattr(shards, "find_records", None)
    again = task(wanted)
    assert again.shards.fingerprint() == first.shards.fingerprint()
    assert again.shards.fingerprint() != again.val.fingerprint()


@pytest.mark.parametrize("world", [1, 2, 7])
def test_every_record_comes_once_an_epoch_and_any_step_can_be_the_first(small, world):
    seen = []
    for rank in range(world):
        work = task(small, world, rank)
        steps = []
        for batch in work.examples(2, 0):
            steps.append(work.current())
            assert batch.real == len(work.current())
        assert len(steps) == work.steps
        late = []
        for _ in work.examples(2, 1):
            late.append(work.current())
        assert late == steps[1:]
        seen += [name for names in steps for name in names]
    assert sorted(seen) == [f"train{number:06}" for number in range(480)]


def test_a_process_without_a_record_in_the_last_step_stands_by(small):
    work = task(small | {"training.batch": 120}, world=7, rank=6)
    (batch,) = work.examples(0, 0)
    assert batch.real == 68
    work = task(small | {"training.batch": 479}, world=2, rank=1)
    first = task(small | {"training.batch": 479}, world=2)
    assert [b.real for b in first.examples(0, 0)] == [b.real for b in work.examples(0, 0)] == [240]
    many = task(small | {"training.batch": 1, "data.train": small["data.val"]}, world=100, rank=99)
    assert [b.real for b in many.examples(0, 0)] == [1, 0]


def test_half_precision_averages_and_accumulation_are_trained_with(small, tmp_path):
    settings = {"training.precision": "bf16", "training.ema": 0.9, "training.accumulate": 2}
    found = marey.train("own_tags", small | settings | {"training.epochs": 6}, out=tmp_path)
    assert found.metrics["gap"] > 0.5


def test_gradients_may_be_clipped_one_by_one_and_rates_fall_by_samples(small, tmp_path):
    settings = {
        "training.optimizer.clip_each": True,
        "training.schedule": {"kind": "samples", "samples": 200, "gamma": 0.5, "counted": "samples"},
        "training.epochs": 1,
        "training.log_every": 1,
    }
    found = marey.train("own_tags", small | settings, out=tmp_path)
    rows = list(csv.DictReader((found.run / "metrics.csv").open()))
    rates = [float(row["lr"]) for row in rows if row["lr"]]
    assert rates == pytest.approx([0.02 * 0.5 ** (32 * step // 200) for step in range(15)])


def test_rates_follow_the_recipe(small):
    work = task(small)
    assert work.rate(0, 0, 15) < work.rate(2, 0, 15), "a warm-up"


@contextmanager
def one_thread():
    """As in the processes that tests start: sums are added up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(small, tmp_path):
    """SIGKILL in the middle of an epoch, then to the end; beside it the same run undisturbed."""
    settings = small | {"training.epochs": 3, "training.save_minutes": 0, "training.batch": 16}
    with one_thread():
        one = marey.train("own_tags", settings, out=tmp_path / "whole").run
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "marey",
            "train",
            "own_tags",
            *arguments(settings),
            "--out",
            tmp_path / "killed",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for line in process.stderr:
        if line.startswith("epoch 1.") and not line.startswith("epoch 1.00"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with one_thread():
        other = marey.train("own_tags", settings, out=tmp_path / "killed", resume=True).run
    assert "continues at epoch 1, step" in (other / "log.txt").read_text()
    for name in ("last", "best"):
        assert same_weights(*(run / f"checkpoints/{name}.safetensors" for run in (one, other)))
    tables = [list(csv.DictReader((run / "metrics.csv").open())) for run in (one, other)]
    kept = ("step", "epoch", "lr", "loss", "gap", "perr", "skipped", "val_loss", "val_gap", "val_map")
    assert [[row[c] for c in kept] for row in tables[0]] == [[row[c] for c in kept] for row in tables[1]]


# Several processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_together_and_measure_to_the_last_digit_what_one_does(small, planted, tmp_path):
    shutil.copytree(planted.val, tmp_path / "val")
    spoil(tmp_path / "val", 70)
    settings = {
        "training.batch": 16,
        "training.epochs": 1,
        "training.log_every": 1,
        "data.max_bad_test": 0.01,
    }
    words = arguments(small | settings | {"data.val": str(tmp_path / "val")})
    done = command("train", "own_tags", *words, "--out", tmp_path, "--accelerator", "cpu", "--devices", 2)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows if row["loss"]] == list(range(1, 16))
    two = json.loads((run / "results.json").read_text())
    with one_thread():
        one = marey.test(run / "recipe.json", run / "checkpoints/best.safetensors", out=tmp_path / "one.json")
    for name in ("metrics", "per_class", "evaluated", "failed", "fingerprint"):
        assert one[name] == two[name]
    assert (one["evaluated"], [bad["code"] for bad in one["failed"]]) == (129, ["RECORD_DAMAGED"])


# Bad input --------------------------------------------------------------------------------------------


def spoil(folder, number):
    """Change a byte of a record's payload; gives its name."""
    place = open_shards(sorted(folder.glob("*.tfrecord"))).place(number)
    with open(place.path, "r+b") as file:  # noqa: PTH123
        file.seek(place.offset + 20)
        byte = file.read(1)
        file.seek(place.offset + 20)
        file.write(bytes([byte[0] ^ 1]))
    return place.name


def test_damaged_records_are_counted_and_named_in_training(small, planted, tmp_path):
    shutil.copytree(planted.train, tmp_path / "train")
    name = spoil(tmp_path / "train", 200)
    changed = small | {"data.train": str(tmp_path / "train"), "training.epochs": 1}
    found = marey.train("own_tags", changed, out=tmp_path / "runs")
    assert found.skipped == 1
    assert f"skipped {name}: RECORD_DAMAGED" in (found.run / "log.txt").read_text()
    with pytest.raises(DataError) as error:
        marey.train("own_tags", changed | {"data.max_bad": 0}, out=tmp_path / "runs")
    assert error.value.code == "TOO_MANY_BAD"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"data.train": None}, "NO_DATA"),
        ({"data.train": "nowhere"}, "NOT_FOUND"),
        ({"model.num_classes": None}, "RECIPE_VALUE"),
        ({"model.num_classes": 4}, "LABEL_RANGE"),
        ({"model.options.rgb": 12}, "TOO_MANY_BAD"),
    ],
)
def test_what_cannot_be_is_one_clear_line(small, tmp_path, change, code):
    with pytest.raises((UsageError, DataError)) as error:
        marey.train("own_tags", small | change, out=tmp_path)
    assert error.value.code == code


def test_clips_and_features_are_told_apart(trained, planted, tmp_path):
    with pytest.raises(UsageError) as error:
        marey.test("own_tags", trained.checkpoint, average_clips="prob")
    assert error.value.code == "RECIPE_KIND"
    with pytest.raises(UsageError) as error:
        next(marey.predict(trained.checkpoint, str(planted.val)))
    assert error.value.code == "NO_CLIPS"
    with pytest.raises(UsageError) as error:
        extract_features(trained.checkpoint, str(planted.val), tmp_path)
    assert error.value.code == "NO_CLIPS"
    with pytest.raises(UsageError) as error:
        starting_preprocess("tsm_r50", trained.checkpoint)
    assert error.value.code == "NO_CLIPS"
    with pytest.raises(UsageError) as error:
        marey.test("own_tags", trained.checkpoint, {"data.test": str(planted.test)}, metrics=["top1"])
    assert error.value.code == "UNKNOWN_METRIC"


# Own features -----------------------------------------------------------------------------------------


def own(folder, planted, names, part="train", model="tsn_r50"):
    """Records as `marey features --format youtube8m` leaves them: with a card."""
    shutil.copytree(getattr(planted, part), folder)
    made_by = {"rgb": {"model": model}, "audio": {"name": "mine"}}
    count = len(names) if names else 12
    card = FeatureCard(rgb=16, audio=8, num_classes=count, class_names=names, made_by=made_by)
    write_feature_card(folder, card)
    return card


def test_own_features_say_their_widths_and_names(planted, tmp_path, capsys):
    names = tuple(f"tag {label}" for label in range(12))
    card = own(tmp_path / "train", planted, names)
    own(tmp_path / "val", planted, names, "val")
    words = {key: value for key, value in SMALL.items() if "rgb" not in key and "audio" not in key}
    del words["model.num_classes"]
    words |= {"data.train": str(tmp_path / "train"), "data.val": str(tmp_path / "val"), "training.epochs": 1}
    found = marey.train("own_tags", words, out=tmp_path / "runs")
    recipe = marey.load_recipe(found.run / "recipe.json")
    assert (recipe.model.num_classes, recipe.model.options["rgb"], recipe.model.options["audio"]) == (
        12,
        16,
        8,
    )
    model = open_model(found.checkpoint)
    assert model.class_names == names
    assert model.metadata["features"]["fingerprint"] == card.fingerprint
    rows = list(tag_records(model, tmp_path / "val", device="cpu"))
    assert len(rows) == 130 and rows[0].comparable and rows[0].names[0].startswith("tag ")
    assert "FEATURES_DIFFER" not in capsys.readouterr().err
    own(tmp_path / "other", planted, names, "test", model="tsm_r50")
    rows = list(tag_records(model, tmp_path / "other", device="cpu"))
    assert not rows[0].comparable
    assert "FEATURES_DIFFER" in capsys.readouterr().err
    results = marey.test("own_tags", found.checkpoint, {"data.test": str(tmp_path / "val")})
    assert results["comparable"]
    # without sound
    silent = words | {"model.options.audio": 0, "name": "silent"}
    assert open_model(marey.train("own_tags", silent, out=tmp_path / "runs").checkpoint).audio is None


def test_names_that_differ_are_not_mixed(planted, tmp_path):
    names = tuple(f"tag {label}" for label in range(12))
    own(tmp_path / "train", planted, names)
    own(tmp_path / "val", planted, names[::-1], "val")
    words = {"data.train": str(tmp_path / "train"), "data.val": str(tmp_path / "val")}
    with pytest.raises(DataError) as error:
        marey.train("own_tags", words, out=tmp_path / "runs")
    assert error.value.code == "LABEL_NAMES"
    with pytest.raises(UsageError, match="own_tags") as error:
        marey.train("nextvlad_yt8m", {"data.train": str(tmp_path / "train")}, out=tmp_path / "runs")
    assert error.value.code == "RECIPE_VALUE"


# Prediction -------------------------------------------------------------------------------------------


def predicted(capsys, folder, *words, **options):
    """What the command prints, and its exit code."""
    code = 0
    try:
        predict([str(folder)], *words, **options)
    except Exit as error:
        code = error.exit_code
    out = capsys.readouterr()
    return code, out.out.splitlines(), out.err


def test_tags_are_printed_and_written(trained, planted, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("".join(f"name {label}\n" for label in range(12)))
    settings = {"checkpoint": trained.checkpoint, "classes": tmp_path / "names.txt", "device": "cpu"}
    shutil.copytree(planted.test, tmp_path / "records")
    name = spoil(tmp_path / "records", 3)
    code, lines, errors = predicted(
        capsys, tmp_path / "records", **settings, top=3, threshold=0.1, out=tmp_path / "tags.jsonl"
    )
    assert code == 3
    assert f"{name}: RECORD_DAMAGED" in errors
    rows = [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()]
    assert len(rows) == 130
    assert (rows[3]["id"], rows[3]["code"]) == (name, "RECORD_DAMAGED")
    good = [row for row in rows if "code" not in row]
    assert len(lines) == len(good)
    assert lines[0].startswith(f"{good[0]['id']}  {good[0]['names'][0]} ")
    assert all(len(row["scores"]) <= 3 and min(row["scores"], default=1) >= 0.1 for row in good)
    assert any(len(row["scores"]) < 3 for row in good)
    source = planted.test / "*.tfrecord"
    code, lines, _ = predicted(capsys, source, **settings, submission=True, out=tmp_path / "s.csv")
    assert (code, lines) == (0, [])
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == "VideoId,LabelConfidencePairs"
    assert len(lines) == 131
    assert len(lines[1].partition(",")[2].split()) == 24, "all 12 classes, which are fewer than 20"
    code, lines, _ = predicted(capsys, source, **settings, as_json=True, out=tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    told = [json.loads(line) for line in lines]
    assert [row["id"] for row in told] == [row["id"] for row in table]
    assert all(len(row["classes"]) == 5 for row in table)
    np.testing.assert_allclose([row["scores"] for row in told], [row["scores"] for row in table], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"every": "2s"}, "USAGE"),
        ({"submission": True}, "USAGE"),
        ({"submission": True, "out": Path("a.jsonl")}, "OUT_SUFFIX"),
        ({"out": Path("a.txt")}, "OUT_SUFFIX"),
    ],
)
def test_options_that_tags_do_not_have_are_refused(trained, planted, options, code):
    with pytest.raises(UsageError) as error:
        predict([str(planted.test)], checkpoint=trained.checkpoint, **options)
    assert error.value.code == code
