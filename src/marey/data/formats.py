"""The layouts a list of videos may have, each read as a stream of rows.

    csv                    header with `path` and, as wanted, label, class, split, start, end, offset, total
    jsonl                  one object per line with the same keys
    json                   one list of such objects (MMAction2 0.x: filename, or frame_dir and total_frames)
    videos                 lines `path label` or `path label label ...`
    rawframes              lines `folder total label` or `folder total label label ...`
    rawframes_with_offset  lines `folder offset total label`
    folder                 a folder per class, perhaps inside train/ and val/

`start` and `end` are seconds from a video's first frame, `offset` (from 0) and `total` count frames; other
columns are not read. A label is an index from 0 or a class name; several in one CSV cell are separated by
semicolons: `1;5;7`. Text lines separate their fields by spaces, tabs or commas and hold indices only; these
are MMAction2's layouts (open-mmlab/mmaction2@v0.24.1:mmaction/datasets). -1 means no label there.
"""

import csv
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from marey.errors import DataError
from marey.video.source import FRAME_NAME, VIDEO_NAME

FORMATS = ("csv", "jsonl", "json", "videos", "rawframes", "rawframes_with_offset", "folder")
FRAME_FORMATS = ("rawframes", "rawframes_with_offset")
EXTENT = ("split", "start", "end", "offset", "total")
KEYS = ("path", "label", "class", *EXTENT)
ALIASES = {"filename": "path", "frame_dir": "path", "total_frames": "total"}  # MMAction2 0.x JSON
SHOWN = 20  # wrong lines quoted in one error

_MEDIA_NAME = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")  # how the name of a video file ends
_FIELDS = re.compile(r"[\s,]+")
_TRAILING = re.compile(r"(?:[\s,]+-?\d+)+$")

Label = int | str


class Row(NamedTuple):
    """One sample as written. labels are indices or class names; offset and total count frames; start and
    end are seconds; -1, 0 and None mean "not said"; names are those of the `class` column."""

    line: int
    path: str
    labels: tuple[Label, ...]
    names: tuple[str, ...] = ()
    offset: int = 0
    total: int = -1
    start: float = 0.0
    end: float | None = None
    split: str | None = None


class LineErrors:
    """Collects what is wrong with a list, so that one error names all of it (the first 20 in full)."""

    def __init__(self, file: Path, unit: str = "line") -> None:
        self.file, self.unit = file, unit
        self.count = 0
        self._shown: list[str] = []
        self._codes: set[str] = set()

    def add(self, line: int, error: DataError) -> None:
        """Note one wrong line."""
        self.count += 1
        self._codes.add(error.code)
        if len(self._shown) < SHOWN:
            number = f":{line}" if self.unit == "line" else f": {self.unit} {line}"
            where = f"{self.file}{number if line else ''}"
            self._shown.append(f"{where}: {error.message}")

    def check(self) -> None:
        """Raise DataError when anything was noted; its code is the lines' own if they agree."""
        if not self.count:
            return
        code = self._codes.pop() if len(self._codes) == 1 else "LIST_LINES"
        if self.count == 1:
            raise DataError(code, self._shown[0])
        shown = "" if self.count <= SHOWN else f", the first {SHOWN}"
        raise DataError(
            code, "\n  ".join([f"{self.file}: {self.count} wrong {self.unit}s{shown}:", *self._shown])
        )


@functools.lru_cache(maxsize=65536)
def parse_labels(text: str) -> tuple[Label, ...]:
    """`7`, `1;5;7`, `jump` or `jump;run` as indices or names; nothing and -1 mean no label.

    Raises DataError LABEL_TYPE or LABEL_RANGE (negative).
    """
    parts = [part.strip() for part in text.split(";")] if text.strip() else []
    return () if parts == ["-1"] else tuple(map(_label, parts))


def _label(part: str) -> Label:
    if part.isdecimal():
        return int(part)
    if not part or re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", part, re.IGNORECASE):
        code = "LABEL_RANGE" if re.fullmatch(r"-\d+", part) else "LABEL_TYPE"
        raise DataError(code, f"label {part!r}; expected a whole number from 0 on or a class name")
    return part


