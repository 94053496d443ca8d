"""Which frames a video really has: when each is shown, and where decoding can begin.

`survey` reads the packets of a stream and decodes until the first picture; `index_packets` makes the index
from that. Where packets are not to be trusted (time stamps missing, repeated or going back, fields, a
beginning that cannot be decoded) it declines, and `index_frames` makes it from a survey that decoded all.
"""

from __future__ import annotations  # PyAV's packets are generic for type checkers only

import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Literal, cast

import av
import numpy as np
import numpy.typing as npt
from av.packet import Packet
from av.sidedata.sidedata import SideData, Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from marey.video.limits import Limits, Note, exceeded, too_slow

Times = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]
UNKNOWN = -(1 << 63)
GUESSED_PTS = ("avi", "asf", "matroska,webm")  # may store times of decoding only; FFmpeg guesses the others
BY_DTS = ("mpegts", "mpeg")  # are sought by time of decoding; others have an index by presentation
FIELD_CODECS = ("h264", "hevc", "mpeg2video", "vc1")  # the two fields of a frame may be two packets
NO_PICTURE = 19  # bytes; a shorter MPEG-4 packet only stands in for a picture that the one before brought
LONGEST = 1e9  # seconds; later times are damage
HDR_CURVES = (16, 18)  # SMPTE ST 2084 and ARIB STD-B67 (ITU-T H.273, table 3)


@dataclass(frozen=True)
class Picture:
    """What the first decoded frame tells of all.

    width, height  as stored, in pixels
    turn           what makes it upright: rows and columns exchanged, then mirrored left-right, then up-down
    eight_bits     no sample has more than 8 bits
    notes          what there is to tell of all frames
    """

    width: int
    height: int
    turn: tuple[bool, bool, bool] = (False, False, False)
    eight_bits: bool = True
    interlaced: bool = False
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Index:
    """The measured frames of a video; plain data.

    stream   its number in the file
    order    what tells frames apart: their time of presentation, that of decoding (AVI stores no other), or
             only their number, counted from the start of the file
    times    int64 [N], ascending: that time of frame i, in units of the stream
    seconds  float64 [N], ascending: when frame i is shown
    last     seconds for which the last frame is shown
    keys     int64 [K], ascending: the times of the frames at which decoding can begin
    seeks    int64 [K]: what to seek to for each
    """

    stream: int
    order: Literal["pts", "dts", "count"]
    times: Times
    seconds: Seconds
    last: float
    keys: Times
    seeks: Times
    picture: Picture
    notes: tuple[Note, ...] = ()


@dataclass
class Survey:
    """What a stream's packets say, one item each, and what the frames that were decoded on the way say."""

    pts: array[int] = field(default_factory=partial(array, "q"))
    dts: array[int] = field(default_factory=partial(array, "q"))
    durations: array[int] = field(default_factory=partial(array, "q"))
    keys: bytearray = field(default_factory=bytearray)
    hidden: bytearray = field(default_factory=bytearray)  # 1: decoded, but not shown
    smallest: int = 1 << 62  # bytes of a packet
    cut: bool = False  # the file ends inside a packet
    complete: bool = False  # everything was decoded
    first: VideoFrame | None = None
    frame_pts: array[int] = field(default_factory=partial(array, "q"))
    frame_dts: array[int] = field(default_factory=partial(array, "q"))
    flagged: bytearray = field(default_factory=bytearray)  # 1: damaged, says the decoder
    resized: int = 0  # frames of another size than the first


def survey(
    packets: Iterator[Packet[VideoStream]],
    decode: Callable[[Packet[VideoStream] | None], Iterable[VideoFrame]],
    stream: VideoStream,
    path: str,
    limits: Limits,
    everything: bool,
) -> Survey:
    """Reads all packets of a stream; decodes all, or only until the first frame comes out.

    `decode` gives the frames that come out for a packet, and for None those that are left. Raises
    LIMIT_EXCEEDED (frames) and MEDIA_TIMEOUT.
    """
    found, end = Survey(complete=everything), time.monotonic() + limits.seconds
    vp8 = stream.codec_context.codec.canonical_name == "vp8"
    transport = stream.container.format.name == "mpegts"
    packet: Packet[VideoStream] | None
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # what came before counts
            packet, found.cut = None, True
        if packet is not None and not packet.size:  # PyAV's mark of the end
            packet = None
        if packet is not None:
            if packet.is_corrupt and not transport:  # there, it means that some was lost on the way
                found.cut = True
                continue
            found.pts.append(UNKNOWN if packet.pts is None else packet.pts)
            found.dts.append(UNKNOWN if packet.dts is None else packet.dts)
            found.durations.append(packet.duration or 0)
            found.keys.append(packet.is_keyframe)
            # VP8's packets for reference only have the bit `show_frame` unset (RFC 6386, 9.1)
            found.hidden.append(packet.is_discard or (vp8 and not memoryview(packet)[0] & 16))
            found.smallest = min(found.smallest, packet.size)
        if everything or found.first is None:
            for frame in decode(packet):
                found.first = first = found.first or frame
                found.resized += (frame.width, frame.height) != (first.width, first.height)
                found.frame_pts.append(UNKNOWN if frame.pts is None else frame.pts)
                found.frame_dts.append(UNKNOWN if frame.dts is None else frame.dts)
                found.flagged.append(frame.is_corrupt)
        if packet is None:
            return found
        if len(found.pts) > limits.frames:
            raise exceeded(path, "has more frames", "frames", limits.frames)
        if time.monotonic() > end:
            raise too_slow(path, limits.seconds)


