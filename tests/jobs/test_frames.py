"""Stored frames: the right ones, of the right size, whole or not at all, with lists that training reads."""

import json
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from marey.data.lists import read_list
from marey.errors import EnvironmentFault, UsageError
from marey.jobs import frames as job
from marey.jobs import frames_estimate
from marey.jobs.frames import estimate_frames, store_frames
from marey.jobs.frames_store import Store, smooth_resize
from marey.jobs.interrupt import Interrupted
from marey.jobs.manifest import Shard
from marey.video.reader import read_video
from marey.video.synthetic import CLASSES, moving_shape, write_video

HERE = {"workers": 0, "quiet": True}
NATIVE = Store(fps=None)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three videos of 30 frames, 48 x 40, at 12 frames per second, and their list."""
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(["jump high/a.mp4", "run/a.mp4", "run/b.mp4"]):
        shown = moving_shape(CLASSES[0], generator=np.random.default_rng(number), size=(48, 40), frames=30)
        (folder / name).parent.mkdir(exist_ok=True)
        write_video(folder / name, shown, fps=12)
    (folder / "train.txt").write_text("jump high/a.mp4 0\nrun/a.mp4 1 2\nrun/b.mp4 1\n")
    return folder


@pytest.fixture(autouse=True)
def quickly(request, monkeypatch):
    """Most tests need no good estimate."""
    if "estimate" not in request.node.name:
        monkeypatch.setattr(frames_estimate, "SAMPLED", 1)
        monkeypatch.setattr(frames_estimate, "RUN", 1)


@pytest.fixture
def own(videos, tmp_path):
    """A copy that may be broken."""
    return Path(shutil.copytree(videos, tmp_path / "own"))


def all_frames(path):
    with read_video(path) as video:
        return video.frames(range(len(video)))


def outputs(folder):
    """Name and bytes of everything but the journals."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.parent.name != "done")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


# The right frames


def test_a_png_store_holds_every_pixel_of_every_frame(videos, tmp_path):
    found = store_frames([videos / "train.txt"], tmp_path, NATIVE, **HERE)
    assert (found.done, found.failed, found.frames, found.lists) == (3, 0, 90, {"train.txt": (3, 3)})
    there = tmp_path / "imgs" / "run" / "a"
    assert sorted(p.name for p in there.iterdir())[::29] == ["img_00001.png", "img_00030.png"]
    assert torch.equal(all_frames(there), all_frames(videos / "run" / "a.mp4"))
    assert found.bytes == sum(p.stat().st_size for p in (tmp_path / "imgs").rglob("*.png"))


def test_at_a_rate_frame_k_is_what_is_shown_k_steps_after_the_first(videos, tmp_path):
    store_frames([videos / "train.txt"], tmp_path / "4", Store(fps=4.0), **HERE)
    whole = all_frames(videos / "run" / "b.mp4")
    assert torch.equal(all_frames(tmp_path / "4" / "imgs/run/b"), whole[::3]), "12 a second: every third"
    store_frames([videos / "train.txt"], tmp_path / "24", Store(fps=24.0), **HERE)
    doubled = all_frames(tmp_path / "24" / "imgs/run/b")
    assert torch.equal(doubled, whole.repeat_interleave(2, 0))


def test_times_that_are_not_regular_are_sampled_by_the_clock_and_kept(tmp_path):
    shown = moving_shape(CLASSES[1], generator=np.random.default_rng(0), size=(32, 32), frames=6)
    times = [0.0, 0.1, 0.2, 1.0, 1.6, 2.0]
    write_video(tmp_path / "v" / "x.mp4", shown, fps=10, times=times)
    (tmp_path / "list.txt").write_text("v/x.mp4 0\n")
    store_frames([tmp_path / "list.txt"], tmp_path / "out", Store(fps=2.0), **HERE)
    kept = all_frames(tmp_path / "out/imgs/v/x")
    whole = all_frames(tmp_path / "v/x.mp4")
    assert torch.equal(kept[:4], whole[[0, 2, 3, 3]]), "at 0, 0.5, 1 and 1.5 s"
    store_frames([tmp_path / "list.txt"], tmp_path / "small", Store(kind="video", fps=None), **HERE)
    with read_video(tmp_path / "small/videos/v/x.mp4") as video:
        np.testing.assert_allclose(video.timestamps, times, atol=1e-3)


