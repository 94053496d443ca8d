"""Releases of SlowFast, MViT, UniFormer and Video Swin against the tables of their sources.

oracles/published_transformers.csv: rows of the READMEs and model zoos of facebookresearch/SlowFast@287ec007,
Sense-X/UniFormer@52a0415e, SwinTransformer/Video-Swin-Transformer@db018fb8, open-mmlab/mmaction2 and
torchvision, as printed there; parameters (1e6) were counted on their networks.
"""

import csv
from pathlib import Path

import pytest
import torch

from marey.models import build
from marey.weights.create import create_model
from marey.weights.published import RELEASES
from tests.models.published import table_of
from tests.oracles import filled

ROWS = list(csv.DictReader(Path(__file__).with_name("oracles").joinpath("published_transformers.csv").open()))
FAMILIES = ("slowfast", "mvit", "swin3d", "uniformer")


def release_of(row):
    """The release with the row's address, or with its key where the address is a page of Google Drive."""
    place = row["location"]
    key = place.partition("/d/")[2].partition("/")[0] if "drive.google" in place else place
    found = [release for release in RELEASES.values() if key in release.url]
    assert len(found) == 1
    return found[0]


def test_there_are_no_others():
    ours = [r for r in RELEASES.values() if r.model.startswith(FAMILIES) or r.source == "pyslowfast"]
    assert {r.name for r in ours} == {release_of(row).name for row in ROWS}
    assert len(ours) == len(ROWS) == 77


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["location"][-40:])
def test_a_release_says_what_its_row_says(row):
    release = release_of(row)
    assert release.dataset == row["dataset"]
    assert release.num_classes == int(row["classes"])
    assert (release.top1, release.top5) == tuple(float(row[k]) if row[k] else None for k in ("top1", "top5"))
    clips = release.preprocess
    plan = clips.plan(clips.test)
    sampling = row["sampling"]
    if "spars" in sampling or "uniform" in sampling or release.name.startswith("SLOWFAST_16x8"):
        frames, dense = int(sampling.split()[0].partition("x")[0]), False
    else:
        frames, dense = map(int, sampling.split()[0].split("x")), True
    if release.model.startswith("slowfast"):  # frames and interval of the slow pathway
        alpha = release.overrides.get("alpha", 4)
        length, interval = map(int, sampling.split("x"))
        assert clips.frames == length * alpha
        if clips.sampling == "clip":
            assert clips.interval * alpha == interval
    elif dense:
        assert (clips.sampling, clips.frames, clips.interval) == ("clip", *frames)
    else:
        assert (clips.sampling, clips.frames) == ("segments", frames)
    if row["crops_x_views"] and "16x8x1_22e" not in release.name:  # whose config says one crop
        crops, views = map(int, row["crops_x_views"].split("x"))
        assert {"center": 1, "three": 3}[plan.crops] == crops
        assert clips.pick_test(1000, clips.test).shape == (views, clips.frames)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row["params_m"]], ids=lambda row: row["location"][-40:]
)
def test_a_release_builds_the_network_of_its_row(row):
    release = release_of(row)
    with torch.device("meta"):
        model = build(release.model, release.num_classes, **release.overrides)
    digits = len(row["params_m"].partition(".")[2])
    if row["name"].startswith("MViTv2 B") and row["classes"] == "174":  # its README rounds down
        digits = 0
    if row["name"] == "Video Swin-B w16":  # stated for 174 classes
        digits = 0
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        float(row["params_m"]), abs=0.51 * 10**-digits
    )


def test_classes_of_uniformer_have_the_names_that_its_classifiers_mean(tmp_path):
    small, base = RELEASES["uniformer_small_k400_16x4"], RELEASES["uniformer_base_k600_32x4"]
    assert small.class_names[0] == "riding a bike"
    assert base.class_names[0] == "feeding fish"
    for release in (small, base):
        assert len(set(release.class_names)) == release.num_classes
        assert sorted(release.label_order) == list(range(release.num_classes))
    assert RELEASES["uniformer_small_sthv2_16_prek400"].class_names is None
    torch.manual_seed(0)
    weights = filled(table_of(build("uniformer_s", 400), "uniformer"))
    torch.save(weights, tmp_path / "uniformer_small_k400_16x4.pth")
    model = create_model("uniformer_s", weights=tmp_path / "uniformer_small_k400_16x4.pth")
    assert model.class_names[0] == "riding a bike"
    assert model.preprocess.mean == (114.75,) * 3


def test_networks_for_other_clips_are_fed_these():
    model = create_model("mvit_b_16x4", 5, frames=8, crop=64, depth=2, starts=(1,), channels=8)
    assert (model.preprocess.frames, model.preprocess.crop) == (8, 64)
    assert create_model("mvit_v2_b", 5, depth=2, starts=(1,), channels=8).preprocess.frames == 32
