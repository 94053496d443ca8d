"""`marey data frames` and `marey data shrink`: the videos of lists as stored frames, and lists over them."""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from marey.data.lists import ClipList, Entry, read_list
from marey.data.workers import Pool
from marey.errors import EnvironmentFault, MareyError, UsageError
from marey.files import replacing
from marey.jobs import manifest as manifests
from marey.jobs.check_files import stamp
from marey.jobs.frames_estimate import Forecast, check_space, forecast, lines
from marey.jobs.frames_store import Store, Task, store_video
from marey.jobs.interrupt import Interrupted, stop_signals
from marey.jobs.manifest import Item, Manifest, Shard, digest
from marey.jobs.progress import Progress
from marey.jobs.setup import cores

VERSION = 1  # of what is stored; what another version stored is not continued
FOLDERS = {"png": "imgs", "jpeg": "imgs", "video": "videos"}


class Part(NamedTuple):
    """A list, or a split of one, and the name of the list that is written over its stored frames."""

    clips: ClipList
    name: str


class Frames(NamedTuple):
    """What a run did, and what its folder holds by now.

    done, skipped, failed  videos of this run: stored now, stored before, not readable
    noted                  stored now although something was unusual, by code
    frames, bytes          of all videos of these lists in the folder
    lists                  the lists written, with (videos, videos of the list they come from)
    keys                   recipe keys that read them
    """

    folder: Path
    done: int
    skipped: int
    failed: int
    noted: dict[str, int]
    frames: int
    bytes: int
    lists: dict[str, tuple[int, int]]
    keys: str


def estimate_frames(
    lists: Sequence[str | os.PathLike[str]],
    store: Store,
    *,
    workers: int = -1,
    seconds: float = 1800.0,
    **reading: Any,
) -> Forecast:
    """What the frames of lists would take, in this store and the usual others; nothing is kept."""
    tasks = [
        Task(entry, "", store, seconds, partial=True) for entry in _entries(_open(lists, reading)).values()
    ]
    with Pool(cores() if workers < 0 else workers, seconds) as pool:
        return forecast(tasks, [stamp(task.path)[0] for task in tasks], pool)


