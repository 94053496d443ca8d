"""`marey pseudo-label`: scores of unlabelled videos become labels to train on; what such labels are worth."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from marey.errors import DataError, UsageError
from marey.jobs.leaks import Leak, leaks
from marey.jobs.provenance import card_path, now, write_card
from marey.jobs.scores import (
    Kinds,
    Path_,
    agreement_of,
    as_tested,
    find_truth,
    measured,
    named,
    open_scores,
    plain,
    run,
)
from marey.scores.labels import (
    Origin,
    PseudoLabels,
    pseudo_labels,
    read_ids,
    read_labels,
    read_truth,
    truth_of,
    write_labels,
    write_list,
    write_published_labels,
)
from marey.scores.presets import Preset
from marey.scores.select import Filters, Measure, Policy, Quantile, needs_labels, parse_policy
from marey.scores.vote import Ensemble, Vote

SUFFIXES = (".parquet", ".csv")


class Labelled(NamedTuple):
    """What `pseudo_label` made: the table, and a report of plain JSON values."""

    labels: PseudoLabels
    report: dict[str, Any]


def pseudo_label(
    sources: Sequence[str],
    *,
    out: Path_ | None,
    preset: str | None = None,
    weights: Sequence[float] | None = None,
    policy: str | Policy | None = None,
    filters: Filters | None = None,
    previous: Path_ | None = None,
    truth: Path_ | None = None,
    test: Path_ | None = None,
    roots: tuple[Path_, Path_] | None = None,
    round: int = 0,
    weigh: bool = False,
    by: Measure = "probability",
    published: Path_ | None = None,
    train: Path_ | None = None,
    listed: Path_ | None = None,
    kind: Kinds = None,
    clips: int | None = None,
    processes: int = 1,
    temperatures: Mapping[str, float] | None = None,
) -> Labelled:
    """Label the videos of score files by an ensemble of them, and keep what is sure.

    sources    as for `marey.jobs.vote.vote`, and so are preset, weights, listed, kind, clips, processes
    out        .parquet with everything, or .csv; a card beside it says what it was made of. None: report only
    policy     None: the preset's, else the better half of every predicted class, which needs no labels
    filters    what a row must be besides
    previous   labels of the round before, for stable labels and for what changed
    truth      list `id,label` of some of the videos. Measured against; the only policies that read it for
               more are precision and fbeta, and the report says so
    test       list of the target's test videos: one that is labelled here is an error
    roots      folders that the names of target and test start from: files and their content are compared, not
               names alone, see `marey.jobs.leaks.leaks`
    weigh      rows weigh as much as they are sure
    by         what confidence is: "probability", "margin", or 1 - "entropy"
    published, train  also write the kept rows as the published lists are; as a list that `marey train` takes
    temperatures  of members, see `marey.jobs.scores.run`
    Raises UsageError OUT_SUFFIX, POLICY, TRUTH_MISSING, DataError TEST_LEAK and what `open_scores` raises.
    """
    started, made = now(), named(preset, weights)
    if out is not None and Path(out).suffix.lower() not in SUFFIXES:
        raise UsageError("OUT_SUFFIX", f"{str(out)!r}: pseudo-labels are written as {' or '.join(SUFFIXES)}")
    opened = open_scores(sources, made, listed=listed, kind=kind, clips=clips, processes=processes)
    if test is not None:
        tests = dict.fromkeys(read_ids(test), 0)
        names = list(tests if roots else as_tested(tests, test))
        refuse_leaks(leaks(opened.ids, names, roots=roots), str(test))
    ensemble = made or plain(opened, weights)
    how = parse_policy(policy) if isinstance(policy, str) else policy or _own(ensemble) or Quantile(share=0.5)
    real = find_truth(truth, opened) if truth is not None else None
    before = read_labels(previous) if previous is not None else None
    labels = pseudo_labels(
        opened.ids,
        run(ensemble, opened, temperatures),
        how,
        filters,
        truth=real if needs_labels(how) else None,
        previous=before,
        weigh=weigh,
        by=by,
        classes=opened.classes,
        origin=Origin(
            round=round,
            ensemble=preset or msgspec.json.encode(ensemble).decode(),
            members=opened.hashes,
            models={name: t.producer.sha256 for name, t in opened.tables.items() if t.producer.sha256},
            labels_used=_labels_used(ensemble, how),
        ),
    )
    report = describe(labels, real, before)
    report |= {"preset": preset, "quirks": list(ensemble.quirks), "corrected": ensemble.corrected}
    if out is not None:
        write_labels(out, labels)
        outputs: dict[str, Any] = {"labels": out}
        for name, path, write in (
            ("published", published, write_published_labels),
            ("train", train, write_list),
        ):
            if path is not None:
                write(path, labels)
                outputs[name] = path
        files = dict(opened.files)
        named_files = {"list": listed, "previous": previous, "truth": truth if needs_labels(how) else None}
        files |= {name: str(path) for name, path in named_files.items() if path is not None}
        settings: dict[str, Any] = {"ensemble": ensemble, "policy": how, "filters": filters or Filters()}
        settings |= {"by": by, "round": round, "weigh": weigh, "temperatures": temperatures}
        settings |= {"kind": kind, "clips": clips, "processes": processes}
        write_card(card_path(out), "pseudo-label", settings, files, outputs, started=started)
        report["out"] = str(out)
    return Labelled(labels, report)


def _own(preset: Preset) -> Policy | None:
    """The selection that belongs to a preset."""
    if isinstance(preset, Vote):
        return None
    return preset.select


def _labels_used(preset: Preset, how: Policy) -> str:
    """What labels of the target went into the numbers of a preset, as far as they are used here."""
    used = [preset.labels_used]
    if isinstance(preset, Ensemble) and how == preset.select:
        used.append(preset.selected_on)
    return "; ".join(filter(None, used))


def refuse_leaks(found: Sequence[Leak], test: str) -> None:
    """Raises DataError TEST_LEAK naming the first videos that are trained and tested on."""
    if found:
        first = ", ".join(f"{leak.train} ({leak.why})" for leak in found[:3])
        raise DataError(
            "TEST_LEAK",
            f"{len(found)} videos are also in the test list {test!r}: {first}; numbers on it would mean "
            "nothing, leave them out of the target list",
        )


# What labels are worth --------------------------------------------------------------------------------


def check(labels: Path_, *, truth: Path_ | None = None, previous: Path_ | None = None) -> dict[str, Any]:
    """The report of a table of pseudo-labels, or of a published list: its rows, and what they are worth.

    truth     list `id,label` of some of its videos
    previous  labels of the round before: what is new, gone and changed, each with its accuracy
    """
    known = None
    table = read_labels(labels)
    if truth is not None:
        known = truth_of(table.ids, read_truth(truth))
        if not (known >= 0).any():
            print(f"marey: no video of {labels} is in {truth}", file=sys.stderr)
    return describe(table, known, read_labels(previous) if previous is not None else None)


def describe(labels: PseudoLabels, truth: Any = None, previous: PseudoLabels | None = None) -> dict[str, Any]:
    """Plain JSON values about pseudo-labels: kept rows per class, why the others are not, agreement of the
    members; and on kept rows of known class their accuracy."""
    classes, kept = labels.num_classes, labels.kept
    reasons, counts = np.unique(labels.reasons, return_counts=True)
    found: dict[str, Any] = {
        "videos": len(labels),
        "kept": int(kept.sum()),
        "classes": list(labels.classes) if labels.classes else classes,
        "per_class": np.bincount(labels.labels[kept], minlength=classes).tolist(),
        "reasons": dict(zip(reasons.tolist(), counts.tolist(), strict=True)),
        "thresholds": list(labels.origin.thresholds),
        "policy": msgspec.to_builtins(labels.origin.policy),
        "round": labels.origin.round,
        "labels_used": labels.origin.labels_used,
        "confidence": np.histogram(labels.facts["confidence"][kept], bins=10, range=(0, 1))[0].tolist(),
    }
    if len(labels.members) > 1:
        found["agreement"] = agreement_of({name: best for name, (best, _) in labels.members.items()}, classes)
    if previous is not None:
        found["previous"] = _changes(labels, truth, previous)
    if truth is not None:
        all_ = measured(labels.labels, labels.probabilities, truth, classes)
        good = (
            measured(labels.labels[kept], labels.probabilities[kept], truth[kept], classes)
            if kept.any()
            else None
        )
        found |= {"measured": good, "measured_all": all_}
    return found


def _changes(labels: PseudoLabels, truth: Any, previous: PseudoLabels) -> dict[str, Any]:
    """New, dropped and changed rows since the round before; with truth, how many of each are right."""
    old = {name: int(previous.labels[row]) for row, name in enumerate(previous.ids) if previous.kept[row]}
    before = np.array([old.get(name, -1) for name in labels.ids], np.int64)
    now_there = {name for name, good in zip(labels.ids, labels.kept, strict=True) if good}
    new = labels.kept & (before < 0)
    changed = labels.kept & (before >= 0) & (before != labels.labels)
    found: dict[str, Any] = {
        "new": int(new.sum()),
        "changed": int(changed.sum()),
        "dropped": sum(name not in now_there for name in old),
    }
    if truth is not None:
        for name, rows in (("new", new), ("changed", changed)):
            known = rows & (truth >= 0)
            found[f"{name}_known"] = int(known.sum())
            found[f"{name}_right"] = int((labels.labels == truth)[known].sum())
    return found


def lines(report: dict[str, Any]) -> list[str]:
    """A report for people."""
    share = report["kept"] / max(report["videos"], 1)
    found = [f"{report['kept']:,} of {report['videos']:,} videos kept ({share:.1%})"]
    if report["labels_used"]:
        found.append(f"labels of the target were used: {report['labels_used']}")
    found += [f"as published: {quirk}" for quirk in report.get("quirks", ())]
    names = report["classes"] if isinstance(report["classes"], list) else range(report["classes"])
    good = report.get("measured")
    width = max((len(str(name)) for name in names), default=0)
    for number, name in enumerate(names):
        limit = report["thresholds"][number] if report["thresholds"] else None
        text = f"  {name!s:<{width}}  {report['per_class'][number]:>6}"
        text += f"  from {limit:.3f}" if limit is not None else ""
        if good and good["precision"][number] is not None:
            text += f"  precision {good['precision'][number]:.3f}"
        found.append(text)
    others = {name: rows for name, rows in report["reasons"].items() if name != "kept"}
    if others:
        found.append("not kept: " + ", ".join(f"{name} {rows:,}" for name, rows in others.items()))
    if agreement := report.get("agreement"):
        found.append(f"all members agree in {agreement['unanimous']:.1%} of the videos")
    if changes := report.get("previous"):
        text = f"since the round before: {changes['new']:,} new, {changes['changed']:,} changed"
        if changes.get("new_known"):
            text += f", of the new {changes['new_right'] / changes['new_known']:.4f} right"
        found.append(f"{text}, {changes['dropped']:,} dropped")
    if good:
        low, high = good["interval"]
        found.append(
            f"right {good['accuracy']:.4f} ({good['right']:,} of {good['rows']:,} kept of known class, 95 % "
            f"{low:.3f} to {high:.3f})"
        )
    return found
