"""Which frames: integers in, integers out, no decoding.

    frame       0 1 2 3 4 5 6 7 8 9 10 11     n = 12 frames
    clip        2   4   6   8                 length 4, interval 2, start 2, span 4 * 2 = 8

Every sampler gives int64 `[clips, length]` with values in 0..n-1 for any n >= 1. Random ones draw from
the `numpy.random.Generator` they are given and from nothing else. Rules "0.x" and "1.x" are those of
open-mmlab/mmaction2@v0.24.1 (mmaction/datasets/pipelines/loading.py) and @4d6c9347
(mmaction/datasets/transforms/loading.py): accuracies published with one belong to that one. The rules
"slowfast" and "slowfast_offset" are PySlowFast's, without and with USE_OFFSET_SAMPLING
(facebookresearch/SlowFast@287ec007:slowfast/datasets/decoder.py).
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from marey.errors import MediaError, UsageError

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Rule = Literal["0.x", "1.x", "slowfast", "slowfast_offset"]
OutOfBound = Literal["loop", "repeat_last"]


def generator(seed: int, epoch: int, index: int, stream: int = 0) -> np.random.Generator:
    """The random draws of one sample: a function of these numbers (each 0..2**64-1) alone.

    Seed and epoch are the key of a Philox counter, the sample's index its highest word, so that no two
    samples share a stream and none has to be advanced to reach another. `stream`, its second highest word,
    gives a sample several: what draws in another process than its loader takes one of its own.
    """
    for name, value in (("seed", seed), ("epoch", epoch), ("sample index", index), ("stream", stream)):
        if not 0 <= value < 2**64:
            raise UsageError("SEED_RANGE", f"the {name} is {value}; it must be in 0..2**64-1")
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, 0, stream, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def clip_train(
    n: int,
    *,
    length: int,
    interval: int = 1,
    clips: int = 1,
    rng: np.random.Generator,
    keep_tail: bool = False,
    jitter: bool = False,
    out_of_bound: OutOfBound = "loop",
    fps: float | None = None,
    target_fps: float | None = None,
) -> Indices:
    """Clips that start at random inside equal parts of the video (both rules agree).

    keep_tail   the parts reach to the last possible start instead of being cut to whole frames
    jitter      adds an independent 0..interval-1 to every frame
    target_fps  the clip covers the time it would take at this rate; fps is the video's own, None: equal
    """
    _check(n, length=length, interval=interval, clips=clips)
    span, steps = float(length * interval), np.arange(length) * np.float64(interval)
    if target_fps is not None:
        span, steps = _resampled(length, span, fps, target_fps)
    index = _random_starts(n, clips, span, rng, keep_tail)[:, None] + steps
    if jitter:
        index = index + rng.integers(0, interval, index.shape)
    return fold(index, n, out_of_bound)


def clip_test(
    n: int,
    *,
    length: int,
    interval: int = 1,
    clips: int = 1,
    twice: bool = False,
    rule: Rule = "0.x",
    out_of_bound: OutOfBound = "loop",
    fps: float | None = None,
    target_fps: float | None = None,
) -> Indices:
    """Clips at fixed places: centres of equal parts (0.x), or spread from first to last frame (1.x).

    twice       adds as many clips at the beginnings of the parts; under 0.x a video that is shorter than
                a clip gets none of these. 1.x can only do it for single frames (length 1)
    target_fps  as in `clip_train`; 1.x only
    """
    _check(n, length=length, interval=interval, clips=clips)
    if rule == "1.x" and twice and length > 1:
        raise UsageError("SAMPLING_INVALID", "rule 1.x samples twice only for clips of one frame")
    if target_fps is not None and (rule == "0.x" or twice):
        raise UsageError("SAMPLING_INVALID", "target_fps needs rule 1.x, and cannot be sampled twice")
    span, steps = float(length * interval), np.arange(length) * np.float64(interval)
    if target_fps is not None:
        span, steps = _resampled(length, span, fps, target_fps)
    k = np.arange(clips)
    if rule == "0.x":
        part = (n - span + 1) / clips
        starts = np.floor(k * part + part / 2) if n > span - 1 else np.zeros(clips)
        starts = np.concatenate([starts, k * part]) if twice and n > span - 1 else starts
    elif length == 1:
        part = n / clips
        starts = np.concatenate([k * part + part / 2, *([k * part] if twice else [])])
    elif target_fps is not None:
        room = max(n - span, 0.0)
        starts = k * np.floor(room / (clips - 1)) if clips > 1 else np.floor([room / 2])
    else:
        room = max(n - (length - 1) * interval - 1, 0)
        step = room / max(clips - 1, 1)  # rounded before it is multiplied, as published: halves depend on it
        starts = np.rint(k * step) if clips > 1 else np.floor([room / 2])
    return fold(starts[:, None] + steps, n, out_of_bound)


def spread_train(
    n: int,
    *,
    length: int,
    interval: int = 1,
    rng: np.random.Generator,
    fps: float | None = None,
    target_fps: float | None = None,
) -> Indices:
    """One clip spread evenly over a window of length * interval frames that starts anywhere (PySlowFast).

    The frames are (span - 1) / (length - 1) apart, a little more than the interval; those beyond the video
    are its last frame. Rates as in `clip_train`.
    """
    _check(n, length=length, interval=interval)
    span = _span(length, interval, fps, target_fps)
    return _spread(n, [float(rng.uniform(0, max(n - span, 0)))], span, length)


def spread_test(
    n: int,
    *,
    length: int,
    interval: int = 1,
    clips: int = 1,
    offset: bool = False,
    fps: float | None = None,
    target_fps: float | None = None,
) -> Indices:
    """As `spread_train`, from windows at fixed places, see `spread_starts`."""
    _check(n, length=length, interval=interval, clips=clips)
    span = _span(length, interval, fps, target_fps)
    return _spread(n, spread_starts(n, span, clips, offset=offset), span, length)


def spread_starts(n: float, span: float, clips: int, *, offset: bool) -> list[float]:
    """Where the windows of a test start: at k / clips of the free room, so that none reaches the end.

    offset  in whole frames from the first place to the last; one clip in the middle
    """
    room = max(n - span, 0.0)
    if not offset:
        return [room * k / clips for k in range(clips)]
    if clips == 1:
        return [float(room // 2)]
    return [float(k * (room // (clips - 1))) for k in range(clips)]


def _span(length: int, interval: int, fps: float | None, target_fps: float | None) -> float:
    span = float(length * interval)
    return span if target_fps is None else _resampled(length, span, fps, target_fps)[0]


def _spread(n: int, starts: list[float], span: float, length: int) -> Indices:
    rows = [
        torch.linspace(s, s + span - 1, length) for s in starts
    ]  # torch's own float32 steps, as published
    return torch.stack(rows).clamp(0, n - 1).long().numpy()


def fold(index: Floats, n: int, out_of_bound: OutOfBound = "loop") -> Indices:
    """Brings frame numbers >= 0 (real, `[clips, length]`) into 0..n-1 and drops their fractions.

    "loop" counts on from frame 0; "repeat_last" holds the clip's last frame that exists (0 if none does).
    """
    if out_of_bound == "loop":
        return np.mod(index, n).astype(np.int64)
    last = np.where(index < n, index, 0).max(axis=1, keepdims=True)
    return np.where(index < n, index, last).astype(np.int64)


def dense_train(
    n: int,
    *,
    length: int,
    interval: int = 1,
    clips: int = 1,
    sample_range: int = 64,
    rng: np.random.Generator,
) -> Indices:
    """Clips at equal steps inside one window of `sample_range` frames that starts at random.

    The window may start anywhere it fits; upstream never draws the last such place.
    """
    _check(n, length=length, interval=interval, clips=clips, sample_range=sample_range)
    starts = rng.integers(0, max(1, 1 + n - sample_range), 1)
    return _dense(n, starts, length, interval, clips, sample_range)


def dense_test(
    n: int, *, length: int, interval: int = 1, clips: int = 1, sample_range: int = 64, positions: int = 10
) -> Indices:
    """As `dense_train`, from `positions` windows between first and last frame: int64
    `[positions * clips, length]`, window after window."""
    _check(n, length=length, interval=interval, clips=clips, sample_range=sample_range, positions=positions)
    starts = np.linspace(0, max(1, 1 + n - sample_range) - 1, positions).astype(np.int64)
    return _dense(n, starts, length, interval, clips, sample_range)


def untrimmed(n: int, *, length: int, every: int, interval: int = 1) -> Indices:
    """One clip around each of the frames every // 2, every // 2 + every, ...; the ends are held.

    In 0.x terms `every` is frame_interval and interval 1; in 1.x terms `every` is clip_interval. A video
    too short for the first of them gets one clip around its middle (upstream: none).
    """
    _check(n, length=length, every=every, interval=interval)
    centres = np.arange(every // 2, n, every) if n > every // 2 else np.array([n // 2])
    around = (np.arange(length) - length // 2) * interval
    index: Indices = np.clip(centres[:, None] + around, 0, n - 1).astype(np.int64)
    return index


def uniform_train(n: int, *, length: int, clips: int = 1, rng: np.random.Generator) -> Indices:
    """One random frame from each of `length` equal parts of the video (1.x UniformSample)."""
    _check(n, length=length, clips=clips)
    edges = np.rint((n - 1) / length * np.arange(length + 1)).astype(np.int64)
    index: Indices = rng.integers(edges[:-1], edges[1:], (clips, length), endpoint=True)
    return index


def uniform_test(n: int, *, length: int, clips: int = 1, middle: bool = False) -> Indices:
    """One fixed frame from each of `length` equal parts; clip k takes it (k+1)/(clips+1) into the part.

    middle  halfway between the part's ends, which are whole frames, as PySlowFast reads Something-Something;
            all clips are alike
    """
    _check(n, length=length, clips=clips)
    part = (n - 1) / length
    if middle:
        ends = np.rint(part * np.arange(length + 1)).astype(np.int64)
        return np.tile((ends[:-1] + ends[1:]) // 2, (clips, 1))
    into = (part / (clips + 1) * np.arange(1, clips + 1)).astype(np.int64)
    index: Indices = np.rint(part * np.arange(length)).astype(np.int64) + into[:, None]
    return index


def skeleton_train(n: int, *, length: int, rng: np.random.Generator) -> Indices:
    """One random frame from each of `length` parts that share no frame (UniformSampleFrames)."""
    _check(n, length=length)
    return _bins(n, length, int(rng.integers(n)), rng)


def skeleton_test(n: int, *, length: int, clips: int = 1, seed: int = 255) -> Indices:
    """As `skeleton_train`, the same frames in every call: numpy's legacy generator restarts from `seed`."""
    _check(n, length=length, clips=clips)
    rng = np.random.RandomState(seed)  # the published indices are this generator's
    starts = np.arange(clips) if n < clips else np.arange(clips) * n // clips
    return np.concatenate([_bins(n, length, int(start), rng) for start in starts])


