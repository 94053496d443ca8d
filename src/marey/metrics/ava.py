"""AVA's frame mAP: average precision of labelled boxes in key frames at an overlap of 0.5.

    truth, found = read_rows("ava_val_v2.1.csv", "truth"), read_rows("results.csv", "result")
    print(frame_map(truth, found, names=read_label_map("actions.pbtxt")).map)

Two protocols, equal to their originals (numbers from arrays or from CSV are the same):

    mmaction2    open-mmlab/mmaction2@v0.24.1: excluded key frames leave truth and results; boxes in key
                 frames without truth are false. Published LFB, SlowOnly and SlowFast figures are of this one
    activitynet  activitynet/ActivityNet@82304fa (get_ava_performance.py): key frames that the truth does not
                 list are left out of the results, and of each key frame the 50 best labelled boxes count

Both: a box claims the truth of its class that it overlaps most. If by 0.5 and the truth is still free, it is
right; there is no second choice. Of truths that it overlaps equally it claims that of the highest entity, as
the originals read that column as a score, then the first. A class with truth but without results has AP 0,
one without truth none. AP is the area under the precision envelope over every step of recall.

Ties: a key frame's boxes claim truths by descending score, equal ones in the order of the file. The ranking
of a class by score takes equal ones in reverse: the key frame that appears later in the file first, and the
box that stands later in it. (The originals sort by an unstable sort, so that their order of equal scores, and
the last digits of mAP, depend on the machine; this is the order of a stable one.)
"""

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marey.errors import DataError, unknown
from marey.metrics.ava_tables import MICRO, Floats, Ints, Mask, Rows, make_rows

Protocol = Literal["mmaction2", "activitynet"]
PROTOCOLS: tuple[Protocol, ...] = ("mmaction2", "activitynet")
MOST = 50  # labelled boxes of a key frame that count for the ActivityNet script
GROUPS = {  # AVA's kinds of actions, by their ids
    "person movement": range(1, 15),
    "object manipulation": range(15, 64),
    "person interaction": range(64, 81),
}


class FrameMap(NamedTuple):
    """The result of an evaluation; values are 0..1.

    map         mean AP of the classes that have truth; NaN if none has
    actions     int64 [C], the classes, ascending
    names       their names
    ap          float64 [C], NaN for a class without truth
    truths      int64 [C], true boxes of each class in the key frames that count
    results     int64 [C], results of each class that count
    matched     int64 [C], those that are right
    lowest, highest  float64 [C], AP over all orders of equal scores; None unless asked for
    counts      what was left out and why, by name (see `explain`)
    protocol    whose rules
    """

    map: float
    actions: Ints
    names: tuple[str, ...]
    ap: Floats
    truths: Ints
    results: Ints
    matched: Ints
    lowest: Floats | None
    highest: Floats | None
    counts: dict[str, int]
    protocol: Protocol

    def groups(self) -> dict[str, float]:
        """Mean AP of AVA's kinds of actions, for those that have a class with truth."""
        means = {
            name: [ap for action, ap in zip(self.actions, self.ap, strict=True) if action in ids and ap == ap]
            for name, ids in GROUPS.items()
        }
        return {name: float(np.mean(aps)) for name, aps in means.items() if aps}


