"""Every sample is taken when and where it should be, loaded as its seed says, and counted when it cannot."""

import itertools
import json

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from marey.data import clips as loading
from marey.data.clips import (
    Failure,
    Failures,
    batch_indices,
    class_order,
    epoch_order,
    steps_per_epoch,
    train_batches,
)
from marey.data.clips import (
    test_indices as indices_to_test,
)
from marey.data.clips import (
    test_views as views_to_test,
)
from marey.data.lists import Entry, read_list
from marey.data.workers import Pool
from marey.errors import DataError, MareyError, MediaError, UsageError
from marey.video.preprocess import Preprocess, Protocol, Views
from marey.video.sampling import generator
from marey.video.synthetic import numbered, render_numbered

SMALL = Preprocess(frames=4, interval=2, short_side=None, crop=8, train_crop="center", flip=0.0)


# Arithmetic -------------------------------------------------------------------------------------------


@given(n=st.integers(0, 300), batch=st.integers(1, 9), world=st.integers(1, 5), epoch=st.integers(0, 3))
def test_an_epoch_takes_every_sample_once_and_fills_up_only_to_a_multiple_of_the_processes(
    n, batch, world, epoch
):
    order = epoch_order(n, seed=3, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n))
    steps = steps_per_epoch(n, batch, world)
    taken = [
        np.stack([batch_indices(order, step, batch, world, rank) for rank in range(world)], axis=1).ravel()
        for step in range(steps)
    ]
    together = np.concatenate([*taken, np.arange(0)])
    assert together[:n].tolist() == order.tolist()
    assert together[n:].tolist() == np.resize(order, -n % world).tolist()
    assert all(len(step) == batch * world for step in taken[:-1])


@given(n=st.integers(1, 200), batch=st.integers(1, 6), step=st.integers(0, 40))
def test_the_global_batch_does_not_depend_on_how_many_processes_share_it(n, batch, step):
    order = epoch_order(n, seed=0, epoch=0)
    alone = batch_indices(order, step, 4 * batch)
    shared = [batch_indices(order, step, 2 * batch, 2, rank) for rank in range(2)]
    assert len(shared[0]) == len(shared[1])
    assert set(alone) <= set(np.concatenate(shared)) <= set(alone) | set(order[:1])


