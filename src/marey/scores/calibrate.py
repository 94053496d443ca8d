"""How sure scores are, and how sure they should be: temperature, entropy, reliability, disagreement.

Temperature scaling and the expected calibration error: Guo et al. 2017 (arXiv 1706.04599).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marey.errors import DataError
from marey.scores.table import Floats, Ints, softmax

Doubles = NDArray[np.float64]
TINY = 1e-12
LEAST = 1e-38  # float32 probabilities go down to it
GOLDEN = (5**0.5 - 1) / 2

# Of one row -------------------------------------------------------------------------------------------


def normalised(probabilities: NDArray[Any]) -> NDArray[Any]:
    """Rows divided by their sums."""
    total: NDArray[Any] = probabilities / probabilities.sum(axis=1, keepdims=True)
    return total


def margin(probabilities: NDArray[Any]) -> Doubles:
    """How far the best class of each row is before the second, float64 [N]."""
    two = np.partition(probabilities, -2, axis=1)[:, -2:].astype(np.float64)
    far: Doubles = two[:, 1] - two[:, 0]
    return far


def entropy(probabilities: NDArray[Any]) -> Doubles:
    """Entropy of each row, normalised, over that of equal classes: 0 sure, 1 undecided, float64 [N]."""
    p = normalised(probabilities.astype(np.float64))
    found: Doubles = -(p * np.log(np.maximum(p, TINY))).sum(axis=1) / np.log(p.shape[1])
    return np.abs(found)


def tempered(probabilities: NDArray[Any], temperature: float) -> Floats:
    """Probabilities at another temperature, softmax(log p / T), float32: above 1 softer, below 1 sharper.

    Of a softmax of logits it is the softmax of logits / T. Soft labels are made with it.
    """
    return softmax(np.log(np.maximum(probabilities.astype(np.float64), LEAST)) / temperature)


# On labelled rows -------------------------------------------------------------------------------------


def log_loss(probabilities: NDArray[Any], labels: Ints) -> float:
    """Mean of -log p[label] over rows; labels [N], 0..C-1."""
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(own, TINY)).mean())


def fit_temperature(probabilities: NDArray[Any], labels: Ints) -> float:
    """The temperature, 0.05 to 20, of least log loss on labelled rows (of the source, or held out).

    Found by golden-section search, as the loss has one minimum. Rows labelled -1 are left out. Raises
    DataError TRUTH_MISSING where none is labelled.
    """
    known = labels >= 0
    if not known.any():
        raise DataError("TRUTH_MISSING", "a temperature is fitted on labelled rows, and none is")
    logs, truth = np.log(np.maximum(probabilities[known].astype(np.float64), LEAST)), labels[known]

    def loss(log_t: float) -> float:
        scaled = logs / np.exp(log_t)
        top = scaled.max(axis=1, keepdims=True)
        total = np.log(np.exp(scaled - top).sum(axis=1)) + top[:, 0]
        return float((total - scaled[np.arange(len(truth)), truth]).mean())

    low, high = np.log(0.05), np.log(20.0)
    inner, outer = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    lower, upper = loss(inner), loss(outer)
    for _ in range(30):  # to a millionth of the logarithm
        if lower <= upper:
            high, outer, upper = outer, inner, lower
            inner = high - GOLDEN * (high - low)
            lower = loss(inner)
        else:
            low, inner, lower = inner, outer, upper
            outer = low + GOLDEN * (high - low)
            upper = loss(outer)
    return float(np.exp((low + high) / 2))


class Bin(NamedTuple):
    """Rows of similar confidence: how many, how sure on average, and which share of them is right."""

    low: float
    high: float
    rows: int
    confidence: float
    right: float


def reliability(
    confidence: NDArray[Any], right: NDArray[np.bool_], edges: int | Sequence[float] = 10
) -> list[Bin]:
    """Rows by confidence, in bins low <= c < high (the last with its end); empty bins are left out.

    edges  how many bins of equal width over 0..1, or their edges
    """
    bounds = np.linspace(0, 1, edges + 1) if isinstance(edges, int) else np.asarray(edges, np.float64)
    place = np.clip(
        np.searchsorted(bounds, confidence.astype(np.float64), side="right") - 1, 0, len(bounds) - 2
    )
    bins = []
    for number in range(len(bounds) - 1):
        own = place == number
        if own.any():
            mean, share = float(confidence[own].mean(dtype=np.float64)), float(right[own].mean())
            bins.append(Bin(float(bounds[number]), float(bounds[number + 1]), int(own.sum()), mean, share))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: |confidence - accuracy|, mean over the rows of the bins, 0..1."""
    rows = sum(b.rows for b in bins)
    return sum(b.rows * abs(b.confidence - b.right) for b in bins) / max(rows, 1)


def wilson(right: int, rows: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of a share of which `right` of `rows` was seen (Wilson's interval; z = 1.96: 95 %)."""
    if not rows:
        return 0.0, 1.0
    share, square = right / rows, z * z / rows
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * (share * (1 - share) / rows + square / (4 * rows)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)  # rounding leads beyond


# Between members --------------------------------------------------------------------------------------


class Disagreement(NamedTuple):
    """How members agree in their best classes.

    names      the members
    agreement  float64 [M, M], share of rows where two say the same
    kappa      float64 [M, M], the same beyond chance (Cohen), 1 where they always agree
    unanimous  share of rows where all say the same
    """

    names: tuple[str, ...]
    agreement: Doubles
    kappa: Doubles
    unanimous: float


def disagreement(members: Mapping[str, Ints], num_classes: int) -> Disagreement:
    """Agreement of every pair of members; each an int64 [N] of classes."""
    names = tuple(members)
    count = len(names)
    share, kappa = np.eye(count), np.eye(count)
    usage = {name: np.bincount(members[name], minlength=num_classes) / len(members[name]) for name in names}
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            same = float((members[one] == members[other]).mean())
            chance = float(usage[one] @ usage[other])
            share[i, j] = share[j, i] = same
            kappa[i, j] = kappa[j, i] = (same - chance) / (1 - chance) if chance < 1 else 1.0
    first = members[names[0]]
    together = np.logical_and.reduce([members[name] == first for name in names])
    return Disagreement(names, share, kappa, float(together.mean()))
