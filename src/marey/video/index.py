"""Which frames a video really has: when each is shown, and where decoding can begin.

`survey` reads the packets of a stream and decodes until the first picture; `index_packets` makes the index
from that. Where packets are not to be trusted (time stamps missing, repeated or going back, fields, a
beginning that cannot be decoded) it declines, and `index_frames` makes it from a survey that decoded all.
"""

from __future__ import annotations  # PyAV's packets are generic for type checkers only

import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
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
FIELD_CODECS = ("h264", "hevc", "mpeg2video", "vc1")  # the two fields of a frame may be two packets
NO_PICTURE = 19  # bytes; a shorter MPEG-4 packet only stands in for a picture that the one before brought
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

    def shown(self, upright: bool) -> tuple[int, int]:
        """(width, height) of the frames that are given out."""
        return (self.height, self.width) if upright and self.turn[0] else (self.width, self.height)


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

    def number(self, frame: VideoFrame, previous: int) -> int:
        """Which frame this is, given the one decoded before it (-1: none); -1 for none of the video's."""
        if self.order == "count":
            return previous + 1
        moment = frame.pts if self.order == "pts" else frame.dts
        if moment is None:  # the last frames by dts, which no packet pushed out of the decoder
            return previous + 1 if previous >= 0 and self.order == "dts" else -1
        place = int(np.searchsorted(self.times, moment))
        return place if place < len(self.times) and self.times[place] == moment else -1


def _numbers() -> array[int]:
    return array("q")


@dataclass
class Survey:
    """What a stream's packets say, and the frames decoded on the way; times in units of the stream."""

    pts: array[int] = field(default_factory=_numbers)
    dts: array[int] = field(default_factory=_numbers)
    durations: array[int] = field(default_factory=_numbers)
    keys: bytearray = field(default_factory=bytearray)
    hidden: bytearray = field(default_factory=bytearray)  # 1: decoded, but not shown
    smallest: int = 1 << 62  # bytes of a packet
    cut: bool = False  # the file ends inside a packet
    first: VideoFrame | None = None
    frame_pts: array[int] = field(default_factory=_numbers)
    frame_dts: array[int] = field(default_factory=_numbers)
    damaged: list[int] = field(default_factory=list)  # places of frames that the decoder flags
    resized: int = 0

    def add(self, packet: Packet[VideoStream], hidden: bool) -> None:
        """Notes what a packet says."""
        self.pts.append(UNKNOWN if packet.pts is None else packet.pts)
        self.dts.append(UNKNOWN if packet.dts is None else packet.dts)
        self.durations.append(packet.duration or 0)
        self.keys.append(packet.is_keyframe)
        self.hidden.append(hidden)
        self.smallest = min(self.smallest, packet.size)

    def add_frame(self, frame: VideoFrame) -> None:
        """Notes what a decoded frame says."""
        self.first = first = self.first or frame
        if frame.is_corrupt:
            self.damaged.append(len(self.frame_pts))
        self.resized += (frame.width, frame.height) != (first.width, first.height)
        self.frame_pts.append(UNKNOWN if frame.pts is None else frame.pts)
        self.frame_dts.append(UNKNOWN if frame.dts is None else frame.dts)


def survey(
    packets: Iterable[Packet[VideoStream]],
    decode: Callable[[Packet[VideoStream] | None], Iterable[VideoFrame]],
    stream: VideoStream,
    *,
    path: str,
    limits: Limits,
    everything: bool,
) -> Survey:
    """Reads all packets of a stream; decodes all, or only until the first frame comes out.

    `decode` gives the frames that come out for a packet, and for None those that are left. Raises
    LIMIT_EXCEEDED (frames) and MEDIA_TIMEOUT.
    """
    found, end = Survey(), time.monotonic() + limits.seconds
    vp8 = stream.codec_context.codec.canonical_name == "vp8"
    try:
        for packet in packets:
            if is_cut(packet, stream):
                found.cut = True
            elif packet.size:  # the mark of the end has none
                # VP8's packets for reference only have the bit `show_frame` unset (RFC 6386, 9.1)
                found.add(packet, packet.is_discard or (vp8 and not memoryview(packet)[0] & 16))
                if everything or found.first is None:
                    for frame in decode(packet):
                        found.add_frame(frame)
            if len(found.pts) > limits.frames:
                raise exceeded(path, "has more frames", "frames", limits.frames)
            if time.monotonic() > end:
                raise too_slow(path, limits.seconds)
    except av.FFmpegError:  # what came before counts
        found.cut = True
    if everything or found.first is None:
        for frame in decode(None):
            found.add_frame(frame)
    return found


