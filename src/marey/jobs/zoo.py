"""`marey zoo`: which releases there are, what they reach and what they cost; `marey zoo get` fetches them.

Accuracies are those that the source of a release reports. Parameters and multiply-adds are counted here, the
latter for one view at the crop of the test; no file is needed for that.
"""

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from marey.errors import MareyError, unknown
from marey.models import NETWORKS
from marey.models.cost import macs, parameters
from marey.models.shell import shell
from marey.video.preprocess import Preprocess
from marey.weights.published import RELEASES, cached, find, locate
from marey.weights.release import STAMP

WILD = "*?["  # signs of shell patterns
# arguments that cost nothing
TRAINING = {"norm_eval", "bn_frozen", "frozen_stages", "partial_bn", "dropout", "head_std"}
COUNTED = (
    "GMACs: 1e9 multiply-adds of convolutions, linear layers and matrix products, for one view at the test "
    "crop, counted by marey. Accuracies: as reported by the source, not measured by marey"
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One release.

    name          of the release; `short` is enough to name it
    model, overrides   arguments of `create_model`
    dataset       that it was trained on, whose classes it knows
    sampling      frames x interval of a clip, or frames from equal parts (segments) or from a window (dense)
    top1, top5    percent, as reported; None: not reported
    mean_ap       mean average precision, percent, as reported: of detectors in boxes at an overlap of 0.5
    headless      there is no classifier in the file: trainings start from it
    tested        clips and crops of a video in the test of these figures
    parameters    numbers that training can change
    gmacs         1e9 multiply-adds of one view, of so many `frames` and `crop` pixels of each side
    license       of the weights, as their source states it
    source, recipe   who published it, and the name of its configuration there
    url, file, sha256   where it is, how its file is called, and what its SHA-256 begins with
    downloaded    whether it is in the cache folder
    """

    name: str
    short: str
    model: str
    overrides: dict[str, Any]
    dataset: str
    sampling: str
    top1: float | None
    top5: float | None
    mean_ap: float | None
    headless: bool
    tested: str
    parameters: int
    gmacs: float
    frames: int
    crop: int
    license: str
    source: str
    recipe: str | None
    url: str
    file: str
    sha256: str | None
    downloaded: bool


def zoo(
    pattern: str = "*", *, dataset: str | None = None, model: str | None = None, downloaded: bool = False
) -> list[Entry]:
    """The releases, best first within a data set.

    pattern     shell pattern, or a part of the name
    dataset     as releases name it, in any case; UsageError UNKNOWN_NAME where none does
    model       shell pattern of networks' names
    downloaded  only those in the cache folder
    """
    known = {release.dataset.lower(): release.dataset for release in RELEASES.values()}
    if dataset is not None and dataset.lower() not in known:
        raise unknown("data set", dataset, known.values())
    if model is not None and not any(fnmatchcase(name, model) for name in NETWORKS):
        raise unknown("model", model, NETWORKS)
    found = [
        name
        for name in matching(pattern)
        if (dataset is None or RELEASES[name].dataset.lower() == dataset.lower())
        and (model is None or fnmatchcase(RELEASES[name].model, model))
        and (not downloaded or cached(name).exists())
    ]
    entries = [_entry(name) for name in found]
    return sorted(entries, key=lambda one: (one.dataset, -(one.top1 or one.mean_ap or 0), one.name))


def matching(pattern: str) -> list[str]:
    """Releases whose name, with or without date and hash, or whose model matches a shell pattern, or contains
    a text; in upper or lower case."""
    shape = pattern.lower() if any(sign in pattern for sign in WILD) else f"*{pattern.lower()}*"
    return [
        name
        for name, release in RELEASES.items()
        if any(fnmatchcase(text.lower(), shape) for text in (name, STAMP.sub("", name), release.model))
    ]


def short(name: str) -> str:
    """The name without date and hash, where that is enough."""
    brief = STAMP.sub("", name)
    return brief if find(brief) == name else name


def get(names: Sequence[str]) -> Iterator[tuple[str, Path | MareyError]]:
    """Fetch releases, by name or shell pattern, one after the other: (name, its file or why there is none).

    A name that nothing bears is a UsageError before anything is fetched.
    """
    wanted: dict[str, None] = {}
    for name in names:
        exact = find(name)
        found = [exact] if exact else matching(name) if any(sign in name for sign in WILD) else []
        if not found:
            fits = matching(name)[:3] or [*RELEASES, *map(short, RELEASES)]
            raise unknown("release", name, fits)
        wanted |= dict.fromkeys(found)
    for name in wanted:
        try:
            yield name, locate(name)
        except MareyError as error:
            yield name, error


def _entry(name: str) -> Entry:
    release = RELEASES[name]
    plan = release.preprocess.plan(release.preprocess.test)
    shape = {key: value for key, value in release.overrides.items() if key not in TRAINING}
    settings = msgspec.json.encode(shape, order="sorted")
    size, row, products, fed = _cost(release.model, settings, plan.frames, plan.input_size)
    rows = release.num_classes or 0
    return Entry(
        name=name,
        short=short(name),
        model=release.model,
        overrides=release.overrides,
        dataset=release.dataset,
        sampling=_sampling(release.preprocess),
        top1=release.top1,
        top5=release.top5,
        mean_ap=release.metrics.get("map"),
        headless=release.headless,
        tested=release.protocol,
        parameters=size + rows * row,
        gmacs=round((products + rows * fed) / 1e9, 3),
        frames=plan.frames,
        crop=plan.input_size,
        license=release.license,
        source=release.source,
        recipe=release.recipe,
        url=release.url,
        file=cached(name).name,
        sha256=release.sha256,
        downloaded=cached(name).exists(),
    )


@cache
def _cost(model: str, settings: bytes, frames: int, crop: int) -> tuple[int, int, int, int]:
    """Parameters and multiply-adds without a classifier, and of one row of a classifier."""
    network: Any = shell(model, 1, **msgspec.json.decode(settings))
    fed: list[int] = []  # what the row sees in a clip: once, or in every frame
    network.head.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].numel()))
    row, total = parameters(network.head), macs(network, (3, frames, crop, crop))
    return parameters(network) - row, row, total - sum(fed), sum(fed)


def _sampling(clips: Preprocess) -> str:
    if clips.sampling in ("clip", "key"):
        return f"{clips.frames}x{clips.interval}"
    return f"{clips.frames} {clips.sampling}"


def show(entries: Sequence[Entry]) -> None:
    """Print a table with a line for each release; on a terminal too narrow for it a few lines each."""
    licenses = {one.license for one in entries}
    boxes = any(one.mean_ap is not None for one in entries)
    accuracies = ["top-1", "top-5", "mAP"] if boxes else ["top-1", "top-5"]
    titles = ["release", "data", "frames", *accuracies, "tested on", "M par.", "GMACs", "sha256", "here"]
    if len(licenses) > 1:
        titles.append("licence")
    rows = [_cells(one, mean_ap=boxes)[: len(titles)] for one in entries]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in titles:
        numbers = title in (*accuracies, "M par.", "GMACs")
        table.add_column(title, no_wrap=True, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(width=10_000, highlight=False, emoji=False, markup=False)
    room = shutil.get_terminal_size().columns
    if not sys.stdout.isatty() or console.measure(table).maximum <= room:
        console.print(table)
    else:
        for name, *rest in rows:
            told = (f"{title} {cell}" for title, cell in zip(titles[1:], rest, strict=True) if cell)
            lines = textwrap.wrap(", ".join(told), room - 4, break_long_words=False)
            print("\n    ".join([name, *lines]))
    alike = f"; licence {licenses.pop()}" if len(licenses) == 1 else ""
    print(f"{len(entries)} releases{alike}. {COUNTED}", file=sys.stderr)


def _cells(one: Entry, *, mean_ap: bool) -> list[str]:
    """A release's row of the table, the licence last."""
    figures = (one.top1, one.top5, one.mean_ap)[: 3 if mean_ap else 2]
    return [
        one.short,
        one.dataset,
        one.sampling,
        *("" if value is None else f"{value:.2f}" for value in figures),
        one.tested,
        f"{one.parameters / 1e6:.2f}",
        f"{one.gmacs:.1f}",
        one.sha256 or "",
        "yes" if one.downloaded else "",
        one.license,
    ]
