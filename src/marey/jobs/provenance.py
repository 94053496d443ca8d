"""A card beside what a command wrote: made of which files, by which settings, with which versions.

Files are known by their SHA-256, not by where they lie, so that a folder may be moved and a step whose inputs
and settings are the same need not run again.
"""

import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from marey.files import replacing
from marey.jobs.doctor import environment
from marey.jobs.runs import plain_json
from marey.recipes.schema import AnyRecipe
from marey.weights.published import locate

SUFFIX = ".manifest.json"
UNTESTED = {"name", "training", "distill", "adapt", "published"}  # fields of recipes that no test depends on
PIECE = 2**20  # bytes read at once


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was read or written.

    path    relative to the card where that is below its folder, else as it was given
    sha256  of its content
    """

    path: str
    sha256: str


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """How outputs came about.

    job       name of the command or step
    settings  everything but files that the outputs depend on
    inputs    what each was for -> file
    outputs   the same
    versions  as `marey doctor` lists them
    started, ended   ISO 8601, UTC
    """

    job: str
    settings: dict[str, Any]
    inputs: dict[str, File]
    outputs: dict[str, File]
    versions: dict[str, Any]
    started: str
    ended: str


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, as hex. Raises OSError."""
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        while data := file.read(PIECE):
            found.update(data)
    return found.hexdigest()


def tested(recipe: AnyRecipe, checkpoint: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What a result is of, for results.json: the weights, as `sha256` of their file (None: of a validation in
    a training, which were not saved yet), and the resolved recipe as far as a test depends on it, `settings`.
    """
    fields: dict[str, Any] = msgspec.to_builtins(recipe)
    return {
        "sha256": None if checkpoint is None else sha256_of(locate(checkpoint)),
        "settings": {name: value for name, value in fields.items() if name not in UNTESTED},
    }


def now() -> str:
    """The time, for `started`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def card_path(output: str | os.PathLike[str]) -> Path:
    """Where the card of a file is: `labels.parquet` -> `labels.manifest.json` beside it."""
    return Path(output).with_suffix(SUFFIX)


def write_card(
    card: str | os.PathLike[str],
    job: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str | os.PathLike[str]],
    outputs: Mapping[str, str | os.PathLike[str]],
    *,
    started: str,
) -> Provenance:
    """Write a card once all outputs are there. Raises OSError where a file cannot be read."""
    folder = Path(card).parent
    made = Provenance(
        job=job,
        settings=_plain(settings),
        inputs={name: _file(path, folder) for name, path in inputs.items()},
        outputs={name: _file(path, folder) for name, path in outputs.items()},
        versions=environment(),
        started=started,
        ended=now(),
    )
    with replacing(card) as part:
        part.write_text(plain_json(made) + "\n", encoding="utf-8")
    return made


def read_card(card: str | os.PathLike[str]) -> Provenance | None:
    """A card, or None where there is none or it is not whole."""
    try:
        return msgspec.json.decode(Path(card).read_bytes(), type=Provenance)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return None


def is_current(
    card: str | os.PathLike[str],
    job: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str | os.PathLike[str]],
) -> bool:
    """Whether a card says that this job was done with these settings on files of the same content, and its
    outputs are there as they were written."""
    found = read_card(card)
    if found is None or found.job != job or found.settings != _plain(settings):
        return False
    if found.inputs.keys() != inputs.keys():
        return False
    try:
        return all(found.inputs[name].sha256 == sha256_of(path) for name, path in inputs.items()) and all(
            file.sha256 == sha256_of(Path(card).parent / file.path) for file in found.outputs.values()
        )
    except OSError:
        return False


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(dict(settings)))
    return plain


def _file(path: str | os.PathLike[str], folder: Path) -> File:
    inside = Path(path).resolve().is_relative_to(folder.resolve())
    shown = Path(path).resolve().relative_to(folder.resolve()) if inside else Path(path)
    return File(path=shown.as_posix(), sha256=sha256_of(path))
