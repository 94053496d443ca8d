"""A labelled source and a target: whose clips set the batch norms, which steps come when, and kills."""

import csv
import dataclasses
from functools import partial

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import marey
from marey.data.clips import train_batches
from marey.data.lists import read_list
from marey.data.workers import Pool
from marey.errors import DataError, UsageError
from marey.jobs.adaptation import LABELLED, MEASURED, Adaptation
from marey.jobs.runs import Run
from marey.recipes.catalog import load_recipe
from marey.recipes.schema import Adapt, Pseudo
from marey.scores.labels import pseudo_labels, write_labels, write_list, write_published_labels
from marey.scores.select import Quantile
from marey.scores.table import score_table
from marey.scores.vote import combine, equal, inputs
from marey.training.distributed import launch
from marey.video.preprocess import normalize
from marey.weights.create import open_model

from .conftest import TINY


@pytest.fixture(scope="module")
def places(shapes):
    return TINY | {"data.train": str(shapes.train), "data.workers": 0, "training.epochs": 1}


@pytest.fixture(scope="module")
def table(shapes):
    """Pseudo-labels of the test clips, two thirds of each class kept, beside the list."""
    clips = read_list(shapes.test)
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((len(clips), 6))
    ids = [clips.written(i) for i in range(len(clips))]
    ensemble = equal(["a"])
    tables = {"a": score_table(ids, logits=logits, clips=1)}
    combined = combine(ensemble, inputs(ensemble, tables))
    labels = pseudo_labels(ids, combined, Quantile(share=0.7), classes=clips.classes)
    write_labels(shapes.test.parent / "labels.parquet", labels)
    write_labels(shapes.test.parent / "labels.csv", labels)
    write_list(shapes.test.parent / "kept.csv", labels)
    write_published_labels(shapes.test.parent / "published.csv", labels)
    return labels


def recipe_of(places, **adapt):
    recipe = load_recipe("demo.moving_shapes", places)
    return msgspec.structs.replace(recipe, adapt=Adapt(**adapt))


def task(recipe, tmp_path):
    recipe, lists = Adaptation.prepare(recipe, validate=None)
    fabric = launch(accelerator="cpu", devices=1, nodes=1)
    return Adaptation(recipe, lists, fabric=fabric, run=Run(tmp_path, quiet=True), pool=Pool(0, 60.0), seed=0)


def test_the_statistics_are_those_of_the_target_and_its_labels_are_not_read(places, shapes, tmp_path):
    bare = tmp_path / "bare.csv"  # no labels at all
    rows = list(csv.reader(shapes.test.open()))[1:]
    bare.write_text("".join(f"{path},-1\n" for path, *_ in rows))
    settings = places | {"training.precise_bn": 2}
    found = [
        marey.train(
            recipe_of(settings, target=str(listed), root=str(shapes.test.parent)), out=tmp_path / name
        )
        for name, listed in (("bare", bare), ("labelled", shapes.test))
    ]
    one, other = (load_file(run.checkpoint) for run in found)
    assert all(torch.equal(one[name], other[name]) for name in one)
    saved, recipe = open_model(found[0].checkpoint), load_recipe(found[0].run / "recipe.json")
    clips = read_list(shapes.test).relabelled(np.zeros(18, np.int64))
    with Pool(0, 60) as pool:
        drawn = train_batches(
            clips, recipe.clips, pool=pool, batch=8, seed=MEASURED, epoch=0, num_classes=6, multi_label=False
        )
        batches = [batch for _, batch in zip(range(2), drawn, strict=False)]
    with torch.no_grad():
        fed = [normalize(batch.frames, recipe.clips, batch.mirrored) for batch in batches]
        maps = torch.cat([saved.trunk.stem.conv(clip.transpose(1, 2).flatten(0, 1)) for clip in fed])
    assert torch.allclose(saved.trunk.stem.bn.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)


def noted(taken, before, batch, epoch):
    taken.append(batch)
    return before(batch, epoch)


def test_published_statistics_are_of_the_same_videos_each_epoch(places, shapes, tmp_path):
    settings = places | {"training.precise_bn": 1, "training.epochs": 3}
    seen = {}
    for same in (True, False):
        work = task(recipe_of(settings, target=str(shapes.test), same=same), tmp_path / str(same))
        taken = []
        measured = work.measured
        before = measured._on_device
        measured._on_device = partial(noted, taken, before)
        clips = [next(work.norm_inputs(epoch)) for epoch in (0, 1)]
        seen[same] = [batch.indices.tolist() for batch in taken], clips
    order, clips = seen[True]
    assert order[0] == order[1] and not torch.equal(*clips), "the same videos, cut anew"
    order, _ = seen[False]
    assert order[0] != order[1]


