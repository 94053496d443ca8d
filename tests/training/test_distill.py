"""Losses between two networks, against ResKD's own code (oracles/reskd, computed in float64) and by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from marey.errors import UsageError
from marey.models import build
from marey.models.transformer import DropPath
from marey.training.distill import (
    Seen,
    Student,
    Teacher,
    Wanted,
    distillation_loss,
    feature_mse,
    logit_kl,
    look,
    map_kl,
    resize,
    same_places,
)
from marey.training.losses import classification_loss
from tests.models.small import SLIM
from tests.oracles import drawn, drawn_input, load_case, relative_error

CASES = load_case(Path(__file__).parent / "oracles" / "reskd" / "losses.json")["cases"]
ALL = Wanted(logits=True, maps=True, classes=True)


class Pieces(nn.Module):
    """A network whose map is its input, for losses alone."""

    def __init__(self, channels, classes, name):
        super().__init__()
        self.head, self.dropout = nn.Linear(channels, classes).double(), nn.Identity()
        for leaf, parameter in self.head.named_parameters():
            parameter.data = drawn(f"cls_head.{name}.{leaf}", tuple(parameter.shape)).double()

    def features(self, clip):
        return clip


def doubles(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def summary(tensor, want):
    flat = tensor.detach().double().flatten()
    assert list(tensor.shape) == want["shape"]
    assert flat.mean().item() == pytest.approx(want["mean"], rel=1e-7, abs=1e-10)
    assert flat.norm().item() == pytest.approx(want["norm"], rel=1e-8)
    assert relative_error(flat[:8], doubles(want["first8"])) < 1e-7


@pytest.mark.parametrize("case", CASES, ids=[f"{c['name']}-{c['seed']}" for c in CASES])
def test_losses_and_gradients_are_those_of_the_original(case):
    mse, want = case["name"].startswith("feature_mse"), case["expected"]
    shapes = [list(case["student_shape"]), list(case["teacher_shape"])]
    maps = [drawn_input(s, case["seed"] + i).double() for i, s in enumerate(shapes)]
    maps = [m.clamp(min=0) if mse else m for m in maps]
    leaf = maps[0].clone().requires_grad_()
    if len(shapes[0]) == 4:  # frames in a row -> [B, C, T, H, W]
        student, teacher = (m.unflatten(0, (-1, case["segments"])).transpose(1, 2) for m in (leaf, maps[1]))
    else:
        student, teacher = leaf, maps[1]
    ours, theirs = (
        Pieces(m.shape[1], case["classes"], n) for m, n in ((student, "fc_cls"), (teacher, "fc_cls_t"))
    )
    seen = Student(ours, ALL)(student)
    with torch.no_grad():
        shown = look(theirs, teacher, ALL)
    assert relative_error(seen.logits.detach(), doubles(want["logits"])) < 1e-9
    loss = classification_loss(seen.logits, torch.tensor(case["labels"]))
    weights = {"feature": case["weight"]} if mse else {"classes": case["weight"], "mean": "elements"}
    kd = distillation_loss(seen, shown, **weights)
    assert loss.item() == pytest.approx(want["loss_cls"], rel=1e-10)
    assert kd.item() == pytest.approx(want["loss_kd"], rel=1e-10)
    assert (loss + kd).item() == pytest.approx(want["loss"], rel=1e-10)
    (from_loss,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (from_kd,) = torch.autograd.grad(kd, leaf, retain_graph=True)
    summary(from_loss, want["grad_feature_from_cls"])
    summary(from_kd, want["grad_feature_from_kd"])
    if mse:
        summary(from_loss + from_kd, want["grad_feature"])
        summary(resize(maps[0], tuple(shapes[1][-2:])), want["upsampled"])
        return
    (weight, bias) = torch.autograd.grad(kd, list(ours.head.parameters()))
    assert weight.norm().item() == pytest.approx(want["grad_fc_weight_norm_from_kd"], rel=1e-9)
    got = bias if isinstance(want["grad_fc_bias_from_kd"], list) else None
    assert got is None or relative_error(got, doubles(want["grad_fc_bias_from_kd"])) < 1e-7
    same = distillation_loss(seen, shown, classes=case["weight"] / case["classes"], mean="positions")
    assert same.item() == pytest.approx(want["loss_kd"], rel=1e-10), "1/K of it, in units of places"
    assert all(p.grad is None for p in theirs.parameters())


def test_half_a_picture_is_the_mean_of_two_by_two_and_edges_hold():
    clip = torch.randn(2, 3, 4, 224, 224)
    assert torch.allclose(resize(clip, (112, 112)), F.avg_pool3d(clip, (1, 2, 2)), atol=1e-6)
    corners = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, None]
    assert resize(corners, (4, 4))[0, 0, 0].tolist() == [0, 0.25, 0.75, 1]
    assert resize(clip, (224, 224)) is clip


def test_equal_maps_cost_nothing_and_others_do():
    maps = torch.randn(2, 5, 3, 4, 4)
    for loss in (feature_mse, map_kl):
        assert loss(maps, maps).item() == pytest.approx(0, abs=1e-7)
        assert loss(maps, maps.flip(0)) > 0
    for independent in (False, True):
        logits = torch.randn(3, 5)
        assert logit_kl(logits, logits, independent=independent).item() == pytest.approx(0, abs=1e-7)


def test_divergences_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2 * torch.log(torch.tensor(3.0))]])
    p = torch.tensor([0.25, 0.75])  # at temperature 2
    want = 4 * (p * (p / 0.5).log()).sum().item()
    assert logit_kl(student, teacher).item() == pytest.approx(want, rel=1e-6)
    assert map_kl(student, teacher, mean="elements").item() == pytest.approx(want / 2, rel=1e-6)
    assert logit_kl(student, teacher, temperature=1.0).item() != pytest.approx(want, rel=1e-2)
    # as two questions: the first has the same answer, 1/2; the second 3/4 instead of 1/2
    assert logit_kl(student, teacher, independent=True).item() == pytest.approx(want / 2, rel=1e-6)


def test_weights_add_up_and_what_has_none_is_not_computed():
    seen = [Seen(torch.randn(2, 5), torch.randn(2, 8, 3, 4, 4), torch.randn(2, 5, 3, 4, 4)) for _ in range(2)]
    parts = [
        distillation_loss(*seen, **{key: w})
        for key, w in (("feature", 2.0), ("classes", 3.0), ("logits", 4.0))
    ]
    together = distillation_loss(*seen, feature=2.0, classes=3.0, logits=4.0)
    assert together.item() == pytest.approx(sum(parts).item(), rel=1e-6)
    bare = [s._replace(maps=None, classes=None) for s in seen]
    assert distillation_loss(*bare, logits=4.0).item() == pytest.approx(parts[2].item())


def test_other_channels_and_other_moments_are_refused_unless_told():
    maps, wide, short = torch.randn(1, 8, 4, 3, 3), torch.randn(1, 9, 4, 3, 3), torch.randn(1, 8, 2, 7, 7)
    with pytest.raises(UsageError, match="projection") as error:
        feature_mse(maps, wide)
    assert error.value.code == "DISTILL_CHANNELS"
    with pytest.raises(UsageError, match="pool_time") as error:
        same_places(maps, short)
    assert error.value.code == "DISTILL_TIME"
    ours, theirs = same_places(maps, short, pool_time=True)
    assert ours.shape == theirs.shape == short.shape
    assert torch.allclose(ours, resize((maps[:, :, ::2] + maps[:, :, 1::2]) / 2, (7, 7)), atol=1e-6)
    student = Student(build("tsn_r18", 3, width=8), ALL, channels=(64, 32))
    assert student(torch.randn(2, 3, 2, 32, 32)).maps.shape == (2, 32, 2, 1, 1)


RESIDUAL = ("tsn_r18", "tsm_r50", "slowonly_r50", "csn_ir_r50", "r2plus1d_r34")
MAPPED = {name: {"width": 8} for name in RESIDUAL} | {n: o for n, o in SLIM if n[:4] in ("swin", "unif")}


@pytest.mark.parametrize("name", MAPPED)
@torch.no_grad()
def test_one_pass_gives_prediction_and_map(name):
    torch.manual_seed(0)
    network = build(name, 5, **MAPPED[name]).eval()
    frames = getattr(network, "segments", 8)
    clip = torch.randn(2, 3, frames, 64, 64)
    seen = look(network, clip, ALL)
    assert torch.allclose(seen.logits, network(clip), atol=1e-4)
    assert torch.allclose(seen.maps, network.features(clip), atol=1e-5)
    assert torch.allclose(seen.classes.mean((2, 3, 4)), seen.logits, atol=1e-4), "a linear classifier"


def small(name="tsn_r18", **options):
    torch.manual_seed(1)
    network = build(name, 5, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_a_teacher_is_the_same_to_the_bit_after_a_step_and_its_pupil_learns(statistics):
    network, clip = small(width=8), torch.randn(4, 3, 2, 64, 64)
    want = small(width=8).train(statistics == "batch").features(clip).detach()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    teacher = Teacher(network, ALL, statistics=statistics)
    student = Student(small(width=8), ALL)
    shown = teacher(clip)
    assert torch.allclose(shown.maps, want, rtol=1e-3, atol=1e-4)
    assert not shown.maps.requires_grad
    loss = distillation_loss(student(resize(clip, (32, 32))), shown, feature=1.0, classes=1.0, logits=1.0)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    teacher(clip)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_batch_and_running_statistics_are_two_things():
    clip = torch.randn(4, 3, 2, 64, 64)
    batch, running = (Teacher(small(width=8), ALL, statistics=s)(clip).maps for s in ("batch", "running"))
    assert relative_error(batch, running) > 0.1
    assert relative_error(batch[:2], Teacher(small(width=8), ALL, statistics="batch")(clip[:2]).maps) > 0.01


def test_branches_are_dropped_only_where_it_is_asked_for():
    options = {"channels": 12, "depths": (2, 2), "heads": (2, 3), "window": (4, 3, 3), "drop_path": 0.5}
    clip = torch.randn(2, 3, 4, 32, 32)
    still, moving = (Teacher(small("swin3d_t", **options), ALL, acting=a) for a in ((), (DropPath,)))
    assert torch.equal(still(clip).logits, still(clip).logits)
    assert not torch.equal(moving(clip).logits, moving(clip).logits)


def test_autocast_gives_float32_and_about_the_same():
    clip = torch.randn(2, 3, 2, 64, 64)
    full, half = (Teacher(small(width=8), ALL, precision=p)(clip) for p in ("32", "bf16"))
    assert half.maps.dtype == half.logits.dtype == torch.float32
    assert 0 < relative_error(half.maps, full.maps) < 0.05
