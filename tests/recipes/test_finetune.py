"""Recipes for own videos take from the weights what belongs to the network, and nothing of their data."""

import pytest
import torch

from marey.models import build
from marey.recipes.finetune import finetune, scratch
from marey.weights.published import RELEASES
from tests.weights.files import tiny


def started_from(name, tmp_path, model):
    """The recipe of a fine-tuning from a file that is called like a release."""
    torch.save({"state_dict": tiny(classes=5)}, tmp_path / f"{name}.pth")
    return finetune(model, str(tmp_path / f"{name}.pth")).clips


def test_label_pairs_of_the_weights_data_are_forgotten(tmp_path):
    name = "tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_sthv2-rgb_20230317-be0fc26e"
    clips = started_from(name, tmp_path, "tsm_r50")
    assert RELEASES[name].preprocess.flip_labels
    assert (clips.flip_labels, clips.flip, clips.frames) == ((), 0.5, 8)


def test_videos_are_resized_where_the_source_had_them_resized_beforehand(tmp_path):
    name = "tsn_r50_video_1x1x8_100e_kinetics600_rgb_20201015-4db3c461"
    clips = started_from(name, tmp_path, "tsn_r50")
    assert RELEASES[name].preprocess.short_side is None
    assert clips.plan(clips.val).short_side == clips.plan(clips.test).crop == clips.short_side == 256


@pytest.mark.parametrize("recipe", [finetune, scratch])
@pytest.mark.parametrize("name", ["mvit_b_16x4", "mvit_v2_b"])
def test_a_network_for_one_size_is_trained_and_tested_at_it(recipe, name):
    made = recipe(name)
    with torch.device("meta"):
        network = build(name, 5, **made.model.options)
    frames, height, width = network.clip_size
    clips = made.clips
    assert (clips.frames, clips.crop, clips.crop) == (frames, height, width)
    for protocol in (clips.val, clips.test):
        assert clips.plan(protocol).crop == height


@pytest.mark.parametrize("name", ["slowfast_r50", "uniformer_s", "swin3d_t", "tsm_r50"])
def test_from_scratch_pictures_are_small_whatever_the_family_is_trained_on(name):
    clips = scratch(name).clips
    assert (clips.short_side, clips.train_short_side, clips.crop) == (112, None, 96)
