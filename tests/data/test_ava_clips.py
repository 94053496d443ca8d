"""Clips around key frames are those of their time, drawn by their seed, counted where they are missing."""

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from marey.data.ava import KeyFrames, ava_set, find_media
from marey.data.ava_clips import Timeline, key_batches, key_tests, open_timeline
from marey.data.clips import test_indices as indices_to_test
from marey.data.proposals import Proposals
from marey.data.workers import Pool
from marey.errors import DataError, MediaError
from marey.metrics.ava_tables import make_rows
from marey.video.preprocess import Preprocess
from marey.video.reader import read_video
from marey.video.synthetic import number, numbered, render_numbered

GRID = KeyFrames(fps=10, start=100)  # files begin at second 100 and are 4 s long
SIZE = (96, 72)
PLAIN = Preprocess(
    frames=3, interval=4, sampling="key", short_side=72, train_short_side=(72, 90), crop=72,
    train_crop="random", flip=0.5, jitter=True,
)  # fmt: skip


def write_folder(path, frames, first=1):
    path.mkdir()
    for i in range(frames):
        Image.fromarray(numbered(i, SIZE)).save(path / f"img_{i + first:05}.png")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """The same 4 seconds as a folder at 10 frames a second, and as videos of 10, 25 and no constant rate."""
    root = tmp_path_factory.mktemp("media")
    write_folder(root / "folder", 40)
    render_numbered(root / "ten.mp4", frames=40, size=SIZE, fps=10)
    render_numbered(root / "more.mkv", frames=100, size=SIZE, fps=25)
    uneven = [i / 10 for i in range(20)] + [2 + i / 20 for i in range(40)]
    render_numbered(root / "uneven.mp4", frames=60, size=SIZE, times=uneven)
    return root


def frames_of(root, videos=("folder", "ten", "more", "uneven"), seconds=(101, 102, 103), **options):
    keys = [f"{video},{second:04d}" for video in videos for second in seconds]
    boxes = [[0.25, 0.25, 0.75, 0.75]] * len(keys)
    rows = make_rows(keys, boxes, [2] * len(keys), [7] * len(keys))
    proposals = Proposals.of({key: [[0, 0, 0.5, 1, 0.95], [0.5, 0, 1, 1, 0.4]] for key in keys})
    frames = ava_set(rows, proposals=proposals, num_classes=4, **options)
    frames.media, missing = find_media(root, videos)
    assert not missing
    return frames


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_are_those_of_their_time_whatever_the_rate(media, workers):
    frames = frames_of(media)
    shown = {}
    with Pool(workers, 60) as pool:
        for index, sample in key_tests(frames, range(len(frames)), PLAIN, GRID, pool=pool):
            shown[frames.key(index)] = [number(frame) for frame in sample.frames]
            assert sample.frames.shape == (3, 72, 96, 3) and not sample.mirrored
            assert sample.boxes.tolist() == [[24, 18, 72, 54]]
            assert sample.labels.tolist() == [[0, 0, 1, 0]]
            assert sample.proposals.tolist() == [[0, 0, 48, 72]]
            assert sample.scores.tolist() == pytest.approx([0.95])
    at_ten = {101: [6, 10, 14], 102: [16, 20, 24], 103: [26, 30, 34]}
    for second, expected in at_ten.items():
        assert shown[f"folder,{second:04d}"] == shown[f"ten,{second:04d}"] == expected
        assert shown[f"more,{second:04d}"] == [int(i * 2.5) for i in expected]
        assert shown[f"uneven,{second:04d}"] == [i if i < 20 else 20 + 2 * (i - 20) for i in expected]


def test_clips_stop_at_the_ends_and_before_the_stop(media):
    def shown(second, grid):
        frames = frames_of(media, ("ten",), (second,))
        ((_, sample),) = key_tests(frames, [0], PLAIN, grid, pool=Pool(0, 60))
        return [number(frame) for frame in sample.frames]

    assert shown(100, GRID) == [0, 0, 4]
    long = KeyFrames(fps=10, start=100, stop=103.5)
    assert shown(103, GRID) == [26, 30, 34] and shown(103, long) == [26, 30, 33]


def test_training_clips_are_seeded_and_their_boxes_move_along(media):
    frames = frames_of(media)

    def epoch(seed, number_of, workers=0, batch=5, world=1, rank=0, **options):
        with Pool(workers, 60) as pool:
            return list(
                key_batches(
                    frames, PLAIN, GRID, pool=pool, batch=batch, seed=seed, epoch=number_of, world=world,
                    rank=rank, **options,
                )
            )  # fmt: skip

    one, again, other = epoch(1, 0), epoch(1, 0, workers=2), epoch(1, 1)
    assert [b.keys for b in one] == [b.keys for b in again] != [b.keys for b in other]
    assert sorted(key for b in one for key in b.keys) == sorted(frames.key(i) for i in range(12))
    for a, b in zip(one, again, strict=True):
        assert torch.equal(a.frames, b.frames) and torch.equal(a.mirrored, b.mirrored)
        assert all(map(torch.equal, a.boxes + a.proposals, b.boxes + b.proposals))
    assert one[0].frames.shape == (5, 3, 72, 72, 3) and len(one[-1].keys) == 2
    assert len({tuple(b[0].tolist()) for batch in one for b in batch.boxes}) > 6
    assert 0 < sum(int(b.mirrored.sum()) for b in one) < 12
    resumed = epoch(1, 0, first_step=2)
    assert [b.keys for b in resumed] == [b.keys for b in one[2:]]
    assert torch.equal(resumed[0].frames, one[2].frames)
    shared = [epoch(1, 0, batch=3, world=2, rank=rank) for rank in range(2)]
    pairs = {k: f for part in shared for b in part for k, f in zip(b.keys, b.frames, strict=True)}
    alone = {k: f for b in one for k, f in zip(b.keys, b.frames, strict=True)}
    assert pairs.keys() == alone.keys() and all(torch.equal(pairs[k], alone[k]) for k in alone)


