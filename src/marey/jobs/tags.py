"""Tags of videos from records of their frame features: measured against labels, or written to a file."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import nn

from marey.data.clips import Failures, test_indices
from marey.data.feature_card import YOUTUBE8M, feature_card, not_comparable
from marey.data.shards import Shards
from marey.data.workers import Pool
from marey.data.youtube8m import Batch, Layout, batches
from marey.errors import UsageError
from marey.files import replacing
from marey.metrics.gap import TaggingMetrics, ranked
from marey.training.losses import tagging_loss

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("classes", pa.list_(pa.int32())),
        ("names", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("comparable", pa.bool_()),
    ]
)


class Tags(msgspec.Struct, frozen=True, omit_defaults=True):
    """The best tags of a video, surest first: classes, their names (numbers where unknown), probabilities.

    comparable  False: the network was trained on features of another kind, so the scores mean nothing
    """

    id: str
    classes: tuple[int, ...]
    names: tuple[str, ...]
    scores: tuple[float, ...]
    comparable: bool = True


class Scored(NamedTuple):
    """A batch, and its logits and probabilities, float32 [B, C]."""

    batch: Batch
    logits: torch.Tensor
    scores: NDArray[np.float32]


def layout_of(model: nn.Module, *, max_frames: int = 300) -> Layout:
    """What records must hold for a `nextvlad`. Raises UsageError NO_CLIPS for other networks."""
    rgb, audio = getattr(model, "rgb", None), getattr(model, "audio", None)
    if rgb is None:
        raise UsageError("NO_CLIPS", "the network takes clips, not features of frames; tags need `nextvlad`")
    width = audio.expansion.in_features if audio is not None else 0
    classes: Any = model.num_classes
    return Layout(rgb=rgb.expansion.in_features, audio=width, num_classes=int(classes), max_frames=max_frames)


def trained_on(model: nn.Module) -> str | None:
    """Of which features a network knows the meaning: a fingerprint, or YOUTUBE8M; None: not known.

    A checkpoint says so itself, and without a word it is YouTube-8M's own; a network that undoes YouTube-8M's
    whitening is for these alone.
    """
    card = getattr(model, "metadata", None)
    if card and card.get("features"):
        return str(card["features"]["fingerprint"])
    whitened = getattr(getattr(model, "rgb", None), "scale", None) is not None
    return YOUTUBE8M if card or whitened else None


def comparable(model: nn.Module, shards: Shards) -> bool:
    """Whether the features of these records are those that the network knows; if not, stderr says why.

    Raises DataError FEATURES_MIXED, FEATURES_CARD.
    """
    why = not_comparable(trained_on(model), feature_card(shards.paths))
    if why is not None:
        print(f"marey: FEATURES_DIFFER: {why}", file=sys.stderr)
    return why is None


@torch.inference_mode()
def score_shards(
    model: nn.Module,
    shards: Shards,
    layout: Layout,
    *,
    pool: Pool,
    failures: Failures,
    batch: int = 40,
    world: int = 1,
    rank: int = 0,
) -> Iterator[Scored]:
    """The records of process `rank`, each once over all processes, batch by batch, the last one smaller.

    The network is put into evaluation mode and used on the device that it is on. Records that cannot be read
    go to `failures`, which raises DataError TOO_MANY_BAD beyond its limit.
    """
    model.eval()
    device = next(model.parameters()).device
    own = test_indices(len(shards), world, rank)
    steps = [own[first : first + batch] for first in range(0, len(own), batch)]
    for found in batches(shards, steps, layout, pool=pool):
        for failure in found.failures:
            failures.add(failure)
        if not found.ids:
            continue
        inputs = found.rgb.to(device), found.audio.to(device) if layout.audio else None
        logits = model(*inputs, found.lengths.to(device)).float().cpu()
        yield Scored(found, logits, logits.sigmoid().numpy())


def evaluate_tags(
    model: nn.Module,
    shards: Shards,
    *,
    top: int = 20,
    batch: int = 40,
    workers: int = 0,
    max_bad: float = 0.0,
) -> dict[str, Any]:
    """GAP@top, Hit@1, PERR, mAP and loss over all records; memory does not grow with their number.

    max_bad  share of the records, 0..1, that may be unreadable; they are named under `skipped`
    Raises DataError TOO_MANY_BAD, LABEL_RANGE; MareyError NO_VIDEOS.
    """
    layout, known = layout_of(model), comparable(model, shards)
    failures = Failures(limit=max_bad, listed=len(shards), what="the shards")
    metrics, loss = TaggingMetrics(layout.num_classes, top), 0.0
    with Pool(workers, 600) as pool:
        for one in score_shards(model, shards, layout, pool=pool, failures=failures, batch=batch):
            metrics.add(one.scores, one.batch.labels.numpy())
            loss += float(tagging_loss(one.logits, one.batch.labels)) * len(one.batch.ids)
    found = metrics.result()
    return {
        "videos": found.videos,
        "listed": len(shards),
        "comparable": known,
        "metrics": {
            f"gap@{top}": found.gap,
            "hit@1": found.hit_at_1,
            "perr": found.perr,
            "map": None if np.isnan(found.map) else found.map,
            "map_2018": found.map_2018,
            "loss": loss / found.videos,
        },
        "classes_with_positives": int((~np.isnan(found.ap)).sum()),
        "skipped": [
            {"record": bad.path, "code": bad.code, "message": bad.message} for bad in failures.files.values()
        ],
        "lost": [error.message for error in shards.lost],
    }


def predict_tags(
    model: nn.Module,
    shards: Shards,
    *,
    names: Sequence[str] | None = None,
    top: int = 20,
    threshold: float = 0.0,
    batch: int = 40,
    workers: int = 0,
    failures: Failures | None = None,
) -> Iterator[Tags]:
    """The `top` surest tags of every video that have at least the probability `threshold`.

    names     of the classes; None: the network's, or numbers
    failures  counts what cannot be read; None: nothing may be unreadable
    """
    layout, known = layout_of(model), comparable(model, shards)
    names = names or getattr(model, "class_names", None) or [str(i) for i in range(layout.num_classes)]
    if len(names) != layout.num_classes:
        raise UsageError("CLASS_NAMES", f"{len(names)} class names for {layout.num_classes} classes")
    failures = failures or Failures(limit=0.0, listed=len(shards), what="the shards")
    with Pool(workers, 600) as pool:
        for one in score_shards(model, shards, layout, pool=pool, failures=failures, batch=batch):
            best = ranked(one.scores, top)
            for video, classes, scores in zip(one.batch.ids, best.tolist(), one.scores, strict=True):
                kept = [c for c in classes if scores[c] >= threshold]
                chosen = tuple(names[c] for c in kept), tuple(float(scores[c]) for c in kept)
                yield Tags(video, tuple(kept), *chosen, known)


def write_tags(tags: Iterable[Tags], path: str | os.PathLike[str], *, submission: bool = False) -> int:
    """Write tags to a .jsonl, .csv or .parquet file, whole or not at all; gives the number of videos.

    submission  the CSV of the YouTube-8M challenge: VideoId and LabelConfidencePairs, "class score ..."
    Raises UsageError OUT_SUFFIX.
    """
    path = Path(path)
    writers: dict[str, Callable[[Path], Any]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if submission:
        writers = {".csv": _submission}
    if path.suffix.lower() not in writers:
        raise UsageError("OUT_SUFFIX", f"{str(path)!r}: tags are written as {', '.join(writers)}")
    count = 0
    with replacing(path) as part, writers[path.suffix.lower()](part) as write:
        for one in tags:
            write(one)
            count += 1
    return count


@contextmanager
def _jsonl(part: Path) -> Iterator[Callable[[Tags], Any]]:
    with part.open("w", encoding="utf-8") as file:
        yield lambda one: file.write(json.dumps(msgspec.to_builtins(one), ensure_ascii=False) + "\n")


@contextmanager
def _csv(part: Path) -> Iterator[Callable[[Tags], Any]]:
    with part.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(SCHEMA.names)
        yield lambda one: table.writerow(
            [
                *(one.id, *(";".join(map(str, part)) for part in (one.classes, one.names, one.scores))),
                str(one.comparable).lower(),
            ]
        )


@contextmanager
def _parquet(part: Path) -> Iterator[Callable[[Tags], Any]]:
    with pq.ParquetWriter(part, SCHEMA) as table:
        held: list[dict[str, Any]] = []

        def write(one: Tags) -> None:
            held.append(msgspec.structs.asdict(one))
            if len(held) == 1000:
                flush()

        def flush() -> None:
            table.write_table(pa.Table.from_pylist(held, schema=SCHEMA))
            held.clear()

        yield write
        flush()


@contextmanager
def _submission(part: Path) -> Iterator[Callable[[Tags], Any]]:
    with part.open("w", encoding="utf-8", newline="\n") as file:
        file.write("VideoId,LabelConfidencePairs\n")

        def write(one: Tags) -> None:
            pairs = (f"{c} {score:g}" for c, score in zip(one.classes, one.scores, strict=True))
            file.write(f"{one.id},{' '.join(pairs)}\n")

        yield write
