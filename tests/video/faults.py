"""Videos for the reader's tests: frames that show their own number, and every fault that files come with.

Frame i shows i as 16 black or white blocks (8 x 2), the first bit at top left, so that what a decoder returns
can be checked without a second decoder. Everything is written with PyAV, whose wheel brings FFmpeg.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import cache
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.packet import Packet
from av.video.frame import VideoFrame

Pixels = npt.NDArray[np.uint8]
MILLISECOND = Fraction(1, 1000)


def picture(number: int, width: int = 64, height: int = 48) -> Pixels:
    """uint8 [height, width, 3]: `number` in 16 blocks, over a tint that differs from frame to frame."""
    bits = (number >> np.arange(16)) & 1
    rows = np.arange(height) * 2 // height
    columns = np.arange(width) * 8 // width
    shown = np.where(bits[rows[:, None] * 8 + columns], 220, 40)
    tint = np.array([number * 7 % 30, number * 11 % 30, number * 13 % 30])
    return (shown[:, :, None] + tint - 15).astype(np.uint8)


def number(pixels: npt.ArrayLike) -> int:
    """The number that a frame [height, width, 3] shows."""
    gray = np.asarray(pixels, dtype=np.float64).mean(axis=2)
    rows = np.arange(gray.shape[0]) * 2 // gray.shape[0]
    columns = np.arange(gray.shape[1]) * 8 // gray.shape[1]
    bits = [
        gray[np.ix_(rows == row, columns == column)].mean() > 128 for row in (0, 1) for column in range(8)
    ]
    return int(sum(bit << place for place, bit in enumerate(bits)))


def numbers(frames: Iterable[npt.ArrayLike]) -> list[int]:
    """The numbers that frames show."""
    return [number(frame) for frame in frames]


def write(
    path: Path,
    count: int = 30,
    *,
    codec: str = "libx264",
    container: str | None = None,
    size: tuple[int, int] = (64, 48),
    pixels: str = "yuv420p",
    rate: int = 25,
    times: Sequence[int] | None = None,
    unit: Fraction | None = None,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
    edit: Callable[[list[Packet]], list[Packet]] = list,
    prepare: Callable[[av.VideoStream], None] | None = None,
    first: int = 0,
) -> Path:
    """Encodes `count` numbered frames and returns `path`.

    times, unit  when frame i is shown, in units of `unit` seconds (else one frame after another)
    edit         given all packets in decoding order; gives those to write
    prepare      called with the stream before anything is encoded
    """
    unit = unit or Fraction(1, rate)
    with av.open(str(path), "w", format=container, options=muxing or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = unit
        stream.codec_context.thread_count = 1
        if prepare:
            prepare(stream)
        packets = []
        for i in range(count):
            frame = VideoFrame.from_ndarray(picture(first + i, *size), "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = (times[i] if times else i), unit
            packets += stream.encode(frame)
        for packet in edit(packets + stream.encode(None)):
            output.mux(packet)
    return path


def rewrite(path: Path, change: Callable[[bytearray], bytearray | bytes]) -> Path:
    """Changes the bytes of a file."""
    path.write_bytes(change(bytearray(path.read_bytes())))
    return path


# Files that are cut, damaged or lie about themselves -----------------------------------------------------

CLOSED_GOPS = {"g": "10", "bf": "2", "sc_threshold": "0"}


def index_at_end_cut(path: Path) -> Path:
    """An MP4 that was cut at half, before its index."""
    write(path, 60)
    return rewrite(path, lambda data: data[: len(data) // 2])


def index_in_front_cut(path: Path, count: int = 100) -> Path:
    """An MP4 cut at 60 % of its data, the index being in front."""
    write(path, count, options=CLOSED_GOPS, muxing={"movflags": "faststart"})
    return rewrite(path, lambda data: data[: data.find(b"mdat") + (len(data) - data.find(b"mdat")) * 6 // 10])


def flipped_bits(path: Path, count: int = 100, bits: int = 60) -> Path:
    """A video with single bits flipped all over its data, the first key frame left whole."""
    write(path, count, size=(160, 120), options=CLOSED_GOPS | {"crf": "10"}, muxing={"movflags": "faststart"})

    def flip(data: bytearray) -> bytearray:
        start = data.find(b"mdat") + 6000
        for place in np.random.default_rng(1).integers(start, len(data), bits):
            data[place] ^= 1 << int(place) % 8
        return data

    return rewrite(path, flip)


def avi_count_too_high(path: Path, count: int = 100, claimed: int = 150) -> Path:
    """An AVI whose headers promise more frames than there are."""
    write(path, count, codec="mpeg4")

    def lie(data: bytearray) -> bytearray:
        for place in (data.find(b"avih") + 8 + 16, data.find(b"strh") + 8 + 32):  # dwTotalFrames, dwLength
            assert struct.unpack_from("<I", data, place)[0] == count
            struct.pack_into("<I", data, place, claimed)
        return data

    return rewrite(path, lie)


def avi_without_index(path: Path, count: int = 100) -> Path:
    """An AVI without its `idx1` chunk, otherwise whole."""
    write(path, count, codec="mpeg4")

    def drop(data: bytearray) -> bytearray:
        data = data[: data.rfind(b"idx1")]
        struct.pack_into("<I", data, 4, len(data) - 8)
        return data

    return rewrite(path, drop)


def packed_bitstream(path: Path, count: int = 61) -> Path:
    """An AVI as DivX 5 wrote it: a packet holds a P picture and the B picture shown before it, and the next
    packet only stands in for that B picture."""
    vop, who = b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b1393p"

    def pack(packets: list[Packet]) -> list[Packet]:
        data = [bytes(packet) for packet in packets]
        for i in range(1, len(packets) - 1, 2):  # I P B P B ...
            data[i], data[i + 1] = data[i] + data[i + 1], vop + b"\x50\x91"
        data = [
            d.replace(vop, who + vop, 1) if packet.is_keyframe else d
            for d, packet in zip(data, packets, strict=True)
        ]
        return [replaced(packet, d) for packet, d in zip(packets, data, strict=True)]

    options = {"bf": "1", "b_strategy": "0", "g": "12", "sc_threshold": "1000000000"}
    return write(path, count, codec="mpeg4", options=options, edit=pack)


def replaced(packet: Packet, data: bytes) -> Packet:
    """A packet with other data."""
    new = Packet(data)
    new.stream, new.pts, new.dts, new.time_base = packet.stream, packet.pts, packet.dts, packet.time_base
    new.is_keyframe, new.duration = packet.is_keyframe, packet.duration
    return new


def hidden_frames(path: Path, count: int, hidden: Sequence[int]) -> Path:
    """A WebM in VP8 with frames that are decoded, but not shown."""

    def hide(packets: list[Packet]) -> list[Packet]:
        data = [bytearray(bytes(packet)) for packet in packets]
        for place in hidden:
            data[place][0] &= 0xEF  # show_frame; RFC 6386, 9.1
        return [replaced(packet, bytes(d)) for packet, d in zip(packets, data, strict=True)]

    options = {"g": "100", "deadline": "realtime", "lag-in-frames": "0"}
    return write(path, count, codec="libvpx", options=options, edit=hide)


def ends_by_an_edit_list(path: Path, count: int = 40, shown: int = 20) -> Path:
    """An MP4 cut without encoding: an edit list ends before the last frames."""
    write(path, count, options=CLOSED_GOPS | {"bf": "0"})

    def shorten(data: bytearray) -> bytearray:
        struct.pack_into(">I", data, data.find(b"elst") + 12, shown * 1000 // 25)  # milliseconds
        return data

    return rewrite(path, shorten)


def webm_without_duration(path: Path, count: int = 40) -> Path:
    """A WebM as a live stream: no duration, no cues, sizes unknown."""
    return write(path, count, codec="libvpx", options={"deadline": "realtime"}, muxing={"live": "1"})


def sound_only(path: Path, codec: str = "aac") -> Path:
    """A second of silence."""
    with av.open(str(path), "w") as output:
        _silence(output, output.add_stream(codec, rate=44100))
    return path


def _silence(output: av.container.OutputContainer, stream: av.AudioStream) -> None:
    for i in range(40):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 44100, i * 1024
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def cover_art(path: Path) -> Path:
    """Sound with a picture of its cover: MP3 or MP4, by suffix."""
    with av.open(str(path), "w") as output:
        sound = output.add_stream("libmp3lame" if path.suffix == ".mp3" else "aac", rate=44100)
        cover = output.add_stream("png")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        image = VideoFrame.from_ndarray(picture(1), "rgb24").reformat(format=cover.pix_fmt)
        output.mux(cover.encode(image) + cover.encode(None))
        _silence(output, sound)
    return path


def two_streams(path: Path) -> Path:
    """Two video streams; the second, larger, is the default one."""
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, size in zip(streams, ((64, 48), (96, 64)), strict=True):
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        streams[0].disposition, streams[1].disposition = 0, av.stream.Disposition.default
        for i in range(20):
            for shift, stream in enumerate(streams):
                pixels = picture(i + 100 * shift, stream.width, stream.height)
                output.mux(stream.encode(VideoFrame.from_ndarray(pixels, "rgb24")))
        for stream in streams:
            output.mux(stream.encode(None))
    return path


def turned(path: Path, degrees: int, mirrored: bool = False) -> Path:
    """A video whose metadata ask for it to be shown turned against the clock, then mirrored left-right."""
    return write(path, 10, prepare=lambda stream: stream.set_display_rotation(degrees, hflip=mirrored))


def trimmed(path: Path, count: int = 40, hidden: int = 5) -> Path:
    """An MP4 cut without encoding: an edit list hides the first frames, which decoding needs."""

    def shift(packets: list[Packet]) -> list[Packet]:
        for packet in packets:
            packet.pts, packet.dts = packet.pts - hidden, packet.dts - hidden
        return packets

    muxing = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    return write(path, count, options=CLOSED_GOPS, muxing=muxing, edit=shift)


# Time stamps ---------------------------------------------------------------------------------------------


def timed(path: Path, milliseconds: Sequence[int]) -> Path:
    """A Matroska file whose frames bear these times, 0 to 32767, as they stand: uneven, repeated or going
    back. They are written into its blocks: identifier, length, track, time (16 bits), flags, JPEG picture."""
    write(path, len(milliseconds), codec="mjpeg", pixels="yuvj420p", container="matroska")

    def retime(data: bytearray) -> bytearray:
        place = 0
        for time in milliseconds:
            place = data.index(b"\xff\xd8\xff", place)
            struct.pack_into(">h", data, place - 3, time)
            place += 3
        return data

    return rewrite(path, retime)


def without_times(path: Path, count: int = 30) -> Path:
    """Raw H.264: no container, no time stamps."""
    return write(path, count, container="h264", options=CLOSED_GOPS)


def begun_inside_a_group(path: Path, count: int = 40, lost: int = 4) -> Path:
    """A video without its first packets, so that it begins where nothing can be decoded."""
    return write(path, count, options=CLOSED_GOPS | {"bf": "0"}, edit=lambda packets: packets[lost:])


def joined(path: Path, parts: Sequence[Path]) -> Path:
    """Files one behind the other."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def size_changes_inside(path: Path) -> Path:
    """One stream of JPEG pictures, 10 of 64 x 48, then 10 of 96 x 64."""
    larger = write(path.with_name("larger.mkv"), 20, codec="mjpeg", pixels="yuvj420p", size=(96, 64))
    with av.open(str(larger)) as container:
        data = [bytes(packet) for packet in container.demux(video=0)]

    def mix(packets: list[Packet]) -> list[Packet]:
        return packets[:10] + [replaced(p, d) for p, d in zip(packets[10:], data[10:20], strict=True)]

    return write(path, 20, codec="mjpeg", pixels="yuvj420p", edit=mix)


