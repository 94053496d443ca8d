"""PyAV and torchcodec behind one method: `read(indices) -> uint8 [T, H, W, 3]`.

Both turn YUV into RGB with swscale at its bicubic setting, which gives the same bytes for samples of 8 bits;
torchcodec is used for nothing else (FFmpeg versions differ in 10-bit colour), nor for turned pictures.
"""

import functools
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module, metadata
from typing import Any, Literal, Protocol

import av
import numpy as np
import numpy.typing as npt
import torch
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from marey.errors import EnvironmentFault, MediaError, unknown
from marey.video.index import Index, Survey, index_frames, index_packets, is_cut, notes_of, survey
from marey.video.limits import Limits, Note, exceeded, too_slow
from marey.video.sniff import MediaFile, changed, open_media

DecoderName = Literal["auto", "torchcodec", "pyav"]
Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
FIRST_CLOSED_TORCHCODEC = (0, 17)  # the first that opens nothing but the file object it is given


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


# PyAV ---------------------------------------------------------------------------------------------------


class PyAVDecoder:
    """FFmpeg through PyAV: seeks to the key frame at or before, decodes forward, converts what is asked for.

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
        self._ready: deque[VideoFrame] = deque()
        self._packets: Iterator[Packet] = iter(())
        self._held: VideoFrame | None = None  # the last that was decoded, number `_at`
        self._drained, self._waiting, self._entry, self._end = False, False, 0, 0.0
        self.decoded = 0
        self._open()
        self.index = index or self._measure(thorough)
        if threads != 1 and self.index.order == "pts":  # threads change the times of decoding that frames bear
            self._threads = threads
            self._restart()
        self._at = len(self.index.times)  # so that reading begins with a seek
        self._turn = self.index.picture.turn if upright else (False, False, False)

    @property
    def notes(self) -> tuple[Note, ...]:
        """FRAMES_DAMAGED and SIZE_CHANGED, as far as the frames read so far show."""
        notes = []
        if bad := sorted(self._damaged | self._lost):
            text = f"{len(bad)} of the frames read are damaged, the first is frame {bad[0]}"
            if self._lost:
                text += f"; for {len(self._lost)} that give no picture, the one before is shown"
            notes.append(Note("FRAMES_DAMAGED", text))
        if self._resized:
            text = f"{len(self._resized)} of the frames read have another size and are resized to that of the first"
            notes.append(Note("SIZE_CHANGED", text))
        return tuple(notes)

    def read(self, indices: Indices) -> Tensor:
        """The frames of these numbers, in this order: uint8 [T, H, W, 3]."""
        height, width = self.index.picture.height, self.index.picture.width
        shape = (width, height) if self._turn[0] else (height, width)
        out = torch.empty((len(indices), *shape, 3), dtype=torch.uint8)
        rows = out.numpy()
        self._end = time.monotonic() + self._limits.seconds
        previous = -1
        for place in np.argsort(indices, kind="stable").tolist():
            if previous >= 0 and indices[place] == indices[previous]:
                rows[place] = rows[previous]
            else:
                self._convert(self._frame(int(indices[place])), int(indices[place]), rows[place])
            previous = place
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

    # Opening

    def _open(self) -> None:
        self._file.raw.seek(0)
        self._container = open_container(self._file, self._limits)
        self._stream = choose_stream(self._container, self._file.path)
        context = self._stream.codec_context
        context.thread_count, context.thread_type = self._threads, "AUTO"
        context.options = {"max_pixels": str(self._limits.pixels)}
        if context.width * context.height > self._limits.pixels:
            what = f"has frames of {context.width} x {context.height} pixels"
            raise exceeded(self._file.path, what, "pixels", self._limits.pixels)

    def _measure(self, thorough: bool) -> Index:
        found = self._survey(thorough)
        index = None if thorough else index_packets(found, self._stream)
        if index is None:
            if not thorough:
                self._restart()
                found = self._survey(True)
            index, thorough = index_frames(found, self._stream), True
        if index is None:
            raise self._undecodable("no frame can be decoded")
        missing = max(self._file.end - self._file.stamp[0], 0)
        notes = notes_of(found, index, self._stream, missing=missing, everything=thorough)
        return replace(index, notes=notes)

    def _survey(self, everything: bool) -> Survey:
        packets = self._container.demux(self._stream)
        return survey(packets, self._stream, path=self._file.path, limits=self._limits, everything=everything)

    def _undecodable(self, what: str) -> MediaError:
        self._file.check_unchanged()
        codec = self._stream.codec_context.codec.canonical_name
        return MediaError(
            "NOT_DECODABLE",
            f"{self._file.path!r}: {what} ({codec} in {self._file.kind}); fetch the file again",
        )

    # Decoding

    def _frame(self, number: int) -> VideoFrame:
        """The decoded frame of this number; where it gives no picture, the one before (noted)."""
        if number == self._at and self._held is not None:
            return self._held
        entry = self.index.entry(number)
        if number <= self._at or np.searchsorted(self.index.times, self.index.keys[entry]) > self._at + 1:
            self._seek(entry)
        step = 1
        while not self._reach(number):
            if self._held is None and self._entry >= 0:  # the seek went too far, or nothing there decodes
                self._seek(max(self._entry - step, -1))
                step *= 2
                continue
            if self._held is None and not self._ready:
                raise self._undecodable(f"frame {number} cannot be decoded, nor any other near it")
            self._lost.add(number)
            return self._held or self._ready[0]
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
            try:
                self._ready.extend(self._stream.decode(packet))
            except av.FFmpegError:  # missed by its number
                continue
            self.decoded += len(self._ready)
        return self._ready.popleft()

    def _seek(self, entry: int) -> None:
        """Goes to the key frame at this place of `index.keys`; -1, or where that fails: to the start of the file."""
        self._ready.clear()
        self._at, self._held, self._entry = -1, None, entry
        self._drained, self._waiting = False, entry >= 0
        if entry < 0 or self.index.order == "count":
            self._restart()
        else:
            try:
                self._container.seek(int(self.index.seeks[entry]), stream=self._stream)
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
        rgb = self._format.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.BICUBIC, threads=1
        )
        plane = rgb.planes[0]
        pixels = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, : 3 * width]
        pixels = pixels.reshape(height, width, 3)
        exchanged, left_right, up_down = self._turn
        if exchanged:
            pixels = pixels.swapaxes(0, 1)
        out[...] = pixels[:: -1 if up_down else 1, :: -1 if left_right else 1]


def open_container(file: MediaFile, limits: Limits) -> InputContainer:
    """FFmpeg's view of the file; raises NOT_DECODABLE. It cannot open anything else."""
    try:
        return av.open(
            file.raw,
            format=file.kind,
            options={"max_pixels": str(limits.pixels), "protocol_whitelist": ""},
            metadata_errors="replace",
            buffer_size=65536,
        )
    except av.FFmpegError as error:
        file.check_unchanged()
        if not file.indexed:
            what = "index missing (no `moov`): the recording or download stopped before its end"
        else:
            what = f"FFmpeg cannot read it as {file.kind} ({error.strerror})"
        raise MediaError(
            "NOT_DECODABLE", f"{file.path!r}: {what}; fetch the file again, or repair it"
        ) from error


