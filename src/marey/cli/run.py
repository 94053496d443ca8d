"""Commands that train, test and run models; recipes; the state of the installation."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from marey.cli.boxes import predict_films
from marey.cli.clips import predict_clips, predict_job
from marey.cli.parts import (
    SOME_FAILED,
    Accelerator,
    Device,
    Json,
    Overrides,
    beside,
    first_process,
    rows,
    seconds,
)
from marey.cli.tags import predict_tags
from marey.errors import UsageError


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the videos and the run.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of videos and training.")] = 0,
    as_json: Json = False,
) -> None:
    """Render a small dataset, train on it, test, predict and write a report."""
    import msgspec

    from marey.jobs.demo import demo as run

    found = run(out, seed=seed)
    if as_json:
        print(json.dumps(msgspec.to_builtins(found._asdict(), enc_hook=str), indent=2))
        return
    print(f"test accuracy {found.accuracy:.1%} on {found.clips} clips")
    for seen in found.predictions:
        print(f"{seen.source}  " + "  ".join(f"{name} {score:.1%}" for score, name in seen.top()))
    print(f"report {found.report}")


def predict(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Files, folders, globs, lists, or -; or records of features."),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="What `marey train` or `export` wrote, or a release's file.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A release by name, see docs/weights.md.")] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="How many classes; default: 5, of a submission 20.")
    ] = None,
    every: Annotated[
        str | None, typer.Option(help="A timeline with a window every so long, for example 2s.")
    ] = None,
    span: Annotated[
        str | None, typer.Option(help="How long a window lasts; default: as long as --every.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write .jsonl, .csv or .parquet.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out; skip videos that were scored before.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only part I (from 0) of N; processes share --out.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="With --out: decoding processes; -1: one per core, at most eight.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="Names in folders of frames: img_{:05}.jpg")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Records, persons: only tags or actions that are at least so probable."
        ),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Records: names of the tags, such as YouTube-8M's vocabulary.csv.")
    ] = None,
    submission: Annotated[
        bool, typer.Option("--submission", help="Records: write --out as the YouTube-8M challenge takes it.")
    ] = False,
    proposals: Annotated[
        Path | None,
        typer.Option(help="Persons: their boxes, .csv, .json, .parquet or .pkl, by film and second."),
    ] = None,
    person_detector: Annotated[
        str | None,
        typer.Option(
            help="Persons: torchvision's detector by name, or its file; default: fasterrcnn_resnet50_fpn."
        ),
    ] = None,
    person_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Persons: boxes count from this score; default: as trained."),
    ] = None,
    bank_checkpoint: Annotated[
        str | None,
        typer.Option(help="Persons: the baseline, file or release, that made the detector's bank."),
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="Persons: write the film again with boxes and actions.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """What is seen in videos: classes of each, a timeline, or what persons do; tags of frame features."""
    from marey.jobs.setup_features import takes_features
    from marey.weights.create import open_model

    if (checkpoint is None) == (model is None):
        raise UsageError("NO_MODEL", "give either --checkpoint FILE or --model RELEASE")
    network = open_model(checkpoint or str(model))
    tagger, detector = takes_features(network), hasattr(network, "box_features")
    for_films: dict[str, Any] = {
        "proposals": proposals,
        "person_detector": person_detector,
        "person_threshold": person_threshold,
        "bank_checkpoint": bank_checkpoint,
        "video": video,
    }
    for_records = {"classes": classes, "submission": submission or None}
    for_many = {"resume": resume or None, "shard": shard, "workers": workers}
    without = for_records | for_films | {"threshold": threshold}
    if tagger:
        without = {"every": every, "span": span, "template": template, **for_films, **for_many}
    elif detector:
        without = {"span": span, **for_records, **for_many}
    for name, value in without.items():
        if value is not None:
            takes = "features of frames" if tagger else "boxes of persons" if detector else "clips"
            option = name.replace("_", "-")
            raise UsageError("USAGE", f"--{option} has no meaning here: the network takes {takes}")
    if detector:
        if proposals is not None and person_detector is not None:
            raise UsageError("USAGE", "give either --proposals or --person-detector")
        predict_films(
            network,
            sources,
            out=out,
            video=video,
            threshold=threshold,
            as_json=as_json,
            proposals=proposals,
            person_detector=person_detector,
            bank_model=bank_checkpoint,
            person_threshold=person_threshold,
            top=top or 5,
            every=seconds(every),
            template=template,
            device=device,
        )
        return
    if tagger:
        predict_tags(
            network,
            sources,
            top=top or (20 if submission else 5),
            threshold=threshold or 0.0,
            classes=classes,
            out=out,
            submission=submission,
            device=device,
            as_json=as_json,
        )
        return
    shown: dict[str, Any] = {"out": out, "as_json": as_json, "template": template, "device": device}
    shown |= {"top": top or 5, "every": seconds(every), "span": seconds(span)}
    if resume or shard is not None or workers is not None:
        predict_job(network, sources, resume=resume, shard=shard, workers=workers, **shown)
    else:
        predict_clips(network, sources, **shown)


def features(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Files, folders, globs, lists, or -.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the features and their index.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="What `marey train` wrote, or a release's file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A release by name; or a network's, for a --checkpoint of pictures.")
    ] = None,
    per: Annotated[
        str | None,
        typer.Option(
            help="A row per clip (default), second (of youtube8m), video, or window: 2s, 0.5s, 1min."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float32",
    layout: Annotated[
        str,
        typer.Option("--format", help="safetensors, npz, parquet, or youtube8m: records to train tags on."),
    ] = "safetensors",
    pca: Annotated[
        int | None, typer.Option(help="youtube8m: principal axes to keep; default: the features as they are.")
    ] = None,
    projection: Annotated[
        Path | None,
        typer.Option(help="youtube8m: projection.safetensors of former records, in place of a new one."),
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="youtube8m: own audio features, a folder, .npz or .parquet, by video.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="youtube8m: file with the class names in label order, or Kinetics-400, ..."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="youtube8m: of the rows that axes are fitted to.")] = 0,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of a clip, for TSN; 1: a picture per row.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="A module's name; default: the pooled features.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the folder; skip what is finished.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only part I (from 0) of N; processes share the folder.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Decoding processes; -1: one per core, at most eight.")] = -1,
    template: Annotated[str | None, typer.Option(help="Names in folders of frames: img_{:05}.jpg")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Pooled features of videos as files with an index; a killed run continues with --resume."""
    from marey.jobs.extract import extract_features
    from marey.jobs.manifest import shard as part
    from marey.jobs.records import extract_records

    options: dict[str, Any] = {
        "layer": layer,
        "dtype": dtype,
        "resume": resume,
        "shard": None if shard is None else part(shard),
        "template": template,
        "device": device,
        "workers": workers,
        "frames": frames,
    }
    per = per or ("second" if layout == "youtube8m" else "clip")
    options["per"] = per if per in ("clip", "video") else 1.0 if per == "second" else seconds(per)
    only: dict[str, Any] = {"pca": pca, "projection": projection, "audio": audio, "classes": classes}
    if layout == "youtube8m":
        made = extract_records(_backbone(checkpoint, model), sources, out, **options, **only, seed=seed)
        shown = made._asdict() | {"folder": None if made.folder is None else str(made.folder)}
        shown["extracted"] = made.extracted._asdict() | {"folder": str(made.extracted.folder)}
        if made.folder is None:
            print("marey: the records are written by the same command without --shard, last", file=sys.stderr)
        rows(shown if as_json else shown | {"extracted": f"{made.extracted.done} videos"}, as_json)
        failed = made.extracted.failed or made.failed
    else:
        given = [name for name, value in only.items() if value is not None]
        if given:
            raise UsageError("USAGE", f"--{given[0]} belongs to --format youtube8m")
        found = extract_features(_backbone(checkpoint, model), sources, out, format=layout, **options)  # type: ignore[arg-type]
        rows(found._asdict() | {"folder": str(found.folder)}, as_json)
        failed = found.failed
    if failed:
        raise typer.Exit(SOME_FAILED)


