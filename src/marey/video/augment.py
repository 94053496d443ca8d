"""What is done to training clips beyond crop and mirror: RandAugment, erasing, mixing them with each other.

A clip's draws are made once and hold for all its frames. RandAugment changes uint8 `[B, T, H, W, 3]` on the
device they are on, all frames of a clip at once; what it computes is what Pillow computes frame by frame.
Erasing and mixing change what `normalize` made of them, float `[B, 3, T, H, W]`. Numbers from
facebookresearch/SlowFast@287ec007:slowfast/datasets/{rand_augment,random_erasing,mixup}.py.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from marey.errors import UsageError
from marey.video.transforms import Box, Size, area_size

Floats = NDArray[np.float64]
Matrix = tuple[float, float, float, float, float, float]

FILL = 128  # of what a warp uncovers, every channel
GRAY = (19595, 38470, 7471)  # of red, green, blue, in 65536ths
ROUNDING = 1 / 16384  # so far below a whole number that is meant a float32 sum may end


def _check(what: str, right: bool, needed: str) -> None:
    if not right:
        raise UsageError("RECIPE_VALUE", f"training.augment.{what}: needed are {needed}")


class RandAugment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Changes of colour and geometry drawn for each clip (Cubuk et al., arXiv:1909.13719).

    layers       changes drawn from OPERATIONS, any of them more than once; 0: none
    magnitude    their strength, 0..10
    spread       standard deviation of the strength from change to change
    probability  of each drawn change to be made
    """

    layers: int = 0
    magnitude: float = 7.0
    spread: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        _check(
            "rand",
            self.layers >= 0
            and 0 <= self.magnitude <= 10
            and self.spread >= 0
            and 0 <= self.probability <= 1,
            "layers and spread not below 0, magnitude 0..10, probability 0..1",
        )


class Erasing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A box of the clip, the same in all frames, becomes noise (Zhong et al., arXiv:1708.04896).

    probability  of a clip to have one; 0: none
    area         lowest and highest share of the frame's area
    aspect       lowest and highest height / width
    """

    probability: float = 0.0
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        _check(
            "erasing",
            0 <= self.probability <= 1
            and 0 < self.area[0] <= self.area[1] <= 1
            and 0 < self.aspect[0] <= self.aspect[1],
            "probability 0..1, area (lowest, highest) within 0..1, aspect (lowest, highest) above 0",
        )


class Mixing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Clips of a batch mixed with those of the same batch in reverse order, and their targets alike.

    probability   of a batch to be mixed; 0: none
    mixup         alpha of the share of mixup (Zhang et al., arXiv:1710.09412), drawn from Beta(alpha, alpha)
    cutmix        alpha of the share of cutmix (Yun et al., arXiv:1905.04899), which swaps a box
    cutmix_share  share of the mixed batches that cutmix gets
    """

    probability: float = 0.0
    mixup: float = 0.8
    cutmix: float = 1.0
    cutmix_share: float = 0.5

    def __post_init__(self) -> None:
        _check(
            "mixing",
            0 <= self.probability <= 1 and 0 <= self.cutmix_share <= 1 and self.mixup > 0 and self.cutmix > 0,
            "probability and cutmix_share 0..1, mixup and cutmix above 0",
        )


