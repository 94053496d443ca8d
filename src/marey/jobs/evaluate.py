"""`marey test`: every clip of a list exactly once, whatever the number of processes, and its numbers."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning_fabric.fabric import Fabric
from torch import nn

from marey.data.clips import Failure, check_complete, test_indices, test_views
from marey.data.lists import ClipList
from marey.data.workers import Pool
from marey.errors import DataError, MareyError, unknown
from marey.files import replacing
from marey.jobs import setup
from marey.jobs.boxes import test_boxes
from marey.jobs.doctor import environment
from marey.jobs.expected import expected
from marey.jobs.predict import view_logits
from marey.jobs.progress import Progress
from marey.jobs.provenance import tested
from marey.jobs.report import write_report
from marey.jobs.runs import plain_json
from marey.jobs.tags import test_tags
from marey.metrics.mean_ap import (
    average_precision,
    mean_average_precision,
    mmit_mean_average_precision,
)
from marey.metrics.topk import (
    confusion_matrix,
    mean_class_accuracy,
    multi_label_top_k_accuracy,
    top_k_accuracy,
)
from marey.models.fold import folded
from marey.recipes.catalog import load_recipe
from marey.recipes.schema import AnyRecipe, BoxRecipe, Recipe, TagRecipe, clip_recipe
from marey.training.distributed import gather, launch
from marey.video.preprocess import Preprocess, Protocol, average_views


class Scored(NamedTuple):
    """The clips of a list that could be read, ascending, with their scores, and those that could not.

    scores  float32 [C] per clip, or [views, C] when views are not averaged
    """

    indices: list[int]
    scores: list[np.ndarray]
    failed: list[Failure]


def score_list(
    model: nn.Module,
    clips: ClipList,
    preprocess: Preprocess,
    protocol: Protocol,
    *,
    fabric: Fabric,
    pool: Pool,
    multi_label: bool,
    views_per_forward: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Scores of every clip of the list, the same in every process and for any number of processes.

    The views of one clip go through the network together and apart from other clips, so that no score
    depends on what else is in the list. What runs is the network's folded copy.
    """
    network = folded(model)
    mine = test_indices(len(clips), world=fabric.world_size, rank=fabric.global_rank)
    rows: list[tuple[int, np.ndarray | Failure]] = []
    for index, views in test_views(clips, mine, preprocess, protocol, pool=pool):
        if isinstance(views, MareyError):
            rows.append((index, Failure(index, clips[index].path, views.code, views.message)))
        else:
            logits = view_logits(network, views, preprocess, fabric.device, views_per_forward)
            scores = average_views(logits, preprocess.average, multi_label=multi_label).numpy()
            rows.append((index, scores))
        if progress is not None:
            progress(len(rows), len(mine))
    together = sorted((row for part in gather(fabric, rows) for row in part), key=lambda row: row[0])
    if [index for index, _ in together] != list(range(len(clips))):
        raise MareyError("INTERNAL", "not every clip was scored exactly once; please report this")
    good = [(index, row) for index, row in together if not isinstance(row, Failure)]
    failed = [row for _, row in together if isinstance(row, Failure)]
    return Scored([index for index, _ in good], [row for _, row in good], failed)


def measure(
    scored: Scored,
    clips: ClipList,
    num_classes: int,
    multi_label: bool,
    average: str,
    *,
    sigmoids: bool = True,
) -> dict[str, Any]:
    """Metrics over the scored clips: `metrics` (in 0..1, and the mean loss), `per_class`, `confusion`.

    sigmoids  with multi_label: how logits become probabilities; False: by a softmax
    """
    if average == "none":  # views of one clip need not agree, nor be as many as another's
        return {"metrics": {}, "per_class": {"count": clips.counts(num_classes)}}
    scores = np.stack(scored.scores)
    labels = [clips[index].labels for index in scored.indices]
    if multi_label:
        targets = np.zeros((len(labels), num_classes), bool)
        for row, classes in enumerate(labels):
            targets[row, list(classes)] = True
        return {
            "metrics": {
                "map": mean_average_precision(scores, targets),
                "mmit_map": mmit_mean_average_precision(scores, targets),
                "top1": multi_label_top_k_accuracy(scores, targets, 1),
                "top5": multi_label_top_k_accuracy(scores, targets, 5),
                "loss": _binary_loss(scores, targets, average, sigmoids=sigmoids),
            },
            "per_class": {"count": targets.sum(0), "ap": average_precision(scores, targets)},
        }
    truth = np.array([classes[0] for classes in labels])
    confusion = confusion_matrix(truth, scores.argmax(1), num_classes)
    counts = confusion.sum(1)
    return {
        "metrics": {
            "top1": top_k_accuracy(scores, truth, 1),
            "top5": top_k_accuracy(scores, truth, 5),
            "mean_class": mean_class_accuracy(scores, truth),
            "loss": _loss(scores, truth, average),
        },
        "per_class": {"count": counts, "accuracy": np.diag(confusion) / np.maximum(counts, 1)},
        "confusion": confusion,
    }


