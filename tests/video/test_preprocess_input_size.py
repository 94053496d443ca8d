"""Pictures reduced on the device, against ResKD's pipeline and model (oracles/reskd_pipeline.json)."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from marey.errors import UsageError
from marey.video.preprocess import Preprocess, Protocol, normalize, to_input_size
from marey.video.transforms import crop_resize, to_short_side

CASES = json.loads((Path(__file__).parent / "oracles" / "reskd_pipeline.json").read_text())["cases"]


class Pictures:
    """Frames of a case, made by its formula."""

    fps = 10.0

    def __init__(self, kind, count, height, width, seed):
        if kind == "noise":
            pixels = np.random.RandomState(seed).randint(0, 256, (count, height, width, 3))
        else:
            t, y, x, c = np.meshgrid(*map(np.arange, (count, height, width, 3)), indexing="ij")
            wave = 80 * np.sin(0.11 * x + 0.5 * c + 0.3 * t + seed) + 45 * np.cos(0.07 * y - 0.2 * c)
            pixels = np.floor(127.5 + wave)
        self.pixels = torch.from_numpy(pixels.astype(np.uint8))

    def __len__(self):
        return len(self.pixels)

    def frames(self, indices):
        return self.pixels[torch.as_tensor(np.asarray(indices))]


def as_theirs(clip, case):
    """[B, 3, T, H, W] in the layout of the case."""
    return clip.transpose(1, 2).flatten(0, 1) if case["layout"] == "NCHW" else clip


def agrees(clip, want, case):
    got = as_theirs(clip, case).double()
    assert list(got.shape) == want["shape"]
    assert got.mean().item() == pytest.approx(want["mean"], abs=2e-6)
    assert got.norm().item() == pytest.approx(want["norm"], rel=2e-6)
    for place, value in want["samples"]:
        assert got[tuple(place)].item() == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c['path']}-{c['frames']['kind']}-{c['frames']['width']}"
)
def test_the_reduced_picture_is_that_of_the_original(case):
    video, frames = Pictures(**case["frames"]), case["clips"] * case["clip_len"]
    three = case["path"] == "test_three"
    clips = Preprocess(
        frames=case["clip_len"] if three else frames,
        resize="opencv",
        short_side=case["short_side"],
        crop=case["crop"],
        test=Protocol(clips=case["clips"], crops="three") if three else Protocol(),
    )
    if case["path"] == "train":
        box, size = (
            case["draws"]["crop_box_xyxy"],
            to_short_side((video.pixels.shape[2], video.pixels.shape[1]), 256),
        )
        cut = crop_resize(video.pixels, size, tuple(box), (224, 224), "opencv")
        batch, mirrored = cut[None], torch.tensor([case["draws"]["flip"]])
    else:
        batch, mirrored = clips.views(video, clips.test).batch(), None
    whole = normalize(batch, clips, mirrored)
    agrees(whole, case["expected"]["teacher_input"], case)
    for side, want in case["expected"]["student_inputs"].items():
        reduced = msgspec.structs.replace(clips, input_size=int(side))
        small = normalize(batch, reduced, mirrored)
        agrees(small, want, case)
        assert torch.equal(small, to_input_size(whole, reduced))
        assert small.is_contiguous(memory_format=torch.channels_last_3d)


def test_half_is_the_mean_of_four_pixels_and_averaging_differs_elsewhere():
    batch = torch.randint(0, 256, (2, 3, 48, 48, 3), dtype=torch.uint8)
    whole = normalize(batch, Preprocess(crop=48))
    half = normalize(batch, Preprocess(crop=48, input_size=24))
    assert torch.allclose(half, F.avg_pool3d(whole, (1, 2, 2)), atol=1e-6)
    thirds = [normalize(batch, Preprocess(crop=48, input_size=16, input_antialias=a)) for a in (False, True)]
    assert thirds[0].std() > 1.5 * thirds[1].std(), "of noise, only averaging takes all pixels"
    assert to_input_size(whole, Preprocess(crop=48)) is whole


def test_the_plan_says_what_the_network_sees():
    clips = Preprocess(input_size=112, test=Protocol(clips=10, crops="three", crop=224, short_side=224))
    assert (clips.plan(clips.test).crop, clips.plan(clips.test).input_size) == (224, 112)
    assert Preprocess(crop=96, short_side=112).plan(Protocol()).input_size == 96
    again = msgspec.json.decode(msgspec.json.encode(clips), type=Preprocess)
    assert again == clips
    for wrong in ({"input_size": 0}, {"input_antialias": True}):
        with pytest.raises(UsageError, match="input_"):
            Preprocess(**wrong)
