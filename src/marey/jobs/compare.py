"""`marey compare`: in what two results of `marey test` differ, field by field and number by number."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from marey.errors import DataError, UsageError
from marey.jobs.compare_clips import (
    ClassChange,
    Clips,
    Names,
    accuracies,
    class_names,
    compare_clips,
    largest,
    match,
    see,
)
from marey.jobs.examples import Scores, read_scores
from marey.jobs.runs import FREE

MEASURED = {"metrics", "per_class", "confusion", "explained", "results"}  # what comes out of a test
PARTS = {  # what a field of results.json is about, by how its name begins; the first that fits
    "weights": ("recipe", "checkpoint", "sha256", "settings.model"),
    "data": (
        *("unit", "counted", "list", "fingerprint", "listed", "evaluated", "failed", "classes"),
        *("comparable", "settings.data"),
    ),
    "protocol": (
        *("protocol", "settings.testing", "settings.boxes"),
        *("settings.clips.test", "settings.clips.val", "settings.clips.average"),
    ),
    "preprocessing": ("settings.clips",),
    "environment": ("versions",),
    "training": ("run",),
    "other": (),
}
TWINS = {"run.recipe": "settings", "run.environment": "versions"}  # say the same of training and test
KINDS = {"prob": "probabilities", "max": "largest probabilities", "score": "logits", "none": "logits"}
SHOWN = 20  # fields of a part, for people
CLASSES = 5  # that changed most, for people


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """A field that is not the same; a value that one result does not have is left out.

    part  what it is about, one of PARTS
    name  dotted, as in results.json; below `run.` of the recipe.json and environment.json beside it
    """

    part: str
    name: str
    a: Any = UNSET
    b: Any = UNSET


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A number of both results, and B - A; None where one has not measured it."""

    name: str
    a: float | None
    b: float | None
    difference: float | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in which two results differ.

    a, b     the files
    fields   that are not the same: what was tested, on what, and how
    metrics  all, whether they differ or not
    clips    None where a result has no scores of single clips
    classes  whose accuracy or AP differs, the largest difference first
    measure  what is meant by that: "accuracy", over the clips in both, or "ap", as the results say
    notes    what to know before anything is concluded
    """

    a: str
    b: str
    fields: tuple[Field, ...]
    metrics: tuple[Metric, ...]
    clips: Clips | None
    classes: tuple[ClassChange, ...]
    measure: str
    notes: tuple[str, ...]


class Failed(msgspec.Struct):
    """A file that could not be read."""

    path: str
    code: str


class Class(msgspec.Struct):
    """A class of `per_class`; ap is None, too, where another measure is taken."""

    name: str = msgspec.field(name="class")
    count: int = 0
    ap: float | None = None


class Content(msgspec.Struct):
    """What every results.json has."""

    protocol: dict[str, Any]
    metrics: dict[str, float | None]
    listed: int
    evaluated: int
    failed: list[Failed]
    classes: list[str]
    per_class: list[Class]
    versions: dict[str, Any]
    unit: str = "clips"
    fingerprint: str | None = None


class Result(NamedTuple):
    """A results.json, checked and as it is, and what lies beside it.

    scores  None where there are none of single clips
    run     recipe.json and environment.json of the run folder that it lies in, as far as they are there
    """

    file: Path
    content: Content
    tree: dict[str, Any]
    scores: Scores | None
    run: dict[str, Any]


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Comparison:
    """Two results of `marey test`, each a results.json or a run folder that holds one.

    Raises UsageError RESULTS_FILE where one is missing, damaged or something else, DataError SCORES_FORMAT
    or SCORES_NAN for damaged scores beside it, or scores of another test.
    """
    one, other = read_result(a), read_result(b)
    names = class_names(one.content.classes, other.content.classes)
    clips, classes, measure = None, list(precisions(one.content, other.content)), "ap"
    if one.scores is not None and other.scores is not None:
        pairs = match(one.scores.paths, other.scores.paths, same_list=_same_list(one, other))
        seen = see(one.scores, other.scores, pairs, names)
        apart = largest(one.scores, other.scores, pairs, names) if _kind(one) == _kind(other) else None
        clips = compare_clips(one.scores.paths, other.scores.paths, pairs, seen, apart)
        if all(len(labels) == 1 for labels in seen.labels):
            classes, measure = list(accuracies(seen)), "accuracy"
    return Comparison(
        a=str(one.file),
        b=str(other.file),
        fields=tuple(differing_fields(one, other)),
        metrics=tuple(metrics(one.content.metrics, other.content.metrics)),
        clips=clips,
        classes=tuple(sorted(classes, key=lambda row: (-abs(row.difference), -row.clips, row.name))),
        measure=measure,
        notes=tuple(_notes(one, other, names)),
    )


# Reading ----------------------------------------------------------------------------------------------


def read_result(source: str | os.PathLike[str]) -> Result:
    """A results.json, or that of a run folder. Raises as `compare`."""
    path = Path(source)
    file = path / "results.json" if path.is_dir() else path
    try:
        tree = json.loads(file.read_bytes())
        content = msgspec.convert(tree, Content)
    except FileNotFoundError:
        raise _unusable(file, "is not there") from None
    except OSError as error:
        raise _unusable(file, f"cannot be read: {error.strerror}") from None
    except msgspec.ValidationError as error:
        raise _unusable(file, f"is no result of `marey test`: {error}") from None
    except (ValueError, RecursionError) as error:
        raise _unusable(file, f"is damaged, or no JSON: {error}") from None
    scores = file.with_name("scores.parquet") if file.name == "results.json" else file.with_suffix(".parquet")
    kept = content.unit == "clips" and scores.exists()
    return Result(file, content, tree, _scores(scores, content) if kept else None, _run(file.parent))


def _unusable(file: Path, why: str) -> UsageError:
    return UsageError(
        "RESULTS_FILE",
        f"{str(file)!r} {why}; give the results.json of a `marey test`, or a run folder that holds one",
    )


def _scores(path: Path, content: Content) -> Scores:
    try:
        scores = read_scores(path)
        labels = [label for row in scores.labels for label in row]
        held = len(scores.paths) == content.evaluated and min(labels, default=0) >= 0
    except (OSError, KeyError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        text = str(error).partition("\n")[0]
        raise DataError(
            "SCORES_FORMAT", f"{str(path)!r} is damaged, or holds no scores: {text:.200}; run the test again"
        ) from None
    width = len(content.classes)
    if not held or max(labels, default=-1) >= width or (scores.paths and scores.values.shape[1] != width):
        raise DataError(
            "SCORES_FORMAT",
            f"{str(path)!r} holds {len(scores.paths)} clips and {scores.values.shape[1]} classes, the "
            f"results beside it {content.evaluated} and {width}: they are of two tests; run the test again",
        )
    if not np.isfinite(scores.values).all():
        row = int(np.isfinite(scores.values).all(axis=1).argmin())
        raise DataError("SCORES_NAN", f"{str(path)!r}: scores of {scores.paths[row]!r} are NaN or infinite")
    return scores


def _run(folder: Path) -> dict[str, Any]:
    """The recipe and the environment of a training; a file that is not there or damaged is left out."""
    found = {}
    for name in ("recipe", "environment"):
        try:
            found[name] = json.loads((folder / f"{name}.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
    return found


# Fields and metrics -----------------------------------------------------------------------------------


def differing_fields(one: Result, other: Result) -> Iterator[Field]:
    """Fields that are not the same, part by part.

    Training is compared where both results lie in run folders; what it shares with the test is said once.
    """
    run = [name for name in one.run if name in other.run]
    trees = [_tree(result) | {"run": {name: result.run[name] for name in run}} for result in (one, other)]
    found = {name: (a, b) for name, a, b in _differing(trees[0], trees[1])}
    fields = []
    for name, values in found.items():
        twin = next((name.replace(run, to, 1) for run, to in TWINS.items() if name.startswith(run)), "")
        if found.get(twin) != values:
            fields.append(Field(part=part_of(name), name=name, a=values[0], b=values[1]))
    yield from sorted(fields, key=lambda field: list(PARTS).index(field.part))


def _tree(result: Result) -> dict[str, Any]:
    """What was tested, with lists of records by their places, and failed files by their paths."""
    tree = {name: _placed(value) for name, value in result.tree.items() if name not in MEASURED}
    tree["failed"] = {failed.path: failed.code for failed in result.content.failed}
    tree["classes"] = dict(_numbered(result.content.classes))
    return tree


def _placed(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = dict(_numbered(value))
    return {name: _placed(item) for name, item in value.items()} if isinstance(value, dict) else value


def _numbered(values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return ((str(place), value) for place, value in enumerate(values))


def _differing(a: Any, b: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted names and both values; a branch that is in one tree only is one row."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        if a != b:
            yield name, a, b
        return
    for key in [*a, *(key for key in b if key not in a)]:
        yield from _differing(a.get(key, UNSET), b.get(key, UNSET), f"{name}.{key}" if name else key)


def part_of(name: str) -> str:
    """Which of PARTS a field belongs to; settings that only say when to give up are the machine's."""
    if name.removeprefix("settings.") in FREE:
        return "environment"
    for part, starts in PARTS.items():
        if any(name == start or name.startswith(f"{start}.") for start in starts):
            return part
    return "other"


