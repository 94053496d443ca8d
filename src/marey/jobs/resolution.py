"""`marey report resolution`: what accuracy a smaller picture costs, and what it saves, over runs.

Each run is a point where its results say how accurate it is: runs of one network, trained at one resolution
each, form a curve; students of a teacher form another than the same network trained alone. Or each is tested
again at several resolutions: then every resolution of training has curves of its own.
"""

import csv
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn

from marey.data.lists import Entry
from marey.errors import MareyError, UsageError
from marey.files import replacing
from marey.jobs import setup
from marey.jobs.bench import timed
from marey.jobs.check_files import stamp
from marey.jobs.doctor import environment
from marey.jobs.evaluate import test
from marey.jobs.manifest import digest
from marey.jobs.progress import Progress
from marey.jobs.runs import plain_json
from marey.models.cost import macs, parameters
from marey.models.fold import folded
from marey.recipes.catalog import load_recipe
from marey.recipes.schema import Data, Model, Recipe, Training, clip_recipe
from marey.training.devices import device_of
from marey.video.preprocess import Preprocess, Protocol
from marey.video.reader import read_video
from marey.weights.create import open_model

METRICS = ("top1", "map")  # that a curve shows, whichever a result has
DECODED = 8  # videos whose reading is timed
GRID = 4  # pixels that scaled short sides are a multiple of: 180 for 160, 128 for 112, 108 for 96, 80 for 72


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One network at one resolution.

    curve            the points it belongs with: the network, and what it was distilled from
    distilled        the teacher's name; None: trained alone
    resolution       side of the square that the network sees
    trained          side of the one that it saw in training
    crop, short_side how that square was cut; a crop that is not the resolution was reduced to it
    views            clips and crops of a video that are scored
    metric, accuracy "top1" or "map", 0..1
    evaluated        clips that it was measured on, of how many listed
    fingerprint      of the list; accuracies on different lists do not compare
    gmacs            1e9 multiply-adds of one view; a video takes `views` times as many
    milliseconds     of one view alone, median of the rounds
    views_per_second of batches of `batch`
    decode_ms        reading, resizing and cropping a video's views in one process, median; None: not measured
    """

    curve: str
    source: str
    model: str
    distilled: str | None
    resolution: int
    trained: int
    crop: int
    short_side: int | None
    frames: int
    views: int
    metric: str
    accuracy: float
    evaluated: int
    listed: int
    list: str
    fingerprint: str
    gmacs: float
    parameters: int
    milliseconds: float
    views_per_second: float
    decode_ms: float | None

    @property
    def video_gmacs(self) -> float:
        """1e9 multiply-adds of a video."""
        return self.gmacs * self.views

    @property
    def videos_per_second(self) -> float:
        """Of the network alone."""
        return self.views_per_second / self.views


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """What distilling gains: the mean accuracies of one network, trained and tested at one resolution."""

    model: str
    teacher: str
    resolution: int
    distilled: float
    plain: float
    runs: tuple[int, int]

    @property
    def gain(self) -> float:
        """In 0..1."""
        return self.distilled - self.plain


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All points, what they were measured with, and what to know before comparing them."""

    points: tuple[Point, ...]
    gaps: tuple[Gap, ...]
    batch: int
    precision: str
    device: str
    threads: int
    notes: tuple[str, ...]
    versions: dict[str, Any]


class Source(NamedTuple):
    """A network to look at, how it was trained, and its results where there are any."""

    name: str
    label: str | None
    checkpoint: str
    network: Any
    recipe: Recipe
    results: dict[str, Any] | None


class Measured(NamedTuple):
    """A result before its network was timed."""

    source: Source
    preprocess: Preprocess
    protocol: Protocol
    results: dict[str, Any]
    decode_ms: float | None


