"""A teacher and a student, from rendered clips to a student that needs nothing else."""

import csv
import shutil

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import marey
from marey.data.lists import Entry
from marey.data.workers import Pool
from marey.errors import UsageError, WeightsError
from marey.jobs.distillation import Distillation, as_fed
from marey.jobs.evaluate import Scored, measure
from marey.jobs.recognition import Examples
from marey.jobs.runs import Run
from marey.recipes.catalog import load_recipe
from marey.recipes.schema import Distill, Model
from marey.training.distill import Teacher
from marey.training.distributed import launch
from marey.video.preprocess import Preprocess, normalize, to_input_size
from marey.weights.create import open_model

from .conftest import TINY

OPTIONS = {"width": 8, "segments": 4}
TINY_MVIT = {"frames": 4, "crop": 32, "channels": 8, "depth": 4, "starts": [1, 3]}


@pytest.fixture(scope="module")
def places(shapes):
    return TINY | {
        "data.train": str(shapes.train), "data.val": str(shapes.val), "data.test": str(shapes.test),
        "data.workers": 0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def teacher(places, tmp_path_factory):
    """Its checkpoint."""
    out = tmp_path_factory.mktemp("teacher")
    return marey.train("demo.moving_shapes", places | {"training.epochs": 1}, out=out).checkpoint


def pair(places, teacher, **settings):
    """The recipe of a student at 16 pixels whose teacher is at 32."""
    recipe = load_recipe("demo.moving_shapes", places | {"clips.input_size": 16})
    settings = {"logit_kl": 1.0} | settings
    model = Model(name="tsm_r18", weights=str(teacher), options=OPTIONS)
    return msgspec.structs.replace(recipe, distill=Distill(teacher=model, **settings))


def task(recipe, tmp_path):
    """The task of a recipe, ready for its first step."""
    recipe, lists = Distillation.prepare(recipe, validate=None)
    pool = Pool(0, 60.0)
    fabric = launch(accelerator="cpu", devices=1, nodes=1)
    return Distillation(recipe, lists, fabric=fabric, run=Run(tmp_path, quiet=True), pool=pool, seed=0)


@pytest.fixture(scope="module")
def trained(places, teacher, tmp_path_factory):
    recipe = pair(places, teacher, feature_mse=1.0, map_kl=1.0, statistics="batch")
    return marey.train(recipe, out=tmp_path_factory.mktemp("student"))


def test_the_terms_are_written_and_add_up(trained):
    rows = [row for row in csv.DictReader((trained.run / "metrics.csv").open()) if row["loss"]]
    assert len(rows) == 10
    for row in rows:
        parts = float(row["loss_class"]) + float(row["loss_distill"])
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-4)
        assert 0 <= float(row["top1"]) <= 1 and float(row["loss_distill"]) > 0


def test_the_student_is_a_plain_network_that_carries_its_way_of_seeing(trained, shapes, tmp_path):
    alone = tmp_path / "student.safetensors"
    shutil.copy(trained.checkpoint, alone)
    network = open_model(alone)
    assert network.preprocess.input_size == 16 and network.preprocess.crop == 32
    assert not [name for name in load_file(alone) if "network" in name or "projection" in name]
    saved = network.metadata["recipe"]["distill"]
    assert saved["teacher"]["name"] == "tsm_r18" and len(saved["sha256"]) == 64
    marey.test(trained.run / "recipe.json", alone, out=tmp_path / "results.json")
    table = pq.read_table(tmp_path / "results.parquet").to_pylist()
    for row, told in zip(table, marey.predict(alone, shapes.test, top=6), strict=True):
        scores = {c.label: c.score for c in told.classes}
        assert [scores[i] for i in range(6)] == pytest.approx(row["scores"], abs=1e-5)
    frames = torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        reduced = torch.nn.functional.avg_pool3d(normalize(frames, Preprocess()), (1, 2, 2))
        assert torch.allclose(network(normalize(frames, network.preprocess)), network(reduced), atol=1e-5)


