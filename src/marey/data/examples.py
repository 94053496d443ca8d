"""TensorFlow's Example and SequenceExample: messages of named features, read and written as bytes.

    Example          1 features                       (Features)
    SequenceExample  1 context, 2 feature lists       (Features, FeatureLists)
    Features         1 repeated {1 key, 2 Feature}    FeatureLists  1 repeated {1 key, 2 FeatureList}
    FeatureList      1 repeated Feature
    Feature          1 bytes | 2 floats | 3 int64s, each 1 repeated; numbers packed or not

(tensorflow/tensorflow, core/example/feature.proto and example.proto; the encoding is protobuf's.) What is not
named there is skipped. Where all frames of a list hold one string of the same length, and nearly all do, the
list is an array with a constant stride, and is read as one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from marey.errors import DataError

Numbers = NDArray[np.int64] | NDArray[np.float32]
Feature = list[bytes] | Numbers
Frames = NDArray[np.uint8] | list[Feature]

_BYTES, _FLOATS, _INTS = 1, 2, 3
_VARINT, _FIXED64, _CHUNK, _FIXED32 = 0, 1, 2, 5


class Example(NamedTuple):
    """What a record holds.

    features  by name: a list of byte strings, float32 [n] or int64 [n]
    lists     of a SequenceExample, by name: uint8 [frames, width], a view into the record, where every frame
              is one string of the same length, else a list of features; None for an Example
    """

    features: dict[str, Feature]
    lists: dict[str, Frames] | None


def read_example(data: memoryview | bytes) -> Example:
    """An Example or SequenceExample. Raises DataError RECORD_FORMAT where it is neither."""
    view = memoryview(data)
    features: dict[str, Feature] = {}
    lists: dict[str, Frames] | None = None
    try:
        for field, start, end in _chunks(view, 0, len(view)):
            if field == 1:
                for name, first, last in _entries(view, start, end):
                    features[name] = _feature(view, first, last)
            elif field == 2:
                lists = {} if lists is None else lists
                for name, first, last in _entries(view, start, end):
                    lists[name] = _frames(view, first, last)
    except (ValueError, IndexError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it ends early"
        raise DataError("RECORD_FORMAT", f"no Example or SequenceExample: {reason}") from None
    return Example(features, lists)


def write_example(
    features: Mapping[str, Feature | Sequence[int]], lists: Mapping[str, NDArray[np.uint8]] | None = None
) -> bytes:
    """The record of an Example or, with lists of uint8 [frames, width], of a SequenceExample."""
    entries = [_chunk(1, _chunk(1, k.encode()) + _chunk(2, _packed(v))) for k, v in features.items()]
    written = _chunk(1, b"".join(entries))
    if lists is not None:
        written += _chunk(2, b"".join(_list(name, frames) for name, frames in lists.items()))
    return written


# Reading ----------------------------------------------------------------------------------------------


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    """The number that begins at `place`, and where it ends."""
    value = view[place]
    place += 1
    if value < 0x80:
        return value, place
    value, shift = value & 0x7F, 7
    while True:
        byte = view[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 10 bytes")


def _fields(view: memoryview, place: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, start and end of the fields of a message; of a varint, value and end."""
    while place < end:
        tag = view[place]  # nearly all are of one byte
        place += 1
        if tag > 0x7F:
            tag, place = _varint(view, place - 1)
        kind = tag & 7
        if kind == _VARINT:
            start, last = _varint(view, place)
            place = last
        elif kind == _CHUNK:
            length, start = _varint(view, place)
            place = last = start + length
        elif kind in (_FIXED32, _FIXED64):
            start = place
            place = last = start + (4 if kind == _FIXED32 else 8)
        else:
            raise ValueError(f"an unknown wire type, {kind}")
        if place > end:
            raise ValueError("a field that reaches beyond its message")
        if tag < 8:
            raise ValueError("a field number of 0")
        yield tag >> 3, kind, start, last