def store_frames(
    lists: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    store: Store,
    *,
    resume: bool = False,
    shard: Shard | None = None,
    workers: int = -1,
    seconds: float = 1800.0,
    partial: bool = False,
    force: bool = False,
    quiet: bool = False,
    **reading: Any,
) -> Frames:
    """Store the frames of every video of some lists in the folder `out`, and lists over them.

    lists    lists, or folders with a folder per class; one with splits counts as a list each
    resume   continue the folder: what is stored and unchanged is skipped, what failed is tried again
    shard    only this part of the videos; several processes may fill one folder, so it implies `resume`
    workers  processes; -1: one per core, at most eight; 0: this one
    seconds  time limit for one video
    partial  take what can be decoded of videos that end early; else they count as failed, as in training
    force    start although the disk seems too small
    reading  options of `read_list`

    A list names folder or file, number of frames (of pictures) and labels; what failed, or is not stored
    yet, is left out and counted. Raises EnvironmentFault DISK_SMALL before anything is stored, UsageError
    FOLDER_USED and RESUME_MISMATCH, and Interrupted after SIGINT, SIGTERM or SIGUSR1.
    """
    parts = _open(lists, reading)
    settings = {"version": VERSION, "partial": partial, "store": msgspec.to_builtins(store)}
    own = {(Path(out) / part.name).resolve() for part in parts}
    if own & {Path(part.clips.name).resolve() for part in parts}:
        raise UsageError("FOLDER_USED", f"{out} holds a list that would be replaced; give another --out")
    manifest = Manifest(out, "frames", settings, resume=resume or shard is not None)
    entries = _entries(parts)
    files = _files(entries, parts, manifest, store)
    items = [Item(key, stamp(e.path)) for key, e in entries.items() if shard is None or shard.holds(key)]
    waiting = manifest.waiting(items)
    done, failed, noted = 0, 0, dict[str, int]()
    tasks = [
        Task(entries[item.key], str(manifest.folder / files[item.key]), store, seconds, partial)
        for item in waiting
    ]
    item_of = dict(zip((task.target for task in tasks), waiting, strict=True))
    with Pool(cores() if workers < 0 else workers, seconds) as pool, stop_signals() as stop:
        _look_ahead(manifest.folder, tasks, waiting, pool, force=force, quiet=quiet)
        progress = Progress("frames", quiet=quiet)
        for task, found in pool.run(store_video, tasks, ordered=False):
            item = item_of[task.target]
            if isinstance(found, UsageError | EnvironmentFault):
                raise found
            if isinstance(found, MareyError):
                manifest.add(item, code=found.code, message=found.message, result={"source": task.path})
                failed += 1
                _say(f"{task.path}: {found.code}: {found.message}", quiet)
            else:
                manifest.add(item, file=files[item.key], result={"source": task.path} | found._asdict())
                done += 1
                for note in found.notes:
                    noted[note.partition(":")[0]] = noted.get(note.partition(":")[0], 0) + 1
            progress(done + failed, len(waiting))
            if stop.is_set():
                break
    written = _publish(manifest, parts, store)
    if done + failed < len(waiting):
        raise Interrupted(
            "INTERRUPTED",
            f"stopped after {done + failed} of {len(waiting)} videos, which are kept; continue with --resume",
        )
    stored = [e for key in entries if (e := manifest.entries.get(key)) is not None and e.file is not None]
    return Frames(
        manifest.folder,
        done,
        len(items) - len(waiting),
        failed,
        dict(sorted(noted.items())),
        sum(one.result["frames"] for one in stored),
        sum(one.result["bytes"] for one in stored),
        written,
        _keys(parts, store, manifest.folder),
    )


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr)


def _look_ahead(
    folder: Path, tasks: Sequence[Task], waiting: Sequence[Item], pool: Pool, *, force: bool, quiet: bool
) -> None:
    """Say what the frames will take. Raises EnvironmentFault DISK_SMALL."""
    if not tasks:
        return
    found = forecast(tasks, [item.stamp[0] for item in waiting], pool)
    for line in lines(found):
        _say(line, quiet)
    if found.estimates and not force:
        check_space(folder, found.estimates[0], tasks[0].store.kind != "video")


# What is stored where ---------------------------------------------------------------------------------


def _open(lists: Sequence[str | os.PathLike[str]], reading: dict[str, Any]) -> list[Part]:
    """The lists, and a name for each that none of the given files has."""
    parts: list[Part] = []
    for path in lists:
        clips = read_list(path, **reading)
        splits = clips.splits if len(clips.splits) > 1 and "split" not in reading else (None,)
        for split in splits:
            one = clips if split is None else read_list(path, split=split, **reading)
            stem = Path(path).absolute().stem if split is None else split
            taken = {part.name for part in parts}
            name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 99))) if f"{n}.txt" not in taken)
            parts.append(Part(one, f"{name}.txt"))
    return parts


def _entries(parts: Sequence[Part]) -> dict[str, Entry]:
    """What is to be stored: the entries of the lists without their labels, each once, by a key."""
    found: dict[str, Entry] = {}
    for part in parts:
        for entry in part.clips:
            found.setdefault(key_of(entry), msgspec.structs.replace(entry, labels=()))
    return found


def key_of(entry: Entry) -> str:
    """What a video, or a part of one, is called in all runs: its full path, and the part."""
    path = os.path.abspath(entry.path)  # noqa: PTH100 - a link stays a link
    return path + _extent(entry)


def _extent(entry: Entry) -> str:
    if entry.seconds is not None:
        return f"_{entry.seconds[0]:g}-{entry.seconds[1]:g}s"
    if entry.start or entry.total is not None:
        return f"_{entry.start}-{'' if entry.total is None else entry.start + entry.total}"
    return ""


