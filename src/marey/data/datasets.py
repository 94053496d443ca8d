"""Lists as the owners of public data sets give them out, each read as rows.

    kinetics      Kinetics-400, -600, -700: header label,youtube_id,time_start,time_end,split (is_cc)
    something_v1  Something-Something V1: lines `id;name`; a folder of frames each
    something_v2  Something-Something V2: JSON objects with id and template; id.webm each
    jester        Jester V1: as something_v1
    ucf101        UCF101: lines `Class/v_x.avi 1` (trainlist01.txt) or without number (testlist01.txt)
    hmdb51        HMDB51: files <class>_test_split1.txt with lines `x.avi 1`; 1 trains, 2 tests, 0 neither
    moments       Moments in Time: lines `class/x.mp4,class,agreed,disagreed`
    diving48      Diving48: JSON objects with vid_name, label, start_frame, end_frame
    activitynet, fcvid, mini_kinetics   see `marey.data.untrimmed`

An owner who numbers the classes in no obvious order gives a file that does; it is looked for beside the list
(`Layout.names`), and `marey.data.labels.read_classes` reads it. UCF101 shows why: sorted, its HammerThrow
comes before Hammering, in the owner's order after it.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from marey.data import untrimmed
from marey.data.finding import Finder, Reading
from marey.data.formats import Label, Row, first_lines, item_rows, line_rows, table_rows
from marey.errors import DataError


class Layout(NamedTuple):
    """How a data set's lists are read: a function, and how its classes are numbered.

    names        the owner's file of class names; () where the sorted names are the owner's order
    unordered    the owner numbers no classes, and others disagree: the names have to be given
    classes      how many classes there are, where a list's own labels do not tell; None: as many as they say
    multi_label  a video may have several labels, even where no row of the list has
    """

    rows: Callable[[Reading], Iterator[Row]]
    names: tuple[str, ...] = ()
    unordered: bool = False
    classes: int | None = None
    multi_label: bool | None = None


# Kinetics ---------------------------------------------------------------------------------------------

_CLIP_FOLDER = re.compile(r"^.+_\d{6}_\d{6}$")


def kinetics_rows(reading: Reading) -> Iterator[Row]:
    """Rows of a Kinetics CSV, each with the file below the root that is called after its video.

    That is <youtube_id>_<start>_<end> with six digits each, or <youtube_id>, with any video suffix or as a
    folder of frames, at any depth: flat, by class, by split. Videos that have vanished stay in the list, so
    that they count as unreadable, and are noted. Raises DataError NOT_FOUND when there is none at all.
    """
    finder = Finder(reading, _CLIP_FOLDER.search)

    def columns(header: Sequence[str]) -> Callable[[int, Sequence[str]], Row]:
        if not {"youtube_id", "time_start", "time_end"} <= {*header}:
            raise DataError("LIST_FORMAT", "expected a header with youtube_id, time_start and time_end")
        return lambda line, cells: row(line, dict(zip(header, cells, strict=True)))

    def row(line: int, cells: dict[str, str]) -> Row:
        video, start, end = cells["youtube_id"], cells["time_start"], cells["time_end"]
        if not (re.fullmatch(r"[\w-]+", video) and start.isdecimal() and end.isdecimal()):
            raise DataError(
                "LIST_LINES", f"expected an id and whole seconds, found {video!r}, {start!r}, {end!r}"
            )
        stem = f"{video}_{int(start):06}_{int(end):06}"
        label = cells.get("label", "").strip()
        path = finder.path(stem, video, otherwise=f"{stem}.mp4")
        return Row(line, path, (label,) if label else (), split=cells.get("split") or None)

    yield from table_rows(reading.file, reading.errors, columns)
    finder.tell()


# Something-Something and Jester -----------------------------------------------------------------------


def numbered_rows(reading: Reading) -> Iterator[Row]:
    """Rows of `id;name` (or of `id` alone, in test lists): the folder of frames called id."""

    def row(line: int, text: str) -> Row:
        number, separator, label = text.partition(";")
        if not number.isdecimal() or bool(separator) != bool(label):
            raise DataError("LIST_LINES", f"expected `id;name` with a number as id, found {text!r:.120}")
        return Row(line, number, (label.strip(),) if label else ())

    return line_rows(reading.file, reading.errors, row)


def something_v2_rows(reading: Reading) -> Iterator[Row]:
    """Rows of objects with id and template: id.webm; the template without its brackets is the name."""
    suffix = _Suffix(reading.root, (".webm", ".mp4", ""))

    def row(line: int, item: Any) -> Row:
        number, template = _keys(item, id=(str, int), template=(str, type(None)))
        if not str(number).isdecimal():
            raise DataError("LIST_LINES", f"expected a number as `id`, found {number!r:.60}")
        label = re.sub(r"[\[\]]", "", template or "")
        return Row(line, suffix.of(str(number)), (label,) if label else ())

    return item_rows(reading.file, reading.errors, row)


# UCF101 and HMDB51 ------------------------------------------------------------------------------------

_UCF_LIST = re.compile(r"(train|test)list\d\d\.txt")
_UCF_LINE = re.compile(r"([^/\s]+)/(v_\S+)(?: (\d+))?")
_HMDB_LIST = re.compile(r"(.+)_test_split(\d)\.txt")
_HMDB_LINE = re.compile(r"(.+\.\w+) ([012])")
_HMDB_SPLITS = {"1": "train", "2": "test"}


def ucf101_rows(reading: Reading) -> Iterator[Row]:
    """Rows of `Class/v_x.avi 1`; the number counts from 1 and must agree with the class folder's."""

    def row(line: int, text: str) -> Row:
        match = _UCF_LINE.fullmatch(text)
        if match is None or match[3] == "0":
            raise DataError(
                "LIST_LINES", f"expected `Class/v_x.avi` and a number from 1, found {text!r:.120}"
            )
        label: Label = match[1] if match[3] is None else int(match[3]) - 1
        return Row(line, f"{match[1]}/{match[2]}", (label,), (match[1],))

    return line_rows(reading.file, reading.errors, row)