def _chunks(view: memoryview, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    for field, kind, start, last in _fields(view, place, end):
        if kind == _CHUNK:
            yield field, start, last


def _entries(view: memoryview, place: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Key, start and end of the value of each entry of a map."""
    for field, start, last in _chunks(view, place, end):
        if field != 1:
            continue
        name, value = "", (last, last)
        for part, first, stop in _chunks(view, start, last):
            if part == 1:
                name = str(view[first:stop], "utf-8", "replace")
            elif part == 2:
                value = first, stop
        yield name, *value


def _feature(view: memoryview, place: int, end: int) -> Feature:
    found: Feature = []
    for field, start, last in _chunks(view, place, end):
        if field == _BYTES:
            found = [bytes(view[first:stop]) for part, first, stop in _chunks(view, start, last) if part == 1]
        elif field == _FLOATS:
            found = _floats(view, start, last)
        elif field == _INTS:
            found = _ints(view, start, last)
    return found


def _floats(view: memoryview, place: int, end: int) -> NDArray[np.float32]:
    parts = [
        np.frombuffer(view[start:last], "<f4")
        for field, kind, start, last in _fields(view, place, end)
        if field == 1 and kind in (_CHUNK, _FIXED32)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])


def _ints(view: memoryview, place: int, end: int) -> NDArray[np.int64]:
    values: list[int] = []
    for field, kind, start, last in _fields(view, place, end):
        if field == 1 and kind == _VARINT:
            values.append(start)
        while field == 1 and kind == _CHUNK and start < last:
            value, start = _varint(view, start)
            values.append(value)
    return np.array(values, np.uint64).astype(np.int64)


def _frames(view: memoryview, place: int, end: int) -> Frames:
    """A FeatureList; at once where all its frames begin with the same bytes at the same distance."""
    if place == end:
        return np.empty((0, 0), np.uint8)
    start, first = place, (place, end)
    for level in range(3):  # Feature, its list of strings, the string
        tag, inside = _varint(view, start)
        if tag != (1 << 3 | _CHUNK) or inside >= first[1]:
            return _frames_one_by_one(view, place, end)
        length, start = _varint(view, inside)
        if level and start + length != first[1]:
            return _frames_one_by_one(view, place, end)
        first = start, start + length
    head, stride = first[0] - place, first[1] - place
    if first[1] > end or (end - place) % stride:
        return _frames_one_by_one(view, place, end)
    rows = np.frombuffer(view[place:end], np.uint8).reshape(-1, stride)
    if not (rows[:, :head] == rows[0, :head]).all():
        return _frames_one_by_one(view, place, end)
    return rows[:, head:]


def _frames_one_by_one(view: memoryview, place: int, end: int) -> Frames:
    found = [_feature(view, start, last) for field, start, last in _chunks(view, place, end) if field == 1]
    strings = [one[0] for one in found if isinstance(one, list) and len(one) == 1]
    if len(strings) == len(found) and len({len(text) for text in strings}) == 1:
        return np.frombuffer(b"".join(strings), np.uint8).reshape(len(strings), -1)
    return found


# Writing ----------------------------------------------------------------------------------------------


def _number(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def _chunk(field: int, data: bytes) -> bytes:
    return _number(field << 3 | _CHUNK) + _number(len(data)) + data


def _packed(value: Feature | Sequence[int]) -> bytes:
    if isinstance(value, list) and all(isinstance(item, bytes) for item in value) and value:
        return _chunk(_BYTES, b"".join(_chunk(1, item) for item in value if isinstance(item, bytes)))
    numbers = np.asarray(value)
    if numbers.dtype.kind == "f" and len(numbers):
        return _chunk(_FLOATS, _chunk(1, numbers.astype("<f4").tobytes()))
    return _chunk(_INTS, _chunk(1, b"".join(map(_number, numbers.tolist()))) if len(numbers) else b"")


def _list(name: str, frames: NDArray[np.uint8]) -> bytes:
    """An entry of the feature lists; all frames begin alike."""
    text = b""
    if len(frames):
        width = frames.shape[1]
        inner = _number(1 << 3 | _CHUNK) + _number(width)
        middle = _number(1 << 3 | _CHUNK) + _number(len(inner) + width) + inner
        outer = _number(1 << 3 | _CHUNK) + _number(len(middle) + width) + middle
        head = np.broadcast_to(np.frombuffer(outer, np.uint8), (len(frames), len(outer)))
        text = np.concatenate([head, frames], axis=1).tobytes()
    return _chunk(1, _chunk(1, name.encode()) + _chunk(2, text))