def _labels_of_value(value: Any) -> tuple[Label, ...]:
    """The labels of a JSON value: a number, a name, or a list of them."""
    if value is None or value == -1:
        return ()
    if isinstance(value, list):
        return tuple(label for item in value for label in _labels_of_value(item))
    if isinstance(value, str):
        return parse_labels(value)
    if type(value) is not int or value < 0:
        code = "LABEL_RANGE" if type(value) is int else "LABEL_TYPE"
        raise DataError(code, f"label {value!r}; expected a whole number from 0 on or a class name")
    return (value,)


# Layouts with named columns ---------------------------------------------------------------------------


def csv_rows(file: Path, errors: LineErrors) -> Iterator[Row]:
    """Rows of a CSV (or tab-separated) list with a header."""
    return table_rows(file, errors, _row_builder)


def table_rows(
    file: Path, errors: LineErrors, columns: Callable[[Sequence[str]], Callable[[int, Sequence[str]], Row]]
) -> Iterator[Row]:
    """A row per line below a header, CSV or tab-separated: columns(header)(line, cells).

    Raises DataError LIST_FORMAT for a file that is no table, and what `columns` raises, with file and line 1.
    """
    with open_list(file) as text:
        start = text.readline()
        delimiter = "\t" if "\t" in start else ","
        header = [name.strip() for name in next(csv.reader([start], delimiter=delimiter))]
        try:
            build = columns(header)
        except DataError as error:
            raise DataError(error.code, f"{file}:1: {error.message}, found {start!r}") from error
        reader = csv.reader(text, delimiter=delimiter)
        line = 2
        while (cells := _next_cells(reader, file)) is not None:
            if cells:
                try:
                    if len(cells) != len(header):
                        wanted = f"expected {len(header)} fields ({','.join(header)})"
                        raise DataError("LIST_LINES", f"{wanted}, found {len(cells)}")
                    yield build(line, cells)
                except DataError as error:
                    errors.add(line, error)
            line = reader.line_num + 2


def open_list(file: Path) -> TextIO:
    """A list as text, whatever bytes its paths have; a byte order mark is left out."""
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _next_cells(reader: Iterator[list[str]], file: Path) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise DataError("LIST_FORMAT", f"{file}: not a CSV ({error})") from error


def _row_builder(header: Sequence[str]) -> Callable[[int, Sequence[str]], Row]:
    header = [ALIASES.get(name, name) for name in header]
    if "path" not in header or len(set(header)) < len(header):
        raise DataError("LIST_FORMAT", "expected a header with `path` and no name twice")
    at = {name: header.index(name) for name in KEYS if name in header}
    path_at, label_at, class_at = at["path"], at.get("label"), at.get("class")
    others = [(name, at[name]) for name in EXTENT if name in at]

    def build(line: int, cells: Sequence[str]) -> Row:
        path = cells[path_at]
        if not path:
            raise DataError("LIST_LINES", "the path is empty")
        labels = () if label_at is None else parse_labels(cells[label_at])
        names = (
            () if class_at is None else _names(cells[class_at], len(labels) if label_at is not None else None)
        )
        if not others:
            return Row(line, path, labels, names)
        return Row(line, path, labels, names, **_extent({name: cells[place] for name, place in others}))

    return build


@functools.lru_cache(maxsize=65536)
def _names(text: str, labels: int | None) -> tuple[str, ...]:
    """Class names of a cell; with one label the whole cell is one name, semicolons included."""
    if labels == 1:
        return (text.strip(),) if text.strip() else ()
    return tuple(part.strip() for part in text.split(";") if part.strip())