def _loss(scores: np.ndarray, truth: np.ndarray, average: str) -> float:
    sure = _softmax(scores) if average == "score" else scores
    if average == "max":
        sure = sure / sure.sum(1, keepdims=True)
    return float(-np.log(np.maximum(sure[np.arange(len(truth)), truth], 1e-12)).mean())


def _softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores - scores.max(1, keepdims=True))
    shares: np.ndarray = scores / scores.sum(1, keepdims=True)
    return shares


def _binary_loss(scores: np.ndarray, targets: np.ndarray, average: str, *, sigmoids: bool) -> float:
    sure = scores
    if average == "score":
        sure = 1 / (1 + np.exp(-scores)) if sigmoids else _softmax(scores)
    return float(-np.log(np.maximum(np.where(targets, sure, 1 - sure), 1e-12)).mean())


def results(
    recipe: Recipe,
    scored: Scored,
    clips: ClipList,
    protocol: Protocol,
    *,
    classes: Sequence[str],
    checkpoint: str | None,
) -> dict[str, Any]:
    """What results.json holds: the numbers, what they were measured on and by which protocol."""
    average = recipe.clips.average
    several, sigmoids = bool(recipe.data.multi_label), recipe.data.independent
    found = measure(scored, clips, len(classes), several, average, sigmoids=sigmoids)
    columns = found["per_class"]
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    published, why = expected(recipe, protocol, classes, checkpoint)
    if why and checkpoint:
        print(f"note: not beside the published figures, for these differ: {why}", file=sys.stderr)
    return {
        "recipe": recipe.name,
        "checkpoint": checkpoint,
        **tested(recipe, checkpoint),
        "protocol": {**msgspec.to_builtins(recipe.clips.plan(protocol)), "average": average},
        "metrics": found["metrics"],
        "expected": msgspec.to_builtins(published),
        "listed": len(clips),
        "evaluated": len(scored.indices),
        "failed": [f._asdict() for f in scored.failed],
        "classes": list(classes),
        "per_class": [
            {"class": name, **dict(zip(columns, row, strict=True))}
            for name, row in zip(classes, rows, strict=True)
        ],
        "confusion": found["confusion"].tolist() if "confusion" in found else None,
        "list": clips.name,
        "fingerprint": clips.fingerprint(),
        "versions": environment(),
    }


def write_scores(path: Path, scored: Scored, clips: ClipList) -> None:
    """One row per clip (and view, when views are not averaged): path, label, view, scores."""
    rows = [
        (clips[index].path, list(clips[index].labels), view, row)
        for index, scores in zip(scored.indices, scored.scores, strict=True)
        for view, row in enumerate(np.atleast_2d(scores))
    ]
    paths, labels, views, values = zip(*rows, strict=True) if rows else ((), (), (), ())
    table = pa.table(
        {
            "path": pa.array([os.fsencode(p).decode("utf-8", "replace") for p in paths], pa.string()),
            "label": pa.array(labels, pa.list_(pa.int32())),
            "view": pa.array(views, pa.int32()),
            "scores": pa.array(list(values), pa.list_(pa.float32())),
        }
    )
    with replacing(path) as part:
        pq.write_table(table, part)


def check_metrics(names: Sequence[str], multi_label: bool, average: str) -> None:
    """Refuse metrics that the test will not have: UsageError UNKNOWN_METRIC with the nearest name."""
    several = ("map", "mmit_map", "top1", "top5", "loss")
    known = several if multi_label else ("top1", "top5", "mean_class", "loss")
    for name in names:
        if name not in known or average == "none":
            raise unknown("metric", name, () if average == "none" else known, code="UNKNOWN_METRIC")


