"""AVA's tables: annotations, results and excluded frames as CSV, label maps; checked by row and column.

    annotation  video, second, x1, y1, x2, y2, action, entity      one row per (box, action), no header
    result      video, second, x1, y1, x2, y2, action, score
    exclusion   video, second

Boxes are fractions of width and height, actions count from 1. A key frame is called "video,second", its whole
seconds padded to four digits: `0f39OWEqJ24,0902`. In the truth of an evaluation a row may end after the
second (a key frame where nobody is labelled) or after the action; a result that ends there scores 1, as in
the originals. What is wrong is collected in `Faults`, which name row and column.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import ArrayLike, NDArray

from marey.errors import DataError
from marey.files import replacing

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Kind = Literal["annotation", "truth", "result", "exclusion"]

BOX = ("x1", "y1", "x2", "y2")
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "annotation": ("video", "second", *BOX, "action", "entity"),
    "truth": ("video", "second", *BOX, "action", "entity"),
    "result": ("video", "second", *BOX, "action", "score"),
    "exclusion": ("video", "second"),
}
LENGTHS: dict[Kind, tuple[int, ...]] = {  # how many of the columns a row may have
    "annotation": (8,),
    "truth": (8, 7, 2),
    "result": (8, 7),
    "exclusion": (2,),
}
WHOLE = ("action", "entity")
OUTSIDE = 0.01  # of width or height; detectors go a little beyond the frame
SHOWN = 20  # faults of each code that are kept in full
LATEST = 1e9  # seconds; time stamps are below
MICRO = 1_000_000  # key frames are told apart to a microsecond


# Faults -----------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """What is wrong with a column; `text` may take the value as {}."""

    code: str
    column: str
    text: str


def error(code: str, column: str, text: str) -> Fault:
    """A fault in a column; AVA_COLUMNS, AVA_KEY and AVA_VIDEO may concern no column in particular."""
    return Fault(code, column, text)


class Faults:
    """What is wrong with one file: how often by code, and the first SHOWN of each in full."""

    def __init__(self, file: str | os.PathLike[str], unit: str = "line") -> None:
        self.file, self.unit = os.fspath(file), unit
        self.counts: Counter[str] = Counter()
        self.shown: list[tuple[str, str]] = []  # code, "line 7, column x1: ..."

    def add(self, where: object, fault: Fault, value: object = None) -> None:
        """Note a fault of a row."""
        self.counts[fault.code] += 1
        if self.counts[fault.code] <= SHOWN:
            column = f", column {fault.column}" if fault.column else ""
            self.shown.append((fault.code, f"{self.unit} {where}{column}: {fault.text.format(value)}"))

    def rows(self, wrong: Mask, where: Sequence[object] | Ints, fault: Fault, values: ArrayLike = ()) -> Mask:
        """Note a fault of every wrong row; gives `wrong` back."""
        found, values = np.flatnonzero(wrong), np.asarray(values)
        for row in found[:SHOWN]:
            self.add(where[row], fault, f"{values[row]:g}" if values.size else None)
        if len(found) > SHOWN:
            self.counts[fault.code] += len(found) - SHOWN
        return wrong

    @property
    def total(self) -> int:
        """How many faults there are."""
        return self.counts.total()

    def check(self) -> None:
        """Raise DataError if there is any; its code is AVA_ROWS where they are of several kinds."""
        if not self.total:
            return
        code = next(iter(self.counts)) if len(self.counts) == 1 else "AVA_ROWS"
        texts = [text for _, text in self.shown[:SHOWN]]
        if self.total == 1:
            raise DataError(code, f"{self.file}: {texts[0]}")
        shown = "" if self.total == len(texts) else f", the first {len(texts)}"
        raise DataError(code, "\n  ".join([f"{self.file}: {self.total} faults{shown}:", *texts]))


# Tables -----------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Rows of a table, in its order.

    videos  names of the videos, in order of appearance
    video   int64 [R], place of each row's video in `videos`
    second  float64 [R], time stamp of the key frame
    boxes   float64 [R, 4], x1, y1, x2, y2, fractions of width and height; NaN where the row has none
    action  int64 [R], 0 where the row has none
    extra   float64 [R], entity of an annotation, score of a result; NaN where the row has none
    lines   int64 [R], line of the file, from 1
    """

    videos: tuple[str, ...]
    video: Ints
    second: Floats
    boxes: Floats
    action: Ints
    extra: Floats
    lines: Ints

    def take(self, chosen: Ints | Mask) -> "Rows":
        """Some of the rows."""
        return Rows(
            self.videos,
            self.video[chosen],
            self.second[chosen],
            self.boxes[chosen],
            self.action[chosen],
            self.extra[chosen],
            self.lines[chosen],
        )

    def keys(self) -> list[str]:
        """The name of each row's key frame."""
        return [key_of(self.videos[v], s) for v, s in zip(self.video, self.second.tolist(), strict=True)]


