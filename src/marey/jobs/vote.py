"""`marey vote`: scores of several networks become one, and what each of them was worth."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from marey.errors import DataError, UsageError
from marey.files import replacing
from marey.jobs.provenance import card_path, now, write_card
from marey.jobs.scores import (
    Kinds,
    Path_,
    Sources,
    agreement_of,
    find_truth,
    measured,
    named,
    open_scores,
    plain,
    run,
)
from marey.scores.calibrate import normalised
from marey.scores.files import write_published, write_scores
from marey.scores.presets import Preset
from marey.scores.table import Floats, Producer, read_as, score_table, softmax
from marey.scores.vote import Combined, Ensemble, fit_weights

SUFFIXES = (".parquet", ".csv", ".pkl")


class Voted(NamedTuple):
    """What `vote` found.

    ids       the videos
    combined  their labels and probabilities
    preset    the ensemble or vote that gave them
    report    plain JSON values: videos, classes, members, agreement, labels, corrections, `measured` where
              true classes are known
    """

    ids: tuple[str, ...]
    combined: Combined
    preset: Preset
    report: dict[str, Any]


def vote(
    sources: Sequence[str],
    *,
    preset: str | None = None,
    weights: Sequence[float] | None = None,
    fit: bool = False,
    truth: Path_ | None = None,
    out: Path_ | None = None,
    listed: Path_ | None = None,
    kind: Kinds = None,
    clips: int | None = None,
    processes: int = 1,
    temperatures: Mapping[str, float] | None = None,
) -> Voted:
    """Run an ensemble over score files.

    sources  `FILE` or `NAME=FILE` each, see `marey.jobs.scores.open_scores`
    preset   one that ships (`marey.scores.presets.list_presets`) or a JSON file; None: the weighted mean
    weights  of the mean, in the order of the sources; None: equal
    fit      find the weights on the true labels, and say what they are worth on rows held out
    truth    list `id,label`; None: the labels that the score files have. They are measured against, and read
             for nothing else unless `fit`
    temperatures  of members, see `marey.jobs.scores.run`
    out      .parquet: a table of scores that any command here reads; .csv: video, class and probabilities as
             the source submits them; .pkl: as its score files are. A card beside it says what it was made of
    Raises UsageError OUT_SUFFIX, PRESET_INVALID and what `open_scores` and the steps raise.
    """
    started, made = now(), named(preset, weights)
    if out is not None and Path(out).suffix.lower() not in SUFFIXES:
        raise UsageError("OUT_SUFFIX", f"{str(out)!r}: votes are written as {', '.join(SUFFIXES)}")
    if fit and (made is not None or weights is not None):
        raise UsageError("PRESET_INVALID", "weights are either given or fitted")
    opened = open_scores(sources, made, listed=listed, kind=kind, clips=clips, processes=processes)
    real = find_truth(truth, opened)
    fitted = None
    if fit:
        base = plain(opened, None)
        parts = {name: read_as(opened.tables[name], reading) for name, reading in base.members.items()}
        fitted = fit_weights(parts, real)
        weights = [fitted.weights[name] for name in parts]
    ensemble = made or plain(opened, weights)
    combined = run(ensemble, opened, temperatures)
    report = _report(ensemble, combined, opened, real)
    report["preset"] = preset
    if fitted is not None:
        report["fitted"] = fitted._asdict()
        report["labels_used"] = "weights were fitted on the true labels that are measured against"
    if out is not None:
        _write(Path(out), ensemble, preset, combined, opened)
        settings: dict[str, Any] = {"preset": preset, "ensemble": ensemble, "temperatures": temperatures}
        settings |= {"clips": clips, "kind": kind, "processes": processes}
        files = dict(opened.files) | ({"list": str(listed)} if listed else {})
        if fit and truth:
            files["truth"] = str(truth)
        write_card(card_path(out), "vote", settings, files, {"scores": out}, started=started)
        report["out"] = str(out)
    return Voted(opened.ids, combined, ensemble, report)


def _report(preset: Preset, combined: Combined, sources: Sources, truth: Any) -> dict[str, Any]:
    classes = combined.probabilities.shape[1]
    best = {name: table.values.argmax(axis=1).astype(np.int64) for name, table in sources.tables.items()}
    shown = {} if not isinstance(preset, Ensemble) else preset.members
    members: dict[str, Any] = {}
    for name, table in sources.tables.items():
        values: Floats = read_as(table, shown[name]) if name in shown else _probable(table.values)
        members[name] = {
            "file": sources.files[name],
            "sha256": sources.hashes[name],
            "with_the_vote": float((best[name] == combined.labels).mean()),
            "confidence": float(values.max(axis=1).mean()),
            "measured": measured(best[name], values, truth, classes),
        }
    return {
        "about": preset.about,
        "quirks": list(preset.quirks),
        "corrected": preset.corrected,
        "labels_used": preset.labels_used,
        "videos": len(combined.labels),
        "classes": list(sources.classes) if sources.classes else classes,
        "members": members,
        "agreement": agreement_of(best, classes),
        "labels": np.bincount(combined.labels, minlength=classes).tolist(),
        "corrections": {f"{a}->{b}": rows for (a, b), rows in combined.moved.items()},
        "measured": measured(combined.labels, combined.probabilities, truth, classes),
    }


def _probable(values: Any) -> Floats:
    within = values.min() >= 0 and np.abs(values.sum(axis=1) - 1).max() < 1e-3
    return values.astype(np.float32) if within else softmax(values)


# Files ------------------------------------------------------------------------------------------------


def _write(out: Path, preset: Preset, name: str | None, combined: Combined, sources: Sources) -> None:
    if out.suffix.lower() == ".csv":
        write_submission(out, sources.ids, combined)
        return
    if not np.array_equal(combined.labels, combined.probabilities.argmax(axis=1)):
        raise DataError(
            "VOTE_LABELS",
            "some labels are not the most probable class, by corrections or by the vote, which a table of "
            f"scores cannot say; write {out.stem}.csv",
        )
    first = next(iter(sources.tables.values()))
    table = score_table(
        sources.ids,
        probabilities=normalised(combined.probabilities),
        clips=1,
        labels=first.labels,
        classes=sources.classes,
        producer=Producer(model=name or preset.about, inputs=sources.hashes),
    )
    if out.suffix.lower() == ".pkl":
        write_published(out, table, kind="probabilities")
    else:
        write_scores(out, table)


def write_submission(out: Path_, ids: Sequence[str], combined: Combined) -> None:
    """The source's `submission/arid_pred_{mode}.csv`: row number, video, class, and a tensor's text.

    The text is of the mixture softmaxed once more, as it was submitted; only the class counts.
    """
    again = torch.from_numpy(combined.probabilities.astype(np.float64)).softmax(1).float()
    texts = [str(row[None]) for row in again]
    with replacing(out) as part, part.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["VideoID", "Video", "ClassID", "Probability"])
        table.writerows(zip(range(len(ids)), ids, combined.labels.tolist(), texts, strict=True))


def lines(report: dict[str, Any]) -> list[str]:
    """A report for people."""
    found = [f"{report['preset'] or 'ensemble'}: {report['about']}, {report['videos']:,} videos"]
    if report["labels_used"]:
        found.append(f"labels of the target were used: {report['labels_used']}")
    found += [f"as published: {quirk}" for quirk in report["quirks"]]
    if report["corrected"]:
        found.append(f"without them: {report['corrected']}")
    width = max(map(len, report["members"]), default=0)
    for name, member in report["members"].items():
        known = member["measured"]
        worth = f"  right {known['accuracy']:.4f}, ECE {known['calibration_error']:.4f}" if known else ""
        worth += f", temperature {known['temperature']:.2f}" if known else ""
        text = f"says the same in {member['with_the_vote']:.1%}, confidence {member['confidence']:.3f}"
        found.append(f"  {name:<{width}}  {text}{worth}")
    agreement = report["agreement"]
    if len(agreement["members"]) > 1:
        found.append(f"all members agree in {agreement['unanimous']:.1%}; kappa of pairs {_range(agreement)}")
    if report["corrections"]:
        moved = ", ".join(f"{pair} {rows}" for pair, rows in report["corrections"].items())
        found.append(f"corrections: {moved}")
    if "fitted" in report:
        fitted = report["fitted"]
        shares = ", ".join(f"{name} {weight:.3f}" for name, weight in fitted["weights"].items())
        found.append(f"weights {shares}; log loss held out {fitted['loss']:.4f}, equal {fitted['equal']:.4f}")
    if known := report["measured"]:
        low, high = known["interval"]
        found.append(
            f"right {known['accuracy']:.4f} ({known['right']:,} of {known['rows']:,}, 95 % {low:.3f} to "
            f"{high:.3f}), ECE {known['calibration_error']:.4f}"
        )
    return found


def _range(agreement: dict[str, Any]) -> str:
    kappa = np.array(agreement["kappa"])
    pairs = kappa[np.triu_indices(len(kappa), 1)]
    return f"{pairs.min():.2f} to {pairs.max():.2f}"


def presets() -> dict[str, str]:
    """Every preset, and what it is in a line."""
    from marey.scores.presets import list_presets

    return {
        name: preset.about + (f" ({len(preset.quirks)} quirks)" if preset.quirks else "")
        for name, preset in list_presets().items()
    }


def show(name: str) -> str:
    """A preset as JSON, to copy and change."""
    from marey.scores.presets import load_preset

    text = msgspec.json.encode({name.rpartition("/")[2]: load_preset(name)})
    return msgspec.json.format(text, indent=2).decode()
