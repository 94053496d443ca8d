"""Pseudo-labels: a table of what an ensemble says of unlabelled videos, which of it is kept, and why.

Written as Parquet, with everything about it in the metadata, or as CSV, one row per video:

    id, label, kept, reason, confidence, threshold, margin, entropy, agreement, previous, weight,
    prob_<class> ..., label_<member> ..., confidence_<member> ...

The published lists of Andy1621/Nightcrawler@259fa5b9e6a8 (path,label,p0,...,p10; no header, kept rows only)
are read and written too.
"""

import csv
import gzip
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from marey.errors import DataError
from marey.files import replacing
from marey.scores.calibrate import entropy, margin
from marey.scores.select import (
    NONE,
    UNKNOWN,
    Filters,
    Measure,
    Policy,
    agreement,
    confidence_of,
    needs_labels,
    select,
)
from marey.scores.table import Floats, Ints
from marey.scores.vote import Combined

KEY = b"marey.labels"
FORMAT = 1
FACTS = ("confidence", "threshold", "margin", "entropy", "agreement", "weight")


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a table of pseudo-labels was made.

    round        of the adaptation, from 1; 0: none
    ensemble     preset, or the ensemble written out
    policy, filters, by   how rows were selected, by which measure of confidence
    thresholds   per class; None: nothing of it was kept
    members      name -> SHA-256 of its score file
    models       name -> SHA-256 of the checkpoint that scored, as far as it is known
    labels_used  what labels of the target had a part in it; "" if none
    """

    round: int = 0
    ensemble: str = ""
    policy: Policy | None = None
    filters: Filters | None = None
    by: Measure = "probability"
    thresholds: tuple[float | None, ...] = ()
    members: dict[str, str] = {}
    models: dict[str, str] = {}
    labels_used: str = ""


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels of N videos for C classes, M members. Every video of the target has a row, kept or not.

    ids            N names, in the order of the target's list
    labels         int64 [N]
    kept           bool [N]
    reasons        N texts: "kept", or what the row failed
    probabilities  float32 [N, C], of the ensemble
    facts          confidence, threshold of its class, margin, entropy, agreement of the members, weight in
                   training: float64 [N] each
    previous       int64 [N], its label in the round before, -1 if none
    members        name -> (int64 [N], float32 [N]): its best class, and how sure it is
    classes        C names, or None
    """

    ids: tuple[str, ...]
    labels: Ints
    kept: NDArray[np.bool_]
    reasons: tuple[str, ...]
    probabilities: Floats
    facts: dict[str, NDArray[np.float64]]
    previous: Ints
    members: dict[str, tuple[Ints, Floats]]
    classes: tuple[str, ...] | None
    origin: Origin

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.probabilities.shape[1])


def pseudo_labels(
    ids: Sequence[str],
    combined: Combined,
    policy: Policy,
    filters: Filters | None = None,
    *,
    truth: Ints | None = None,
    previous: "PseudoLabels | None" = None,
    weigh: bool = False,
    by: Measure = "probability",
    classes: Sequence[str] | None = None,
    origin: Origin | None = None,
) -> PseudoLabels:
    """Select from what an ensemble says (`marey.scores.vote.combine`), rows in the order of `ids`.

    truth     true classes [N], -1 unknown; read by policies that need labels, and by nothing else
    previous  the labels of the round before; videos are matched by id
    weigh     the weight of a kept row is its confidence instead of 1
    by        what confidence is: the label's "probability", the "margin", or 1 - "entropy"
    origin    what is known of the making; policy, filters, thresholds and labels used are filled in here
    """
    before = np.full(len(ids), UNKNOWN, np.int64)
    if previous is not None:
        old = {name: int(previous.labels[row]) for row, name in enumerate(previous.ids) if previous.kept[row]}
        before = np.array([old.get(name, UNKNOWN) for name in ids], np.int64)
    chosen = select(
        combined.probabilities,
        combined.labels,
        policy,
        filters,
        members=list(combined.members.values()),
        previous=before if previous is not None else None,
        truth=truth,
        by=by,
    )
    confidence = confidence_of(combined.probabilities, combined.labels, by)
    facts = {
        "confidence": confidence,
        "threshold": chosen.thresholds[combined.labels],
        "margin": margin(combined.probabilities),
        "entropy": entropy(combined.probabilities),
        "agreement": agreement(list(combined.members.values()), combined.labels),
        "weight": np.where(chosen.kept, confidence if weigh else 1.0, 0.0),
    }
    used = [] if origin is None or not origin.labels_used else [origin.labels_used]
    if needs_labels(policy):
        used.append("thresholds were found with true labels of the target")
    made = msgspec.structs.replace(
        origin or Origin(),
        policy=policy,
        filters=filters or Filters(),
        by=by,
        thresholds=tuple(None if value == NONE else float(value) for value in chosen.thresholds),
        labels_used="; ".join(used),
    )
    return PseudoLabels(
        ids=tuple(ids),
        labels=combined.labels,
        kept=chosen.kept,
        reasons=chosen.reasons,
        probabilities=combined.probabilities,
        facts=facts,
        previous=before,
        members={name: (combined.members[name], combined.sure[name]) for name in combined.members},
        classes=None if classes is None else tuple(classes),
        origin=made,
    )


