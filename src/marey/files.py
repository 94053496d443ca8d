"""Files that are either whole or not there."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from marey.errors import EnvironmentFault


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there becomes `path` when the block ends well.

    An error leaves `path` as it was and removes the temporary file. Raises EnvironmentFault DISK_FULL or
    NOT_WRITABLE, naming the file.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _sync(part)
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def cannot_write(path: str | os.PathLike[str], error: OSError) -> EnvironmentFault:
    """The error for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentFault(
            "DISK_FULL", f"no space left to write {str(path)!r}; free some and run it again"
        )
    return EnvironmentFault("NOT_WRITABLE", f"cannot write {str(path)!r}: {error.strerror or error}")


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
