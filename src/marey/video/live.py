"""Live video: a thread reads a camera or a stream, and the newest window of frames is there at any moment.

    newest = Newest(frames=57)
    with reading("rtsp://camera/1", newest):
        while (window := newest.take()) is not None:
            clip = window.frames([0, 8, 16, 24])      # uint8 [4, H, W, 3], RGB

The only place where Marey opens the network, and only what the user named: each kind of address has the
protocols that it needs, containers are those listed here, and nothing that a stream says (a play list, a
redirection) opens a file. What was assumed or repaired is in `Window.notes`, codes as of
`marey.video.reader`. Errors are UsageError LIVE_SOURCE; MediaError STREAM_REFUSED (cannot be opened),
STREAM_STALLED (no frame for too long), STREAM_LOST (breaks off), NOT_MEDIA, NO_VIDEO, LIMIT_EXCEEDED; and
EnvironmentFault CAMERA_MISSING.
"""

import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

from marey.errors import EnvironmentFault, MareyError, MediaError, UsageError
from marey.video.index import Picture, picture_of
from marey.video.limits import Limits, exceeded
from marey.video.preprocess import Preprocess, Protocol
from marey.video.pyav import default_stream, pixels_of
from marey.video.sampling import Indices
from marey.video.transforms import resize, to_short_side

# kind of address -> the protocols that it may lead to, by FFmpeg's names
_WEB = "http,https,httpproxy,tcp,tls,crypto"
_RTMP = "rtmp,rtmps,rtmpt,rtmpts,ffrtmphttp,http,https,tcp,tls"
PROTOCOLS = {
    **dict.fromkeys(("http", "https"), _WEB),
    **dict.fromkeys(("rtmp", "rtmps", "rtmpt", "rtmpts"), _RTMP),
    **dict.fromkeys(("rtsp", "rtsps"), "rtsp,rtp,srtp,udp,tcp,tls"),
    **{name: name for name in ("tcp", "udp", "srt")},
}
CONTAINERS = (
    "mpegts,matroska,webm,mov,mp4,flv,live_flv,hls,rtsp,rtp,mpjpeg,mjpeg,ogg,asf,avi,nut,mpeg,h264,hevc"
)
# system -> FFmpeg's demuxer of cameras, its name for number n, and what it must be told
CAMERAS = {
    "linux": ("v4l2", "/dev/video{}", {}),
    "darwin": ("avfoundation", "{}:none", {"framerate": "30"}),
}
LIMITS = Limits(seconds=20.0)  # opening may last so long, and waiting for a frame
ROUNDING = 1e-6  # seconds, as of times that are computed
POLL = 0.1  # seconds after which a wait looks whether it shall stop; frames end it at once

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(slots=True)
class _Frame:
    """Pixels uint8 [h, w, 3]; seconds by the stream's clock, and by ours on arrival; was it in a window?"""

    pixels: Tensor
    time: float
    arrived: float
    held: bool = False


@dataclass(frozen=True, eq=False)
class Window:
    """The newest frames of a live source: what `Preprocess.views` takes in place of a video.

    times    float64 [N], seconds from the source's first frame
    fps      frames per second between the first and the last frame
    arrived  when the newest frame was received, by `time.monotonic`
    dropped  frames since the last window that no window held, because `take` came too late for them
    notes    what was repaired or assumed so far, each "CODE: text"
    """

    pixels: tuple[Tensor, ...]
    times: npt.NDArray[np.float64]
    fps: float
    arrived: float
    dropped: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def frames(self, indices: Sequence[int] | Indices) -> Tensor:
        """The frames of these numbers, uint8 [T, h, w, 3]."""
        return torch.stack([self.pixels[i] for i in indices])


