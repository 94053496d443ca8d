"""Lists of labelled videos: any common layout in, one compact list of entries out.

Memory per entry is the bytes of its path and about 30 more, so that 10^7 entries fit into a few hundred
megabytes; workers are sent single entries, never the list.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from marey.data import datasets, formats
from marey.data.columns import Builder, Columns, Ragged
from marey.data.finding import Reading
from marey.data.formats import LineErrors, Row
from marey.data.labels import check_names, read_classes
from marey.errors import DataError, unknown

Ints = npt.NDArray[np.int64]
FORMATS = ("auto", *formats.FORMATS, *datasets.LAYOUTS)
FRAME_TEMPLATE = "img_{:05}.jpg"  # MMAction2's names of extracted frames


class Entry(msgspec.Struct, frozen=True):
    """One sample of a list.

    path      file, or folder of frames, as joined with the list's root
    labels    class indices from 0; empty where the list says none
    start     first frame of the part that is meant, counted from 0
    total     number of frames of that part; None: to the end
    template  file names of the frames, should `path` be a folder of frames; None: those found there
    seconds   (start, end) of the part that is meant, in seconds from the first frame; None: the whole video
    """

    path: str
    labels: tuple[int, ...] = ()
    start: int = 0
    total: int | None = None
    template: str | None = None
    seconds: tuple[float, float] | None = None


class ClipList:
    """The entries of a list, in its order: `len(clips)`, `clips[i]`, `for entry in clips`.

    name         the file or folder the list was read from
    root         folder that relative paths start from
    classes      class names in label order, or None; a label that no row names is called by its number
    num_classes  number of class names, else largest label + 1
    multi_label  whether an entry may have any number of labels
    splits       the splits it tells apart (column or folders), sorted
    notes        what was left out on reading, one sentence each
    """

    def __init__(
        self,
        name: str,
        root: str,
        rows: Columns,
        named: dict[int, str],
        *,
        template: str | None,
        multi_label: bool,
    ) -> None:
        self.name, self.root, self.template, self.multi_label = name, root, template, multi_label
        self.named, self.splits, self.notes = named, tuple[str, ...](), tuple[str, ...]()
        self._rows = rows
        self.num_classes = max(int(rows.labels.values.max(initial=-1)), max(named, default=-1)) + 1

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in label order, None when the list has none."""
        return tuple(self.named.get(i, str(i)) for i in range(self.num_classes)) if self.named else None

    def __len__(self) -> int:
        return len(self._rows.lines)

    def __getitem__(self, index: int) -> Entry:
        if not -len(self) <= index < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        index = int(index) % len(self)
        path = os.path.join(self.root, self.written(index))  # noqa: PTH118 - an absolute path stays as it is
        start, total, seconds = self._extent(index)
        return Entry(path, self.labels(index), start, total, self.template, seconds)

    def __iter__(self) -> Iterator[Entry]:
        return (self[index] for index in range(len(self)))

    def written(self, index: int) -> str:
        """The path of entry `index` as the list has it."""
        return os.fsdecode(self._rows.paths.row(index).tobytes())

    def line(self, index: int) -> int:
        """The line of the list that entry `index` was read from, from 1 (0 in a folder)."""
        return int(self._rows.lines[index])

    def labels(self, index: int) -> tuple[int, ...]:
        """The labels of entry `index`."""
        return tuple(self._rows.labels.row(index).tolist())

    def single_labels(self) -> Ints:
        """int64 [n], the label of each entry. Raises DataError LABEL_COUNT unless each has exactly one."""
        wrong = self.unlike(1)
        if len(wrong):
            where = self.where(int(wrong[0]))
            raise DataError(
                "LABEL_COUNT", f"{where}: expected one label for each clip; {len(wrong)} have none or several"
            )
        return self._rows.labels.values.astype(np.int64)

    def counts(self, num_classes: int | None = None) -> Ints:
        """int64 [num_classes], the number of entries with each label."""
        return np.bincount(
            self._rows.labels.values, minlength=self.num_classes if num_classes is None else num_classes
        )

    def where(self, index: int) -> str:
        """File and line of entry `index`, for a message."""
        return (
            f"{self.name}:{self.line(index)}" if self.line(index) else f"{self.name}: {self.written(index)}"
        )

    def beyond(self, num_classes: int) -> Ints:
        """int64: the entries with a label that is not below `num_classes`."""
        values, offsets = self._rows.labels
        return np.unique(np.searchsorted(offsets, np.flatnonzero(values >= num_classes), side="right") - 1)

    def unlike(self, count: int) -> Ints:
        """int64: the entries that do not have exactly `count` labels."""
        return np.flatnonzero(self._rows.labels.lengths() != count)

    def subset(self, indices: Sequence[int] | Ints) -> "ClipList":
        """The entries `indices`, in that order, as a list with the same class names."""
        chosen = ClipList(
            self.name, self.root, self._rows.take(np.asarray(indices, np.int64)), self.named,
            template=self.template, multi_label=self.multi_label,
        )  # fmt: skip
        chosen.num_classes, chosen.splits, chosen.notes = self.num_classes, self.splits, self.notes
        return chosen

    def relabelled(self, labels: Ints) -> "ClipList":
        """The same entries with a label each, int64 [n], and the same class names."""
        chosen = self.subset(range(len(self)))
        ends = np.arange(len(self) + 1, dtype=np.int64)
        chosen._rows = chosen._rows._replace(labels=Ragged(labels.astype(np.int32), ends))
        chosen.num_classes = max(self.num_classes, int(labels.max(initial=-1)) + 1)
        chosen.multi_label = False
        return chosen

    def fingerprint(self, *, sizes: bool = False) -> str:
        """SHA-256 (hex) of the set of entries: path below the root, part, labels and, if asked, file sizes.

        The order of the list and the place of its root do not matter. It is the digest of the entries'
        own digests in ascending order. Raises DataError NOT_FOUND when a size is asked of a missing file.
        """
        digests = np.empty(len(self), "S32")
        for index in range(len(self)):
            name = self._rows.paths.row(index).tobytes()
            if os.path.isabs(name):  # noqa: PTH117 - ten million times
                name = os.fsencode(os.path.relpath(os.fsdecode(name), self.root))
            size = bytes_on_disk(self[index].path) if sizes else None
            text = repr((name, self._extent(index), self.labels(index), size))
            digests[index] = hashlib.sha256(text.encode()).digest()
        digests.sort()
        return hashlib.sha256(digests.tobytes()).hexdigest()

    def _extent(self, index: int) -> tuple[int, int | None, tuple[float, float] | None]:
        """start, total and seconds of an entry."""
        start, total = (0, -1) if self._rows.frames is None else self._rows.frames[index].tolist()
        first, last = (0.0, inf) if self._rows.seconds is None else self._rows.seconds[index].tolist()
        return start, None if total < 0 else total, (first, last) if first or last < inf else None


