"""Scores of videos as a table, ids x classes: what the numbers are, of how many clips, and what made them.

    id             what the video is called in its list
    label          int, -1 where it is unknown
    clips          how many clips its scores are the mean of, 0 where that is unknown
    logits         mean over the clips of what the network gives, or absent
    probabilities  mean over the clips of its probabilities, or absent

Beside them stand the class names, and what made the scores. `marey.scores.files` reads and writes tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from marey.errors import DataError, MareyError

Kind = Literal["logits", "probabilities"]
Reading = Literal["probabilities", "mean_logits", "summed_logits", "summed_probabilities"]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Producer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where scores come from; what is unknown is empty.

    model   name of the network, or of the ensemble's preset
    sha256  of its checkpoint file
    recipe  that it was trained by
    views   clips and crops of a video, corrections of light: how it was scored
    inputs  of an ensemble: what its members were called, and the SHA-256 of their files
    """

    model: str = ""
    sha256: str = ""
    recipe: str = ""
    views: str = ""
    inputs: dict[str, str] = {}


@dataclass(frozen=True)
class ScoreTable:
    """Scores of N videos for C classes; made by `score_table`, which checks them.

    ids            N different names
    logits, probabilities   real [N, C], at least one of the two; float32, or float64 where they were
                   divided by a clip count, so that the sums come back exactly
    clips          int64 [N], 0: unknown
    labels         int64 [N], -1: unknown
    classes        C names, or None
    """

    ids: tuple[str, ...]
    logits: NDArray[Any] | None
    probabilities: NDArray[Any] | None
    clips: Ints
    labels: Ints
    classes: tuple[str, ...] | None
    producer: Producer

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.values.shape[1])

    @property
    def values(self) -> NDArray[Any]:
        """The logits, else the probabilities."""
        found = self.logits if self.logits is not None else self.probabilities
        if found is None:
            raise MareyError("SCORES_KIND", "a table of scores with neither logits nor probabilities")
        return found

    def select(self, ids: Sequence[str]) -> "ScoreTable":
        """The rows of these ids, in this order. Raises DataError SCORES_IDS naming one that is not there."""
        place = {name: row for row, name in enumerate(self.ids)}
        missing = [name for name in ids if name not in place]
        if missing:
            raise DataError("SCORES_IDS", f"no scores of {len(missing)} videos, the first is {missing[0]!r}")
        rows = np.array([place[name] for name in ids], np.int64)
        return replace(
            self,
            ids=tuple(ids),
            logits=None if self.logits is None else self.logits[rows],
            probabilities=None if self.probabilities is None else self.probabilities[rows],
            clips=self.clips[rows],
            labels=self.labels[rows],
        )


def score_table(
    ids: Sequence[str],
    *,
    logits: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    clips: ArrayLike = 0,
    labels: ArrayLike = -1,
    classes: Sequence[str] | None = None,
    producer: Producer | None = None,
) -> ScoreTable:
    """A table, checked. An id that comes again (sampler padding) is dropped where its scores are the same.

    clips, labels  one for each row, or one number for all
    Raises MareyError SCORES_SHAPE, SCORES_NAN, SCORES_KIND; DataError SCORES_IDS, SCORES_DUPLICATE.
    """
    given = {"logits": logits, "probabilities": probabilities}
    arrays = {
        name: _checked(values, len(ids), name, classes)
        for name, values in given.items()
        if values is not None
    }
    if not arrays:
        raise MareyError("SCORES_KIND", "a table of scores needs logits, probabilities or both")
    if len({array.shape for array in arrays.values()}) > 1:
        raise MareyError("SCORES_SHAPE", "logits and probabilities are not of the same shape")
    sure = arrays.get("probabilities")
    if sure is not None and ((sure < -1e-4).any() or (sure > 1 + 1e-4).any()):
        raise MareyError("SCORES_KIND", "probabilities below 0 or above 1; these look like logits")
    table = ScoreTable(
        ids=tuple(map(str, ids)),
        logits=arrays.get("logits"),
        probabilities=sure,
        clips=np.broadcast_to(np.asarray(clips, np.int64), len(ids)).copy(),
        labels=np.broadcast_to(np.asarray(labels, np.int64), len(ids)).copy(),
        classes=None if classes is None else tuple(classes),
        producer=producer or Producer(),
    )
    first: dict[str, int] = {}
    for row, name in enumerate(table.ids):
        before = first.setdefault(name, row)
        if before != row and not np.allclose(table.values[row], table.values[before], rtol=1e-3, atol=1e-3):
            raise DataError(
                "SCORES_DUPLICATE",
                f"{name!r} has two rows of different scores, {before} and {row}; ids name one",
            )
    return table if len(first) == len(table) else table.select(list(first))