# What they are worth ----------------------------------------------------------------------------------


def read_truth(path: str | os.PathLike[str]) -> dict[str, int]:
    """True labels by id: lines `id,label`, or columns `path` (or `id`) and `label` of a header; .gz too.

    A first line that is neither is skipped. Labels below 0 are unknown, and left out. Raises DataError
    LIST_LINES naming the line, SCORES_DUPLICATE.
    """
    found: dict[str, int] = {}
    rows, names, labels = _headed(_lines(path))
    for number, row in enumerate(rows, 1):
        try:
            name, label = row[names], int(row[labels])
        except (IndexError, ValueError):
            if number == 1 or not row:
                continue
            raise DataError("LIST_LINES", f"{str(path)!r}, line {number}: expected id,label") from None
        if found.get(name, label) != label:
            raise DataError("SCORES_DUPLICATE", f"{str(path)!r}, line {number}: {name!r} has two labels")
        found[name] = label
    return {name: label for name, label in found.items() if label >= 0}


def read_ids(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of a list in its order: first column, or column `path` (or `id`) of a header; .gz too."""
    rows, names, _ = _headed(_lines(path))
    return tuple(row[names] for row in rows if len(row) > names)


def _headed(rows: list[list[str]]) -> tuple[list[list[str]], int, int]:
    """The rows below a header, if there is one, and which columns hold names and labels. Rows keep their
    numbers: a header becomes an empty row."""
    head = rows[0] if rows else []
    for name in ("path", "id"):
        if name in head:
            label = head.index("label") if "label" in head else len(head)
            return [[], *rows[1:]], head.index(name), label
    return rows, 0, 1


def truth_of(ids: Sequence[str], truth: Mapping[str, int]) -> Ints:
    """True classes in the order of ids, -1 where unknown."""
    return np.array([truth.get(name, UNKNOWN) for name in ids], np.int64)


def _lines(path: str | os.PathLike[str]) -> list[list[str]]:
    try:
        data = Path(path).read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
        return list(csv.reader(io.StringIO(text)))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError("LIST_FORMAT", f"cannot read {str(path)!r}: {error}") from None


# Files ------------------------------------------------------------------------------------------------


def write_labels(path: str | os.PathLike[str], labels: PseudoLabels) -> None:
    """Write all rows as .parquet, or as .csv (which holds no origin; numbers as their shortest text)."""
    columns = _columns(labels)
    with replacing(path) as part:
        if Path(path).suffix.lower() == ".csv":
            with part.open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(columns)
                table.writerows(zip(*map(_texts, columns.values()), strict=True))
        else:
            names = {"members": tuple(labels.members), "classes": labels.classes}
            card = {"format": FORMAT, **names, "origin": labels.origin}
            made = pa.table({name: pa.array(values) for name, values in columns.items()})
            pq.write_table(made.replace_schema_metadata({KEY: msgspec.json.encode(card)}), part)


def _columns(labels: PseudoLabels) -> dict[str, Any]:
    facts = labels.facts
    names = labels.classes or tuple(map(str, range(labels.num_classes)))
    return {
        "id": list(labels.ids),
        "label": labels.labels,
        "kept": labels.kept,
        "reason": list(labels.reasons),
        **{name: facts[name] for name in FACTS[:-1]},
        "previous": labels.previous,
        "weight": facts["weight"],
        **{f"prob_{name}": labels.probabilities[:, c] for c, name in enumerate(names)},
        **{f"label_{name}": best for name, (best, _) in labels.members.items()},
        **{f"confidence_{name}": sure for name, (_, sure) in labels.members.items()},
    }


def _texts(values: Any) -> list[str]:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return [np.format_float_positional(value, trim="-") if np.isfinite(value) else "" for value in values]
    return [str(int(v)) if isinstance(v, np.bool_ | np.integer) else v for v in values]


def read_labels(path: str | os.PathLike[str]) -> PseudoLabels:
    """Pseudo-labels from what `write_labels` wrote, or from a published list, by its content; .csv.gz too.

    A published list, and a CSV, do not say how they were made; in a published list all rows are kept. Raises
    DataError LABELS_FORMAT.
    """
    try:
        if Path(path).suffix.lower() == ".parquet":
            table = pq.read_table(path)
            card = msgspec.json.decode((table.schema.metadata or {})[KEY])
            columns = {name: table[name].to_numpy() for name in table.column_names}
            origin = msgspec.convert(card["origin"], Origin)
            classes = None if card["classes"] is None else tuple(card["classes"])
            return _table(columns, tuple(card["members"]), classes, origin)
        rows = _lines(path)
        if rows and rows[0][:2] == ["id", "label"]:
            head, *body = rows
            columns = {
                name: np.array(values) for name, values in zip(head, zip(*body, strict=True), strict=True)
            }
            members = tuple(name.removeprefix("label_") for name in head if name.startswith("label_"))
            names = tuple(name.removeprefix("prob_") for name in head if name.startswith("prob_"))
            classes = None if names == tuple(map(str, range(len(names)))) else names
            return _table(columns, members, classes, Origin())
        return _published(rows)
    except (OSError, KeyError, ValueError, TypeError, IndexError, msgspec.DecodeError) as error:
        raise DataError("LABELS_FORMAT", f"{str(path)!r} holds no pseudo-labels: {error}") from None


def _table(
    columns: Mapping[str, NDArray[Any]],
    members: tuple[str, ...],
    classes: tuple[str, ...] | None,
    origin: Origin,
) -> PseudoLabels:
    probabilities = [_reals(values) for name, values in columns.items() if name.startswith("prob_")]
    facts = {name: _reals(columns[name]) for name in FACTS}
    facts["threshold"] = np.where(np.isnan(facts["threshold"]), NONE, facts["threshold"])  # empty in a CSV
    kept = columns["kept"]
    return PseudoLabels(
        ids=tuple(map(str, columns["id"])),
        labels=columns["label"].astype(np.int64),
        kept=kept if kept.dtype == np.bool_ else kept.astype(np.int64).astype(np.bool_),
        reasons=tuple(map(str, columns["reason"])),
        probabilities=np.stack(probabilities, axis=1).astype(np.float32),
        facts=facts,
        previous=columns["previous"].astype(np.int64),
        members={
            name: (
                columns[f"label_{name}"].astype(np.int64),
                _reals(columns[f"confidence_{name}"]).astype(np.float32),
            )
            for name in members
        },
        classes=classes,
        origin=origin,
    )


def _reals(values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype.kind == "U":
        values = np.where(values == "", "nan", values)
    return values.astype(np.float64)


def write_list(path: str | os.PathLike[str], labels: PseudoLabels) -> None:
    """Write the kept rows as a list to train on: `path,label`, and `class` where the names are known."""
    names = labels.classes
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", "class"] if names else ["path", "label"])
        for row in np.flatnonzero(labels.kept):
            label = int(labels.labels[row])
            table.writerow([labels.ids[row], label, *([names[label]] if names else [])])


# Published lists --------------------------------------------------------------------------------------


def _published(rows: Sequence[Sequence[str]]) -> PseudoLabels:
    """path,label,p0,...; probabilities are float32, whatever digits they are written with."""
    widths = {len(row) for row in rows}
    if len(widths) != 1 or min(widths) < 4:
        raise ValueError("expected rows of path,label,p0,p1,... of one length")
    labels = np.array([int(row[1]) for row in rows], np.int64)
    probabilities = np.array([[float(text) for text in row[2:]] for row in rows]).astype(np.float32)
    count = len(rows)
    if len(outside := np.flatnonzero((labels < 0) | (labels >= probabilities.shape[1]))):
        row = int(outside[0])
        raise ValueError(f"row {row} has label {labels[row]}, outside 0..{probabilities.shape[1] - 1}")
    confidence = probabilities[np.arange(count), labels].astype(np.float64)
    return PseudoLabels(
        ids=tuple(row[0] for row in rows),
        labels=labels,
        kept=np.ones(count, np.bool_),
        reasons=("kept",) * count,
        probabilities=probabilities,
        facts={
            "confidence": confidence,
            "threshold": np.full(count, np.nan),
            "margin": margin(probabilities),
            "entropy": entropy(probabilities),
            "agreement": np.full(count, np.nan),
            "weight": np.ones(count),
        },
        previous=np.full(count, UNKNOWN, np.int64),
        members={},
        classes=None,
        origin=Origin(),
    )


def write_published_labels(path: str | os.PathLike[str], labels: PseudoLabels) -> None:
    """Write the kept rows as the published lists are: no header, float32 probabilities printed as doubles."""
    lines = [
        ",".join([labels.ids[row], str(labels.labels[row]), *map(repr, labels.probabilities[row].tolist())])
        for row in np.flatnonzero(labels.kept)
    ]
    with replacing(path) as part:
        part.write_bytes("".join(f"{line}\n" for line in lines).encode())
