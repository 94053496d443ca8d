"""What a student gains from its teacher: the same network at the same resolution, taught and alone.

python benchmarks/distill_gain.py --folder DIR [--size 16] [--epochs 10] [--seeds 5] [KEY=VALUE ...]

Renders moving shapes of 96 pixels (four directions, 40 training clips each), and trains a TSM-R18 of a
quarter of the usual width: at 64 pixels as the teacher, and at `--size` pixels, made from the same crops of
64, as a student alone and taught, with the labels of the same list. Teacher and students start from one
network that was trained at 64 pixels on other classes (diagonals and standing still; 40 other clips each), as
ResKD's start from ImageNet's. `--start teacher`: the students start from their teacher; `--start none`: all
from fresh weights. A seed's students differ in nothing but what they learn from; the test list has 60 clips
of each class.

Taught are two students, by logit_kl=1 (the recipe `distill`) and by feature_mse=100 (ResKD's weight), or one
with KEY=VALUE of `distill.*`. Prints each accuracy, and the differences seed by seed: mean, standard
deviation, range. Everything lies in the folder, also for `marey report resolution`; what is there already is
not trained again.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import msgspec

import marey
from marey.recipes.catalog import load_recipe, override, pairs
from marey.recipes.demo import DEMO_CLASSES
from marey.recipes.schema import Distill, Model, Recipe
from marey.video import synthetic
from marey.video.synthetic import render_moving_shapes

# the classes of the start: five, so that no classifier of theirs fits the four directions
OTHERS = {
    "move_down_left": (-1, 1, 0),
    "move_down_right": (1, 1, 0),
    "move_up_left": (-1, -1, 0),
    "move_up_right": (1, -1, 0),
    "stand": (0, 0, 0),
}
LESSONS = {"logit_kl": {"logit_kl": 1.0}, "feature_mse": {"feature_mse": 100.0}}
GENTLE = {"training.batch": 16, "training.reference_batch": 16, "training.optimizer.lr": 0.01}


def main() -> None:
    arguments = parsed()
    folder: Path = arguments.folder
    lists = render_moving_shapes(folder / "clips", train=40, val=10, test=60, classes=DEMO_CLASSES)
    fresh = recipe({"training.epochs": arguments.first_epochs, **data(lists, arguments.workers)})
    gentle = data(lists, arguments.workers) | {"training.epochs": arguments.epochs} | GENTLE
    if arguments.start == "pretrained":
        start = trained(others(folder, arguments), folder / "pretrained", 50)
        print(f"start at 64, other classes: {tested(start):.4f}", flush=True)
        teacher = trained(recipe(gentle | {"model.weights": str(start)}), folder / "teacher", 100)
    else:
        teacher = trained(fresh, folder / "teacher", 100)
        start = teacher
    print(f"teacher at 64: {tested(teacher):.4f}", flush=True)
    begin = {} if arguments.start == "none" else {"model.weights": str(start)}
    alone = recipe(gentle | {"clips.input_size": arguments.size} | begin)
    model = Model(name=fresh.model.name, weights=str(teacher), options=fresh.model.options)
    plans = {"alone": alone}
    if arguments.changes:
        lesson = msgspec.structs.replace(alone, distill=Distill(teacher=model, logit_kl=1.0))
        plans["taught"] = override(lesson, pairs(arguments.changes))
    else:
        for name, weights in LESSONS.items():
            plans[name] = msgspec.structs.replace(alone, distill=Distill(teacher=model, **weights))
    scores: dict[str, list[float]] = {name: [] for name in plans}
    for seed in range(arguments.seeds):
        for name, plan in plans.items():
            scores[name].append(tested(trained(plan, folder / name, seed)))
        line = ", ".join(f"{name} {found[-1]:.4f}" for name, found in scores.items())
        print(f"seed {seed}: {line}", flush=True)
    base = scores["alone"]
    print(f"at {arguments.size} pixels, {arguments.seeds} seeds: alone {statistics.mean(base):.4f}")
    for name in list(scores)[1:]:
        gains = [taught - alone for taught, alone in zip(scores[name], base, strict=True)]
        spread = f"sd {statistics.stdev(gains):.4f}, " if len(gains) > 1 else ""
        print(
            f"{name} {statistics.mean(scores[name]):.4f}; difference {statistics.mean(gains):+.4f} "
            f"({spread}{min(gains):+.4f} to {max(gains):+.4f})"
        )
    if arguments.json:
        found = {"size": arguments.size, "start": arguments.start, "scores": scores}
        arguments.json.write_text(json.dumps(found), encoding="utf-8")


def data(lists: synthetic.Lists, workers: int) -> dict[str, Any]:
    """Settings of a recipe; the only validation is after the last epoch, so best are its weights."""
    found = {"data.train": str(lists.train), "data.val": str(lists.val), "data.test": str(lists.test)}
    return found | {"data.workers": workers, "training.validate_every": 0}


def others(folder: Path, arguments: argparse.Namespace) -> Recipe:
    """The training of the start."""
    synthetic.MOTIONS.update(OTHERS)
    lists = render_moving_shapes(folder / "others", train=40, val=10, test=30, classes=tuple(OTHERS))
    mirrored = {"clips.flip_labels": [[0, 1], [2, 3]], "training.epochs": arguments.first_epochs}
    return recipe(data(lists, arguments.workers) | mirrored)


def recipe(overrides: dict[str, Any]) -> Recipe:
    plan = load_recipe("demo.moving_shapes", overrides)
    assert isinstance(plan, Recipe)
    return plan


def trained(plan: Recipe, folder: Path, seed: int) -> Path:
    """The checkpoint of a training, which is made unless it is there."""
    there = sorted((folder / str(seed)).glob("*/*/checkpoints/best.safetensors"))
    return there[0] if there else marey.train(plan, out=folder / str(seed), seed=seed).checkpoint


def tested(checkpoint: Path) -> float:
    """Top-1 on the test list."""
    found = marey.test(checkpoint.parent.parent / "recipe.json", checkpoint)
    return float(found["metrics"]["top1"])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--start", choices=("pretrained", "teacher", "none"), default="pretrained")
    parser.add_argument("--first-epochs", type=int, default=24, help="of what starts from fresh weights")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("changes", nargs="*")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    sys.exit(main())
