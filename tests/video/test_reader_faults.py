"""Every fault that files come with, with the outcome that is promised for it, for each decoder."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import faults
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marey.errors import MediaError
from marey.video.limits import Limits
from marey.video.pyav import PyAVDecoder
from marey.video.reader import read_video
from marey.video.sniff import MediaFile, RawFile
from marey.video.torchcodec import load_torchcodec

needs_torchcodec = pytest.mark.skipif(load_torchcodec()[1] != "", reason="torchcodec is optional")
DECODERS = ("pyav", pytest.param("torchcodec", marks=needs_torchcodec))
Maker = Callable[[Path], Path]


@dataclass
class Fault:
    """A kind of file and what reading it gives: an error's code and words, or frames by number, and notes."""

    name: str
    make: Maker
    code: str = ""
    words: str = ""
    numbers: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


def bytes_of(data: bytes) -> Maker:
    def make(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return make


def written(**options: object) -> Maker:
    return lambda path: faults.write(path, **{"count": 10} | options)


def broken_link(path: Path) -> Path:
    path.symlink_to(path.with_name("gone.mp4"))
    return path


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def anamorphic(stream: av.VideoStream) -> None:
    stream.codec_context.sample_aspect_ratio = Fraction(4, 3)


HDR = {"x265-params": "log-level=none:transfer=smpte2084:colorprim=bt2020:colormatrix=bt2020nc"}
FIELDS, REALTIME = {"flags": "+ildct+ilme"}, {"deadline": "realtime"}
TEN_BITS = "yuv420p10le"
HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in</body></html>"
RANDOM = np.random.default_rng(0).bytes(100_000)
TEN, TWENTY, FORTY = tuple(range(10)), tuple(range(20)), tuple(range(40))
SECOND, FROM_TEN = tuple(range(100, 120)), FORTY[10:]
UNDECODABLE, REPAIRED = ("FRAMES_UNDECODABLE",), "TIMESTAMPS_REPAIRED"
HUNDRED = tuple(range(100))

ERRORS = [
    Fault("empty.mp4", bytes_of(b""), "NOT_MEDIA", "empty"),
    Fault("random bytes.mp4", bytes_of(RANDOM), "NOT_MEDIA"),
    Fault("a page.mp4", bytes_of(HTML), "NOT_MEDIA", "error page"),
    Fault("an answer.mp4", bytes_of(b'{"error": {"code": 403, "message": "quota"}}'), "NOT_MEDIA", "text"),
    Fault("picture.mp4", bytes_of(b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(500)), "NOT_MEDIA", "still image"),
    Fault("photo.mp4", bytes_of(b"\0\0\0\x18ftypheic" + bytes(500)), "NOT_MEDIA", "still image"),
    Fault("folder.mp4", empty_folder, "NOT_MEDIA", "numbered pictures"),
    Fault("pipe.mp4", pipe, "NOT_MEDIA", "regular file"),
    Fault("device", lambda path: Path("/dev/zero"), "NOT_MEDIA", "regular file"),
    Fault("missing.mp4", lambda path: path, "NOT_FOUND", "does not exist"),
    Fault("link.mp4", broken_link, "NOT_FOUND", "link"),
    Fault("index at the end, cut.mp4", faults.index_at_end_cut, "NOT_DECODABLE", "index missing"),
    Fault("begins like one.mp4", bytes_of(b"\0\0\0\x18ftypisom" + RANDOM), "NOT_DECODABLE"),
    Fault("begins like one.mkv", bytes_of(b"\x1aE\xdf\xa3" + RANDOM), "NOT_DECODABLE"),
    Fault("begins like one.avi", bytes_of(b"RIFF\0\0\1\0AVI LIST" + RANDOM), "NOT_DECODABLE"),
    Fault("begins like one.mpg", bytes_of(b"\0\0\1\xba" + RANDOM), "NOT_DECODABLE"),
    Fault("begins like one.gif", bytes_of(b"GIF89a" + bytes(100)), "NOT_DECODABLE"),
    Fault("sound.m4a", faults.sound_only, "NO_VIDEO", "no video stream"),
    Fault("sound.wav", lambda path: faults.sound_only(path, "pcm_s16le"), "NO_VIDEO", "audio"),
    Fault("sound.mp3", lambda path: faults.sound_only(path, "libmp3lame"), "NO_VIDEO", "audio"),
    Fault("cover.mp3", faults.cover_art, "NO_VIDEO", "audio"),
    Fault("cover.mp4", faults.cover_art, "NO_VIDEO", "no video stream"),
    Fault("8192 x 8192.mp4", faults.huge_pictures, "LIMIT_EXCEEDED", "8192 x 8192"),
    Fault("a million frames.mp4", faults.promises_many_frames, "LIMIT_EXCEEDED", "1,000,000 frames"),
]  # fmt: skip

READABLE = [
    Fault("count too high.avi", faults.avi_count_too_high, numbers=HUNDRED),
    Fault("no index.avi", faults.avi_without_index, numbers=HUNDRED),
    Fault("no duration.webm", faults.webm_without_duration, numbers=FORTY),
    Fault("animated.gif", written(codec="gif", pixels="rgb8"), numbers=TEN),
    Fault("two streams.mkv", faults.two_streams, numbers=SECOND, notes=("VIDEO_STREAMS",)),
    Fault("two streams.mp4", faults.two_streams, numbers=SECOND, notes=("VIDEO_STREAMS",)),
    Fault("hidden by an edit list.mp4", faults.trimmed, numbers=tuple(range(5, 40))),
    Fault("ended by an edit list.mp4", faults.ends_by_an_edit_list, numbers=TWENTY),
    Fault("begun inside.mp4", faults.begun_inside_a_group, numbers=FROM_TEN, notes=UNDECODABLE),
    Fault("begun inside.mkv", faults.begun_inside_a_group, numbers=FROM_TEN, notes=UNDECODABLE),
    Fault("begun inside.ts", faults.begun_inside_a_group, numbers=FROM_TEN, notes=UNDECODABLE),
    Fault("no times.h264", faults.without_times, numbers=tuple(range(30)), notes=(REPAIRED,)),
    Fault("size changes.mkv", faults.size_changes_inside, numbers=TWENTY, notes=("SIZE_CHANGED",)),
    Fault("size changes.avi", faults.size_changes_inside, numbers=TWENTY, notes=("SIZE_CHANGED",)),
    Fault("size changes.ts", faults.size_changes, numbers=TWENTY, notes=("SIZE_CHANGED", REPAIRED)),
    Fault("interlaced.ts", written(codec="mpeg2video", options=FIELDS), numbers=TEN, notes=("INTERLACED",)),
    Fault("interlaced.mp4", written(options={"x264-params": "tff=1"}), numbers=TEN, notes=("INTERLACED",)),
    Fault("anamorphic.mp4", written(prepare=anamorphic), numbers=TEN, notes=("SAMPLE_ASPECT",)),
    Fault("odd size.webm", written(codec="libvpx-vp9", size=(65, 49), options=REALTIME), numbers=TEN),
    Fault("full range.mp4", written(pixels="yuvj420p"), numbers=TEN),
    Fault("10 bits.mp4", written(pixels=TEN_BITS), numbers=TEN),
    Fault("4:4:4.mp4", written(pixels="yuv444p"), numbers=TEN),
    Fault("alpha.mkv", written(codec="ffv1", pixels="bgra"), numbers=TEN, notes=("ALPHA_DROPPED",)),
    Fault("hdr.mp4", written(codec="libx265", pixels=TEN_BITS, options=HDR), numbers=TEN, notes=("HDR",)),
    Fault("one frame.mp4", written(count=1), numbers=(0,)),
    Fault("one frame.avi", written(count=1, codec="mpeg4"), numbers=(0,)),
    Fault("two frames.mp4", written(count=2), numbers=(0, 1)),
    Fault("two frames.avi", written(count=2, codec="mpeg4", options={"bf": "2"}), numbers=(0, 1)),
    Fault("two frames.webm", written(count=2, codec="libvpx", options=REALTIME), numbers=(0, 1)),
]  # fmt: skip


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("fault", ERRORS, ids=str)
def test_files_that_cannot_be_read_have_their_code(tmp_path: Path, fault: Fault, decoder: str) -> None:
    path = fault.make(tmp_path / fault.name)
    start = time.monotonic()
    with pytest.raises(MediaError) as error:
        read_video(path, decoder=decoder)
    assert time.monotonic() - start < 5  # the promise is a second; machines that test are slow
    assert error.value.code.startswith(fault.code)
    assert fault.words in error.value.message
    assert repr(str(path)) in error.value.message  # where
    assert "; " in error.value.message and "\n" not in error.value.message  # what to do, in one line


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("fault", READABLE, ids=str)
def test_odd_files_give_all_their_frames(tmp_path: Path, fault: Fault, decoder: str, thorough: bool) -> None:
    with read_video(fault.make(tmp_path / fault.name), decoder=decoder, thorough=thorough) as video:
        assert len(video) == len(fault.numbers)
        frames = video.frames(range(len(video)))
        assert tuple(faults.numbers(frames)) == fault.numbers
        for i in (len(video) - 1, len(video) // 2, 0):
            assert np.array_equal(video.frames([i])[0], frames[i])
        assert (np.diff(video.timestamps) > 0).all()
        assert {note.code for note in video.notes} - {"DECODER_CHANGED"} == set(fault.notes)


# Cut and damaged -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_truncated_file_gives_its_decodable_part(
    tmp_path: Path, suffix: str, decoder: str, thorough: bool
) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".mp4":
        faults.index_in_front_cut(path)
    else:
        faults.write(path, 100, codec="mpeg4")
        faults.rewrite(path, lambda data: data[: len(data) * 6 // 10])
    with read_video(path, decoder=decoder, thorough=thorough) as video:
        assert 20 < len(video) < 80
        shown = faults.numbers(video.frames(range(len(video))))
        assert shown == np.rint(video.timestamps * 25).astype(int).tolist()  # each frame at its own time
        note = next(note for note in video.notes if note.code == "MEDIA_TRUNCATED")
        assert str(len(video)) in note.text
        assert "of 100" in note.text or suffix != ".mp4"


@pytest.mark.parametrize("decoder", DECODERS)
def test_damaged_frames_are_counted(tmp_path: Path, decoder: str) -> None:
    path = faults.flipped_bits(tmp_path / "x.mp4")
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        shown, flagged = 0, 0
        for packet in container.demux(video=0):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            shown += len(frames)
            flagged += sum(frame.is_corrupt for frame in frames)
    assert flagged > 10
    with read_video(path, decoder=decoder, thorough=True) as video:
        assert len(video) == 100
        note = next(note for note in video.notes if note.code == "FRAMES_DAMAGED")
        assert note.text.startswith(f"{flagged + 100 - shown} of 100 frames are damaged, the first is frame ")
        assert video.frames(range(100)).shape == (100, 120, 160, 3)
    with read_video(path, decoder="pyav") as video:  # without looking at everything, what is met is noted
        assert len(video) == 100
        assert faults.numbers(video.frames([0, 4])) == [0, 4] and not video.notes
        video.frames(range(100))
        assert [note.code for note in video.notes] == ["FRAMES_DAMAGED"]


def test_a_frame_without_a_picture_shows_the_one_before(tmp_path: Path) -> None:
    def spoil(packets: list[av.Packet]) -> list[av.Packet]:
        return [
            faults.replaced(p, b"\xff\xd8\xff" + bytes(90)) if i in (4, 5) else p
            for i, p in enumerate(packets)
        ]

    path = faults.write(tmp_path / "x.mkv", 10, codec="mjpeg", pixels="yuvj420p", edit=spoil)
    for order in (range(10), range(9, -1, -1)):
        with read_video(path, decoder="pyav") as video:
            assert len(video) == 10
            shown = [faults.number(video.frames([i])[0]) for i in order]
            assert shown == [3 if i in (4, 5) else i for i in order]
            assert "the first is frame 4; for 2 that give no picture" in video.notes[0].text


def test_where_nothing_comes_before_the_frame_after_is_shown(tmp_path: Path) -> None:
    def spoil(packets: list[av.Packet]) -> list[av.Packet]:
        return [
            faults.replaced(p, b"\xff\xd8\xff" + bytes(90)) if i < 2 else p for i, p in enumerate(packets)
        ]

    path = faults.write(tmp_path / "x.mkv", 6, codec="mjpeg", pixels="yuvj420p", edit=spoil)
    with read_video(path) as video:  # told by the first frame that decodes: these two are none of the video's
        assert faults.numbers(video.frames(range(len(video)))) == [2, 3, 4, 5]
        assert [note.code for note in video.notes] == ["FRAMES_UNDECODABLE"]


def test_a_change_of_codec_is_decoded_and_noted(tmp_path: Path) -> None:
    with read_video(faults.codec_changes(tmp_path / "x.ts")) as video:
        shown = faults.numbers(video.frames(range(len(video))))
        # FFmpeg loses the last packet before the change
        assert shown in (list(range(20)), [i for i in range(20) if i != 8])
        assert "CODEC_CHANGED" in [note.code for note in video.notes]
        video.close()
        assert faults.numbers(video.frames([len(video) - 1, 2])) == [19, 2]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_any_damage_gives_frames_or_a_coded_error(tmp_path: Path, suffix: str, decoder: str) -> None:
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    whole = faults.write(
        tmp_path / f"whole{suffix}", 30, codec=codec, options={"g": "10", "bf": "2"}
    ).read_bytes()
    path = tmp_path / f"x{suffix}"

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 255)), max_size=30),
        st.integers(100),
    )
    def check(flips: list[tuple[int, int]], end: int) -> None:
        data = bytearray(whole)
        for place, bits in flips:
            data[place] ^= bits
        path.write_bytes(data[:end] if end % 3 == 0 else data)
        try:
            with read_video(path, decoder=decoder, limits=Limits(pixels=10**6, frames=1000)) as video:
                assert (np.diff(video.timestamps) > 0).all()
                width, height = video.size
                assert video.frames([0, len(video) - 1]).shape == (2, height, width, 3)
        except MediaError as error:
            assert error.code in ("NOT_MEDIA", "NOT_DECODABLE", "NO_VIDEO", "LIMIT_EXCEEDED")

    check()