def key_of(video: str, second: float) -> str:
    """The name of a key frame: "abc,0902", "abc,0902.5"."""
    whole, micro = divmod(round(second * MICRO), MICRO)
    return f"{video},{whole:04d}" + (f".{micro:06d}".rstrip("0") if micro else "")


def split_key(key: str) -> tuple[str, float] | None:
    """Video and second of a key frame's name, None if it is none."""
    video, comma, second = key.rpartition(",")
    if not comma or not video or "," in video or not re.fullmatch(r"\d+(\.\d+)?", second):
        return None
    return video, float(second)


def make_rows(keys: Iterable[str], boxes: ArrayLike, action: ArrayLike, extra: ArrayLike) -> Rows:
    """Rows from the names of their key frames and arrays [R, 4], [R] and [R]. Raises DataError AVA_KEY."""
    places: dict[str, int] = {}
    video, second = list[int](), list[float]()
    for key in keys:
        parts = split_key(key)
        if parts is None:
            raise DataError("AVA_KEY", f"{key!r} names no key frame; expected `video,second`: 'abc,0902'")
        video.append(places.setdefault(parts[0], len(places)))
        second.append(parts[1])
    count = len(video)
    return Rows(
        tuple(places),
        np.array(video, np.int64),
        np.array(second, np.float64),
        np.asarray(boxes, np.float64).reshape(count, 4),
        np.asarray(action).astype(np.int64).reshape(count),
        np.asarray(extra, np.float64).reshape(count),
        np.arange(1, count + 1),
    )


def read_rows(path: str | os.PathLike[str], kind: Kind, faults: Faults | None = None) -> Rows:
    """The rows of a table; blank lines are skipped.

    faults  collects what is wrong, and wrong rows are left out; None: any fault is an error

    Results may lie outside the frame or be turned inside out, as the evaluation drops such boxes.
    Raises DataError NOT_FOUND, NO_ACCESS, AVA_EMPTY (no row that is right) and, naming lines and columns:
    AVA_COLUMNS, AVA_VIDEO, AVA_SECOND, AVA_BOX, AVA_ACTION, AVA_ENTITY, AVA_SCORE; AVA_ROWS for several.
    """
    path, own = Path(path), faults is None
    faults = Faults(path) if faults is None else faults
    rows = _fast_rows(path, kind)
    if rows is not None and _wrong(rows, kind, Faults(path)).any():
        rows = None  # blank lines shift its line numbers
    if rows is None:
        rows = _slow_rows(path, kind, faults)
        rows = rows.take(~_wrong(rows, kind, faults))
    if kind == "result":
        rows = rows._replace(extra=np.nan_to_num(rows.extra, nan=1.0))
    if own:
        faults.check()
    if not len(rows.video) and kind != "exclusion" and not faults.total:
        raise DataError("AVA_EMPTY", f"{path}: the table has no rows")
    return rows


def read_exclusions(path: str | os.PathLike[str], faults: Faults | None = None) -> frozenset[str]:
    """The names of the key frames that a table `video,second` excludes. Raises as `read_rows`."""
    return frozenset(read_rows(path, "exclusion", faults).keys())


def _fast_rows(path: Path, kind: Kind) -> Rows | None:
    """The rows of a table where each has as many columns as the first and all are of the right type."""
    try:
        with path.open("rb") as file:
            width = file.readline().count(b",") + 1
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    if width not in LENGTHS[kind]:
        return None
    names = COLUMNS[kind][:width]
    types = {name: pa.int32() if name == "action" else pa.float64() for name in names}
    types["video"] = pa.dictionary(pa.int32(), pa.string())
    if "entity" in names:
        types["entity"] = pa.int64()
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=names, block_size=1 << 24),
            parse_options=pyarrow.csv.ParseOptions(quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types=types, null_values=[]),
        ).unify_dictionaries()
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    count, column = table.num_rows, {name: table[name].combine_chunks() for name in names}
    if not count:
        return None
    videos, video = column["video"].dictionary.to_pylist(), column["video"].indices.to_numpy()
    if any(not name.strip() for name in videos):
        return None
    boxes = np.full((count, 4), np.nan)
    for place, name in enumerate(BOX if "x1" in names else ()):
        boxes[:, place] = column[name].to_numpy()
    action = column["action"].to_numpy() if "action" in names else np.zeros(count)
    last = column[names[-1]].to_numpy() if width == 8 else np.full(count, np.nan)
    second, extra = column["second"].to_numpy(), last.astype(np.float64)
    if (width > 2 and np.isnan(boxes).any()) or (width == 8 and np.isnan(extra).any()):
        return None
    lines = np.arange(1, count + 1)
    return Rows(tuple(videos), video.astype(np.int64), second, boxes, action.astype(np.int64), extra, lines)


