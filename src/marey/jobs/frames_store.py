"""One video becomes stored frames: a folder of pictures, or a small video that seeks quickly.

    png    every frame exactly, at its new size
    jpeg   by quality, with full colour resolution
    video  H.264 by constant quality, a key frame every twelve frames, so that a training reaches any frame
           by decoding twelve at most

Where a rate is given, frame k is what is shown k / rate seconds after the first frame. Sizes are changed by a
bicubic filter that averages when it shrinks, as FFmpeg's scale filter does.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from marey.data.clips import whole_part
from marey.data.lists import Entry
from marey.errors import MediaError, UsageError
from marey.files import cannot_write
from marey.video.limits import Limits
from marey.video.reader import ROUNDING, Video, read_video
from marey.video.synthetic import write_video
from marey.video.transforms import Size, scaled

Kind = Literal["png", "jpeg", "video"]
KINDS: tuple[Kind, ...] = ("png", "jpeg", "video")
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "video": ".mp4"}
AT_ONCE = 32  # frames decoded together
H264 = {  # no look-ahead: with it x264 gives other bytes now and then
    "preset": "medium",
    "g": "12",
    "bf": "0",
    "x264-params": "mbtree=0:rc-lookahead=0",
    "colorspace": "smpte170m",  # what the RGB frames are converted by
    "color_primaries": "smpte170m",
    "color_trc": "smpte170m",
    "color_range": "tv",
}


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """How frames are stored.

    fps         frames per second; None: every frame of the video
    height      all frames get this height, also smaller ones, whichever way they lie (ResKD: 360)
    short_side  instead: at most this short side; smaller frames stay as they are. Neither: no other size
    quality     of JPEG, 1..95
    crf         of H.264, 0..51, smaller is better
    template    names of pictures; None: img_{:05} with the suffix of their kind
    """

    kind: Kind = "png"
    fps: float | None = 4.0
    height: int | None = None
    short_side: int | None = None
    quality: int = 95
    crf: int = 18
    template: str | None = None

    def __post_init__(self) -> None:
        faults = {
            f"store is {self.kind!r}; it must be png, jpeg or video": self.kind not in KINDS,
            "fps must be above 0": self.fps is not None and not self.fps > 0,
            "give height or short side, not both": self.height is not None and self.short_side is not None,
            "height and short side must be at least 2": min(self.height or 2, self.short_side or 2) < 2,
            "quality must lie in 1..95": not 1 <= self.quality <= 95,
            "crf must lie in 0..51": not 0 <= self.crf <= 51,
        }
        for text, wrong in faults.items():
            if wrong:
                raise UsageError("STORE_INVALID", f"frames: {text}")
        if self.template is not None and self.kind != "video":
            self._check_template()

    def _check_template(self) -> None:
        try:
            names = [str(self.template).format(number) for number in (1, 2)]
        except (ValueError, IndexError, KeyError):
            names = []
        if len({*names}) < 2 or Path(names[0]).name != names[0] or self.suffix != Path(names[0]).suffix:
            raise UsageError(
                "TEMPLATE",
                f"template {self.template!r} must be a file name with one number, such as "
                f"img_{{:05}}{self.suffix}",
            )

    @property
    def suffix(self) -> str:
        """Of a picture or video."""
        return SUFFIXES[self.kind]

    @property
    def names(self) -> str:
        """The template in force."""
        return self.template or f"img_{{:05}}{self.suffix}"

    def size(self, size: Size) -> Size:
        """(width, height) that frames of this one get; even where H.264 needs it."""
        if self.height is not None:
            size = scaled(size, self.height / size[1])
        elif self.short_side is not None and min(size) > self.short_side:
            size = scaled(size, self.short_side / min(size))
        if self.kind == "video":
            size = (max(2, size[0] // 2 * 2), max(2, size[1] // 2 * 2))
        return size

    def about(self) -> str:
        """In words."""
        side = f", height {self.height}" if self.height else ""
        side = f", short side {self.short_side}" if self.short_side else side
        quality = {"png": "", "jpeg": f" quality {self.quality}", "video": f" H.264 crf {self.crf}"}[
            self.kind
        ]
        return f"{self.kind}{quality}{side}, {f'{self.fps:g} a second' if self.fps else 'every frame'}"


class Task(msgspec.Struct, frozen=True):
    """A video, or the part of one that a list means, and the folder or file that its frames go to.

    partial  a video that ends early gives what it has
    """

    entry: Entry
    target: str
    store: Store
    seconds: float
    partial: bool = False

    @property
    def path(self) -> str:
        """What errors name."""
        return self.entry.path


class Stored(NamedTuple):
    """What a video became; notes are those of reading it, each "CODE: text"."""

    frames: int
    bytes: int
    notes: tuple[str, ...]


def store_video(task: Task) -> Stored:
    """Store the frames of one video: all of them or nothing. Raises MediaError as reading it does."""
    with opened(task) as video:
        numbers = wanted(task, video)
        if task.store.kind == "video":
            size = _store_as_video(task, video, numbers)
        else:
            size = _store_as_pictures(task, video, numbers)
        return Stored(len(numbers), size, tuple(f"{note.code}: {note.text}" for note in video.notes))


def opened(task: Task) -> Video:
    """The video of a task."""
    path = task.entry.path
    folder = os.path.isdir(path)  # noqa: PTH112 - bytes that are no text stay as they are
    template = task.entry.template if folder else None
    return read_video(path, template=template, limits=Limits(seconds=task.seconds))


def wanted(task: Task, video: Video) -> npt.NDArray[np.int64]:
    """Numbers of the video's frames that are stored, ascending; slow videos repeat some."""
    part = _part(task, video)
    times = video.timestamps
    end = times[part.stop] if part.stop < len(video) else times[0] + video.seconds
    if task.store.fps is None:
        return np.arange(part.start, part.stop)
    count = max(1, int(np.ceil((end - times[part.start]) * task.store.fps - ROUNDING)))
    shown = video.at(times[part.start] + np.arange(count) / task.store.fps)
    return np.clip(shown, part.start, part.stop - 1)


