"""Commands for networks that take clips."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from marey.cli.parts import SOME_FAILED, rows
from marey.errors import UsageError


def predict_clips(
    network: Any, sources: Sequence[str], *, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Print the classes of videos or of their windows, and write them to a file, too."""
    from marey.jobs.output import write_predictions
    from marey.jobs.predict import predict

    found, failed = predict(network, sources, **options), 0
    for row in found if out is None else write_predictions(found, out):
        failed += row.code is not None
        if as_json:
            print(row.json())
        elif row.code is not None:
            print(f"{row.source}: {row.code}: {row.message}", file=sys.stderr)
        else:
            window = f"  {row.start:.1f}-{row.end:.1f} s" if options["every"] else ""
            best = "  ".join(f"{name} {score:.1%}" for score, name in row.top(options["top"]))
            print(f"{row.source}{window}  {best}")
    if failed:
        raise typer.Exit(SOME_FAILED)


def predict_job(
    network: Any,
    sources: Sequence[str],
    *,
    out: Path | None,
    as_json: bool,
    shard: str | None,
    workers: int | None,
    **options: Any,
) -> None:
    """The same as a job that can go on: a summary is printed, the rows are in the file."""
    from marey.jobs.manifest import shard as part
    from marey.jobs.predict_many import predict_many

    if out is None:
        raise UsageError("USAGE", "--resume, --shard and --workers need --out FILE")
    options |= {
        "shard": None if shard is None else part(shard),
        "workers": -1 if workers is None else workers,
    }
    found = predict_many(network, sources, out, **options)
    rows(found._asdict() | {"out": None if found.out is None else str(found.out)}, as_json)
    if found.out is None:
        print(f"marey: {found.left} videos are left; {out} is written when none is", file=sys.stderr)
    if found.failed:
        raise typer.Exit(SOME_FAILED)
