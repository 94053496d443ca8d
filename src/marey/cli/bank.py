"""`marey bank`: commands on feature banks."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marey.cli.parts import SOME_FAILED, Json, rows

if TYPE_CHECKING:
    from marey.jobs.bank import BankReport

app = typer.Typer(no_args_is_help=True, help="Long-term feature banks: import and check them.")


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


def _show(report: "BankReport", as_json: bool) -> None:
    import msgspec

    found = msgspec.to_builtins(report)
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