# Times ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "times",
    [[0, 40, 41, 200, 1000, 1040, 30000], [5000, 5040, 5080], [0, 32000], [16, 33, 50, 66, 83, 100]],
    ids=["variable rate", "from 5 s", "far apart", "rounded"],
)
def test_times_of_any_distance_are_kept(tmp_path: Path, times: list[int], decoder: str) -> None:
    with read_video(faults.timed(tmp_path / "x.mkv", times), decoder=decoder) as video:
        np.testing.assert_allclose(video.timestamps, np.array(times) / 1000)
        assert faults.numbers(video.frames(range(len(times)))) == list(range(len(times)))
        assert video.at(video.timestamps + 0.0004).tolist() == list(range(len(times)))
        assert not video.notes


@pytest.mark.parametrize("decoder", DECODERS)
def test_two_frames_ten_hours_apart_are_two_frames(tmp_path: Path, decoder: str) -> None:
    path = faults.write(tmp_path / "x.mp4", 2, codec="mpeg4", times=[0, 36000], unit=Fraction(1))
    with read_video(path, decoder=decoder) as video:
        assert video.timestamps.tolist() == [0, 36000]
        assert video.fps == pytest.approx(1 / 36000)
        assert faults.numbers(video.frames(video.at([35999, 36000]))) == [0, 1]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("times", "repaired"),
    [
        ([0, 40, 40, 80, 120, 120, 160], [0, 40, 60, 80, 120, 140, 160]),
        ([0, 40, 80, 60, 120, 160], [0, 40, 80, 100, 120, 160]),
        ([1000, 1040, 0, 40, 80], [1000, 1040, 1080, 1120, 1160]),
    ],
    ids=["repeated", "going back", "beginning again"],
)
def test_bad_times_are_repaired_and_counted(
    tmp_path: Path, times: list[int], repaired: list[int], decoder: str
) -> None:
    with read_video(faults.timed(tmp_path / "x.mkv", times), decoder=decoder) as video:
        np.testing.assert_allclose(video.timestamps, np.array(repaired) / 1000)
        for i in (3, 0, 4, 2, 1):
            assert faults.numbers(video.frames([i])) == [i]
        wrong = sum(a != b for a, b in zip(times, repaired, strict=True))
        assert video.notes[0].code == "TIMESTAMPS_REPAIRED"
        assert video.notes[0].text.startswith(f"{wrong} of {len(times)}")


