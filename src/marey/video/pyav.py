"""PyAV: FFmpeg from its wheel. It measures every file, and decodes all that torchcodec does not.

YUV becomes RGB by swscale at its bicubic setting, as in torchcodec: samples of 8 bits give equal bytes.
"""

from __future__ import annotations  # PyAV's packets are generic for type checkers only

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol, cast

import av
import numpy as np
import numpy.typing as npt
import torch
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from marey.errors import MediaError
from marey.video.index import Index, index_frames, index_packets, notes_of, survey
from marey.video.limits import Limits, Note, exceeded, too_slow
from marey.video.sniff import MediaFile, check_unchanged

Indices = npt.NDArray[np.int64]
COVERS = Disposition.attached_pic | Disposition.timed_thumbnails
# How key frames begin in transport streams, the only ones whose codec changes on the way: the byte after the
# first start code is an access unit delimiter, a parameter set or a sequence header
_CODEC_OF_BYTE = {0x09: "h264", 0x67: "h264", 0x27: "h264", 0x40: "hevc", 0x46: "hevc", 0xB3: "mpeg2video"}


class Decoder(Protocol):
    """One open video in one process.

    name   "pyav", "torchcodec" or "pillow"
    found  what decoding found so far, by code
    """

    name: str
    found: dict[str, Note]

    def read(self, indices: Indices) -> Tensor:
        """The frames of these numbers, in this order: uint8 [T, H, W, 3]."""

    def close(self) -> None:
        """Frees decoder and file."""


def default_stream(container: InputContainer) -> VideoStream | None:
    """The default video stream, of several that with most pixels, the others off; None if there is none."""
    best, found = (False, -1), None
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & COVERS:
            rank = (bool(stream.disposition & Disposition.default), stream.width * stream.height)
            if rank > best:
                best, found = rank, stream
    for other in container.streams:
        if other is not found:
            other.discard = Discard.all
    return found


def pixels_of(
    frame: VideoFrame, size: tuple[int, int], turn: tuple[bool, bool, bool], converter: VideoReformatter
) -> npt.NDArray[np.uint8]:
    """A decoded frame of this (width, height), then turned as of `Picture.turn`: uint8 [H, W, 3], RGB."""
    width, height = size
    exchanged, left_right, up_down = turn
    rgb = converter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.BICUBIC, threads=1)
    padded = np.frombuffer(memoryview(rgb.planes[0]), np.uint8).reshape(height, -1)
    pixels = padded[:, : 3 * width].reshape(height, width, 3)
    if exchanged:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if up_down else 1, :: -1 if left_right else 1]