def _checked(
    values: ArrayLike, rows: int, name: str, classes: Sequence[str] | None
) -> NDArray[np.floating[Any]]:
    array = np.asarray(values)
    array = array if array.dtype == np.float64 else array.astype(np.float32)
    if array.ndim != 2 or len(array) != rows or 0 in array.shape:
        raise MareyError(
            "SCORES_SHAPE", f"{name} {list(array.shape)} of {rows} ids; they must be [ids, classes]"
        )
    if classes is not None and len(classes) != array.shape[1]:
        raise MareyError(
            "SCORES_SHAPE", f"{name} of {array.shape[1]} classes, and {len(classes)} class names"
        )
    if not np.isfinite(array).all():
        row = int(np.isfinite(array).all(axis=1).argmin())
        raise MareyError("SCORES_NAN", f"{name} of row {row} are NaN or infinite")
    return array


# What ensembles take ----------------------------------------------------------------------------------


def read_as(table: ScoreTable, reading: Reading) -> Floats:
    """The table as what an ensemble mixes, float32 [N, C].

    "probabilities"         mean over the clips of the probabilities
    "mean_logits"           softmax of the mean logits
    "summed_logits"         softmax of the logits' sum over the clips, as published: more clips, more peaked
    "summed_probabilities"  softmax of the probabilities' sum, as published for networks whose test output
                            is a softmax already: nearly flat for one clip
    A table of one clip that has only the other kind is converted, which is exact up to rounding. Raises
    DataError SCORES_KIND where the table cannot give it.
    """
    if reading == "probabilities":
        return means(table, "probabilities").astype(np.float32)
    if reading == "mean_logits":
        return softmax(means(table, "logits"))
    if reading == "summed_logits":
        return softmax(sums(table, "logits"))
    return softmax(sums(table, "probabilities"))


def softmax(values: NDArray[Any]) -> Floats:
    """Softmax of the rows, in float32, by torch: published decisions hang on its last bit."""
    found: Floats = torch.from_numpy(values.astype(np.float32)).softmax(1).numpy()
    return found


def means(table: ScoreTable, kind: Kind) -> NDArray[Any]:
    """Mean over the clips, [N, C]; from the other kind where there was one clip. Raises as `read_as`."""
    found: NDArray[Any] | None = getattr(table, kind)
    if found is not None:
        return found
    if not (table.clips == 1).all():
        raise DataError(
            "SCORES_KIND",
            f"the table has no {kind}, and they cannot be made of means over several clips (or "
            f"an unknown number); score again with clips.average={'score' if kind == 'logits' else 'prob'}",
        )
    if kind == "probabilities":
        return softmax(table.values)
    logs: NDArray[Any] = np.log(np.maximum(table.values, np.float32(1e-12)))
    return logs


def sums(table: ScoreTable, kind: Kind) -> Floats:
    """Sum over the clips, float32 [N, C]. Raises as `read_as`."""
    if (table.clips < 1).any():
        raise DataError("SCORES_KIND", "sums over clips need their number, which is unknown; give --clips")
    found = means(table, kind)
    total: Floats = (found * table.clips[:, None].astype(found.dtype)).astype(np.float32)
    return total


def align(tables: Mapping[str, ScoreTable]) -> dict[str, ScoreTable]:
    """The tables with their rows in the order of the first one.

    Raises DataError SCORES_IDS where they are not of the same videos, SCORES_SHAPE and LABEL_NAMES where not
    of the same classes.
    """
    names = iter(tables)
    leader = next(names)
    first = tables[leader]
    aligned = {leader: first}
    for name in names:
        table = tables[name]
        if table.num_classes != first.num_classes:
            raise DataError(
                "SCORES_SHAPE", f"{name} scores {table.num_classes} classes and {leader} {first.num_classes}"
            )
        if table.classes and first.classes and table.classes != first.classes:
            pairs = enumerate(zip(table.classes, first.classes, strict=True))
            wrong, (one, other) = next(row for row in pairs if row[1][0] != row[1][1])
            raise DataError("LABEL_NAMES", f"class {wrong} is {one!r} in {name} and {other!r} in {leader}")
        apart = set(table.ids) ^ set(first.ids)
        if apart:
            raise DataError(
                "SCORES_IDS",
                f"{name} and {leader} do not score the same videos: {len(apart)} are in one only, like "
                f"{min(apart)!r}",
            )
        aligned[name] = table.select(first.ids) if table.ids != first.ids else table
    return aligned
