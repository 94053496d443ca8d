"""Boxes where a detector found persons, for every key frame: read from what AVA's and others' files hold.

    .pkl             a dict, key frame -> array [n, 5] of x1, y1, x2, y2, score (or [n, 4]), as published for
                     AVA; read by an allow-list, nothing of it is run
    .csv             video,second,x1,y1,x2,y2[,score] with or without that header; of eight columns the
                     seventh is an action that is not read
    .json, .jsonl    the same dict with lists; or one object for each box: `video` and `second` (or `key`),
                     `box` [x1, y1, x2, y2] or COCO's `bbox` [x, y, width, height], `score`, and, for boxes
                     in pixels, `width` and `height` of the frame. Of a `category_id` only 1, person, is kept
    .parquet         columns video, second, x1, y1, x2, y2 and score, if there is one

Boxes are fractions of width and height; a key frame is called "video,second": `0f39OWEqJ24,0902`.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import ArrayLike, NDArray

from marey.errors import DataError, UsageError
from marey.files import replacing
from marey.metrics.ava import overlaps
from marey.metrics.ava_tables import BOX, LATEST, Faults, Floats, Ints, error, key_of, split_key, wrong_boxes
from marey.pickles import read_pickle

SUFFIXES = (".pkl", ".pickle", ".csv", ".json", ".jsonl", ".parquet")
COLUMNS = ("video", "second", *BOX, "score")
PERSON = 1  # COCO's category
MOST_OPCODES = 100_000_000  # of a pickle: some minutes; AVA's training file has about 6,000,000


class Proposals:
    """Boxes by key frame: `proposals.select(key)`, `key in proposals`, `len(proposals)` key frames.

    keys    places of the key frames, in the order of the file
    boxes   float64 [B, 4], x1, y1, x2, y2 as fractions, key frame after key frame
    scores  float64 [B], NaN where a key frame's boxes have none
    ends    int64 [K], where each key frame's boxes end
    notes   what was left out on reading, one sentence each
    """

    def __init__(
        self,
        keys: Sequence[str],
        counts: ArrayLike,
        boxes: ArrayLike,
        scores: ArrayLike,
        notes: Sequence[str] = (),
    ) -> None:
        self.keys = {key: place for place, key in enumerate(keys)}
        self.boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        self.scores = np.asarray(scores, np.float64).reshape(-1)
        self.ends: Ints = np.cumsum(np.asarray(counts, np.int64))
        self.notes = tuple(notes)

    @classmethod
    def of(cls, arrays: Mapping[str, ArrayLike], notes: Sequence[str] = ()) -> "Proposals":
        """From arrays [n, 5] or, without scores, [n, 4] by key frame; n may be 0. Nothing is checked."""
        tables = [_table(array) for array in arrays.values()]
        all_of = np.concatenate([np.empty((0, 5)), *tables])
        return cls(list(arrays), [len(table) for table in tables], all_of[:, :4], all_of[:, 4], notes)

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def all_of(self, key: str) -> tuple[Floats, Floats]:
        """Every box of a key frame, float64 [n, 4], and its score, [n], NaN for none. KeyError if unknown."""
        place = self.keys[key]
        part = slice(int(self.ends[place - 1]) if place else 0, int(self.ends[place]))
        return self.boxes[part], self.scores[part]

    def select(self, key: str, *, threshold: float = 0.9, most: int = 1000) -> tuple[Floats, Floats | None]:
        """The boxes of a key frame that count as persons: float64 [m, 4] and, if they have any, scores [m].

        Those that score at least `threshold`, or else the best with its equals; without scores all; in the
        file's order, `most` of them. A key frame that is not listed has one box, the whole frame, of score 1.
        """
        if key not in self.keys:
            return np.array([[0.0, 0.0, 1.0, 1.0]]), np.ones(1)
        boxes, scores = self.all_of(key)
        if np.isnan(scores).any():
            return boxes[:most], None
        kept = np.flatnonzero(scores >= min(threshold, scores.max(initial=-np.inf)))[:most]
        return boxes[kept], scores[kept]


def read_proposals(path: str | os.PathLike[str], faults: Faults | None = None) -> Proposals:
    """The proposals in a file; its suffix says which layout.

    faults  collects what is wrong, and wrong boxes are left out; None: any fault is an error

    Raises DataError NOT_FOUND, NO_ACCESS, AVA_FORMAT, AVA_EMPTY and, naming key frame, box and column,
    AVA_KEY, AVA_COLUMNS, AVA_BOX, AVA_SCORE (AVA_ROWS for several); of pickles WeightsError as `read_pickle`.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError("AVA_FORMAT", f"{path}: proposals are read from {', '.join(SUFFIXES)}")
    own = faults is None
    faults = Faults(path) if faults is None else faults
    notes = list[str]()
    try:
        arrays = _arrays(path, faults, notes)
    except FileNotFoundError:
        raise DataError("NOT_FOUND", f"no file {str(path)!r}") from None
    except OSError as fault:
        raise DataError("NO_ACCESS", f"cannot read {str(path)!r}: {fault.strerror or fault}") from fault
    proposals = _checked(arrays, faults, notes)
    if own:
        faults.check()
    if not proposals.keys and not faults.total:
        raise DataError("AVA_EMPTY", f"{path}: no key frame has proposals")
    return proposals


