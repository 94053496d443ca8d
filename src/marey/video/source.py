"""What the user named -> things to read: files, folders, patterns, lists, frames, standard input."""

import codecs
import csv
import glob
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import msgspec

from marey.errors import DataError, UsageError

VIDEO_NAME = re.compile(
    r".\.(mp4|m4v|mov|qt|mkv|webm|avi|wmv|asf|flv|f4v|mpe?g|mpe|m[12]v|vob|m?ts|m2ts|3gp|3g2|og[vg]|mxf|y4m|gif|"
    r"ivf|nut|h?26[45]|hevc)$",
    re.IGNORECASE | re.DOTALL,
)
FRAME_NAME = re.compile(r"\d\.(jpe?g|png|bmp|webp|tiff?|ppm)$", re.IGNORECASE)
LIST_NAME = re.compile(r".\.(txt|csv|tsv|jsonl)$", re.IGNORECASE | re.DOTALL)

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class Source(msgspec.Struct, frozen=True):
    """One thing to read.

    path      a file or a folder of frames; it may be missing, which reading it will tell
    name      what results call it: as the user, or the list, wrote it
    template  file names in a folder of frames, for example "img_{:05}.jpg"; None: found from the folder
    """

    path: str
    name: str
    template: str | None = None


def expand(sources: Sequence[str | os.PathLike[str]], template: str | None = None) -> Iterator[Source]:
    """The videos that `sources` name, in the order named, folders and patterns sorted by name.

    file      taken as it is, whatever its suffix, also when it is missing
    folder    all videos in it and below, by suffix (`VIDEO_NAME`; hidden names are left out); a folder
              that holds numbered images and no videos is one video
    pattern   `*`, `?`, `[...]` and `**`, where no file of that very name exists; each match as if named
    list      .txt (a path per line), .csv or .tsv (a column `path`), .jsonl (objects with `path`, or
              strings); relative paths start from the list's folder
    -         a list as of .txt on standard input; relative paths start from the working folder
    Text lists may separate paths by NUL instead, as `find -print0` does, for names that hold a newline.

    Everything but standard input is looked at before the first source is given. Raises UsageError
    NOTHING_FOUND (empty folder, list or pattern), NETWORK_SOURCE (an address), NOT_FOUND and NO_ACCESS (of a
    list), and DataError LIST_FORMAT (file and line).
    """
    if not sources:
        raise UsageError("NOTHING_FOUND", "no source is named; name a video, a folder, a pattern or a list")
    found = []
    for name in sources:
        text = os.fspath(name)
        entries = _named(text, template)
        if text != "-":  # searched up to the first
            first = next(entries, None)
            if first is None:
                raise _nothing(text)
            entries = chain([first], entries)
        found.append(entries)
    return chain.from_iterable(found)


def _named(text: str, template: str | None) -> Iterator[Source]:
    if text == "-":
        return _standard_input(template)
    path = Path(text)
    if not os.path.lexists(text):
        if _ADDRESS.match(text):
            raise UsageError(
                "NETWORK_SOURCE",
                f"{text!r}: addresses are not read here; download it and name the file, or see `marey watch`",
            )
        if glob.has_magic(text):
            matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - Path.glob changes the names
            return chain.from_iterable(_named(match, template) for match in matches)
    if LIST_NAME.search(text) and not path.is_dir():
        return _listed(path, template)
    if text and path.is_dir():
        return _folder(text, template, ())
    return iter([Source(text, text, template)])


def _nothing(text: str) -> UsageError:
    if Path(text).is_dir():
        what = (
            "holds no videos (by suffix) and no numbered images; name the files themselves if they are videos"
        )
    elif LIST_NAME.search(text):
        what = "is a list without entries"
    else:
        what = "matches no file; put the pattern in quotes and check it with ls"
    return UsageError("NOTHING_FOUND", f"{text!r} {what}")


# Folders ----------------------------------------------------------------------------------------------


def _folder(folder: str, template: str | None, above: tuple[str, ...]) -> Iterator[Source]:
    """Videos in and below `folder`; `above` are the real paths on the way here, so that links cannot loop."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError:  # the reader says why
        yield Source(folder, folder, template)
        return
    videos = {entry.path for entry in entries if VIDEO_NAME.search(entry.name) and not entry.is_dir()}
    if not videos and any(FRAME_NAME.search(entry.name) for entry in entries):
        yield Source(folder, folder, template)
    for entry in entries:
        if entry.path in videos:
            yield Source(entry.path, entry.path, template)
        elif entry.is_dir():
            yield from _folder(entry.path, template, (*above, real))


# Lists ------------------------------------------------------------------------------------------------


def _listed(path: Path, template: str | None) -> Iterator[Source]:
    """The entries of a list file, read at once so that a mistake in it shows before any video is read."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError("NOT_FOUND", f"the list {str(path)!r} does not exist") from error
    except OSError as error:
        raise UsageError("NO_ACCESS", f"cannot read the list {str(path)!r}: {error.strerror}") from error
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        names = _of_json(_text(data), path)
    elif suffix in (".csv", ".tsv"):
        names = _of_table(_text(data), path)
    else:
        names = _lines(data)
    # joined as text: Path would turn "./-x.mp4" into "-x.mp4"
    return iter([Source(os.path.join(path.parent, name), name, template) for name in names])  # noqa: PTH118


def _standard_input(template: str | None) -> Iterator[Source]:
    names = _lines(sys.stdin.buffer.read())
    if not names:
        raise UsageError("NOTHING_FOUND", "standard input holds no paths; '-' reads one path per line there")
    yield from (Source(name, name, template) for name in names)


def _text(data: bytes) -> str:
    """A list's text; bytes that are not UTF-8 come back as the file names they stand for."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # what PowerShell's `>` writes
        return data.decode("utf-16", errors="replace")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")


def _lines(data: bytes) -> list[str]:
    text = _text(data)
    parts = text.split("\0") if "\0" in text else [line.removesuffix("\r") for line in text.split("\n")]
    return [part for part in parts if part]


def _of_table(text: str, path: Path) -> list[str]:
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        if "path" not in header:
            raise DataError(
                "LIST_FORMAT", f"{path}:1: expected a header with a column `path`, found {header}"
            )
        column = header.index("path")
        return [row[column] for row in rows if len(row) > column and row[column]]
    except csv.Error as error:
        raise DataError("LIST_FORMAT", f"{path}:{rows.line_num}: {error}") from error


def _of_json(text: str, path: Path) -> list[str]:
    names = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError("LIST_FORMAT", f"{path}:{number}: not JSON: {error}") from error
        name = value.get("path") if isinstance(value, dict) else value
        if not isinstance(name, str) or not name:
            raise DataError("LIST_FORMAT", f"{path}:{number}: expected an object with `path`, or a string")
        names.append(name)
    return names
