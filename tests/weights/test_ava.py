"""Detectors' weights: MMAction2's files, recognizers' files to start from, our own.

oracles/published_ava.csv: rows of configs/detection/{ava,lfb}/metafile.yml of open-mmlab/mmaction2@v0.24.1.
"""

import csv
from pathlib import Path

import pytest
import torch

from marey.errors import UsageError, WeightsError
from marey.jobs.convert import convert
from marey.models import build
from marey.models.shell import shell
from marey.video.preprocess import Preprocess
from marey.weights.create import create_model, open_model, starting_preprocess
from marey.weights.detect import Fit, candidates, identify
from marey.weights.load import fill, load_weights, recognise
from marey.weights.native import save_checkpoint
from marey.weights.published import RELEASES
from tests.models.published import detector_table
from tests.oracles import filled, mmaction_table

ROWS = list(csv.DictReader(Path(__file__).with_name("oracles").joinpath("published_ava.csv").open()))
OURS = {release.url: release for release in RELEASES.values() if release.model.endswith("_det")}
BASE = "https://download.openmmlab.com/mmaction/"
W = {"width": 8}
FAST = {"width": 16, "beta": 4}
BOX = torch.tensor([[2.0, 3.0, 40.5, 50.0]])
PARAMETERS = {  # as counted on the original networks
    "slowonly_kinetics_pretrained_r50_4x16x1_20e_ava_rgb": 31_800_465,
    "lfb_nl_kinetics_pretrained_slowonly_r50_4x16x1_20e_ava_rgb": 31_800_465 + 4_201_472 + 512 * 81,
    "lfb_max_kinetics_pretrained_slowonly_r50_4x16x1_20e_ava_rgb": 31_800_465 + 2048 * 81,
}


def test_all_published_files_are_there():
    assert OURS.keys() == {f"{BASE}{row['file']}" for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["config"])
def test_a_release_says_what_its_row_says(row):
    release, config = OURS[f"{BASE}{row['file']}"], row["config"]
    clips = release.preprocess
    assert (release.recipe, release.dataset, release.num_classes) == (config, row["dataset"], 81)
    assert (f"{clips.frames}x{clips.interval}", release.metrics) == (row["input"], {"map": float(row["map"])})
    assert release.sha256 == row["file"][-12:-4]
    assert (clips.short_side, clips.train_short_side, clips.crop, clips.train_crop) == (
        *(256, (256, 320)),
        *(256, "random"),
    )
    assert (clips.sampling, clips.jitter, clips.flip, clips.rule, clips.mean[0], clips.std[0]) == (
        *("key", True, 0.5, "0.x"),
        *(123.675, 58.395),
    )
    told = release.overrides
    assert (told.get("time_pool") == "max") == ("temporal_max" in config)
    assert told.get("context", False) == ("context" in config)
    assert told.get("long_term") == (config.split("_")[1] if config.startswith("lfb") else None)
    assert (told.get("non_local") == "embedded_gaussian") == config.startswith("slowonly_nl")
    assert release.model == f"{'slowfast' if config.startswith('slowfast') else 'slowonly'}_r" + (
        "101_det" if "r101" in config else "50_det"
    )
    if release.model.startswith("slowfast"):
        assert (told.get("alpha", 4), told.get("lateral_kernel", 7)) == (
            (8, 5) if "4x16" in config else (4, 7)
        )
    model = shell(release.model, 81, **release.overrides)
    table = detector_table(model)
    assert len(table) == len(model.state_dict())
    counters = {name: torch.zeros((), dtype=torch.int64) for name in table if name.endswith("_tracked")}
    values = {name: torch.zeros(()).expand(shape) for name, shape in table.items()} | counters
    report = fill(model, values, recognise(values))  # into no memory
    assert (report.head, report.left_out, report.fresh) == ("loaded", {}, ())
    if config in PARAMETERS:
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[config]


def small(name="slowonly_r50_det", **settings):
    torch.manual_seed(0)
    return build(name, 7, **{**(FAST if "fast" in name else W), **settings})


