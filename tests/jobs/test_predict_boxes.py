"""Persons of a film: tracks, names of films in proposals, boxes in pictures, detectors and their weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from marey.data.proposals import Proposals
from marey.errors import MareyError, UsageError
from marey.jobs import persons
from marey.jobs.overlay import COLOURS, Scenes, drawn, write_overlay
from marey.jobs.persons import PersonDetector, weights_of
from marey.jobs.predict import Score
from marey.jobs.predict_boxes import PUBLISHED, Person, Tracks, Watched, best_actions, named, predict_boxes
from marey.video.reader import read_video
from marey.video.synthetic import write_video
from marey.weights.create import create_model
from marey.weights.published import RELEASES


def box(x, y=0.2, width=0.2, height=0.5):
    return np.array([x, y, x + width, y + height])


# Tracks -----------------------------------------------------------------------------------------------


def test_a_person_keeps_its_number_wherever_it_stands_in_the_list():
    tracks = Tracks(1.0)
    assert tracks.follow(0, np.stack([box(0.1), box(0.6)])) == [0, 1]
    assert tracks.follow(1, np.stack([box(0.63), box(0.12)])) == [1, 0]
    assert tracks.follow(2, np.stack([box(0.3, y=0.5), box(0.66)])) == [2, 1]
    assert tracks.follow(3, np.empty((0, 4))) == []
    assert tracks.follow(4, np.stack([box(0.68), box(0.13)])) == [1, 3]  # 0 was out of sight for too long


def test_of_two_boxes_the_one_that_overlaps_more_goes_on():
    tracks = Tracks(0.5)
    tracks.follow(0, np.stack([box(0.2)]))
    assert tracks.follow(0.5, np.stack([box(0.26), box(0.21)])) == [1, 0]
    assert Tracks(1.0).follow(7, np.stack([box(0.2), box(0.2)])) == [0, 1]


# Actions and names ------------------------------------------------------------------------------------


def test_the_best_actions_leave_column_0_out():
    chances = np.array([0.99, 0.2, 0.7, 0.7, 0.1])
    found = list(best_actions(chances, ("no", "a", "b", "c", "d"), 3, 0.15))
    assert [(one.label, one.name) for one in found] == [(2, "b"), (3, "c"), (1, "a")]
    assert [one.name for one in best_actions(chances, None, 5, 0.7)] == ["2", "3"]


def test_the_boxes_of_a_film_are_found_by_its_name():
    boxes = Proposals.of(
        {"b,0003": [[0, 0, 1, 1, 0.9]], "a.1,0002": [[0, 0, 0.5, 1, 0.8]], "b,0001.5": [[0, 0, 1, 0.5, 1]]}
    )
    found = named(boxes, "/films/b.mp4")
    assert list(found.keys) == ["film,0001.5", "film,0003"]
    assert found.all_of("film,0003")[1] == 0.9
    assert list(named(boxes, "a.1.mkv").keys) == ["film,0002"]
    assert list(named(boxes, "frames/b").keys) == ["film,0001.5", "film,0003"]
    with pytest.raises(MareyError, match=r"no box of 'c\.mp4'; they are of a\.1, b") as told:
        named(boxes, "c.mp4")
    assert told.value.code == "NO_PERSONS"


# Drawing ----------------------------------------------------------------------------------------------


def person(second, x, track=0, name="wave", score=0.9):
    return Person(second, tuple(box(x).tolist()), track, (Score(1, name, score),))


def test_boxes_move_straight_from_key_frame_to_key_frame():
    film = Watched("f", "f.mp4", 1.0, persons=(person(1.0, 0.1), person(2.0, 0.3), person(2.0, 0.6, 1)))
    scenes = Scenes(film)
    for second, x in ((0.75, 0.1), (1.0, 0.1), (1.25, 0.15), (1.75, 0.25), (2.0, 0.3), (2.4, 0.3)):
        found = {who.track: where for who, where in scenes.at(second)}
        assert found[0] == pytest.approx(box(x).tolist())
        assert (1 in found) == (second > 1.5)  # who comes later is there from half a step before
    assert scenes.at(0.4) == []
    assert scenes.at(2.6) == []


def test_a_picture_has_boxes_and_text_and_small_ones_grow():
    frame = np.full((50, 75, 3), 128, np.uint8)
    picture = drawn(frame, [(person(0, 0.4), box(0.4).tolist())], 0.5)
    assert picture.shape == (350, 524, 3)
    colour = tuple(int(COLOURS[0][k : k + 2], 16) for k in (1, 3, 5))
    assert tuple(picture[70 + 100, round(0.4 * 524)]) == colour  # on the left edge
    assert tuple(picture[200, 100]) == (128, 128, 128)
    changed = (picture != 128).any(2)
    assert changed[:70].any()  # the text lies above the box
    silent = drawn(frame, [(person(0, 0.4, score=0.2), box(0.4).tolist())], 0.5)
    assert (silent != picture).any()
    everywhere = drawn(frame, [(person(0, -0.1), (-0.1, -0.2, 1.3, 1.2))], 0.5)  # outside: no error
    assert everywhere.shape == picture.shape


def test_an_annotated_film_is_as_long_as_the_film(tmp_path):
    frames = (np.full((48, 64, 3), 40 + number, np.uint8) for number in range(20))
    write_video(tmp_path / "f.mp4", frames, fps=10)
    film = Watched("f", str(tmp_path / "f.mp4"), 1.0, persons=(person(0.0, 0.2), person(1.0, 0.5)))
    write_overlay(tmp_path / "o.mp4", film)
    with read_video(tmp_path / "o.mp4") as video:
        assert (len(video), video.fps) == (20, 10)
        first, last = video.frames([0, 10]).int()
    assert first.shape[0] == 384
    assert (first - last).abs().amax(2)[:, 100:300].max() > 100  # the box has moved


# Detectors --------------------------------------------------------------------------------------------


class Fake(nn.Module):
    """Stands for a torchvision detector: a person, a dog, a weak person and a box without area."""

    def __init__(self, **options):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.options = options

    def forward(self, pictures):
        assert all(
            picture.min() >= 0 and picture.max() <= 1 and picture.shape[0] == 3 for picture in pictures
        )
        return [
            {
                "boxes": torch.tensor(
                    [[5.0, 6, 20, 30], [0, 0, 10, 10], [8, 0, 80, 33], [4, 4, 4, 9], [1, 1, 2, 2]]
                ),
                "labels": torch.tensor([1, 18, 1, 1, 1]),
                "scores": torch.tensor([0.6, 0.9, 0.8, 0.9, 0.01]),
            }
            for _ in pictures
        ]


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A folder for weights where torchvision's detectors are the one above."""
    made = []

    def get_model(name, **options):
        made.append((name, options))
        return Fake()

    monkeypatch.setattr(persons, "get_model", get_model)
    monkeypatch.setenv("MAREY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MAREY_OFFLINE", "1")
    return SimpleNamespace(folder=tmp_path, made=made)


