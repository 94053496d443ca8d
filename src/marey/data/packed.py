"""Packed records: the videos of a TFRecord file as a few large tensors, which are read without being parsed.

A `.packed.safetensors` file holds, for n videos:

    rgb, audio           uint8 [rows, width], the frames of all videos; float32 for video-level records
    ends                 int64 [n, 2], rows up to the end of each video's rgb and audio
    checksums            uint32 [n, 2], CRC-32C of the bytes of a video's rgb and audio
    labels, label_ends   int64 [all labels] and [n]
    ids, id_ends         uint8 [all bytes of UTF-8] and int64 [n]

Its metadata entry `marey` is JSON: version, level ("frame" or "video"), CRC-32C of all but rgb and audio, and
what a byte stands for.
Anything that reads safetensors reads it. `marey.data.youtube8m` turns it into videos and batches.
"""

import json
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import google_crc32c
import numpy as np
import safetensors
from numpy.typing import NDArray

from marey.errors import DataError
from marey.files import cannot_write

SUFFIX = ".packed.safetensors"
KEY, VERSION = "marey", 1
ROOM = 4096  # bytes before the tensors: their table, and spaces
INDEX = ("ends", "checksums", "label_ends", "id_ends", "labels", "ids")
TYPES = {"uint8": "U8", "float32": "F32", "uint32": "U32", "int64": "I64"}

Level = Literal["frame", "video"]
Rows = NDArray[np.uint8] | NDArray[np.float32]
Ints = NDArray[np.int64]


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of these, by its name."""
    return os.fspath(path).endswith(SUFFIX)


class PackedWriter:
    """Packs videos one by one: `with PackedWriter(part, "frame", 1024, 128) as writer: ...`.

    level       "frame" (rows are uint8) or "video" (one row each, float32)
    rgb, audio  widths; audio 0: there is none

    Memory is that of the audio alone. Raises EnvironmentFault DISK_FULL, NOT_WRITABLE.
    """

    def __init__(self, path: str | os.PathLike[str], level: Level, rgb: int, audio: int) -> None:
        self.path, self.level, self.widths = path, level, (rgb, audio)
        self.dtype = np.dtype(np.uint8 if level == "frame" else np.float32)
        self._rows, self._ends, self._checksums = [0, 0], list[tuple[int, int]](), list[tuple[int, int]]()
        self._labels, self._label_ends = list[int](), list[int]()
        self._ids, self._id_ends, self._audio = bytearray(), list[int](), list[bytes]()
        try:
            self._file = Path(path).open("wb")  # noqa: SIM115 - closed by __exit__
            self._file.write(bytes(ROOM))
        except OSError as error:
            raise cannot_write(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        finally:
            self._file.close()

    def add(self, name: str, labels: tuple[int, ...], rgb: Rows, audio: Rows) -> None:
        """One video; rows [n, width] and [m, width] of the level's type, audio [m, 0] where there is none."""
        parts = [np.ascontiguousarray(rows, self.dtype).tobytes() for rows in (rgb, audio)]
        try:
            self._file.write(parts[0])
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._audio.append(parts[1])
        self._rows = [total + len(rows) for total, rows in zip(self._rows, (rgb, audio), strict=True)]
        self._ends.append((self._rows[0], self._rows[1]))
        self._checksums.append((google_crc32c.value(parts[0]), google_crc32c.value(parts[1])))
        self._labels += labels
        self._label_ends.append(len(self._labels))
        self._ids += name.encode("utf-8", "surrogateescape")
        self._id_ends.append(len(self._ids))

    def _finish(self) -> None:
        """What follows the rgb, and the table before it."""
        (rows, more), (rgb, audio) = self._rows, self.widths
        size = self.dtype.itemsize
        arrays: dict[str, NDArray[Any]] = {
            "ends": np.array(self._ends, np.int64).reshape(-1, 2),
            "checksums": np.array(self._checksums, np.uint32).reshape(-1, 2),
            "label_ends": np.array(self._label_ends, np.int64),
            "id_ends": np.array(self._id_ends, np.int64),
            "labels": np.array(self._labels, np.int64),
            "ids": np.frombuffer(bytes(self._ids), np.uint8),
        }
        for part in (*self._audio, *(array.tobytes() for array in arrays.values())):
            self._file.write(part)
        about: dict[str, Any] = {"version": VERSION, "level": self.level, "index_crc": _index_crc(arrays)}
        if self.level == "frame":
            about["value"] = "q * 4/255 - 2 + 4/512"  # of a byte q, for whoever reads it without Marey
        table: dict[str, Any] = {"__metadata__": {KEY: json.dumps(about)}}
        place = 0
        shapes: list[tuple[str, str, tuple[int, ...], int]] = [
            ("rgb", str(self.dtype), (rows, rgb), rows * rgb * size),
            ("audio", str(self.dtype), (more, audio), more * audio * size),
            *((name, str(array.dtype), array.shape, array.nbytes) for name, array in arrays.items()),
        ]
        for name, kind, shape, count in shapes:
            table[name] = {"dtype": TYPES[kind], "shape": shape, "data_offsets": (place, place + count)}
            place += count
        self._file.seek(0)
        self._file.write(struct.pack("<Q", ROOM - 8) + json.dumps(table).encode().ljust(ROOM - 8))