def test_sizes_are_those_that_are_asked_for():
    assert Store(height=360).size((340, 256)) == (478, 360), "also enlarged, as ResKD's frames are"
    assert Store(height=360).size((256, 340)) == (271, 360)
    assert Store(short_side=256).size((1280, 720)) == (455, 256)
    assert Store(short_side=256).size((200, 100)) == (200, 100), "never enlarged"
    assert Store(kind="video", short_side=256).size((1280, 720)) == (454, 256), "even"
    assert Store(kind="video", short_side=256).size((31, 1)) == (30, 2)


def test_shrinking_averages_and_keeps_what_is_flat():
    noise = torch.randint(0, 256, (1, 64, 64, 3), generator=torch.Generator().manual_seed(0)).byte()
    assert smooth_resize(noise, (16, 16)).float().std() < 0.4 * noise.float().std(), "no aliasing"
    flat = torch.full((2, 40, 48, 3), 200, dtype=torch.uint8)
    assert smooth_resize(flat, (30, 25)).shape == (2, 25, 30, 3)
    assert (smooth_resize(flat, (30, 25)) == 200).all()


@pytest.mark.parametrize("kind", ["jpeg", "video"])
def test_lossy_stores_are_near(videos, tmp_path, kind):
    store_frames([videos / "train.txt"], tmp_path, Store(kind=kind, fps=None), **HERE)
    there = tmp_path / ("videos/run/a.mp4" if kind == "video" else "imgs/run/a")
    error = all_frames(there).float() - all_frames(videos / "run/a.mp4").float()
    assert error.abs().mean() < 3 and error.mean((0, 1, 2)).abs().max() < 2, "no colour is lost or moved"


