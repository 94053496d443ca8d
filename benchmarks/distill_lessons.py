"""Which lessons help: one small student, taught in several ways, on clips made in memory.

python benchmarks/distill_lessons.py [--size 16] [--epochs 10] [--seeds 5] [--start other] [WAY ...]

Moving shapes of 64 pixels, four directions, 40 training and 50 test clips each, 8 frames. The teacher is a
TSM-R18 of a quarter of the usual width, trained at 64 pixels; students are the same network at `--size`. All
start from one network that was trained at 64 pixels on other classes (diagonals and standing still);
`--start teacher`: the students start with the teacher's weights. They see the same clips in the same order
(SGD 0.01, cosine, batches of 16, mirrored at random). Every way to teach is `marey.training.distill` with the
settings named; `alone` has the labels only, and WAY are those that begin so. Printed are mean accuracy, of
the differences from `alone`, seed by seed, mean, standard deviation and range, and each accuracy.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from distill_gain import OTHERS
from torch import Tensor, nn
from torch.nn import functional as F

from marey.models import build
from marey.recipes.demo import DEMO_CLASSES
from marey.training.distill import Seen, Statistics, Student, Teacher, Wanted, distillation_loss, resize
from marey.video import synthetic
from marey.video.synthetic import moving_shape

SIDE, BATCH = 64, 16
MIRRORED = torch.tensor([0, 2, 1, 3])  # left and right
MIRRORED_OTHERS = torch.tensor([1, 0, 3, 2, 4])
WAYS: dict[str, tuple[Statistics, dict[str, Any]]] = {
    "alone": ("running", {}),
    "logit_kl 1 (recipe distill)": ("running", {"logits": 1.0}),
    "logit_kl 1, batch statistics": ("batch", {"logits": 1.0}),
    "map_kl 1": ("running", {"classes": 1.0}),
    "map_kl 1, batch statistics": ("batch", {"classes": 1.0}),
    "feature_mse 3": ("running", {"feature": 3.0}),
    "feature_mse 100": ("running", {"feature": 100.0}),
    "feature_mse 100, batch statistics (as published)": ("batch", {"feature": 100.0}),
}


class Clips(NamedTuple):
    """Float [N, 3, 8, 64, 64] and labels [N]."""

    pixels: Tensor
    labels: Tensor


def drawn(number: int, seed: int, names: Sequence[str] = DEMO_CLASSES) -> Clips:
    """So many clips of each class."""
    made = []
    for label, name in enumerate(names):
        for index in range(number):
            generator = np.random.default_rng((seed, label, index))
            made.append(moving_shape(name, generator=generator, size=(SIDE, SIDE), frames=24)[1::3])
    pixels = torch.from_numpy(np.stack(made)).float().sub_(115).div_(57)
    return Clips(pixels.permute(0, 4, 1, 2, 3), torch.arange(len(names)).repeat_interleave(number))


def network(weights: Mapping[str, Tensor] | None = None, classes: int = len(DEMO_CLASSES)) -> Any:
    """A network with these weights, except for a classifier of other classes."""
    made: Any = build("tsm_r18", classes, width=16, segments=8, dropout=0.0)
    if weights is not None:
        fits = {k: v for k, v in weights.items() if v.shape == made.state_dict()[k].shape}
        made.load_state_dict(fits, strict=False)
    return made


def trained(
    student: Student, views: Tensor, labels: Tensor, said: Seen | None, settings: dict[str, Any], seed: int,
    *, epochs: int, lr: float, size: int = BATCH,
) -> nn.Module:  # fmt: skip
    """Train on views [2, N, ...]: as drawn and mirrored; `said` is what the teacher says of each."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    number, done = views.shape[1], 0
    steps = -(-number // size)
    student.train()
    for _ in range(epochs):
        order, mirrored = torch.randperm(number), torch.randint(2, (number,))
        for chosen in order.split(size):
            place = (mirrored[chosen], chosen)
            warm = min(1.0, (done + 1) / steps)
            for group in optimizer.param_groups:
                group["lr"] = lr * warm * (1 + np.cos(np.pi * done / (steps * epochs))) / 2
            seen = student(views[place])
            loss = F.cross_entropy(seen.logits, labels[place])
            if said is not None and settings:
                shown = Seen(*(None if part is None else part[place] for part in said))
                loss = loss + distillation_loss(seen, shown, **settings)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 20.0)
            optimizer.step()
            done += 1
    return student.network.eval()