@pytest.mark.parametrize(
    ("ending", "batch", "steps"), [("longer", 4, 18), ("shorter", 4, 6), ("longer", 36, 2)]
)
def test_source_and_target_take_turns(places, shapes, table, tmp_path, ending, batch, steps):
    labels = Pseudo(labels=str(shapes.test.parent / "labels.parquet"), ending=ending)
    work = task(recipe_of(places | {"training.batch": batch}, pseudo=labels), tmp_path)
    assert (len(work.clips), len(work.labelled.clips), work.steps) == (36, int(table.kept.sum()), steps)
    seen = {True: [], False: []}
    for step, given in enumerate(work.examples(0, 0)):
        assert given.target == bool(step % 2)
        names = [path.rpartition("/")[0].split("/")[-2] for path in work.current()]
        assert set(names) == {"test" if given.target else "train"}
        seen[given.target] += work.current()
    assert step == steps - 1
    if ending == "longer":
        assert len(set(seen[False])) == 36 and len(set(seen[True])) == len(work.labelled.clips)
    rates = [work.rate(0, update, steps) for update in range(steps)]
    assert rates[::2] == rates[1::2] and len(set(rates)) == steps // 2


def test_an_epoch_begun_in_the_middle_is_the_rest_of_the_whole(places, shapes, table, tmp_path):
    labels = Pseudo(labels=str(shapes.test.parent / "labels.parquet"))
    mixing = {"training.augment.mixing.probability": 1.0, "training.batch": 4}
    work = task(recipe_of(places | mixing, pseudo=labels), tmp_path)
    whole = list(work.examples(1, 0))
    for first in (1, 4, 13):
        rest = list(work.examples(1, first))
        assert len(rest) == len(whole) - first
        for one, other in zip(whole[first:], rest, strict=True):
            assert torch.equal(one.clip, other.clip) and torch.equal(one.targets, other.targets)


def test_the_files_of_labels_say_the_same(places, shapes, table, tmp_path):
    folder = shapes.test.parent
    batches = {}
    for name in ("labels.parquet", "labels.csv", "kept.csv", "published.csv"):
        work = task(recipe_of(places, pseudo=Pseudo(labels=str(folder / name))), tmp_path / name)
        batches[name] = list(work.examples(0, 0))[1]
    first = batches.pop("labels.parquet")
    assert all(torch.equal(first.targets, other.targets) for other in batches.values())
    assert all(torch.equal(first.clip, other.clip) for other in batches.values())


def test_soft_targets_are_the_rows_of_the_table_as_a_mirror_shows_them(places, shapes, table, tmp_path):
    labels = Pseudo(labels=str(shapes.test.parent / "labels.parquet"), soft=True)
    work = task(recipe_of(places, pseudo=labels), tmp_path)
    rows = np.flatnonzero(table.kept)
    part = work.labelled
    batch = next(part.batches(0, 0))
    targets = part._targets(batch, 0)
    assert batch.mirrored.any() and not batch.mirrored.all()
    for target, index, mirrored in zip(targets, batch.indices, batch.mirrored, strict=True):
        row = table.probabilities[rows[int(index)]].copy()
        if mirrored:
            row[[1, 2]] = row[[2, 1]]
        assert target.numpy() == pytest.approx(row / row.sum(), abs=1e-6)
    assert part.seed == LABELLED
    with pytest.raises(UsageError, match="no probabilities"):
        soft = Pseudo(labels=str(shapes.test.parent / "kept.csv"), soft=True)
        task(recipe_of(places, pseudo=soft), tmp_path / "b")


@pytest.mark.parametrize("soft", [False, True])
def test_the_weight_of_a_row_is_that_of_its_loss(places, shapes, table, tmp_path, soft):
    """A batch's loss is the mean of its clips' own losses times their weights, with labels or soft ones."""
    rng = np.random.default_rng(1)
    weights = np.where(table.kept, rng.uniform(0.2, 1, len(table)), 0.0)
    file = shapes.test.parent / f"weighted{soft}.csv"
    write_labels(file, dataclasses.replace(table, facts=table.facts | {"weight": weights}))
    smooth = places | {"training.label_smoothing": 0.2}
    plain, weighted = (
        task(recipe_of(smooth, pseudo=Pseudo(labels=str(path), soft=soft)), tmp_path / path.name).labelled
        for path in (shapes.test.parent / "labels.csv", file)
    )
    batch = next(plain.batches(0, 0))
    logits = torch.randn(len(batch.targets), 6)
    one, other = plain._targets(batch, 0), weighted._targets(batch, 0)
    alone = [plain.loss(logits[i : i + 1], one[i : i + 1]) for i in range(len(logits))]
    own = weights[table.kept][batch.indices.numpy()]
    want = np.mean([loss.item() * weight for loss, weight in zip(alone, own, strict=True)])
    assert weighted.loss(logits, other).item() == pytest.approx(want, rel=1e-5)
    with pytest.raises(UsageError, match="class_weights"):
        balanced = smooth | {"training.class_weights": "balanced"}
        task(recipe_of(balanced, pseudo=Pseudo(labels=str(file))), tmp_path / "b")


