"""What each step of `marey adapt` brings on footage: a camera's motions, learnt by day, unlabelled by night.

    OMP_NUM_THREADS=1 python benchmarks/adapt_footage.py TRAIN.csv VAL.csv --out /tmp/adapt-footage

The lists are of short clips (24 frames) with classes that motion tells apart. Every second one of TRAIN is
the labelled source; the others, and all of VAL, are darkened as a camera would take them at a twenty-fifth
of the light (shot and read noise, a warm lamp, 8 bits): the first to adapt to, labels unread, the second held
out. After that every third frame is kept, at 56 pixels, so that one core is enough. Two networks (raw, and
lit, which sees clips brought to one grey) go through the rounds for every seed; held-out clips are scored
after each step, and, for comparison, by daylight. Results go to results.json; a second call goes on, also
with more --variants.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapt import copies, right, source_only, steps_of

from marey.data.lists import read_list
from marey.jobs.rounds import adapt
from marey.jobs.rounds_plan import Plan, recipes_of
from marey.jobs.rounds_report import lines, write_page
from marey.scores.select import Filters

SIDE, EVERY = 56, 3
SETTINGS = {
    "model.name": "csn_ir_r50",
    "model.options": {"width": 16, "dropout": 0.0, "zero_init_residual": True},
    "clips.frames": 8,
    "clips.sampling": "segments",
    "clips.interval": 1,
    "clips.short_side": 48,
    "clips.crop": 40,
    "clips.val.crop": 40,
    "clips.test.crop": 40,
    "training.optimizer.kind": "adamw",
    "training.optimizer.lr": 0.002,
    "training.optimizer.weight_decay": 0.05,
    "training.optimizer.clip_norm": 1.0,
    "training.label_smoothing": 0.1,
    "data.workers": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "soft": {"soft": True},
    "agreement": {"filters": Filters(agreement=1.0)},
}


def prepare(train: Path, val: Path, folder: Path, exposure: float) -> dict[str, Path]:
    """The four lists: labelled source, dark target, dark test, and the test by daylight."""
    folder.mkdir(parents=True, exist_ok=True)
    size, held_out = len(read_list(train)), range(len(read_list(val)))
    small: dict[str, Any] = {"side": SIDE, "every": EVERY, "encoder": {"crf": "15"}}
    return {
        "source": copies(train, range(0, size, 2), folder, "source", **small),
        "target": copies(train, range(1, size, 2), folder, "target", exposure=exposure, **small),
        "test": copies(val, held_out, folder, "test", exposure=exposure, **small),
        "day": copies(val, held_out, folder, "day", **small),
    }


def plan_of(args: argparse.Namespace, lists: dict[str, Path], seed: int, **more: Any) -> Plan:
    """Two networks, the second of which sees clips brought to one grey."""
    overrides = [f"{k}={json.dumps(v)}" for k, v in SETTINGS.items()]
    overrides += [f"training.epochs={args.epochs}", 'lit:clips.light={"target":110,"limits":[0.1,1.0]}']
    fields: dict[str, Any] = {
        "members": recipes_of(["raw=scratch", "lit=scratch"], overrides),
        "source": str(lists["source"]), "target": str(lists["target"]), "truth": str(lists["target"]),
        "test": str(lists["test"]), "rounds": args.rounds, "norms": 20, "epochs": args.round_epochs,
        "seed": seed,
    }  # fmt: skip
    return Plan(**(fields | more))


def run(args: argparse.Namespace, lists: dict[str, Path], seed: int) -> dict[str, dict[str, float]]:
    """Everything for one seed: by step, the share that each network and the ensemble get right."""
    rows: dict[str, dict[str, float]] = {}
    base = args.out / f"seed{seed}" / "base"
    adapt(plan_of(args, lists, seed, rounds=0), base, accelerator="cpu")
    first = steps_of(base, 0)[0]
    bare = {
        name: source_only(path, lists["source"], base / f"source-{name}.safetensors")
        for name, path in first.items()
    }
    for which in ("day", "target", "test"):
        rows[f"source only, {which}"] = right(bare, lists[which], base / f"bare-{which}")
    for name in ("hard", *args.variants):
        started = time.process_time()
        place = args.out / f"seed{seed}" / name
        if not place.exists():
            shutil.copytree(base / "step0", place / "step0")
        plan = plan_of(args, lists, seed, **VARIANTS.get(name, {}))
        report = adapt(plan, place, accelerator="cpu").report
        seconds = time.process_time() - started
        print(f"seed {seed}, {name}, {seconds:.0f} s of CPU", *lines(report), sep="\n", flush=True)
        write_page(place)
        for step, made in enumerate(steps_of(place, args.rounds)):
            if step or name == "hard":
                key = f"{name} labels, round {step}" if step else "adapted norms"
                seen = report["steps"][step]
                known = {**seen["members"], "ensemble": seen["ensemble"]}
                rows[f"{key}, target"] = {which: row["accuracy"] for which, row in known.items()}
                rows[f"{key}, test"] = right(made, lists["test"], place / f"test{step}")
        kept = {f"round {row['step']}": row["pseudo_labels"] for row in report["steps"][1:]}
        rows[f"{name} labels, kept"] = {step: made["kept"] for step, made in kept.items()}
        rows[f"{name} labels, right"] = {step: made["measured"]["accuracy"] for step, made in kept.items()}
    return rows


def main() -> None:
    """Parse, run, print means and spreads over seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("train", type=Path, help="list of clips: half source, half target")
    parser.add_argument("val", type=Path, help="list of clips that are held out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--exposure", type=float, default=0.04, help="share of the light that is left")
    parser.add_argument("--round-epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variants", nargs="*", default=[], choices=list(VARIANTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    lists = prepare(args.train, args.val, args.out / "data", args.exposure)
    runs = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        runs.append(run(args, lists, seed))
        (args.out / "results.json").write_text(json.dumps(runs, indent=2))
    for key in runs[0]:
        cells = []
        for name in runs[0][key]:
            values = [one[key][name] for one in runs]
            cells.append(f"{name} {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"{key}: {', '.join(cells)}")


if __name__ == "__main__":
    main()
