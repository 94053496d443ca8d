"""Why a frame mAP is zero, or far lower than it should be: what results and truth have in common, what not.

Each cause is looked for in the rows themselves: boxes are compared as they are, as pixels, as x, y, width and
height, and with x and y exchanged; actions one lower and one higher; time stamps moved.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from marey.metrics.ava import FrameMap, overlaps
from marey.metrics.ava_tables import Floats, Ints, Rows, key_of

LOOKED_AT = 2000  # key frames in which boxes are compared
ENOUGH = 0.25  # share from which on a cause is named


def explain(result: FrameMap, truth: Rows, found: Rows) -> tuple[str, ...]:
    """Sentences: what was counted and, where little is right, why.

    result  what `frame_map` gave for these rows
    """
    counts = result.counts
    lines = [
        f"{counts['results']} results in {counts['frames of the results']} key frames; "
        f"{counts['truths']} true rows in {counts['frames of the truth']}; "
        f"{counts['frames in both']} key frames are in both",
        f"{int(result.results.sum())} results count, {counts['matched']} of them are right",
    ]
    left = {name: number for name, number in counts.items() if name not in _TOTALS and number}
    if left:
        lines.append("of these: " + ", ".join(f"{number} {name}" for name, number in left.items()))
    without = [name for name, truths in zip(result.names, result.truths.tolist(), strict=True) if not truths]
    if without:
        shown = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
        lines.append(f"{len(without)} classes have no truth and no AP: {shown}")
    return (*lines, *causes(result, truth, found))


_TOTALS = {
    *("truths", "results", "frames of the truth", "frames of the results", "frames in both", "matched"),
}


def causes(result: FrameMap, truth: Rows, found: Rows) -> Iterator[str]:
    """Sentences that explain why next to nothing is right; none where enough is."""
    counts = result.counts
    if not counts["results"]:
        yield "there are no results: nothing scored above the threshold, or nothing was run"
    elif not result.truths.sum():
        yield "no class that counts has truth: compare the label map with the actions of the annotation"
    elif not counts["frames in both"]:
        yield _no_common_frame(truth, found)
    elif counts["results"] == counts["results of other classes"]:
        yield _other_classes(result, found)
    elif counts["matched"] < ENOUGH * _reachable(result):
        yield from _boxes_or_actions(truth, found)
    if counts["results"] > 1 and len(np.unique(found.extra[:10_000])) == 1:
        yield "all results have the same score, so that their ranking, and AP, is by chance"
    dropped = counts.get("results in excluded frames", 0)
    if dropped and dropped == counts["results"] - counts["results of other classes"]:
        yield "all results are in excluded key frames"


def _reachable(result: FrameMap) -> int:
    """How many results could be right."""
    return int(np.minimum(result.truths, result.results).sum())


def _no_common_frame(truth: Rows, found: Rows) -> str:
    videos = set(truth.videos) & set(found.videos)
    if not videos:
        names = [sorted(rows.videos)[0] for rows in (found, truth)]
        return f"no video is in both: results are of {names[0]!r}, truth of {names[1]!r}, for example"
    keys = [key_of(rows.videos[rows.video[0]], float(rows.second[0])) for rows in (found, truth)]
    text = f"no time stamp is in both: results have {keys[0]!r}, truth {keys[1]!r}, for example"
    apart = float(truth.second.min() - found.second.min())
    moved = np.isin(np.round(truth.second - apart, 3), np.round(found.second, 3)).mean()
    if moved > ENOUGH:
        return (
            f"{text}; moved by {apart:g} s, {moved:.0%} of the true rows would have one (see KeyFrames.start)"
        )
    whole = found.second.max() > 10 * truth.second.max()
    return f"{text}; those of the results look like frame numbers, not seconds" if whole else text


def _other_classes(result: FrameMap, found: Rows) -> str:
    actions = np.unique(found.action)
    return (
        f"no result is of a class that counts: results have actions {actions.min()} to {actions.max()}, "
        f"classes are {result.actions.min()} to {result.actions.max()}"
    )


def _boxes_or_actions(truth: Rows, found: Rows) -> Iterator[str]:
    """Causes seen by comparing boxes in common key frames, whatever their classes."""
    pairs = _pairs(truth, found)
    ours, theirs = found.boxes[pairs[:, 0]], truth.boxes[pairs[:, 1]]
    largest = float(np.median(ours[:, 2:].max(axis=1))) if len(ours) else 0.0
    if largest > 2:
        yield f"boxes of the results are pixels (lower right edges at {largest:.0f}), not fractions"
        return
    ways = {
        "": ours,
        "x, y, width, height": np.concatenate([ours[:, :2], ours[:, :2] + ours[:, 2:]], axis=1),
        "y1, x1, y2, x2": ours[:, [1, 0, 3, 2]],
    }
    near = {name: _share(pairs, overlaps(boxes, theirs) >= 0.5) for name, boxes in ways.items()}
    best = max(near, key=lambda name: near[name])
    if near[""] < ENOUGH and near[best] > max(ENOUGH, 2 * near[""]):
        yield f"boxes of the results look like {best}; expected x1, y1, x2, y2"
    elif near[""] < ENOUGH:
        yield (
            f"{near['']:.0%} of the results overlap some true box by half, so the boxes are of other "
            "persons, videos or moments"
        )
    else:
        yield from _actions(
            found.action[pairs[:, 0]], truth.action[pairs[:, 1]], overlaps(ours, theirs) >= 0.5
        )


def _actions(ours: Ints, theirs: Ints, near: NDArray[np.bool_]) -> Iterator[str]:
    """Boxes are right, actions are not: perhaps these are counted from another number."""
    same = {step: int(((ours + step == theirs) & near).sum()) for step in (0, 1, -1)}
    best = max(same, key=lambda step: same[step])
    if best and same[best] > 3 * same[0]:
        where = "0" if best == 1 else "2"
        yield (
            f"actions of the results seem to count from {where}: {same[best]} boxes agree when they are "
            f"moved by {best:+d}, {same[0]} as they are"
        )
    else:
        yield "boxes overlap as they should, but their actions are others than the true ones"


def _pairs(truth: Rows, found: Rows) -> Ints:
    """int64 [P, 2], results and truths of the same key frame, of some key frames that have both."""
    places = {name: place for place, name in enumerate(truth.videos)}
    video = np.array([places.get(name, -1) for name in found.videos], np.int64)[found.video]
    ours, theirs = (np.stack([v, s], 1) for v, s in ((video, found.second), (truth.video, truth.second)))
    frames, inverse = np.unique(np.concatenate([theirs, ours]), axis=0, return_inverse=True)
    of_truth, of_found = np.split(inverse.reshape(-1), [len(theirs)])
    both = np.intersect1d(of_truth, of_found)[:LOOKED_AT]
    chosen = np.zeros(len(frames), np.bool_)
    chosen[both] = True
    true, rows = np.flatnonzero(chosen[of_truth] & (truth.action > 0)), np.flatnonzero(chosen[of_found])
    true = true[np.argsort(of_truth[true], kind="stable")]
    first, last = (np.searchsorted(of_truth[true], of_found[rows], side) for side in ("left", "right"))
    counts = last - first
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([np.repeat(rows, counts), true[np.repeat(first, counts) + within]], axis=1)


def _share(pairs: Ints, near: Floats | NDArray[np.bool_]) -> float:
    """Share of the results in `pairs` that are near some truth."""
    results = np.unique(pairs[:, 0])
    return len(np.unique(pairs[near.astype(np.bool_), 0])) / max(len(results), 1)
