"""Class names and training targets: what a label means, and the number or vector a loss is given."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marey.classes import class_names
from marey.errors import DataError


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The class names of a file, or of a data set whose names ship; a name's place is its label.

    A file holds one name per line; or lines `1 name` that count from 1 (UCF101), or `name,0` (Moments in
    Time); or JSON: a list of names, or of lists of words (Diving48), or an object {"name": label} with labels
    0 .. n-1, perhaps as text (Something-Something V2), or ActivityNet's own list: its names, sorted.
    `Kinetics-400` and the like are taken from `marey.classes` when no file is called so.
    Raises DataError NOT_FOUND, LIST_FORMAT, or LABEL_NAMES for a repeated, empty or missing name.
    """
    file = Path(path)
    if (shipped := class_names(str(path))) is not None and not file.exists():
        return shipped
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError("NOT_FOUND", f"class names {file}: {error.strerror}; name a readable file") from error
    except UnicodeDecodeError as error:
        raise DataError("LIST_FORMAT", f"class names {file}: not UTF-8 text ({error.reason})") from error
    if text.lstrip().startswith(("[", "{")):
        return check_names(_names_of_json(file, text), f"{file}: item")
    lines = [line.strip() for line in text.splitlines()]
    return check_names(_counted(lines) or lines, f"{file}: line")


def _counted(lines: Sequence[str]) -> list[str]:
    """The names of lines that all carry their own number, in its order; [] for plain names."""
    before = [re.fullmatch(r"(\d+) (\S+)", line) for line in lines]
    if lines and all(match and int(match[1]) == number for number, match in enumerate(before, start=1)):
        return [match[2] for match in before if match]
    after = {int(match[2]): match[1] for line in lines if (match := re.fullmatch(r"(.+),(\d+)", line))}
    return [after[label] for label in sorted(after)] if [*sorted(after)] == [*range(len(lines))] else []


def check_names(names: Sequence[str], where: str = "class name") -> tuple[str, ...]:
    """The names as a tuple, once none is empty or repeated; `where` opens the message of LABEL_NAMES."""
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError("LABEL_NAMES", f"{where} {number} is empty; give one class name each")
        if name in seen:
            raise DataError(
                "LABEL_NAMES", f"{where} {number} repeats {name!r} of number {seen[name]}; names differ"
            )
        seen[name] = number
    if not seen:
        raise DataError("LABEL_NAMES", f"{where}s: there is none; give one class name each")
    return tuple(names)


def _names_of_json(file: Path, text: str) -> list[str]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            "LIST_FORMAT", f"class names {file}:{error.lineno}: not JSON ({error.msg})"
        ) from error
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    if isinstance(value, list) and all(isinstance(words, list) for words in value):
        return ["+".join(map(str, words)) for words in value]
    if isinstance(value, dict) and isinstance(value.get("database"), dict):
        return _annotated_names(value["database"])
    if isinstance(value, dict) and all(
        type(label) is int or (isinstance(label, str) and label.isdecimal()) for label in value.values()
    ):
        label_of = {name: int(label) for name, label in value.items()}
        if sorted(label_of.values()) == list(range(len(value))):
            return sorted(value, key=label_of.__getitem__)
        raise DataError(
            "LABEL_NAMES", f"class names {file}: the labels must be 0 .. {len(value) - 1}, each once"
        )
    raise DataError("LIST_FORMAT", f'class names {file}: expected a list of names or {{"name": label}}')


def _annotated_names(database: dict[str, Any]) -> list[str]:
    """The sorted names of all annotations of ActivityNet's JSON."""
    items = (item for item in database.values() if isinstance(item, dict))
    annotations = (one for item in items for one in item.get("annotations") or ())
    return sorted({str(one["label"]) for one in annotations if isinstance(one, dict) and "label" in one})


_OTHER_SIDE = {"left": "right", "clockwise": "counterclockwise"}
_OTHER_SIDE |= {b: a for a, b in _OTHER_SIDE.items()}
_SIDE = re.compile(rf"(?<![a-z])({'|'.join(_OTHER_SIDE)})(?![a-z])")


def mirror_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """The pairs of classes that a mirror shows as each other, going by their names.

    Two names are a pair when exchanging left and right, and clockwise and counterclockwise, in one gives the
    other.
    """
    label_of = {name.lower(): label for label, name in enumerate(names)}
    mirrored = {_SIDE.sub(lambda side: _OTHER_SIDE[side[0]], name): label for name, label in label_of.items()}
    pairs = ((label, mirrored[name]) for name, label in label_of.items() if name in mirrored)
    return tuple((a, b) for a, b in pairs if a < b)


def targets(labels: Sequence[int], num_classes: int, multi_label: bool) -> Tensor:
    """What the loss compares with: int64 [] for one label, float32 [num_classes] of 0 and 1 for several.

    Raises DataError LABEL_COUNT unless a single-label sample has exactly one label, LABEL_RANGE for a
    label outside 0 .. num_classes-1.
    """
    for label in labels:
        if not 0 <= label < num_classes:
            raise DataError("LABEL_RANGE", f"label {label} is outside 0 .. {num_classes - 1}; check the list")
    if multi_label:
        hot = torch.zeros(num_classes)
        hot[list(labels)] = 1.0
        return hot
    if len(labels) != 1:
        raise DataError("LABEL_COUNT", f"expected one label, found {len(labels)}; is the list multi-label?")
    return torch.tensor(labels[0])
