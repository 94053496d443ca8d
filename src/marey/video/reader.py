"""A file, or a folder of pictures, becomes a Video: measured length, real time stamps, exact upright frames.

    with read_video("clip.mp4") as video:
        clip = video.frames([0, 8, 16, 24])        # uint8 [4, H, W, 3], RGB

A file is opened once and every access goes through that: no name, link or play list inside it is followed.
What was repaired, left out or assumed is in `Video.notes`:

    MEDIA_TRUNCATED      the file ends before its headers say; what can be decoded is there
    FRAMES_DAMAGED       frames that the decoder flags, or that give no picture and show the one before
    FRAMES_UNDECODABLE   coded frames that are left out, such as those before the first key frame
    FRAMES_MISSING       numbers left out in a folder of frames
    TIMESTAMPS_REPAIRED  missing, repeated or backward time stamps got values between their neighbours
    SIZE_CHANGED         frames of another size were resized to that of the first
    SAMPLE_ASPECT, INTERLACED, HDR, ALPHA_DROPPED, VIDEO_STREAMS, CODEC_CHANGED, FPS_ASSUMED, DECODER_CHANGED

Errors are MediaError with the codes NOT_FOUND, NO_ACCESS, NOT_MEDIA, NO_VIDEO, NOT_DECODABLE,
LIMIT_EXCEEDED, MEDIA_TIMEOUT, MEDIA_CHANGED and FRAME_RANGE.
"""

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Literal, cast

import av
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from marey.errors import EnvironmentFault, MediaError, UsageError, unknown
from marey.video.folder import FolderDecoder, scan_folder
from marey.video.index import Index
from marey.video.limits import Limits, Note, exceeded
from marey.video.pyav import Decoder, PyAVDecoder
from marey.video.sniff import cannot_read, changed, open_media
from marey.video.torchcodec import TorchcodecDecoder, load_torchcodec, suits_torchcodec

__all__ = ["Limits", "Note", "Video", "decoder_choice", "read_video"]

DecoderName = Literal["auto", "torchcodec", "pyav"]
FOLDER_FPS = 25.0  # FFmpeg's assumption for numbered pictures
MANY = 64  # frames in one call, from which on torchcodec is worth opening the file a second time
ROUNDING = 1e-6  # seconds; times computed by users may be this much off


