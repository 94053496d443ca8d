"""Frame features against records that TensorFlow wrote and pickles of Paddle's converter."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from marey.data.examples import write_example
from marey.data.shards import open_shards
from marey.data.tfrecord import RecordWriter, read_records
from marey.data.workers import Pool
from marey.data.youtube8m import (
    Layout,
    Video,
    as_bytes,
    batches,
    collate,
    dequantise,
    paddle_videos,
    quantise,
    read_means,
    read_video,
    read_videos,
    record,
)
from marey.errors import DataError
from marey.pickles import read_pickle

FOLDER = Path(__file__).parent / "oracles" / "youtube8m"
ORACLE = json.loads((FOLDER / "records.json").read_text())
FULL, SMALL = Layout(), Layout(rgb=8, audio=4)


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def odd(number, layout=SMALL):
    name = FOLDER / "odd.tfrecord"
    data = next(one.data for one in read_records(name) if one.number == number)
    return read_video(data, layout, f"{name}#{number}")


def test_frame_level_records_are_read_as_tensorflow_reads_them():
    expected = ORACLE["files"]["frames.tfrecord"]["content"]
    found = list(read_videos(FOLDER / "frames.tfrecord", FULL))
    assert len(found) == len(expected) == 12
    for video, want in zip(found, expected, strict=True):
        assert (video.id, list(video.labels)) == (want["id"], want["labels"] or [])
        assert (len(video.rgb), len(video.audio)) == (want["rgb_frames"], want["audio_frames"])
        assert (video.rgb.shape[1], video.audio.shape[1]) == (1024, 128)
        assert (digest(video.rgb), digest(video.audio)) == (want["rgb_sha256_16"], want["audio_sha256_16"])
        total = dequantise(video.rgb).sum(dtype=np.float64)
        assert total == pytest.approx(want["dequantised_rgb_sum"], abs=1e-2)


def test_video_level_records_are_read_as_tensorflow_reads_them():
    expected = ORACLE["files"]["videos.tfrecord"]["content"]
    for (number, _, data), want in zip(read_records(FOLDER / "videos.tfrecord"), expected, strict=True):
        found = read_means(data, FULL, f"videos#{number}")
        assert (found.id, list(found.labels)) == (want["id"], want["labels"])
        assert (digest(found.rgb), digest(found.audio)) == (
            want["mean_rgb_sha256_16"],
            want["mean_audio_sha256_16"],
        )


def test_odd_records_are_read_or_refused():
    expected = ORACLE["files"]["odd.tfrecord"]["content"]
    assert len(odd(1).rgb) == len(odd(1).audio) == 300 < expected[1]["rgb_frames"]
    assert len(odd(1, Layout(rgb=8, audio=4, max_frames=400)).rgb) == 305
    assert (odd(2).rgb.shape, odd(2).audio.shape) == ((0, 8), (0, 4))
    assert (len(odd(4).rgb), len(odd(4).audio)) == (6, 5)
    assert odd(5).id == "odd.tfrecord#5"
    assert odd(8).id == "last"
    for number, layout, code, reason in (
        (3, SMALL, "FEATURE_MISSING", "no list 'audio', only rgb"),
        (6, SMALL, "FEATURE_WIDTH", "rgb frame 1 has 7 values, not 8"),
        (7, SMALL, "LABEL_RANGE", r"video 'far!' has the label 3862, outside 0..3861"),
        (7, Layout(rgb=8, audio=4, num_classes=4000), "LABEL_RANGE", "label -1"),
        (0, Layout(rgb=9, audio=4), "FEATURE_WIDTH", "frames of 9 values"),
    ):
        with pytest.raises(DataError, match=reason) as error:
            odd(number, layout)
        assert error.value.code == code
        assert f"odd.tfrecord#{number}: " in error.value.message
    mute = odd(3, Layout(rgb=8, audio=0))
    assert (mute.rgb.shape, mute.audio.shape) == ((5, 8), (0, 0))


def test_what_a_list_holds_beside_frames_is_skipped():
    lists = b"\x0a\x09\x0a\x03rgb\x12\x02\x18\x01" + b"\x0a\x0b\x0a\x05audio\x12\x02\x18\x01"
    video = read_video(b"\x12\x18" + lists, SMALL, "odd")
    assert (video.rgb.shape, video.audio.shape) == ((0, 8), (0, 4))


def test_bad_records_are_passed_on_and_left_out():
    layout, told = Layout(rgb=8, audio=4, num_classes=4000), []
    with pytest.raises(DataError):  # a label out of range is no damage
        list(read_videos(FOLDER / "odd.tfrecord", layout, damaged=told.append))
    assert [error.code for error in told] == ["FEATURE_MISSING", "FEATURE_WIDTH"]


def test_records_of_the_wrong_kind_are_named():
    frames = next(iter(read_records(FOLDER / "frames.tfrecord"))).data
    means = next(iter(read_records(FOLDER / "videos.tfrecord"))).data
    for read, data, reason in (
        (read_video, means, r"a: a video-level record \(id, labels, mean_audio, mean_rgb\)"),
        (read_means, frames, "a: a frame-level record"),
    ):
        with pytest.raises(DataError, match=reason) as error:
            read(data, FULL, "a")
        assert error.value.code == "RECORD_KIND"


def test_bytes_stand_for_what_the_official_reader_makes_of_them():
    assert dequantise(np.array([0, 255], np.uint8)).tolist() == pytest.approx([-2 + 4 / 512, 2 + 4 / 512])
    every = np.arange(256, dtype=np.uint8)
    assert (as_bytes(dequantise(every), "x") == every).all()
    assert quantise(np.array([-9.0, -2, 0, 2, 9])).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("wrong", [[0.0, 255.0], [-5.0, 1.0], [np.nan, 0.0]])
def test_features_of_another_convention_are_refused(wrong):
    data = write_example({"mean_rgb": np.float32(wrong), "mean_audio": np.float32([0])})
    with pytest.raises(DataError, match="mean_rgb: float32 values from") as error:
        read_means(data, Layout(rgb=2, audio=1), "here")
    assert error.value.code == "FEATURE_RANGE"
    with pytest.raises(DataError):
        as_bytes(np.array(wrong), "x")


@pytest.mark.parametrize("python", [2, 3])
def test_pickles_of_paddle_are_read(python):
    expected = ORACLE["pickles"]
    for name, wanted in (("shard", expected["shard"]), ("split", [expected["split"]])):
        found = list(paddle_videos(read_pickle(FOLDER / f"{name}_py{python}.pkl"), FULL, name))
        assert len(found) == len(wanted)
        for video, want in zip(found, wanted, strict=True):
            assert (video.id, list(video.labels)) == (want["video"], want["label"])
            assert len(video.rgb) == len(video.audio) == want["nframes"]
            if want["rows"] == want["nframes"]:
                assert digest(video.rgb) == want["feature_sha256_16"]
                assert digest(video.audio) == want["audio_sha256_16"]


def test_other_pickles_are_named():
    good = {"video": b"a", "label": [1], "nframes": 1, "feature": np.zeros((1, 8), np.uint8)}
    for found, code in (
        ({"weights": 1}, "RECORD_FORMAT"),
        ([3], "RECORD_FORMAT"),
        ([good], "FEATURE_MISSING"),
        ([good | {"audio": 5}], "RECORD_FORMAT"),
        ([good | {"audio": [[1], [2, 3]]}], "RECORD_FORMAT"),
        ([good | {"label": [-1]}], "LABEL_RANGE"),
    ):
        with pytest.raises(DataError, match="f#0") as error:
            list(paddle_videos(found, SMALL, "f"))
        assert error.value.code == code


def drawn(number, seed=0):
    rng = np.random.RandomState(seed + number)
    rows = [rng.randint(0, 256, (number % 5, width)).astype(np.uint8) for width in (8, 4)]
    return Video(f"v{number}", (number % 7, 9), *rows)


def test_a_video_survives_being_written():
    for number in range(6):
        video = drawn(number)
        found = read_video(record(video), SMALL, "x")
        assert (found.id, found.labels) == (video.id, video.labels)
        assert (found.rgb == video.rgb).all()
        assert (found.audio == video.audio).all()
    silent = drawn(3)._replace(audio=np.empty((0, 0), np.uint8))
    assert read_video(record(silent), Layout(rgb=8, audio=0), "x").audio.shape == (0, 0)


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        with RecordWriter(tmp_path / f"{shard}.tfrecord") as writer:
            for number in range(10 * shard, 10 * shard + 10):
                writer.write(record(drawn(number)))
    path = tmp_path / "1.tfrecord"
    data = bytearray(path.read_bytes())
    place = open_shards([path]).place(4)
    data[place.offset + 20] ^= 1
    path.write_bytes(data)
    return open_shards(sorted(tmp_path.glob("*.tfrecord")))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_what_was_asked_for_and_name_what_is_missing(shards, workers):
    steps = [np.array([29, 0, 14, 3]), np.array([], np.int64), np.array([14]), np.arange(30)]
    with Pool(workers, 60) as pool:
        first, empty, failed, every = batches(shards, steps, SMALL, pool=pool)
    assert first.numbers.tolist() == [29, 0, 3]
    assert first.ids == ("v29", "v0", "v3")
    assert first.lengths.tolist() == [[4, 4], [0, 0], [3, 3]]
    assert first.rgb.shape == (3, 4, 8)
    assert (first.rgb[2, :3].numpy() == drawn(3).rgb).all()
    assert not first.rgb[2, 3:].any()
    assert not first.audio[1].any()
    assert first.labels.shape == (3, 3862)
    assert [row.nonzero().flatten().tolist() for row in first.labels] == [[1, 9], [0, 9], [3, 9]]
    assert [(one.index, one.code) for one in first.failures] == [(14, "RECORD_DAMAGED")]
    assert first.failures[0].path.endswith("1.tfrecord#4")
    for batch in (empty, failed):
        assert len(batch.ids) == len(batch.rgb) == len(batch.labels) == 0
    assert len(failed.failures) == 1
    assert every.numbers.tolist() == [n for n in range(30) if n != 14]
    assert (every.rgb[-1].numpy() == drawn(29).rgb).all()


def test_what_is_no_damage_stops_the_reading(shards):
    with Pool(0, 60) as pool, pytest.raises(DataError) as error:
        list(batches(shards, [np.arange(4)], Layout(rgb=8, audio=4, num_classes=9), pool=pool))
    assert error.value.code == "LABEL_RANGE"


def test_a_batch_of_videos_without_frames_is_one_frame_long():
    batch = collate([drawn(0), drawn(5)], Layout(rgb=8, audio=0))
    assert batch.rgb.shape == (2, 1, 8)
    assert batch.audio.shape == (2, 1, 0)
    assert batch.lengths.dtype == torch.int64