def _part(task: Task, video: Video) -> range:
    try:
        return whole_part(task.entry, video)
    except MediaError as error:
        start, entry = task.entry.start, task.entry
        if not task.partial or error.code != "MEDIA_TRUNCATED":
            raise
        if entry.seconds is not None:
            places = np.searchsorted(video.timestamps - video.timestamps[0] + ROUNDING, entry.seconds)
            start, stop = int(places[0]), int(places[1])
        else:
            stop = len(video) if entry.total is None else min(len(video), start + entry.total)
        if start >= stop:
            raise
        return range(start, stop)


def pictures(store: Store, video: Video, numbers: Sequence[int] | npt.NDArray[np.int64]) -> Iterator[Tensor]:
    """The frames at their new size, uint8 [H, W, 3] each; a few are decoded at a time."""
    size = store.size(video.size)
    for first, last in pairwise([*range(0, len(numbers), AT_ONCE), len(numbers)]):
        some, rows = np.unique(np.asarray(numbers[first:last]), return_inverse=True)
        frames = smooth_resize(video.frames(some), size)
        for row in rows:
            yield frames[row]


def smooth_resize(frames: Tensor, size: Size) -> Tensor:
    """uint8 [T, H, W, 3] at another (width, height), bicubic, averaging where it shrinks."""
    if (frames.shape[2], frames.shape[1]) == size:
        return frames
    planes = interpolate(frames.permute(0, 3, 1, 2), size=(size[1], size[0]), mode="bicubic", antialias=True)
    return planes.permute(0, 2, 3, 1).contiguous()


def _store_as_video(task: Task, video: Video, numbers: npt.NDArray[np.int64]) -> int:
    target = Path(task.target)
    encode_video(
        target, pictures(task.store, video, numbers), task.store, times_of(video, numbers, task.store)
    )
    return target.stat().st_size


def times_of(video: Video, numbers: npt.NDArray[np.int64], store: Store) -> list[float] | None:
    """Seconds of frames that keep the video's own times; None where they have a rate."""
    return None if store.fps else (video.timestamps[numbers] - video.timestamps[numbers[0]]).tolist()


def encode_video(path: Path, frames: Iterator[Tensor], store: Store, times: Sequence[float] | None) -> None:
    """An H.264 file without sound; the same frames give the same bytes. Raises CANNOT_ENCODE."""
    rate = store.fps or (1.0 if not times or len(times) < 2 else (len(times) - 1) / (times[-1] - times[0]))
    write_video(
        path,
        (frame.numpy() for frame in frames),
        fps=rate,
        codec="libx264",
        times=times,
        encoder=H264 | {"crf": str(store.crf)},
        container={"movflags": "+faststart"},
    )


def _store_as_pictures(task: Task, video: Video, numbers: npt.NDArray[np.int64]) -> int:
    """A folder that appears under its name when it is complete; its size in bytes."""
    target, size = Path(task.target), 0
    part = target.with_name(f".{target.name[:200]}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{_literal(target.name[:200])}.*.part"):  # a killed run's
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir()
        for number, frame in enumerate(pictures(task.store, video, numbers), start=1):
            size += write_picture(part / task.store.names.format(number), frame, task.store)
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return size


def _literal(name: str) -> str:
    """A name that glob takes as it is."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def write_picture(path: Path, frame: Tensor, store: Store) -> int:
    """One PNG or JPEG; its size in bytes."""
    options: dict[str, Any] = {"compress_level": 3}  # a twentieth larger than 6, and half as long
    if store.kind == "jpeg":
        options = {"quality": store.quality, "subsampling": 0}
    with path.open("wb") as file:
        Image.fromarray(frame.numpy()).save(file, "PNG" if store.kind == "png" else "JPEG", **options)
        return file.tell()
