"""`marey data pack`: TFRecord files of features become packed files, which are read faster; resumable."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from marey.data.feature_card import feature_card, write_feature_card
from marey.data.packed import SUFFIX, PackedWriter, is_packed
from marey.data.shards import list_shards
from marey.data.workers import Pool
from marey.data.youtube8m import Layout, read_all_means, read_videos, width_in
from marey.errors import DataError, EnvironmentFault, MareyError, UsageError
from marey.files import replacing
from marey.jobs.check_files import stamp
from marey.jobs.interrupt import Interrupted, stop_signals
from marey.jobs.manifest import Entry, Item, Manifest
from marey.jobs.progress import Progress
from marey.jobs.setup import cores

VERSION = 1  # of the files; what another version made is not continued
SECONDS = 3600.0  # for one file
UNBOUNDED = 2**31 - 1  # any label and any number of frames: training and testing check them


class PackResult(NamedTuple):
    """What a run did, and what its folder holds by now.

    done, skipped, failed  files of this run: packed now, packed before, not readable
    records, left_out      of the folder: records that are packed, and damaged ones that are missing
    bytes                  of the packed files
    """

    folder: Path
    done: int
    skipped: int
    failed: int
    records: int
    left_out: int
    bytes: int


class Task(msgspec.Struct, frozen=True):
    """A file to pack."""

    path: str
    out: str
    skip_damaged: bool


def pack_shards(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    skip_damaged: bool = False,
    resume: bool = False,
    workers: int = -1,
    quiet: bool = False,
) -> PackResult:
    """A packed file in the folder `out` for each TFRecord file, frame level or video level.

    sources       files, folders, patterns and lists of files, as `list_shards` takes them
    skip_damaged  leave damaged records out, each named on stderr and in `done/`; else their file fails
    resume        continue the folder: what is packed and unchanged is skipped, what failed is tried again
    workers       processes, a file each; -1: one per core, at most eight; 0: this one

    Checksums of the source are verified, those of the packed bytes are stored. The card of own features
    (`features.json`) goes along. Raises UsageError PACK_SOURCE, FOLDER_USED, RESUME_MISMATCH, DataError
    NOT_FOUND, LIST_EMPTY, FEATURES_MIXED, and Interrupted when what is packed so far is saved.
    """
    names = [sources] if isinstance(sources, str | os.PathLike) else sources
    paths = list(dict.fromkeys(os.path.abspath(path) for name in names for path in list_shards(name)))  # noqa: PTH100
    outputs = _outputs(paths, Path(out).absolute())
    card = feature_card(paths)
    settings = {
        "version": VERSION,
        "skip_damaged": skip_damaged,
        "features": None if card is None else card.fingerprint,
    }
    manifest = Manifest(out, "pack", settings, resume=resume)
    items = [Item(path, stamp(path)) for path in paths]
    waiting = manifest.waiting(items)
    tasks = (Task(item.key, str(manifest.folder / outputs[item.key]), skip_damaged) for item in waiting)
    ended, failed, progress = 0, 0, Progress("pack", quiet=quiet)
    with Pool(cores() if workers < 0 else workers, SECONDS) as pool, stop_signals() as stop:
        for item, (_, found) in zip(waiting, pool.run(pack_shard, tasks, prefetch=pool.workers), strict=True):
            if isinstance(found, MareyError):
                if isinstance(found, UsageError | EnvironmentFault):
                    raise found
                manifest.add(item, code=found.code, message=found.message, result={})
                failed += 1
                if not quiet:
                    print(f"{item.key}: {found.code}: {found.message}", file=sys.stderr)
            else:
                manifest.add(item, file=outputs[item.key], result=found)
                for reason in () if quiet else found["left_out"]:
                    print(f"left out: {reason}", file=sys.stderr)
            ended += 1
            progress(ended, len(waiting))
            if stop.is_set() and ended < len(waiting):
                break
    there: list[Entry] = []
    manifest.publish(lambda entries: there.extend(entry for entry in entries if entry.file is not None))
    counts = {key: sum(entry.result[key] for entry in there) for key in ("records", "labelled", "rows")}
    if card is not None and there:
        longest = max(entry.result["longest"] for entry in there)
        files = tuple(sorted(str(entry.file) for entry in there))
        counted = {"videos": counts["records"], "labelled": counts["labelled"], "rows": counts["rows"]}
        write_feature_card(
            manifest.folder, msgspec.structs.replace(card, longest=longest, shards=files, **counted)
        )
    if ended < len(waiting):
        raise Interrupted(
            "INTERRUPTED",
            f"stopped after {ended} of {len(waiting)} files, which are saved; continue with --resume",
        )
    return PackResult(
        manifest.folder,
        ended - failed,
        len(items) - len(waiting),
        failed,
        counts["records"],
        sum(len(entry.result["left_out"]) for entry in there),
        sum((manifest.folder / str(entry.file)).stat().st_size for entry in there),
    )


def _outputs(paths: Sequence[str], folder: Path) -> dict[str, str]:
    """The names of the packed files. Raises UsageError PACK_SOURCE."""
    found: dict[str, str] = {}
    for path in paths:
        name = Path(path).stem + SUFFIX
        if is_packed(path):
            raise UsageError("PACK_SOURCE", f"{path} is packed already; name TFRecord files")
        if Path(path).parent == folder:
            raise UsageError("PACK_SOURCE", f"--out is the folder of {path}; give one without TFRecord files")
        if name in found.values():
            other = next(key for key, value in found.items() if value == name)
            reason = f"{other} and {path} would both become {name}; give each its own --out"
            raise UsageError("PACK_SOURCE", reason)
        found[path] = name
    return found


def pack_shard(task: Task) -> dict[str, Any]:
    """Pack one file; what it holds. Raises DataError for what `skip_damaged` does not allow."""
    left_out: list[str] = []

    def damaged(error: DataError) -> None:
        left_out.append(f"{error.code}: {error.message}")

    report = damaged if task.skip_damaged else None
    level, rgb, audio = width_in(task.path, damaged=report)
    left_out.clear()  # they are met again
    layout = Layout(rgb=rgb, audio=audio, num_classes=UNBOUNDED, max_frames=UNBOUNDED)
    records = labelled = rows = longest = 0
    with replacing(task.out) as part, PackedWriter(part, level, rgb, audio) as writer:
        if level == "frame":
            for video in read_videos(task.path, layout, damaged=report):
                writer.add(*video)
                records, labelled = records + 1, labelled + bool(video.labels)
                rows, longest = rows + len(video.rgb), max(longest, len(video.rgb))
        else:
            for means in read_all_means(task.path, layout, damaged=report):
                writer.add(means.id, means.labels, means.rgb[None], means.audio[None])
                records, labelled = records + 1, labelled + bool(means.labels)
    return {
        "records": records,
        "labelled": labelled,
        "rows": rows,
        "longest": longest,
        "level": level,
        "left_out": left_out,
    }
