"""R(2+1)D: its shapes, and how many channels stand between the halves of a convolution."""

import pytest
import torch
from torch import nn

from marey.errors import UsageError
from marey.models import build
from marey.models.r2plus1d import R2Plus1D, split
from marey.weights.load import load_weights
from tests.oracles import filled, r2plus1d_table


def test_a_clip_shrinks_as_in_vmz():
    with torch.device("meta"):
        model, x = build("r2plus1d_r34"), torch.zeros(1, 3, 32, 112, 112)
    shapes = [(x := layer(x)).shape[1:] for layer in model.trunk]
    assert shapes == [(64, 32, 56, 56), (64, 32, 56, 56), (128, 16, 28, 28), (256, 8, 14, 14), (512, 4, 7, 7)]


@pytest.mark.parametrize(("channels", "out"), [(64, 64), (64, 128), (256, 256), (512, 512)])
def test_a_split_convolution_has_nearly_as_many_weights_as_a_whole_one(channels, out):
    weights = sum(m.weight.numel() for m in split(channels, out).modules() if isinstance(m, nn.Conv3d))
    whole = 27 * channels * out
    assert whole - (9 * channels + 3 * out) < weights <= whole


@pytest.mark.parametrize("name", ["r2plus1d_r34", "r2plus1d_r152"])
def test_every_tensor_of_vmzs_file_fills_exactly_one_of_the_network(name):
    weights = filled(r2plus1d_table(int(name[-2:]) if "34" in name else 152, classes=7, width=8))
    model = build(name, 7, width=8)
    report = load_weights(model, weights)
    assert report.loaded == len(weights) == len(model.state_dict())
    assert (report.source, report.head, report.left_out, report.fresh) == ("vmz", "loaded", {}, ())
    assert torch.equal(model.trunk.stage2[0].conv2[0].conv.weight, weights["layer2.0.conv2.0.0.weight"])
    assert torch.equal(model.trunk.stage2[0].conv2[1].bn.bias, weights["layer2.0.conv2.1.bias"])


def test_only_the_last_half_of_a_block_waits_for_the_sum_before_its_relu():
    relus = [
        name for name, m in build("r2plus1d_r34", 2, width=8).trunk.stage1[0].named_modules()
        if isinstance(m, nn.ReLU)
    ]  # fmt: skip
    assert relus == ["conv1.0.relu", "conv1.1.relu", "conv2.0.relu"]


def test_a_depth_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match=r"depth of R\(2\+1\)D is 18"):
        R2Plus1D(18)
