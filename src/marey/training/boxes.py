"""What a detector learns from: targets of the boxes it is shown, the loss, and how right it is.

As open-mmlab/mmaction2@v0.24.1 does on mmdet 2: a proposal that overlaps a person well has that person's
actions, the persons themselves are shown too, and boxes without an action do not enter the loss. Column 0 of
logits and labels stands for no action and is never used. Boxes are left, top, right, bottom in pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from marey.errors import MareyError


class Shown(NamedTuple):
    """The boxes of one clip that a step shows to the network, those of persons first.

    boxes   float32 [R, 4]
    labels  float32 [R, C], actions of the person each stands for, zero for none
    persons how many stand for a person
    """

    boxes: Tensor
    labels: Tensor
    persons: int


def match(boxes: Tensor, proposals: Tensor, iou: float = 0.9) -> Tensor:
    """int64 [M], the person that each proposal stands for, -1 for none: the one that it overlaps most.

    boxes, proposals  float32 [N, 4] and [M, 4]
    iou               smallest overlap
    The proposals that overlap a person most stand for this one even if they overlap another more; of several
    such persons the last.
    """
    chosen = torch.full((len(proposals),), -1, dtype=torch.int64)
    if not len(boxes) or not len(proposals):
        return chosen
    shared = _overlaps(boxes, proposals)
    most, nearest = shared.max(0)
    chosen[most >= iou] = nearest[most >= iou]
    for person, row in enumerate(shared):
        if row.max() >= iou:
            chosen[row == row.max()] = person
    return chosen


def _overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of a with every one of b: [N, M]."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = (high - low).clamp(min=0).prod(2)
    areas = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    return inner / (areas[0][:, None] + areas[1][None] - inner).clamp(min=1e-6)


def shown(
    boxes: Tensor,
    labels: Tensor,
    proposals: Tensor,
    *,
    rng: np.random.Generator,
    iou: float = 0.9,
    most: int = 32,
) -> Shown:
    """The persons of a clip and its proposals, with their targets.

    boxes, labels  float32 [N, 4] and [N, C], the persons
    proposals      float32 [M, 4]
    rng            which are taken when there are more than `most`: of persons' boxes any, others fill up
    """
    chosen = torch.cat([torch.arange(len(boxes)), match(boxes, proposals, iou)])
    every = torch.cat([boxes, proposals])
    right, wrong = (np.flatnonzero(part.numpy()) for part in (chosen >= 0, chosen < 0))
    if len(right) > most:
        right = np.sort(rng.choice(right, most, replace=False))
    if len(wrong) > most - len(right):
        wrong = np.sort(rng.choice(wrong, most - len(right), replace=False))
    taken = torch.from_numpy(np.concatenate([right, wrong]))
    targets = torch.zeros((len(taken), labels.shape[1]), dtype=labels.dtype)
    targets[: len(right)] = labels[chosen[taken[: len(right)]]]
    return Shown(every[taken], targets, len(right))


def box_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 1.0, gamma: float = 0.0, single: bool = False
) -> Tensor:
    """Mean loss of the boxes that have an action; 0, and no gradient, if none has.

    logits, labels  [R, C], C >= 2
    alpha, gamma    focal form alpha * (1 - exp(-l)) ** gamma * l of each part l of the loss
    single          one action for each box: softmax over classes; else every class is decided alone
    Raises MareyError SCORES_SHAPE.
    """
    logits, labels = _acting(logits, labels)
    if not len(labels):
        return logits.sum() * 0.0
    if single:
        each = F.cross_entropy(logits, labels / labels.sum(1, keepdim=True), reduction="none")
    else:
        each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    if gamma:
        each = (1 - torch.exp(-each)) ** gamma * each
    return alpha * each.mean()


def box_terms(
    logits: Tensor, labels: Tensor, *, top: tuple[int, ...] = (3, 5), single: bool = False
) -> dict[str, Tensor]:
    """Recall and precision of the boxes that have an action, mean over boxes (NaN if none has), by name.

    Of the classes above a probability of 0.5, or with `single` of the best one (`recall`, `precision`), and
    of the best k (`recall_top3`, ...).
    """
    logits, labels = _acting(logits.detach(), labels)
    guesses = {"": _best(logits, 1) if single else logits.sigmoid() > 0.5}
    guesses |= {f"_top{k}": _best(logits, k) for k in top}
    terms = {}
    for name, guess in guesses.items():
        right = (guess & (labels > 0)).sum(1)
        terms[f"recall{name}"] = (right / labels.sum(1)).mean()
        terms[f"precision{name}"] = (right / (guess.sum(1) + 1e-6)).mean()
    return terms


def _best(logits: Tensor, k: int) -> Tensor:
    """bool [R, C], the k best classes of each row."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, True)


def _acting(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of the boxes that have an action, without column 0."""
    if logits.ndim != 2 or logits.shape != labels.shape or logits.shape[1] < 2:
        raise MareyError("SCORES_SHAPE", f"logits {list(logits.shape)} for labels {list(labels.shape)}")
    kept = labels[:, 1:].sum(1) > 0
    return logits[kept, 1:], labels[kept, 1:].to(logits.dtype)
