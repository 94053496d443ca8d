"""What a teacher costs: its pass beside the student's step, and what kept answers save.

python benchmarks/distill.py [--teacher tsn_r50] [--student tsn_r18] [--clips 2] [--frames 8] [--threads 1]

Both networks have fresh weights and see drawn clips, the teacher of 224 pixels, the student of 112. Per round
each way runs once, in turns; times are medians, shares are of a step that has student and teacher in it. The
step is the student's pass forward and backward and an update of SGD.

python benchmarks/distill.py --train DIR [--teacher tsn_r50] [--student tsn_r18] [--size 112] [--rounds 3]

Times whole trainings instead, `marey.train` from end to end (setup, decoding, saved states), with
`distill.cache` and without, in turns: `--epochs` epochs of `--videos` rendered clips, with the teacher asked
in every step, with an empty folder for `--views` views of each clip, and with a full one. The teacher has
fresh weights, sees `--size` pixels, and the student half of that.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import marey
from marey.models import build
from marey.models.fold import folded
from marey.training.distill import Seen, Student, Teacher, Wanted, distillation_loss, resize
from marey.training.losses import classification_loss
from marey.video.synthetic import CLASSES, render_moving_shapes

WANTED = Wanted(logits=True, maps=False, classes=True)


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    if arguments.train:
        trainings(arguments)
        return
    device = torch.device(arguments.device)
    clip = torch.randn(arguments.clips, arguments.frames, 224, 224, 3, device=device).permute(0, 4, 1, 2, 3)
    labels = torch.arange(arguments.clips, device=device)
    options = {"segments": arguments.frames}

    def network(name: str) -> torch.nn.Module:
        torch.manual_seed(0)
        return build(name, 400, **(options if name.startswith(("tsn", "tsm")) else {})).to(device)

    plain = network(arguments.teacher).train()

    def as_a_module() -> None:
        """A teacher inside of the trained module, whose output is detached: with a graph and moving norms."""
        plain.features(clip)

    teachers = {
        "batch statistics": Teacher(network(arguments.teacher), WANTED, statistics="batch"),
        "running statistics": Teacher(network(arguments.teacher), WANTED, precision="32"),
        "running, folded": Teacher(folded(network(arguments.teacher)), WANTED, precision="32"),
    }
    if arguments.bf16:
        teachers["running, folded, bf16"] = Teacher(
            folded(network(arguments.teacher)), WANTED, precision="bf16"
        )
    student = Student(network(arguments.student), WANTED).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9)
    said = teachers["running, folded"](clip)
    kept = Seen(*(None if part is None else part.half().cpu().numpy() for part in said))

    def step() -> None:
        seen = student(resize(clip, (112, 112)))
        loss = classification_loss(seen.logits, labels) + distillation_loss(
            seen, said, logits=1.0, classes=1.0
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def from_memory() -> None:
        """A kept answer becomes a tensor on the device."""
        for part in kept:
            if part is not None:
                torch.from_numpy(part).to(device).float()

    ways: dict[str, Callable[[], object]] = {"student's step": step, "with a graph": as_a_module}
    ways |= {name: (lambda teacher=teacher: teacher(clip)) for name, teacher in teachers.items()}
    ways["kept answer"] = from_memory
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(arguments.rounds + 1):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begin = now(device)
            ways[name]()
            if number:  # the first round is slow
                times[name].append(now(device) - begin)
    base = times.pop("student's step")
    rows = [("student's step", median(base), None, None, None)]
    for name, seconds in times.items():
        shares = [took / (took + own) for took, own in zip(seconds, base, strict=True)]
        rows.append((name, median(seconds), median(shares), min(shares), max(shares)))
    if arguments.json:
        print(
            json.dumps(
                [dict(zip(("what", "seconds", "share", "least", "most"), row, strict=True)) for row in rows]
            )
        )
        return
    size = f"{arguments.clips} clips of {arguments.frames} frames"
    print(f"{arguments.teacher} at 224 teaches {arguments.student} at 112, {size}, {device}")
    for name, seconds, share, least, most in rows:
        part = "" if share is None else f"{share:7.1%} of the step ({least:.1%} to {most:.1%})"
        print(f"{name:24}{1000 * seconds:9.1f} ms  {part}")


def trainings(arguments: argparse.Namespace) -> None:
    """Whole trainings with kept answers and without."""
    folder, size = arguments.train, arguments.size
    classes = CLASSES[:4]
    lists = render_moving_shapes(
        folder / "clips", train=arguments.videos // 4, val=0, test=0, size=(size, size), classes=classes
    )
    torch.manual_seed(0)
    given = {"segments": arguments.frames} if arguments.teacher.startswith(("tsn", "tsm")) else {}
    teacher = folder / "teacher.pth"
    torch.save({"state_dict": build(arguments.teacher, len(classes), **given).state_dict()}, teacher)
    settings = {
        "data.train": str(lists.train), "data.workers": 0, "model.name": arguments.student,
        "distill.teacher.name": arguments.teacher, "distill.teacher.weights": str(teacher),
        "clips.frames": arguments.frames, "clips.short_side": size, "clips.crop": size,
        "clips.train_crop": "center", "clips.input_size": size // 2,
        "training.batch": 8, "training.epochs": arguments.epochs,
    }  # fmt: skip
    cached = {"distill.cache": str(folder / "said"), "distill.views": arguments.views}
    ways: dict[str, dict[str, Any]] = {"asked each time": {}, "empty folder": cached, "full folder": cached}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    marey.train("distill", settings | {"training.epochs": 1}, out=folder / "runs", accelerator="cpu")  # slow
    for _ in range(arguments.rounds):
        for name, more in ways.items():  # the second fills the folder for the third
            if name == "empty folder":
                shutil.rmtree(folder / "said", ignore_errors=True)
            work, wall = time.process_time(), time.perf_counter()
            marey.train("distill", settings | more, out=folder / "runs", accelerator="cpu")
            times[name].append((time.process_time() - work, time.perf_counter() - wall))
            shutil.rmtree(folder / "runs")
    base = times["asked each time"]
    rows = []
    for name, found in times.items():
        faster = [[b / o for b, o in zip(*both, strict=True)] for both in zip(base, found, strict=True)]
        work, wall = ([ratios[i] for ratios in faster] for i in (0, 1))
        seconds = [median(took[i] for took in found) for i in (0, 1)]
        rows.append((name, *seconds, median(work), min(work), max(work), median(wall)))
    names = ("what", "cpu_seconds", "seconds", "cpu_speedup", "least", "most", "speedup")
    if arguments.json:
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
        return
    print(
        f"{arguments.teacher} at {size} teaches {arguments.student} at {size // 2}: {arguments.epochs} "
        f"epochs of {arguments.videos} clips of {arguments.frames} frames, {arguments.views} views"
    )
    for name, own, clock, ratio, least, most, clocked in rows:
        ratios = f"{ratio:5.2f}x ({least:.2f} to {most:.2f}); by the clock {clock:6.1f} s {clocked:5.2f}x"
        print(f"{name:18}{own:7.1f} s of one core  {ratios}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", type=Path, help="folder: time whole trainings")
    parser.add_argument("--size", type=int, default=112, help="with --train: what the teacher sees")
    parser.add_argument("--videos", type=int, default=32, help="with --train")
    parser.add_argument("--epochs", type=int, default=4, help="with --train")
    parser.add_argument("--views", type=int, default=2, help="with --train")
    parser.add_argument("--teacher", default="tsn_r50")
    parser.add_argument("--student", default="tsn_r18")
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def now(device: torch.device) -> float:
    """Seconds: of this process's work on a CPU, where other programs may be busy; else of the clock."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
