"""Batch norms in parts: agreement with PySlowFast's sub-batch norms, and with ordinary norms on each part."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from marey.errors import UsageError
from marey.models import build
from marey.models.fold import folded
from marey.models.recompute import recompute_blocks
from marey.models.split_norm import SplitBatchNorm3d, part_statistics, split_batch_norms
from marey.training.adapt import recompute_batch_norm
from tests.oracles import drawn_input, relative_error

# facebookresearch/SlowFast as in Andy1621/Nightcrawler@259fa5b9:slowfast/models/batchnorm_helper.py: a fresh
# SubBatchNorm3d of 2 splits in training mode on 2 * drawn_input([4, 3, 2, 3, 3], 500) + 1
FIRST = [-0.15214643, 0.35399413, 0.83401573, 1.9861343, 0.015592823, -0.5079605, -1.7443653, 0.16504166]
MEANS = [0.0572400502861, 0.133251547813, 0.114681139588, 0.142961919308, 0.115362085402, 0.125523298979]
VARIANCES = [1.37549352646, 1.19341254234, 1.25280749798, 1.35393941402, 1.19449353218, 1.32916939259]
MEAN = [0.10010098666, 0.124306812882, 0.120102219284]
VARIANCE = [1.366553545, 1.1940330267, 1.29101788998]


def split(norm, parts):
    model = nn.Sequential(norm)
    split_batch_norms(model, parts)
    return model[0]


def test_parts_and_what_they_come_to_are_those_of_the_original():
    norm = split(nn.BatchNorm3d(3), 2)
    y = norm(2 * drawn_input([4, 3, 2, 3, 3], 500) + 1)
    assert relative_error(y.detach().flatten()[:8], FIRST) < 1e-6
    assert y.mean().item() == pytest.approx(0, abs=1e-6)
    assert y.std(correction=0).item() == pytest.approx(0.9999986, abs=1e-6)
    assert relative_error(norm.part_means.flatten(), MEANS) < 1e-6
    assert relative_error(norm.part_variances.flatten(), VARIANCES) < 1e-6
    assert relative_error(norm.running_mean, MEAN) < 1e-6
    assert relative_error(norm.running_var, VARIANCE) < 1e-6


def test_each_part_is_normalised_as_a_norm_of_its_own_would_and_gradients_follow():
    torch.manual_seed(0)
    plain = nn.BatchNorm3d(4)
    nn.init.uniform_(plain.weight, 0.5, 1.5)
    norm = split(deepcopy(plain), 3)
    for clips in (6, 7, 2):  # evenly, unevenly, and fewer than parts
        x = torch.randn(clips, 4, 2, 3, 3).contiguous(memory_format=torch.channels_last_3d)
        x.requires_grad_()
        want = torch.empty(x.shape)
        for n in range(min(clips, 3)):
            want[n::3] = plain(x[n::3])
        above = torch.randn(x.shape)
        for got, expected in zip(
            torch.autograd.grad(norm(x), [x, *norm.parameters()], above),
            torch.autograd.grad(want, [x, *plain.parameters()], above),
            strict=True,
        ):
            assert torch.allclose(got, expected, atol=1e-5)
    norm.eval()
    same = nn.BatchNorm3d(4).eval()
    same.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), same(x))


def test_a_network_keeps_its_tensors_and_differs_in_training_only():
    torch.manual_seed(0)
    model = build("slowonly_r50", 3, width=8, dropout=0.0)
    parted = deepcopy(model)
    split_batch_norms(parted, 2)
    assert parted.state_dict().keys() == model.state_dict().keys()
    assert len(part_statistics(parted)) == 2 * sum(isinstance(m, SplitBatchNorm3d) for m in parted.modules())
    clip = torch.randn(4, 3, 4, 32, 32)
    assert torch.equal(parted.eval()(clip), model.eval()(clip))
    assert relative_error(parted.train()(clip).detach(), model.train()(clip).detach()) > 1e-3
    with torch.no_grad():
        assert relative_error(folded(parted)(clip), parted.eval()(clip)) < 1e-5


def test_blocks_that_run_again_enter_their_clips_once():
    torch.manual_seed(0)
    model = build("slowonly_r50", 3, width=8, dropout=0.0)
    split_batch_norms(model, 2)
    again = deepcopy(model)
    recompute_blocks(again)
    clip = torch.randn(4, 3, 4, 32, 32)
    for network in (model, again):
        network(clip).sum().backward()
    assert torch.equal(again.head.weight.grad, model.head.weight.grad)
    for one, other in zip(again.buffers(), model.buffers(), strict=True):
        assert torch.equal(one, other)


def test_measured_anew_they_hold_the_statistics_of_all_values():
    torch.manual_seed(0)
    plain = nn.BatchNorm3d(3)
    model = nn.Sequential(deepcopy(plain))
    split_batch_norms(model, 2)
    batches = [3 * torch.randn(n, 3, 2, 3, 3) + n for n in (4, 3, 1)]
    before = {name: value.clone() for name, value in part_statistics(model).items()}
    recompute_batch_norm(model, batches)
    values = torch.cat(batches).transpose(0, 1).flatten(1)
    assert torch.allclose(model[0].running_mean, values.mean(1), atol=1e-5)
    assert torch.allclose(model[0].running_var, values.var(1, correction=0), atol=1e-4)
    assert int(model[0].num_batches_tracked) == 3
    assert all(torch.equal(value, before[name]) for name, value in part_statistics(model).items())


@pytest.mark.parametrize("name", ["tsn_r18", "swin3d_t"])
def test_networks_without_3d_norms_are_refused(name):
    with torch.device("meta"):
        model = build(name, 3)
    with pytest.raises(UsageError) as error:
        split_batch_norms(model, 2)
    assert error.value.code == "BAD_VALUE"
