"""AVA's frame mAP on a generated set as large as its validation split: seconds from arrays and from CSV.

    python benchmarks/ava_eval.py [--rounds 3] [--share 1] [--keep FOLDER] [--protocol mmaction2]

64 videos with 57,408 key frames, of which 50,419 are annotated: 241,542 rows of truth; 108,794 detected
persons with a score above 0.002 for 67 of 80 actions on average, 7,292,554 rows of results. Boxes and scores
are drawn so that mAP comes to about what the published networks reach. CSV holds three decimals, as MMAction2
writes them, so that its mAP differs from that of the arrays by rounding. CPU seconds are those of the whole
process.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from marey.metrics.ava import PROTOCOLS, frame_map
from marey.metrics.ava_tables import Rows, read_rows, write_annotations, write_results

VIDEOS, SECONDS, FIRST = 64, 897, 902
ANNOTATED, TRUTHS, PERSONS, RESULTS = 50_419, 241_542, 108_794, 7_292_554
ACTIONS = 80
LISTED = (  # the 60 actions that the ActivityNet 2018 challenge evaluates
    *(1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 20, 22, 24, 26, 27, 28, 29, 30, 34, 36, 37, 38, 41),
    *(43, 45, 46, 47, 48, 49, 51, 52, 54, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 72, 73),
    *(74, 76, 77, 78, 79, 80),
)  # fmt: skip


def generate(share: float = 1.0, seed: int = 0) -> tuple[Rows, Rows]:
    """Truth and results; `share` of the size in every respect."""
    rng = np.random.default_rng(seed)
    frames, truths, persons, results = (
        round(share * count) for count in (ANNOTATED, TRUTHS, PERSONS, RESULTS)
    )
    chosen = np.sort(rng.permutation(round(share * VIDEOS * SECONDS))[:frames])
    of_person = np.sort(np.concatenate([chosen, rng.choice(chosen, persons - frames)]))
    low, size = rng.uniform(0, 0.5, (persons, 2)), rng.uniform(0.2, 0.5, (persons, 2))
    box = np.concatenate([low, low + size], axis=1)

    weight = 1 / np.arange(1, ACTIONS + 1)
    weight = rng.permutation(weight / weight.sum())  # some actions are seen a thousand times as often
    labels = np.zeros((persons, ACTIONS), np.bool_)
    labels[np.arange(persons), rng.choice(ACTIONS, persons, p=weight)] = True
    while (missing := truths - int(labels.sum())) > 0:
        labels[rng.integers(0, persons, missing), rng.choice(ACTIONS, missing, p=weight)] = True
    person, action = np.nonzero(labels)
    seen = box + rng.normal(0, 0.02, box.shape)  # what the annotators drew
    truth = _rows(of_person[person], np.round(np.clip(seen, 0, 1), 3)[person], action + 1, np.zeros(truths))

    logit = rng.normal(-4.5, 1.8, labels.shape) + 3.0 * labels + np.log(weight * ACTIONS) * 0.5
    scores = 1 / (1 + np.exp(-logit))
    scores.ravel()[np.argpartition(-scores, results - 1, axis=None)[results:]] = 0  # the highest remain
    person, action = np.nonzero(scores)
    order = np.lexsort((person, action, of_person[person]))  # frame, class, box
    person, action = person[order], action[order]
    return truth, _rows(of_person[person], box[person], action + 1, scores[person, action])


def _rows(frame, boxes, action, extra) -> Rows:  # type: ignore[no-untyped-def]
    names = tuple(f"vid{number:08}" for number in range(VIDEOS))
    second = (FIRST + frame % SECONDS).astype(np.float64)
    lines = np.arange(1, len(frame) + 1)
    return Rows(names, frame // SECONDS, second, boxes, action.astype(np.int64), extra, lines)


def main() -> None:
    """Print a line of JSON for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="mmaction2")
    parser.add_argument("--keep", type=Path, help="folder for the CSV files; default: a temporary one")
    given = parser.parse_args()
    names = {action: str(action) for action in LISTED}
    truth, found = generate(given.share)
    boxes = len(np.unique(np.column_stack([found.video, found.second, found.boxes]), axis=0))
    print(json.dumps({"truth": len(truth.action), "results": len(found.action), "persons": boxes}))
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        files = folder / "truth.csv", folder / "results.csv"
        if not files[1].exists():
            write_annotations(files[0], truth)
            write_results(files[1], found, decimals=3)
        taken: dict[str, list[tuple[float, float]]] = {"arrays": [], "csv": []}
        maps = {}
        for _ in range(given.rounds):
            for way in taken:
                start = time.perf_counter(), time.process_time()
                both = (truth, found) if way == "arrays" else _read(files)
                maps[way] = frame_map(*both, names=names, protocol=given.protocol).map
                taken[way].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    for way, times in taken.items():
        wall, cpu = (round(median(column), 2) for column in zip(*times, strict=True))
        line = {"way": way, "wall s": wall, "cpu s": cpu, "mAP": round(maps[way], 6), "rounds": len(times)}
        print(json.dumps(line | {"protocol": given.protocol, "cores": os.cpu_count()}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"peak GiB, generator included": round(peak, 2), "numpy": np.__version__}))


def _read(files: tuple[Path, Path]) -> tuple[Rows, Rows]:
    return read_rows(files[0], "truth"), read_rows(files[1], "result")


if __name__ == "__main__":
    main()
