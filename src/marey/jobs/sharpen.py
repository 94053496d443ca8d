"""A checkpoint's norms are brought to videos without labels: statistics, and for surer answers more."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.fabric import Fabric
from torch import Tensor

from marey.data.clips import train_batches
from marey.data.lists import ClipList
from marey.data.workers import Pool
from marey.training.adapt import recompute_batch_norm
from marey.training.tent import Sharpened, lower_entropy
from marey.video.preprocess import normalize
from marey.weights.create import open_model
from marey.weights.native import save_checkpoint

BATCH = 16


def sharpen(
    checkpoint: Path,
    clips: ClipList,
    out: Path,
    *,
    fabric: Fabric,
    pool: Pool,
    lr: float = 1e-3,
    reliable: float = 0.5,
    diversity: float = 1.0,
    norms: int = 50,
    seed: int = 0,
) -> list[Sharpened]:
    """Pass once over the clips, whose labels are not read, and write the changed network to `out`.

    lr, reliable, diversity  as in `marey.training.tent.lower_entropy`
    norms  batches that the statistics of batch norms are measured on afterwards
    """
    model: Any = open_model(checkpoint).to(fabric.device)
    torch.manual_seed(seed)
    steps = lower_entropy(
        model, _batches(model, clips, fabric, pool, seed, 0), lr=lr, reliable=reliable, diversity=diversity
    )
    recompute_batch_norm(model, islice(_batches(model, clips, fabric, pool, seed, 1), norms))
    _save(out, model)
    return steps


def remeasure(
    checkpoint: Path,
    clips: ClipList,
    out: Path,
    *,
    fabric: Fabric,
    pool: Pool,
    norms: int = 50,
    seed: int = 0,
) -> None:
    """Write the network to `out` with the statistics of its batch norms on these clips; no label is read."""
    model: Any = open_model(checkpoint).to(fabric.device)
    recompute_batch_norm(model, islice(_batches(model, clips, fabric, pool, seed, 0), norms))
    _save(out, model)


def _batches(
    model: Any, clips: ClipList, fabric: Fabric, pool: Pool, seed: int, epoch: int
) -> Iterator[Tensor]:
    bare = clips.relabelled(np.zeros(len(clips), np.int64))
    drawn = train_batches(
        bare, model.preprocess, pool=pool, batch=BATCH, seed=seed, epoch=epoch,
        num_classes=1, multi_label=False,
    )  # fmt: skip
    for batch in drawn:
        if len(batch.frames) > 1:  # the statistics of one clip say little
            yield normalize(batch.frames.to(fabric.device), model.preprocess, batch.mirrored)


def _save(out: Path, model: Any) -> None:
    save_checkpoint(
        out,
        model,
        preprocess=model.preprocess,
        class_names=model.class_names,
        recipe=(model.metadata or {}).get("recipe", {}),
        metrics={},
    )
