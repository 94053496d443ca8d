"""A job over very many videos: worker processes measure them and read their views, some windows at a time."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from marey.data.workers import Pool
from marey.errors import EnvironmentFault, MareyError, UsageError
from marey.jobs.interrupt import Interrupted, stop_signals
from marey.jobs.manifest import Item, Manifest
from marey.jobs.predict import windows
from marey.jobs.progress import Progress
from marey.jobs.setup import cores
from marey.video.preprocess import Preprocess, Protocol, Views
from marey.video.reader import Video, read_video
from marey.weights.native import digest

PIECE = 256  # frames that are read and held together, but at least one window's
SECONDS = 600.0  # for one piece; a worker that takes longer is ended

Per = float | Literal["clip", "video"]
Span = tuple[float, float, int]  # start and end in seconds from the first frame, frames


class Task(msgspec.Struct, frozen=True):
    """A video to open.

    name   what it is called in results
    per    "clip", "video": whole videos by the test protocol; a number: windows that start so many seconds
           apart, by the validation protocol
    span   seconds a window lasts; None: as `marey.jobs.predict.windows` says
    """

    path: str
    name: str
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


def _pieces(video: Opened | MareyError, pool: Pool) -> Iterator[tuple[Piece, float]]:
    """The pieces of a video, and how much of it is read with each, 0..1. Raises its MediaError."""
    if isinstance(video, MareyError):
        raise video
    count = 1 + len(video.rest)
    yield video.first, 1 / count
    for number, (_, piece) in enumerate(pool.run(read_piece, video.rest, prefetch=pool.workers + 1), 2):
        if isinstance(piece, MareyError):
            raise piece
        yield piece, number / count


def made_by(network: Any, clips: Preprocess) -> dict[str, Any]:
    """What a job's outputs depend on, of the network as it was opened and of the clips that it is shown."""
    spec = network.spec or {}
    return {
        "model": spec.get("name", type(network).__name__),
        "options": spec.get("overrides", {}),
        "weights_sha256": digest({name: value.cpu() for name, value in network.state_dict().items()}),
        "preprocess": msgspec.to_builtins(clips),
    }


# The job ----------------------------------------------------------------------------------------------

Made = tuple[str, dict[str, Any]]  # the output's file, relative to the job's folder, and the result to note
Work = Callable[[Item, Iterator[Piece]], Made]


class _Stopped(Exception):
    """A signal came in the middle of a video."""


def each_video(
    what: str, manifest: Manifest, tasks: dict[Item, Task], work: Work, *, workers: int, quiet: bool
) -> tuple[int, int]:
    """Have `work` make its output of each video's pieces, and note how that ended: (ended, of them failed).

    tasks    the videos that wait, by item; the task's name is what failures are called by
    workers  decoding processes; -1: one per core, at most eight; 0: this one decodes

    After SIGINT, SIGTERM or SIGUSR1 fewer have ended; the one that was worked on leaves nothing.
    """
    ended, failed, progress = 0, 0, Progress(what, quiet=quiet)

    def watched(video: Opened | MareyError) -> Iterator[Piece]:
        for piece, share in _pieces(video, pool):
            yield piece
            if share < 1:
                progress(ended + share, len(tasks))
                if stop.is_set():
                    raise _Stopped

    with Pool(cores() if workers < 0 else workers, SECONDS) as pool, stop_signals() as stop:
        opened = pool.run(open_video, iter(tasks.values()), prefetch=pool.workers + 1)
        for (item, task), (_, video) in zip(tasks.items(), opened, strict=True):
            try:
                file, result = work(item, watched(video))
                manifest.add(item, file=file, result=result)
            except _Stopped:
                break
            except MareyError as error:
                if isinstance(error, UsageError | EnvironmentFault):
                    raise
                manifest.add(item, code=error.code, message=error.message, result={"source": task.name})
                failed += 1
                if not quiet:
                    print(f"{task.name}: {error.code}: {error.message}", file=sys.stderr)
            ended += 1
            progress(ended, len(tasks))
            if stop.is_set():
                break
    return ended, failed


def check_all(ended: int, count: int) -> None:
    """Raises Interrupted where a signal ended the job before its last video."""
    if ended < count:
        raise Interrupted(
            "INTERRUPTED", f"stopped after {ended} of {count} videos, which are saved; continue with --resume"
        )
