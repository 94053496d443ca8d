"""Every recognizer learns: steps reach all its parameters, and a few teach it eight clips by heart."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from marey.models import MODELS, build
from marey.video.synthetic import CLASSES, moving_shape

NAMES = sorted(set(MODELS) - {"nextvlad"})  # which takes features
STEPS = 40
RATES = {"mvit": 1e-3, "swin": 1e-3}  # of learning; the others 3e-3
LARGE = [n for n in NAMES if n.endswith(("r152", "ip_r101", "uniformer_b", "v2_b")) and "slow" not in n]
SMALL = {  # by the beginning of the name; depths and kinds of blocks stay
    "csn": {"width": 16},
    "mvit": {"channels": 16, "frames": 8, "crop": 32},
    "r2plus1d": {"width": 8},
    "slowfast": {"width": 16, "beta": 4},
    "slowonly": {"width": 8},
    "swin3d": {"channels": 16, "heads": (1, 2, 4, 8)},
    "tsm": {"width": 8, "segments": 8},
    "tsn": {"width": 8},
    "uniformer": {"channels": (8, 16, 16, 16), "head_width": 8},
}


@pytest.fixture(scope="module")
def clips():
    """Eight clips of 8 x 32 x 32, two of each of four motions, and their labels."""
    rng = np.random.default_rng(3)
    shown = [moving_shape(CLASSES[i % 4], generator=rng, size=(32, 32), frames=8) for i in range(8)]
    pixels = torch.from_numpy(np.stack(shown)).float()
    return ((pixels - pixels.mean()) / pixels.std()).permute(0, 4, 1, 2, 3), torch.arange(8) % 4


def small(name):
    torch.manual_seed(0)
    overrides = next(v for k, v in SMALL.items() if name.startswith(k))
    drops = {"drop_path": 0.0} if name.startswith(("mvit", "swin", "uniformer")) else {}
    return build(name, 4, dropout=0.0, **overrides, **drops).train()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in NAMES]
)
def test_eight_clips_are_learnt_by_heart(name, clips):
    model, (clip, label) = small(name), clips
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES.get(name[:4], 3e-3), weight_decay=0.0)
    for step in range(STEPS):
        logits = model(clip)
        loss = F.cross_entropy(logits, label)
        if step == 0:
            first = loss.item()
        if loss < 0.2 * first and torch.equal(logits.argmax(1), label):
            return
        optimizer.zero_grad()
        loss.backward()
        if step == 1:  # what starts at 0 lets nothing through in the first
            for key, p in model.named_parameters():
                learnt = p.requires_grad
                assert learnt == (p.grad is not None), key
                assert not learnt or p.grad.isfinite().all(), key
        optimizer.step()
    raise AssertionError(f"after {STEPS} steps the loss is {loss.item():.2f}, at first {first:.2f}")
