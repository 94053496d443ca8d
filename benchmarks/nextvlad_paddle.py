"""The network of `benchmarks/nextvlad.py` in paddle ops: a process that takes steps on request.

    python benchmarks/nextvlad_paddle.py FILE.npz      # what nextvlad.py wrote: weights, inputs, settings

What the network of PaddlePaddle/models computes; frames are pooled by batched products, which is faster than
the frame by frame descriptors that its release made. Reads words from standard input and answers each with a
line of JSON: `logits` (in evaluation), `loss` (in training), `step`, `forward` (CPU seconds of one).
"""

import json
import os
import sys
import time
import warnings
from typing import Any

import numpy as np

os.environ.setdefault("GLOG_minloglevel", "3")
import paddle
from paddle import nn
from paddle.nn import functional as F


class Stream(nn.Layer):
    """One NeXtVLAD pool of stored bytes [B, T, D], all frames of all videos being there."""

    def __init__(self, weights: dict[str, Any], name: str, groups: int) -> None:
        super().__init__()
        one = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(name)}
        self.groups, self.offset = groups, 0.0 if "scale" in one else 4 / 512
        self.scale = paddle.to_tensor(one["scale"]) if "scale" in one else None
        self.expansion, self.attention = linear(one, "expansion"), linear(one, "attention")
        self.assignment = linear(one, "assignment")
        self.assignment_norm, self.norm = norm(one, "assignment_norm"), norm(one, "norm")
        self.centres = parameter(self, one["centres"])

    def forward(self, stored: paddle.Tensor) -> paddle.Tensor:
        """The descriptor, [B, F * K]."""
        videos, frames, _ = stored.shape
        x = stored.astype("float32") * (4 / 255) + (self.offset - 2)
        wide = self.expansion((x if self.scale is None else x * self.scale).flatten(0, 1))
        share = self.assignment_norm(self.assignment(wide)).reshape([videos * frames, self.groups, -1])
        share = F.softmax(share, axis=2) * F.sigmoid(self.attention(wide)).unsqueeze(2)
        share = share.reshape([videos, frames * self.groups, -1])
        wide = wide.reshape([videos, frames * self.groups, -1])
        pooled = paddle.matmul(wide, share, transpose_x=True) - share.sum(1).unsqueeze(1) * self.centres.T
        pooled = pooled / paddle.sqrt((pooled * pooled).sum(1, keepdim=True) + 1e-12)
        return self.norm(pooled.flatten(1))


class Network(nn.Layer):
    """Logits of rgb and audio; dropout as Paddle has it, scaled down in evaluation."""

    def __init__(self, weights: dict[str, Any], groups: int, dropout: float) -> None:
        super().__init__()
        self.rgb, self.audio = Stream(weights, "rgb", groups), Stream(weights, "audio", groups)
        self.dropout = nn.Dropout(dropout, mode="downscale_in_infer")
        self.hidden, self.hidden_norm = linear(weights, "hidden"), norm(weights, "hidden_norm")
        self.squeeze, self.squeeze_norm = linear(weights, "squeeze"), norm(weights, "squeeze_norm")
        self.excite, self.head = linear(weights, "excite"), linear(weights, "head", decay=1e-5)

    def forward(self, rgb: paddle.Tensor, audio: paddle.Tensor) -> paddle.Tensor:
        """[B, classes]."""
        v = self.dropout(paddle.concat([self.rgb(rgb), self.audio(audio)], axis=1))
        u = self.hidden_norm(self.hidden(v))
        gates = F.sigmoid(self.excite(F.relu(self.squeeze_norm(self.squeeze(u)))))
        return self.head(u * gates)


def linear(weights: dict[str, Any], name: str, decay: float | None = None) -> nn.Linear:
    """A linear layer of these weights."""
    weight = weights[f"{name}.weight"].T
    bias = weights.get(f"{name}.bias")
    rule = None if decay is None else paddle.regularizer.L2Decay(decay)
    attributes = [
        paddle.ParamAttr(initializer=nn.initializer.Assign(np.ascontiguousarray(value)), regularizer=rule)
        if value is not None
        else False
        for value in (weight, bias)
    ]
    return nn.Linear(*weight.shape, weight_attr=attributes[0], bias_attr=attributes[1])


def norm(weights: dict[str, Any], name: str) -> nn.BatchNorm1D:
    """A batch norm of these weights and statistics."""
    layer = nn.BatchNorm1D(len(weights[f"{name}.weight"]), momentum=0.9, epsilon=1e-5)
    for ours, theirs in (
        ("weight", "weight"),
        ("bias", "bias"),
        ("running_mean", "_mean"),
        ("running_var", "_variance"),
    ):
        getattr(layer, theirs).set_value(weights[f"{name}.{ours}"])
    return layer


def parameter(layer: nn.Layer, value: np.ndarray) -> paddle.Tensor:
    """A parameter that starts as `value`."""
    attribute = paddle.ParamAttr(initializer=nn.initializer.Assign(value))
    return layer.create_parameter(list(value.shape), attr=attribute)


def main() -> None:
    warnings.simplefilter("ignore")
    with np.load(sys.argv[1]) as file:
        weights = {name: file[name] for name in file.files}
    settings = json.loads(str(weights.pop("settings")))
    rgb, audio, targets = (weights.pop(name) for name in ("inputs.rgb", "inputs.audio", "inputs.targets"))
    paddle.set_device("cpu")
    paddle.seed(0)
    network = Network(weights, settings["groups"], settings["dropout"])
    optimizer = paddle.optimizer.Adam(2e-4, parameters=network.parameters(), epsilon=1e-8)
    inputs = paddle.to_tensor(rgb), paddle.to_tensor(audio)
    wanted = paddle.to_tensor(targets.astype(np.float32))

    def loss() -> paddle.Tensor:
        network.train()
        each = F.binary_cross_entropy_with_logits(network(*inputs), wanted, reduction="none")
        return each.sum(1).mean()

    def step() -> None:
        found = loss()
        found.backward()
        optimizer.step()
        optimizer.clear_grad()

    def forward() -> np.ndarray:
        network.eval()
        with paddle.no_grad():
            return network(*inputs).numpy()

    answers = {
        "logits": lambda: forward().tolist(),
        "loss": lambda: float(loss()),
        "version": lambda: paddle.__version__,
    }
    for line in sys.stdin:
        word = line.strip()
        if word in answers:
            found = answers[word]()
        else:
            start = time.process_time()
            (step if word == "step" else forward)()
            found = time.process_time() - start
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
