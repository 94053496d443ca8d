"""Tags of videos from records of their frame features: measured against labels, or given for each video."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from lightning_fabric.fabric import Fabric
from numpy.typing import NDArray
from torch import nn

from marey.data.clips import Failure, check_complete
from marey.data.shards import Shards
from marey.data.workers import Pool
from marey.data.youtube8m import Batch, Layout, batches
from marey.errors import DataError, UsageError, unknown
from marey.jobs import setup
from marey.jobs.doctor import environment
from marey.jobs.expected import expected_tags
from marey.jobs.progress import Progress
from marey.jobs.provenance import tested
from marey.jobs.report import leave_results
from marey.jobs.setup_features import (
    RecordLists,
    class_names,
    comparable,
    complete,
    layout_of,
    lost_records,
    open_records,
    records,
)
from marey.jobs.tag_files import Tags
from marey.metrics.gap import Tagging, TaggingMetrics, ranked
from marey.recipes.schema import TagRecipe
from marey.training.devices import device_of
from marey.training.distributed import gather, launch
from marey.training.losses import tagging_loss
from marey.weights.native import is_checkpoint

METRICS = ("gap", "hit1", "perr", "map", "map_2018", "loss")
FINE = 2**32  # losses are summed as whole numbers of this fraction: the sum is the same in any order


class Scored(NamedTuple):
    """A batch, and its logits and probabilities, float32 [B, C]."""

    batch: Batch
    logits: torch.Tensor
    scores: NDArray[np.float32]


class Measured(NamedTuple):
    """The numbers of all records, their mean loss, and the records that could not be read."""

    found: Tagging
    loss: float
    failed: list[Failure]


@torch.inference_mode()
def score_shards(
    model: nn.Module,
    shards: Shards,
    layout: Layout,
    *,
    pool: Pool,
    batch: int = 40,
    world: int = 1,
    rank: int = 0,
) -> Iterator[Scored]:
    """The records of process `rank`, each once over all processes, batch by batch, the last one smaller.

    A record goes through the network beside the same others whatever the number of processes, of which the
    first takes the first batches. The network is put into evaluation mode and used on the device it is on.
    Records that cannot be read are in the batches' `failures`.
    """
    model.eval()
    device = next(model.parameters()).device
    count = -(-len(shards) // batch)
    mine = range(count * rank // world, count * (rank + 1) // world)
    steps = (np.arange(number * batch, min((number + 1) * batch, len(shards))) for number in mine)
    for found in batches(shards, steps, layout, pool=pool):
        logits = torch.empty(0, layout.num_classes)
        if found.ids:
            inputs = found.rgb.to(device), found.audio.to(device) if layout.audio else None
            logits = model(*inputs, found.lengths.to(device)).float().cpu()
        yield Scored(found, logits, logits.sigmoid().numpy())


def measure_tags(
    model: nn.Module,
    shards: Shards,
    layout: Layout,
    *,
    pool: Pool,
    top: int = 20,
    batch: int = 40,
    fabric: Fabric | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """The metrics of all records, the same to the last bit in every process and for any number of them.

    What is kept in memory does not grow with the records. Raises DataError LABEL_RANGE, MareyError NO_VIDEOS.
    """
    world, rank = (1, 0) if fabric is None else (fabric.world_size, fabric.global_rank)
    metrics, loss, failed, seen = TaggingMetrics(layout.num_classes, top), 0, list[Failure](), 0
    for one in score_shards(model, shards, layout, pool=pool, batch=batch, world=world, rank=rank):
        size = len(one.batch.ids)
        metrics.add(one.scores, one.batch.labels.numpy())
        if size:
            loss += round(float(tagging_loss(one.logits, one.batch.labels)) * size * FINE)
        failed += one.batch.failures
        seen += size + len(one.batch.failures)
        if progress is not None:
            progress(min(seen * world, len(shards)), len(shards))
    if fabric is not None and world > 1:
        metrics = _joined(metrics, fabric)
        loss = sum(gather(fabric, loss))
        failed = [failure for part in gather(fabric, failed) for failure in part]
    found = metrics.result()
    return Measured(found, loss / FINE / found.videos, [*lost_records(shards), *failed])


def _joined(metrics: TaggingMetrics, fabric: Fabric) -> TaggingMetrics:
    """The metrics of all processes' videos, those of the first process first; little is sent at a time."""
    whole = TaggingMetrics(metrics.num_classes, metrics.k)
    for rank, counts in enumerate(gather(fabric, metrics.counts())):
        own = metrics.pairs() if fabric.global_rank == rank else iter(())

        def sent(own: Iterator[bytes] = own, rank: int = rank) -> Iterator[bytes]:
            while data := fabric.broadcast(next(own, b""), src=rank):
                yield data

        whole.join(counts, sent())
    return whole


