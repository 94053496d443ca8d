"""Whole pairs against ResKD's own code (CVMI-Lab/ResKD@c6b85a3, run as released; oracles/reskd): the student
alone, a training step term by term and gradient by gradient in float64, and its learning rates."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from marey.models import build
from marey.training.distill import Student, Teacher, Wanted, distillation_loss, resize
from marey.training.losses import classification_loss
from marey.training.optim import Optimizer, Schedule, build_optimizer, lr_factor
from marey.weights.load import load_weights, recognise
from tests.models.published import table_of
from tests.oracles import ALL_BLOCKS, checksum, drawn_input, filled, load_case, mmaction_table, relative_error

FOLDER = Path(__file__).parent / "oracles" / "reskd"
FILES = [path for path in sorted(FOLDER.glob("*.json")) if path.stem not in ("losses", "schedules")]
SMALL = FOLDER / "tsn_r18_r18_224_112.json"
# two cases of a kind take as long as the rest of this file: MAREY_TEST_ALL=1 runs them, too
spared = pytest.mark.skipif(
    not os.environ.get("MAREY_TEST_ALL"), reason="like others; MAREY_TEST_ALL=1 runs it"
)
LARGE = [
    pytest.param(p, id=p.stem, marks=[pytest.mark.slow, *[spared] * p.stem.startswith(("tsn", "slowonly"))])
    for p in FILES
    if p != SMALL
]
STUDENT, TEACHER = "backbone.low_res_path.", "backbone.high_res_path."
PLAIN, TAUGHT = Wanted(True, True, False), Wanted(True, False, True)


TABLES = {
    "tsn_r18": {"depth": 18},
    "tsn_r50": {"depth": 50},
    "tsm_r50": {"depth": 50, "shifted": ALL_BLOCKS},
    "slowonly_r50": {"depth": 50, "time": (1, 1, 3, 3)},
}


def plain_table(name, classes):
    """Names and shapes of the network's own file."""
    if name in TABLES:
        return mmaction_table(**TABLES[name], classes=classes)
    with torch.device("meta"):
        table = table_of(build(name, classes), "video-swin", optional=False)
    places = [n.removesuffix("qkv.weight") for n in table if n.endswith("qkv.weight")]
    return table | {f"{place}relative_position_index": (392, 392) for place in places}


class Pair:
    """Student and teacher of a case with the drawn weights of its checkpoint."""

    def __init__(self, case):
        self.case, name, classes = case, case["model"], case["classes"]
        other = case["teacher"] or name
        self.kl = case["teacher"] is not None
        options = {"drop_path": 0.0} if self.kl else {}
        table = {n.replace("backbone.", STUDENT): s for n, s in plain_table(name, classes).items()}
        for there, shape in plain_table(other, classes).items():
            if there.startswith("backbone."):
                table[there.replace("backbone.", TEACHER)] = shape
            elif self.kl:
                table[there.replace("fc_cls", "fc_cls_t")] = shape
        assert (len(table), checksum(table)) == (case["table"]["tensors"], case["table"]["crc32"])
        tensors = filled({n: s for n, s in table.items() if not n.endswith("_index")})
        self.names = {theirs: ours for ours, theirs in recognise(tensors).filled.items()}
        self.student = build(name, classes, dropout=0.0, **options)
        assert load_weights(self.student, tensors).source == "reskd"
        self.teacher = build(other, classes, dropout=0.0, **options)
        theirs = (TEACHER, "cls_head.fc_cls_t." if self.kl else "cls_head.fc_cls.")
        alone = {
            n.replace(TEACHER, "backbone.").replace("fc_cls_t", "fc_cls"): v
            for n, v in tensors.items()
            if n.startswith(theirs)
        }
        assert load_weights(self.teacher, alone).source in ("mmaction2", "video-swin")
        clip = drawn_input(case["input"]["shape"], case["input"]["seed"])
        self.clip = clip.transpose(1, 2) if case["input"]["frames_first"] else clip.flatten(0, 1)
        self.small = resize(self.clip, tuple(case["input"]["student"]))

    def double(self):
        self.student, self.teacher = self.student.double(), self.teacher.double()
        self.clip = self.clip.double()
        self.small = resize(self.clip, tuple(self.case["input"]["student"]))

    def losses(self, statistics="batch"):
        """Cross entropy and distillation loss of a training step, and both maps."""
        wanted = TAUGHT if self.kl else PLAIN
        teacher = Teacher(self.teacher, wanted, statistics=statistics, precision="32")
        student = Student(self.student.train(), wanted)
        shown, seen = teacher(self.clip), student(self.small)
        weights = {"classes": 200.0, "mean": "elements"} if self.kl else {"feature": 100.0}
        labels = torch.tensor(self.case["input"]["labels"])
        return (
            classification_loss(seen.logits, labels),
            distillation_loss(seen, shown, **weights),
            seen,
            shown,
        )

    def parameter(self, there):
        """Our parameter of that name in the file."""
        return self.student.get_parameter(self.names[there])


