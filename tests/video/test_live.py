"""Live video: the frames of the file, the newest first, and nothing that was not named."""

import socket
import sys
import threading
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from marey.errors import EnvironmentFault, MediaError, UsageError
from marey.video import live
from marey.video.light import Light
from marey.video.limits import Limits
from marey.video.live import Newest, reading, reduced, shown_name
from marey.video.preprocess import Preprocess, Protocol
from marey.video.reader import read_video
from marey.video.synthetic import render_numbered
from tests.streams import PATIENCE, streaming
from tests.weights.server import serving

QUICK = Limits(seconds=0.5)
PATIENT = Limits(seconds=PATIENCE)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """40 numbered frames at 25 per second, with B-frames, by container."""
    folder = tmp_path_factory.mktemp("clips")
    encoder = {"bf": "2", "g": "10"}
    return {
        kind: render_numbered(folder / f"clip.{kind}", frames=40, size=(64, 48), encoder=encoder)
        for kind in ("ts", "mkv")
    }


def site(pages):
    """A web server with these pages, and its address."""
    return serving(lambda request: request.rest(pages[request.path]))


def last_window(source, limits=PATIENT, **length):
    """The newest window once the source has ended, or the error that it ended with."""
    newest, ended = Newest(**length), threading.Event()
    end = newest.end
    newest.end = lambda error=None: (end(error), ended.set())
    with reading(source, newest, limits=limits):
        assert ended.wait(PATIENCE)
    return newest.take()


def frame(number):
    return torch.full((2, 2, 3), number, dtype=torch.uint8)


def numbers(window):
    return [int(pixels[0, 0, 0]) for pixels in window.pixels]


@pytest.mark.parametrize("kind", ["ts", "mkv"])
def test_a_stream_gives_the_frames_and_times_of_the_file(clips, kind):
    with streaming(clips[kind].read_bytes()) as address:
        window = last_window(address, frames=40)
    with read_video(clips[kind]) as video:
        assert torch.equal(window.frames(range(40)), video.frames(range(40)))
        np.testing.assert_allclose(window.times, video.timestamps - video.timestamps[0], atol=1e-9)
        assert window.fps == pytest.approx(video.fps)
    assert (window.dropped, window.notes) == (0, ())


