"""What to change where a training waits for its data."""

from pathlib import Path
from typing import Any

from lightning_fabric.fabric import Fabric

from marey.data.lists import Entry
from marey.errors import MareyError
from marey.jobs.doctor import cores
from marey.recipes.schema import Recipe
from marey.video.reader import read_video

WAITING = 0.2  # share of an epoch's time from which on there is advice
WORTH = 10.0  # seconds of an epoch that must have been waited, for advice to be worth a line
LARGER = 1.25  # times the short side that is trained on: from there on shrunk videos decode clearly faster


def faster_data(task: Any, processes: int) -> str | None:
    """What lets data come faster, chosen by what is known of a `marey.jobs.epochs.Task`; None: nothing is.

    processes  of this machine that train, and share its cores
    """
    free = max(cores() // processes, 1)
    if task.pool.workers < free:
        return f"data.workers={free} decodes on every core, now it is {task.pool.workers}"
    if not isinstance(task.recipe, Recipe):
        return None
    side, stored = _trained_side(task.recipe), _stored_side(task)
    if side is not None and stored is not None and stored > LARGER * side:
        return (
            f"all cores decode, videos of {stored} pixels for clips of {side}; store them once by "
            f"`marey data shrink LIST --out FOLDER --short-side {side}` and train on the list that it writes"
        )
    return (
        "all cores decode; take a machine with more of them, fewer clips.frames, or "
        "training.augment.copies=2, which learns from two clips of each video that is decoded"
    )


def processes_here(fabric: Fabric) -> int:
    """Processes on this machine that train together."""
    return int(getattr(fabric.strategy, "num_processes", 1))


def _trained_side(recipe: Recipe) -> int | None:
    """The largest short side that clips are resized to, None where they are not."""
    clips = recipe.clips
    return max(clips.train_short_side) if clips.train_short_side else clips.short_side


def _stored_side(task: Any) -> int | None:
    """The short side of the list's first video, read as all are, None where it cannot be read."""
    ((_, found),) = task.pool.run(stored_side, [task.clips[0]])
    return None if isinstance(found, MareyError) else found


def stored_side(entry: Entry) -> int:
    """The short side of a video."""
    template = entry.template if Path(entry.path).is_dir() else None
    with read_video(entry.path, template=template) as video:
        return min(video.size)
