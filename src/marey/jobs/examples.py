"""Which clips of a tested list are worth a look, and strips of their frames."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from marey.jobs.charts import Floats
from marey.video.limits import Limits
from marey.video.reader import read_video

FRAMES = 4  # of a strip
HEIGHT = 96  # pixels
LIMITS = Limits(seconds=20.0, pixels=16_000_000)  # a strip is not worth more


class Scores(NamedTuple):
    """The content of scores.parquet, averaged over views.

    paths   one per clip
    labels  class indices of each clip
    values  float32 [N, C]
    """

    paths: list[str]
    labels: list[list[int]]
    values: Floats


def read_scores(path: Path) -> Scores:
    """Read a run's scores.parquet. Raises OSError, KeyError or ValueError (also pyarrow's) if it is none."""
    table = pq.read_table(path)
    rows = table.column("scores").combine_chunks()
    width = len(rows.flatten()) // max(len(rows), 1)
    if pa.compute.any(pa.compute.not_equal(pa.compute.list_value_length(rows), width)).as_py():
        raise ValueError("its rows hold different numbers of scores")
    values = rows.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), width).astype(np.float32)
    paths, labels = table.column("path").to_pylist(), table.column("label").to_pylist()
    if "view" in table.column_names and len(rows):  # a clip begins where its views are counted from 0 again
        starts = np.flatnonzero(table.column("view").to_numpy() == 0)
        counts = np.diff([*starts.tolist(), len(rows)])
        values = np.add.reduceat(values, starts, axis=0) / counts[:, None].astype(np.float32)
        paths, labels = [paths[i] for i in starts], [labels[i] for i in starts]
    return Scores(paths, labels, values)


def probabilities(logits: Floats, *, multi_label: bool) -> Floats:
    """Logits [N, C] as probabilities: softmax over the classes, or with several labels sigmoid of each."""
    raised: Floats
    if multi_label:
        raised = np.exp(logits.clip(-60, 60))
        return raised / (1 + raised)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    raised /= raised.sum(axis=1, keepdims=True)
    return raised


def worth_a_look(scores: Scores, probability: Floats, count: int = 6) -> dict[str, list[int]]:
    """Up to `count` clips of each kind: surest and right, surest and wrong, least sure though right.

    A clip is right when its best class is one of its labels; how sure it is, is that class's probability.
    """
    if not scores.paths or not probability.shape[1]:
        return {}
    best = probability.argmax(axis=1)
    sure = probability[np.arange(len(best)), best]
    right = np.array([label in labels for label, labels in zip(best.tolist(), scores.labels, strict=True)])
    falling = np.argsort(-sure, kind="stable")
    first = falling[right[falling]][:count].tolist()
    wrong = falling[~right[falling]][:count].tolist()
    rising = falling[::-1]
    unsure = [index for index in rising[right[rising]].tolist() if index not in first][:count]
    return {"Surest and right": first, "Surest and wrong": wrong, "Least sure, yet right": unsure}


def strip(path: str, template: str | None = None) -> bytes:
    """A JPEG of four frames from the middles of a clip's quarters, side by side. Raises MediaError."""
    with read_video(path, template=template if Path(path).is_dir() else None, limits=LIMITS) as video:
        frames = video.frames(middles(len(video))).numpy()
    return jpeg_strip(frames)


def middles(length: int) -> list[int]:
    """Frames from the middles of a video's quarters."""
    return [int((i + 0.5) * length / FRAMES) for i in range(FRAMES)]


def jpeg_strip(frames: npt.NDArray[np.uint8]) -> bytes:
    """Frames [N, H, W, 3] as one JPEG, small and side by side."""
    return _jpeg([_small(frame) for frame in frames])


def _small(frame: npt.NDArray[np.uint8]) -> Image.Image:
    height, width = frame.shape[:2]
    size = (max(round(width * HEIGHT / height), 1), HEIGHT)
    return Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)


def _jpeg(pictures: Sequence[Image.Image]) -> bytes:
    width = pictures[0].width
    wide = Image.new("RGB", ((width + 2) * len(pictures) - 2, HEIGHT), (128, 128, 128))
    for number, picture in enumerate(pictures):
        wide.paste(picture, (number * (width + 2), 0))
    data = io.BytesIO()
    wide.save(data, "JPEG", quality=80)
    return data.getvalue()
