"""The TFRecord container against files that TensorFlow wrote, whole and damaged, and against itself."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import binary, integers, lists

from marey.data import tfrecord
from marey.data.tfrecord import RecordWriter, find_records, masked_crc, read_record, read_records
from marey.errors import DataError, EnvironmentFault

FOLDER = Path(__file__).parent / "oracles" / "youtube8m"
FILES = json.loads((FOLDER / "records.json").read_text())["files"]
WHOLE = [name for name in FILES if "records" in FILES[name]]
# record that is damaged, the byte it begins at, and how it is told
DAMAGED = {
    "bad_data_crc.tfrecord": (2, 314, "RECORD_DAMAGED", "checksum of its 178 bytes is wrong"),
    "bad_length_crc.tfrecord": (3, 508, "RECORD_LOST", "checksum of the length is wrong"),
    "truncated_payload.tfrecord": (4, 726, "RECORD_LOST", "242 bytes are announced, 22 are there"),
    "truncated_header.tfrecord": (4, 726, "RECORD_LOST", "ends early, 5 bytes into a record"),
    "huge_length.tfrecord": (1, 145, "RECORD_LOST", "1,099,511,627,792 bytes are announced, 15 are there"),
    "not_tfrecord.bin": (0, 0, "RECORD_LOST", "no TFRecord file"),
}


def written(path, payloads):
    with RecordWriter(path) as writer:
        for payload in payloads:
            writer.write(payload)
    return path


@pytest.mark.parametrize("name", WHOLE)
def test_what_tensorflow_wrote_is_read(name):
    expected = FILES[name]["records"]
    records = list(read_records(FOLDER / name))
    assert [record.offset for record in records] == [one["offset"] for one in expected]
    assert [len(record.data) for record in records] == [one["length"] for one in expected]
    assert [masked_crc(bytes(r.data)) for r in records] == [int(one["data_crc"], 16) for one in expected]
    crcs = [masked_crc(struct.pack("<Q", len(r.data))) for r in records]
    assert crcs == [int(one["length_crc"], 16) for one in expected]
    spans = [[one["offset"], one["length"]] for one in expected]
    assert find_records(FOLDER / name).tolist() == spans


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told_by_record_and_byte(name):
    number, offset, code, reason = DAMAGED[name]
    before = FILES[name]["readable_records"]
    read = []
    with pytest.raises(DataError, match=reason) as error:
        for record in read_records(FOLDER / name):
            read.append(record.number)
    assert (read, error.value.code) == (before, code)
    assert f"{FOLDER / name}: record {number} at byte {offset}: " in error.value.message

    told = []
    after = [3, 4] if code == "RECORD_DAMAGED" else []
    assert [r.number for r in read_records(FOLDER / name, damaged=told.append)] == before + after
    assert [one.message for one in told] == [error.value.message]


def test_records_are_found_up_to_where_the_file_is_lost():
    for name, (number, _, code, _) in DAMAGED.items():
        told = []
        found = find_records(FOLDER / name, damaged=told.append)
        assert len(found) == (5 if code == "RECORD_DAMAGED" else number)
        assert [one.code for one in told] == ([] if code == "RECORD_DAMAGED" else [code])


def test_an_empty_file_holds_nothing():
    assert list(read_records(FOLDER / "empty.tfrecord")) == []
    assert find_records(FOLDER / "empty.tfrecord").shape == (0, 2)


def test_a_record_is_read_at_its_place_and_checked(tmp_path):
    path = FOLDER / "bad_data_crc.tfrecord"
    spans = find_records(path).tolist()
    with path.open("rb") as file:
        payloads = [bytes(record.data) for record in read_records(FOLDER / "small.tfrecord")]
        assert bytes(read_record(file, str(path), 4, *spans[4])) == payloads[4]
        with pytest.raises(DataError, match="record 2 at byte 314") as error:
            read_record(file, str(path), 2, *spans[2])
        assert error.value.code == "RECORD_DAMAGED"
        with pytest.raises(DataError, match="has changed"):
            read_record(file, str(path), 1, spans[1][0], spans[1][1] + 2)


def test_the_payload_is_not_checked_where_that_is_asked_for():
    assert len(list(read_records(FOLDER / "bad_data_crc.tfrecord", verify=False))) == 5


@settings(deadline=None)
@given(lists(binary(max_size=60), max_size=12), integers(16, 200))
def test_what_is_written_comes_back_whatever_the_blocks(tmp_path_factory, payloads, block):
    path = written(tmp_path_factory.mktemp("w") / "a.tfrecord", payloads)
    size = tfrecord.BLOCK
    try:
        tfrecord.BLOCK = block
        assert [bytes(record.data) for record in read_records(path)] == payloads
    finally:
        tfrecord.BLOCK = size


def test_any_flipped_bit_is_noticed(tmp_path):
    path = written(tmp_path / "a.tfrecord", [b"first", b"second one", b""])
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"record [012] at byte (0|21|47)\b"):
            list(read_records(path))


def test_any_cut_is_noticed(tmp_path):
    path = written(tmp_path / "a.tfrecord", [b"first", b"second one"])
    good = path.read_bytes()
    for size in range(1, len(good)):
        path.write_bytes(good[:size])
        if size == 21:
            continue
        told = []
        assert len(list(read_records(path, damaged=told.append))) == (size > 21)
        assert [one.code for one in told] == ["RECORD_LOST"]


def test_checksums_are_those_of_the_rfc():
    """RFC 3720, B.4: 32 bytes of zeros have the CRC-32C 0x8A9136AA."""
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    assert masked_crc(np.zeros(32, np.uint8)) == masked_crc(bytes(32))


def test_files_that_cannot_be_opened_are_named(tmp_path):
    with pytest.raises(DataError, match="missing") as error:
        list(read_records(tmp_path / "missing"))
    assert error.value.code == "NOT_FOUND"
    with pytest.raises(DataError) as error:
        list(read_records(tmp_path))
    assert error.value.code == "NO_ACCESS"
    with pytest.raises(EnvironmentFault) as error:
        RecordWriter(tmp_path / "no" / "folder")
    assert error.value.code == "NOT_WRITABLE"