def hmdb51_rows(reading: Reading) -> Iterator[Row]:
    """Rows of all classes' files of the split that the named one belongs to: <class>/x.avi."""
    name = _HMDB_LIST.fullmatch(reading.file.name)
    if name is None:
        raise DataError(
            "LIST_FORMAT",
            f"{reading.file}: expected the name <class>_test_split1.txt, 2 or 3; name one of them",
        )
    unused = 0
    for file in sorted(reading.file.parent.glob(f"*_test_split{name[2]}.txt")):
        label = file.name.removesuffix(f"_test_split{name[2]}.txt")

        def row(line: int, text: str, label: str = label) -> Row:
            match = _HMDB_LINE.fullmatch(text)
            if match is None:
                raise DataError("LIST_LINES", f"expected `x.avi` and 0, 1 or 2, found {text!r:.120}")
            return Row(line, f"{label}/{match[1]}", (label,), split=_HMDB_SPLITS.get(match[2]))

        reading.errors.file = file  # wrong lines are named by the file they stand in
        for one in line_rows(file, reading.errors, row):
            if one.split is None:
                unused += 1
            else:
                yield one._replace(line=0)  # its number would be taken for one of the named file
    reading.errors.file = reading.file
    if unused:
        reading.notes.append(f"{unused} videos belong to neither part of split {name[2]}")


# Moments in Time and Diving48 -------------------------------------------------------------------------

_MOMENTS_LINE = re.compile(r'[^,]+\.\w+,"?[^,\d][^,]*,\d+,\d+')
_MOMENTS_FOLDERS = {"trainingSet.csv": "training", "validationSet.csv": "validation"}


def moments_rows(reading: Reading) -> Iterator[Row]:
    """Rows of `class/x.mp4,class,agreed,disagreed`, in training/ or validation/ if the root has them."""
    folder = _MOMENTS_FOLDERS.get(reading.file.name, "")
    within = f"{folder}/" if folder and (reading.root / folder).is_dir() else ""

    def row(line: int, text: str) -> Row:
        cells = next(csv.reader([text]))
        if len(cells) != 4 or not (cells[0] and cells[1] and cells[2].isdecimal() and cells[3].isdecimal()):
            raise DataError("LIST_LINES", f"expected `class/x.mp4,class,number,number`, found {text!r:.120}")
        return Row(line, within + cells[0], (cells[1],))

    return line_rows(reading.file, reading.errors, row)


def diving48_rows(reading: Reading) -> Iterator[Row]:
    """Rows of objects with vid_name and label: vid_name.mp4, which holds the dive alone.

    Version 2 counts all frames from 0 and its files are cut already: the whole file is meant. Another first
    frame is taken as a part.
    """
    suffix = _Suffix(reading.root, (".mp4", ".webm", ""))

    def row(line: int, item: Any) -> Row:
        name, label, start, end = _keys(
            item, vid_name=(str,), label=(int,), start_frame=(int,), end_frame=(int,)
        )
        if not name or label < 0 or not 0 <= start < end:
            raise DataError(
                "LIST_LINES", f"expected label >= 0 and 0 <= start_frame < end_frame: {item!r:.120}"
            )
        return Row(line, suffix.of(name), (label,), (), start, end - start if start else -1)

    return item_rows(reading.file, reading.errors, row)


