"""Sizes, boxes and pixels: resize, crop and colours of uint8 frames `[T, H, W, 3]`, RGB, 0..255.

A size is (width, height). A crop box is (left, top, right, bottom) in whole pixels, right and bottom
excluded. Formulas of sizes and boxes are those of open-mmlab/mmaction2@v0.24.1
(mmaction/datasets/pipelines/augmentations.py).
"""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from marey.errors import MediaError

Size = tuple[int, int]
Box = tuple[int, int, int, int]
Crops = Literal["center", "three", "ten"]
Resize = Literal["bilinear", "opencv"]

CACHED = 2_000_000  # bytes of source frames resized at once; beyond the cache it takes up to 4 times as long

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


def to_short_side(size: Size, side: int, *, down: bool = False) -> Size:
    """The size with this short side; the long side's fraction is rounded, or dropped (PySlowFast: `down`)."""
    if not down:
        return scaled(size, side / min(size))
    width, height = (math.floor(length / min(size) * side) for length in size)
    return width, height


def fit(size: Size, bounds: Size) -> Size:
    """The largest size, aspect kept, whose long and short side do not exceed those of `bounds`."""
    return scaled(size, min(max(bounds) / max(size), min(bounds) / min(size)))


def crop_boxes(
    kind: Crops, size: Size, crop: int, *, flush: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The square boxes [C, 4] of a test protocol in their published order, and which are mirrored, [C].

    "center"  one. "three": left, right, middle of a wide frame (top, bottom, middle of a tall one); they
              cover it only if its short side is `crop`. "ten": corners and centre, each followed by its
              mirror image. Boxes at the far side can end one to three pixels before the border.
    flush     they end at the border, and middles are rounded up, as PySlowFast has it (not with "ten")
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
    corners = -(-np.array(points) * (x, y) // parts) if flush else np.array(points) * (x // parts, y // parts)
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
    square: bool = True,
) -> Box:
    """RandomResizedCrop: a box of random share of the frame's area and random width / height.

    The first of ten candidates that fits wins; if none does, the centred square of the short side, or
    without `square` the largest centred box within the aspects (PySlowFast).
    """
    width, height = size
    aspects = np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1]), 10))
    shares = rng.uniform(*area, 10)
    for a, share in zip(aspects, shares, strict=True):
        w, h = area_size(float(share) * width * height, float(a))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w, h = (
        (min(size),) * 2
        if square
        else (min(width, round(height * aspect[1])), min(height, round(width / aspect[0])))
    )
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def area_size(area: float, aspect: float) -> Size:
    """Width and height, whole pixels, of a box of this area and width / height."""
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def scale_sizes(size: Size, snap: int, scales: tuple[float, ...], gap: int) -> list[Size]:
    """Sizes that MultiScaleCrop chooses from: the short side times each scale, for width and height.

    snap  sides within two pixels of it become it, which saves a resize where it is the crop
    gap   how far apart in `scales` those of width and height may be: 0 allows squares only
    """
    sides = [int(min(size) * scale) for scale in scales]
    sides = [snap if abs(side - snap) <= 2 else side for side in sides]
    sides = [min(max(side, 1), min(size)) for side in sides]
    return [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= gap]


def grid_boxes(size: Size, box: Size, points: Literal[5, 13]) -> list[Box]:
    """Boxes of one size at 5 or 13 fixed points of the frame; some coincide if there is little room."""
    x, y = (size[0] - box[0]) // 4, (size[1] - box[1]) // 4
    grid = FIVE if points == 5 else THIRTEEN
    return [(i * x, j * y, i * x + box[0], j * y + box[1]) for i, j in grid]


def scale_crop(
    size: Size,
    snap: int,
    rng: np.random.Generator,
    *,
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66),
    gap: int = 1,
    points: Literal[5, 13] = 5,
) -> Box:
    """MultiScaleCrop: one of `scale_sizes` at one of its `grid_boxes`, both drawn uniformly."""
    sizes = scale_sizes(size, snap, scales, gap)
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


# Pixels ----------------------------------------------------------------------------------------------


