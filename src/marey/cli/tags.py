"""What `marey predict` does with a network that tags features of frames."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from marey.cli.parts import SOME_FAILED


def predict_tags(
    network: Any,
    sources: Sequence[str],
    *,
    top: int,
    threshold: float,
    classes: Path | None,
    out: Path | None,
    submission: bool,
    device: str | None,
    as_json: bool,
) -> None:
    """Print the tags of each video, or write them to a file, too; what cannot be read is named on stderr."""
    from marey.errors import UsageError
    from marey.jobs.setup_features import tag_names
    from marey.jobs.tag_files import Tags, check_out, write_tags
    from marey.jobs.tags import tag_records

    if submission and out is None:
        raise UsageError("USAGE", "--submission is a file: give --out NAME.csv")
    if out is not None:
        check_out(out, submission=submission)
    names = None if classes is None else tag_names(classes)
    rows = tag_records(network, sources, names=names, top=top, threshold=threshold, device=device)
    failed = 0

    def told() -> Iterator[Tags]:
        nonlocal failed
        for row in rows:
            failed += row.code is not None
            if row.code is not None:
                print(f"{row.id}: {row.code}: {row.message}", file=sys.stderr)
            if as_json:
                print(row.json())
            elif row.code is None and not submission:
                pairs = zip(row.names, row.scores, strict=True)
                print(f"{row.id}  " + "  ".join(f"{name} {score:.1%}" for name, score in pairs))
            yield row

    if out is None:
        for _ in told():
            pass
    else:
        write_tags(told(), out, submission=submission)
    if failed:
        raise typer.Exit(SOME_FAILED)
