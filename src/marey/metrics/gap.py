"""Tagging metrics of YouTube-8M: Hit@1, PERR, GAP@20 and mAP, streamed over any number of videos.

Definitions: google/youtube-8m@e6f6bf6 (eval_util.py and the two average-precision calculators). There the
order of equal scores depends on a partition, a heap and a shuffle; here a class of lower index comes first
and, between videos, the one added earlier. Scores are ranked as float32; everything is summed in float64. A
video without labels counts 0 in Hit@1 and PERR, and in GAP its scores are all wrong; a class without a
positive has no AP.
"""

import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marey.errors import DataError, MareyError
from marey.metrics.topk import check_scores

PAIR = np.dtype([("score", "<f4"), ("label", "<i4")])  # label: the class, or -1 - class where it is wrong
IN_MEMORY = 64 * 2**20  # bytes of pairs kept before they go to a temporary file
AT_ONCE = 4_000_000  # pairs sorted at once, about 200 MB
ONE_PART = 2**19 * PAIR.itemsize  # bytes of pairs handed on at once
_BUCKETS = 1 << 16
_LOW = np.uint64(0xFFFFFFFF)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Tagging(NamedTuple):
    """The numbers of an evaluation, 0..1.

    hit_at_1  share of videos whose best class is one of their labels
    perr      precision at equal recall rate: of a video with n labels, the share of its n best classes
              that are labels and score above 0; mean over videos
    gap       global average precision of the k best (score, class) pairs of every video, pooled; the recall
              counts all labels, also those not among the k best
    map       mean AP of the classes that have a positive, on the same pairs; NaN if there is none
    map_2018  the same over all classes, 0 for those without a positive, as the 2018 code had it
    ap        float64 [C], AP of each class, NaN for one without a positive
    positives  int64 [C], videos that have the class
    videos    how many there were
    """

    hit_at_1: float
    perr: float
    gap: float
    map: float
    map_2018: float
    ap: NDArray[np.float64]
    positives: NDArray[np.int64]
    videos: int


