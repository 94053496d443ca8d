"""What an adaptation found, for people: lines, and report.html in its folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
import numpy as np
from matplotlib.figure import Figure

from marey.data.lists import read_list
from marey.errors import MareyError, UsageError
from marey.files import replacing
from marey.jobs import charts, examples, markup
from marey.jobs.markup import Cell, count, escaped, note, section, share, table, words
from marey.jobs.report import page
from marey.jobs.rounds_plan import Plan
from marey.scores.files import read_scores
from marey.scores.labels import read_truth
from marey.video.light import Light, relight
from marey.video.reader import read_video

MISTAKES, DARK = 6, 6  # clips that are shown


def lines(report: dict[str, Any]) -> list[str]:
    """The steps as a table of text: share that is right, of each network and of the ensemble; labels kept."""
    names = [*report["members"], *report["experts"]]
    found = [f"labels of the target were used: {text}" for text in report["labels_used"]]
    rows = [["", *names, "ensemble", "kept", "right of them"]]
    for row in report["steps"]:
        rows.append([_title(report, row), *map(_share, _rights(row, names)), *_kept(row)])
    for what, row in report["final"].items():
        rows.append([f"final, {what}", *map(_share, _rights(row, names)), "", ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        found.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return found


def _title(report: dict[str, Any], row: dict[str, Any]) -> str:
    return f"round {row['step']}" if row["step"] else "source"


def _rights(row: dict[str, Any], names: list[str]) -> list[float | None]:
    known = [row["members"].get(name) for name in names] + [row["ensemble"]]
    return [None if one is None else one["accuracy"] for one in known]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _kept(row: dict[str, Any]) -> list[str]:
    made = row.get("pseudo_labels")
    if made is None:
        return ["", ""]
    good = made.get("measured")
    return [f"{made['kept']} of {made['videos']}", _share(good and good["accuracy"])]


# The page ---------------------------------------------------------------------------------------------


def write_page(folder: Path) -> Path:
    """Write `report.html` from the files of an adaptation, and return its path.

    It makes no requests. Frames are read from the target's videos; where they are gone it goes without.
    Raises UsageError ADAPT_PLAN where no adaptation has ended.
    """
    try:
        report = msgspec.json.decode((folder / "report.json").read_bytes())
        plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise UsageError("ADAPT_PLAN", f"{folder} holds no finished adaptation: {error}") from None
    parts = (
        ("accuracy", "Accuracy", _accuracy(report)),
        ("labels", "Labels kept", _labels(report)),
        ("agreement", "Agreement", _agreement(report)),
        ("confusion", "Confusion", _confusion(report)),
        ("mistakes", "Confident mistakes", _mistakes(folder, plan, report)),
        ("dark", "Dark frames", _dark(folder, plan, report)),
        ("plan", "Plan", _settings(plan)),
    )
    there = [part for part in parts if part[2]]
    links = "".join(f'<a href="#{key}">{escaped(title)}</a>' for key, title, _ in there)
    warnings = "".join(
        note(f"Labels of the target were used: {text}; its numbers are optimistic.", "warning")
        for text in report["labels_used"]
    )
    content = [
        f"<header><h1>Adaptation, {escaped(folder.name)}</h1><p>{escaped(_about(plan, report))}</p></header>",
        f'<nav aria-label="Sections">{links}</nav>',
        "<main>",
        warnings,
        *(section(key, title, body) for key, title, body in there),
        "</main>",
        f"<footer>Written by marey from {escaped(folder)}</footer>",
    ]
    path = folder / "report.html"
    with replacing(path) as part:
        part.write_text(
            page(f"Adaptation, {folder.name}", "\n".join(content)), encoding="utf-8", newline="\n"
        )
    return path


def _about(plan: Plan, report: dict[str, Any]) -> str:
    networks = ", ".join([*report["members"], *report["experts"]])
    return f"{networks}; {plan.rounds} rounds of pseudo-labels from {plan.source} to {plan.target}"


def _accuracy(report: dict[str, Any]) -> str:
    names = [*report["members"], *report["experts"]]
    rows = [[words(_title(report, row)), *map(share, _rights(row, names))] for row in report["steps"]]
    rows += [
        [words(f"final, {what}"), *map(share, _rights(row, names))] for what, row in report["final"].items()
    ]
    if all(row["ensemble"] is None for row in [*report["steps"], *report["final"].values()]):
        return note("Not measured: no true classes of target videos were given (--truth).")
    body = table("Videos that are right, by step", ("step", *names, "ensemble"), rows)
    known = [row for row in report["steps"] if row["ensemble"] is not None]
    body += _lines_chart(known, names) if len(known) > 1 else ""
    if len(known) > 1:
        first, last = known[0]["ensemble"], known[-1]["ensemble"]
        low, high = last["interval"]
        rise = 100 * (last["accuracy"] - first["accuracy"])
        body += note(
            f"The ensemble after the last round: {last['right']:,} of {last['rows']:,} right "
            f"(95 % {low:.3f} to {high:.3f}), {rise:+.1f} points since the first step."
        )
    return body


def _lines_chart(rows: list[dict[str, Any]], names: list[str]) -> str:
    with matplotlib.rc_context(charts.STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(7.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        steps = [row["step"] for row in rows]
        curves = {name: [row["members"].get(name) for row in rows] for name in names}
        curves = {name: known for name, known in curves.items() if all(known)}
        for number, (name, known) in enumerate(curves.items()):
            colour = charts.COLOURS[1 + number % (len(charts.COLOURS) - 1)]
            axes.plot(
                steps, [one["accuracy"] for one in known if one], color=colour, label=name, marker="o", ms=3
            )
        axes.plot(
            steps, [row["ensemble"]["accuracy"] for row in rows], color=charts.COLOURS[0], label="ensemble",
            marker="o", ms=3, linewidth=2,
        )  # fmt: skip
        axes.set_xticks(steps)
        axes.set_xlabel("round")
        axes.set_ylabel("right")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.legend()
        svg = charts.svg_of(figure, "rounds")
    told = ", ".join(f"round {row['step']} {row['ensemble']['accuracy']:.1%}" for row in rows)
    return markup.figure(svg, "Right, round by round", f"Ensemble: {told}", "map")


def _labels(report: dict[str, Any]) -> str:
    made = [(row["step"], row["pseudo_labels"]) for row in report["steps"] if "pseudo_labels" in row]
    if not made:
        return ""
    rows = []
    for step, found in made:
        changes, good = found.get("previous") or {}, found.get("measured")
        rows.append(
            [
                words(f"round {step}"), count(found["kept"]), share(found["kept"] / max(found["videos"], 1)),
                share(good["accuracy"] if good else None), count(changes.get("new", found["kept"])),
                share(_part(changes.get("new_right"), changes.get("new_known"))),
                count(changes.get("dropped", 0)), count(changes.get("changed", 0)),
            ]
        )  # fmt: skip
    head = ("round", "kept", "of all", "right", "new", "new right", "dropped", "changed")
    body = table("Pseudo-labels, by round", head, rows)
    classes = made[0][1]["classes"]
    names = classes if isinstance(classes, list) else list(map(str, range(classes)))
    rows = [
        [words(name), *(cell for _, found in made for cell in _yield(found, number))]
        for number, name in enumerate(names)
    ]
    titles = [text for step, _ in made for text in (f"round {step}", "threshold", "right")]
    body += table("Kept, by class", ("class", *titles), rows, tall=len(names) > 20)
    reasons = sorted({name for _, found in made for name in found["reasons"] if name != "kept"})
    rows = [[words(name), *(count(found["reasons"].get(name, 0)) for _, found in made)] for name in reasons]
    if rows:
        body += table("Not kept", ("because of", *(f"round {step}" for step, _ in made)), rows)
    return body


def _yield(found: dict[str, Any], number: int) -> Iterator[Cell]:
    yield count(found["per_class"][number])
    limit = found["thresholds"][number] if found["thresholds"] else None
    yield Cell("–" if limit is None else f"{limit:.3f}", -1.0 if limit is None else limit, "number")
    good = found.get("measured")
    yield share(good["precision"][number] if good else None)


def _part(some: int | None, whole: int | None) -> float | None:
    return None if not whole or some is None else some / whole


def _agreement(report: dict[str, Any]) -> str:
    body = ""
    for row in report["steps"]:
        found = row["agreement"]
        if len(found["members"]) < 2:
            continue
        rows = [
            [words(name), *map(share, found["share"][number])] for number, name in enumerate(found["members"])
        ]
        title = f"{_title(report, row)}: same label; all agree in {found['unanimous']:.1%}"
        body += table(title, ("", *found["members"]), rows)
    return f'<div class="side">{body}</div>' if body else ""


def _confusion(report: dict[str, Any]) -> str:
    drawn = []
    for title, row in (("first step", report["steps"][0]), ("final", report["final"]["target"])):
        if row["ensemble"] is not None:
            matrix = np.array(row["ensemble"]["confusion"], np.int64)
            classes = report["classes"] or list(map(str, range(len(matrix))))
            chart = charts.heat_map(matrix, classes)
            drawn.append(markup.figure(chart.svg, f"Ensemble, {title}", chart.alt))
    return f'<div class="side">{"".join(drawn)}</div>' if drawn else ""


def _mistakes(folder: Path, plan: Plan, report: dict[str, Any]) -> str:
    """Target videos of known class that the last ensemble is surest of and wrong about."""
    file = folder / "final/vote-target/vote.parquet"
    if plan.truth is None or not file.exists():
        return ""
    scores, truth = read_scores(file), read_truth(plan.truth)
    assert scores.probabilities is not None
    best, sure = scores.probabilities.argmax(axis=1), scores.probabilities.max(axis=1)
    known = np.array([truth.get(name, -1) for name in scores.ids])
    wrong = np.flatnonzero((known >= 0) & (best != known))
    if not len(wrong):
        return note("None: every video of known class is right.")
    clips = read_list(folder / "target.csv", root=report["root"])
    classes = report["classes"] or list(map(str, range(scores.probabilities.shape[1])))
    where = {clips.written(i): clips[i].path for i in range(len(clips))}
    lights, _ = _lights(plan)
    shown = []
    for row in wrong[np.argsort(-sure[wrong], kind="stable")][:MISTAKES]:
        name = scores.ids[row]
        text = f"{name}: {classes[best[row]]} ({sure[row]:.0%}), truly {classes[known[row]]}"
        shown.append(_pictures(where[name], text, (None, *lights[:1])))
    return f'<div class="clips">{"".join(shown)}</div>'


def _dark(folder: Path, plan: Plan, report: dict[str, Any]) -> str:
    """Some target videos as they are and under the lights of the plan, or by the grey of daylight."""
    clips = read_list(folder / "target.csv", root=report["root"])
    lights, told = _lights(plan)
    chosen = np.unique(np.linspace(0, len(clips) - 1, DARK).astype(int))
    shown = [_pictures(clips[row].path, clips.written(row), (None, *lights[:2])) for row in map(int, chosen)]
    return note(f"Above as they are, below corrected {told}.") + f'<div class="clips">{"".join(shown)}</div>'


def _lights(plan: Plan) -> tuple[tuple[Light, ...], str]:
    """The corrections of light that an adaptation has, or the grey of daylight; and what they are."""
    shown_by = [recipe.clips for recipe in plan.members.values()]
    lights = plan.views.lights or next((c.test.lights for c in shown_by if c.test.lights), ())
    lights = lights or tuple(c.light for c in shown_by if c.light is not None)
    lights = tuple(light for light in lights if light != Light())
    if lights:
        return lights, "as networks are shown them"
    return (Light(target=110.0, limits=(0.05, 1.0)),), "by a gamma that makes them grey on average"


def _pictures(path: str, text: str, lights: Sequence[Light | None]) -> str:
    """Strips of one video under several lights, one below the other."""
    try:
        made = [markup.picture(_strip(path, light), text) for light in lights]
    except MareyError as error:
        return note(f"{text}: {error.message}")
    return f'<figure class="clip">{"".join(made)}<figcaption>{escaped(text)}</figcaption></figure>'


def _strip(path: str, light: Light | None) -> bytes:
    if light is None:
        return examples.strip(path)
    with read_video(path, limits=examples.LIMITS) as video:
        return examples.jpeg_strip(
            relight(video.frames(examples.middles(len(video)))[None], light)[0].numpy()
        )


def _settings(plan: Plan) -> str:
    tree: dict[str, Any] = msgspec.to_builtins(plan)
    for part in ("members", "experts"):
        tree[part] = {name: recipe["name"] for name, recipe in tree[part].items()}
    return markup.settings(tree)
