"""Frames of poor light corrected: gamma, gain, a mean grey to reach, equalised grey levels.

Every correction of uint8 pixels is a table of 256 entries, so it is exact, the same on every device, and the
same for all pixels of a clip. Gamma as torchvision computes it for Andy1621/Nightcrawler@259fa5b9e6a8:
floor(255.999 x gain x (v / 255) ^ gamma), cut off at 255.
"""

import math
from functools import cache

import msgspec
import torch
from torch import Tensor

from marey.errors import UsageError


class Light(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A correction of light. Without any field set, frames stay as they are.

    gamma     exponent of v / 255: below 1 brightens dark pixels most (0.25: level 1 becomes 64)
    gain      factor after it
    target    instead of gamma: the grey, 0..255, that the mean of each clip's pixels is brought towards, by a
              gamma of its own, log(target / 255) / log(mean / 255)
    limits    of that gamma
    equalize  instead of all these: the levels of each clip are spread so that they are equally frequent, by
              one table for its three channels, which so keep their order
    decoded   frames are corrected as they were decoded, before they are resized, as published; else the batch
              is, on its device. Fixed gamma and gain only
    """

    gamma: float = 1.0
    gain: float = 1.0
    target: float | None = None
    limits: tuple[float, float] = (0.2, 1.0)
    equalize: bool = False
    decoded: bool = False

    def __post_init__(self) -> None:
        fixed = self.gamma != 1 or self.gain != 1
        faults = {
            "gamma and gain must be above 0": not min(self.gamma, self.gain) > 0,
            "target must lie between 0 and 255": self.target is not None and not 0 < self.target < 255,
            "limits must be above 0, the lower first": not 0 < self.limits[0] <= self.limits[1],
            "limits are of the gamma that brings clips to a target, and there is none": (
                self.limits != (0.2, 1.0) and self.target is None
            ),
            "target takes the place of gamma": self.target is not None and self.gamma != 1,
            "equalize takes the place of gamma, gain and target": (
                self.equalize and (fixed or self.target is not None)
            ),
            "target and equalize need whole clips, they cannot be decoded": (
                self.decoded and (self.equalize or self.target is not None)
            ),
        }
        for text, wrong in faults.items():
            if wrong:
                raise UsageError("LIGHT_INVALID", f"light: {text}")

    @property
    def fixed(self) -> bool:
        """Whether the table is the same for all clips."""
        return self.target is None and not self.equalize


def brighten(values: Tensor, gamma: float, gain: float = 1.0) -> Tensor:
    """Float values 0..1, corrected: gain x value ^ gamma, within 0..1."""
    return (gain * values**gamma).clamp_(0, 1)


@cache
def gamma_table(gamma: float, gain: float = 1.0) -> Tensor:
    """What becomes of each level 0..255: uint8 [256]. The fraction is dropped, not rounded."""
    levels = torch.arange(256, dtype=torch.uint8).float() / 255
    return brighten(levels, gamma, gain).mul(255.999).to(torch.uint8)


def equalizing_table(counts: Tensor) -> Tensor:
    """The table that spreads levels over 0..255 by how many pixels lie below: int64 [256] -> uint8 [256]."""
    below = counts.cumsum(0)
    first, total = int(below[counts > 0][0]), int(below[-1])
    if first == total:  # one level only
        return torch.arange(256, dtype=torch.uint8)
    return ((below - first).clamp(min=0).double() * 255 / (total - first)).round().to(torch.uint8)


def table_of(clip: Tensor, light: Light) -> Tensor:
    """The table for one clip, uint8 [256], on the CPU."""
    if light.fixed:
        return gamma_table(light.gamma, light.gain)
    counts = torch.bincount(clip.reshape(-1), minlength=256).cpu()
    if light.equalize:
        return equalizing_table(counts)
    mean = float((counts * torch.arange(256)).sum() / counts.sum()) / 255
    low, high = light.limits
    wanted, there = math.log((light.target or 1) / 255), math.log(min(max(mean, 1e-4), 1 - 1e-4))
    return gamma_table(round(min(max(wanted / there, low), high), 4), light.gain)


def relight(clips: Tensor, light: Light | None) -> Tensor:
    """Clips corrected, each by itself.

    clips  uint8 `[B, ...]`, on any device; they are not changed
    """
    if light is None or light == Light(decoded=light.decoded):
        return clips
    if light.fixed:
        return _look_up(clips, table_of(clips, light))
    return torch.stack([_look_up(clip, table_of(clip, light)) for clip in clips])


def _look_up(clip: Tensor, table: Tensor) -> Tensor:
    if clip.device.type == "cpu":
        return torch.from_numpy(table.numpy()[clip.numpy()])  # several times as fast as torch's
    return table.to(clip.device).index_select(0, clip.reshape(-1).int()).view(clip.shape)
