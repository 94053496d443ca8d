"""A weight file becomes {name: tensor}, whatever its format and wrapping; nothing in it is run."""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from marey.errors import WeightsError
from marey.pickles import read_pickle
from marey.weights import paddle

WRAPPINGS = ("state_dict", "model_state", "model_state_dict", "model", "blobs")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
PICKLE = re.compile(rb"PK\x03\x04|\x80|[(}\]]|c[\w.]+\n")  # PyTorch's zip, pickles since Python 2
MOST_HEADER = 16 * 2**20  # bytes; the names of a thousand tensors take about 100 kB


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, on the CPU, and the metadata of a safetensors file (else empty).

    Reads safetensors, PyTorch's zip and legacy files, and bare pickles; wrappings such as `state_dict` and
    the prefix `module.` are taken off. Raises WeightsError: WEIGHTS_NOT_FOUND, WEIGHTS_FORMAT,
    WEIGHTS_UNSAFE (naming what the file asks for), WEIGHTS_DAMAGED, WEIGHTS_LIMIT.
    """
    path = Path(path)
    if path.is_dir():
        return paddle.read_folder(path), {}
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise WeightsError("WEIGHTS_NOT_FOUND", f"cannot read {str(path)!r}: {error.strerror}") from None
    if start[8:9] == b"{" and start[:1] != b"{":
        return _read_safetensors(path, int.from_bytes(start[:8], "little"))
    if start.startswith(b"\x1f\x8b"):
        return paddle.read_folder(path), {}
    if start.startswith(paddle.START):
        return paddle.read_combined(path), {}
    if not PICKLE.match(start):
        raise WeightsError(
            "WEIGHTS_FORMAT",
            f"{str(path)!r} is neither a PyTorch file nor safetensors: it begins with {start!r}; if that "
            "is text, a web page or a pointer was saved in place of the file",
        )
    return unwrap(read_pickle(path), str(path)), {}


def unwrap(found: Any, where: str) -> dict[str, Tensor]:
    """The state_dict in what a file held, without wrappings and prefixes; arrays become tensors."""
    for wrapping in WRAPPINGS * 2:
        if isinstance(found, Mapping) and isinstance(found.get(wrapping), Mapping):
            found = found[wrapping]
    tensors, largest = {}, 0
    for name, value in found.items() if isinstance(found, Mapping) else ():
        if isinstance(value, np.ndarray | np.generic | int | float):
            with contextlib.suppress(TypeError, ValueError, RuntimeError):  # text, numbers beyond 64 bits
                value = torch.as_tensor(value)
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[name] = value
            largest = max(largest, value.ndim)
    if not largest:
        raise WeightsError("WEIGHTS_FORMAT", f"{where!r} holds no state_dict, that is, no tensors by name")
    for prefix in PREFIXES:
        for name in tensors:
            if not name.startswith(prefix):
                break
        else:
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path, header: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    size = path.stat().st_size
    if header > min(MOST_HEADER, size - 8):
        raise WeightsError(
            "WEIGHTS_LIMIT", f"{str(path)!r} declares a header of {header:,} bytes and is {size:,} bytes long"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return unwrap(tensors, str(path)), dict(file.metadata() or {})
    except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return WeightsError(
        "WEIGHTS_DAMAGED", f"{str(path)!r} is damaged or cut short: {ascii(reason)[1:-1]:.200}"
    )
