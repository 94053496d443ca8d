"""What a student gains from its teacher: the same network at the same resolution, taught and alone.

python benchmarks/distill_gain.py --folder DIR [--size 16] [--epochs 10] [--seeds 3] [KEY=VALUE ...]

Renders moving shapes of 96 pixels (four directions, 40 training clips each), trains a TSM-R18 of a quarter of
the usual width at 64 pixels as the teacher, and the same network at `--size` pixels, made from the same crops
of 64, alone and taught, once for each seed. Both start from the teacher's weights (`--fresh`: from none) and
differ in nothing but what they learn from. All have the same list; the test list has 60 clips of each class.
KEY=VALUE change `distill.*` of the taught ones. Prints each accuracy, and mean and range of the differences
seed by seed. Everything lies in the folder, also for `marey report resolution`.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import msgspec

import marey
from marey.jobs.epochs import Trained
from marey.recipes.catalog import load_recipe, override, pairs
from marey.recipes.demo import DEMO_CLASSES
from marey.recipes.schema import Distill, Model, Recipe
from marey.video.synthetic import render_moving_shapes


def main() -> None:
    arguments = parsed()
    folder: Path = arguments.folder
    lists = render_moving_shapes(folder / "clips", train=40, val=10, test=60, classes=DEMO_CLASSES)
    data = {"data.train": str(lists.train), "data.val": str(lists.val), "data.test": str(lists.test)}
    data |= {"data.workers": arguments.workers, "training.validate_every": 0}
    shapes = recipe(data | {"training.epochs": arguments.teacher_epochs})
    found = sorted((folder / "teacher").glob("*/*/checkpoints/best.safetensors"))
    teacher = found[0] if found else marey.train(shapes, out=folder / "teacher", seed=100).checkpoint
    print(f"teacher at 64: {tested(teacher):.4f}", flush=True)
    settings = data | {"training.epochs": arguments.epochs, "clips.input_size": arguments.size}
    settings |= {"training.batch": 16, "training.reference_batch": 16, "training.optimizer.lr": 0.01}
    alone = recipe(settings | ({} if arguments.fresh else {"model.weights": str(teacher)}))
    model = Model(name=shapes.model.name, weights=str(teacher), options=shapes.model.options)
    lesson = Distill(teacher=model, logit_kl=1.0)
    taught = override(msgspec.structs.replace(alone, distill=lesson), pairs(arguments.changes))
    rows = []
    for seed in range(arguments.seeds):
        scores = [
            accuracy(marey.train(plan, out=folder / name, seed=seed))
            for name, plan in (("alone", alone), ("taught", taught))
        ]
        rows.append(scores)
        print(f"seed {seed}: alone {scores[0]:.4f}, taught {scores[1]:.4f}", flush=True)
    gains = [taught - alone for alone, taught in rows]
    print(
        f"at {arguments.size} pixels: alone {statistics.mean(r[0] for r in rows):.4f}, taught "
        f"{statistics.mean(r[1] for r in rows):.4f}; difference {statistics.mean(gains):+.4f} "
        f"({min(gains):+.4f} to {max(gains):+.4f}) over {len(gains)} seeds"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"size": arguments.size, "scores": rows}), encoding="utf-8")


def recipe(overrides: dict[str, Any]) -> Recipe:
    plan = load_recipe("demo.moving_shapes", overrides)
    assert isinstance(plan, Recipe)
    return plan


def accuracy(trained: Trained) -> float:
    """Top-1 on the test list; the only validation is after the last epoch, so these are its weights."""
    return tested(trained.checkpoint)


def tested(checkpoint: Path) -> float:
    found = marey.test(checkpoint.parent.parent / "recipe.json", checkpoint)
    return float(found["metrics"]["top1"])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--teacher-epochs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("changes", nargs="*")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