def _slow_rows(path: Path, kind: Kind, faults: Faults) -> Rows:
    """The rows of a table line by line, what is no row of the kind noted and left out."""
    names, places = COLUMNS[kind], dict[str, int]()
    values = list[list[float]]()
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for line, text in enumerate(file, start=1):
                cells = text.strip("\r\n").split(",")
                if cells == [""] or text.isspace():
                    continue
                if len(cells) not in LENGTHS[kind]:
                    faults.add(line, error("AVA_COLUMNS", "", "{}"), _columns_text(cells, kind))
                elif line == 1 and not any(re.search(r"\d", cell) for cell in cells[1:]):
                    faults.add(line, error("AVA_COLUMNS", "", "a header; the table has none, remove it"))
                else:
                    numbers = [_number(line, name, cell, faults) for name, cell in zip(names[1:], cells[1:])]  # noqa: B905
                    if not cells[0].strip():
                        faults.add(line, error("AVA_VIDEO", "video", "is empty"))
                    elif None not in numbers:
                        place = places.setdefault(cells[0], len(places))
                        padded = [*numbers, *[np.nan] * (7 - len(numbers))]
                        values.append([line, place, *(n for n in padded if n is not None)])
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    table = np.array(values, np.float64).reshape(-1, 9)
    return Rows(
        tuple(places),
        table[:, 1].astype(np.int64),
        table[:, 2],
        table[:, 3:7],
        np.nan_to_num(table[:, 7]).astype(np.int64),
        table[:, 8],
        table[:, 0].astype(np.int64),
    )


def _columns_text(cells: Sequence[str], kind: Kind) -> str:
    """What is wrong with the number of columns."""
    names = COLUMNS[kind]
    wanted = " or ".join(map(str, LENGTHS[kind]))
    text = f"{len(cells)} columns; expected {wanted} ({','.join(names)})"
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if mark in cells[0]:
            return f"{text}; separate them by commas, not {name}"
    return text


def _number(line: int, name: str, cell: str, faults: Faults) -> float | None:
    """The number in a cell; noted where there is none."""
    try:
        number = int(cell) if name in WHOLE else float(cell)
    except ValueError:
        pass
    else:
        if abs(number) < np.inf:
            return number
    code = {"second": "AVA_SECOND", "action": "AVA_ACTION", "entity": "AVA_ENTITY", "score": "AVA_SCORE"}.get(
        name, "AVA_BOX"
    )
    text = f"{cell[:40]!r} is no {'whole ' if name in WHOLE else ''}number"
    faults.add(line, Fault(code, name, "{}"), text)
    return None


def _wrong(rows: Rows, kind: Kind, faults: Faults) -> Mask:
    """bool [R], the rows whose numbers cannot be; each is noted."""
    second, boxes, where = rows.second, rows.boxes, rows.lines
    wrong = faults.rows(
        ~((second >= 0) & (second < LATEST)),
        where,
        error("AVA_SECOND", "second", "{} is no time stamp"),
        second,
    )
    if kind == "exclusion":
        return wrong
    labelled: Mask = np.logical_not(np.isnan(boxes).any(axis=1))  # rows of a truth may have no box
    wrong |= faults.rows(
        labelled & (rows.action < 1),
        where,
        error("AVA_ACTION", "action", "{}; actions count from 1"),
        rows.action,
    )
    if kind == "result":
        unsound: Mask = np.logical_not(np.isfinite(boxes).all(axis=1))
        wrong |= faults.rows(unsound, where, error("AVA_BOX", "x1..y2", "not a finite number"))
        unsound = np.isinf(rows.extra)
        return wrong | faults.rows(unsound, where, error("AVA_SCORE", "score", "not a finite number"))
    return wrong | wrong_boxes(boxes, labelled, where, faults)


def wrong_boxes(boxes: Floats, asked: Mask, where: Sequence[object] | Ints, faults: Faults) -> Mask:
    """bool [R], the boxes asked about that are no fractions of the frame or inside out; each is noted."""
    wrong = np.zeros(len(boxes), np.bool_)
    inside = (boxes >= -OUTSIDE) & (boxes <= 1 + OUTSIDE)
    pixels = bool((boxes[asked] > 2).mean() > 0.5) if asked.any() else False
    hint = "these are pixels, divide them by width and height" if pixels else "cut boxes at the frame's edge"
    for place, name in enumerate(BOX):
        outside = asked & ~wrong & ~inside[:, place]
        wrong |= faults.rows(
            outside,
            where,
            error("AVA_BOX", name, f"{{}} is not in 0..1, a fraction of the frame; {hint}"),
            boxes[:, place],
        )
    for low, high in ((0, 2), (1, 3)):
        turned = asked & ~wrong & (boxes[:, low] > boxes[:, high])
        text = f"{{}} lies before {BOX[low]}; expected x1,y1,x2,y2, not a width and height"
        wrong |= faults.rows(turned, where, error("AVA_BOX", BOX[high], text), boxes[:, high])
    return wrong


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError("NOT_FOUND", f"no file {str(path)!r}")
    return DataError("NO_ACCESS", f"cannot read {str(path)!r}: {error.strerror}")


