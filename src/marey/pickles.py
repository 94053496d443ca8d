"""A reader for pickles that never imports or calls what they name.

A pickle is a program for a stack machine. This one runs it on plain data: names that a file mentions are
looked up in the tables below, which lead to functions of this module only, and any other name ends the
reading with that name in the message. It reads tensors, arrays and numbers of numpy, and the logs of training
tools, in both file layouts of PyTorch and as bare pickles, those of Python 2 included.

`torch.load(weights_only=True)` is not used: it imports nothing either, but a few bytes keep it busy for ever
(a dict whose key is a tuple of one tuple twice, 60 deep) or make it fill all memory (`bytearray(10**12)`).
Here a key is text or a plain number, and what is made of a file is a few times as large at most.

Sources: CPython Lib/pickletools.py (opcodes), pytorch torch/serialization.py (the two layouts).
"""

import codecs
import io
import pickletools
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from marey.errors import WeightsError

Array = np.ndarray[Any, Any]
Storage = Callable[[torch.dtype, str, int], Tensor]
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first object of files written before PyTorch 1.6
MOST_OPCODES = 5_000_000  # some seconds; a file with 1,000 tensors has 50,000

STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8,
        "Byte": torch.uint8, "Bool": torch.bool,
    }.items()
}  # fmt: skip
# classes of training tools, met in logs beside the weights: kept as inert records
RECORDS = (
    "mmengine.",
    "mmcv.",
    "mmaction.",
    "fvcore.",
    "iopath.",
    "yacs.",
    "addict.",
    "argparse.Namespace",
    "pathlib.",
)


class Name(str):
    """A global that the file mentions; never resolved."""


class Record(dict[Any, Any]):
    """What stands in for an object of a class in RECORDS: its items, and its attributes as `state`."""

    state: Any = None


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if prod(size) > storage.numel():
        raise ValueError(f"a tensor of shape {tuple(size)} lies in a storage of {storage.numel()} elements")
    return torch.as_strided(storage, size, stride, offset)


def _dtype(code: str, *_: Any) -> np.dtype[Any]:
    if not isinstance(code, str):
        raise ValueError("a type of numbers without a name")
    dtype = np.dtype(code)
    if dtype.kind not in "biufcSU":
        raise WeightsError(
            "WEIGHTS_UNSAFE", f"an array of type {code!r} may hold any object; numbers are read only"
        )
    return dtype


def _array(data: bytes | str, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any = "C") -> Array:
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, np.dtype):
        raise ValueError("an array whose memory is not bytes")
    return np.frombuffer(data, dtype).reshape(shape, order=order).copy()


def _keys(items: Any) -> Any:
    """The items, each of them something that is looked up in a moment: text, bytes, a number, a few of them.

    The hash of nested tuples can take for ever, and so can a dict of large numbers that share their hash.
    """
    for item in items:
        for part in item if type(item) is tuple and len(item) < 16 else (item,):
            small = isinstance(part, int) and abs(part) < 2**60
            if not small and not isinstance(part, str | bytes | None):
                raise WeightsError(
                    "WEIGHTS_LIMIT",
                    f"a key is neither text nor a plain number but {type(part).__name__}, which can take for "
                    "ever to look up; nothing was loaded",
                )
    return items


def _dict(items: Any = ()) -> dict[Any, Any]:
    """A dict of pairs, or of a dict."""
    made: dict[Any, Any] = {}
    for key, value in items.items() if isinstance(items, dict) else items:
        made.update(zip(_keys((key,)), (value,), strict=True))
    return made


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.Size": torch.Size,
    "torch.device": lambda kind, *_: kind if isinstance(kind, str) else "",
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": _dict,
    "collections.deque": lambda items=(), *_: list(items),
    "builtins.set": lambda items=(): set(_keys(items)),
    "builtins.frozenset": lambda items=(): frozenset(_keys(items)),
    "builtins.bytes": lambda *_: b"",  # protocol 2 writes empty bytes like this
    "builtins.complex": complex,
    "_codecs.encode": lambda text, _encoding: text.encode("latin1"),
    "copyreg._reconstructor": lambda *_: Record(),
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": lambda dtype, data: _array(data, dtype, ())[()].item(),
    "numpy.core.multiarray._reconstruct": lambda *_: np.empty(0),
    "numpy.core.numeric._frombuffer": _array,
}
VALUES = {
    "numpy.ndarray",
    "builtins.object",
    "builtins.list",
    "builtins.dict",
    "builtins.int",
    "builtins.float",
}
VALUES |= {str(dtype) for dtype in STORAGES.values()} | set(STORAGES)
SPELLINGS = {"__builtin__.": "builtins.", "numpy._core.": "numpy.core.", "copy_reg.": "copyreg."}

