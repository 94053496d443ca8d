"""A name becomes a network with its preprocessing; weights bring theirs."""

import pytest
import torch

import marey
from marey.errors import UsageError, WeightsError
from marey.models import MODELS
from marey.weights.create import create_model, open_model
from marey.weights.published import RELEASES
from tests.oracles import filled, torchvision_table
from tests.weights.files import tiny


@pytest.mark.parametrize("name", [name for name in MODELS if name != "nextvlad"])
def test_every_model_is_made_by_its_name_with_400_classes_and_a_fitting_preprocess(name):
    with torch.device("meta"):
        model = marey.create_model(name)
        assert (model.num_classes, model.head.out_features, model.class_names) == (400, 400, None)
        assert model.spec == {"name": name, "num_classes": 400, "overrides": {}}
        side = model.preprocess.crop if name.startswith("mvit") else 64
        clip = torch.zeros(1, 3, model.preprocess.frames, side, side)
        assert model(clip).shape == (1, 400)


def test_the_network_of_features_has_the_classes_of_youtube_8m_and_no_preprocess():
    with torch.device("meta"):
        model = marey.create_model("nextvlad")
        assert (model.num_classes, model.preprocess) == (3862, None)
        assert marey.create_model("nextvlad", 7, cluster_size=4, hidden_size=16).head.out_features == 7


@pytest.mark.parametrize(
    ("name", "frames", "sampling", "views"),
    [("tsn_r50", 3, "segments", 10), ("tsm_r50", 8, "segments", 1), ("slowonly_r50", 4, "clip", 30)],
)
def test_families_are_fed_and_tested_as_published(name, frames, sampling, views):
    preprocess = create_model(name, width=8).preprocess
    assert (preprocess.frames, preprocess.sampling) == (frames, sampling)
    clips = preprocess.pick_test(300, preprocess.test)
    crops = {"center": 1, "three": 3, "ten": 10}[preprocess.test.crops]
    assert len(clips) * crops == views
    assert clips.shape[1] == (25 if name == "tsn_r50" else frames)
    assert preprocess.mean == (123.675, 116.28, 103.53)


def test_segments_reach_network_and_preprocessing():
    model = create_model("tsm_r18", 5, segments=16, width=8)
    assert (model.segments, model.preprocess.frames, model.spec["overrides"]["segments"]) == (16, 16, 16)


def test_misspelt_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean tsm_r50"):
        create_model("tsm_r5O")
    with pytest.raises(UsageError, match="did you mean segments"):
        create_model("tsm_r50", segmnets=8)
    with pytest.raises(UsageError, match="num_classes is 0"):
        create_model("tsn_r18", 0)


def test_the_class_count_comes_from_the_weights_unless_it_is_given(tmp_path):
    torch.save(tiny(classes=51), tmp_path / "file.pth")
    model = create_model("tsn_r18", weights=tmp_path / "file.pth", width=8)
    assert (model.num_classes, model.load_report.head) == (51, "loaded")
    other = create_model("tsn_r18", 6, weights=tmp_path / "file.pth", width=8)
    assert (other.num_classes, other.load_report.head) == (6, "fresh")


def test_a_2d_imagenet_file_starts_a_network(tmp_path):
    torch.save(filled(torchvision_table(18)), tmp_path / "resnet18.pth")
    model = create_model("tsm_r18", weights=tmp_path / "resnet18.pth")
    assert (model.num_classes, model.load_report.source, model.load_report.head) == (
        400,
        "torchvision",
        "fresh",
    )


def test_a_file_named_like_a_release_is_that_release(tmp_path):
    name = "tsn_r50_1x1x3_100e_kinetics400_rgb_20200614-e508be42"
    path = tmp_path / f"{name}.pth"
    path.write_bytes(b"not there yet")
    with pytest.raises(WeightsError) as error:
        open_model(path)
    assert error.value.code == "WEIGHTS_FORMAT"
    torch.save({"state_dict": tiny(classes=400)}, path)
    with pytest.raises(UsageError, match="belongs to tsn_r50, not to tsn_r18"):
        create_model("tsn_r18", weights=path, width=8)
    with pytest.raises(WeightsError, match="does not fit"):
        open_model(path)
    assert name in RELEASES


def test_of_a_file_of_others_the_network_is_found_and_what_is_assumed_is_told(tmp_path, capsys):
    torch.save(tiny(classes=7), tmp_path / "some.pth")
    model = open_model(tmp_path / "some.pth")
    assert model.spec == {"name": "tsn_r18", "num_classes": 7, "overrides": {"width": 8}}
    assert (model.load_report.head, model.training, model.class_names) == ("loaded", False, None)
    assert "some.pth: not a known release: preprocessing as of tsn assumed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["some", "ircsn_from_scratch_r50_ig65m_20210617-ce545a37"])
def test_a_file_without_classifier_does_not_predict(tmp_path, name):
    torch.save({k: v for k, v in tiny().items() if "cls_head" not in k}, tmp_path / f"{name}.pth")
    with pytest.raises(WeightsError, match="no classifier") as error:
        open_model(tmp_path / f"{name}.pth")
    assert error.value.code == "WEIGHTS_MISMATCH"
