"""A reader for pickles that never imports or calls what they name.

A pickle is a program for a stack machine. This one runs it on plain data: names that a file mentions are
looked up in the tables below, which lead to functions of this module only, and any other name ends the
reading with that name in the message. It reads what `torch.load(weights_only=True)` refuses although it is
harmless: arrays and numbers of numpy and the logs of training tools, in both file layouts of PyTorch and as
bare pickles.

Sources: CPython Lib/pickletools.py (opcodes), pytorch torch/serialization.py (the two layouts).
"""

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from marey.errors import WeightsError

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
    dtype = np.dtype(code)
    if dtype.kind not in "biufcSU":
        raise WeightsError(
            "WEIGHTS_UNSAFE", f"an array of type {code!r} may hold any object; numbers are read only"
        )
    return dtype


def _array(
    data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any = "C"
) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, dtype).reshape(shape, order=order).copy()


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": torch.Size,
    "torch.device": lambda *args: ":".join(map(str, args)),
    "collections.OrderedDict": dict,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": dict,
    "collections.deque": lambda items=(), *_: list(items),
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.bytes": lambda *_: b"",  # protocol 2 writes empty bytes like this
    "builtins.complex": complex,
    "_codecs.encode": lambda text, _encoding: text.encode("latin1"),
    "copyreg._reconstructor": lambda *_: Record(),
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": lambda dtype, data: _array(_bytes(data), dtype, ())[()].item(),
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
MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip


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


def _bytes(data: Any) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


class Machine:
    """Reads one pickle from a stream; `storage` gives the memory that a tensor of the file lies in."""

    def __init__(self, stream: BinaryIO, storage: Callable[[Any], Tensor] | None = None) -> None:
        self.stream = stream
        self.storage = storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object that the pickle describes."""
        for count, (opcode, arg, _) in enumerate(pickletools.genops(self.stream)):
            if count > MOST_OPCODES:
                raise WeightsError("WEIGHTS_LIMIT", f"the file holds more than {MOST_OPCODES:,} instructions")
            if opcode.name == "STOP":
                break
            if opcode.name in PUSHED:
                self.stack.append(arg)
            elif opcode.name in MADE:
                self.stack.append(MADE[opcode.name]())
            elif not self._container(opcode.name) and not self._memory(opcode.name, arg):
                self._object(opcode.name, arg)
        return self.stack.pop()

    def _take(self) -> list[Any]:
        """What was pushed since the last mark."""
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def _container(self, opcode: str) -> bool:
        """Marks, tuples, lists, dicts and sets; False for other opcodes."""
        stack = self.stack
        match opcode:
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE" | "LIST" | "FROZENSET":
                stack.append({"TUPLE": tuple, "LIST": list, "FROZENSET": frozenset}[opcode](self._take()))
            case "DICT" | "SETITEMS":
                items = self._take()
                if opcode == "DICT":
                    stack.append({})
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1].update({key: value})
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = self._take()
                stack[-1].extend(items)
            case "ADDITEMS":
                items = self._take()
                stack[-1].update(items)
            case _:
                return False
        return True

    def _memory(self, opcode: str, arg: Any) -> bool:
        """The memo and the top of the stack; False for other opcodes."""
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[arg])
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self._take()
            case "DUP":
                self.stack.append(self.stack[-1])
            case _:
                return False
        return True

    def _object(self, opcode: str, arg: Any) -> None:
        """Names, calls, states and tensor memory; any other opcode is refused."""
        stack = self.stack
        match opcode:
            case "GLOBAL":
                stack.append(_name(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(f"{module}.{name}"))
            case "REDUCE" | "NEWOBJ":
                args, what = stack.pop(), stack.pop()
                stack.append(_call(what, args))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case "BINPERSID" if self.storage is not None:
                stack.append(self.storage(stack.pop()))
            case _:
                raise WeightsError(
                    "WEIGHTS_UNSAFE", f"the file uses the instruction {opcode} ({arg}); nothing of it was run"
                )


def _call(what: Any, args: tuple[Any, ...]) -> Any:
    """What the named class or function would have given, made by this module."""
    if isinstance(what, Name) and what.startswith(RECORDS):
        return Record()
    if isinstance(what, Name) and what in CALLS:
        return CALLS[what](*args)
    called = what[:80] if isinstance(what, str) else type(what).__name__
    raise WeightsError("WEIGHTS_UNSAFE", f"the file calls {called!r}; nothing of it was run")


def _build(target: Any, state: Any) -> None:
    """Give an object its state; attributes of tensors and dicts are left out."""
    if isinstance(target, Record):
        target.state = state
    elif isinstance(target, np.ndarray):
        _, shape, dtype, fortran, data = state
        array = _array(_bytes(data), dtype, shape, "F" if fortran else "C")
        plain: Any = (1, array.shape, array.dtype, False, array.tobytes())
        target.__setstate__(plain)  # in place, because the file may already have put it into containers
    elif isinstance(target, np.dtype):
        if state[1] == ">":
            raise ValueError("numbers in big-endian order")
    elif not isinstance(target, dict | Tensor):
        raise WeightsError("WEIGHTS_UNSAFE", f"the file sets the state of a {type(target).__name__}")


def read_pickle(path: Path) -> Any:
    """What a PyTorch file (zip or legacy) or a bare pickle holds: tensors, arrays, numbers, text, containers.

    Raises WeightsError: WEIGHTS_UNSAFE naming what the file asks for, WEIGHTS_DAMAGED, WEIGHTS_LIMIT.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read_zip(archive)
        with path.open("rb") as file:
            return _read_legacy(file, path.stat().st_size)
    except WeightsError as error:
        raise WeightsError(error.code, f"{str(path)!r}: {error.message}") from None
    except Exception as error:  # a damaged file can break any step
        raise WeightsError(
            "WEIGHTS_DAMAGED", f"{str(path)!r} is damaged or cut short: {error!r:.200}"
        ) from None