def test_times_beyond_reason_are_repaired(tmp_path: Path) -> None:
    path = faults.write(tmp_path / "x.ivf", 6, codec="libvpx-vp9", container="ivf", options=REALTIME)

    def retime(data: bytearray) -> bytearray:
        place = 32
        for i in range(6):  # size (32 bits) and time (64 bits) before each frame
            size = int.from_bytes(data[place : place + 4], "little")
            data[place + 4 : place + 12] = (2**60 + i).to_bytes(8, "little")
            place += 12 + size
        return data

    with read_video(faults.rewrite(path, retime)) as video:
        assert faults.numbers(video.frames([5, 0, 2])) == [5, 0, 2]
        np.testing.assert_allclose(np.diff(video.timestamps), 1 / 25)
        assert [note.code for note in video.notes] == ["TIMESTAMPS_REPAIRED"]


# Limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_a_hundred_thousand_frames_are_read(tmp_path: Path, suffix: str) -> None:
    with read_video(faults.many_frames(tmp_path / f"x{suffix}", 100_000)) as video:
        assert len(video) == 100_000
        assert video.frames([99_999, 0, 51_234]).shape == (3, 16, 16, 3)
        assert video.fps == pytest.approx(25)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".ts", ".gif"])
def test_more_frames_than_allowed_are_refused(tmp_path: Path, suffix: str) -> None:
    codec = {".gif": "gif", ".ts": "mpeg2video"}.get(suffix, "mpeg4")
    path = faults.write(
        tmp_path / f"x{suffix}", 40, codec=codec, pixels="rgb8" if codec == "gif" else "yuv420p"
    )
    assert len(read_video(path, limits=Limits(frames=40))) == 40
    with pytest.raises(MediaError, match=r"frames.*Limits\.frames") as error:
        read_video(path, limits=Limits(frames=39))
    assert error.value.code == "LIMIT_EXCEEDED"


