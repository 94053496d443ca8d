"""Videos that are trained on and tested on: found by name, by file, by content."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from marey.jobs.provenance import sha256_of


class Leak(NamedTuple):
    """A test video that is also trained on.

    why  "same name", "same file", or "same content"
    """

    train: str
    test: str
    why: str


def leaks(
    train: Sequence[str],
    test: Sequence[str],
    *,
    roots: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
) -> list[Leak]:
    """Every test video that is a training video too, each once.

    roots  folders that the names start from: then files decide. The same file under two names, and files of
           the same content, are found; equal names of different content are not the same. None, or files that
           are not there: names decide
    """
    if roots is None:
        both = set(train) & set(test)
        return [Leak(name, name, "same name") for name in dict.fromkeys(test) if name in both]
    ours = {name: Path(roots[0]) / name for name in train}
    theirs = {name: Path(roots[1]) / name for name in test}
    by_place = {os.path.realpath(path): name for name, path in ours.items()}
    by_size: dict[int, list[str]] = {}
    for name, path in ours.items():
        if path.is_file():
            by_size.setdefault(path.stat().st_size, []).append(name)
    hashes: dict[str, str] = {}
    found = []
    for name, path in theirs.items():
        if (place := os.path.realpath(path)) in by_place:
            found.append(Leak(by_place[place], name, "same file"))
        elif not path.is_file():
            if name in ours and not ours[name].is_file():
                found.append(Leak(name, name, "same name"))
        elif same := _same_content(path, by_size, ours, hashes):
            found.append(Leak(same, name, "same content"))
    return found


def _same_content(
    path: Path, by_size: dict[int, list[str]], ours: dict[str, Path], hashes: dict[str, str]
) -> str | None:
    """The first of our files that holds the same bytes; only files of equal size are read."""
    rivals = by_size.get(path.stat().st_size, [])
    own = sha256_of(path) if rivals else ""
    for name in rivals:
        if name not in hashes:
            hashes[name] = sha256_of(ours[name])
        if hashes[name] == own:
            return name
    return None