def test_a_killed_training_goes_on_to_the_same_bits(places, teacher, tmp_path, monkeypatch):
    recipe = pair(places, teacher, map_kl=1.0)
    whole = marey.train(recipe, out=tmp_path / "a")
    calls, before = [], Distillation.outcome

    def killed(self, model, batch):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return before(self, model, batch)

    monkeypatch.setattr(Distillation, "outcome", killed)
    with pytest.raises(KeyboardInterrupt):
        marey.train(recipe, out=tmp_path / "b")
    monkeypatch.setattr(Distillation, "outcome", before)
    resumed = marey.train(recipe, out=tmp_path / "b", resume=True)
    one, other = (load_file(t.run / "checkpoints" / "last.safetensors") for t in (whole, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_another_teacher_does_not_continue_a_run(places, teacher, trained, tmp_path):
    other = tmp_path / "other.safetensors"
    shutil.copy(trained.checkpoint, other)
    recipe = pair(places, other)
    changed = msgspec.structs.replace(
        recipe, distill=msgspec.structs.replace(recipe.distill, sha256="0" * 64)
    )
    with pytest.raises(UsageError) as error:
        Distillation.prepare(changed, validate=None)
    assert error.value.code == "TEACHER_CHANGED"
    missing = msgspec.structs.replace(recipe, distill=Distill(teacher=Model(name="tsm_r18"), logit_kl=1.0))
    with pytest.raises(UsageError) as error:
        Distillation.prepare(missing, validate=None)
    assert error.value.code == "NO_TEACHER"


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_a_step_changes_the_student_and_nothing_of_the_teacher(places, teacher, tmp_path, statistics):
    work = task(pair(places, teacher, feature_mse=1.0, map_kl=1.0, statistics=statistics), tmp_path)
    before = {name: value.clone() for name, value in work.teacher.network.state_dict().items()}
    learner = work.learner.train()
    outcome = work.outcome(learner, next(work.examples(0, 0)))
    outcome.loss.backward()
    assert all(p.grad is not None for p in learner.parameters())
    torch.optim.SGD(learner.parameters(), lr=0.1).step()
    assert all(torch.equal(value, before[n]) for n, value in work.teacher.network.state_dict().items())
    assert all(p.grad is None for p in work.teacher.network.parameters())
    assert not {id(p) for p in work.teacher.network.parameters()} & {id(p) for p in learner.parameters()}


def test_the_same_network_at_the_same_size_has_nothing_to_learn_from_itself(places, teacher, tmp_path):
    recipe = pair(places, teacher, feature_mse=1.0, map_kl=1.0, logit_kl=1.0, precision="32")
    recipe = msgspec.structs.replace(
        recipe,
        model=msgspec.structs.replace(recipe.model, weights=str(teacher)),
        clips=msgspec.structs.replace(recipe.clips, input_size=None),
    )
    work = task(recipe, tmp_path)
    outcome = work.outcome(work.learner.eval(), next(work.examples(0, 0)))
    assert float(outcome.terms["loss_distill"]) == pytest.approx(0, abs=1e-6)


class Ramps:
    """A video whose pixels say where they are."""

    fps = 10.0

    def __init__(self, width, height):
        x = torch.arange(width).expand(height, width)
        y = torch.arange(height).unsqueeze(1).expand(height, width)
        self.picture = torch.stack([x, y, torch.zeros_like(x)], 2).to(torch.uint8)

    def __len__(self):
        return 8

    def frames(self, indices):
        return self.picture.expand(len(indices), *self.picture.shape).clone()


def test_teacher_and_student_see_the_same_crop_of_the_same_frames(places, teacher, tmp_path, monkeypatch):
    """A ramp of coordinates: at every place the student's pixel is the mean of the teacher's four."""
    work = task(pair(places, teacher), tmp_path)
    clips = msgspec.structs.replace(work.recipe.clips, train_crop="area", flip=0.5)
    seen = {}
    before = work.teacher
    monkeypatch.setattr(work, "teacher", lambda clip: before(seen.setdefault("teacher", clip)))

    class Watched(torch.nn.Module):
        def forward(self, clip):
            seen["student"] = clip
            return work.learner(clip)

    rng = np.random.default_rng(3)
    made = [clips.train(Ramps(200, 120), rng) for _ in range(6)]
    frames = torch.stack([clip.frames for clip in made])
    mirrored = torch.tensor([clip.mirrored for clip in made])
    assert mirrored.any() and not mirrored.all()
    batch = Examples(normalize(frames, work.seen, mirrored), torch.zeros(6, dtype=torch.int64), 6)
    work.outcome(Watched().train(), batch)
    assert seen["teacher"].shape[3:] == (32, 32) and seen["student"].shape[3:] == (16, 16)
    means = torch.nn.functional.avg_pool3d(seen["teacher"], (1, 2, 2))
    assert torch.allclose(seen["student"], means, atol=1e-5)


def test_pairs_that_do_not_go_together_are_refused_before_the_first_step(places, teacher, trained, tmp_path):
    for settings, change, code in (
        ({"feature_mse": 1.0}, {"options": OPTIONS | {"width": 16}}, "DISTILL_CHANNELS"),
        ({"map_kl": 1.0}, {"name": "mvit_v2_s", "options": TINY_MVIT}, "DISTILL_MAPS"),
        ({}, {"num_classes": 5}, "LABEL_RANGE"),
    ):
        recipe = pair(places, teacher, **settings)
        recipe = msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, **change))
        with pytest.raises((UsageError, marey.MareyError)) as error:
            task(recipe, tmp_path)
        assert error.value.code == code
    recipe = pair(places, teacher)
    fewer = msgspec.structs.replace(recipe.distill.teacher, num_classes=5)
    recipe = msgspec.structs.replace(recipe, distill=msgspec.structs.replace(recipe.distill, teacher=fewer))
    with pytest.raises(WeightsError, match="no classifier for 5 classes"):
        task(recipe, tmp_path)
    adapted = pair(places, teacher, feature_mse=1.0, logit_kl=0.0, projection=True)
    wide = msgspec.structs.replace(adapted.model, options=OPTIONS | {"width": 16})
    work = task(msgspec.structs.replace(adapted, model=wide), tmp_path)
    assert work.learner.projection.weight.shape[:2] == (64, 128)
    assert work.outcome(work.learner, next(work.examples(0, 0))).loss.isfinite()