def test_an_mp4_in_fragments_cannot_promise_too_much_either(tmp_path: Path) -> None:
    path = faults.write(tmp_path / "x.mp4", 40, muxing={"movflags": "frag_keyframe+empty_moov"})
    assert len(read_video(path)) == 40

    def promise(data: bytearray) -> bytearray:
        place = data.find(b"trun") + 8
        data[place : place + 4] = (2_000_000_000).to_bytes(4)
        return data

    with pytest.raises(MediaError) as error:
        read_video(faults.rewrite(path, promise))
    assert error.value.code == "LIMIT_EXCEEDED"


def test_boxes_in_boxes_without_end_are_refused(tmp_path: Path) -> None:
    depth = 100_000
    boxes = b"".join((8 * (depth - i)).to_bytes(4) + b"moov" for i in range(depth))
    path = tmp_path / "x.mp4"
    path.write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0" + boxes)
    with pytest.raises(MediaError):
        read_video(path)


def test_one_call_gives_no_more_bytes_than_allowed(tmp_path: Path) -> None:
    limits = Limits(bytes=4 * 64 * 48 * 3)
    with read_video(faults.write(tmp_path / "x.mp4", 10), limits=limits) as video:
        assert len(video.frames([1, 2, 3, 4])) == 4
        with pytest.raises(MediaError) as error:
            video.frames([1, 2, 3, 3, 3])
        assert error.value.code == "LIMIT_EXCEEDED"


