"""The TFRecord container: read whole or at any place, checked, and written; no TensorFlow.

A file is any number of records, and nothing else (tensorflow/tensorflow, core/lib/io/record_writer.h):

    uint64 length, uint32 masked CRC-32C of these 8 bytes, payload, uint32 masked CRC-32C of the payload

all little-endian. Damage is told by file, record (from 0) and byte. A payload with a wrong checksum leaves
the records after it readable. A length with a wrong checksum, or a file that ends too early, ends the reading
after the records before it, because nothing says where the next one begins.
"""

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from marey.errors import DataError
from marey.files import cannot_write

HEAD, TAIL = struct.Struct("<QI"), struct.Struct("<I")
AROUND = HEAD.size + TAIL.size  # bytes of a record beside its payload
BLOCK = 2**20  # bytes read at once; larger ones leave the cache

Bytes = NDArray[np.uint8]
Report = Callable[[DataError], object]


class Record(NamedTuple):
    """One record of a file.

    number  its place in the file, from 0
    offset  the byte it begins at
    data    its payload, read-only
    """

    number: int
    offset: int
    data: memoryview


def masked_crc(data: bytes | Bytes) -> int:
    """The checksum that the container stores: CRC-32C, rotated and shifted."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(
    path: str | os.PathLike[str], *, verify: bool = True, damaged: Report | None = None
) -> Iterator[Record]:
    """The records of a file in their order; an empty file has none.

    verify   check the payloads' checksums too; those of the lengths always are
    damaged  called with what would be raised, to go on with the next readable record
    Raises DataError NOT_FOUND, NO_ACCESS; RECORD_DAMAGED for a payload; RECORD_LOST, after the records before
    it, where the place of the next record is not known.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        block, start, number, offset = b"", 0, 0, 0  # the block holds the bytes from `start` of the file on
        while offset < size:
            if offset + HEAD.size > start + len(block):
                block, start = _read(path, file, offset, BLOCK), offset
            head = block[offset - start : offset - start + HEAD.size]
            length, error = _length(path, number, offset, head, size)
            if error is not None:
                _report(error, damaged)
                return
            if offset + AROUND + length > start + len(block):
                block, start = _read(path, file, offset, max(AROUND + length, BLOCK)), offset
            first = offset - start + HEAD.size
            end = first + length
            error = _damage(path, number, offset, block, first, end, verify)
            if error is None:
                yield Record(number, offset, memoryview(block)[first:end])
            else:
                _report(error, damaged)
            number, offset = number + 1, offset + AROUND + length


def read_record(file: BinaryIO, path: str, number: int, offset: int, length: int) -> memoryview:
    """The payload of one record whose place `find_records` told, checked. Raises as `read_records`."""
    block = _read(path, file, offset, AROUND + length)
    there, error = _length(path, number, offset, block[: HEAD.size], offset + AROUND + length)
    if error is None and there != length:
        reason = "the file has changed; look for its records again"
        error = DataError("RECORD_LOST", f"{_where(path, number, offset)}: {reason}")
    error = error or _damage(path, number, offset, block, HEAD.size, HEAD.size + length)
    if error is not None:
        raise error
    return memoryview(block)[HEAD.size : HEAD.size + length]


def find_records(path: str | os.PathLike[str], *, damaged: Report | None = None) -> NDArray[np.int64]:
    """int64 [n, 2]: offset of each record and length of its payload; payloads are not read.

    damaged  called with what would be raised; then the records before it are given
    Raises DataError NOT_FOUND, NO_ACCESS, RECORD_LOST.
    """
    found: list[tuple[int, int]] = []
    with _opened(path) as file:
        size, offset = os.fstat(file.fileno()).st_size, 0
        while offset < size:
            head = _read(path, file, offset, HEAD.size)
            length, error = _length(path, len(found), offset, head, size)
            if error is not None:
                _report(error, damaged)
                break
            found.append((offset, length))
            offset += AROUND + length
    return np.array(found, np.int64).reshape(-1, 2)


class RecordWriter:
    """Appends records to an open file: `with replacing(path) as part, RecordWriter(part) as writer: ...`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        try:
            self._file = Path(path).open("wb")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise cannot_write(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        """Append one record. Raises EnvironmentFault DISK_FULL, NOT_WRITABLE."""
        length = struct.pack("<Q", len(data))
        try:
            self._file.write(length + TAIL.pack(masked_crc(length)))
            self._file.write(data)
            self._file.write(TAIL.pack(masked_crc(data)))
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        return open(path, "rb", buffering=0)  # noqa: PTH123 - every caller closes it
    except FileNotFoundError:
        raise DataError("NOT_FOUND", f"no file {str(path)!r}; name a TFRecord file") from None
    except OSError as error:
        raise DataError("NO_ACCESS", f"cannot read {str(path)!r}: {error.strerror}") from error


def _read(path: str | os.PathLike[str], file: BinaryIO, offset: int, count: int) -> bytes:
    try:
        file.seek(offset)
        return file.read(count)
    except OSError as error:
        raise DataError("NO_ACCESS", f"cannot read {str(path)!r}: {error.strerror}") from error


def _length(
    path: str | os.PathLike[str], number: int, offset: int, head: bytes, size: int
) -> tuple[int, DataError | None]:
    """The length of the payload, or why it is not known; more than the file has left is never believed."""
    left = size - offset
    if len(head) == HEAD.size:
        length, crc = HEAD.unpack(head)
        if masked_crc(head[:8]) == crc and AROUND + length <= left:
            return length, None
        if masked_crc(head[:8]) == crc:
            reason = f"the file ends early: {AROUND + length:,} bytes are announced, {left:,} are there"
        elif number:
            reason = "the checksum of the length is wrong"
        else:
            reason = "it is no TFRecord file" + (", it is compressed" if head[:2] == b"\x1f\x8b" else "")
    else:
        reason = f"the file ends early, {left} bytes into a record" if number else "it is no TFRecord file"
    text = f"{_where(path, number, offset)}: {reason}; nothing can be read from here on, fetch the file anew"
    return 0, DataError("RECORD_LOST", text)


def _damage(
    path: str | os.PathLike[str],
    number: int,
    offset: int,
    block: bytes,
    first: int,
    end: int,
    verify: bool = True,
) -> DataError | None:
    if end + TAIL.size > len(block):
        return DataError("RECORD_LOST", f"{_where(path, number, offset)}: the file was cut while it was read")
    data = np.frombuffer(block, np.uint8, end - first, first)
    if not verify or masked_crc(data) == TAIL.unpack_from(block, end)[0]:
        return None
    return DataError(
        "RECORD_DAMAGED", f"{_where(path, number, offset)}: the checksum of its {len(data):,} bytes is wrong"
    )


def _report(error: DataError, damaged: Report | None) -> None:
    if damaged is None:
        raise error
    damaged(error)


def _where(path: str | os.PathLike[str], number: int, offset: int) -> str:
    return f"{os.fspath(path)}: record {number} at byte {offset}"
