"""Packed files: the same videos and batches as from TFRecord files, and no damage unseen."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors import safe_open

from marey.data.packed import SUFFIX, Packed, PackedWriter
from marey.data.shards import list_shards, open_shards
from marey.data.tfrecord import RecordWriter
from marey.data.workers import Pool
from marey.data.youtube8m import Layout, Video, batches, read_all_means, read_videos, record
from marey.errors import DataError

FOLDER = Path(__file__).parent / "oracles" / "youtube8m"
LAYOUT = Layout(rgb=6, audio=3, num_classes=9)
COUNTS = (5, 0, 1, 7, 3)


@pytest.fixture
def both(tmp_path):
    """The same videos in a TFRecord file and a packed one."""
    rng = np.random.default_rng(0)
    frames, packed = tmp_path / "a.tfrecord", tmp_path / f"a{SUFFIX}"
    with RecordWriter(frames) as records, PackedWriter(packed, "frame", 6, 3) as writer:
        for number, count in enumerate(COUNTS):
            rows = (rng.integers(0, 256, (n, width), np.uint8) for n, width in ((count, 6), (count // 2, 3)))
            video = Video(f"vidéo-{number}", tuple(range(number)), *rows)
            records.write(record(video))
            writer.add(*video)
    return frames, packed


def read(path, layout=LAYOUT, workers=0, **options):
    shards = open_shards([path], **options)
    steps = [np.array([4, 0, 3]), np.array([1, 2]), np.array([1])]
    with Pool(workers, 60) as pool:
        return list(batches(shards, steps, layout, pool=pool))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize(
    "layout",
    [LAYOUT, Layout(rgb=6, audio=0, num_classes=9), Layout(rgb=6, audio=3, num_classes=9, max_frames=4)],
)
def test_batches_are_those_of_the_tfrecord_file(both, layout):
    frames, packed = both
    want = read(frames, layout)
    assert same(want, read(packed, layout))
    assert want[0].rgb.shape == (3, min(7, layout.max_frames), 6)
    assert same(want, read(packed, layout, workers=1))


def test_videos_are_those_of_the_tfrecord_file(both):
    for want, got in zip(*(read_videos(path, LAYOUT) for path in both), strict=True):
        assert (want.id, want.labels) == (got.id, got.labels)
        assert (want.rgb == got.rgb).all() and (want.audio == got.audio).all()
        assert want.rgb.shape == got.rgb.shape and want.audio.shape == got.audio.shape


def test_anything_that_reads_safetensors_reads_it(both):
    found = safetensors.numpy.load_file(both[1])
    assert found["rgb"].shape == (sum(COUNTS), 6)
    assert found["ends"][:, 0].tolist() == np.cumsum(COUNTS).tolist()
    assert found["ids"].tobytes().decode() == "".join(f"vidéo-{number}" for number in range(5))
    with safe_open(both[1], "pt") as file:
        assert file.get_tensor("label_ends").tolist() == [0, 1, 3, 6, 10]


def test_video_level_records_come_through(tmp_path):
    want = list(read_all_means(FOLDER / "videos.tfrecord", Layout()))
    with PackedWriter(tmp_path / f"v{SUFFIX}", "video", 1024, 128) as writer:
        for means in want:
            writer.add(means.id, means.labels, means.rgb[None], means.audio[None])
    got = list(read_all_means(tmp_path / f"v{SUFFIX}", Layout()))
    assert len(got) == len(want) == 12
    for one, other in zip(want, got, strict=True):
        assert (one.id, one.labels) == (other.id, other.labels)
        assert (one.rgb == other.rgb).all() and (one.audio == other.audio).all()
    with pytest.raises(DataError) as error:
        list(read_videos(tmp_path / f"v{SUFFIX}", Layout()))
    assert error.value.code == "RECORD_KIND"


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_damaged_video_is_left_out_and_named(both):
    _, packed = both
    want = read(packed)
    flip(packed, Packed(packed).spans[3, 0] + 11)
    told = []
    assert len(list(read_videos(packed, LAYOUT, damaged=told.append))) == 4
    assert [error.code for error in told] == ["RECORD_DAMAGED"]
    packed.rename(packed.with_name(f"b{SUFFIX}"))  # a name that no process has open
    first, *others = read(packed.with_name(f"b{SUFFIX}"))
    assert [(bad.index, bad.code) for bad in first.failures] == [(3, "RECORD_DAMAGED")]
    assert first.ids == tuple(want[0].ids[i] for i in (0, 1))
    assert torch.equal(first.rgb, want[0].rgb[:2, :5])
    assert torch.equal(first.labels, want[0].labels[:2])
    assert same(others, want[1:])


def test_damage_anywhere_is_seen(both):
    _, packed = both
    whole = packed.read_bytes()
    with safe_open(packed, "np") as file:
        table = {name: len(file.get_tensor(name).tobytes()) for name in file.keys()}  # noqa: SIM118
    start = len(whole) - sum(table.values()) + table["rgb"] + table["audio"]
    for place in (0, 9, *range(start, len(whole), 7)):
        packed.write_bytes(whole)
        flip(packed, place)
        with pytest.raises(DataError) as error:
            Packed(packed)
        assert error.value.code == "PACKED_FORMAT"
    for kept in (0, 7, 100, len(whole) - 1):
        packed.write_bytes(whole[:kept])
        with pytest.raises(DataError, match="pack it again"):
            Packed(packed)
    told = []
    assert len(open_shards([packed], damaged=told.append)) == 0
    assert [error.code for error in told] == ["PACKED_FORMAT"]
    with pytest.raises(DataError, match="missing") as error:
        Packed(packed.with_name("missing"))
    assert error.value.code == "NOT_FOUND"


def test_a_file_that_changed_is_not_read_at_old_places(both, tmp_path):
    _, packed = both
    index = tmp_path / "index.npz"
    shards = open_shards([packed], index=index)
    assert same([read(packed, index=index)[0]], [read(packed)[0]])
    with PackedWriter(tmp_path / f"c{SUFFIX}", "frame", 6, 3) as writer:
        writer.add("x", (), np.zeros((2, 6), np.uint8), np.zeros((0, 3), np.uint8))
    shards.paths = (str(tmp_path / f"c{SUFFIX}"),)
    with Pool(0, 60) as pool:
        (batch,) = batches(shards, [np.array([0, 3])], LAYOUT, pool=pool)
    assert [bad.code for bad in batch.failures] == ["RECORD_LOST", "RECORD_LOST"]
    assert batch.rgb.shape == (0, 1, 6)


def test_what_does_not_fit_the_model_is_refused(both):
    _, packed = both
    for layout, code in (
        (Layout(rgb=5, audio=3, num_classes=9), "FEATURE_WIDTH"),
        (Layout(rgb=6, audio=3, num_classes=3), "LABEL_RANGE"),
    ):
        with pytest.raises(DataError) as error:
            list(read_videos(packed, layout))
        assert error.value.code == code
    with PackedWriter(packed, "frame", 6, 0) as writer:
        writer.add("x", (), np.zeros((2, 6), np.uint8), np.zeros((0, 0), np.uint8))
    with pytest.raises(DataError) as error:
        list(read_videos(packed, LAYOUT))
    assert error.value.code == "FEATURE_MISSING"
    (video,) = read_videos(packed, Layout(rgb=6, audio=0))
    assert video.rgb.shape == (2, 6)


def test_folders_list_packed_files_and_versions_are_checked(both, tmp_path):
    frames, packed = both
    frames.unlink()
    safetensors.numpy.save_file({"mean": np.zeros(2)}, tmp_path / "projection.safetensors")
    assert list_shards(tmp_path) == [str(packed)]
    text = packed.read_bytes()
    newer = text.replace(rb"\"version\": 1", rb"\"version\": 2", 1)
    assert newer != text
    packed.write_bytes(newer)
    with pytest.raises(DataError, match="layout 2"):
        Packed(packed)
