"""Sizes and boxes against published numbers, and laws for random crops."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers, sampled_from, tuples

from marey.errors import MediaError
from marey.video import transforms
from marey.video.sampling import generator

ORACLE = json.loads((Path(__file__).parent / "oracles" / "geometry.json").read_text())
sizes = tuples(integers(1, 700), integers(1, 700))


def pair(text):
    width, height = text.split("x")
    return int(width), int(height)


def boxes_of(section):
    """(size, crop, boxes) of the table's rows such as "341x256->256"."""
    return [(pair(k.split("->")[0]), int(k.split("->")[1]), v) for k, v in ORACLE[section].items()]


def test_resized_sizes_are_the_published_ones():
    rules = {
        "fit_340x256": lambda size: transforms.fit(size, (340, 256)),
        "factor0.5": lambda size: transforms.scaled(size, 0.5),
        **{
            f"short{s}": lambda size, s=s: transforms.scaled(size, s / min(size))
            for s in (256, 224, 320, 128)
        },
    }
    checked = 0
    for name, rule in rules.items():
        for size, expected in ORACLE["resize"][name].items():
            assert rule(pair(size)) == tuple(expected), (name, size)
            checked += 1
    assert checked == 108


@pytest.mark.parametrize("kind", ["three", "ten"])
def test_test_crops_are_the_published_boxes_in_their_order(kind):
    assert boxes_of(kind)
    for size, crop, expected in boxes_of(kind):
        boxes, mirrored = transforms.crop_boxes(kind, size, crop)
        assert boxes.tolist() == expected
        assert mirrored.tolist() == ([False, True] * 5 if kind == "ten" else [False] * 3)


def test_centre_crops_are_the_published_boxes():
    for size, crop, expected in boxes_of("center"):
        boxes, mirrored = transforms.crop_boxes("center", size, crop)
        assert boxes.tolist() == [expected] and mirrored.tolist() == [False]


@pytest.mark.parametrize("case", ORACLE["multi_scale"], ids=lambda case: case["key"])
def test_multi_scale_crops_have_the_published_sizes_and_places(case):
    head, scales = case["key"].split(" scales ")
    size, crop = pair(head.split("->")[0]), int(head.split("->")[1])
    sizes = transforms.scale_sizes(size, crop, tuple(json.loads(scales)), 1)
    assert sorted(map(list, set(sizes))) == case["sizes"]
    for box, expected in case["thirteen"].items():
        corners = {b[:2] for b in transforms.grid_boxes(size, pair(box), 13)}
        assert sorted(map(list, corners)) == expected
    corners = {b[:2] for b in transforms.grid_boxes(size, max(sizes), 5)}
    assert sorted(map(list, corners)) == case["five"]


def test_a_side_near_the_crop_is_snapped_to_it_and_gap_zero_allows_squares_only():
    # 0.875 * 256 = 224; 0.75 * 300 = 225 is within two pixels of 224
    assert transforms.scale_sizes((400, 300), 224, (0.75, 0.5), 0) == [(224, 224), (150, 150)]
    assert transforms.scale_sizes((400, 304), 224, (0.75, 0.5), 0) == [(228, 228), (152, 152)]
    assert transforms.scale_sizes((300, 223), 224, (1.0,), 0) == [(223, 223)]  # never beyond the frame


def test_multi_scale_crops_reach_every_size_and_place_equally_often():
    rng = generator(0, 0, 0)
    draws = [transforms.scale_crop((340, 256), 224, rng, points=13) for _ in range(6000)]
    sizes = [(r - left, b - top) for left, top, r, b in draws]
    counts = [sizes.count(size) for size in set(sizes)]
    assert len(counts) == 10 and min(counts) > 480 and max(counts) < 720
    small = [box[:2] for box, size in zip(draws, sizes, strict=True) if size == (168, 168)]
    assert len(set(small)) == 13


def test_area_crop_sizes_are_rounded_as_published():
    for case in ORACLE["area_sizes"]:
        width, height = pair(case["size"])
        assert transforms.area_size(case["area_fraction"] * width * height, case["aspect"]) == (
            case["w"],
            case["h"],
        )


def test_area_crops_fall_back_to_the_centred_square():
    for size, expected in ORACLE["area_fallback"].items():
        box = transforms.area_crop(pair(size), generator(0, 0, 0), area=(1.0, 1.0), aspect=(30.0, 30.0))
        assert list(box) == expected


