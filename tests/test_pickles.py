"""The allow-list reader gives what torch's and Python's own readers give."""

import collections
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marey.errors import WeightsError
from marey.pickles import Record, read_pickle
from tests.weights.files import AsNamed, as_1x, history

TYPES = ("float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def equal(a, b):
    """Same types and values all the way down; views of one memory stay so."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


def content():
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "types": [torch.ones(3, dtype=getattr(torch, name)) for name in TYPES],
        "plain": (1, -(2**70), 2.5, True, None, "text \u00e9", b"bytes", [], {}, (), {3, 4}, frozenset({5})),
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        "size": torch.Size([2, 3]),
        "long": "x" * 70_000,
    }  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_give_what_was_saved(tmp_path, protocol, zipped):
    path = tmp_path / "file.pth"
    torch.save(content(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    got = read_pickle(path)
    assert equal(got, content())
    assert got["view"].untyped_storage().data_ptr() == got["transposed"].untyped_storage().data_ptr()


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torchs_own_safe_reader_admits_is_read_the_same(tmp_path, zipped):
    content = {"w": torch.randn(3, 4)[:, 1:], "n": 3, "o": collections.OrderedDict(a=torch.zeros(2))}
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    want = torch.load(tmp_path / "file.pth", weights_only=True)
    assert equal(read_pickle(tmp_path / "file.pth"), want)


number = st.integers(1 - 2**60, 2**60 - 1)
keys = st.text() | number | st.none() | st.binary() | st.booleans() | st.tuples(number, st.text())
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner) | st.frozensets(keys)
    ),
    max_leaves=30,
)


@settings(max_examples=60, deadline=None)
@given(value=plain, protocol=st.integers(2, 5))
def test_plain_pickles_are_read_as_python_reads_them(tmp_path_factory, value, protocol):
    path = tmp_path_factory.mktemp("pickles") / "file.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_pickle(path) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype="<i8"), np.ones((2, 3), "f4"), np.zeros((0, 2)), np.arange(6.0).reshape(2, 3).T,
     np.array(["ab", "c"]), np.array(3.5), np.array([True, False])],
    ids=lambda a: f"{a.dtype}{a.shape}",
)  # fmt: skip
def test_arrays_and_numbers_of_numpy_are_read(tmp_path, array, protocol):
    shared = {
        "array": array,
        "again": [array],
        "number": np.float32(1.5),
        "count": np.int64(7),
        "flag": np.bool_(True),
    }
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(shared, protocol))
    got = read_pickle(path)
    assert equal(got["array"], array)
    assert got["again"][0] is got["array"]
    assert (got["number"], got["count"], got["flag"]) == (1.5, 7, True)


def test_logs_of_training_tools_are_kept_as_inert_records(tmp_path):
    torch.save(as_1x({"w": torch.ones(2)}), tmp_path / "file.pth", pickle_module=AsNamed)
    got = read_pickle(tmp_path / "file.pth")
    log = got["message_hub"]["log_scalars"]["train/loss"]
    assert type(log) is Record
    assert log.state["_log_history"].tolist() == history([2.5, 1.25, 0.5])._log_history.tolist()
    assert got["message_hub"]["runtime_info"] == {"epoch": 3, "max_iters": 900, "best": 0.75}
    assert got["optimizer"]["param_groups"][0]["lr"] == 0.01


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        (b"\x80\x02cbuiltins\nlist\n)R.", "builtins.list"),
        (b"\x80\x02X\x09\x00\x00\x00os.systemX\x02\x00\x00\x00ls\x85R.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"(ios\nsystem\n.", "INST"),
        (b"\x80\x02cmmengine.x\nY\n)\x81)R.", "Record"),
        (b"\x80\x02]}b.", "list"),
        (b"\x80\x02Q.", "BINPERSID"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.", "any object"),
    ],
)
def test_instructions_beyond_data_are_refused_by_name(tmp_path, data, asked):
    (tmp_path / "file.pkl").write_bytes(data)
    with pytest.raises(WeightsError, match=asked) as error:
        read_pickle(tmp_path / "file.pkl")
    assert error.value.code == "WEIGHTS_UNSAFE"


@pytest.mark.parametrize(
    "data",
    [b"\x80\x02R.", b"\x80\x02h\x07.", b"\x80\x02u.", b"\x80\x02]}s.", b"\x80\x02", b"", b"\x80\x02\xff."],
)
def test_pickles_that_make_no_sense_are_damaged(tmp_path, data):
    (tmp_path / "file.pkl").write_bytes(data)
    with pytest.raises(WeightsError) as error:
        read_pickle(tmp_path / "file.pkl")
    assert error.value.code == "WEIGHTS_DAMAGED"