def evaluate_tags(
    model: nn.Module,
    shards: Shards,
    *,
    names: Sequence[str] | None = None,
    max_frames: int | None = None,
    top: int = 20,
    batch: int = 40,
    max_bad: float = 0.0,
    workers: int = 0,
    pool: Pool | None = None,
    fabric: Fabric | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """GAP@top, Hit@1, PERR, mAP and loss over all records, and what belongs to them, as results.json has it.

    names    of the classes; None: the network's, or numbers
    max_bad  share of the records, 0..1, that may be unreadable; they are named under `failed`
    pool     reads the records; None: one of so many `workers`
    fabric   several processes share the work and get the same
    Raises DataError INCOMPLETE, LABEL_RANGE, FEATURES_MIXED; MareyError NO_VIDEOS.
    """
    if pool is None:
        with Pool(workers, 600) as own:
            return evaluate_tags(
                model,
                shards,
                names=names,
                max_frames=max_frames,
                top=top,
                batch=batch,
                max_bad=max_bad,
                pool=own,
                fabric=fabric,
                progress=progress,
            )
    layout, known = layout_of(model, max_frames=max_frames), comparable(model, shards)
    found, loss, failed = measure_tags(
        model, shards, layout, pool=pool, top=top, batch=batch, fabric=fabric, progress=progress
    )
    check_complete(failed, len(shards), max_bad, "records")
    classes = _names(model, names, layout.num_classes)
    ap = [None if np.isnan(value) else value for value in found.ap.tolist()]
    return {
        "unit": "videos",
        "metrics": {
            "gap": found.gap,
            "hit1": found.hit_at_1,
            "perr": found.perr,
            "map": None if np.isnan(found.map) else found.map,
            "map_2018": found.map_2018,
            "loss": loss,
        },
        "comparable": known,
        "listed": len(shards),
        "evaluated": found.videos,
        "failed": [one._asdict() for one in failed],
        "classes": list(classes),
        "per_class": [
            {"class": name, "count": count, "ap": value}
            for name, count, value in zip(classes, found.positives.tolist(), ap, strict=True)
        ],
        "confusion": None,
        "fingerprint": shards.fingerprint(),
    }


def _names(model: nn.Module, given: Sequence[str] | None, count: int) -> Sequence[str]:
    names = given or getattr(model, "class_names", None) or [str(label) for label in range(count)]
    if len(names) != count:
        raise UsageError("CLASS_NAMES", f"{len(names)} class names for {count} classes")
    return names


def results(
    recipe: TagRecipe,
    model: nn.Module,
    shards: Shards,
    lists: RecordLists,
    *,
    source: str | None,
    checkpoint: str | None,
    names: Sequence[str],
    pool: Pool,
    fabric: Fabric,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """What results.json holds of a test or validation on the records that the user calls `source`."""
    data, testing = recipe.data, recipe.testing
    found = evaluate_tags(
        model,
        shards,
        names=names,
        max_frames=data.max_frames,
        top=testing.top,
        batch=testing.batch,
        max_bad=data.max_bad_test,
        pool=pool,
        fabric=fabric,
        progress=progress,
    )
    published, why = expected_tags(recipe, found["evaluated"], own=lists.card is not None)
    if why and checkpoint and fabric.is_global_zero:
        print(f"note: not beside the published figures, for these differ: {why}", file=sys.stderr)
    return {
        "recipe": recipe.name,
        "checkpoint": checkpoint,
        **tested(recipe, checkpoint),
        "protocol": {"top": testing.top, "max_frames": data.max_frames},
        "expected": msgspec.to_builtins(published),
        **found,
        "list": source,
        "versions": environment(),
    }


def test_tags(
    recipe: TagRecipe,
    checkpoint: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    metrics: Sequence[str] = (),
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> dict[str, Any]:
    """Score a recipe's test records (else its validation records); see `marey.jobs.evaluate.test`."""
    for name in metrics:
        if name not in METRICS:
            raise unknown("metric", name, METRICS, code="UNKNOWN_METRIC")
    fabric = launch(accelerator=accelerator, devices=devices, nodes=nodes)
    model: Any = _trained(recipe, checkpoint)
    lists = open_records(recipe.data, training=False)
    plan = msgspec.structs.replace(
        recipe.model, num_classes=int(model.num_classes), options=model.spec["overrides"]
    )
    recipe = complete(msgspec.structs.replace(recipe, model=plan), lists)
    known = setup.known_names(model)
    _same_names(checkpoint, known, lists.names)
    shards = lists.given()[0]
    with Pool(setup.decoding_workers(recipe.data), recipe.data.seconds) as pool:
        found = results(
            recipe,
            model.to(fabric.device),
            shards,
            lists,
            source=recipe.data.test or recipe.data.val,
            checkpoint=str(checkpoint),
            names=known or class_names(lists, int(model.num_classes)),
            pool=pool,
            fabric=fabric,
            progress=Progress("testing", quiet=not fabric.is_global_zero),
        )
    found["metrics"] = {name: found["metrics"][name] for name in metrics or METRICS}
    if fabric.is_global_zero:
        leave_results(found, Path(out) if out else None, setup.run_of_checkpoint(checkpoint))
    return found


def _trained(recipe: TagRecipe, checkpoint: str | os.PathLike[str]) -> nn.Module:
    """A checkpoint's own network, whatever the recipe's options; other files do not show all of theirs."""
    if is_checkpoint(checkpoint):
        recipe = msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, options={}))
    return setup.trained_model(recipe, checkpoint)


def _same_names(
    checkpoint: str | os.PathLike[str], names: tuple[str, ...] | None, listed: tuple[str, ...] | None
) -> None:
    """Labels mean the same to checkpoint and records, or the numbers would be of something else."""
    for label, (name, other) in enumerate(zip(names or (), listed or (), strict=False)):
        if name != other and str(label) not in (name, other):
            raise DataError(
                "LABEL_NAMES",
                f"label {label} is {name!r} in {checkpoint}, but {other!r} for the records; make their "
                "features with the checkpoint's names (`marey features --classes FILE`)",
            )


def predict_tags(
    model: nn.Module,
    shards: Shards,
    *,
    names: Sequence[str] | None = None,
    top: int = 20,
    threshold: float = 0.0,
    batch: int = 40,
    workers: int = 0,
) -> Iterator[Tags]:
    """The `top` surest tags of every video that have at least the probability `threshold`, in the records'
    order; a record that cannot be read gives a row with its error code.

    names  of the classes; None: the network's, or numbers
    """
    layout, known = layout_of(model), comparable(model, shards)
    classes = _names(model, names, layout.num_classes)
    for lost in lost_records(shards):
        yield _unreadable(lost)
    with Pool(workers, 600) as pool:
        for one in score_shards(model, shards, layout, pool=pool, batch=batch):
            rows: list[tuple[int, Tags]] = [(bad.index, _unreadable(bad)) for bad in one.batch.failures]
            videos = zip(one.batch.numbers.tolist(), one.batch.ids, one.scores, strict=True)
            best = ranked(one.scores, top).tolist() if len(one.scores) else []
            for (number, video, scores), ranking in zip(videos, best, strict=True):
                kept = [label for label in ranking if scores[label] >= threshold]
                chosen = tuple(classes[c] for c in kept), tuple(float(scores[c]) for c in kept)
                rows.append((number, Tags(video, tuple(kept), *chosen, known)))
            yield from (row for _, row in sorted(rows, key=lambda row: row[0]))


def tag_records(
    model: nn.Module,
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    names: Sequence[str] | None = None,
    top: int = 5,
    threshold: float = 0.0,
    device: str | None = None,
) -> Iterator[Tags]:
    """`predict_tags` of all records that a user names, on a device of the user's.

    sources  folders of records, patterns, files, lists of files
    device   "cpu", "cuda", ...; None: the GPU if there is one
    """
    shards = records(sources)
    place = device_of(device)
    workers = 0 if place.type == "cpu" else setup.cores()  # a CPU is busy with the network
    yield from predict_tags(
        model.to(place), shards, names=names, top=top, threshold=threshold, workers=workers
    )


def _unreadable(bad: Failure) -> Tags:
    return Tags(bad.path, (), (), (), code=bad.code, message=bad.message)
