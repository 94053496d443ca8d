"""Values between a process and its workers, large arrays and tensors at the speed of memory.

A message is the pickle (protocol 5), preceded by the sizes of the arrays that are not in it, and then each of
these as it lies in memory. Nothing is shared and no file descriptors are passed.
"""

import io
import os
import pickle
import struct
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from marey.errors import MareyError

Message = list[Any]  # bytes of sizes and pickle, then memoryviews or arrays of bytes
_INLINE = 16384  # bytes; smaller arrays travel inside the pickle


class _Pickler(pickle.Pickler):
    """Tensors travel as arrays; torch's own way would pass file descriptors or copy twice."""

    def reducer_override(self, item: object) -> Any:
        if isinstance(item, torch.Tensor):
            return torch.from_numpy, (item.detach().cpu().contiguous().numpy(),)
        if isinstance(item, MareyError):
            return _noted, (*item.__reduce__(), getattr(item, "__notes__", ()))
        return NotImplemented


def _noted(kind: type[MareyError], values: tuple[str, str], notes: Iterable[str]) -> MareyError:
    error = kind(*values)
    for note in notes:
        error.add_note(note)
    return error


def pack(value: object) -> Message:
    """The value as a message."""
    apart: list[memoryview] = []

    def inline(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes >= _INLINE:
            apart.append(view)
        return view.nbytes < _INLINE

    body = io.BytesIO()
    _Pickler(body, protocol=5, buffer_callback=inline).dump(value)
    sizes = struct.pack(f"<{len(apart) + 1}Q", len(apart), *(view.nbytes for view in apart))
    return [sizes + body.getvalue(), *apart]


def write(pipe: Connection, message: Message) -> None:
    """Send a message."""
    pipe.send_bytes(message[0])
    for view in message[1:]:
        _write_array(pipe, view)


def _write_array(pipe: Connection, view: memoryview) -> None:
    if sys.platform == "win32":
        pipe.send_bytes(view)
        return
    while view:
        view = view[os.write(pipe.fileno(), view) :]


def read(pipe: Connection) -> Message:
    """Receive a message. Raises EOFError or OSError when the other end is gone."""
    head = pipe.recv_bytes()
    (count,) = struct.unpack_from("<Q", head)
    buffers = [np.empty(size, np.uint8) for size in struct.unpack_from(f"<{count}Q", head, 8)]
    for buffer in buffers:
        _read_array(pipe, buffer.data)
    return [memoryview(head)[8 * (count + 1) :], *buffers]


def unpack(message: Message) -> Any:
    """The value of a message; its arrays are writable and its own."""
    # safe: the bytes come from our own process at the other end of a private pipe, never from a file
    return pickle.loads(message[0], buffers=message[1:])


def _read_array(pipe: Connection, view: memoryview) -> None:
    """Read straight into place where the system can: `recv_bytes_into` copies, at a quarter of the speed."""
    if sys.platform == "win32":
        pipe.recv_bytes_into(view)
        return
    while view:
        count = os.readv(pipe.fileno(), [view])
        if not count:
            raise EOFError
        view = view[count:]
