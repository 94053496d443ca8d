"""Tables of scores as files: Parquet, what `marey test` writes, and the pickles of Nightcrawler.

A Parquet file has the columns id, label, clips, and logits, probabilities or both; class names and producer
are JSON in its metadata.
"""

import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from marey.errors import DataError, MareyError, UsageError
from marey.files import replacing
from marey.pickles import read_pickle
from marey.scores.table import Kind, Producer, ScoreTable, score_table, softmax, sums

KEY = b"marey.scores"  # of the metadata entry that holds class names and producer, as JSON
FORMAT = 1
KINDS = ("logits", "probabilities")
PUBLISHED_NAME = re.compile(r".+x\d+x\d+x(\d+)x(\d+)$")  # subset x frames x crop x views x crops


def write_scores(path: str | os.PathLike[str], table: ScoreTable) -> None:
    """Write a table as Parquet, whole or not at all. Raises EnvironmentFault where the disk fails."""
    columns: dict[str, Any] = {
        "id": pa.array(table.ids, pa.string()),
        "label": pa.array(table.labels, pa.int32()),
        "clips": pa.array(table.clips, pa.int32()),
    }
    for name in KINDS:
        if (values := getattr(table, name)) is not None:
            offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
            columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))
    card = {"format": FORMAT, "classes": table.classes, "producer": table.producer}
    made = pa.table(columns).replace_schema_metadata({KEY: msgspec.json.encode(card)})
    with replacing(path) as part:
        pq.write_table(made, part)


