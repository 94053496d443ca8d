"""What can go wrong, each with a stable code that programs can rely on.

An error is one line: what was wrong, where (file, line, key, time), and what to do. `exit_code` is
what the command line ends with: 2 wrong use, 3 finished but some inputs failed, 4 aborted,
5 environment.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


class MareyError(Exception):
    """Base of every error that Marey raises on purpose.

    code     stable upper-case name, for example `MEDIA_TRUNCATED`; listed in docs/errors.md
    message  one line for a person
    """

    exit_code = 4

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.code, self.message)  # errors cross process borders


class UsageError(MareyError):
    """An unknown name or key, or a value outside what is allowed."""

    exit_code = 2


class MediaError(MareyError):
    """A video that cannot be read, or not within its limits."""


class DataError(MareyError):
    """A list, an annotation or a label that is wrong."""


class WeightsError(MareyError):
    """A checkpoint that cannot be read, is unsafe, or does not fit the network."""


class EnvironmentFault(MareyError):
    """Something outside: a full disk, a package or a device that is missing."""

    exit_code = 5


def nearest(name: str, known: Iterable[str]) -> str:
    """Half a sentence that names what was probably meant, or everything there is when that is little."""
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known are {', '.join(known)}" if len(known) <= 12 else f"{len(known)} are known"


def unknown(kind: str, name: str, known: Iterable[str], code: str = "UNKNOWN_NAME") -> UsageError:
    """The error for a name that nothing bears, with its nearest neighbours."""
    return UsageError(code, f"no {kind} is called {name!r}; {nearest(name, known)}")


def out_of_memory(error: Exception, less: str) -> EnvironmentFault | None:
    """The error for memory that ran out, None for another; torch raises RuntimeError, by several words.

    less  a sentence without its full stop: what takes less
    """
    text = str(error).partition("\n")[0]
    if not isinstance(error, MemoryError) and not MEMORY.search(text):
        return None
    return EnvironmentFault(
        "OUT_OF_MEMORY", f"memory ran out ({text or 'no more is said'}); what was saved is there. {less}"
    )
