"""`marey demo`: the whole path in a minute or two, on videos it renders itself."""

import os
from pathlib import Path
from typing import NamedTuple

from marey.data.lists import read_list
from marey.jobs.evaluate import test
from marey.jobs.predict import Prediction, predict
from marey.jobs.train import train
from marey.recipes.catalog import load_recipe
from marey.recipes.demo import DEMO_CLASSES
from marey.video.synthetic import render_moving_shapes


class Demo(NamedTuple):
    """What the demo found: accuracy (0..1) on `clips` held-out clips, some predictions, and the report."""

    accuracy: float
    clips: int
    predictions: list[Prediction]
    report: Path
    checkpoint: Path


def demo(folder: str | os.PathLike[str] = "demo", *, seed: int = 0) -> Demo:
    """Render moving shapes, train the small network of `demo.moving_shapes`, test it, predict, report.

    Everything goes into `folder`; a seed always gives the same videos.
    """
    folder = Path(folder)
    lists = render_moving_shapes(
        folder / f"videos-{seed}", train=90, val=10, test=50, seed=seed, classes=DEMO_CLASSES
    )
    recipe = load_recipe(
        "demo.moving_shapes",
        {"data.train": str(lists.train), "data.val": str(lists.val), "data.test": str(lists.test)},
    )
    trained = train(recipe, out=folder / "runs", seed=seed)
    found = test(trained.run / "recipe.json", trained.checkpoint, {"data.test": str(lists.test)})
    held_out = read_list(lists.test)
    some = [held_out[index].path for index in range(0, len(held_out), max(len(held_out) // 6, 1))]
    return Demo(
        accuracy=found["metrics"]["top1"],
        clips=found["evaluated"],
        predictions=list(predict(trained.checkpoint, some, top=2)),
        report=trained.run / "report.html",
        checkpoint=trained.checkpoint,
    )
