"""The parts of a run's report: markup, or nothing where the run has nothing of the kind."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from marey.errors import MareyError
from marey.jobs import charts, examples, markup
from marey.jobs.charts import Floats, Ints
from marey.jobs.markup import Cell, escaped, note, share, table, tile, words
from marey.jobs.report_contents import Contents

NAMES = {
    "top1": "Top-1",
    "top5": "Top-5",
    "mean_class": "Mean class accuracy",
    "map": "mAP",
    "mmit_map": "mAP over clips",
    "gap": "GAP",
    "hit1": "Hit@1",
    "perr": "PERR",
    "map_2018": "mAP over all classes",
    "loss": "Loss",
}
IN_A_TABLE = 24  # classes of a confusion matrix that is shown as numbers
PAIRS = 20  # confused pairs, most frequent first
FILES = 200  # unreadable files that are named
LOG_LINES = 60

_SKIPPED = re.compile(r"^\S+ \S+  skipped (?P<path>.+): (?P<code>[A-Z][A-Z_]+): (?P<message>.*)$")


def numbers(contents: Contents) -> str:
    """The metrics, beside the published ones, and what they were measured on."""
    tiles = [*_result_tiles(contents.results or {}), *_training_tiles(contents.metrics)]
    body = f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""
    results = contents.results or {}
    if missing := _unevaluated(results):
        text = f"{missing:,} of {results['listed']:,} listed {_unit(results)} are missing from these numbers."
        body += note(text, "warning")
    if results.get("metrics"):
        body += f'<div class="side">{_comparison(results)}{_measured_on(results)}</div>'
    return body


def _unevaluated(results: dict[str, Any]) -> int:
    return int(results.get("listed") or 0) - int(results.get("evaluated") or 0)


def _unit(results: dict[str, Any]) -> str:
    return str(results.get("unit", "clips"))


def _result_tiles(results: dict[str, Any]) -> Iterator[str]:
    expected = _expected(results)
    for key, value in (results.get("metrics") or {}).items():
        if key != "loss" and value is not None:
            known = expected.get(key)
            below = f"published {known:.1%}, {100 * (value - known):+.1f} points" if known is not None else ""
            yield tile(NAMES.get(key, key), f"{value:.1%}", below)
    if results:
        state = "warning" if _unevaluated(results) else ""
        yield tile(
            "Evaluated",
            f"{results['evaluated']:,} of {results['listed']:,}",
            f"{_unit(results)} of the list",
            state,
        )


def _training_tiles(metrics: dict[str, Floats]) -> Iterator[str]:
    for column in ("val_top1", "val_gap", "val_map"):
        values = metrics.get(column, np.empty(0))
        if np.isfinite(values).any():
            best = int(np.nanargmax(values))
            when = f"at epoch {metrics['epoch'][best]:g}" if "epoch" in metrics else ""
            yield tile(f"Best validation {NAMES[column.removeprefix('val_')]}", f"{values[best]:.1%}", when)
    skipped = metrics.get("skipped", np.empty(0))
    if np.isfinite(skipped).any() and (count := int(np.nanmax(skipped))):
        yield tile("Skipped in training", f"{count:,}", "unreadable files", "warning")


def _expected(results: dict[str, Any]) -> dict[str, float]:
    """The published metrics; they stand beside their source, or alone."""
    expected = results.get("expected") or {}
    return {k: v for k, v in expected.get("metrics", expected).items() if isinstance(v, int | float)}


def _comparison(results: dict[str, Any]) -> str:
    expected = _expected(results)
    rows = []
    for key, value in results["metrics"].items():
        if value is None:
            continue
        shown = Cell(f"{value:.4f}", value, "number") if key == "loss" else share(value)
        known = expected.get(key)
        gap = Cell(
            "–" if known is None else f"{100 * (value - known):+.1f}",
            0 if known is None else value - known,
            "number",
        )
        rows.append((words(NAMES.get(key, key)), shown, share(known), gap))
    body = table("Measured and published", ("metric", "measured", "published", "points between"), rows)
    whence = results.get("expected") or {}
    told = ", ".join(str(whence[key]) for key in ("source", "protocol") if whence.get(key))
    return f"<div>{body}{note(f'Published by {told}') if told else ''}</div>"


def _measured_on(results: dict[str, Any]) -> str:
    facts = {key: results.get(key) for key in ("list", "fingerprint", "checkpoint", "evaluated", "listed")}
    blocks = (
        markup.settings(facts, "Measured on"),
        markup.settings(results.get("protocol") or {}, "Test protocol"),
    )
    return f"<div>{''.join(blocks)}</div>"


def curves(contents: Contents) -> str:
    """How the training went."""
    drawn = "".join(
        markup.figure(chart.svg, chart.title, chart.alt) for chart in charts.curves(contents.metrics)
    )
    return f'<div class="curves">{drawn}</div>' if drawn else ""


def classes(contents: Contents) -> str:
    """Each class with its number of clips and how well it is recognised."""
    rows = (contents.results or {}).get("per_class") or []
    if not rows:
        return ""
    measure = "ap" if "ap" in rows[0] else "accuracy"
    values = [row[measure] if row["count"] and row[measure] is not None else math.nan for row in rows]
    order = sorted(range(len(rows)), key=lambda label: (math.isnan(values[label]), values[label], label))
    cells = [
        (
            words(rows[i]["class"]),
            markup.count(rows[i].get("label", i)),
            markup.count(rows[i]["count"]),
            share(values[i], bar=True),
        )
        for i in order
    ]
    name = "average precision" if measure == "ap" else "accuracy"
    unseen = sum(map(math.isnan, values))
    counted = (contents.results or {}).get("counted") or _unit(contents.results or {})
    body = table(
        f"{len(rows)} classes, weakest first",
        ("class", "label", counted, name),
        cells,
        sortable=True,
        tall=len(rows) > 16,
    )
    told = f"{unseen} classes have no {counted} here; they count in no mean."
    return body + (note(told) if unseen else "")


def confusion(contents: Contents) -> str:
    """Which class was taken for which."""
    results = contents.results or {}
    if not results.get("confusion"):
        return ""
    matrix = np.array(results["confusion"], dtype=np.int64)
    classes = [markup.plain(name) for name in results["classes"]]
    if len(classes) <= IN_A_TABLE:
        drawn = _matrix(matrix, classes)
    else:
        chart = charts.heat_map(matrix, classes)
        drawn = markup.figure(
            chart.svg,
            "Share of each true class (rows) that was predicted as each class (columns)",
            chart.alt,
            "map",
        )
    return f'<div class="{"side" if len(classes) <= 10 else ""}">{drawn}{_pairs(matrix, classes)}</div>'


def _matrix(matrix: Ints, classes: list[str]) -> str:
    """The confusion matrix as a table: rows true, columns predicted."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    heads = "".join(f'<th scope="col" class="name"><span>{escaped(name)}</span></th>' for name in classes)
    rows = []
    for i, name in enumerate(classes):
        kinds = ("right" if i == j else "wrong" for j in range(len(classes)))
        cells = (
            f'<td class="{kind}" style="--share:{0.85 * part:.3f}">{count or ""}</td>'
            for kind, part, count in zip(kinds, shares[i], matrix[i], strict=True)
        )
        rows.append(f'<tr><th scope="row">{escaped(name)}</th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll"><table class="matrix">'
        "<caption>True (rows), predicted (columns)</caption>"
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _pairs(matrix: Ints, classes: list[str]) -> str:
    """The pairs (true, predicted) that were confused most often."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    totals = matrix.sum(axis=1)
    rows = [
        (words(classes[i]), words(classes[j]), markup.count(int(wrong[i, j])), share(wrong[i, j] / totals[i]))
        for i, j in (divmod(int(at), len(classes)) for at in order)
        if wrong[i, j]
    ]
    if not rows:
        return note("No clip was confused with another class.")
    head = ("true", "predicted", "clips", "of the true class")
    return table("Confused most often", head, rows, sortable=True)


def clips(contents: Contents) -> str:
    """Clips worth a look, with frames."""
    scores, results, recipe = contents.scores, contents.results or {}, contents.recipe or {}
    if scores is None:
        return ""
    average = (results.get("protocol") or {}).get("average", "prob")
    probability = scores.values
    if average not in ("prob", "max"):
        probability = examples.probabilities(probability, multi_label=not results.get("confusion"))
    classes = [str(name) for name in results.get("classes") or range(probability.shape[1])]
    template = (recipe.get("data") or {}).get("template")
    body = ""
    for title, indices in examples.worth_a_look(scores, probability).items():
        cards = [
            _card(
                scores.paths[i],
                [classes[label] for label in scores.labels[i]],
                probability[i],
                classes,
                template,
            )
            for i in indices
        ]
        inner = f'<div class="clips">{"".join(cards)}</div>' if cards else note("There are none.")
        body += f"<h3>{title}</h3>{inner}"
    return body


def _card(path: str, truth: list[str], probability: Floats, classes: list[str], template: str | None) -> str:
    """One clip: a strip of frames, its labels, and the three best classes with their probabilities."""
    best = np.argsort(-probability, kind="stable")[:3]
    said = ", ".join(f"{classes[label]} {probability[label]:.1%}" for label in best)
    try:
        seen = markup.picture(examples.strip(path, template), f"Four frames of {path}")
    except MareyError as error:
        seen = note(f"{error.code}: {error.message}")
    except (OSError, ValueError, RuntimeError) as error:
        seen = note(f"no picture: {type(error).__name__}: {error}")
    return (
        f'<article class="clip">{seen}<p>Label: <b>{escaped(", ".join(truth) or "none")}</b></p>'
        f'<p>Network: {escaped(said)}</p><p class="path"><bdi>{escaped(path)}</bdi></p></article>'
    )


def files(contents: Contents) -> str:
    """What could not be read, in training or evaluation."""
    failed = [
        (f["path"], f["code"], f["message"], "evaluation")
        for f in (contents.results or {}).get("failed") or []
    ]
    matches = filter(None, map(_SKIPPED.match, contents.log))
    skipped = [(m["path"], m["code"], m["message"], "training") for m in matches]
    rows = list(dict.fromkeys([*failed, *skipped]))
    if not rows:
        return ""
    head = ("file", "code", "why", "when")
    body = table(
        f"{len(rows):,} files",
        head,
        [tuple(map(words, row)) for row in rows[:FILES]],
        sortable=True,
        tall=len(rows) > 12,
    )
    return body + (
        note(f"The first {FILES} are shown; log.txt and results.json name all.") if len(rows) > FILES else ""
    )


def recipe(contents: Contents) -> str:
    """The recipe as it was run."""
    if contents.recipe is None:
        return ""
    text = json.dumps(contents.recipe, indent=2, ensure_ascii=False)
    return f'<div class="blocks">{markup.settings(contents.recipe)}</div>{markup.folded("recipe.json", text)}'


def environment(contents: Contents) -> str:
    """Versions and devices."""
    facts = contents.environment or (contents.results or {}).get("versions")
    return f'<div class="blocks">{markup.settings(facts)}</div>' if facts else ""


def log(contents: Contents) -> str:
    """The end of the log."""
    if not contents.log:
        return ""
    last = contents.log[-LOG_LINES:]
    return markup.folded(f"last {len(last)} of {len(contents.log):,} lines of log.txt", "\n".join(last))