def is_cut(packet: Packet[VideoStream], stream: VideoStream) -> bool:
    """Whether the file ends inside this packet; in transport streams that mark means that some was lost."""
    return packet.is_corrupt and stream.container.format.name != "mpegts"


def index_packets(found: Survey, stream: VideoStream) -> Index | None:
    """The index that packets alone tell, or None where they are not to be trusted."""
    if found.first is None or not found.keys[0]:
        return None
    pts, dts, keys = np.array(found.pts), np.array(found.dts), np.array(found.keys, bool)
    picture, codec = picture_of(found.first, stream), stream.codec_context.codec.canonical_name
    if not _ascends(dts[dts != UNKNOWN]) or (picture.interlaced and codec in FIELD_CODECS):
        return None
    last = _last(found, stream)
    if _lacks_pts(found, pts, dts, stream):
        if UNKNOWN in dts or found.first.dts not in dts:
            return None
        times = _delayed(dts, found.first.dts)
        return Index(stream.index, "dts", times, _seconds(dts, stream), last, times[keys], dts[keys], picture)
    times = np.sort(pts[np.array(found.hidden) == 0])
    if pts.min() < pts[0] or not _ascends(times) or found.first.pts != times[0]:
        return None
    return Index(stream.index, "pts", times, _seconds(times, stream), last, *_entries(found, stream), picture)


def index_frames(found: Survey, stream: VideoStream) -> Index | None:
    """The index that all decoded frames tell; None if there are none."""
    if found.first is None:
        return None
    picture, last = picture_of(found.first, stream), _last(found, stream)
    pts, dts = np.array(found.frame_pts), np.array(found.frame_dts)
    keys, seeks = _entries(found, stream)
    if UNKNOWN not in pts and _ascends(pts) and len(keys):
        return Index(stream.index, "pts", pts, _seconds(pts, stream), last, keys, seeks, picture)
    better = dts if (pts == UNKNOWN).sum() > (dts == UNKNOWN).sum() else pts
    seconds, wrong = _repaired(better, stream, last)
    note = Note("TIMESTAMPS_REPAIRED", f"{wrong} of {len(pts)} time stamps are missing, repeated or go back")
    start = np.zeros(1, np.int64)
    return Index(stream.index, "count", np.arange(len(pts)), seconds, last, start, start, picture, (note,))


def picture_of(frame: VideoFrame, stream: VideoStream) -> Picture:
    """What a decoded frame tells of size, orientation and samples."""
    turn = (False, False, False)
    side = {data.type: data for data in cast("Iterable[SideData]", frame.side_data)}
    if Type.DISPLAYMATRIX in side:
        # (x, y) is shown at (a x + c y, b x + d y); FFmpeg, libavutil/display.h
        a, b, _, c, d = np.frombuffer(bytes(side[Type.DISPLAYMATRIX]), np.int32)[:5].tolist()
        turn = (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)
    eight_bits = all(component.bits <= 8 for component in frame.format.components)
    notes, aspect = [], stream.codec_context.sample_aspect_ratio
    if aspect and abs(aspect - 1) > 0.02:  # less is rounding of the size by whoever made the file
        notes.append(Note("SAMPLE_ASPECT", f"pixels are {aspect} as wide as high; they are kept as stored"))
    if frame.interlaced_frame:
        notes.append(Note("INTERLACED", "frames hold two fields; they are kept as stored"))
    if frame.color_trc in HDR_CURVES:
        notes.append(Note("HDR", "brightness has a curve for HDR; it is not mapped to SDR"))
    if any(part.is_alpha for part in frame.format.components) and stream.codec_context.name != "gif":
        notes.append(Note("ALPHA_DROPPED", "pictures have transparency; their colours are kept, it is not"))
    return Picture(frame.width, frame.height, turn, eight_bits, frame.interlaced_frame, tuple(notes))