def _keys(item: Any, **kinds: tuple[type, ...]) -> list[Any]:
    """The values of an object's keys; DataError LIST_LINES unless each is of one of its kinds."""
    if not isinstance(item, dict):
        raise DataError("LIST_LINES", f"expected an object with {' and '.join(kinds)}, found {item!r:.60}")
    for key, allowed in kinds.items():
        if type(item.get(key)) not in allowed:
            wanted = "a text" if str in allowed else "a whole number"
            raise DataError("LIST_LINES", f"expected {wanted} as `{key}`, found {item.get(key)!r:.60}")
    return [item.get(key) for key in kinds]


class _Suffix:
    """The suffix that the videos have: the first of `choices` under which one is found, then for all."""

    def __init__(self, root: Path, choices: tuple[str, ...]) -> None:
        self._root, self._choices, self._tried = root, choices, 0

    def of(self, name: str) -> str:
        """The file name of a video."""
        if len(self._choices) > 1 and self._tried < 100:
            self._tried += 1
            there = [suffix for suffix in self._choices if (self._root / (name + suffix)).exists()]
            self._choices = tuple(there[:1]) or self._choices
        return name + self._choices[0]


# Which data set ---------------------------------------------------------------------------------------

LAYOUTS = {
    "kinetics": Layout(kinetics_rows),
    "something_v1": Layout(numbered_rows, ("something-something-v1-labels.csv", "labels.csv")),
    "something_v2": Layout(something_v2_rows, ("something-something-v2-labels.json", "labels.json")),
    "jester": Layout(numbered_rows, ("jester-v1-labels.csv", "labels.csv")),
    "ucf101": Layout(ucf101_rows, ("classInd.txt",)),
    "hmdb51": Layout(hmdb51_rows),
    "moments": Layout(moments_rows, ("moments_categories.txt",)),
    "diving48": Layout(diving48_rows, ("Diving48_vocab.json",)),
    "activitynet": Layout(untrimmed.activitynet_rows, unordered=True, classes=200, multi_label=True),
    "fcvid": Layout(untrimmed.fcvid_rows, classes=239, multi_label=True),
    "mini_kinetics": Layout(untrimmed.mini_kinetics_rows, classes=200),
}


def detect(file: Path) -> str | None:
    """The layout in LAYOUTS that a list has, from its name and content; None: another.

    Lines of UCF101, HMDB51, ActivityNet and FCVID look like those of common lists, but count or mean another
    thing: only the usual file names make them such.
    """
    if file.is_dir():
        return None
    lines = first_lines(file)
    if lines[0][0] == "[":
        return _detect_object(lines)
    if untrimmed.OBJECT.match("\n".join(lines)):
        return "activitynet"
    if {"youtube_id", "time_start", "time_end"} <= {*re.split(r'[",\s]+', lines[0])}:
        return "kinetics"
    if _UCF_LIST.fullmatch(file.name) and all(map(_UCF_LINE.fullmatch, lines)):
        return "ucf101"
    if _HMDB_LIST.fullmatch(file.name) and all(map(_HMDB_LINE.fullmatch, lines)):
        return "hmdb51"
    named = untrimmed.TEXT_LIST.fullmatch(file.name)
    if named and all(map(untrimmed.TEXT_LINE.fullmatch, lines)):
        return "fcvid" if named[1] == "fcvid" else "activitynet"
    if all(map(untrimmed.MINI_LINE.fullmatch, lines)):
        return "mini_kinetics"
    if all(map(_MOMENTS_LINE.fullmatch, lines)):
        return "moments"
    owner = re.match(r"jester|something-something-v1", file.name)
    if all(re.fullmatch(r"\d+;.+" if owner is None else r"\d+(;.+)?", line) for line in lines):
        return "jester" if owner is not None and owner[0] == "jester" else "something_v1"
    return None


def _detect_object(lines: Sequence[str]) -> str | None:
    """The layout by the keys of the first object of a JSON list."""
    try:
        first, _ = json.JSONDecoder().raw_decode("\n".join(lines)[1:].lstrip())
    except json.JSONDecodeError:
        return None
    keys = {*first} if isinstance(first, dict) else set()
    if "vid_name" in keys:
        return "diving48"
    return "something_v2" if "id" in keys and ("template" in keys or keys == {"id"}) else None


def names_file(file: Path, kind: str) -> Path | None:
    """The owner's file of class names beside a list, None when there is none."""
    return next((there for name in LAYOUTS[kind].names if (there := file.with_name(name)).is_file()), None)
