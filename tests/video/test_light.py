"""Corrections of light against the published tables and values worked out by hand."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from marey.errors import UsageError
from marey.video.light import Light, brighten, equalizing_table, gamma_table, relight
from marey.video.preprocess import Preprocess, Protocol, normalize

ORACLE = json.loads((Path(__file__).parent / "oracles" / "gamma.json").read_text())
DARK = Light(gamma=0.25)


def drawn_frames(seed, shape):
    """Mostly dark: a uniform draw squared."""
    rng = np.random.RandomState(seed)
    return torch.from_numpy(np.floor(255.999 * rng.uniform(size=shape) ** 2).astype(np.uint8))


def test_tables_are_the_published_ones():
    assert len(ORACLE["lut"]) == 6
    for gamma, levels in ORACLE["lut"].items():
        assert gamma_table(float(gamma)).tolist() == levels, gamma
    assert gamma_table(0.7, 1.5).tolist() == ORACLE["lut_gain"]


def test_frames_become_the_published_ones():
    frames = drawn_frames(ORACLE["input"]["seed"], ORACLE["input"]["shape"])
    got = relight(frames[None], DARK)
    assert got.flatten().tolist() == ORACLE["frames"]
    assert brighten(frames.float() / 255, 0.25).flatten().numpy() == pytest.approx(
        np.array(ORACLE["float"]), abs=1e-6
    )
    clips = Preprocess(mean=(0.45 * 255,) * 3, std=(0.225 * 255,) * 3, light=DARK)
    seen = normalize(frames[None], clips).permute(0, 2, 3, 4, 1).flatten().numpy()
    assert seen[:24] == pytest.approx(np.array(ORACLE["normalised_first24"]), abs=1e-5)
    assert [seen.mean(), seen.std(ddof=1)] == pytest.approx(
        [ORACLE["normalised_mean"], ORACLE["normalised_std"]], abs=1e-5
    )


def test_the_batch_is_not_changed_and_no_correction_copies_nothing():
    frames = drawn_frames(1, (2, 3, 4, 5, 3))
    before = frames.clone()
    assert relight(frames, Light()) is frames and relight(frames, None) is frames
    assert not torch.equal(relight(frames, DARK), before) and torch.equal(frames, before)


def test_each_clip_is_brought_to_the_target_by_its_own_gamma():
    """Mean 51 of 255 is 0.2; to 0.4 leads gamma log 0.4 / log 0.2."""
    clips = torch.stack([torch.full((2, 4, 4, 3), level, dtype=torch.uint8) for level in (51, 102, 200, 1)])
    got = relight(clips, Light(target=102.0))[:, 0, 0, 0, 0].tolist()
    assert got[0] == pytest.approx(102, abs=1) and got[1] == 102
    assert got[2] == 200, "the highest gamma, 1, keeps bright clips"
    assert got[3] == gamma_table(0.2)[1], "the lowest gamma is 0.2"
    darker = relight(clips[2:3], Light(target=102.0, limits=(0.2, 5.0)))[0, 0, 0, 0, 0]
    assert int(darker) == pytest.approx(102, abs=1)
    both = torch.stack([clips[0], clips[0]])
    both[1, 0] += 40
    alone = [relight(clip[None], Light(target=102.0))[0] for clip in both]
    assert torch.equal(relight(both, Light(target=102.0)), torch.stack(alone))


def test_black_clips_stay_black():
    black = torch.zeros((1, 2, 4, 4, 3), dtype=torch.uint8)
    for light in (DARK, Light(target=100.0), Light(equalize=True)):
        assert torch.equal(relight(black, light), black)


def test_equalized_levels_say_how_many_pixels_lie_below():
    """By sorting all pixels; OpenCV's equalizeHist is the same formula."""
    gray = drawn_frames(3, (40, 50))
    got = equalizing_table(torch.bincount(gray.flatten(), minlength=256))[gray.long()].numpy()
    values = np.sort(gray.numpy().ravel())
    upto = np.searchsorted(values, gray.numpy(), side="right") - np.sum(values == values[0])
    assert np.array_equal(got, np.rint(upto * 255.0 / np.sum(values > values[0])))
    assert got.min() == 0 and got.max() == 255


