"""Frames by number and by time: exact, in any order, with either decoder, without decoding from the start."""

import os
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import faults
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marey.errors import EnvironmentFault, MediaError, UsageError
from marey.video import reader, torchcodec
from marey.video.limits import Limits
from marey.video.pyav import PyAVDecoder
from marey.video.reader import MANY, Video, decoder_choice, read_video
from marey.video.sniff import RawFile, open_media
from marey.video.torchcodec import TorchcodecDecoder, load_torchcodec

needs_torchcodec = pytest.mark.skipif(load_torchcodec()[1] != "", reason="torchcodec is optional")
DECODERS = ("pyav", pytest.param("torchcodec", marks=needs_torchcodec))
GOP = {"g": "12", "bf": "3", "sc_threshold": "0"}
REALTIME = {"g": "12", "deadline": "realtime", "cpu-used": "8"}
MPEG = {"g": "12", "bf": "2", "sc_threshold": "1000000000"}
OPEN_GOP = {"g": "12", "x264-params": "open-gop=1:bframes=3:scenecut=0"}
X265 = "log-level=none:keyint=12:open-gop=1:bframes=3:scenecut=0"
COUNT = 50

# what a stream is called here -> how it is written; every one has COUNT frames, 25 a second
STREAMS: dict[str, dict[str, object]] = {
    "h264.mp4": {"options": GOP},
    "h264 open groups.mp4": {"options": OPEN_GOP},
    "h264 pyramid.mkv": {"options": GOP | {"bf": "8", "b-pyramid": "normal"}},
    "h264 in fragments.mp4": {"options": GOP, "muxing": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.ts": {"options": GOP},
    "h264 open groups.ts": {"options": OPEN_GOP},
    "h264 intra refresh.ts": {"options": {"bf": "0", "g": "12", "x264-params": "intra-refresh=1:scenecut=0"}},
    "h264.flv": {"options": GOP},
    "h264.avi": {"options": GOP},
    "h264.asf": {"options": GOP},
    "h265 open groups.mp4": {"codec": "libx265", "options": {"x265-params": X265}},
    "h265 open groups.mkv": {"codec": "libx265", "options": {"x265-params": X265}},
    "mpeg4.avi": {"codec": "mpeg4", "options": MPEG},
    "mpeg4 without b.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": MPEG},
    "mpeg2.ts": {"codec": "mpeg2video", "options": MPEG},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": MPEG},
    "mpeg2.mxf": {"codec": "mpeg2video", "options": MPEG},
    "wmv2.wmv": {"codec": "wmv2", "options": {"g": "12"}},
    "vp8.webm": {"codec": "libvpx", "options": REALTIME},
    "vp9.webm": {"codec": "libvpx-vp9", "options": REALTIME},
    "vp9 looking ahead.webm": {
        "codec": "libvpx-vp9",
        "options": {"g": "25", "auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"},
    },
    "vp9.ivf": {"codec": "libvpx-vp9", "container": "ivf", "options": REALTIME},
    "av1.mkv": {"codec": "libsvtav1", "options": {"g": "12", "preset": "12"}},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "gif.gif": {"codec": "gif", "pixels": "rgb8"},
    "prores.mov": {"codec": "prores_ks", "pixels": "yuv422p10le"},
    "ffv1.mkv": {"codec": "ffv1"},
    "theirs.nut": {"codec": "mpeg4", "options": MPEG},
}

Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes a video of STREAMS, once."""
    os.environ["SVT_LOG"] = "1"
    folder = tmp_path_factory.mktemp("streams")

    def make(name: str) -> Path:
        path = folder / name
        return path if path.exists() else faults.write(path, COUNT, **STREAMS[name])

    return make


def decode_all(path: Path) -> list[np.ndarray]:
    """Every frame by PyAV alone, in the order it gives them."""
    with av.open(str(path), format=open_media(str(path), Limits()).kind) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [
            frame.to_ndarray(format="rgb24", interpolation="BICUBIC") for frame in container.decode(video=0)
        ]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", STREAMS)
def test_frames_in_any_order_are_those_of_decoding_from_the_start(
    stream: Make, name: str, decoder: str
) -> None:
    path = stream(name)
    expected = decode_all(path)
    assert faults.numbers(expected) == list(range(COUNT))
    with read_video(path, decoder=decoder) as video:
        assert len(video) == COUNT
        assert (video.fps, video.seconds) == (pytest.approx(25, rel=1e-3), pytest.approx(2, abs=0.01))
        backwards = video.frames(range(COUNT - 1, -1, -1))
        for i in range(COUNT):
            np.testing.assert_array_equal(backwards[COUNT - 1 - i], expected[i])
        order = np.random.default_rng(0).permutation(COUNT)
        for some in np.array_split(order, 12):
            assert faults.numbers(video.frames(some)) == some.tolist()
        # torchcodec on FFmpeg 5 loses frames after seeking to an open group; it is seen, and PyAV takes over
        assert {note.code for note in video.notes} <= (
            {"DECODER_CHANGED"} if decoder == "torchcodec" else set()
        )


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "name", ["h264 open groups.mp4", "mpeg4.avi", "h265 open groups.mkv", "mpeg2.ts", "vp9.webm"]
)
def test_any_list_of_numbers_gives_these_frames(stream: Make, name: str, decoder: str) -> None:
    video = read_video(stream(name), decoder=decoder)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, COUNT - 1), max_size=9))
    def check(indices: list[int]) -> None:
        assert faults.numbers(video.frames(indices)) == indices

    check()
    video.close()


def test_packed_b_frames_of_divx_come_in_their_order(tmp_path: Path) -> None:
    path = faults.packed_bitstream(tmp_path / "divx.avi", 61)
    with read_video(path) as video:
        assert len(video) == 61
        assert faults.numbers(video.frames(range(61))) == list(range(61))
        for i in np.random.default_rng(0).permutation(61).tolist():
            assert faults.numbers(video.frames([i])) == [i]


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_that_are_only_referred_to_do_not_count(tmp_path: Path, decoder: str) -> None:
    hidden = (5, 17, 18, 39)
    with read_video(faults.hidden_frames(tmp_path / "x.webm", 40, hidden), decoder=decoder) as video:
        shown = [i for i in range(40) if i not in hidden]
        assert faults.numbers(video.frames(range(36))) == shown
        assert faults.numbers(video.frames([30, 5, 35])) == [shown[30], shown[5], shown[35]]
        np.testing.assert_allclose(video.timestamps, np.array(shown) / 25)
        assert not video.notes


def test_a_clip_of_a_long_video_is_decoded_from_its_key_frames(tmp_path: Path) -> None:
    path = faults.write(tmp_path / "long.mp4", 1000, options=GOP | {"g": "50"})
    decoder = PyAVDecoder(open_media(str(path), Limits()), Limits())
    clip = np.arange(777, 777 + 64, 2)
    assert faults.numbers(decoder.read(clip)) == clip.tolist()
    assert 64 <= decoder.decoded <= 777 + 64 - 750 + 4  # from frame 750 on, and up to 4 that come early
    before = decoder.decoded
    decoder.read(clip + 64)
    assert decoder.decoded - before <= 64 + 4  # goes on where it is
    before = decoder.decoded
    decoder.read(np.array([60, 501, 950]))
    assert decoder.decoded - before <= 11 + 2 + 1 + 3 * 4  # no frames between groups
    decoder.close()


@needs_torchcodec
def test_torchcodec_reads_only_a_part_of_a_long_file(tmp_path: Path) -> None:
    path = faults.write(tmp_path / "long.mkv", 1500, size=(160, 120), options=GOP | {"g": "50", "crf": "5"})
    file = open_media(str(path), Limits())
    index = PyAVDecoder(file, Limits()).index
    file.raw = counted = CountedFile(str(path))
    decoder = TorchcodecDecoder(file, Limits(), index, 1)
    counted.count = 0
    assert faults.numbers(decoder.read(np.arange(1210, 1240))) == list(range(1210, 1240))
    assert decoder.name == "torchcodec"
    assert counted.count < file.stamp[0] / 3
    decoder.close()


class CountedFile(RawFile):
    """A file that counts the bytes read from it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size) or b""
        self.count += len(data)
        return data