def _backbone(checkpoint: Path | None, model: str | None) -> Any:
    """What features are taken of; both: weights, perhaps of pictures, in a network called by its name."""
    from marey.jobs.extract import open_backbone
    from marey.models import MODELS

    if checkpoint is not None and model in MODELS:
        return open_backbone(str(model), checkpoint)
    if (checkpoint is None) == (model is None):
        raise UsageError(
            "NO_MODEL", "give either --checkpoint FILE or --model RELEASE, or a network's name and its file"
        )
    return checkpoint or str(model)


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a recipe.json.")],
    overrides: Overrides = None,
    validate: Annotated[
        bool | None, typer.Option("--validate/--no-validate", help="Default: if there is data.val.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="The same bits every time.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue this recipe's newest run.")] = False,
    auto_scale_lr: Annotated[
        bool, typer.Option("--auto-scale-lr", help="Scale lr to the real batch.")
    ] = False,
    preflight: Annotated[
        bool,
        typer.Option("--preflight", help="Only try, for seconds: data, loss, speed, memory, disk; no run."),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="With --preflight: so many steps on one batch; the loss falls?")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    accelerator: Accelerator = "auto",
    devices: Annotated[
        int, typer.Option(min=1, help="Processes on this machine; torchrun's number rules.")
    ] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    as_json: Json = False,
) -> None:
    """Train by a recipe; everything goes to runs/<recipe>/<n>/."""
    options: dict[str, Any] = {
        "out": out,
        "validate": validate,
        "seed": seed,
        "deterministic": deterministic,
        "auto_scale_lr": auto_scale_lr,
        "accelerator": accelerator,
        "devices": devices,
        "nodes": nodes,
    }
    if preflight:
        if resume:
            raise UsageError("USAGE", "--preflight tries a new run; leave --resume out")
        _preflight(recipe, overrides or (), steps, as_json, **options)
        return
    if steps is not None:
        raise UsageError("USAGE", "--steps belongs to --preflight; training.epochs says how long a run is")
    from marey.jobs.train import train as run

    found = run(recipe, overrides or (), resume=resume, **options)
    rows({"run": str(found.run), "checkpoint": str(found.checkpoint), **found.metrics}, as_json)
    if found.skipped:
        raise typer.Exit(SOME_FAILED)


def _preflight(
    recipe: str, overrides: Sequence[str], steps: int | None, as_json: bool, **options: Any
) -> None:
    import msgspec

    from marey.jobs.preflight import lines
    from marey.jobs.preflight import preflight as run

    found = run(recipe, overrides, steps=steps, **options)
    if first_process():
        print(json.dumps(msgspec.to_builtins(found), indent=2) if as_json else "\n".join(lines(found, steps)))
    if found.skipped:
        raise typer.Exit(SOME_FAILED)


def test(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a recipe.json.")],
    overrides: Overrides = None,
    checkpoint: Annotated[Path, typer.Option(help="What `marey train` wrote, or published weights.")] = ...,  # type: ignore[assignment]
    out: Annotated[
        Path | None, typer.Option(help="results.json to write; default: into the run's folder.")
    ] = None,
    metrics: Annotated[list[str] | None, typer.Option(help="Only these; may be given several times.")] = None,
    average_clips: Annotated[
        str | None, typer.Option(help="prob, score, max, or none: one row per view.")
    ] = None,
    accelerator: Accelerator = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    as_json: Json = False,
) -> None:
    """Score a test list with a checkpoint, by the recipe's full protocol."""
    from marey.jobs.evaluate import test as run

    found = run(
        recipe,
        checkpoint,
        overrides or (),
        out=out,
        metrics=metrics or (),
        average_clips=average_clips,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
    )
    expected = (found["expected"] or {}).get("metrics", {})
    shown: dict[str, Any] = {"evaluated": f"{found['evaluated']} of {found['listed']}", **found["metrics"]}
    rows(
        {name: beside(value, expected.get(name)) for name, value in shown.items()} if not as_json else found,
        as_json,
    )
    if found["failed"]:
        raise typer.Exit(SOME_FAILED)


def recipes(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, for example 'tsm*'.")] = "*",
    as_json: Json = False,
) -> None:
    """List the recipes."""
    from marey.recipes.catalog import describe_recipe, list_recipes

    found = list_recipes(pattern)
    if not found:
        raise UsageError(
            "UNKNOWN_RECIPE",
            f"no recipe's name matches {pattern!r}; '*{pattern.strip('*')}*' takes a part of it",
        )
    rows({name: describe_recipe(name) for name in found}, as_json)


def recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name, or a recipe.json.")],
    overrides: Overrides = None,
) -> None:
    """Print one recipe, resolved, as JSON."""
    import msgspec

    from marey.recipes.catalog import load_recipe

    text = msgspec.json.encode(load_recipe(name, overrides or ()))
    print(msgspec.json.format(text, indent=2).decode())


def doctor(as_json: Json = False) -> None:
    """Versions, devices, decoders, disk: what works here and what does not."""
    from marey.jobs.doctor import doctor as run
    from marey.jobs.doctor import lines

    facts = run()
    print(json.dumps(facts, indent=2) if as_json else "\n".join(lines(facts)))
    if not facts["ok"]:
        raise typer.Exit(5)
