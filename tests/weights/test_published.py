"""The table of releases against the source's own, and how one is found without a network.

oracles/published_rows.csv: rows of the READMEs, metafiles and configs of open-mmlab/mmaction2@v0.24.1 and
@4d6c9347 for CSN, SlowOnly, TSN and TSM, as printed there.
"""

import csv
import re
from pathlib import Path

import pytest
import torch

from marey.errors import UsageError, WeightsError
from marey.models import build
from marey.weights import published
from marey.weights.create import create_model, open_model
from marey.weights.published import RELEASES, cache_folder, cached, checksum, find, locate, url

IMAGENET = "123.675 116.28 103.53", "58.395 57.12 57.375"
TSM = "tsm_r50_1x1x8_50e_kinetics400_rgb_20200607-af7fb746"


ROWS = list(csv.DictReader(Path(__file__).with_name("oracles").joinpath("published_rows.csv").open()))
BASE = "https://download.openmmlab.com/mmaction/"
OTHER_BACKBONES = ("ResNeXt", "ResNext", "Dense", "Swin", "MobileNet", "MobileOne")
OTHER_HASH = "slowonly_r50-in1k-pre-nl-embedded-gaussian_8xb16-8x8x1-steplr-150e_kinetics400-rgb"
BY_ADDRESS = {release.url: release for release in RELEASES.values()}
FILES = [
    (row, place, file)
    for row in ROWS
    for place, file in enumerate(row["weights"].split())
    if not row["backbone"].startswith(OTHER_BACKBONES) and row["config"] != OTHER_HASH
]

each_file = pytest.mark.parametrize(
    ("row", "place", "file"), FILES, ids=[f"{row['config']}-{place}" for row, place, _ in FILES]
)


def test_all_published_files_are_there_but_for_those_of_other_networks():
    addresses = {f"{BASE}{file}" for _, _, file in FILES}
    ours = {release.url: release for release in RELEASES.values() if release.source == "mmaction2"}
    elsewhere = re.compile("slowfast|swin3d|.*_det$")  # in files of their own
    ours = {url: one for url, one in ours.items() if not elsewhere.match(one.model)}
    assert addresses <= ours.keys()
    assert all(ours[address].headless for address in ours.keys() - addresses)
    starts = {f"{BASE}{row['pretrained_arg']}" for row in ROWS if row["pretrained_arg"].startswith("recogn")}
    assert starts == ours.keys() - addresses
    assert (len(addresses), len(starts)) == (136, 5)


@each_file
def test_a_release_says_what_its_row_says(row, place, file):
    release = BY_ADDRESS[f"{BASE}{file}"]
    clips = release.preprocess
    how, space = row["train_sampling"], row["train_space"]
    dense, single = how.startswith("dense"), how.removeprefix("dense ").startswith("1x")
    length, interval, number = map(int, how.removeprefix("dense ").split()[0].split("x"))
    means, deviations = row["mean_std"].split(" / ") if row["mean_std"] else IMAGENET  # on the device
    cut = "area" if "RandomResizedCrop" in space else f"multiscale{re.search('fixed ([0-9]+)', space)[1]}"
    scales, gap = (*re.findall("scales ([0-9./]+) gap (.)", space), ("1/0.875/0.75/0.66", "1"))[0]
    assert release.dataset.startswith(row["dataset"])
    assert release.num_classes == int(row["num_classes"])
    assert release.sha256 == row["sha256_prefix"].split()[place]
    assert clips.sampling == ("dense" if dense else "segments" if single else "clip")
    assert (clips.frames, clips.interval) == (number if single else length, interval)
    assert clips.short_side == {"256;": 256, "128;": 128}.get(space.partition("resize short ")[2][:4])
    assert clips.crop == int(re.search("resize! ([0-9]+)x", space)[1])
    assert (clips.train_crop, clips.flip) == (cut, 0.5 if "flip 0.5" in space else 0.0)
    assert (clips.scales, clips.scale_gap) == (tuple(map(float, scales.split("/"))), int(gap))
    assert bool(clips.flip_labels) == ("label-swap" in space)
    assert (clips.mean, clips.std) == tuple(tuple(map(float, v.split())) for v in (means, deviations))
    options = {"dropout": 0.4 if row["family"] == "TSN" else 0.5, "norm_eval": False, "bn_frozen": False}
    stated = [release.overrides.get(key, value) for key, value in options.items()]
    assert stated == [float(row["dropout"]), row["norm_eval"] == "True", row["bn_frozen"] == "True"]


@each_file
def test_a_test_protocol_has_the_views_of_its_row(row, place, file):
    release = BY_ADDRESS[f"{BASE}{file}"]
    clips, plan = release.preprocess, release.preprocess.plan(release.preprocess.test)
    frames = clips.pick_test(1000, clips.test).size
    assert frames == int(row["test_clips"]) * (clips.frames if clips.sampling == "clip" else 1)
    assert {"center": 1, "three": 3, "ten": 10}[plan.crops] == int(row["test_crops"])
    assert plan.crop == int(row["test_space"].split()[-1])
    assert plan.short_side == (128 if "short 128" in row["test_space"] else 256)


