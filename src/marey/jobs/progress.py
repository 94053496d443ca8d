"""How far a long job is: a bar on a terminal, a line now and then elsewhere; always on stderr."""

import sys
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the loop imports Fabric, which takes seconds
    from marey.training.loop import Step


class Progress:
    """Call it with (done, total); it prints rate and time left.

    quiet processes print nothing. Without a terminal a line comes every ten seconds and at the end.
    """

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self.what, self.quiet = what, quiet
        self.started = self.shown = time.monotonic()

    def __call__(self, done: float, total: int) -> None:
        """Show that `done` of `total` items are finished; a fraction is an item's part."""
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if self.quiet or (done < total and now - self.shown < (0.2 if terminal else 10)):
            return
        self.shown = now
        rate = done / max(now - self.started, 1e-9)
        shown = f"{done:.0f}" if done == int(done) else f"{done:.2f}"
        speed = f"{rate:.1f}/s" if rate >= 1 or not done else f"{1 / rate:.1f} s each"
        text = f"{self.what} {shown}/{total}  {speed}  left {duration((total - done) / max(rate, 1e-9))}"
        if terminal:
            print(f"\r\033[K{text}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Window:
    """Sums since the last logged row."""

    def __init__(
        self,
        steps: int = 0,
        clips: int = 0,
        loss: float = 0.0,
        waited: float = 0.0,
        seconds: float = 0.0,
        terms: Mapping[str, Sequence[float]] = MappingProxyType({}),
    ) -> None:
        self.steps, self.clips, self.loss, self.waited, self.seconds = steps, clips, loss, waited, seconds
        self.terms = {name: tuple(sums) for name, sums in terms.items()}  # weighted sum, clips that had it

    def add(self, step: "Step") -> None:
        """Count one step."""
        self.steps += 1
        self.clips += step.clips
        self.loss += step.loss * step.clips
        self.waited += step.waited
        self.seconds += step.seconds
        for name, value in step.terms.items():
            total, clips = self.terms.get(name, (0.0, 0))
            self.terms[name] = total + value * step.clips, clips + step.clips

    def row(self) -> dict[str, float]:
        """Means of the window, for metrics.csv."""
        seconds = max(self.seconds, 1e-9)
        return {
            "loss": self.loss / max(self.clips, 1),
            "clips_per_second": self.clips / seconds,
            "data_share": self.waited / seconds,
            **{name: total / max(clips, 1) for name, (total, clips) in self.terms.items()},
        }

    def plain(self) -> dict[str, Any]:
        """For the saved state."""
        return dict(vars(self))
