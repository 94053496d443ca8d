"""`marey data`: commands on lists of videos and what they name."""

from pathlib import Path
from typing import Annotated

import typer

from marey.cli import frames
from marey.cli.parts import SOME_FAILED, Json, rows

app = typer.Typer(
    no_args_is_help=True,
    help="Lists of videos: check them, extract frames, shrink videos. Frame features: pack them.",
)
app.command("frames")(frames.frames)
app.command("shrink")(frames.shrink)


@app.command("check")
def check(
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
    from marey.jobs.check import check as run
    from marey.jobs.check import lines
    from marey.jobs.setup import cores

    report = run(
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


@app.command("check-ava")
def check_ava(
    annotations: Annotated[
        list[Path], typer.Argument(metavar="CSV", help="Annotations: video,second,x1,y1,x2,y2,action,entity.")
    ],
    proposals: Annotated[
        Path | None, typer.Option(help="Boxes of a detector: pkl, csv, json, parquet.")
    ] = None,
    exclusions: Annotated[Path | None, typer.Option(help="Excluded key frames: video,second.")] = None,
    label_map: Annotated[Path | None, typer.Option(help="Names of the actions: pbtxt, csv, txt.")] = None,
    media: Annotated[Path | None, typer.Option(help="Folder of the videos, or of folders of frames.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Results of a detector, to be measured: mAP, and why it is low.")
    ] = None,
    own: Annotated[
        bool, typer.Option("--own/--ava", help="Key frames anywhere, or AVA's: 902 to 1798 s, from 900 s on.")
    ] = False,
    fps: Annotated[float | None, typer.Option(help="Frames per second that clips count in.")] = None,
    start: Annotated[float | None, typer.Option(help="Time stamp of every file's first frame.")] = None,
    step: Annotated[float | None, typer.Option(help="Seconds from one key frame to the next.")] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Actions must be below; default: as the label map says, or 81.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Score from which on a proposal counts.")] = 0.9,
    template: Annotated[str | None, typer.Option(help="Names in folders of frames: img_{:05}.jpg")] = None,
    workers: Annotated[int, typer.Option(help="Processes; -1: one per core, at most eight.")] = -1,
    as_json: Json = False,
) -> None:
    """Check AVA annotations row by row, and that proposals, label map and videos go with them."""
    import msgspec

    from marey.data.ava import AVA, KeyFrames
    from marey.jobs.check_ava import as_json as report_json
    from marey.jobs.check_ava import check_ava as run
    from marey.jobs.check_ava import lines
    from marey.jobs.setup import cores

    given = {
        name: value for name, value in (("fps", fps), ("start", start), ("step", step)) if value is not None
    }
    report = run(
        annotations,
        key_frames=msgspec.structs.replace(KeyFrames() if own else AVA, **given),
        proposals=proposals,
        exclusions=exclusions,
        label_map=label_map,
        media=media,
        template=template,
        results=results,
        num_classes=81 if num_classes is None and not own else num_classes,
        threshold=threshold,
        workers=cores() if workers < 0 else workers,
    )
    print(report_json(report) if as_json else "\n".join(lines(report)))
    if not report.ok:
        raise typer.Exit(SOME_FAILED)


@app.command("pack")
def pack(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="TFRecord files, folders, patterns, or lists."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the packed files.")],
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave damaged records out; else their file fails.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the folder; skip what is packed.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes; -1: one per core, at most eight.")] = -1,
    as_json: Json = False,
) -> None:
    """Turn TFRecord files of frame features into files that are read faster; checksums are verified."""
    from marey.jobs.pack import pack_shards

    found = pack_shards(sources, out, skip_damaged=skip_damaged, resume=resume, workers=workers)
    rows(found._asdict() | {"folder": str(found.folder)}, as_json)
    if found.failed or found.left_out:
        raise typer.Exit(SOME_FAILED)