def _files(
    entries: dict[str, Entry], parts: Sequence[Part], manifest: Manifest, store: Store
) -> dict[str, str]:
    """Where each goes, relative to the folder: as it lies below its list's root, if that is unique."""
    known = {key: entry.file for key, entry in manifest.entries.items() if entry.file is not None}
    taken = {file: key for key, file in known.items()}
    roots = {key_of(entry): part.clips.root for part in parts for entry in part.clips}
    files = {}
    for key, entry in entries.items():
        file = known.get(key)
        if file is None:
            name = _name(entry, roots[key])
            end = store.suffix if store.kind == "video" else ""
            file = f"{FOLDERS[store.kind]}/{name}{end}"
            if taken.get(file, key) != key:
                file = f"{FOLDERS[store.kind]}/{name}-{digest(os.fsencode(key))[:10]}{end}"
            taken[file] = key
        files[key] = file
    return files


def _name(entry: Entry, root: str) -> str:
    """The path below the root without suffix, without what a list of fields cannot hold."""
    path = os.path.relpath(os.path.abspath(entry.path), os.path.abspath(root))  # noqa: PTH100
    below = not path.startswith("..") and not os.path.isabs(path)  # noqa: PTH117
    name = path if below else os.path.basename(path)  # noqa: PTH119
    if not os.path.isdir(entry.path):  # noqa: PTH112
        name = os.path.splitext(name)[0]  # noqa: PTH122
    return re.sub(r"[\s,\x00-\x1f]+", "_", name.replace(os.sep, "/")) + _extent(entry)


# Lists over what is stored ----------------------------------------------------------------------------


def _publish(manifest: Manifest, parts: Sequence[Part], store: Store) -> dict[str, tuple[int, int]]:
    """Write index.jsonl, the lists and classes.txt from everything in the folder; videos of each list."""
    counts: dict[str, tuple[int, int]] = {}

    def write(entries: list[manifests.Entry]) -> None:
        with replacing(manifest.folder / "index.jsonl") as place, place.open("w", encoding="ascii") as file:
            file.writelines(json.dumps(_row(entry)) + "\n" for entry in entries)
        for part in parts:
            there = [_line(part.clips[i], manifest, store) for i in range(len(part.clips))]
            text = "".join(f"{line}\n" for line in there if line is not None)
            with replacing(manifest.folder / part.name) as place:
                place.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")
            counts[part.name] = (sum(line is not None for line in there), len(there))
        names = next((part.clips.classes for part in parts if part.clips.classes), None)
        if names is not None:
            with replacing(manifest.folder / "classes.txt") as place:
                place.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")

    manifest.publish(write)
    return counts


def _row(entry: manifests.Entry) -> dict[str, Any]:
    """A line of index.jsonl."""
    if entry.file is None:
        return {"source": entry.result["source"], "code": entry.code, "message": entry.message}
    return {"source": entry.result["source"], "file": entry.file} | {
        name: entry.result[name] for name in ("frames", "bytes", "notes")
    }


def _line(entry: Entry, manifest: Manifest, store: Store) -> str | None:
    """A line of a list, None for what is not stored."""
    stored = manifest.entries.get(key_of(entry))
    if stored is None or stored.file is None:
        return None
    count = () if store.kind == "video" else (str(stored.result["frames"]),)
    return " ".join((stored.file, *count, *map(str, entry.labels or (-1,))))


def _keys(parts: Sequence[Part], store: Store, folder: Path) -> str:
    """What a recipe needs to read the lists, beside data.train=... and so on."""
    keys = ["data.format=videos"] if store.kind == "video" else ["data.format=rawframes"]
    if store.kind != "video":
        keys.append(f"data.template={store.names}")
    if any(part.clips.multi_label for part in parts):
        keys.append("data.multi_label=true")
    if any(part.clips.classes for part in parts):
        keys.append(f"data.classes={folder / 'classes.txt'}")
    return " ".join(keys)