class Augment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to training clips beyond `clips`.

    copies   clips made of each video that is decoded: same frames, other crops, mirrors and changes
    rand     changes of colour and geometry
    erasing  boxes of noise
    mixing   mixup and cutmix
    """

    copies: int = 1
    rand: RandAugment = RandAugment()
    erasing: Erasing = Erasing()
    mixing: Mixing = Mixing()

    def __post_init__(self) -> None:
        _check("copies", self.copies >= 1, "at least 1")


# RandAugment ------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """One of OPERATIONS and how far it goes, in its own unit."""

    name: str
    amount: float


class Operation(NamedTuple):
    """What an operation does, and how its amount follows from a strength of 0..10.

    run    of frames and amount
    reach  of strength / 10: how far from `start` the amount is
    two    it has two directions, of which one is drawn
    """

    run: Callable[[Tensor, float], Tensor]
    reach: Callable[[float], float]
    start: float = 0.0
    two: bool = False


def rand_augment(frames: Tensor, settings: RandAugment, rngs: Sequence[np.random.Generator]) -> Tensor:
    """Each clip changed by draws from its own generator: uint8 [B, T, H, W, 3], same shape and device."""
    if not settings.layers:
        return frames
    clips = [
        apply(clip, draw_changes(settings, rng)) for clip, rng in zip(frames.unbind(), rngs, strict=True)
    ]
    return torch.stack(clips) if clips else frames


def draw_changes(settings: RandAugment, rng: np.random.Generator) -> list[Change]:
    """The changes of one clip, in the order in which they are made."""
    names = list(OPERATIONS)
    changes = []
    for number in rng.integers(len(names), size=settings.layers):
        if rng.random() < settings.probability:
            strength = min(max(rng.normal(settings.magnitude, settings.spread), 0.0), 10.0)
            negative = OPERATIONS[names[number]].two and rng.random() > 0.5
            changes.append(change(names[number], strength, negative))
    return changes


def change(name: str, strength: float, negative: bool = False) -> Change:
    """An operation at a strength of 0..10; `negative` turns those that have two directions."""
    operation = OPERATIONS[name]
    reach = operation.reach(strength / 10)
    return Change(name, operation.start + (-reach if negative and operation.two else reach))


def apply(frames: Tensor, changes: Sequence[Change]) -> Tensor:
    """Frames uint8 [T, H, W, 3] after the changes; the given ones are left as they are."""
    for name, amount in changes:
        run = OPERATIONS[name].run
        if frames.device.type != "cpu" or run in WARPS:
            frames = run(frames, amount)
        else:  # a frame at a time stays in the cache: twice as fast
            frames = torch.cat([run(frame, amount) for frame in torch.split(frames, 1)])
    return frames


def auto_contrast(frames: Tensor, _: float = 0.0) -> Tensor:
    """Each channel of each frame stretched from its darkest and lightest value to 0 and 255."""
    planes = frames.permute(0, 3, 1, 2).contiguous().flatten(2)  # [T, 3, H * W]
    # float64 as in Pillow, which not every device has
    low, high = (ends.cpu().double().unsqueeze(1) for ends in (planes.amin(2), planes.amax(2)))
    scale = torch.full_like(low, 255) / (high - low)  # 255 / tensor would multiply by a rounded inverse
    values = torch.arange(256, dtype=torch.float64).view(1, -1, 1)
    stretched = (values * scale + -low * scale).clamp(0, 255)
    tables = torch.where(high > low, stretched, values.expand_as(stretched))
    return _look_up(_places(frames), tables.to(torch.uint8).to(frames.device))


def equalize(frames: Tensor, _: float = 0.0) -> Tensor:
    """Each channel of each frame with its values spread so that they are about equally frequent."""
    places = _places(frames)
    found = torch.bincount(places.view(-1), minlength=len(frames) * 768).view(-1, 3, 256)
    last = 255 - (found.flip(2) > 0).to(torch.uint8).argmax(2, keepdim=True)  # highest value that occurs
    step = (found.sum(2, keepdim=True) - found.gather(2, last)) // 255
    before = found.cumsum(2) - found
    spread = (step // 2 + before) // step.clamp(min=1)
    same = torch.arange(256, device=frames.device).expand_as(spread)
    return _look_up(places, torch.where(step > 0, spread.clamp(max=255), same).transpose(1, 2))


def _places(frames: Tensor) -> Tensor:
    """Each value's place among the tables of all frames and channels, 256 each: int32 [T, H, W, 3]."""
    count, _, width, _ = frames.shape
    tables = torch.arange(3 * count, dtype=torch.int32, device=frames.device).view(count, 1, 3) * 256
    return (frames.flatten(2) + tables.repeat(1, 1, width)).view(frames.shape)  # along whole lines


