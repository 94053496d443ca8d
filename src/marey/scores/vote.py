"""Ensembles of score tables: mixtures, routers, overrides, corrections, and votes over ensembles.

An ensemble is an ordered list of declarative steps; those that were published are data, see
`marey.scores.presets`. Everything is float32, summed in the order in which a mixture names its members, so
that published results come back to the last decision.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from marey.errors import DataError, UsageError
from marey.scores.select import Policy
from marey.scores.table import Floats, Ints, Reading, ScoreTable, align, read_as

# What an ensemble is ----------------------------------------------------------------------------------


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _Step(_Record, frozen=True, kw_only=True, tag_field="step"):
    pass


class _Kind(_Record, frozen=True, kw_only=True, tag_field="kind"):
    pass


class Route(_Record, frozen=True, kw_only=True):
    """Other weights for the rows whose best class by one member, alone, is one of these."""

    by: str
    classes: tuple[int, ...]
    weights: dict[str, float]


class Mix(_Step, frozen=True, kw_only=True, tag="mix"):
    """Weighted sum of the members' probabilities.

    weights      by member, in the order of summation
    routes       the first that fits a row replaces the weights
    renormalise  divide by the sum of the weights; the published mixtures do not
    """

    weights: dict[str, float]
    routes: tuple[Route, ...] = ()
    renormalise: bool = True


class Override(_Step, frozen=True, kw_only=True, tag="override"):
    """Rows whose best class is one of these take the probabilities of one member, whatever they say."""

    classes: tuple[int, ...]
    member: str


class Alternative(_Record, frozen=True, kw_only=True):
    """Another label, for rows where its probability is at least this."""

    to: int
    at_least: float


class Block(_Record, frozen=True, kw_only=True):
    """Rows labelled `label` where the probability of `column` is at most `at_most` take the first alternative
    that fits, or keep their label."""

    label: int
    column: int
    at_most: float
    then: tuple[Alternative, ...]


class Correct(_Step, frozen=True, kw_only=True, tag="correct"):
    """Labels changed by hand-made rules, block after block; probabilities stay. A label that a block gives
    may be changed again by a later one."""

    blocks: tuple[Block, ...]


Step = Mix | Override | Correct


class Ensemble(_Kind, frozen=True, kw_only=True, tag="ensemble"):
    """Members and the steps that make labels of them.

    about      one line
    members    by name, and what of their score tables is read
    steps      the first is a Mix
    classes    how many there are; None: any
    select     policy that picks pseudo-labels, if it is part of the recipe
    labels_used  labels of the target that the numbers of its steps were chosen on: "" if none
    selected_on  the same of `select`
    quirks     what is odd about it, one line each
    corrected  the preset without them
    """

    about: str
    members: dict[str, Reading]
    steps: tuple[Step, ...]
    classes: int | None = None
    select: Policy | None = None
    labels_used: str = ""
    selected_on: str = ""
    quirks: tuple[str, ...] = ()
    corrected: str | None = None

    def __post_init__(self) -> None:
        if fault := _fault(self):
            raise UsageError("PRESET_INVALID", f"ensemble: {fault}")


class Vote(_Kind, frozen=True, kw_only=True, tag="vote"):
    """The most frequent label of several ensembles, named presets.

    ties   "lowest" class, or the most "probable" one: the largest sum of the ensembles' probabilities
    quirks, corrected, labels_used  as in Ensemble
    """

    about: str
    of: tuple[str, ...]
    ties: Literal["lowest", "probable"] = "probable"
    labels_used: str = ""
    quirks: tuple[str, ...] = ()
    corrected: str | None = None


def _fault(ensemble: Ensemble) -> str:
    """What is wrong with an ensemble, or nothing."""
    if not ensemble.steps or not isinstance(ensemble.steps[0], Mix):
        return "its first step must be a mix"
    used: list[str] = []
    for step in ensemble.steps:
        if isinstance(step, Mix):
            tables = [step.weights, *(route.weights for route in step.routes)]
            if any(not table or min(table.values()) < 0 or not sum(table.values()) > 0 for table in tables):
                return "weights must not be below 0, nor all 0"
            used += [name for table in tables for name in table] + [route.by for route in step.routes]
        elif isinstance(step, Override):
            used.append(step.member)
    strangers = sorted(set(used) - ensemble.members.keys())
    if strangers:
        return f"its steps name {strangers[0]!r}, which is no member"
    idle = sorted(ensemble.members.keys() - set(used))
    if idle:
        return f"no step uses its member {idle[0]!r}"
    numbers = _classes(ensemble)
    if min(numbers, default=0) < 0:
        return "classes count from 0"
    if ensemble.classes and max(numbers, default=0) >= ensemble.classes:
        return f"a class outside 0..{ensemble.classes - 1}"
    return ""


def _classes(ensemble: Ensemble) -> list[int]:
    """The classes that its steps name."""
    found: list[int] = []
    for step in ensemble.steps:
        if isinstance(step, Mix):
            found += [c for route in step.routes for c in route.classes]
        elif isinstance(step, Override):
            found += step.classes
        else:
            for block in step.blocks:
                found += [block.label, block.column, *(a.to for a in block.then)]
    return found


def equal(
    members: Sequence[str], weights: Sequence[float] | None = None, *, reading: Reading = "probabilities"
) -> Ensemble:
    """The plain ensemble: a weighted mean of the members, equal weights if none are given.

    Raises UsageError PRESET_INVALID.
    """
    if weights is not None and len(weights) != len(members):
        raise UsageError(
            "PRESET_INVALID", f"{len(weights)} weights for {len(members)} members; give one each"
        )
    table = dict(zip(members, weights or [1.0] * len(members), strict=True))
    about = f"weighted mean of {len(members)} members" if weights else f"mean of {len(members)} members"
    return Ensemble(about=about, members=dict.fromkeys(members, reading), steps=(Mix(weights=table),))


# What it gives ----------------------------------------------------------------------------------------


class Combined(NamedTuple):
    """What an ensemble gives.

    probabilities  float32 [N, C], on the scale of its last mixture
    labels         int64 [N]
    mixed          int64 [N], the best classes before any corrections
    moved          (from, to) -> rows, every correction that a block made
    members        name -> int64 [N], the best class of each member
    sure           name -> float32 [N], its probability
    """

    probabilities: Floats
    labels: Ints
    mixed: Ints
    moved: dict[tuple[int, int], int]
    members: dict[str, Ints]
    sure: dict[str, Floats]


def inputs(ensemble: Ensemble, tables: Mapping[str, ScoreTable]) -> dict[str, Floats]:
    """What the ensemble reads of the tables, by member, float32 [N, C], rows in the order of the first.

    Raises UsageError SCORES_NAMES naming those that are missing, DataError SCORES_SHAPE for scores of other
    classes than the steps name or of one class, and what `align` and `read_as` raise.
    """
    missing = [name for name in ensemble.members if name not in tables]
    if missing:
        raise UsageError(
            "SCORES_NAMES",
            f"no scores of {', '.join(missing)}; this ensemble takes {', '.join(ensemble.members)}, each as "
            "NAME=FILE or a file of that name",
        )
    aligned = align({name: tables[name] for name in ensemble.members})
    width = next(iter(aligned.values())).num_classes
    if width < 2:
        raise DataError("SCORES_SHAPE", "scores of a single class: there is nothing to choose between")
    if ensemble.classes is not None and width != ensemble.classes:
        raise DataError("SCORES_SHAPE", f"scores of {width} classes; this ensemble is for {ensemble.classes}")
    if (largest := max(_classes(ensemble), default=0)) >= width:
        raise DataError(
            "SCORES_SHAPE", f"scores of {width} classes; the steps of this ensemble name class {largest}"
        )
    found = {}
    for name, reading in ensemble.members.items():
        try:
            found[name] = read_as(aligned[name], reading)
        except DataError as error:
            raise DataError(error.code, f"member {name}: {error.message}") from None
    return found


def combine(ensemble: Ensemble, members: Mapping[str, Floats]) -> Combined:
    """Run the steps on the members' probabilities, float32 [N, C] each (see `inputs`)."""
    best = {name: values.argmax(axis=1).astype(np.int64) for name, values in members.items()}
    probabilities: Floats = np.zeros_like(next(iter(members.values())))
    labels: Ints = np.zeros(len(probabilities), np.int64)
    mixed, moved = labels, dict[tuple[int, int], int]()
    for step in ensemble.steps:
        if isinstance(step, Correct):
            labels = correct(labels, probabilities, step.blocks, moved)
            continue
        if isinstance(step, Mix):
            probabilities = _mix(step, members, best)
        else:
            rows = np.isin(probabilities.argmax(axis=1), step.classes)
            probabilities = np.where(rows[:, None], members[step.member], probabilities)
        labels = mixed = probabilities.argmax(axis=1).astype(np.int64)
    sure = {name: values.max(axis=1) for name, values in members.items()}
    return Combined(probabilities, labels, mixed, moved, best, sure)


