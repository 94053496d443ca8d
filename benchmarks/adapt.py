"""What each step of `marey adapt` brings: shapes in daylight, learnt; shapes in the dark, never labelled.

    OMP_NUM_THREADS=1 python benchmarks/adapt.py --out /tmp/adapt

Moving shapes in daylight are rendered with labels: six classes, the hue of the shape in sixths of the circle,
which small networks learn in seconds. Others are darkened as a camera would take them (5 % of the light, shot
noise, a warm lamp that shifts the hues, 8 bits): one set to adapt to, whose labels no stage is given, and one
held out. Two networks go through the rounds for every seed; each step's weights are scored on both dark sets,
and so are the first step's with the statistics of the source in their batch norms ("source only"). With
--variants every option runs, too. With --lists TRAIN VAL the videos are those of two lists, of which every
second one of TRAIN, and VAL, are darkened. Results go to results.json; a second call goes on.
"""

import argparse
import colorsys
import json
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marey.data.clips import train_batches
from marey.data.lists import read_list
from marey.data.workers import Pool
from marey.jobs.rounds import adapt
from marey.jobs.rounds_plan import Plan, recipes_of
from marey.jobs.rounds_report import lines, write_page
from marey.jobs.scoring import score_videos
from marey.jobs.vote import vote
from marey.scores.select import Filters
from marey.training.adapt import recompute_batch_norm
from marey.video.preprocess import normalize
from marey.video.reader import read_video
from marey.video.synthetic import CLASSES, darken, moving_shape, write_video
from marey.weights.create import open_model
from marey.weights.native import save_checkpoint

SETTINGS = {
    "model.options": {"width": 8, "segments": 3, "dropout": 0.0, "zero_init_residual": True},
    "clips.frames": 3,
    "clips.short_side": 32,
    "clips.crop": 32,
    "clips.val.crop": 32,
    "clips.test.crop": 32,
    "clips.flip_labels": [],
    "training.label_smoothing": 0.1,
    "data.workers": 0,
}
HUES = ("orange", "green", "turquoise", "blue", "purple", "pink")
VARIANTS: dict[str, dict[str, Any]] = {
    "all rows": {"policies": ("quantile:1",)},
    "agreement": {"filters": Filters(agreement=1.0)},
    "soft": {"soft": True},
    "ema": {"ema": 0.98},
    "sharpen": {"sharpen": True},
    "calibrate": {"calibrate": True},
    "own start": {"start": "own"},
}


def coloured(folder: Path, name: str, count: int, seed: int) -> Path:
    """Videos of shapes that move anyhow, so many of each hue, and their list."""
    out = folder / f"{name}.csv"
    if out.exists():
        return out
    text = ["path,label,class"]
    for label, hue in enumerate(HUES):
        for number in range(count):
            rng = np.random.default_rng([11, seed, label, number])
            rgb = [
                round(255 * x) for x in colorsys.hsv_to_rgb((label + rng.uniform(0.1, 0.9)) / 6, 0.75, 0.98)
            ]
            clip = moving_shape(str(rng.choice(CLASSES)), generator=rng, size=(48, 48), frames=8, colour=rgb)
            write_video(folder / name / hue / f"{number:04}.mp4", clip, fps=12)
            text.append(f"{name}/{hue}/{number:04}.mp4,{label},{hue}")
    out.write_text("\n".join(text) + "\n")
    return out


def darkened(listed: Path, rows: list[int], folder: Path, name: str) -> Path:
    """Dark copies of some videos of a list, and the list of them."""
    clips, out = read_list(listed), folder / f"{name}.csv"
    if out.exists():
        return out
    text = ["path,label"]
    for row in rows:
        with read_video(clips[row].path) as video:
            pixels, fps = video.frames(range(len(video))).numpy(), video.fps or 12
        rng = np.random.default_rng([7, row])
        write_video(folder / name / f"{row:05}.mp4", darken(pixels, generator=rng), fps=fps)
        text.append(f"{name}/{row:05}.mp4,{clips.labels(row)[0]}")
    out.write_text("\n".join(text) + "\n")
    return out


def prepare(args: argparse.Namespace) -> dict[str, Path]:
    """The four lists: labelled source, its held-out part, dark target, dark test."""
    folder = args.out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    if args.lists:
        train, val = map(Path, args.lists)
        clips = read_list(train)
        source = folder / "source.csv"
        rows = [f"{clips[i].path},{clips.labels(i)[0]}" for i in range(0, len(clips), 2 * args.thin)]
        source.write_text("\n".join(["path,label", *rows]) + "\n")
        target = darkened(train, list(range(1, len(clips), 2 * args.thin)), folder, "target")
        test = darkened(val, list(range(0, len(read_list(val)), args.thin)), folder, "test")
        return {"source": source, "val": source, "target": target, "test": test}
    source, val = coloured(folder, "source", args.videos, 0), coloured(folder, "val", 8, 1)
    dark = {}
    for number, (name, count) in enumerate((("target", args.videos), ("test", args.videos)), 2):
        day = coloured(folder, f"{name}-by-day", count, number)
        dark[name] = darkened(day, list(range(6 * count)), folder, name)
    return {"source": source, "val": val, **dark}


