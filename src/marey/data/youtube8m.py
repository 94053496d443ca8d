"""Frame features of YouTube-8M, and of anything laid out like it: records become padded batches.

A frame-level record is a SequenceExample: context `id` (2017: `video_id`) and `labels`, lists `rgb` and
`audio` with one string of bytes per second. A video-level record is an Example with `id`, `labels`,
`mean_rgb` and `mean_audio`. A byte q stands for q * 4/255 - 2 + 4/512. (google/youtube-8m@e6f6bf6:
readers.py, utils.py, feature_extractor/extract_tfrecords_main.py)

`marey.data.shards` says which records a step takes; they are read at their places, by any number of workers.
Packed files (`marey.data.packed`) are read in the place of TFRecord files everywhere.
"""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice, tee
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marey.data.clips import Failure
from marey.data.examples import Example, Feature, Frames, read_example, write_example
from marey.data.packed import Packed, is_packed
from marey.data.shards import Place, Shards
from marey.data.tfrecord import Report, read_record, read_records
from marey.data.workers import Pool
from marey.errors import DataError, MareyError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
T = TypeVar("T")

LOW, HIGH = -2.0, 2.0 + 4 / 512  # what bytes stand for lies here
SKIPPED = ("RECORD_DAMAGED", "RECORD_LOST", "RECORD_FORMAT", "FEATURE_WIDTH", "FEATURE_MISSING")
PIECE = 16  # records that a worker reads at once


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """What records must hold.

    rgb, audio   bytes of a frame; audio 0: a model without sound, `audio` is not read
    num_classes  labels are 0 .. num_classes - 1
    max_frames   later frames are left out
    """

    rgb: int = 1024
    audio: int = 128
    num_classes: int = 3862
    max_frames: int = 300


class Video(NamedTuple):
    """The features of one video: rgb uint8 [n, rgb], audio uint8 [m, audio]; n and m may differ or be 0."""

    id: str
    labels: tuple[int, ...]
    rgb: Bytes
    audio: Bytes


class Means(NamedTuple):
    """A video-level record: means over time of what the bytes stand for, float32 [rgb] and [audio]."""

    id: str
    labels: tuple[int, ...]
    rgb: Floats
    audio: Floats


# The convention ---------------------------------------------------------------------------------------


def dequantise(values: Bytes) -> Floats:
    """What bytes stand for, -1.9922 to 2.0078."""
    return values.astype(np.float32) * np.float32(4 / 255) + np.float32(4 / 512 - 2)


def quantise(values: NDArray[np.floating[Any]]) -> Bytes:
    """Features as bytes, as YouTube-8M's extractor made them: cut off at -2 and 2. Not quite the inverse."""
    steps = np.rint((np.clip(values, -2, 2) + 2) * (255 / 4))
    return np.asarray(steps, np.uint8)


