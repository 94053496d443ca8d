"""Losses. Each takes raw logits [B, C] and gives the mean over the clips or videos of the batch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def classification_loss(
    logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Cross entropy, mean over the batch.

    targets        int64 [B], or float [B, C] soft targets: mean over clips of -sum(target * log softmax)
    smoothing      hard labels become (1 - s) * one-hot + s / C
    class_weights  float [C]: each clip's loss times the weight of its class, mean over the batch's weights
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if targets.is_floating_point():
        per_clip = -(targets * F.log_softmax(logits, dim=1)).sum(1)
        weights = targets @ class_weights if class_weights is not None else None
        return per_clip.mean() if weights is None else (per_clip * weights).sum() / weights.sum()
    return F.cross_entropy(logits, targets, weight=class_weights, label_smoothing=smoothing)


def soft_targets(targets: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Labels int64 [B] as float [B, C]: (1 - s) * one-hot + s / C. Float targets stay as they are."""
    if targets.is_floating_point():
        return targets
    off = smoothing / num_classes
    hot = torch.full((len(targets), num_classes), off, device=targets.device)
    return hot.scatter_(1, targets.unsqueeze(1), 1 - smoothing + off)


def multi_label_loss(logits: Tensor, targets: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Binary cross entropy of each class, mean over clips and classes; targets float [B, C] in 0..1."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets, weight=class_weights, reduction="mean")
    return torch.as_tensor(loss)


def tagging_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy summed over classes, mean over videos; targets [B, C], 0 or 1.

    As PaddlePaddle/models@b71cf63:PaddleCV/video/models/nextvlad has it.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return losses.sum(dim=1).mean()


def soft_label_loss(logits: Tensor, probabilities: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence from soft pseudo-labels as Andy1621/Nightcrawler@259fa5b9e6a8 has it, where no run uses it.

    KL between the label's probabilities [B, C] in half precision, divided by the temperature (so that they do
    not sum to 1), and softmax(logits / temperature); the mean over rows *and classes*, times temperature^2.
    `classification_loss` takes soft targets too, and is the usual loss.
    """
    target = (probabilities.half() / temperature).float()
    logs = F.log_softmax(logits.float() / temperature, dim=1)
    return F.kl_div(logs, target, reduction="none").mean() * temperature**2
