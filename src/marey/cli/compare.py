"""`marey compare`: in what two results differ."""

from typing import Annotated

import typer

from marey.cli.parts import Json


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A results.json, or a run folder that holds one.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What it is compared with, likewise.")],
    listed: Annotated[
        int, typer.Option("--list", min=0, help="Show so many clips that B takes for another class than A.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Say in what two results of `marey test` differ: settings, metrics, and clip by clip."""
    from marey.jobs.compare import compare as run
    from marey.jobs.compare import lines
    from marey.jobs.runs import plain_json

    found = run(a, b)
    print(plain_json(found) if as_json else "\n".join(lines(found, listed)))
