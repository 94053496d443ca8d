"""From films with boxes to actions: baseline, bank, a detector that remembers; killed, continued, refused."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import marey
from marey.cli import app
from marey.data.ava import ava_set
from marey.data.bank import Bank
from marey.data.films import ANSWER, NAMES, SHOW, STAND, render_films
from marey.data.proposals import Proposals, read_proposals, recall, write_proposals
from marey.errors import DataError, MareyError, UsageError
from marey.jobs.bank import check_bank, model_hash
from marey.jobs.bank_build import build_bank
from marey.jobs.compare import compare
from marey.jobs.manifest import shard as part
from marey.jobs.persons import Found
from marey.jobs.predict_boxes import predict_boxes
from marey.metrics.ava import frame_map
from marey.metrics.ava_tables import read_label_map, read_rows
from marey.weights.create import open_model
from marey.weights.native import save_checkpoint

from .conftest import arguments, only_run

TINY = {
    "model.options.width": 4,
    "clips.frames": 2,
    "clips.interval": 4,
    "clips.short_side": 32,
    "clips.train_short_side": [32, 32],
    "clips.crop": 32,
    "training.epochs": 8,
    "training.batch": 16,
    "training.reference_batch": 16,
    "training.optimizer.lr": 0.05,
    "training.schedule.warmup_epochs": 0.5,
    "training.validate_every": 4,
    "training.log_every": 2,
    "data.workers": 0,
}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Four pairs of films to train on and two to validate on, 18 s long."""
    folder = tmp_path_factory.mktemp("films")
    return render_films(folder, train=8, val=4, seconds=18, size=(48, 32), persons=(2, 2), gap=4)


@pytest.fixture(scope="module")
def tiny(films):
    """Overrides that make `own_boxes` tiny and point it at the films.."""
    return TINY | films.overrides()


@pytest.fixture(scope="module")
def baseline(tiny, tmp_path_factory):
    """A trained baseline."""
    return marey.train("own_boxes", tiny, out=tmp_path_factory.mktemp("runs"), validate=True)


@pytest.fixture(scope="module")
def bank(baseline, tmp_path_factory):
    """The bank of both splits."""
    folder = tmp_path_factory.mktemp("banks") / "bank"
    for split in ("train", "val"):
        build_bank(baseline.run / "recipe.json", baseline.checkpoint, folder, split=split, quiet=True)
    return folder


@pytest.fixture(scope="module")
def remembering(tiny, bank):
    """Overrides of a detector that takes windows of the bank."""
    return tiny | {
        "model.options": {"width": 4, "long_term": "nl", "latent": 16},
        "training.epochs": 2,
        "training.validate_every": 2,
        "data.train.bank": str(bank),
        "data.val.bank": str(bank),
    }


@pytest.fixture(scope="module")
def rememberer(remembering, tmp_path_factory):
    """A detector with a bank, trained a little."""
    plan = remembering | {"training.epochs": 1}
    return marey.train("own_boxes", plan, out=tmp_path_factory.mktemp("banked"), validate=True)