@dataclass(eq=False, repr=False, kw_only=True)
class Video(AbstractContextManager["Video"]):
    """A readable video; made by `read_video`.

    path        as it was named
    size        (width, height) of the frames, in pixels, as displayed
    timestamps  float64 [N], seconds, ascending: when each frame is shown, by the file's clock
    seconds     duration, from the first frame's beginning to the last one's end
    fps         frames per second between the first and the last frame
    notes       what was repaired, left out or assumed, as far as the frames read so far show
    limits      what calls may take

    A Video may be used after a fork and pickled: the process that uses it opens the file itself. Used after
    `close`, it opens the file again. Two threads must not use it at once.
    """

    path: str
    size: tuple[int, int]
    timestamps: npt.NDArray[np.float64]
    seconds: float
    fps: float
    notes: tuple[Note, ...]
    limits: Limits
    _open: Callable[[], Decoder]
    _decoder: Decoder | None
    _swap: Callable[[PyAVDecoder], Decoder] | None = None  # gives torchcodec's, before a long read
    _process: int = field(default_factory=os.getpid)

    def __len__(self) -> int:
        return len(self.timestamps)

    def __repr__(self) -> str:
        return (
            f"Video({self.path!r}, {len(self)} frames of {self.size[0]} x {self.size[1]}, {self.seconds:g} s)"
        )

    @property
    def decoder(self) -> str:
        """What decodes this file: "pyav", "torchcodec" or "pillow"; `decoder_choice` gives the reason.

        By default short reads are PyAV's, which measured the file; the first long one may change that.
        """
        if self._decoder is None or self._process != os.getpid():
            self._decoder, self._process = self._open(), os.getpid()
        return self._decoder.name

    def frames(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Tensor:
        """The frames of these numbers, in this order, repeats allowed: uint8 [T, H, W, 3], RGB.

        Decodes from the key frame at or before each, every frame at most once. Raises FRAME_RANGE,
        LIMIT_EXCEEDED (bytes), MEDIA_TIMEOUT, MEDIA_CHANGED (the file was written to) and NOT_DECODABLE.
        """
        wanted, (width, height) = np.asarray(indices), self.size
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise UsageError(
                "FRAME_RANGE", f"frames are asked for by a list of whole numbers, not {indices!r}"
            )
        if not wanted.size:
            return torch.empty((0, height, width, 3), dtype=torch.uint8)
        if wanted.min() < 0 or wanted.max() >= len(self.timestamps):
            wrong = wanted.min() if wanted.min() < 0 else wanted.max()
            what = f"{self.path!r} has no frame {wrong}; its frames are 0 to {len(self) - 1}"
            raise MediaError("FRAME_RANGE", what)
        size = wanted.size * width * height * 3
        if size > self.limits.bytes:
            what = f": {wanted.size} frames take {size:,} bytes"
            raise exceeded(self.path, what, "bytes", self.limits.bytes)
        try:
            if self._decoder is None or self._process != os.getpid():
                self._decoder, self._process = self._open(), os.getpid()
            if self._swap is not None and len(wanted) >= MANY and isinstance(self._decoder, PyAVDecoder):
                self._decoder = self._swap(self._decoder)
            decoder = self._decoder
            frames = decoder.read(wanted.astype(np.int64))
        except BaseException as error:  # a decoder stopped midway is no longer where it says
            self.close()
            if isinstance(error, OSError | av.FFmpegError):
                raise _failure(self.path, error) from error
            raise
        if decoder.found:
            self.notes = _merged(self.notes, decoder.found)
        return frames

    def at(self, seconds: float | Sequence[float] | npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
        """Numbers of the frames shown at these times, int64 of the same shape.

        Times are by the clock of `timestamps`; the first frame also stands for times before it, the last for
        times after it.
        """
        places = np.searchsorted(self.timestamps, np.asarray(seconds) + ROUNDING, side="right") - 1
        return np.clip(places, 0, len(self) - 1).astype(np.int64)

    def close(self) -> None:
        """Frees the decoder and the file."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None and self._process == os.getpid():
            decoder.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoder": None}


def read_video(
    path: str | os.PathLike[str],
    *,
    template: str | None = None,
    start: int | None = None,
    fps: float | None = None,
    decoder: DecoderName = "auto",
    upright: bool = True,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    thorough: bool = False,
    threads: int = 1,
) -> Video:
    """Opens a video file, or a folder of numbered pictures, and measures it.

    template  for a folder: file names such as "img_{:05}.jpg", the numbers starting anywhere and padded in
              any way; None where the folder has one series of pictures
    start     for a folder: the number of frame 0; None: the lowest
    fps       for a folder: frames per second; None: 25, noted
    decoder   "auto": as the environment's MAREY_DECODER says, else torchcodec where it loads for calls that
              ask for many frames (64), and PyAV for the others, as it has the file open from measuring it.
              Files of which torchcodec would give other frames are always read by PyAV
    upright   turn and mirror frames as the file's metadata say; False: as stored
    thorough  decode the whole file once, by PyAV, so that damaged frames are counted in `notes`
    threads   for decoding

    Stored pixels are kept: no scaling by the sample aspect ratio, no deinterlacing, no tone mapping of HDR,
    transparency dropped. Of several video streams the default one is read. The errors are listed above.
    """
    path = os.fspath(path)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where it may not look
        return _read_folder(path, template, start, fps, upright, limits, thorough)
    free = decoder == "auto" and os.environ.get("MAREY_DECODER") in (None, "", "auto")
    name = "pyav" if free else decoder_choice(decoder)[0]
    file = open_media(path, limits)
    try:
        pyav = PyAVDecoder(file, limits, upright=upright, threads=threads, thorough=thorough)
        index, opened = pyav.index, cast("Decoder", pyav)
        if name == "torchcodec" and not thorough and suits_torchcodec(file.kind, index):
            opened = TorchcodecDecoder(pyav.detach(), limits, index, threads)
    except BaseException as error:
        file.raw.close()
        if isinstance(error, OSError | av.FFmpegError):
            raise _failure(path, error) from error
        raise
    if threads != 1:
        _threaded.add(opened)
    picture, times = index.picture, index.seconds
    between = float(times[-1] - times[0])
    return Video(
        path=path,
        size=(picture.height, picture.width)
        if upright and picture.turn[0]
        else (picture.width, picture.height),
        timestamps=times,
        seconds=between + index.last,
        fps=(len(times) - 1) / between if between > 0 else 1 / index.last,
        notes=_merged(index.notes, found) if (found := pyav.found | opened.found) else index.notes,
        limits=limits,
        _open=partial(_open_again, path, file.stamp, limits, index, opened.name, upright, threads),
        _decoder=opened,
        _swap=partial(_torchcodec_for, limits, threads, file.kind) if free and not thorough else None,
    )


def _open_again(
    path: str, stamp: tuple[int, int], limits: Limits, index: Index, name: str, upright: bool, threads: int
) -> Decoder:
    """A decoder for a file that was measured before; raises MEDIA_CHANGED where it is another by now."""
    file = open_media(path, limits)
    if file.stamp != stamp:
        raise changed(path)
    decoder: Decoder
    if name == "torchcodec":
        decoder = TorchcodecDecoder(file, limits, index, threads)
    else:
        decoder = PyAVDecoder(file, limits, index=index, upright=upright, threads=threads)
    if threads != 1:
        _threaded.add(decoder)
    return decoder


def _torchcodec_for(limits: Limits, threads: int, kind: str, pyav: PyAVDecoder) -> Decoder:
    """torchcodec in place of an open PyAV decoder, where it loads and gives the same frames."""
    if not suits_torchcodec(kind, pyav.index) or load_torchcodec()[1]:
        return pyav
    decoder = TorchcodecDecoder(pyav.detach(), limits, pyav.index, threads)
    if threads != 1:
        _threaded.add(decoder)
    return decoder


def _read_folder(
    path: str,
    template: str | None,
    start: int | None,
    fps: float | None,
    upright: bool,
    limits: Limits,
    thorough: bool,
) -> Video:
    """A folder of pictures as a Video."""
    if fps is not None and not fps > 0:
        raise UsageError("FPS", f"fps must be above 0, not {fps}")
    folder = scan_folder(path, template, start, limits, upright)
    again = partial(FolderDecoder, path, folder, limits, upright)
    decoder = again()
    if thorough:
        decoder.check_all()
    rate, count = fps or FOLDER_FPS, len(folder.names)
    assumed = Note("FPS_ASSUMED", f"a folder has no frame rate; {rate:g} frames per second are assumed")
    return Video(
        path=path,
        size=folder.size,
        timestamps=np.arange(count) / rate,
        seconds=count / rate,
        fps=rate,
        notes=_merged(folder.notes if fps else (*folder.notes, assumed), decoder.found),
        limits=limits,
        _open=again,
        _decoder=decoder,
    )


def _merged(notes: tuple[Note, ...], found: dict[str, Note]) -> tuple[Note, ...]:
    """Notes, of several with one code the latest."""
    return tuple(({note.code: note for note in notes} | found).values())


def _failure(path: str, error: OSError | av.FFmpegError) -> MediaError:
    """The error for what the disk or FFmpeg met where nothing better is known."""
    if isinstance(error, av.FFmpegError):
        return MediaError("NOT_DECODABLE", f"{path!r}: FFmpeg fails ({error.strerror}); convert the file")
    return cannot_read(path, error)


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


# After a fork -----------------------------------------------------------------------------------------

_threaded: "weakref.WeakSet[Decoder]" = weakref.WeakSet()  # decoders with threads


def _leave_to_parent() -> None:
    """Threads do not live on in a forked process; freeing their decoders there would wait forever."""
    for decoder in _threaded:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(decoder))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