def _look_up(places: Tensor, tables: Tensor) -> Tensor:
    """The values in the tables [T, 256, 3] at these places, fractions dropped: uint8 [T, H, W, 3]."""
    flat = tables.transpose(1, 2).to(torch.uint8).reshape(-1)
    return flat.index_select(0, places.view(-1)).view(places.shape)


def invert(frames: Tensor, _: float = 0.0) -> Tensor:
    """255 - value."""
    return ~frames


def posterize(frames: Tensor, bits: float) -> Tensor:
    """Only the highest bits of each value."""
    return frames & (256 - (1 << (8 - int(bits)))) if bits >= 1 else torch.zeros_like(frames)


def solarize(frames: Tensor, threshold: float) -> Tensor:
    """Values from the threshold on are inverted."""
    return frames ^ (frames >= int(threshold)).view(torch.uint8).neg() if threshold < 256 else frames


def solarize_add(frames: Tensor, amount: float) -> Tensor:
    """Values below 128 are raised by the amount (0..127)."""
    return frames + (frames < 128).view(torch.uint8) * int(amount)


def color(frames: Tensor, factor: float) -> Tensor:
    """Away from grey by the factor: 0 is grey, 1 unchanged."""
    gray = _gray(frames)
    return _away(frames, torch.stack((gray, gray, gray), -1), factor)


def contrast(frames: Tensor, factor: float) -> Tensor:
    """Away from the frame's mean grey."""
    gray = _gray(frames).flatten(1)
    mean = (2 * gray.sum(1) + gray.shape[1]) // (2 * gray.shape[1])  # rounded
    return _away(frames, mean.view(-1, 1, 1, 1), factor)


def brightness(frames: Tensor, factor: float) -> Tensor:
    """Away from black."""
    return _away(frames, torch.zeros((), device=frames.device), factor)