def size_changes(path: Path) -> Path:
    """A transport stream of 10 frames of 64 x 48, then 10 of 96 x 64."""
    parts = [path.with_suffix(f".{i}.ts") for i in range(2)]
    write(parts[0], 10, container="mpegts")
    write(parts[1], 10, container="mpegts", size=(96, 64), first=10)
    return joined(path, parts)


def codec_changes(path: Path) -> Path:
    """A transport stream of 10 frames in H.264, then 10 in MPEG-2."""
    parts = [path.with_suffix(f".{i}.ts") for i in range(2)]
    write(parts[0], 10, container="mpegts")
    write(parts[1], 10, container="mpegts", codec="mpeg2video", first=10)
    return joined(path, parts)


# Too much ------------------------------------------------------------------------------------------------


def huge_pictures(path: Path) -> Path:
    """A few kilobytes of one colour at 8192 x 8192."""
    path.write_bytes(_huge_pictures())
    return path


@cache
def _huge_pictures() -> bytes:
    file = BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "51"})
        stream.width, stream.height, stream.pix_fmt = 8192, 8192, "yuv420p"
        frame = VideoFrame(8192, 8192, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes([128]) * plane.buffer_size)
        for _ in range(3):
            frame.pts = None
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def promises_many_frames(path: Path, count: int = 1_000_000) -> Path:
    """An MP4 of a kilobyte whose tables promise `count` frames: listing them takes 24 bytes each."""
    write(path, 8, codec="mpeg4", options={"g": "1"}, edit=same)

    def multiply(data: bytearray) -> bytearray:
        for box, place, size in ((b"stsz", 12, 8), (b"stts", 12, 8), (b"stsc", 16, 8)):
            at = data.find(box) + place
            assert struct.unpack_from(">I", data, at)[0] == size, box
            struct.pack_into(">I", data, at, count)
        return data

    return rewrite(path, multiply)