def as_bytes(values: NDArray[Any], where: str) -> Bytes:
    """Stored bytes of features that were stored as bytes or dequantised since; anything else is refused.

    Raises DataError FEATURE_RANGE.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f" and _in_range(values, LOW, HIGH):
        steps = np.rint((values - (4 / 512 - 2)) * (255 / 4)).clip(0, 255)
        return np.asarray(steps, np.uint8)
    raise _range_error(values, where)


def read_video(data: memoryview | bytes, layout: Layout, where: str) -> Video:
    """A frame-level record.

    where  names the record in messages, and is the id of a video that has none
    Raises DataError RECORD_FORMAT, RECORD_KIND, FEATURE_MISSING, FEATURE_WIDTH, FEATURE_RANGE, LABEL_RANGE.
    """
    example = _example(data, where)
    if example.lists is None:
        raise DataError(
            "RECORD_KIND",
            f"{where}: a video-level record ({', '.join(sorted(example.features)[:6])}), but frame-level "
            "ones (lists `rgb` and `audio`) are needed; YouTube-8M has them as its partitions 2/frame",
        )
    lists = example.lists
    name, labels = _named(example, where), _labels(example, layout, where)
    rgb = _stream(lists, "rgb", layout.rgb, layout.max_frames, where)
    audio = _stream(lists, "audio", layout.audio, layout.max_frames, where)
    return Video(name, labels, rgb, audio)


def read_means(data: memoryview | bytes, layout: Layout, where: str) -> Means:
    """A video-level record. Raises as `read_video`."""
    example = _example(data, where)
    if example.lists is not None:
        raise DataError("RECORD_KIND", f"{where}: a frame-level record, but video-level ones are needed")
    name, labels = _named(example, where), _labels(example, layout, where)
    means = [
        _mean(example, key, width, where) for key, width in (("rgb", layout.rgb), ("audio", layout.audio))
    ]
    return Means(name, labels, *means)


def record(video: Video) -> bytes:
    """The frame-level record of a video, for `RecordWriter.write`."""
    lists = {"rgb": video.rgb} | ({"audio": video.audio} if video.audio.shape[1] else {})
    return write_example({"id": [video.id.encode()], "labels": list(video.labels)}, lists)


def read_videos(
    path: str | os.PathLike[str], layout: Layout, *, damaged: Report | None = None
) -> Iterator[Video]:
    """The videos of a TFRecord or packed file in their order; with `damaged`, as `read_records` takes it,
    bad ones of the codes in SKIPPED are passed to it and left out."""
    yield from _each(path, damaged, lambda data, where: read_video(data, layout, where), packed_video, layout)


def read_all_means(
    path: str | os.PathLike[str], layout: Layout, *, damaged: Report | None = None
) -> Iterator[Means]:
    """The same of a file of video-level records."""
    yield from _each(path, damaged, lambda data, where: read_means(data, layout, where), packed_means, layout)


def _each(
    path: str | os.PathLike[str],
    damaged: Report | None,
    parse: Callable[[memoryview, str], T],
    unpack: Callable[[Packed, int, Layout], T],
    layout: Layout,
) -> Iterator[T]:
    packed = Packed(path) if is_packed(path) else None
    records: Iterator[tuple[int, memoryview | None]]
    if packed is not None:
        records = ((number, None) for number in range(len(packed)))
    else:
        records = ((number, data) for number, _, data in read_records(path, damaged=damaged))
    for number, data in records:
        try:
            if packed is not None:
                yield unpack(packed, number, layout)
            elif data is not None:
                yield parse(data, f"{os.fspath(path)}#{number}")
        except DataError as error:
            if damaged is None or error.code not in SKIPPED:
                raise
            damaged(error)


def packed_video(packed: Packed, number: int, layout: Layout) -> Video:
    """Video `number` of a packed file of frame-level records. Raises as `read_video`."""
    labels = _packed_labels(packed, number, "frame", layout)
    rgb, audio = (
        packed.rows(number, stream)[: layout.max_frames] if width else np.empty((0, 0), np.uint8)
        for stream, width in enumerate((layout.rgb, layout.audio))
    )
    return Video(packed.name(number), labels, np.asarray(rgb, np.uint8), np.asarray(audio, np.uint8))


def packed_means(packed: Packed, number: int, layout: Layout) -> Means:
    """Video `number` of a packed file of video-level records. Raises as `read_means`."""
    labels = _packed_labels(packed, number, "video", layout)
    rgb, audio = (
        np.asarray(packed.rows(number, stream)[0] if width else (), np.float32)
        for stream, width in enumerate((layout.rgb, layout.audio))
    )
    return Means(packed.name(number), labels, rgb, audio)


def _packed_labels(packed: Packed, number: int, level: str, layout: Layout) -> tuple[int, ...]:
    """The labels of a packed video, once it is clear that it is what the layout needs."""
    where = f"{packed.path}#{number}"
    if packed.level != level:
        reason = f"{packed.level}-level records, but {level}-level ones are needed"
        raise DataError("RECORD_KIND", f"{where}: {reason}")
    for key, width, wanted in zip(("rgb", "audio"), packed.widths, (layout.rgb, layout.audio), strict=True):
        if wanted and not width:
            raise DataError("FEATURE_MISSING", f"{where}: no {key!r}; a model of one stream has audio=0")
        if wanted not in (0, width):
            raise DataError("FEATURE_WIDTH", f"{where}: {key} is of {width} values, but {wanted} are needed")
    return _checked_labels(list(packed.labels(number)), layout, where, packed.name(number))


def width_in(
    path: str | os.PathLike[str], *, damaged: Report | None = None
) -> tuple[Literal["frame", "video"], int, int]:
    """Level of a TFRecord file and the widths of its rgb and audio, as the first records with frames say.

    Widths are 0 where no record says. `damaged` as for `read_videos`. Raises DataError as that.
    """
    level: Literal["frame", "video"] = "frame"
    rgb = audio = 0
    for number, _, data in read_records(path, damaged=damaged):
        try:
            example = _example(data, f"{os.fspath(path)}#{number}")
        except DataError as error:
            if damaged is None:
                raise
            damaged(error)
            continue
        if example.lists is None:
            level = "video"
            found = [example.features.get(f"mean_{key}", ()) for key in ("rgb", "audio")]
            return level, len(found[0]), len(found[1])
        rgb, audio = (
            known or _width(example.lists.get(key)) for key, known in (("rgb", rgb), ("audio", audio))
        )
        if rgb and (audio or "audio" not in example.lists):
            break
    return level, rgb, audio


def _width(frames: Frames | None) -> int:
    if frames is None or not len(frames):
        return 0
    return len(_row(frames[0])) if isinstance(frames, list) else int(frames.shape[1])


def paddle_videos(found: Any, layout: Layout, where: str) -> Iterator[Video]:
    """The videos of what `marey.pickles.read_pickle` read from a file of Paddle's `tf2pkl`.

    Such a file holds a list of dicts, or one dict, with `video`, `feature`, `audio`, `label` and `nframes`;
    their keys are bytes or text, by the Python that wrote them. Raises as `read_video`.
    """
    entries = found if isinstance(found, list) else [found]
    for number, entry in enumerate(entries):
        here = f"{where}#{number}"
        fields = {_text(key): value for key, value in entry.items()} if isinstance(entry, dict) else {}
        count, tables = fields.get("nframes"), [fields.get(key) for key in ("feature", "audio")]
        sound = all(table is None or (isinstance(table, np.ndarray) and table.ndim) for table in tables)
        named = "video" in fields and isinstance(fields.get("label"), list)
        if not isinstance(count, int) or not named or not sound:
            raise DataError(
                "RECORD_FORMAT",
                f"{here}: no dict with video, feature, audio, label and nframes; is it another pickle?",
            )
        count = min(max(count, 0), layout.max_frames)
        labels = _checked_labels(fields["label"], layout, here, _text(fields["video"]))
        streams = []
        for key, table, width in zip(("feature", "audio"), tables, (layout.rgb, layout.audio), strict=True):
            streams.append(_stream({} if table is None else {key: table}, key, width, count, here))
        yield Video(_text(fields["video"]), labels, *streams)


def _example(data: memoryview | bytes, where: str) -> Example:
    try:
        return read_example(data)
    except DataError as error:
        raise DataError(error.code, f"{where}: {error.message}") from None


def _named(example: Example, where: str) -> str:
    for key in ("id", "video_id"):
        value = example.features.get(key)
        if isinstance(value, list) and value:
            return value[0].decode("utf-8", "replace")
    folder, _, name = where.rpartition(os.sep)
    return name if folder else where


def _labels(example: Example, layout: Layout, where: str) -> tuple[int, ...]:
    value = example.features.get("labels", [])
    if len(value) and (isinstance(value, list) or value.dtype != np.int64):
        raise DataError("LABEL_TYPE", f"{where}: its labels are no whole numbers")
    return _checked_labels([int(item) for item in value], layout, where, _named(example, where))


def _checked_labels(values: list[Any], layout: Layout, where: str, name: str) -> tuple[int, ...]:
    """The labels as they are; repeated ones count once in a batch."""
    wrong = [value for value in values if not isinstance(value, int) or not 0 <= value < layout.num_classes]
    if wrong:
        raise DataError(
            "LABEL_RANGE",
            f"{where}: video {name!r} has the label {wrong[0]!r}, outside 0..{layout.num_classes - 1}",
        )
    return tuple(values)


def _stream(lists: dict[str, Any], key: str, width: int, most: int, where: str) -> Bytes:
    """The first `most` frames of a stream, uint8 [n, width]; [0, 0] of one that the model has not."""
    if width == 0:
        return np.empty((0, 0), np.uint8)
    if key not in lists:
        raise DataError(
            "FEATURE_MISSING",
            f"{where}: no list {key!r}, only {', '.join(sorted(lists)) or 'none'}; a model of one stream "
            "has audio=0"
            if key == "audio"
            else f"{where}: no list {key!r}",
        )
    frames: Frames | NDArray[Any] = lists[key]
    if not len(frames):
        return np.empty((0, width), np.uint8)
    if isinstance(frames, list):
        rows = [_row(frame) for frame in frames]
        sizes = [len(row) for row in rows]
        if len(set(sizes)) != 1:
            odd = next(i for i, size in enumerate(sizes) if size != width)
            raise DataError(
                "FEATURE_WIDTH", f"{where}: {key} frame {odd} has {sizes[odd]} values, not {width}"
            )
        frames = np.stack(rows)
    if frames.ndim != 2 or frames.shape[1] != width:
        raise DataError(
            "FEATURE_WIDTH",
            f"{where}: {key} is {list(frames.shape)}, but frames of {width} values are needed",
        )
    return as_bytes(frames[:most], f"{where}: {key}")


def _row(frame: Feature) -> NDArray[Any]:
    """One frame that was a byte string or a list of numbers."""
    return np.frombuffer(b"".join(frame), np.uint8) if isinstance(frame, list) else frame


def _mean(example: Example, stream: str, width: int, where: str) -> Floats:
    key = f"mean_{stream}"
    if width == 0:
        return np.empty(0, np.float32)
    if key not in example.features:
        raise DataError("FEATURE_MISSING", f"{where}: no feature {key!r}")
    values = example.features[key]
    if isinstance(values, list) or len(values) != width:
        raise DataError("FEATURE_WIDTH", f"{where}: {key} has {len(values)} values, not {width}")
    if values.dtype != np.float32 or not _in_range(values, 2 * LOW, 2 * HIGH):  # some tools do not cut off
        raise _range_error(values, f"{where}: {key}")
    return np.asarray(values, np.float32)


def _in_range(values: NDArray[Any], low: float, high: float) -> bool:
    return not values.size or bool(values.min() >= low - 1e-3 and values.max() <= high + 1e-3)


def _range_error(values: NDArray[Any], where: str) -> DataError:
    return DataError(
        "FEATURE_RANGE",
        f"{where}: {values.dtype} values from {values.min():.4g} to {values.max():.4g}; needed are the bytes "
        f"as YouTube-8M stores them, or what they stand for, {LOW:g} to {HIGH:.4f}. Other features need a "
        "model trained on them, quantised alike (marey.data.youtube8m.quantise)",
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def read_vocabulary(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the classes in their order, from YouTube-8M's vocabulary.csv (columns Index and Name).

    A class without a name is called by its number. Raises DataError NO_ACCESS, LIST_FORMAT.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # noqa: PTH123
            rows = {int(row["Index"]): row["Name"] or row["Index"] for row in csv.DictReader(file)}
    except OSError as error:
        raise DataError("NO_ACCESS", f"cannot read {os.fspath(path)!r}: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError("LIST_FORMAT", f"{path}: no table with columns Index and Name ({error!r})") from None
    if not rows or sorted(rows) != list(range(len(rows))):
        raise DataError("LIST_FORMAT", f"{path}: the indices of its {len(rows)} rows do not run from 0 on")
    return tuple(rows[index] for index in range(len(rows)))


# Batches ----------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """The videos of a step that could be read, B of them, perhaps none.

    rgb, audio  uint8 [B, T, width], zeros after the last frame; T is that of the longest, at least 1;
                audio [B, T, 0] where the layout has none
    lengths     int64 [B, 2], frames of rgb and of audio
    labels      bool [B, num_classes]
    ids         names of the videos
    numbers     int64 [B], their places in the shards
    failures    the records that are missing, counted and named
    """

    rgb: Tensor
    audio: Tensor
    lengths: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    numbers: Tensor
    failures: tuple[Failure, ...]


class ReadTask(msgspec.Struct, frozen=True):
    """Records to read and to stack."""

    places: tuple[Place, ...]
    numbers: tuple[int, ...]
    layout: Layout

    @property
    def path(self) -> str:
        """What errors name."""
        return self.places[0].path


def collate(videos: Sequence[Video], layout: Layout) -> Batch:
    """Videos in one batch."""
    return _stacked(videos, range(len(videos)), layout, [])


def read_task(task: ReadTask) -> Batch:
    """Read records; those with an error of SKIPPED are named in `failures`, another error is raised."""
    if all(is_packed(place.path) for place in task.places):
        return _read_packed(task)
    videos, numbers, failures = list[Video](), list[int](), list[Failure]()
    for number, place in zip(task.numbers, task.places, strict=True):
        try:
            if is_packed(place.path):
                videos.append(packed_video(_packed_at(place), place.number, task.layout))
            else:
                videos.append(read_video(read_record(_file(place.path), *place), task.layout, place.name))
            numbers.append(number)
        except DataError as error:
            if error.code not in SKIPPED:
                raise
            failures.append(Failure(number, place.name, error.code, error.message))
    return _stacked(videos, numbers, task.layout, failures)


def batches(shards: Shards, steps: Iterable[Ints], layout: Layout, *, pool: Pool) -> Iterator[Batch]:
    """The records of each step as a batch; workers share a step and work two steps ahead.

    steps  the record numbers of each step, as `step_records` gives them; the first has the most
    Raises DataError LABEL_RANGE and what else is not one record's fault.
    """

    def parts(numbers: Ints) -> list[list[int]]:
        size = PIECE if pool.workers else max(len(numbers), 1)
        return [numbers[first : first + size].tolist() for first in range(0, len(numbers), size)]

    steps, ahead, first = tee(steps, 3)  # few steps are held at a time
    tasks = (
        ReadTask(tuple(shards.places(some)), tuple(some), layout)
        for numbers in ahead
        for some in parts(numbers)
    )
    most = len(parts(next(first, np.empty(0, np.int64))))
    del first
    results = pool.run(read_task, tasks, prefetch=2 * most + pool.workers)
    for numbers in steps:
        taken = []
        for _, result in islice(results, len(parts(numbers))):
            if isinstance(result, MareyError):
                raise result
            taken.append(result)
        yield _joined(taken, layout) if taken else collate([], layout)


def _read_packed(task: ReadTask) -> Batch:
    """`read_task` of packed records: the file's bytes go straight to their places in the batch."""
    widths, most = (task.layout.rgb, task.layout.audio), task.layout.max_frames
    rows = np.zeros((len(task.places), 2), np.int64)
    for i, place in enumerate(task.places):
        ends = _packed(place.path).ends[place.number : place.number + 2]
        rows[i] = ends[1] - ends[0] if len(ends) == 2 else 0
    longest = max(int(rows.clip(max=most)[:, [bool(width) for width in widths]].max(initial=0)), 1)
    streams = [np.empty((len(rows), longest, width), np.uint8) for width in widths]
    labels = np.zeros((len(rows), task.layout.num_classes), np.bool_)
    names, lengths, numbers, failures = list[str](), list[tuple[int, int]](), list[int](), list[Failure]()
    for number, place, counts in zip(task.numbers, task.places, rows.tolist(), strict=True):
        at = len(names)
        try:
            packed = _packed_at(place)
            found = _packed_labels(packed, place.number, "frame", task.layout)
            kept = [min(count, most) if width else 0 for count, width in zip(counts, widths, strict=True)]
            for stream, (out, count) in enumerate(zip(streams, counts, strict=True)):
                if kept[stream] == count and count:
                    packed.read(place.number, stream, out[at, :count].reshape(-1).data)
                elif kept[stream]:
                    out[at, :most] = packed.rows(place.number, stream)[:most]
                out[at, kept[stream] :] = 0
        except DataError as error:
            if error.code not in SKIPPED:
                raise
            failures.append(Failure(number, place.name, error.code, error.message))
            continue
        labels[at, list(found)] = True
        names.append(packed.name(place.number))
        lengths.append((kept[0], kept[1]))
        numbers.append(number)
    good, longest = len(names), max(max((max(pair) for pair in lengths), default=0), 1)
    rgb, audio = (np.ascontiguousarray(out[:good, :longest]) for out in streams)
    return Batch(
        torch.from_numpy(rgb),
        torch.from_numpy(audio),
        torch.tensor(lengths, dtype=torch.int64).view(-1, 2),
        torch.from_numpy(labels[:good]),
        tuple(names),
        torch.tensor(numbers, dtype=torch.int64),
        tuple(failures),
    )


