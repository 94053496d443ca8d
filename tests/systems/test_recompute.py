"""Training with activation checkpointing ends with the weights of training without."""

import pytest
from safetensors.torch import load_file

import marey
from marey.errors import UsageError
from marey.recipes.catalog import load_recipe


def test_a_run_with_checkpointed_blocks_ends_with_the_same_weights(tiny, tmp_path):
    plan = tiny | {"training.epochs": 1, "data.workers": 0}
    runs = [
        marey.train("demo.moving_shapes", plan | {"training.checkpoint_activations": flag}, out=tmp_path).run
        for flag in (False, True)
    ]
    one, other = (load_file(run / "checkpoints/last.safetensors") for run in runs)
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    assert load_recipe(runs[1] / "recipe.json").training.checkpoint_activations


def test_only_true_and_false_are_settings():
    with pytest.raises(UsageError, match="checkpoint_activations"):
        load_recipe("demo.moving_shapes", {"training.checkpoint_activations": "blocks"})