def test_pictures_that_grow_beyond_the_limit_are_not_decoded(tmp_path: Path) -> None:
    path = faults.size_changes(tmp_path / "x.ts")
    with read_video(path, limits=Limits(pixels=64 * 48)) as video:
        assert faults.numbers(video.frames(range(len(video)))) == list(range(10))
        assert "FRAMES_UNDECODABLE" in [note.code for note in video.notes]


def test_opening_and_reading_end_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = faults.write(tmp_path / "x.mp4", 30)
    with pytest.raises(MediaError) as error:
        read_video(path, limits=Limits(seconds=-1))
    assert error.value.code == "MEDIA_TIMEOUT"
    with read_video(path, decoder="pyav", limits=Limits(seconds=100)) as video:
        start = time.monotonic()
        ticks = iter(range(0, 10_000, 60))
        with monkeypatch.context() as patched, pytest.raises(MediaError) as error:
            patched.setattr("marey.video.pyav.time.monotonic", lambda: start + next(ticks))
            video.frames([29])
        assert error.value.code == "MEDIA_TIMEOUT"
        assert faults.numbers(video.frames([29, 3])) == [29, 3]  # and it can be used again


@pytest.mark.parametrize("make", [faults.huge_pictures, faults.promises_many_frames])
@pytest.mark.parametrize("decoder", DECODERS)
def test_small_files_that_promise_much_take_little_memory(tmp_path: Path, make: Maker, decoder: str) -> None:
    make(tmp_path / "x.mp4")
    code = (
        "import resource, sys\n"
        "from marey.errors import MareyError\n"
        "from marey.video.reader import decoder_choice, read_video\n"
        "decoder_choice(sys.argv[2])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_video(sys.argv[1], decoder=sys.argv[2])\n"
        "except MareyError as error: print(error.code)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "x.mp4"), decoder]
    output = subprocess.run(run, capture_output=True, text=True, check=True, timeout=100).stdout.split()
    assert output[0] == "LIMIT_EXCEEDED"
    assert int(output[1]) < 80_000  # kilobytes; one picture alone would take 100,000


# Files that change, and that may not be read -------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_file_that_grows_or_is_overwritten_is_an_error(tmp_path: Path, decoder: str) -> None:
    path = faults.write(tmp_path / "x.mp4", 30)
    other = faults.write(tmp_path / "y.mp4", 30, first=100).read_bytes()
    for new in (path.read_bytes() + b"more", other, path.read_bytes()[:500]):
        video = read_video(path, decoder=decoder)
        assert faults.numbers(video.frames([3])) == [3]
        with path.open("r+b") as file:
            file.write(new)
            file.truncate()
        os.utime(path, ns=(1, 1))
        with pytest.raises(MediaError) as error:
            video.frames([20])
        assert error.value.code == "MEDIA_CHANGED"
        faults.write(path, 30)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_file_that_is_removed_or_replaced_is_read_on(tmp_path: Path, decoder: str) -> None:
    path = faults.write(tmp_path / "x.mp4", 30)
    video = read_video(path, decoder=decoder)
    path.unlink()
    assert faults.numbers(video.frames([20, 3])) == [20, 3]
    faults.write(path, 30, first=100)
    assert faults.numbers(video.frames([29, 4])) == [29, 4]
    video.close()
    with pytest.raises(MediaError) as error:  # opened again, it is another file
        video.frames([3])
    assert error.value.code == "MEDIA_CHANGED"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="permissions are tested in a forked process")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = faults.write(tmp_path / "x.mp4", 2)
    path.chmod(0)
    child = os.fork()
    if child == 0:  # the superuser may read everything
        result = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            read_video(path)
        except MediaError as error:
            result = 0 if error.code == "NO_ACCESS" and repr(str(path)) in error.message else 2
        finally:
            os._exit(result)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Files that name other files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    """An address, and what was asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    web = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}/canary.mp4", asked
    web.shutdown()
    web.server_close()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".txt", ".ffconcat", ".m3u8", ".mpd", ".sdp", ""])
@pytest.mark.parametrize("text", [faults.ffconcat, faults.hls, faults.dash, faults.sdp])
def test_play_lists_open_no_other_file_and_no_address(
    tmp_path: Path, server: tuple[str, list[str]], text: Callable[[str], str], suffix: str, decoder: str
) -> None:
    canary = faults.write(tmp_path / "canary.mp4", 2)
    address, asked = server
    for target in (address, str(canary), "canary.mp4"):
        for before in ("", "\n \n"):
            path = tmp_path / f"x{suffix}"
            path.write_text(before + text(target))
            with pytest.raises(MediaError) as error:
                read_video(path, decoder=decoder)
            assert error.value.code == "NOT_MEDIA"
    assert not asked


@pytest.mark.parametrize(("demuxer", "text"), [("concat", faults.ffconcat), ("hls", faults.hls)])
def test_ffmpeg_itself_could_not_open_them_either(
    tmp_path: Path, server: tuple[str, list[str]], demuxer: str, text: Callable[[str], str]
) -> None:
    canary = faults.write(tmp_path / "canary.mp4", 2)
    for target in (server[0], str(canary), "canary.mp4"):
        (tmp_path / "x").write_text(text(target))
        raw = RawFile(str(tmp_path / "x"))
        status = os.fstat(raw.fileno())
        file = MediaFile("x", raw, demuxer, (status.st_size, status.st_mtime_ns))
        with pytest.raises(MediaError, match="FFmpeg cannot read it"):
            PyAVDecoder(file, Limits())
        raw.close()
    assert not server[1]


# Names ---------------------------------------------------------------------------------------------------

NAMES = [
    "with spaces .mp4", "line\nbreak.mp4", "'quotes\"`$(x).mp4", "-y.mp4", "--help", "no suffix", "%05d.mp4",
    "concat:a.mp4|b.mp4", "pipe:0", "file:x.mp4", "http:x.mp4", "{}.mp4", "[1-9]*.mp4", "\x1b[31mred.mp4",
    "日本語.mp4", os.fsdecode(b"caf\xe9.mp4"), "n" * 251 + ".mp4", "video.txt", "a,b;c&d.mp4", "~",
]  # fmt: skip


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, decoder: str) -> None:
    faults.write(tmp_path / "x.mp4", 3)
    (tmp_path / "x.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name):
        with read_video(path, decoder=decoder) as video:
            assert faults.numbers(video.frames([2, 0])) == [2, 0]
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(MediaError) as error:
        read_video(name, decoder=decoder)
    error.value.message.encode()  # can be printed,
    assert error.value.message.isprintable()  # without a terminal taking it for a command


def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = False

    class Disk(RawFile):
        def read(self, size: int | None = -1) -> bytes:
            if broken:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size) or b""

    path = faults.write(tmp_path / "x.mp4", 500, size=(160, 120), options={"crf": "5"})
    monkeypatch.setattr("marey.video.sniff.RawFile", Disk)
    video = read_video(path, decoder="pyav")
    broken = True
    for use in (lambda: video.frames([0]), lambda: read_video(path, decoder="pyav")):
        with pytest.raises(MediaError, match="Input/output error") as error:
            use()
        assert error.value.code == "NO_ACCESS"


def test_what_ffmpeg_cannot_turn_into_rgb_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unable:
        def reformat(self, *args: object, **options: object) -> None:
            raise av.ArgumentError(22, "Invalid argument")

    monkeypatch.setattr("marey.video.pyav.VideoReformatter", Unable)
    with read_video(faults.write(tmp_path / "x.mp4", 2), decoder="pyav") as video:
        with pytest.raises(MediaError) as error:
            video.frames([0])
        assert error.value.code == "NOT_DECODABLE"


def test_a_name_that_no_system_takes_is_an_error() -> None:
    with pytest.raises(MediaError) as error:
        read_video("a\0b.mp4")
    assert error.value.code == "NO_ACCESS"


def test_text_in_unknown_letters_does_not_stop_reading(tmp_path: Path) -> None:
    path = faults.write(tmp_path / "x.avi", 3, codec="mpeg4")

    def retitle(data: bytearray) -> bytearray:
        place = data.find(b"ISFT") + 8
        data[place : place + 4] = b"\xe9\xff\xfe\xe8"
        return data

    with read_video(faults.rewrite(path, retitle)) as video:
        assert len(video) == 3