def around(
    centre: int,
    *,
    length: int,
    interval: int = 1,
    first: int = 0,
    last: int,
    rng: np.random.Generator | None = None,
) -> Indices:
    """One clip around a key frame, which is its entry length // 2, for detectors: int64 `[length]`.

    first, last  frame numbers are clipped to these
    rng          training: every frame moves by an independent -interval // 2 .. (interval + 1) // 2 - 1; at
                 an interval of 1 by -1 or 0 (open-mmlab/mmaction2@v0.24.1, SampleAVAFrames)
    """
    _check(last - first + 1, length=length, interval=interval)
    index = centre + (np.arange(length) - length // 2) * interval
    if rng is not None:
        index = index + rng.integers(-interval // 2, (interval + 1) // 2, length)
    return np.clip(index, first, last).astype(np.int64)


def windows(timestamps: Floats, *, every: float, span: int) -> Indices:
    """First frames of windows of `span` frames, one every `every` seconds, over a long video: int64 [K].

    timestamps  float64 [n] seconds, ascending; `np.arange(n) / fps` for a constant rate
    A window starts at the first frame not before 0, every, 2 * every, ... seconds into the video (within a
    millionth of a step), as long as it fits. Where windows leave no gaps the end is not left out either:
    if the last one does not reach it, one more ends with the last frame. A video shorter than `span` has
    one window, from frame 0.
    """
    n = len(timestamps)
    _check(n, span=span)
    if not every > 0:
        raise UsageError("SAMPLING_INVALID", f"windows must lie more than 0 seconds apart, not {every}")
    seconds = timestamps - timestamps[0]
    starts = np.flatnonzero(np.diff(np.floor(seconds / every + 1e-6), prepend=-1) > 0)
    starts = starts[starts <= max(n - span, 0)]
    if starts[-1] + span < n and every <= seconds[span]:
        starts = np.append(starts, n - span)
    return starts.astype(np.int64)


def _resampled(length: int, span: float, fps: float | None, target_fps: float) -> tuple[float, Floats]:
    """Frames that a clip spans, and the distance of each of its frames from the first, at another rate."""
    if not target_fps > 0 or (fps is not None and not fps > 0):
        raise UsageError("SAMPLING_INVALID", f"rates must be above 0, not fps {fps}, target_fps {target_fps}")
    span = max(1.0, span * (fps / target_fps if fps else 1.0))
    return span, np.trunc(np.linspace(0, span - 1, length)).astype(np.float64)


def _random_starts(n: int, clips: int, span: float, rng: np.random.Generator, keep_tail: bool) -> Floats:
    k = np.arange(clips)
    part = (n - span + 1) / clips
    if keep_tail:
        return np.floor(k * part + rng.random(clips) * part) if part > 0 else np.zeros(clips)
    if part >= 1:
        starts: Floats = k * np.floor(part) + rng.integers(0, int(part), clips)
        return starts
    if n > max(clips, span):
        return np.sort(rng.integers(0, int(n - span), clips, endpoint=True)).astype(np.float64)
    return np.rint(k * part) if part >= 0 else np.zeros(clips)


def _dense(n: int, starts: Indices, length: int, interval: int, clips: int, sample_range: int) -> Indices:
    offsets = (starts[:, None] + np.arange(clips) * (sample_range // clips)).reshape(-1, 1) % n
    return (offsets + np.arange(length) * interval) % n


def _bins(n: int, length: int, start: int, rng: np.random.Generator | np.random.RandomState) -> Indices:
    """One clip `[1, length]`: every frame in turn from `start`, all frames but some, or one of each part."""
    if n < length:
        index = (start + np.arange(length)) % n
    elif n < 2 * length:
        dropped = np.zeros(length + 1, np.int64)
        dropped[rng.choice(length + 1, n - length, replace=False)] = 1
        index = np.arange(length) + np.cumsum(dropped)[:-1]
    else:
        edges = np.arange(length + 1) * n // length
        integers = rng.integers if isinstance(rng, np.random.Generator) else rng.randint
        index = edges[:-1] + integers(np.diff(edges))
    return index[None].astype(np.int64)


def _check(n: int, **counts: int) -> None:
    if n < 1:
        raise MediaError("MEDIA_EMPTY", "the video has no frame that can be decoded")
    for name, value in counts.items():
        if value < 1:
            raise UsageError("SAMPLING_INVALID", f"{name} is {value}; it must be at least 1")
