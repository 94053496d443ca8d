"""What a training needs of its machine beside speed, looked at before it starts: disk, open files, shared
memory."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_fabric.fabric import Fabric
from torch import nn

from marey.errors import out_of_memory
from marey.jobs.frames_estimate import size_text
from marey.recipes.schema import AnyRecipe, TagRecipe, Training
from marey.training.optim import Optimizer
from marey.video.limits import Note

OPEN_PER_WORKER = 8  # descriptors: pipe, process and what multiprocessing keeps for it; measured: 3
OPEN_SPARE = 64  # for videos, logs and checkpoints
SHARED = 1 << 30  # bytes of shared memory that NVIDIA advises for several GPUs in a container


def lacking(
    fabric: Fabric, network: nn.Module, learner: nn.Module, plan: Training, *, out: Path, workers: int
) -> Iterator[Note]:
    """What there may be too little of: DISK_SMALL, OPEN_FILES, SHARED_MEMORY_SMALL, and what to do.

    Decoding workers send clips through pipes: shared memory is for several GPUs that train together.
    """
    needed, free = checkpoint_bytes(network, learner, plan), free_bytes(out)
    held = sum(file.stat().st_size for file in (out / "checkpoints").glob("*"))  # of a run that goes on
    if needed > free + held:
        yield Note(
            "DISK_SMALL",
            f"the checkpoints of a run take {size_text(needed)}, but {size_text(free)} are free in {out}; "
            "free some, or give a folder on another disk with --out",
        )
    files, most = open_files(workers), most_open_files()
    if most is not None and files > most:
        yield Note(
            "OPEN_FILES",
            f"{workers} workers may need {files} open files, but the limit is {most}; raise it with "
            f"`ulimit -n {max(4096, files)}`, or take fewer data.workers",
        )
    shared = Path("/dev/shm")
    if fabric.world_size > 1 and fabric.device.type == "cuda" and shared.is_dir():
        room = free_bytes(shared)
        if room < SHARED:
            yield Note(
                "SHARED_MEMORY_SMALL",
                f"{size_text(room)} of shared memory are free, and GPUs that train together talk through it; "
                "start the container with --shm-size=1g or --ipc=host",
            )


def checkpoint_bytes(network: nn.Module, learner: nn.Module, plan: Training) -> int:
    """Bytes of a run's checkpoints at most: best and last weights, the state and the one before, and what is
    written aside before it takes the place of either."""
    weights, trained = _bytes(network), sum(p.nbytes for p in learner.parameters() if p.requires_grad)
    state = _bytes(learner) + _moments(plan.optimizer) * trained + (weights if plan.ema else 0)
    return 2 * weights + 2 * state + max(weights, state)


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def _moments(optimizer: Optimizer) -> int:
    """How many numbers the optimiser keeps for each weight."""
    return 2 if optimizer.kind != "sgd" else 1 if optimizer.momentum else 0


def free_bytes(folder: Path) -> int:
    """Bytes free where the folder is or will be."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def open_files(workers: int) -> int:
    """Files that this process will have open at most with so many workers."""
    own = Path("/proc/self/fd")
    return (len(list(own.iterdir())) if own.is_dir() else 32) + OPEN_PER_WORKER * workers + OPEN_SPARE


def most_open_files() -> int | None:
    """The limit of open files, None where there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


@contextmanager
def told_of_memory(recipe: AnyRecipe) -> Iterator[None]:
    """Steps of a training inside. Raises EnvironmentFault OUT_OF_MEMORY with the settings that take less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = out_of_memory(error, less_memory(recipe))
        if known is None:
            raise
        raise known from error


def less_memory(recipe: AnyRecipe) -> str:
    """What makes a step of this recipe take less, a sentence without its full stop."""
    plan: Any = recipe.training
    ways = []
    if plan.batch > 1:
        ways.append(f"training.batch={-(-plan.batch // 2)} training.accumulate={2 * plan.accumulate}")
    if not isinstance(recipe, TagRecipe):
        if not plan.checkpoint_activations:
            ways.append("training.checkpoint_activations=true")
        ways.append(f"fewer clips.frames than {recipe.clips.frames}")
    text = ", or ".join(ways) or "a smaller network"
    return f"A step takes less with {text}; the machine's memory also with fewer data.workers"
