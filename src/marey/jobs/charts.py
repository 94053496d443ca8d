"""Curves and heat maps of a run, as SVG text that takes its ink colour from the page around it."""

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

INK = "#010203"  # stands for the page's text colour, which is another in the dark
COLOURS = ("#3b82d0", "#d9822b", "#2f9e6e", "#b05fc0")
NAMED = 60  # classes of a heat map that are named at its sides
POINTS = 600  # drawn per line; longer ones are drawn as means of equal parts

STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the reader's fonts
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a class may be called "$5"
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "legend.frameon": False,
    "path.simplify": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
}

# title, axis label, columns of metrics.csv with their names, whether the values are shares of one
CURVES = (
    ("Loss", "loss", {"loss": "training", "val_loss": "validation"}, False),
    (
        "Validation",
        "share",
        {
            "val_top1": "top-1",
            "val_top5": "top-5",
            "val_mean_class": "mean class",
            "val_gap": "GAP",
            "val_hit1": "Hit@1",
            "val_perr": "PERR",
            "val_map": "mAP",
        },
        True,
    ),
    ("Training, batch by batch", "share", {"gap": "GAP", "hit1": "Hit@1", "perr": "PERR"}, True),
    (
        "Actions of the boxes, batch by batch",
        "share",
        {"recall": "recall", "precision": "precision", "recall_top3": "recall of the best 3"},
        True,
    ),
    ("Learning rate", "rate", {"lr": "learning rate"}, False),
    ("Waiting for data", "share of time", {"data_share": "waiting"}, True),
    ("Throughput", "samples per second", {"clips_per_second": "training"}, False),
)


class Chart(NamedTuple):
    """A drawing: what it shows, the same in words, and the SVG element."""

    title: str
    alt: str
    svg: str


def curves(metrics: Mapping[str, Floats]) -> Iterator[Chart]:
    """A chart for each group of columns that holds a number; x is the epoch, else the step, else the row.

    metrics  column of metrics.csv -> float64 [rows], NaN where not measured
    """
    rows = max((len(column) for column in metrics.values()), default=0)
    axis = next((name for name in ("epoch", "step") if name in metrics), "row")
    x = metrics.get(axis, np.arange(rows, dtype=np.float64))
    for title, label, columns, share in CURVES:
        lines = {}
        for column, name in columns.items():
            known = np.isfinite(metrics.get(column, np.empty(0))) & np.isfinite(
                x[: rows if column in metrics else 0]
            )
            if known.any():
                lines[name] = (x[known], metrics[column][known])
        if lines:
            yield _curve(title, axis, label, lines, share)


def heat_map(confusion: Ints, classes: Sequence[str]) -> Chart:
    """A confusion matrix [C, C] (rows truth) as an image of row shares, right ones blue, others orange."""
    count = len(confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    colours = np.tile(to_rgba(COLOURS[1]), (count, count, 1))
    colours[np.arange(count), np.arange(count)] = to_rgba(COLOURS[0])
    colours[..., 3] = np.sqrt(shares)  # the root makes one confusion in a hundred visible
    named = count <= NAMED
    side = 2.5 + 0.16 * count if named else 8.0
    with matplotlib.rc_context(STYLE | {"axes.grid": False, "font.size": 7 if named else 9}):  # type: ignore[arg-type]
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(colours, interpolation="nearest")
        if named:
            axes.set_xticks(range(count), [_short(name) for name in classes], rotation=90)
            axes.set_yticks(range(count), [_short(name) for name in classes])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        svg = svg_of(figure, "confusion")
    diagonal = float(np.trace(confusion) / max(confusion.sum(), 1))
    alt = f"Confusion matrix of {count} classes; {diagonal:.1%} of the clips lie on the diagonal"
    return Chart("Confusion", alt, svg)


def _curve(
    title: str, axis: str, label: str, lines: Mapping[str, tuple[Floats, Floats]], share: bool
) -> Chart:
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(5.2, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for (name, (x, y)), colour in zip(lines.items(), COLOURS, strict=False):
            marker = "o" if len(x) <= 40 else ""
            axes.plot(*_thinned(x, y), color=colour, label=name, marker=marker, markersize=3, linewidth=1.5)
        axes.set_xlabel(axis)
        axes.set_ylabel(label)
        if share:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            axes.set_ylim(0, max(1.05 * max(float(y.max()) for _, y in lines.values()), 0.05))
        elif min(float(y.min()) for _, y in lines.values()) >= 0:
            axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.legend()
        svg = svg_of(figure, title)
    number = "{:.1%}" if share else "{:.4g}"
    told = (
        f"{name} from {number.format(y[0])} to {number.format(y[-1])} (lowest {number.format(y.min())}, "
        f"highest {number.format(y.max())})"
        for name, (_, y) in lines.items()
    )
    first, last = (f(float(f(x)) for x, _ in lines.values()) for f in (min, max))
    return Chart(title, f"{title}, {axis} {first:g} to {last:g}: {'; '.join(told)}", svg)


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most POINTS points: means of equally long parts."""
    part = math.ceil(len(x) / POINTS)
    if part == 1:
        return x, y
    starts = np.arange(0, len(x), part)
    counts = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def svg_of(figure: Figure, name: str) -> str:
    """The <svg> element, fit to stand beside others in a page: ink of the page, no style or shared ids."""
    text = io.StringIO()
    empty: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that these fonts lack; the browser has them
        figure.savefig(text, format="svg", metadata=empty, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # HTML needs no name spaces, and the page decides how large
    head = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", svg[: svg.index(">")])
    return head + svg[svg.index(">") :]
