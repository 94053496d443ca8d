"""Learn planted tags from thousands of generated records, and hold the result against two plain things.

    python benchmarks/tagging.py [--train 6000] [--val 1500] [--epochs 12] [--folder FOLDER] [--resume]

The records are like YouTube-8M's in form (marey.data.planted): 256 and 64 features, 20 to 60 frames, 200
tags. The first plain thing is to give every video the tags' frequencies in the training records; the
second is GAP by its definition, pair by pair, from the tags that the trained network gives: it must be
what marey measured.
A run that was killed goes on with the same --folder and --resume.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import marey
from marey.data.planted import write_planted_records
from marey.data.youtube8m import Layout, read_videos
from marey.jobs.tags import tag_records
from marey.weights.create import open_model

LAYOUT = Layout(rgb=256, audio=64, num_classes=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("train", 6000), ("val", 1500), ("epochs", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(options, options.folder or Path(temporary))


def measure(options: argparse.Namespace, folder: Path) -> None:
    began = time.monotonic()
    sets = folder / "train", folder / "val"
    if not options.resume:
        sizes = {"train": options.train, "val": options.val, "test": 0}
        write_planted_records(folder, **sizes, shards=8, layout=LAYOUT, frames=(20, 60))
    print(f"records written in {time.monotonic() - began:.0f} s")
    settings = {
        "data.train": str(sets[0]),
        "data.val": str(sets[1]),
        "data.workers": 0,
        "model.num_classes": LAYOUT.num_classes,
        "model.options.rgb": LAYOUT.rgb,
        "model.options.audio": LAYOUT.audio,
        "training.epochs": options.epochs,
        "training.log_every": 50,
        "training.validate_every": 3,
    }
    began, cpu = time.monotonic(), time.process_time()
    found = marey.train("own_tags", settings, out=folder / "runs", resume=options.resume)
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    labels = [{video.id: video.labels for video in read(path)} for path in sets]
    counts = np.bincount([label for own in labels[0].values() for label in own], minlength=200)
    often = np.argsort(-counts, kind="stable")[:20].tolist()
    same = [(own, [(label, float(counts[label])) for label in often]) for own in labels[1].values()]
    tags = tag_records(open_model(found.checkpoint), sets[1], top=20)
    told = [(labels[1][one.id], list(zip(one.classes, one.scores, strict=True))) for one in tags]
    print(f"trained in {took:.0f} s, {cpu:.0f} CPU s, validations included")
    print(f"GAP@20 of the tags' frequencies   {plain_gap(same):.4f}")
    print(f"GAP@20 of the trained network     {found.metrics['gap']:.6f}, as marey measures")
    print(f"GAP@20 of the tags that it gives  {plain_gap(told):.6f}, by the definition")
    print("  ".join(f"{name} {value:.4f}" for name, value in found.metrics.items()))


def read(folder: Path):
    """All videos of a folder."""
    return (video for path in sorted(folder.iterdir()) for video in read_videos(path, LAYOUT))


def plain_gap(videos: list[tuple[tuple[int, ...], list[tuple[int, float]]]]) -> float:
    """GAP of (labels, (tag, score) pairs) of each video: precision at each right pair, over all labels."""
    pairs = sorted(((score, tag in own) for own, best in videos for tag, score in best), key=lambda p: -p[0])
    right, total = 0, 0.0
    for rank, (_, hit) in enumerate(pairs, start=1):
        right += hit
        total += right / rank if hit else 0.0
    return total / sum(len(own) for own, _ in videos)


if __name__ == "__main__":
    main()
