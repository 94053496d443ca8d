"""The peer: decord and OpenCV, used as MMAction2's pipelines use them, frame by frame in the worker.

Order and arithmetic are those of open-mmlab/mmaction2 (v0.24.1 and 1.x) as their configs and transforms
document them: open with one thread, fetch the frames of all clips in one call, resize every frame to the
short side, crop, resize the crop, mirror, then either stack uint8 (1.x, which normalises on the device) or
normalise every frame and stack floats (0.x). The random draws are Marey's, so that both do the same work.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import decord
import numpy as np
import numpy.typing as npt

from marey.video.preprocess import Preprocess
from marey.video.sampling import generator
from marey.video.transforms import area_crop, random_crop

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

cv2.setNumThreads(1)


class Job(NamedTuple):
    """A clip to load: `index` selects its random draws; test: all views of the test protocol instead."""

    path: str
    index: int
    preprocess: Preprocess
    test: bool = False


class Loaded(NamedTuple):
    """Frames uint8 [side, side, 3] in the order view, time; `length` of them make a view."""

    frames: list[Pixels]
    length: int
    preprocess: Preprocess


def load(job: Job) -> Loaded:
    """Decode and transform, one frame after the other."""
    return _test(job) if job.test else _train(job)


def _train(job: Job) -> Loaded:
    p, rng = job.preprocess, generator(0, 0, job.index)
    reader = _opened(job)
    index = p.pick_train(len(reader), rng, reader.get_avg_fps())
    frames = _resized(reader.get_batch(index).asnumpy(), p.short_side)
    size = frames[0].shape[1::-1]
    crop = area_crop(size, rng) if p.train_crop == "area" else random_crop(size, p.crop, rng)
    left, top, right, bottom = crop
    frames = [frame[top:bottom, left:right] for frame in frames]
    if p.train_crop == "area":
        frames = [cv2.resize(frame, (p.crop, p.crop), interpolation=cv2.INTER_LINEAR) for frame in frames]
    if rng.random() < p.flip:
        frames = [cv2.flip(frame, 1) for frame in frames]
    return Loaded(frames, len(frames), p)


def _test(job: Job) -> Loaded:
    p, reader = job.preprocess, _opened(job)
    index = p.pick_test(len(reader), p.test, reader.get_avg_fps())
    side = p.test.crop or p.crop
    frames = _resized(reader.get_batch(index.ravel()).asnumpy(), p.short_side)
    step = (frames[0].shape[1] - side) // 2  # wide frames: left, right, middle
    frames = [frame[:side, left : left + side] for left in (0, 2 * step, step) for frame in frames]
    return Loaded(frames, index.shape[1], p)


def _opened(job: Job) -> Any:
    return decord.VideoReader(job.path, ctx=decord.cpu(0), num_threads=1)


def _resized(frames: Pixels, short_side: int | None) -> list[Pixels]:
    height, width = frames.shape[1:3]
    factor = (short_side or min(width, height)) / min(width, height)
    size = int(width * factor + 0.5), int(height * factor + 0.5)
    return [cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in frames]


def pixels(loaded: Loaded) -> Pixels:
    """What a worker of 1.x sends: uint8 [views, length, side, side, 3]."""
    frames = np.stack(loaded.frames)
    return frames.reshape(-1, loaded.length, *frames.shape[1:])


def floats(loaded: Loaded) -> Iterator[Floats]:
    """What a worker of 0.x sends: float32 [views, 3, length, side, side], in one piece."""
    p = loaded.preprocess
    factors = [1 / value for value in p.std]
    frames = np.stack([_normalized(frame, p.mean, factors) for frame in loaded.frames])
    yield frames.reshape(-1, loaded.length, *frames.shape[1:]).transpose(0, 4, 1, 2, 3)


def _normalized(frame: Pixels, mean: tuple[float, ...], factors: list[float]) -> Floats:
    image = frame.astype(np.float32)
    cv2.subtract(image, (*mean, 0), image)
    cv2.multiply(image, (*factors, 0), image)
    return image


class Videos:
    """A data set for `torch.utils.data.DataLoader` whose sampler gives the jobs themselves."""

    def __getitem__(self, job: Job) -> Pixels:
        return pixels(load(job))[0]