def _storage(pid: Any) -> tuple[torch.dtype, str, int]:
    """(dtype, key, number of elements) of a persistent id."""
    kind, name, key, _, count, *view = pid
    if kind != "storage" or any(view) or count < 0:
        raise ValueError(f"unknown tensor memory {kind!r}")
    return STORAGES[name], key, count


def _read_zip(archive: zipfile.ZipFile) -> Any:
    inner = next(n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl")
    made: dict[str, Tensor] = {}

    def storage(pid: Any) -> Tensor:
        dtype, key, count = _storage(pid)
        if key not in made:
            data = archive.read(f"{inner.removesuffix('data.pkl')}data/{key}")
            if len(data) != count * dtype.itemsize:
                raise ValueError(f"tensor memory {key} has {len(data)} bytes for {count} elements")
            made[key] = (
                torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
            )
        return made[key]

    return Machine(io.BytesIO(archive.read(inner)), storage).run()


def _read_legacy(file: BinaryIO, size: int) -> Any:
    first = Machine(file).run()
    if first != LEGACY_MAGIC:
        return first
    made: dict[str, Tensor] = {}

    def storage(pid: Any) -> Tensor:
        dtype, key, count = _storage(pid)
        if key not in made:
            if count * dtype.itemsize + sum(memory.nbytes for memory in made.values()) > size:
                raise ValueError(f"more tensor memory than the file's {size} bytes")
            made[key] = torch.empty(count, dtype=dtype)
        return made[key]

    for _ in ("protocol", "system"):
        Machine(file).run()
    found = Machine(file, storage).run()
    for key in Machine(file).run():
        memory = made[key]
        data = file.read(8 + memory.nbytes)
        if len(data) != 8 + memory.nbytes or struct.unpack_from("<q", data)[0] != memory.numel():
            raise ValueError(f"tensor memory {key} is cut short")
        if memory.numel():
            memory.copy_(torch.frombuffer(bytearray(data), dtype=memory.dtype, offset=8))
    return found
