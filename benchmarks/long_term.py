"""Whether feature banks bring what happened long before: rendered films, a baseline and the three operators.

    python benchmarks/long_term.py [--folder F] [--kinds nl max avg] [--train 24] [--val 12] [--width 8]
                                   [--epochs 4] [--bank-epochs 4] [--rate 0.03] [--seed 0]

Films as `marey.data.films` renders them: what all persons do at the end is told by the colour of a card that
one of them showed at least ten seconds before, and the end of a film looks the same whichever it was. A
baseline is trained from scratch; banks of both splits are built with it; detectors with a bank start from its
trunk. Printed are the AP of each action on the validation films, mAP, and times. Without a memory no network
does better than by chance on "answer red" and "answer green": 0.5 each, which makes a mAP of 0.8.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

import marey
from marey.data.films import render_films
from marey.jobs.bank_build import build_bank


def overrides(films, width, batch=16):
    """A small network on small clips."""
    return films.overrides() | {
        "model.options.width": width,
        "clips.frames": 2,
        "clips.interval": 4,
        "clips.short_side": 64,
        "clips.train_short_side": [64, 72],
        "clips.crop": 64,
        "training.batch": batch,
        "training.reference_batch": batch,
        "training.schedule.warmup_epochs": 0.5,
        "training.validate_every": 0,
        "data.workers": 0,
    }


def main():
    """Render, train, build, train again, test."""
    words = argparse.ArgumentParser()
    words.add_argument("--folder", type=Path)
    words.add_argument("--kinds", nargs="*", default=["nl", "max", "avg"])
    words.add_argument("--train", type=int, default=24)
    words.add_argument("--val", type=int, default=12)
    words.add_argument("--width", type=int, default=8)
    words.add_argument("--epochs", type=int, default=4)
    words.add_argument("--bank-epochs", type=int, default=4)
    words.add_argument("--rate", type=float, default=0.03)
    words.add_argument("--seed", type=int, default=0)
    given = words.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="long-term-"))
    torch.set_num_threads(1)
    started = time.perf_counter()
    films = render_films(folder / "films", train=given.train, val=given.val, seed=given.seed)
    print(f"{given.train} + {given.val} films rendered in {time.perf_counter() - started:.0f} s", flush=True)

    plan = overrides(films, given.width) | {"training.optimizer.lr": given.rate}
    started = time.perf_counter()
    plain = marey.train(
        "own_boxes", plan | {"training.epochs": given.epochs}, out=folder / "runs", seed=given.seed
    )
    found = marey.test(plain.run / "recipe.json", plain.checkpoint)
    names = [entry["class"] for entry in found["per_class"]]
    lines = [("baseline", found, time.perf_counter() - started)]
    for split in ("train", "val"):
        built = build_bank(
            plain.run / "recipe.json", plain.checkpoint, folder / "bank", split=split, quiet=True
        )
        print(f"bank of {split}: {built.made} key frames, {built.made / built.seconds:.1f} per second")
    print(f"bank: {built.bank.rows} boxes, {built.bank.bytes / 2**20:.2f} MiB")
    bank = str(folder / "bank")
    for kind in given.kinds:
        started = time.perf_counter()
        more = {
            "name": f"ava.own_boxes_{kind}",
            "model.weights": str(plain.checkpoint),
            "model.options.long_term": kind,
            "model.options.latent": 64,
            "data.train.bank": bank,
            "data.val.bank": bank,
            "training.epochs": given.bank_epochs,
        }
        trained = marey.train("own_boxes", plan | more, out=folder / "runs", seed=given.seed)
        found = marey.test(trained.run / "recipe.json", trained.checkpoint)
        lines.append((kind, found, time.perf_counter() - started))
    print(f"{'AP':<10}" + "".join(f"{name:>14}" for name in (*names, "mAP")) + f"{'seconds':>10}")
    for name, found, seconds in lines:
        values = [entry["ap"] for entry in found["per_class"]] + [found["metrics"]["map"]]
        print(f"{name:<10}" + "".join(f"{value:>14.3f}" for value in values) + f"{seconds:>10.0f}")


if __name__ == "__main__":
    main()