def write_proposals(path: str | os.PathLike[str], proposals: Proposals) -> None:
    """Write them as .csv, .json or .parquet. CSV and Parquet leave out key frames without a box.

    Raises UsageError OUT_SUFFIX; EnvironmentFault DISK_FULL, NOT_WRITABLE.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".json", ".parquet"):
        raise UsageError("OUT_SUFFIX", f"{path}: proposals are written as .csv, .json or .parquet")
    with replacing(path) as part:
        if path.suffix == ".json":
            found = {key: proposals.all_of(key) for key in proposals.keys}
            lists = {
                key: np.column_stack([b, s])[:, : 4 if np.isnan(s).any() else 5].tolist()
                for key, (b, s) in found.items()
            }
            part.write_text(json.dumps(lists), encoding="utf-8")
            return
        counts = np.diff(proposals.ends, prepend=0)
        names = [key for key, count in zip(proposals.keys, counts, strict=True) for _ in range(count)]
        parts = [split_key(key) or ("", 0.0) for key in names]
        columns = [[video for video, _ in parts], [second for _, second in parts]]
        scored = not np.isnan(proposals.scores).any()
        values = [*columns, *proposals.boxes.T.tolist(), *([proposals.scores.tolist()] if scored else [])]
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pa.table(dict(zip(COLUMNS, values, strict=False))), part)
            return
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS[: len(values)])
            writer.writerows(zip(*values, strict=True))


def recall(
    boxes: Mapping[str, ArrayLike], proposals: Proposals, *, threshold: float = 0.9, iou: float = 0.5
) -> float:
    """Share, 0..1, of the true boxes ([n, 4] by key frame) that some selected proposal overlaps by `iou`.

    Key frames without proposals count as missed, though a detector is then shown the whole frame. NaN without
    a true box.
    """
    hit = count = 0
    for key, array in boxes.items():
        true = np.asarray(array, np.float64).reshape(-1, 4)
        count += len(true)
        if key in proposals and len(true):
            found, _ = proposals.select(key, threshold=threshold)
            hit += int((overlaps(true[:, None], found[None]) >= iou).any(axis=1).sum())
    return hit / count if count else float("nan")


# Reading ----------------------------------------------------------------------------------------------


def _table(array: ArrayLike) -> Floats:
    """float64 [n, 5] of an array [n, 4 or 5]; a missing score is NaN."""
    table = np.asarray(array, np.float64)
    table = table.reshape(0, 5) if table.size == 0 else table
    missing = np.full((len(table), 5 - table.shape[1]), np.nan)
    return np.concatenate([table, missing], axis=1)


def _arrays(path: Path, faults: Faults, notes: list[str]) -> dict[str, Any]:
    """Tables by key frame, as far as they are tables of numbers."""
    suffix = path.suffix.lower()
    if suffix in (".pkl", ".pickle"):
        faults.unit = "key"
        path.open("rb").close()
        return _of_dict(path, read_pickle(path, MOST_OPCODES), faults)
    if suffix == ".csv":
        return _grouped(_csv_boxes(path, faults))
    if suffix == ".parquet":
        return _parquet_tables(path, faults)
    return _of_json(path, faults, notes)


def _of_dict(path: Path, found: Any, faults: Faults) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise DataError(
            "AVA_FORMAT", f"{path}: expected a dict, key frame -> boxes, found {type(found).__name__}"
        )
    tables = {}
    for key, value in found.items():
        try:
            table = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            table = np.empty(0)
            faults.add(repr(key), error("AVA_COLUMNS", "", "no table of numbers"))
            continue
        if table.size and (table.ndim != 2 or table.shape[1] not in (4, 5)):
            text = "an array of shape {}; expected [n, 5] (x1, y1, x2, y2, score) or [n, 4]"
            faults.add(repr(key), error("AVA_COLUMNS", "", text), list(table.shape))
            continue
        tables[key] = table
    return tables


def _of_json(path: Path, faults: Faults, notes: list[str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            found = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise DataError("AVA_FORMAT", f"{path}: not JSON ({fault})") from None
    if isinstance(found, Mapping):
        faults.unit = "key"
        return _of_dict(path, found, faults)
    if not isinstance(found, list):
        raise DataError("AVA_FORMAT", f"{path}: expected an object by key frame, or a list of boxes")
    faults.unit = "item"
    others = sum(isinstance(item, dict) and item.get("category_id", PERSON) != PERSON for item in found)
    if others:
        notes.append(f"{others} of {len(found)} boxes have a category_id other than 1 and are left out")
    return _grouped(_of_items(found, faults))


Boxed = tuple[str, list[float]]  # a key frame, and one of its boxes


def _of_items(items: Iterable[Any], faults: Faults) -> Iterator[Boxed]:
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            faults.add(
                number, error("AVA_COLUMNS", "", "expected an object with key or video, box and score")
            )
            continue
        if item.get("category_id", PERSON) != PERSON:
            continue
        key = item.get("key", item.get("image_id"))
        second = item.get("second")
        if isinstance(item.get("video"), str) and isinstance(second, int | float) and 0 <= second < LATEST:
            key = key_of(item["video"], second)
        corners = _corners(item)
        if not isinstance(key, str):
            faults.add(
                number, error("AVA_KEY", "", "neither `video` and `second` nor `key` say the key frame")
            )
        elif corners is None:
            faults.add(number, error("AVA_BOX", "box", "expected `box` [x1, y1, x2, y2] or `bbox`, numbers"))
        else:
            yield key, corners


def _corners(item: Mapping[str, Any]) -> list[float] | None:
    """x1, y1, x2, y2 as fractions and, if there is one, the score of a detector's object."""
    with suppress(TypeError, ValueError, KeyError, ZeroDivisionError):
        x1, y1, x2, y2 = map(float, item["box"] if "box" in item else item["bbox"])
        if "box" not in item:
            x2, y2 = x1 + x2, y1 + y2
        width, height = float(item.get("width", 1)), float(item.get("height", 1))
        score = [float(item["score"])] if "score" in item else []
        return [x1 / width, y1 / height, x2 / width, y2 / height, *score]
    return None


