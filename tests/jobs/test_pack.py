"""`marey data pack`: every record once, damage named, and a killed run goes on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from marey.data.feature_card import FeatureCard, read_feature_card, write_feature_card
from marey.data.packed import SUFFIX
from marey.data.shards import list_shards
from marey.data.tfrecord import RecordWriter
from marey.data.youtube8m import Layout, Video, read_videos, record
from marey.errors import DataError, UsageError
from marey.jobs.pack import pack_shards

LAYOUT = Layout(rgb=6, audio=3, num_classes=9)
HERE = {"workers": 0, "quiet": True}
ORACLES = Path(__file__).parents[1] / "data" / "oracles" / "youtube8m"


@pytest.fixture
def frames(tmp_path):
    """Three files of four videos."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "frames"
    folder.mkdir()
    for shard in range(3):
        with RecordWriter(folder / f"train{shard}.tfrecord") as writer:
            for number in range(4):
                rows = (rng.integers(0, 256, (shard + number, width), np.uint8) for width in (6, 3))
                writer.write(record(Video(f"{shard}-{number}", (number,) * bool(shard), *rows)))
    return folder


def videos(folder):
    return [
        (video.id, video.labels, video.rgb.tolist(), video.audio.tolist())
        for path in list_shards(folder)
        for video in read_videos(path, LAYOUT)
    ]


def damage(path, place=60):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_all_records_are_packed_and_the_card_goes_along(frames, tmp_path):
    card = FeatureCard(rgb=6, audio=3, made_by={"rgb": {"model": "x"}, "audio": {}}, shards=("a", "b"))
    write_feature_card(frames, card)
    found = pack_shards(frames, tmp_path / "out", **HERE)
    assert (found.done, found.skipped, found.failed, found.records, found.left_out) == (3, 0, 0, 12, 0)
    assert found.bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob(f"*{SUFFIX}"))
    assert videos(tmp_path / "out") == videos(frames)
    packed = read_feature_card(tmp_path / "out")
    assert packed.fingerprint == card.fingerprint
    assert packed.shards == tuple(f"train{shard}{SUFFIX}" for shard in range(3))
    assert (packed.videos, packed.labelled, packed.rows, packed.longest) == (12, 8, 30, 5)


def test_a_run_goes_on_with_what_is_missing_or_changed(frames, tmp_path):
    out = tmp_path / "out"
    hidden = frames / "train1.tfrecord"
    whole = hidden.read_bytes()
    hidden.write_bytes(whole[:-3])
    first = pack_shards(frames, out, **HERE)
    assert (first.done, first.failed, first.records) == (2, 1, 8)
    assert not (out / f"train1{SUFFIX}").exists()
    hidden.write_bytes(whole)
    shutil.copy(frames / "train2.tfrecord", frames / "train0.tfrecord")
    kept = (out / f"train2{SUFFIX}").stat().st_mtime_ns
    second = pack_shards(frames, out, resume=True, **HERE)
    assert (second.done, second.skipped, second.failed, second.records) == (2, 1, 0, 12)
    assert (out / f"train2{SUFFIX}").stat().st_mtime_ns == kept
    assert videos(out) == videos(frames)
    with pytest.raises(UsageError) as error:
        pack_shards(frames, out, **HERE)
    assert error.value.code == "FOLDER_USED"
    with pytest.raises(UsageError) as error:
        pack_shards(frames, out, resume=True, skip_damaged=True, **HERE)
    assert error.value.code == "RESUME_MISMATCH"


def test_damaged_records_fail_their_file_or_are_left_out_by_name(frames, tmp_path, capsys):
    damage(frames / "train1.tfrecord")
    found = pack_shards(frames, tmp_path / "strict", workers=0)
    assert (found.done, found.failed, found.records) == (2, 1, 8)
    assert "train1.tfrecord: RECORD_DAMAGED" in capsys.readouterr().err
    found = pack_shards(frames, tmp_path / "lenient", skip_damaged=True, workers=0)
    assert (found.done, found.failed, found.records, found.left_out) == (3, 0, 11, 1)
    assert "left out: RECORD_DAMAGED" in capsys.readouterr().err
    kept = [name for name, *_ in videos(tmp_path / "lenient")]
    assert kept == [f"{s}-{n}" for s in range(3) for n in range(4) if (s, n) != (1, 0)]


def test_files_of_tensorflow_come_through(tmp_path):
    files = [ORACLES / "frames.tfrecord", ORACLES / "videos.tfrecord"]
    found = pack_shards(files, tmp_path, **HERE)
    assert (found.done, found.records) == (2, 24)
    for want, got in zip(
        read_videos(files[0], Layout()), read_videos(tmp_path / f"frames{SUFFIX}", Layout()), strict=True
    ):
        assert (want.id, want.labels) == (got.id, got.labels)
        assert (want.rgb == got.rgb).all()
        assert (want.audio == got.audio).all()


def test_sources_that_cannot_be_are_refused(frames, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(frames / "train0.tfrecord", other)
    pack_shards(other, tmp_path / "packed", **HERE)
    for sources, out in (
        (tmp_path / "packed", tmp_path / "again"),
        (frames, frames),
        ([frames, other], tmp_path / "out"),
    ):
        with pytest.raises(UsageError) as error:
            pack_shards(sources, out, **HERE)
        assert error.value.code == "PACK_SOURCE"
    write_feature_card(other, FeatureCard(rgb=6, made_by={}))
    shutil.move(other / "train0.tfrecord", other / "more.tfrecord")
    with pytest.raises(DataError) as error:
        pack_shards([frames, other], tmp_path / "out", **HERE)
    assert error.value.code == "FEATURES_MIXED"


def test_the_command_tells_what_it_did(frames, tmp_path, monkeypatch, capsys):
    from marey import cli

    def run(*words):
        monkeypatch.setattr("sys.argv", ["marey", "data", "pack", *map(str, words), "--workers", "0"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    assert run(frames, "--out", tmp_path / "out", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["folder"], shown["records"]) == (str(tmp_path / "out"), 12)
    damage(frames / "train1.tfrecord")
    assert run(frames, "--out", tmp_path / "two") == 3
    assert run(frames, "--out", tmp_path / "three", "--skip-damaged") == 3
    assert run(tmp_path / "nothing", "--out", tmp_path / "four") == 4