def same_weights(one, other) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def kill_when(words, there, signal_=signal.SIGKILL, wait=120):
    """Run the command line, send a signal once `there()` is true, and return the exit code."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "marey", *map(str, words)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + wait
    while process.poll() is None and not there() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal_)
    return process.wait(60)


# Films ------------------------------------------------------------------------------------------------


def test_the_two_films_of_a_pair_differ_while_a_card_is_shown_and_look_the_same_later(films):
    rows = read_rows(films.train.annotation, "annotation")
    first, second = (marey.read_video(films.train.media / f"train00{number}.mp4") for number in (0, 1))
    one, other = (video.frames(range(len(video))).int() for video in (first, second))
    apart = (one - other).abs().flatten(1).max(1).values.numpy()
    frames = ava_set(rows, num_classes=6)
    pair = [[f for f in frames if f.video == f"train00{number}"] for number in (0, 1)]
    told = 0
    for left, right in zip(*pair, strict=True):
        assert np.array_equal(left.boxes, right.boxes)
        acts, others = (set(np.nonzero(f.labels)[1].tolist()) for f in (left, right))
        centre = round(left.second * 8)
        around = apart[centre - 3 : centre + 4].max()
        if SHOW in acts:
            assert SHOW + 1 in others
            assert around > 100
        elif ANSWER in acts:
            assert others == {ANSWER + 1}
            assert around == 0  # nothing of the moment tells which it is
            told += 1
        else:
            assert acts == others == {STAND}
    assert told >= 4


def test_proposals_stand_for_all_persons_and_distractors_score_low(films):
    rows = read_rows(films.val.annotation, "annotation")
    found = read_proposals(films.val.proposals)
    true = {frame.key: frame.boxes for frame in ava_set(rows, num_classes=6)}
    assert recall(true, found, iou=0.9) > 0.9
    persons = sum(len(found.select(key)[0]) for key in true)
    assert persons == sum(map(len, true.values()))
    assert len(found.boxes) > persons  # others are there, below the threshold
    assert read_label_map(films.label_map) == dict(enumerate(NAMES, start=1))


def test_films_that_cannot_be_are_refused(tmp_path):
    for words, what in (
        ({"train": 3}, "pairs"),
        ({"seconds": 15}, "less than"),
        ({"persons": (0, 1)}, "1 to 4"),
    ):
        with pytest.raises(UsageError, match=what):
            render_films(tmp_path, **words)


# Training and testing ---------------------------------------------------------------------------------


def test_a_run_leaves_curves_results_and_a_report(baseline, films):
    rows = list(csv.DictReader((baseline.run / "metrics.csv").open()))
    logged = [row for row in rows if row["loss"]]
    assert logged
    for name in ("recall", "precision", "recall_top3", "precision_top3"):
        assert all(0 <= float(row[name]) <= 1 for row in logged)
    assert [row["epoch"] for row in rows if row["val_map"]] == ["4", "8"]
    results = json.loads((baseline.run / "results.json").read_text())
    assert results["metrics"]["map"] == pytest.approx(baseline.metrics["map"])
    assert results["evaluated"] == results["listed"] == 4 * 16
    assert results["classes"] == ["no action", *NAMES]
    assert [row["label"] for row in results["per_class"]] == [1, 2, 3, 4, 5]
    report = (baseline.run / "report.html").read_text()
    for text in ("Best validation mAP", "64 of 64", "key frames of the list", "average precision", "persons",
                 "answer green", "Actions of the boxes"):  # fmt: skip
        assert text in report
    assert "Not here" not in report
    truth = read_rows(films.val.annotation, "annotation")
    again = frame_map(
        truth, read_rows(baseline.run / "results.csv", "result"), names=dict(enumerate(NAMES, start=1))
    )
    assert again.map == pytest.approx(baseline.metrics["map"], abs=2e-3)  # scores with six decimals


def test_the_checkpoint_scores_what_it_scored_and_needs_nothing_else(baseline, tiny, tmp_path):
    alone = shutil.copy(baseline.checkpoint, tmp_path / "elsewhere.safetensors")
    found = marey.test("own_boxes", alone, tiny, out=tmp_path / "results.json")
    assert found["metrics"]["map"] == pytest.approx(baseline.metrics["map"], abs=1e-6)
    assert (tmp_path / "results.csv").exists()
    compared = compare(baseline.run, tmp_path)
    assert compared.metrics[0].difference == pytest.approx(0, abs=1e-6) and compared.clips is None
    assert {field.part for field in compared.fields} == {"weights"}
    model = open_model(alone)
    assert model.class_names == ("no action", *NAMES)
    assert model.preprocess.sampling == "key"
    with pytest.raises(UsageError, match="metric"):
        marey.test("own_boxes", alone, tiny, metrics=["top1"])


def test_what_a_recipe_lacks_is_named(tiny, films):
    for key, name in (
        ("data.train.annotation", "data.train.annotation"),
        ("data.val.proposals", "data.val.proposals"),
    ):
        with pytest.raises(UsageError, match=name) as told:
            marey.train("own_boxes", tiny | {key: None}, validate=True)
        assert told.value.code == "NO_DATA"
    with pytest.raises(UsageError, match=r"data\.train\.bank"):
        marey.train("own_boxes", tiny | {"model.options.long_term": "max"})


@pytest.fixture
def alike():
    """This process computes like the ones that are started: on one thread, with the same bits every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures("alike")
