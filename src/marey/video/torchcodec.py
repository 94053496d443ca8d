"""torchcodec on the index that PyAV measured, with PyAV taking over where it fails."""

from __future__ import annotations

import functools
import json
import time
from importlib import import_module, metadata
from typing import Any

import numpy as np
from torch import Tensor

from marey.video.index import Index
from marey.video.limits import Limits, Note, too_slow
from marey.video.pyav import Indices, PyAVDecoder
from marey.video.sniff import MediaFile, check_unchanged

CLOSED_SINCE = (0, 17)  # the first version that opens nothing but the file it is given
KINDS = ("mp4", "matroska", "avi")  # have an index by time of presentation; in others its seeks miss


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


class TorchcodecDecoder:
    """FFmpeg through torchcodec."""

    name = "torchcodec"

    def __init__(self, file: MediaFile, limits: Limits, index: Index, threads: int) -> None:
        self._file, self._limits, self._index, self._threads = file, limits, index, threads
        self._pyav: PyAVDecoder | None = None
        self.found: dict[str, Note] = {}
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
        except OSError:  # the disk's fault
            raise
        except Exception as error:  # whatever C++ gave
            self._give_up(_first_line(error))

    def read(self, indices: Indices) -> Tensor:
        """The frames of these numbers, in this order: uint8 [T, H, W, 3]."""
        if self._pyav:
            return self._pyav.read(indices)
        start = time.monotonic()
        try:
            batch = self._decoder.get_frames_at(indices.tolist())
            frames: Tensor = batch.data
            wrong = float(np.abs(batch.pts_seconds.numpy() - self._index.seconds[indices]).max())
        except OSError:
            raise
        except Exception as error:
            return self._give_up(_first_line(error)).read(indices)
        if wrong > 1e-6:
            return self._give_up(f"it gave a frame {wrong:.6f} s away from the one asked for").read(indices)
        check_unchanged(self._file)
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
        self._pyav = PyAVDecoder(self._file, self._limits, index=self._index, threads=self._threads)
        text = f"PyAV reads this file, since torchcodec failed: {reason}"
        self.found = self._pyav.found
        self.found["DECODER_CHANGED"] = Note("DECODER_CHANGED", text)
        return self._pyav


def suits_torchcodec(kind: str, index: Index) -> bool:
    """Whether torchcodec gives the same frames as PyAV: whole files, in containers whose index is by time of
    presentation, with samples of 8 bits and pictures that are not turned."""
    cut = "MEDIA_TRUNCATED" in dict(index.notes)
    plain = index.picture.eight_bits and not any(index.picture.turn)
    return plain and not cut and index.order == "pts" and kind in KINDS


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
