"""ResKD's checkpoints: a teacher, a pair, and the student out of the pair."""

import pytest
import torch

from marey.errors import WeightsError
from marey.models import build
from marey.weights.create import create_model, open_model
from marey.weights.load import load_weights
from marey.weights.published import RELEASES, locate
from marey.weights.reskd import extract_student
from tests.models.published import table_of
from tests.models.small import SLIM
from tests.oracles import ALL_BLOCKS, filled, mmaction_table
from tests.weights.files import as_0x

SHIFTED = tuple((s, b) for s in (1, 2, 3, 4) for b in (0, 1))
PAIRS = {
    "tsn_r18": ({"depth": 18}, {"depth": 34}),
    "tsn_r50": ({"depth": 50}, {"depth": 152}),
    "tsm_r50": ({"depth": 50, "shifted": ALL_BLOCKS}, {"depth": 50, "shifted": ALL_BLOCKS}),
    "slowonly_r50": ({"depth": 50, "time": (1, 1, 3, 3)}, {"depth": 50, "time": (1, 1, 3, 3)}),
}


def pair(student, teacher, classes=7, *, both_heads=False):
    """A training checkpoint: the student's tensors under one prefix, the teacher's under another."""
    names = {}
    for path, table in (("low_res_path", student), ("high_res_path", teacher)):
        for name, shape in mmaction_table(**table, width=8, classes=classes).items():
            if name.startswith("backbone."):
                names[name.replace("backbone.", f"backbone.{path}.")] = shape
            elif path == "low_res_path":
                names[name] = shape
            elif both_heads:
                names[name.replace("fc_cls", "fc_cls_t")] = shape
    return filled(names)