def test_frames_before_the_first_key_frame_are_passed_over(clips):
    data = clips["ts"].read_bytes()
    with streaming(data[: 188 * 3], data[len(data) // 2 // 188 * 188 :]) as address:
        window = last_window(address, seconds=0.2)
    with read_video(clips["ts"]) as video:
        assert torch.equal(window.frames([4]), video.frames([39]))
    assert len(window) == 5


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\n{}\n#EXT-X-ENDLIST\n"
SCRIPT = "ffconcat version 1.0\nfile {}\n"


def test_a_web_server_and_a_play_list_of_addresses_are_followed(clips):
    pages = {"/part.ts": clips["ts"].read_bytes(), "/list.m3u8": PLAYLIST.format("part.ts").encode()}
    with site(pages) as (address, _):
        for name in pages:
            assert len(last_window(address + name, frames=40)) == 40


@pytest.mark.parametrize("text", [PLAYLIST, SCRIPT], ids=["hls", "concat"])
@pytest.mark.parametrize(
    "prefix", ["file://", "file:", "crypto:", "crypto+file://", "subfile,,start,0,end,0,,:"]
)
def test_a_play_list_cannot_name_a_file(clips, text, prefix):
    pages = {"/list.m3u8": text.format(f"{prefix}{clips['ts']}").encode()}
    with site(pages) as (address, seen), pytest.raises(MediaError) as error:
        last_window(f"{address}/list.m3u8", frames=1)
    assert error.value.code in ("NOT_MEDIA", "STREAM_REFUSED", "NO_VIDEO", "NOT_DECODABLE") and seen


def test_the_newest_window_is_given_and_what_no_window_held_is_counted():
    now = SimpleNamespace(time=0.0)
    newest = Newest(frames=3, clock=lambda: now.time)
    for i in range(3):
        newest.add(frame(i), i / 10, 100 + i)
    first = newest.take()
    assert numbers(first) == [0, 1, 2] and first.dropped == 0 and first.arrived == 102
    assert first.fps == pytest.approx(10)
    for i in range(3, 10):
        newest.add(frame(i), i / 10, 100 + i)
    second = newest.take()
    assert numbers(second) == [7, 8, 9] and second.arrived == 109
    assert second.dropped == 4  # 3 to 6
    newest.add(frame(10), 1.0, 110)
    third = newest.take()
    assert numbers(third) == [8, 9, 10] and third.dropped == 0


def test_a_window_is_not_given_twice_nor_before_it_is_full_nor_before_its_time():
    now, asked = SimpleNamespace(time=50.0), []

    def soon():
        asked.append(now.time)
        return len(asked) > 1

    newest = Newest(frames=2, every=5, clock=lambda: now.time)
    newest.add(frame(0), 0.0, 50)
    assert newest.take(soon) is None
    newest.add(frame(1), 0.1, 50)
    assert numbers(newest.take()) == [0, 1]
    for i in range(2, 8):  # of these 2, 3 and 4 come before a window is due, 5 after
        newest.add(frame(i), i / 10, 50 + i)
    now.time, asked[:] = 54.9, []
    assert newest.take(soon) is None
    now.time = 58
    window = newest.take()
    assert numbers(window) == [6, 7] and window.dropped == 1
    now.time, asked[:] = 70, []
    assert newest.take(soon) is None


@pytest.mark.parametrize("rate", [10, 29.97, 25])
def test_a_window_by_time_lasts_that_long_at_any_rate(rate):
    newest = Newest(seconds=2.0)
    for i in range(100):
        newest.add(frame(i), i / rate, i)
    window = newest.take()
    assert window.times[-1] - window.times[0] < 2 <= len(window) / window.fps + 1 / rate
    assert numbers(window)[-1] == 99 and window.fps == pytest.approx(rate)


def test_the_end_gives_what_there_is_and_an_error_comes_after_full_windows_only():
    newest = Newest(frames=4)
    newest.add(frame(1), 0.0, 0.0)
    newest.end()
    assert numbers(newest.take()) == [1] and newest.take() is None
    failure = MediaError("STREAM_LOST", "gone")
    for count in (1, 2):
        newest = Newest(frames=count)
        newest.add(frame(1), 0.0, 0.0)
        newest.end(failure)
        if count == 1:
            assert numbers(newest.take()) == [1]
        with pytest.raises(MediaError, match="gone"):
            newest.take()


def test_a_window_has_a_limit_of_memory():
    newest = Newest(seconds=100, limits=Limits(bytes=50))
    with pytest.raises(MediaError) as error:
        for i in range(9):
            newest.add(frame(i), i, i)
    assert error.value.code == "LIMIT_EXCEEDED" and i == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"short_side": 36},
        {"short_side": 36, "resize": "opencv"},
        {"short_side": 36, "rule": "slowfast", "val": Protocol(crops="three", crop=36)},
        {"short_side": 46, "rule": "slowfast"},  # 61 wide, and 60 if it were resized from that again
        {"short_side": 80, "crop": 64},
        {"short_side": None},
        {"short_side": 36, "light": Light(gamma=0.5, decoded=True)},
        {"short_side": 36, "val": Protocol(lights=(Light(gain=2.0, decoded=True),))},
    ],
    ids=str,
)
def test_frames_that_are_reduced_on_arrival_give_the_same_views(clips, settings):
    preprocess = Preprocess(**{"frames": 4, "interval": 2, "crop": 32} | settings)
    with read_video(clips["mkv"]) as video:
        wanted = preprocess.views(video, preprocess.val, range(8))
        small = [reduced(video.frames([i])[0], preprocess, preprocess.val) for i in range(8)]
    newest = Newest(frames=8)
    for i, pixels in enumerate(small):
        newest.add(pixels, i / 25, i)
    assert torch.equal(preprocess.views(newest.take(), preprocess.val).batch(), wanted.batch())
    if preprocess.short_side == 36 and not (preprocess.light or preprocess.val.lights):
        assert small[0].shape == (36, 48, 3)


def test_times_go_on_where_the_clock_of_a_stream_jumps_or_is_silent():
    newest = Newest(frames=1)
    times = live._Times(newest, QUICK)
    shown = [(9.0, 0), (9.1, 1), (3.0, 1.3), (3.1, 2), (None, 2.2), (5.0, 2.5), (95442.0, 3.0), (95442.2, 4)]
    found = [times(SimpleNamespace(time=moment), arrived) for moment, arrived in shown]
    np.testing.assert_allclose(found, [0, 0.1, 0.4, 0.5, 0.7, 1.0, 1.5, 1.7])
    newest.add(frame(0), 0.0, 0.0)
    assert newest.take().notes == (
        "TIMESTAMPS_REPAIRED: 4 frames have the time of their arrival, not the stream's",
    )


