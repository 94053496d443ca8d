"""From the scores of a video's views to the scores of the video."""

from typing import Literal

from torch import Tensor

from marey.errors import MareyError, unknown


def average_views(
    logits: Tensor, how: Literal["prob", "score", "none"] = "prob", *, multi_label: bool = False
) -> Tensor:
    """Scores of a video from those of its views.

    logits       float [V, C], V >= 1
    how          "prob": mean of the views' probabilities, float [C]. "score": mean of the logits, float [C].
                 "none": the logits of every view, [V, C], as they are
    multi_label  probabilities are sigmoids, not a softmax
    Raises MareyError SCORES_SHAPE, UNKNOWN_NAME.
    """
    if logits.ndim != 2 or not len(logits):
        raise MareyError("SCORES_SHAPE", f"logits must be [views, classes], not {list(logits.shape)}")
    if how == "prob":
        return (logits.sigmoid() if multi_label else logits.softmax(1)).mean(0)
    if how == "score":
        return logits.mean(0)
    if how == "none":
        return logits
    raise unknown("way to average views", how, ("prob", "score", "none"))