PUSHED = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
TAKING = {"TUPLE", "LIST", "FROZENSET", "DICT", "SETITEMS", "APPENDS", "ADDITEMS", "POP_MARK"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
MADE = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}


def _name(full: str) -> Name:
    """The global as an inert name; raises WEIGHTS_UNSAFE unless it is in the tables above."""
    for old, new in SPELLINGS.items():
        full = new + full.removeprefix(old) if full.startswith(old) else full
    if full in CALLS or full in VALUES or full.startswith(RECORDS):
        return Name(full)
    raise WeightsError(
        "WEIGHTS_UNSAFE",
        f"the file asks for {full[:100]!r}, which is no tensor, array, number, text or container; nothing of "
        "it was run. If you trust its source, let the tool that wrote it save the state_dict alone",
    )


def unpickle(stream: BinaryIO, size: int, storage: Storage | None = None, most: int | None = None) -> Any:
    """The object that the next pickle of a stream describes.

    size     bytes of the file: what calls make of its content may take a few times as many
    storage  gives the memory that a tensor of the file lies in, by dtype, key and number of elements
    most     instructions it may have; None: MOST_OPCODES
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    budget = 2**26 + 8 * size
    most = MOST_OPCODES if most is None else most
    for _ in range(most):
        opcode = OPCODES[stream.read(1).decode("latin1")]
        arg: Any = None
        if opcode.name == "STRING":
            arg = _string(stream.readline())
        elif opcode.arg is not None:
            arg = opcode.arg.reader(stream)
        taken: list[Any] = []
        if opcode.name in TAKING:  # what was pushed since the last mark
            start = marks.pop()
            taken = stack[start:]
            del stack[start:]
        match opcode.name:
            case name if name in PUSHED:
                stack.append(arg)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "MARK":
                marks.append(len(stack))
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in MADE:
                stack.append(MADE[name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(taken))
            case "LIST":
                stack.append(taken)
            case "FROZENSET":
                stack.append(frozenset(_keys(taken)))
            case "DICT":
                stack.append(dict(zip(_keys(taken[::2]), taken[1::2], strict=True)))
            case "SETITEMS":
                stack[-1].update(zip(_keys(taken[::2]), taken[1::2], strict=True))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1].update(zip(_keys((key,)), (value,), strict=True))
            case "APPENDS":
                stack[-1].extend(taken)
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "ADDITEMS":
                stack[-1].update(_keys(taken))
            case "GLOBAL":
                stack.append(_name(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(".".join([module, name])))
            case "BINPERSID" if storage is not None:
                stack.append(storage(*_memory(stack.pop())))
            case "REDUCE" | "NEWOBJ":
                args, what = stack.pop(), stack.pop()
                if isinstance(what, Name) and what.startswith(RECORDS):
                    stack.append(Record())
                elif isinstance(what, Name) and what in CALLS:
                    stack.append(CALLS[what](*args))
                else:
                    called = what[:80] if isinstance(what, str) else type(what).__name__
                    raise WeightsError("WEIGHTS_UNSAFE", f"the file calls {called!r}; nothing of it was run")
                budget -= sys.getsizeof(stack[-1])
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
                budget -= sys.getsizeof(stack[-1])
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME" | "POP_MARK":
                pass
            case "STOP":
                return stack.pop()
            case name:
                raise WeightsError(
                    "WEIGHTS_UNSAFE",
                    f"the file uses the instruction {name} ({arg!s:.100}); nothing of it was run",
                )
        if budget < 0:
            raise WeightsError(
                "WEIGHTS_LIMIT", f"the file of {size:,} bytes makes many times as much of them"
            )
    raise WeightsError("WEIGHTS_LIMIT", f"the file holds more than {most:,} instructions")


def _string(line: bytes) -> str:
    """Python 2's text form of bytes, one character per byte."""
    text = line.rstrip(b"\n")
    if len(text) < 2 or text[:1] not in (b"'", b'"') or text[-1:] != text[:1]:
        raise ValueError("a text without quotes")
    return codecs.escape_decode(text[1:-1])[0].decode("latin1")


def _build(target: Any, state: Any) -> None:
    """Give an object its state; attributes of tensors and dicts are left out."""
    if isinstance(target, Record):
        target.state = state
    elif isinstance(target, np.ndarray):
        _, shape, dtype, fortran, data = state
        array = _array(data, dtype, shape, "F" if fortran else "C")
        plain: Any = (1, array.shape, array.dtype, False, array.tobytes())
        target.__setstate__(plain)  # in place, because the file may already have put it into containers
    elif isinstance(target, np.dtype):
        if state[1] == ">":
            raise ValueError("numbers in big-endian order")
    elif not isinstance(target, dict | Tensor):
        raise WeightsError("WEIGHTS_UNSAFE", f"the file sets the state of a {type(target).__name__}")