def test_a_stored_video_can_be_entered_every_twelve_frames(videos, tmp_path):
    store_frames([videos / "train.txt"], tmp_path, Store(kind="video", fps=None), **HERE)
    with av.open(str(tmp_path / "videos/run/a.mp4")) as container:
        keys = [n for n, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    assert keys == [0, 12, 24]


def test_equal_videos_give_equal_bytes(videos, tmp_path):
    for out in ("1", "2"):
        store_frames([videos / "train.txt"], tmp_path / out, Store(kind="video"), **HERE)
    assert outputs(tmp_path / "1")["videos/run/b.mp4"] == outputs(tmp_path / "2")["videos/run/b.mp4"]


def test_only_the_part_that_a_list_means_is_stored(videos, tmp_path):
    text = "path,label,start,end\nrun/a.mp4,x,0.5,1\nrun/a.mp4,y,1,\nrun/b.mp4,y,,\n"
    (videos / "parts.csv").write_text(text)
    found = store_frames([videos / "parts.csv"], tmp_path, NATIVE, **HERE)
    whole = all_frames(videos / "run/a.mp4")
    assert torch.equal(all_frames(tmp_path / "imgs/run/a_0.5-1s"), whole[6:12])
    assert torch.equal(all_frames(tmp_path / "imgs/run/a_1-infs"), whole[12:])
    assert found.frames == 6 + 18 + 30


# Lists


@pytest.mark.parametrize("kind", ["png", "jpeg", "video"])
def test_the_list_reads_back_with_its_labels_and_names(videos, tmp_path, kind):
    (tmp_path / "names.txt").write_text("jump high\nrun\nfast\n")
    out = tmp_path / "out"
    found = store_frames(
        [videos / "train.txt"], out, Store(kind=kind), classes=tmp_path / "names.txt", **HERE
    )
    keys = dict(pair.split("=", 1) for pair in found.keys.split())
    clips = read_list(
        out / "train.txt",
        format=keys["data.format"],
        template=keys.get("data.template"),
        classes=keys["data.classes"],
        multi_label=keys["data.multi_label"] == "true",
    )
    assert [clips.labels(i) for i in range(3)] == [(0,), (1, 2), (1,)]
    assert clips.classes == ("jump high", "run", "fast")
    assert clips.written(0).startswith(("imgs/jump_high/a", "videos/jump_high/a.mp4"))
    for clip in clips:
        with read_video(clip.path, template=clip.template) as video:
            assert len(video) == 10 and clip.total in (10, None)


def test_splits_give_a_list_each_and_unlabelled_videos_none(videos, tmp_path):
    (videos / "all.csv").write_text("path,split\nrun/a.mp4,train\nrun/b.mp4,val\n")
    found = store_frames([videos / "all.csv"], tmp_path, Store(), **HERE)
    assert found.lists == {"train.txt": (1, 1), "val.txt": (1, 1)}
    assert (tmp_path / "val.txt").read_text() == "imgs/run/b 10 -1\n"
    assert read_list(tmp_path / "val.txt").labels(0) == ()


def test_videos_of_one_name_do_not_meet(own, tmp_path):
    shutil.copy(own / "run/b.mp4", own / "run/a.mkv")
    (own / "train.txt").write_text("run/a.mp4 0\nrun/a.mkv 1\n")
    store_frames([own / "train.txt"], tmp_path / "out", NATIVE, **HERE)
    first, second = (line.split()[0] for line in (tmp_path / "out/train.txt").read_text().splitlines())
    assert first == "imgs/run/a" and second.startswith("imgs/run/a-")
    assert torch.equal(all_frames(tmp_path / "out" / second), all_frames(own / "run/b.mp4"))


# What goes wrong


def test_what_cannot_be_read_is_named_counted_and_left_out(own, tmp_path, capsys):
    (own / "run/a.mp4").write_bytes(b"nothing")
    found = store_frames([own / "train.txt"], tmp_path / "out", Store(), workers=2)
    assert (found.done, found.failed, found.lists) == (2, 1, {"train.txt": (2, 3)})
    assert "run/a.mp4: NOT_MEDIA" in capsys.readouterr().err
    assert "run/a" not in (tmp_path / "out/train.txt").read_text()
    rows = [json.loads(line) for line in (tmp_path / "out/index.jsonl").open()]
    assert [row.get("code") for row in rows] == [None, "NOT_MEDIA", None]


def test_a_video_that_ends_early_fails_unless_its_part_is_wanted(own, tmp_path):
    write_video(own / "cut.mp4", np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), np.uint8), fps=12,
                container={"movflags": "+faststart"})  # fmt: skip
    data = (own / "cut.mp4").read_bytes()
    (own / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    (own / "train.txt").write_text("cut.mp4 0\n")
    found = store_frames([own / "train.txt"], tmp_path / "no", NATIVE, **HERE)
    assert (found.failed, found.lists) == (1, {"train.txt": (0, 1)})
    found = store_frames([own / "train.txt"], tmp_path / "yes", NATIVE, partial=True, **HERE)
    assert (found.done, found.noted) == (1, {"MEDIA_TRUNCATED": 1})
    assert 20 < found.frames < 60


def test_a_later_run_stores_what_is_new_changed_or_failed(own, tmp_path):
    good = (own / "run/a.mp4").read_bytes()
    (own / "run/a.mp4").write_bytes(b"nothing")
    out = tmp_path / "out"
    store_frames([own / "train.txt"], out, Store(), **HERE)
    (own / "run/a.mp4").write_bytes(good)
    shutil.copy(own / "run/a.mp4", own / "run/b.mp4")
    (out / "imgs/run/.b.123.part").mkdir()  # a killed run's
    with pytest.raises(UsageError, match="continue with --resume"):
        store_frames([own / "train.txt"], out, Store(), **HERE)
    found = store_frames([own / "train.txt"], out, Store(), resume=True, **HERE)
    assert (found.done, found.skipped, found.failed) == (2, 1, 0)
    assert torch.equal(all_frames(out / "imgs/run/b"), all_frames(own / "run/a.mp4")[::3])
    assert not list(out.rglob("*.part"))
    with pytest.raises(UsageError, match=r"store\.kind") as caught:
        store_frames([own / "train.txt"], out, Store(kind="jpeg"), resume=True, **HERE)
    assert caught.value.code == "RESUME_MISMATCH"


def test_shards_together_make_what_one_run_makes(videos, tmp_path):
    store_frames([videos / "train.txt"], tmp_path / "one", Store(), **HERE)
    for part in (1, 0):
        store_frames([videos / "train.txt"], tmp_path / "two", Store(), shard=Shard(part, 2), **HERE)
    whole, shared = outputs(tmp_path / "one"), outputs(tmp_path / "two")
    assert whole == shared


def test_a_stopped_run_keeps_what_is_finished(videos, tmp_path, monkeypatch):
    @contextmanager
    def stopped():
        event = threading.Event()
        event.set()
        yield event

    with monkeypatch.context() as patch:
        patch.setattr(job, "stop_signals", stopped)
        with pytest.raises(Interrupted, match="stopped after 1 of 3 videos"):
            store_frames([videos / "train.txt"], tmp_path, Store(), **HERE)
    assert len((tmp_path / "train.txt").read_text().splitlines()) == 1
    found = store_frames([videos / "train.txt"], tmp_path, Store(), resume=True, **HERE)
    assert (found.done, found.skipped, found.lists) == (2, 1, {"train.txt": (3, 3)})


def test_no_list_is_replaced_by_its_own_frames(own):
    with pytest.raises(UsageError, match="would be replaced"):
        store_frames([own / "train.txt"], own, Store(), **HERE)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"kind": "gif"}, "STORE_INVALID"),
        ({"fps": 0.0}, "STORE_INVALID"),
        ({"height": 100, "short_side": 100}, "STORE_INVALID"),
        ({"quality": 100}, "STORE_INVALID"),
        ({"template": "img.png"}, "TEMPLATE"),
        ({"template": "a/{:05}.png"}, "TEMPLATE"),
        ({"template": "{:05}.jpg"}, "TEMPLATE"),
        ({"template": "{}{}.png"}, "TEMPLATE"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, code):
    with pytest.raises(UsageError) as caught:
        Store(**settings)
    assert caught.value.code == code


