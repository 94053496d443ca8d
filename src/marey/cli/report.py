"""`marey report`: tables and pictures over several runs."""

from pathlib import Path
from typing import Annotated

import typer

from marey.cli.parts import Device, Json
from marey.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Tables and pictures over several runs.")


@app.callback()
def group() -> None:
    """Tables and pictures over several runs."""


@app.command("resolution")
def resolution(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Run folders, checkpoints or releases; each perhaps label=PATH."),
    ],
    data: Annotated[Path | None, typer.Option(help="List to test on; default: each run's own.")] = None,
    resolutions: Annotated[
        str | None,
        typer.Option(help="Test at these, for example 224,160,112; default: as results.json says."),
    ] = None,
    out: Annotated[
        list[Path] | None, typer.Option(help="File ending with .html, .png, .svg, .csv or .json; repeatable.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Views that are timed together.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Of timing.")] = 5,
    precision: Annotated[str, typer.Option(help="Of timing: 32 or bf16; tests are float32.")] = "32",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of torch; default: as many as there are.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Accuracy against multiply-adds, latency and throughput over resolutions: a table and a picture."""
    from marey.jobs.resolution import as_json as json_of
    from marey.jobs.resolution import compare, lines
    from marey.jobs.resolution_page import check_suffix, write

    for path in out or ():
        check_suffix(path)
    found = compare(
        sources,
        data=data,
        resolutions=_sides(resolutions),
        kept=out[0].with_suffix(".tests") if out else None,
        batch=batch,
        rounds=rounds,
        precision=precision,
        threads=threads,
        device=device,
    )
    for path in out or ():
        write(found, path)
    print(json_of(found) if as_json else "\n".join(lines(found)))


def _sides(text: str | None) -> tuple[int, ...]:
    """`224,160,112` -> (224, 160, 112)."""
    parts = text.split(",") if text else []
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError("RESOLUTION_LIST", f"{text!r} is no list of sides; write for example 224,160,112")
    return tuple(dict.fromkeys(int(part) for part in parts))