def source_only(checkpoint: Path, source: Path, out: Path) -> Path:
    """The network with the statistics of the source in its batch norms."""
    if out.exists():
        return out
    model: Any = open_model(checkpoint)
    with Pool(0, 60.0) as pool:
        drawn = train_batches(
            read_list(source), model.preprocess, pool=pool, batch=16, seed=0, epoch=0,
            num_classes=model.num_classes, multi_label=False,
        )  # fmt: skip
        inputs = (normalize(batch.frames, model.preprocess, batch.mirrored) for batch in drawn)
        recompute_batch_norm(model, islice(inputs, 20))
    save_checkpoint(
        out, model, preprocess=model.preprocess, class_names=model.class_names, recipe={}, metrics={}
    )
    return out


def right(checkpoints: dict[str, Path], listed: Path, cache: Path) -> dict[str, float]:
    """Share of a list that each network and their mean get right."""
    files = []
    for name, checkpoint in checkpoints.items():
        out = cache / f"{name}.parquet"
        if not out.exists():
            score_videos(checkpoint, listed, out=out, accelerator="cpu", workers=0)
        files.append(f"{name}={out}")
    report = vote(files, truth=listed).report
    found = {name: row["measured"]["accuracy"] for name, row in report["members"].items()}
    return found | {"ensemble": report["measured"]["accuracy"]}


def plan_of(args: argparse.Namespace, lists: dict[str, Path], seed: int, **more: Any) -> Plan:
    """Two networks, the second of which sees clips brought to one grey."""
    overrides = [f"{k}={json.dumps(v)}" for k, v in SETTINGS.items()]
    overrides += [
        f"training.epochs={args.epochs}",
        f"training.schedule.warmup_epochs={min(1.0, args.epochs / 4)}",
    ]
    overrides += ["clips.flip=0"] if args.lists else []
    members = recipes_of(
        ["raw=demo.moving_shapes", "lit=demo.moving_shapes"],
        [*overrides, 'lit:clips.light={"target":110,"limits":[0.1,1.0]}'],
    )
    fields: dict[str, Any] = {
        "members": members, "source": str(lists["source"]), "target": str(lists["target"]),
        "truth": str(lists["target"]), "val": str(lists["val"]), "test": str(lists["test"]),
        "rounds": args.rounds, "norms": 20, "epochs": args.round_epochs, "seed": seed,
    }  # fmt: skip
    return Plan(**(fields | more))


def steps_of(folder: Path, rounds: int) -> list[dict[str, Path]]:
    """The checkpoints of every step."""
    found = []
    for step in range(rounds + 1):
        made = {}
        for name in ("raw", "lit"):
            stage = folder / f"step{step}/train-{name}"
            card = json.loads((stage / "stage.manifest.json").read_text())
            made[name] = stage / card["outputs"]["checkpoint"]["path"]
        found.append(made)
    return found


def run(args: argparse.Namespace, lists: dict[str, Path], seed: int) -> dict[str, Any]:
    """Everything for one seed."""
    folder = args.out / f"seed{seed}"
    rows: dict[str, Any] = {}
    started = time.process_time()
    base = folder / "base"
    adapt(plan_of(args, lists, seed, rounds=0), base, accelerator="cpu")
    first = steps_of(base, 0)[0]
    bare = {
        name: source_only(path, lists["source"], base / f"source-{name}.safetensors")
        for name, path in first.items()
    }
    for which in ("target", "test"):
        rows[f"source only, {which}"] = right(bare, lists[which], base / f"bare-{which}")
    variants = {"published way": {}, **{name: VARIANTS[name] for name in args.variants}}
    for name, changes in variants.items():
        place = folder / name.replace(" ", "-")
        if not place.exists() and not {"ema", "sharpen"} & changes.keys():
            shutil.copytree(base / "step0", place / "step0")
        plan = plan_of(args, lists, seed, **changes)
        found = adapt(plan, place, accelerator="cpu")
        print(f"seed {seed}, {name}", *lines(found.report), sep="\n", flush=True)
        write_page(place)
        for step, made in enumerate(steps_of(place, args.rounds)):
            if name == "published way" or step == args.rounds:
                key = "adapted norms" if step == 0 else f"round {step}"
                key = key if name == "published way" else f"{name}, {key}"
                for which in ("target", "test"):
                    rows[f"{key}, {which}"] = right(made, lists[which], place / f"again{step}-{which}")
        kept = [row["pseudo_labels"]["measured"]["accuracy"] for row in found.report["steps"][1:]]
        (folder / "rows.json").write_text(json.dumps(rows, indent=2))
        rows[f"{name}, labels right"] = {f"round {k}": value for k, value in enumerate(kept, 1)}
    rows["CPU seconds"] = {"all": time.process_time() - started}
    return rows


def main() -> None:
    """Parse, run, print means and spreads over seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--videos", type=int, default=30, help="of each class, in daylight and in the dark")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--round-epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--variants", nargs="*", default=[], choices=list(VARIANTS))
    parser.add_argument("--lists", nargs=2, metavar=("TRAIN", "VAL"))
    parser.add_argument("--thin", type=int, default=1, help="of the lists, every n-th video")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lists = prepare(args)
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