def test_area_crops_have_the_published_statistics():
    rng, expected = generator(0, 0, 0), ORACLE["area_statistics"]["341x256"]
    boxes = np.array([transforms.area_crop((341, 256), rng) for _ in range(expected["draws"])], float)
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    for got, name in ((width, "mean width"), (height, "mean height"), (left, "mean left"), (top, "mean top")):
        assert got.mean() == pytest.approx(expected[name], abs=2.0), name  # both means have an error of 0.5
    share = (width * height).mean() / (341 * 256)
    assert share == pytest.approx(expected["mean area fraction"], abs=0.01)
    assert (right.max(), bottom.max()) == (expected["max right"], expected["max bottom"])


def test_random_crops_reach_all_four_borders():
    rng = generator(0, 0, 0)
    boxes = np.array([transforms.random_crop((20, 17), 15, rng) for _ in range(300)])
    assert boxes.min(0).tolist() == [0, 0, 15, 15] and boxes.max(0).tolist() == [5, 2, 20, 17]


@given(size=sizes, seed=integers(0, 1000), crop=integers(1, 300), points=sampled_from([5, 13]))
def test_random_boxes_lie_inside_the_frame(size, seed, crop, points):
    rng = generator(seed, 0, 0)
    boxes = [transforms.area_crop(size, rng), transforms.scale_crop(size, crop, rng, points=points)]
    if crop <= min(size):
        boxes.append(transforms.random_crop(size, crop, rng))
        boxes += transforms.crop_boxes("ten", size, crop)[0].tolist()
        boxes += transforms.crop_boxes("three", size, min(size))[0].tolist()
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


@given(source=sizes, target=sizes, seed=integers(0, 1000))
def test_a_rescaled_box_lies_inside_and_holds_a_pixel(source, target, seed):
    left, top, right, bottom = transforms.rescale_box(
        transforms.area_crop(source, generator(seed, 0, 0)), source, target
    )
    assert 0 <= left < right <= target[0] and 0 <= top < bottom <= target[1]


@pytest.mark.parametrize("size", [(223, 500), (500, 223)])
def test_a_frame_smaller_than_the_crop_is_refused(size):
    with pytest.raises(MediaError, match="500") as error:
        transforms.crop_boxes("center", size, 224)
    assert error.value.code == "FRAME_TOO_SMALL"


def test_three_crops_of_a_frame_they_cannot_cover_are_refused():
    with pytest.raises(MediaError) as error:
        transforms.crop_boxes("three", (340, 257), 256)
    assert error.value.code == "FRAME_SHAPE"


@pytest.mark.parametrize("case", ORACLE["moved_boxes"], ids=lambda case: str(case["source"]))
def test_object_boxes_move_as_published(case):
    steps, source = case["steps"], tuple(case["source"])
    size = tuple(steps["resized"]["img_shape"][::-1])
    crop = tuple(steps["cropped"]["crop_bbox"]) if "cropped" in steps else None
    for kind in ("gt_bboxes", "proposals"):
        start = np.float32(steps["decoded"][kind])
        moves = [("resized", None, False), ("cropped", crop, False), ("flipped", crop, True)]
        for step, box, mirrored in [m for m in moves if m[0] in steps]:
            moved = transforms.move_boxes(start, source, size, box, mirrored=mirrored)
            assert moved.dtype == np.float32
            np.testing.assert_allclose(moved, steps[step][kind], atol=2e-4, err_msg=step)


@given(
    x=floats(0, 100),
    y=floats(0, 80),
    w=floats(0, 50),
    h=floats(0, 50),
    side=integers(10, 80),
    seed=integers(0, 99),
)
def test_moved_boxes_stay_inside_and_ordered(x, y, w, h, side, seed):
    crop = transforms.random_crop((120, 96), side, generator(seed, 0, 0))
    boxes = np.float32([[x, y, x + w, y + h]])
    for mirrored in (False, True):
        ((left, top, right, bottom),) = transforms.move_boxes(
            boxes, (100, 80), (120, 96), crop, mirrored=mirrored
        )
        assert 0 <= left <= right <= side and 0 <= top <= bottom <= side


def test_a_mirror_undoes_itself():
    boxes = np.float32([[3, 4, 10, 20], [0, 0, 64, 48]])
    once = transforms.move_boxes(boxes, (64, 48), (64, 48), mirrored=True)
    assert once.tolist() == [[54, 4, 61, 20], [0, 0, 64, 48]]
    assert transforms.move_boxes(once, (64, 48), (64, 48), mirrored=True).tolist() == boxes.tolist()