def bytes_on_disk(path: str) -> int:
    """Size of a file, or of all files of a folder of frames, in bytes. Raises DataError NOT_FOUND."""
    try:
        if os.path.isdir(path):  # noqa: PTH112 - ten million times
            return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
        return os.stat(path).st_size  # noqa: PTH116
    except OSError as error:
        raise DataError("NOT_FOUND", f"{path}: {error.strerror}") from error


# Reading ----------------------------------------------------------------------------------------------


def read_list(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    root: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    multi_label: bool | None = None,
    template: str | None = None,
    split: str | None = None,
    first_label: int = 0,
) -> ClipList:
    """Read a list of videos; `marey.data.formats` and `marey.data.datasets` describe the layouts.

    format       one of FORMATS; "auto": found from the content, and from the owner's file names
    root         folder that relative paths start from; None: the folder of the list
    classes      class names in label order, or the file that holds them, or a data set whose names ship
                 ("Kinetics-400"); None: from the owner's file beside the list, a `class` column, the names
                 used as labels (sorted), or the class folders (sorted)
    multi_label  None: true when any row has several labels
    template     file names in folders of frames; None: FRAME_TEMPLATE in rawframe lists, else as found there
    split        keep only the rows with this value in their `split` column, or this split folder
    first_label  number of the first class in the list: 1 for lists that count from 1

    Raises DataError NOT_FOUND, NO_ACCESS, LIST_EMPTY, LIST_FORMAT and, naming file and line (all wrong lines,
    the first 20 in full), LIST_LINES, LABEL_TYPE, LABEL_RANGE, LABEL_BASE, LABEL_COUNT, LABEL_NAMES;
    UsageError for an unknown format or split.
    """
    file = Path(path)
    errors, notes, splits = LineErrors(file), list[str](), list[str | None]()
    try:
        kind, several = _layout(file, format, multi_label)
        layout = datasets.LAYOUTS.get(kind)
        if multi_label is None and layout is not None:
            multi_label = layout.multi_label
        names = _class_names(file, kind, classes)
        folder = Path(root or (file if kind == "folder" else file.parent))
        builder = Builder(errors, names, first_label=first_label, multi_label=multi_label)
        for row in _rows(Reading(file, folder, errors, notes), kind, several):
            builder.add(row)
            splits.append(row.split)
    except OSError as error:
        raise DataError("NO_ACCESS", f"cannot read the list {str(path)!r}: {error.strerror}") from error
    errors.check()
    rows, named = builder.finish()
    if not len(rows.lines):
        raise DataError("LIST_EMPTY", f"{file}: the list has no videos")
    clips = ClipList(
        str(path),
        str(folder),
        rows,
        named,
        template=FRAME_TEMPLATE if template is None and kind in formats.FRAME_FORMATS else template,
        multi_label=bool(rows.labels.lengths().max() > 1) if multi_label is None else multi_label,
    )
    clips.notes = tuple(notes)
    if names is None and layout is not None:
        _check_numbered(file, layout, named)
    _check_complete(clips)
    count = len(names) if names is not None else layout.classes if layout is not None else None
    if count is not None:
        clips.num_classes = max(clips.num_classes, count)
        check_labels(clips, count)
    return _of_split(clips, splits, split)