def same(packets: list[Packet]) -> list[Packet]:
    """All packets with the data of the first."""
    return [replaced(packet, bytes(packets[0])) for packet in packets]


def many_frames(path: Path, count: int) -> Path:
    """`count` frames of 16 x 16, made of one key frame and copies of one frame that changes nothing."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=25, options={"g": "600"})
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        packets = []
        for i in range(3):
            frame = VideoFrame.from_ndarray(np.full((16, 16, 3), 90, np.uint8), "rgb24").reformat(
                format="yuv420p"
            )
            frame.pts = i
            packets += stream.encode(frame)
        key, still = bytes(packets[0]), bytes(packets[1])
        for i in range(count):
            packet = replaced(packets[0], key if i % 1000 == 0 else still)
            packet.pts = packet.dts = i
            packet.is_keyframe = i % 1000 == 0
            output.mux(packet)
    return path


# Text that names other files -----------------------------------------------------------------------------


def ffconcat(target: str) -> str:
    """FFmpeg's concat script."""
    return f"ffconcat version 1.0\nfile '{target}'\n"


def hls(target: str) -> str:
    """An HTTP live streaming play list."""
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n"


def dash(target: str) -> str:
    """A DASH manifest."""
    return (
        '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
        f"<BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>\n"
    )


def sdp(target: str) -> str:
    """A session description."""
    media = f"a=control:{target}\nm=video 5004 RTP/AVP 96\n"
    return f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n{media}"
