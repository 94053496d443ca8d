"""`marey bank`: commands on feature banks."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marey.cli.parts import SOME_FAILED, Device, Json, Overrides, rows

if TYPE_CHECKING:
    from marey.jobs.bank import BankReport

app = typer.Typer(no_args_is_help=True, help="Long-term feature banks: build, import and check them.")


@app.command("build")
def build(
    recipe: Annotated[
        str, typer.Argument(help="A recipe of boxes, or a recipe.json: which films and boxes.")
    ],
    overrides: Overrides = None,
    checkpoint: Annotated[
        str, typer.Option(help="The detector whose features are kept, or a release.")
    ] = ...,  # type: ignore[assignment]
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    out: Annotated[Path, typer.Option(help="Folder of the bank; it may hold other splits.")] = ...,  # type: ignore[assignment]
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    proposed: Annotated[
        bool, typer.Option("--proposed", help="Every key frame with proposals, also without annotation.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only part I (from 0) of N; processes share the folder.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Keep what a trained detector sees in every person; a stopped run goes on by the same command."""
    from marey.jobs.bank_build import build_bank
    from marey.jobs.manifest import shard as part

    found = build_bank(
        recipe,
        checkpoint,
        out,
        overrides or (),
        split=split,
        dtype=dtype,
        proposed=proposed,
        shard=None if shard is None else part(shard),
        device=device,
    )
    made = {
        "made": found.made,
        "kept": found.kept,
        "failed": len(found.failed),
        "key_frames_per_second": found.made / max(found.seconds, 1e-9),
    }
    for failure in found.failed:
        print(f"{failure.path}: {failure.code}: {failure.message}", file=sys.stderr)
    if found.bank is not None:
        _show(found.bank, as_json, made)
    else:
        rows(made, as_json)
    if found.failed:
        raise typer.Exit(SOME_FAILED)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="PKL", help="MMAction2's lfb_train.pkl or the like.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the bank; it may hold other parts.")],
    weights: Annotated[
        str | None, typer.Option(help="Checkpoint or release whose features they are; its hash is noted.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float16 or float32; default: as in the file.")] = None,
    window: Annotated[int, typer.Option(min=1, help="Time steps of a look-up, unless told otherwise.")] = 60,
    per_step: Annotated[int, typer.Option(min=1, help="Boxes of a time step it takes at most.")] = 5,
    as_json: Json = False,
) -> None:
    """Make a published bank one that all processes share; nothing in the pickle is run."""
    from marey.jobs.bank import import_bank

    _show(import_bank(source, out, weights=weights, dtype=dtype, window=window, per_step=per_step), as_json)


@app.command("check")
def check(
    bank: Annotated[Path, typer.Argument(metavar="BANK", help="Folder of a bank.")], as_json: Json = False
) -> None:
    """Say what is in a bank, and read all of it to find what is wrong."""
    from marey.jobs.bank import check_bank

    report = check_bank(bank)
    _show(report, as_json)
    if report.problems:
        raise typer.Exit(SOME_FAILED)


def _show(report: "BankReport", as_json: bool, made: dict[str, Any] | None = None) -> None:
    import msgspec

    found = msgspec.to_builtins(report) | (made or {})
    if as_json:
        print(json.dumps(found, indent=2))
        return
    problems = found.pop("problems")
    rows(
        {**{name: value for name, value in found.items() if value is not None}, "problems": len(problems)},
        False,
    )
    for problem in problems:
        print(problem)
