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
from marey.video.index import Index, Survey, index_frames, index_packets, is_cut, notes_of, survey
from marey.video.limits import Limits, Note, exceeded, too_slow
from marey.video.sniff import MediaFile

Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
# How key frames begin in transport streams, the only ones whose codec changes on the way: the byte after the
# first start code is an access unit delimiter, a parameter set or a sequence header
_CODEC_OF_BYTE = {0x09: "h264", 0x67: "h264", 0x27: "h264", 0x40: "hevc", 0x46: "hevc", 0xB3: "mpeg2video"}


class Decoder(Protocol):
    """One open video in one process."""

    name: str

    @property
    def notes(self) -> tuple[Note, ...]:
        """What decoding found so far."""

    def read(self, indices: Indices) -> Tensor:
        """The frames of these numbers, in this order: uint8 [T, H, W, 3]."""

    def close(self) -> None:
        """Frees decoder and file."""


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
        self._lost: set[int] = set()
        self._damaged: set[int] = set()
        self._resized: set[int] = set()
        self._codecs: list[str] = []
        self._ready: deque[VideoFrame] = deque()
        self._packets: Iterator[Packet[VideoStream]] = iter(())
        self._held: VideoFrame | None = None  # the last that was decoded, number `_at`
        self._drained, self._waiting, self._entry, self._end = False, False, 0, 0.0
        self.decoded = 0
        self._open()
        self.index = index or self._measure(thorough)
        if threads != 1 and self.index.order == "pts":  # threads change the times of decoding frames bear
            self._threads = threads
            self._restart()
        self._at = len(self.index.times)  # so that reading begins with a seek
        self._turn = self.index.picture.turn if upright else (False, False, False)

    @property
    def notes(self) -> tuple[Note, ...]:
        """FRAMES_DAMAGED, SIZE_CHANGED and CODEC_CHANGED, as far as the frames read so far show."""
        notes = []
        if self._codecs:
            notes.append(
                Note("CODEC_CHANGED", f"the codec changes on the way, to {' and '.join(self._codecs)}")
            )
        if bad := sorted(self._damaged | self._lost):
            text = f"{len(bad)} of the frames read are damaged, the first is frame {bad[0]}"
            if self._lost:
                text += f"; for {len(self._lost)} that give no picture, the one before is shown"
            notes.append(Note("FRAMES_DAMAGED", text))
        if count := len(self._resized):
            text = f"{count} of the frames read have another size and are resized to that of the first"
            notes.append(Note("SIZE_CHANGED", text))
        return tuple(notes)

    def read(self, indices: Indices) -> Tensor:
        """The frames of these numbers, in this order: uint8 [T, H, W, 3]."""
        width, height = self.index.picture.shown(self._turn[0])
        out = torch.empty((len(indices), height, width, 3), dtype=torch.uint8)
        rows, previous = out.numpy(), -1
        self._end = time.monotonic() + self._limits.seconds
        try:
            for place in np.argsort(indices, kind="stable").tolist():
                number = int(indices[place])
                if previous >= 0 and number == indices[previous]:
                    rows[place] = rows[previous]
                else:
                    self._convert(self._frame(number), number, rows[place])
                previous = place
        except av.FFmpegError as error:
            raise self._undecodable(f"its frames cannot become RGB ({error.strerror})") from error
        self._file.check_unchanged()
        return out

    def close(self) -> None:
        """Frees decoder and file."""
        self.detach().raw.close()

    def detach(self) -> MediaFile:
        """Frees the decoder and gives back the open file."""
        self._ready.clear()
        self._held = None
        self._container.close()
        return self._file

    # Opening and measuring

    def _open(self) -> None:
        self._file.raw.seek(0)
        self._container = open_container(self._file, self._limits)
        self._stream = choose_stream(self._container, self._file.path)
        for other in self._container.streams:
            if other is not self._stream:
                other.discard = Discard.all
        self._codec = self._prepared(self._stream.codec_context)
        width, height = self._codec.width, self._codec.height
        if width * height > self._limits.pixels:
            what = f"has frames of {width} x {height} pixels"
            raise exceeded(self._file.path, what, "pixels", self._limits.pixels)

    def _prepared(self, codec: VideoCodecContext) -> VideoCodecContext:
        codec.thread_count, codec.thread_type = self._threads, "AUTO"
        codec.options = {"max_pixels": str(self._limits.pixels)}
        return codec

    def _measure(self, thorough: bool) -> Index:
        found = self._survey(thorough)
        index = index_packets(found, self._stream)
        if index is None:
            if not thorough:
                self._restart()
                found, thorough = self._survey(True), True
            index = index_frames(found, self._stream)
        if index is None:
            raise self._undecodable("no frame can be decoded")
        missing = max(self._file.end - self._file.stamp[0], 0)
        return replace(
            index, notes=notes_of(found, index, self._stream, missing=missing, everything=thorough)
        )

    def _survey(self, everything: bool) -> Survey:
        return survey(
            self._container.demux(self._stream),
            self._decode,
            self._stream,
            path=self._file.path,
            limits=self._limits,
            everything=everything,
        )

    def _undecodable(self, what: str) -> MediaError:
        self._file.check_unchanged()
        return MediaError(
            "NOT_DECODABLE",
            f"{self._file.path!r}: {what} ({self._codec.name} in {self._file.kind}); fetch the file again",
        )

    # Decoding

    def _frame(self, number: int) -> VideoFrame:
        """The decoded frame of this number; where it gives no picture, the one before (noted)."""
        index = self.index
        entry = max(int(np.searchsorted(index.keys, index.times[number], side="right")) - 1, 0)
        if number < self._at or np.searchsorted(index.times, index.keys[entry]) > self._at + 1:
            self._seek(entry)
        step = 1
        while self._at != number and not self._reach(number):
            if self._held is None and self._entry >= 0:  # the seek went too far, or nothing decodes there
                self._seek(max(self._entry - step, -1))
                step *= 2
                continue
            if self._held is None and not self._ready:
                raise self._undecodable(f"frame {number} cannot be decoded, nor any other near it")
            self._lost.add(number)
            return self._held or self._ready[0]
        assert self._held is not None
        return self._held

    def _reach(self, number: int) -> bool:
        """Decodes forward to the frame of this number; False where the stream passes it by, or ends."""
        while (frame := self._next()) is not None:
            place = self.index.number(frame, self._at)
            if place > number:
                self._ready.appendleft(frame)
                return False
            if place >= 0:
                self._at, self._held = place, frame
            if place == number:
                return True
        return False

    def _next(self) -> VideoFrame | None:
        """The next frame that the decoder gives, or None at the end."""
        while not self._ready:
            if self._drained:
                return None
            try:
                packet = next(self._packets, None)
            except av.FFmpegError:  # the end, as when the file was measured
                packet = None
            if time.monotonic() > self._end:
                raise too_slow(self._file.path, self._limits.seconds)
            if packet is None or not packet.size:
                self._drained, packet = True, None
            elif is_cut(packet, self._stream) or (self._waiting and not packet.is_keyframe):
                continue
            self._waiting = False
            self._ready.extend(self._decode(packet))
            self.decoded += len(self._ready)
        return self._ready.popleft()

    def _decode(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """The frames that come out for a packet (None: those that are left); none where it is damaged."""
        before = []
        if packet is not None and packet.is_keyframe and self._file.kind == "mpegts":
            before = self._change_codec(packet)
        try:
            return before + self._codec.decode(packet)
        except av.FFmpegError:  # the frame will be missed by its number
            return before

    def _change_codec(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        """Another decoder, where the packet is of another codec; gives the frames left in the one so far."""
        head = bytes(memoryview(packet)[:64])
        name = _CODEC_OF_BYTE.get(head[head.find(b"\0\0\1") + 3], self._codec.codec.canonical_name)
        if name == self._codec.codec.canonical_name:
            return []
        left = self._decode(None)
        self._codecs = sorted({*self._codecs, name})
        self._codec = self._prepared(cast("VideoCodecContext", av.CodecContext.create(name, "r")))
        return left

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
        self._packets = self._container.demux(self._stream)

    def _restart(self) -> None:
        self._container.close()
        self._open()

    def _convert(self, frame: VideoFrame, number: int, out: Pixels) -> None:
        """Writes a decoded frame, as RGB, resized and turned where needed, into `out` uint8 [H, W, 3]."""
        width, height = self.index.picture.width, self.index.picture.height
        if (frame.width, frame.height) != (width, height):
            self._resized.add(number)
        if frame.is_corrupt:
            self._damaged.add(number)
        bicubic = Interpolation.BICUBIC
        plane = self._format.reformat(frame, width, height, "rgb24", interpolation=bicubic, threads=1).planes[
            0
        ]
        padded = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        pixels = padded[:, : 3 * width].reshape(height, width, 3)
        exchanged, left_right, up_down = self._turn
        if exchanged:
            pixels = pixels.swapaxes(0, 1)
        out[...] = pixels[:: -1 if up_down else 1, :: -1 if left_right else 1]


def open_container(file: MediaFile, limits: Limits) -> InputContainer:
    """FFmpeg's view of the file, which cannot open anything else; raises NOT_DECODABLE."""
    try:
        return av.open(
            file.raw,
            "r",
            format=file.kind,
            options={"max_pixels": str(limits.pixels), "protocol_whitelist": ""},
            metadata_errors="replace",
            buffer_size=65536,
        )
    except av.FFmpegError as error:
        file.check_unchanged()
        if file.indexed:
            what = f"FFmpeg cannot read it as {file.kind} ({error.strerror})"
        else:
            what = "index missing (no `moov`): the recording or download stopped before its end"
        raise MediaError(
            "NOT_DECODABLE", f"{file.path!r}: {what}; fetch the file again, or repair it"
        ) from error


def choose_stream(container: InputContainer, path: str) -> VideoStream:
    """The default video stream, of several the one with most pixels; covers do not count. Raises NO_VIDEO."""
    still = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    if not container.streams:
        raise MediaError(
            "NOT_DECODABLE", f"{path!r} holds no stream that FFmpeg can find; fetch the file again"
        )
    if not streams:
        raise MediaError("NO_VIDEO", f"{path!r} has no video stream, only sound or pictures; give a video")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise MediaError("NOT_DECODABLE", f"{path!r}: FFmpeg has no decoder for its codec; convert the file")
    return max(streams, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height))
