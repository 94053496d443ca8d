"""A training step and a forward pass of the full NeXtVLAD: videos per CPU second, and the share of the limit.

    python benchmarks/nextvlad.py [--batch 16] [--frames 300] [--rounds 5] [--threads 1]

The limit is what the same thread does in plain matrix products of this network's largest shapes, measured in
turns: the floating-point operations of the network over theirs per second. A step is forward, backward and
Adam, all in float32. Paddle 1.8.5's own step took 3.94 CPU seconds at batch 16 on another machine.
"""

import argparse
import time
from statistics import median

import torch

from marey.models import build
from marey.recipes.nextvlad import nextvlad_yt8m
from marey.training.losses import tagging_loss
from marey.training.optim import build_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("batch", 16), ("frames", 300), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build("nextvlad", 3862)
    optimizer = build_optimizer(model, nextvlad_yt8m().training.optimizer)
    rgb, audio = (
        torch.randint(0, 256, (options.batch, options.frames, width), dtype=torch.uint8)
        for width in (1024, 128)
    )
    targets = torch.rand(options.batch, 3862) < 0.001
    rows = options.batch * options.frames
    left, right = torch.randn(rows, 1024), torch.randn(1024, 2048)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        tagging_loss(model(rgb, audio), targets).backward()
        optimizer.step()

    @torch.inference_mode()
    def forward() -> None:
        model.eval()
        model(rgb, audio)

    def product() -> None:
        left @ right

    works = {"step": step, "forward": forward, "product": product}
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.rounds):
        for name, work in works.items():
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    frame = 2 * (
        1024 * 2048 + 2048 * 1024 + 2048 * 128 + 128 * 256 + 256 * 1024 + 256 * 128 + 8 * 2048 + 8 * 256
    )
    head = 2 * (36864 * 2048 + 2 * 2048 * 256 + 2048 * 3862)
    forward_work = rows * frame + options.batch * head
    speed = 2 * rows * 1024 * 2048 / median(times["product"])
    print(f"batch {options.batch}, {options.frames} frames; products: {speed / 1e9:.0f} GFLOP per CPU s")
    for name, factor in (("step", 3), ("forward", 1)):
        ratios = [
            factor * forward_work / (2 * rows * 1024 * 2048 / p) / t
            for t, p in zip(times[name], times["product"], strict=True)
        ]
        took = median(times[name])
        speed = options.batch / took
        print(f"{name:8} {took:.2f} CPU s, {speed:.1f} videos per CPU s, {median(ratios):.0%} of limit")


if __name__ == "__main__":
    main()
