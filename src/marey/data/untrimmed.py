"""ActivityNet, FCVID and Mini-Kinetics: lists by id, of videos or of folders of their frames.

    activitynet    the owner's JSON (version 1.3: training and validation, all labels of a video), or lines
    fcvid          lines
    mini_kinetics  `images/val/class name/ID_START_END frames label`, or a video list

Lines are `folder frames label label ...`, separated by spaces (ResKD) or commas (AR-Net, AdaFocus). Their
numbers of frames belong to somebody's extraction: what counts is what lies on this disk.
(CVMI-Lab/ResKD@c6b85a3, mengyuest/AR-Net@f4edc9f:ops/dataset.py, mengyuest/AdaFuse@91c3a5d:data/kinetics)
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from marey.data.finding import Finder, Reading
from marey.data.formats import Row, line_rows, open_list
from marey.errors import DataError
from marey.video.source import VIDEO_NAME

TEXT_LIST = re.compile(r"(actnet|activitynet|fcvid)_(\w+_)?(train|training|val|validation|test)(_\w+)?\.txt")
TEXT_LINE = re.compile(r"([^\s,]+)[\s,]+(\d+)((?:[\s,]+\d+)+)")
OBJECT = re.compile(r'\{\s*"(version|taxonomy|database)"\s*:')
MINI_LINE = re.compile(r"images/(?:train|val|test)/.+/[\w-]+_\d{6}_\d{6} \d+ \d+")

_CLIP = re.compile(r"[\w-]+_\d{6}_\d{6}")
_MINI = re.compile(r"(.*?)(?: (\d+))? (\d+)")
_IMAGES = re.compile(r"images/(?:train|val|test)/")
_UNLABELLED = ("testing",)  # subsets whose labels their owner keeps


def activitynet_rows(reading: Reading) -> Iterator[Row]:
    """Rows of ActivityNet's JSON or of lines. A video is called after its id, perhaps with `v_` before it."""
    with open_list(reading.file) as text:
        is_json = text.read(64).lstrip().startswith("{")
    return _json_rows(reading) if is_json else _text_rows(reading)


def fcvid_rows(reading: Reading) -> Iterator[Row]:
    """Rows of lines."""
    return _text_rows(reading)


def _json_rows(reading: Reading) -> Iterator[Row]:
    """A row per video of training and validation; its labels are those of all its annotations, each once."""
    database = read_database(reading)
    reading.errors.unit = "video"
    finder = Finder(reading, lambda name: _bare(name) in database)
    left_out = 0
    for number, (name, item) in enumerate(database.items(), start=1):
        try:
            subset, labels = _annotated(name, item)
        except DataError as error:
            reading.errors.add(number, error)
            continue
        if subset in _UNLABELLED:
            left_out += 1
            continue
        path = finder.path(f"v_{name}", name, otherwise=f"v_{name}.mp4")
        yield Row(number, path, labels, split=subset)
    finder.tell()
    if left_out:
        reading.notes.append(f"{left_out} videos of the testing subset have no labels and are left out")


def read_database(reading: Reading) -> dict[str, Any]:
    """The videos of ActivityNet's JSON by id. Raises DataError LIST_FORMAT."""
    file = reading.file
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError("LIST_FORMAT", f"{file}{line}: not JSON ({error})") from error
    database = value.get("database") if isinstance(value, dict) else None
    if not isinstance(database, dict):
        raise DataError("LIST_FORMAT", f"{file}: expected an object with `database`, videos by their id")
    return database


def _annotated(name: str, item: Any) -> tuple[str, tuple[str, ...]]:
    """Subset and distinct labels of a video. Raises DataError LIST_LINES, LABEL_COUNT."""
    subset = item.get("subset") if isinstance(item, dict) else None
    annotations = item.get("annotations") if isinstance(item, dict) else None
    if not isinstance(subset, str) or not isinstance(annotations, list):
        raise DataError("LIST_LINES", f"{name!r}: expected `subset` and `annotations`, found {item!r:.80}")
    labels = [str(one.get("label") or "") if isinstance(one, dict) else "" for one in annotations]
    if not all(labels):
        raise DataError("LIST_LINES", f"{name!r}: expected a text `label` in each annotation")
    if not labels and subset not in _UNLABELLED:
        raise DataError("LABEL_COUNT", f"{name!r} of the {subset} subset has no annotation")
    return subset, tuple(dict.fromkeys(labels))


def _text_rows(reading: Reading) -> Iterator[Row]:
    """Rows of `folder frames label ...`: the frames that are there, or the video of that name."""

    def row(line: int, text: str) -> Row:
        match = TEXT_LINE.fullmatch(text)
        if match is None:
            raise DataError("LIST_LINES", f"expected `folder frames label [label ...]`, found {text!r:.120}")
        return Row(line, match[1], tuple(map(int, re.findall(r"\d+", match[3]))))

    rows = list(line_rows(reading.file, reading.errors, row))
    wanted = {_bare(_stem(one.path)) for one in rows}
    finder = Finder(reading, lambda name: _bare(name) in wanted)
    for one in rows:
        stem = _stem(one.path)
        yield one._replace(path=finder.path(stem, f"v_{stem}", _bare(stem), otherwise=one.path))
    finder.tell()


def mini_kinetics_rows(reading: Reading) -> Iterator[Row]:
    """Rows of Mini-Kinetics: the class folder may hold spaces; it names the class, underscores as spaces.

    `images/val/` and the number of frames are dropped. A clip is found below the root by its name, as those
    of Kinetics are.
    """
    finder = Finder(reading, _CLIP.fullmatch)

    def row(line: int, text: str) -> Row:
        match = _MINI.fullmatch(text)
        path = _IMAGES.sub("", match[1], count=1) if match else ""
        folder, _, name = path.rpartition("/")
        if match is None or not _CLIP.fullmatch(_stem(name)):
            raise DataError(
                "LIST_LINES",
                f"expected `class/ID_START_END.mp4 label` or `images/val/class/ID_START_END frames label`, "
                f"found {text!r:.120}",
            )
        label = folder.rpartition("/")[2].replace("_", " ")
        otherwise = path if VIDEO_NAME.search(path) else f"{path}.mp4"
        found = finder.path(_stem(name), otherwise=otherwise)
        return Row(line, found, (int(match[3]),), (label,) if label else ())

    yield from line_rows(reading.file, reading.errors, row)
    finder.tell()


def _stem(path: str) -> str:
    """The last part of a path without a video's suffix."""
    name = path.rpartition("/")[2]
    return name.rsplit(".", 1)[0] if VIDEO_NAME.search(name) else name


def _bare(name: str) -> str:
    """An id without the `v_` that ActivityNet's files have."""
    return name.removeprefix("v_")
