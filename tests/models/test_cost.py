"""Multiply-adds and parameters, against figures that were measured on the original networks."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from marey.models import build
from marey.models.cost import macs, parameters
from marey.models.nonlocal_ import NonLocal
from marey.models.shell import ShapesOnly, shell

# model, frames, crop: GMACs; counted by shape on the original code, 400 classes
MEASURED = {
    ("csn_ir_r50", 32, 224): 42.309,
    ("csn_ir_r50", 32, 256): 55.260,
    ("csn_ip_r50", 32, 224): 47.652,
    ("csn_ip_r50", 32, 256): 62.239,
    ("csn_ir_r101", 32, 224): 56.468,
    ("csn_ir_r101", 32, 256): 73.754,
    ("csn_ip_r101", 32, 224): 63.559,
    ("csn_ip_r101", 32, 256): 83.015,
    ("csn_ir_r152", 32, 224): 74.046,
    ("csn_ir_r152", 32, 256): 96.713,
    ("csn_ip_r152", 32, 224): 83.295,
    ("csn_ip_r152", 32, 256): 108.793,
    ("slowonly_r50", 4, 224): 20.871,
    ("slowonly_r50", 4, 256): 27.260,
    ("slowonly_r50", 8, 224): 41.741,
    ("slowonly_r50", 8, 256): 54.518,
    ("slowonly_r101", 8, 224): 85.414,
    ("slowonly_r101", 8, 256): 111.561,
    ("tsn_r50", 1, 224): 4.088,
    ("tsn_r50", 3, 224): 12.262,
    ("tsn_r50", 8, 224): 32.698,
    ("tsn_r50", 25, 224): 102.179,
    ("tsn_r101", 1, 224): 7.800,
    ("tsn_r101", 8, 224): 62.396,
    ("tsn_r101", 25, 224): 194.985,
    ("tsn_r152", 1, 224): 11.512,
    ("tsn_r152", 8, 224): 92.093,
    ("tsn_r152", 25, 224): 287.790,
    ("tsm_r50", 8, 224): 32.704,
    ("tsm_r50", 16, 224): 65.407,
    ("tsm_r101", 8, 224): 62.401,
}
# model: parameters, and those that are not of batch norms
SIZES = {
    "csn_ir_r50": (13_131_152, 13_078_032),
    "csn_ip_r50": (14_396_176, 14_335_504),
    "csn_ir_r101": (22_213_776, 22_108_432),
    "csn_ip_r101": (24_601_616, 24_480_016),
    "csn_ir_r152": (29_703_568, 29_552_144),
    "csn_ip_r152": (33_016_592, 32_841_232),
    "slowonly_r50": (32_454_096, 32_400_976),
    "slowonly_r101": (60_359_120, 60_253_776),
    "tsn_r50": (24_327_632, 24_274_512),
    "tsn_r101": (43_319_760, 43_214_416),
    "tsn_r152": (58_963_408, 58_811_984),
    "tsm_r50": (24_327_632, 24_274_512),
    "tsm_r101": (43_319_760, 43_214_416),
}


@pytest.mark.parametrize(("name", "frames", "crop"), MEASURED)
def test_multiply_adds_are_those_of_the_original_to_the_last_digit(name, frames, crop):
    model = shell(name, **({"segments": frames} if name.startswith("ts") else {}))
    assert f"{macs(model, (3, frames, crop, crop)) / 1e9:.3f}" == f"{MEASURED[name, frames, crop]:.3f}"


RESKD = json.loads((Path(__file__).parent / "oracles" / "cost" / "reskd.json").read_text())
OURS = {  # network -> our name, and the classes its parameters count
    **{f"TSN ResNet-{depth}": (f"tsn_r{depth}", 200) for depth in (18, 34, 50, 101, 152)},
    "TSM ResNet-50": ("tsm_r50", 174),
    "SlowOnly ResNet-50": ("slowonly_r50", 400),
    **{f"Video Swin-{size}": (f"swin3d_{size.lower()}", 400) for size in "TSB"},
}


@pytest.fixture(scope="module")
def shells():
    """Every network of ResKD once."""
    made = {}
    for network, frames in {(row[0], row[2]) for row in RESKD["rows"]}:
        name, classes = OURS[network]
        made[network] = shell(name, classes, **({"segments": frames} if name.startswith("ts") else {}))
    return made


@pytest.mark.parametrize("row", RESKD["rows"], ids=lambda row: f"{row[0]} {row[1]}")
def test_cost_parameters_and_maps_are_reskds_at_every_resolution(shells, row):
    network, side, frames, gmacs, mparams, feature = row
    model = shells[network]
    digits = len(str(gmacs).partition(".")[2])
    found = macs(model, (3, frames, side, side))
    if network.startswith("TSM"):  # it classifies each frame; ResKD counts one classification of their mean
        found -= (frames - 1) * 2048 * 174
    assert found / 1e9 == pytest.approx(gmacs, abs=0.51 * 10**-digits)
    assert f"{parameters(model) / 1e6:.3f}" == f"{mparams:.3f}"
    if network in ("Video Swin-B", "Video Swin-S"):  # slow; the maps of Swin-T have the same sides
        return
    clip = torch.empty((1, 3, frames, side, side), device="meta")
    with torch.no_grad(), ShapesOnly():
        shape = model.eval().features(clip).shape
    of_frames = [shape[1], *shape[-2:]] if len(feature) == 3 else shape[1:]
    assert list(of_frames) == feature


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_those_of_the_original(name):
    model = shell(name)
    norms = sum(parameters(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d))
    assert (parameters(model), parameters(model) - norms) == SIZES[name]


def test_layers_count_as_worked_out_by_hand():
    model = nn.Sequential(nn.Conv3d(4, 6, 3, padding=1, groups=2), nn.BatchNorm3d(6), nn.ReLU())
    assert macs(model, (4, 2, 5, 5)) == 2 * 5 * 5 * 6 * 2 * 27  # 2 channels see each of 6 filters
    assert macs(nn.Linear(7, 3), (7,)) == 21
    assert macs(nn.Linear(7, 3), (5, 7)) == 105


class Attention(nn.Module):
    """No layer at all: products in the code."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused

    def forward(self, x):
        if self.fused:
            return F.scaled_dot_product_attention(x, x, x)
        return torch.softmax(x @ x.transpose(-1, -2), -1) @ x


