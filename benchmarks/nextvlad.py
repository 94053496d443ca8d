"""A training step and a forward pass of the full NeXtVLAD: videos per CPU second, and the share of the limit.

    python benchmarks/nextvlad.py [--batch 16] [--frames 300] [--rounds 5] [--threads 1] [--paddle PYTHON]

The limit is what the same thread does in plain matrix products of this network's largest shapes, measured in
turns: the floating-point operations of the network over theirs per second. A step is forward, backward and
Adam, all in float32.

--paddle names the interpreter of an environment with paddlepaddle, which gets a process of its own
(`python -m venv build/paddle; build/paddle/bin/pip install paddlepaddle==3.3.1`). Its network
(`nextvlad_paddle.py`) gets the same weights and inputs; logits, and the loss in training without dropout, are
compared before anything is timed; then steps are taken in turns. The weights were released for Paddle 1.8.5,
which current Pythons cannot install: under it a step took 3.94 CPU seconds at batch 16, on another machine.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from marey.models import build
from marey.recipes.nextvlad import nextvlad_yt8m
from marey.training.losses import tagging_loss
from marey.training.optim import build_optimizer


class Paddle:
    """The same network under Paddle, in a process of its own."""

    def __init__(self, python: str, model: nn.Module, inputs: dict[str, torch.Tensor], threads: int) -> None:
        settings: Any = {"groups": model.rgb.groups, "dropout": model.dropout}
        arrays = {name: value.numpy() for name, value in (model.state_dict() | inputs).items()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.npz"
            np.savez(path, settings=np.array(json.dumps(settings)), **arrays)
            names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
            self.process = subprocess.Popen(
                [python, str(Path(__file__).with_name("nextvlad_paddle.py")), str(path)],
                env=os.environ | dict.fromkeys(names, str(threads)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.version = self.ask("version")  # once it answers, it has read the file

    def ask(self, word: str) -> Any:
        """The answer to a word."""
        assert self.process.stdin and self.process.stdout
        print(word, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "paddle has ended"
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(python: str) -> None:
    """Both networks give the same, small, with drawn weights and statistics."""
    torch.manual_seed(1)
    model: Any = build("nextvlad", 30, cluster_size=8, hidden_size=64, dropout=0.5)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    inputs = drawn(6, 40, 30)
    for dropout in (0.5, 0.0):
        model.dropout = dropout
        peer = Paddle(python, model, inputs, 1)
        if dropout:
            with torch.inference_mode():
                ours = model.eval()(inputs["inputs.rgb"], inputs["inputs.audio"])
            theirs = torch.tensor(peer.ask("logits"))
        else:
            logits = model.train()(inputs["inputs.rgb"], inputs["inputs.audio"])
            ours = tagging_loss(logits, inputs["inputs.targets"]).detach()
            theirs = torch.tensor(peer.ask("loss"))
        peer.close()
        apart = float((ours - theirs).abs().max() / ours.abs().max())
        print(f"{'training loss' if not dropout else 'logits'} differ by {apart:.0e} of the largest")
        assert apart < 1e-4, apart


def drawn(videos: int, frames: int, classes: int) -> dict[str, torch.Tensor]:
    """Stored bytes and targets."""
    rgb, audio = (torch.randint(0, 256, (videos, frames, d), dtype=torch.uint8) for d in (1024, 128))
    targets = torch.rand(videos, classes) < 3 / classes
    return {"inputs.rgb": rgb, "inputs.audio": audio, "inputs.targets": targets}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("batch", 16), ("frames", 300), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--paddle", metavar="PYTHON", help="Interpreter that has paddlepaddle.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.paddle:
        compare(options.paddle)
    torch.manual_seed(0)
    model = build("nextvlad", 3862)
    optimizer = build_optimizer(model, nextvlad_yt8m().training.optimizer)
    inputs = drawn(options.batch, options.frames, 3862)
    rgb, audio, targets = (inputs[f"inputs.{name}"] for name in ("rgb", "audio", "targets"))
    peer = Paddle(options.paddle, model, inputs, options.threads) if options.paddle else None
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

    def timed(name: str) -> float:
        if name.startswith("paddle"):
            assert peer is not None
            return float(peer.ask(name.removeprefix("paddle ")))
        start = time.process_time()
        {"step": step, "forward": forward, "product": product}[name]()
        return time.process_time() - start

    names = ["step", "forward", "product", *(["paddle step", "paddle forward"] if peer else [])]
    for name in names:
        timed(name)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(timed(name))
    frame = 2 * (
        1024 * 2048 + 2048 * 1024 + 2048 * 128 + 128 * 256 + 256 * 1024 + 256 * 128 + 8 * 2048 + 8 * 256
    )
    head = 2 * (36864 * 2048 + 2 * 2048 * 256 + 2048 * 3862)
    forward_work = rows * frame + options.batch * head
    speed = 2 * rows * 1024 * 2048 / median(times["product"])
    print(f"batch {options.batch}, {options.frames} frames; products: {speed / 1e9:.0f} GFLOP per CPU s")
    for name in (name for name in names if name != "product"):
        limit = (3 if name.endswith("step") else 1) * forward_work / (2 * rows * 1024 * 2048)
        shares = [limit * p / t for t, p in zip(times[name], times["product"], strict=True)]
        took = median(times[name])
        line = f"{name:14} {took:.2f} CPU s, {options.batch / took:.1f} videos per CPU s"
        line += f", {median(shares):.0%} of limit"
        if name.startswith("paddle"):
            ours = times[name.removeprefix("paddle ")]
            ratios = [theirs / mine for theirs, mine in zip(times[name], ours, strict=True)]
            line += f"; Marey is {median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        print(line)
    if peer is not None:
        print(f"paddlepaddle {peer.version}, torch {torch.__version__}")
        peer.close()


if __name__ == "__main__":
    main()
