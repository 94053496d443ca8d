"""`marey predict --resume`: very many videos, decoded by several processes; after a kill it goes on."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from torch import nn

from marey.data.workers import Pool
from marey.errors import EnvironmentFault, MareyError, UsageError
from marey.jobs.check_files import stamp
from marey.jobs.extract import Sources, sources_by_path
from marey.jobs.interrupt import Interrupted, stop_signals
from marey.jobs.manifest import Entry, Item, Manifest, Shard
from marey.jobs.output import check_suffix, write_predictions
from marey.jobs.pieces import SECONDS, Opened, Per, Task, open_video, pieces
from marey.jobs.predict import Prediction, Scorer
from marey.jobs.progress import Progress
from marey.jobs.setup import cores
from marey.video.source import Source
from marey.weights.native import digest

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
    scorer = Scorer(model, device, top, windowed=every is not None, chunk=views_per_forward)
    settings = {
        "version": VERSION,
        "weights_sha256": digest({name: value.cpu() for name, value in scorer.network.state_dict().items()}),
        "preprocess": msgspec.to_builtins(scorer.preprocess),
        "classes": scorer.network.class_names,
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
    waiting, failed = manifest.waiting(own), 0
    per: Per = "video" if every is None else every
    tasks = (Task(item.key, found[item.key].template, scorer.preprocess, per, span) for item in waiting)
    ended, progress = 0, Progress("predict", quiet=quiet)
    with Pool(cores() if workers < 0 else workers, SECONDS) as pool, stop_signals() as stop:
        opened = pool.run(open_video, tasks, prefetch=pool.workers + 1)
        for item, (_, video) in zip(waiting, opened, strict=True):
            source = found[item.key]
            try:
                rows = []
                for row, share in _scored(source, video, scorer, pool):
                    rows.append(msgspec.to_builtins(row))
                    progress(ended + share, len(waiting))
                    if stop.is_set():
                        break
                if share < 1:  # stopped midway
                    break
                manifest.add(item, file=manifest.journal, result={"rows": rows})
            except MareyError as error:
                if isinstance(error, UsageError | EnvironmentFault):
                    raise
                manifest.add(item, code=error.code, message=error.message, result={})
                failed += 1
                if not quiet:
                    print(f"{source.name}: {error.code}: {error.message}", file=sys.stderr)
            ended += 1
            progress(ended, len(waiting))
            if stop.is_set():
                break
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
    if ended < len(waiting):
        raise Interrupted(
            "INTERRUPTED",
            f"stopped after {ended} of {len(waiting)} videos, which are saved; continue with --resume",
        )
    return Predicted(None if left else out, ended - failed, len(own) - len(waiting), failed, left)


def _scored(
    source: Source, video: Opened | MareyError, scorer: Scorer, pool: Pool
) -> Iterator[tuple[Prediction, float]]:
    """Each window of a video, scored, and how much of the video is done with it, 0..1."""
    before = 0.0
    for piece, share in pieces(video, pool):
        count = len(piece.views)
        for number, (views, (start, end, _)) in enumerate(zip(piece.views, piece.spans, strict=True), 1):
            done = share if number == count else before + (share - before) * number / count
            yield Prediction(source.name, start, end, scorer(views), piece.notes), done
        before = share


def _ended(entry: Entry | None, item: Item) -> bool:
    return entry is not None and tuple(entry.stamp) == item.stamp


def _rows(known: list[tuple[Source, Entry]]) -> Iterator[Prediction]:
    """What is kept of the videos, in their order, under the names that they have now."""
    for source, entry in known:
        if entry.file is None:
            yield Prediction(source.name, code=entry.code, message=entry.message)
        else:
            for row in entry.result["rows"]:
                yield msgspec.structs.replace(msgspec.convert(row, Prediction), source=source.name)
