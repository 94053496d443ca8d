"""Which decoder reads a file, and why; torchcodec, with PyAV taking over where it fails."""

import functools
import json
import os
import time
from importlib import import_module, metadata
from typing import Any, Literal

import av
import numpy as np
from torch import Tensor

from marey.errors import EnvironmentFault, unknown
from marey.video.decoders import Decoder, Indices, PyAVDecoder
from marey.video.index import Index
from marey.video.limits import Limits, Note, too_slow
from marey.video.sniff import MediaFile, changed, open_media

DecoderName = Literal["auto", "torchcodec", "pyav"]
CLOSED_SINCE = (0, 17)  # the first torchcodec that opens nothing but the file it is given


def decoder_choice(wanted: DecoderName = "auto") -> tuple[str, str]:
    """Which decoder reads the files that both can read, and why: (name, one line with its version).

    `wanted` "auto": what the environment's MAREY_DECODER says, else torchcodec where it loads. Raises
    UsageError UNKNOWN_NAME, and EnvironmentFault DECODER_MISSING where torchcodec is demanded and does not
    load.
    """
    name, why = str(wanted), "as asked for"
    if name == "auto":
        name, why = os.environ.get("MAREY_DECODER") or "auto", "as MAREY_DECODER says"
    if name not in ("auto", "torchcodec", "pyav"):
        raise unknown("decoder", name, ("auto", "torchcodec", "pyav"))
    pyav = f"PyAV {av.__version__} with FFmpeg {av.ffmpeg_version_info}"
    if name == "pyav":
        return "pyav", f"{pyav}, {why}"
    version, problem = load_torchcodec()
    if not problem:
        return "torchcodec", f"{version}, {why if name != 'auto' else 'since it loads'}"
    if name == "torchcodec":
        what = f"torchcodec is demanded, but {problem}; install it and FFmpeg, or use PyAV"
        raise EnvironmentFault("DECODER_MISSING", what)
    return "pyav", f"{pyav}, since {problem}"


@functools.cache
def load_torchcodec() -> tuple[str, str]:
    """(torchcodec's version and FFmpeg's, why it cannot be used); one of them is empty."""
    try:
        version = metadata.version("torchcodec")
    except metadata.PackageNotFoundError:
        return "", "torchcodec is not installed"
    if tuple(int(part) for part in version.split(".")[:2]) < CLOSED_SINCE:
        return "", f"torchcodec {version} is older than 0.17, the first that opens no other files"
    try:
        ffmpeg = import_module("torchcodec").ffmpeg_major_version
        import_module("torchcodec.decoders")
    except Exception as error:  # a missing library shows as OSError, RuntimeError or ImportError
        return "", f"torchcodec {version} does not load ({_first_line(error)})"
    return f"torchcodec {version} with FFmpeg {ffmpeg}", ""


def suits_torchcodec(kind: str, index: Index) -> bool:
    """Whether torchcodec gives the same frames as PyAV: whole files, in containers whose index is by time of
    presentation, with samples of 8 bits and pictures that are not turned."""
    whole = all(note.code != "MEDIA_TRUNCATED" for note in index.notes)
    plain = index.picture.eight_bits and not any(index.picture.turn)
    return whole and plain and index.order == "pts" and kind in ("mp4", "matroska", "avi")


def open_decoder(
    file: MediaFile, limits: Limits, index: Index, name: str, upright: bool, threads: int
) -> Decoder:
    """A decoder for an open file whose index is known."""
    if name == "torchcodec":
        return TorchcodecDecoder(file, limits, index, threads)
    return PyAVDecoder(file, limits, index=index, upright=upright, threads=threads)


def reopen(
    path: str,
    stamp: tuple[int, int],
    limits: Limits,
    index: Index,
    name: str,
    upright: bool,
    threads: int,
) -> Decoder:
    """A decoder for a file that was measured before; raises MEDIA_CHANGED where it is another by now."""
    file = open_media(path, limits)
    try:
        if file.stamp != stamp:
            raise changed(path)
        return open_decoder(file, limits, index, name, upright, threads)
    except BaseException:
        file.raw.close()
        raise


class TorchcodecDecoder:
    """FFmpeg through torchcodec, on the index that PyAV measured; PyAV takes over where it fails."""

    name = "torchcodec"

    def __init__(self, file: MediaFile, limits: Limits, index: Index, threads: int) -> None:
        self._file, self._limits, self._index, self._threads = file, limits, index, threads
        self._pyav: PyAVDecoder | None = None
        self._note: tuple[Note, ...] = ()
        keys = np.isin(index.times, index.keys).tolist()
        times = zip(index.times.tolist(), keys, strict=True)
        frames = [{"pts": moment, "duration": 1, "key_frame": key} for moment, key in times]
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
        except Exception as error:  # whatever C++ gave
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
            wrong = float(np.abs(batch.pts_seconds.numpy() - self._index.seconds[indices]).max())
        except Exception as error:
            return self._give_up(_first_line(error)).read(indices)
        if wrong > 1e-6:
            return self._give_up(f"it gave a frame {wrong:.6f} s away from the one asked for").read(indices)
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
