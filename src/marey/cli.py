"""The command line: arguments, one call into `marey.jobs`, printed rows.

Results go to stdout, everything else to stderr. Exit codes: 0 all good, 2 wrong use, 3 finished but some
inputs failed, 4 aborted, 5 environment, 130 interrupted with everything saved. Heavy imports happen only
after the command is known.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from marey.errors import MareyError, UsageError

app = typer.Typer(name="marey", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Lists of videos: check them.")
app.add_typer(data_app, name="data")

Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Fields to change.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SOME_FAILED = 3


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
) -> None:
    """Marey trains, evaluates and runs video models."""  # --debug is read in `main`, wherever it stands


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the videos and the run.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of videos and training.")] = 0,
) -> None:
    """Render a small dataset, train on it, test, predict and write a report."""
    from marey.jobs.demo import demo as run

    found = run(out, seed=seed)
    print(f"test accuracy {found.accuracy:.1%} on {found.clips} clips")
    for seen in found.predictions:
        print(f"{seen.source}  " + "  ".join(f"{name} {score:.1%}" for score, name in seen.top()))
    print(f"report {found.report}")


@app.command()
def predict(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Files, folders, globs, lists, or -.")
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="What `marey train` or `export` wrote, or a release's file.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A release by name, see docs/weights.md.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes.")] = 5,
    every: Annotated[
        str | None, typer.Option(help="A timeline with a window every so long, for example 2s.")
    ] = None,
    span: Annotated[
        str | None, typer.Option(help="How long a window lasts; default: as long as --every.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write .jsonl, .csv or .parquet.")] = None,
    template: Annotated[str | None, typer.Option(help="Names in folders of frames: img_{:05}.jpg")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; default: the GPU if there is one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What is seen in videos: one line of classes each, or a timeline."""
    from marey.jobs.output import write_predictions
    from marey.jobs.predict import predict as run

    if (checkpoint is None) == (model is None):
        raise UsageError("NO_MODEL", "give either --checkpoint FILE or --model RELEASE")
    found = run(
        checkpoint or str(model),
        sources,
        top=top,
        every=_seconds(every),
        span=_seconds(span),
        template=template,
        device=device,
    )
    failed = 0
    rows = found if out is None else write_predictions(found, out)
    for row in rows:
        failed += row.code is not None
        if as_json:
            print(row.json())
        elif row.code is not None:
            print(f"{row.source}: {row.code}: {row.message}", file=sys.stderr)
        else:
            window = f"  {row.start:.1f}-{row.end:.1f} s" if every else ""
            print(
                f"{row.source}{window}  " + "  ".join(f"{name} {score:.1%}" for score, name in row.top(top))
            )
    if failed:
        raise typer.Exit(SOME_FAILED)