class TaggingMetrics:
    """Collects batches of scores and labels; what it keeps in memory does not grow with the videos.

        metrics = TaggingMetrics(3862)
        for scores, labels in batches:
            metrics.add(scores, labels)
        print(metrics.result().gap)

    Only the k best pairs of a video are kept, 8 bytes each; beyond IN_MEMORY they lie in a temporary file.
    Videos may be added in parts, `counts` and `pairs` of one being given to `join` of another: the numbers
    are those of all videos in that order, to the last bit.
    """

    def __init__(self, num_classes: int, k: int = 20) -> None:
        if num_classes < 1 or k < 1:
            raise MareyError(
                "METRIC_ARGUMENT", f"num_classes is {num_classes}, k {k}; both must be 1 or more"
            )
        self.num_classes, self.k = num_classes, min(k, num_classes)
        self.videos, self._hits = 0, 0
        self._found = np.zeros(num_classes + 1, np.int64)  # for PERR, by the number of a video's labels
        self._positives = np.zeros(num_classes, np.int64)
        self._buckets = np.zeros(_BUCKETS, np.int64)
        self._pairs = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - lives as long as this

    def add(self, scores: ArrayLike, labels: ArrayLike) -> None:
        """Count a batch.

        scores  real [N, C], higher is surer; N may be 0
        labels  [N, C], above 0 (or True) for the labels of a video
        Raises MareyError SCORES_NAN, SCORES_SHAPE.
        """
        s, positive = self._checked(scores, labels)
        if not len(s):
            return
        best = ranked(s, self.k)
        values, hits = np.take_along_axis(s, best, axis=1), np.take_along_axis(positive, best, axis=1)
        self.videos += len(s)
        self._hits += int(hits[:, 0].sum())
        count = positive.sum(axis=1)
        self._found += np.bincount(
            np.repeat(count, _equal_recall(s, positive, values, hits)), minlength=self.num_classes + 1
        )
        self._positives += positive.sum(axis=0)
        pairs = np.empty(best.shape, PAIR)
        pairs["score"], pairs["label"] = values, np.where(hits, best, -1 - best)
        self._buckets += np.bincount(_descending(values).ravel() >> 16, minlength=_BUCKETS)
        self._pairs.seek(0, 2)
        self._pairs.write(pairs.tobytes())

    def counts(self) -> Ints:
        """What was counted, in one row of numbers that add up: int64 [2 + C + 1 + C + buckets]."""
        return np.concatenate([[self.videos, self._hits], self._found, self._positives, self._buckets])

    def pairs(self) -> Iterator[bytes]:
        """What was kept of the videos, in their order, a few megabytes at a time."""
        place = 0
        while True:
            self._pairs.seek(place)
            data = self._pairs.read(ONE_PART)
            if not data:
                return
            place += len(data)
            yield data

    def join(self, counts: Ints, pairs: Iterable[bytes]) -> None:
        """Add the videos of another, with as many classes and the same k, behind those that are here."""
        ends = np.cumsum([1, 1, self.num_classes + 1, self.num_classes])
        videos, hits, found, positives, buckets = np.split(counts, ends)
        self.videos, self._hits = self.videos + int(videos[0]), self._hits + int(hits[0])
        self._found += found
        self._positives += positives
        self._buckets += buckets
        for data in pairs:
            self._pairs.seek(0, 2)
            self._pairs.write(data)

    def result(self) -> Tagging:
        """The numbers of all videos so far; more may be added after. Raises MareyError NO_VIDEOS."""
        if not self.videos:
            raise MareyError("NO_VIDEOS", "there is no video to measure; add scores and labels first")
        rank, found, total = 0, 0, 0.0
        ranks, founds = np.zeros((2, self.num_classes), np.int64)
        totals = np.zeros(self.num_classes)
        for label in self._ranked_labels():
            hit = label >= 0
            place = np.flatnonzero(hit)
            total += float(((found + np.arange(1, len(place) + 1)) / (rank + 1.0 + place)).sum())
            rank, found = rank + len(label), found + len(place)
            _add_by_class(np.where(hit, label, -1 - label), hit, ranks, founds, totals)
        known = self._positives > 0
        ap = np.divide(totals, self._positives, out=np.full(self.num_classes, np.nan), where=known)
        return Tagging(
            hit_at_1=self._hits / self.videos,
            perr=float((self._found[1:] / np.arange(1, self.num_classes + 1)).sum()) / self.videos,
            gap=total / max(int(self._positives.sum()), 1),
            map=float(ap[known].mean()) if known.any() else float("nan"),
            map_2018=float(ap[known].sum() / self.num_classes),
            ap=ap,
            positives=self._positives.copy(),
            videos=self.videos,
        )

    def _ranked_labels(self) -> Iterator[NDArray[np.int32]]:
        """The labels of all pairs from the highest score down, in pieces that fit into memory."""
        ends = np.cumsum(self._buckets)
        first = 0
        while first < _BUCKETS:
            before = ends[first - 1] if first else 0
            last = max(int(np.searchsorted(ends, before + AT_ONCE, side="right")), first + 1)
            parts = [pairs[_within(pairs["score"], first, last)] for pairs in self._read()]
            pairs = np.concatenate(parts) if parts else np.empty(0, PAIR)
            keys = _keys(pairs["score"], np.arange(len(pairs)))
            keys.sort()
            yield pairs["label"][(keys & _LOW).astype(np.int64)]
            first = last

    def _read(self) -> Iterator[NDArray[Any]]:
        self._pairs.seek(0)
        while data := self._pairs.read(AT_ONCE * PAIR.itemsize):
            yield np.frombuffer(data, PAIR)

    def _checked(self, scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
        s, positive = np.asarray(scores), np.asarray(labels)
        if s.ndim != 2 or s.shape[1] != self.num_classes or s.shape != positive.shape:
            raise MareyError(
                "SCORES_SHAPE",
                f"scores {list(s.shape)} and labels {list(positive.shape)} must both be "
                f"[videos, {self.num_classes}]",
            )
        s = check_scores(s) if len(s) else s
        return s.astype(np.float32, copy=False), positive if positive.dtype == bool else positive > 0


def gap(scores: ArrayLike, labels: ArrayLike, k: int = 20) -> float:
    """GAP@k of all videos together, 0..1; 0 where nothing is positive. Arguments as in TaggingMetrics.add."""
    return measure(scores, labels, k).gap


def measure(scores: ArrayLike, labels: ArrayLike, k: int = 20) -> Tagging:
    """All numbers of one table of scores. Arguments as in TaggingMetrics.add."""
    s = check_scores(scores)
    metrics = TaggingMetrics(s.shape[1], k)
    metrics.add(s, labels)
    return metrics.result()


def ranked(scores: ArrayLike, k: int) -> Ints:
    """The k best classes of each row, best first, of equal scores the lower index: int64 [N, min(k, C)]."""
    s = np.asarray(scores, np.float32)
    videos, classes = s.shape
    k = min(k, classes)
    groups = min(6 * k, classes)
    tops = s[:, : classes // groups * groups].reshape(videos, -1, groups).max(axis=1)
    floor = np.partition(tops, groups - k, axis=1)[:, groups - k, None]  # at most the k-th best, and cheap
    place = np.flatnonzero(s >= floor)
    row, column = np.divmod(place, classes)
    counts = np.bincount(row, minlength=videos)
    keys = np.full((videos, counts.max(initial=0)), ~np.uint64(0))
    keys[row, np.arange(len(row)) - (np.cumsum(counts) - counts)[row]] = _keys(s.ravel()[place], column)
    keys.sort(axis=1)
    return (keys[:, :k] & _LOW).astype(np.int64)


def multi_hot(labels: list[Any], num_classes: int, names: list[str] | None = None) -> NDArray[np.bool_]:
    """Lists of class numbers as bool [N, num_classes]; a number that comes twice counts once.

    names  what the rows are called in the message of DataError LABEL_RANGE
    """
    table = np.zeros((len(labels), num_classes), np.bool_)
    for row, own in enumerate(labels):
        classes = np.asarray(own, np.int64)
        wrong = classes[(classes < 0) | (classes >= num_classes)]
        if len(wrong):
            name = names[row] if names else f"row {row}"
            raise DataError("LABEL_RANGE", f"{name}: label {wrong[0]} is outside 0..{num_classes - 1}")
        table[row, classes] = True
    return table


def _equal_recall(s: Floats, positive: NDArray[np.bool_], values: Floats, hits: NDArray[np.bool_]) -> Ints:
    """How many of a video's best classes, as many as it has labels, are labels; `values` and `hits` are of
    its k best."""
    count = positive.sum(axis=1)
    right = np.cumsum(hits & (values > 0), axis=1)
    known = (count > 0) & (count <= right.shape[1])
    found = np.zeros(len(s), np.int64)
    found[known] = right[known, count[known] - 1]
    for row in np.flatnonzero(count > right.shape[1]):
        best = ranked(s[row : row + 1], int(count[row]))[0]
        found[row] = (positive[row, best] & (s[row, best] > 0)).sum()
    return found


def _add_by_class(
    label: NDArray[np.int32],
    hit: NDArray[np.bool_],
    ranks: Ints,
    founds: Ints,
    totals: NDArray[np.float64],
) -> None:
    """Go on with the average precision of every class: `label` and `hit` of the next pairs in their order."""
    order = np.argsort(label.astype(np.uint16) if len(ranks) <= _BUCKETS else label, kind="stable")
    label, hit = label[order], hit[order]
    sizes = np.bincount(label, minlength=len(ranks))
    starts = np.cumsum(sizes) - sizes
    place = np.flatnonzero(hit)
    own = label[place]
    hits = np.bincount(own, minlength=len(ranks))
    nth = np.arange(len(place)) - (np.cumsum(hits) - hits)[own]  # hits of its class in this piece before it
    precision = (founds[own] + nth + 1) / (ranks[own] + place - starts[own] + 1.0)
    totals += np.bincount(own, precision, minlength=len(ranks))
    ranks += sizes
    founds += hits


def _descending(scores: Floats) -> NDArray[np.uint32]:
    """Numbers that order like the negated scores: the bits of a float32, as sign and magnitude."""
    bits = np.add(scores, np.float32(0)).view(np.uint32)  # -0 becomes 0
    negative = bits >> 31 != 0
    return np.where(negative, bits, ~bits & np.uint32(0x7FFFFFFF))


def _keys(scores: Floats, index: Ints) -> NDArray[np.uint64]:
    """Numbers that sort by descending score, then by index: several times as fast as a stable argsort."""
    return _descending(scores).astype(np.uint64) << np.uint64(32) | index.astype(np.uint64)


def _within(scores: Floats, first: int, last: int) -> NDArray[np.bool_]:
    bucket = _descending(scores) >> 16
    return (bucket >= first) & (bucket < last)
