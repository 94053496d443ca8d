"""`marey train --preflight`: seconds that tell whether a long training will work, how fast, and in what room.

Everything is set up as the training does it, and the same loader, step and device are used; the network that
learns is never saved, and no run folder is made.
"""

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import count, islice
from pathlib import Path
from typing import Any

import msgspec
import torch

from marey.data.clips import Batch, Failure
from marey.data.lists import ClipList
from marey.data.workers import Pool
from marey.errors import DataError, MareyError, UsageError
from marey.jobs import setup
from marey.jobs.adaptation import Adaptation
from marey.jobs.advice import WAITING, WORTH, faster_data, processes_here
from marey.jobs.bench import peak_memory
from marey.jobs.doctor import cores, environment
from marey.jobs.epochs import Epochs
from marey.jobs.frames_estimate import size_text
from marey.jobs.limits import checkpoint_bytes, free_bytes, lacking, told_of_memory
from marey.jobs.progress import duration
from marey.jobs.recognition import Recognition
from marey.jobs.runs import Run
from marey.jobs.train import Start, make_deterministic, say_rate, start
from marey.recipes.schema import AnyRecipe, Recipe
from marey.training.distributed import anyone, gather
from marey.training.loop import Step, train_steps
from marey.video.sampling import generator

SECONDS = 3.0  # of decoding, and of steps, that are timed
_CHOICE = 2**64 - 2  # the preflight's own stream of random numbers


class Preflight(msgspec.Struct, frozen=True, kw_only=True):
    """What a training would meet. Rates, memory and workers are those of one process.

    splits           clips of each list
    rarest, commonest  name of a class and its training clips
    missing          classes without a training clip
    clips, seen      clips and classes of the batch that the steps were made on, over all processes
    losses, top1     of each step; top1 of the last, 0..1, where clips have one label each
    decoded, stepped  clips a second of decoding alone, and of steps alone
    epoch_seconds, seconds  of an epoch, and of all; validations come on top
    memory, memory_there  bytes: the peak of network, optimiser and steps on top of the start, None where it
                     is unknown; and what the device has
    disk, disk_free  bytes that a run's checkpoints take at most, and that are free there
    skipped          files that could not be read
    warnings         code and text: DISK_SMALL, OPEN_FILES, SHARED_MEMORY_SMALL
    advice           what lets data come faster, where the training would wait for it
    """

    recipe: str
    splits: dict[str, int]
    classes: int
    rarest: tuple[str, int]
    commonest: tuple[str, int]
    missing: tuple[str, ...]
    clips: int
    seen: int
    losses: tuple[float, ...]
    top1: float | None
    device: str
    precision: str
    processes: int
    workers: int
    decoded: float
    stepped: float
    epochs: int
    epoch_seconds: float
    seconds: float
    memory: int | None
    memory_there: int | None
    disk: int
    disk_free: int
    skipped: tuple[Failure, ...]
    warnings: tuple[tuple[str, str], ...]
    advice: str | None


def preflight(
    recipe: Any,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    steps: int | None = None,
    out: str | Path = "runs",
    seed: int = 0,
    deterministic: bool = False,
    **options: Any,
) -> Preflight:
    """Try what `marey.train` of the same arguments would do; nothing is written.

    steps    None: for some seconds, at the rates that the training begins with; else as many, while the rate
             goes through the recipe's whole schedule: a network that learns brings the loss of one batch down
    options  of `marey.jobs.train.start`
    Raises what the training would raise before its first step; UsageError RECIPE_KIND for recipes that do not
    learn from clips with class labels; MareyError LOSS_NOT_FINITE and DataError TOO_MANY_BAD, naming files.
    """
    begun = start(recipe, overrides, **options)
    if not issubclass(begun.task, Recognition) or begun.task is Adaptation:
        raise UsageError(
            "RECIPE_KIND", f"--preflight is for clips with class labels, and {begun.plan.name!r} has others"
        )
    make_deterministic(deterministic)
    run = Unwritten(Path(out), quiet=not begun.fabric.is_global_zero)
    say_rate(run, begun)
    taught = begun.plan.distill if isinstance(begun.plan, Recipe) else None
    if taught is not None and taught.cache is not None:
        run.say("distill.cache is left alone: the teacher answers itself, which takes its time")
    cards = [begun.fabric.device] if begun.fabric.device.type == "cuda" else []
    workers = setup.decoding_workers(begun.plan.data)
    with torch.random.fork_rng(cards), Pool(workers, begun.plan.data.seconds) as pool:
        return _measured(begun, run, pool, seed, steps)


class Unwritten(Run):
    """Says what a run says; writes nothing."""

    def __init__(self, folder: Path, *, quiet: bool) -> None:
        super().__init__(folder, quiet=True)
        self.silent = quiet

    def say(self, text: str) -> None:
        """One line for people, to stderr."""
        if not self.silent:
            print(text, file=sys.stderr, flush=True)