def choose_stream(container: InputContainer, path: str) -> VideoStream:
    """The default video stream, of several the one with most pixels; cover pictures do not count. Raises NO_VIDEO."""
    still = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    if not streams:
        raise MediaError("NO_VIDEO", f"{path!r} has no video stream, only sound or pictures; give a video")
    for stream in streams:
        if stream.codec_context is None:
            raise MediaError(
                "NOT_DECODABLE", f"{path!r}: FFmpeg has no decoder for its codec; convert the file"
            )
    return max(streams, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height))


# torchcodec ---------------------------------------------------------------------------------------------


class TorchcodecDecoder:
    """FFmpeg through torchcodec, on the index that PyAV measured; PyAV takes over where torchcodec fails."""

    name = "torchcodec"

    def __init__(self, file: MediaFile, limits: Limits, index: Index, threads: int) -> None:
        self._file, self._limits, self._index, self._threads = file, limits, index, threads
        self._pyav: PyAVDecoder | None = None
        self._note: tuple[Note, ...] = ()
        keys = np.isin(index.times, index.keys).tolist()
        times = zip(index.times.tolist(), keys, strict=True)
        frames = [{"pts": time, "duration": 1, "key_frame": key} for time, key in times]
        file.raw.seek(0)
        try:
            self._decoder: Any = import_module("torchcodec.decoders").VideoDecoder(
                file.raw,
                stream_index=index.stream,
                dimension_order="NHWC",
                num_ffmpeg_threads=threads,
                device="cpu",
                custom_frame_mappings=json.dumps({"frames": frames}),
            )
        except Exception as error:  # torchcodec raises whatever C++ gave
            self._give_up(_first_line(error))

    @property
    def notes(self) -> tuple[Note, ...]:
        """DECODER_CHANGED where PyAV took over, and what it found."""
        return self._note + (self._pyav.notes if self._pyav else ())

    def read(self, indices: Indices) -> Tensor:
        """The frames of these numbers, in this order: uint8 [T, H, W, 3]."""
        if self._pyav:
            return self._pyav.read(indices)
        start = time.monotonic()
        try:
            batch = self._decoder.get_frames_at(indices.tolist())
            frames: Tensor = batch.data
            late = float(np.abs(batch.pts_seconds.numpy() - self._index.seconds[indices]).max())
        except Exception as error:
            return self._give_up(_first_line(error)).read(indices)
        if late > 1e-6:
            return self._give_up(f"it gave a frame {late:.6f} seconds away from the one asked for").read(
                indices
            )
        self._file.check_unchanged()
        if time.monotonic() - start > self._limits.seconds:
            raise too_slow(self._file.path, self._limits.seconds)
        return frames

    def close(self) -> None:
        """Frees decoder and file."""
        self._decoder = None
        if self._pyav:
            self._pyav.detach()
        self._file.raw.close()

    def _give_up(self, reason: str) -> PyAVDecoder:
        self._decoder, self.name = None, "pyav"
        self._note = (Note("DECODER_CHANGED", f"PyAV reads this file, since torchcodec failed: {reason}"),)
        self._pyav = PyAVDecoder(self._file, self._limits, index=self._index, threads=self._threads)
        return self._pyav


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def open_decoder(
    file: MediaFile, limits: Limits, index: Index, name: str, *, upright: bool, threads: int
) -> Decoder:
    """A decoder for a file whose index is known."""
    if name == "torchcodec":
        return TorchcodecDecoder(file, limits, index, threads)
    return PyAVDecoder(file, limits, index=index, upright=upright, threads=threads)