def read_pickle(path: Path, most: int | None = None, *, mapped: bool = False) -> Any:
    """What a PyTorch file (zip or legacy) or a bare pickle holds: tensors, arrays, numbers, text, containers.

    most    instructions that it may have (a second for a million or so); None: MOST_OPCODES
    mapped  tensors of PyTorch's zip files stay on disk and are read where they are used, for large files;
            writing to them does not change the file
    Raises WeightsError: WEIGHTS_UNSAFE naming what the file asks for, WEIGHTS_DAMAGED, WEIGHTS_LIMIT.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if file.peek(2)[:2] != b"PK":
                return _read_bare(file, size, most)
            pickled, storage = _open_zip(file, size, mapped)
            return unpickle(pickled, size, storage, most)
    except WeightsError as error:
        raise WeightsError(error.code, f"{str(path)!r}: {error.message}") from None
    except Exception as error:  # a damaged file can break any step
        reason = ascii(str(error) or type(error).__name__)[1:-1]
        raise WeightsError(
            "WEIGHTS_DAMAGED", f"{str(path)!r} is damaged or cut short: {reason:.200}"
        ) from None


def _open_zip(file: BinaryIO, size: int, mapped: bool) -> tuple[BinaryIO, Storage]:
    """The pickle in PyTorch's archive, and what reads its tensors' memory.

    Refuses archives that PyTorch does not write: their entries can declare far more than there is.
    """
    archive, declared, inner = zipfile.ZipFile(file), 0, ""
    for entry in archive.infolist():
        declared += entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or declared > size:
            raise WeightsError(
                "WEIGHTS_LIMIT",
                "compressed or overlapping entries, which can declare any size and which PyTorch never "
                f"writes ({entry.filename[:100]!r}: {entry.file_size:,} bytes); save it anew",
            )
        if entry.filename.startswith("/") or ".." in entry.filename.split("/"):
            raise WeightsError("WEIGHTS_UNSAFE", f"it names a file outside: {entry.filename[:100]!r}")
        if entry.filename.rpartition("/")[2] == "data.pkl":
            inner = entry.filename
    if not inner:
        raise ValueError("an archive without data.pkl")
    folder, made = inner.removesuffix("data.pkl"), dict[str, Tensor]()
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") == b"big":
        raise ValueError("numbers in big-endian order")

    memory = np.memmap(file, np.uint8, "c") if mapped else np.empty(0, np.uint8)

    def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        if key not in made:
            entry = archive.getinfo(f"{folder}data/{key}")
            if entry.file_size != count * dtype.itemsize:
                raise ValueError(f"tensor memory {key} has {entry.file_size} bytes for {count} elements")
            content: Any = bytearray(b"" if mapped else archive.read(entry))
            if mapped and entry.file_size:
                file.seek(entry.header_offset + 26)
                start = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
                content = memory[start : start + entry.file_size]
                if zlib.crc32(content) != entry.CRC:
                    raise ValueError(f"tensor memory {key} has changed")
            made[key] = (
                torch.frombuffer(content, dtype=dtype) if len(content) else torch.empty(0, dtype=dtype)
            )
        return made[key]

    return io.BytesIO(archive.read(inner)), storage


def _read_bare(file: BinaryIO, size: int, most: int | None) -> Any:
    """A pickle, or PyTorch's layout before 1.6: five of them, then the memory of the tensors."""
    first = unpickle(file, size, most=most)
    if type(first) is not int or first != LEGACY_MAGIC:
        return first
    made: dict[str, Tensor] = {}

    def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        if key not in made:
            if count * dtype.itemsize + sum(memory.nbytes for memory in made.values()) > size:
                raise ValueError(f"more tensor memory than the file's {size} bytes")
            made[key] = torch.empty(count, dtype=dtype)
        return made[key]

    for _ in ("protocol", "system"):
        unpickle(file, size)
    found = unpickle(file, size, storage, most)
    for key in unpickle(file, size):
        memory = made[key]
        data = file.read(8 + memory.nbytes)
        if len(data) != 8 + memory.nbytes or struct.unpack_from("<q", data)[0] != memory.numel():
            raise ValueError(f"tensor memory {key} is cut short")
        if memory.numel():
            memory.copy_(torch.frombuffer(bytearray(data), dtype=memory.dtype, offset=8))
    return found


def _memory(pid: Any) -> tuple[torch.dtype, str, int]:
    """(dtype, key, number of elements) of the memory that a persistent id names."""
    kind, name, key, _, count, *view = pid
    texts = isinstance(kind, str) and isinstance(name, str) and isinstance(key, str)
    if not texts or kind != "storage" or any(view) or type(count) is not int or count < 0:
        raise ValueError("unknown kind of tensor memory")
    return STORAGES[name], key, count