def norms(pair, loss):
    """2-norm of each named parameter's gradient; None where there is none."""
    names = list(pair.case["float64"]["grad_norm"])
    grads = torch.autograd.grad(
        loss, [pair.parameter(n) for n in names], retain_graph=True, allow_unused=True
    )
    return {n: None if g is None else g.norm().item() for n, g in zip(names, grads, strict=True)}


def test_the_student_alone_is_fed_the_reduced_picture():
    check_alone(Pair(load_case(SMALL)))


def test_a_step_is_that_of_the_original():
    check_step(Pair(load_case(SMALL)))


@pytest.mark.parametrize("path", LARGE)
def test_large_pairs_are_those_of_the_original(path):
    """In one go, because drawing their weights takes longest."""
    pair = Pair(load_case(path))
    check_alone(pair)
    check_step(pair)


def check_alone(pair):
    case, noise = pair.case, pair.case["noise"]
    with torch.inference_mode():
        maps = pair.student.eval().features(pair.small)
        logits = pair.student(pair.small)
    if case["input"]["frames_first"]:
        maps = maps.transpose(1, 2).flatten(0, 1)
    assert list(maps.shape) == case["eval_feature"]["shape"]
    assert maps.norm().item() == pytest.approx(case["eval_feature"]["norm"], rel=1e-5)
    assert relative_error(logits, case["logits"]) < 20 * noise["eval_logits"]


def check_step(pair):
    pair.double()
    case, want = pair.case, pair.case["float64"]
    loss, kd, seen, _ = pair.losses()
    assert relative_error(seen.logits.detach(), torch.tensor(want["logits"]).double()) < 1e-7
    assert loss.item() == pytest.approx(want["loss_cls"], rel=1e-9)
    assert kd.item() == pytest.approx(want["loss_kd"], rel=1e-9)
    assert (loss + kd).item() == pytest.approx(want["loss"], rel=1e-9)
    for part, key in ((loss, "grad_norm_from_loss_cls"), (kd, "grad_norm_from_loss_kd")):
        for name, norm in norms(pair, part).items():  # the original's were kept in float32 only
            expected = case["float32"][key][name]
            assert (norm is None) == (expected is None)
            assert norm is None or norm == pytest.approx(
                expected, rel=max(5e-3, 3 * case["noise"]["g_all"])
            ), name
    assert norms(pair, loss + kd) == pytest.approx(want["grad_norm"], rel=1e-7)
    (loss + kd).backward()
    with_gradient = [p for p in pair.student.parameters() if p.grad is not None]
    assert len(with_gradient) == case["float32"]["parameters_with_gradient"]
    assert all(p.grad is None for p in pair.teacher.parameters())
    total = torch.stack([p.grad.norm() for p in with_gradient]).norm().item()
    assert total == pytest.approx(want["grad_norm_all_parameters"], rel=1e-7)
    gradients = [p.grad.clone() for p in pair.student.parameters()]
    start = {n: p.detach().clone() for n, p in pair.student.named_parameters()}
    updates = [(optimizer(case), case["step"]["update_norm"])]
    if case["intended"]:
        updates.append((optimizer(case, groups="tsm", head_factor=1.0), case["intended"]))
    for settings, expected in updates:
        with torch.no_grad():
            for (name, p), gradient in zip(pair.student.named_parameters(), gradients, strict=True):
                p.copy_(start[name])
                p.grad = gradient.clone()
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(pair.student.parameters(), settings.clip_norm)
        step = build_optimizer(pair.student, settings)
        for group in step.param_groups:
            group["lr"] = settings.lr * group["factor"]
        step.step()
        for name, norm in expected.items():
            moved = pair.parameter(name).detach() - start[pair.names[name]]
            assert moved.norm().item() == pytest.approx(norm, rel=1e-6), (settings.groups, name)


