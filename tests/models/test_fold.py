"""Folded copies: the outputs of the original, nothing of it changed, by every path a convolution can take."""

import pickle
from copy import deepcopy
from inspect import signature

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from marey.models import MODELS, build
from marey.models import fold as module
from marey.models.fold import Folded, folded
from tests.models.small import SLIM
from tests.models.test_models import CASES, case_model
from tests.oracles import drawn, load_case, relative_error

NETWORKS = [
    ("tsn_r18", {}),
    ("tsm_r18", {}),
    ("tsm_r50", {"non_local": "embedded_gaussian"}),
    ("slowonly_r50", {}),
    ("slowonly_r50", {"non_local": "embedded_gaussian"}),
    ("csn_ir_r50", {}),
    ("csn_ip_r50", {}),
]
# softmax of the drawn maps themselves: amplifies the rounding of float32 a thousandfold, folded or not
SHARP = [("tsm_r50", {"non_local": "gaussian"})]


def network(name, overrides):
    """A narrow network whose every parameter and running statistic is drawn from its name."""
    model = build(name, 5, width=8, **overrides).eval()
    state = {key: drawn(key, value.shape) for key, value in model.state_dict().items()}
    for key, value in state.items():
        if ".theta." in key:
            value /= 1000  # or the softmax does what is said of SHARP
    model.load_state_dict(state)
    return model


def known(name):
    return signature(MODELS[name]).parameters


@pytest.fixture(params=["fused", "plain"])
def path(request, monkeypatch):
    """oneDNN's fused convolutions, and what runs where there is no oneDNN."""
    if request.param == "fused" and not module.ONEDNN:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(module, "ONEDNN", request.param == "fused")
    return request.param


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
@torch.inference_mode()
def test_a_folded_network_agrees_with_the_one_it_was_made_from(case):
    case = load_case(case)
    model, clip = case_model(case)
    assert relative_error(folded(model)(clip), model(clip)) < max(1e-5, 3 * case["noise"])


@pytest.mark.parametrize(("name", "overrides"), NETWORKS, ids=str)
@torch.inference_mode()
def test_both_paths_agree_with_the_original_for_every_layout_and_size(path, name, overrides):
    model = network(name, overrides)
    copy, exact = folded(model), deepcopy(model).double()
    for batch, height, width in ((2, 32, 48), (1, 64, 64), (3, 40, 32)):
        clip = torch.randn(batch, 8, height, width, 3).permute(0, 4, 1, 2, 3)
        for what in ("forward", "embed", "features"):
            got, want = getattr(copy, what), getattr(exact, what)(clip.double())
            assert relative_error(getattr(model, what)(clip), want) < 1e-5
            assert relative_error(got(clip), want) < 1e-5
            assert relative_error(got(clip.contiguous()), want) < 1e-5


@pytest.mark.parametrize(("name", "overrides"), NETWORKS + SHARP, ids=str)
@torch.inference_mode()
def test_in_double_precision_there_is_no_difference_to_speak_of(name, overrides):
    model = network(name, overrides).double()
    clip = torch.randn(2, 3, 8, 32, 48).double()
    assert relative_error(folded(model)(clip), model(clip)) < 1e-10


