"""Scores of the reference cases, drawn from formulas (numpy RandomState, frozen streams)."""

import json
from pathlib import Path

import numpy as np

from marey.scores.table import softmax

ORACLES = Path(__file__).parent / "oracles"


def load(name):
    return json.loads((ORACLES / f"{name}.json").read_text())


def draw_scores(seed, n, members, spread, strength, classes=11):
    """True classes [n] and a float32 table [n, classes] per member, which sees them through its noise."""
    rng = np.random.RandomState(seed)
    truth = rng.randint(0, classes, n)
    found = {}
    for name in members:
        scores = spread * rng.standard_normal((n, classes))
        scores[np.arange(n), truth] += strength
        found[name] = scores.astype(np.float32)
    return truth, found


def drawn(case):
    """Truth, and the members' probabilities, of a case's input."""
    spec = case["input"]
    truth, scores = draw_scores(*(spec[key] for key in ("seed", "n", "members", "spread", "strength")))
    for name, want in spec.get("checksum", {}).items():
        assert float(scores[name].astype(np.float64).sum()) == want
    return truth, {name: softmax(values) for name, values in scores.items()}


def noisy_truth(seed, truth, rate, classes=11):
    rng = np.random.RandomState(seed)
    flip = rng.uniform(size=len(truth)) < rate
    return np.where(flip, rng.randint(0, classes, len(truth)), truth)
