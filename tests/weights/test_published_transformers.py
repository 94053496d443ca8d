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
from marey.weights.create import _fitted, create_model
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


RECOGNIZERS = [r for r in RELEASES.values() if not r.model.endswith("_det") and r.source != "reskd"]
OURS = [r for r in RECOGNIZERS if r.model.startswith(FAMILIES) or r.source == "pyslowfast"]
SOURCES = {  # licence; rules of the clips by sampling; mean and standard deviation; how views are averaged
    "pyslowfast": ("Apache-2.0", {"clip": "slowfast", "uniform": "slowfast"}, 114.75, 57.375, "prob"),
    "uniformer": (
        "MIT",
        {"clip": "slowfast_offset", "uniform": "slowfast_offset"},
        114.75,
        57.375,
        "score",
    ),
    "video-swin": ("Apache-2.0", {"clip": "0.x", "uniform": "slowfast"}, 123.675, 58.395, "prob"),
    "mmaction2": ("Apache-2.0", {"clip": "0.x 1.x"}, 123.675, 58.395, "prob"),
    "torchvision": ("BSD-3-Clause", {"clip": "slowfast_offset"}, 0, 0, "prob"),
    "swin": ("MIT", {"clip": "0.x"}, 123.675, 58.395, "prob"),
}


def test_there_are_no_others_but_those_of_images_to_start_from():
    starts = {r.name for r in OURS if r.headless}
    assert {r.name for r in OURS} - starts == {release_of(row).name for row in ROWS}
    assert len(OURS) - len(starts) == len(ROWS) == 81
    assert starts == {
        "swin_tiny_patch4_window7_224",
        "swin_small_patch4_window7_224",
        "swin_base_patch4_window7_224",
        "swin_base_patch4_window7_224_22k",
        "swin_large_patch4_window7_224_22k",
        "uniformer_small_in1k",
        "uniformer_base_in1k",
    }


@pytest.mark.parametrize("release", OURS, ids=lambda release: release.name)
def test_clips_are_taken_and_shown_as_the_source_does_it(release):
    clips, plan = release.preprocess, release.preprocess.plan(release.preprocess.test)
    license, rules, mean, deviation, average = SOURCES[release.source]
    large = release.name.startswith("MViTv2_L")
    if large:  # as networks of ImageNet-21K
        mean, deviation = SOURCES["swin"][2:4]
    assert (release.license, clips.average) == (license, average)
    moving = clips.rule
    if release.source == "pyslowfast" and release.model.startswith("mvit") and clips.sampling == "clip":
        assert moving == "slowfast_offset"  # its configurations set USE_OFFSET_SAMPLING
    else:
        assert moving in rules[clips.sampling].split()
    if mean:
        assert (clips.mean[0], clips.std[0]) == (mean, deviation)
    bgr = release.source == "uniformer" and "Something" in release.dataset
    assert clips.channel_order == ("bgr" if bgr else "rgb")
    sparse = "Something" in release.dataset and release.source != "mmaction2"
    assert (clips.sampling == "uniform") == sparse
    assert clips.flip == (0.0 if sparse else 0.5)
    rated = release.source in ("pyslowfast", "torchvision") and not sparse
    assert clips.target_fps == (30.0 if rated else None)
    sides = {"slowfast": 256, "slowonly": 256, "mvit": 256, "uniformer": 224, "swin3d": 224}
    if large:
        assert (plan.short_side, plan.crop) == (312, 312)
    elif release.source == "torchvision":
        assert (plan.short_side, plan.crop) == (256, 224)
    elif sparse and not release.model.startswith("slowfast"):
        assert (plan.short_side, plan.crop) == (224, 224)
    else:
        crop = 256 if release.model.startswith("slow") else 224
        assert (plan.short_side, plan.crop) == (sides[release.model.partition("_")[0]], crop)


def test_torchvision_s_clips_have_its_rates():
    """Frames 15, and of MViT 7.5, per second, whatever the video's rate."""
    for name, frames, rate in (("swin3d_t-7615ae03", 32, 15), ("mvit_v2_s-ae3be167", 16, 7.5)):
        clips = RELEASES[name].preprocess
        for fps in (30.0, 25.0):
            chosen = clips.pick_test(1000, clips.test, fps)
            assert (chosen[:, -1] - chosen[:, 0]).tolist() == pytest.approx(
                [(frames - 1) * fps / rate] * len(chosen), abs=fps / rate
            )


def test_torchvision_says_the_same_of_its_files():
    from torchvision.models import video

    for weights in (
        *video.MViT_V1_B_Weights,
        *video.MViT_V2_S_Weights,
        *video.Swin3D_T_Weights,
        *video.Swin3D_S_Weights,
        *video.Swin3D_B_Weights,
    ):
        release = next(r for r in OURS if r.url == weights.url)
        given, clips = weights.transforms.keywords, release.preprocess
        accuracies = weights.meta["_metrics"]["Kinetics-400"]
        assert (release.top1, release.top5) == (accuracies["acc@1"], accuracies["acc@5"])
        assert (clips.crop, clips.plan(clips.test).short_side) == (
            given["crop_size"][0],
            given["resize_size"][0],
        )
        for ours, theirs in ((clips.mean, given["mean"]), (clips.std, given["std"])):
            assert [value / 255 for value in ours] == pytest.approx(list(theirs), abs=1e-5)
        assert list(release.class_names) == weights.meta["categories"]


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
        assert (clips.sampling, clips.frames) == ("uniform", frames)
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
    large = create_model("mvit_b_16x4", 5, frames=8, crop=320, depth=2, starts=(1,), channels=8).preprocess
    assert (large.crop, large.plan(large.test).short_side) == (320, 366)  # as 224 of 256
    sparse = _fitted(RELEASES["MViTv2_S_16x4_ssv2_f308341823"].preprocess, 8, 112)
    plan = sparse.plan(sparse.test)
    assert (sparse.train_short_side, plan.short_side, plan.crop) == ((128, 160), 112, 112)
    assert create_model("mvit_v2_b", 5, depth=2, starts=(1,), channels=8).preprocess.frames == 32
