"""The rows of a list as arrays: what ten million entries are kept in."""

import os
from array import array
from math import inf
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from marey.data.formats import Label, LineErrors, Row
from marey.errors import DataError, nearest

Ints = npt.NDArray[np.int64]
_REMEMBERED = 65536  # label cells whose meaning is kept
_MOST_LABELS = 10_000_000  # a larger number is no class index


class Ragged(NamedTuple):
    """Rows of different lengths: row i is values[offsets[i]:offsets[i + 1]]."""

    values: npt.NDArray[Any]
    offsets: Ints

    def row(self, index: int) -> npt.NDArray[Any]:
        """Row `index`, without copying."""
        first, last = self.offsets[index : index + 2]
        return self.values[first:last]

    def lengths(self) -> Ints:
        """int64 [n], the length of each row."""
        return np.diff(self.offsets)

    def take(self, indices: Ints) -> "Ragged":
        """The rows at `indices`, in that order."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths()[indices])]).astype(np.int64)
        values = np.empty(offsets[-1], self.values.dtype)
        for place, index in enumerate(indices):
            values[offsets[place] : offsets[place + 1]] = self.row(index)
        return Ragged(values, offsets)


class Columns(NamedTuple):
    """n rows of a list.

    paths    bytes of the paths, as the file system has them (any encoding, no gaps)
    labels   int32 class indices
    frames   int64 [n, 2]: first frame and number of frames (-1: to the end) of the part meant; None: whole
    seconds  float64 [n, 2]: start and end (inf: to the end) of the part meant; None: whole
    lines    int32 [n], from 1; 0: no line
    """

    paths: Ragged
    labels: Ragged
    frames: Ints | None
    seconds: npt.NDArray[np.float64] | None
    lines: npt.NDArray[np.int32]

    def take(self, indices: Ints) -> "Columns":
        """The rows at `indices`, in that order."""
        return Columns(
            paths=self.paths.take(indices),
            labels=self.labels.take(indices),
            frames=None if self.frames is None else self.frames[indices],
            seconds=None if self.seconds is None else self.seconds[indices],
            lines=self.lines[indices],
        )


class Builder:
    """Gathers rows, resolving labels and class names on the way; what is wrong goes to `errors`.

    names        class names in label order, or None: found from the rows
    first_label  the number that the list gives to the first class
    multi_label  False: more than one label is an error of its row
    """

    def __init__(
        self, errors: LineErrors, names: tuple[str, ...] | None, *, first_label: int, multi_label: bool | None
    ) -> None:
        self._errors, self._first, self._multi_label = errors, first_label, multi_label
        self._given = names is not None
        self._name_of = {
            label: (name, 0) for label, name in enumerate(names or ())
        }  # label -> name, its line
        self._label_of = {name: (label, 0) for label, name in enumerate(names or ())}
        self._written: tuple[type, int] | None = None  # whether labels are numbers or names, since which line
        self._resolved: dict[tuple[tuple[Label, ...], tuple[str, ...]], tuple[int, ...]] = {}
        self._paths, self._path_ends = bytearray(), array("q", [0])
        self._labels, self._label_ends, self._lines = array("i"), array("q", [0]), array("i")
        self._frames, self._seconds = array("q"), array("d")

    def add(self, row: Row) -> None:
        """Take one row, or note what is wrong with it."""
        try:
            labels = self._resolved.get((row.labels, row.names))
            if labels is None:
                labels = self._resolve(row)
            path = _bytes(row.path)
        except DataError as error:
            self._errors.add(row.line, error)
            return
        if row.offset or row.total >= 0:
            _place(self._frames, len(self._lines), (0, -1), (row.offset, row.total))
        if row.start or row.end is not None:
            end = inf if row.end is None else row.end
            _place(self._seconds, len(self._lines), (0.0, inf), (row.start, end))
        self._labels.extend(labels)
        self._label_ends.append(len(self._labels))
        self._paths += path
        self._path_ends.append(len(self._paths))
        self._lines.append(row.line)

    def finish(self) -> tuple[Columns, dict[int, str]]:
        """The rows and the class names by label. Names used as labels are numbered in sorted order."""
        count = len(self._lines)
        for parts, default in ((self._frames, (0, -1)), (self._seconds, (0.0, inf))):
            if parts:
                _place(parts, count, default, ())
        labels = np.array(self._labels, dtype=np.int32)
        names = {label: name for label, (name, _) in self._name_of.items()}
        if not self._given and self._written is not None and self._written[0] is str:
            ranks = np.argsort(np.argsort([names[label] for label in range(len(names))]))
            labels, names = ranks[labels].astype(np.int32), dict(enumerate(sorted(names.values())))
        columns = Columns(
            paths=Ragged(np.frombuffer(self._paths, np.uint8), np.array(self._path_ends, dtype=np.int64)),
            labels=Ragged(labels, np.array(self._label_ends, dtype=np.int64)),
            frames=np.array(self._frames, dtype=np.int64).reshape(-1, 2) if self._frames else None,
            seconds=np.array(self._seconds, dtype=np.float64).reshape(-1, 2) if self._seconds else None,
            lines=np.array(self._lines, dtype=np.int32),
        )
        return columns, names

    def _resolve(self, row: Row) -> tuple[int, ...]:
        """The row's labels as indices; they and their names must agree with all rows before."""
        written = row.labels or row.names  # a class name alone is a label too
        if self._multi_label is False and len(written) > 1:
            raise DataError("LABEL_COUNT", f"{len(written)} labels in a list of single labels")
        if row.labels and row.names and len(row.labels) != len(row.names):
            raise DataError(
                "LABEL_NAMES", f"{len(row.labels)} labels and {len(row.names)} class names; expected as many"
            )
        labels = tuple(self._index(label, row.line) for label in written)
        for label, name in zip(labels, row.names, strict=False):
            self._agree(label, name, row.line)
        if len(self._resolved) >= _REMEMBERED:
            self._resolved.clear()
        self._resolved[row.labels, row.names] = tuple(dict.fromkeys(labels))
        return self._resolved[row.labels, row.names]

    def _index(self, label: Label, line: int) -> int:
        if self._written is None:
            self._written = type(label), line
        if not self._given and self._written[0] is not type(label):
            raise DataError(
                "LABEL_TYPE", f"label {label!r}, but line {self._written[1]} has a {_KINDS[self._written[0]]}"
            )
        if isinstance(label, int):
            if not self._first <= label < _MOST_LABELS:
                last = len(self._name_of) - 1 + self._first if self._given else _MOST_LABELS
                raise DataError("LABEL_RANGE", f"label {label} is outside {self._first} .. {last}")
            return label - self._first
        if label in self._label_of:
            return self._label_of[label][0]
        if self._given:
            raise DataError("LABEL_NAMES", f"no class is called {label!r}; {nearest(label, self._label_of)}")
        self._agree(len(self._label_of), label, line)
        return len(self._label_of) - 1

    def _agree(self, label: int, name: str, line: int) -> None:
        """Note that `label` is called `name`, unless another name or label was said before."""
        known = self._name_of.get(label)
        other = self._label_of.get(name)
        if known is None and other is None and not self._given:
            self._name_of[label], self._label_of[name] = (name, line), (label, line)
        elif known is not None and known[0] != name:
            raise DataError(
                "LABEL_NAMES", f"label {label + self._first} is {name!r} here, {known[0]!r} {_said(known[1])}"
            )
        elif other is not None and other[0] != label:
            there = f"{other[0] + self._first} {_said(other[1])}"
            raise DataError("LABEL_NAMES", f"class {name!r} has label {label + self._first} here, {there}")


_KINDS = {int: "number", str: "class name"}


def _bytes(path: str) -> bytes:
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:
        raise DataError("LIST_LINES", f"path {path!r}: no file can have this name") from None
    if b"\0" in name:
        raise DataError("LIST_LINES", f"path {path!r} holds a NUL character")
    return name


def _said(line: int) -> str:
    return f"in line {line}" if line else "in the class names"


def _place(
    parts: "array[int] | array[float]", row: int, default: tuple[float, float], values: tuple[float, ...]
) -> None:
    """Put a row's values at its place, filling up the rows before that had none."""
    parts.extend(default * (row - len(parts) // 2))  # type: ignore[arg-type]
    parts.extend(values)  # type: ignore[arg-type]