def test_a_killed_training_with_a_bank_ends_with_the_same_bits(remembering, tmp_path):
    plan = remembering | {"training.save_minutes": 0}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    marey.train("own_boxes", plan, out=whole, deterministic=True)
    metrics = broken / "ava.own_boxes" / "1" / "metrics.csv"

    def begun():
        return metrics.exists() and len(metrics.read_text().splitlines()) >= 4

    words = ["train", "own_boxes", *arguments(plan), "--deterministic", "--out", broken]
    assert kill_when(words, begun) == -signal.SIGKILL
    steps = [int(row["step"]) for row in csv.DictReader(metrics.open())]
    assert 0 < max(steps) < 16
    marey.train("own_boxes", plan, out=broken, deterministic=True, resume=True)
    one, other = only_run(whole), only_run(broken)
    assert "continues at epoch" in (other / "log.txt").read_text()
    for name in ("last", "best"):
        path = f"checkpoints/{name}.safetensors"
        assert same_weights(one / path, other / path)
    assert (one / "results.csv").read_text() == (other / "results.csv").read_text()
    card = json.loads((one / "recipe.json").read_text())
    assert len(card["data"]["bank_weights"]) == 64


def test_a_window_of_the_bank_reaches_the_network(rememberer, remembering, baseline, tmp_path):
    recipe = rememberer.run / "recipe.json"
    before = marey.test(recipe, rememberer.checkpoint)
    assert before["metrics"]["map"] == pytest.approx(rememberer.metrics["map"], abs=1e-6)
    keys = read_proposals(remembering["data.val.proposals"]).keys
    wrong = tmp_path / "wrong.csv"  # what the same baseline sees elsewhere
    write_proposals(wrong, Proposals.of({key: [[0.0, 0.0, 0.1, 0.1, 1.0]] for key in keys}))
    build_bank(
        baseline.run / "recipe.json", baseline.checkpoint, tmp_path / "other",
        {"data.val.proposals": str(wrong)}, split="val", quiet=True,
    )  # fmt: skip
    other = {"data.val.bank": str(tmp_path / "other")}
    after = marey.test(recipe, rememberer.checkpoint, other, out=tmp_path / "r.json")
    assert after["metrics"] != before["metrics"]


def test_a_bank_of_other_weights_is_refused(rememberer, remembering, baseline, tmp_path):
    strange, weights = tmp_path / "strange", tmp_path / "strange.safetensors"
    save_checkpoint(
        weights, marey.create_model("slowonly_r50_det", 6, width=4), class_names=("no action", *NAMES),
        preprocess=open_model(baseline.checkpoint).preprocess, recipe={}, metrics={},
    )  # fmt: skip
    build_bank(baseline.run / "recipe.json", weights, strange, split="val", dtype="float32", quiet=True)
    other = {"data.val.bank": str(strange)}
    with pytest.raises(UsageError, match="other weights") as told:  # of two splits
        marey.train("own_boxes", remembering | other, out=tmp_path)
    assert told.value.code == "BANK_MODEL"
    with pytest.raises(UsageError, match="strange") as told:  # of another than it was trained with
        marey.test(rememberer.run / "recipe.json", rememberer.checkpoint, other)
    assert told.value.code == "BANK_MODEL"
    part_of_it = remembering | {"data.train.bank": str(strange), "data.val.bank": str(strange)}
    with pytest.raises(DataError, match="lacks 8 of 8 videos: train000") as told:  # one that is not complete
        marey.train("own_boxes", part_of_it, out=tmp_path)
    assert told.value.code == "BANK_VIDEO"
    with pytest.raises(UsageError) as told:  # which the checkpoint knows, too
        marey.test("own_boxes", rememberer.checkpoint, remembering | other)
    assert told.value.code == "BANK_MODEL"


# Bank -------------------------------------------------------------------------------------------------


