"""How much of a training epoch is waiting for data, and how fast data alone and the network alone would be.

    python benchmarks/data_wait.py [LIST] [--clips 48] [--epochs 2] [--workers 0,1,2] [--json FILE]

A TSM-ResNet-18 is trained by `marey.jobs.train` on the first clips of LIST, in a shuffled order (by default
camera-motion of MAREY_TEST_VIDEOS, else rendered shapes, 112x112). What the columns mean stands in
benchmarks/README.md.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from marey.data.clips import Batch, train_batches
from marey.data.lists import ClipList, read_list
from marey.data.workers import Pool
from marey.jobs.doctor import environment
from marey.jobs.recognition import Examples
from marey.jobs.train import train
from marey.recipes.schema import Data, Model, Recipe, Training
from marey.training.distributed import launch
from marey.training.loop import Outcome, train_steps
from marey.training.optim import Optimizer, build_optimizer
from marey.video.preprocess import Preprocess, Protocol, normalize
from marey.video.synthetic import CLASSES, render_moving_shapes
from marey.weights.create import create_model

NETWORK = "tsm_r18"
STEPS = 4  # of the network alone; the first is not counted


def shortened(path: Path, clips: int, folder: Path) -> Path:
    """A list of `clips` entries at equal steps through another, which may be sorted by class."""
    whole = read_list(path)
    names = whole.classes or tuple(str(label) for label in range(whole.num_classes))
    chosen = [whole[i * len(whole) // clips] for i in range(min(clips, len(whole)))]
    part = folder / "clips.csv"
    with part.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "class"])
        for entry in chosen:
            path = Path(entry.path).absolute()
            rows.writerow([path, entry.labels[0], names[entry.labels[0]]])
    return part


def default_list(folder: Path, clips: int) -> Path:
    """Real clips where there are some, else rendered ones."""
    if real := os.environ.get("MAREY_TEST_VIDEOS"):
        return Path(real, "camera-motion", "train.csv")
    each = -(-clips // len(CLASSES))
    return render_moving_shapes(folder / "shapes", train=each, val=0, test=0, size=(112, 112)).train


def recipe(path: Path, *, workers: int, epochs: int, batch: int, crop: int) -> Recipe:
    """Training from scratch, with one row of metrics.csv per epoch."""
    return Recipe(
        name=f"data_wait.{workers}_workers",
        model=Model(name=NETWORK),
        data=Data(train=str(path), workers=workers),
        clips=Preprocess(
            sampling="segments",
            frames=8,
            short_side=crop * 7 // 6,
            crop=crop,
            train_crop="random",
            val=Protocol(),
        ),
        training=Training(
            epochs=epochs,
            batch=batch,
            reference_batch=batch,
            optimizer=Optimizer(lr=0.01),
            log_every=1_000_000,
            validate_every=0,
        ),
    )


def together(plan: Recipe, folder: Path) -> dict[str, float]:
    """Train; clips per second and share of waiting of the epochs after the first, which starts processes."""
    run = train(plan, out=folder, validate=False).run
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[1:]
    return {
        name: sum(float(row[name]) for row in rows) / len(rows) for name in ("clips_per_second", "data_share")
    }


def batches(plan: Recipe, clips: ClipList, pool: Pool, epoch: int) -> Iterator[Batch]:
    """An epoch as the training loads it."""
    return train_batches(
        clips,
        plan.clips,
        pool=pool,
        batch=plan.training.batch,
        seed=0,
        epoch=epoch,
        num_classes=clips.num_classes,
        multi_label=False,
    )


def data_alone(plan: Recipe, clips: ClipList) -> float:
    """Clips per second of the loader, with nobody who uses them; the second of two epochs."""
    with Pool(plan.data.workers, plan.data.seconds) as pool:
        for epoch in range(2):
            start = time.perf_counter()
            count = sum(len(batch.frames) for batch in batches(plan, clips, pool, epoch))
            took = time.perf_counter() - start
    return count / took


def network_alone(plan: Recipe, clips: ClipList) -> float:
    """Clips per second of the training steps on one batch again and again; normalising it is included."""
    fabric = launch(precision=plan.training.precision)
    made: nn.Module = create_model(NETWORK, clips.num_classes)
    model, optimizer = fabric.setup(made, build_optimizer(made, plan.training.optimizer))
    with Pool(0, plan.data.seconds) as pool:
        batch = next(batches(plan, clips, pool, 0))
    steps = train_steps(
        fabric,
        model,
        optimizer,
        (_examples(one, plan.clips, fabric.device) for one in repeat(batch, STEPS)),
        outcome_of=lambda network, one: Outcome(nn.functional.cross_entropy(network(one.clip), one.targets)),
        rate_of=lambda update: plan.training.optimizer.lr,
        seed_of=lambda number: number,
        steps=STEPS,
    )
    took = [step.seconds for step in steps][1:]
    return len(took) * len(batch.frames) / sum(took)


def _examples(batch: Batch, preprocess: Preprocess, device: torch.device) -> Examples:
    clip: Tensor = normalize(batch.frames.to(device), preprocess, batch.mirrored)
    return Examples(clip, batch.targets.to(device), len(batch.frames))


def table(rows: list[dict[str, Any]]) -> str:
    """One line per number of workers; the limit is the slower of the two alone."""
    titles = ("workers", "network alone", "data alone", "one by one", "trained", "of limit", "waiting")
    lines = ["".join(f"{title:>14}" for title in titles)]
    for row in rows:
        data, network, trained = row["data"], row["network"], row["clips_per_second"]
        serial = 1 / (1 / data + 1 / network)
        lines.append(
            f"{row['workers']:14}{network:14.1f}{data:14.1f}{serial:14.1f}{trained:14.1f}"
            f"{trained / min(data, network):14.0%}{row['data_share']:14.1%}"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("list", nargs="?", type=Path, help="any list that Marey reads, one label per clip")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=2, help="at least 2; the first is not counted")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=96, help="pixels; frames are resized to 7/6 of it")
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.epochs < 2:
        sys.exit("--epochs must be at least 2: the first starts processes and is not counted")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = shortened(given.list or default_list(folder, given.clips), given.clips, folder)
        clips = read_list(path)
        plans = [
            recipe(path, workers=int(number), epochs=given.epochs, batch=given.batch, crop=given.crop)
            for number in given.workers.split(",")
        ]
        for plan in plans:
            row = {"workers": plan.data.workers, "network": network_alone(plan, clips)}
            rows.append(row | {"data": data_alone(plan, clips)} | together(plan, folder))
    print(table(rows))
    if given.json:
        found = {"command": sys.argv, "environment": environment(), "rows": rows}
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
