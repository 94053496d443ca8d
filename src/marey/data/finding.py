"""Videos that a list names by id: which file or folder of frames below a root is meant."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from marey.data.formats import LineErrors
from marey.errors import DataError
from marey.video.source import VIDEO_NAME


class Reading(NamedTuple):
    """A list being read: its file, the folder of its videos, its wrong lines, notes on what is missing."""

    file: Path
    root: Path
    errors: LineErrors
    notes: list[str]


class Finder:
    """What lies below a list's root, by name without suffix: videos, and folders that `is_frames` names.

    At any depth: flat, by class, by split. Folders of frames are not looked into. Of two with one name the
    first by path is taken.
    """

    def __init__(self, reading: Reading, is_frames: Callable[[str], object]) -> None:
        self._reading = reading
        self._found: dict[str, str] = {}
        self._doubled: list[str] = []
        self._missing: list[str] = []
        self._asked = 0
        for place, folders, files in os.walk(reading.root):
            frames = sorted(name for name in folders if is_frames(name))
            folders[:] = sorted({*folders} - {*frames})  # hundreds of pictures each: not looked into
            stems = [(name.rsplit(".", 1)[0], name) for name in sorted(files) if VIDEO_NAME.search(name)]
            for stem, name in [*stems, *zip(frames, frames, strict=True)]:
                path = os.path.relpath(os.path.join(place, name), reading.root)  # noqa: PTH118 - often
                if self._found.setdefault(stem, path) != path:
                    self._doubled.append(path)

    def path(self, *names: str, otherwise: str) -> str:
        """The path below the root of what is called by the first of `names` that is there; else `otherwise`.

        What is not there keeps its place in the list, so that it counts as unreadable.
        """
        self._asked += 1
        path = next((self._found[name] for name in names if name in self._found), None)
        if path is None:
            self._missing.append(otherwise)
        return path or otherwise

    def tell(self) -> None:
        """Note what is missing and what is there twice. Raises DataError NOT_FOUND when nothing was found."""
        file, root, errors, notes = self._reading
        if self._missing and len(self._missing) == self._asked and not errors.count:
            raise DataError(
                "NOT_FOUND",
                f"{file}: none of its {self._asked} videos is below {root}, for example {self._missing[0]}; "
                "name their folder as the root (data.root, --root)",
            )
        if self._missing:
            notes.append(
                f"{len(self._missing)} of {self._asked} videos are not below {root}, for example "
                f"{self._missing[0]}"
            )
        if self._doubled:
            notes.append(
                f"{len(self._doubled)} videos are there more than once, the first is taken, for example "
                f"{self._doubled[0]}"
            )