def read_scores(
    path: str | os.PathLike[str], *, kind: Kind | None = None, clips: int | None = None
) -> ScoreTable:
    """A Parquet file of scores: one that `write_scores` wrote, or the scores.parquet of `marey test`.

    kind   what the scores of `marey test` are; None: probabilities where every row sums to 1, logits where
           some are below 0 or above 1. Rows of single views (average "none") are logits, averaged both ways
    clips  how many clips they are the mean of, where the file does not say
    Raises DataError SCORES_FORMAT, SCORES_KIND and what `score_table` raises.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:  # of which pyarrow says the name alone
        raise DataError("SCORES_FORMAT", f"no file {str(path)!r}; check the path") from None
    except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
        raise DataError(
            "SCORES_FORMAT", f"cannot read {str(path)!r}: {str(error).partition(chr(10))[0]:.200}"
        ) from None
    names = set(table.column_names)
    try:
        if names >= {"path", "label", "scores"}:
            return _tested(table, kind, clips)
        if "id" in names and names & {*KINDS}:
            return _own(table, clips)
    except (MareyError, ValueError, TypeError) as error:
        code = error.code if isinstance(error, MareyError) else "SCORES_FORMAT"
        raise DataError(code, f"{str(path)!r}: {error}") from None
    raise DataError(
        "SCORES_FORMAT", f"{str(path)!r} holds no scores: columns {', '.join(sorted(names)) or 'none'}"
    )


def _own(table: Any, clips: int | None) -> ScoreTable:
    card = msgspec.json.decode((table.schema.metadata or {}).get(KEY, b"{}"))
    return score_table(
        table["id"].to_pylist(),
        logits=_rows(table["logits"]) if "logits" in table.column_names else None,
        probabilities=_rows(table["probabilities"]) if "probabilities" in table.column_names else None,
        clips=clips
        if clips is not None
        else table["clips"].to_numpy()
        if "clips" in table.column_names
        else 0,
        labels=table["label"].to_numpy() if "label" in table.column_names else -1,
        classes=card.get("classes"),
        producer=msgspec.convert(card.get("producer", {}), Producer),
    )


def _tested(table: Any, kind: Kind | None, clips: int | None) -> ScoreTable:
    """Of `marey test`: a row per video, or per view of it where views were not averaged."""
    values = _rows(table["scores"])
    ids = table["path"].to_pylist()
    labels = [row[0] if row is not None and len(row) == 1 else -1 for row in table["label"].to_pylist()]
    views = table["view"].to_numpy() if "view" in table.column_names else np.zeros(len(ids), np.int64)
    if not (views > 0).any():
        kind = kind or looks_like(values)
        return score_table(ids, clips=clips or 0, labels=labels, **{kind: values})  # type: ignore[arg-type]
    starts = np.flatnonzero(views == 0)
    counts = np.diff([*starts.tolist(), len(ids)])
    both = {"logits": values, "probabilities": softmax(values)}
    means = {
        name: np.add.reduceat(v.astype(np.float64), starts) / counts[:, None] for name, v in both.items()
    }
    return score_table(
        [ids[row] for row in starts],
        logits=means["logits"],
        probabilities=means["probabilities"].astype(np.float32),
        clips=counts,
        labels=[labels[row] for row in starts],
    )


def looks_like(values: NDArray[Any]) -> Kind:
    """What scores must be, by their range. Raises DataError SCORES_KIND where both could be."""
    within = values.min() >= 0 and values.max() <= 1 + 1e-4
    if not within:
        return "logits"
    if np.abs(values.sum(axis=1) - 1).max() < 1e-3:
        return "probabilities"
    raise DataError("SCORES_KIND", "scores in 0..1 that do not sum to 1; say what they are with --kind")


def _rows(column: Any) -> NDArray[Any]:
    """Lists of equal length as an array [N, C]."""
    rows = column.combine_chunks()
    flat = rows.flatten().to_numpy(zero_copy_only=False)
    if not len(rows) or len(flat) % len(rows) or (np.diff(rows.offsets) != len(flat) // len(rows)).any():
        raise ValueError("its rows do not hold equally many scores")
    return np.asarray(flat).reshape(len(rows), -1)


# Pickles of Andy1621/Nightcrawler@259fa5b9e6a8 --------------------------------------------------------


def read_published(
    path: str | os.PathLike[str],
    ids: Sequence[str],
    *,
    kind: Kind,
    clips: int | None = None,
    processes: int = 1,
    classes: Sequence[str] | None = None,
) -> ScoreTable:
    """A pickled score file, {"video_preds": float32 [N, C], "video_labels": int64 [N]}, as a table of means.

    Its rows are *sums* over a video's clips of what the network gave. Nothing in the file is run.
    ids        of its rows: the list's names, in order
    kind       what the network gave; "probabilities" for one whose head ends with a softmax (MViT)
    clips      per video; None: as the file's name says (..x{views}x{crops}.pkl)
    processes  that scored it together: their sampler repeats the clips of `repeated_rows`, which then are in
               the sums twice; with the number, these rows are divided by their own count
    Raises UsageError CLIPS_UNKNOWN, DataError SCORES_FORMAT, SCORES_KIND for probabilities that sum to more,
    and WeightsError as `marey.pickles.read_pickle`.
    """
    found = read_pickle(Path(path))
    try:
        totals, labels = np.asarray(found["video_preds"]), np.asarray(found["video_labels"])
    except (KeyError, TypeError, IndexError):
        raise DataError("SCORES_FORMAT", f"{str(path)!r} has no video_preds and video_labels") from None
    if totals.ndim != 2 or len(totals) != len(ids) or labels.shape != (len(ids),) or totals.dtype.kind != "f":
        raise DataError(
            "SCORES_FORMAT",
            f"{str(path)!r} holds scores {list(totals.shape)} and {list(labels.shape)} labels; the list has "
            f"{len(ids)} rows",
        )
    if clips is None and (name := PUBLISHED_NAME.fullmatch(Path(path).stem)):
        clips = int(name[1]) * int(name[2])
    if clips is None or clips < 1:
        raise UsageError(
            "CLIPS_UNKNOWN",
            f"the name of {str(path)!r} does not say how many clips its sums are of; give --clips",
        )
    counts = np.full(len(ids), clips, np.int64)
    np.add.at(counts, repeated_rows(len(ids), clips, processes), 1)
    means = totals if (counts == 1).all() else totals.astype(np.float64) / counts[:, None]
    if kind == "probabilities" and (high := (means > 1 + 1e-4).any(axis=1)).any():
        row = int(high.argmax())
        raise DataError(
            "SCORES_KIND",
            f"{str(path)!r}, row {row}: {totals[row].max():.4g} is no sum of probabilities of {counts[row]} "
            "clips; give --processes N if N scored it together and so counted some clips twice, else --clips "
            "or --kind logits",
        )
    return score_table(
        ids,
        clips=counts,
        labels=labels.astype(np.int64),
        classes=classes,
        **{kind: means},  # type: ignore[arg-type]
    )


def repeated_rows(rows: int, clips: int, processes: int) -> list[int]:
    """Videos with a clip that `processes` processes score twice, so that each has equally many.

    torch's DistributedSampler with seed 0 repeats the first items of torch.randperm; items are clips, video
    by video.
    """
    items = rows * clips
    spare = -items % processes
    if not spare:
        return []
    order = torch.randperm(items, generator=torch.Generator().manual_seed(0))
    return [int(item) // clips for item in order[:spare]]


def write_published(path: str | os.PathLike[str], table: ScoreTable, *, kind: Kind) -> None:
    """Write sums over the clips, and labels, as the score files of Nightcrawler are: a pickle of two arrays.

    Raises DataError SCORES_KIND where the table has not this kind, or its clips were not counted.
    """
    content = {"video_preds": sums(table, kind), "video_labels": table.labels}
    with replacing(path) as part:
        part.write_bytes(pickle.dumps(content, protocol=4))