def frame_map(
    truth: Rows,
    found: Rows,
    *,
    names: Mapping[int, str] | None = None,
    excluded: Collection[str] = (),
    protocol: Protocol = "mmaction2",
    iou: float = 0.5,
    ties: bool = False,
) -> FrameMap:
    """Frame mAP of results against truth, as `read_rows` or `make_rows` give them.

    names     action -> name, the classes that count (AVA: the 60 of its label map); None: all in the truth
    excluded  names of the key frames that do not count; the ActivityNet script knows none
    iou       smallest overlap
    ties      also the lowest and highest AP over all orders of equal scores

    Raises UsageError UNKNOWN_NAME (protocol); DataError AVA_SCORE (a result without or with NaN score).
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    if np.isnan(found.extra).any():
        row = int(np.isnan(found.extra).argmax())
        raise DataError("AVA_SCORE", f"the result of line {found.lines[row]} has no score")
    listed = np.unique(truth.action[truth.action > 0]) if names is None else np.array(sorted(names), np.int64)
    kept_truth, kept_found = np.isin(truth.action, listed), np.isin(found.action, listed)
    frames = _Frames(truth, found, kept_found)
    listing, having = frames.marked(frames.truth), frames.marked(frames.found)
    counts = {
        "truths": int((truth.action > 0).sum()),
        "results": len(found.action),
        "frames of the truth": int(listing.sum()),
        "frames of the results": int(having.sum()),
        "frames in both": int((listing & having).sum()),
    }
    counts["truths of other classes"] = counts["truths"] - int(kept_truth.sum())
    counts["results of other classes"] = int((~kept_found).sum())
    if protocol == "mmaction2":
        dropped = frames.named(excluded)
        kept_truth &= ~dropped[frames.truth]
        before = int(kept_found.sum())
        kept_found &= ~dropped[frames.found]
        counts["results in excluded frames"] = before - int(kept_found.sum())
    claims = _claims(truth, found, frames, kept_truth, kept_found, protocol, counts)
    parts = [_of_class(part, iou, ties) for part in claims.by_class(listed, truth, found, frames)]
    ap, lowest, highest = (np.array([part[place] for part in parts]) for place in range(3))
    known = ~np.isnan(ap)
    counts["matched"] = sum(part[3] for part in parts)
    counts["results in frames without truth"] = claims.unseen
    return FrameMap(
        float(ap[known].mean()) if known.any() else float("nan"),
        listed,
        tuple(str(action) if names is None else names[action] for action in listed.tolist()),
        ap,
        np.array([part[4] for part in parts], np.int64),
        np.array([part[5] for part in parts], np.int64),
        np.array([part[3] for part in parts], np.int64),
        lowest if ties else None,
        highest if ties else None,
        counts,
        protocol,
    )


def overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of boxes [..., 4] and [..., 4], as these broadcast; of two without area NaN."""
    across = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    down = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    inner = np.maximum(across, 0) * np.maximum(down, 0)
    with np.errstate(invalid="ignore"):
        shared: Floats = inner / (_area(a) + _area(b) - inner)
    return shared


def _area(boxes: Floats) -> Floats:
    area: Floats = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return area


# Key frames -------------------------------------------------------------------------------------------


class _Frames:
    """Key frames of truth and results as numbers: first those of results that count, as they appear."""

    def __init__(self, truth: Rows, found: Rows, kept: Mask) -> None:
        videos = {name: place for place, name in enumerate(dict.fromkeys((*found.videos, *truth.videos)))}
        codes = [_codes(rows, videos) for rows in (found, truth)]
        runs = [np.flatnonzero(np.diff(code, prepend=-1)) for code in codes]  # rows of a frame lie together
        counted = codes[0][kept]
        starts = [counted[np.flatnonzero(np.diff(counted, prepend=-1))]]
        starts += [code[run] for code, run in zip(codes, runs, strict=True)]
        self.codes, first, inverse = np.unique(np.concatenate(starts), return_index=True, return_inverse=True)
        rank = np.split(np.argsort(np.argsort(first))[inverse], np.cumsum([len(part) for part in starts]))
        self.found, self.truth = (
            np.repeat(ranks, np.diff(run, append=len(code)))
            for ranks, run, code in zip(rank[1:3], runs, codes, strict=True)
        )
        self.count, self._videos, self._rank = len(self.codes), videos, np.argsort(np.argsort(first))

    def marked(self, frames: Ints) -> Mask:
        """bool [frames], those that occur."""
        marks = np.zeros(self.count, np.bool_)
        marks[frames] = True
        return marks

    def named(self, keys: Collection[str]) -> Mask:
        """bool [frames], those with one of these names."""
        rows = make_rows(keys, np.zeros((len(keys), 4)), np.zeros(len(keys)), np.zeros(len(keys)))
        known = np.array([name in self._videos for name in rows.videos], np.bool_)
        rows = rows.take(known[rows.video]) if len(known) else rows
        return self.marked(self._rank[np.isin(self.codes, _codes(rows, self._videos))])


def _codes(rows: Rows, videos: Mapping[str, int]) -> NDArray[np.complex128]:
    """A number for each row's key frame: the video's place and, as imaginary part, the microsecond."""
    places = np.array([videos.get(name, 0) for name in rows.videos], np.int64)
    if not len(places):
        return np.empty(0, np.complex128)
    return places[rows.video] + 1j * np.rint(rows.second * MICRO)


# Matching ---------------------------------------------------------------------------------------------


