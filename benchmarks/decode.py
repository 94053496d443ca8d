"""Decode and preprocess, side by side: clips per second of Marey and of decord + OpenCV as in MMAction2.

    python benchmarks/decode.py [--rounds 5] [--seconds 0.5] [--videos FOLDER] [--case WORDS] [--json FILE]

Everybody loads the same clips of the same files with the same random draws, in turns, one thread each; that
they give the same pixels is checked first. What the columns mean stands in benchmarks/README.md.
"""

import argparse
import csv
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import decord
import limits
import numpy as np
import ours
import peer
import scenes
import torch
from peer import Job
from torch.utils.data import DataLoader

from marey.data.workers import Pool
from marey.jobs.doctor import environment
from marey.video.preprocess import Preprocess, Protocol
from marey.video.reader import read_video

PEER = "decord + OpenCV"
BATCH = 4  # clips, where there are workers
MOST = 1000  # clips in a turn
CHECKED = 3  # clips whose pixels are compared
SAMPLED = 4  # files on which decoders alone are measured
TOLERANCE = 1  # grey levels, "opencv" against the peer

SEGMENTS = Preprocess(sampling="segments", frames=8)
CLIP = Preprocess(frames=32, interval=2, test=Protocol(clips=10, crops="three", crop=256))
SMALL = Preprocess(
    sampling="segments", frames=8, short_side=112, crop=96, train_crop="random", test=Protocol(crop=96)
)


class Case(NamedTuple):
    """What is loaded, of which files."""

    name: str
    paths: list[str]
    preprocess: Preprocess
    test: bool = False

    def jobs(self, count: int) -> list[Job]:
        """The first `count` clips, taken from the files in turn."""
        return [Job(self.paths[i % len(self.paths)], i, self.preprocess, self.test) for i in range(count)]


class Way(NamedTuple):
    """One way of doing it: a job becomes a task, a task frames, and these uint8 or float arrays."""

    name: str
    task_of: Callable[[Job], Any]
    load: Callable[[Any], Any]
    pixels: Callable[[Any], Any]
    floats: Callable[[Any], Iterator[Any]]


class Turn(NamedTuple):
    """Seconds that a way took for the clips of one round."""

    uint8: float
    float: float
    cpu: float


# What is measured --------------------------------------------------------------------------------------


def ways() -> list[Way]:
    found = [Way(PEER, lambda job: job, peer.load, peer.pixels, peer.floats)]
    for decoder in limits.DECODERS:
        for resize in ("opencv", "bilinear"):
            task_of = partial(ours.task_of, decoder=decoder, resize=resize)
            found.append(Way(f"Marey {decoder} {resize}", task_of, ours.load, ours.pixels, ours.floats))
    return found


def cases(folder: Path) -> list[Case]:
    """Rendered files, and real ones where MAREY_TEST_VIDEOS names their folder."""
    kinetics, large = (340, 256), (1280, 720)
    files = {
        "340x256, GOP 250": scenes.render(folder, "gop250", 4, size=kinetics, frames=300, gop=250),
        "340x256, GOP 12": scenes.render(folder, "gop12", 4, size=kinetics, frames=300, gop=12),
        "1280x720, GOP 250": scenes.render(folder, "large", 2, size=large, frames=150, gop=250),
    }
    small = {"112x112": scenes.render(folder, "small", 16, size=(112, 112), frames=24, gop=12)}
    if real := os.environ.get("MAREY_TEST_VIDEOS"):
        files["real, 340x256"] = [str(Path(real, "clips/arm_wrestling.mp4"))]
        with Path(real, "camera-motion/train.csv").open(newline="") as lines:
            names = [row["path"] for row in islice(csv.DictReader(lines), 0, None, 20)]
        small["real, 112x112"] = [str(Path(real, "camera-motion", name)) for name in names]
    return [
        *(Case(f"train 8 segments, {name}", paths, SEGMENTS) for name, paths in files.items()),
        *(Case(f"train 32x2, {name}", paths, CLIP) for name, paths in files.items()),
        *(Case(f"train 8 segments, {name}", paths, SMALL) for name, paths in small.items()),
        *(Case(f"test 10 x 3 of 32x2, {name}", paths, CLIP, True) for name, paths in files.items()),
    ]


# Is it the same work? ----------------------------------------------------------------------------------