@torch.no_grad()
def accuracy(model: nn.Module, clips: Clips, side: int) -> float:
    scores = torch.cat([model(resize(part, (side, side))) for part in clips.pixels.split(BATCH)])
    return float((scores.argmax(1) == clips.labels).float().mean())


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    train, test = drawn(40, 0), drawn(50, 1)
    views = torch.stack([train.pixels, train.pixels.flip(4)])
    labels = torch.stack([train.labels, MIRRORED[train.labels]])
    torch.manual_seed(0)
    start = begun() if arguments.start == "other" else None
    teacher = trained(
        Student(network(start), Wanted(True, False, False)), views, labels, None, {}, 100,
        epochs=24 if start is None else 10, lr=0.02 if start is None else 0.01,
    )  # fmt: skip
    print(f"teacher at {SIDE}: {accuracy(teacher, test, SIDE):.3f}", flush=True)
    weights, everything = teacher.state_dict(), Wanted(True, True, True)
    said: dict[str, Seen] = {}
    kinds: tuple[Statistics, ...] = ("running", "batch")
    for kind in kinds:
        asked = Teacher(network(weights), everything, statistics=kind, precision="32")
        order = torch.randperm(views.shape[1])  # a batch holds all classes, as in training
        back = order.argsort()
        parts = [[asked(part) for part in view[order].split(BATCH)] for view in views]
        said[kind] = Seen(
            *(torch.stack([torch.cat([part[i] for part in row])[back] for row in parts]) for i in range(3))
        )
    small = torch.stack([resize(view, (arguments.size, arguments.size)) for view in views])
    base: list[float] = []
    for name, (kind, settings) in WAYS.items():
        if base and arguments.ways and not name.startswith(tuple(arguments.ways)):
            continue
        scores = []
        for seed in range(arguments.seeds):
            torch.manual_seed(seed)  # of the new classifier
            model = network(weights if start is None else start)
            wanted = Wanted(True, "feature" in settings, "classes" in settings)
            student = Student(model, wanted)
            learnt = trained(
                student, small, labels, said[kind], settings, seed, epochs=arguments.epochs, lr=0.01
            )
            scores.append(accuracy(learnt, test, arguments.size))
        base = base or scores
        gains = [score - alone for score, alone in zip(scores, base, strict=True)]
        deviation = statistics.stdev(gains) if len(gains) > 1 else 0.0
        spread = f"{statistics.mean(gains):+.3f} (sd {deviation:.3f}, {min(gains):+.3f} to {max(gains):+.3f})"
        each = " ".join(f"{score:.3f}" for score in scores)
        print(f"{name:50}{statistics.mean(scores):.3f}  {spread}  {each}", flush=True)


def begun() -> dict[str, Tensor]:
    """Weights that know other classes."""
    synthetic.MOTIONS.update(OTHERS)
    names = tuple(OTHERS)
    train, test = drawn(40, 2, names), drawn(20, 3, names)
    views = torch.stack([train.pixels, train.pixels.flip(4)])
    labels = torch.stack([train.labels, MIRRORED_OTHERS[train.labels]])
    student = Student(network(classes=len(names)), Wanted(True, False, False))
    learnt = trained(student, views, labels, None, {}, 50, epochs=24, lr=0.02, size=8)
    print(f"start at {SIDE}, other classes: {accuracy(learnt, test, SIDE):.3f}", flush=True)
    return learnt.state_dict()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--start", choices=("other", "teacher"), default="other")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("ways", nargs="*")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
