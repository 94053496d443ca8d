"""`embed` of every family: the pooled map, and what the classifier sees."""

import pytest
import torch

from marey.models import MODELS, build
from marey.models.fold import folded

CASES = [  # name, overrides, passes of 8 frames
    ("csn_ir_r50", {}, 1),
    ("csn_ip_r50", {}, 1),
    ("r2plus1d_r34", {}, 1),
    ("slowfast_r50", {}, 1),
    ("slowfast_r50", {"style": "mmaction2"}, 1),
    ("slowfast_r101_alphaction", {}, 1),
    ("slowonly_r50", {}, 1),
    ("tsn_r18", {}, 1),
    ("tsn_r50", {}, 1),
    ("tsm_r18", {"segments": 8}, 1),
    ("tsm_r18", {"segments": 4}, 2),
    ("tsm_r50", {"segments": 4, "temporal_pool": True}, 2),
    ("swin3d_t", {"channels": 12, "depths": (2, 2), "heads": (2, 3), "window": (4, 3, 3)}, 1),
    ("uniformer_s", {"depths": (1, 1, 2, 1), "channels": (8, 16, 24, 32), "head_width": 8}, 1),
]
PATHWAYS = {CASES[3][0]: (0, 1), "mmaction2": (1, 0), CASES[5][0]: (0,)}  # SlowFast's, as classified


def network(name, options):
    """A small one whose norms do something."""
    torch.manual_seed(0)
    narrow = {} if "channels" in options else {"width": 8}
    model = build(name, 5, **options, **narrow).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.head.bias)
    return model


@pytest.mark.parametrize(("name", "options", "passes"), CASES)
@torch.inference_mode()
def test_embed_is_the_pooled_map_and_the_classifiers_input(name, options, passes):
    """TSM classifies frame by frame and averages logits over a pass, which for a linear classifier is the
    same as classifying the mean of its frames."""
    model = network(name, options)
    clip = torch.randn(2, 3, 8, 64, 64)
    vectors, maps = model.embed(clip), model.features(clip)
    assert vectors.shape == (2 * passes, model.head.in_features)
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert torch.allclose(model.head(vectors), model(clip), **close)
    assert not torch.allclose(model.head(vectors[:1]), model(clip)[-1:], **close), "rows of different clips"
    if isinstance(maps, tuple):
        pathways = PATHWAYS[options.get("style", name)]
        pooled = torch.cat([maps[number].mean((2, 3, 4)) for number in pathways], 1)
        assert torch.allclose(vectors, pooled, **close)
    else:  # every pass has its share of the map's frames
        parts = [part.mean((2, 3, 4)) for part in maps.chunk(passes, dim=2)]
        assert torch.allclose(vectors, torch.stack(parts, 1).flatten(0, 1), **close)
    assert torch.allclose(folded(model).embed(clip), vectors, rtol=1e-3, atol=1e-4)


def test_every_family_is_looked_at():
    others = ("nextvlad", "mvit")  # which takes features; which has a class token, see test_mvit.py
    families = {builder.func for name, builder in MODELS.items() if not name.startswith(others)}
    missing = families - {MODELS[name].func for name, _, _ in CASES}
    assert not missing, "add a small network of each to CASES"
