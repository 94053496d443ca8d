"""Targets and loss of detectors against the published ones, and what they do with nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marey.errors import MareyError
from marey.training.boxes import box_loss, box_terms, match, shown

ORACLE = json.loads((Path(__file__).parent / "oracles" / "boxes.json").read_text())
C = ORACLE["num_classes"]


def hot(labels):
    rows = torch.zeros(len(labels), C)
    for row, classes in zip(rows, labels, strict=True):
        row[classes] = 1
    return rows


def boxes(rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def test_targets_are_the_published_ones():
    targets = []
    for clip in ORACLE["clips"]:
        true, proposals = boxes(clip["boxes"]), boxes(clip["proposals"])
        assert (match(true, proposals) + 1).tolist() == clip["matched"]
        found = shown(true, hot(clip["labels"]), proposals, rng=np.random.default_rng(0))
        assert torch.equal(found.boxes, boxes(clip["shown"])) and found.persons == clip["persons"]
        targets.append(found.labels)
    assert torch.equal(torch.cat(targets), hot(ORACLE["targets"]))


@pytest.mark.parametrize("name", ORACLE["losses"])
def test_loss_and_terms_are_the_published_ones(name):
    arguments, values = ORACLE["losses"][name]["arguments"], ORACLE["losses"][name]["values"]
    logits, labels = torch.tensor(ORACLE["logits"]), hot(ORACLE["targets"])
    single = not arguments.get("multilabel", True)
    alpha, gamma = arguments.get("focal_alpha", 1.0), arguments.get("focal_gamma", 0.0)
    loss = box_loss(logits, labels, alpha=alpha, gamma=gamma, single=single)
    assert loss.item() == pytest.approx(values["loss_action_cls"], rel=2e-7)
    terms = box_terms(logits, labels, top=tuple(arguments["topk"]), single=single)
    assert terms.keys() == {
        f"{kind}{k}"
        for kind in ("recall", "precision")
        for k in ("", *(f"_top{k}" for k in arguments["topk"]))
    }
    for key, value in terms.items():
        published = key.replace("precision", "prec")
        published = published.replace("_", "@") if "_" in key else f"{published}@thr=0.5"
        assert value.item() == pytest.approx(values[published], rel=2e-7), key


@settings(max_examples=50, deadline=None)
@given(persons=st.integers(0, 40), others=st.integers(0, 40), seed=st.integers(0, 99))
def test_at_most_so_many_are_shown_and_persons_before_others(persons, others, seed):
    true = boxes([[i * 10, 0, i * 10 + 8, 8] for i in range(persons)])
    proposals = boxes([[i * 10, 50, i * 10 + 8, 58] for i in range(others)])
    labels = torch.zeros(persons, 100)
    labels[range(persons), [i + 1 for i in range(persons)]] = 1
    found = shown(true, labels, proposals, rng=np.random.default_rng(seed))
    assert found.persons == min(persons, 32) and len(found.boxes) == min(persons + others, 32)
    assert (found.boxes[: found.persons, 1] == 0).all() and (found.boxes[found.persons :, 1] == 50).all()
    assert len(found.boxes.unique(dim=0)) == len(found.boxes)
    for box, label in zip(found.boxes[: found.persons], found.labels, strict=False):
        assert label.nonzero().tolist() == [[int(box[0]) // 10 + 1]]
    assert not found.labels[found.persons :].any()
    assert (found.boxes[: found.persons, 0].diff() > 0).all()


def test_a_person_gets_the_proposal_it_shares_most_with():
    """Proposal 0 overlaps person 1 more, but nobody overlaps person 0 more than it."""
    true = boxes([[0, 0, 100, 100], [0, 0, 100, 96]])
    proposals = boxes([[0, 0, 100, 97]])
    assert match(true, proposals).tolist() == [1]
    assert match(true.flip(0), proposals).tolist() == [1]  # the last such person
    assert match(true, proposals, iou=0.995).tolist() == [-1]


def test_boxes_without_action_do_not_teach():
    logits = torch.randn(4, 5, requires_grad=True)
    labels = torch.zeros(4, 5)
    nothing = box_loss(logits, labels)
    nothing.backward()
    assert nothing.item() == 0 and not logits.grad.any()
    labels[2, 3] = 1
    with torch.no_grad():
        loss = box_loss(logits, labels)
        logits[[0, 1, 3]] += 1
        logits[2, 0] += 1
        assert box_loss(logits, labels) == loss
    with pytest.raises(MareyError) as error:
        box_loss(logits, labels[:, :4])
    assert error.value.code == "SCORES_SHAPE"
