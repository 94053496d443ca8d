"""Two results clip by clip: which clips either has right, and how likely that is by chance."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from marey.jobs.examples import Scores

Ints = NDArray[np.int64]


class ClassChange(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy or average precision of a class, 0..1, over `clips` of it (AP: in A), and B - A."""

    name: str
    clips: int
    a: float
    b: float
    difference: float


class Apart(msgspec.Struct, frozen=True, kw_only=True):
    """The largest difference between two scores of one clip and class."""

    path: str
    name: str
    a: float
    b: float
    difference: float


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """A clip that A takes for another class than B does; `labels`, `a` and `b` are names of classes."""

    path: str
    labels: tuple[str, ...]
    a: str
    b: str


class Clips(msgspec.Struct, frozen=True, kw_only=True):
    """What the scores of single clips say.

    both, only_a, only_b  clips that are scored in both results, or in one
    matched_by            what a clip is known by: "path", or "path below the common folder"
    repeated              clips of `both` that share their path with others; these are matched in their order
    unclear               clips left out of `both`: their path is not there equally often
    relabelled            clips of `both` whose labels differ; they are in none of the numbers below
    right_both, right_a, right_b, wrong_both  clips whose best class is one of their labels in both results,
                          in A alone, in B alone, in none
    p                     `sign_test` of right_a and right_b
    largest               None where scores are of other classes or kinds, or there are none
    changed               clips whose best class is another, in A's order
    """

    both: int
    only_a: int
    only_b: int
    matched_by: str
    repeated: int
    unclear: int
    relabelled: int
    right_both: int
    right_a: int
    right_b: int
    wrong_both: int
    p: float
    largest: Apart | None
    changed: tuple[Changed, ...]


class Names(NamedTuple):
    """Class names of both results, and why they are not as the results say.

    order  int64 [C], for each class of A its place in B; None where the classes are not the same
    """

    a: list[str]
    b: list[str]
    order: Ints | None
    note: str


class Pairs(NamedTuple):
    """Rows of clips that are in both results, int64 [N] each, and how they were found; see `Clips`."""

    a: Ints
    b: Ints
    matched_by: str
    repeated: int
    unclear: int


def class_names(a: list[str], b: list[str]) -> Names:
    """Class names; classes that are only numbered in one result are called as in the other."""
    note = ""
    if a != b and len(a) == len(b):
        for numbered, named, which in ((a, b, "A"), (b, a, "B")):
            if numbered == [str(label) for label in range(len(numbered))]:
                a = b = named
                note = f"{which} has numbers for classes; they are taken as the other's classes in order"
                break
    if a == b:
        return Names(a, b, np.arange(len(a)), note)
    place = {name: label for label, name in enumerate(b)}
    same = place.keys() == set(a) and len(place) == len(b) == len(a)
    return Names(a, b, np.array([place[name] for name in a], np.int64) if same else None, note)


def match(a: Sequence[str], b: Sequence[str], *, same_list: bool) -> Pairs:
    """The clips that are in both results: of the same path, or, where two results on the same list share
    none, of the same path below the folder that holds all clips of the result."""
    by = "path"
    if same_list and not set(a) & set(b):
        a, b, by = _below(a), _below(b), "path below the common folder"
    ours, theirs = _places(a), _places(b)
    rows, repeated, unclear = list[tuple[int, int]](), 0, 0
    for path in ours.keys() & theirs.keys():
        if len(ours[path]) != len(theirs[path]):
            unclear += max(len(ours[path]), len(theirs[path]))
            continue
        repeated += len(ours[path]) if len(ours[path]) > 1 else 0
        rows += zip(ours[path], theirs[path], strict=True)
    table = np.array(sorted(rows), np.int64).reshape(-1, 2)
    return Pairs(table[:, 0], table[:, 1], by, repeated, unclear)


def _places(paths: Sequence[str]) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for row, path in enumerate(paths):
        found[path].append(row)
    return found


def _below(paths: Sequence[str]) -> list[str]:
    try:
        common = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
    except ValueError:  # none at all, or absolute and relative ones
        return list(paths)
    return [os.path.relpath(path, common or os.curdir) for path in paths]