def _extent(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Row beside path and labels, once they are what they must be."""
    given = {name: value for name, value in values.items() if value not in ("", None)}
    extent: dict[str, Any] = {}
    for name, value in given.items():
        try:
            extent[name] = (
                str(value) if name == "split" else (float if name in ("start", "end") else int)(value)
            )
        except (TypeError, ValueError):
            kind = "seconds" if name in ("start", "end") else "a number of frames"
            raise DataError("LIST_LINES", f"{name} {value!r}; expected {kind}") from None
    start, end = extent.get("start", 0.0), extent.get("end")
    if not start >= 0 or (end is not None and not end > start):
        raise DataError("LIST_LINES", f"start {start} and end {end}; expected 0 <= start < end in seconds")
    if extent.get("offset", 0) < 0 or extent.get("total", 1) < 1:
        raise DataError("LIST_LINES", "expected offset >= 0 and total >= 1 in frames")
    return extent


def jsonl_rows(file: Path, errors: LineErrors) -> Iterator[Row]:
    """Rows of a list with one JSON object per line."""
    return line_rows(file, errors, _row_of_json)


def line_rows(file: Path, errors: LineErrors, parse: Callable[[int, str], Row]) -> Iterator[Row]:
    """A row per line that is not empty: parse(line, text without outer space)."""
    with open_list(file) as text:
        for line, item in enumerate(text, start=1):
            if item := item.strip():
                try:
                    yield parse(line, item)
                except DataError as error:
                    errors.add(line, error)


def _row_of_json(line: int, text: str) -> Row:
    try:
        return _row_of_object(line, json.loads(text))
    except json.JSONDecodeError as error:
        raise DataError("LIST_LINES", f"not JSON ({error.msg}); expected one object per line") from error


def json_rows(file: Path, errors: LineErrors) -> Iterator[Row]:
    """Rows of one JSON list of objects; a row's line is its number in the list, from 1."""
    return item_rows(file, errors, _row_of_object)


def item_rows(file: Path, errors: LineErrors, parse: Callable[[int, Any], Row]) -> Iterator[Row]:
    """A row per item of one JSON list: parse(number from 1, item)."""
    try:
        items = json.loads(file.read_text(encoding="utf-8-sig", errors="surrogateescape"))
    except json.JSONDecodeError as error:
        raise DataError("LIST_FORMAT", f"{file}:{error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(items, list):
        raise DataError("LIST_FORMAT", f"{file}: expected a list of objects, found {type(items).__name__}")
    errors.unit = "item"
    for line, item in enumerate(items, start=1):
        try:
            yield parse(line, item)
        except DataError as error:
            errors.add(line, error)


def _row_of_object(line: int, item: Any) -> Row:
    if not isinstance(item, dict):
        raise DataError("LIST_LINES", f"expected an object with `path`, found {item!r:.60}")
    values = {ALIASES.get(key, key): value for key, value in item.items()}
    path, name = values.get("path"), values.get("class", "")
    if not isinstance(path, str) or not path:
        raise DataError("LIST_LINES", f"expected a text `path`, found {path!r:.60}")
    labels = _labels_of_value(values.get("label"))
    names = tuple(map(str, name)) if isinstance(name, list) else _names(str(name), len(labels) or None)
    extent: dict[str, Any] = {key: values[key] for key in EXTENT if key in values}
    return Row(line, path, labels, names, **_extent(extent))


# Lines of fields --------------------------------------------------------------------------------------


def text_rows(file: Path, errors: LineErrors, *, kind: str, multi_label: bool) -> Iterator[Row]:
    """Rows of MMAction2's video and rawframe lists. Paths may hold spaces; labels must be numbers."""
    numbers = {"videos": 0, "rawframes": 1}.get(kind, 2)
    return line_rows(file, errors, functools.partial(_text_row, numbers=numbers, multi_label=multi_label))


def _text_row(line: int, text: str, *, numbers: int, multi_label: bool) -> Row:
    """One line: a path, `numbers` frame counts (total, or offset and total), then one label or several."""
    path, fields = _path_and_fields(text, None if multi_label else numbers + 1)
    if numbers == 0 and len(fields) == 0:
        return Row(line, path, ())  # 1.x: a line with only a path has no label
    wanted = ("path", "folder total_frames", "folder offset total_frames")[numbers]
    wanted = f"expected `{wanted} label{' label ...' * multi_label}`"
    if len(fields) < numbers or not path:
        raise DataError("LIST_LINES", f"{wanted}, found {text!r:.120}")
    if _TRAILING.search(path):  # perhaps more labels, or an offset: never take them for a part of the path
        raise DataError(
            "LIST_LINES", f"{wanted}, found more numbers: {text!r:.120}; name the format or multi-label"
        )
    try:
        counts = [int(field) for field in fields[:numbers]]
    except ValueError:
        raise DataError("LIST_LINES", f"{wanted} with whole numbers, found {text!r:.120}") from None
    labels = parse_labels(";".join(fields[numbers:]))
    if any(isinstance(label, str) for label in labels):
        raise DataError("LABEL_TYPE", f"label {fields[-1]!r} is not a whole number; {wanted}")
    offset, total = (0, -1) if numbers == 0 else (0, counts[0]) if numbers == 1 else counts
    if offset < 0 or total == 0 or total < -1:
        raise DataError("LIST_LINES", f"{wanted} with offset >= 0 and total_frames >= 1, found {text!r:.120}")
    return Row(line, path, labels, (), offset, total)


def _path_and_fields(text: str, count: int | None) -> tuple[str, list[str]]:
    """Split off the last `count` fields, or (None) all whole numbers at the end; a path alone has none."""
    if count is None:
        match = _TRAILING.search(text)
        return (text[: match.start()], _FIELDS.split(match.group())[1:]) if match else (text, [])
    fields = _FIELDS.split(text)
    if count == 1 and (len(fields) == 1 or _MEDIA_NAME.search(fields[-1])):
        return text, []
    if len(fields) <= count:
        return "", fields
    tail = re.search(rf"(?:[\s,]+[^\s,]+){{{count}}}$", text)
    return text[: tail.start()] if tail else "", fields[-count:]


# Folders ----------------------------------------------------------------------------------------------

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")


def split_folders(folder: Path) -> tuple[str, ...]:
    """The split folders (train, val, test) of a folder that has no others; () if it has none."""
    inside = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
    )
    return tuple(inside) if inside and all(name in SPLITS for name in inside) else ()


def folder_classes(folder: Path) -> tuple[str, ...]:
    """The class names: sorted names of the class folders, over all splits, so that splits agree on labels."""
    parents = [folder / split for split in split_folders(folder)] or [folder]
    names = {
        e.name for parent in parents for e in os.scandir(parent) if e.is_dir() and not e.name.startswith(".")
    }
    return tuple(sorted(names))


def folder_rows(folder: Path, notes: list[str]) -> Iterator[Row]:
    """A row per video or folder of frames below each class (and split) folder, in sorted order.

    How many files are neither, by their suffix, is added to `notes`.
    """
    left_out = list[str]()
    for split in split_folders(folder) or ("",):
        for name in folder_classes(folder):
            for place, folders, files in os.walk(folder / split / name):
                folders[:] = sorted(f for f in folders if not f.startswith("."))
                files = sorted(file for file in files if not file.startswith("."))
                videos = [file for file in files if VIDEO_NAME.search(file)]
                images = [file for file in files if FRAME_NAME.search(file) and not videos]
                here = Path(place).relative_to(folder)
                left_out.extend(str(here / file) for file in sorted({*files} - {*videos, *images}))
                for found in [here / file for file in videos] or [here] * bool(images):
                    yield Row(0, str(found), (name,), split=split or None)
    if left_out:
        notes.append(f"{len(left_out)} files are no videos by their names, for example {left_out[0]!r}")


# Which layout -----------------------------------------------------------------------------------------


def detect(path: Path, multi_label: bool | None) -> tuple[str, bool]:
    """The layout of a list, from its content, and whether its lines hold several labels.

    In lists of fields a path with a file suffix is a video, else a folder of frames; `folder a b c` is
    offset, total and label unless the lines differ in length or multi_label is True.
    """
    if path.is_dir():
        return "folder", bool(multi_label)
    lines = first_lines(path)
    if lines[0][0] in "{[":
        return ("jsonl" if lines[0][0] == "{" else "json"), bool(multi_label)
    names = {name.strip().strip('"') for name in re.split("[,\t]", lines[0])}
    if "path" in names or names & set(ALIASES):
        return "csv", bool(multi_label)
    return _detect_fields(lines, multi_label)


def first_lines(path: Path) -> list[str]:
    """The first 200 lines of a list without outer space, empty ones left out. Raises DataError LIST_EMPTY."""
    with open_list(path) as text:
        lines = [line.strip() for line in islice(text, 200) if line.strip()]
    if not lines:
        raise DataError("LIST_EMPTY", f"{path}: the list is empty")
    return lines


def _detect_fields(lines: Sequence[str], multi_label: bool | None) -> tuple[str, bool]:
    split = [_path_and_fields(line, None) for line in lines]
    numbers = {len(fields) for _, fields in split if fields}
    media = sum(bool(_MEDIA_NAME.search(path)) for path, _ in split)
    if 2 * media >= len(lines) or numbers <= {1}:
        return "videos", bool(multi_label) or (multi_label is None and max(numbers, default=0) > 1)
    if multi_label or (multi_label is None and (max(numbers) > 3 or numbers == {2, 3})):
        return "rawframes", True
    return ("rawframes_with_offset" if max(numbers) == 3 else "rawframes"), False
