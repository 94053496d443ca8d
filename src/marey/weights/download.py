"""A published file comes into the cache folder: whole and checked, or not at all.

It is written under a temporary name beside its place, goes on where it stopped (also in a later run), is
checked by length and SHA-256, and only then gets its name. One process fetches, others wait for it.

MAREY_OFFLINE=1   no network; mirrors that are folders are still used
MAREY_MIRROR      where to look first: folders or http(s) addresses, separated by commas. A file is looked for
                  under the path of its published address, then under its name there, then under ours
"""

import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

from marey.errors import EnvironmentFault, MareyError, UsageError, WeightsError
from marey.files import cannot_write, replacing

TIMEOUT = 30.0  # seconds without a byte
TRIES = 4  # in a row that bring nothing new
ATTEMPTS = 50  # in all, for a server that gives a little each time
PAUSE = 1.0  # seconds before the second try; doubled each time
LONGEST_PAUSE = 30.0  # whatever a server asks for
REDIRECTS = 5
MOST = 8 * 2**30  # bytes; the largest published files have about 1 GiB
CHUNK = 2**18

# no such server, not the right one, no address: another try is the same
_FINAL = (socket.gaierror, ssl.SSLCertVerificationError, http.client.InvalidURL, ValueError)


class Fault(EnvironmentFault):
    """What one source did wrong.

    again        another try may help
    unreachable  nobody answered
    pause        seconds the server asks to wait
    """

    def __init__(
        self, code: str, message: str, *, again: bool = False, unreachable: bool = False, pause: float = 0.0
    ) -> None:
        super().__init__(code, message)
        self.again, self.unreachable, self.pause = again, unreachable, pause


