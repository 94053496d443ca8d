"""What can be wrong with lists and the files they name, found from labels and the facts of every file."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from marey.data.lists import ClipList, check_labels
from marey.errors import DataError
from marey.jobs.check_files import Facts

# What the reader notes -> how bad it is for a data set; other notes are only counted.
SEVERITY: dict[str, Literal["error", "warning"]] = {
    "MEDIA_TRUNCATED": "error",
    "FRAMES_DAMAGED": "error",
    "FRAMES_MISSING": "error",
    "FRAMES_UNDECODABLE": "warning",
    "TIMESTAMPS_REPAIRED": "warning",
    "SIZE_CHANGED": "warning",
}
SHOWN = 10  # how many of a kind are told to a person


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong: with a file, an entry of a list (line from 1; 0: none), or a list."""

    severity: Literal["error", "warning"]
    code: str
    message: str
    path: str = ""
    list: str = ""
    line: int = 0


def error(code: str, message: str, **where: Any) -> Problem:
    """A problem that makes a data set unfit as it is."""
    return Problem(severity="error", code=code, message=message, **where)


def warning(code: str, message: str, **where: Any) -> Problem:
    """A problem that somebody should know of."""
    return Problem(severity="warning", code=code, message=message, **where)


def file_problems(facts: Sequence[Facts]) -> Iterator[Problem]:
    """Files that cannot be read, or not wholly."""
    for one in facts:
        if one.code is not None:
            yield error(one.code, one.message, path=one.path)
        for code, text in one.notes:
            if code in SEVERITY:
                yield Problem(severity=SEVERITY[code], code=code, message=text, path=one.path)


def label_problems(
    name: str,
    clips: ClipList,
    together: Sequence[ClipList],
    num_classes: int | None,
    classes: tuple[str, ...] | None,
) -> Iterator[Problem]:
    """Labels outside the range, lists that count from 1, entries without labels, classes without entries."""
    zero_used = any(one.counts(1)[0] for one in together)
    try:
        if num_classes is not None or not zero_used:
            check_labels(clips, num_classes)
    except DataError as wrong:
        yield error(wrong.code, wrong.message, list=name)
    if len(clips.unlike(0)) == 0:
        yield warning("UNLABELLED", "no entry has a label", list=name)
        return
    count = max([num_classes or 0, len(classes or ()), *(one.num_classes for one in together)])
    missing = np.flatnonzero(clips.counts(count) == 0)
    if len(missing):
        known = dict(enumerate(classes or ()))
        names = [f"{label} ({known[label]})" if label in known else str(label) for label in missing[:SHOWN]]
        text = f"{len(missing)} of {count} classes have no video: {printable(names)}"
        text += ", ..." if len(missing) > SHOWN else ""
        yield warning("CLASS_MISSING", text, list=name)


def part_problems(
    name: str, clips: ClipList, of_path: Mapping[str, Facts], min_frames: int
) -> Iterator[Problem]:
    """Entries whose part of the video is not there, or shorter than `min_frames`."""
    for index, entry in enumerate(clips):
        facts = of_path[entry.path]
        if facts.code is not None:
            continue
        stop = facts.frames if entry.total is None else entry.start + entry.total
        frames = stop - entry.start
        if entry.seconds is not None:
            first, last = entry.seconds
            frames = round((min(last, facts.seconds) - first) * facts.fps)
        where = {"path": entry.path, "list": name, "line": clips.line(index)}
        if stop > facts.frames:
            text = f"the list means frames {entry.start} to {stop - 1}, but there are {facts.frames}"
            yield error("MEDIA_TRUNCATED", text, **where)
        elif frames < 1:
            text = f"no frame is in the part that the list means; the video has {facts.frames}"
            yield error("EMPTY", text, **where)
        elif frames < min_frames:
            text = f"{frames} frames, fewer than {min_frames}; clips of it will repeat frames"
            yield warning("TOO_SHORT", text, **where)


def repeats(opened: Sequence[tuple[str, ClipList]], of_path: Mapping[str, Facts]) -> Iterator[Problem]:
    """The same content twice: in two lists (LEAK), or in one, with the same labels or with others."""
    places: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, (_, clips) in enumerate(opened):
        for index, entry in enumerate(clips):
            places[of_path[entry.path].content or f"path {entry.path}"].append((number, index))
    for found in places.values():
        first_of: dict[tuple[Any, ...], tuple[int, int]] = {}
        for number, index in found if len(found) > 1 else ():
            (name, clips), entry = opened[number], opened[number][1][index]
            where = {"path": entry.path, "list": name, "line": clips.line(index)}
            (first_number, first_index) = found[0]
            if number != first_number:
                other, there = opened[first_number]
                text = f"also in {other}, as {there[first_index].path}; a result on one of them means nothing"
                yield error("LEAK", text, **where)
            part = (number, entry.start, entry.total, entry.seconds)
            _, before = first_of.setdefault(part, (number, index))
            if before == index:
                continue
            same = clips.labels(before) == entry.labels
            text = f"the same content as {clips.where(before)} ({clips[before].path})"
            text += "" if same else f", but labelled {entry.labels}, not {clips.labels(before)}"
            yield warning("DUPLICATE", text, **where) if same else error("DUPLICATE_LABELS", text, **where)


def printable(values: Iterable[Any]) -> str:
    """Values for a person's terminal: what is not printable (also bytes of a name) comes as escapes."""
    return ", ".join(text if (text := str(value)).isprintable() else ascii(text) for value in values)
