"""A rendered data set and a recipe small enough to be trained in seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marey.video.synthetic import render_moving_shapes

TINY = {
    "model.options": {"width": 8, "segments": 4},
    "clips.frames": 4,
    "clips.short_side": 32,
    "clips.crop": 32,
    "clips.val.crop": 32,
    "clips.test.crop": 32,
    "training.epochs": 2,
    "training.batch": 8,
    "training.reference_batch": 8,
    "training.log_every": 1,
    "training.validate_every": 1,
    "data.workers": 1,
}


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """The lists of a rendered data set of 6 classes: 36 training, 12 validation and 18 test clips."""
    folder = tmp_path_factory.mktemp("shapes")
    return render_moving_shapes(folder, train=6, val=2, test=3, size=(48, 40), frames=12)


@pytest.fixture
def tiny(shapes):
    """Overrides that make `demo.moving_shapes` tiny and point it at the rendered lists."""
    paths = {"data.train": str(shapes.train), "data.val": str(shapes.val), "data.test": str(shapes.test)}
    return TINY | paths


def arguments(overrides: dict[str, object]) -> list[str]:
    """The overrides as the command line takes them."""
    import json

    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()
    ]


def marey(*words: str, **settings) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "marey", *map(str, words)],
        capture_output=True, text=True, env=environment, check=False, **settings,
    )  # fmt: skip


def only_run(out: Path) -> Path:
    """The one run folder under a folder of runs."""
    (found,) = [f for f in out.glob("*/*") if f.is_dir()]
    return found