def test_a_bank_has_the_features_of_the_boxes_that_count(bank, baseline, films, tiny):
    model = open_model(baseline.checkpoint)
    opened = Bank(bank, model_sha256=model_hash(model))
    assert opened.card.dtype == "float16"
    assert len(opened.videos) == 12
    assert opened.seconds == (1.0, 16.0)
    frames = ava_set(
        read_rows(films.val.annotation, "annotation"),
        proposals=read_proposals(films.val.proposals),
        num_classes=6,
    )
    frame = frames[17]
    features, boxes, scores = opened.rows(frame.video, frame.second)
    assert np.allclose(boxes.numpy(), frame.proposals, atol=1e-6)
    assert np.allclose(scores.numpy(), frame.scores, atol=1e-6)
    video = marey.read_video(films.val.media / f"{frame.video}.mp4")
    clip = video.frames([round(frame.second * 8) - 4, round(frame.second * 8)])  # two frames, four apart
    mean, std = (torch.tensor(v) for v in (model.preprocess.mean, model.preprocess.std))
    clip = ((clip - mean) / std).permute(3, 0, 1, 2).unsqueeze(0)
    with torch.inference_mode():
        wanted = model.box_features(
            clip, [torch.from_numpy(frame.proposals).float() * torch.tensor([48, 32, 48, 32])]
        )
    assert torch.allclose(features.float(), wanted, rtol=2e-3, atol=2e-3)
    assert not check_bank(bank).problems


def test_a_killed_build_goes_on_and_writes_the_same_files(baseline, films, tmp_path, monkeypatch):
    monkeypatch.setattr("marey.jobs.bank_build.SHARD_ROWS", 1)  # a shard for each film
    recipe = baseline.run / "recipe.json"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    built = build_bank(recipe, baseline.checkpoint, whole, split="val", quiet=True)
    assert (built.made, built.kept, built.bank.shards) == (4 * 16, 0, 4)
    child = (
        "import sys; from marey.jobs import bank_build as b; b.SHARD_ROWS = 1; "
        "b.build_bank(*sys.argv[1:4], split='val', quiet=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", child, str(recipe), str(baseline.checkpoint), str(broken)]
    )
    until = time.monotonic() + 60
    while process.poll() is None and not list(broken.glob("*.safetensors")) and time.monotonic() < until:
        time.sleep(0.005)
    process.kill()
    process.wait(30)
    there = {path.name: path.stat().st_mtime_ns for path in broken.glob("*.safetensors")}
    assert 1 <= len(there) < 4
    again = build_bank(recipe, baseline.checkpoint, broken, split="val", quiet=True)
    assert again.kept == 16 * len(there)
    assert again.made == 16 * (4 - len(there))
    for path in whole.glob("*.safetensors"):
        assert (broken / path.name).read_bytes() == path.read_bytes()
        assert there.get(path.name) in (None, (broken / path.name).stat().st_mtime_ns)
    for shard in ("0/2", "1/2"):  # two processes, one folder
        build_bank(
            recipe, baseline.checkpoint, tmp_path / "parts", split="val", shard=part(shard), quiet=True
        )
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == sorted(p.name for p in whole.iterdir())


def test_a_build_that_is_asked_to_stop_keeps_what_is_whole(baseline, tmp_path, monkeypatch):
    monkeypatch.setattr("marey.jobs.bank_build.SHARD_ROWS", 1)
    seen = []

    class Stop:
        def is_set(self):
            seen.append(1)
            return len(seen) > 20  # within the second film

    @contextmanager
    def stop_signals():
        yield Stop()

    monkeypatch.setattr("marey.jobs.bank_build.stop_signals", stop_signals)
    with pytest.raises(MareyError, match="after 1 of 4 shards") as told:
        build_bank(
            baseline.run / "recipe.json", baseline.checkpoint, tmp_path / "bank", split="val", quiet=True
        )
    assert (told.value.code, told.value.exit_code) == ("INTERRUPTED", 130)
    assert list(Bank(tmp_path / "bank").videos) == ["val000"]


def test_a_damaged_shard_is_made_again_and_other_settings_are_refused(baseline, bank, tmp_path):
    recipe, folder = baseline.run / "recipe.json", tmp_path / "bank"
    shutil.copytree(bank, folder)
    built = build_bank(recipe, baseline.checkpoint, folder, split="val", quiet=True)
    assert built.made == 0
    shard = next(p for p in folder.iterdir() if Bank(p).videos.keys() & {"val000"})
    before = shard.read_bytes()
    changed = bytearray(before)
    changed[-3000] ^= 255  # among the features, which are by far the most of it
    shard.write_bytes(changed)
    if check_bank(folder).problems:
        assert build_bank(recipe, baseline.checkpoint, folder, split="val", quiet=True).made == 64
        assert shard.read_bytes() == before
    else:
        pytest.fail("the damage was not among the features")
    for words in ({"dtype": "float32"}, {"overrides": {"data.threshold": 0.5}}):
        with pytest.raises(DataError) as told:
            build_bank(recipe, baseline.checkpoint, folder, split="val", quiet=True, **words)
        assert told.value.code == "BANK_MIXED"