def test_kept_labels_are_exchanged_where_a_mirror_shows_the_other_class(places, shapes, table, tmp_path):
    labels = Pseudo(labels=str(shapes.test.parent / "labels.parquet"))
    part = task(recipe_of(places, pseudo=labels), tmp_path).labelled
    batch = next(part.batches(0, 0))
    given = table.labels[np.flatnonzero(table.kept)][batch.indices.numpy()]
    other = {1: 2, 2: 1}
    seen = zip(given.tolist(), batch.mirrored.tolist(), strict=True)
    shown = [other.get(label, label) if mirrored else label for label, mirrored in seen]
    assert part._targets(batch, 0).tolist() == shown
    assert shown != given.tolist(), "some clip of the two is mirrored"


@pytest.mark.parametrize("at", [5, 10])
def test_a_killed_training_goes_on_to_the_same_bits(places, shapes, table, tmp_path, monkeypatch, at):
    recipe = recipe_of(
        places
        | {"training.epochs": 2, "training.precise_bn": 1, "training.ema": 0.9, "training.save_minutes": 0},
        target=str(shapes.test), dropout=True, share=0.7,
        pseudo=Pseudo(labels=str(shapes.test.parent / "labels.parquet"), ending="shorter", weight=0.5),
    )  # fmt: skip
    whole = marey.train(recipe, out=tmp_path / "a")
    rows = list(csv.DictReader((whole.run / "metrics.csv").open()))
    assert [bool(row["loss_target"]) for row in rows] == [False, True] * 4
    calls, before = [], Adaptation.outcome

    def killed(self, model, batch):
        calls.append(1)
        if len(calls) == min(at, 7):
            raise KeyboardInterrupt
        return before(self, model, batch)

    monkeypatch.setattr(Adaptation, "outcome", killed)
    with pytest.raises(KeyboardInterrupt):
        marey.train(recipe, out=tmp_path / "b")
    monkeypatch.setattr(Adaptation, "outcome", before)
    resumed = marey.train(recipe, out=tmp_path / "b", resume=True)
    one, other = (load_file(t.checkpoint) for t in (whole, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_both_losses_can_make_one_update(places, shapes, table, tmp_path):
    pseudo = Pseudo(labels=str(shapes.test.parent / "labels.parquet"), ending="shorter")
    settings = places | {"training.accumulate": 2, "training.log_every": 1}
    found = marey.train(recipe_of(settings, pseudo=pseudo), out=tmp_path)
    rows = list(csv.DictReader((found.run / "metrics.csv").open()))
    assert len(rows) == 2 and all(row["loss_source"] and row["loss_target"] for row in rows)


def test_what_is_missing_or_does_not_go_together_is_said(places, shapes, table, tmp_path):
    def refused(code, overrides=(), **adapt):
        with pytest.raises((UsageError, DataError)) as error:
            Adaptation.prepare(recipe_of(places | dict(overrides), **adapt), validate=None)
        assert error.value.code == code

    refused("NO_DATA", pseudo=Pseudo())
    refused("NO_DATA", {"training.precise_bn": 1}, pseudo=Pseudo(labels="x.csv"))
    refused("RECIPE_VALUE", target=str(shapes.test))
    refused("RECIPE_VALUE")
    labels = str(shapes.test.parent / "labels.parquet")
    refused("RECIPE_VALUE", {"training.accumulate": 3}, pseudo=Pseudo(labels=labels))
    refused("LABELS_CHANGED", pseudo=Pseudo(labels=labels, sha256="0" * 64))
    refused("NOT_FOUND", pseudo=Pseudo(labels=str(tmp_path / "none.csv")))
    with pytest.raises(DataError) as error:  # 6 classes of the table, 5 of the source
        few = tmp_path / "few.csv"
        lines = [row for row in csv.reader(shapes.train.open()) if not row[2].endswith("counterclockwise")]
        few.write_text("".join(f"{shapes.train.parent / p},{n}\n" for p, n, _ in lines[1:]))
        task(recipe_of(places | {"data.train": str(few)}, pseudo=Pseudo(labels=labels)), tmp_path)
    assert error.value.code == "LABEL_NAMES"
