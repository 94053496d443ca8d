"""`marey predict`: videos in, classes out; whole videos by the network's test protocol, or a timeline."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from marey.errors import MareyError, UsageError
from marey.jobs.setup_features import takes_features
from marey.models.fold import folded
from marey.training.devices import device_of
from marey.video.preprocess import Average, Preprocess, Views, average_views, normalize
from marey.video.reader import Video, read_video
from marey.video.source import expand
from marey.weights.create import open_model


class Score(msgspec.Struct, frozen=True):
    """One class and how sure the network is of it, a probability (0..1)."""

    label: int
    name: str
    score: float


class Prediction(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was seen in a video, or in its seconds start..end; `code` and `message` if it could not be read.

    notes  what was unusual about the file, each "CODE: text"
    """

    source: str
    start: float | None = None
    end: float | None = None
    classes: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()
    code: str | None = None
    message: str | None = None

    def top(self, count: int = 5) -> list[tuple[float, str]]:
        """The best classes as (score, name)."""
        return [(c.score, c.name) for c in self.classes[:count]]

    def json(self) -> str:
        """One line of JSON."""
        return json.dumps(msgspec.to_builtins(self))


def predict(
    model: nn.Module | str | os.PathLike[str],
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    top: int = 5,
    every: float | None = None,
    span: float | None = None,
    template: str | None = None,
    device: str | None = None,
    views_per_forward: int = 10,
) -> Iterator[Prediction]:
    """Classes of each source, in order; a source that cannot be read gives a Prediction with its error code.

    model    a network made by `create_model`, a checkpoint that `marey train` wrote, or a release's name
    sources  files, folders, globs, lists (.txt, .csv, .jsonl), "-" for a list on standard input
    every    seconds: a timeline of windows that start so far apart, each scored alone; None: whole videos
    span     seconds a window lasts; None: as long as `every`, and at least one clip of the network
    device   "cpu", "cuda", ...; None: the GPU if there is one
    """
    if every is not None and not every > 0:
        raise UsageError("EVERY", f"windows must start more than 0 seconds apart, not {every}")
    scorer = Scorer(model, device, top, windowed=every is not None, chunk=views_per_forward)
    names = [sources] if isinstance(sources, str | os.PathLike) else sources
    for source in expand(names, template=template):
        try:
            with read_video(source.path, template=source.template) as video:
                for start, end, part in windows(video, scorer.preprocess, every, span):
                    views = scorer.preprocess.views(video, scorer.protocol, part)
                    notes = tuple(map("{0.code}: {0.text}".format, video.notes))
                    yield Prediction(source.name, start, end, scorer(views), notes)
        except MareyError as error:
            yield Prediction(source.name, code=error.code, message=error.message)


class Scorer:
    """A network that is ready to score views: folded, on its device.

    windowed  views are those of windows, by the validation protocol, else of whole videos by the test's

    Raises UsageError NO_CLIPS for networks that take something else, and what opening the model raises.
    """

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str],
        device: str | None,
        top: int,
        *,
        windowed: bool,
        chunk: int,
    ) -> None:
        opened = model if isinstance(model, nn.Module) else open_model(model)
        takes = None
        if takes_features(opened):
            takes = "features of frames; marey.jobs.tags.tag_records gives their tags"
        elif hasattr(opened, "box_features"):
            takes = "boxes of persons; marey.jobs.predict_boxes.predict_boxes runs it"
        if takes:
            raise UsageError("NO_CLIPS", f"the network takes {takes}")
        self.device = device_of(device)
        self.network: Any = folded(opened).to(self.device)
        self.preprocess = cast("Preprocess", self.network.preprocess)
        self.protocol = self.preprocess.val if windowed else self.preprocess.test
        self.top, self.chunk = top, chunk
        data = getattr(self.network, "metadata", {}).get("recipe", {}).get("data", {})
        self.several = bool(data.get("multi_label")) and data.get("labels", "each") == "each"

    def __call__(self, views: Views) -> tuple[Score, ...]:
        """The best classes of the views together, best first."""
        logits = view_logits(self.network, views, self.preprocess, self.device, self.chunk)
        if self.preprocess.average == "score":
            logits = logits.mean(0, keepdim=True)
        how: Average = "max" if self.preprocess.average == "max" else "prob"
        scores = average_views(logits, how, multi_label=self.several).numpy()
        names, best = self.network.class_names, np.argsort(-scores, kind="stable")[: self.top].tolist()
        return tuple(Score(c, names[c] if names else str(c), float(scores[c])) for c in best)


def windows(
    video: Video, preprocess: Preprocess, every: float | None, span: float | None
) -> Iterator[tuple[float, float, range]]:
    """(start, end, frame numbers) of the whole video, or of each window, in seconds from its first frame."""
    if every is None:
        yield 0.0, video.seconds, range(len(video))
        return
    clip = preprocess.span(video.fps) / video.fps
    length = span or max(every, clip)
    times = video.timestamps - video.timestamps[0]
    for start in np.arange(0.0, max(video.seconds, 1e-6), every):
        first, last = np.searchsorted(times, [start - 1e-9, start + length - 1e-9])
        if last > first:
            yield float(start), float(min(start + length, video.seconds)), range(int(first), int(last))


@torch.inference_mode()
def view_logits(
    model: nn.Module, views: Views, preprocess: Preprocess, device: torch.device, chunk: int = 10
) -> Tensor:
    """Raw logits of the views of one video, float32 [V, C] on the CPU.

    Views go through the network `chunk` at a time, apart from other videos.
    """
    logits = []
    for start in range(0, len(views), chunk):
        part = views.batch(start, start + chunk).to(device)
        logits.append(model(normalize(part, preprocess)).float().cpu())
    return torch.cat(logits)