class _Class(NamedTuple):
    """Truths of a class that count, in the order of their key frames, and results, in that of the file."""

    true_frame: Ints
    true_box: Floats
    frame: Ints
    score: Floats
    rows: Ints  # places of the results in `boxes`
    boxes: Floats


class _Claims(NamedTuple):
    """Rows of truths and results that count, sorted by class, then key frame."""

    truths: Ints
    results: Ints
    unseen: int

    def by_class(self, actions: Ints, truth: Rows, found: Rows, frames: "_Frames") -> Iterator[_Class]:
        """Those of each class."""
        columns = truth.action[self.truths], found.action[self.results]
        bounds = [
            [np.searchsorted(column, actions, side) for side in ("left", "right")] for column in columns
        ]
        for place in range(len(actions)):
            true, rows = (
                part[low[place] : high[place]]
                for part, (low, high) in zip((self.truths, self.results), bounds, strict=True)
            )
            yield _Class(
                frames.truth[true],
                truth.boxes[true],
                frames.found[rows],
                found.extra[rows],
                rows,
                found.boxes,
            )


def _claims(
    truth: Rows,
    found: Rows,
    frames: _Frames,
    kept_truth: Mask,
    kept_found: Mask,
    protocol: Protocol,
    counts: dict[str, int],
) -> _Claims:
    entity = np.nan_to_num(truth.extra, nan=1.0)
    if protocol == "activitynet":
        seen = frames.marked(frames.truth)  # also by a row of a class that does not count, or of none
        counts["results in frames that the truth does not list"] = int(
            (kept_found & ~seen[frames.found]).sum()
        )
        kept_found = kept_found & seen[frames.found]
        chosen = _through_heaps(found, frames.found, kept_found, found.extra, MOST)
        true = _through_heaps(truth, frames.truth, kept_truth, entity, len(truth.extra) + 1)
        counts["results beyond the best 50 of a frame"] = int(kept_found.sum()) - len(chosen)
    else:
        true, chosen = np.flatnonzero(kept_truth), np.flatnonzero(kept_found)
    boxes = found.boxes
    sound = ((boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3]))[chosen]
    counts["results without area"] = int((~sound).sum())
    chosen = chosen if sound.all() else chosen[sound]
    seen, frame = frames.marked(frames.truth[true]), frames.found[chosen]
    if (np.diff(frame) < 0).any():  # the rows of a key frame do not lie together
        chosen = chosen[np.argsort(frame, kind="stable")]
    action = found.action[chosen]
    if action.max(initial=0) < 2**15:
        action = action.astype(np.int16)  # which is sorted by radix
    return _Claims(
        true[np.lexsort((-entity[true], frames.truth[true], truth.action[true]))],
        chosen[np.argsort(action, kind="stable")],
        int((~seen[frame]).sum()),
    )


def _of_class(one: _Class, iou: float, ties: bool) -> tuple[float, float, float, int, int, int]:
    """AP, its lowest and highest value, matched, truths, results of one class."""
    truths, results = len(one.true_frame), len(one.frame)
    if not truths:
        return np.nan, np.nan, np.nan, 0, 0, results
    claimed = _claimed(one, iou)
    order = np.argsort(-one.score, kind="stable")
    claimants = np.flatnonzero(claimed[order] >= 0)  # places in the order
    right = claimants[np.unique(claimed[order[claimants]], return_index=True)[1]]
    ranked = -one.score[order]
    low, high = (np.searchsorted(ranked, ranked[right], side) for side in ("left", "right"))
    ap = _average_precision(low + high - 1 - right, truths)  # equal scores in reverse
    lowest = highest = ap
    if ties:
        right.sort()
        low, high = (np.searchsorted(ranked, ranked[right], side) for side in ("left", "right"))
        before = np.arange(len(right)) - np.searchsorted(right, low)  # right ones of the same score
        highest = _average_precision(low + before, truths)
        lowest = _average_precision(high - 1 - before, truths)
    return ap, lowest, highest, len(right), truths, results