def index_packets(found: Survey, stream: VideoStream) -> Index | None:
    """The index that packets alone tell, or None where they are not to be trusted."""
    pts, dts, first = np.array(found.pts), np.array(found.dts), found.first
    container, codec = stream.container.format.name, stream.codec_context.codec.canonical_name
    if first is None or not found.keys[0] or (np.diff(dts[dts != UNKNOWN]) <= 0).any():
        return None
    if first.interlaced_frame and codec in FIELD_CODECS:
        return None
    if (container in GUESSED_PTS or codec == "mpeg4") and _lacks_pts(found, stream):
        return _index_dts(found, stream)
    times = np.sort(pts[np.array(found.hidden) == 0])
    if pts.min() < pts[0] or (np.diff(times) <= 0).any() or first.pts != times[0]:
        return None
    index = _index_pts(found, stream, times)
    return index if (np.diff(index.seconds) > 0).all() else None


def index_frames(found: Survey, stream: VideoStream) -> Index | None:
    """The index that all decoded frames tell; None if there are none."""
    if found.first is None:
        return None
    pts, dts = np.array(found.frame_pts), np.array(found.frame_dts)
    if UNKNOWN not in pts and (np.diff(pts) > 0).all():
        index = _index_pts(found, stream, pts)
        if len(index.keys) and (np.diff(index.seconds) > 0).all():
            return index
    better, last = dts if (pts == UNKNOWN).sum() > (dts == UNKNOWN).sum() else pts, _last(found, stream)
    seconds, wrong = _repaired(better, stream, last)
    note = Note("TIMESTAMPS_REPAIRED", f"{wrong} of {len(pts)} time stamps are missing, repeated or go back")
    start, picture = np.zeros(1, np.int64), picture_of(found.first, stream)
    return Index(stream.index, "count", np.arange(len(pts)), seconds, last, start, start, picture, (note,))


def _index_pts(found: Survey, stream: VideoStream, times: Times) -> Index:
    """An index by times of presentation: `times` of the frames, ascending."""
    keys = np.array(found.keys, bool)
    pts, dts = np.array(found.pts)[keys], np.array(found.dts)[keys]
    order = np.argsort(pts, kind="stable")[(pts == UNKNOWN).sum() :]
    seeks = np.where(dts == UNKNOWN, pts, dts) if stream.container.format.name in BY_DTS else pts
    seconds, last = _seconds(times, stream), _last(found, stream)
    picture = picture_of(cast("VideoFrame", found.first), stream)
    return Index(stream.index, "pts", times, seconds, last, pts[order], seeks[order], picture)


def _index_dts(found: Survey, stream: VideoStream) -> Index | None:
    """An index by times of decoding, as decoded frames bear them: of the packet that pushed each out.

    None where they are not complete.
    """
    first, dts, keys = cast("VideoFrame", found.first), np.array(found.dts), np.array(found.keys, bool)
    if UNKNOWN in dts or first.dts not in dts:
        return None
    delay = int(np.flatnonzero(dts == first.dts)[0])
    step = int(np.median(np.diff(dts))) if len(dts) > 1 else 1
    times = np.concatenate([dts[delay:], dts[-1] + step * np.arange(1, delay + 1)])
    seconds, last, picture = _seconds(dts, stream), _last(found, stream), picture_of(first, stream)
    return Index(stream.index, "dts", times, seconds, last, times[keys], dts[keys], picture)


def _lacks_pts(found: Survey, stream: VideoStream) -> bool:
    """Whether the file stores times of decoding only, so that times of presentation are FFmpeg's guesses."""
    container, context = stream.container.format.name, stream.codec_context
    if container in ("avi", "asf"):
        return found.pts != found.dts
    if not context.reorder_depth:
        return False
    if container == "matroska,webm":  # "V_MS/VFW/FOURCC", converted from AVI
        return UNKNOWN not in found.dts and bool((np.diff(found.pts) > 0).all())
    return found.smallest <= NO_PICTURE


def _seconds(times: Times, stream: VideoStream) -> Seconds:
    unit = stream.time_base or Fraction(1)
    return times.astype(np.float64) * unit.numerator / unit.denominator  # exact below 2 ** 53