@app.command()
def features(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Files, folders, globs, lists, or -.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the features and their index.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="What `marey train` wrote, or a release's file.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A release by name, see docs/weights.md.")] = None,
    per: Annotated[
        str, typer.Option(help="A row per clip, second or video, or per window: 2s, 0.5s, 1min.")
    ] = "clip",
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float32",
    layout: Annotated[str, typer.Option("--format", help="safetensors, npz or parquet.")] = "safetensors",
    layer: Annotated[str | None, typer.Option(help="A module's name; default: the pooled features.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the folder; skip what is finished.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only part I (from 0) of N; processes share the folder.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Decoding processes; -1: one per core, at most eight.")] = -1,
    template: Annotated[str | None, typer.Option(help="Names in folders of frames: img_{:05}.jpg")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; default: the GPU if there is one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pooled features of videos as files with an index; a killed run continues with --resume."""
    from marey.jobs.extract import extract_features
    from marey.jobs.manifest import shard as part

    if (checkpoint is None) == (model is None):
        raise UsageError("NO_MODEL", "give either --checkpoint FILE or --model RELEASE")
    rows: Any = per if per in ("clip", "video") else 1.0 if per == "second" else _seconds(per)
    found = extract_features(
        checkpoint or str(model),
        sources,
        out,
        per=rows,
        layer=layer,
        dtype=dtype,  # type: ignore[arg-type]  # checked there
        format=layout,  # type: ignore[arg-type]
        resume=resume,
        shard=None if shard is None else part(shard),
        template=template,
        device=device,
        workers=workers,
    )
    _rows(found._asdict() | {"folder": str(found.folder)}, as_json)
    if found.failed:
        raise typer.Exit(SOME_FAILED)


@app.command()
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
    out: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    accelerator: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    devices: Annotated[
        int, typer.Option(min=1, help="Processes on this machine; torchrun's number rules.")
    ] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    as_json: Json = False,
) -> None:
    """Train by a recipe; everything goes to runs/<recipe>/<n>/."""
    from marey.jobs.train import train as run

    found = run(
        recipe,
        overrides or (),
        out=out,
        resume=resume,
        validate=validate,
        seed=seed,
        deterministic=deterministic,
        auto_scale_lr=auto_scale_lr,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
    )
    _rows({"run": str(found.run), "checkpoint": str(found.checkpoint), **found.metrics}, as_json)
    if found.skipped:
        raise typer.Exit(SOME_FAILED)


@app.command()
def test(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a recipe.json.")],
    overrides: Overrides = None,
    checkpoint: Annotated[Path, typer.Option(help="What `marey train` wrote, or published weights.")] = ...,  # type: ignore[assignment]
    out: Annotated[
        Path | None, typer.Option(help="results.json to write; default: into the run's folder.")
    ] = None,
    metrics: Annotated[list[str] | None, typer.Option(help="Only these; may be given several times.")] = None,
    average_clips: Annotated[str | None, typer.Option(help="prob, score, or none: one row per view.")] = None,
    accelerator: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
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
    _rows(
        {name: _beside(value, expected.get(name)) for name, value in shown.items()} if not as_json else found,
        as_json,
    )
    if found["failed"]:
        raise typer.Exit(SOME_FAILED)


@app.command()
def recipes(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, for example 'tsm*'.")] = "*",
    as_json: Json = False,
) -> None:
    """List the recipes."""
    from marey.recipes.catalog import describe_recipe, list_recipes

    _rows({name: describe_recipe(name) for name in list_recipes(pattern)}, as_json)


@app.command()
def recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name, or a recipe.json.")],
    overrides: Overrides = None,
) -> None:
    """Print one recipe, resolved, as JSON."""
    import msgspec

    from marey.recipes.catalog import load_recipe

    text = msgspec.json.encode(load_recipe(name, overrides or ()))
    print(msgspec.json.format(text, indent=2).decode())


@app.command()
def zoo(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATTERN] | get NAME...", help="Shell pattern or part of a name or model."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Only those trained on it, for example Jester.")] = None,
    model: Annotated[str | None, typer.Option(help="Only networks that match, for example 'csn*'.")] = None,
    downloaded: Annotated[bool, typer.Option("--downloaded", help="Only those in the cache folder.")] = False,
    as_json: Json = False,
) -> None:
    """List the releases: accuracy, protocol, size, cost, licence; or fetch some: `marey zoo get NAME`."""
    import msgspec

    from marey.jobs.zoo import get, show
    from marey.jobs.zoo import zoo as run

    pattern, *rest = words or ["*"]
    if pattern != "get":
        if rest:
            raise UsageError("USAGE", f"one pattern at a time, not also {rest[0]!r}; put patterns in quotes")
        entries = run(pattern, dataset=dataset, model=model, downloaded=downloaded)
        if as_json:
            print(json.dumps(msgspec.to_builtins(entries), indent=2))
        else:
            show(entries)
        return
    if not rest:
        raise UsageError(
            "USAGE", "name what to get: a release, or a pattern in quotes; `marey zoo` lists them"
        )
    failed = []
    rows = {}
    for name, found in get(rest):
        failed += [found] if isinstance(found, MareyError) else []
        rows[name] = {"code": found.code} if isinstance(found, MareyError) else {"file": str(found)}
        if isinstance(found, MareyError):
            print(f"{name}: {found.code}: {found.message}", file=sys.stderr)
        elif not as_json:
            print(found)
    if as_json:
        print(json.dumps(rows, indent=2))
    if failed:
        raise typer.Exit(failed[0].exit_code if len(failed) == len(rows) else SOME_FAILED)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A published file, or a release's name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The checkpoint to write.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Arguments of the network.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The network, or a release it is like; default: found from the file.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run both on one clip and compare the logits.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a published weight file into a checkpoint that knows its network, preprocessing and classes."""
    import msgspec

    from marey.jobs.convert import convert as run
    from marey.recipes.catalog import pairs

    done = run(source, out, model=model, overrides=pairs(overrides or ()), verify=verify, force=force)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(msgspec.to_builtins(done), indent=2) if as_json else "\n".join(done.lines()))