def test_a_film_that_cannot_be_read_is_named_and_the_others_are_kept(baseline, films, tmp_path, monkeypatch):
    monkeypatch.setattr("marey.jobs.bank_build.SHARD_ROWS", 1)
    media = tmp_path / "media"
    shutil.copytree(films.val.media, media)
    (media / "val000.mp4").write_bytes(b"nothing")
    recipe, given = baseline.run / "recipe.json", {"data.val.media": str(media)}
    with pytest.raises(DataError, match=r"val000\.mp4: NOT_MEDIA") as told:
        build_bank(recipe, baseline.checkpoint, tmp_path / "bank", given, split="val", quiet=True)
    assert told.value.code == "INCOMPLETE"
    assert set(Bank(tmp_path / "bank").videos) == {"val001", "val002", "val003"}
    (media / "val000.mp4").write_bytes((films.val.media / "val000.mp4").read_bytes())
    built = build_bank(recipe, baseline.checkpoint, tmp_path / "bank", given, split="val", quiet=True)
    assert (built.made, built.kept) == (16, 48)


def test_only_detectors_and_recipes_of_boxes_make_banks(baseline, tmp_path):
    model = marey.create_model("slowonly_r50", 4, width=4)
    save_checkpoint(
        tmp_path / "r.safetensors", model, preprocess=model.preprocess, class_names=tuple("abcd"), recipe={},
        metrics={},
    )  # fmt: skip
    for words, code in (
        ((baseline.run / "recipe.json", tmp_path / "r.safetensors"), "NO_BOXES"),
        (("finetune", baseline.checkpoint), "RECIPE_KIND"),
    ):
        with pytest.raises(MareyError) as told:
            build_bank(*words, tmp_path / "bank")
        assert told.value.code == code


# A new film -------------------------------------------------------------------------------------------


def test_a_new_film_gives_what_the_test_gives(rememberer, baseline, films, bank):
    """One command's scores equal those of the bank on disk, built and looked up beforehand (float16)."""
    found = list(
        predict_boxes(
            rememberer.checkpoint, films.val.media / "val001.mp4", proposals=films.val.proposals,
            bank_model=baseline.checkpoint, top=5, workers=0, quiet=True,
        )
    )  # fmt: skip
    (film,) = found
    assert film.code is None
    assert not film.skipped
    rows = read_rows(rememberer.run / "results.csv", "result")
    tested = {}
    for key, wide, action, score in zip(
        rows.keys(), rows.boxes.tolist(), rows.action.tolist(), rows.extra, strict=True
    ):
        tested[key, tuple(round(x, 3) for x in wide), action] = score
    compared = 0
    for who in film.persons:
        for action in who.actions:
            key = (f"val001,{int(who.second):04}", tuple(round(x, 3) for x in who.box), action.label)
            if key in tested:
                assert action.score == pytest.approx(tested[key], abs=2e-3)
                compared += 1
    assert compared > 100
    assert {who.track for who in film.persons} == {0, 1}  # two persons, who keep their numbers
    assert {who.second for who in film.persons} == set(range(1, 17))


def test_the_command_writes_lines_and_a_film(rememberer, baseline, films, tmp_path):
    out, seen = tmp_path / "out.jsonl", tmp_path / "out.mp4"
    words = [
        "predict", films.val.media / "val000.mp4", "--checkpoint", rememberer.checkpoint,
        "--bank-checkpoint", baseline.checkpoint, "--proposals", films.val.proposals,
        "--out", out, "--video", seen, "--top", "2", "--device", "cpu",
    ]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == sum("person" in line and " s  " in line for line in done.stdout.splitlines()) == 32
    first = lines[0]
    assert first.keys() == {"source", "second", "box", "track", "actions", "person"}
    assert len(first["actions"]) == 2
    assert first["actions"][0].keys() == {"label", "name", "score"}
    with marey.read_video(seen) as video, marey.read_video(films.val.media / "val000.mp4") as before:
        assert len(video) == len(before)
    for option, value in (("--span", "2s"), ("--submission", None), ("--person-detector", "x.pth")):
        wrong = CliRunner().invoke(app, [*map(str, words), option, *([value] if value else [])])
        assert wrong.exception.code == "USAGE"


