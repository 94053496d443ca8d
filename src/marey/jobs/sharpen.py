"""A checkpoint is made surer of unlabelled videos: its norms move, then their statistics are measured."""

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
    bare = clips.relabelled(np.zeros(len(clips), np.int64))

    def batches(epoch: int) -> Iterator[Tensor]:
        drawn = train_batches(
            bare, model.preprocess, pool=pool, batch=BATCH, seed=seed, epoch=epoch,
            num_classes=1, multi_label=False,
        )  # fmt: skip
        for batch in drawn:
            if len(batch.frames) > 1:  # the statistics of one clip say little
                yield normalize(batch.frames.to(fabric.device), model.preprocess, batch.mirrored)

    torch.manual_seed(seed)
    steps = lower_entropy(model, batches(0), lr=lr, reliable=reliable, diversity=diversity)
    recompute_batch_norm(model, islice(batches(1), norms))
    save_checkpoint(
        out,
        model,
        preprocess=model.preprocess,
        class_names=model.class_names,
        recipe=(model.metadata or {}).get("recipe", {}),
        metrics={},
    )
    return steps
