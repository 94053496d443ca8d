"""`marey vote` and `marey pseudo-label`: scores of several networks become one, and labels."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from marey.cli.parts import Json, first_process, rows
from marey.errors import UsageError

Sources = Annotated[
    list[str] | None, typer.Argument(metavar="SCORES", help="Score files, each FILE or MEMBER=FILE.")
]
Preset = Annotated[str | None, typer.Option(help="A preset's name, or a JSON file of one.")]
Weights = Annotated[str | None, typer.Option(help="Of the members, in their order: 0.6,0.4")]
Listed = Annotated[
    Path | None, typer.Option("--list", help="The videos of pickled score files, in their order.")
]
Kind = Annotated[
    list[str] | None,
    typer.Option(metavar="[MEMBER=]KIND", help="What scores are: logits or probabilities; several times."),
]
Clips = Annotated[int | None, typer.Option(min=1, help="Clips per video, where the file does not say.")]
Processes = Annotated[int, typer.Option(min=1, help="That scored pickled files; some clips came twice.")]
Heat = Annotated[
    list[str] | None,
    typer.Option(
        "--temperature", metavar="MEMBER=T", help="Soften (above 1) or sharpen a member; several times."
    ),
]
Truth = Annotated[Path | None, typer.Option(help="True classes of some videos: lines id,label.")]


class WithDefault(TyperGroup):
    """A group whose command `make` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name in where the first word is no command."""
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["make", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    no_args_is_help=True, cls=WithDefault, help="Labels for unlabelled videos, and their worth."
)


def vote(
    sources: Sources = None,
    preset: Preset = None,
    weights: Weights = None,
    fit: Annotated[bool, typer.Option("--fit", help="Find the weights on the true classes.")] = False,
    truth: Truth = None,
    out: Annotated[Path | None, typer.Option(help="File to write: .parquet, .csv or .pkl")] = None,
    listed: Listed = None,
    kind: Kind = None,
    clips: Clips = None,
    processes: Processes = 1,
    temperature: Heat = None,
    presets: Annotated[
        bool, typer.Option("--presets", help="List the presets; with --preset, print it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Combine the scores of several networks, by weights or by a preset, and compare them."""
    from marey.jobs import vote as job

    if presets:
        if preset:
            print(job.show(preset))
        else:
            rows(job.presets(), as_json)
        return
    found = job.vote(
        _given(sources),
        preset=preset,
        weights=_numbers(weights),
        fit=fit,
        truth=truth,
        out=out,
        listed=listed,
        kind=_kind(kind),
        clips=clips,
        processes=processes,
        temperatures=_temperatures(temperature),
    )
    _print(found.report, job.lines(found.report), as_json)


@app.command("make")
def make(
    sources: Sources = None,
    out: Annotated[
        Path | None, typer.Option(help="Table to write: .parquet or .csv; none: report only.")
    ] = None,
    preset: Preset = None,
    weights: Weights = None,
    policy: Annotated[
        str | None,
        typer.Option(help="quantile:0.5, budget:400, global:0.8, precision:0.95, fbeta:1, fixed:..."),
    ] = None,
    by: Annotated[
        str, typer.Option(help="What confidence is: probability, margin or entropy.")
    ] = "probability",
    agreement: Annotated[float, typer.Option(help="Least share of members that say the label.")] = 0.0,
    margin: Annotated[float, typer.Option(help="Least distance to the second class.")] = 0.0,
    entropy: Annotated[float, typer.Option(help="Most entropy, as a share of the largest.")] = 1.0,
    stable: Annotated[bool, typer.Option("--stable", help="Same label in --previous.")] = False,
    most: Annotated[float, typer.Option(help="Largest share of all videos that one class may have.")] = 1.0,
    previous: Annotated[Path | None, typer.Option(help="Labels of the round before.")] = None,
    truth: Truth = None,
    test: Annotated[
        Path | None, typer.Option(help="The test list: none of its videos may be labelled.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder of the videos: with --test-root, files are compared by content."),
    ] = None,
    test_root: Annotated[Path | None, typer.Option(help="Folder of the test videos.")] = None,
    round_: Annotated[int, typer.Option("--round", min=0, help="Number of the round, to remember.")] = 0,
    weigh: Annotated[
        bool, typer.Option("--weigh", help="In training, rows weigh as much as they are sure.")
    ] = False,
    train: Annotated[Path | None, typer.Option(help="Also write a list to train on (.csv).")] = None,
    published: Annotated[Path | None, typer.Option(help="Also write the list as published (.csv).")] = None,
    listed: Listed = None,
    kind: Kind = None,
    clips: Clips = None,
    processes: Processes = 1,
    temperature: Heat = None,
    as_json: Json = False,
) -> None:
    """Label videos by the scores of several networks, and keep what is sure; `make` need not be written."""
    from marey.jobs import pseudo_label as job
    from marey.scores.select import Filters

    found = job.pseudo_label(
        _given(sources),
        out=out,
        preset=preset,
        weights=_numbers(weights),
        policy=policy,
        filters=Filters(agreement=agreement, margin=margin, entropy=entropy, stable=stable, most=most),
        previous=previous,
        truth=truth,
        test=test,
        roots=None if root is None or test_root is None else (root, test_root),
        round=round_,
        weigh=weigh,
        by=by,  # type: ignore[arg-type]  # checked there
        published=published,
        train=train,
        listed=listed,
        kind=_kind(kind),
        clips=clips,
        processes=processes,
        temperatures=_temperatures(temperature),
    )
    _print(found.report, job.lines(found.report), as_json)


@app.command("check")
def check(
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="A table of pseudo-labels, or a published list.")
    ],
    truth: Truth = None,
    previous: Annotated[Path | None, typer.Option(help="Labels of the round before.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a table of pseudo-labels holds and, with true classes of some videos, what it is worth."""
    from marey.jobs import pseudo_label as job

    found = job.check(labels, truth=truth, previous=previous)
    _print(found, job.lines(found), as_json)


def _print(report: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if first_process():
        print(json.dumps(report, indent=2) if as_json else "\n".join(lines))


def _given(sources: list[str] | None) -> list[str]:
    if not sources:
        raise UsageError("NO_SCORES", "give score files, each FILE or MEMBER=FILE")
    return sources


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError("PRESET_INVALID", f"weights {text!r} are no numbers; write 0.6,0.4") from None


def _kind(texts: list[str] | None) -> Any:
    """`logits` is said of all members, `mvit=probabilities` of one."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, _, kind = text.rpartition("=")
        if kind not in ("logits", "probabilities"):
            raise UsageError("SCORES_KIND", f"scores are logits or probabilities, not {kind!r}")
        found[name] = kind
    return found or None


def _temperatures(texts: list[str] | None) -> dict[str, float] | None:
    """`mvit=1.5` -> {"mvit": 1.5}."""
    found = {}
    for text in texts or ():
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = 0.0
        if not name or not found[name] > 0:
            raise UsageError("PRESET_INVALID", f"{text!r} is no temperature of a member; write mvit=1.5")
    return found or None
