"""What is seen live is what the network gives for the same frames of the file, of the newest of them."""

import json
import os
import re
import signal
import threading
import time

import pytest
import torch

import marey
from marey import cli
from marey.errors import MediaError, UsageError
from marey.jobs import watch as job
from marey.jobs.predict import Scorer
from marey.jobs.watch import clip_length, watch
from marey.video.live import Newest
from marey.video.preprocess import Preprocess
from marey.video.reader import read_video
from marey.video.synthetic import render_moving_shapes, write_video
from marey.weights.native import save_checkpoint
from tests.streams import PATIENCE, streaming

CLIPS = Preprocess(frames=4, interval=4, rule="1.x", short_side=36, crop=32)
SPAN = 13  # frames of such a clip
FPS, FRAMES = 25, 50


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A film of 2 seconds, as a stream."""
    folder = tmp_path_factory.mktemp("film")
    counts = {"train": 1, "val": 0, "test": 0, "frames": FRAMES, "fps": FPS}
    render_moving_shapes(folder, **counts, size=(64, 48), classes=["move_up"])
    (path,) = folder.rglob("*.mp4")
    with read_video(path) as video:
        return write_video(folder / "film.ts", video.frames(range(FRAMES)).numpy(), fps=FPS)


def network(preprocess=CLIPS):
    torch.manual_seed(0)
    model = marey.create_model("tsm_r18", 5, width=4, segments=4)
    model.preprocess = preprocess
    return model.eval()


def wanted(film, row, preprocess=CLIPS):
    """The classes of the frames that a row says it is of."""
    scorer = Scorer(network(preprocess), "cpu", 5, windowed=True, chunk=10)
    with read_video(film) as video:
        part = range(round(row.start * FPS), round(row.end * FPS))
        return scorer(preprocess.views(video, preprocess.val, part))


@pytest.fixture
def slow(monkeypatch):
    """The reader waits after one window until the network is at work, which then waits for the last frame."""
    busy, ended, times = threading.Event(), threading.Event(), []
    add, end, score = Newest.add, Newest.end, Scorer.__call__

    def gated(self, pixels, at, arrived):
        if at > (SPAN - 0.5) / FPS:
            assert busy.wait(PATIENCE)
        add(self, pixels, at, arrived)

    def noted(self, error=None):
        end(self, error)
        ended.set()

    def held(self, views):
        busy.set()
        start = time.monotonic()
        assert ended.wait(PATIENCE)
        times.append(time.monotonic() - start)
        return score(self, views)

    monkeypatch.setattr(Newest, "add", gated)
    monkeypatch.setattr(Newest, "end", noted)
    monkeypatch.setattr(Scorer, "__call__", held)
    return times


def test_a_slow_network_is_given_the_newest_frames_and_the_others_are_counted(film, slow, monkeypatch):
    with streaming(film.read_bytes()) as address:
        first, second = watch(network(), address, device="cpu")
    assert (first.start, second.start) == pytest.approx((0, (FRAMES - SPAN) / FPS), abs=1e-4)
    assert (first.end, second.end) == pytest.approx((SPAN / FPS, FRAMES / FPS), abs=1e-4)
    assert (first.dropped, second.dropped) == (0, FRAMES - 2 * SPAN)
    assert first.latency >= slow[0]  # it waited for the whole stream meanwhile
    monkeypatch.undo()
    for row in (first, second):
        assert row.classes == wanted(film, row) and row.source == address
    assert first.classes != second.classes


@pytest.mark.parametrize(
    ("preprocess", "options", "frames"),
    [
        (CLIPS, {"span": 0.8}, 20),
        (Preprocess(frames=4, interval=4, rule="1.x", target_fps=20, short_side=36, crop=32), {}, 20),
        (Preprocess(frames=4, sampling="segments", short_side=36, crop=32), {"span": 1.0}, 25),
    ],
    ids=["span", "rate", "segments"],
)
def test_every_window_has_the_classes_of_its_frames_in_the_file(film, preprocess, options, frames):
    with streaming(film.read_bytes()) as address:
        rows = list(watch(network(preprocess), address, device="cpu", top=5, **options))
    assert rows[-1].end == pytest.approx(FRAMES / FPS, abs=1e-4)
    for row in rows:
        assert round((row.end - row.start) * FPS) == frames
        assert row.classes == wanted(film, row, preprocess)
    starts = [round(row.start * FPS) for row in rows]
    unseen = [max(b - a - frames, 0) for a, b in zip([-frames, *starts], starts, strict=False)]
    assert [row.dropped for row in rows] == unseen


def test_a_source_shorter_than_a_clip_is_one_window(film, tmp_path):
    with read_video(film) as video:
        pictures = video.frames(range(6)).numpy()
    short = write_video(tmp_path / "short.ts", pictures, fps=FPS)
    with streaming(short.read_bytes()) as address:
        (row,) = watch(network(), address, device="cpu")
    assert (row.start, row.end) == pytest.approx((0, 6 / FPS), abs=1e-4)
    assert row.classes == wanted(short, row)


def test_it_ends_after_its_time_and_when_told_to(film):
    stop, hold = threading.Event(), threading.Event()
    with streaming(film.read_bytes(), hold) as address:
        assert list(watch(network(), address, device="cpu", seconds=0.01))
    with streaming(film.read_bytes(), hold) as address:
        seen = watch(network(), address, device="cpu", stop=stop)
        next(seen)
        stop.set()
        assert list(seen) == []


def test_a_stalled_stream_is_an_error(film):
    with streaming(film.read_bytes(), threading.Event()) as address, pytest.raises(MediaError) as error:
        list(watch(network(), address, device="cpu", timeout=0.5))
    assert error.value.code == "STREAM_STALLED"


def test_what_makes_no_sense_is_refused_before_anything_is_opened():
    with pytest.raises(UsageError, match="--span") as error:
        next(watch(network(Preprocess(frames=4, sampling="segments")), "tcp://127.0.0.1:1"))
    assert error.value.code == "WINDOW_LENGTH"
    with pytest.raises(UsageError, match="every must be more than 0"):
        next(watch(network(), "tcp://127.0.0.1:1", every=0))


def test_a_clip_is_as_long_as_the_frames_that_the_network_takes():
    assert clip_length(Preprocess(frames=8, interval=8)) == (57, None)
    assert clip_length(Preprocess(frames=8, interval=8, rule="slowfast")) == (64, None)
    assert clip_length(Preprocess(frames=8, interval=4, rule="1.x", target_fps=16)) == (None, 2.0)


def run(monkeypatch, capsys, film, tmp_path, *words):
    """Exit code, lines of standard output and of standard error of the command."""
    file = tmp_path / "net.safetensors"
    save_checkpoint(file, network(), preprocess=CLIPS, class_names=tuple("abcde"), recipe={}, metrics={})
    with streaming(film.read_bytes()) as address:
        words = ["marey", "watch", address, "--checkpoint", str(file), "--device", "cpu", *words]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    shown = capsys.readouterr()
    return ended.value.code, shown.out.splitlines(), shown.err.splitlines()


def test_the_command_prints_a_line_per_window_and_a_summary(monkeypatch, capsys, film, slow, tmp_path):
    code, out, err = run(monkeypatch, capsys, film, tmp_path, "--json", "--top", "2")
    first, second = map(json.loads, out)
    assert code == 0 and (first["dropped"], second["dropped"]) == (0, 24)
    assert first["latency"] >= slow[0] > 0 and len(first["classes"]) == 2
    assert len(err) == 1 and err[0].startswith("marey: 2 windows, latency ")
    assert err[0].endswith("24 frames dropped")


def test_an_interrupted_command_has_printed_what_it_scored(monkeypatch, capsys, film, tmp_path):
    score = Scorer.__call__

    def interrupted(self, views):
        os.kill(os.getpid(), signal.SIGINT)
        return score(self, views)

    monkeypatch.setattr(job.Scorer, "__call__", interrupted)
    code, out, err = run(monkeypatch, capsys, film, tmp_path, "--top", "1")
    assert code == 130 and len(out) == 1
    assert re.fullmatch(
        r"tcp://\S+  \d\.\d-\d\.\d s  [a-e] \d+\.\d%  \(\d+\.\d\d s late, \d+ dropped\)", out[0]
    )
    assert err[0].startswith("marey: 1 windows, ")