class PyAVDecoder:
    """Seeks to the key frame at or before, decodes forward, converts what is asked for.

    index    measured when opened, unless given
    decoded  how many frames were decoded for reading since then
    """

    name = "pyav"

    def __init__(
        self,
        file: MediaFile,
        limits: Limits,
        *,
        index: Index | None = None,
        upright: bool = True,
        threads: int = 1,
        thorough: bool = False,
    ) -> None:
        self._file, self._limits, self._threads = file, limits, 1
        self._format = VideoReformatter()
        self._damaged: set[int] = set()
        self._lost: set[int] = set()
        self._ready: deque[VideoFrame] = deque()
        self._held: VideoFrame | None = None  # the last that was decoded, number `_at`
        self._drained, self._waiting, self._entry, self._step, self._end = False, False, 0, 1, 0.0
        self.found: dict[str, Note] = {}
        self.decoded = 0
        self._open()
        self.index = index or self._measure(thorough)
        if threads != 1 and self.index.order == "pts":  # threads change the times of decoding frames bear
            self._threads = threads
            self._restart()
        self._at = len(self.index.times)  # so that reading begins with a seek
        self._turn = self.index.picture.turn if upright else (False, False, False)

    def read(self, indices: Indices) -> Tensor:
        """The frames of these numbers, in this order: uint8 [T, H, W, 3]."""
        width, height = self.index.picture.width, self.index.picture.height
        shape = (width, height) if self._turn[0] else (height, width)
        out = torch.empty((len(indices), *shape, 3), dtype=torch.uint8)
        rows, previous = out.numpy(), -1
        self._end = time.monotonic() + self._limits.seconds
        for place in np.argsort(indices, kind="stable").tolist():
            if previous >= 0 and indices[place] == indices[previous]:
                rows[place] = rows[previous]
                continue
            frame, previous = self._frame(int(indices[place])), place
            if frame.is_corrupt or (frame.width, frame.height) != (width, height):
                self._note(int(indices[place]), frame)
            rows[place] = pixels_of(frame, (width, height), self._turn, self._format)
        check_unchanged(self._file)
        return out

    def close(self) -> None:
        """Frees decoder and file."""
        self._container.close()
        self._file.raw.close()

    def detach(self) -> MediaFile:
        """Frees the decoder and gives back the open file."""
        self._container.close()
        return self._file

    # Opening and measuring

    def _open(self) -> None:
        """Opens the container, and the default video stream, of several the one with most pixels."""
        self._file.raw.seek(0)
        try:
            self._container: InputContainer = av.open(
                self._file.raw,
                "r",
                format=self._file.kind,
                options={"max_pixels": str(self._limits.pixels), "protocol_whitelist": ""},
                metadata_errors="replace",
                buffer_size=65536,
            )
        except av.FFmpegError as error:
            raise self._unreadable(error) from error
        stream = default_stream(self._container)
        if stream is None:
            raise self._without_video()
        self._stream, self._codec = stream, stream.codec_context
        self._codec.thread_count, self._codec.thread_type = self._threads, "AUTO"
        self._codec.options = {"max_pixels": str(self._limits.pixels)}
        if stream.width * stream.height > self._limits.pixels:
            what = f"has frames of {self._codec.width} x {self._codec.height} pixels"
            raise exceeded(self._file.path, what, "pixels", self._limits.pixels)

    def _measure(self, thorough: bool) -> Index:
        """The index by packets where they can be trusted, else by decoding everything."""
        index, everything = None, thorough
        while index is None:
            found = survey(
                self._container.demux(self._stream),
                self._decode,
                self._stream,
                self._file.path,
                self._limits,
                everything,
            )
            index = index_packets(found, self._stream)
            if index is None and everything:
                index = index_frames(found, self._stream)
                if index is None:
                    raise self._undecodable("no frame can be decoded")
            elif index is None:
                everything = True
                self._restart()
        found.cut |= self._file.end > self._file.stamp[0]
        claimed = self._stream.frames if self._file.kind == "mp4" else 0
        return replace(index, notes=notes_of(found, index, self._stream, claimed))

    def _restart(self) -> None:
        self._container.close()
        self._open()

    # Decoding

    def _frame(self, number: int) -> VideoFrame:
        """The decoded frame of this number; where it gives no picture, the one before (noted)."""
        index = self.index
        entry = max(int(index.keys.searchsorted(index.times[number], "right")) - 1, 0)
        if number < self._at or index.times.searchsorted(index.keys[entry]) > self._at + 1:
            self._seek(entry)
        self._step = 1
        while self._at != number or self._held is None:
            place, frame = self._next()
            if frame is None or place > number:
                if frame is not None:
                    self._ready.appendleft(frame)
                shown = self._in_place_of(number)
                if shown is not None:
                    return shown
            elif place >= 0:
                self._at, self._held = place, frame
        return self._held

    def _next(self) -> tuple[int, VideoFrame | None]:
        """The next frame that comes out, and its number (-1: none of the video's); None at the end."""
        while not self._ready:
            if self._drained:
                return -1, None
            try:
                packet = next(self._packets, None)
            except av.FFmpegError:  # the end, as when the file was measured
                packet = None
            if time.monotonic() > self._end:
                raise too_slow(self._file.path, self._limits.seconds)
            if packet is None or not packet.size:
                self._drained, packet = True, None
            elif (packet.is_corrupt and self._file.kind != "mpegts") or (
                self._waiting and not packet.is_keyframe
            ):
                continue
            self._waiting = False
            self._ready.extend(self._decode(packet))
            self.decoded += len(self._ready)
        frame, index = self._ready.popleft(), self.index
        if index.order == "count":
            return self._at + 1, frame
        moment = frame.pts if index.order == "pts" else frame.dts
        if moment is None:  # the last frames by dts, which no packet pushed out of the decoder
            return self._at + 1 if self._at >= 0 and index.order == "dts" else -1, frame
        place = int(index.times.searchsorted(moment))
        return place if place < len(index.times) and index.times[place] == moment else -1, frame

    def _decode(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """The frames that come out for a packet (None: those that are left); none where it is damaged."""
        before = []
        if packet is not None and packet.is_keyframe and self._file.kind == "mpegts":
            before = self._change_codec(packet)
        try:
            return before + self._codec.decode(packet)
        except av.FFmpegError:  # the frame will be missed by its number
            return before

    def _seek(self, entry: int) -> None:
        """Goes to the key frame at this place of `index.keys`; -1, or failing that: to the file's start."""
        self._ready.clear()
        self._at, self._held, self._entry = -1, None, entry
        self._drained, self._waiting = False, entry >= 0
        if entry < 0 or self.index.order == "count":
            self._restart()
        else:
            try:
                self._container.seek(int(self.index.seeks[entry]), stream=self._stream)
                self._codec.flush_buffers()
            except av.FFmpegError:
                self._restart()
        self._packets: Iterator[Packet[VideoStream]] = self._container.demux(self._stream)

    # What is rare

    def _change_codec(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        """Another decoder, where the packet is of another codec; gives the frames left in the one so far."""
        _, _, start = bytes(memoryview(packet)[:64]).partition(b"\0\0\1")
        now = self._codec.codec.canonical_name
        name = _CODEC_OF_BYTE.get(start[0], now) if start else now
        if name == now or now not in _CODEC_OF_BYTE.values():
            return []
        left = self._decode(None)
        self._codec = cast("VideoCodecContext", av.CodecContext.create(name, "r"))
        self._codec.thread_count = self._threads
        self._codec.options = {"max_pixels": str(self._limits.pixels)}
        text = f"the codec changes on the way, as from {now} to {name}"
        self.found["CODEC_CHANGED"] = Note("CODEC_CHANGED", text)
        return left

    def _in_place_of(self, number: int) -> VideoFrame | None:
        """What to show for a frame that the stream passed by; None after seeking further back for it."""
        if self._held is None and self._entry >= 0:  # the seek went too far, or nothing decodes there
            step = self._step
            self._seek(max(self._entry - step, -1))
            self._step = 2 * step
            return None
        if self._held is None and not self._ready:
            raise self._undecodable(f"frame {number} cannot be decoded, nor any other near it")
        self._lost.add(number)
        self._note(number)
        return self._held or self._ready[0]

    def _note(self, number: int, frame: VideoFrame | None = None) -> None:
        """Notes a frame that is damaged (None: that gives no picture), or of another size."""
        if frame is None or frame.is_corrupt:
            self._damaged.add(number)
            bad = self._damaged
            text = f"{len(bad)} of the frames read are damaged, the first is frame {min(bad)}"
            if self._lost:
                text += f"; for {len(self._lost)} that give no picture, the one before is shown"
            self.found["FRAMES_DAMAGED"] = Note("FRAMES_DAMAGED", text)
        elif "SIZE_CHANGED" not in self.found:
            text = f"frames such as {number} have another size and are resized to that of the first"
            self.found["SIZE_CHANGED"] = Note("SIZE_CHANGED", text)

    def _undecodable(self, what: str) -> MediaError:
        check_unchanged(self._file)
        return MediaError(
            "NOT_DECODABLE",
            f"{self._file.path!r}: {what} ({self._codec.name} in {self._file.kind}); fetch the file again",
        )

    def _unreadable(self, error: av.FFmpegError) -> MediaError:
        check_unchanged(self._file)
        if self._file.indexed:
            what = f"FFmpeg cannot read it as {self._file.kind} ({error.strerror})"
        else:
            what = "index missing (no `moov`): the recording or download stopped before its end"
        what = f"{self._file.path!r}: {what}; fetch the file again, or repair it"
        return MediaError("NOT_DECODABLE", what)

    def _without_video(self) -> MediaError:
        path, streams = self._file.path, self._container.streams
        if not streams:
            return MediaError(
                "NOT_DECODABLE", f"{path!r} holds no stream that FFmpeg finds; fetch the file again"
            )
        if any(not stream.disposition & COVERS for stream in streams.video):
            return MediaError(
                "NOT_DECODABLE", f"{path!r}: FFmpeg has no decoder for its codec; convert the file"
            )
        return MediaError("NO_VIDEO", f"{path!r} has no video stream, only sound or pictures; give a video")