def check(case: Case, contestants: Sequence[Way]) -> dict[str, dict[str, float]]:
    """Differences from the peer, grey levels of 255: largest of decoded, of final and mean of final pixels.

    Ends the program where a way that should do exactly the same does not.
    """
    found: dict[str, dict[str, float]] = {}
    for way in contestants[1:]:
        worst = {"decoded": 0.0, "max": 0.0, "mean": 0.0, "float": 0.0}
        for job in case.jobs(1 if case.test else CHECKED):
            for name, value in _differences(job, contestants[0], way).items():
                worst[name] = max(worst[name], value)
        exact = ("decoded", "max", "float") if "opencv" in way.name else ("decoded",)
        if any(worst[name] > TOLERANCE for name in exact):
            sys.exit(f"{case.name}: {way.name} gives other pixels than {PEER}, not measured: {worst}")
        found[way.name] = worst
    return found


def _differences(job: Job, first: Way, second: Way) -> dict[str, float]:
    theirs, mine = first.load(first.task_of(job)), second.load(second.task_of(job))
    pixels = np.abs(first.pixels(theirs).astype(np.int16) - second.pixels(mine))
    floats = zip(first.floats(theirs), second.floats(mine), strict=False)  # of a test, the first views
    std = min(job.preprocess.std)
    return {
        "decoded": _decoded_difference(job.path, second.name.split()[1]),
        "max": float(pixels.max()),
        "mean": float(pixels.mean()),
        "float": max(float(np.abs(a[: len(b)] - b).max()) for a, b in floats) * std,
    }


def _decoded_difference(path: str, decoder: Any) -> float:
    """Largest difference of decoded frames, before any resizing."""
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    index = np.linspace(0, len(reader) - 1, 16).astype(np.int64)
    with read_video(path, decoder=decoder) as video:
        if len(video) != len(reader):
            return math.inf
        mine = video.frames(index).numpy()
    return float(np.abs(mine.astype(np.int16) - reader.get_batch(index).asnumpy()).max())


# Measuring ---------------------------------------------------------------------------------------------


def turn(way: Way, jobs: list[Job]) -> Turn:
    """Load the clips one after the other in this process."""
    uint8 = floating = cpu = 0.0
    for task in [way.task_of(job) for job in jobs]:
        start, busy = time.perf_counter(), time.process_time()
        loaded = way.load(task)
        between = time.perf_counter()
        way.pixels(loaded)
        end, cpu = time.perf_counter(), cpu + time.process_time() - busy
        for _ in way.floats(loaded):
            pass
        uint8 += end - start
        floating += between - start + time.perf_counter() - end
    return Turn(uint8, floating, cpu)


class Workers:
    """Worker processes of both sides, kept for all cases: torch's DataLoader and Marey's Pool."""

    def __init__(self, count: int) -> None:
        self.count, self.pool, self.batches = count, Pool(count, seconds=600), _Batches()
        self.loader: DataLoader[Any] = DataLoader(
            peer.Videos(),
            batch_sampler=self.batches,
            num_workers=count,
            persistent_workers=True,
            multiprocessing_context="forkserver" if sys.platform == "linux" else "spawn",
        )

    def turn(self, way: Way, jobs: list[Job]) -> float:
        """Seconds in which the clips arrive here as batches of uint8."""
        start = time.perf_counter()
        if way.name == PEER:
            self.batches.all = [jobs[i : i + BATCH] for i in range(0, len(jobs), BATCH)]
            for batch in self.loader:
                assert len(batch) == BATCH
        else:
            tasks = [way.task_of(job) for job in jobs]
            results = self.pool.run(way.load, tasks, prefetch=2 * BATCH + self.count)
            for _ in range(0, len(jobs), BATCH):
                torch.stack([sample.frames for _, sample in islice(results, BATCH)])
        return time.perf_counter() - start


class _Batches:
    """A sampler that gives lists of jobs."""

    all: Sequence[list[Job]] = ()

    def __iter__(self) -> Iterator[list[Job]]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)


def calibrated(case: Case, way: Way, seconds: float) -> int:
    """How many clips the peer loads in about that time; for training at least one of each file."""
    some = case.jobs(1 if case.test else len(case.paths))
    turn(way, some)  # what is slow the first time
    each = turn(way, some).float / len(some)
    return max(len(some), min(MOST, round(seconds / each)))


def measure(
    case: Case, contestants: Sequence[Way], workers: Workers | None, *, rounds: int, seconds: float
) -> dict[str, Any]:
    """All ways in turn, a round starting with another one each time; clips per second of every round."""
    count = calibrated(case, contestants[0], seconds)
    jobs = case.jobs(count)
    rates: dict[str, dict[str, list[float]]] = {way.name: {"uint8": [], "float": []} for way in contestants}
    busy: dict[str, list[float]] = {way.name: [] for way in contestants}
    for number in range(rounds):
        for way in _rotated(contestants, number):
            took = turn(way, jobs)
            rates[way.name]["uint8"].append(count / took.uint8)
            rates[way.name]["float"].append(count / took.float)
            busy[way.name].append(took.cpu / count)
    if workers and not case.test:
        several = BATCH * workers.count
        jobs = case.jobs(math.ceil(count * workers.count / several) * several)
        for number in range(-1, rounds):  # the first is for starting processes
            for way in _rotated(contestants, number):
                took = workers.turn(way, jobs)
                if number >= 0:
                    rates[way.name].setdefault("workers", []).append(len(jobs) / took)
    return {"clips": count, "rates": rates, "cpu": {name: median(each) for name, each in busy.items()}}