def test_the_order_depends_on_seed_and_epoch_and_on_no_sample():
    orders = [tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert tuple(epoch_order(50, seed=1, epoch=0)) == orders[2]
    assert epoch_order(5, seed=0, epoch=0, shuffle=False).tolist() == [0, 1, 2, 3, 4]


@given(n=st.integers(0, 100), world=st.integers(1, 8))
def test_scoring_takes_every_sample_exactly_once_over_all_processes(n, world):
    parts = [indices_to_test(n, world, rank).tolist() for rank in range(world)]
    assert sorted(itertools.chain(*parts)) == list(range(n))


def test_drawing_by_class_follows_the_power_of_the_shares():
    labels = np.repeat([7, 2, 4], [8000, 1500, 500])
    for power, expected in ((1.0, [0.8, 0.15, 0.05]), (0.0, [1 / 3] * 3), (0.5, [0.894, 0.387, 0.224])):
        order = class_order(labels, power=power, seed=1, epoch=2)
        shares = [np.mean(labels[order] == label) for label in (7, 2, 4)]
        assert np.allclose(shares, np.array(expected) / sum(expected), atol=0.02)
        assert len(order) == 10_000
    within = np.bincount(order[labels[order] == 4], minlength=10_000)[9500:]
    assert within.sum() > 1200 and (within > 0).mean() > 0.85  # all samples of a class, not its first
    assert (class_order(labels, power=0.5, seed=1, epoch=2) == order).all()
    assert (class_order(labels, power=0.5, seed=1, epoch=3) != order).any()


# Loading ----------------------------------------------------------------------------------------------


class Shades:
    """A stand-in for a video: every pixel of frame i is i; 10 x 12 pixels."""

    fps, notes = 10.0, ()

    def __init__(self, length: int, notes: tuple = ()) -> None:
        self.length, self.notes, self.closed = length, notes, False
        self.timestamps = np.arange(length) / self.fps

    def __len__(self):
        return self.length

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    def frames(self, indices):
        assert not self.closed and len(indices) and max(indices) < self.length
        return torch.tensor(np.asarray(indices), dtype=torch.uint8)[:, None, None, None].expand(-1, 10, 12, 3)


class Note:
    def __init__(self, code, text):
        self.code, self.text = code, text


def shades(path: str, *, template=None) -> Shades:
    """The file's name says what it holds: `<name>_<frames>.mp4`."""
    name, length = path.rpartition("/")[2].removesuffix(".mp4").rsplit("_", 1)
    if name == "bad":
        raise MediaError("NOT_MEDIA", f"{path}: not a video")
    if name == "bug":
        raise ZeroDivisionError("in the reader")
    return Shades(int(length), (Note("MEDIA_TRUNCATED", "7 of 9 frames"),) if name == "cut" else ())


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(loading, "read_video", shades)
    with Pool(0, 1.0) as pool:
        yield pool


def listed(tmp_path, *rows: str, **options):
    (tmp_path / "list.csv").write_text("path,label,start,end,offset,total\n" + "\n".join(rows) + "\n")
    return read_list(tmp_path / "list.csv", **options)


def plain(count: int) -> list[str]:
    return [f"clip{i}_50.mp4,{i % 3},,,," for i in range(count)]


def batches(clips, pool, **options):
    preprocess = options.pop("preprocess", SMALL)
    fixed = {"batch": 4, "seed": 5, "epoch": 0, "num_classes": 3, "multi_label": False} | options
    return list(train_batches(clips, preprocess, pool=pool, **fixed))


def test_batches_hold_every_sample_of_the_epoch_with_its_label(tmp_path, here):
    clips = listed(tmp_path, *plain(10))
    found = batches(clips, here)
    assert [len(batch.frames) for batch in found] == [4, 4, 2]
    assert torch.cat([b.indices for b in found]).tolist() == epoch_order(10, seed=5, epoch=0).tolist()
    for batch in found:
        assert batch.frames.shape[1:] == (4, 8, 8, 3) and batch.frames.dtype == torch.uint8
        assert (batch.targets.dtype, batch.mirrored.dtype, batch.indices.dtype) == (
            torch.int64, torch.bool, torch.int64,
        )  # fmt: skip
        assert batch.targets.tolist() == [int(i) % 3 for i in batch.indices]
        steps = batch.frames[:, :, 0, 0, 0].int().diff(dim=1)
        assert (steps == 2).all() and not batch.failures and batch.padded == 0


def test_a_resumed_epoch_continues_with_the_same_bytes(tmp_path, here):
    clips = listed(tmp_path, *plain(11))
    whole, rest = batches(clips, here), batches(clips, here, first_step=1)
    assert len(rest) == 2
    for one, other in zip(whole[1:], rest, strict=True):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.indices, other.indices)
    other_epoch = batches(clips, here, epoch=1)
    assert not torch.equal(
        torch.cat([b.frames for b in whole]).flatten(), torch.cat([b.frames for b in other_epoch]).flatten()
    )


def test_a_samples_draws_do_not_depend_on_its_batch_or_process(tmp_path, here):
    clips = listed(tmp_path, *plain(12))
    alone = {int(i): f for b in batches(clips, here) for i, f in zip(b.indices, b.frames, strict=True)}
    shared = {
        int(i): frames
        for rank in range(2)
        for b in batches(clips, here, world=2, rank=rank, batch=3)
        for i, frames in zip(b.indices, b.frames, strict=True)
    }
    assert alone.keys() == shared.keys()
    assert all(torch.equal(alone[i], shared[i]) for i in alone)


def test_a_bad_file_is_left_out_and_named_and_a_batch_may_be_empty(tmp_path, here):
    clips = listed(tmp_path, "a_50.mp4,0,,,,", "bad_50.mp4,1,,,,", "cut_50.mp4,2,,,,", "none_0.mp4,2,,,,")
    (batch,) = batches(clips, here)
    assert batch.indices.tolist() == [0] and len(batch.frames) == 1
    assert {(f.index, f.code) for f in batch.failures} == {
        (1, "NOT_MEDIA"),
        (2, "MEDIA_TRUNCATED"),
        (3, "EMPTY"),
    }
    assert all(clips[f.index].path == f.path and f.path in f.message for f in batch.failures)
    empty = [b for b in batches(clips, here, batch=1) if b.failures]
    assert len(empty) == 3
    assert (empty[0].frames.shape, empty[0].targets.shape) == ((0, 4, 8, 8, 3), (0,))
    (several,) = batches(clips.subset([1]), here, multi_label=True)
    assert several.targets.shape == (0, 3) and several.targets.dtype == torch.float32