def reopen_file(
    path: str, stamp: tuple[int, int], limits: Limits, index: Index, name: str, *, upright: bool, threads: int
) -> Decoder:
    """A decoder for a file that was measured before; raises MEDIA_CHANGED where it is another by now."""
    file = open_media(path, limits)
    try:
        if file.stamp != stamp:
            raise changed(path)
        return open_decoder(file, limits, index, name, upright=upright, threads=threads)
    except BaseException:
        file.raw.close()
        raise


def suits_torchcodec(kind: str, index: Index) -> bool:
    """Whether torchcodec gives the same frames as PyAV: no turned ones, samples of 8 bits, and a container with
    an index of time (in others its seeks miss)."""
    plain = index.picture.eight_bits and not any(index.picture.turn)
    return plain and index.order == "pts" and kind in ("mp4", "matroska", "avi")


# Choice -------------------------------------------------------------------------------------------------


def decoder_choice(wanted: DecoderName = "auto") -> tuple[str, str]:
    """Which decoder reads files that both can read, and why: (name, one line).

    `wanted` "auto" is what the environment's MAREY_DECODER says, else torchcodec where it loads. Raises UsageError
    UNKNOWN_NAME, and EnvironmentFault DECODER_MISSING where torchcodec is demanded and does not load.
    """
    source = "as asked for"
    if wanted == "auto":
        wanted, source = os.environ.get("MAREY_DECODER") or "auto", "as MAREY_DECODER says"
    if wanted not in ("auto", "torchcodec", "pyav"):
        raise unknown("decoder", wanted, ("auto", "torchcodec", "pyav"))
    if wanted == "pyav":
        return "pyav", f"{pyav_version()}, {source}"
    version, problem = load_torchcodec()
    if not problem:
        return "torchcodec", f"{version}, " + (source if wanted != "auto" else "since it loads")
    if wanted == "torchcodec":
        raise EnvironmentFault(
            "DECODER_MISSING", f"torchcodec is demanded, but {problem}; unset MAREY_DECODER"
        )
    return "pyav", f"{pyav_version()}, since {problem}"


@functools.cache
def load_torchcodec() -> tuple[str, str]:
    """(version, why it cannot be used); one of them is empty."""
    try:
        version = metadata.version("torchcodec")
    except metadata.PackageNotFoundError:
        return "", "torchcodec is not installed"
    if tuple(int(part) for part in version.split(".")[:2]) < FIRST_CLOSED_TORCHCODEC:
        return "", f"torchcodec {version} is older than 0.17, the first that opens no other files"
    try:
        import_module("torchcodec.decoders")
    except Exception as error:  # a missing library shows as OSError, RuntimeError or ImportError
        return "", f"torchcodec {version} does not load: {_first_line(error)}"
    return f"torchcodec {version}", ""


def pyav_version() -> str:
    """PyAV and the FFmpeg inside it, for records."""
    return f"PyAV {av.__version__} with FFmpeg {av.ffmpeg_version_info}"
