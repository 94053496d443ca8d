"""A list becomes samples: which clips a step takes, and loading them in worker processes.

The first half is arithmetic: the order of an epoch depends on seed and epoch, the share of a process on its
rank, and a sample's draws on (seed, epoch, index), so that a run continues at any step as if it had never
stopped, with any number of workers.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from marey.data.labels import targets
from marey.data.lists import ClipList, Entry
from marey.data.workers import Pool
from marey.errors import DataError, MareyError, MediaError, UsageError
from marey.video.preprocess import Preprocess, Protocol, Views
from marey.video.reader import ROUNDING, Video, read_video
from marey.video.sampling import generator

Ints = npt.NDArray[np.int64]
_ORDER = 2**64 - 1  # the order's own stream of random numbers, where no sample's index reaches


# Which samples ----------------------------------------------------------------------------------------


def epoch_order(n: int, *, seed: int, epoch: int, shuffle: bool = True) -> Ints:
    """int64 [n]: the samples 0 .. n-1 in the order of an epoch."""
    return generator(seed, epoch, _ORDER).permutation(n) if shuffle else np.arange(n)


def class_order(labels: Ints, *, power: float, seed: int, epoch: int) -> Ints:
    """int64 [n]: as many samples as there are, drawn by class with replacement.

    A class is drawn with a probability proportional to (its share of the labels [n]) ** power, then one of
    its samples: 1 keeps the shares, 0 makes them equal (`sample_by_class` of
    open-mmlab/mmaction2@v0.24.1:mmaction/datasets/base.py).
    """
    if not len(labels):
        return np.arange(0)
    classes, counts = np.unique(labels, return_counts=True)
    weights = (counts / len(labels)) ** power
    rng = generator(seed, epoch, _ORDER)
    drawn = rng.choice(len(classes), size=len(labels), p=weights / weights.sum())
    members = np.argsort(labels, kind="stable")  # the samples of the first class, of the second, ...
    first = np.cumsum(counts) - counts
    order: Ints = members[first[drawn] + rng.integers(0, counts[drawn])]
    return order


def steps_per_epoch(n: int, batch: int, world: int = 1) -> int:
    """Steps that take n samples, `batch` in each of `world` processes at a time; the last may take fewer."""
    return -(-n // (batch * world))


def batch_indices(order: Ints, step: int, batch: int, world: int = 1, rank: int = 0) -> Ints:
    """int64: the samples of process `rank` in a step; every process has as many.

    A step takes batch * world consecutive entries of the order, a process every world-th of them. What the
    last step lacks to a multiple of `world` is taken from the order's head.
    """
    together = order[step * batch * world : (step + 1) * batch * world]
    missing = -len(together) % world
    return np.concatenate([together, np.resize(order, missing)])[rank::world]


def test_indices(n: int, world: int = 1, rank: int = 0) -> Ints:
    """int64: the samples that process `rank` scores; over all ranks each of 0 .. n-1 once."""
    return np.arange(rank, n, world)


# Loading one sample -----------------------------------------------------------------------------------


class TrainTask(msgspec.Struct, frozen=True):
    """A sample to load for training, as so many clips."""

    entry: Entry
    index: int
    seed: int
    epoch: int
    preprocess: Preprocess
    copies: int = 1

    @property
    def path(self) -> str:
        """What errors name."""
        return self.entry.path


class Sample(NamedTuple):
    """A loaded sample: frames uint8 [T, H, W, 3], its labels as shown (exchanged by a mirror)."""

    frames: Tensor
    mirrored: bool
    labels: tuple[int, ...]
    padded: bool


class TestTask(msgspec.Struct, frozen=True):
    """A sample whose views are to be loaded."""

    entry: Entry
    index: int
    preprocess: Preprocess
    protocol: Protocol

    @property
    def path(self) -> str:
        """What errors name."""
        return self.entry.path


def train_task(task: TrainTask) -> list[Sample]:
    """Load a random clip, cut `copies` times, by draws from `copy_rng`. Raises as `whole_part`."""
    entry, preprocess = task.entry, task.preprocess
    rngs = [copy_rng(task.seed, task.epoch, task.index, copy) for copy in range(task.copies)]
    with _opened(entry) as video:
        part = whole_part(entry, video)
        clips = preprocess.train_copies(video, rngs, part)
        padded = len(part) < preprocess.span(video.fps)
    shown = entry.labels
    mirrored = tuple(preprocess.mirror_label(label) for label in shown)
    return [
        Sample(clip.frames, clip.mirrored, mirrored if clip.mirrored else shown, padded) for clip in clips
    ]


def copy_rng(seed: int, epoch: int, index: int, copy: int, *, device: bool = False) -> np.random.Generator:
    """The draws of a copy of a sample: those of its loading, or those of what its device does to it."""
    return generator(seed, epoch, index, 2 * copy + device)


def test_task(task: TestTask) -> Views:
    """Load the views of a protocol. Raises as `whole_part`."""
    with _opened(task.entry) as video:
        return task.preprocess.views(video, task.protocol, whole_part(task.entry, video))


def _opened(entry: Entry) -> Video:
    folder = os.path.isdir(entry.path)  # noqa: PTH112 - bytes that are no text stay as they are
    return read_video(entry.path, template=entry.template if folder else None)


def whole_part(entry: Entry, video: Video) -> range:
    """The frames of the video that the entry means.

    Raises MediaError MEDIA_TRUNCATED when the file ends before they do (a list's figures are made on whole
    videos, so half a video counts as a bad file), EMPTY when there are none.
    """
    for note in video.notes:
        if note.code == "MEDIA_TRUNCATED":
            raise MediaError(note.code, f"{entry.path}: {note.text}")
    start, stop = entry.start, len(video) if entry.total is None else entry.start + entry.total
    if entry.seconds is not None:
        times = video.timestamps - video.timestamps[:1] + ROUNDING
        start, stop = (int(place) for place in np.searchsorted(times, entry.seconds))
    if stop > len(video):
        raise MediaError(
            "MEDIA_TRUNCATED",
            f"{entry.path} has {len(video)} frames, but the list means {start} to {stop - 1}",
        )
    if start >= stop:
        raise MediaError("EMPTY", f"{entry.path}: no frame from {start} on; the video has {len(video)}")
    return range(start, stop)


# Loading batches --------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """A sample that could not be loaded; index is its place in the list."""

    index: int  # type: ignore[assignment]  # tuples have a method of this name
    path: str
    code: str
    message: str


class Batch(NamedTuple):
    """The clips of a step that could be loaded, B of them, perhaps none; the copies of a sample lie together.

    frames    uint8 [B, T, H, W, 3], not yet mirrored
    mirrored  bool [B], which of them `normalize` shall mirror
    targets   int64 [B], or float32 [B, num_classes] of 0 and 1 (multi-label); those of the mirrored clip
    indices   int64 [B], places in the list
    copies    int64 [B], number of each clip among the copies of its sample
    failures  the samples that are missing, counted and named
    padded    how many had fewer frames than the network's window, filled up by the out_of_bound rule
    """

    frames: Tensor
    mirrored: Tensor
    targets: Tensor
    indices: Tensor
    copies: Tensor
    failures: tuple[Failure, ...]
    padded: int


def train_batches(
    clips: ClipList,
    preprocess: Preprocess,
    *,
    pool: Pool,
    batch: int,
    seed: int,
    epoch: int,
    first_step: int = 0,
    world: int = 1,
    rank: int = 0,
    num_classes: int,
    multi_label: bool,
    class_power: float | None = None,
    copies: int = 1,
    draws: int | None = None,
) -> Iterator[Batch]:
    """The batches of one process and epoch, from `first_step` on; the pool works two batches ahead.

    batch        samples of a step; each gives `copies` clips
    draws        the epoch whose draws cut the clips; None: this one's own
    class_power  None: every sample once; else `class_order`'s power
    Raises DataError LABEL_COUNT or LABEL_RANGE, and any error that is not the file's.
    """
    if class_power is None:
        order = epoch_order(len(clips), seed=seed, epoch=epoch)
    else:
        order = class_order(clips.single_labels(), power=class_power, seed=seed, epoch=epoch)
    steps = range(first_step, steps_per_epoch(len(clips), batch, world))
    chosen = (batch_indices(order, step, batch, world, rank).tolist() for step in steps)
    drawn = epoch if draws is None else draws
    tasks = (TrainTask(clips[i], i, seed, drawn, preprocess, copies) for indices in chosen for i in indices)
    results = pool.run(train_task, tasks, prefetch=2 * batch + pool.workers)
    for step in steps:
        taken = list(islice(results, len(batch_indices(order, step, batch, world, rank))))
        yield _collate(taken, preprocess, clips, num_classes, multi_label)


def _collate(
    taken: Iterable[tuple[TrainTask, list[Sample] | MareyError]],
    preprocess: Preprocess,
    clips: ClipList,
    num_classes: int,
    multi_label: bool,
) -> Batch:
    good: list[tuple[int, int, Sample]] = []
    failures: list[Failure] = []
    for task, result in taken:
        if isinstance(result, MediaError):
            failures.append(Failure(task.index, task.path, result.code, result.message))
        elif isinstance(result, MareyError):
            raise result  # not the file's fault: never skip it
        else:
            good += [(task.index, copy, sample) for copy, sample in enumerate(result)]
    hot = (num_classes,) if multi_label else ()
    return Batch(
        frames=_stack(
            [sample.frames for *_, sample in good],
            (preprocess.frames, *[preprocess.crop] * 2, 3),
            torch.uint8,
        ),
        mirrored=torch.tensor([sample.mirrored for *_, sample in good], dtype=torch.bool),
        targets=_stack(
            [_target(clips, index, sample.labels, num_classes, multi_label) for index, _, sample in good],
            hot,
            torch.float32 if multi_label else torch.int64,
        ),
        indices=torch.tensor([index for index, *_ in good], dtype=torch.int64),
        copies=torch.tensor([copy for _, copy, _ in good], dtype=torch.int64),
        failures=tuple(failures),
        padded=sum(sample.padded for *_, sample in good),
    )


def _stack(tensors: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.stack(tensors) if tensors else torch.empty((0, *shape), dtype=dtype)


def _target(
    clips: ClipList, index: int, labels: tuple[int, ...], num_classes: int, multi_label: bool
) -> Tensor:
    try:
        return targets(labels, num_classes, multi_label)
    except DataError as error:
        raise DataError(error.code, f"{clips.where(index)}: {error.message}") from error


def test_views(
    clips: ClipList, indices: Iterable[int] | Ints, preprocess: Preprocess, protocol: Protocol, *, pool: Pool
) -> Iterator[tuple[int, Views | MareyError]]:
    """Each index with the views of its clip, or the MediaError why there are none; others are raised."""
    tasks = (TestTask(clips[int(i)], int(i), preprocess, protocol) for i in indices)
    for task, result in pool.run(test_task, tasks, prefetch=pool.workers + 1):
        if isinstance(result, MareyError) and not isinstance(result, MediaError):
            raise result
        yield task.index, result


# Counting what failed ---------------------------------------------------------------------------------


class Failures:
    """The files of a list that could not be read, each counted once, up to a limit.

    limit   largest share of the listed entries that may be bad, 0..1
    listed  number of entries of the list
    what    what the list is called in the error
    """

    def __init__(self, *, limit: float, listed: int, what: str = "the list") -> None:
        if not 0 <= limit <= 1:
            raise UsageError("MAX_BAD", f"the share of bad files is {limit}; it must be in 0..1")
        self.limit, self.listed, self.what = limit, listed, what
        self.files: dict[str, Failure] = {}
        self.samples = 0

    @property
    def count(self) -> int:
        """Bad files; `samples` counts how often one was skipped."""
        return len(self.files)

    @property
    def share(self) -> float:
        """Bad files among the listed entries, 0..1."""
        return self.count / max(self.listed, 1)

    def add(self, failure: Failure) -> bool:
        """Count a failure; whether its file is new. Raises DataError TOO_MANY_BAD beyond the limit."""
        self.samples += 1
        if failure.path in self.files:
            return False
        self.files[failure.path] = failure
        if self.share > self.limit:
            first = "; ".join(f"{bad.path}: {bad.code}" for bad in islice(self.files.values(), 3))
            raise DataError(
                "TOO_MANY_BAD",
                f"{self.count} of {self.listed} files of {self.what} cannot be read ({first}), more than the "
                f"{self.limit:.2%} allowed; mend or remove them (`marey data check` finds all) or allow more",
            )
        return True

    def plain(self) -> dict[str, Any]:
        """What `restore` needs, as numbers, text and lists."""
        return {"samples": self.samples, "files": [list(failure) for failure in self.files.values()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stand where `plain` was called."""
        self.samples = state["samples"]
        self.files = {failure[1]: Failure(*failure) for failure in state["files"]}


def check_complete(failed: Sequence[Failure], listed: int, allowed: float, what: str = "files") -> None:
    """Refuse what was measured on a part only. Raises DataError INCOMPLETE.

    allowed  largest share of what is listed that may be missing, but never all of it
    """
    if failed and (len(failed) > allowed * listed or len(failed) == listed):
        first = "; ".join(f"{one.path}: {one.code}" for one in failed[:3])
        raise DataError(
            "INCOMPLETE",
            f"{len(failed)} of {listed} {what} cannot be read ({first}); mend or remove them, or allow a "
            f"share with data.max_bad_test={len(failed) / listed:.3g}",
        )
