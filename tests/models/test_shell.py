"""Shells have the names and shapes of the networks, and nothing else."""

import pytest
import torch

from marey.models import MODELS, build
from marey.models.shell import ShapesOnly, shell


@pytest.mark.parametrize("name", ["csn_ip_r50", "slowonly_r50", "tsm_r18", "tsn_r18"])
def test_a_shell_is_like_the_network_but_empty(name):
    real, empty = build(name, 7).state_dict(), shell(name, 7).state_dict()
    assert [*real] == [*empty]
    for key, value in empty.items():
        assert value.is_meta
        assert (value.shape, value.dtype) == (real[key].shape, real[key].dtype)


def test_what_is_left_out_changes_no_shape():
    model = shell("csn_ir_r50", 5).eval()
    clip = torch.empty(2, 3, 8, 64, 64, device="meta")
    with ShapesOnly():
        assert model(clip).shape == (2, 5)


def test_outside_of_it_weights_are_drawn_as_ever():
    for name in ("tsn_r18", next(iter(MODELS))):
        shell(name)
    assert build("tsn_r18", 5, width=8).head.weight.std() > 0
