"""Clips around key frames with the boxes of the persons in them, loaded in worker processes.

As for class clips the order of an epoch, a process's share and every draw are arithmetic on (seed, epoch,
index): `marey.data.clips` has it. Frames come from folders of frames or straight from videos of any rate; a
video is measured once in each worker and then stays known there.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from marey.data.ava import AvaSet, KeyFrame, KeyFrames
from marey.data.clips import Failure, batch_indices, copy_rng, epoch_order, steps_per_epoch
from marey.data.workers import Pool
from marey.errors import DataError, MareyError, MediaError
from marey.metrics.ava_tables import Ints
from marey.video.preprocess import Preprocess
from marey.video.reader import Video, read_video

KNOWN = 32  # videos that a worker keeps measured, about a megabyte each
LATE = 1e-3  # seconds; containers round time stamps to milliseconds


# Reading by time --------------------------------------------------------------------------------------


class Timeline:
    """A video counted at the rate of its key frames: what `Preprocess.key_clip` reads.

    Frame i is the one shown i / fps seconds after the first, whatever the video's own rate.
    """

    def __init__(self, video: Video, fps: float) -> None:
        self.video, self.fps = video, fps

    def __len__(self) -> int:
        return max(1, math.floor(self.video.seconds * self.fps + LATE))

    def frames(self, indices: Sequence[int] | Ints) -> Tensor:
        """uint8 [T, H, W, 3]; raises as `Video.frames`."""
        times = self.video.timestamps[0] + np.asarray(indices) / self.fps
        return self.video.frames(self.video.at(times + LATE))


@lru_cache(maxsize=KNOWN)
def _measured(path: str, template: str | None, fps: float, changed: int) -> Video:
    folder = os.path.isdir(path)  # noqa: PTH112 - bytes that are no text stay as they are
    video = read_video(path, template=template if folder else None, fps=fps if folder else None)
    video.close()
    return video


def open_timeline(path: str, key_frames: KeyFrames, template: str | None = None) -> Timeline:
    """A file, or a folder of frames extracted at `key_frames.fps`, as a Timeline; close its video after use.

    Raises MediaError as `read_video`, and FRAMES_MISSING where a folder lacks numbers, as all later frames
    would be taken for others.
    """
    try:
        changed = os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        changed = 0  # read_video says why
    video = _measured(path, template, key_frames.fps, changed)
    for note in video.notes:
        if note.code == "FRAMES_MISSING":
            raise MediaError("FRAMES_MISSING", f"{path}: {note.text}; extract the frames again")
    return Timeline(video, key_frames.fps)


# Loading one sample -----------------------------------------------------------------------------------


class KeyTask(msgspec.Struct, frozen=True):
    """A key frame to load; for training with a seed, for a test without."""

    frame: KeyFrame
    index: int
    path: str
    template: str | None
    key_frames: KeyFrames
    preprocess: Preprocess
    seed: int | None = None
    epoch: int = 0


class KeySample(NamedTuple):
    """A loaded key frame, as `Preprocess.key_clip` gives it.

    frames     uint8 [T, h, w, 3], not yet mirrored
    mirrored   whether `normalize` shall mirror them
    boxes      float32 [n, 4], the persons in pixels of the mirrored frames
    labels     float32 [n, num_classes]; actions that a mirror exchanges are exchanged
    proposals  float32 [m, 4], likewise in pixels
    scores     float32 [m], theirs, 1 where the file has none
    """

    frames: Tensor
    mirrored: bool
    boxes: Tensor
    labels: Tensor
    proposals: Tensor
    scores: Tensor


def key_task(task: KeyTask) -> KeySample:
    """Load the clip around a key frame.

    Raises as `open_timeline`, and MediaError MEDIA_TRUNCATED where the file ends before the key frame.
    """
    frame, key_frames, preprocess = task.frame, task.key_frames, task.preprocess
    timeline = open_timeline(task.path, key_frames, task.template)
    centre = key_frames.frame(frame.second)
    if not 0 <= centre < len(timeline):
        end = key_frames.start + timeline.video.seconds
        raise MediaError(
            "MEDIA_TRUNCATED",
            f"{task.path} has no second {frame.second:g}: it shows {key_frames.start:g} to {end:.2f} s; "
            "extract it again, or correct start and rate of the key frames",
        )
    rng = None if task.seed is None else copy_rng(task.seed, task.epoch, task.index, 0)
    try:
        clip = preprocess.key_clip(
            timeline,
            centre,
            (frame.boxes, frame.proposals),
            rng=rng,
            last=key_frames.limit(len(timeline)),
        )
    finally:
        timeline.video.close()
    boxes, proposals = map(torch.from_numpy, clip.boxes)
    labels = frame.labels
    if clip.mirrored and preprocess.flip_labels:
        labels = labels[:, [preprocess.mirror_label(column) for column in range(labels.shape[1])]]
    scores = np.ones(len(frame.proposals)) if frame.scores is None else frame.scores
    return KeySample(
        clip.frames,
        clip.mirrored,
        boxes,
        torch.from_numpy(np.ascontiguousarray(labels)),
        proposals,
        torch.from_numpy(scores.astype(np.float32)),
    )


def _task(
    frames: AvaSet,
    index: int,
    key_frames: KeyFrames,
    preprocess: Preprocess,
    seed: int | None = None,
    epoch: int = 0,
) -> KeyTask:
    frame = frames[index]
    try:
        path = frames.media[frame.video]
    except KeyError:
        raise DataError(
            "AVA_MEDIA", f"no file or folder is known for video {frame.video!r}; see `find_media`"
        ) from None
    return KeyTask(frame, index, path, frames.template, key_frames, preprocess, seed, epoch)


# Loading batches --------------------------------------------------------------------------------------


class KeyBatch(NamedTuple):
    """The key frames of a step that could be loaded, B of them, perhaps none.

    frames     uint8 [B, T, crop, crop, 3], not yet mirrored
    mirrored   bool [B], which `normalize` shall mirror
    boxes, labels, proposals, scores   B tensors each, see KeySample
    keys       their names
    indices    int64 [B], places in the set
    failures   the key frames that are missing, counted and named
    """

    frames: Tensor
    mirrored: Tensor
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    proposals: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    keys: tuple[str, ...]
    indices: Tensor
    failures: tuple[Failure, ...]


def key_batches(
    frames: AvaSet,
    preprocess: Preprocess,
    key_frames: KeyFrames,
    *,
    pool: Pool,
    batch: int,
    seed: int,
    epoch: int,
    first_step: int = 0,
    world: int = 1,
    rank: int = 0,
    smallest: float = 0.0,
) -> Iterator[KeyBatch]:
    """The batches of one process and epoch, from `first_step` on; the pool works two batches ahead.

    smallest  persons of whom less than this is left in the crop, in pixels of width or height, are dropped;
              0 keeps them all, as published: those outside train by boxes without area

    Raises DataError AVA_MEDIA, and any error that is not the file's.
    """
    order = epoch_order(len(frames), seed=seed, epoch=epoch)
    steps = range(first_step, steps_per_epoch(len(frames), batch, world))
    chosen = (batch_indices(order, step, batch, world, rank).tolist() for step in steps)
    tasks = (_task(frames, i, key_frames, preprocess, seed, epoch) for indices in chosen for i in indices)
    results = pool.run(key_task, tasks, prefetch=2 * batch + pool.workers)
    for step in steps:
        taken = islice(results, len(batch_indices(order, step, batch, world, rank)))
        good, failures = list[tuple[KeyTask, KeySample]](), list[Failure]()
        for task, result in taken:
            if isinstance(result, MediaError):
                failures.append(Failure(task.index, task.path, result.code, result.message))
            elif isinstance(result, MareyError):
                raise result  # not the file's fault: never skip it
            else:
                good.append((task, _without_small(result, smallest)))
        yield _collate(good, failures, preprocess)


def _without_small(sample: KeySample, smallest: float) -> KeySample:
    if not smallest:
        return sample
    kept = (sample.boxes[:, 2:] - sample.boxes[:, :2]).min(1).values >= smallest
    return sample._replace(boxes=sample.boxes[kept], labels=sample.labels[kept])


def _collate(
    good: list[tuple[KeyTask, KeySample]], failures: list[Failure], preprocess: Preprocess
) -> KeyBatch:
    samples = [sample for _, sample in good]
    empty = torch.empty((0, preprocess.frames, preprocess.crop, preprocess.crop, 3), dtype=torch.uint8)
    return KeyBatch(
        torch.stack([sample.frames for sample in samples]) if samples else empty,
        torch.tensor([sample.mirrored for sample in samples], dtype=torch.bool),
        tuple(sample.boxes for sample in samples),
        tuple(sample.labels for sample in samples),
        tuple(sample.proposals for sample in samples),
        tuple(sample.scores for sample in samples),
        tuple(task.frame.key for task, _ in good),
        torch.tensor([task.index for task, _ in good], dtype=torch.int64),
        tuple(failures),
    )


def key_tests(
    frames: AvaSet,
    indices: Iterable[int] | Ints,
    preprocess: Preprocess,
    key_frames: KeyFrames,
    *,
    pool: Pool,
) -> Iterator[tuple[int, KeySample | MediaError]]:
    """Each index with the whole-frame clip of its key frame, or why there is none; other errors are raised.

    `marey.data.clips.test_indices(len(frames), world, rank)` gives a process its share, so that over all
    processes every key frame is tested once.
    """
    tasks = (_task(frames, int(index), key_frames, preprocess) for index in indices)
    for task, result in pool.run(key_task, tasks, prefetch=pool.workers + 1):
        if isinstance(result, MareyError) and not isinstance(result, MediaError):
            raise result
        yield task.index, result
