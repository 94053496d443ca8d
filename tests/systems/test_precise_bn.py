"""Precise batch norm in a training: what is measured, what is saved, and being stopped on the way."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import marey
from marey.data.clips import train_batches
from marey.data.lists import read_list
from marey.data.workers import Pool
from marey.errors import MareyError, UsageError
from marey.jobs import epochs as job
from marey.recipes.catalog import load_recipe
from marey.video.preprocess import normalize
from marey.weights.create import open_model

ONE = {"training.epochs": 1, "data.workers": 0, "training.precise_bn": 2}


def weights(run, name="last"):
    return load_file(run / f"checkpoints/{name}.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


def test_the_saved_statistics_are_those_of_training_clips(tiny, tmp_path):
    found = marey.train("demo.moving_shapes", tiny | ONE, out=tmp_path)
    saved = open_model(found.checkpoint)
    recipe = load_recipe(found.run / "recipe.json")
    clips = read_list(recipe.data.train)
    with Pool(0, 60) as pool:
        drawn = train_batches(
            clips, recipe.clips, pool=pool, batch=8, seed=0, epoch=1, num_classes=6, multi_label=False
        )  # epoch 1 of 1 epoch: none that was trained on
        frames = [batch for _, batch in zip(range(2), drawn, strict=False)]
    with torch.no_grad():
        inputs = [normalize(batch.frames, recipe.clips, batch.mirrored) for batch in frames]
        maps = torch.cat([saved.trunk.stem.conv(clip.transpose(1, 2).flatten(0, 1)) for clip in inputs])
    assert len(maps) == 2 * 8 * 4
    assert torch.allclose(saved.trunk.stem.bn.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert torch.allclose(saved.trunk.stem.bn.running_var, maps.var((0, 2, 3), unbiased=False), rtol=1e-4)
    assert same(weights(found.run), weights(found.run, "best"))
    assert "20 batch norms measured on 16 clips" in (found.run / "log.txt").read_text()


def test_the_weights_do_not_change_and_the_scores_are_of_the_saved_statistics(tiny, tmp_path):
    found = marey.train("demo.moving_shapes", tiny | ONE, out=tmp_path / "with")
    without = tiny | ONE | {"training.precise_bn": 0}
    plain = marey.train("demo.moving_shapes", without, out=tmp_path / "without")
    one, other = weights(found.run), weights(plain.run)
    differ = {name for name in one if not one[name].equal(other[name])}
    assert differ and all("running" in name or "tracked" in name for name in differ)
    again = marey.test(found.run / "recipe.json", found.checkpoint, {"data.test": tiny["data.val"]})
    assert again["metrics"] == pytest.approx(found.metrics, abs=1e-6)


def test_a_run_stopped_while_it_measures_continues_with_the_same_bits(tiny, tmp_path, monkeypatch):
    whole = marey.train("demo.moving_shapes", tiny | ONE | {"training.epochs": 2}, out=tmp_path / "whole")
    measure, asked = job.recompute_batch_norm, []

    def stopped(model, batches, **options):
        def one_then_stop():
            yield next(batches)
            if not asked:
                asked.append(os.kill(os.getpid(), signal.SIGINT))
            yield from batches

        return measure(model, one_then_stop(), **options)

    monkeypatch.setattr(job, "recompute_batch_norm", stopped)
    again = tiny | ONE | {"training.epochs": 2}
    with pytest.raises(MareyError, match="--resume") as error:
        marey.train("demo.moving_shapes", again, out=tmp_path / "broken")
    assert (error.value.code, error.value.exit_code) == ("INTERRUPTED", 130)
    resumed = marey.train("demo.moving_shapes", again, out=tmp_path / "broken", resume=True)
    assert same(weights(whole.run), weights(resumed.run))
    assert (resumed.run / "metrics.csv").read_text().count("\n") == (
        whole.run / "metrics.csv"
    ).read_text().count("\n")


def test_frozen_norms_have_nothing_to_measure(tiny, tmp_path):
    options = {"model.options": {"width": 8, "segments": 4, "norm_eval": True}}
    found = marey.train("demo.moving_shapes", tiny | ONE | options, out=tmp_path)
    assert "nothing to measure" in (found.run / "log.txt").read_text()
    assert weights(found.run)["trunk.stem.bn.running_var"].eq(1).all()


def test_a_number_below_zero_is_refused():
    with pytest.raises(UsageError, match="precise_bn"):
        load_recipe("demo.moving_shapes", {"training.precise_bn": -1})
