"""The network of a file, found from what the original projects would have written."""

import hashlib

import pytest
import torch

from marey.errors import UsageError, WeightsError
from marey.models import MODELS, build
from marey.weights.detect import Fit, candidates, identify
from marey.weights.published import RELEASES
from tests.oracles import (
    ALL_BLOCKS,
    ZOO_NON_LOCAL,
    filled,
    mmaction_table,
    r2plus1d_table,
    torchvision_table,
    videoresnet_name,
)
from tests.weights.files import tiny

EVERY_SECOND = tuple((s, b) for s, n in enumerate((3, 4, 23, 3), 1) for b in range(0, n, 2))
BASIC = tuple((s, b) for s in (1, 2, 3, 4) for b in (0, 1))
RESIDUAL = [name for name in MODELS if name.startswith(("csn", "r2plus1d", "slowonly", "tsm", "tsn"))]
W = {"width": 8}
CASES = {
    "TSN": (mmaction_table(50, width=8), [Fit("tsn_r50", W)]),
    "TSN-34": (mmaction_table(34, width=8), [Fit("tsn_r34", W)]),
    "TSM": (mmaction_table(50, width=8, shifted=ALL_BLOCKS), [Fit("tsm_r50", W)]),
    "TSM-18": (mmaction_table(18, width=8, shifted=BASIC), [Fit("tsm_r18", W)]),
    "TSM-101": (mmaction_table(101, width=8, shifted=EVERY_SECOND), [Fit("tsm_r101", W)]),
    "TSM-101, all shifted": (
        mmaction_table(
            101, width=8, shifted=[(s, b) for s, n in enumerate((3, 4, 23, 3), 1) for b in range(n)]
        ),
        [],
    ),
    "TSM, pooled": (
        mmaction_table(50, width=8, shifted=ALL_BLOCKS, pooled=True),
        [Fit("tsm_r50", {"temporal_pool": True, **W})],
    ),
    "TSM, attending": (
        mmaction_table(50, width=8, shifted=ALL_BLOCKS, non_local=ZOO_NON_LOCAL),
        [Fit("tsm_r50", {"non_local": mode, **W}) for mode in ("embedded_gaussian", "dot_product")],
    ),
    "TSM, gaussian": (
        mmaction_table(50, width=8, shifted=ALL_BLOCKS, non_local=ZOO_NON_LOCAL, mode="gaussian"),
        [Fit("tsm_r50", {"non_local": "gaussian", **W})],
    ),
    "TSM, attending to all positions": (
        mmaction_table(
            50, width=8, shifted=ALL_BLOCKS, non_local=ZOO_NON_LOCAL, mode="gaussian", sub_sample=False
        ),
        [Fit("tsm_r50", {"non_local_sub_sample": False, "non_local": "gaussian", **W})],
    ),
    "SlowOnly": (mmaction_table(50, width=8, time=(1, 1, 3, 3)), [Fit("slowonly_r50", W)]),
    "SlowOnly, attending elsewhere": (
        mmaction_table(50, width=8, time=(1, 1, 3, 3), non_local=[(1, 1), (3, 5)], mode="gaussian"),
        [Fit("slowonly_r50", {"non_local_blocks": ((1,), (), (5,), ()), "non_local": "gaussian", **W})],
    ),
    "CSN ir": (mmaction_table(50, width=8, csn="ir"), [Fit("csn_ir_r50", W)]),
    "CSN ip": (mmaction_table(101, width=8, csn="ip"), [Fit("csn_ip_r101", W)]),
    "VMZ's CSN": (
        {videoresnet_name(n, "ip"): s for n, s in mmaction_table(50, width=8, csn="ip").items()},
        [Fit("csn_ip_r50", W)],
    ),
    "VMZ's R(2+1)D": (r2plus1d_table(34), [Fit("r2plus1d_r34", {})]),
    "I3D, which is not here": (mmaction_table(50, width=8, time=(3, 3, 3, 3)), []),
}


@pytest.mark.parametrize("case", CASES)
def test_the_network_is_found_from_the_tensors(case):
    table, want = CASES[case]
    names = None if case == "TSN" else RESIDUAL  # the others take time to build, and never fit
    assert candidates(filled(table), names or MODELS) == want


