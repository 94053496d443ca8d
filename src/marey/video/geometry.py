"""Sizes and boxes: where frames are resized to and cropped, in numbers only.

A size is (width, height). A crop box is (left, top, right, bottom) in whole pixels, right and bottom
excluded. Formulas are those of open-mmlab/mmaction2@v0.24.1 (mmaction/datasets/pipelines/augmentations.py).
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from marey.errors import MediaError

Size = tuple[int, int]
Box = tuple[int, int, int, int]
Crops = Literal["center", "three", "ten"]

FIVE = ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2))  # corners and centre, in quarters of the free room
THIRTEEN = (*FIVE, (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3))
GRIDS = {  # steps that the free room is divided into, and the steps of each crop from the left and top
    "center": (2, ((1, 1),)),
    "three": (2, ((0, 0), (2, 2), (1, 1))),  # in one direction only, as the other has no room
    "ten": (4, FIVE),
}


def scaled(size: Size, factor: float) -> Size:
    """The size times a factor, halves rounded up, at least one pixel.

    A short side of s comes from the factor s / min(size).
    """
    width, height = size
    return max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))


def fit(size: Size, bounds: Size) -> Size:
    """The largest size, aspect kept, whose long and short side do not exceed those of `bounds`."""
    return scaled(size, min(max(bounds) / max(size), min(bounds) / min(size)))


def crop_boxes(kind: Crops, size: Size, crop: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The square boxes [C, 4] of a test protocol in their published order, and which are mirrored, [C].

    "center"  one. "three": left, right, middle of a wide frame (top, bottom, middle of a tall one); they
              cover it only if its short side is `crop`. "ten": corners and centre, each followed by its
              mirror image. Boxes at the far side can end one to three pixels before the border.
    Raises MediaError FRAME_TOO_SMALL, FRAME_SHAPE.
    """
    x, y = size[0] - crop, size[1] - crop
    if x < 0 or y < 0:
        raise MediaError(
            "FRAME_TOO_SMALL", f"frames of {size[0]}x{size[1]} hold no crop of {crop}; resize them"
        )
    if kind == "three" and x and y:
        raise MediaError("FRAME_SHAPE", f"three crops of {crop} do not cover frames of {size[0]}x{size[1]}")
    parts, points = GRIDS[kind]
    corners = np.array(points) * (x // parts, y // parts)
    boxes = np.concatenate([corners, corners + crop], axis=1).astype(np.int64)
    if kind == "ten":
        return boxes.repeat(2, axis=0), np.tile([False, True], 5)
    return boxes, np.zeros(len(boxes), bool)


def random_crop(size: Size, crop: int, rng: np.random.Generator) -> Box:
    """A square anywhere in the frame; upstream never draws the last position. Raises FRAME_TOO_SMALL."""
    crop_boxes("center", size, crop)  # is there room?
    left, top = int(rng.integers(0, size[0] - crop + 1)), int(rng.integers(0, size[1] - crop + 1))
    return left, top, left + crop, top + crop


def area_crop(
    size: Size,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """RandomResizedCrop: a box of random share of the frame's area and random width / height.

    The first of ten candidates that fits wins; if none does, the centred square of the short side.
    """
    width, height = size
    aspects = np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1]), 10))
    shares = rng.uniform(*area, 10)
    for a, share in zip(aspects, shares, strict=True):
        w, h = area_size(float(share) * width * height, float(a))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    short = min(size)
    left, top = (width - short) // 2, (height - short) // 2
    return left, top, left + short, top + short


def area_size(area: float, aspect: float) -> Size:
    """Width and height, whole pixels, of a box of this area and width / height."""
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def scale_sizes(size: Size, crop: int, scales: tuple[float, ...], gap: int) -> list[Size]:
    """Sizes that MultiScaleCrop chooses from: the short side times each scale, for width and height.

    gap  how far apart in `scales` those of width and height may be: 0 allows squares only
    A side within two pixels of `crop` becomes `crop`, which saves a resize.
    """
    sides = [int(min(size) * scale) for scale in scales]
    sides = [crop if abs(side - crop) <= 2 else side for side in sides]
    sides = [min(max(side, 1), min(size)) for side in sides]
    return [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= gap]


def grid_boxes(size: Size, box: Size, points: Literal[5, 13]) -> list[Box]:
    """Boxes of one size at 5 or 13 fixed points of the frame; some coincide if there is little room."""
    x, y = (size[0] - box[0]) // 4, (size[1] - box[1]) // 4
    grid = FIVE if points == 5 else THIRTEEN
    return [(i * x, j * y, i * x + box[0], j * y + box[1]) for i, j in grid]


def scale_crop(
    size: Size,
    crop: int,
    rng: np.random.Generator,
    *,
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66),
    gap: int = 1,
    points: Literal[5, 13] = 5,
) -> Box:
    """MultiScaleCrop: one of `scale_sizes` at one of its `grid_boxes`, both drawn uniformly."""
    sizes = scale_sizes(size, crop, scales, gap)
    boxes = grid_boxes(size, sizes[rng.integers(len(sizes))], points)
    return boxes[rng.integers(len(boxes))]


def rescale_box(box: Box, source: Size, target: Size) -> Box:
    """A box of frames of one size in the pixels of the same frames in another, at least one pixel."""
    fx, fy = target[0] / source[0], target[1] / source[1]
    left = min(round(box[0] * fx), target[0] - 1)
    top = min(round(box[1] * fy), target[1] - 1)
    return left, top, max(left + 1, round(box[2] * fx)), max(top + 1, round(box[3] * fy))


def move_boxes(
    boxes: NDArray[np.float32], source: Size, size: Size, crop: Box | None = None, *, mirrored: bool = False
) -> NDArray[np.float32]:
    """Boxes of objects, moved along with the pixels: frames of `source` resized to `size`, cropped, mirrored.

    boxes  float32 [N, 4], left, top, right, bottom in pixels of the source; so is the result, in pixels of
           what is left. As published for AVA (shared by open-mmlab/mmaction2@v0.24.1), boxes are clipped
           into the crop at its last pixel, those outside it keep their row with no area, and x becomes
           width - x in a mirror.
    """
    moved = boxes.astype(np.float32) * np.tile(np.float32(np.divide(size, source)), 2)
    width = size[0]
    if crop is not None:
        width, height = crop[2] - crop[0], crop[3] - crop[1]
        last = np.array([width - 1, height - 1] * 2, np.float32)
        moved = np.clip(moved - np.array([*crop[:2], *crop[:2]], np.float32), 0, last)
    if mirrored:
        moved[:, [0, 2]] = width - moved[:, [2, 0]]
    return moved.astype(np.float32)