def test_a_detectors_file_is_loaded_whatever_wraps_it(tmp_path):
    model = small(long_term="nl", latent=12)
    tensors = filled(detector_table(model))
    newer = {**tensors, "data_preprocessor.mean": torch.zeros(3), "data_preprocessor.std": torch.ones(3)}
    torch.save({"meta": {"epoch": 20}, "state_dict": newer}, tmp_path / "x.pth")
    report = load_weights(model, tmp_path / "x.pth")
    assert (report.source, report.loaded, report.head) == ("mmaction2", len(tensors), "loaded")
    assert report.left_out.keys() == {"data_preprocessor.mean", "data_preprocessor.std"}
    state = model.state_dict()
    fbo = "roi_head.shared_head.fbo"
    for ours, theirs in (
        ("long_term.short.weight", f"{fbo}.st_feat_conv.weight"),
        ("long_term.layers.2.value.bias", f"{fbo}.non_local_layer_2.global_conv.conv.bias"),
        ("long_term.layers.1.theta.weight", f"{fbo}.non_local_layer_1.st_feat_conv.conv.weight"),
        ("long_term.layers.1.norm.weight", f"{fbo}.non_local_layer_1.ln.weight"),
        ("head.weight", "roi_head.bbox_head.fc_cls.weight"),
    ):
        assert torch.equal(state[ours], tensors[theirs].reshape(state[ours].shape))
    report = load_weights(build("slowonly_r50_det", 5, **W, long_term="nl", latent=12), tmp_path / "x.pth")
    assert (report.head, report.fresh) == ("fresh", ("head.bias", "head.weight"))
    lacking = {name: value for name, value in tensors.items() if "lt_feat_conv.weight" not in name}
    wrong = {**tensors, "roi_head.shared_head.fbo.unknown.weight": torch.zeros(3)}
    for given in (lacking, wrong):
        with pytest.raises(WeightsError) as error:
            load_weights(model, given)
        assert error.value.code == "WEIGHTS_MISMATCH"


def test_a_detector_starts_from_a_recognizers_trunk_alone():
    tensors = filled(mmaction_table(50, width=8, time=(1, 1, 3, 3), classes=7))
    for settings in ({}, {"long_term": "nl", "latent": 12}, {"context": True}):
        model = small(**settings)
        head = model.head.weight.detach().clone()
        report = load_weights(model, tensors)
        assert report.head == "fresh"
        assert set(report.left_out.values()) == {"it classifies whole clips, the network boxes"}
        assert all(name.startswith(("head.", "long_term.")) for name in report.fresh)
        assert torch.equal(model.head.weight, head)
        assert torch.equal(model.trunk.stem.conv.weight, tensors["backbone.conv1.conv.weight"])
        assert "whole clips" in report.summary()
    with pytest.raises(WeightsError, match="classifies boxes") as error:
        load_weights(build("slowonly_r50", 7, **W), filled(detector_table(small())))
    assert error.value.code == "WEIGHTS_MISMATCH"


def saved(path, model, preprocess=None):
    save_checkpoint(
        path,
        model,
        preprocess=preprocess or model.preprocess,
        class_names=None,
        recipe={},
        metrics={},
    )
    return path