def _last(found: Survey, stream: VideoStream) -> float:
    """Seconds for which the last frame is shown: its packet says, or the usual distance, or the rate."""
    pts = np.array(found.pts)
    ticks = found.durations[int(pts.argmax())]
    if ticks <= 0 and len(pts) > 1:
        ticks = int(np.median(np.diff(np.sort(pts))))
    seconds = float(ticks * (stream.time_base or 1))
    return seconds if seconds > 0 else float(1 / (stream.average_rate or 25))


def _repaired(times: Times, stream: VideoStream, step: float) -> tuple[Seconds, int]:
    """Seconds of frames as decoded, and how many got some between their neighbours for lack of good ones."""
    seconds, number = np.where(times == UNKNOWN, -np.inf, _seconds(times, stream)), np.arange(len(times))
    good = seconds > np.concatenate([[-np.inf], np.maximum.accumulate(seconds)[:-1]])
    good &= seconds < LONGEST
    if not good.any():
        return (number * step).astype(np.float64), len(times)
    at, known = number[good], seconds[good]
    outside = np.minimum(number - at[0], 0) + np.maximum(number - at[-1], 0)
    return (np.interp(number, at, known) + outside * step).astype(np.float64), int((~good).sum())


def picture_of(frame: VideoFrame, stream: VideoStream) -> Picture:
    """What a decoded frame tells of size, orientation and samples."""
    turn, eight_bits, alpha, notes = (False, False, False), True, False, []
    for data in cast("Iterable[SideData]", frame.side_data):
        if data.type == Type.DISPLAYMATRIX:
            # (x, y) is shown at (a x + c y, b x + d y); FFmpeg, libavutil/display.h
            a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
            turn = (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)
    for component in frame.format.components:
        eight_bits &= component.bits <= 8
        alpha |= component.is_alpha
    aspect = stream.codec_context.sample_aspect_ratio
    if aspect and abs(aspect - 1) > 0.02:  # less is rounding of the size by whoever made the file
        notes.append(Note("SAMPLE_ASPECT", f"pixels are {aspect} as wide as high; they are kept as stored"))
    if frame.interlaced_frame:
        notes.append(Note("INTERLACED", "frames hold two fields; they are kept as stored"))
    if frame.color_trc in HDR_CURVES:
        notes.append(Note("HDR", "brightness has a curve for HDR; it is not mapped to SDR"))
    if alpha and stream.codec_context.name != "gif":
        notes.append(Note("ALPHA_DROPPED", "pictures have transparency; their colours are kept, it is not"))
    return Picture(frame.width, frame.height, turn, eight_bits, frame.interlaced_frame, tuple(notes))


def notes_of(found: Survey, index: Index, stream: VideoStream, claimed: int) -> tuple[Note, ...]:
    """What there is to tell of a file that is cut, damaged or odd; `claimed` frames by its headers, or 0."""
    notes, count = [], len(index.times)
    if found.cut:
        text = f"{count} of {claimed}" if claimed > count else f"{count}"
        notes.append(Note("MEDIA_TRUNCATED", f"the file ends too early; {text} frames can be decoded"))
    if found.complete:
        notes += _damage(found, index)
    if found.resized:
        text = f"{found.resized} of {count} frames have another size and are resized to that of the first"
        notes.append(Note("SIZE_CHANGED", text))
    if (videos := len(stream.container.streams.video)) > 1:
        notes.append(Note("VIDEO_STREAMS", f"{videos} video streams; number {stream.index} is read"))
    return (*notes, *index.notes, *index.picture.notes)


def _damage(found: Survey, index: Index) -> list[Note]:
    """FRAMES_DAMAGED and FRAMES_UNDECODABLE, where all frames were decoded."""
    moments = np.array(found.frame_dts if index.order == "dts" else found.frame_pts)
    if index.order == "count":
        moments = index.times.copy()
    late = int((moments == UNKNOWN).sum())
    moments[moments == UNKNOWN] = index.times[len(index.times) - late :]  # the last frames by dts bear none
    lost = ~np.isin(index.times, moments)
    damaged = np.isin(index.times, moments[np.array(found.flagged) == 1])
    bad = np.flatnonzero(lost | damaged)
    notes = []
    if len(bad):
        text = f"{len(bad)} of {len(index.times)} frames are damaged, the first is frame {bad[0]}"
        text += f"; for {lost.sum()} that give no picture, the one before is shown" if lost.any() else ""
        notes.append(Note("FRAMES_DAMAGED", text))
    without = len(found.pts) - sum(found.hidden) - len(moments) - int(lost.sum())
    if without > 0 and not index.picture.interlaced:
        text = f"{without} coded frames give no picture and are left out, as before the first key frame"
        notes.append(Note("FRAMES_UNDECODABLE", text))
    return notes
