"""What `marey predict` does with a detector."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from marey.cli.parts import SOME_FAILED


def predict_films(
    network: Any,
    sources: Sequence[str],
    *,
    out: Path | None,
    video: Path | None,
    threshold: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Print what the persons of films do, or write it to a file, too, and as a video."""
    from marey.errors import UsageError
    from marey.files import replacing
    from marey.jobs.overlay import write_overlay
    from marey.jobs.predict_boxes import predict_boxes

    if out is not None and out.suffix != ".jsonl":
        raise UsageError("OUT_SUFFIX", f"{out}: what persons do is written as .jsonl")
    failed, lines = 0, list[str]()
    found = predict_boxes(network, sources, threshold=threshold or 0.0, **options)
    for number, film in enumerate(found):
        failed += film.code is not None or bool(film.skipped)
        lines += film.lines()
        if film.code is not None:
            print(f"{film.source}: {film.code}: {film.message}", file=sys.stderr)
        for text in film.skipped:
            print(f"{film.source}: second {text}", file=sys.stderr)
        if as_json:
            print("\n".join(film.lines()))
        else:
            for person in film.persons:
                told = "  ".join(f"{one.name} {one.score:.1%}" for one in person.actions)
                print(f"{film.source}  {person.second:g} s  person {person.track}  {told}")
        if video is not None and film.code is None:
            if number:
                raise UsageError("USAGE", "--video is one film: give one source")
            limit = 0.5 if threshold is None else threshold
            write_overlay(video, film, threshold=limit, template=options.get("template"))
    if out is not None:
        with replacing(out) as part:
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if failed:
        raise typer.Exit(SOME_FAILED)