def test_what_is_not_the_files_fault_stops_the_training(tmp_path, here):
    with pytest.raises(MareyError, match="ZeroDivisionError: in the reader") as caught:
        batches(listed(tmp_path, "a_50.mp4,0,,,,", "bug_50.mp4,1,,,,"), here)
    assert caught.value.code == "INTERNAL"
    with pytest.raises(DataError, match=r"list\.csv:2: label 7 is outside 0 \.\. 2"):
        batches(listed(tmp_path, "a_50.mp4,7,,,,"), here)


def test_short_clips_are_filled_up_and_counted(tmp_path, here):
    clips = listed(tmp_path, "a_50.mp4,0,,,,", "b_7.mp4,1,,,,", "c_6.mp4,1,,,,", "d_1.mp4,1,,,,")
    (batch,) = batches(clips, here)
    assert batch.padded == 2  # four frames two apart span seven
    assert len(batch.frames) == 4 and not batch.failures


def test_mirrored_clips_carry_the_exchanged_label(tmp_path, here):
    mirrored = Preprocess(
        frames=2, short_side=None, crop=8, train_crop="center", flip=0.5, flip_labels=((0, 2),)
    )
    for options, read in (({}, int), ({"multi_label": True}, lambda t: int(t.nonzero()))):
        clips = listed(tmp_path, *plain(60))
        seen = set()
        for batch in batches(clips, here, preprocess=mirrored, **options):
            for index, flag, target in zip(batch.indices, batch.mirrored, batch.targets, strict=True):
                label = clips[int(index)].labels[0]
                assert read(target) == ({0: 2, 2: 0, 1: 1}[label] if flag else label)
                seen.add((label, bool(flag)))
        assert len(seen) == 6


def test_parts_in_frames_or_seconds_limit_what_is_seen(tmp_path, here):
    rows = ("a_100.mp4,0,,,40,10", "b_100.mp4,1,2.0,3.0,,", "c_100.mp4,2,9.0,,,")
    ranges = {0: (40, 49), 1: (20, 29), 2: (90, 99)}
    clips, close = listed(tmp_path, *rows), msgspec.structs.replace(SMALL, interval=1)
    low, high = dict.fromkeys(ranges, 255), dict.fromkeys(ranges, 0)
    for epoch in range(30):
        (batch,) = batches(clips, here, epoch=epoch, preprocess=close)
        for index, frames in zip(batch.indices.tolist(), batch.frames, strict=True):
            low[index], high[index] = min(low[index], int(frames.min())), max(high[index], int(frames.max()))
    assert {i: (low[i], high[i]) for i in ranges} == ranges


def test_a_part_that_the_file_does_not_have_is_named(tmp_path, here):
    clips = listed(tmp_path, "a_50.mp4,0,,,40,11", "b_50.mp4,1,9,,,")
    (batch,) = batches(clips, here)
    assert sorted((f.code, f.index) for f in batch.failures) == [("EMPTY", 1), ("MEDIA_TRUNCATED", 0)]
    assert any("has 50 frames, but the list means 40 to 50" in f.message for f in batch.failures)


def test_views_come_for_every_index_or_say_why_not(tmp_path, here):
    clips = listed(tmp_path, "a_50.mp4,0,,,,", "bad_50.mp4,1,,,,", "c_100.mp4,0,,,40,10", "d_3.mp4,0,,,,")
    protocol = Protocol(clips=2, crop=8)
    found = dict(views_to_test(clips, [3, 0, 1, 2], SMALL, protocol, pool=here))
    assert list(found) == [3, 0, 1, 2]
    assert found[1].code == "NOT_MEDIA"
    assert found[0].batch().shape == (2, 4, 8, 8, 3)
    assert found[2].frames.min() >= 40 and found[2].frames.max() <= 49
    with pytest.raises(MareyError, match="ZeroDivisionError"):
        list(views_to_test(listed(tmp_path, "bug_9.mp4,0,,,,"), [0], SMALL, protocol, pool=here))


def test_a_template_is_used_for_folders_only(tmp_path, monkeypatch):
    (tmp_path / "frames").mkdir()
    asked = []

    def spy(path, *, template):
        asked.append(template)
        return Shades(9)

    monkeypatch.setattr(loading, "read_video", spy)
    for name in ("frames", "file.mp4"):
        entry = Entry(str(tmp_path / name), (0,), template="f_{:03}.png")
        loading.train_task(loading.TrainTask(entry, 0, 0, 0, SMALL))
    assert asked == ["f_{:03}.png", None]


