"""The table of releases, and how one is found without a network."""

import re
from pathlib import Path

import pytest
import torch

from marey.errors import UsageError, WeightsError
from marey.models import build
from marey.weights import published
from marey.weights.create import create_model, open_model
from marey.weights.published import RELEASES, cache_folder, find, locate, url

TSM = "tsm_r50_1x1x8_50e_kinetics400_rgb_20200607-af7fb746"


@pytest.mark.parametrize("name", RELEASES)
def test_every_release_is_complete(name):
    release = RELEASES[name]
    with torch.device("meta"):
        model = build(release.model, 400, **release.overrides)
    assert re.fullmatch(r".*_20\d{6}-[0-9a-f]{8}", name)
    assert 60 < release.top1 < release.top5 < 100
    if hasattr(model, "segments"):
        assert release.preprocess.frames == model.segments
    clips = release.preprocess.pick_test(300, release.preprocess.test)
    if release.model.startswith("tsm"):
        assert clips.shape[1] == model.segments


def test_hashes_are_unique_and_file_addresses_are_built_from_names():
    assert len({name[-8:] for name in RELEASES}) == len(RELEASES) == 61
    base = "https://download.openmmlab.com/mmaction/"
    assert url(TSM) == f"{base}recognition/tsm/tsm_r50_1x1x8_50e_kinetics400_rgb/{TSM}.pth"
    name = "tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb_20220906-cd10898e"
    assert url(name) == f"{base}v1.0/recognition/tsn/{name.rpartition('_')[0]}/{name}.pth"
    name = "slowonly_r101_omni_8x8x1_kinetics400_rgb_20200926-b5dbb701"
    assert url(name) == f"{base}recognition/slowonly/omni/{name}.pth"
    name = "tsn_r50_multiscalecrop_320p_1x1x3_100e_kinetics400_rgb_20200725-9922802f"
    assert url(name) == f"{base}recognition/tsn/data_benchmark/{name[:-18]}/{name}.pth"


def test_a_release_is_found_without_date_and_hash_where_that_is_enough():
    assert find(TSM) == TSM
    assert (
        find("tsm_nl_gaussian_r50_1x1x8_50e_kinetics400_rgb")
        == "tsm_nl_gaussian_r50_1x1x8_50e_kinetics400_rgb_20200816-b93fd297"
    )
    assert find("tsm_r50_1x1x8_50e_kinetics400_rgb") is None  # two files


def test_offline_the_message_names_file_address_hash_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("MAREY_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as error:
        create_model("tsm_r50", weights=TSM)
    assert error.value.code == "WEIGHTS_OFFLINE"
    for part in (f"{TSM}.pth", url(TSM), "af7fb746", str(tmp_path)):
        assert part in error.value.message


def test_a_wrong_file_in_the_cache_is_refused_by_its_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("MAREY_CACHE", str(tmp_path))
    (tmp_path / f"{TSM}.pth").write_bytes(b"something else")
    with pytest.raises(WeightsError) as error:
        open_model(TSM)
    assert error.value.code == "WEIGHTS_HASH"


def test_a_release_in_the_cache_becomes_a_network_with_all_that_belongs_to_it(tmp_path, monkeypatch):
    from hashlib import sha256

    from marey.weights.published import Release, _tsm
    from tests.oracles import filled, mmaction_table

    shifted = tuple((s, b) for s in (1, 2, 3, 4) for b in (0, 1))
    torch.save({"state_dict": filled(mmaction_table(18, width=8, shifted=shifted))}, tmp_path / "x.pth")
    name = f"tiny_20260101-{sha256((tmp_path / 'x.pth').read_bytes()).hexdigest()[:8]}"
    (tmp_path / "x.pth").rename(tmp_path / f"{name}.pth")
    release: Release = _tsm(4, "three", 70.0, 90.0, model="tsm_r18", width=8)
    monkeypatch.setitem(RELEASES, name, release)
    monkeypatch.setenv("MAREY_CACHE", str(tmp_path))
    for source in (name, "tiny", tmp_path / f"{name}.pth"):
        model = open_model(source)
        assert (model.preprocess, model.training, model.load_report.head) == (
            release.preprocess,
            False,
            "loaded",
        )
        assert (len(model.class_names), model.class_names[0], model.class_names[399]) == (
            400,
            "abseiling",
            "zumba",
        )


def test_a_name_that_is_neither_file_nor_release_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean tsm_r50_1x1x8_100e_kinetics400_rgb"):
        locate("tsm_r50_1x1x8_10e_kinetics400_rgb")


def test_paths_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plain").write_text("x")
    assert locate("plain") == Path("plain")
    assert locate("folder/absent") == Path("folder/absent")
    assert locate("absent.pth") == Path("absent.pth")


@pytest.mark.parametrize(
    ("platform", "variables", "end"),
    [
        ("linux", {"XDG_CACHE_HOME": "/c"}, "/c/marey"),
        ("linux", {}, ".cache/marey"),
        ("darwin", {}, "Library/Caches/marey"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/marey"),
        ("linux", {"MAREY_CACHE": "/own", "XDG_CACHE_HOME": "/c"}, "/own"),
    ],
)
def test_the_cache_is_where_the_platform_has_its_caches(platform, variables, end, monkeypatch):
    for name in ("MAREY_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(published.sys, "platform", platform)
    assert cache_folder().as_posix().endswith(end)
