"""What each step of `marey adapt` brings: motions in daylight, learnt; the same in the dark, never labelled.

    OMP_NUM_THREADS=1 python benchmarks/adapt.py --out /tmp/adapt

The videos are those of `marey demo`, smaller: shapes that move up, down, left or right, which no single
frame tells. Those of the source have labels. Others are darkened as a camera would take them (5 % of the
light, shot noise, a warm lamp, 8 bits): one set to adapt to, whose labels no stage is given, and one held
out. For every seed two networks that know the source go through the rounds and an expert joins at the end;
each step's weights are scored on the dark test set, the first step's also with the statistics of the source
in their batch norms ("source only"). Each of --variants changes one option, for one round from the same
first step; "no labels" trains as long on the source alone. Results go to results.json; a second call goes on.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from marey.data.clips import train_batches
from marey.data.lists import read_list
from marey.data.workers import Pool
from marey.jobs.rounds import Rounds, adapt
from marey.jobs.rounds_plan import Plan, Views, recipes_of
from marey.jobs.rounds_report import lines, write_page
from marey.jobs.scoring import score_videos
from marey.jobs.sharpen import sharpen
from marey.jobs.vote import vote
from marey.recipes.demo import DEMO_CLASSES
from marey.recipes.schema import Recipe
from marey.scores.labels import read_labels, read_truth, truth_of
from marey.scores.select import Filters
from marey.training.adapt import recompute_batch_norm
from marey.training.distributed import launch
from marey.video.light import Light
from marey.video.preprocess import Protocol, normalize
from marey.video.reader import read_video
from marey.video.synthetic import darken, render_moving_shapes, write_video
from marey.video.transforms import resize
from marey.weights.create import open_model
from marey.weights.native import save_checkpoint

SETTINGS = {
    "model.options": {"width": 16, "segments": 8, "dropout": 0.0},
    "clips.short_side": 32,
    "clips.crop": 32,
    "clips.val.crop": 32,
    "clips.test.crop": 32,
    "training.optimizer.kind": "adamw",
    "training.optimizer.lr": 2e-3,
    "training.optimizer.weight_decay": 0.05,
    "data.workers": 0,
}
LIT = 'clips.light={"target":110,"limits":[0.1,1.0]}'  # clips are brought to one grey
DENSE = ['clips.sampling="clip"', "clips.interval=2"]  # frames at one distance
GAMMA = (Light(), Light(gamma=0.8), Light(gamma=0.65))
AS_TRAINED = Views()
DARK = 0.05  # of the light
VARIANTS: dict[str, dict[str, Any]] = {
    "no labels": {},
    "soft": {"soft": True},
    "agreement": {"filters": Filters(agreement=1.0)},
    "calibrate": {"calibrate": True},
    "ema": {"ema": 0.98},
    "sharpen": {"sharpen": True},
}


def copies(
    listed: Path,
    rows: Sequence[int],
    folder: Path,
    name: str,
    *,
    exposure: float | None = None,
    side: int | None = None,
    every: int = 1,
    encoder: dict[str, str] | None = None,
) -> Path:
    """Copies of some videos of a list: of every so many frames, darkened, then made small; and their list."""
    clips, out = read_list(listed), folder / f"{name}.csv"
    if out.exists():
        return out
    text = ["path,label,class"]
    for row in rows:
        with read_video(clips[row].path) as video:
            pixels = video.frames(range(every // 2, len(video), every))
            fps = (video.fps or 12) / every
        if exposure is not None:
            rng = np.random.default_rng([7, row])
            pixels = torch.from_numpy(darken(pixels.numpy(), generator=rng, exposure=exposure))
        if side is not None:
            pixels = resize(pixels, (side, side))
        write_video(folder / name / f"{row:05}.mp4", pixels.numpy(), fps=fps, encoder=encoder)
        label = clips.labels(row)[0]
        text.append(f"{name}/{row:05}.mp4,{label},{clips.classes[label] if clips.classes else label}")
    out.write_text("\n".join(text) + "\n")
    return out


def prepare(folder: Path, videos: int) -> dict[str, Path]:
    """The four lists: labelled source, its held-out part, dark target, dark test."""
    size: dict[str, Any] = {"size": (32, 32), "frames": 16, "classes": DEMO_CLASSES}
    made = {}
    if not (folder / "test.csv").exists():
        render_moving_shapes(folder / "day", train=videos, val=10, test=0, seed=1, **size)
        night = render_moving_shapes(folder / "later", train=videos, val=videos, test=0, seed=2, **size)
        for name, listed in (("target", night.train), ("test", night.val)):
            made[name] = copies(listed, range(len(read_list(listed))), folder, name, exposure=DARK)
    lists = {"source": folder / "day/train.csv", "val": folder / "day/val.csv"}
    return {**lists, **{name: folder / f"{name}.csv" for name in ("target", "test")}}


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


def right(
    checkpoints: dict[str, Path], listed: Path, cache: Path, views: Views = AS_TRAINED
) -> dict[str, float]:
    """Share of a list that each network and their mean get right."""
    files = []
    for name, checkpoint in checkpoints.items():
        out = cache / f"{name}.parquet"
        if not out.exists():
            test: Protocol = open_model(checkpoint).preprocess.test  # type: ignore[union-attr, assignment]
            score_videos(checkpoint, listed, out=out, protocol=views.of(test), accelerator="cpu", workers=0)
        files.append(f"{name}={out}")
    report = vote(files, truth=listed).report
    found = {name: row["measured"]["accuracy"] for name, row in report["members"].items()}
    return found | {"ensemble": report["measured"]["accuracy"]}


def plan_of(
    args: argparse.Namespace, lists: dict[str, Path], seed: int, known: dict[str, Path], **more: Any
) -> Plan:
    """Two networks, the second of which sees clips brought to one grey.

    known  their weights; none: the training that gives them
    """
    overrides = [f"{k}={json.dumps(v)}" for k, v in SETTINGS.items()]
    overrides += [f"training.epochs={args.epochs if known else args.before}", f"lit:{LIT}"]
    overrides += [f"{name}:model.weights={path.resolve()}" for name, path in known.items()]
    fields: dict[str, Any] = {
        "members": recipes_of(["raw=demo.moving_shapes", "lit=demo.moving_shapes"], overrides),
        "source": str(lists["source"]), "target": str(lists["target"]), "truth": str(lists["target"]),
        "val": str(lists["val"]), "test": str(lists["test"]),
        "rounds": args.rounds, "norms": 20, "epochs": args.round_epochs, "seed": seed,
    }  # fmt: skip
    return Plan(**(fields | more))


def experts(weights: Path) -> dict[str, Recipe]:
    """The network that joins last: it knows the source, and learns from the last labels only."""
    overrides = [f"{k}={json.dumps(v)}" for k, v in SETTINGS.items()]
    overrides += [*DENSE, f"model.weights={weights.resolve()}"]
    return recipes_of(["dense=demo.moving_shapes"], overrides)


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
    """Everything for one seed: rows of the table, and of the labels."""
    folder = args.out / f"seed{seed}"
    rows: dict[str, Any] = {}

    def measure(key: str, checkpoints: dict[str, Path], place: Path, views: Views = AS_TRAINED) -> None:
        rows[key] = right(checkpoints, lists["test"], place, views)

    def count(key: str, table: Path) -> None:
        labels = read_labels(table)
        known = truth_of(labels.ids, read_truth(lists["target"]))[labels.kept]
        good = float((labels.labels[labels.kept] == known).mean())
        rows[f"{key}, labels"] = {"kept": len(known), "right": good}

    before = plan_of(args, lists, seed, {})
    work = Rounds(before, folder / "base", "cpu", print)
    known = {name: work.train(0, name, recipe, None, None) for name, recipe in before.members.items()}
    whole = folder / "rounds"
    plan = plan_of(args, lists, seed, known, experts=experts(known["raw"]))
    report = adapt(plan, whole, accelerator="cpu").report
    print(f"seed {seed}", *lines(report), sep="\n", flush=True)
    write_page(whole)
    steps = steps_of(whole, args.rounds)
    bare = {
        name: source_only(path, lists["source"], whole / f"source-{name}.safetensors")
        for name, path in steps[0].items()
    }
    measure("source only", bare, whole / "bare-test")
    measure("adapted norms, gamma in tests", steps[0], whole / "gamma-test", Views(lights=GAMMA))
    for step, made in enumerate(steps):
        measure(f"round {step}" if step else "adapted norms", made, whole / f"again{step}-test")
        if step:
            count(f"round {step}", whole / f"step{step}/labels/labels.parquet")
    last = report["final"]["test"]
    voted = {**last["members"], "ensemble": last["ensemble"]}
    rows["vote with the expert"] = {name: one["accuracy"] for name, one in voted.items()}
    scores = {name: whole / f"step0/score-target-{name}/scores.parquet" for name in known}
    for name in args.variants:
        plan, place = plan_of(args, lists, seed, known, **VARIANTS[name]), folder / name
        if name == "sharpen":
            for step, made in enumerate(steps[:2]):
                key = f"round {step}, sharpened" if step else "adapted norms, sharpened"
                measure(key, sharpened(made, lists, place / f"step{step}"), place / f"again{step}-test")
            continue
        made, table = another(plan, steps[0], scores, place, learns=name != "no labels")
        measure(f"round 1, {name}", made, place / "again1-test")
        if table is not None:
            count(f"round 1, {name}", table)
    return rows


def another(
    plan: Plan, weights: dict[str, Path], scores: dict[str, Path], folder: Path, *, learns: bool
) -> tuple[dict[str, Path], Path | None]:
    """Round 1 by another plan, from the same first step: its networks and its labels.

    learns  from labels; else from the source alone, for as many steps, which otherwise take turns
    """
    work, table = Rounds(plan, folder, "cpu", print), None
    if plan.calibrate:
        for name, recipe in plan.members.items():
            work.temperature(0, name, weights[name], recipe)
    if learns:
        table = work.label(1, scores, None)
    made = {}
    for name, recipe in plan.members.items():
        if not learns:
            longer = msgspec.structs.replace(recipe.training, epochs=2 * (plan.epochs or 1))
            recipe = msgspec.structs.replace(recipe, training=longer)
        made[name] = work.train(1, name, recipe, table, weights[name])
    return made, table


def sharpened(weights: dict[str, Path], lists: dict[str, Path], folder: Path) -> dict[str, Path]:
    """The networks, their norms moved to lower the entropy on the target (Tent)."""
    folder.mkdir(parents=True, exist_ok=True)
    clips, fabric, made = read_list(lists["target"]), launch(accelerator="cpu"), {}
    for name, path in weights.items():
        made[name] = folder / f"{name}.safetensors"
        if not made[name].exists():
            with Pool(0, 60.0) as pool:
                sharpen(path, clips, made[name], fabric=fabric, pool=pool, seed=0, norms=20)
    return made


def main() -> None:
    """Parse, run, print means and spreads over seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--videos", type=int, default=60, help="of each class, in daylight and in the dark")
    parser.add_argument("--before", type=int, default=14, help="epochs on the source, before adapting")
    parser.add_argument("--epochs", type=int, default=10, help="of the first step, on the source")
    parser.add_argument("--round-epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    lists = prepare(args.out / "data", args.videos)
    runs = []
    for seed in args.seeds:
        runs.append(run(args, lists, seed))
        (args.out / "results.json").write_text(json.dumps(runs, indent=2))
    print(*table(runs), sep="\n")


def table(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Means over the seeds, and the lowest and the highest; what only some seeds have is left out."""
    columns = ("raw", "lit", "dense", "ensemble", "kept", "right")
    yield f"| {len(runs)} seeds | " + " | ".join(columns) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for key in (key for key in runs[0] if all(key in one for one in runs)):
        cells = []
        for name in columns:
            values = [one[key][name] for one in runs if name in one[key]]
            digits = 3 if values and max(values) <= 1 else 0
            mean, low, high = (f"{of(values):.{digits}f}" if values else "" for of in (np.mean, min, max))
            cells.append(f"{mean} ({low} to {high})" if values else "")
        yield f"| {key} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
