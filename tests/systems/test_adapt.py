"""Rounds of adaptation, whole: killed in every stage and resumed, with the same files in the end."""

import csv
import json
import os
import re
import shutil

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from marey.data.lists import read_list
from marey.errors import DataError, UsageError
from marey.jobs import rounds as job
from marey.jobs.epochs import Epochs
from marey.jobs.provenance import sha256_of
from marey.jobs.rounds import adapt, read_plan, status
from marey.jobs.rounds_plan import Plan, Views, recipes_of
from marey.jobs.rounds_report import lines, write_page
from marey.scores.labels import read_labels
from marey.scores.select import Filters
from marey.video.light import Light
from marey.video.reader import read_video
from marey.video.synthetic import darken, render_moving_shapes, write_video

from .conftest import arguments

SMALL = {
    "model.options": {"width": 8, "segments": 2},
    "clips.frames": 2,
    "clips.short_side": 32,
    "clips.crop": 32,
    "clips.val.crop": 32,
    "clips.test.crop": 32,
    "clips.flip": 0.0,
    "clips.flip_labels": [],
    "training.epochs": 1,
    "training.batch": 8,
    "training.log_every": 1,
    "data.workers": 0,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Lists of 12 labelled daylight clips, 8 dark ones, and 4 others for the test, of two classes."""
    folder = tmp_path_factory.mktemp("domains")
    classes = ("move_left", "move_up")
    lists = render_moving_shapes(folder, train=6, val=4, test=2, size=(40, 40), frames=6, classes=classes)
    for listed in (lists.val, lists.test):
        clips = read_list(listed)
        for number, entry in enumerate(clips):
            with read_video(entry.path) as video:
                pixels = video.frames(range(len(video))).numpy()
            write_video(entry.path, darken(pixels, generator=np.random.default_rng(number)), fps=12)
    return lists


def plan_of(places, **fields):
    members = recipes_of(
        ["a=demo.moving_shapes", "b=demo.moving_shapes"],
        arguments(SMALL),
    )
    settings = {
        "members": members,
        "source": str(places.train),
        "target": str(places.val),
        "rounds": 1,
        "norms": 1,
    }
    return Plan(**(settings | fields))


def contents(folder):
    """What an adaptation made, by name; without dates, logs and times of steps."""
    told = (
        "manifest.json",
        "begun.json",
        "state.json",
        "plan.json",
        "log.txt",
        "metrics.csv",
        "environment.json",
    )
    kinds = (".parquet", ".safetensors", ".csv")
    return {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in kinds and not path.name.endswith(told)
    }


@pytest.fixture(scope="module")
def whole(places, tmp_path_factory):
    """An unbroken adaptation with everything that is chosen by no label."""
    folder = tmp_path_factory.mktemp("whole")
    plan = plan_of(
        places,
        test=str(places.test),
        truth=str(places.val),
        experts=recipes_of(["c=demo.moving_shapes"], arguments(SMALL)),
        views=Views(lights=(Light(), Light(gamma=0.5))),
        policies=("quantile:0.6",),
    )
    return plan, adapt(plan, folder / "out")


def test_the_stages_leave_what_they_made_of_what(whole):
    _, found = whole
    stages = json.loads((found.folder / "state.json").read_text())["stages"]
    trained = ["step0/train-a", "step0/train-b", "step1/train-a", "step1/train-b", "step1/train-c"]
    assert [name for name in stages if "train" in name] == trained
    assert {row["status"] for row in stages.values()} == {"done"}
    labels = stages["step1/labels"]
    for name in "ab":  # a chain of hashes from checkpoint to scores to labels to the next checkpoint
        score, train = stages[f"step0/score-target-{name}"], stages[f"step1/train-{name}"]
        first = stages[f"step0/train-{name}"]["outputs"]["checkpoint"]["sha256"]
        assert score["inputs"]["checkpoint"]["sha256"] == train["inputs"]["weights"]["sha256"] == first
        assert labels["inputs"][f"scores {name}"]["sha256"] == score["outputs"]["scores"]["sha256"]
        assert train["inputs"]["labels"]["sha256"] == labels["outputs"]["labels"]["sha256"]
    table = read_labels(found.folder / "step1/labels/labels.parquet")
    assert (table.origin.round, table.origin.labels_used) == (1, "")
    assert len(table) == 8 and 0 < table.kept.sum() < 8
    assert set(table.origin.models) == {"a", "b"}
    rows = list(csv.DictReader((found.folder / "step1/labels/labels.csv").open()))
    assert len(rows) == 8 and {"prob_move_left", "agreement", "threshold"} <= rows[0].keys()
    one, other = (stages[f"step0/train-{name}"]["outputs"]["checkpoint"]["sha256"] for name in "ab")
    assert one != other
    one, other = (stages[f"step0/train-{name}"]["outputs"]["checkpoint"]["sha256"] for name in "ab")
    assert one != other, "equal recipes, unequal networks"
    bare = list(csv.DictReader((found.folder / "target.csv").open()))
    assert {row["label"] for row in bare} == {"-1"}
    voted = list(csv.DictReader((found.folder / "final/vote-test/vote.csv").open()))
    assert len(voted) == 4
    assert set(status(found.folder).values()) == {"done"}


def test_the_report_says_what_each_step_is_worth(whole):
    _, found = whole
    report = found.report
    assert report == json.loads((found.folder / "report.json").read_text())
    assert (report["members"], report["experts"], report["labels_used"]) == (["a", "b"], ["c"], [])
    assert [row["step"] for row in report["steps"]] == [0, 1]
    for row in report["steps"]:
        assert row["ensemble"]["rows"] == 8 and row["members"]["a"]["rows"] == 8
    assert report["steps"][1]["pseudo_labels"]["measured"]["rows"] > 0
    assert report["final"]["test"]["ensemble"]["rows"] == 4
    text = "\n".join(lines(report))
    assert "round 1" in text and "final, test" in text
    page = write_page(found.folder).read_text()
    for part in ("Accuracy", "Labels", "Agreement", "Confusion", "Confident", "Dark"):
        assert part in page
    assert "labels of the target were used" not in page.lower()
    dark = page.partition('id="dark"')[2].partition("</section>")[0]
    pairs = [re.findall(r'src="(data:[^"]+)"', figure) for figure in dark.split("<figure")[1:]]
    assert len(pairs) == 6 and all(len(set(pair)) == 2 for pair in pairs), "as it is, and corrected"


def test_a_second_run_does_nothing(whole, monkeypatch):
    plan, found = whole
    before = contents(found.folder)
    for name in ("train", "score_videos", "pseudo_label"):
        monkeypatch.setattr(job, name, lambda *_, **__: pytest.fail("a finished stage ran again"))
    adapt(plan, found.folder)
    assert contents(found.folder) == before


def test_what_was_changed_is_done_again_and_nothing_before_it(whole, tmp_path):
    plan, found = whole
    folder = tmp_path / "copy"
    shutil.copytree(found.folder, folder)
    (folder / "step1/labels/labels.parquet").write_bytes(b"broken")
    assert status(folder)["step1/labels"] == "changed"
    said = []
    again = adapt(plan, folder, say=said.append)
    begun = [text for text in said if "begins" in text or "continues" in text]
    assert [text.partition(":")[0] for text in begun] == ["step1/labels"], "its result is the same as before"
    assert contents(folder) == contents(found.folder) and again.report == found.report
    other = msgspec.structs.replace(plan, policies=("quantile:0.9",), experts={}, test=None)
    said.clear()
    adapt(other, folder, say=said.append)
    assert "step0/train-a: done before" in said and "step1/labels: begins" in said
    assert "step1/train-a: begins" in said


class Killed(BaseException):
    """As if the machine went down."""


def test_killed_in_every_stage_it_ends_with_the_same_files(places, tmp_path, monkeypatch):
    plan = plan_of(places, members=recipes_of(["a=demo.moving_shapes"], arguments(SMALL)), sharpen=True,
                   soft=True, ema=0.5, calibrate=True, val=str(places.train))  # fmt: skip
    whole = adapt(plan, tmp_path / "run")
    expected = contents(whole.folder)
    shutil.rmtree(whole.folder)
    writes, steps = [], []
    card, after = job.write_card, Epochs._after

    def card_then_die(path, *args, **kwargs):
        """Dies before the first attempt at each card."""
        name = str(path)
        if name not in writes:
            writes.append(name)
            raise Killed
        return card(path, *args, **kwargs)

    def step_then_die(self, step):
        """And within each training once."""
        after(self, step)
        if str(self.run.folder) not in steps:
            steps.append(str(self.run.folder))
            raise Killed

    monkeypatch.setattr(job, "write_card", card_then_die)
    monkeypatch.setattr(Epochs, "_after", step_then_die)
    kills = 0
    while True:
        try:
            found = adapt(plan, tmp_path / "run")
            break
        except Killed:
            kills += 1
            assert kills < 40
    assert kills == len(writes) + len(steps) and len(steps) == 2
    assert len(writes) == len(json.loads((found.folder / "state.json").read_text())["stages"])
    assert contents(found.folder) == expected and found.report == whole.report


def test_a_test_video_among_those_learnt_from_is_refused(places, tmp_path):
    clips = read_list(places.val)
    copy = tmp_path / "other name.mp4"
    shutil.copy(clips[3].path, copy)
    listed = tmp_path / "test.csv"
    listed.write_text(f"path,label\n{copy.name},0\n")
    with pytest.raises(DataError, match="same content") as error:
        adapt(plan_of(places, test=str(listed)), tmp_path / "a")
    assert error.value.code == "TEST_LEAK"
    shutil.copy(read_list(places.train)[0].path, copy)
    with pytest.raises(DataError, match="source") as error:
        adapt(plan_of(places, test=str(listed)), tmp_path / "b")
    assert error.value.code == "TEST_LEAK"


def test_labels_of_the_target_are_used_only_if_that_is_asked_for_and_then_said(places, tmp_path):
    preset = tmp_path / "own.json"
    mix = {"step": "mix", "weights": {"a": 1.0}}
    rows = {"policy": "global", "threshold": 0.0}
    own = {"kind": "ensemble", "about": "a alone", "members": {"a": "probabilities"}, "steps": [mix]}
    preset.write_text(json.dumps({"own": own | {"select": rows, "selected_on": "tuned by hand"}}))
    plan = plan_of(
        places,
        members=recipes_of(["a=demo.moving_shapes"], arguments(SMALL)),
        truth=str(places.val),
        select="published",
        rounds=2,
        policies=("precision:0.5", "preset"),
        presets=(str(preset),),
    )
    found = adapt(plan, tmp_path / "out")
    assert len(found.report["labels_used"]) == 3 and found.report["labels_used"][2].endswith("tuned by hand")
    assert "true labels of the target" in "\n".join(lines(found.report))
    assert "true labels of the target" in write_page(found.folder).read_text()
    first, second = (read_labels(tmp_path / f"out/step{k}/labels/labels.parquet") for k in (1, 2))
    assert first.origin.labels_used and second.kept.all(), "the second round's policy is the preset's"


def test_plans_that_cannot_be_are_refused(places):
    for fields in (
        {"members": {}}, {"rounds": -1}, {"select": "published"}, {"calibrate": True},
        {"policies": ("fbeta:1",)}, {"policies": ()},
    ):  # fmt: skip
        with pytest.raises(UsageError) as error:
            plan_of(places, **fields)
        assert error.value.code == "ADAPT_PLAN"
    for texts in (["demo.moving_shapes"] * 2, ["a=demo.moving_shapes"]):
        with pytest.raises(UsageError) as error:
            recipes_of(texts, ["x:clips.flip=0"] if len(texts) == 1 else [])
        assert error.value.code == "ADAPT_PLAN"
    with pytest.raises(UsageError):
        read_plan(os.devnull)
    members = recipes_of(
        ["a=demo.moving_shapes", "b=demo.moving_shapes"], ["b:clips.crop=32", "training.epochs=3"]
    )
    assert [made.clips.crop for made in members.values()] == [64, 32]
    assert {made.training.epochs for made in members.values()} == {3}


def test_networks_are_calibrated_by_the_norms_of_the_source(places, tmp_path):
    """The labelled videos are the source's; what is scored on the target keeps the target's norms."""
    adapt(plan_of(places, rounds=0, calibrate=True, val=str(places.train), norms=1), tmp_path)
    made = json.loads((tmp_path / "step0/score-val-a/stage.manifest.json").read_text())["inputs"]
    home = tmp_path / "step0/source-norms-a/source-norms.safetensors"
    assert made["checkpoint"]["sha256"] == sha256_of(home)
    used = json.loads((tmp_path / "step0/score-target-a/stage.manifest.json").read_text())["inputs"]
    adapted = next(tmp_path.glob("step0/train-a/*/1/checkpoints/last.safetensors"))
    assert used["checkpoint"]["sha256"] == sha256_of(adapted)
    one, other = load_file(home), load_file(adapted)
    changed = {name.rpartition(".")[2] for name in one if not torch.equal(one[name], other[name])}
    assert (
        {"running_mean", "running_var"} <= changed <= {"running_mean", "running_var", "num_batches_tracked"}
    )


def test_filters_and_norms_reach_the_stages(places, tmp_path):
    plan = plan_of(places, norms=0, rounds=0, filters=Filters(agreement=1.0))
    found = adapt(plan, tmp_path)
    assert found.report["steps"][0]["ensemble"] is None, "no truth, nothing measured"
    recipe = json.loads(next(tmp_path.glob("step0/train-a/*/1/recipe.json")).read_text())
    assert recipe["adapt"] is None and recipe["training"]["precise_bn"] == 0
