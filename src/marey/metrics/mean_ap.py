"""Multi-label average precision: per class, its mean, and per sample (Multi-Moments in Time).

AP = sum over distinct score thresholds, descending, of (recall step) * (precision there): equal scores
form one threshold and nothing is interpolated. Positives are targets == 1. (open-mmlab/mmaction2@v0.24.1:
mmaction/core/evaluation/accuracy.py)
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marey.errors import MareyError
from marey.metrics.topk import check_scores

BLOCK = 4_000_000  # elements ranked at once; bounds the memory for wide tables


def average_precision(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """AP of every class over the samples: float64 [C], 0..1, NaN for a class without a positive.

    scores   real [N, C], higher is surer
    targets  [N, C], 1 for positives
    Raises MareyError SCORES_NAN, SCORES_SHAPE.
    """
    s, positive = _checked(scores, targets)
    return _row_ap(s.T, positive.T)


def mean_average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """Mean AP, 0..1, of the classes that have a positive; NaN if none has."""
    return _mean(average_precision(scores, targets))


def sample_average_precision(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """AP of every sample over the classes: float64 [N], 0..1, NaN for a sample without a label."""
    return _row_ap(*_checked(scores, targets))


def mmit_mean_average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """Mean AP, 0..1, of the samples that have a label; NaN if none has.

    Samples without one are left out (upstream they turn the result into NaN); how many these are, the NaN
    values of `sample_average_precision` tell.
    """
    return _mean(sample_average_precision(scores, targets))


def _row_ap(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """AP of each row. Every positive counts the precision at the end of its group of equal scores."""
    rows, items = scores.shape
    result = np.full(rows, np.nan)
    step = max(1, BLOCK // items)
    for first in range(0, rows, step):
        block = slice(first, first + step)
        order = np.argsort(-scores[block], axis=1, kind="stable")
        ranked = np.take_along_axis(scores[block], order, axis=1)
        hit = np.take_along_axis(positive[block], order, axis=1)
        ends = np.pad(ranked[:, 1:] != ranked[:, :-1], ((0, 0), (0, 1)), constant_values=True)
        end = np.where(ends, np.arange(items), items)
        end = np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]
        precision = np.cumsum(hit, axis=1) / np.arange(1, items + 1)
        total = (np.take_along_axis(precision, end, axis=1) * hit).sum(axis=1)
        count = hit.sum(axis=1)
        np.divide(total, count, out=result[block], where=count > 0)
    return result


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _checked(scores: ArrayLike, targets: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    s, positive = check_scores(scores), np.asarray(targets) == 1
    if s.shape != positive.shape:
        raise MareyError("SCORES_SHAPE", f"targets {list(positive.shape)} for scores {list(s.shape)}")
    return s, positive
