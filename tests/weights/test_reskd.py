"""ResKD's checkpoints: a teacher, a pair, and the student out of the pair."""

import pytest
import torch

from marey.errors import WeightsError
from marey.models import build
from marey.weights.create import create_model
from marey.weights.load import load_weights
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
