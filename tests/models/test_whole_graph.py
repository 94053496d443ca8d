"""Networks are one graph to torch.compile, and what a compiler sees leaves no trace in them."""

import pytest
import torch

from marey.models import build
from tests.models.small import SLIM
from tests.oracles import relative_error

FAMILIES = [case for case in SLIM if case[0] != "slowfast_r101_alphaction"]  # is slowfast_r50, longer


@pytest.mark.parametrize(("name", "overrides"), FAMILIES, ids=str)
def test_a_compiled_network_is_one_graph_and_gives_the_same(name, overrides):
    torch.manual_seed(0)
    model = build(name, 5, **overrides).eval()
    clip = torch.randn(1, 3, 8, 64, 64)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        first, plain = compiled(clip), model(clip)
    assert relative_error(first, plain) < 1e-5
    logits = model(clip)  # with gradients, after tracing and inference
    logits.sum().backward()
    assert relative_error(logits.detach(), plain) < 1e-5