def test_repeated_and_unsorted_numbers_are_decoded_once(stream: Make) -> None:
    decoder = PyAVDecoder(open_media(str(stream("ffv1.mkv")), Limits()), Limits())
    assert faults.numbers(decoder.read(np.array([7, 3, 7, 5, 3]))) == [7, 3, 7, 5, 3]
    assert decoder.decoded == 8
    decoder.close()


def test_no_numbers_give_no_frames(stream: Make) -> None:
    with read_video(stream("h264.mp4")) as video:
        assert video.frames([]).shape == (0, 48, 64, 3)
        assert video.frames([]).dtype == torch.uint8


@pytest.mark.parametrize("wrong", [[COUNT], [-1], [0, 10**12]])
def test_a_number_that_no_frame_has_is_an_error(stream: Make, wrong: list[int]) -> None:
    with read_video(stream("h264.mp4")) as video, pytest.raises(MediaError, match=r"0 to 49") as error:
        video.frames(wrong)
    assert error.value.code == "FRAME_RANGE"


@pytest.mark.parametrize("wrong", [[1.5], [[1]], ["a"]])
def test_what_is_not_a_list_of_whole_numbers_is_refused(stream: Make, wrong: list[object]) -> None:
    with read_video(stream("h264.mp4")) as video, pytest.raises(UsageError):
        video.frames(wrong)  # type: ignore[arg-type]


