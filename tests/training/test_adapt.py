"""Batch-norm statistics against the original's, against numpy, and that nothing else is touched."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from marey.errors import DataError, MareyError, UsageError
from marey.models import build
from marey.training.adapt import (
    kept_statistics,
    live_norms,
    measure_batch_norm,
    recompute_batch_norm,
    restore_statistics,
)
from tests.oracles import drawn_input, filled, load_case, relative_error

CASES = load_case(Path(__file__).parent / "oracles" / "precise_bn.json")


def loaded(model, salt):
    model.load_state_dict(filled({k: v.shape for k, v in model.state_dict().items()}, salt))
    return model


def one_norm():
    batches = [drawn_input([n, 3, 2, 4, 5], 400 + i) * (i + 1) + i for i, n in enumerate((2, 3, 1))]
    return loaded(nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4)), "precise"), batches


def two_norms():
    layers = OrderedDict(
        conv1=nn.Conv3d(3, 4, 3, padding=1),
        bn1=nn.BatchNorm3d(4),
        relu=nn.ReLU(),
        conv2=nn.Conv3d(4, 5, 1),
        bn2=nn.BatchNorm3d(5),
    )
    return loaded(nn.Sequential(layers), ""), [
        drawn_input([n, 3, 4, 6, 6], i) for i, n in enumerate((2, 2, 1))
    ]


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(("name", "make"), [("one_norm", one_norm), ("two_norms", two_norms)])
@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_statistics_are_those_of_the_original_whatever_the_momentum(name, make, momentum):
    model, batches = make()
    norms = [m for m in model if isinstance(m, nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = momentum
    recompute_batch_norm(model, batches)
    for key, want in CASES[name].items():
        if "running" in key:
            assert relative_error(model.state_dict()[key], want) < 1e-6, key
    assert [(norm.momentum, int(norm.num_batches_tracked)) for norm in norms] == [(momentum, 3)] * len(norms)
    if name == "two_norms":
        seen = model.eval()(batches[0]).detach().flatten()[:8]
        assert relative_error(seen, CASES[name]["eval_output_first8"]) < 1e-5


def test_mean_and_variance_are_of_all_values_at_once():
    """By numpy; a large mean, where a difference of squares in float32 would lose the variance."""
    model = nn.BatchNorm2d(2)
    batches = [drawn_input([n, 2, 3, 4], i) + 3000.0 for i, n in enumerate((1, 4, 2))]
    measured = recompute_batch_norm(model, batches)
    values = np.concatenate([b.double().numpy().transpose(1, 0, 2, 3).reshape(2, -1) for b in batches], 1)
    assert model.running_mean.numpy() == pytest.approx(values.mean(1), rel=1e-6)
    assert model.running_var.numpy() == pytest.approx(values.var(1), rel=1e-4)
    assert measured[""].values == values.shape[1] == 7 * 12


def test_the_order_of_the_batches_does_not_matter():
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        model, batches = one_norm()
        found.append(recompute_batch_norm(model, [batches[i] for i in order])["1"])
    assert relative_error(found[0].mean, found[1].mean) < 1e-12
    assert relative_error(found[0].var, found[1].var) < 1e-12


def test_processes_measure_together(monkeypatch):
    model, batches = two_norms()
    parts = [measure_batch_norm(model, part) for part in (batches[:1], batches[1:])]
    alone = measure_batch_norm(model, batches)
    monkeypatch.setattr("marey.training.adapt.gather", lambda *_: parts)
    recompute_batch_norm(model, batches[:1], fabric=object())
    for name, want in alone.items():
        assert relative_error(getattr(model, name).running_mean, want.mean) < 1e-6
        assert relative_error(getattr(model, name).running_var, want.var) < 1e-6


def test_a_norm_used_twice_counts_both_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.bn(x), self.bn(x + 10)

    model, x = Twice(), drawn_input([5, 3], 1)
    found = recompute_batch_norm(model, [x])["bn"]
    both = torch.cat([x, x + 10]).double().numpy()
    assert model.bn.running_var.numpy() == pytest.approx(both.var(0), rel=1e-5)
    assert (found.values, found.uses) == (10, 2)


def test_dropout_is_off_and_modes_come_back():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    model[2].eval()
    x = drawn_input([6, 3], 2)
    recompute_batch_norm(model, [x])
    assert model[1].running_mean.numpy() == pytest.approx(x.mean(0).numpy(), rel=1e-5)
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("options", "live"),
    [({}, 20), ({"frozen_stages": 1}, 15), ({"partial_bn": True}, 1), ({"norm_eval": True}, 0)],
)
def test_frozen_norms_are_left_alone(options, live):
    torch.manual_seed(0)
    model = build("tsm_r18", 3, segments=2, width=4, **options).eval()
    before, clip = state(model), drawn_input([2, 3, 2, 32, 32], 3)
    names = set(live_norms(model))
    assert names == set(recompute_batch_norm(model, [clip])) and len(names) == live
    after = model.state_dict()
    changed = {name.rpartition(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == names
    assert not any(module.training for module in model.modules())


def test_a_model_without_live_norms_is_not_run():
    def batches():
        raise AssertionError("a batch was asked for")
        yield

    assert recompute_batch_norm(nn.Linear(2, 2), batches()) == {}


def test_a_pass_that_breaks_off_changes_nothing():
    model, batches = two_norms()
    model.bn1.momentum = 0.3
    before = state(model)

    def broken():
        yield batches[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recompute_batch_norm(model, broken())
    assert same(before, model.state_dict())
    assert model.training and model.bn1.momentum == 0.3
    measure_batch_norm(model, batches)
    assert same(before, model.state_dict()), "measuring alone changes nothing either"


def test_stale_statistics_that_are_not_finite_are_replaced():
    model, batches = one_norm()
    model[1].running_mean.fill_(float("nan"))
    model[1].running_var.fill_(float("inf"))
    recompute_batch_norm(model, batches)
    assert relative_error(model[1].running_mean, CASES["one_norm"]["1.running_mean"]) < 1e-6


def test_no_batches_and_values_that_are_not_finite_are_refused():
    model, batches = one_norm()
    before = state(model)
    with pytest.raises(DataError) as error:
        recompute_batch_norm(model, [])
    assert error.value.code == "NO_BATCHES"
    batches[1][0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(MareyError, match="'1'") as error:
        recompute_batch_norm(model, batches)
    assert error.value.code == "STATISTICS_NOT_FINITE"
    assert same(before, model.state_dict())


def test_no_gradients_are_recorded():
    model, batches = one_norm()
    seen = []
    model[1].register_forward_hook(lambda *found: seen.append(found[2].requires_grad))
    recompute_batch_norm(model, batches)
    assert seen == [False] * 3


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_old_statistics_may_stay(share):
    model, batches = one_norm()
    before, whole = state(model), measure_batch_norm(model, batches)["1"]
    recompute_batch_norm(model, batches, share=share)
    for key, new in (("running_mean", whole.mean), ("running_var", whole.var)):
        want = (1 - share) * before[f"1.{key}"].double() + share * new
        assert relative_error(getattr(model[1], key), want) < 1e-6
    for wrong in (0.0, 1.5):
        with pytest.raises(UsageError) as error:
            recompute_batch_norm(model, batches, share=wrong)
        assert error.value.code == "ADAPT_SHARE"


def test_only_the_first_or_the_last_norms_are_measured_while_the_others_are_as_in_use():
    """The second norm behind a first one that keeps its statistics; by hand."""
    model, batches = two_norms()
    before = state(model)
    assert set(recompute_batch_norm(model, batches, which=slice(0, 1))) == {"bn1"}
    assert torch.equal(model.bn2.running_mean, before["bn2.running_mean"])
    model, batches = two_norms()
    found = recompute_batch_norm(model, batches, which=slice(-1, None))
    assert set(found) == {"bn2"} and torch.equal(model.bn1.running_var, before["bn1.running_var"])
    model.eval()
    seen = torch.cat([model.conv2(model.relu(model.bn1(model.conv1(batch)))) for batch in batches])
    values = seen.transpose(0, 1).flatten(1).double()
    assert relative_error(found["bn2"].mean, values.mean(1)) < 1e-5
    assert relative_error(found["bn2"].var, values.var(1, unbiased=False)) < 1e-5


def test_dropout_can_be_active_as_in_the_published_runs():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).eval()
    torch.manual_seed(0)
    x = torch.ones(4000, 3)
    recompute_batch_norm(model, [x], dropout=True)
    assert model[1].running_var.numpy() == pytest.approx(1.0, abs=0.05), "each value is 0 or 2"
    assert not any(m.training for m in model.modules())
    torch.manual_seed(0)
    frozen = build("tsm_r18", 3, segments=2, width=4, norm_eval=True, dropout=0.5)
    assert recompute_batch_norm(frozen, [drawn_input([2, 3, 2, 32, 32], 3)], dropout=True) == {}


def test_other_norms_are_as_in_use_also_while_dropout_is_active():
    found = []
    for dropout in (False, True):  # there is none in it
        model, batches = two_norms()
        found.append(recompute_batch_norm(model, batches, which=slice(-1, None), dropout=dropout)["bn2"])
        assert int(model.bn1.num_batches_tracked) == 0
    assert torch.equal(found[0].mean, found[1].mean) and torch.equal(found[0].var, found[1].var)


def test_statistics_of_two_domains_are_exchanged():
    model, batches = two_norms()
    source, start = kept_statistics(model), state(model)
    recompute_batch_norm(model, batches)
    target, moved = kept_statistics(model), state(model)
    assert not same(start, moved)
    restore_statistics(model, source)
    assert same(start, state(model))
    restore_statistics(model, target)
    assert same(moved, state(model))
    alone = nn.BatchNorm1d(3)
    assert set(kept_statistics(alone)) == {"running_mean", "running_var", "num_batches_tracked"}
