"""Videos, labelled or not, become a table of scores: logits and probabilities over a protocol's views."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from lightning_fabric.fabric import Fabric
from torch import nn

from marey.data.clips import Failure, check_complete
from marey.data.lists import ClipList, read_list
from marey.data.workers import Pool
from marey.jobs.evaluate import score_list
from marey.jobs.progress import Progress
from marey.jobs.provenance import card_path, now, sha256_of, write_card
from marey.jobs.setup import cores
from marey.scores.files import write_scores
from marey.scores.table import Producer, ScoreTable, score_table, softmax
from marey.training.distributed import launch
from marey.video.preprocess import Preprocess, Protocol
from marey.weights.create import open_model


class Scoring(NamedTuple):
    """The table of the videos that could be read, in the order of the list, and those that could not."""

    table: ScoreTable
    failed: list[Failure]


def score_clips(
    model: nn.Module,
    clips: ClipList,
    preprocess: Preprocess,
    protocol: Protocol,
    *,
    fabric: Fabric,
    pool: Pool,
    producer: Producer | None = None,
    views_per_forward: int = 10,
    max_bad: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Scoring:
    """Score every video once under every view of a protocol; no label is read.

    The table holds the means over the views of logits and of probabilities, the number of views, and ids as
    the list writes them. The labels are those of the list, -1 where it has none. Raises DataError INCOMPLETE
    where more than a share `max_bad` cannot be read, SCORES_DUPLICATE where a video is listed twice.
    """
    views = msgspec.structs.replace(preprocess, average="none")
    scored = score_list(
        model,
        clips,
        views,
        protocol,
        fabric=fabric,
        pool=pool,
        multi_label=False,
        views_per_forward=views_per_forward,
        progress=progress,
    )
    check_complete(scored.failed, len(clips), max_bad)
    names: Any = getattr(model, "class_names", None)
    labels = [clips.labels(index) for index in scored.indices]
    table = score_table(
        [clips.written(index) for index in scored.indices],
        logits=np.stack([rows.mean(axis=0, dtype=np.float64) for rows in scored.scores]),
        probabilities=np.stack([softmax(rows).mean(axis=0) for rows in scored.scores]),
        clips=[len(rows) for rows in scored.scores],
        labels=[own[0] if len(own) == 1 else -1 for own in labels],
        classes=names,
        producer=producer or Producer(),
    )
    return Scoring(table, scored.failed)


def score_videos(
    checkpoint: str | os.PathLike[str],
    listed: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    protocol: Protocol | None = None,
    root: str | os.PathLike[str] | None = None,
    template: str | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    workers: int = -1,
    views_per_forward: int = 10,
    max_bad: float = 0.0,
) -> Scoring:
    """Score a list, with or without labels, by a checkpoint or release, and write the table.

    listed    list of videos, or folder; `root` is the folder that its names start from
    out       .parquet file of scores; a card beside it names checkpoint, list and protocol. None: not written
    protocol  clips, crops and lights of each video; None: the test protocol of the network
    Several processes (torchrun) share the list; the first writes.
    """
    started = now()
    fabric = launch(accelerator=accelerator, devices=devices)
    model: Any = open_model(checkpoint)
    clips = read_list(listed, root=root, template=template)
    how = protocol or model.preprocess.test
    plan = msgspec.to_builtins(model.preprocess.plan(how))
    file = Path(checkpoint)
    producer = Producer(
        model=(getattr(model, "spec", None) or {}).get("name", str(checkpoint)),
        sha256=sha256_of(file) if file.is_file() else "",
        recipe=(getattr(model, "metadata", None) or {}).get("recipe", {}).get("name", ""),
        views=", ".join(f"{key} {value}" for key, value in plan.items() if value not in (None, [], False)),
    )
    with Pool(cores() if workers < 0 else workers, 60.0) as pool:
        found = score_clips(
            model.to(fabric.device),
            clips,
            model.preprocess,
            how,
            fabric=fabric,
            pool=pool,
            producer=producer,
            views_per_forward=views_per_forward,
            max_bad=max_bad,
            progress=Progress("scoring", quiet=not fabric.is_global_zero),
        )
    if out is not None and fabric.is_global_zero:
        write_scores(out, found.table)
        inputs = {"list": listed} if Path(listed).is_file() else {}
        inputs |= {"checkpoint": file} if file.is_file() else {}
        settings = {"checkpoint": producer.sha256 or str(checkpoint), "protocol": plan}
        settings |= {"videos": clips.fingerprint(), "failed": len(found.failed)}
        write_card(card_path(out), "score", settings, inputs, {"scores": out}, started=started)
    return found
