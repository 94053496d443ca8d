"""Which rows of a table of scores are sure enough to be labels: thresholds per class, and filters on top.

A row's label is its best class, its confidence that class's probability. A policy gives a threshold per
class; a row is kept from its class's threshold on. Some policies need true labels of some rows: numbers
measured on the same rows afterwards are optimistic, and whoever reports them says so.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from marey.errors import DataError, UsageError, unknown
from marey.scores.calibrate import entropy, margin
from marey.scores.table import Floats, Ints

Doubles = NDArray[np.float64]
Measure = Literal["probability", "margin", "entropy"]
NONE = np.inf  # the threshold of a class of which nothing is kept
UNKNOWN = -1  # the label of a row whose class is not known

# Policies ---------------------------------------------------------------------------------------------


class _Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="policy"):
    pass


class Fixed(_Policy, frozen=True, kw_only=True, tag="fixed"):
    """Thresholds given per class; None: nothing of this class."""

    thresholds: tuple[float | None, ...]


class Global(_Policy, frozen=True, kw_only=True, tag="global"):
    """One threshold for all classes; 0 keeps everything."""

    threshold: float


class Quantile(_Policy, frozen=True, kw_only=True, tag="quantile"):
    """Of every predicted class the same share, its best floor(share x rows), and those equal to the last."""

    share: float


class Budget(_Policy, frozen=True, kw_only=True, tag="budget"):
    """Of every predicted class as many rows, its best and those equal to the last; all, if fewer."""

    rows: int


class Precision(_Policy, frozen=True, kw_only=True, tag="precision"):
    """Needs true labels: of every class the largest set of which at least this share is right.

    rows       fewest labelled rows that count as a set
    otherwise  where no set is right enough: the share of the class's rows to keep (as Quantile); 0: none
    """

    at_least: float
    rows: int = 1
    otherwise: float = 0.0


class FBeta(_Policy, frozen=True, kw_only=True, tag="fbeta"):
    """Needs true labels: the threshold of largest F_beta of precision and recall; of equal ones, more rows.

    beta  above 1 weighs recall more, below 1 precision
    """

    beta: float = 1.0


Policy = Fixed | Global | Quantile | Budget | Precision | FBeta


def parse_policy(text: str) -> Policy:
    """`quantile:0.5`, `budget:400`, `global:0.8`, `precision:0.95`, `fbeta:0.5`, or `fixed:0.5,none,0.7`.

    Raises UsageError POLICY.
    """
    name, _, value = text.partition(":")
    try:
        if name == "fixed":
            return Fixed(thresholds=tuple(None if v == "none" else float(v) for v in value.split(",")))
        if name == "budget":
            return _sound(Budget(rows=int(value)))
        if name == "global":
            return _sound(Global(threshold=float(value)))
        if name == "quantile":
            return _sound(Quantile(share=float(value)))
        if name == "precision":
            return _sound(Precision(at_least=float(value)))
        if name == "fbeta":
            return _sound(FBeta(beta=float(value or 1)))
    except ValueError:
        raise UsageError(
            "POLICY", f"{text!r}: {value!r} is no number; write for example quantile:0.5"
        ) from None
    names = ("fixed", "global", "quantile", "budget", "precision", "fbeta")
    raise unknown("policy", name, names, code="POLICY")


def _sound(policy: Policy) -> Policy:
    """The policy, or UsageError POLICY for a number that makes no sense."""
    match policy:
        case Quantile(share=number) | Precision(at_least=number) if not 0 <= number <= 1:
            raise UsageError("POLICY", f"a share is 0 to 1, not {number}")
        case Budget(rows=number) if number < 0:
            raise UsageError("POLICY", f"a budget of {number} rows")
        case FBeta(beta=number) if not number > 0:
            raise UsageError("POLICY", f"beta must be above 0, not {number}")
    return policy


def needs_labels(policy: Policy) -> bool:
    """Whether its thresholds are found with true labels."""
    return isinstance(policy, Precision | FBeta)


def thresholds(
    policy: Policy, labels: Ints, confidence: Floats | Doubles, num_classes: int, truth: Ints | None = None
) -> Doubles:
    """The threshold of every class, float64 [C]; infinite for one of which nothing is kept.

    labels, confidence  of the rows, [N]: best class and its probability
    truth               true classes [N], -1 where unknown; for policies that need labels
    Raises UsageError POLICY, TRUTH_MISSING.
    """
    _sound(policy)
    sure = confidence.astype(np.float64)
    if isinstance(policy, Fixed):
        if len(policy.thresholds) != num_classes:
            raise UsageError(
                "POLICY",
                f"{len(policy.thresholds)} fixed thresholds for {num_classes} classes; give one for each",
            )
        return np.array([NONE if value is None else value for value in policy.thresholds], np.float64)
    if isinstance(policy, Global):
        return np.full(num_classes, policy.threshold, np.float64)
    if needs_labels(policy) and (truth is None or (truth == UNKNOWN).all()):
        raise UsageError(
            "TRUTH_MISSING",
            "this policy finds its thresholds with true labels of the target; give --truth, or take one that "
            "needs none: quantile, budget, global",
        )
    found = np.full(num_classes, NONE)
    for label in range(num_classes):
        own = labels == label
        if isinstance(policy, Precision | FBeta):
            assert truth is not None
            right = (truth == label)[own & (truth != UNKNOWN)]
            found[label] = _labelled(
                policy, sure[own & (truth != UNKNOWN)], right, int((truth == label).sum())
            )
            if found[label] == NONE and isinstance(policy, Precision):
                found[label] = _lowest(sure[own], int(policy.otherwise * own.sum()))
        elif isinstance(policy, Quantile):
            found[label] = _lowest(sure[own], int(policy.share * own.sum()))
        else:
            found[label] = _lowest(sure[own], policy.rows)
    return found


def _lowest(confidence: Doubles, rows: int) -> float:
    """The confidence of the last of the most confident `rows`."""
    rows = min(rows, len(confidence))
    return float(np.sort(confidence)[-rows]) if rows else NONE


def _labelled(
    policy: Precision | FBeta, confidence: Doubles, right: NDArray[np.bool_], positives: int
) -> float:
    """The threshold of one class from its labelled rows; ties in confidence go together."""
    order = np.argsort(-confidence, kind="stable")
    sorted_, hits = confidence[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(np.diff(sorted_) != 0, True)) if len(sorted_) else np.empty(0, np.int64)
    rows = last + 1.0
    precision = hits[last] / rows
    if isinstance(policy, Precision):
        fit = np.flatnonzero((precision >= policy.at_least) & (rows >= policy.rows))
    else:
        square = policy.beta**2
        score = (1 + square) * hits[last] / (square * positives + rows)  # F_beta, multiplied out
        fit = np.flatnonzero((score == score.max(initial=0)) & (score > 0))
    return float(sorted_[last[fit[-1]]]) if len(fit) else NONE


# Filters ----------------------------------------------------------------------------------------------


class Filters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a row above its threshold must also be.

    agreement  at least this share of the members say its label
    margin     its best class is that far before the second
    entropy    at most this much, as a share of the largest possible (1: all)
    stable     labelled the same in the round before; rows that it did not have count as stable
    most       at most this share of all rows may have one label; its least confident ones go
    """

    agreement: float = 0.0
    margin: float = 0.0
    entropy: float = 1.0
    stable: bool = False
    most: float = 1.0


