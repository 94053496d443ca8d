"""Tables that say which tensor of a published file is which of ours.

A table is text, one row a line: their name, our name, and a mark where the tensor needs more than copying:

    layer{s}.{b}.conv{i}.weight    stage{s}.{b}.conv{i}.conv.weight    inflate
    fc.{p}                         -                                   ImageNet classifier

`{x}` stands for (part of) one component of a name: letters, digits, `_`; `[x]` may be missing. `-` says that
the tensor is known and left out, and why. Every tensor of a file is met by exactly one row, each of ours
filled at most once.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from marey.errors import WeightsError


class Row(NamedTuple):
    """One line of a table; `ours` is None where the tensor is left out, and then `mark` says why."""

    theirs: re.Pattern[str]
    ours: str | None
    mark: str


class Match(NamedTuple):
    """What became of the names of a file.

    filled    our name -> their name
    marks     our name -> mark of the row, where it has one
    left_out  their name -> why
    unknown   their names that no row meets
    """

    filled: dict[str, str]
    marks: dict[str, str]
    left_out: dict[str, str]
    unknown: list[str]


def table(text: str) -> tuple[Row, ...]:
    """Rows of a table as in the module's docstring."""
    rows = []
    for line in filter(None, map(str.strip, text.splitlines())):
        theirs, ours, *mark = line.split(maxsplit=2)
        pattern = re.sub(r"\\\[(.+?)\\\]", r"(?:\1)?", re.escape(theirs))
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\w+)", pattern)
        rows.append(
            Row(re.compile(pattern, re.ASCII), None if ours == "-" else ours, mark[0] if mark else "")
        )
    return tuple(rows)


def match(rows: Iterable[Row], names: Iterable[str]) -> Match:
    """Meet every name with its row; raises WEIGHTS_MISMATCH where two names would fill one of ours."""
    found = Match({}, {}, {}, [])
    for theirs in names:
        hits = [(row, hit) for row in rows if (hit := row.theirs.fullmatch(theirs))]
        if len(hits) != 1:
            found.unknown.append(theirs)
            continue
        row, hit = hits[0]
        if row.ours is None:
            found.left_out[theirs] = row.mark
            continue
        ours = row.ours.format(**hit.groupdict())
        if ours in found.filled:
            raise WeightsError(
                "WEIGHTS_MISMATCH", f"{found.filled[ours]!r} and {theirs!r} of the file both mean {ours!r}"
            )
        found.filled[ours] = theirs
        if row.mark:
            found.marks[ours] = row.mark
    return found