@pytest.mark.parametrize(("name", "overrides"), SLIM, ids=str)
@torch.inference_mode()
def test_networks_with_other_layers_agree_with_the_original(path, name, overrides):
    torch.manual_seed(0)
    model = build(name, 5, **overrides).eval()
    for norm in (m for m in model.modules() if isinstance(m, _BatchNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.normal_(norm.running_mean)
    clip = torch.randn(2, 8, 64, 64, 3).permute(0, 4, 1, 2, 3)
    assert relative_error(folded(model)(clip), deepcopy(model).double()(clip.double())) < 1e-5


@pytest.mark.parametrize("name", [name for name in sorted(MODELS) if "width" in known(name)])
def test_no_norm_is_left_and_every_convolution_is_channels_last(name):
    model = build(name, 3, width=8)
    convolutions = sum(isinstance(m, nn.Conv2d | nn.Conv3d) for m in model.modules())
    copy = folded(model)
    assert not [m for m in copy.modules() if isinstance(m, _BatchNorm | nn.Conv2d | nn.Conv3d)]
    units = [m for m in copy.modules() if isinstance(m, Folded)]
    assert len(units) == convolutions
    assert all(m.weight.is_contiguous(memory_format=m.format) for m in units)
    assert not any(p.requires_grad for p in copy.parameters())


USES = {
    "copied": deepcopy,
    "pickled": lambda copy: pickle.loads(pickle.dumps(copy)),  # bytes of this very line
    "cast there and back": lambda copy: copy.double().float(),
    "filled again": lambda copy: copy if copy.load_state_dict(copy.state_dict()) else None,
}


@pytest.mark.parametrize("use", USES)
def test_a_copy_that_ran_can_be_used_as_one_that_did_not(use, path):
    """Its weights lie in oneDNN's order, which torch can neither copy nor cast nor save."""
    model = network("csn_ir_r50", {})
    copy, clip = folded(model), torch.randn(1, 3, 4, 32, 32)
    with torch.inference_mode():
        want = copy(clip)
    packed = [m.weight.is_mkldnn for m in copy.modules() if isinstance(m, Folded)]
    assert set(packed) == {path == "fused" and module.PACKS}
    used = USES[use](copy)
    assert all(tensor.layout == torch.strided for tensor in used.state_dict().values())
    with torch.inference_mode():
        assert torch.equal(used(clip), want)


@torch.inference_mode()
def test_weights_packed_for_one_size_serve_all(path):
    model = network("slowonly_r50", {})
    copy = folded(model)
    for shape in ((1, 3, 5, 32, 32), (2, 3, 8, 48, 40), (1, 3, 4, 32, 32), (1, 3, 1, 32, 32)):
        clip = torch.randn(shape)
        assert relative_error(copy(clip), model(clip)) < 1e-5


@torch.inference_mode()
def test_the_original_is_untouched_and_the_clip_too():
    model = network("slowonly_r50", {}).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = folded(model)
    clip = torch.randn(1, 3, 4, 32, 32)
    kept = clip.clone()
    first = copy(clip)
    assert torch.equal(clip, kept)
    assert torch.equal(copy(clip), first)
    assert model.training and not copy.training
    assert all(p.requires_grad for p in model.parameters())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.inference_mode()
def test_the_eps_of_the_norm_counts(path):
    conv, norm = nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4, eps=0.5)
    nn.init.constant_(norm.running_var, 0.1)
    row = nn.Sequential(conv, norm, nn.ReLU()).eval()
    clip = torch.randn(2, 3, 2, 5, 5)
    want = torch.relu(conv(clip) / 0.6**0.5)  # by hand: weight 1, bias 0, mean 0
    assert relative_error(folded(nn.Sequential(row))(clip), want) < 1e-6


@torch.inference_mode()
def test_norms_without_weights_biases_and_odd_convolutions_fold(path):
    rows = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, groups=2),
        nn.BatchNorm2d(6, affine=False),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(6),  # not behind a convolution: stays
        nn.Conv2d(6, 6, 3, padding="same", padding_mode="reflect"),  # not zeros: stays
    ).eval()
    for norm in (rows[1], rows[4]):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    copy, image = folded(rows), torch.randn(2, 4, 11, 9)
    assert relative_error(copy(image), rows(image)) < 1e-6
    assert [type(m).__name__ for m in copy] == ["Folded", "Folded", "BatchNorm2d", "Conv2d"]


def test_gradients_reach_the_clip():
    model = network("csn_ir_r50", {})
    clips = [torch.randn(1, 3, 4, 32, 32, generator=torch.manual_seed(0)).requires_grad_() for _ in range(2)]
    for net, clip in zip((model, folded(model)), clips, strict=True):
        with torch.no_grad():
            net(torch.zeros_like(clip))  # packs weights
        net(clip).square().sum().backward()
    assert relative_error(clips[1].grad, clips[0].grad) < 1e-4


@torch.inference_mode()
def test_a_folded_network_can_be_cast(path):
    model = network("slowonly_r50", {})
    clip = torch.randn(1, 3, 4, 32, 32)
    assert relative_error(folded(model).to(torch.bfloat16)(clip.bfloat16()), model(clip)) < 0.05
    assert relative_error(folded(model).double()(clip.double()), model.double()(clip.double())) < 1e-6