class Selection(NamedTuple):
    """Which rows are kept.

    kept        bool [N]
    reasons     of every row: "kept", or what it failed first: "threshold", "agreement", "margin", "entropy",
                "stable", "most"
    thresholds  float64 [C], see `thresholds`
    """

    kept: NDArray[np.bool_]
    reasons: tuple[str, ...]
    thresholds: Doubles


def select(
    probabilities: Floats,
    labels: Ints,
    policy: Policy,
    filters: Filters | None = None,
    *,
    members: Sequence[Ints] = (),
    previous: Ints | None = None,
    truth: Ints | None = None,
    by: Measure = "probability",
) -> Selection:
    """Apply a policy, then the filters, to the rows of an ensemble.

    probabilities  [N, C]; thresholds are on their scale, whether rows sum to 1 or not
    labels         [N], the class each row would get; its confidence is that class's probability
    members        what each member says, [N] each
    previous       labels of the round before, -1 where there was none
    by             what confidence is, see `confidence_of`; thresholds are on its scale
    """
    limits = filters or Filters()
    confidence = confidence_of(probabilities, labels, by)
    found = thresholds(policy, labels, confidence, probabilities.shape[1], truth)
    tests: dict[str, NDArray[np.bool_]] = {"threshold": confidence >= found[labels]}
    if limits.agreement > 0:
        if not members:
            raise UsageError("POLICY", "agreement of members needs their scores; give those of every member")
        tests["agreement"] = agreement(members, labels) >= limits.agreement - 1e-9
    if limits.margin > 0:
        tests["margin"] = margin(probabilities) >= limits.margin
    if limits.entropy < 1:
        tests["entropy"] = entropy(probabilities) <= limits.entropy
    if limits.stable:
        if previous is None:
            raise UsageError("POLICY", "stable labels need those of the round before; give --previous")
        tests["stable"] = (previous == labels) | (previous == UNKNOWN)
    kept = np.logical_and.reduce(list(tests.values()))
    if limits.most < 1:
        tests["most"] = ~kept | _within(limits.most, labels, confidence, kept)
        kept &= tests["most"]
    names = list(tests)
    failed = np.stack([~passed for passed in tests.values()])
    reasons = tuple(names[test] if bad else "kept" for test, bad in zip(failed.argmax(0), ~kept, strict=True))
    return Selection(kept, reasons, found)