def test_every_copy_and_its_device_draw_from_streams_of_their_own():
    rngs = [loading.copy_rng(3, 1, 7, copy, device=d) for copy in range(3) for d in (False, True)]
    first = [rng.random() for rng in rngs]
    assert len(set(first)) == 6
    assert first[0] == generator(3, 1, 7).random(), "a lone copy draws what it always drew"


# Real files -------------------------------------------------------------------------------------------

SHOWN = Preprocess(frames=4, interval=2, short_side=None, crop=96, train_crop="center", flip=0.0)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A list of numbered videos of 30, 31, ... frames, a folder of frames, and files that are no videos."""
    folder = tmp_path_factory.mktemp("rendered")
    for i in range(6):
        render_numbered(folder / f"v{i}.mp4", frames=30 + i, size=(128, 96))
    (folder / "frames").mkdir()
    for i in range(20):
        Image.fromarray(numbered(i)).save(folder / "frames" / f"img_{i + 1:05}.png")
    (folder / "text.mp4").write_text("<html>not found</html>")
    rows = [f"v{i}.mp4,{i % 3},," for i in range(6)]
    rows += ["frames,0,5,10", "text.mp4,1,,", "missing.mp4,2,,"]
    (folder / "list.csv").write_text("path,label,offset,total\n" + "\n".join(rows) + "\n")
    return read_list(folder / "list.csv")


def test_workers_load_the_same_batches_as_one_process(rendered):
    options = {"batch": 4, "seed": 1, "epoch": 2, "num_classes": 3, "multi_label": False}
    with Pool(0, 30.0) as one, Pool(2, 30.0) as two:
        pairs = [list(train_batches(rendered, SHOWN, pool=pool, **options)) for pool in (one, two)]
    for first, second in zip(*pairs, strict=True):
        assert torch.equal(first.frames, second.frames) and first.failures == second.failures
        assert torch.equal(first.targets, second.targets) and torch.equal(first.indices, second.indices)
    failed = {f.path.rpartition("/")[2]: f.code for batch in pairs[1] for f in batch.failures}
    assert failed == {"text.mp4": "NOT_MEDIA", "missing.mp4": "NOT_FOUND"}
    assert sum(len(batch.indices) for batch in pairs[1]) == 7


def test_views_of_a_part_of_a_folder_of_frames_show_that_part_only(rendered):
    with Pool(1, 30.0) as pool:
        ((index, views),) = views_to_test(rendered, [6], SHOWN, Protocol(clips=2, crop=96), pool=pool)
    assert index == 6 and isinstance(views, Views)
    assert views.numbers.min() >= 5 and views.numbers.max() <= 14
    expected = [[5 + n for n in clip] for clip in SHOWN.pick_test(10, Protocol(clips=2, crop=96)).tolist()]
    assert views.numbers[views.index].tolist() == expected
    for frame, value in zip(views.frames, views.numbers, strict=True):
        assert np.array_equal(frame, numbered(int(value))[:, 16:112])


# Counting ---------------------------------------------------------------------------------------------


def failure(name: str) -> Failure:
    return Failure(3, name, "NOT_MEDIA", f"{name}: not a video")


def test_bad_files_are_counted_once_each_up_to_the_limit():
    tally = Failures(limit=0.01, listed=300, what="train.csv")
    assert [tally.add(failure(name)) for name in ("a", "b", "a", "c")] == [True, True, False, True]
    assert (tally.count, tally.samples, tally.share) == (3, 4, 0.01)
    with pytest.raises(
        DataError, match=r"4 of 300 files of train\.csv .*a: NOT_MEDIA; b: .*1\.00% allowed"
    ) as caught:
        tally.add(failure("d"))
    assert caught.value.code == "TOO_MANY_BAD"
    with pytest.raises(DataError):
        Failures(limit=0.0, listed=1000).add(failure("a"))
    with pytest.raises(UsageError):
        Failures(limit=2.0, listed=10)


def test_the_count_survives_being_written_down():
    tally = Failures(limit=0.5, listed=10)
    for name in ("a", "b", "a"):
        tally.add(failure(name))
    later = Failures(limit=0.5, listed=10)
    later.restore(json.loads(json.dumps(tally.plain())))
    assert (later.count, later.samples, later.files) == (tally.count, tally.samples, tally.files)
    assert not later.add(failure("a"))