def compare(
    sources: Sequence[str | os.PathLike[str]],
    *,
    data: str | os.PathLike[str] | None = None,
    resolutions: Sequence[int] = (),
    kept: Path | None = None,
    batch: int = 8,
    rounds: int = 5,
    precision: str = "32",
    threads: int | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Comparison:
    """Points of runs, checkpoints or releases, each perhaps as `label=path`.

    data         a list to test on; None: that of each run
    resolutions  to test at, see `at_resolution`; none, and no data: what results.json says, at its resolution
    kept         folder for the results of tests; a test that is there is not made again
    batch        views that are timed together
    rounds       of timing; in each, all networks take their turn

    Raises UsageError RESOLUTION_RESULTS where a run has no results and no test is asked, RESOLUTION_METRIC
    where accuracies are of different kinds, RESOLUTION_FIXED for a network that takes one size only.
    """
    if precision not in ("32", "bf16"):
        raise UsageError("RESOLUTION_PRECISION", f"precision is {precision!r}; it must be 32 or bf16")
    place = device_of(device)
    opened = [open_source(os.fspath(source)) for source in sources]
    found: list[Measured] = []
    with nullcontext(kept) if kept else tempfile.TemporaryDirectory() as folder:
        for source in opened:
            if data is None and not resolutions:
                found.append(_of_results(source))
            else:
                sides = resolutions or (seen_side(source.recipe.clips),)
                found += [_tested(source, side, data, Path(folder), place) for side in sides]
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        times = _timed(found, place, batch=batch, rounds=rounds, precision=precision, quiet=quiet)
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    sweep = any(_shape(one)[-1] != _trained(one) for one in found)
    points = sorted(
        (_point(one, *took, sweep=sweep) for one, took in zip(found, times, strict=True)),
        key=lambda point: (point.curve, point.resolution, point.source),
    )
    metrics = {point.metric for point in points}
    if len(metrics) > 1:
        raise UsageError(
            "RESOLUTION_METRIC", "some results are top-1 and some mAP; compare those of one kind"
        )
    return Comparison(
        points=tuple(points),
        gaps=gaps(points),
        batch=batch,
        precision=precision,
        device=str(place),
        threads=used,
        notes=_notes(points),
        versions=environment(),
    )


# How a network is fed at another resolution ------------------------------------------------------------


def seen_side(clips: Preprocess) -> int:
    """The side of the square that the network sees."""
    return clips.input_size or clips.crop


def at_resolution(clips: Preprocess, side: int) -> Preprocess:
    """The same preprocessing for a network that sees squares of `side`.

    Where the square is a reduced one (`input_size`), it is cut as before and reduced to `side`. Else the crop
    is `side`, and the short side is scaled with it to a multiple of four: 256 -> 224 becomes 180 -> 160,
    128 -> 112, 108 -> 96 and 80 -> 72, as ResKD has it. A short side that equals its crop still does.
    """
    if clips.input_size is not None:
        return msgspec.structs.replace(clips, input_size=side)
    if side == clips.crop:
        return clips

    def near(pixels: int) -> int:
        return max(GRID, pixels * side // clips.crop // GRID * GRID)

    def cut(crop: int) -> int:
        return side if crop == clips.crop else near(crop)

    def short(pixels: int | None, crop: int) -> int | None:
        if pixels is None:
            return None
        return cut(crop) if pixels == crop else max(cut(crop), near(pixels))

    def protocol(one: Protocol) -> Protocol:
        crop = one.crop or clips.crop
        return msgspec.structs.replace(
            one,
            crop=None if one.crop is None else cut(one.crop),
            short_side=short(one.short_side, crop),
        )

    drawn = clips.train_short_side
    return msgspec.structs.replace(
        clips,
        crop=side,
        short_side=short(clips.short_side, clips.crop),
        train_short_side=None if drawn is None else (max(side, near(drawn[0])), max(side, near(drawn[1]))),
        val=protocol(clips.val),
        test=protocol(clips.test),
    )


def views_of(clips: Preprocess, protocol: Protocol) -> int:
    """Clips times crops times lights of a long video."""
    crops = {"center": 1, "three": 3, "ten": 10}[clips.plan(protocol).crops]
    return len(clips.pick_test(10_000, protocol)) * crops * max(1, len(protocol.lights))


# Results -----------------------------------------------------------------------------------------------


def open_source(text: str) -> Source:
    """A run folder (its best weights), a checkpoint or a release, perhaps with a label of its own."""
    label, separator, path = text.partition("=")
    if not separator or Path(text).exists():
        label, path = "", text
    folder, checkpoint = Path(path), path
    if folder.is_dir():
        there = [folder / "checkpoints" / f"{name}.safetensors" for name in ("best", "last")]
        checkpoint = str(next((file for file in there if file.exists()), there[0]))
    network: Any = open_model(checkpoint)
    if network.preprocess is None:
        raise UsageError("RECIPE_KIND", f"this needs clips, but {path} takes features of frames")
    card = getattr(network, "metadata", None)
    if card and card["recipe"]:
        recipe = clip_recipe(load_recipe(msgspec.convert(card["recipe"], Recipe)))
    else:
        spec = network.spec
        recipe = Recipe(
            name=Path(path).stem,
            model=Model(name=spec["name"], num_classes=spec["num_classes"], options=spec["overrides"]),
            clips=network.preprocess,
            training=Training(epochs=1),
        )
    return Source(path, label or None, checkpoint, network, recipe, _results(checkpoint))


def _results(checkpoint: str) -> dict[str, Any] | None:
    """What the run of a checkpoint says of it; None where that is of other weights."""
    run = setup.run_of_checkpoint(checkpoint)
    if run is None or not (run / "results.json").exists():
        return None
    results: dict[str, Any] = json.loads((run / "results.json").read_bytes())
    of = results.get("checkpoint")
    best = Path(checkpoint).name == "best.safetensors"
    mine = best if of is None else Path(of).resolve() == Path(checkpoint).resolve()
    return results if mine and any(name in results["metrics"] for name in METRICS) else None


def _of_results(source: Source) -> Measured:
    """What results.json says, at the resolution it was measured at."""
    results = source.results
    if results is None:
        raise UsageError(
            "RESOLUTION_RESULTS",
            f"{source.name} has no results of {source.checkpoint}; run `marey test`, or give --data or "
            "--resolutions to test it now",
        )
    clips, protocol = source.recipe.clips, Protocol()
    for one in (clips.test, clips.val):  # a training validates by the latter
        plan = json.loads(msgspec.json.encode(clips.plan(one)))
        if all(results["protocol"].get(key, value) == value for key, value in plan.items()):
            protocol = one
            break
    else:
        raise UsageError(
            "RESOLUTION_RESULTS",
            f"the results of {source.name} were measured otherwise than its recipe says; test it with --data",
        )
    return Measured(source, clips, protocol, results, None)


def _tested(
    source: Source, side: int, data: str | os.PathLike[str] | None, folder: Path, place: torch.device
) -> Measured:
    """Test at one resolution, or take the result of the same test from the folder."""
    if hasattr(source.network, "clip_size") and side != seen_side(source.recipe.clips):
        raise UsageError(
            "RESOLUTION_FIXED",
            f"{source.recipe.model.name} takes clips of {seen_side(source.recipe.clips)} pixels only, not "
            f"{side}",
        )
    clips = at_resolution(source.recipe.clips, side)
    where = source.recipe.data if data is None else _only(source.recipe.data, os.fspath(data))
    recipe = msgspec.structs.replace(source.recipe, clips=clips, data=where, distill=None, published=None)
    lists = setup.open_lists(where, training=False, classes=None if where.classes else _names(source))
    key = {
        "weights": stamp(source.checkpoint),
        "checkpoint": str(Path(source.checkpoint).absolute()),
        "clips": msgspec.to_builtins(clips),
        "list": lists.given()[0].fingerprint(),
        "version": 1,
    }
    file = folder / f"{digest(json.dumps(key, sort_keys=True).encode())[:16]}.json"
    if not file.exists():
        print(f"testing {source.label or source.name} at {side}", file=sys.stderr, flush=True)
        test(recipe, source.checkpoint, out=file, accelerator=place.type)
    results = json.loads(file.read_bytes())
    if not any(name in results["metrics"] for name in METRICS):
        raise UsageError(
            "RESOLUTION_RESULTS", f"the recipe of {source.name} averages no views (clips.average=none)"
        )
    entries = list(islice(lists.given()[0], DECODED))
    return Measured(source, clips, clips.test, results, _decoding(entries, clips))


def _only(data: Data, path: str) -> Data:
    """The same settings with another list."""
    return msgspec.structs.replace(
        data, train=None, val=None, splits=None, test=path, root=None, format="auto", template=None
    )


def _names(source: Source) -> tuple[str, ...] | None:
    return setup.known_names(source.network)


def _decoding(entries: Sequence[Entry], clips: Preprocess) -> float | None:
    """Median milliseconds that one process takes for the views of a video; those that fail are left out."""
    took = []
    for entry in entries:
        start = time.perf_counter()
        try:
            template = entry.template if Path(entry.path).is_dir() else None
            with read_video(entry.path, template=template) as video:
                clips.views(video, clips.test)
        except MareyError:
            continue
        took.append(1000 * (time.perf_counter() - start))
    return median(took) if took else None


# Time --------------------------------------------------------------------------------------------------


def _timed(
    found: Sequence[Measured], place: torch.device, *, batch: int, rounds: int, precision: str, quiet: bool
) -> list[tuple[float, float]]:
    """(seconds of one view, seconds of a batch) of each, medians; all take their turn in every round.

    Runs of one network on clips of one shape take equally long: it is timed once.
    """
    networks: dict[str, nn.Module] = {}
    passes: dict[tuple[str, tuple[int, ...]], tuple[Callable[[], Any], Callable[[], Any]]] = {}
    keys = []
    for one in found:
        source = json.dumps(one.source.network.spec, sort_keys=True, default=str)
        if source not in networks:
            network = folded(one.source.network).to(place)
            networks[source] = network.to(torch.bfloat16) if precision == "bf16" else network
        key = (source, _shape(one))
        keys.append(key)
        if key not in passes:
            passes[key] = (
                _pass(networks[source], 1, key[1], place, precision),
                _pass(networks[source], batch, key[1], place, precision),
            )
    progress = Progress("timing", quiet=quiet)
    seconds: dict[Any, list[tuple[float, float]]] = defaultdict(list)
    for single, several in passes.values():
        single(), several()
    for number in range(rounds):
        for one_pass, (single, several) in passes.items():
            seconds[one_pass].append((timed(single, place), timed(several, place)))
        progress(number + 1, rounds)
    middle: dict[Any, tuple[float, float]] = {
        key: (median(a for a, _ in took), median(b for _, b in took) / batch) for key, took in seconds.items()
    }
    return [middle[key] for key in keys]


def _pass(
    network: nn.Module, batch: int, shape: tuple[int, ...], place: torch.device, precision: str
) -> Callable[[], Any]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    clip = torch.randn(batch, *shape[1:], 3, device=place).to(dtype).permute(0, 4, 1, 2, 3)
    return torch.inference_mode()(lambda: network(clip))


def _shape(one: Measured) -> tuple[int, int, int, int]:
    plan = one.preprocess.plan(one.protocol)
    return 3, plan.frames, plan.input_size, plan.input_size


def _trained(one: Measured) -> int:
    """The side that the network sees as it was trained, by the same protocol."""
    own = one.source.recipe.clips
    return own.plan(own.test if one.protocol == one.preprocess.test else own.val).input_size


def _point(one: Measured, single: float, each: float, *, sweep: bool) -> Point:
    """A result with its network's cost; in a sweep the name says what the network was trained at."""
    source, results = one.source, one.results
    plan, shape = one.preprocess.plan(one.protocol), _shape(one)
    metric = next(name for name in METRICS if name in results["metrics"])
    teacher = source.recipe.distill.teacher.name if source.recipe.distill else None
    name, trained = source.recipe.model.name, _trained(one)
    curve = (f"{name}, taught by {teacher}" if teacher else name) + f", trained at {trained}" * sweep
    return Point(
        curve=source.label or curve,
        source=source.name,
        model=name,
        distilled=teacher,
        resolution=plan.input_size,
        trained=trained,
        crop=plan.crop,
        short_side=plan.short_side,
        frames=plan.frames,
        views=views_of(one.preprocess, one.protocol),
        metric=metric,
        accuracy=results["metrics"][metric],
        evaluated=results["evaluated"],
        listed=results["listed"],
        list=results["list"],
        fingerprint=results["fingerprint"],
        gmacs=macs(source.network, shape) / 1e9,
        parameters=parameters(source.network),
        milliseconds=1000 * single,
        views_per_second=1 / each,
        decode_ms=one.decode_ms,
    )


# What it comes to --------------------------------------------------------------------------------------


def gaps(points: Sequence[Point]) -> tuple[Gap, ...]:
    """For each student and resolution of training the mean accuracies, where both kinds are known."""
    groups: dict[tuple[str, str | None, int], list[float]] = defaultdict(list)
    for point in points:
        if point.resolution != point.trained:  # a network out of its element says nothing of its training
            continue
        groups[point.model, point.distilled, point.resolution].append(point.accuracy)
    found = []
    for (model, teacher, side), taught in sorted(groups.items(), key=str):
        alone = groups.get((model, None, side), [])
        if teacher is not None and alone:
            found.append(
                Gap(
                    model=model,
                    teacher=teacher,
                    resolution=side,
                    distilled=mean(taught),
                    plain=mean(alone),
                    runs=(len(taught), len(alone)),
                )
            )
    return tuple(found)


def _notes(points: Sequence[Point]) -> tuple[str, ...]:
    """Why some points might not compare."""
    notes = []
    lists = {point.fingerprint: point.list for point in points}
    if len(lists) > 1:
        notes.append(f"the accuracies are of different lists: {', '.join(sorted(lists.values()))}")
    for point in points:
        if point.evaluated < point.listed:
            notes.append(
                f"{point.source} at {point.resolution}: {point.evaluated} of {point.listed} clips were scored"
            )
    if len({point.views for point in points}) > 1:
        notes.append("the numbers of views differ; cost and throughput are of whole videos")
    return tuple(notes)


COLUMNS = (
    *(
        "curve",
        "source",
        "model",
        "distilled",
        "resolution",
        "trained",
        "crop",
        "short_side",
        "frames",
        "views",
    ),
    *("metric", "accuracy", "evaluated", "listed", "gmacs", "video_gmacs", "parameters", "milliseconds"),
    *("views_per_second", "videos_per_second", "decode_ms", "list", "fingerprint"),
)


def rows(found: Comparison) -> list[dict[str, Any]]:
    """The points as flat rows."""
    return [{name: getattr(point, name) for name in COLUMNS} for point in found.points]


def write_csv(found: Comparison, path: Path) -> None:
    """A row per point."""
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows(found))


def as_json(found: Comparison) -> str:
    """Everything, as JSON."""
    whole = {name: getattr(found, name) for name in ("batch", "precision", "device", "threads", "notes")}
    taught = [msgspec.to_builtins(gap) | {"gain": gap.gain} for gap in found.gaps]
    return plain_json(whole | {"points": rows(found), "gaps": taught, "versions": found.versions})


def lines(found: Comparison) -> list[str]:
    """The table for people, then the gaps and the notes."""
    metric = found.points[0].metric
    head = ("curve", "sees", "of", "views", metric, "GMACs", "M param", "ms", "videos/s", "decode ms")
    table = [head]
    for point in found.points:
        decode = "" if point.decode_ms is None else f"{point.decode_ms:.1f}"
        table.append(
            (
                *(point.curve, f"{point.resolution}", f"{point.crop}", f"{point.views}"),
                *(f"{point.accuracy:.4f}", short_number(point.video_gmacs), f"{point.parameters / 1e6:.1f}"),
                *(f"{point.milliseconds:.1f}", short_number(point.videos_per_second), decode),
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) for row in table]
    text.append(
        f"GMACs: multiply-adds of a video; ms: one view alone; videos/s: views in batches of {found.batch}, "
        f"{found.device}, {found.threads} threads, precision {found.precision}; decode: one process"
    )
    text += [gap_line(gap) for gap in found.gaps]
    return text + [f"note: {note}" for note in found.notes]


def short_number(value: float) -> str:
    """Three digits at least, and no exponent for large ones."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def gap_line(gap: Gap) -> str:
    """In words."""
    return (
        f"{gap.model} at {gap.resolution}: taught by {gap.teacher} {gap.distilled:.1%}, alone "
        f"{gap.plain:.1%}, {100 * gap.gain:+.1f} points ({gap.runs[0]} and {gap.runs[1]} runs)"
    )