def test_a_detector_starts_from_a_checkpoint_of_its_recognizer_with_its_settings(tmp_path):
    settings = {**FAST, "alpha": 8, "lateral_kernel": 5, "dropout": 0.1}
    recognizer = create_model("slowfast_r50", 81, **settings)
    clips = Preprocess(frames=16, interval=4, mean=(114.75,) * 3, std=(57.375,) * 3)
    path = saved(tmp_path / "own.safetensors", recognizer, clips)
    model = create_model("slowfast_r50_det", weights=path, long_term="max")
    assert model.spec["overrides"] == {
        **FAST,
        "alpha": 8,
        "lateral_kernel": 5,
        "style": "pyslowfast",
        "long_term": "max",
    }
    assert (model.num_classes, model.load_report.head, model.class_names) == (81, "fresh", None)
    fed = model.preprocess
    assert (fed.frames, fed.interval, fed.mean[0], fed.short_side, fed.crop, fed.train_crop) == (
        *(16, 4, 114.75),
        *(256, 256, "random"),
    )
    assert starting_preprocess("slowfast_r50_det", path) == fed
    report = load_weights(model, path)
    assert report.head == "fresh"  # although it has as many classes
    for wrong in ("slowfast_r101_det", "slowonly_r50_det"):
        with pytest.raises(UsageError) as error:
            create_model(wrong, weights=path)
        assert error.value.code == "WEIGHTS_MODEL"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("slowonly_r50_det", {"long_term": "nl", "latent": 12, "window": 4, "per_step": 2}),
        ("slowonly_r50_det", {"context": True, "time_pool": "max"}),
        ("slowfast_r50_det", {"long_term": "avg", "window": 3, "per_step": 1, "alpha": 8}),
    ],
)
def test_a_checkpoint_brings_everything_back(tmp_path, name, settings):
    model = create_model(name, 7, **settings, **(FAST if "fast" in name else W)).eval()
    clip = torch.randn(1, 3, 8, 64, 64)
    bank = ()
    if model.long_term is not None:
        bank = (torch.randn(1, model.window * model.per_step, model.bank_channels),)
    again = open_model(saved(tmp_path / "own.safetensors", model))
    assert (again.spec, again.preprocess) == (model.spec, model.preprocess)
    with torch.inference_mode():
        assert torch.equal(model(clip, [BOX], *bank), again(clip, [BOX], *bank))


def test_a_fresh_detector_has_avas_classes_and_clips():
    with torch.device("meta"):
        for name, size in (("slowonly_r50_det", (4, 16)), ("slowfast_r50_det", (32, 2))):
            model = create_model(name)
            assert (model.num_classes, (model.preprocess.frames, model.preprocess.interval)) == (81, size)


def test_the_detector_is_found_from_the_tensors(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    tensors = filled(detector_table(small()))
    assert candidates(tensors, ["slowonly_r50_det", "slowonly_r101_det"]) == [Fit("slowonly_r50_det", W)]
    found = identify(path, tensors)
    assert (found.model, found.num_classes, found.overrides) == ("slowonly_r50_det", 7, W)
    assert found.preprocess.train_crop == "random"
    assert found.notes[0] == (
        "tensors do not show time_pool and bins and samples and aligned: time_pool=mean, bins=8, samples=0, "
        "aligned=True assumed"
    )
    long = {"long_term": "nl", "latent": 12, "long_term_layers": 3}
    found = identify(path, filled(detector_table(small(**long))))
    assert found.overrides == {**W, **long}
    assert "window=60" in found.notes[0]
    fast = filled(detector_table(small("slowfast_r50_det", lateral_kernel=5, beta=8)))
    assert candidates(fast, ["slowfast_r50_det"]) == [
        Fit("slowfast_r50_det", {"lateral_kernel": 5, "width": 16})
    ]
    with pytest.raises(UsageError) as error:
        identify(path, filled(detector_table(small(long_term="max"))))
    assert error.value.code == "MODEL_AMBIGUOUS"
    for how in ("long_term=avg", "long_term=max", "context=true"):
        assert how in error.value.message
    with pytest.raises(WeightsError) as error:
        identify(path, filled(mmaction_table(50, width=8, time=(1, 1, 3, 3))), model="slowonly_r50_det")
    assert error.value.code == "WEIGHTS_MISMATCH"


def test_a_published_file_becomes_a_checkpoint_that_gives_the_same(tmp_path):
    model = small(long_term="nl", latent=12)
    state = filled(detector_table(model))
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    told = convert(tmp_path / "x.pth", tmp_path / "x.safetensors", verify=True)
    assert (told.model, told.overrides) == ("slowonly_r50_det", {**W, "long_term": "nl", "latent": 12})
    assert told.relative == 0
    load_weights(model.eval(), state)
    again, clip = open_model(tmp_path / "x.safetensors"), torch.randn(1, 3, 4, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(clip, *model.beside(clip)), model(clip, *model.beside(clip)))