def named_list(
    name: str,
    root: str | os.PathLike[str],
    paths: Sequence[str],
    labels: Sequence[int],
    *,
    classes: Sequence[str] | None = None,
    template: str | None = None,
) -> ClipList:
    """A list made of names and their labels, as if `name` held them. Raises DataError as `read_list`."""
    errors = LineErrors(Path(name))
    builder = Builder(errors, check_names(classes) if classes else None, first_label=0, multi_label=False)
    for line, (path, label) in enumerate(zip(paths, labels, strict=True), 1):
        builder.add(Row(line, path, (int(label),)))
    errors.check()
    rows, named = builder.finish()
    if not len(rows.lines):
        raise DataError("LIST_EMPTY", f"{name}: the list has no videos")
    return ClipList(name, str(root), rows, named, template=template, multi_label=False)


def _layout(file: Path, format: str, multi_label: bool | None) -> tuple[str, bool]:
    """The layout of an existing list, and whether its lines hold several labels."""
    if format not in FORMATS:
        raise unknown("list format", format, FORMATS)
    if not file.exists():
        raise DataError(
            "NOT_FOUND", f"no list {str(file)!r}; name a list file or a folder with a folder per class"
        )
    owner = datasets.detect(file)
    kind, several = (owner, False) if owner is not None else formats.detect(file, multi_label)
    return (kind if format == "auto" else format), several


def _check_numbered(file: Path, layout: datasets.Layout, named: dict[int, str]) -> None:
    """Which number a class has must be known where its owner says it in another file, or nowhere."""
    if layout.unordered:
        raise DataError(
            "LABEL_NAMES",
            f"{file}: no order of these classes is the official one; name the file with the class names in "
            "the order that your lists and weights mean as data.classes (--classes); for a network of your "
            "own the owner's JSON itself gives the sorted names",
        )
    if named and layout.names:
        raise DataError(
            "LABEL_NAMES",
            f"{file}: its classes are numbered by {layout.names[0]}, which is not beside it; put it there, "
            "or name it as data.classes (--classes)",
        )


def _of_split(clips: ClipList, splits: Sequence[str | None], split: str | None) -> ClipList:
    """The entries of a split; names and number of classes stay those of the whole list."""
    clips.splits = tuple(sorted({name for name in splits if name is not None}))
    if split is None:
        return clips
    if split not in clips.splits:
        raise unknown("split of the list", split, clips.splits)
    return clips.subset([index for index, name in enumerate(splits) if name == split])