def _measured(begun: Start, run: Run, pool: Pool, seed: int, wanted: int | None) -> Preflight:
    fabric, lists, plan = begun.fabric, begun.lists, _for_one_batch(begun.plan)
    with peak_memory(fabric.device) as peak:
        work: Recognition = begun.task(plan, lists, fabric=fabric, run=run, pool=pool, seed=seed)
        warnings = [
            *lacking(fabric, work.network, work.learner, work.plan, out=run.folder, workers=pool.workers)
        ]
        disk = checkpoint_bytes(work.network, work.learner, work.plan)
        for note in work.notes:
            run.say(note)
        epochs = Epochs(work, fabric, run, threading.Event(), seed)
        whole = work.clips
        work.clips = whole.subset(spread(whole, work.plan.batch * fabric.world_size, seed))
        batch, seen = _one_batch(work), len(set(_labels(work.clips)))
        with told_of_memory(plan):
            made = list(_steps(epochs, batch, wanted, seed))
        work.clips = whole
    decoded = decoding_rate(work, SECONDS)
    stepped = _rate(made)
    each = seconds_per_clip(
        1 / decoded,
        1 / stepped,
        workers=pool.workers,
        cores=max(cores() // processes_here(fabric), 1),
        threads=torch.get_num_threads() if fabric.device.type == "cpu" else 1,
    )
    waiting = 1 - 1 / stepped / each  # share of the time
    epoch = each * work.size * work.plan.augment.copies / fabric.world_size
    slow = waiting > WAITING and waiting * epoch > WORTH
    counts = whole.counts(len(work.classes))
    named = sorted(zip(counts.tolist(), work.classes, strict=True))
    present = [(name, number) for number, name in named if number]
    devices = {one["name"]: one["memory"] for one in environment()["devices"]}
    place = str(fabric.device)
    return Preflight(
        recipe=plan.name,
        splits={"train": len(whole)} | ({"val": len(work.val)} if work.val is not None else {}),
        classes=len(work.classes),
        rarest=present[0],
        commonest=present[-1],
        missing=tuple(name for number, name in named if not number),
        clips=sum(gather(fabric, len(batch.frames))),
        seen=seen,
        losses=tuple(step.loss for step in made),
        top1=made[-1].terms.get("top1"),
        device=place,
        precision=work.plan.precision,
        processes=fabric.world_size,
        workers=pool.workers,
        decoded=decoded,
        stepped=stepped,
        epochs=work.plan.epochs,
        epoch_seconds=epoch,
        seconds=epoch * work.plan.epochs,
        memory=peak[0] if peak else None,
        memory_there=devices.get(place),
        disk=disk,
        disk_free=free_bytes(run.folder),
        skipped=tuple(work.failures.files.values()),
        warnings=tuple(warnings),
        advice=faster_data(work, processes_here(fabric)) if slow else None,
    )


def _for_one_batch(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe without what would take other clips than are chosen, or write."""
    assert isinstance(recipe, Recipe)
    recipe = msgspec.structs.replace(recipe, data=msgspec.structs.replace(recipe.data, class_power=None))
    if recipe.distill is None:
        return recipe
    return msgspec.structs.replace(recipe, distill=msgspec.structs.replace(recipe.distill, cache=None))


# One batch ----------------------------------------------------------------------------------------------


def spread(clips: ClipList, size: int, seed: int) -> list[int]:
    """Places of so many clips of a list, drawn, that show as many classes as can be."""
    order = generator(seed, 0, _CHOICE).permutation(len(clips)).tolist()
    there = int((clips.counts() > 0).sum())
    seen: set[int] = set()
    first: list[int] = []
    for place in order:
        if len(first) == size or len(seen) == there:
            break
        if not seen.issuperset(clips.labels(place)):
            seen.update(clips.labels(place))
            first.append(place)
    chosen = set(first)
    return first + list(islice((place for place in order if place not in chosen), size - len(first)))


def _labels(clips: ClipList) -> Iterator[int]:
    return (label for entry in clips for label in entry.labels)


def _one_batch(work: Recognition) -> Batch:
    """The chosen clips, decoded. Raises DataError TOO_MANY_BAD where none of them can be."""
    with closing(work.batches(0, 0)) as batches:
        batch = next(batches)
    if not len(batch.frames):
        first = "; ".join(f"{bad.path}: {bad.code}" for bad in batch.failures[:3])
        raise DataError(
            "TOO_MANY_BAD",
            f"none of the {len(batch.failures)} clips that were chosen can be read ({first}); "
            "`marey data check` finds all that are bad",
        )
    return batch


def _steps(epochs: Epochs, batch: Batch, wanted: int | None, seed: int) -> Iterator[Step]:
    """Steps on one batch, each with an update: `wanted`, or at least two and for some seconds."""
    work: Any = epochs.task
    plan, fabric = work.plan, epochs.fabric
    updates = -(-work.steps // plan.accumulate)
    last = updates * plan.epochs - 1

    def rate(number: int) -> float:
        place = number if wanted is None else number * last // max(wanted - 1, 1)
        epoch, update = divmod(min(place, last), updates)
        return float(work.rate(epoch, update, updates))

    steps = train_steps(
        fabric,
        epochs.model,
        epochs.optimizer,
        (work.example(batch, 0, 0) for _ in count()),
        outcome_of=work.outcome,
        rate_of=rate,
        seed_of=lambda number: seed + number,
        steps=sys.maxsize,
        clip_norm=plan.optimizer.clip_norm,
        clip_each=plan.optimizer.clip_each,
    )
    started = time.perf_counter()
    try:
        for step in steps:
            yield step
            late = step.number > 0 and time.perf_counter() - started > SECONDS
            if anyone(fabric, late if wanted is None else step.number + 1 >= wanted):
                return
    except MareyError as error:
        if error.code != "LOSS_NOT_FINITE":
            raise
        names = [name for part in gather(fabric, work.current()) for name in part]
        raise MareyError(
            error.code,
            f"{error.message}, on {', '.join(names)}; look at these clips and at model.weights, or lower "
            "training.optimizer.lr",
        ) from error


# How long it takes --------------------------------------------------------------------------------------


def _rate(steps: Sequence[Step]) -> float:
    """Clips a second; the first step, slower than the others, counts only where it is alone."""
    timed = steps[1:] or steps
    return sum(step.clips for step in timed) / sum(step.seconds for step in timed)


def decoding_rate(work: Recognition, seconds: float) -> float:
    """Clips a second that the loader gives, in the training's order, while nothing else is done."""
    clips, started = 0, time.perf_counter()
    for epoch in count():
        with closing(work.batches(epoch, 0)) as batches:
            for batch in batches:
                clips += len(batch.frames) + work.plan.augment.copies * len(batch.failures)
                took = time.perf_counter() - started
                if anyone(work.fabric, took >= seconds):
                    return clips / took
    raise AssertionError("the epochs do not end")


def seconds_per_clip(decode: float, step: float, *, workers: int, cores: int, threads: int) -> float:
    """Seconds that a clip takes in a training, from those that it takes alone to decode and to learn from.

    Workers decode while steps are made, so the slower of the two decides; but not faster than the cores do
    the work of both: `workers` of decoding, `threads` of steps. Without workers it is one after the other.
    """
    if workers == 0:
        return decode + step
    both = (min(workers, cores) * decode + min(threads, cores) * step) / cores
    return max(decode, step, both)


# For people ---------------------------------------------------------------------------------------------


def lines(found: Preflight, wanted: int | None) -> list[str]:
    """The report as a table of names and texts."""
    each = f" in each of {found.processes} processes" if found.processes > 1 else ""
    missing = f"; none of {', '.join(found.missing)}" if found.missing else ""
    took = {0: "no worker", 1: "1 worker"}.get(found.workers, f"{found.workers} workers")
    together = f" in {found.processes} processes" if found.processes > 1 else ""
    rows = [
        ("clips", ", ".join(f"{number} {split}" for split, number in found.splits.items())),
        ("classes", f"{found.classes}, {_count(found.rarest)} to {_count(found.commonest)} clips{missing}"),
        ("batch", f"{found.clips} clips of {found.seen} classes{together}, on {found.device}"),
        ("loss", _loss(found, wanted)),
        ("decoding", f"{found.decoded:.1f} clips/s alone{each}, {took}"),
        ("steps", f"{found.stepped:.1f} clips/s alone{each}, precision {found.precision}"),
        (
            "time",
            f"about {duration(found.epoch_seconds)} an epoch, {duration(found.seconds)} for {found.epochs} "
            "epochs" + ("; validations come on top" if "val" in found.splits else ""),
        ),
        ("memory", _memory(found)),
        ("disk", f"{size_text(found.disk)} for checkpoints, {size_text(found.disk_free)} free"),
        *(("skipped", f"{bad.path}: {bad.code}: {bad.message}") for bad in found.skipped),
        *(("warning", f"{code}: {text}") for code, text in found.warnings),
        *([("advice", found.advice)] if found.advice else ()),
    ]
    return [f"{name:>8}  {text}" for name, text in rows]


def _count(item: tuple[str, int]) -> str:
    return f"{item[1]} ({item[0]})"


def _loss(found: Preflight, wanted: int | None) -> str:
    first, last, number = found.losses[0], found.losses[-1], len(found.losses)
    text = f"{first:.4f}" if number == 1 else f"{first:.4f} at first, {last:.4f} at step {number}"
    if found.top1 is not None:
        text += f", top-1 {found.top1:.0%}"
    if wanted is None or number == 1:
        return text
    return f"{text}: " + (
        "it falls" if last < first else "it does not fall; look at labels, training.optimizer.lr and weights"
    )


def _memory(found: Preflight) -> str:
    if found.memory is None:
        return "unknown here"
    of = f" of {size_text(found.memory_there)}" if found.memory_there else ""
    return f"{size_text(found.memory)} at the peak{of}, without the workers'"
