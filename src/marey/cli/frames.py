"""`marey data frames` and `marey data shrink`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from marey.cli.parts import SOME_FAILED, Json, rows
from marey.errors import UsageError

Lists = Annotated[
    list[str], typer.Argument(metavar="LIST", help="Lists, or folders with a folder per class.")
]
Out = Annotated[Path | None, typer.Option(help="Folder for the frames and the lists over them.")]
Short = Annotated[int | None, typer.Option(help="Short side at most; smaller videos keep their size.")]
Crf = Annotated[int, typer.Option(min=0, max=51, help="Quality of H.264; smaller is better and larger.")]
Only = Annotated[bool, typer.Option("--estimate", help="Only say what it would take.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the folder; skip what is stored.")]
Shard = Annotated[
    str | None, typer.Option(metavar="I/N", help="Only part I (from 0) of N; they share the folder.")
]
Workers = Annotated[int, typer.Option(help="Processes; -1: one per core, at most eight.")]
Seconds = Annotated[float, typer.Option(help="Time limit for one video.")]
Partial = Annotated[bool, typer.Option("--partial", help="Take what can be read of videos that end early.")]
Force = Annotated[bool, typer.Option("--force", help="Start although the disk seems too small.")]
Root = Annotated[Path | None, typer.Option(help="Folder that relative paths start from.")]
Layout = Annotated[str, typer.Option("--format", help="Layout of the lists.")]
Classes = Annotated[Path | None, typer.Option(help="File with the class names in label order.")]


def frames(
    lists: Lists,
    out: Out = None,
    store: Annotated[str, typer.Option(help="png, jpeg or video (H.264).")] = "png",
    fps: Annotated[str, typer.Option(help="Frames per second, or native: every frame.")] = "4",
    height: Annotated[
        int | None, typer.Option(help="Height of all frames; default for png and jpeg: 360.")
    ] = None,
    short_side: Short = None,
    quality: Annotated[int, typer.Option(min=1, max=95, help="Of JPEG.")] = 95,
    crf: Crf = 18,
    template: Annotated[
        str | None, typer.Option(help="Names of the pictures; default: img_{:05}.png")
    ] = None,
    estimate: Only = False,
    resume: Resume = False,
    shard: Shard = None,
    workers: Workers = -1,
    seconds: Seconds = 1800.0,
    partial: Partial = False,
    force: Force = False,
    root: Root = None,
    layout: Layout = "auto",
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Extract frames of every video, as pictures or small videos, and write lists over them; resumable."""
    from marey.jobs.frames_store import Store

    if height is None and short_side is None:
        height, short_side = (None, 256) if store == "video" else (360, None)
    plan = Store(
        kind=store,  # type: ignore[arg-type]  # checked there
        fps=_rate(fps),
        height=height,
        short_side=short_side,
        quality=quality,
        crf=crf,
        template=template,
    )
    running = {"resume": resume, "shard": shard, "partial": partial, "force": force}
    reading = {"root": root, "format": layout, "classes": classes}
    _store(lists, out, plan, estimate, as_json, running, workers=workers, seconds=seconds, **reading)


def shrink(
    lists: Lists,
    out: Out = None,
    short_side: Short = 256,
    crf: Crf = 18,
    estimate: Only = False,
    resume: Resume = False,
    shard: Shard = None,
    workers: Workers = -1,
    seconds: Seconds = 1800.0,
    partial: Partial = False,
    force: Force = False,
    root: Root = None,
    layout: Layout = "auto",
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Re-encode every video small, with all its frames and times, for fast training; resumable."""
    from marey.jobs.frames_store import Store

    plan = Store(kind="video", fps=None, short_side=short_side, crf=crf)
    running = {"resume": resume, "shard": shard, "partial": partial, "force": force}
    reading = {"root": root, "format": layout, "classes": classes}
    _store(lists, out, plan, estimate, as_json, running, workers=workers, seconds=seconds, **reading)


def _rate(text: str) -> float | None:
    """`4`, `12.5` or `native`."""
    if text == "native":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError("FPS", f"{text!r} is no rate; write frames per second, or native") from None


def _store(
    lists: list[str],
    out: Path | None,
    store: Any,
    estimate: bool,
    as_json: bool,
    running: dict[str, Any],
    **reading: Any,
) -> None:
    """Run, or only estimate, and print."""
    import msgspec

    from marey.jobs.frames import estimate_frames, store_frames
    from marey.jobs.frames_estimate import lines, size_text
    from marey.jobs.manifest import shard as part

    if estimate:
        forecast = estimate_frames(lists, store, **reading)
        if as_json:
            rows(msgspec.to_builtins(forecast._asdict()), as_json)
        else:
            print("\n".join(lines(forecast)))
        return
    if out is None:
        raise UsageError("NO_OUT", "give --out FOLDER, or --estimate to see what it would take")
    running = running | {"shard": None if running["shard"] is None else part(running["shard"])}
    found = store_frames(lists, out, store, **running, **reading)
    table = found._asdict() | {"folder": str(found.folder)}
    if not as_json:
        table["bytes"] = size_text(found.bytes)
        table["noted"] = ", ".join(f"{code} {count}" for code, count in found.noted.items()) or "-"
        table["lists"] = ", ".join(f"{name} {a} of {b}" for name, (a, b) in found.lists.items())
    rows(table, as_json)
    if found.failed:
        raise typer.Exit(SOME_FAILED)
