"""Score files that a user names, as tables by member; the labels beside them; what they are worth."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from marey.errors import DataError, UsageError
from marey.jobs.provenance import sha256_of
from marey.scores.calibrate import (
    calibration_error,
    disagreement,
    fit_temperature,
    normalised,
    reliability,
    tempered,
    wilson,
)
from marey.scores.files import read_published, read_scores
from marey.scores.labels import read_ids, read_truth, truth_of
from marey.scores.presets import Preset, load_preset
from marey.scores.table import Floats, Ints, Kind, Producer, ScoreTable, align
from marey.scores.vote import Combined, Ensemble, combine, equal, inputs, majority

FITTED = 2000  # rows that a reported temperature is fitted on, or up to twice as many
Path_ = str | os.PathLike[str]
Kinds = Kind | Mapping[str, Kind] | None  # of all score files, or by member


class Sources(NamedTuple):
    """Score files that were named.

    tables  member -> its scores, rows in the same order
    files   member -> file
    hashes  member -> SHA-256 of the file
    """

    tables: dict[str, ScoreTable]
    files: dict[str, str]
    hashes: dict[str, str]

    @property
    def ids(self) -> tuple[str, ...]:
        """The videos, in the order of the tables."""
        return next(iter(self.tables.values())).ids

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names, if some table has them."""
        return next((table.classes for table in self.tables.values() if table.classes), None)


def open_scores(
    sources: Sequence[str],
    preset: Preset | None = None,
    *,
    listed: Path_ | None = None,
    kind: Kinds = None,
    clips: int | None = None,
    processes: int = 1,
) -> Sources:
    """Read score files, each `FILE` (a member called as the file without suffix) or `NAME=FILE`.

    preset     whose members are looked for; others are left out
    listed     list that the rows of pickled score files belong to
    kind       what scores are, of all or by member, where neither file nor preset says
    clips      of each video, where the file does not say
    processes  that scored pickled files together, see `read_published`
    Raises UsageError SCORES_NAMES, LIST_NEEDED and what the readers raise.
    """
    files: dict[str, str] = {}
    for source in sources:
        name, equals, path = source.partition("=")
        if not equals or os.sep in name:
            name, path = Path(source).name.partition(".")[0], source
        if name in files:
            raise UsageError(
                "SCORES_NAMES", f"two files are called {name!r}, {files[name]} and {path}; write NAME={path}"
            )
        files[name] = path
    wanted = members_of(preset) if preset is not None else dict.fromkeys(files, None)
    ids = read_ids(listed) if listed is not None else None
    tables = {
        name: _open(path, ids, _kind_of(name, kind, wanted[name]), clips, processes)
        for name, path in files.items()
        if name in wanted
    }
    missing = [name for name in wanted if name not in tables]
    if missing:
        raise UsageError(
            "SCORES_NAMES",
            f"no scores of {', '.join(missing)}; it takes {', '.join(wanted)}, each as NAME=FILE or as a "
            "file of that name",
        )
    tables = align({name: tables[name] for name in wanted})
    files = {name: files[name] for name in wanted}
    return Sources(tables, files, {name: sha256_of(path) for name, path in files.items()})


def members_of(preset: Preset) -> dict[str, Any]:
    """Members of an ensemble, or of all those that are voted over, and what of them is read."""
    if isinstance(preset, Ensemble):
        return dict(preset.members)
    found: dict[str, Any] = {}
    for name in preset.of:
        found |= members_of(load_preset(name))
    return found


def _kind_of(name: str, kind: Kinds, reading: str | None) -> Kind | None:
    """What is said of a member's file, else what a published file holds that is read so."""
    if isinstance(kind, str):
        return kind
    if kind is not None and (said := kind.get(name, kind.get(""))):
        return said
    known: dict[str, Kind] = {"summed_logits": "logits", "summed_probabilities": "probabilities"}
    return known.get(reading or "")


def _open(
    path: str, ids: tuple[str, ...] | None, kind: Kind | None, clips: int | None, processes: int
) -> ScoreTable:
    if Path(path).suffix.lower() in (".pkl", ".pickle", ".pyth"):
        if ids is None:
            raise UsageError(
                "LIST_NEEDED", f"{path!r} does not name its videos; give the list they were, --list"
            )
        if kind is None:
            raise UsageError(
                "SCORES_KIND",
                f"{path!r} does not say what its scores are; give --kind logits, or probabilities where the "
                "network ends with a softmax",
            )
        return read_published(path, ids, kind=kind, clips=clips, processes=processes)
    known = _results(Path(path))
    average = known.get("protocol", {}).get("average")
    said: Kind | None = {"prob": "probabilities", "score": "logits"}.get(average)  # type: ignore[assignment]
    table = read_scores(path, kind=said or kind, clips=clips)
    if known and table.producer == Producer():
        protocol = {key: value for key, value in known["protocol"].items() if value is not None}
        return replace(table, producer=_producer(known, protocol))
    return table


def _results(path: Path) -> dict[str, Any]:
    """The results.json of the same `marey test`, or nothing."""
    beside = path.with_name("results.json") if path.name == "scores.parquet" else path.with_suffix(".json")
    try:
        found = msgspec.json.decode(beside.read_bytes())
        return found if isinstance(found.get("protocol"), dict) else {}
    except (OSError, msgspec.DecodeError, AttributeError):
        return {}


