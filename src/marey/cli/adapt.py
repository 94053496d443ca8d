"""`marey adapt`: networks learn to work on videos of which nothing is labelled."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from marey.cli.parts import Accelerator, Json, first_process, rows
from marey.errors import UsageError

Clips = Annotated[int | None, typer.Option(min=1, help="Clips of a video in scoring.")]
CropsOf = Annotated[str | None, typer.Option("--crops", help="center, three or ten.")]
Gamma = Annotated[
    list[float] | None,
    typer.Option(help="Score under this light, too; several times, 1 is as it is. Averaged."),
]


class WithRun(TyperGroup):
    """A group whose command `run` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name in where the first word is no command."""
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    no_args_is_help=True, cls=WithRun, help="Adapt networks to videos without labels, in rounds."
)


@app.command("run")
def run(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE...", help="Networks: recipes, each RECIPE or NAME=RECIPE."),
    ] = None,
    source: Annotated[str | None, typer.Option(help="Labelled videos: a list or folder.")] = None,
    source_root: Annotated[str | None, typer.Option(help="Folder of their names.")] = None,
    target: Annotated[str | None, typer.Option(help="Videos to adapt to; labels are not read.")] = None,
    target_root: Annotated[str | None, typer.Option(help="Folder of their names.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the adaptation; the same again continues.")] = Path(
        "runs/adapt"
    ),
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of pseudo-labels.")] = 3,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Which rows become labels in round 1, 2, ..., or preset; several times."),
    ] = None,
    expert: Annotated[
        list[str] | None, typer.Option(help="A network that joins at the end, NAME=RECIPE; several times.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[NAME:]KEY=VALUE", help="Change a field of all recipes, or of one."),
    ] = None,
    val: Annotated[str | None, typer.Option(help="Labelled videos of the source, held out.")] = None,
    truth: Annotated[
        str | None, typer.Option(help="True classes of target videos, id,label: only measured against.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="Videos to score and vote on at the end.")] = None,
    test_root: Annotated[str | None, typer.Option(help="Folder of their names.")] = None,
    clips: Clips = None,
    crops: CropsOf = None,
    gamma: Gamma = None,
    preset: Annotated[
        list[str] | None, typer.Option(help="Ensemble that labels in round 1, 2, ...; several times.")
    ] = None,
    vote: Annotated[str | None, typer.Option(help="Preset of the final vote.")] = None,
    select: Annotated[
        str, typer.Option(help="Which epoch is kept: last, source (by --val), published (by --truth).")
    ] = "last",
    norms: Annotated[
        int | None, typer.Option(min=0, help="Batches that batch norms are measured on; 0: none are.")
    ] = None,
    start: Annotated[str, typer.Option(help="Weights that a round starts from: previous or own.")] = (
        "previous"
    ),
    agreement: Annotated[float, typer.Option(help="Least share of members that say a label.")] = 0.0,
    stable: Annotated[bool, typer.Option("--stable", help="Labels must be those of the round before.")] = (
        False
    ),
    epochs: Annotated[int | None, typer.Option(min=1, help="Of the trainings in rounds.")] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Learn probabilities instead of labels.")] = False,
    ema: Annotated[float | None, typer.Option(help="Moving average of the weights, for example 0.99.")] = (
        None
    ),
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Bring confidences to --val's.")] = False,
    sharpen: Annotated[bool, typer.Option("--sharpen", help="Norms lower the entropy, as Tent does.")] = (
        False
    ),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    accelerator: Accelerator = "auto",
    as_json: Json = False,
) -> None:
    """Train, score, label and train again; killed at any moment, the same command goes on.

    Without recipes the plan in --out goes on.
    """
    import msgspec

    from marey.jobs import rounds as job
    from marey.jobs.rounds_plan import Plan, recipes_of
    from marey.jobs.rounds_report import lines, write_page

    def say(text: str) -> None:
        if first_process():
            print(text, file=sys.stderr, flush=True)

    if not recipes:
        plan = job.read_plan(out)
    else:
        if source is None or target is None:
            raise UsageError("NO_DATA", "give --source LIST (labelled) and --target LIST")
        named = recipes_of([*recipes, *(expert or ())], set_ or ())
        last = list(named)[len(recipes) :]
        try:
            tree: dict[str, Any] = {
                "members": {name: made for name, made in named.items() if name not in last},
                "experts": {name: named[name] for name in last},
                "source": source, "source_root": source_root, "val": val,
                "target": target, "target_root": target_root, "truth": truth,
                "test": test, "test_root": test_root, "rounds": rounds,
                "presets": tuple(preset or ()), "vote": vote,
                "select": select, "norms": norms, "start": start, "epochs": epochs, "soft": soft, "ema": ema,
                "calibrate": calibrate, "sharpen": sharpen, "seed": seed,
                "filters": {"agreement": agreement, "stable": stable},
                "views": _views(clips, crops, gamma),
            }  # fmt: skip
            tree |= {"policies": tuple(policy)} if policy else {}
            plan = msgspec.convert(msgspec.to_builtins(tree), Plan)
        except msgspec.ValidationError as error:
            raise UsageError("ADAPT_PLAN", f"adapt: {error}") from None
    found = job.adapt(plan, out, accelerator=accelerator, say=say)
    page = write_page(found.folder)
    if first_process():
        print(json.dumps(found.report, indent=2) if as_json else "\n".join(lines(found.report)))
        print(f"report: {page}", file=sys.stderr)


@app.command("score")
def score(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint or release.")],
    listed: Annotated[str, typer.Argument(metavar="LIST", help="Videos, with or without labels.")],
    out: Annotated[Path, typer.Option(help="Table of scores (.parquet).")],
    root: Annotated[Path | None, typer.Option(help="Folder that names start from.")] = None,
    clips: Clips = None,
    crops: CropsOf = None,
    gamma: Gamma = None,
    max_bad: Annotated[float, typer.Option(help="Share of videos that may be unreadable.")] = 0.0,
    accelerator: Accelerator = "auto",
    as_json: Json = False,
) -> None:
    """Score videos by a network, as a stage of an adaptation does; `marey pseudo-label` and `vote` go on."""
    import msgspec

    from marey.cli.parts import SOME_FAILED
    from marey.jobs.rounds_plan import Views
    from marey.jobs.scoring import score_videos
    from marey.weights.create import open_model

    if out.suffix.lower() != ".parquet":
        raise UsageError("OUT_SUFFIX", f"{str(out)!r}: scores are written as .parquet")
    try:
        views = msgspec.convert(_views(clips, crops, gamma), Views)
    except msgspec.ValidationError as error:
        raise UsageError("ADAPT_PLAN", f"views: {error}") from None
    network: Any = open_model(checkpoint)
    found = score_videos(
        checkpoint,
        listed,
        out=out,
        root=root,
        protocol=views.of(network.preprocess.test),
        max_bad=max_bad,
        accelerator=accelerator,
    )
    if first_process():
        for failure in found.failed:
            print(f"{failure.path}: {failure.code}: {failure.message}", file=sys.stderr)
        shown = {"out": str(out), "videos": len(found.table), "views": int(found.table.clips[0])}
        if as_json:
            rows(shown | {"failed": [failure._asdict() for failure in found.failed]}, as_json)
        else:
            print("{out}: {videos} videos, {views} views each".format(**shown))
    if found.failed:
        raise typer.Exit(SOME_FAILED)


@app.command("status")
def status(
    folder: Annotated[Path, typer.Argument(help="Folder of an adaptation.")] = Path("runs/adapt"),
    as_json: Json = False,
) -> None:
    """List the stages: done, begun, or changed since."""
    from marey.jobs.rounds import status as job

    rows(job(folder), as_json)


@app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of an adaptation.")] = Path("runs/adapt"),
) -> None:
    """Write report.html anew."""
    from marey.jobs.rounds_report import write_page

    print(write_page(folder))


def _views(clips: int | None, crops: str | None, gamma: list[float] | None) -> dict[str, Any]:
    lights = None if not gamma else [{"gamma": value} for value in gamma]
    return {"clips": clips, "crops": crops, "lights": lights}