def download(address: str, target: Path, sha256: str | None) -> None:
    """Bring the file of an https address to `target`, from a mirror or from there; tells of it on stderr.

    sha256  the hash as hex, or as many first digits as are known; None: only its length is checked

    Raises WeightsError WEIGHTS_OFFLINE or WEIGHTS_HASH, EnvironmentFault DOWNLOAD_FAILED, DOWNLOAD_REDIRECT,
    DOWNLOAD_SIZE, DISK_FULL or NOT_WRITABLE, UsageError MIRROR. Except for the last, the message says how to
    get the file by hand.
    """
    found = sources(address, target.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(target, error) from error
    faults: list[tuple[str, Fault]] = []
    silent: set[str] = set()  # servers that did not answer
    with _alone(target) as part:
        if target.exists():
            return  # another process was faster
        for source in found:
            server = urlsplit(str(source)).netloc
            if server in silent:
                continue
            try:
                _bring(source, part, target, sha256)
            except Fault as fault:
                faults.append((str(source), fault))
                silent |= {server} - {""} if fault.unreachable else set()
            else:
                return
    raise _failure(address, target, sha256, faults)


def offline() -> bool:
    """Whether MAREY_OFFLINE forbids the network."""
    return os.environ.get("MAREY_OFFLINE", "").lower() not in ("", "0", "no", "off", "false")


def sources(address: str, ours: str = "") -> list[str | Path]:
    """Where a published file is looked for, in order: files in folders, and addresses where allowed.

    ours  name that the file has in the cache folder: addresses of Google Drive hold none
    """
    path = urlsplit(address).path.lstrip("/")
    names = list(dict.fromkeys(filter(None, (path, path.rpartition("/")[2], ours))))
    places: list[str | Path] = []
    text = os.environ.get("MAREY_MIRROR", "")
    for base in [text] if text and Path(text).is_dir() else filter(None, map(str.strip, text.split(","))):
        if urlsplit(base).scheme in ("http", "https"):
            places += [f"{base.rstrip('/')}/{name}" for name in names]
        elif Path(base).is_dir():
            places += [Path(base) / name for name in names]
        else:
            raise UsageError(
                "MIRROR", f"MAREY_MIRROR names {base!r}, which is neither a folder nor an http(s) address"
            )
    return [place for place in [*places, address] if isinstance(place, Path) or not offline()]


def size(count: float) -> str:
    """Bytes for people: 97.3 MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _bring(source: str | Path, part: Path, target: Path, sha256: str | None) -> None:
    """Fill `part` from one source, check it and give it its name."""
    for fresh in (False, True):  # what an earlier run began may belong to another file
        kept = not fresh and part.exists()
        if isinstance(source, Path):
            _copy(source, part)
        else:
            _pull(source, part, target, sha256)
        with part.open("rb") as file:
            start = file.read(1)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        page = start == b"<"
        if digest.startswith(sha256 or "") and (sha256 or not page):
            with replacing(target) as whole:
                part.replace(whole)
            _discard(part)
            return
        _discard(part)
        if not kept:
            break
    if not sha256:
        raise Fault("WEIGHTS_HASH", "what came seems to be a web page")
    told = ", and it seems to be a web page" if page else ""
    raise Fault("WEIGHTS_HASH", f"what came has a sha256 that begins with {digest[:8]}{told}")


def _failure(address: str, target: Path, sha256: str | None, faults: list[tuple[str, Fault]]) -> MareyError:
    """The error for a file that no source gave."""
    known = f" (sha256 begins with {sha256[:8]})" if sha256 else ""
    advice = f"get {address}{known} and put it at {str(target)!r}; MAREY_CACHE names another folder"
    absent = f"{target.name} is not in the cache"
    answered = [fault for _, fault in faults if not fault.unreachable]
    told = "; ".join(f"{source}: {fault.message}" for source, fault in faults)
    if offline():
        why = f"MAREY_OFFLINE is set{f' and {told}' if told else ''}"
        return WeightsError("WEIGHTS_OFFLINE", f"{absent} and {why}: {advice}")
    if not answered:
        return WeightsError("WEIGHTS_OFFLINE", f"{absent} and no server answers ({told}): {advice}")
    if answered[-1].code == "WEIGHTS_HASH":
        return WeightsError("WEIGHTS_HASH", f"{absent}; {told}: nothing was kept; {advice}")
    return EnvironmentFault(
        answered[-1].code, f"{absent} and could not be fetched ({told}): run it again to go on, or {advice}"
    )


# One source -------------------------------------------------------------------------------------------


def _copy(source: Path, part: Path) -> None:
    if not source.is_file():
        raise Fault("DOWNLOAD_FAILED", "no such file", unreachable=True)
    _say(f"taking {source}")
    _discard(part)
    try:
        shutil.copyfile(source, part)
    except OSError as error:
        raise cannot_write(part, error) from error


def _pull(url: str, part: Path, target: Path, sha256: str | None) -> None:
    """Fetch an address until `part` is whole; tries again while that may help."""
    meter, failures = Meter(target.name), 0
    for _ in range(ATTEMPTS):
        had = _length(part)
        try:
            return _attempt(url, part, target, sha256, meter)
        except Fault as fault:
            failures = 1 if _length(part) > had else failures + 1
            if not fault.again or failures >= TRIES:
                raise
            pause = max(PAUSE * 2 ** (failures - 1), min(fault.pause, LONGEST_PAUSE))
            meter.end()
            _say(f"{fault.message}; trying again in {pause:.0f} s")
            time.sleep(pause)
    raise Fault("DOWNLOAD_FAILED", f"the connection broke {ATTEMPTS} times")


def _attempt(url: str, part: Path, target: Path, sha256: str | None, meter: "Meter") -> None:
    """One request; what came stays in `part`, whether it was all or not."""
    headers = {"User-Agent": f"marey/{version('marey')}", "Accept-Encoding": "identity"}
    note, have = _read_note(part), _length(part)
    same = note.get("validator") if note.get("url") == url else None
    if have and (same or sha256):  # without either, two files could be mixed unnoticed
        headers["Range"] = f"bytes={have}-"
        if same:
            headers["If-Range"] = same
    try:
        answer = _open(url, headers)
    except HTTPError as error:
        if error.code == 416:
            if error.headers.get("Content-Range", "") == f"bytes */{have}":
                return  # it was whole already
            _discard(part)
        raise _refused(error) from None
    with answer:
        first, total = _extent(answer.status, answer.headers)
        total = note.get("total") if first and total is None else total
        if first not in (0, have) or (first and note.get("total", total) != total):
            _discard(part)
            raise Fault("DOWNLOAD_FAILED", "the server gave another part than it was asked for", again=True)
        if total is not None and total > MOST:
            raise Fault("DOWNLOAD_SIZE", f"the server tells of {size(total)}; at most {size(MOST)} are taken")
        _room(target, (total or 0) - first)
        with _writing(target):
            _write_note(part, url, answer.headers, total)
        meter.begin(f"{url} to {target}", first, total)
        with _writing(target), part.open("r+b" if first else "wb") as file:
            file.seek(first)
            _take(answer, file, first, total, meter)


def _take(answer: Any, file: IO[bytes], done: int, total: int | None, meter: "Meter") -> None:
    """Write what comes; Fault where it ends early, stalls or does not end."""
    while chunk := _next(answer):
        done += len(chunk)
        if done > MOST:
            raise Fault("DOWNLOAD_SIZE", f"the server did not stop after {size(MOST)}")
        file.write(chunk)
        meter(done)
    if total is not None and done != total:
        raise Fault("DOWNLOAD_FAILED", f"the connection broke after {done:,} of {total:,} bytes", again=True)
    meter.end()


def _next(answer: Any) -> bytes:
    try:
        chunk: bytes = answer.read1(CHUNK)
    except TimeoutError:
        raise Fault("DOWNLOAD_FAILED", f"no byte came for {TIMEOUT:.0f} s", again=True) from None
    except (OSError, http.client.HTTPException) as error:
        raise Fault("DOWNLOAD_FAILED", f"the connection broke ({_line(error)})", again=True) from None
    return chunk


def _open(url: str, headers: dict[str, str]) -> Any:
    """The answer to a request; follows a few redirects, from https to https only."""
    for _ in range(REDIRECTS + 1):
        try:
            return _OPENER.open(request.Request(url, headers=headers), timeout=TIMEOUT)
        except HTTPError as answer:
            there = answer.headers.get("Location")
            if answer.code not in (301, 302, 303, 307, 308) or not there:
                raise
            answer.close()
            secure, url = urlsplit(url).scheme == "https", urljoin(url, there)
            if urlsplit(url).scheme not in (("https",) if secure else ("http", "https")):
                raise Fault("DOWNLOAD_REDIRECT", f"it leads to {_line(url)}, which is not followed") from None
        except (URLError, OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            again = not isinstance(reason, _FINAL)
            raise Fault("DOWNLOAD_FAILED", _line(reason), again=again, unreachable=True) from None
    raise Fault("DOWNLOAD_REDIRECT", f"more than {REDIRECTS} redirects, the last to {_line(url)}")


def _opener() -> request.OpenerDirector:
    """Like urllib's own, but for http and https alone, and redirects are followed above."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.UnknownHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


_OPENER = _opener()


def _refused(error: HTTPError) -> Fault:
    """The fault for an answer that is no file."""
    error.close()
    text = error.headers.get("Retry-After", "")
    return Fault(
        "DOWNLOAD_FAILED",
        f"the server says {error.code} {_line(error.reason)}".rstrip(),
        again=error.code in (408, 416, 425, 429) or error.code >= 500,
        pause=float(text) if text.isdecimal() else 0.0,
    )


def _extent(status: int, headers: Message) -> tuple[int, int | None]:
    """Where in the file an answer begins, and how long the file is, if the server says so."""
    if status == 206:
        unit, _, rest = headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        first = span.partition("-")[0]
        if unit == "bytes" and first.isdecimal():
            return int(first), int(total) if total.isdecimal() else None
        return -1, None
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _line(text: object) -> str:
    """Text of a stranger, printable, on one line, not too long."""
    return ascii(str(text))[1:-1][:120]


# Files ------------------------------------------------------------------------------------------------


@contextmanager
def _alone(target: Path) -> Iterator[Path]:
    """Yields the temporary path, which no other process writes to meanwhile; waits for one that does."""
    lock = target.with_name(f".{target.name}.lock")
    shared, told = True, False
    with _writing(target):
        file = lock.open("ab")
    with file:
        try:
            while not _locked(file):
                if not told:
                    _say(f"another process fetches {target.name}; waiting for it")
                told = True
                time.sleep(0.2)
        except OSError:  # some network file systems cannot lock: go on alone, without what was begun
            shared = False
        part = target.with_name(f".{target.name}.part" if shared else f".{target.name}.{os.getpid()}.part")
        try:
            yield part
        finally:
            if not shared:
                _discard(part)
            with suppress(OSError):
                if target.exists():
                    lock.unlink()


if sys.platform == "win32":
    import msvcrt

    def _locked(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _locked(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turns what the disk refuses into the error for it."""
    try:
        yield
    except OSError as error:
        raise cannot_write(target, error) from error


def _room(target: Path, wanted: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if wanted > free:
        raise EnvironmentFault(
            "DISK_FULL",
            f"{size(free)} free in {str(target.parent)!r}, {size(wanted)} needed for {target.name}",
        )


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> dict[str, Any]:
    """What is known of the file that a part belongs to: url, validator, total."""
    try:
        found = json.loads(_note(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_note(part: Path, url: str, headers: Message, total: int | None) -> None:
    tag = headers.get("ETag", "")
    validator = tag if tag.startswith('"') else headers.get("Last-Modified")  # weak tags cannot be asked for
    note = {"url": url, "validator": validator} | ({} if total is None else {"total": total})
    _note(part).write_text(json.dumps(note), encoding="utf-8")


def _discard(part: Path) -> None:
    for path in (part, _note(part)):
        with suppress(FileNotFoundError):
            path.unlink()


# What is told -----------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(f"marey: {text}", file=sys.stderr, flush=True)


class Meter:
    """One line when a download begins; on a terminal also how far it is, its rate and the time left."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told = self.open = False

    def begin(self, what: str, first: int, total: int | None) -> None:
        """Bytes that are there already, and in all."""
        self.first, self.total = first, total
        self.started = self.shown = time.monotonic()
        if not self.told:
            known = "length unknown" if total is None else size(total)
            _say(f"fetching {what} ({known}{f', going on at {size(first)}' if first else ''})")
        self.told = True

    def __call__(self, done: int) -> None:
        """So many bytes are there."""
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self.shown < 0.2:
            return
        self.shown, self.open = now, True
        rate = max(done - self.first, 1) / max(now - self.started, 1e-9)
        text = f"{self.name[:40]}  {size(done)}"
        if self.total:
            minutes, seconds = divmod(int((self.total - done) / rate), 60)
            text += f" of {size(self.total)}  {done / self.total:.0%}  left {minutes}:{seconds:02}"
        print(f"\r\033[K{text}  {size(rate)}/s", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self.open:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        self.open = False
