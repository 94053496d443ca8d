"""What the transformers share: dropped branches and their rates."""

import pytest
import torch

from marey.errors import UsageError
from marey.models.transformer import DropPath, drop_rates


def test_whole_samples_are_dropped_and_the_others_scaled_up():
    torch.manual_seed(0)
    x = torch.ones(4000, 3, 2)
    dropped = DropPath(0.25).train()(x)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped.amin((1, 2)), dropped.amax((1, 2)))
    assert (dropped[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_nothing_is_dropped_in_evaluation():
    x = torch.randn(5, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_rates_rise_evenly_over_all_blocks():
    rates = drop_rates(0.3, (2, 3))
    assert [len(stage) for stage in rates] == [2, 3]
    assert rates[0] + rates[1] == pytest.approx(torch.linspace(0, 0.3, 5).tolist())
    assert drop_rates(0.3, (1,)) == [[0.0]]


@pytest.mark.parametrize(("rate", "depths"), [(1.0, (2,)), (-0.1, (2,)), (0.1, (2, 0)), (0.1, ())])
def test_rates_that_are_none_are_refused(rate, depths):
    with pytest.raises(UsageError) as error:
        drop_rates(rate, depths)
    assert error.value.code == "BAD_VALUE"
