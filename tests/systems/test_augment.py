"""The settings of the training procedure in a training: each changes what is learnt, in the way it says."""

import csv

import pytest
import torch
from safetensors.torch import load_file

import marey
from marey.data.clips import copy_rng, train_batches
from marey.data.lists import read_list
from marey.data.workers import Pool
from marey.errors import MareyError
from marey.jobs import epochs as job
from marey.recipes.catalog import load_recipe
from marey.training.checkpoint import load_state
from marey.video.augment import RandAugment, draw_mixture, mix, mix_targets, rand_augment
from marey.video.preprocess import normalize
from marey.video.sampling import generator
from marey.weights.create import open_model

PLAIN = {"training.epochs": 1, "data.workers": 0}
FULL = {
    "training.augment.copies": 2,
    "training.augment.rand.layers": 4,
    "training.augment.erasing.probability": 0.25,
    "training.augment.mixing.probability": 1.0,
    "training.label_smoothing": 0.1,
    "training.ema": 0.99,
}


def weights(run, name="last"):
    return load_file(run / f"checkpoints/{name}.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


@pytest.fixture
def seen(monkeypatch):
    """Every batch that the training loop gets, clips and targets."""
    batches = []
    steps = job.train_steps

    def watched(fabric, model, optimizer, examples, **settings):
        def passing():
            for batch in examples:
                batches.append((batch.clip.clone(), batch.targets.clone(), batch.real))
                yield batch

        return steps(fabric, model, optimizer, passing(), **settings)

    monkeypatch.setattr(job, "train_steps", watched)
    return batches


def expected_batches(recipe, *, copies, epoch=0):
    """Frames, what is mirrored, and targets of an epoch, as the loader gives them."""
    clips = read_list(recipe.data.train)
    with Pool(0, 60) as pool:
        settings = {"batch": 8, "seed": 0, "epoch": epoch, "num_classes": 6, "multi_label": False}
        yield from train_batches(clips, recipe.clips, pool=pool, copies=copies, **settings)


def test_each_setting_does_to_the_batches_what_it_says(tiny, tmp_path, seen):
    """Copies, RandAugment and mixing, put together anew from the parts and compared to the bit."""
    settings = {key: value for key, value in FULL.items() if "erasing" not in key} | {"training.epochs": 2}
    run = marey.train("demo.moving_shapes", tiny | PLAIN | settings, out=tmp_path, validate=False).run
    recipe, cuts = load_recipe(run / "recipe.json"), []
    for epoch in (0, 1):
        for step, batch in enumerate(expected_batches(recipe, copies=2, epoch=epoch)):
            assert batch.indices[::2].equal(batch.indices[1::2])
            assert batch.copies.tolist() == [0, 1] * (len(batch.frames) // 2)
            pairs = zip(batch.indices.tolist(), batch.copies.tolist(), strict=True)
            rngs = [copy_rng(0, epoch, index, number, device=True) for index, number in pairs]
            frames = rand_augment(batch.frames, RandAugment(layers=4), rngs)
            assert not frames.equal(batch.frames)
            rng = generator(0, epoch, step, 2**32)
            mixture = draw_mixture(recipe.training.augment.mixing, (32, 32), rng)
            cuts.append(mixture.box is not None)
            clip = mix(normalize(frames, recipe.clips, batch.mirrored), mixture)
            hot = 0.9 * torch.eye(6)[batch.targets] + 0.1 / 6
            got, targets, real = seen[5 * epoch + step]
            assert got.equal(clip) and real == len(batch.frames)
            assert torch.allclose(targets, mix_targets(hot, mixture))
    assert len(seen) == 10 and 0 < sum(cuts) < 10, "mixup and cutmix both occur"


def test_the_copies_of_a_video_are_cut_from_the_same_frames(tiny, tmp_path, seen):
    settings = {"training.augment.copies": 3, "clips.train_crop": "area"}
    marey.train("demo.moving_shapes", tiny | PLAIN | settings, out=tmp_path, validate=False)
    assert [len(clip) for clip, *_ in seen] == [24, 24, 24, 24, 12], "36 videos in steps of 8"
    recipe = load_recipe("demo.moving_shapes", tiny | settings)
    (first, *_) = expected_batches(recipe, copies=3)
    (alone, *_) = expected_batches(recipe, copies=1)
    assert first.frames[::3].equal(alone.frames), "the first copy is what it is without others"
    assert not first.frames[1::3].equal(alone.frames)
    flips = [b.mirrored for b in expected_batches(recipe, copies=3)]
    assert not all(f[::3].equal(f[1::3]) for f in flips), "copies are mirrored on their own"


def test_a_mirrored_copy_has_the_other_label(tiny):
    recipe = load_recipe("demo.moving_shapes", tiny)
    pairs = dict(recipe.clips.flip_labels) | {b: a for a, b in recipe.clips.flip_labels}
    clips, turned = read_list(recipe.data.train), 0
    for batch in expected_batches(recipe, copies=2):
        for index, mirrored, target in zip(batch.indices, batch.mirrored, batch.targets, strict=True):
            (label,) = clips[int(index)].labels
            assert target == (pairs.get(label, label) if mirrored else label)
            turned += bool(mirrored) and label in pairs
    assert turned > 3


def test_erasing_reaches_the_network(tiny, tmp_path, seen):
    for probability in (0.0, 1.0):
        settings = tiny | PLAIN | {"training.augment.erasing.probability": probability}
        marey.train("demo.moving_shapes", settings, out=tmp_path / str(probability), validate=False)
    plain, erased = seen[0][0], seen[5][0]
    changed = plain.ne(erased).flatten(1).float().mean(1)
    assert (changed > 0.01).all() and (changed < 0.36).all(), "a box of 2 to 33 % in every clip"


def test_training_with_everything_does_not_depend_on_workers_or_interruptions(tiny, tmp_path, monkeypatch):
    everything = tiny | FULL | {"training.epochs": 2, "training.accumulate": 2, "training.precise_bn": 1}
    whole = marey.train("demo.moving_shapes", everything, out=tmp_path / "whole")
    update, made = job.update_average, []

    def stopped(*arguments, **settings):
        update(*arguments, **settings)
        made.append(settings["updates"])
        if len(made) == 4:  # in the second epoch, each of which has three
            raise KeyboardInterrupt

    monkeypatch.setattr(job, "update_average", stopped)
    again = everything | {"data.workers": 0, "training.save_minutes": 0}
    with pytest.raises((KeyboardInterrupt, MareyError)):
        marey.train("demo.moving_shapes", again, out=tmp_path / "broken")
    assert made == [1, 2, 3, 4]
    monkeypatch.setattr(job, "update_average", update)
    resumed = marey.train("demo.moving_shapes", again, out=tmp_path / "broken", resume=True)
    for name in ("last", "best"):
        assert same(weights(whole.run, name), weights(resumed.run, name))
    states = [load_state(found.run / "checkpoints/resume.pt") for found in (whole, resumed)]
    assert same(states[0]["model"], states[1]["model"]) and same(states[0]["average"], states[1]["average"])
    assert not same(states[0]["model"], states[0]["average"])


def test_the_average_is_what_is_validated_and_saved(tiny, tmp_path):
    found = marey.train("demo.moving_shapes", tiny | PLAIN | {"training.ema": 0.9}, out=tmp_path / "ema")
    plain = marey.train("demo.moving_shapes", tiny | PLAIN, out=tmp_path / "plain")
    state = load_state(found.run / "checkpoints/resume.pt")
    assert same(state["model"], load_state(plain.run / "checkpoints/resume.pt")["model"]), "it learns alike"
    assert same(state["average"], weights(found.run)) and same(weights(found.run), weights(found.run, "best"))
    assert not same(weights(found.run), weights(plain.run))
    again = marey.test(found.run / "recipe.json", found.checkpoint, {"data.test": tiny["data.val"]})
    assert again["metrics"] == pytest.approx(found.metrics, abs=1e-6)
    assert found.metrics["loss"] != plain.metrics["loss"]


def test_optimizer_settings_reach_the_optimiser(tiny, tmp_path):
    """A transformer with rates by layer; nothing has a rate that its layer does not have."""
    small = {
        "model.name": "uniformer_s",
        "model.options": {
            "depths": [1, 1, 1, 1],
            "channels": [16, 16, 32, 32],
            "head_width": 16,
            "drop_path": 0.2,
        },
        "clips.sampling": "uniform",
        "training.optimizer": {"kind": "adamw", "lr": 1e-3, "groups": "vectors", "layer_decay": 0.5},
        "training.schedule": {
            "warmup_rule": "slowfast",
            "per": "iteration",
            "warmup_epochs": 0.5,
            "final": 0.01,
        },
    }
    run = marey.train("demo.moving_shapes", tiny | PLAIN | small, out=tmp_path, validate=False).run
    groups = load_state(run / "checkpoints/resume.pt")["optimizer"]["param_groups"]
    assert {g["factor"] for g in groups} == {0.5**k for k in range(6)}
    assert {g["name"]: g["weight_decay"] for g in groups} == {
        "batch norm": 0.0,
        "decayed": 1e-4,
        "not decayed": 0.0,
    }
    rates = [float(row["lr"]) for row in csv.DictReader((run / "metrics.csv").open())]
    assert rates[0] == pytest.approx(1e-4) and rates[1] > rates[0]
    assert [g["lr"] for g in groups if g["factor"] == 0.25] == pytest.approx([rates[-1] / 4] * 2, rel=1e-5)


def test_the_average_s_statistics_are_measured_on_augmented_clips_of_no_epoch(tiny, tmp_path):
    settings = {"training.ema": 0.9, "training.precise_bn": 2, "training.augment.rand.layers": 4}
    found = marey.train("demo.moving_shapes", tiny | PLAIN | settings, out=tmp_path)
    saved, recipe, maps = open_model(found.checkpoint), load_recipe(found.run / "recipe.json"), []
    for _, batch in zip(range(2), expected_batches(recipe, copies=1, epoch=1), strict=False):
        rngs = [copy_rng(0, 1, index, 0, device=True) for index in batch.indices.tolist()]
        frames = rand_augment(batch.frames, recipe.training.augment.rand, rngs)
        clip = normalize(frames, recipe.clips, batch.mirrored)
        with torch.no_grad():
            maps.append(saved.trunk.stem.conv(clip.transpose(1, 2).flatten(0, 1)))
    norm, seen = saved.trunk.stem.bn, torch.cat(maps)
    assert torch.allclose(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert torch.allclose(norm.running_var, seen.var((0, 2, 3), unbiased=False), rtol=1e-4)