def test_times_give_the_frames_shown_then(tmp_path: Path) -> None:
    with read_video(faults.timed(tmp_path / "v.mkv", [5000, 5040, 5041, 5200, 6000])) as video:
        np.testing.assert_allclose(video.timestamps, [5, 5.04, 5.041, 5.2, 6])
        times = [0, 5, 5.0399, 5.04, 5.0405, 5.19, 5.2, 5.99, 6, 100]
        assert video.at(times).tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 4, 4]
        assert video.at(5.1).tolist() == 2
        assert video.at(video.timestamps).tolist() == [0, 1, 2, 3, 4]
        assert video.at(0.1 + 0.2 + 4.9).tolist() == 3  # 5.2 is not 5.2 in binary
        assert video.fps == pytest.approx(4)


# Both decoders ------------------------------------------------------------------------------------------

PIXELS: dict[str, dict[str, object]] = {
    "8-bit 4:2:0": {"pixels": "yuv420p"},
    "8-bit 4:2:2": {"pixels": "yuv422p"},
    "8-bit 4:4:4": {"pixels": "yuv444p"},
    "full range": {"pixels": "yuvj420p"},
    "bt709": {
        "pixels": "yuv420p",
        "options": {"x264-params": "colorprim=bt709:transfer=bt709:colormatrix=bt709"},
    },
    "10-bit 4:2:0": {"pixels": "yuv420p10le"},
    "10-bit 4:4:4": {"pixels": "yuv444p10le"},
    "gray": {"codec": "ffv1", "pixels": "gray", "container": "matroska"},
    "RGB": {"codec": "libx264rgb", "pixels": "rgb24"},
    "RGB with alpha": {"codec": "ffv1", "pixels": "bgra", "container": "matroska"},
    "4:1:1": {"codec": "ffv1", "pixels": "yuv411p", "container": "matroska"},
    "JPEG": {"codec": "mjpeg", "pixels": "yuvj422p", "container": "matroska"},
    "odd size": {"codec": "libvpx-vp9", "options": REALTIME, "container": "webm"},
}


