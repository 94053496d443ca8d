"""What stored frames cost in accuracy: one trained network, tested on one list stored in several ways.

python benchmarks/distill_frames.py RUN LIST --folder DIR [--coarse] [KEY=VALUE ...]

RUN is the folder of a training, whose best weights are tested with the run's recipe (KEY=VALUE change it) on
the videos of LIST and on what `marey data frames --fps native` makes of them in their own size: PNG, JPEG of
quality 95, H.264 of crf 18, which are its defaults, and with `--coarse` JPEG of quality 50 and H.264 of
crf 30. Prints top-1, how many clips get another prediction than from PNG, the mean difference of their
probabilities, and the bytes of the files.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import marey
from marey.jobs.frames import store_frames
from marey.jobs.frames_store import Store

STORES = {
    "png": Store(kind="png", fps=None),
    "jpeg quality 95": Store(kind="jpeg", fps=None),
    "video H.264 crf 18": Store(kind="video", fps=None),
}
COARSE = {
    "jpeg quality 50": Store(kind="jpeg", fps=None, quality=50),
    "video H.264 crf 30": Store(kind="video", fps=None, crf=30),
}


def main() -> None:
    arguments = parsed()
    run, folder = arguments.run, arguments.folder
    best = run / "checkpoints" / "best.safetensors"
    rows: dict[str, tuple[float, np.ndarray, float]] = {}

    def tested(name: str, settings: list[str], size: float) -> None:
        out = folder / f"{name.replace(' ', '_')}.json"
        changes = [*arguments.changes, "data.workers=0", *settings]
        found = marey.test(run / "recipe.json", best, changes, out=out, accelerator="cpu")
        scores = pq.read_table(out.with_suffix(".parquet"))["scores"].to_pylist()
        rows[name] = float(found["metrics"]["top1"]), np.array(scores), size
        print(f"{name}: {rows[name][0]:.4f}", flush=True)

    folder.mkdir(parents=True, exist_ok=True)
    tested("the videos", [f"data.test={arguments.list}"], 0)
    for name, store in (STORES | (COARSE if arguments.coarse else {})).items():
        place = folder / name.replace(" ", "_")
        made = store_frames([arguments.list], place, store, workers=0, resume=place.exists(), quiet=True)
        (written,) = made.lists
        settings = [f"data.test={place / written}", *made.keys.split()]
        tested(name, settings, made.bytes)
    exact = rows["png"][1]
    found: list[dict[str, Any]] = []
    for name, (top1, scores, size) in rows.items():
        changed = int((scores.argmax(1) != exact.argmax(1)).sum())
        found.append(
            {
                "store": name,
                "top1": top1,
                "changed": changed,
                "moved": float(np.abs(scores - exact).mean()),
                "bytes": size,
            }
        )
        print(
            f"{name:20} top1 {top1:.4f}  {changed} of {len(scores)} predictions changed, probabilities by "
            f"{found[-1]['moved']:.4f}  {size / 1e6:.2f} MB"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found), encoding="utf-8")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("list")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--coarse", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("changes", nargs="*")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    sys.exit(main())