class Seen(NamedTuple):
    """Of each clip in both results: A's labels, both best classes, whether these are right, and whether the
    labels are the same. Classes are names: a number may mean another class in the other result."""

    labels: list[tuple[str, ...]]
    a: list[str]
    b: list[str]
    right_a: NDArray[np.bool_]
    right_b: NDArray[np.bool_]
    agreed: NDArray[np.bool_]


def see(one: Scores, other: Scores, pairs: Pairs, names: Names) -> Seen:
    """What either result takes the clips in both for."""
    labels_a, a, right_a = _best(one, pairs.a, names.a)
    labels_b, b, right_b = _best(other, pairs.b, names.b)
    agreed = [set(ours) == set(theirs) for ours, theirs in zip(labels_a, labels_b, strict=True)]
    return Seen(labels_a, a, b, right_a, right_b, np.array(agreed, bool))


def _best(
    scores: Scores, rows: Ints, names: Sequence[str]
) -> tuple[list[tuple[str, ...]], list[str], NDArray[np.bool_]]:
    """Names of the labels and of the best class of each row, and whether that is one of the labels."""
    best = scores.values[rows].argmax(axis=1).tolist() if len(rows) else []
    labels = [scores.labels[row] for row in rows.tolist()]
    right = np.array([label in row for label, row in zip(best, labels, strict=True)], bool)
    return [tuple(names[label] for label in row) for row in labels], [names[label] for label in best], right


def compare_clips(
    paths_a: Sequence[str], paths_b: Sequence[str], pairs: Pairs, seen: Seen, apart: Apart | None
) -> Clips:
    """How many clips each result has right, and which ones were taken for another class."""
    right_a, right_b = seen.right_a[seen.agreed], seen.right_b[seen.agreed]
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    changed = [
        Changed(path=paths_a[row], labels=labels, a=a, b=b)
        for row, labels, a, b in zip(pairs.a.tolist(), seen.labels, seen.a, seen.b, strict=True)
        if a != b
    ]
    return Clips(
        both=len(pairs.a),
        only_a=len(paths_a) - len(pairs.a),
        only_b=len(paths_b) - len(pairs.b),
        matched_by=pairs.matched_by,
        repeated=pairs.repeated,
        unclear=pairs.unclear,
        relabelled=int((~seen.agreed).sum()),
        right_both=int((right_a & right_b).sum()),
        right_a=only_a,
        right_b=only_b,
        wrong_both=int((~right_a & ~right_b).sum()),
        p=sign_test(only_a, only_b),
        largest=apart,
        changed=tuple(changed),
    )


def sign_test(only_a: int, only_b: int) -> float:
    """The probability that two equally good networks part at least so far: exact, two-sided.

    only_a, only_b  clips that only one of them has right. Either is as likely for each clip, so the smaller
    number is of a binomial distribution with n = only_a + only_b and one half: p = 2 P(X <= smaller), at most
    1. McNemar, Psychometrika 12 (1947), 153, whose chi-square this replaces; exact as in Mosteller,
    Biometrics 8 (1952), 220.
    """
    n, total, ways = only_a + only_b, 0, 1
    for k in range(min(only_a, only_b) + 1):
        total += ways
        ways = ways * (n - k) // (k + 1)
    p: float = 2 * total / 2**n  # whole numbers of any size, rounded once
    return min(1.0, p)


def largest(one: Scores, other: Scores, pairs: Pairs, names: Names) -> Apart | None:
    """Where scores are farthest apart; None where classes differ or there are no clips."""
    if names.order is None or not len(pairs.a):
        return None
    a, b = one.values[pairs.a], other.values[pairs.b][:, names.order]
    row, column = divmod(int(np.abs(b - a).argmax()), a.shape[1])
    first, second = float(a[row, column]), float(b[row, column])
    path = one.paths[int(pairs.a[row])]
    return Apart(path=path, name=names.a[column], a=first, b=second, difference=second - first)


def accuracies(seen: Seen) -> Iterator[ClassChange]:
    """Classes whose accuracy over the clips in both differs, of clips with one label each."""
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in np.flatnonzero(seen.agreed).tolist():
        count = counts[seen.labels[row][0]]
        count[0] += 1
        count[1] += bool(seen.right_a[row])
        count[2] += bool(seen.right_b[row])
    for name, (clips, a, b) in counts.items():
        if a != b:
            yield ClassChange(name=name, clips=clips, a=a / clips, b=b / clips, difference=(b - a) / clips)
