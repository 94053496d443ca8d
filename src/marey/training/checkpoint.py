"""The state that a run continues from: tensors, numbers, strings and containers, nothing executable."""

import errno
import shutil
from pathlib import Path
from typing import Any

import torch

from marey.errors import EnvironmentFault, MareyError
from marey.files import cannot_write, replacing


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state beside the one that is there, then rename; the one before stays as `.previous`.

    Raises EnvironmentFault DISK_FULL, leaving what was there.
    """
    with replacing(path) as part:
        try:
            torch.save(state, part)
        except RuntimeError as error:  # torch's zip writer hides the system's reason
            raise _write_error(path, error) from error
        if path.exists():
            path.replace(previous(path))


def load_state(path: Path) -> dict[str, Any] | None:
    """The newest state that can be read, or None when there is none. Raises MareyError STATE_UNREADABLE when
    there are files but none can be read."""
    there = [file for file in (path, previous(path)) if file.exists()]
    for file in there:
        try:
            return dict(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # any damage: the one before is tried
            reason = str(error).partition("\n")[0]
    if not there:
        return None
    raise MareyError(
        "STATE_UNREADABLE", f"cannot resume from {str(path)!r} ({reason}); delete it to start the run again"
    )


def previous(path: Path) -> Path:
    """Where the state before the newest one lies."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _write_error(path: Path, error: RuntimeError) -> EnvironmentFault:
    full = shutil.disk_usage(path.parent).free < 1 << 20 or "No space left" in str(error)
    return cannot_write(path, OSError(errno.ENOSPC if full else errno.EIO, str(error).partition("\n")[0]))