def _csv_boxes(path: Path, faults: Faults) -> Iterator[Boxed]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for cells in (reader := csv.reader(file)):
            line = reader.line_num
            if not any(cells) or (line == 1 and cells[:2] == ["video", "second"]):
                continue
            if len(cells) not in (6, 7, 8):
                text = "{} columns; expected 7 (video,second,x1,y1,x2,y2,score), or 6 without score"
                faults.add(line, error("AVA_COLUMNS", "", text), len(cells))
                continue
            names, texts = COLUMNS[1 : 7 if len(cells) > 6 else 6], cells[1:6] + cells[-1:] * (len(cells) > 6)
            numbers = list[float]()
            for name, text in zip(names, texts, strict=True):
                try:
                    numbers.append(float(text))
                except ValueError:
                    code = {"second": "AVA_SECOND", "score": "AVA_SCORE"}.get(name, "AVA_BOX")
                    _not_a_number(faults, line, code, name, text)
                    break
            else:
                if 0 <= numbers[0] < LATEST:
                    yield key_of(cells[0], numbers[0]), numbers[1:]
                else:
                    faults.add(line, error("AVA_SECOND", "second", "{} is no time stamp"), cells[1])


def _not_a_number(faults: Faults, line: int, code: str, name: str, text: str) -> None:
    faults.add(line, error(code, name, "{!r:.42} is no number"), text)