@needs_torchcodec
@pytest.mark.parametrize("kind", PIXELS)
@pytest.mark.parametrize("size", [(64, 48), (98, 50), (65, 49)])
def test_both_decoders_give_the_same_bytes(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    if size == (65, 49) and kind != "odd size":
        size = (66, 46)  # chroma of half the size needs even numbers in most codecs
    path = faults.write(tmp_path / "x.mp4", 6, size=size, **PIXELS[kind])
    with read_video(path, decoder="pyav") as one, read_video(path, decoder="torchcodec") as other:
        assert torch.equal(one.frames(range(6)), other.frames(range(6)))
        assert one.size == other.size == size
        assert other.decoder == ("pyav" if "10-bit" in kind else "torchcodec")


def test_ten_bits_become_the_eight_bits_that_were_encoded(tmp_path: Path) -> None:
    path = faults.write(tmp_path / "x.mp4", 6, pixels="yuv444p10le", options={"crf": "1"})
    with read_video(path) as video:
        wanted = np.stack([faults.picture(i) for i in range(6)]).astype(int)
        assert np.abs(video.frames(range(6)).numpy() - wanted).mean() < 2


def real_videos() -> list[Path]:
    folder = os.environ.get("MAREY_TEST_VIDEOS")
    if not folder:
        return []
    found = (
        sorted(Path(folder).glob("clips/*.*")) + sorted(Path(folder).glob("surveillance-fights/*/*"))[::40]
    )
    found += sorted(Path(folder).glob("camera-motion/*/*.mp4"))[::60]
    return [path for path in found if path.suffix in (".mp4", ".avi")]


def test_real_videos_are_read_alike_by_both_decoders(stream: Make) -> None:
    for path in real_videos() or [stream("h264.mp4"), stream("mpeg4 without b.avi")]:
        expected = decode_all(path)
        some = np.linspace(0, len(expected) - 1, 12).astype(int)[::-1]
        for decoder in ("pyav", "auto"):
            with read_video(path, decoder=decoder) as video:
                assert len(video) == len(expected), path
                np.testing.assert_array_equal(
                    video.frames(some), [expected[i] for i in some], err_msg=str(path)
                )


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("name", ["h264 pyramid.mkv", "mpeg4.avi", "vp9.webm"])
def test_more_threads_change_nothing(stream: Make, name: str, threads: int) -> None:
    with read_video(stream(name), decoder="pyav", threads=threads) as video:
        for i in (40, 3, 49, 12, 0):
            assert faults.numbers(video.frames([i, i])) == [i, i]
        assert faults.numbers(video.frames(range(COUNT))) == list(range(COUNT))


# Turned pictures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_pictures_are_shown_upright(tmp_path: Path, degrees: int, mirrored: bool, decoder: str) -> None:
    path = faults.turned(tmp_path / "x.mp4", degrees, mirrored)
    with read_video(path, decoder=decoder, upright=False) as video:
        stored = video.frames(range(10)).numpy()
        assert video.size == (64, 48)
        assert faults.numbers(stored) == list(range(10))
    with read_video(path, decoder=decoder) as video:
        shown = video.frames(range(10)).numpy()
        assert video.size == ((48, 64) if degrees % 180 else (64, 48))
    turned = np.rot90(stored, degrees // 90, axes=(1, 2))
    np.testing.assert_array_equal(shown, turned[:, :, ::-1] if mirrored else turned)


# Choice of the decoder ----------------------------------------------------------------------------------


@needs_torchcodec
def test_only_long_reads_open_the_file_again_for_torchcodec(
    stream: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAREY_DECODER", raising=False)
    numbers = [i % 50 for i in range(MANY)]
    with read_video(stream("h264.mp4")) as video:
        few = video.frames(numbers[:-1])
        assert video.decoder == "pyav"
        many = video.frames(numbers)
        assert video.decoder == "torchcodec" and not video.notes
        np.testing.assert_array_equal(many[:-1], few)
        # safe: the bytes were pickled in the same line
        again = pickle.loads(pickle.dumps(video))
        np.testing.assert_array_equal(again.frames(numbers), many)
        assert again.decoder == "torchcodec"
        again.close()
    with read_video(stream("h264.mp4"), thorough=True) as video:
        video.frames(numbers)
        assert video.decoder == "pyav"


def test_the_environment_may_force_a_decoder(stream: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAREY_DECODER", "pyav")
    name, reason = decoder_choice()
    assert name == "pyav" and "MAREY_DECODER" in reason and "FFmpeg" in reason
    with read_video(stream("h264.mp4")) as video:
        assert video.decoder == "pyav"
    monkeypatch.setenv("MAREY_DECODER", "opencv")
    with pytest.raises(UsageError, match="opencv"):
        decoder_choice()


@pytest.mark.parametrize(
    "problem", ["torchcodec is not installed", "torchcodec 0.17 does not load (libavutil)"]
)
def test_without_torchcodec_pyav_reads_and_the_reason_is_given(
    stream: Make, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    monkeypatch.delenv("MAREY_DECODER", raising=False)
    monkeypatch.setattr(reader, "load_torchcodec", lambda: ("", problem))
    assert decoder_choice()[0] == "pyav" and problem in decoder_choice()[1]
    with read_video(stream("h264.mp4")) as video:
        assert video.decoder == "pyav" and not video.notes
    with pytest.raises(EnvironmentFault, match="torchcodec"):
        read_video(stream("h264.mp4"), decoder="torchcodec")


def test_an_old_or_broken_torchcodec_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("Could not load libtorchcodec.\nmore lines")

    monkeypatch.setattr(torchcodec.metadata, "version", lambda name: "0.16.1")
    assert "older than 0.17" in load_torchcodec.__wrapped__()[1]
    monkeypatch.setattr(torchcodec.metadata, "version", lambda name: "0.18.0+cpu")
    monkeypatch.setattr(torchcodec, "import_module", broken)
    assert load_torchcodec.__wrapped__()[1].endswith("does not load (Could not load libtorchcodec.)")


@needs_torchcodec
def test_where_torchcodec_fails_pyav_takes_over_and_says_so(
    stream: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = read_video(stream("h264.mp4"), decoder="torchcodec")
    assert video.decoder == "torchcodec"
    monkeypatch.setattr(video._decoder._decoder, "get_frames_at", lambda indices: 1 / 0)
    assert faults.numbers(video.frames([30, 2])) == [30, 2]
    assert video.decoder == "pyav"
    assert [note.code for note in video.notes] == ["DECODER_CHANGED"]
    video.close()


@needs_torchcodec
def test_frames_of_other_times_are_never_given_out(stream: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    video = read_video(stream("h264.mp4"), decoder="torchcodec")
    theirs = video._decoder._decoder
    shifted = theirs.get_frames_at([31, 3])
    monkeypatch.setattr(theirs, "get_frames_at", lambda indices: shifted)
    assert faults.numbers(video.frames([30, 2])) == [30, 2]
    assert [note.code for note in video.notes] == ["DECODER_CHANGED"]
    video.close()


def test_a_video_says_what_it_is(stream: Make) -> None:
    video = read_video(stream("h264.mp4"))
    assert isinstance(video, Video)
    assert repr(video).endswith("h264.mp4', 50 frames of 64 x 48, 2 s)")
    video.close()


def test_a_single_frame_lasts_as_the_file_says(tmp_path: Path) -> None:
    with read_video(faults.write(tmp_path / "x.mp4", 1, rate=10)) as video:
        assert (len(video), video.fps, video.seconds) == (1, pytest.approx(10), pytest.approx(0.1))


def test_rates_that_no_decimal_writes_are_kept(tmp_path: Path) -> None:
    unit = Fraction(1001, 30000)
    path = faults.write(tmp_path / "x.mp4", 31, unit=unit, rate=30, times=list(range(31)))
    with read_video(path) as video:
        assert video.fps == pytest.approx(30000 / 1001, rel=1e-12)
        np.testing.assert_allclose(video.timestamps, np.arange(31) * float(unit), rtol=1e-12)