def _producer(results: dict[str, Any], protocol: dict[str, Any]) -> Producer:
    checkpoint = results.get("checkpoint") or ""
    known = os.path.exists(checkpoint)  # noqa: PTH110 - it may be a release's name
    return Producer(
        model=checkpoint,
        sha256=sha256_of(checkpoint) if known else "",
        recipe=results.get("recipe") or "",
        views=", ".join(f"{key} {value}" for key, value in protocol.items()),
    )


# What scores are worth --------------------------------------------------------------------------------


def run(preset: Preset, sources: Sources, temperatures: Mapping[str, float] | None = None) -> Combined:
    """What an ensemble gives, or a vote, whose members are the ensembles.

    temperatures  of members whose probabilities are made softer (above 1) or sharper first, see
                  `marey.scores.calibrate.fit_temperature`. Raises UsageError SCORES_NAMES for a stranger
    """
    heat = temperatures or {}
    strangers = sorted(heat.keys() - sources.tables.keys())
    if strangers:
        raise UsageError("SCORES_NAMES", f"a temperature of {strangers[0]!r}, which is no member")
    if isinstance(preset, Ensemble):
        read = inputs(preset, sources.tables)
        return combine(preset, {n: tempered(v, heat[n]) if n in heat else v for n, v in read.items()})
    parts = {name: run(load_preset(name), sources, temperatures) for name in preset.of}
    labels = {name: part.labels for name, part in parts.items()}
    probabilities = {name: part.probabilities for name, part in parts.items()}
    winner, shown = majority(list(labels.values()), list(probabilities.values()), preset.ties)
    sure = {name: values.max(axis=1) for name, values in probabilities.items()}
    return Combined(shown, winner, winner, {}, labels, sure)


def find_truth(path: Path_ | None, sources: Sources) -> Ints:
    """True classes in the order of the scores, -1 where unknown: of a list, else those in the score files."""
    if path is not None:
        return truth_of(sources.ids, as_tested(read_truth(path), path))
    known = np.full(len(sources.ids), -1, np.int64)
    for table in sources.tables.values():
        known = np.where(known < 0, table.labels, known)
    return known


def as_tested(names: Mapping[str, int], listed: Path_) -> dict[str, int]:
    """Names of a list, and the paths that `marey test` writes for them: joined with the list's folder."""
    folder = os.path.dirname(listed)  # noqa: PTH120 - joined as the lists' reader does
    return {os.path.join(folder, name): label for name, label in names.items()} | dict(names)  # noqa: PTH118


def measured(labels: Ints, probabilities: Floats, truth: Ints, classes: int) -> dict[str, Any] | None:
    """What labels and their confidence are worth on the rows of known class; None where there is none.

    rows, right, accuracy, interval (Wilson, 95 %), precision and recall per class (None without rows),
    confusion [true][said], calibration error and the reliability bins of the renormalised confidence, and the
    temperature that would fit it best
    """
    rows = np.flatnonzero(truth >= 0)
    if not len(rows):
        return None
    if int(truth.max()) >= classes:
        raise DataError("LABEL_RANGE", f"true class {int(truth.max())} is outside 0..{classes - 1}")
    said, real = labels[rows], truth[rows]
    right = said == real
    confusion = np.bincount(real * classes + said, minlength=classes**2).reshape(classes, classes)
    sure = probabilities[rows, said] / probabilities[rows].sum(axis=1)
    bins = reliability(sure, right)
    return {
        "rows": len(rows),
        "right": int(right.sum()),
        "accuracy": float(right.mean()),
        "interval": list(wilson(int(right.sum()), len(rows))),
        "precision": _shares(confusion.diagonal(), confusion.sum(axis=0)),
        "recall": _shares(confusion.diagonal(), confusion.sum(axis=1)),
        "confusion": confusion.tolist(),
        "calibration_error": calibration_error(bins),
        "reliability": [b._asdict() for b in bins],
        "temperature": _temperature(probabilities[rows], real),
    }


def _temperature(probabilities: Floats, labels: Ints) -> float:
    """The temperature that fits best, on evenly spread rows where there are very many."""
    step = max(1, len(labels) // FITTED)
    return fit_temperature(normalised(probabilities[::step]), labels[::step])


def _shares(parts: Any, wholes: Any) -> list[float | None]:
    return [float(p / w) if w else None for p, w in zip(parts, wholes, strict=True)]


def agreement_of(members: Mapping[str, Ints], classes: int) -> dict[str, Any]:
    """How members agree: share and Cohen's kappa of every pair, and the share of rows where all do."""
    found = disagreement(members, classes)
    return {
        "members": list(found.names),
        "share": found.agreement.tolist(),
        "kappa": found.kappa.tolist(),
        "unanimous": found.unanimous,
    }


def named(preset: str | None, weights: Sequence[float] | None) -> Preset | None:
    """The preset of that name; None where there is none, and `plain` makes an ensemble of all members."""
    if preset is not None and weights is not None:
        raise UsageError("PRESET_INVALID", "a preset has its own weights; give either --preset or --weights")
    return None if preset is None else load_preset(preset)


def plain(sources: Sources, weights: Sequence[float] | None) -> Ensemble:
    """Mean of all members, of their probabilities where every table has them, else of their softmaxed mean
    logits."""
    sure = all(t.probabilities is not None or (t.clips == 1).all() for t in sources.tables.values())
    return equal(list(sources.tables), weights, reading="probabilities" if sure else "mean_logits")