def _claimed(one: _Class, iou: float) -> Ints:
    """int64 [results], the truth that each overlaps most, the first of equals; -1 where by less than `iou`.

    The loop is over the truths of a key frame, all key frames at once.
    """
    first = np.searchsorted(one.true_frame, one.frame)
    count = np.searchsorted(one.true_frame, one.frame, "right") - first
    claimed, most = np.full(len(one.frame), -1), np.full(len(one.frame), -np.inf)
    asked = np.flatnonzero(count)
    for place in range(int(count.max(initial=0))):
        asked = asked[count[asked] > place]
        theirs = first[asked] + place
        shared = overlaps(one.boxes[one.rows[asked]], one.true_box[theirs])
        better = shared > most[asked]
        most[asked[better]], claimed[asked[better]] = shared[better], theirs[better]
    claimed[most < iou] = -1
    return claimed


def _average_precision(right: Ints, truths: int) -> float:
    """Area under the precision envelope of a ranking whose places `right` are right."""
    hits = np.sort(right)
    precision = np.arange(1, len(hits) + 1) / (hits + 1)
    recall = np.arange(len(hits) + 1) / truths
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * envelope).sum())


# The ActivityNet script's 50 best ---------------------------------------------------------------------


def _through_heaps(rows: Rows, frame: Ints, kept: Mask, score: Floats, most: int) -> Ints:
    """The rows that the ActivityNet script keeps of each key frame, in its order: int64.

    It pushes them on a heap, from which a higher score drives out the lowest item (score, class, y1, x1, y2,
    x2), and sorts what is left by score; the heap's own order decides between equal scores.
    """
    chosen = np.flatnonzero(kept)
    chosen = chosen[np.argsort(frame[chosen], kind="stable")]
    y1x1y2x2 = rows.boxes[:, [1, 0, 3, 2]]
    edges = np.flatnonzero(np.diff(frame[chosen], prepend=-1, append=-2))
    result = list[int]()
    for start, stop in pairwise(edges.tolist()):
        here = chosen[start:stop]
        scores, actions = score[here].tolist(), rows.action[here].tolist()
        heap: list[tuple[float, int, list[float], int]] = []
        boxes = y1x1y2x2[here].tolist()
        for item in zip(scores, actions, boxes, here.tolist(), strict=True):
            if len(heap) < most:
                heapq.heappush(heap, item)
            elif item[0] > heap[0][0]:
                heapq.heapreplace(heap, item)
        result += [item[3] for item in sorted(heap, key=_minus_score)]
    return np.array(result, np.int64)


_minus_score: Callable[[tuple[float, int, list[float], int]], float] = lambda item: -item[0]  # noqa: E731


# From scores ------------------------------------------------------------------------------------------


def result_rows(
    frames: Sequence[tuple[str, ArrayLike, ArrayLike]],
    *,
    threshold: ArrayLike = 0.002,
    custom: Sequence[int] | None = None,
    single: bool = False,
) -> Rows:
    """Results of a detector: rows by key frame, then class, then box.

    frames     (name of the key frame, boxes [R, 4] as fractions, scores [R, C]); column 0 is no class
    threshold  scores must be above it; one, or one for each column
    custom     actions that columns 1, 2, ... stand for; None: 1, 2, ...
    single     only the best class of a box counts (softmax scores, one action per person)
    """
    boxes, actions, scores = list[Floats](), list[Ints](), list[Floats]()
    for _, box, score in frames:
        table = np.asarray(score)
        precision = table.dtype if table.dtype.kind == "f" else np.float64  # that of the scores, as published
        limits = np.broadcast_to(np.asarray(threshold, precision), table.shape[1:])[1:]
        above = table[:, 1:] > limits
        if single and len(table):
            best = table[:, 1:].argmax(axis=1)
            above &= np.arange(table.shape[1] - 1) == best[:, None]
        column, row = np.nonzero(above.T)
        boxes.append(np.asarray(box, np.float64).reshape(-1, 4)[row])
        actions.append(column + 1)
        scores.append(table[row, column + 1].astype(np.float64))
    empty = np.zeros(len(frames))
    keys = make_rows([key for key, *_ in frames], np.zeros((len(frames), 4)), empty, empty)
    counts = np.array([len(action) for action in actions], np.int64)
    action = np.concatenate([np.empty(0, np.int64), *actions])
    if custom is not None:
        action = np.asarray(custom, np.int64)[action - 1]
    return Rows(
        keys.videos,
        np.repeat(keys.video, counts),
        np.repeat(keys.second, counts),
        np.concatenate([np.empty((0, 4)), *boxes]),
        action,
        np.concatenate([np.empty(0), *scores]),
        np.arange(1, len(action) + 1),
    )
