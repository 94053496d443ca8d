"""The command for live video."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from marey.cli.parts import Device, Json, seconds
from marey.errors import UsageError


def watch(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A camera's number, or an address.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="What `marey train` or `export` wrote, or a release's file.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A release by name, see docs/weights.md.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes.")] = 5,
    every: Annotated[
        str | None, typer.Option(help="No more than a window every so long; default: as fast as it goes.")
    ] = None,
    span: Annotated[
        str | None, typer.Option(help="How long a window lasts, for example 2s; default: one clip.")
    ] = None,
    lasting: Annotated[
        str | None,
        typer.Option("--for", help="End so long after the first window; default: with the source."),
    ] = None,
    timeout: Annotated[str, typer.Option(help="Give up after so long without a frame.")] = "20s",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """What a camera or a stream shows now, until it ends or Ctrl-C: the newest window, again and again."""
    from marey.jobs.interrupt import stop_signals
    from marey.jobs.watch import watch as run

    if (checkpoint is None) == (model is None):
        raise UsageError("NO_MODEL", "give either --checkpoint FILE or --model RELEASE")
    every_s, span_s, for_s, timeout_s = map(seconds, (every, span, lasting, timeout))
    latencies: list[float] = []
    dropped, ended = 0, False
    with stop_signals() as stop:
        found = run(
            *(checkpoint or str(model), source),
            top=top,
            every=every_s,
            span=span_s,
            seconds=for_s,
            timeout=timeout_s or 0.0,
            device=device,
            stop=stop,
        )
        try:
            for row in found:
                latencies.append(row.latency)
                dropped += row.dropped
                if as_json:
                    print(row.json(), flush=True)
                    continue
                best = "  ".join(f"{name} {score:.1%}" for score, name in row.top(top))
                state = f"{row.latency:.2f} s late, {row.dropped} dropped"
                print(f"{row.source}  {row.start:.1f}-{row.end:.1f} s  {best}  ({state})", flush=True)
            ended = True
        finally:
            if latencies or ended:
                print(f"marey: {_summary(latencies)}, {dropped} frames dropped", file=sys.stderr)
        if stop.is_set():
            raise typer.Exit(130)


def _summary(latencies: list[float]) -> str:
    text = f"{len(latencies)} windows"
    if latencies:
        mean = sum(latencies) / len(latencies)
        text += f", latency {mean:.2f} s on average, {max(latencies):.2f} s at worst"
    return text