def notes_of(
    found: Survey, index: Index, stream: VideoStream, *, missing: int, everything: bool
) -> tuple[Note, ...]:
    """What there is to tell of a file: `missing` bytes at its end, and whether everything was decoded."""
    notes, count, coded = [], len(index.times), len(found.pts)
    claimed = stream.frames if "mp4" in stream.container.format.name else 0
    if missing or found.cut or claimed > coded:
        text = f"{count} of {claimed}" if claimed > count else f"{count}"
        notes.append(Note("MEDIA_TRUNCATED", f"the file ends too early; {text} frames can be decoded"))
    if everything:
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
        moments = index.times
    late = int((moments == UNKNOWN).sum())
    moments[moments == UNKNOWN] = index.times[len(index.times) - late :]  # the last frames by dts bear none
    lost = np.flatnonzero(~np.isin(index.times, moments))
    bad = np.union1d(lost, np.searchsorted(index.times, moments[found.damaged]))
    notes = []
    if len(bad):
        text = f"{len(bad)} of {len(index.times)} frames are damaged, the first is frame {bad[0]}"
        text += f"; for {len(lost)} that give no picture, the one before is shown" if len(lost) else ""
        notes.append(Note("FRAMES_DAMAGED", text))
    without = len(found.pts) - sum(found.hidden) - len(moments) - len(lost)
    if without > 0 and not index.picture.interlaced:
        text = f"{without} coded frames give no picture and are left out, as before the first key frame"
        notes.append(Note("FRAMES_UNDECODABLE", text))
    return notes


def _lacks_pts(found: Survey, pts: Times, dts: Times, stream: VideoStream) -> bool:
    """Whether the file stores times of decoding only, so that times of presentation are FFmpeg's guesses."""
    container, context = stream.container.format.name, stream.codec_context
    if container in ("avi", "asf"):
        return bool((pts != dts).any())
    if not context.reorder_depth:
        return False
    if "matroska" in container:  # "V_MS/VFW/FOURCC", converted from AVI
        return UNKNOWN not in dts and _ascends(pts)
    return context.codec.canonical_name == "mpeg4" and found.smallest <= NO_PICTURE


def _ascends(times: Times) -> bool:
    return bool((np.diff(times) > 0).all())


def _delayed(dts: Times, first: int | None) -> Times:
    """Times of decoding as frames bear them: that of the packet that pushed each out of the decoder."""
    delay = int(np.flatnonzero(dts == first)[0])
    step = int(np.median(np.diff(dts))) if len(dts) > 1 else 1
    return np.concatenate([dts[delay:], dts[-1] + step * np.arange(1, delay + 1)])


def _entries(found: Survey, stream: VideoStream) -> tuple[Times, Times]:
    """Times of presentation of the key frames, ascending, and what to seek to for each."""
    keys = np.array(found.keys, bool)
    pts, dts = np.array(found.pts)[keys], np.array(found.dts)[keys]
    keep = np.flatnonzero(pts != UNKNOWN)
    keep = keep[np.argsort(pts[keep], kind="stable")]
    by_dts = stream.container.format.name in ("mpegts", "mpeg")  # others have an index by presentation
    return pts[keep], np.where(by_dts & (dts != UNKNOWN), dts, pts)[keep]


def _seconds(times: Times, stream: VideoStream) -> Seconds:
    unit = stream.time_base or Fraction(1, 1)
    return times * unit.numerator / unit.denominator


def _last(found: Survey, stream: VideoStream) -> float:
    """Seconds for which the last frame is shown: its packet says, or the usual distance, or the rate."""
    pts = np.array(found.pts)
    distances = np.diff(np.unique(pts))
    ticks = found.durations[int(np.argmax(pts))] or (int(np.median(distances)) if len(distances) else 0)
    seconds = float(ticks * (stream.time_base or 1))
    return seconds if seconds > 0 else float(1 / (stream.average_rate or 25))


def _repaired(times: Times, stream: VideoStream, step: float) -> tuple[Seconds, int]:
    """Seconds of frames as decoded, and how many got some between their neighbours for lack of good ones."""
    good = times > np.concatenate([[UNKNOWN], np.maximum.accumulate(times)[:-1]])
    number = np.arange(len(times))
    if not good.any():
        return number * step, len(times)
    at, known = number[good], _seconds(times[good], stream)
    seconds = np.interp(number, at, known)
    seconds += np.minimum(number - at[0], 0) * step + np.maximum(number - at[-1], 0) * step
    return seconds.astype(np.float64), int((~good).sum())
