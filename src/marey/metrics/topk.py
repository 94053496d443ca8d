"""Accuracy from scores: top-k, mean over classes, confusion matrix.

Equal scores are ranked by ascending class index, everywhere. (open-mmlab/mmaction2@v0.24.1,
mmaction/core/evaluation/accuracy.py, leaves the order of ties in top-k to numpy's sort.)
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marey.errors import DataError, MareyError


def top_k_accuracy(scores: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """Share, 0..1, of samples whose label is among the k largest scores (1 where k covers all classes).

    scores  real [N, C], higher is surer; N >= 1
    labels  int [N], 0..C-1
    Raises MareyError SCORES_NAN, SCORES_SHAPE, METRIC_ARGUMENT; DataError LABEL_RANGE.
    """
    if k < 1:
        raise MareyError("METRIC_ARGUMENT", f"top-k accuracy needs k >= 1, not {k}")
    s, y = _checked(scores, labels)
    own = s[np.arange(len(y)), y][:, None]
    before = (s > own) | ((s == own) & (np.arange(s.shape[1]) < y[:, None]))
    return float(np.mean(before.sum(axis=1) < k))


def multi_label_top_k_accuracy(scores: ArrayLike, targets: ArrayLike, k: int = 1) -> float:
    """Share, 0..1, of samples of which any label is among the k largest scores; NaN if none has a label.

    scores   real [N, C], higher is surer
    targets  [N, C], 1 for labels
    Samples without a label are left out. (CVMI-Lab/ResKD@c6b85a3 compares each sample with all others on such
    data, and can reach 5.0.)
    """
    if k < 1:
        raise MareyError("METRIC_ARGUMENT", f"top-k accuracy needs k >= 1, not {k}")
    s, positive = check_scores(scores), np.asarray(targets) == 1
    if s.shape != positive.shape:
        raise MareyError("SCORES_SHAPE", f"targets {list(positive.shape)} for scores {list(s.shape)}")
    best = np.argsort(-s, axis=1, kind="stable")[:, :k]
    hit = np.asarray(np.take_along_axis(positive, best, axis=1).any(axis=1))
    labelled = np.asarray(positive.any(axis=1))
    return float(hit[labelled].mean()) if labelled.any() else float("nan")


def mean_class_accuracy(
    scores: ArrayLike, labels: ArrayLike, *, classes: Literal["seen", "true"] = "seen"
) -> float:
    """Mean over classes of the share, 0..1, of a class's samples that are predicted as it.

    classes  "seen": all that occur as label or as prediction, as published; one that is only predicted
             counts 0. "true": only those that occur as label
    """
    s, y = _checked(scores, labels)
    matrix = confusion_matrix(y, s.argmax(axis=1), s.shape[1])
    counts = matrix.sum(axis=1)
    kept = counts > 0 if classes == "true" else counts + matrix.sum(axis=0) > 0
    return float(np.mean(matrix.diagonal()[kept] / np.maximum(counts[kept], 1)))


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Number of samples of each label (row) predicted as each class (column): int64 [classes, classes].

    labels, predicted  int [N], 0..classes-1
    """
    y, p = _classes(labels, classes, "label"), _classes(predicted, classes, "prediction")
    if y.shape != p.shape:
        raise MareyError("SCORES_SHAPE", f"{len(y)} labels for {len(p)} predictions")
    return np.bincount(y * classes + p, minlength=classes * classes).reshape(classes, classes)


def class_accuracy(confusion: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Samples of each class, int64 [C], and the share of them that is right, float64 [C], NaN for none."""
    counts = confusion.sum(axis=1)
    right = confusion.diagonal()
    return counts, np.divide(right, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def check_scores(scores: ArrayLike) -> NDArray[np.floating[Any]]:
    """Scores as a real array [N, C], N and C at least 1, or an error that names what is wrong with them."""
    s = np.asarray(scores)
    if s.ndim != 2 or 0 in s.shape:
        raise MareyError(
            "SCORES_SHAPE", f"scores must be [samples, classes] and not empty, not {list(s.shape)}"
        )
    s = s if np.issubdtype(s.dtype, np.floating) else s.astype(np.float64)
    bad = np.isnan(s).any(axis=1)
    if bad.any():
        raise MareyError(
            "SCORES_NAN", f"{bad.sum()} of {len(s)} rows hold NaN scores, first row {bad.argmax()}"
        )
    return s


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
    s = check_scores(scores)
    y = _classes(labels, s.shape[1], "label")
    if len(y) != len(s):
        raise MareyError("SCORES_SHAPE", f"{len(y)} labels for {len(s)} rows of scores")
    return s, y


def _classes(values: ArrayLike, classes: int, what: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise MareyError(
            "SCORES_SHAPE", f"{what}s must be whole numbers [N], not {array.dtype} {list(array.shape)}"
        )
    wrong = (array < 0) | (array >= classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError("LABEL_RANGE", f"{what} {array[row]} of row {row} is outside 0..{classes - 1}")
    return array.astype(np.int64)
