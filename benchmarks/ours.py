"""Marey's side of `decode.py`: what its loaders run, with a decoder and a way to resize."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import torch
from peer import Floats, Job, Pixels

from marey.data.clips import Sample, TestTask, TrainTask, test_task, train_task
from marey.data.lists import Entry
from marey.video.preprocess import Preprocess, Views, normalize
from marey.video.transforms import Resize

COLOURS = Preprocess()  # its mean and std are those of all cases
VIEWS = 10  # that go through the network at once in a test, Marey's default


class Task(NamedTuple):
    """One of Marey's own tasks, and the decoder that shall read it."""

    decoder: str
    task: TrainTask | TestTask

    @property
    def path(self) -> str:
        """What errors name."""
        return self.task.path


def task_of(job: Job, decoder: str, resize: Resize) -> Task:
    """The job as Marey's loaders get it."""
    entry, preprocess = Entry(job.path, (0,)), msgspec.structs.replace(job.preprocess, resize=resize)
    if job.test:
        return Task(decoder, TestTask(entry, job.index, preprocess, preprocess.test))
    return Task(decoder, TrainTask(entry, job.index, 0, 0, preprocess))


def load(task: Task) -> Sample | Views:
    """Decode and transform."""
    os.environ["MAREY_DECODER"] = task.decoder
    return test_task(task.task) if isinstance(task.task, TestTask) else train_task(task.task)[0]


def pixels(loaded: Sample | Views) -> Pixels:
    """uint8 [views, length, side, side, 3], mirrored here so that it equals the peer's."""
    if isinstance(loaded, Views):
        return loaded.batch().numpy()
    return (loaded.frames.flip(2) if loaded.mirrored else loaded.frames)[None].numpy()


def floats(loaded: Sample | Views) -> Iterator[Floats]:
    """float32 [views, 3, length, side, side] as the network gets them: a test's views some at a time."""
    if isinstance(loaded, Views):
        for first in range(0, len(loaded), VIEWS):
            yield normalize(loaded.batch(first, first + VIEWS), COLOURS).numpy()
    else:
        yield normalize(loaded.frames[None], COLOURS, torch.tensor([loaded.mirrored])).numpy()
