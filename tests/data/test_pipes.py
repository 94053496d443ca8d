"""Values arrive as they were sent, whatever their size and layout."""

import threading
from multiprocessing import Pipe

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marey.data.pipes import pack, read, unpack, write
from marey.errors import MediaError


def sent(value):
    """The value after its way through a pipe."""
    here, there = Pipe()
    sender = threading.Thread(target=write, args=(here, pack(value)))
    sender.start()
    received = unpack(read(there))
    sender.join()
    return received


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 40), max_size=4),
    dtype=st.sampled_from([np.uint8, np.int64, np.float32, np.float16, np.bool_]),
    seed=st.integers(0, 99),
)
def test_arrays_and_tensors_of_any_shape_and_type_come_back_equal(shape, dtype, seed):
    array = np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
    got = sent({"array": array, "tensor": torch.from_numpy(array), "turned": array.T})
    assert got["array"].dtype == array.dtype and np.array_equal(got["array"], array)
    assert torch.equal(got["tensor"], torch.from_numpy(array))
    assert np.array_equal(got["turned"], array.T)


@pytest.mark.parametrize("size", [10, 16_383, 16_384, 3_000_000])
def test_what_arrives_is_the_receivers_own_and_writable(size):
    value = torch.zeros(size, dtype=torch.uint8)
    got = sent(value)
    got += 1
    assert got.sum() == size and value.sum() == 0


def test_a_part_of_a_tensor_travels_without_the_rest():
    part = torch.arange(1_000_000)[::1000]
    assert sum(len(bytes(piece)) for piece in pack(part)) < 20_000
    assert torch.equal(sent(part), part)


def test_errors_keep_their_code_and_notes():
    error = MediaError("NOT_MEDIA", "a.mp4 is text")
    error.add_note("Traceback ...")
    got = sent([error])[0]
    assert (type(got), got.code, got.message, got.__notes__) == (
        MediaError, "NOT_MEDIA", "a.mp4 is text", ["Traceback ..."],
    )  # fmt: skip


def test_the_end_of_the_other_side_is_an_end_of_file():
    here, there = Pipe()
    here.close()
    with pytest.raises(EOFError):
        read(there)
    here, there = Pipe()
    here.send_bytes(pack(np.zeros(100_000))[0])
    here.close()
    with pytest.raises(EOFError):
        read(there)
