"""The network of a file is found from its tensors: SlowFast, Video Swin, UniFormer, MViT."""

import pytest
import torch

from marey.models import MODELS
from marey.models.shell import shell
from marey.weights.detect import Fit, candidates
from tests.models.published import table_of

FAMILIES = [name for name in MODELS if name.startswith(("slow", "swin", "uniformer", "mvit"))]
CASES = [
    ("slowfast_r50", {}, "pyslowfast"),
    ("slowfast_r50", {"lateral_kernel": 5}, "pyslowfast"),
    ("slowfast_r50", {"style": "mmaction2"}, "mmaction2"),
    ("slowfast_r101", {"style": "mmaction2", "fast_depth": 50}, "mmaction2"),
    ("slowfast_r101", {}, "pyslowfast"),
    ("slowfast_r101_alphaction", {}, "alphaction"),
    ("slowonly_r50", {}, "pyslowfast"),
    ("swin3d_t", {}, "video-swin"),
    ("swin3d_b", {}, "torchvision"),
    ("uniformer_b", {}, "uniformer"),
    ("mvit_b_16x4", {}, "pyslowfast"),
    ("mvit_b_16x4", {}, "torchvision"),
    ("mvit_b_32x3", {"frames": 16, "crop": 160}, "pyslowfast"),
    ("mvit_v2_s", {}, "pyslowfast"),
    ("mvit_v2_b", {"crop": 320}, "pyslowfast"),
]


@pytest.mark.parametrize(("name", "overrides", "layout"), CASES, ids=str)
def test_the_network_is_found_from_the_tensors(name, overrides, layout):
    shapes = table_of(shell(name, 7, **overrides), layout, optional=layout == "mmaction2")
    tensors = {}
    for tensor, shape in shapes.items():  # of no size in memory
        kind = torch.int64 if tensor.endswith("num_batches_tracked") else torch.float32
        tensors[tensor] = torch.zeros((), dtype=kind).expand(shape)
    assert candidates(tensors, FAMILIES) == [Fit(name, overrides)]
