"""Records of frame features whose tags are planted: like YouTube-8M's in form, for tests and benchmarks.

A tag shows in the frames by a mean of its own, in each stream. Few tags are frequent and many rare, a
video has several, each of them shows in a part of its frames, and other frames show nothing of any. A
few labels are wrong. So a network has to find the frames that tell, and none reaches a GAP of 1.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marey.data.tfrecord import RecordWriter
from marey.data.youtube8m import Layout, Video, quantise, record
from marey.errors import UsageError
from marey.video.sampling import generator


class Planted(NamedTuple):
    """Folders of records, each with `shards` TFRecord files."""

    train: Path
    val: Path
    test: Path


def write_planted_records(
    folder: str | os.PathLike[str],
    *,
    train: int = 2000,
    val: int = 500,
    test: int = 500,
    shards: int = 8,
    layout: Layout | None = None,
    frames: tuple[int, int] = (10, 40),
    noise: float = 1.0,
    wrong: float = 0.05,
    seed: int = 0,
) -> Planted:
    """Write `train/`, `val/` and `test/` with so many videos each; the same bytes for the same arguments.

    layout  widths of the streams and number of tags; None: 64, 16 and 50
    frames  fewest and most frames of a video
    noise   standard deviation of a feature around its mean; the means of tags have 0.5
    wrong   share of the labels that are drawn anew, whatever the frames show
    """
    layout = layout or Layout(rgb=64, audio=16, num_classes=50)
    if not 0 < frames[0] <= frames[1] or layout.num_classes < 4 or shards < 1:
        raise UsageError("BAD_VALUE", "planted records have 1 or more frames and shards, and 4 or more tags")
    folder = Path(folder)
    tags = _Tags(layout, seed)
    for number, (name, videos) in enumerate((("train", train), ("val", val), ("test", test)), start=1):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for shard in range(shards):
            with RecordWriter(folder / name / f"{name}{shard:04}.tfrecord") as writer:
                for video in range(shard, videos, shards):
                    rng = generator(seed, number, video)
                    writer.write(record(tags.video(f"{name}{video:06}", rng, frames, noise, wrong)))
    return Planted(folder / "train", folder / "val", folder / "test")


class _Tags:
    """What the tags of a set look like, and how frequent they are."""

    def __init__(self, layout: Layout, seed: int) -> None:
        rng = generator(seed, 0, 0)
        self.layout = layout
        count = layout.num_classes
        self.means = rng.normal(0, 0.5, (count, layout.rgb + layout.audio))
        self.share = 1 / np.arange(1, count + 1) ** 0.8
        self.share /= self.share.sum()

    def video(
        self, name: str, rng: np.random.Generator, frames: tuple[int, int], noise: float, wrong: float
    ) -> Video:
        """One video: 1 to 4 tags, each in its part of the frames, a third of which show none."""
        shown = rng.choice(len(self.share), size=int(rng.integers(1, 5)), replace=False, p=self.share)
        length = int(rng.integers(frames[0], frames[1] + 1))
        which = rng.choice(shown, size=length)
        which[: len(shown)] = shown[:length]
        values = np.where(rng.random(length)[:, None] < 1 / 3, 0.0, self.means[which])
        values = values + rng.normal(0, noise, values.shape)
        labels = np.where(
            rng.random(len(shown)) < wrong, rng.choice(len(self.share), len(shown), p=self.share), shown
        )
        stored, wide = quantise(values), self.layout.rgb
        return Video(name, tuple(sorted(set(labels.tolist()))), stored[:, :wide], stored[:, wide:])