def _mix(step: Mix, members: Mapping[str, Floats], best: Mapping[str, Ints]) -> Floats:
    result = _sum(step.weights, members, step.renormalise)
    taken = np.zeros(len(result), np.bool_)
    for route in step.routes:
        rows = np.isin(best[route.by], route.classes) & ~taken
        result = np.where(rows[:, None], _sum(route.weights, members, step.renormalise), result)
        taken |= rows
    return result


def _sum(weights: Mapping[str, float], members: Mapping[str, Floats], renormalise: bool) -> Floats:
    whole = sum(weights.values()) if renormalise else 1.0
    parts = [np.float32(weight / whole) * members[name] for name, weight in weights.items()]
    total: Floats = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def correct(
    labels: Ints,
    probabilities: Floats,
    blocks: Sequence[Block],
    moved: dict[tuple[int, int], int] | None = None,
) -> Ints:
    """Labels after the blocks, in their order; `moved` counts what was changed to what."""
    labels = labels.copy()
    sure = probabilities.astype(np.float64)  # as published: a limit is not rounded to float32
    for block in blocks:
        open_ = (labels == block.label) & (sure[:, block.column] <= block.at_most)
        for other in block.then:
            rows = open_ & (sure[:, other.to] >= other.at_least)
            labels[rows] = other.to
            open_ &= ~rows
            if moved is not None and rows.any():
                key = (block.label, other.to)
                moved[key] = moved.get(key, 0) + int(rows.sum())
    return labels