def _packed_at(place: Place) -> Packed:
    """The file of a packed record, once it is sure to be as it was when its records were listed."""
    packed = _packed(place.path)
    there = packed.spans[place.number : place.number + 1].tolist()
    if there != [[place.offset, place.length]]:
        reason = "the file has changed; look for its records again"
        raise DataError("RECORD_LOST", f"{place.name}: {reason}")
    return packed


@lru_cache(maxsize=64)
def _packed(path: str) -> Packed:
    """An open packed file, with its index."""
    return Packed(path)


@lru_cache(maxsize=64)
def _file(path: str) -> BinaryIO:
    """An open file; the least used one is closed when there are too many."""
    try:
        return open(path, "rb", buffering=0)  # noqa: PTH123 - stays open for the next record
    except OSError as error:
        raise DataError("NO_ACCESS", f"cannot read {path!r}: {error.strerror}") from error


def _stacked(
    videos: Sequence[Video], numbers: Iterable[int], layout: Layout, failures: list[Failure]
) -> Batch:
    lengths = torch.tensor([(len(v.rgb), len(v.audio)) for v in videos], dtype=torch.int64).view(-1, 2)
    longest = max(int(lengths.max()) if len(videos) else 0, 1)
    rgb = np.empty((len(videos), longest, layout.rgb), np.uint8)
    audio = np.empty((len(videos), longest, layout.audio), np.uint8)
    labels = np.zeros((len(videos), layout.num_classes), np.bool_)
    for i, video in enumerate(videos):
        rgb[i, : len(video.rgb)], rgb[i, len(video.rgb) :] = video.rgb, 0
        if layout.audio:
            audio[i, : len(video.audio)], audio[i, len(video.audio) :] = video.audio, 0
        labels[i, list(video.labels)] = True
    return Batch(
        torch.from_numpy(rgb),
        torch.from_numpy(audio),
        lengths,
        torch.from_numpy(labels),
        tuple(video.id for video in videos),
        torch.tensor(list(numbers), dtype=torch.int64),
        tuple(failures),
    )


def _joined(parts: list[Batch], layout: Layout) -> Batch:
    """Pieces of a step, in their order, as one batch."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.rgb.shape[1] for part in parts)
    count = sum(len(part.rgb) for part in parts)
    rgb = torch.zeros((count, longest, layout.rgb), dtype=torch.uint8)
    audio = torch.zeros((count, longest, layout.audio), dtype=torch.uint8)
    first = 0
    for part in parts:
        last = first + len(part.rgb)
        rgb[first:last, : part.rgb.shape[1]] = part.rgb
        audio[first:last, : part.audio.shape[1]] = part.audio
        first = last
    return Batch(
        rgb,
        audio,
        torch.cat([part.lengths for part in parts]),
        torch.cat([part.labels for part in parts]),
        tuple(name for part in parts for name in part.ids),
        torch.cat([part.numbers for part in parts]),
        tuple(failure for part in parts for failure in part.failures),
    )