def confidence_of(probabilities: Floats, labels: Ints, by: Measure = "probability") -> Doubles:
    """How sure each row is of its label, float64 [N]: the label's probability, the "margin" of the best class
    to the second, or 1 - "entropy", which all classes have a part in."""
    if by == "margin":
        return margin(probabilities)
    if by == "entropy":
        return 1 - entropy(probabilities)
    if by == "probability":
        return probabilities[np.arange(len(labels)), labels].astype(np.float64)
    raise unknown("measure of confidence", by, ("probability", "margin", "entropy"))


def agreement(members: Sequence[Ints], labels: Ints) -> Doubles:
    """The share of the members that say the label, float64 [N]."""
    share: Doubles = np.mean([own == labels for own in members], axis=0, dtype=np.float64)
    return share


def _within(share: float, labels: Ints, confidence: Doubles, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of every class its most confident kept rows, as many as a share of all rows comes to."""
    good = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels[kept]):
        own = np.flatnonzero(kept & (labels == label))
        good[own[np.argsort(-confidence[own], kind="stable")][: int(share * len(labels))]] = True
    return good


# The published search ---------------------------------------------------------------------------------


class Found(NamedTuple):
    """A threshold that the published search printed.

    recall  rows kept over rows that are truly of the class: it can exceed 1, and never enters the score
    score   meant as F1, is 3 x precision
    """

    threshold: float
    kept: int
    right: int
    precision: float
    recall: float
    score: float


def search_as_published(labels: Ints, confidence: Floats, truth: Ints, label: int) -> list[Found]:
    """How the published thresholds of one class were looked for, on the labels of the videos they label.

    Every threshold 0, 0.001, ..., 1 whose score exceeds all before, until no row is left (a division by zero
    in the source); one of them was then taken by hand. `FBeta` is what was meant. Raises DataError
    TRUTH_MISSING where no row is truly of the class.
    """
    positives = int((truth == label).sum())
    if not positives:
        raise DataError("TRUTH_MISSING", f"no row is truly of class {label}")
    own = labels == label
    sure, right = confidence[own].astype(np.float64), truth[own] == label
    found: list[Found] = []
    for step in range(1001):
        above = sure >= step / 1000
        kept, hits = int(above.sum()), int(right[above].sum())
        if not kept:
            break
        precision, recall = hits / kept, kept / positives
        score = (2 * recall * precision) / recall + precision
        if score > (found[-1].score if found else 0.0):
            found.append(Found(step / 1000, kept, hits, precision, recall, score))
    return found
