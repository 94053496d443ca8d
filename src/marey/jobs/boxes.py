"""What the persons in boxes do: scores of every key frame, frame mAP, AVA's result files."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from lightning_fabric.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from marey.data.ava import AvaSet
from marey.data.ava_clips import KeySample, key_tests
from marey.data.clips import Failure, check_complete, test_indices
from marey.data.workers import Pool
from marey.errors import MareyError, MediaError, UsageError, unknown
from marey.jobs import setup
from marey.jobs.doctor import environment
from marey.jobs.progress import Progress
from marey.jobs.provenance import tested
from marey.jobs.report import leave_results
from marey.jobs.setup_boxes import Split, class_names, complete, counted, open_keys
from marey.metrics.ava import FrameMap, frame_map, result_rows
from marey.metrics.ava_explain import explain
from marey.metrics.ava_tables import Rows, write_results
from marey.models import DETECTORS
from marey.models.fold import folded
from marey.recipes.schema import BoxRecipe
from marey.training.distributed import gather, launch
from marey.video.preprocess import normalize

METRICS = ("map",)


class Seen(NamedTuple):
    """What a detector says of the proposals of one key frame.

    key     its name
    boxes   float64 [R, 4], the proposals, fractions of width and height
    scores  float32 [R, C], probabilities; column 0 stands for no action
    """

    key: str
    boxes: NDArray[np.float64]
    scores: NDArray[np.float32]


class Scored(NamedTuple):
    """The key frames of a split that could be read, in its order, and those that could not."""

    seen: list[Seen]
    failed: list[Failure]


def clip_of(sample: KeySample, recipe: BoxRecipe, device: torch.device) -> Tensor:
    """The network's input for one key frame: float [1, 3, T, H, W]."""
    mirrored = torch.tensor([sample.mirrored])
    return normalize(sample.frames.unsqueeze(0).to(device), recipe.clips, mirrored)