def test_equalizing_keeps_the_order_of_the_channels():
    clip = drawn_frames(4, (1, 2, 8, 8, 3))
    got = relight(clip, Light(equalize=True)).int()
    before = clip.int()
    for a, b in ((0, 1), (1, 2)):
        brighter = before[..., a] >= before[..., b]
        assert (got[..., a] >= got[..., b])[brighter].all()


@pytest.mark.parametrize(
    "fields",
    [
        {"gamma": 0.0}, {"gain": -1.0}, {"target": 0.0}, {"target": 255.0}, {"limits": (1.0, 0.5)},
        {"limits": (0.1, 1.0)}, {"gamma": 0.5, "limits": (0.1, 1.0)},
        {"target": 100.0, "gamma": 0.5}, {"equalize": True, "gamma": 0.5},
        {"equalize": True, "decoded": True}, {"target": 100.0, "decoded": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_correction_that_makes_no_sense_is_refused(fields):
    with pytest.raises(UsageError) as error:
        Light(**fields)
    assert error.value.code == "LIGHT_INVALID"


# In the preprocessing ---------------------------------------------------------------------------------


class Frames:
    """Drawn frames, as a video."""

    fps = 25.0

    def __init__(self, count=20, height=48, width=64):
        self.all = drawn_frames(5, (count, height, width, 3))

    def __len__(self):
        return len(self.all)

    def frames(self, indices):
        return self.all[torch.as_tensor(np.asarray(indices))]


def clips(**fields):
    return Preprocess(frames=4, interval=2, short_side=32, crop=32, **fields)


def test_views_come_under_each_light_and_the_others_are_what_they_are_without():
    """The order is light, crop, clip; frames corrected as decoded are corrected before they are resized."""
    video = Frames()
    plain = clips(test=Protocol(clips=2, crops="three"))
    lights = (Light(), DARK, Light(gamma=0.25, decoded=True), Light(gamma=0.5, decoded=True))
    lit = clips(test=Protocol(clips=2, crops="three", lights=lights))
    want, got = plain.views(video, plain.test), lit.views(video, lit.test)
    assert len(want) == 6 and len(got) == 24 and len(got.numbers) == len(want.numbers)
    assert torch.equal(got.batch(0, 6), want.batch())
    assert torch.equal(got.batch(6, 12), relight(want.batch(), DARK))
    for first, gamma in ((12, 0.25), (18, 0.5)):
        other = Frames()
        other.all = relight(video.all[None], Light(gamma=gamma))[0]
        assert torch.equal(got.batch(first, first + 6), plain.views(other, plain.test).batch())
    assert not torch.equal(got.batch(6, 12), got.batch(12, 18)), "resizing first is something else"


def test_training_and_tests_see_the_same_correction():
    """Of decoded frames before they are cut; of batches on their way into the network, once."""
    video, rng = Frames(), np.random.default_rng
    decoded, later, plain = clips(light=Light(gamma=0.25, decoded=True)), clips(light=DARK), clips()
    other = Frames()
    other.all = relight(video.all[None], DARK)[0]
    clip = decoded.train(video, rng(0)).frames
    assert torch.equal(clip, plain.train(other, rng(0)).frames)
    assert torch.equal(normalize(clip[None], decoded), normalize(clip[None], plain)), "not twice"
    assert torch.equal(later.train(video, rng(0)).frames, plain.train(video, rng(0)).frames)
    views = plain.views(video, plain.test).batch()
    assert torch.equal(decoded.views(video, decoded.test).batch(), plain.views(other, plain.test).batch())
    assert torch.equal(normalize(views, later), normalize(relight(views, DARK), plain))


def test_a_light_travels_with_the_preprocessing():
    p = clips(light=Light(target=90.0), test=Protocol(lights=(DARK, Light(gamma=0.5))))
    assert msgspec.json.decode(msgspec.json.encode(p), type=Preprocess) == p
    assert p.plan(p.test).lights == (DARK, Light(gamma=0.5))
