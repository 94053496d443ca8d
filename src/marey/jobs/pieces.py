"""Videos in pieces: worker processes measure them and read their views, some windows at a time."""

import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from marey.data.workers import Pool
from marey.errors import MareyError
from marey.jobs.predict import windows
from marey.video.preprocess import Preprocess, Protocol, Views
from marey.video.reader import Video, read_video

PIECE = 256  # frames that are read and held together, but at least one window's
SECONDS = 600.0  # for one piece; a worker that takes longer is ended

Per = float | Literal["clip", "video"]
Span = tuple[float, float, int]  # start and end in seconds from the first frame, frames


class Task(msgspec.Struct, frozen=True):
    """A video to open.

    per    "clip", "video": whole videos by the test protocol; a number: windows that start so many seconds
           apart, by the validation protocol
    span   seconds a window lasts; None: as `marey.jobs.predict.windows` says
    """

    path: str
    template: str | None
    preprocess: Preprocess
    per: Per
    span: float | None = None

    @property
    def protocol(self) -> Protocol:
        """How a window becomes views."""
        return self.preprocess.test if isinstance(self.per, str) else self.preprocess.val


class Piece(NamedTuple):
    """Some windows of a video, read: the views of each, the rows they make, and notes on the file."""

    views: list[Views]
    spans: list[Span]
    notes: tuple[str, ...]


class Rest(NamedTuple):
    """Windows of a measured video that are to be read: (start, end, frame numbers) of each."""

    task: Task
    video: Video
    windows: list[tuple[float, float, range]]

    @property
    def path(self) -> str:
        """What errors name."""
        return self.task.path


class Opened(NamedTuple):
    """A measured video: its first piece, and those that follow."""

    first: Piece
    rest: list[Rest]


def open_video(task: Task) -> Opened:
    """Measure a video, lay its windows and read the first ones. Raises MediaError."""
    folder = os.path.isdir(task.path)  # noqa: PTH112 - bytes that are no text stay as they are
    with read_video(task.path, template=task.template if folder else None) as video:
        every = None if isinstance(task.per, str) else task.per
        laid = list(windows(video, task.preprocess, every, task.span))
        frames = task.preprocess.pick_test(len(laid[0][2]), task.protocol, video.fps).size
        step = max(1, PIECE // frames)
        parts = [Rest(task, video, laid[start : start + step]) for start in range(0, len(laid), step)]
        return Opened(read_piece(parts[0]), parts[1:])


def read_piece(part: Rest) -> Piece:
    """Read the views of some windows. Raises MediaError."""
    task = part.task
    with part.video as video:
        views = [task.preprocess.views(video, task.protocol, frames) for _, _, frames in part.windows]
        spans = [(start, end, len(frames)) for start, end, frames in part.windows]
        if task.per == "clip":
            spans = _clips(views[0], video)
        return Piece(views, spans, tuple(f"{note.code}: {note.text}" for note in video.notes))


def _clips(views: Views, video: Video) -> list[Span]:
    """Where the clips of a whole video's views lie."""
    times = np.append(video.timestamps - video.timestamps[0], video.seconds)
    numbers = [np.unique(views.numbers[clip]) for clip in views.index]
    return [(float(times[n[0]]), float(times[n[-1] + 1]), len(n)) for n in numbers]


def pieces(video: Opened | MareyError, pool: Pool) -> Iterator[tuple[Piece, float]]:
    """The pieces of a video, and how much of it is read with each, 0..1. Raises its MediaError."""
    if isinstance(video, MareyError):
        raise video
    count = 1 + len(video.rest)
    yield video.first, 1 / count
    for number, (_, piece) in enumerate(pool.run(read_piece, video.rest, prefetch=pool.workers + 1), 2):
        if isinstance(piece, MareyError):
            raise piece
        yield piece, number / count
