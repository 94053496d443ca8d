"""The depthwise convolution's outputs and gradients are those of `nn.Conv3d`, by whatever way they come."""

import pytest
import torch
from torch import nn

from marey.models import build
from marey.models.depthwise import DepthwiseConv3d
from tests.oracles import relative_error

SHAPES = [(2, 3, 5, 6, 7), (1, 16, 8, 14, 14), (3, 4, 1, 4, 4), (2, 5, 2, 3, 1), (1, 1, 4, 8, 8)]


KERNELS = [  # and strides, of the transformers and beyond
    ((5, 5, 5), 1), ((1, 9, 9), (1, 8, 8)), ((3, 3, 3), (1, 4, 4)), ((1, 3, 3), (1, 2, 2)),
    ((5, 7, 5), 1), ((7, 3, 5), (3, 1, 1)), ((3, 1, 1), 1), ((1, 5, 3), (2, 1, 2)),
]  # fmt: skip


def pair(channels, stride, dtype, kernel=(3, 3, 3), bias=False):
    torch.manual_seed(0)
    ours = DepthwiseConv3d(channels, stride, kernel, bias=bias).to(dtype)
    padding = tuple(side // 2 for side in kernel)
    plain = nn.Conv3d(channels, channels, kernel, stride, padding, groups=channels, bias=bias).to(dtype)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def gradients(conv, clip, above=None):
    clip = clip.clone(memory_format=torch.preserve_format).requires_grad_()
    out = conv(clip)
    above = torch.randn(out.shape, dtype=out.dtype, generator=torch.manual_seed(2))
    conv.zero_grad()
    out.backward(above)
    bias = [] if conv.bias is None else [conv.bias.grad]
    return out.detach(), clip.grad, conv.weight.grad, *bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [True, False])
def test_outputs_and_gradients_are_those_of_the_plain_convolution(shape, stride, dtype, last):
    ours, plain = pair(shape[1], stride, dtype)
    clip = torch.randn(shape, dtype=dtype, generator=torch.manual_seed(1))
    if last:
        clip = clip.contiguous(memory_format=torch.channels_last_3d)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    for got, want in zip(gradients(ours, clip), gradients(plain, clip), strict=True):
        assert got.shape == want.shape
        assert relative_error(got, want) < tolerance


@pytest.mark.parametrize(("kernel", "stride"), KERNELS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_other_kernels_and_biases_have_the_gradients_of_the_plain_convolution(shape, kernel, stride):
    ours, plain = pair(shape[1], stride, torch.float64, kernel, bias=True)
    clip = torch.randn(shape, dtype=torch.float64, generator=torch.manual_seed(1))
    for got, want in zip(gradients(ours, clip), gradients(plain, clip), strict=True):
        assert got.shape == want.shape
        assert (got - want).norm() <= 1e-12 * want.norm()


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_the_slopes(stride):
    ours, _ = pair(3, stride, torch.float64)
    clip = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: ours(x), (clip, ours.weight))


def test_only_the_gradients_that_are_wanted_are_computed():
    ours, plain = pair(4, 2, torch.float32)
    clip = torch.randn(1, 4, 4, 6, 6)
    ours(clip).sum().backward()
    plain(clip).sum().backward()
    assert relative_error(ours.weight.grad, plain.weight.grad) < 1e-5
    ours.requires_grad_(False)
    given = clip.clone().requires_grad_()
    ours(given).sum().backward()
    assert given.grad is not None


def test_autocast_runs_torchs_own():
    ours, plain = pair(8, 1, torch.float32)
    clip = torch.randn(1, 8, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = ours(clip), plain(clip)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)


def test_csn_is_made_of_them():
    found = [m for m in build("csn_ir_r50", width=8).modules() if isinstance(m, DepthwiseConv3d)]
    assert len(found) == 16
    assert [m.stride[0] for m in found].count(2) == 3