def test_a_stream_that_stalls_ends_with_an_error(clips):
    for before in ((), (clips["ts"].read_bytes(),)):
        with streaming(*before, threading.Event()) as address, pytest.raises(MediaError) as error:
            last_window(address, QUICK, frames=99)
        assert error.value.code == "STREAM_STALLED" and "0.5 seconds" in error.value.message


def test_a_page_that_is_not_there_and_a_stream_that_breaks_off_are_told(clips):
    data = clips["ts"].read_bytes()

    def script(request):
        request.head(404 if request.path == "/none" else 200, Content_Length=2 * len(data))
        request.body(data)

    with serving(script) as (address, _):
        for name, code, words in (("/none", "STREAM_REFUSED", "404"), ("/half", "STREAM_LOST", "breaks off")):
            with pytest.raises(MediaError, match=words) as error:
                last_window(address + name, frames=99)
            assert error.value.code == code


def test_streams_that_begin_anew_go_on_and_say_so(clips):
    with streaming(*[clips["ts"].read_bytes()] * 3) as address:
        window = last_window(address, frames=120)
    assert len(window) == 120 and (np.diff(window.times) > 0).all()
    assert [note.partition(":")[0] for note in window.notes] == ["TIMESTAMPS_REPAIRED"]


def sound(path):
    """A transport stream without pictures."""
    with av.open(path, "w", format="mpegts") as out:
        stream = out.add_stream("mp2", rate=48000, layout="mono")
        for i in range(40):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
            samples.sample_rate, samples.pts = 48000, i * 1152
            out.mux(stream.encode(samples))
        out.mux(stream.encode(None))
    return path.read_bytes()


def test_what_is_no_video_is_told_by_its_code(tmp_path):
    pages = {
        "NOT_MEDIA": b"<html><body>Please log in</body></html>" * 100,
        "NO_VIDEO": sound(tmp_path / "sound.ts"),
    }
    for code, data in pages.items():
        with streaming(data) as address, pytest.raises(MediaError) as error:
            last_window(address, frames=1)
        assert error.value.code == code


def test_large_frames_are_refused(clips):
    with streaming(clips["mkv"].read_bytes()) as address, pytest.raises(MediaError) as error:
        last_window(address, Limits(seconds=PATIENCE, pixels=64 * 48 - 1), frames=1)
    assert error.value.code == "LIMIT_EXCEEDED"


def test_an_address_that_is_not_there_is_refused_without_its_password():
    with socket.socket() as nobody:  # has the port, and does not listen
        nobody.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(MediaError) as error:
            last_window(f"tcp://me:s3cret@{place}", frames=1)
    assert error.value.code == "STREAM_REFUSED" and f"'tcp://{place}'" in error.value.message
    assert shown_name("rtsp://me:s3@cret@cam:554/live?user=a@b") == "rtsp://cam:554/live?user=a@b"
    assert shown_name("http://cam/a@b") == "http://cam/a@b"


@pytest.mark.parametrize(
    "source", ["clip.mp4", "/dev/video0", "file:///etc/passwd", "concat://a", "-1", "", "pipe:0"]
)
def test_only_numbers_and_addresses_are_live(source):
    with pytest.raises(UsageError) as error, reading(source, Newest(frames=1)):
        pass
    assert error.value.code == "LIVE_SOURCE"


def test_no_kind_of_address_leads_to_files():
    assert not {"file", "pipe", "data", "fd", "unix", "concat", "subfile"} & {
        name for names in live.PROTOCOLS.values() for name in names.split(",")
    }


@pytest.mark.parametrize("kind", ["v4l2", "no_such_demuxer", None])
def test_a_camera_that_is_missing_is_an_error(monkeypatch, tmp_path, kind):
    known = {} if kind is None else {sys.platform: (kind, f"{tmp_path}/video{{}}", {})}
    monkeypatch.setattr(live, "CAMERAS", known)
    with pytest.raises(EnvironmentFault) as error:
        last_window("7", frames=1)
    assert error.value.code == "CAMERA_MISSING"


def test_reading_ends_when_nobody_watches_any_more(clips):
    newest = Newest(frames=5)
    with streaming(clips["ts"].read_bytes(), threading.Event()) as address:
        with reading(address, newest, limits=PATIENT):
            assert newest.take() is not None
        left = [one for one in threading.enumerate() if one.name == "marey-live"]
    for thread in left:  # waiting for the server, which has gone
        thread.join(PATIENCE)
        assert not thread.is_alive()