def _parquet_tables(path: Path, faults: Faults) -> dict[str, Any]:
    try:
        table = pyarrow.parquet.read_table(path)
    except pa.ArrowInvalid as fault:
        raise DataError(
            "AVA_FORMAT", f"{path}: no Parquet file ({str(fault).partition(chr(10))[0]})"
        ) from None
    missing = [name for name in COLUMNS[:6] if name not in table.column_names]
    if missing:
        raise DataError(
            "AVA_FORMAT", f"{path}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)}"
        )
    faults.unit = "row"
    names = COLUMNS[1:] if "score" in table.column_names else COLUMNS[1:6]
    numbers = [table[name].cast(pa.float64(), safe=False).to_numpy() for name in names]
    values, videos = np.column_stack(numbers), table["video"].combine_chunks().dictionary_encode()
    place = videos.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    known = (place >= 0) & (values[:, 0] >= 0) & (values[:, 0] < LATEST)
    nameless = error("AVA_KEY", "video", "no key frame is named")
    faults.rows(np.logical_not(known), np.arange(len(known)), nameless)
    frames, first, inverse = np.unique(
        np.stack([place, values[:, 0]], 1)[known], axis=0, return_index=True, return_inverse=True
    )
    rank = np.argsort(np.argsort(first))[inverse.reshape(-1)]  # key frames as they appear
    order, ends = np.argsort(rank, kind="stable"), np.cumsum(np.bincount(rank, minlength=len(frames)))
    named = videos.dictionary.to_pylist()
    keys = [key_of(str(named[int(video)]), second) for video, second in frames[np.argsort(first)].tolist()]
    return dict(zip(keys, np.split(values[known][order, 1:], ends[:-1]), strict=True)) if keys else {}


def _grouped(boxes: Iterable[Boxed]) -> dict[str, Any]:
    """Tables by key frame; where some boxes of it have no score, all of them have none."""
    tables: dict[str, list[list[float]]] = {}
    for key, box in boxes:
        tables.setdefault(key, []).append(box)
    return {key: [box[: min(map(len, table))] for box in table] for key, table in tables.items()}


def _checked(arrays: Mapping[Any, Any], faults: Faults, notes: Sequence[str]) -> Proposals:
    """Proposals of the boxes that can be; the others are noted and left out."""
    faults.unit = "key"
    sound = dict[str, list[Floats]]()  # "abc,902" and "abc,0902" are one
    for key, table in arrays.items():
        parts = split_key(key) if isinstance(key, str) else None
        if parts is None:
            text = "names no key frame; expected `video,second` such as 'abc,0902'"
            faults.add(repr(key)[:60], error("AVA_KEY", "", text))
        else:
            sound.setdefault(key_of(*parts), []).append(_table(table))
    made = Proposals.of({key: np.concatenate(tables) for key, tables in sound.items()}, notes)
    counts = np.diff(made.ends, prepend=0)
    where = _Places(list(sound), made.ends)
    infinite: NDArray[np.bool_] = np.logical_not(np.isfinite(made.boxes).all(axis=1))
    wrong = faults.rows(infinite, where, error("AVA_BOX", "x1..y2", "no number"))
    wrong |= wrong_boxes(made.boxes, ~wrong, where, faults)
    outside: NDArray[np.bool_] = (made.scores < 0) | (made.scores > 1)
    text = "{} is not in 0..1, a probability"
    wrong |= faults.rows(outside, where, error("AVA_SCORE", "score", text), made.scores)
    frames = np.repeat(np.arange(len(counts)), counts)[~wrong]
    kept = np.bincount(frames, minlength=len(counts))
    return Proposals(list(sound), kept, made.boxes[~wrong], made.scores[~wrong], notes)


class _Places(Sequence[object]):
    """Where each box stands, "'abc,0902', box 3", said only when it is asked."""

    def __init__(self, keys: Sequence[str], ends: Ints) -> None:
        self.keys, self.ends = keys, ends

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, row: Any) -> Any:
        place = int(np.searchsorted(self.ends, row, side="right"))
        return f"{self.keys[place]!r}, box {row - (int(self.ends[place - 1]) if place else 0) + 1}"
