"""`marey predict --resume`: very many videos, decoded by several processes; after a kill it goes on."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from torch import nn

from marey.errors import UsageError
from marey.jobs.check_files import stamp
from marey.jobs.extract import Sources, sources_by_path
from marey.jobs.manifest import Entry, Item, Manifest, Shard
from marey.jobs.output import check_suffix, write_predictions
from marey.jobs.pieces import Made, Per, Piece, Task, check_all, each_video, made_by
from marey.jobs.predict import Prediction, Scorer
from marey.video.source import Source
from marey.weights.create import open_model

VERSION = 1  # of what is kept of a video; what another version made is not continued


class Predicted(NamedTuple):
    """What a job of predictions did.

    out                    the file; None: videos are left, for other parts or for --resume
    done, skipped, failed  videos of this run: scored now, scored before, not readable
    left                   videos, of all that are named, that no part has scored yet or found unreadable
    """

    out: Path | None
    done: int
    skipped: int
    failed: int
    left: int


def predict_many(
    model: nn.Module | str | os.PathLike[str],
    sources: Sources,
    out: str | os.PathLike[str],
    *,
    top: int = 5,
    every: float | None = None,
    span: float | None = None,
    resume: bool = False,
    shard: Shard | None = None,
    template: str | None = None,
    device: str | None = None,
    workers: int = -1,
    views_per_forward: int = 10,
    quiet: bool = False,
) -> Predicted:
    """The predictions of `predict`, number for number, of each source once, as one file in their order.

    out      .jsonl, .csv or .parquet; beside it a folder, the same name with ".work" behind it, keeps what is
             scored. The file is written when nothing is left, and again when a later call adds videos
    resume   go on: videos that were scored and are unchanged are skipped, unreadable ones tried again
    shard    only this part of the videos; several processes may work at one file, so it implies `resume`
    workers  decoding processes; -1: one per core, at most eight; 0: this one decodes
    quiet    no progress and no failures on stderr

    Raises what `predict` does; UsageError OUT_SUFFIX, FOLDER_USED and RESUME_MISMATCH (other weights or
    settings made the folder); Interrupted after SIGINT, SIGTERM or SIGUSR1, when all that is scored is saved.
    """
    if every is not None and not every > 0:
        raise UsageError("EVERY", f"windows must start more than 0 seconds apart, not {every}")
    out = Path(out)
    check_suffix(out)
    opened: Any = model if isinstance(model, nn.Module) else open_model(model)
    scorer = Scorer(opened, device, top, windowed=every is not None, chunk=views_per_forward)
    settings = made_by(opened, scorer.preprocess) | {
        "version": VERSION,
        "classes": opened.class_names,
        "several": scorer.several,
        "top": top,
        "every": every,
        "span": span,
        "template": template,
    }
    work = out.with_name(f"{out.name}.work")
    manifest = Manifest(work, "predict", settings, resume=resume or shard is not None)
    found = sources_by_path(sources, template)
    items = [Item(path, stamp(path)) for path in found]
    own = [item for item in items if shard is None or shard.holds(item.key)]
    waiting = manifest.waiting(own)
    per: Per = "video" if every is None else every
    clips = scorer.preprocess
    tasks = {i: Task(i.key, found[i.key].name, found[i.key].template, clips, per, span) for i in waiting}

    def score(_: Item, parts: Iterator[Piece]) -> Made:
        rows = [
            {"start": start, "end": end, "classes": scorer(views), "notes": piece.notes}
            for piece in parts
            for views, (start, end, _) in zip(piece.views, piece.spans, strict=True)
        ]
        return manifest.journal, {"rows": msgspec.to_builtins(rows)}

    ended, failed = each_video("predict", manifest, tasks, score, workers=workers, quiet=quiet)
    left = len(items)

    def write(entries: list[Entry]) -> None:
        nonlocal left
        by_key = {entry.key: entry for entry in entries}
        known = [(found[i.key], by_key[i.key]) for i in items if _ended(by_key.get(i.key), i)]
        left = len(items) - len(known)
        if not left:
            for _ in write_predictions(_rows(known), out):
                pass

    manifest.publish(write)
    check_all(ended, len(waiting))
    return Predicted(None if left else out, ended - failed, len(own) - len(waiting), failed, left)


def _ended(entry: Entry | None, item: Item) -> bool:
    return entry is not None and tuple(entry.stamp) == item.stamp


def _rows(known: list[tuple[Source, Entry]]) -> Iterator[Prediction]:
    """What is kept of the videos, in their order, under the names that they have now."""
    for source, entry in known:
        if entry.file is None:
            yield Prediction(source.name, code=entry.code, message=entry.message)
        else:
            for row in entry.result["rows"]:
                yield msgspec.convert({"source": source.name, **row}, Prediction)