def test_a_mirror_exchanges_the_actions_that_it_should(media):
    frames = frames_of(media, ("ten",))
    always = msgspec.structs.replace(PLAIN, flip=1.0, flip_labels=((2, 3),))
    (batch,) = key_batches(frames, always, GRID, pool=Pool(0, 60), batch=3, seed=0, epoch=0)
    assert batch.mirrored.all() and [rows.tolist() for rows in batch.labels] == [[[0, 0, 0, 1]]] * 3


def test_persons_outside_the_crop_stay_or_go_as_asked(media):
    rows = make_rows(["ten,0102"] * 2, [[0, 0, 0.01, 0.01], [0.4, 0.4, 0.6, 0.6]], [1, 2], [0, 1])
    frames = ava_set(rows, num_classes=3)
    frames.media, _ = find_media(media, ["ten"])
    p = msgspec.structs.replace(PLAIN, train_short_side=None, train_crop="center", flip=0.0)

    def batch(**options):
        return next(key_batches(frames, p, GRID, pool=Pool(0, 60), batch=1, seed=0, epoch=0, **options))

    kept, dropped = batch(), batch(smallest=2)
    assert kept.boxes[0][0].tolist() == pytest.approx([0, 0, 0, 0.72]) and len(kept.labels[0]) == 2
    assert dropped.boxes[0].tolist() == kept.boxes[0][1:].tolist()
    assert dropped.labels[0].tolist() == [[0, 0, 1]] and kept.proposals[0].shape == (0, 4)


def test_what_cannot_be_loaded_is_named_and_counted(media, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "ten.mp4").symlink_to(media / "ten.mp4")
    write_folder(tmp_path / "gaps", 12)
    (tmp_path / "gaps" / "img_00004.png").unlink()
    frames = frames_of(tmp_path, ("broken", "ten", "gaps"), (101, 105))
    (batch,) = key_batches(frames, PLAIN, GRID, pool=Pool(0, 60), batch=6, seed=0, epoch=0)
    assert batch.keys == ("ten,0101",) and batch.frames.shape[0] == 1
    codes = {(frames.key(f.index), f.code) for f in batch.failures}
    assert codes == {
        ("broken,0101", "NOT_MEDIA"), ("broken,0105", "NOT_MEDIA"), ("ten,0105", "MEDIA_TRUNCATED"),
        ("gaps,0101", "FRAMES_MISSING"), ("gaps,0105", "FRAMES_MISSING"),
    }  # fmt: skip
    late = next(f for f in batch.failures if f.code == "MEDIA_TRUNCATED")
    assert "no second 105: it shows 100 to 104.00 s" in late.message
    results = dict(key_tests(frames, range(6), PLAIN, GRID, pool=Pool(0, 60)))
    assert sorted(results) == list(range(6)) and sum(isinstance(r, MediaError) for r in results.values()) == 5
    nothing = ava_set(make_rows(["x,0101"], [[0, 0, 1, 1]], [1], [0]))
    with pytest.raises(DataError) as error:
        list(key_tests(nothing, [0], PLAIN, GRID, pool=Pool(0, 60)))
    assert error.value.code == "AVA_MEDIA"


def test_every_key_frame_is_tested_once_over_all_processes(media):
    frames = frames_of(media)
    seen = [
        index
        for rank in range(3)
        for index, _ in key_tests(frames, indices_to_test(12, 3, rank), PLAIN, GRID, pool=Pool(0, 60))
    ]
    assert sorted(seen) == list(range(12))


def test_a_batch_of_nothing_has_its_shape(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    frames = frames_of(tmp_path, ("broken",), (101,))
    (batch,) = key_batches(frames, PLAIN, GRID, pool=Pool(0, 60), batch=2, seed=0, epoch=0)
    assert batch.frames.shape == (0, 3, 72, 72, 3) and batch.boxes == () and len(batch.failures) == 1


def test_a_video_is_measured_once_and_again_when_it_changes(media, tmp_path, monkeypatch):
    from marey.data import ava_clips

    opened = []
    monkeypatch.setattr(
        ava_clips, "read_video", lambda path, **o: (opened.append(path), read_video(path, **o))[1]
    )
    path = render_numbered(tmp_path / "a.mp4", frames=20, size=SIZE, fps=10)
    for _ in range(3):
        assert len(open_timeline(str(path), GRID)) == 20
    render_numbered(path, frames=30, size=SIZE, fps=10)
    assert len(open_timeline(str(path), GRID)) == 30 and len(opened) == 2


def test_time_stamps_rounded_to_milliseconds_show_their_frames(tmp_path):
    """Matroska rounds to milliseconds: frame 2 of 30 a second comes at 67 ms, after 2 / 30 s."""
    with read_video(render_numbered(tmp_path / "a.mkv", frames=90, size=SIZE, fps=30)) as video:
        shown = [number(frame) for frame in Timeline(video, 30.0).frames(np.arange(90))]
    assert shown == list(range(90))