def resize(frames: Tensor, size: Size, mode: Resize = "bilinear", box: Box | None = None) -> Tensor:
    """Frames resized to (width, height), bilinear without antialiasing: uint8 `[T, height, width, 3]`.

    mode  "opencv" gives the bits of OpenCV's INTER_LINEAR, which the published test pipelines used;
          "bilinear" is torch's, about four times as fast and within one grey level of exact arithmetic
    box   only this part of the resized frames is returned (and, by "opencv", computed)
    """
    left, top, right, bottom = box or (0, 0, *size)
    if (frames.shape[2], frames.shape[1]) == size:
        return frames[:, top:bottom, left:right]
    if mode == "opencv":
        return _resize_opencv(frames, size, (left, top, right, bottom))
    result = torch.empty((len(frames), bottom - top, right - left, 3), dtype=torch.uint8)
    step = max(1, CACHED // (frames.shape[1] * frames.shape[2] * 3))
    for first in range(0, len(frames), step):
        planes = frames[first : first + step].permute(0, 3, 1, 2)  # channels_last: torch's fast uint8 kernel
        whole = interpolate(planes, size=(size[1], size[0]), mode="bilinear").permute(0, 2, 3, 1)
        result[first : first + step] = whole[:, top:bottom, left:right]
    return result


def crop_resize(frames: Tensor, size: Size, box: Box, out: Size, mode: Resize = "bilinear") -> Tensor:
    """A box of the frames resized to `size`, itself resized to `out`: uint8 `[T, *reversed(out), 3]`.

    mode  "opencv" makes both steps, each rounded to uint8, as the published training pipelines did;
          "bilinear" resamples once, from the source pixels that the box comes from (to the nearest pixel):
          faster and sharper, the distribution of boxes is the same
    """
    if mode == "opencv":
        return resize(resize(frames, size, mode, box), out, mode)
    left, top, right, bottom = rescale_box(box, size, (frames.shape[2], frames.shape[1]))
    return resize(frames[:, top:bottom, left:right], out)


def color_jitter(
    frames: Tensor, rng: np.random.Generator, strength: tuple[float, float, float, float]
) -> Tensor:
    """Brightness, contrast, saturation and hue changed by one draw for all frames: uint8, same shape.

    strength  the four in that order: factors are uniform in 1 +- strength, the hue moves by up to
              +- strength (0..0.5) of the circle, in whole steps of its 180
    The order of the four is drawn too. (open-mmlab/mmaction2@v0.24.1 draws it once per run and scales the
    hue by 255 where it has 180 steps; neither is kept.)
    """
    low, high = 1 - np.array(strength[:3]), 1 + np.array(strength[:3])
    factors = rng.uniform(np.maximum(low, 0), high)
    turn = round(rng.uniform(-strength[3], strength[3]) * 180) / 180
    pixels = frames.float()
    for change in rng.permutation(4):
        if change == 3:
            pixels = _turn_hue(pixels, turn)
            continue
        gray = (pixels @ pixels.new_tensor([0.2989, 0.587, 0.114]))[..., None]
        towards = (torch.zeros_like(gray), gray.mean((1, 2, 3), keepdim=True), gray)[change]
        pixels = torch.lerp(towards.expand_as(pixels), pixels, float(factors[change]))
    return pixels.clamp(0, 255).round_().to(torch.uint8)


def _turn_hue(pixels: Tensor, turn: float) -> Tensor:
    """RGB float 0..255 with the HSV hue moved by `turn` circles; value and saturation stay."""
    red, green, blue = pixels.clamp(0, 255).unbind(-1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    unit = chroma.clamp(min=1e-6)
    hue = torch.where(value == green, (blue - red) / unit + 2, (red - green) / unit + 4)  # in sixths
    hue = torch.where(value == red, (green - blue) / unit, hue) + 6 * turn
    place = (hue[..., None] + hue.new_tensor([5, 3, 1])) % 6
    below = torch.minimum(place, 4 - place).clamp(0, 1)
    return value[..., None] - chroma[..., None] * below


def _resize_opencv(frames: Tensor, size: Size, box: Box) -> Tensor:
    """OpenCV's fixed-point bilinear resize, computed in exact integers, frame by frame to stay in cache.

    Verified bit for bit against OpenCV 4.14 and 5.0 on x86-64.
    """
    left, top, right, bottom = box
    count, height, width, _ = frames.shape
    x0, x1, a0, a1 = _taps(width, size[0], left, right, reset=True)
    y0, y1, b0, b1 = _taps(height, size[1], top, bottom, reset=False)
    rows, local = np.unique([y0, y1], return_inverse=True)
    above, below = torch.from_numpy(local.reshape(2, -1))
    c0, c1 = torch.from_numpy(a0.repeat(3)), torch.from_numpy(a1.repeat(3))
    d0, d1 = torch.from_numpy(b0)[:, None], torch.from_numpy(b1)[:, None]
    i0, i1 = ((x[:, None] * 3 + np.arange(3)).ravel() for x in (x0, x1))
    source = frames.numpy().reshape(count, height, width * 3)
    out = torch.empty((count, bottom - top, (right - left) * 3), dtype=torch.uint8)
    for image, result in zip(source, out, strict=True):
        used = image if len(rows) == height else image[rows]
        lines = torch.from_numpy(used.take(i0, axis=1)).to(torch.int32).mul_(c0)
        lines += torch.from_numpy(used.take(i1, axis=1)).to(torch.int32).mul_(c1)
        lines >>= 4
        upper = lines.index_select(0, above).mul_(d0).bitwise_right_shift_(16)
        lower = lines.index_select(0, below).mul_(d1).bitwise_right_shift_(16)
        result.copy_(upper.add_(lower).add_(2).bitwise_right_shift_(2))
    return out.view(count, bottom - top, right - left, 3)


def _taps(source: int, target: int, start: int, stop: int, *, reset: bool) -> tuple[NDArray[np.int64], ...]:
    """The two source pixels of each target pixel start..stop-1 along one axis, and their weights of 2048.

    reset  beyond the outer pixels' centres the border pixel alone counts (OpenCV: x only; along y the
           neighbours are clamped instead)
    """
    place = ((np.arange(start, stop) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(place)
    part = place - first
    if reset:
        part[(first < 0) | (first >= source - 1)] = 0
    weights = (np.rint(w * np.float32(2048)).astype(np.int32) for w in (np.float32(1) - part, part))
    index = first.astype(np.int64)
    return index.clip(0, source - 1), (index + 1).clip(0, source - 1), *weights