def test_wrong_use_is_told(rememberer, baseline, films, tmp_path, monkeypatch):
    monkeypatch.setenv("MAREY_OFFLINE", "1")
    monkeypatch.setenv("MAREY_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    film, boxes = films.val.media / "val000.mp4", films.val.proposals
    for words, code, text in (
        ({"bank_model": baseline.checkpoint}, "WEIGHTS_OFFLINE", "put it at"),
        ({"proposals": boxes}, "NO_BANK", "--bank-checkpoint"),
        ({"proposals": boxes, "bank_model": rememberer.checkpoint}, "BANK_MODEL", "trained with a bank"),
        ({"proposals": boxes, "bank_model": baseline.checkpoint, "every": 0.5}, "EVERY", "time step of 1 s"),
    ):
        with pytest.raises(MareyError, match=text) as told:
            list(predict_boxes(rememberer.checkpoint, film, workers=0, quiet=True, **words))
        assert told.value.code == code
    with pytest.raises(UsageError, match="takes no bank"):
        list(
            predict_boxes(
                baseline.checkpoint, film, proposals=boxes, bank_model=baseline.checkpoint, quiet=True
            )
        )
    with pytest.raises(UsageError, match="boxes of persons") as told:
        list(marey.predict(baseline.checkpoint, film))
    assert told.value.code == "NO_CLIPS"
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    films_ = [tmp_path / "bad.mp4", films.val.media / "val001.mp4", films.train.media / "train000.mp4"]
    bad, good, unknown = predict_boxes(baseline.checkpoint, films_, proposals=boxes, workers=0, quiet=True)
    assert bad.code == "NOT_MEDIA"
    assert good.code is None
    assert unknown.code == "NO_PERSONS"
    assert len(good.persons) == 32
    assert json.loads(next(bad.lines()))["code"] == "NOT_MEDIA"
    every = list(
        predict_boxes(baseline.checkpoint, films_[1], proposals=boxes, every=0.5, workers=0, quiet=True)
    )
    assert len(every[0].persons) == 32  # the file says when, not the distance


def test_a_person_detector_tells_where_persons_are(baseline, films, monkeypatch):
    class Detector:
        name = "fake"

        def __init__(self, source, device):
            assert source == "somewhere.pth"

        def __call__(self, frames):
            bright = [frame.float().std() > 0 for frame in frames]
            return [Found(np.array([[0.1, 0.1, 0.5, 0.9]] * b), np.array([0.7] * b)) for b in bright]

    monkeypatch.setattr("marey.jobs.predict_boxes.PersonDetector", Detector)
    film = films.val.media / "val000.mp4"
    (seen,) = predict_boxes(baseline.checkpoint, film, person_detector="somewhere.pth", workers=0, quiet=True)
    assert [who.second for who in seen.persons] == list(range(18))  # the whole film
    assert {who.track for who in seen.persons} == {0}
    assert seen.persons[0].person == pytest.approx(0.7)
    halves = predict_boxes(
        baseline.checkpoint, film, person_detector="somewhere.pth", every=0.5, workers=0, quiet=True
    )
    assert len(next(iter(halves)).persons) == 36


# What it is for ---------------------------------------------------------------------------------------


def test_only_a_bank_tells_what_happened_long_before(tiny, baseline, bank, tmp_path):
    """The answers' pixels are the same for both colours: 0.5 is what guessing reaches, whatever is learnt."""
    with_bank = {
        "model.weights": str(baseline.checkpoint),
        "model.options": {
            "width": 4,
            "long_term": "max",
            "frozen_stages": 4,
            "norm_eval": True,
            "dropout": 0.1,
        },
        "training.optimizer.lr": 0.1,
        "training.epochs": 14,
        "training.validate_every": 14,
        "data.train.bank": str(bank),
        "data.val.bank": str(bank),
    }
    trained = marey.train("own_boxes", tiny | with_bank, out=tmp_path, validate=True)
    found = {}
    for name, run in (("alone", baseline.run), ("with a bank", trained.run)):
        rows = json.loads((run / "results.json").read_text())["per_class"]
        found[name] = [row["ap"] for row in rows if row["class"].startswith("answer")]
    alone, helped = np.mean(found["alone"]), np.mean(found["with a bank"])
    assert alone < 0.6
    assert helped > alone + 0.25