@torch.inference_mode()
def score_keys(
    model: nn.Module,
    split: Split,
    recipe: BoxRecipe,
    *,
    pool: Pool,
    fabric: Fabric,
    progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Probabilities of the proposals of every key frame, the same in every process and for any number.

    Every clip goes through the network alone, a whole frame large, so that nothing depends on what else is
    in the split.
    """
    network: Any = folded(model)
    frames = split.frames
    mine = test_indices(len(frames), fabric.world_size, fabric.global_rank)
    rows: list[tuple[int, Seen | Failure]] = []
    for index, sample in key_tests(frames, mine, recipe.clips, recipe.data.key_frames, pool=pool):
        if isinstance(sample, MediaError):
            path = frames.media[frames[index].video]
            rows.append((index, Failure(index, path, sample.code, sample.message)))
        else:
            rows.append((index, _seen(network, frames, index, sample, split, recipe, fabric.device)))
        if progress is not None:
            progress(len(rows), len(mine))
    together = sorted((row for part in gather(fabric, rows) for row in part), key=lambda row: row[0])
    if [index for index, _ in together] != list(range(len(frames))):
        raise MareyError("INTERNAL", "not every key frame was scored exactly once; please report this")
    seen = [row for _, row in together if isinstance(row, Seen)]
    return Scored(seen, [row for _, row in together if isinstance(row, Failure)])


def _seen(
    network: Any,
    frames: AvaSet,
    index: int,
    sample: KeySample,
    split: Split,
    recipe: BoxRecipe,
    device: torch.device,
) -> Seen:
    frame, count = frames[index], len(sample.proposals)
    if not count:
        return Seen(frame.key, frame.proposals, np.empty((0, frames.num_classes), np.float32))
    window = []
    if split.bank is not None:
        key = [(frame.video, frame.second)]
        window = [windows(split, recipe, key, [count], seed=recipe.testing.seed).to(device)]
    logits = network(clip_of(sample, recipe, device), [sample.proposals.to(device)], *window).float()
    scores = logits.softmax(1) if recipe.boxes.single else logits.sigmoid()
    return Seen(frame.key, frame.proposals, scores.cpu().numpy())


def windows(
    split: Split,
    recipe: BoxRecipe,
    keys: Sequence[tuple[str, float]],
    counts: Sequence[int],
    *,
    seed: int,
    epoch: int | None = None,
) -> Tensor:
    """Windows of the split's bank, as long as the network's: float [sum of counts, S, C]."""
    assert split.bank is not None
    return split.bank.look_up(keys, counts, seed=seed, epoch=epoch, **window_size(recipe))


def window_size(recipe: BoxRecipe) -> dict[str, int]:
    """`window` and `per_step` of the recipe's network, or what it would have with long_term."""
    given, usual = recipe.model.options, signature(DETECTORS[recipe.model.name]).parameters
    return {name: int(given.get(name, usual[name].default)) for name in ("window", "per_step")}


def found_rows(recipe: BoxRecipe, seen: Sequence[Seen]) -> Rows:
    """Results as AVA counts them, above `testing.threshold`, actions by their numbers in the annotation."""
    custom, threshold = recipe.data.actions or None, recipe.testing.threshold
    return result_rows(list(seen), threshold=threshold, custom=custom, single=recipe.boxes.single)


def results(
    recipe: BoxRecipe,
    scored: Scored,
    split: Split,
    *,
    classes: Sequence[str],
    actions: dict[int, str] | None,
    checkpoint: str | None,
) -> tuple[dict[str, Any], Rows]:
    """What results.json holds, and the rows of AVA's result file."""
    found = found_rows(recipe, scored.seen)
    measured = None
    if split.truth is not None:
        measured = frame_map(
            split.truth, found, names=actions, excluded=split.excluded, protocol=recipe.testing.protocol
        )
    return {
        "recipe": recipe.name,
        "checkpoint": checkpoint,
        **tested(recipe, checkpoint),
        "protocol": {
            "evaluator": recipe.testing.protocol,
            "iou": 0.5,
            "threshold": recipe.data.threshold,
            "short_side": recipe.clips.short_side,
        },
        "metrics": {} if measured is None else {"map": None if np.isnan(measured.map) else measured.map},
        "expected": msgspec.to_builtins(recipe.published),
        "unit": "key frames",
        "counted": "persons",
        "listed": len(split.frames),
        "evaluated": len(scored.seen),
        "failed": [failure._asdict() for failure in scored.failed],
        "classes": list(classes),
        "per_class": [] if measured is None else list(_per_class(measured)),
        "explained": [] if measured is None or split.truth is None else explain(measured, split.truth, found),
        "results": len(found.action),
        "list": split.name,
        "versions": environment(),
    }, found


def _per_class(measured: FrameMap) -> Iterator[dict[str, Any]]:
    columns = (measured.actions.tolist(), measured.names, measured.ap, measured.truths)
    for label, name, ap, truths in zip(*columns, strict=True):
        yield {
            "class": name,
            "label": label,
            "count": int(truths),
            "ap": None if np.isnan(ap) else float(ap),
        }


def test_boxes(
    recipe: BoxRecipe,
    checkpoint: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    metrics: Sequence[str] = (),
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> dict[str, Any]:
    """Score the proposals of a recipe's test split (else its validation split) with a checkpoint.

    The rows go beside the results, with the suffix .csv, as AVA's result files are. See
    `marey.jobs.evaluate.test`. Raises UsageError BANK_MODEL for a bank of other weights than the training's.
    """
    for name in metrics:
        if name not in METRICS:
            raise unknown("metric", name, METRICS, code="UNKNOWN_METRIC")
    fabric = launch(accelerator=accelerator, devices=devices, nodes=nodes)
    model: Any = setup.trained_model(recipe, checkpoint)
    recipe = _as_trained(recipe, model)
    lists = open_keys(recipe, training=False)
    recipe = complete(recipe, lists)
    split = lists.given()[0]
    known = setup.known_names(model)
    with Pool(setup.decoding_workers(recipe.data), recipe.data.seconds) as pool:
        scored = score_keys(
            model.to(fabric.device),
            split,
            recipe,
            pool=pool,
            fabric=fabric,
            progress=Progress("testing", quiet=not fabric.is_global_zero),
        )
    check_complete(scored.failed, len(split.frames), recipe.data.max_bad_test, "key frames")
    found, rows = results(
        recipe,
        scored,
        split,
        classes=known or class_names(recipe, lists.actions),
        actions=counted(recipe, lists.actions),
        checkpoint=str(checkpoint),
    )
    if fabric.is_global_zero:
        for line in found["explained"]:
            print(f"note: {line}", file=sys.stderr)
        leave_results(
            found,
            Path(out) if out else None,
            setup.run_of_checkpoint(checkpoint),
            lambda path: write_results(path.with_suffix(".csv"), rows),
        )
    return found


def _as_trained(recipe: BoxRecipe, model: Any) -> BoxRecipe:
    """The recipe with the network's own arguments, and whose bank it was trained on."""
    plan = msgspec.structs.replace(
        recipe.model, num_classes=int(model.num_classes), options=model.spec["overrides"]
    )
    card = (getattr(model, "metadata", None) or {}).get("recipe") or {}
    trained = (card.get("data") or {}).get("bank_weights")
    named = recipe.data.bank_weights
    if trained and named and trained != named:
        raise UsageError(
            "BANK_MODEL", f"the recipe names a bank of weights {named[:12]}, the checkpoint {trained[:12]}"
        )
    data = msgspec.structs.replace(recipe.data, bank_weights=trained or named)
    return msgspec.structs.replace(recipe, model=plan, data=data)
