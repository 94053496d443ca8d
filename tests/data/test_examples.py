"""Example messages against bytes made by hand and against everything that can be cut off or put in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import binary, integers, lists, sampled_from

from marey.data.examples import read_example, write_example
from marey.errors import DataError


def chunk(field, data, kind=2):
    return bytes([field << 3 | kind, len(data)]) + data


def feature(data):
    """An Example with one feature `x`."""
    return chunk(1, chunk(1, chunk(1, b"x") + chunk(2, data)))


def test_numbers_may_be_packed_or_not():
    packed = chunk(3, chunk(1, b"\x05\x96\x01" + b"\xff" * 9 + b"\x01"))
    single = chunk(3, b"\x08\x05\x08\x96\x01\x08" + b"\xff" * 9 + b"\x01")
    for data in (packed, single):
        value = read_example(feature(data)).features["x"]
        assert value.tolist() == [5, 150, -1]
        assert value.dtype == np.int64
    floats = np.array([1.5, -2, 0.25], "<f4").tobytes()
    single = b"".join(b"\x0d" + floats[i : i + 4] for i in (0, 4, 8))
    for data in (chunk(2, chunk(1, floats)), chunk(2, single)):
        assert read_example(feature(data)).features["x"].tolist() == [1.5, -2, 0.25]
    assert read_example(feature(chunk(1, chunk(1, b"a") + chunk(1, b"")))).features["x"] == [b"a", b""]


def test_what_is_not_known_is_skipped_and_the_last_of_a_key_counts():
    one = chunk(1, chunk(1, b"x") + chunk(9, b"?") + b"\x50\x07" + chunk(2, chunk(3, b"\x08\x01")))
    two = chunk(1, chunk(2, chunk(3, b"\x08\x02")) + chunk(1, b"x"))
    data = chunk(7, b"??") + b"\x45abcd" + b"\x49abcdefgh" + chunk(1, one + chunk(3, b"...") + two)
    assert read_example(data).features["x"].tolist() == [2]
    assert read_example(b"") == ({}, None)


def frames(*rows):
    """A SequenceExample with one list `x` of features."""
    return chunk(2, chunk(1, chunk(1, b"x") + chunk(2, b"".join(rows))))


def string(data):
    return chunk(1, chunk(1, chunk(1, data)))


def test_equal_frames_are_a_view_and_others_a_list():
    data = frames(string(b"abc"), string(b"def"))
    found = read_example(data).lists["x"]
    assert found.tolist() == [[97, 98, 99], [100, 101, 102]]
    assert not found.flags.owndata
    uneven = read_example(frames(string(b"abc"), string(b"de"), string(b"f"))).lists["x"]
    assert uneven == [[b"abc"], [b"de"], [b"f"]]
    # of the same stride, but the second frame has other prefixes
    tricky = read_example(frames(string(b"abcd"), chunk(1, chunk(1, chunk(1, b"ab") + chunk(1, b"")))))
    assert tricky.lists["x"] == [[b"abcd"], [b"ab", b""]]
    odd = chunk(1, b"\x50\x07" + chunk(1, chunk(1, b"abc")))  # an unknown field first
    assert read_example(frames(odd, string(b"def"))).lists["x"].tolist() == [[97, 98, 99], [100, 101, 102]]
    assert read_example(frames()).lists["x"].shape == (0, 0)
    numbers = chunk(1, chunk(2, chunk(1, np.float32(2.5).tobytes())))
    assert [row.tolist() for row in read_example(frames(numbers, numbers)).lists["x"]] == [[2.5], [2.5]]


@given(integers(0, 40), sampled_from([0, 1, 100, 128, 1024, 20000]), lists(integers(-(2**63), 2**63 - 1)))
@settings(deadline=None, max_examples=60)
def test_what_is_written_comes_back(count, width, labels):
    rows = np.random.RandomState(0).randint(0, 256, (count, width)).astype(np.uint8)
    data = write_example(
        {"id": [b"name"], "labels": labels, "mean": np.float32([1, 2.5])}, {"rgb": rows, "b": rows[:1]}
    )
    found = read_example(data)
    assert found.features["id"] == [b"name"]
    assert list(found.features["labels"]) == labels
    assert found.features["mean"].tolist() == [1, 2.5]
    assert found.lists["rgb"].shape == ((count, width) if count else (0, 0))
    np.testing.assert_array_equal(found.lists["rgb"].reshape(count, width), rows)


@given(binary(max_size=80))
def test_any_bytes_are_read_or_refused(data):
    try:
        read_example(data)
    except DataError as error:
        assert error.code == "RECORD_FORMAT"


@given(integers(0, 10**6))
def test_changed_bytes_are_read_or_refused(seed):
    rng = np.random.RandomState(seed)
    data = bytearray(write_example({"id": [b"ab"], "labels": [1, 2]}, {"rgb": np.zeros((3, 8), np.uint8)}))
    for place in rng.randint(0, len(data), 2):
        data[place] = rng.randint(256)
    try:
        found = read_example(data[: rng.randint(1, len(data) + 1)])
    except DataError as error:
        assert error.code == "RECORD_FORMAT"
    else:
        assert all(isinstance(name, str) for name in found.features)


def test_a_wrong_record_says_why():
    for data, reason in (
        (b"\x0a\x7f", "beyond its message"),
        (b"\x0b", "wire type, 3"),
        (b"\x02\x00", "field number of 0"),
        (b"\x08" + b"\xff" * 10, "more than 10 bytes"),
        (b"\x08\xff", "ends early"),
    ):
        with pytest.raises(DataError, match=reason):
            read_example(data)