def test(
    recipe: AnyRecipe | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    out: str | os.PathLike[str] | None = None,
    metrics: Sequence[str] = (),
    average_clips: str | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> dict[str, Any]:
    """Score a recipe's test list (else its validation list) with a checkpoint by the full test protocol.

    recipe         name, recipe.json or recipe; its `clips.test` is the protocol, its `data.test` the list, or
                   the records of features
    checkpoint     what `marey train` wrote, or any published layout that fits the recipe's network
    out            results file to write (.json); the scores go beside it, with the suffix .parquet. None:
                   results.json and scores.parquet of the checkpoint's run folder, when it lies in one
    metrics        the metrics to give; none named: all
    average_clips  "prob", "score", "max", or "none": scores per view and no metrics; None: as the recipe says
    Returns what results.json holds, in the first process; the others get the same.
    """
    chosen = load_recipe(recipe, overrides)
    where: dict[str, Any] = {"accelerator": accelerator, "devices": devices, "nodes": nodes}
    if isinstance(chosen, TagRecipe) and average_clips is None:
        return test_tags(chosen, checkpoint, out=out, metrics=metrics, **where)
    if isinstance(chosen, BoxRecipe) and average_clips is None:
        return test_boxes(chosen, checkpoint, out=out, metrics=metrics, **where)
    chosen = clip_recipe(chosen)
    plan = clip_recipe(load_recipe(chosen, {"clips.average": average_clips} if average_clips else {}))
    fabric = launch(accelerator=accelerator, devices=devices, nodes=nodes)
    model = setup.trained_model(plan, checkpoint)
    names = setup.known_names(model)
    lists = setup.open_lists(plan.data, training=False, classes=None if plan.data.classes else names)
    plan = setup.complete(setup.sized(plan, int(model.num_classes)), lists)  # type: ignore[arg-type]
    clips = lists.given()[0]
    classes = names or setup.class_names(lists, plan.model.num_classes or 0)
    _same_names(checkpoint, names, clips)
    _note_differences(plan, model)
    several = bool(plan.data.multi_label)
    check_metrics(metrics, several, plan.clips.average)
    with Pool(setup.decoding_workers(plan.data), plan.data.seconds) as pool:
        scored = score_list(
            model.to(fabric.device),
            clips,
            plan.clips,
            plan.clips.test,
            fabric=fabric,
            pool=pool,
            multi_label=plan.data.independent,
            views_per_forward=plan.testing.views_per_forward,
            progress=Progress("testing", quiet=not fabric.is_global_zero),
        )
    check_complete(scored.failed, len(clips), plan.data.max_bad_test)
    found = results(plan, scored, clips, plan.clips.test, classes=classes, checkpoint=str(checkpoint))
    found["metrics"] = {name: found["metrics"][name] for name in metrics or found["metrics"]}
    if fabric.is_global_zero:
        _leave(found, scored, clips, Path(out) if out else None, setup.run_of_checkpoint(checkpoint))
    return found


def _same_names(checkpoint: str | os.PathLike[str], names: tuple[str, ...] | None, clips: ClipList) -> None:
    """Labels mean the same to checkpoint and list, or the accuracy would be of something else."""
    listed = clips.classes
    for label, (name, other) in enumerate(zip(names or (), listed or (), strict=False)):
        if name != other and other != str(label):
            raise DataError(
                "LABEL_NAMES",
                f"label {label} is {name!r} in {checkpoint}, but {other!r} in {clips.name}; give the names "
                "in the checkpoint's order (data.classes=FILE)",
            )


def _note_differences(recipe: Recipe, model: nn.Module) -> None:
    """Say how the recipe feeds the network otherwise than it was trained."""
    own = getattr(model, "preprocess", None)
    if getattr(model, "metadata", None) is None or not isinstance(own, Preprocess):
        return
    fields = (
        *("frames", "interval", "sampling", "short_side", "crop", "mean", "std", "channel_order"),
        *("light", "input_size", "input_antialias"),
    )
    for name in fields:
        now, then = getattr(recipe.clips, name), getattr(own, name)
        if now != then:
            print(f"note: clips.{name} is {now}; the checkpoint was trained with {then}", file=sys.stderr)


def _leave(
    found: dict[str, Any], scored: Scored, clips: ClipList, out: Path | None, run: Path | None
) -> None:
    folder = out.parent if out else run
    if folder is None:
        return
    with replacing(out or folder / "results.json") as part:
        part.write_text(plain_json(found) + "\n", encoding="utf-8")
    write_scores((out.with_suffix(".parquet") if out else folder / "scores.parquet"), scored, clips)
    if run is not None and out is None:
        write_report(run)