def test_only_persons_are_taken_best_first_as_fractions(fake):
    torch.save(Fake().state_dict(), fake.folder / "fasterrcnn_resnet50_fpn_v2_mine.pth")
    detector = PersonDetector(fake.folder / "fasterrcnn_resnet50_fpn_v2_mine.pth", "cpu")
    assert fake.made == [("fasterrcnn_resnet50_fpn_v2", {"weights": None, "weights_backbone": None})]
    (found, again) = detector(torch.randint(0, 256, (2, 40, 50, 3), dtype=torch.uint8))
    assert found.scores == pytest.approx([0.8, 0.6])
    assert found.boxes[1] == pytest.approx([0.1, 0.15, 0.4, 0.75])
    assert found.boxes[0] == pytest.approx([0.16, 0, 1, 0.825])  # cut at the edge
    assert np.array_equal(again.boxes, found.boxes)


def test_weights_that_are_not_there_are_named_with_their_place(fake):
    with pytest.raises(MareyError) as told:
        PersonDetector(None, "cpu")
    assert told.value.code == "WEIGHTS_OFFLINE"
    for text in ("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "put it at", str(fake.folder / "cache")):
        assert text in told.value.message
    place = fake.folder / "torch" / "hub" / "checkpoints" / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
    place.parent.mkdir(parents=True)
    torch.save(Fake().state_dict(), place)
    assert weights_of("fasterrcnn_resnet50_fpn") == place
    assert PersonDetector(None, "cpu").name == "fasterrcnn_resnet50_fpn"


def test_wrong_names_and_wrong_weights_are_refused(fake):
    with pytest.raises(UsageError, match="fasterrcnn_resnet50_fpn") as told:
        PersonDetector("fasterrcnn_resnet50")
    assert told.value.code == "UNKNOWN_NAME"
    torch.save({"other": torch.zeros(3)}, fake.folder / "fcos.pth")
    with pytest.raises(MareyError, match="does not fit") as told:
        PersonDetector(fake.folder / "fcos.pth", "cpu")
    assert told.value.code == "WEIGHTS_MISMATCH"


def test_a_real_detector_of_torchvision_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MAREY_OFFLINE", "1")
    network = persons.get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=91
    )
    with torch.no_grad():  # whatever it sees is a person
        for name, value in network.state_dict().items():
            if (
                name.startswith("head.classification_head")
                and name.endswith("1.bias")
                and value.numel() % 91 == 0
            ):
                value.view(-1, 91)[:, 1] = 9.0
    torch.save(network.state_dict(), tmp_path / "ssdlite320_mobilenet_v3_large.pth")
    detector = PersonDetector(tmp_path / "ssdlite320_mobilenet_v3_large.pth", "cpu")
    (found,) = detector(torch.randint(0, 256, (1, 48, 64, 3), dtype=torch.uint8))
    assert len(found.boxes) > 0
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= 1
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (np.diff(found.scores) <= 0).all()


def test_a_published_detector_remembers_with_the_published_baseline(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MAREY_CACHE", str(tmp_path))
    monkeypatch.setenv("MAREY_OFFLINE", "1")
    model = create_model("slowonly_r50_det", 4, width=8, long_term="avg")
    assert PUBLISHED in RELEASES
    with pytest.raises(MareyError, match=PUBLISHED) as told:
        list(predict_boxes(model, tmp_path / "film.mp4", quiet=True))
    assert told.value.code == "WEIGHTS_OFFLINE"
    assert PUBLISHED in capsys.readouterr().err
    model.metadata = {"recipe": {}}  # of a training of ours
    with pytest.raises(UsageError, match="--bank-checkpoint") as told:
        list(predict_boxes(model, tmp_path / "film.mp4", quiet=True))
    assert told.value.code == "NO_BANK"
