"""What stored frames will take and how far they are off, from a few videos, before any work starts."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from marey.data.workers import Pool
from marey.errors import EnvironmentFault, MareyError
from marey.jobs.frames_store import (
    Store,
    Task,
    encode_video,
    opened,
    pictures,
    times_of,
    wanted,
    write_picture,
)
from marey.video.reader import read_video
from marey.video.transforms import resize, to_short_side

SAMPLED = 8  # videos
RUN = 24  # consecutive frames of each, two groups of the H.264 store
SEEN = 256  # short side at which stores are compared: what recipes resize to first
BLOCK = 4096  # bytes that a file on disk is a multiple of
RESERVE = 1.1  # of the estimate


class Sample(msgspec.Struct, frozen=True):
    """A video to look at, and how its frames might be stored."""

    task: Task
    stores: tuple[Store, ...]

    @property
    def path(self) -> str:
        """What errors name."""
        return self.task.path


class Seen(NamedTuple):
    """Of one store: frames the video gives, bytes they take, and the errors of the few that were stored."""

    frames: int
    bytes: float
    absolute: float
    square: float
    values: int


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a store takes for all videos.

    frames, bytes  of all videos; bytes as they lie on disk
    levels         mean distance of its pixels from those of the PNG store, in grey levels of 0..255, after
                   both were resized to a short side of 256; 0 where that is the store
    psnr           the same as peak signal-to-noise ratio in dB; None: there is no difference
    """

    store: str
    frames: int
    bytes: int
    levels: float
    psnr: float | None


class Forecast(NamedTuple):
    """The stores compared, the one that is wanted first; how many videos were looked at, of how many."""

    estimates: tuple[Estimate, ...]
    sampled: int
    videos: int


def forecast(tasks: Sequence[Task], sizes: Sequence[int], pool: Pool) -> Forecast:
    """Look at some videos in full and scale up by the sizes of all files, in bytes.

    The first store is that of the tasks; the others are the usual ones at the same rate. Videos that cannot
    be read are left out; without any there are no estimates.
    """
    if not tasks:
        return Forecast((), 0, 0)
    first = tasks[0].store
    stores = (first, *(one for one in usual(first.fps) if one.about() != first.about()))
    places = np.unique(np.linspace(0, len(tasks) - 1, min(SAMPLED, len(tasks))).round().astype(int))
    samples = [Sample(tasks[place], stores) for place in places.tolist()]
    looked = []
    for place, (_, found) in zip(places, pool.run(look, samples), strict=True):
        if isinstance(found, MareyError):
            if found.code == "INTERNAL":
                raise found
            continue
        looked.append((int(sizes[place]), found))
    if not looked:
        return Forecast((), 0, len(tasks))
    scale = sum(max(size, 0) for size in sizes) / max(sum(size for size, _ in looked), 1)
    rows = [[seen[number] for _, seen in looked] for number in range(len(stores))]
    estimates = tuple(_estimate(store, row, scale) for store, row in zip(stores, rows, strict=True))
    return Forecast(estimates, len(looked), len(tasks))


def usual(fps: float | None) -> tuple[Store, ...]:
    """What most would choose from, the largest first."""
    return (
        Store(kind="png", fps=fps, height=360),
        Store(kind="jpeg", fps=fps, height=360),
        Store(kind="jpeg", fps=fps, short_side=SEEN),
        Store(kind="video", fps=fps, short_side=SEEN),
    )


def _estimate(store: Store, row: Sequence[Seen], scale: float) -> Estimate:
    values = sum(seen.values for seen in row)
    square = sum(seen.square for seen in row) / values
    return Estimate(
        store=store.about(),
        frames=round(scale * sum(seen.frames for seen in row)),
        bytes=round(scale * sum(seen.bytes for seen in row)),
        levels=sum(seen.absolute for seen in row) / values,
        psnr=None if square == 0 else float(10 * np.log10(255**2 / square)),
    )


def look(sample: Sample) -> list[Seen]:
    """Store some frames from the middle of a video in every way."""
    found = []
    with opened(sample.task) as video, tempfile.TemporaryDirectory() as folder:
        numbers = wanted(sample.task, video)
        start = max(0, (len(numbers) - RUN) // 2)
        some = numbers[start : start + RUN]
        exact = msgspec.structs.replace(
            next((s for s in sample.stores if s.kind == "png"), Store()), kind="png", template=None
        )
        whole = torch.stack(list(pictures(exact, video, some)))
        size_seen = to_short_side((whole.shape[2], whole.shape[1]), SEEN)
        reference = resize(whole, size_seen)
        for store in sample.stores:
            frames = list(pictures(store, video, some))
            size, back = _stored(store, frames, times_of(video, some, store), Path(folder))
            error = (resize(back, size_seen).double() - reference.double()).abs()
            share = len(numbers) / len(some)
            found.append(
                Seen(
                    len(numbers),
                    size * share,
                    float(error.sum()),
                    float(error.square().sum()),
                    error.numel(),
                )
            )
    return found


def _stored(
    store: Store, frames: list[Tensor], times: list[float] | None, folder: Path
) -> tuple[int, Tensor]:
    """Bytes on disk of these frames, and what is read from there."""
    place = Path(tempfile.mkdtemp(dir=folder))
    if store.kind == "video":
        encode_video(place / "run.mp4", iter(frames), store, times)
        path, size = place / "run.mp4", (place / "run.mp4").stat().st_size
    else:
        sizes = [write_picture(place / store.names.format(i), frame, store) for i, frame in enumerate(frames)]
        path, size = place, sum(-(-one // BLOCK) * BLOCK for one in sizes)
    with read_video(path, template=None if store.kind == "video" else store.names) as video:
        return size, video.frames(range(len(frames)))


def check_space(folder: Path, estimate: Estimate, pictures: bool) -> None:
    """Raise EnvironmentFault DISK_SMALL where the estimate and a tenth, or as many files, do not fit."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free, needed = shutil.disk_usage(there).free, RESERVE * estimate.bytes
    files = os.statvfs(there).f_favail if hasattr(os, "statvfs") else 0
    lacking = f"about {size_text(needed)}, but {size_text(free)} are free" if needed > free else ""
    if pictures and 0 < files < estimate.frames:
        lacking = f"about {estimate.frames:,} files, but the file system has room for {files:,}"
    if lacking:
        raise EnvironmentFault(
            "DISK_SMALL",
            f"{str(folder)!r} would take {lacking}; take a smaller store (--estimate compares them), another "
            "disk, or --force",
        )


def lines(found: Forecast) -> list[str]:
    """The forecast for people."""
    if not found.estimates:
        return [f"none of {found.sampled or 'the'} sampled videos can be read; no estimate"]
    rows = [("store", "takes", "frames", "off by", "PSNR")]
    for one in found.estimates:
        psnr = "exact" if one.psnr is None else f"{one.psnr:.1f} dB"
        rows.append((one.store, size_text(one.bytes), f"{one.frames:,}", f"{one.levels:.2f}", psnr))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) for row in rows]
    return [f"estimate for {found.videos} videos from {found.sampled} of them", *table]


def size_text(count: float) -> str:
    """1.9 TB, 400 MB, ..."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
