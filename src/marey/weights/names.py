"""Tables that say which tensor of a published file is which of ours.

A table is text, one row a line: their name, our name, and a mark where the tensor needs more than copying:

    layer{s}.{b}.conv{i}.weight    trunk.stage{s}.{b}.conv{i}.conv.weight    inflate
    fc.{p}                         -                                         ImageNet classifier

`{x}` stands for (part of) one component of a name: letters, digits, `_`; `{x...}` for one or more of them;
`[x]` may be missing. `-` says that the tensor is known and left out, and why. Every tensor of a file is met
by exactly one row, each of ours filled at most once.
"""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from torch import Tensor, nn


class Row(NamedTuple):
    """One line of a table; `ours` is None where the tensor is left out, and then `mark` says why."""

    theirs: re.Pattern[str]
    ours: str | None
    mark: str


class Layout(NamedTuple):
    """How a project names the tensors of its files.

    source    what reports call it
    signs     every file of this layout has one of these names, and no file of a later layout has any
    rows      its table
    may_lack  parts of our names that a file need not fill
    spell     their names as the table spells them, where rows alone cannot say it
    check     raises where file and network differ in what their tensors do not show
    adapt     (mark, their value, ours, model) -> their value in our shape, for tensors whose row has a mark
    """

    source: str
    signs: frozenset[str]
    rows: tuple[Row, ...]
    may_lack: tuple[str, ...] = ()
    spell: Callable[[Collection[str]], dict[str, str]] | None = None
    check: Callable[["Match", nn.Module], None] | None = None
    adapt: Callable[[str, Tensor, Tensor, nn.Module], Tensor] | None = None


class Match(NamedTuple):
    """What became of the names of a file.

    layout    the file's; None for our own
    filled    our name -> their name
    marks     our name -> mark of the row, where it has one
    left_out  their name -> why
    unknown   their names that no row meets
    """

    layout: Layout | None
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
        pattern = re.sub(r"\\\{(\w+)\\\.\\\.\\\.\\\}", r"(?P<\1>[\\w.]+)", pattern)
        rows.append(
            Row(re.compile(pattern, re.ASCII), None if ours == "-" else ours, mark[0] if mark else "")
        )
    return tuple(rows)