@app.command()
def export(
    source: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A checkpoint, a release, or a network's name.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write: .onnx, or .pt2 for torch.")],
    layout: Annotated[str, typer.Option("--format", help="onnx, or torch for torch.export.load.")] = "onnx",
    size: Annotated[
        str | None, typer.Option("--input", metavar="TxHxW", help="Clips; default: as the test's are.")
    ] = None,
    any_frames: Annotated[bool, typer.Option("--any-frames", help="Takes clips of any length.")] = False,
    any_size: Annotated[bool, typer.Option("--any-size", help="Takes clips of any height, width.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a network for other programs, with its card; compared with the original, both timed."""
    import msgspec

    from marey.jobs.export import export as run

    done = run(source, out, format=layout, size=size, any_frames=any_frames, any_size=any_size, force=force)
    print(json.dumps(msgspec.to_builtins(done), indent=2) if as_json else "\n".join(done.lines()))


@data_app.command("check")
def data_check(
    lists: Annotated[
        list[str], typer.Argument(metavar="LIST", help="Lists, or folders with a folder per class.")
    ],
    out: Annotated[Path | None, typer.Option(help="Report as JSON; a later check continues from it.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; -1: one per core, at most eight.")] = -1,
    min_frames: Annotated[int, typer.Option(min=1, help="Name clips with fewer frames.")] = 1,
    num_classes: Annotated[
        int | None, typer.Option(help="Labels must be below; default: as in the lists.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="File with the class names in label order, or Kinetics-400, ...")
    ] = None,
    first_label: Annotated[int, typer.Option(help="Number of the first class in the lists.")] = 0,
    multi_label: Annotated[
        bool | None, typer.Option("--multi-label/--single-label", help="Default: as it looks.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that relative paths start from.")] = None,
    layout: Annotated[str, typer.Option("--format", help="Layout of the lists.")] = "auto",
    template: Annotated[str | None, typer.Option(help="Names in folders of frames: img_{:05}.jpg")] = None,
    seconds: Annotated[float, typer.Option(help="Time limit for one file.")] = 600.0,
    as_json: Json = False,
) -> None:
    """Read lists and every file in them, in parallel, and name what is wrong with which."""
    from marey.jobs.check import as_json as report_json
    from marey.jobs.check import check, lines
    from marey.jobs.setup import cores

    report = check(
        lists,
        workers=cores() if workers < 0 else workers,
        min_frames=min_frames,
        num_classes=num_classes,
        out=out,
        seconds=seconds,
        classes=classes,
        root=root,
        format=layout,
        template=template,
        first_label=first_label,
        multi_label=multi_label,
    )
    print(report_json(report) if as_json else "\n".join(lines(report)))
    if not report.ok:
        raise typer.Exit(SOME_FAILED)


@app.command()
def bench(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="Networks, patterns of them, checkpoints, releases.")
    ],
    size: Annotated[
        str | None, typer.Option("--input", metavar="TxHxW", help="Clips; default: as the network's are.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips in a pass.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed, in turns.")] = 5,
    precision: Annotated[str, typer.Option(help="32 or bf16.")] = "32",
    train: Annotated[bool, typer.Option("--train", help="Forward and backward, no inference.")] = False,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="With --train: blocks run again backward.")
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="By torch.compile; checked.")] = False,
    device: Annotated[str | None, typer.Option(help="Default: the GPU if there is one.")] = None,
    as_json: Json = False,
) -> None:
    """Time networks: clips per second, share of the machine's matrix-product rate, memory."""
    import msgspec

    from marey.jobs.bench import bench as run
    from marey.jobs.bench import lines

    rows = run(
        names,
        size=size,
        batch=batch,
        threads=threads,
        rounds=rounds,
        precision=precision,
        train=train,
        checkpoint_activations=checkpoint_activations,
        compiled=compiled,
        device=device,
    )
    print(json.dumps(msgspec.to_builtins(rows), indent=2) if as_json else "\n".join(lines(rows)))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, devices, decoders, disk: what works here and what does not."""
    from marey.jobs.doctor import doctor as run
    from marey.jobs.doctor import lines

    facts = run()
    print(json.dumps(facts, indent=2) if as_json else "\n".join(lines(facts)))
    if not facts["ok"]:
        raise typer.Exit(5)


def _rows(rows: dict[str, Any], as_json: bool) -> None:
    """A table of names and values; only the first of several processes prints."""
    if not _first_process():
        return
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        print(f"{name:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")


def _first_process() -> bool:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def _beside(value: Any, expected: float | None) -> Any:
    return value if expected is None else f"{value:.4f}  (published {expected:.4f})"


def _seconds(text: str | None) -> float | None:
    """`2s`, `0.5`, `1min` -> seconds."""
    if text is None:
        return None
    number = text.removesuffix("min").removesuffix("s")
    try:
        return float(number) * (60 if text.endswith("min") else 1)
    except ValueError:
        raise UsageError("SECONDS", f"{text!r} is not a time; write for example 2s or 1min") from None


def main() -> None:
    """Entry point: runs a command and turns its errors into one line and an exit code."""
    # Idle threads sleep: spinning ones take the cores from the decoders and from whatever else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Huge pages for big tensors: mapping them anew, page by page, takes as long as filling them.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    arguments = sys.argv[1:]
    debug = "--debug" in arguments  # wherever it stands
    try:
        code = app([a for a in arguments if a != "--debug"] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        print(f"marey: USAGE: {error.format_message()} (`marey COMMAND --help` shows how)", file=sys.stderr)
        code = error.exit_code
    except typer.Abort:
        code = 130
    except KeyboardInterrupt:
        print("marey: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads on; Python would complain at exit
        code = 0
    except MareyError as error:
        if debug:
            traceback.print_exc()
        print(f"marey: {error.code}: {error.message}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