# Writing ----------------------------------------------------------------------------------------------


def csv_lines(rows: Rows, *, decimals: int = 6) -> Iterator[str]:
    """Results as lines of AVA's CSV: seconds without padding, boxes and scores with so many decimals.

    3 decimals are what MMAction2 0.x writes; ranks of equal rounded scores are then lost.
    """
    form = ",".join(["%s,%s", *[f"%.{decimals}f"] * 4, "%d", f"%.{decimals}f"])
    seconds = {second: f"{second:.6f}".rstrip("0").rstrip(".") for second in np.unique(rows.second).tolist()}
    columns = (rows.video.tolist(), rows.second.tolist(), rows.boxes.tolist())
    for video, second, box, action, score in zip(
        *columns, rows.action.tolist(), rows.extra.tolist(), strict=True
    ):
        yield form % (rows.videos[video], seconds[second], *box, action, score)


def write_results(path: str | os.PathLike[str], rows: Rows, *, decimals: int = 6) -> None:
    """Results as AVA's CSV, see `csv_lines`. Raises EnvironmentFault DISK_FULL, NOT_WRITABLE."""
    with replacing(path) as part, part.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{line}\n" for line in csv_lines(rows, decimals=decimals))


def write_annotations(path: str | os.PathLike[str], rows: Rows) -> None:
    """Annotations as AVA's CSV: seconds padded to four digits, boxes with six decimals at most."""
    with replacing(path) as part, part.open("w", encoding="utf-8", errors="surrogateescape") as file:
        for key, box, action, entity in zip(
            rows.keys(), rows.boxes.tolist(), rows.action.tolist(), rows.extra.tolist(), strict=True
        ):
            numbers = ",".join(f"{value:.6f}".rstrip("0").rstrip(".") for value in box)
            file.write(f"{key},{numbers},{action},{0 if np.isnan(entity) else int(entity)}\n")


# Label maps -------------------------------------------------------------------------------------------


def read_label_map(path: str | os.PathLike[str]) -> dict[int, str]:
    """Action id -> name, of a label map.

    A .pbtxt as AVA's (`item { name: ... id: ... }` or `label { name: ... label_id: ... }`), a CSV `id,name`
    with or without header, or a text with one name per line, the first being action 1.
    Raises DataError NOT_FOUND, NO_ACCESS, AVA_LABELS (naming the line).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if path.suffix == ".pbtxt" or any(re.match(r"(item|label)\s*\{", line) for _, line in lines):
        entries = list(_pbtxt(path, lines))
    elif path.suffix == ".csv":
        entries = list(_csv_names(path, lines))
    else:
        entries = [(place, place, name) for place, (_, name) in enumerate(lines, start=1)]
    names: dict[int, str] = {}
    for line, action, name in entries:
        if action < 1 or action in names:
            wrong = "is named twice" if action in names else "is below 1"
            raise DataError("AVA_LABELS", f"{path}:{line}: action {action} {wrong}")
        names[action] = name
    if not names:
        raise DataError("AVA_LABELS", f"{path}: no action is named; expected `name:` and `id:` lines")
    return names


def _pbtxt(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, int, str]]:
    name: str | None = None
    for number, line in lines:
        if found := re.match(r'name\s*:\s*"((?:[^"\\]|\\.)*)"', line):
            name = found[1].replace('\\"', '"')
        elif found := re.match(r"(?:label_)?id\s*:\s*(\S+)$", line):
            if name is None or not found[1].isdecimal():
                what = "an id before its name" if name is None else f"id {found[1]!r} is no whole number"
                raise DataError("AVA_LABELS", f"{path}:{number}: {what}")
            yield number, int(found[1]), name
            name = None


def _csv_names(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, int, str]]:
    for place, (number, line) in enumerate(lines):
        cells = next(csv.reader([line]))
        if len(cells) < 2 or not cells[0].strip().isdecimal():
            if place == 0:
                continue  # a header
            raise DataError("AVA_LABELS", f"{path}:{number}: expected `id,name`, found {line!r:.60}")
        yield number, int(cells[0]), cells[1].strip()


def ids_of(names: Mapping[int, str]) -> Ints:
    """The actions of a label map, ascending."""
    return np.array(sorted(names), np.int64)
