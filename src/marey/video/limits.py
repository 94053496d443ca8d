"""How much of the machine one file may take, and what reading it told."""

from typing import NamedTuple

import msgspec

from marey.errors import MediaError


class Note(NamedTuple):
    """Something that was skipped, repaired, assumed or found while reading.

    code  stable upper-case name; `marey.video.reader` lists them
    text  half a sentence for a person
    """

    code: str
    text: str


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one file may take; more is MediaError LIMIT_EXCEEDED, longer is MEDIA_TIMEOUT.

    pixels   of one frame; 64 million is twice 8K. Where frames grow inside a file, PyAV does not decode
             those, while torchcodec decodes one before it is seen
    frames   of one file; 10 hours at 25 frames per second are 900,000
    bytes    of the frames that one call returns
    seconds  that opening the file, or one call, may last; looked at between packets, so that a call into a
             decoder or a file system that never returns needs a watch from outside (`marey.data.workers`)
    """

    pixels: int = 64_000_000
    frames: int = 999_999
    bytes: int = 4 << 30
    seconds: float = 300.0


def exceeded(path: str, what: str, name: str, limit: int) -> MediaError:
    """The error for a file that takes more than `Limits` allow."""
    return MediaError(
        "LIMIT_EXCEEDED", f"{path!r} {what}, more than the limit of {limit:,}; raise Limits.{name} to read it"
    )


def too_slow(path: str, seconds: float) -> MediaError:
    """The error for reading that lasts longer than `Limits` allow."""
    return MediaError(
        "MEDIA_TIMEOUT",
        f"{path!r}: reading took longer than {seconds:g} seconds; raise Limits.seconds, or copy the file "
        "to a faster disk",
    )
