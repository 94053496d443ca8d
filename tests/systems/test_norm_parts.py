"""Training with batch norms in parts: what is saved loads as ever, a stopped run ends with the same bits."""

import os
import signal

import pytest
from safetensors.torch import load_file

import marey
from marey.errors import MareyError, UsageError
from marey.jobs import epochs as job
from marey.recipes.catalog import load_recipe
from marey.weights.create import open_model

PARTS = {
    "model.name": "slowonly_r50",
    "model.options": {"width": 8},
    "training.epochs": 1,
    "data.workers": 0,
    "training.norm_parts": 4,
}


def weights(run):
    return load_file(run / "checkpoints/last.safetensors")


def test_a_stopped_run_ends_with_the_bits_of_the_unbroken_one(tiny, tmp_path, monkeypatch):
    whole = marey.train("demo.moving_shapes", tiny | PARTS, out=tmp_path / "whole")
    train_steps, asked = job.train_steps, []

    def stopped(*given, **options):
        for step in train_steps(*given, **options):
            if not asked:
                asked.append(os.kill(os.getpid(), signal.SIGINT))
            yield step

    monkeypatch.setattr(job, "train_steps", stopped)
    with pytest.raises(MareyError, match="--resume"):
        marey.train("demo.moving_shapes", tiny | PARTS, out=tmp_path / "broken")
    resumed = marey.train("demo.moving_shapes", tiny | PARTS, out=tmp_path / "broken", resume=True)
    one, other = weights(whole.run), weights(resumed.run)
    assert one.keys() == other.keys() == open_model(whole.checkpoint).state_dict().keys()
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("parts", [0, 9])
def test_more_parts_than_clips_are_refused(parts):
    with pytest.raises(UsageError, match="norm_parts"):
        load_recipe("demo.moving_shapes", {"training.norm_parts": parts, "training.batch": 8})
