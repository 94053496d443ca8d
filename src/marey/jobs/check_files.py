"""What reading every file of a list once finds out, kept so that a killed check continues."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from marey.data.workers import Pool
from marey.errors import MareyError
from marey.files import cannot_write
from marey.video.limits import Limits
from marey.video.reader import read_video

VERSION = 1  # of what is found out; older records are not used again


class Look(msgspec.Struct, frozen=True):
    """A file (or folder of frames) to read once; it may take `seconds`."""

    path: str
    template: str | None
    seconds: float


class Facts(msgspec.Struct, frozen=True):
    """What one file is.

    size, changed  bytes and time of last change (ns) when it was read; of a folder the sum and the latest
    code, message  why it cannot be read; None when it can
    content        SHA-256 of the bytes; of a folder of frames of their names and sizes
    frames, seconds, fps, width, height, decoder    as `read_video` measured them, every frame decoded
    notes          (code, text) of what was damaged, repaired or assumed
    """

    path: str
    size: int
    changed: int
    version: int = VERSION
    code: str | None = None
    message: str = ""
    content: str = ""
    frames: int = 0
    seconds: float = 0.0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    decoder: str = ""
    notes: tuple[tuple[str, str], ...] = ()


def look(task: Look) -> Facts:
    """Read a file as thoroughly as possible. What is wrong with it is in the facts, never raised."""
    size, changed = stamp(task.path)
    try:
        limits = Limits(seconds=task.seconds)
        template = task.template if os.path.isdir(task.path) else None  # noqa: PTH112
        with read_video(task.path, template=template, limits=limits, thorough=True) as video:
            width, height = video.size
            return Facts(
                task.path,
                size,
                changed,
                content=_content(task.path),
                frames=len(video),
                seconds=video.seconds,
                fps=video.fps,
                width=width,
                height=height,
                decoder=video.decoder,
                notes=tuple((note.code, note.text) for note in video.notes),
            )
    except MareyError as error:
        return Facts(task.path, size, changed, code=error.code, message=error.message)


def stamp(path: str) -> tuple[int, int]:
    """(bytes, time of last change in ns) of a file, or all files of a folder; (-1, 0) if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size, status.st_mtime_ns
        inside = [entry.stat() for entry in os.scandir(path) if entry.is_file()]
        return sum(s.st_size for s in inside), max(
            (s.st_mtime_ns for s in inside), default=status.st_mtime_ns
        )
    except (OSError, ValueError):
        return -1, 0


def _content(path: str) -> str:
    if os.path.isdir(path):  # noqa: PTH112
        names = sorted((os.fsencode(e.name), e.stat().st_size) for e in os.scandir(path) if e.is_file())
        return hashlib.sha256(repr(names).encode()).hexdigest()
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()


class Ledger:
    """Facts as JSON lines in a file that only grows, so that a killed check loses what was under way at most.

    A record counts as long as its file has the same size and time of last change. None: kept nowhere.
    """

    def __init__(self, path: Path | None, *, resume: bool) -> None:
        self.known: dict[str, Facts] = {}
        self.path = path
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._read(path.read_bytes()) if resume and path.exists() else 0
            with path.open("ab") as file:
                file.truncate(whole)  # half a line that a kill left
        except OSError as error:
            raise cannot_write(path, error) from error

    def _read(self, data: bytes) -> int:
        """Take the records of whole lines; the length of these lines."""
        whole = data.rfind(b"\n") + 1
        for line in data[:whole].splitlines():
            try:
                facts = msgspec.convert(json.loads(line), Facts)
            except (ValueError, msgspec.ValidationError):  # of another version
                continue
            if facts.version == VERSION:
                self.known[facts.path] = facts
        return whole

    def current(self, path: str) -> Facts | None:
        """The facts of a file that is as it was, None for one to be read (again)."""
        facts = self.known.get(path)
        return facts if facts and facts.size >= 0 and (facts.size, facts.changed) == stamp(path) else None

    def add(self, facts: Facts) -> None:
        """Keep the facts."""
        self.known[facts.path] = facts
        if self.path is None:
            return
        line = json.dumps(msgspec.to_builtins(facts)).encode() + b"\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(line)
        except OSError as error:
            raise cannot_write(self.path, error) from error


def look_at_all(
    files: Mapping[str, str | None],
    ledger: Ledger,
    *,
    workers: int,
    seconds: float,
    progress: Callable[[int, int], None],
) -> tuple[list[Facts], int]:
    """The facts of all files {path: template}, in this order, and how many were read now."""
    waiting = [Look(path, template, seconds) for path, template in files.items() if not ledger.current(path)]
    done = len(files) - len(waiting)
    with Pool(workers, seconds + 30) as pool:  # the reader itself gives up before
        for task, facts in pool.run(look, waiting, ordered=False):
            if isinstance(facts, MareyError):
                facts = Facts(task.path, *stamp(task.path), code=facts.code, message=facts.message)
            ledger.add(facts)
            done += 1
            progress(done, len(files))
    return [ledger.known[path] for path in files], len(waiting)
