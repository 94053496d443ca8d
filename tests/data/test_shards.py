"""Shards: which records a step takes, and where they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists

from marey.data import shards as module
from marey.data.shards import list_shards, open_shards, record_order, step_records
from marey.data.tfrecord import RecordWriter
from marey.errors import DataError, UsageError


def written(path, count, text=b"x"):
    with RecordWriter(path) as writer:
        for number in range(count):
            writer.write(text * number)
    return path


@given(lists(integers(0, 9), max_size=6), integers(1, 7), integers(1, 4), integers(1, 3), integers(0, 99))
def test_every_record_is_taken_once_whatever_the_processes(counts, window, batch, world, seed):
    order = record_order(np.array(counts, np.int64), seed=seed, epoch=1, window=window)
    steps = range(-(-len(order) // (batch * world)))
    taken = [step_records(order, s, batch, world, rank) for s in steps for rank in range(world)]
    assert sorted(n for numbers in taken for n in numbers.tolist()) == list(range(sum(counts)))
    assert all(len(numbers) <= batch for numbers in taken)
    together = [n for s in steps for n in step_records(order, s, batch * world).tolist()]
    assert together == order.tolist()  # the union of a step does not depend on the processes


def test_an_epoch_has_an_order_of_its_own_and_always_the_same():
    counts = np.full(20, 50)

    def order(seed=0, epoch=0):
        return record_order(counts, seed=seed, epoch=epoch, window=4)

    assert (order() == order()).all()
    for other in (order(epoch=1), order(seed=1)):
        assert (order() != other).mean() > 0.9


def test_a_window_bounds_the_files_read_at_a_time():
    counts = np.full(20, 50)
    files = record_order(counts, seed=0, epoch=0, window=4) // 50
    parts = files.reshape(5, 200)
    assert all(len(np.unique(part)) == 4 for part in parts)
    assert all(len(np.unique(part[:40])) == 4 for part in parts)
    with pytest.raises(UsageError):
        record_order(counts, seed=0, epoch=0, window=0)


def test_numbers_run_through_all_files(tmp_path):
    paths = [written(tmp_path / f"{name}.tfrecord", count) for name, count in (("a", 3), ("b", 0), ("c", 2))]
    found = open_shards(paths)
    assert len(found) == 5
    assert found.counts.tolist() == [3, 0, 2]
    assert [(found.place(n).path[-10:], found.place(n).number) for n in range(5)] == [
        ("a.tfrecord", 0), ("a.tfrecord", 1), ("a.tfrecord", 2), ("c.tfrecord", 0), ("c.tfrecord", 1),
    ]  # fmt: skip
    assert (found.place(2).offset, found.place(2).length) == (33, 2)
    assert found.place(4).name == f"{paths[2]}#1"


def test_an_index_spares_reading_and_follows_changes(tmp_path, monkeypatch):
    one, two = written(tmp_path / "1.tfrecord", 3), written(tmp_path / "2.tfrecord", 4)
    index = tmp_path / "index.npz"
    looked = []
    find = module.find_records
    monkeypatch.setattr(module, "find_records", lambda name, **k: looked.append(name) or find(name, **k))
    before = open_shards([one, two], index=index)
    assert len(looked) == 2
    again = open_shards([two, one], index=index)
    assert len(looked) == 2
    assert again.counts.tolist() == [4, 3]
    assert again.place(5) == before.place(1)
    written(one, 5, b"yy")
    assert open_shards([one, two], index=index).counts.tolist() == [5, 4]
    assert looked[2:] == [str(one)]
    index.write_bytes(b"something else")
    assert len(open_shards([one], index=index)) == 5


def test_a_file_that_is_lost_in_part_is_told_every_time(tmp_path):
    good, bad = written(tmp_path / "1.tfrecord", 3), written(tmp_path / "2.tfrecord", 4)
    bad.write_bytes(bad.read_bytes()[:-1])
    with pytest.raises(DataError, match="record 3") as error:
        open_shards([good, bad])
    assert error.value.code == "RECORD_LOST"
    for _ in range(2):
        told = []
        found = open_shards([good, bad], index=tmp_path / "i.npz", damaged=told.append)
        assert found.counts.tolist() == [3, 3]
        assert [one.message for one in told] == [one.message for one in found.lost]
        assert len(told) == 1


def test_files_are_named_in_many_ways(tmp_path):
    for name in ("train1.tfrecord", "train0.tfrecord", "test.tfrecord", "other.bin"):
        written(tmp_path / name, 1)
    train = [str(tmp_path / "train0.tfrecord"), str(tmp_path / "train1.tfrecord")]
    assert list_shards(tmp_path / "train*.tfrecord") == train
    assert list_shards(tmp_path) == [str(tmp_path / "test.tfrecord"), *train]
    assert list_shards(train[0]) == train[:1]
    (tmp_path / "some.list").write_text(f"\ntrain1.tfrecord\n{train[0]}\n\n")
    assert list_shards(tmp_path / "some.list") == train[::-1]
    (tmp_path / "empty").mkdir()
    for source, code in ((tmp_path / "no*", "NOT_FOUND"), (tmp_path / "empty", "LIST_EMPTY")):
        with pytest.raises(DataError) as error:
            list_shards(source)
        assert error.value.code == code
    with pytest.raises(DataError, match="missing"):
        open_shards([tmp_path / "missing"])