def majority(
    labels: Sequence[Ints], probabilities: Sequence[Floats], ties: Literal["lowest", "probable"] = "probable"
) -> tuple[Ints, Floats]:
    """The most frequent label of each row, and the probabilities of the first ensemble that has it.

    labels, probabilities  of each ensemble, [N] and [N, C]
    ties                   as in Vote; of equally probable classes the lowest
    """
    width = probabilities[0].shape[1]
    votes = np.sum([np.eye(width, dtype=np.float64)[own] for own in labels], axis=0)
    if ties == "probable":
        total = np.sum(probabilities, axis=0, dtype=np.float64)
        votes = np.where(votes == votes.max(axis=1, keepdims=True), total, -1.0)
    winner = votes.argmax(axis=1).astype(np.int64)
    result = probabilities[0].copy()
    open_ = np.ones(len(winner), np.bool_)
    for own, values in zip(labels, probabilities, strict=True):
        rows = open_ & (own == winner)
        result[rows] = values[rows]
        open_ &= ~rows
    return winner, result


# Weights ----------------------------------------------------------------------------------------------


class Fitted(NamedTuple):
    """Weights of members fitted on labelled rows.

    weights  name -> share, sum 1
    loss     log loss of the mixture on rows that were not fitted on, mean over the folds
    equal    the same of equal weights
    """

    weights: dict[str, float]
    loss: float
    equal: float


def fit_weights(members: Mapping[str, Floats], labels: Ints, *, folds: int = 5, steps: int = 200) -> Fitted:
    """Weights of least log loss on labelled rows, and what they are worth on rows held out in turn.

    labels  [N], -1: not labelled. They choose the weights: numbers measured on these rows afterwards are
            optimistic, the loss of the folds is not
    Expectation maximisation of mixture weights; the loss is convex, so equal weights lead to the best.
    Raises DataError TRUTH_MISSING where fewer rows than folds are labelled.
    """
    known = np.flatnonzero(labels >= 0)
    if len(known) < folds:
        raise DataError("TRUTH_MISSING", f"{len(known)} labelled rows are too few for {folds} folds")
    own = np.stack([values[known, labels[known]].astype(np.float64) for values in members.values()], axis=1)
    own = np.maximum(own, 1e-12)
    parts = np.arange(len(known)) % folds
    losses = []
    for fold in range(folds):
        weights = _expectation(own[parts != fold], steps)
        losses.append(_loss(own[parts == fold], weights))
    flat = np.full(own.shape[1], 1 / own.shape[1])
    best = _expectation(own, steps).tolist()
    return Fitted(dict(zip(members, best, strict=True)), float(np.mean(losses)), _loss(own, flat))


def _expectation(own: Any, steps: int) -> Any:
    weights = np.full(own.shape[1], 1 / own.shape[1])
    for _ in range(steps):
        parts = own * weights
        weights = (parts / parts.sum(axis=1, keepdims=True)).mean(axis=0)
    return weights


def _loss(own: Any, weights: Any) -> float:
    return float(-np.log(own @ weights).mean())