def _rotated(contestants: Sequence[Way], number: int) -> list[Way]:
    start = number % len(contestants)
    return [*contestants[start:], *contestants[:start]]


# Limits ------------------------------------------------------------------------------------------------


def limits_of(case: Case, copy_rate: float) -> dict[str, Any]:
    """CPU seconds of a clip for FFmpeg alone, and for copying decoded and final pixels once."""
    rates = limits.decode_rates(case.paths[:SAMPLED])
    coded, copied = [], []
    for job in case.jobs(1 if case.test else 2 * len(case.paths)):
        with read_video(job.path, decoder="pyav") as video:
            wanted = _wanted(job, len(video), video.fps)
            coded.append(limits.coded_frames(limits.key_frames(job.path), wanted))
            decoded = 3 * len(wanted) * math.prod(video.size)
        copied.append(decoded + ours.pixels(ours.load(ours.task_of(job, "pyav", "bilinear"))).nbytes)
    return {
        "decoders": rates,
        "coded_frames": float(np.mean(coded)),
        "decode": float(np.mean(coded)) / rates["FFmpeg"],
        "copy": float(np.mean(copied)) / copy_rate,
    }


def _wanted(job: Job, count: int, fps: float) -> limits.Ints:
    p = job.preprocess
    if job.test:
        return np.unique(p.pick_test(count, p.test, fps))
    return np.unique(p.pick_train(count, peer.generator(0, 0, job.index), fps))


# Results -----------------------------------------------------------------------------------------------


def table(case: Case, found: dict[str, Any]) -> str:
    """The case as text: medians, and the ratios to the peer with their range over the rounds."""
    rates, bound, stages = found["rates"], found["limits"], list(found["rates"][PEER])
    decoders = ", ".join(f"{name} {rate:.0f}" for name, rate in bound["decoders"].items())
    lines = [
        f"\n{case.name}: {found['clips']} clips a turn; clips per second, ratio to {PEER} (its range)",
        f"limits: FFmpeg needs {1000 * bound['decode']:.1f} ms for the {bound['coded_frames']:.0f} coded "
        f"frames of a clip, a copy of its pixels {1000 * bound['copy']:.2f} ms",
        f"decoders alone, whole files, frames per CPU second: {decoders}",
        f"{'':26}"
        + "".join(f"{stage:>26}" for stage in stages)
        + f"{'CPU ms':>9}{'of limit':>10}{'apart':>10}",
    ]
    for name, each in rates.items():
        cells = "".join(_cell(each[stage], rates[PEER][stage]) for stage in stages)
        share, apart = bound["decode"] / found["cpu"][name], found["differences"].get(name)
        differs = f"{apart['max']:.0f} {apart['mean']:.2f}" if apart else ""
        lines.append(f"{name:26}{cells}{1000 * found['cpu'][name]:9.1f}{share:10.0%}{differs:>10}")
    return "\n".join(lines)


def _cell(rates: list[float], peers: list[float]) -> str:
    ratios = [rate / other for rate, other in zip(rates, peers, strict=True)]
    text = f"{median(rates):.1f}"
    if rates is not peers:
        text += f" {median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
    return f"{text:>26}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of the peer in a round and case, about")
    parser.add_argument("--videos", type=Path, default=Path(tempfile.gettempdir(), "marey-benchmark-videos"))
    parser.add_argument("--workers", type=int, default=2, help="processes of the third column; 0: leave out")
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--json", type=Path, help="where to write all rounds")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    contestants, copy_rate = ways(), limits.copy_rate()
    print(f"copying memory: {copy_rate / 1e9:.1f} GB/s")
    workers = Workers(given.workers) if given.workers else None
    results: dict[str, Any] = {}
    for case in cases(given.videos):
        if given.case in case.name:
            differences = check(case, contestants)
            found = measure(case, contestants, workers, rounds=given.rounds, seconds=given.seconds)
            found |= {"differences": differences, "limits": limits_of(case, copy_rate)}
            results[case.name] = found
            print(table(case, found), flush=True)
    if workers:
        workers.pool.close()
    if given.json:
        about = {"command": sys.argv, "environment": environment(), "copy_bytes_per_second": copy_rate}
        given.json.write_text(json.dumps(about | {"cases": results}, indent=1))


if __name__ == "__main__":
    main()