def test_the_class_count_is_the_files(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    found = identify(path, tiny(classes=51))
    assert (found.model, found.num_classes, found.overrides, found.release) == ("tsn_r18", 51, W, None)
    assert found.class_names is None
    assert found.preprocess.sampling == "segments"


def test_what_tensors_do_not_show_is_told(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    found = identify(path, tiny(shifted=BASIC))
    assert found.model == "tsm_r18"
    assert found.notes[0] == "tensors do not show segments and shift_div: segments=8, shift_div=8 assumed"
    assert "preprocessing as of tsm assumed" in found.notes[1]
    found = identify(path, tiny(shifted=BASIC), overrides={"segments": 16})
    assert found.overrides == {"width": 8, "segments": 16}
    assert found.preprocess.frames == 16
    assert "segments" not in found.notes[0]


def test_where_several_come_into_question_all_are_named_and_one_can_be_told(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    tensors = filled(CASES["TSM, attending"][0])
    with pytest.raises(UsageError) as error:
        identify(path, tensors)
    assert error.value.code == "MODEL_AMBIGUOUS"
    for mode in ("embedded_gaussian", "dot_product"):
        assert f"tsm_r50 non_local={mode} width=8" in error.value.message
    found = identify(path, tensors, model="tsm_r50", overrides={"non_local": "dot_product"})
    assert found.overrides == {"non_local": "dot_product", "width": 8}
    like = "tsm_nl_dot_product_r50_1x1x8_50e_kinetics400_rgb"
    found = identify(path, tensors, model=like, overrides=W)
    assert found.overrides == {"segments": 8, "non_local": "dot_product", "width": 8}
    assert found.release is None
    assert found.class_names[0] == "abseiling"
    assert found.notes == (f"preprocessing and class names as of {like}_20200724-d8ad84d2, as it was told",)


def test_own_names_without_a_card_may_be_of_two_networks(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="tsm_r18 width=8 and tsn_r18 width=8"):
        identify(path, build("tsn_r18", 5, width=8).state_dict())


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        (filled(torchvision_table(18)), "WEIGHTS_MISMATCH"),  # of pictures: no classifier for videos
        ({k: v for k, v in tiny().items() if "cls_head" not in k}, "WEIGHTS_MISMATCH"),
        ({"weight": torch.zeros(3, 3)}, "WEIGHTS_MISMATCH"),
        (filled(CASES["I3D, which is not here"][0]), "WEIGHTS_LAYOUT"),
        ({k: v for k, v in tiny().items() if "layer2.0" not in k}, "WEIGHTS_LAYOUT"),
    ],
)
def test_what_is_no_network_for_videos_is_refused(tmp_path, tensors, code):
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    with pytest.raises(WeightsError) as error:
        identify(path, tensors)
    assert error.value.code == code


def test_a_named_network_that_does_not_fit_says_why(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match="shifted in time"):
        identify(path, tiny(), model="tsm_r18", overrides=W)
    with pytest.raises(UsageError, match="did you mean tsn_r18"):
        identify(path, tiny(), model="tsn_r19")


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A release of ours: its file, its tensors."""
    tensors = tiny(shifted=BASIC)
    torch.save({"state_dict": tensors}, tmp_path / "tiny_20260101-00000000.pth")
    digest = hashlib.sha256((tmp_path / "tiny_20260101-00000000.pth").read_bytes()).hexdigest()
    like = RELEASES["tsm_r50_256p_1x1x16_50e_kinetics400_rgb_20201010-85645c2a"]
    arguments = {"model": "tsm_r18", "overrides": {"segments": 16, **W}, "sha256": digest[:8]}
    entry = type(like)(
        **{name: getattr(like, name) for name in like.__struct_fields__ if name not in arguments}, **arguments
    )
    monkeypatch.setitem(RELEASES, "tiny_20260101-00000000", entry)
    return tmp_path / "tiny_20260101-00000000.pth", tensors


def test_a_release_is_known_by_its_hash_whatever_its_name(release):
    path, tensors = release
    found = identify(path.rename(path.with_name("renamed.bin")), tensors)
    assert found.release == "tiny_20260101-00000000"
    assert found.overrides == {"segments": 16, "width": 8}
    assert (found.preprocess.frames, found.notes, len(found.class_names)) == (16, (), 400)


def test_a_changed_file_under_a_releases_name_is_taken_as_such_and_told(release):
    path, tensors = release
    path.write_bytes(b"saved anew")
    found = identify(path, tensors)
    assert found.overrides["segments"] == 16
    assert "changed, or saved anew" in found.notes[0]


def test_a_release_of_another_network_than_was_told_does_not_count(release):
    path, tensors = release
    with pytest.raises(WeightsError, match="shifted"):
        identify(path, tensors, model="tsn_r18", overrides=W)