def metrics(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> Iterator[Metric]:
    """All metrics of both results side by side."""
    for name in [*a, *(name for name in b if name not in a)]:
        one, other = a.get(name), b.get(name)
        gap = None if one is None or other is None else other - one
        yield Metric(name=name, a=one, b=other, difference=gap)


def precisions(one: Content, other: Content) -> Iterator[ClassChange]:
    """Classes whose average precision differs, by name; those without one in a result are left out."""
    theirs = {row.name: row.ap for row in other.per_class}
    for row in one.per_class:
        a, b = row.ap, theirs.get(row.name)
        if a is not None and b is not None and a != b:
            yield ClassChange(name=row.name, clips=row.count, a=a, b=b, difference=b - a)


def _same_list(one: Result, other: Result) -> bool:
    return one.content.fingerprint is not None and one.content.fingerprint == other.content.fingerprint


def _kind(result: Result) -> str:
    average = result.content.protocol.get("average")
    return KINDS.get(str(average), str(average))


# For people -------------------------------------------------------------------------------------------


def _notes(one: Result, other: Result, names: Names) -> Iterator[str]:
    if one.content.fingerprint != other.content.fingerprint:  # None of detectors, whose lists have none
        yield "the lists are not the same (fingerprint): the metrics are of different clips"
    if names.note:
        yield names.note
    if bool(one.run) != bool(other.run):
        yield f"only {'A' if one.run else 'B'} lies in a run folder: how they were trained is not compared"
    for which, result in (("A", one), ("B", other)):
        if result.tree.get("sha256") is None:
            yield f"{which} has no hash of its weights: it is of a validation in training, or an older marey"
        if result.content.evaluated < result.content.listed:
            yield f"{which} evaluated {result.content.evaluated:,} of {result.content.listed:,} listed"
        if result.scores is None:
            unit = result.content.unit
            beside = "there is no scores file beside it" if unit == "clips" else f"of {unit} none are kept"
            yield f"{which} has no scores of single clips: {beside}"
    if one.scores is not None and other.scores is not None:
        if names.order is None:
            yield "the classes are not the same: scores are not compared, best classes by name"
        elif _kind(one) != _kind(other):
            yield f"scores are {_kind(one)} in A and {_kind(other)} in B: they are not compared"


def lines(found: Comparison, listed: int = 0) -> list[str]:
    """The comparison for people, with up to `listed` clips whose best class changed."""
    text = [f"A  {found.a}", f"B  {found.b}", ""]
    text += [f"note: {note}" for note in found.notes] + [""] * bool(found.notes)
    for part in PARTS:
        rows = [field for field in found.fields if field.part == part]
        if rows:
            text += _columns([part, "A", "B"], [_row(field) for field in rows[:SHOWN]])
            text += [f"  ... and {len(rows) - SHOWN} more, see --json"] * (len(rows) > SHOWN) + [""]
    if not found.fields:
        text += ["fields: nothing differs", ""]
    table = [[row.name, _number(row.a), _number(row.b), _signed(row.difference)] for row in found.metrics]
    text += _columns(["metric", "A", "B", "B - A"], table)
    if found.clips is not None:
        text += ["", *_of_clips(found.clips)]
    if found.classes:
        title = "accuracy" if found.measure == "accuracy" else "average precision"
        rest = len(found.classes) - CLASSES
        more = f", the first {CLASSES} of {len(found.classes)}" if rest > 0 else ""
        text += ["", f"classes whose {title} changed most{more}"]
        table = [
            [row.name, str(row.clips), _number(row.a), _number(row.b), _signed(row.difference)]
            for row in found.classes[:CLASSES]
        ]
        text += _columns(["class", "clips", "A", "B", "B - A"], table)
    if found.clips is not None and listed and found.clips.changed:
        text += ["", f"{min(listed, len(found.clips.changed)):,} of the clips that B takes for another class"]
        table = [[row.path, ", ".join(row.labels), row.a, row.b] for row in found.clips.changed[:listed]]
        text += _columns(["path", "label", "A", "B"], table)
    return [_printable(line) for line in text]


def _of_clips(clips: Clips) -> Iterator[str]:
    alone = f"{clips.only_a:,} only in A, {clips.only_b:,} only in B"
    yield f"clips: {clips.both:,} in both by their {clips.matched_by}, {alone}"
    if clips.repeated:
        yield f"  {clips.repeated:,} share their path with others; they are matched in their order"
    if clips.unclear:
        yield f"  {clips.unclear:,} are left out: their path is not there equally often"
    if clips.relabelled:
        yield f"  {clips.relabelled:,} have another label; they are not counted below"
    if not clips.both:
        return
    numbers = {
        "both right": clips.right_both,
        "only A right": clips.right_a,
        "only B right": clips.right_b,
        "both wrong": clips.wrong_both,
    }
    yield from (f"  {name:<14}{number:>8,}" for name, number in numbers.items())
    yield f"  sign test (McNemar, exact, two-sided): p = {clips.p:.3g}"
    if clips.largest is not None:
        at = clips.largest
        scores = f"{_number(at.a)} in A, {_number(at.b)} in B"
        yield f"  largest difference of scores: {abs(at.difference):.3g} ({at.path}, {at.name}: {scores})"
    yield f"  taken for another class by B: {len(clips.changed):,}"


def _row(field: Field) -> list[str]:
    return [field.name, _value(field.a), _value(field.b)]


def _value(value: Any) -> str:
    if isinstance(value, UnsetType):
        return "(not there)"
    if isinstance(value, dict):
        return f"({len(value)} fields)"
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as a table; a cell of more than 44 characters pushes the rest of its line to the right."""
    widths = [
        max((len(row[i]) for row in [titles, *rows] if len(row[i]) <= 44), default=0)
        for i in range(len(titles))
    ]
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [titles, *rows]
    ]


def _printable(line: str) -> str:
    """Names of files may hold anything."""
    return line.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")
