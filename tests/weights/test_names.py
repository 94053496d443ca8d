"""The rule engine: tables are read as they look."""

import pytest

from marey.errors import WeightsError
from marey.weights.names import match, table

ROWS = table("""
    [pre.]layer{s}.{b}.conv{i}.weight    stage{s}.{b}.conv{i}.conv.weight    inflate
    [pre.]bn.{p}                         norm.{p}
    fc.{p}                               -                                   classifier of something else
""")


def test_pieces_of_their_names_appear_in_ours():
    found = match(ROWS, ["layer1.12.conv3.weight", "pre.bn.running_mean"])
    assert found.filled == {
        "stage1.12.conv3.conv.weight": "layer1.12.conv3.weight",
        "norm.running_mean": "pre.bn.running_mean",
    }
    assert found.marks == {"stage1.12.conv3.conv.weight": "inflate"}


def test_rows_that_leave_out_say_why():
    found = match(ROWS, ["fc.weight"])
    assert (found.filled, found.left_out) == ({}, {"fc.weight": "classifier of something else"})


@pytest.mark.parametrize(
    "name",
    ["bn.a.b", "xbn.a", "bn.", "bn.a ", "layer1.0.conv1.weights", "layer1x0.conv1.weight", "bn.\u00e9"],
)
def test_names_that_no_row_meets_are_unknown(name):
    assert match(ROWS, [name]).unknown == [name]


def test_names_that_two_rows_meet_are_unknown():
    assert match(table("a.{x} b\na.c d"), ["a.c", "a.e"]).unknown == ["a.c"]


def test_two_names_for_one_of_ours_are_refused_with_both():
    with pytest.raises(WeightsError, match=r"'bn.weight' and 'pre.bn.weight'.*'norm.weight'"):
        match(ROWS, ["bn.weight", "pre.bn.weight"])