@pytest.mark.parametrize("fused", [True, False])
def test_products_outside_of_layers_count(fused):
    assert macs(Attention(fused), (3, 10, 8)) == 3 * (10 * 10 * 8) * 2


def test_a_non_local_block_counts_as_worked_out_by_hand():
    positions, keys, inner = 2 * 4 * 4, 2 * 2 * 2, 4
    layers = 4 * positions * 8 * inner  # theta, phi, g and out
    assert macs(NonLocal(8, "embedded_gaussian"), (8, 2, 4, 4)) == layers + 2 * positions * keys * inner
    # without a softmax, keys and values are multiplied first
    products = keys * inner**2 + positions * inner**2
    assert macs(NonLocal(8, "dot_product"), (8, 2, 4, 4)) == layers + products


def test_the_network_stays_as_it_was():
    model = build("tsm_r18", 5, segments=2, width=8, norm_eval=True)
    model.trunk.stage2.eval()
    modes = [module.training for module in model.modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    assert macs(model, (3, 2, 32, 32)) > 0
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, values[name])
    with pytest.raises(RuntimeError):
        macs(model, (5, 2, 32, 32))
    assert [module.training for module in model.modules()] == modes


def test_a_detector_counts_with_one_box_as_worked_out_by_hand():
    """Stage 4 at twice the height and width; one box attends to 3 x 2 slots in two layers; five classes."""
    side, width, latent, slots = 64, 8, 12, 6
    settings = {"width": width, "long_term": "nl", "latent": latent, "window": 3, "per_step": 2}
    middle, after = 8 * width, 32 * width
    first = 9 * middle**2 + middle * after + 16 * width * after  # conv1 has the larger map in both
    more = 3 * after * middle + 9 * middle**2 + middle * after  # the second and third block
    small, large = 2 * 4, 2 * 16  # positions of the recognizer's map and of the detector's, of 2 frames
    grown = (first + 2 * more) * (large - small)
    box = after * latent + slots * after * latent
    box += 2 * (2 * latent**2 + 2 * slots * latent**2 + 2 * slots * latent)
    head = (after + latent) * 5 - after * 5
    plain = macs(build("slowonly_r50", 5, width=width), (3, 2, side, side))
    assert macs(build("slowonly_r50_det", 5, **settings), (3, 2, side, side)) == plain + grown + box + head
