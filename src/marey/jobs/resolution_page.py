"""The picture of `marey report resolution`: accuracy against cost, latency and throughput."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from marey.errors import UsageError
from marey.files import replacing
from marey.jobs.charts import COLOURS, STYLE, svg_of
from marey.jobs.markup import Cell, count, escaped, figure, note, section, share, table, words
from marey.jobs.report import page
from marey.jobs.resolution import Comparison, Point, as_json, gap_line, short_number, write_csv

SUFFIXES = (".html", ".png", ".svg", ".csv", ".json")
NAMES = {"top1": "top-1 accuracy", "map": "mean average precision"}
AXES: tuple[tuple[str, Callable[[Point], float]], ...] = (
    ("multiply-adds of a video, 10⁹", lambda point: point.video_gmacs),
    ("latency of a view, ms", lambda point: point.milliseconds),
    ("throughput, videos per second", lambda point: point.videos_per_second),
)


def write(found: Comparison, path: Path) -> None:
    """The comparison as a page, a picture, a table or JSON, by the suffix. Raises UsageError OUT_SUFFIX."""
    check_suffix(path)
    if path.suffix == ".csv":
        write_csv(found, path)
    elif path.suffix == ".html":
        with replacing(path) as part:
            part.write_text(as_page(found), encoding="utf-8", newline="\n")
    elif path.suffix == ".json":
        with replacing(path) as part:
            part.write_text(as_json(found) + "\n", encoding="utf-8")
    else:
        with replacing(path) as part, matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
            drawn(found).savefig(part, format=path.suffix[1:], dpi=150, facecolor="white")


def check_suffix(path: Path) -> None:
    """Raises UsageError OUT_SUFFIX."""
    if path.suffix not in SUFFIXES:
        raise UsageError("OUT_SUFFIX", f"{str(path)!r}: give a file that ends with {', '.join(SUFFIXES)}")


def drawn(found: Comparison) -> Figure:
    """Three panels of the same accuracies; a curve has its network's colour, dashed where it learnt alone."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        chart = Figure(figsize=(11, 4.2), layout="constrained")
        panels = chart.subplots(1, len(AXES), sharey=True)
        for axes, (label, value) in zip(panels, AXES, strict=True):
            _panel(axes, found, value)
            axes.set_xlabel(label)
            _scale(axes, [value(point) for point in found.points])
        panels[0].set_ylabel(NAMES[found.points[0].metric])
        panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        handles, labels = panels[0].get_legend_handles_labels()
        chart.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3))
    return chart


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Steps of 1, 2, 5 where the values are far apart, else even ones; plain numbers at both."""
    if max(values) > 4 * min(values) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: short_number(value))


def _panel(axes: Axes, found: Comparison, value: Callable[[Point], float]) -> None:
    sweep = any(point.resolution != point.trained for point in found.points)
    kinds = list(dict.fromkeys((point.model, point.trained * sweep) for point in found.points))
    curves: dict[str, list[Point]] = defaultdict(list)
    for point in found.points:
        curves[point.curve].append(point)
    for name, points in curves.items():
        colour = COLOURS[kinds.index((points[0].model, points[0].trained * sweep)) % len(COLOURS)]
        alone = points[0].distilled is None
        sides: dict[int, list[Point]] = defaultdict(list)
        for point in points:
            sides[point.resolution].append(point)
        middles = [
            (mean(map(value, same)), mean(p.accuracy for p in same), side) for side, same in sides.items()
        ]
        middles.sort(key=lambda middle: middle[2])
        axes.plot(
            [x for x, _, _ in middles],
            [y for _, y, _ in middles],
            color=colour,
            linestyle="--" if alone else "-",
            marker="o" if alone else "D",
            markerfacecolor="none" if alone else colour,
            markersize=5,
            linewidth=1.5,
            label=name,
        )
        for x, y, side in middles:
            axes.annotate(f"{side}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
            several = [point.accuracy for point in sides[side]]
            if len(several) > 1:  # runs that differ in their seed
                axes.vlines(x, min(several), max(several), color=colour, linewidth=1)


def as_page(found: Comparison) -> str:
    """An HTML page that stands alone."""
    metric = NAMES[found.points[0].metric]
    told = "; ".join(
        f"{point.curve} at {point.resolution}: {point.accuracy:.1%} for {short_number(point.video_gmacs)}"
        for point in found.points
    )
    alt = f"{metric} against billions of multiply-adds, latency and throughput. {told}"
    body = figure(svg_of(drawn(found), "resolution"), f"{metric} against cost", alt, "wide")
    body += "".join(note(gap_line(gap)) for gap in found.gaps)
    body += "".join(note(text, "warning") for text in found.notes)
    head = (
        *("network", "sees", "cut as", "short side", "views", metric, "clips", "GMACs of a video"),
        *("parameters", "ms of a view", "videos per second", "decoding, ms a video", "source"),
    )
    cells = [_cells(point) for point in found.points]
    body += table("All points", head, cells, sortable=True)
    body += note(
        f"GMACs are 10⁹ multiply-adds. Times: views in batches of {found.batch}, one view for the latency, "
        f"on {found.device} with {found.threads} threads, precision {found.precision}; medians of rounds in "
        "which all networks took their turn. Decoding: one process, views of the test, network not included."
    )
    header = f"<header><h1>Accuracy over resolutions</h1><p>{escaped(found.points[0].list)}</p></header>"
    content = f"{header}<main>{section('picture', 'The picture', body)}</main>"
    return page("Accuracy over resolutions", content)


def _cells(point: Point) -> list[Cell]:
    short = words("as it is") if point.short_side is None else count(point.short_side)
    return [
        *(words(point.curve), count(point.resolution), count(point.crop), short, count(point.views)),
        *(share(point.accuracy), count(point.evaluated), _number(point.video_gmacs), count(point.parameters)),
        *(_number(point.milliseconds), _number(point.videos_per_second)),
        *(Cell("–", -1.0, "number") if point.decode_ms is None else _number(point.decode_ms),),
        words(point.source),
    ]


def _number(value: float) -> Cell:
    return Cell(short_number(value), value, "number")