def sharpness(frames: Tensor, factor: float) -> Tensor:
    """Away from the frame smoothed by 3 x 3 ones with a 5 in the middle; the border stays as it is."""
    if min(frames.shape[1:3]) < 3:
        return frames
    whole = frames.to(torch.int16)
    rows = whole[:, :-2] + whole[:, 1:-1] + whole[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * whole[:, 1:-1, 1:-1]
    smooth = whole.float()
    smooth[:, 1:-1, 1:-1] = total.float().div_(13).add_(0.5).floor_()
    return _away(frames, smooth, factor)


def _gray(frames: Tensor) -> Tensor:
    """Rounded luma (ITU-R 601) of each pixel: int32 [T, H, W]."""
    planes = frames.permute(3, 0, 1, 2).contiguous().int()
    red, green, blue = (plane * weight for plane, weight in zip(planes, GRAY, strict=True))
    rounded: Tensor = (red + green + blue + 0x8000) >> 16
    return rounded


def _away(frames: Tensor, origin: Tensor, factor: float) -> Tensor:
    """Origin + factor * (value - origin), fractions dropped, in the order of Pillow's float32 arithmetic."""
    start = origin.float()
    moved: Tensor = frames.float().sub_(start).mul_(factor).add_(start)
    return _to_bytes(moved)


def _to_bytes(values: Tensor) -> Tensor:
    """Float values cut to 0..255 and their fractions dropped: uint8. Changes what it is given."""
    whole: Tensor = values.clamp_(0, 255).to(torch.int16)  # straight to bytes takes four times as long
    return whole.to(torch.uint8)


def rotate(frames: Tensor, degrees: float) -> Tensor:
    """Turned counterclockwise about the middle."""
    height, width = frames.shape[1:3]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return warp(frames, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def shear_x(frames: Tensor, factor: float) -> Tensor:
    """Each row taken from `factor` pixels further right than the row above."""
    return warp(frames, (1, factor, 0, 0, 1, 0))


def shear_y(frames: Tensor, factor: float) -> Tensor:
    """Each column taken from `factor` pixels further down than the column before."""
    return warp(frames, (1, 0, 0, factor, 1, 0))


def translate_x(frames: Tensor, share: float) -> Tensor:
    """Taken from this share of the width further right."""
    return warp(frames, (1, 0, share * frames.shape[2], 0, 1, 0))


def translate_y(frames: Tensor, share: float) -> Tensor:
    """Taken from this share of the height further down."""
    return warp(frames, (1, 0, 0, 0, 1, share * frames.shape[1]))


def warp(frames: Tensor, matrix: Matrix) -> Tensor:
    """Frames uint8 [T, H, W, 3] seen through an affine map, bicubic as Pillow has it (a = -1).

    matrix  a b c, d e f: the pixel at (x, y) is taken from (a x + b y + c, d x + e y + f), middles at .5;
            places outside the frame are FILL
    Weights are float32 where Pillow's are float64: a value may fall one grey level beside Pillow's.
    """
    count, height, width, _ = frames.shape
    a, b, c, d, e, f = matrix
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    across, down = (a * x + b * y + c).ravel(), (d * x + e * y + f).ravel()
    outside = (across < 0) | (across >= width) | (down < 0) | (down >= height)
    start = np.where(outside, FILL + 0.5, ROUNDING).astype(np.float32)[:, None]
    (columns, share_x), (rows, share_y) = _taps(across, width), _taps(down, height)
    place = (rows[:, None] * width + columns).reshape(-1, height * width).T
    shares = (share_y[:, None] * share_x * ~outside).reshape(-1, height * width).T
    taps, weights, base = (torch.from_numpy(part).to(frames.device) for part in (place, shares, start))
    # a row for each pixel, with that pixel of all frames: weighted sums of rows are one call
    pixels = frames.permute(1, 2, 3, 0).contiguous().view(height * width, -1).float()
    warped = F.embedding_bag(taps.contiguous(), pixels, per_sample_weights=weights.contiguous(), mode="sum")
    warped = _to_bytes(warped.add_(base))
    return warped.view(height, width, 3, count).permute(3, 0, 1, 2).contiguous()


def _taps(places: Floats, size: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Four pixels about each place of an axis and their weights, [4, N]; [1, N] where all lie on pixels."""
    first = np.floor(places - 0.5)
    t = (places - 0.5 - first).astype(np.float32)
    if not t.any():
        return first[None].clip(0, size - 1).astype(np.int32), np.ones((1, len(t)), np.float32)
    square = t * t
    cube = square * t
    shares = np.stack([-t + 2 * square - cube, 1 - 2 * square + cube, t + square - cube, cube - square])
    index = first.astype(np.int32) + np.arange(-1, 3, dtype=np.int32)[:, None]
    return index.clip(0, size - 1), shares


WARPS = (rotate, shear_x, shear_y, translate_x, translate_y)  # a clip's frames share most of their work

# in the published order
OPERATIONS = {
    "auto_contrast": Operation(auto_contrast, lambda s: 0),
    "equalize": Operation(equalize, lambda s: 0),
    "invert": Operation(invert, lambda s: 0),
    "rotate": Operation(rotate, lambda s: 30 * s, two=True),
    "posterize": Operation(posterize, lambda s: -int(4 * s), start=4),
    "solarize": Operation(solarize, lambda s: -int(256 * s), start=256),
    "solarize_add": Operation(solarize_add, lambda s: int(110 * s)),
    "color": Operation(color, lambda s: 0.9 * s, start=1, two=True),
    "contrast": Operation(contrast, lambda s: 0.9 * s, start=1, two=True),
    "brightness": Operation(brightness, lambda s: 0.9 * s, start=1, two=True),
    "sharpness": Operation(sharpness, lambda s: 0.9 * s, start=1, two=True),
    "shear_x": Operation(shear_x, lambda s: 0.3 * s, two=True),
    "shear_y": Operation(shear_y, lambda s: 0.3 * s, two=True),
    "translate_x": Operation(translate_x, lambda s: 0.45 * s, two=True),
    "translate_y": Operation(translate_y, lambda s: 0.45 * s, two=True),
}


# Erasing ----------------------------------------------------------------------------------------------


def random_erase(clips: Tensor, settings: Erasing, rngs: Sequence[np.random.Generator]) -> Tensor:
    """Clips float [B, 3, T, H, W] of unit variance with the boxes drawn for them, changed in place."""
    if not settings.probability:
        return clips
    size = (clips.shape[4], clips.shape[3])
    for clip, rng in zip(clips.unbind(), rngs, strict=True):
        box = draw_box(settings, size, rng)
        if box is not None:
            noise = torch.Generator(clips.device).manual_seed(int(rng.integers(2**63)))
            erase(clip, box, noise)
    return clips


def draw_box(settings: Erasing, size: Size, rng: np.random.Generator) -> Box | None:
    """The box of a clip of this (width, height), or None; the first of a hundred candidates that fits."""
    if rng.random() >= settings.probability:
        return None
    logs = np.log(settings.aspect)
    for _ in range(100):
        area = size[0] * size[1] * rng.uniform(*settings.area)
        height, width = area_size(float(area), float(np.exp(rng.uniform(*logs))))
        if 0 < width < size[0] and 0 < height < size[1]:
            top, left = (int(rng.integers(0, room + 1)) for room in (size[1] - height, size[0] - width))
            return left, top, left + width, top + height
    return None


def erase(clip: Tensor, box: Box, noise: torch.Generator) -> None:
    """Standard normal noise, other in every frame, in the box of a clip float [3, T, H, W]."""
    left, top, right, bottom = box
    for frame in clip.unbind(1):
        shape = (len(frame), bottom - top, right - left)
        frame[:, top:bottom, left:right] = torch.empty(shape, device=clip.device).normal_(generator=noise)


# Mixing -----------------------------------------------------------------------------------------------


class Mixture(NamedTuple):
    """How clips are mixed: the share that each keeps of itself, and the box taken from the other (cutmix)."""

    share: float
    box: Box | None = None


def draw_mixture(settings: Mixing, size: Size, rng: np.random.Generator) -> Mixture | None:
    """How a batch of clips of this (width, height) is mixed, or None."""
    if rng.random() >= settings.probability:
        return None
    if rng.random() >= settings.cutmix_share:
        return Mixture(float(rng.beta(settings.mixup, settings.mixup)))
    share = float(rng.beta(settings.cutmix, settings.cutmix))
    y, x = (int(rng.integers(0, side)) for side in (size[1], size[0]))
    return cut(share, size, (x, y))


def cut(share: float, size: Size, middle: tuple[int, int]) -> Mixture:
    """The box about a middle (x, y) that leaves a share of the frame; the share is of what lies inside."""
    ratio = math.sqrt(1 - share)
    half_x, half_y = int(size[0] * ratio) // 2, int(size[1] * ratio) // 2
    left, right = max(middle[0] - half_x, 0), min(middle[0] + half_x, size[0])
    top, bottom = max(middle[1] - half_y, 0), min(middle[1] + half_y, size[1])
    covered = (right - left) * (bottom - top)
    return Mixture(1 - covered / (size[0] * size[1]), (left, top, right, bottom))


def mix(clips: Tensor, mixture: Mixture) -> Tensor:
    """Each of the clips float [B, 3, T, H, W] mixed with clip B - 1 - i; changed in place."""
    if mixture.box is None:
        other = clips.flip(0).mul_(1 - mixture.share)
        return clips.mul_(mixture.share).add_(other)
    left, top, right, bottom = mixture.box
    clips[..., top:bottom, left:right] = clips[..., top:bottom, left:right].flip(0)
    return clips


def mix_targets(targets: Tensor, mixture: Mixture) -> Tensor:
    """Targets float [B, C] of the mixed clips."""
    return targets * mixture.share + targets.flip(0) * (1 - mixture.share)