class Newest:
    """The newest frames of a source, no more than one window: a thread adds them, another takes windows.

    frames, seconds  how long a window is, one of the two
    every            seconds that windows are taken apart; frames that only this leaves out are not dropped
    """

    def __init__(
        self,
        *,
        frames: int | None = None,
        seconds: float | None = None,
        every: float = 0.0,
        limits: Limits = LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count, self._seconds, self._every = frames, seconds, every
        self._bytes, self._clock = limits.bytes, clock
        self._frames: deque[_Frame] = deque()
        self._news = threading.Condition()
        self._dropped, self._due, self._ended = 0, 0.0, False
        self._error: BaseException | None = None
        self._notes: dict[str, str] = {}

    def add(self, pixels: Tensor, at: float, arrived: float) -> None:
        """One more frame, uint8 [h, w, 3] as large as the others, shown later than these."""
        with self._news:
            self._frames.append(_Frame(pixels, at, arrived))
            while self._count is not None and len(self._frames) > self._count:
                self._forget()
            while self._seconds is not None and self._frames[0].time <= at - self._seconds + ROUNDING:
                self._forget()
            if len(self._frames) * pixels.nbytes > self._bytes:
                what = f"a window takes more than {self._bytes:,} bytes; make it shorter"
                raise MediaError("LIMIT_EXCEEDED", what)
            self._news.notify()

    def note(self, code: str, text: str) -> None:
        """Says of all further windows what was met on the way."""
        with self._news:
            self._notes[code] = f"{code}: {text}"

    def end(self, error: BaseException | None = None) -> None:
        """No more frames will come; `take` raises the error once what is there was taken."""
        with self._news:
            self._ended, self._error = True, error
            self._news.notify()

    def take(self, stopped: Callable[[], bool] = lambda: False) -> Window | None:
        """The newest window, as soon as it is full and ends with a frame that none held before.

        A source that ended before a window was full gives what it had. None at the end, or once `stopped`.
        """
        with self._news:
            while not stopped():
                fresh = bool(self._frames) and not self._frames[-1].held
                whole = self._full() or (self._ended and self._error is None)
                late = self._clock() - self._due
                if fresh and whole and late >= 0:
                    return self._window()
                if self._ended and self._error is not None:
                    raise self._error
                if self._ended:
                    return None
                self._news.wait(POLL if late >= 0 else min(POLL, -late))
            return None

    def _forget(self) -> None:
        """Lets go of the oldest frame."""
        frame = self._frames.popleft()
        self._dropped += not frame.held and (not self._every or frame.arrived >= self._due)

    def _full(self) -> bool:
        if self._seconds is None:
            return len(self._frames) == self._count
        return len(self._frames) > 1 and len(self._frames) / self._fps() >= self._seconds - ROUNDING

    def _fps(self) -> float:
        if len(self._frames) < 2:
            return 1.0
        return (len(self._frames) - 1) / (self._frames[-1].time - self._frames[0].time)

    def _window(self) -> Window:
        for frame in self._frames:
            frame.held = True
        dropped, self._dropped, self._due = self._dropped, 0, self._clock() + self._every
        times = np.array([frame.time for frame in self._frames])
        pixels = tuple(frame.pixels for frame in self._frames)
        arrived, notes = self._frames[-1].arrived, tuple(self._notes.values())
        return Window(pixels, times, self._fps(), arrived, dropped, notes)


def reduced(frame: Tensor, preprocess: Preprocess, protocol: Protocol) -> Tensor:
    """A frame, uint8 [H, W, 3], at the size that `preprocess.views` brings it to, if that is smaller.

    The views are those of the whole frame. Where light is corrected before resizing, nothing is done.
    """
    lights = (preprocess.light, *protocol.lights)
    side, size = preprocess.plan(protocol).short_side, (frame.shape[1], frame.shape[0])
    if side is None or side >= min(size) or any(light is not None and light.decoded for light in lights):
        return frame
    small = to_short_side(size, side, down=preprocess.pyslowfast)
    if to_short_side(small, side, down=preprocess.pyslowfast) != small:  # a fraction that is lost twice
        return frame
    return resize(frame[None], small, preprocess.resize)[0]


# Reading --------------------------------------------------------------------------------------------------


def shown_name(source: str) -> str:
    """What results call a source: without the user name and password of an address."""
    return re.sub(r"(?<=://)[^/?#]*@", "", source)


@contextmanager
def reading(
    source: str,
    newest: Newest,
    *,
    limits: Limits = LIMITS,
    reduce: Callable[[Tensor], Tensor] = lambda frame: frame,
) -> Iterator[None]:
    """A thread that adds the frames of a source to `newest`, from opening it to its end.

    source  a camera's number, or an address of one of the `PROTOCOLS`
    limits  of these pixels, bytes and seconds: 20 to open the source, and as long without a frame
    reduce  what is done to each frame as soon as it is there
    Raises LIVE_SOURCE and CAMERA_MISSING (a system without cameras); what reading meets, `newest` raises.
    """
    file, kind, options = _named(source)
    stop = threading.Event()

    def read() -> None:
        error: BaseException | None = None
        try:
            with _open(source, file, kind, options, limits) as container:
                _read(shown_name(source), container, newest, limits, reduce, stop)
        except Exception as met:  # raised where windows are taken
            error = met
        newest.end(error)

    thread = threading.Thread(target=read, name="marey-live", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1.0)  # a read that hangs ends by its own limit


def _named(source: str) -> tuple[str, str | None, dict[str, str]]:
    """What FFmpeg calls a source, its demuxer if that is known, and the options."""
    if source.isdecimal():
        kind, name, options = CAMERAS.get(sys.platform, ("", "", {}))
        if not kind:
            raise EnvironmentFault(
                "CAMERA_MISSING", f"cameras have no numbers on {sys.platform}; name a stream's address"
            )
        return name.format(int(source)), kind, options
    match = _ADDRESS.match(source)
    scheme = match[1].lower() if match else ""
    if scheme not in PROTOCOLS:
        raise UsageError(
            "LIVE_SOURCE",
            f"{shown_name(source)!r} is no camera number, nor an address ({', '.join(PROTOCOLS)}); "
            "`marey predict` reads files",
        )
    options = {"protocol_whitelist": PROTOCOLS[scheme], "format_whitelist": CONTAINERS}
    if scheme.startswith("rtsp"):
        options["rtsp_flags"] = "prefer_tcp"  # nothing is lost; UDP where there is no TCP
    return scheme + source[len(scheme) :], None, options


def _open(
    source: str, file: str, kind: str | None, options: dict[str, str], limits: Limits
) -> InputContainer:
    """The open source."""
    name = shown_name(source)
    try:
        return av.open(
            file,
            "r",
            format=kind,
            options=options | {"max_pixels": str(limits.pixels)},
            metadata_errors="replace",
            timeout=(limits.seconds, limits.seconds),
        )
    except av.ExitError as error:
        raise _stalled(name, limits.seconds) from error
    except av.InvalidDataError as error:
        what = f"{name!r} gives nothing that is read here as live video; check the address"
        raise MediaError("NOT_MEDIA", what) from error
    except av.FFmpegError as error:
        raise _refused(name, kind, error) from error
    except ValueError as error:  # PyAV's, for a demuxer that it lacks
        what = f"PyAV's FFmpeg reads no cameras ({error}); name a stream's address"
        raise EnvironmentFault("CAMERA_MISSING", what) from error


def _refused(name: str, kind: str | None, error: av.FFmpegError) -> MareyError:
    if kind:
        what = f"camera {name} cannot be opened: {error.strerror}; check its number and who may use it"
        return EnvironmentFault("CAMERA_MISSING", what)
    what = f"{name!r} cannot be opened: {error.strerror}; check the address, and that it serves video"
    return MediaError("STREAM_REFUSED", what)


def _stalled(name: str, seconds: float) -> MediaError:
    return MediaError(
        "STREAM_STALLED", f"{name!r} gave no frame for {seconds:g} seconds; check it, or wait longer"
    )


def _read(
    name: str,
    container: InputContainer,
    newest: Newest,
    limits: Limits,
    reduce: Callable[[Tensor], Tensor],
    stop: threading.Event,
) -> None:
    """Decodes frame after frame until the stream ends."""
    stream = default_stream(container)
    if stream is None:
        raise MediaError("NO_VIDEO", f"{name!r} has no video stream that FFmpeg decodes; name another")
    if stream.width * stream.height > limits.pixels:
        what = f"has frames of {stream.width} x {stream.height} pixels"
        raise exceeded(name, what, "pixels", limits.pixels)
    codec, converter, times = stream.codec_context, VideoReformatter(), _Times(newest, limits)
    codec.thread_count, codec.thread_type = 0, "SLICE"  # threads by frames would hold frames back
    codec.options = {"max_pixels": str(limits.pixels)}
    picture: Picture | None = None
    heard, damaged, waiting = time.monotonic(), 0, True
    packets = container.demux(stream)
    while not stop.is_set():
        try:
            packet = next(packets, None)
        except av.ExitError as error:
            raise _stalled(name, limits.seconds) from error
        except av.FFmpegError as error:
            what = f"{name!r} breaks off: {error.strerror}; start again when it is there"
            raise MediaError("STREAM_LOST", what) from error
        if packet is None and picture is None:
            raise MediaError("NOT_DECODABLE", f"{name!r} ended without a frame that can be decoded")
        if packet is None:
            return
        arrived = time.monotonic()
        if arrived - heard > limits.seconds:
            raise _stalled(name, limits.seconds)
        waiting &= not packet.is_keyframe and bool(packet.size)
        if waiting:
            continue
        try:
            frames: list[VideoFrame] = codec.decode(packet)
        except av.FFmpegError:
            frames, damaged = [], damaged + 1
        for frame in frames:
            heard, damaged = arrived, damaged + frame.is_corrupt
            if picture is None:
                picture = picture_of(frame, stream)
                for said in picture.notes:
                    newest.note(*said)
            size = (picture.width, picture.height)
            if (frame.width, frame.height) != size:
                newest.note("SIZE_CHANGED", "frames of another size are resized to that of the first")
            pixels = torch.from_numpy(pixels_of(frame, size, picture.turn, converter).copy())
            newest.add(reduce(pixels), times(frame, arrived), arrived)
        if damaged:
            newest.note("FRAMES_DAMAGED", f"{damaged} frames are damaged or give no picture")


class _Times:
    """When each frame is shown: by the stream's clock, where that jumps or is silent by their arrival."""

    def __init__(self, newest: Newest, limits: Limits) -> None:
        self._newest, self._limits = newest, limits
        self._now, self._repaired = 0.0, 0
        self._last: float | None = None
        self._arrived: float | None = None

    def __call__(self, frame: VideoFrame, arrived: float) -> float:
        """Seconds from the first frame, ascending."""
        moment = frame.time
        if self._arrived is not None:
            step = -1.0 if moment is None or self._last is None else moment - self._last
            if not 0 < step <= self._limits.seconds:
                step = max(arrived - self._arrived, 0.001)
                self._repaired += 1
                text = f"{self._repaired} frames have the time of their arrival, not the stream's"
                self._newest.note("TIMESTAMPS_REPAIRED", text)
            self._now += step
        self._last, self._arrived = moment, arrived
        return self._now
