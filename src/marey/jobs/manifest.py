"""What a bulk job has done, in a folder that several processes may fill and any later one may continue.

    job.json        what the outputs are made with; the folder takes no output made otherwise
    done/*.jsonl    a journal per process: one line per item, written when its output is complete

An item is finished when a journal has it as it is now and its output is there. A process that is killed loses
the item it works on and nothing else, however many others work on the same folder.
"""

import hashlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from marey.errors import UsageError
from marey.files import cannot_write, replacing
from marey.jobs.doctor import environment
from marey.jobs.runs import flat, plain_json

if sys.platform != "win32":
    import fcntl


class Item(NamedTuple):
    """One piece of work.

    key    what it is called in all runs of the job, for example a file's full path
    stamp  what changes when its content does: (bytes, time of last change in ns)
    """

    key: str
    stamp: tuple[int, int]


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an item ended.

    ended          when, in ns since 1970; of several entries of an item the latest counts
    file           its output, relative to the folder; None: it has none, `code` and `message` say why
    result         what the job wants to know of it, plain JSON values
    """

    key: str
    stamp: tuple[int, int]
    ended: int
    file: str | None = None
    code: str | None = None
    message: str | None = None
    result: dict[str, Any] = {}


class Shard(NamedTuple):
    """Part `part` (0 .. parts - 1) of the items, the same in every process."""

    part: int
    parts: int

    def holds(self, key: str) -> bool:
        """Whether an item belongs to this part; its key alone decides."""
        return int(digest(os.fsencode(key))[:15], 16) % self.parts == self.part


def shard(text: str) -> Shard:
    """`2/8` -> part 2 of parts 0 to 7. Raises UsageError SHARD."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise UsageError("SHARD", f"{text!r} is not a part; write 0/4, 1/4, 2/4 and 3/4 for four parts")
    return Shard(int(part), int(parts))


class Manifest:
    """The folder of one job, and what is finished in it. Made once per process.

    job       name of the job
    settings  everything that the outputs depend on but the items, plain JSON values
    resume    a folder with outputs is continued, else refused

    Raises UsageError FOLDER_USED (without `resume`) and RESUME_MISMATCH, naming the settings that differ.
    """

    def __init__(
        self, folder: str | os.PathLike[str], job: str, settings: dict[str, Any], *, resume: bool
    ) -> None:
        self.folder = Path(folder)
        self._head = {"job": job, "settings": digest(json.dumps(settings, sort_keys=True).encode())}
        self._journal = self.folder / "done" / f"{uuid.uuid4().hex}.jsonl"
        self._card: dict[str, Any] = {"job": job, "settings": settings, "versions": environment()}
        if self.card.exists():
            _check(self.card, job, settings, resume)
        self.entries = self._read()

    @classmethod
    def of(cls, folder: str | os.PathLike[str], job: str) -> Self:
        """A job's folder as it is, to read it. Raises UsageError RESUME_MISMATCH for another's."""
        card = Path(folder) / "job.json"
        try:
            settings = json.loads(card.read_bytes())["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError("RESUME_MISMATCH", f"{card} is not a job's; give another folder") from None
        return cls(folder, job, settings, resume=True)

    @property
    def settings(self) -> dict[str, Any]:
        """What the outputs are made with."""
        found: dict[str, Any] = self._card["settings"]
        return found

    @property
    def card(self) -> Path:
        """Where the settings are; written with the first entry."""
        return self.folder / "job.json"

    @property
    def journal(self) -> str:
        """This process's, relative to the folder: the output of items whose result is all there is."""
        return self._journal.relative_to(self.folder).as_posix()

    def waiting(self, items: Iterable[Item]) -> list[Item]:
        """The items that are not finished: new, changed, failed before, or without their output."""
        return [item for item in items if not self._finished(item)]

    def _finished(self, item: Item) -> bool:
        entry = self.entries.get(item.key)
        return (
            entry is not None
            and entry.file is not None
            and tuple(entry.stamp) == item.stamp
            and (self.folder / entry.file).exists()
        )

    def add(
        self,
        item: Item,
        *,
        file: str | None = None,
        code: str | None = None,
        message: str | None = None,
        result: dict[str, Any],
    ) -> Entry:
        """Note how an item ended; its output must be complete. Raises EnvironmentFault as `replacing`."""
        entry = Entry(item.key, item.stamp, time.time_ns(), file, code, message, result)
        try:
            new = not self._journal.exists()
            if not self.card.exists():
                with replacing(self.card) as part:
                    part.write_text(plain_json(self._card) + "\n", encoding="utf-8")
            self._journal.parent.mkdir(exist_ok=True)
            with self._journal.open("ab") as journal:
                if new:
                    journal.write(_line({**self._head, "versions": self._card["versions"]}))
                journal.write(_line(msgspec.to_builtins(entry)))
                journal.flush()
                os.fsync(journal.fileno())
        except OSError as error:
            raise cannot_write(self._journal, error) from error
        self.entries[item.key] = entry
        return entry

    def publish(self, write: Callable[[list[Entry]], None]) -> None:
        """Have `write` summarise all entries of all processes, in the order of their keys.

        One process at a time: what the last one writes is complete.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder / "publishing.lock"):
            self.entries = self._read()
            write([self.entries[key] for key in sorted(self.entries)])

    def _read(self) -> dict[str, Entry]:
        """The latest entry of every item. Raises UsageError RESUME_MISMATCH for another job's journal."""
        found: dict[str, Entry] = {}
        for path in sorted((self.folder / "done").glob("*.jsonl")):
            lines = _whole_lines(path)
            if lines and {name: lines[0].get(name) for name in self._head} != self._head:
                raise UsageError(
                    "RESUME_MISMATCH", f"{path} tells of outputs made with other settings; give another --out"
                )
            for line in lines[1:]:
                entry = msgspec.convert(line, Entry)
                if entry.key not in found or found[entry.key].ended < entry.ended:
                    found[entry.key] = entry
        return found


def digest(data: bytes) -> str:
    """SHA-256, as hex."""
    return hashlib.sha256(data).hexdigest()


def _check(card: Path, job: str, settings: dict[str, Any], resume: bool) -> None:
    try:
        there = json.loads(card.read_bytes())
        before, now = flat({"job": there["job"], **there["settings"]}), flat({"job": job, **settings})
    except (ValueError, KeyError, TypeError):
        raise UsageError("RESUME_MISMATCH", f"{card} is not a job's; give another --out") from None
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise UsageError(
            "RESUME_MISMATCH",
            f"{card.parent} holds outputs made with another {', '.join(changed[:5])}; give the same, or "
            "another --out",
        )
    if not resume:
        raise UsageError(
            "FOLDER_USED", f"{card.parent} holds outputs of this job; continue with --resume, or give another"
        )


def _line(value: object) -> bytes:
    """A line of JSON; ASCII, so that names that are no text come back as they are."""
    return json.dumps(value).encode() + b"\n"


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal but those that a kill or a full disk cut short."""
    lines = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is here; where the system has no such locks, just go on."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
