"""`marey watch`: the classes of what a camera or a stream shows now, while it runs."""

import math
import os
import threading
import time
from collections.abc import Iterator
from functools import partial

import msgspec
from torch import nn

from marey.errors import UsageError
from marey.jobs.predict import Prediction, Scorer
from marey.video.live import LIMITS, Newest, reading, reduced, shown_name
from marey.video.preprocess import Preprocess


class Watched(Prediction, frozen=True, kw_only=True):
    """What was seen in the seconds start..end, counted from the source's first frame.

    latency  seconds from the arrival of the window's newest frame until this was known
    dropped  frames since the last window that no window held because the network was busy
    """

    latency: float
    dropped: int


def watch(
    model: nn.Module | str | os.PathLike[str],
    source: str,
    *,
    top: int = 5,
    every: float | None = None,
    span: float | None = None,
    seconds: float | None = None,
    device: str | None = None,
    timeout: float = LIMITS.seconds,
    stop: threading.Event | None = None,
) -> Iterator[Watched]:
    """Classes of the newest window, again and again.

    Each window is scored alone, by the network's validation protocol, as in a timeline of `predict`.

    model    as of `predict`
    source   a camera's number, or an address, see `marey.video.live`
    every    seconds that windows start apart at least; None: the next as soon as the network is free
    span     seconds a window lasts; None: one clip of the network
    seconds  to go on after the first window is there; None: until the source ends
    timeout  seconds to open the source, and then to wait for a frame
    stop     ends it when set, after the window at hand
    Raises UsageError WINDOW_LENGTH, what `Scorer` raises, and what `marey.video.live` lists.
    """
    for name, value in (("every", every), ("span", span), ("seconds", seconds), ("timeout", timeout)):
        if value is not None and not value > 0:
            raise UsageError("SECONDS", f"{name} must be more than 0 seconds, not {value}")
    scorer = Scorer(model, device, top, windowed=True, chunk=10)
    preprocess, protocol = scorer.preprocess, scorer.protocol
    length = (None, span) if span else clip_length(preprocess)
    newest = Newest(frames=length[0], seconds=length[1], every=every or 0.0)
    until = math.inf

    def stopped() -> bool:
        return (stop is not None and stop.is_set()) or time.monotonic() >= until

    reduce = partial(reduced, preprocess=preprocess, protocol=protocol)
    with reading(source, newest, limits=msgspec.structs.replace(LIMITS, seconds=timeout), reduce=reduce):
        while (window := newest.take(stopped)) is not None:
            until = min(until, time.monotonic() + (seconds or math.inf))
            classes = scorer(preprocess.views(window, protocol))
            start, end = float(window.times[0]), float(window.times[-1]) + 1 / window.fps
            latency = time.monotonic() - window.arrived
            yield Watched(
                *(shown_name(source), start, end, classes, window.notes),
                latency=latency,
                dropped=window.dropped,
            )


def clip_length(preprocess: Preprocess) -> tuple[int | None, float | None]:
    """How long a clip of the network is: (frames, None), or (None, seconds) where it takes them by time."""
    if preprocess.sampling in ("segments", "uniform"):
        raise UsageError(
            "WINDOW_LENGTH",
            "the network takes frames from all over a video; say with --span how long a window lasts",
        )
    if preprocess.target_fps is not None:
        return None, preprocess.frames * preprocess.interval / preprocess.target_fps
    return preprocess.span(), None