def test_a_teacher_that_is_fed_otherwise_gets_its_own_colours():
    ours = Preprocess(input_size=16, crop=32)
    theirs = Preprocess(mean=(114.75,) * 3, std=(57.375,) * 3, channel_order="bgr", crop=32)
    frames = torch.randint(0, 256, (2, 3, 32, 32, 3), dtype=torch.uint8)
    whole = msgspec.structs.replace(ours, input_size=None)
    assert torch.allclose(
        as_fed(normalize(frames, whole), ours, theirs), normalize(frames, theirs), atol=1e-5
    )
    clip = normalize(frames, whole)
    assert as_fed(clip, ours, whole) is clip
    assert torch.equal(as_fed(clip, ours, ours), to_input_size(clip, ours))


def test_one_of_several_labels_is_drawn_anew_at_each_visit(places, teacher, tmp_path):
    work = task(pair(places, teacher), tmp_path)
    batch = next(iter(work.batches(0, first_step=0)))
    several = msgspec.structs.replace(work.recipe.data, multi_label=True, labels="one")
    work.recipe = msgspec.structs.replace(work.recipe, data=several)
    targets = torch.zeros(8, 6)
    targets[:, [1, 4]] = 1
    batch = batch._replace(targets=targets)
    drawn = torch.stack([work._targets(batch, epoch) for epoch in range(40)])
    assert drawn.dtype == torch.int64 and set(drawn.unique().tolist()) == {1, 4}
    assert all(set(column.tolist()) == {1, 4} for column in drawn.T)
    assert torch.equal(work._targets(batch, 3), drawn[3]), "a function of seed, epoch and sample"
    several = msgspec.structs.replace(several, labels="shared")
    work.recipe = msgspec.structs.replace(work.recipe, data=several)
    assert torch.equal(work._targets(batch, 0), targets / 2)
    assert not several.independent and msgspec.structs.replace(several, labels="each").independent


def test_a_teacher_whose_answers_are_kept_is_asked_once(places, teacher, tmp_path, monkeypatch):
    """Three epochs of two views: the same bits with an empty folder and a full one, and no question then."""
    recipe = pair(places | {"training.epochs": 3}, teacher, map_kl=1.0, cache=str(tmp_path / "said"), views=2)
    asked, before = [], Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, clip: asked.append(len(clip)) or before(self, clip))
    first = marey.train(recipe, out=tmp_path / "a")
    assert sum(asked) == 1 + 2 * 36, "one for the shapes, then each of 36 clips in two views"
    asked.clear()
    again = marey.train(recipe, out=tmp_path / "b")
    assert sum(asked) == 1
    one, other = (load_file(t.run / "checkpoints" / "last.safetensors") for t in (first, again))
    assert all(torch.equal(one[k], other[k]) for k in one)
    with pytest.raises(UsageError, match="seed") as error:
        marey.train(recipe, out=tmp_path / "c", seed=1)
    assert error.value.code == "DISTILL_CACHE"
    other = msgspec.structs.replace(recipe, clips=msgspec.structs.replace(recipe.clips, train_crop="area"))
    with pytest.raises(UsageError, match=r"clips\.train_crop"):
        marey.train(other, out=tmp_path / "c")


def test_kept_answers_are_those_of_the_teacher_to_half_precision(places, teacher, tmp_path):
    recipe = pair(places, teacher, map_kl=1.0, cache=str(tmp_path / "said"), views=2)
    work = task(recipe, tmp_path / "run")
    batch = next(work.examples(0, 0))
    said = work.teacher(batch.clip)
    for kept in (work.ask(batch), work.ask(batch)):
        for ours, theirs in zip(kept, said, strict=True):
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs.half().float())
    assert work.draws(4) == 0 and work.draws(5) == 1
    for wrong in ({"feature_mse": 1.0}, {"statistics": "batch"}, {"drop_path": True}, {"views": 0}):
        with pytest.raises(UsageError, match="distill"):
            pair(places, teacher, cache="said", **wrong)


def test_classes_that_share_a_softmax_are_scored_by_it():
    """Two labels each, logits averaged: the loss is of probabilities that sum to one, mAP as ever."""
    clips = [Entry("a", (0, 1)), Entry("b", (0, 1))]
    logits = np.log(np.array([[0.6, 0.2, 0.1, 0.05, 0.03, 0.02]] * 2))
    scored = Scored([0, 1], list(logits), [])
    found = [measure(scored, clips, 6, True, "score", sigmoids=s)["metrics"] for s in (False, True)]
    right = np.where([1, 1, 0, 0, 0, 0], np.exp(logits[0]), 1 - np.exp(logits[0]))
    assert found[0]["loss"] == pytest.approx(-np.log(right).mean(), rel=1e-6)
    assert found[1]["loss"] != pytest.approx(found[0]["loss"], rel=1e-2)
    assert found[0]["map"] == found[1]["map"] == 1