class Packed:
    """An open packed file; everything but the features is in memory.

    level, widths   as it was written
    ends            int64 [n + 1, 2]; a video's rows of rgb and audio are ends[i] .. ends[i + 1] - 1
    spans           int64 [n, 2]; at which byte of the file a video's rgb begins, and how many bytes it has

    Raises DataError NOT_FOUND, NO_ACCESS, PACKED_FORMAT.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            self._file: BinaryIO = open(path, "rb", buffering=0)  # noqa: PTH123, SIM115 - read as long as used
            with safetensors.safe_open(path, "np") as file:  # checks that the table fits the file
                about = json.loads((file.metadata() or {})[KEY])
                index = {name: file.get_tensor(name) for name in INDEX}
                shapes = [file.get_slice(name).get_shape() for name in ("rgb", "audio")]
                self._starts = _starts(self._file)
        except FileNotFoundError:
            raise DataError(
                "NOT_FOUND", f"no file {self.path!r}; name what `marey data pack` wrote"
            ) from None
        except OSError as error:
            raise DataError("NO_ACCESS", f"cannot read {self.path!r}: {error}") from error
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise self._wrong(f"it is cut, or nothing that `marey data pack` wrote ({error})") from None
        if about.get("version") != VERSION:
            raise self._wrong(f"layout {about.get('version')}, this marey knows {VERSION}; update marey")
        if about.get("index_crc") != _index_crc(index):
            raise self._wrong("the checksum of its index is wrong")
        self.level: Level = about["level"]
        self.widths = shapes[0][1], shapes[1][1]
        self.ends = np.concatenate([np.zeros((1, 2), np.int64), index["ends"]])
        self._size = 1 if self.level == "frame" else 4
        self._index = index
        rows = np.diff(self.ends, axis=0)
        if (rows < 0).any() or self.ends[-1].tolist() != [shape[0] for shape in shapes]:
            raise self._wrong("its videos do not add up to its rows")
        first = self._starts[0] + self.ends[:-1, 0] * self.widths[0] * self._size
        self.spans = np.stack([first, rows @ np.array(self.widths) * self._size], axis=1)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def name(self, number: int) -> str:
        """The id of a video."""
        return _part(self._index["ids"], self._index["id_ends"], number).tobytes().decode("utf-8", "replace")

    def labels(self, number: int) -> tuple[int, ...]:
        """The labels of a video, as they were."""
        return tuple(_part(self._index["labels"], self._index["label_ends"], number).tolist())

    def read(self, number: int, stream: int, out: memoryview) -> None:
        """All rows of a video's stream (0 rgb, 1 audio) into `out`, as many bytes as they are.

        Raises DataError RECORD_DAMAGED, NO_ACCESS.
        """
        row = self.widths[stream] * self._size
        try:
            self._file.seek(self._starts[stream] + int(self.ends[number, stream]) * row)
            count, done = len(out), 0
            while done < count and (some := self._file.readinto(out[done:])):  # type: ignore[attr-defined]
                done += some
        except OSError as error:
            raise DataError("NO_ACCESS", f"cannot read {self.path!r}: {error.strerror}") from error
        wanted = int(self._index["checksums"][number, stream])
        if done < count or google_crc32c.value(np.frombuffer(out, np.uint8)) != wanted:
            raise DataError(
                "RECORD_DAMAGED",
                f"{self.path}: record {number}: the checksum of its {('rgb', 'audio')[stream]}, {count:,} "
                "bytes, is wrong",
            )

    def rows(self, number: int, stream: int) -> Rows:
        """A video's stream, [rows, width]. Raises as `read`."""
        first, last = self.ends[number : number + 2, stream].tolist()
        kind = np.uint8 if self.level == "frame" else np.float32
        rows = np.empty((last - first, self.widths[stream]), kind)
        if rows.size:
            self.read(number, stream, rows.reshape(-1).view(np.uint8).data)
        return rows

    def _wrong(self, reason: str) -> DataError:
        return DataError("PACKED_FORMAT", f"{self.path}: {reason}; pack it again")


def _part(values: NDArray[Any], ends: Ints, number: int) -> NDArray[Any]:
    return values[ends[number - 1] if number else 0 : ends[number]]


def _starts(file: BinaryIO) -> tuple[int, int]:
    """Where rgb and audio begin in the file; the table is known to be sound."""
    size = struct.unpack("<Q", file.read(8))[0]
    table = json.loads(file.read(size))
    rgb, audio = (8 + size + int(table[name]["data_offsets"][0]) for name in ("rgb", "audio"))
    return rgb, audio


def _index_crc(arrays: dict[str, NDArray[Any]]) -> int:
    crc: int = google_crc32c.value(b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in INDEX))
    return crc