@pytest.mark.parametrize("both_heads", [False, True], ids=["one head", "two heads"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_student_comes_out_of_a_pair_and_the_teacher_is_left_out_by_name(tmp_path, name, both_heads):
    weights = pair(*PAIRS[name], both_heads=both_heads)
    torch.save(as_0x(weights) | {"optimizer": {"state": {}, "param_groups": []}}, tmp_path / "pair.pth")
    model = create_model(name, weights=tmp_path / "pair.pth", width=8)
    report = model.load_report
    assert (report.source, report.head, report.fresh, model.num_classes) == ("reskd", "loaded", (), 7)
    assert report.loaded == len(model.state_dict())
    assert set(report.left_out) == {n for n in weights if "high_res_path" in n or "fc_cls_t" in n}
    assert set(report.left_out.values()) == {"the teacher"}
    for theirs, ours in (
        ("backbone.low_res_path.conv1.conv.weight", model.trunk.stem.conv.weight),
        ("backbone.low_res_path.layer3.1.conv2.bn.running_var", model.trunk.stage3[1].conv2.bn.running_var),
        ("cls_head.fc_cls.bias", model.head.bias),
    ):
        assert torch.equal(ours, weights[theirs])


@pytest.mark.parametrize("name", PAIRS)
@torch.inference_mode()
def test_a_student_in_a_pair_computes_what_it_computes_alone(name):
    weights = pair(*PAIRS[name])
    alone = {n.replace("low_res_path.", ""): v for n, v in weights.items() if "high_res_path" not in n}
    models = [build(name, 7, width=8).eval() for _ in range(2)]
    assert load_weights(models[0], weights).source == "reskd"
    assert load_weights(models[1], alone).source == "mmaction2"
    clip = torch.randn(1, 3, 8, 64, 64)
    assert torch.equal(models[0](clip), models[1](clip))


def test_a_teacher_alone_is_a_plain_file():
    for name, table in (
        ("tsn_r152", {"depth": 152}),
        ("tsm_r50", PAIRS["tsm_r50"][1]),
        ("slowonly_r50", PAIRS["slowonly_r50"][1]),
    ):
        weights = filled(mmaction_table(**table, width=8, classes=7))
        report = load_weights(build(name, 7, width=8), as_0x(weights))
        assert (report.source, report.loaded, report.left_out) == ("mmaction2", len(weights), {})


def test_a_shifted_student_does_not_load_into_a_network_without_shift():
    weights = pair({"depth": 18, "shifted": SHIFTED}, {"depth": 18, "shifted": SHIFTED})
    assert load_weights(build("tsm_r18", 7, width=8), weights).head == "loaded"
    with pytest.raises(WeightsError, match="shifted in time"):
        load_weights(build("tsn_r18", 7, width=8), weights)


def test_a_pair_without_a_part_of_its_student_is_refused():
    weights = pair(*PAIRS["tsn_r18"])
    del weights["backbone.low_res_path.layer2.0.downsample.conv.weight"]
    with pytest.raises(WeightsError, match=r"1 missing \(trunk.stage2.0.shortcut.conv.weight\)"):
        load_weights(build("tsn_r18", 7, width=8), weights)


SWIN = dict(SLIM)["swin3d_t"]


def swin_pair():
    """Both networks small; the teacher's classifier beside the student's."""
    plain = table_of(build("swin3d_t", 7, **SWIN), "video-swin", optional=False)
    names = {n.replace("backbone.", "backbone.low_res_path."): s for n, s in plain.items()}
    names |= {
        n.replace("backbone.", "backbone.high_res_path.").replace("fc_cls", "fc_cls_t"): s
        for n, s in plain.items()
    }
    return filled(names)


@torch.inference_mode()
def test_a_swin_pair_gives_its_student_too():
    weights = swin_pair()
    weights["backbone.low_res_path.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4)
    models = [build("swin3d_t", 7, **SWIN).eval() for _ in range(2)]
    report = load_weights(models[0], weights)
    assert (report.source, report.head, report.fresh) == ("reskd", "loaded", ())
    assert set(report.left_out.values()) == {"the teacher", "computed, not read"}
    assert load_weights(models[1], extract_student(weights)).source == "video-swin"
    clip = torch.randn(1, 3, 8, 64, 64)
    assert torch.equal(models[0](clip), models[1](clip))


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_taken_out_is_a_plain_file(name):
    weights = pair(*PAIRS[name], both_heads=True)
    plain = extract_student(weights)
    assert plain.keys() == mmaction_table(**PAIRS[name][0], width=8, classes=7).keys()
    first, second = (build(name, 7, width=8) for _ in range(2))
    load_weights(first, weights)
    assert load_weights(second, as_0x(plain)).source == "mmaction2"
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in second.state_dict().items())
    with pytest.raises(WeightsError) as error:
        extract_student(plain)
    assert error.value.code == "WEIGHTS_LAYOUT"


def test_a_student_comes_with_its_way_of_seeing_and_a_teacher_with_its_own(tmp_path, capsys):
    torch.save(as_0x(pair(*PAIRS["tsn_r18"])), tmp_path / "pair.pth")
    torch.save(as_0x(extract_student(pair(*PAIRS["tsn_r18"]))), tmp_path / "plain.pth")
    student = open_model(tmp_path / "pair.pth")
    assert (student.preprocess.crop, student.preprocess.input_size) == (224, 112)
    assert "crops of 224 reduced to 112" in capsys.readouterr().err
    assert create_model("tsn_r18", weights=tmp_path / "pair.pth", width=8).preprocess.input_size == 112
    assert open_model(tmp_path / "plain.pth").preprocess.input_size is None


def test_files_that_no_program_may_fetch_are_asked_for_by_name_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("MAREY_CACHE", str(tmp_path))
    teachers = [name for name, release in RELEASES.items() if release.source == "reskd"]
    assert len(teachers) == 7 and all(RELEASES[name].by_hand for name in teachers)
    with pytest.raises(WeightsError, match="CVMI-Lab/ResKD") as error:
        locate(teachers[0])
    assert error.value.code == "WEIGHTS_BY_HAND"
    assert str(tmp_path / f"{teachers[0]}.pth") in error.value.message
    (tmp_path / f"{teachers[0]}.pth").write_bytes(b"brought by hand")
    assert locate(teachers[0]) == tmp_path / f"{teachers[0]}.pth"
