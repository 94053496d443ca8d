"""The rule engine: tables are read as they look."""

import pytest
import torch

from marey.errors import WeightsError
from marey.weights import load
from marey.weights.names import Layout, table


def match(rows, names, monkeypatch):
    """What a layout of these rows makes of the names."""
    layout = Layout("theirs", frozenset(names), rows)
    monkeypatch.setattr(load, "LAYOUTS", (layout,))
    return load.recognise(dict.fromkeys(names, torch.zeros(1)))


ROWS = table("""
    [pre.]layer{s}.{b}.conv{i}.weight    stage{s}.{b}.conv{i}.conv.weight    inflate
    [pre.]bn.{p}                         norm.{p}
    fc.{p}                               -                                   classifier of something else
""")


def test_pieces_of_their_names_appear_in_ours(monkeypatch):
    found = match(ROWS, ["layer1.12.conv3.weight", "pre.bn.running_mean"], monkeypatch)
    assert found.filled == {
        "stage1.12.conv3.conv.weight": "layer1.12.conv3.weight",
        "norm.running_mean": "pre.bn.running_mean",
    }
    assert found.marks == {"stage1.12.conv3.conv.weight": "inflate"}


def test_rows_that_leave_out_say_why(monkeypatch):
    found = match(ROWS, ["fc.weight"], monkeypatch)
    assert (found.filled, found.left_out) == ({}, {"fc.weight": "classifier of something else"})


@pytest.mark.parametrize(
    "name",
    ["bn.a.b", "xbn.a", "bn.", "bn.a ", "layer1.0.conv1.weights", "layer1x0.conv1.weight", "bn.\u00e9"],
)
def test_names_that_no_row_meets_are_unknown(name, monkeypatch):
    assert match(ROWS, [name], monkeypatch).unknown == [name]


def test_names_that_two_rows_meet_are_unknown(monkeypatch):
    assert match(table("a.{x} b\na.c d"), ["a.c", "a.e"], monkeypatch).unknown == ["a.c"]


def test_two_names_for_one_of_ours_are_refused_with_both(monkeypatch):
    with pytest.raises(WeightsError, match=r"'bn.weight' and 'pre.bn.weight'.*'norm.weight'"):
        match(ROWS, ["bn.weight", "pre.bn.weight"], monkeypatch)