def optimizer(case, **other):
    """The settings of ResKD's recipes: one group of everything, or Swin's."""
    theirs, clip = case["step"]["optimizer"], case["step"]["grad_clip"]
    norm = clip["max_norm"] if clip else None
    given = {"lr": theirs["lr"], "weight_decay": theirs["weight_decay"], "clip_norm": norm}
    if theirs["type"] == "AdamW":
        given |= {"kind": "adamw", "groups": "tables", "backbone_factor": 0.1}
    return Optimizer(**given | other)


def test_statistics_move_in_the_student_alone():
    pair = Pair(load_case(SMALL))
    before = {n: v.clone() for n, v in pair.teacher.state_dict().items()}
    _, kd, _, shown = pair.losses()
    assert kd.item() == pytest.approx(pair.case["float32"]["loss_kd"], rel=1e-5)
    teacher_map = (
        shown.maps.transpose(1, 2).flatten(0, 1) if pair.case["input"]["frames_first"] else shown.maps
    )
    assert teacher_map.norm().item() == pytest.approx(
        pair.case["stages"]["teacher_feature"]["norm"], rel=1e-5
    )
    checked = 0
    for name, want in pair.case["float32"]["running_statistics_after_forward"].items():
        if name.startswith(STUDENT):  # the teacher's moved in the original, and are left alone here
            got = pair.student.get_buffer(pair.names[name])
            assert relative_error(got[:8], want["first8"]) < 1e-4
            assert got.norm().item() == pytest.approx(want["norm"], rel=1e-4)
            checked += 1
    assert checked == 2
    assert all(torch.equal(v, before[n]) for n, v in pair.teacher.state_dict().items())


def test_a_teacher_with_running_statistics_is_the_other_variant_of_the_original():
    pair = Pair(load_case(SMALL))
    with torch.no_grad():
        _, kd, _, _ = pair.losses(statistics="running")
    assert kd.item() == pytest.approx(pair.case["teacher_eval"]["loss_kd"], rel=1e-4)


SCHEDULES = load_case(FOLDER / "schedules.json")["cases"]
SETTINGS = [
    Schedule(kind="cosine"),
    Schedule(kind="cosine"),
    Schedule(kind="step", milestones=(90, 130), warmup_epochs=10),
    Schedule(kind="cosine", warmup_epochs=2.5),
    Schedule(kind="cosine", warmup_epochs=2.5),
]


@pytest.mark.parametrize("number", range(5), ids=lambda i: SCHEDULES[i]["name"][:22])
def test_learning_rates_are_those_of_the_original(number):
    """A warm-up that ends within an iteration holds its last rate for the rest of the epoch."""
    case, schedule = SCHEDULES[number], SETTINGS[number]
    for key, want in case["lr"].items():
        epoch, iteration = map(int, key.split(":"))
        factor = lr_factor(
            schedule,
            epoch=epoch,
            iteration=iteration,
            per_epoch=case["iterations_per_epoch"],
            epochs=case["epochs"],
        )
        assert [rate * factor for rate in case["base_lr"]] == pytest.approx(want, rel=1e-9), key