@each_file
def test_published_accuracies_are_those_of_the_row(row, place, file):
    """Of a file that several rows name, one row's figures stand first, the others' are there as well."""
    release = BY_ADDRESS[f"{BASE}{file}"]
    known = [(release.top1, release.top5), *release.also.values()]
    if "efficient" in row["top1"]:  # two protocols
        first, second = (re.findall("[0-9.]+", row[key]) for key in ("top1", "top5"))
        pairs = list(zip(first, second or ["", ""], strict=True))
    else:  # one, of as many files as the row names
        pairs = [tuple(row[key].split("/")[min(place, row[key].count("/"))] for key in ("top1", "top5"))]
    for pair in pairs:
        figures = tuple(float(text) if text else None for text in pair)
        assert figures in known or figures == (73.0, 90.8) or figures == (70.6, 89.3)  # rounded elsewhere
    if match := re.search("(mean class acc|mAP)=([0-9.]+)", row["other_metrics"]):
        assert float(match[2]) in release.metrics.values()


def test_ports_of_vmz_have_the_figure_of_vmz_and_the_one_measured_anew():
    """Published 0.x (copied from VMZ) and 1.x (the same files under the zoo's protocol)."""
    table = {
        "5c933ae1": ("csn_ir_r152", (76.5, 92.1), (76.53, 92.28)),
        "b9b10241": ("csn_ir_r152", (78.2, 93.0), (78.57, 93.44)),
        "d565828d": ("csn_ip_r152", (77.8, 92.8), (77.80, 93.10)),
        "3367437a": ("csn_ip_r152", (78.8, 93.5), (79.07, 93.82)),
        "c3be9793": ("csn_ip_r152", (82.5, 95.3), (82.68, 95.69)),
    }
    for digits, (model, copied, measured) in table.items():
        release = next(r for r in RELEASES.values() if r.sha256 == digits)
        assert (release.model, (release.top1, release.top5)) == (model, copied)
        assert release.also == {"rule 1.x": measured}


NETWORKS = {(r.model, tuple(sorted(r.overrides.items()))): r for r in RELEASES.values()}


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_every_release_builds_its_network(network):
    release = NETWORKS[network]
    with torch.device("meta"):
        model = build(release.model, release.num_classes or 400, **release.overrides)
    if hasattr(model, "segments"):
        assert release.preprocess.frames == model.segments
    if release.model.startswith("tsm"):
        assert release.preprocess.pick_test(300, release.preprocess.test).shape[1] == model.segments


def test_every_release_is_complete():
    for name, release in RELEASES.items():
        assert release.name == name
        other = {"torchvision": "BSD-3-Clause", "uniformer": "MIT", "swin": "MIT"}
        assert release.license == other.get(release.source, "Apache-2.0")
        if release.class_names is not None:
            assert len(release.class_names) == release.num_classes


def test_hashes_are_unique_and_vmz_states_none():
    known = [release.sha256 for release in RELEASES.values() if release.sha256]
    assert len(set(known)) == len(known) == 141 + 29 + 15
    for name, release in RELEASES.items():
        if release.source == "vmz":
            assert url(name).startswith("https://www.dropbox.com/s/") and url(name).endswith(".pkl?dl=1")
            assert (checksum(name), cached(name).name) == (None, f"{name}.pkl")


def test_mirrors_exchange_the_labels_that_the_source_names():
    """Maps of the configurations: pulling, pushing and turning left or right; swiping and sliding."""
    pairs = {
        "Something-Something V1": ((2, 4), (30, 41), (52, 66)),
        "Something-Something V2": ((86, 87), (93, 94), (166, 167)),
        "Jester": ((0, 1), (6, 7)),
    }
    found = {r.dataset: r.preprocess.flip_labels for r in RELEASES.values() if r.preprocess.flip_labels}
    assert found == pairs


def test_imagenet_files_go_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setenv("MAREY_CACHE", str(tmp_path))
    assert url("resnet50-0676ba61") == "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert checksum("resnet50-0676ba61") == "0676ba61"
    assert cached("resnet50-0676ba61") == tmp_path / "resnet50-0676ba61.pth"


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

    from marey.weights.published import Release
    from marey.weights.releases.tsm import clips
    from tests.oracles import filled, mmaction_table

    shifted = tuple((s, b) for s in (1, 2, 3, 4) for b in (0, 1))
    torch.save({"state_dict": filled(mmaction_table(18, width=8, shifted=shifted))}, tmp_path / "x.pth")
    name = f"tiny_20260101-{sha256((tmp_path / 'x.pth').read_bytes()).hexdigest()[:8]}"
    (tmp_path / "x.pth").rename(tmp_path / f"{name}.pth")
    release = Release(model="tsm_r18", overrides={"segments": 4, "width": 8}, preprocess=clips(4))
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


def test_a_network_in_place_of_a_release_is_told_from_one():
    with pytest.raises(UsageError, match=r"is a network.*zoo --model tsm_r50") as error:
        locate("tsm_r50")
    assert error.value.code == "UNKNOWN_NAME"
