"""A run folder as training and testing leave it, made up."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from marey.jobs.runs import Run
from marey.recipes.demo import moving_shapes
from marey.recipes.schema import Published
from marey.video.synthetic import CLASSES, moving_shape, write_video

ENVIRONMENT = {
    "seed": 0,
    "marey": "0.1.0",
    "python": "3.12.3",
    "packages": {"torch": "2.15.0", "av": "18.1.0", "torchcodec": None},
    "decoder": {"name": "pyav", "reason": "torchcodec is not installed"},
    "devices": [{"name": "cpu", "model": "Some <Processor>", "memory": 16 << 30}],
}
FAILED = [
    {"path": "clips/gone.mp4", "code": "NOT_FOUND", "message": "'clips/gone.mp4' does not exist"},
    {"path": 'clips/a <b> & "c"\n\udcff.mp4', "code": "NOT_DECODABLE", "message": "index missing"},
]


def write_run(
    folder: Path,
    classes: Sequence[str] = CLASSES,
    *,
    clips: int = 60,
    multi_label: bool = False,
    videos: int = 12,
    accuracy: float = 0.8,
    seed: int = 0,
) -> Path:
    """Fill `folder`; the first `videos` clips exist as files, the others do not."""
    generator = np.random.default_rng(seed)
    labels, scores = draw_scores(generator, len(classes), clips, multi_label, accuracy)
    paths = [str(folder / "videos" / f"clip <{i}> & 'co'.mp4") for i in range(clips)]
    for index in range(videos):
        clip = moving_shape(CLASSES[index % 6], generator=generator, size=(64, 48), frames=8)
        write_video(paths[index], clip, fps=12)
    recipe = msgspec.structs.replace(
        moving_shapes(), published=Published(metrics={"top1": 0.9, "map": 0.5}, source="a paper, table 1")
    )
    run = Run(folder)
    run.write_json(run.recipe, recipe)
    write_metrics(run, generator, multi_label)
    results = results_of(labels, scores, classes, multi_label) | {"list": "lists/<val>.csv"}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    table = {"path": paths, "label": labels, "view": [0] * clips, "scores": list(scores.astype(np.float32))}
    pq.write_table(pa.table(table), folder / "scores.parquet")
    with (folder / "log.txt").open("w") as log:
        log.write("2026-11-20 18:00:00  demo: 240 clips, <6> classes\n")
        log.write(
            "2026-11-20 18:00:09  skipped clips/cut & short.mp4: MEDIA_TRUNCATED: 58 of 100 frames: or so\n"
        )
        log.write("2026-11-20 18:04:10  epoch 20  validation  top1 0.8000\n")
    return folder


def draw_scores(generator, classes, clips, multi_label, accuracy):
    """Labels (lists) and probabilities [clips, classes] of a network that is mostly right."""
    truth = np.arange(clips) % classes
    logits = generator.normal(size=(clips, classes))
    lifted = np.where(
        generator.random(clips) < accuracy, truth, (truth + generator.integers(1, 3, clips)) % classes
    )
    logits[np.arange(clips), lifted] += generator.uniform(2, 8, clips)
    if not multi_label:
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return [[int(label)] for label in truth], scores
    labels = [
        sorted({int(label), int(extra)})
        for label, extra in zip(truth, generator.integers(0, classes, clips), strict=True)
    ]
    return labels, 1 / (1 + np.exp(-logits + 1))


def results_of(labels, scores, classes, multi_label):
    """What results.json holds for these scores."""
    count = len(classes)
    common = {
        "recipe": "demo.moving_shapes",
        "checkpoint": "checkpoints/best.safetensors",
        "protocol": {"clips": 1, "crops": "center", "crop": 64, "average": "prob"},
        "expected": {
            "metrics": {"top1": 0.9, "map": 0.5},
            "source": "a paper, table 1",
            "protocol": "1 clip",
        },
        "evaluated": len(labels),
        "listed": len(labels) + len(FAILED),
        "failed": FAILED,
        "classes": list(classes),
        "versions": ENVIRONMENT,
        "fingerprint": "0123abcd",
    }
    if multi_label:
        counts = np.bincount([label for row in labels for label in row], minlength=count)
        ap = [0.25 + 0.7 * (i % 7) / 7 if counts[i] else None for i in range(count)]
        known = [value for value in ap if value is not None]
        return common | {
            "metrics": {"map": sum(known) / len(known), "loss": 0.41},
            "per_class": [
                {"class": c, "count": int(n), "ap": a} for c, n, a in zip(classes, counts, ap, strict=True)
            ],
            "confusion": None,
        }
    confusion = np.zeros((count, count), int)
    np.add.at(confusion, ([row[0] for row in labels], scores.argmax(1)), 1)
    right = confusion.diagonal() / np.maximum(confusion.sum(1), 1)
    return common | {
        "metrics": {
            "top1": float(confusion.trace() / len(labels)),
            "top5": 0.987,
            "mean_class": float(right.mean()),
            "loss": 0.62,
        },
        "per_class": [
            {"class": c, "count": int(n), "accuracy": float(a)}
            for c, n, a in zip(classes, confusion.sum(1), right, strict=True)
        ],
        "confusion": confusion.tolist(),
    }


def write_metrics(run, generator, multi_label):
    """Twenty epochs of ten logged steps."""
    for step in range(1, 201):
        row = {
            "step": step,
            "epoch": step / 10,
            "lr": 0.05 * (1 + np.cos(np.pi * step / 200)) / 2,
            "loss": 1.8 * np.exp(-step / 70) + 0.1 * generator.random(),
            "clips_per_second": 90 + 20 * generator.random(),
            "data_share": 0.05 + 0.05 * generator.random(),
            "skipped": int(step > 30),
        }
        run.add_metrics({k: v if isinstance(v, int) else float(v) for k, v in row.items()})
        if step % 10 == 0:
            right = 1 - 0.8 * float(np.exp(-step / 60))
            names = ("val_map",) if multi_label else ("val_top1", "val_top5", "val_mean_class")
            values = dict.fromkeys(names, right) | (
                {} if multi_label else {"val_top5": min(1.0, right + 0.15)}
            )
            run.add_metrics({"step": step, "epoch": step / 10, "val_loss": 2 * (1 - right) + 0.1} | values)