# What it will take


def test_the_estimate_is_near_what_comes(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(frames_estimate, "usual", lambda fps: (Store(fps=fps),))
    stores = (Store(), Store(kind="jpeg", short_side=32), Store(kind="video", fps=None))
    for number, store in enumerate(stores):
        monkeypatch.setattr(frames_estimate, "RUN", 24 if store.kind == "video" else 5)
        found = estimate_frames([videos / "train.txt"], store, workers=0)
        assert (found.sampled, found.videos) == (3, 3)
        first = found.estimates[0]
        made = store_frames([videos / "train.txt"], tmp_path / str(number), store, **HERE)
        assert first.frames == made.frames
        sizes = [
            p.stat().st_size for p in tmp_path.joinpath(str(number)).rglob("*") if p.suffix == store.suffix
        ]
        block = 1 if store.kind == "video" else 4096  # pictures take whole blocks
        assert first.bytes == pytest.approx(sum(-(-size // block) * block for size in sizes), rel=0.25)
    assert found.estimates[0].levels > 0.1 and 25 < found.estimates[0].psnr < 60
    exact = next(one for one in found.estimates if one.store.startswith("png"))
    assert (exact.levels, exact.psnr) == (0, None)


def test_a_disk_that_is_too_small_is_found_before_the_work(videos, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(frames_estimate.shutil, "disk_usage", lambda _: free)
    with pytest.raises(EnvironmentFault, match=r"about .* but 10 kB are free") as caught:
        store_frames([videos / "train.txt"], tmp_path / "out", Store(), **HERE)
    assert caught.value.code == "DISK_SMALL" and caught.value.exit_code == 5
    assert not (tmp_path / "out/imgs").exists()
    assert store_frames([videos / "train.txt"], tmp_path / "out", Store(), force=True, **HERE).done == 3


def test_a_sample_that_cannot_be_read_does_not_spoil_the_estimate(own, monkeypatch):
    monkeypatch.setattr(frames_estimate, "usual", lambda fps: ())
    (own / "run/a.mp4").write_bytes(b"nothing")
    found = estimate_frames([own / "train.txt"], Store(), workers=0)
    assert (found.sampled, found.videos) == (2, 3)
    assert found.estimates[0].frames == 20