def _class_names(
    file: Path, kind: str, classes: str | os.PathLike[str] | Sequence[str] | None
) -> tuple[str, ...] | None:
    if classes is None and kind == "folder":
        return check_names(formats.folder_classes(file), f"{file}: class folder")
    if classes is None and kind in datasets.LAYOUTS:
        classes = datasets.names_file(file, kind)
    if classes is None:
        return None
    return read_classes(classes) if isinstance(classes, str | os.PathLike) else check_names(classes)


def _rows(reading: Reading, kind: str, several: bool) -> Iterator[Row]:
    file, _, errors, notes = reading
    if kind in datasets.LAYOUTS:
        return datasets.LAYOUTS[kind].rows(reading)
    if kind == "folder":
        return formats.folder_rows(file, notes)
    if kind == "csv":
        return formats.csv_rows(file, errors)
    if kind == "jsonl":
        return formats.jsonl_rows(file, errors)
    if kind == "json":
        return formats.json_rows(file, errors)
    return formats.text_rows(file, errors, kind=kind, multi_label=several)


def _check_complete(clips: ClipList) -> None:
    """A list of single labels has one for every entry, or none at all."""
    missing = clips.unlike(1)
    if not clips.multi_label and 0 < len(missing) < len(clips):
        where = ", ".join(clips.where(int(index)) for index in missing[:5])
        raise DataError(
            "LABEL_COUNT", f"{len(missing)} of {len(clips)} entries have no label: {where}; label all or none"
        )


# Checking ---------------------------------------------------------------------------------------------


def check_labels(clips: ClipList, num_classes: int | None = None) -> None:
    """Raise DataError unless every label is one of 0 .. num_classes - 1, before a loss meets it on a device.

    LABEL_BASE  the labels run from 1 to the number of classes, so the list counts from 1
    LABEL_RANGE a label is too large; the first 20 are named by file and line

    num_classes None (a new data set): as many as the list has; then only a list that never uses 0 but
    every other label is refused.
    """
    counts = clips.counts()
    used = np.flatnonzero(counts)
    if not len(used):
        return
    last = clips.num_classes - 1 if num_classes is None else num_classes
    without_gaps = len(used) == last > 1
    if used[0] == 1 and used[-1] == last and (num_classes is not None or without_gaps):
        raise DataError(
            "LABEL_BASE",
            f"{clips.name}: the labels run from 1 to {used[-1]}, so they seem to count from 1, not 0; read "
            f"it with first_label=1 (data.first_label=1 in a recipe), or give {used[-1] + 1} class names if "
            "label 0 merely has no videos",
        )
    if num_classes is None or used[-1] < num_classes:
        return
    errors = LineErrors(Path(clips.name))
    for index in clips.beyond(num_classes):
        labels = ", ".join(str(label) for label in clips.labels(int(index)) if label >= num_classes)
        errors.add(
            clips.line(int(index)),
            DataError("LABEL_RANGE", f"label {labels} is outside 0 .. {num_classes - 1}"),
        )
    errors.check()


def same_classes(first: ClipList, *others: ClipList) -> tuple[str, ...] | None:
    """The class names that lists of one data set share, None when none has names.

    A label that one list names and another does not takes the name. Raises DataError LABEL_NAMES when two
    lists call a label by two names or give a name two labels, LABEL_COUNT when only some are multi-label.
    """
    named = dict(first.named)
    label_of = {name: label for label, name in named.items()}
    for other in others:
        if other.multi_label != first.multi_label and other.num_classes and first.num_classes:
            pair = [
                f"{clips.name} is {'multi' if clips.multi_label else 'single'}-label"
                for clips in (first, other)
            ]
            raise DataError("LABEL_COUNT", f"{' but '.join(pair)}; say which with multi_label")
        for label, name in other.named.items():
            if named.setdefault(label, name) != name or label_of.setdefault(name, label) != label:
                there = (
                    f"label {label} is {named[label]!r} and {name!r} is label {label_of.get(name, 'none')}"
                )
                raise DataError(
                    "LABEL_NAMES",
                    f"{other.name}: label {label} is {name!r}, but in {first.name} {there}; "
                    "give both lists one file of class names",
                )
    count = max(first.num_classes, *(other.num_classes for other in others), 0)
    return tuple(named.get(label, str(label)) for label in range(count)) if named else None
