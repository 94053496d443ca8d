"""Folders of numbered pictures as videos, decoded by Pillow (JPEG: libjpeg-turbo, as OpenCV)."""

import itertools
import os
import re
import string
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from marey.errors import MediaError, UsageError
from marey.video.limits import Limits, Note, exceeded
from marey.video.sniff import cannot_read, changed

PICTURE = re.compile(r"(.*?)(\d+)(\.(?:jpe?g|png|bmp|webp|tiff?|ppm))", re.IGNORECASE | re.DOTALL)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
LISTED = 8  # missing numbers that a note names


class Folder(NamedTuple):
    """The frames of a folder: file names in order, (width, height) as shown of the first, and notes."""

    names: tuple[str, ...]
    size: tuple[int, int]
    notes: tuple[Note, ...]


def scan_folder(path: str, template: str | None, start: int | None, limits: Limits, upright: bool) -> Folder:
    """Finds the frames of a folder; see `marey.video.reader.read_video` for template and start.

    Raises NOT_MEDIA (no numbered pictures), NO_ACCESS, NOT_DECODABLE, LIMIT_EXCEEDED and UsageError TEMPLATE.
    """
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_file()]
    except OSError as error:
        raise cannot_read(path, error) from error
    rule = _rule(template) if template else _only_series(names, path)
    found = {int(match[1]): name for name in sorted(names) if (match := rule.fullmatch(name))}
    numbers = sorted(number for number in found if start is None or number >= start)
    if not numbers:
        what = f"no files named like {template!r}" if template else "no numbered pictures"
        if start is not None:
            what += f" from number {start} on"
        raise MediaError("NOT_MEDIA", f"the folder {path!r} has {what}; check the names, and `template`")
    if len(numbers) > limits.frames:
        raise exceeded(path, f"has {len(numbers):,} frames", "frames", limits.frames)
    files = tuple(found[number] for number in numbers)
    first = next((size for name in files if (size := _size(path, name, limits, upright))), None)
    if first is None:
        raise MediaError(
            "NOT_DECODABLE", f"no picture in the folder {path!r} can be decoded; write them again"
        )
    return Folder(files, first, _gaps(numbers if start is None else [start - 1, *numbers]))


class FolderDecoder:
    """Reads pictures of a folder; one that cannot be decoded shows the one before, and is noted."""

    name = "pillow"

    def __init__(self, path: str, folder: Folder, limits: Limits, upright: bool) -> None:
        self._path, self._folder, self._limits, self._upright = path, folder, limits, upright
        self._lost: set[int] = set()
        self.found: dict[str, Note] = {}

    def read(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """The frames of these numbers, in this order: uint8 [T, H, W, 3]."""
        width, height = self._folder.size
        out = torch.empty((len(indices), height, width, 3), dtype=torch.uint8)
        unique, places = np.unique(indices, return_inverse=True)
        for place, number in enumerate(unique.tolist()):
            out[torch.from_numpy(places == place)] = torch.from_numpy(self._frame(number))
        return out

    def check_all(self) -> None:
        """Decodes every picture once, so that damaged ones are found."""
        for number in range(len(self._folder.names)):
            self._decode(number)

    def close(self) -> None:
        """Nothing is held."""

    def _frame(self, number: int) -> npt.NDArray[np.uint8]:
        for near in (*range(number, -1, -1), *range(number + 1, len(self._folder.names))):
            pixels = self._decode(near)
            if pixels is not None:
                return pixels
        raise MediaError("NOT_DECODABLE", f"no picture in the folder {self._path!r} can be decoded")

    def _decode(self, number: int) -> npt.NDArray[np.uint8] | None:
        """The picture as uint8 [H, W, 3], or None where it is damaged."""
        file = os.path.join(self._path, self._folder.names[number])  # noqa: PTH118 - Path changes the name
        try:
            with Image.open(file, formats=FORMATS) as image:
                _check_size(file, image.size, self._limits)
                turned = ImageOps.exif_transpose(image) if self._upright else image
                if turned.size != self._folder.size:
                    text = f"frames such as {self._folder.names[number]!r} have another size and are resized"
                    self.found["SIZE_CHANGED"] = Note("SIZE_CHANGED", f"{text} to that of the first")
                    turned = turned.resize(self._folder.size, Image.Resampling.BICUBIC)
                if turned.mode.startswith("I"):  # 16 bits; Pillow would cut them off at 255
                    gray = np.asarray(turned).astype(np.int64) >> 8
                    return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)
                return np.array(turned.convert("RGB"))
        except FileNotFoundError as error:
            raise changed(self._path) from error
        except Image.DecompressionBombError as error:
            raise exceeded(file, "has a picture", "pixels", self._limits.pixels) from error
        except (OSError, SyntaxError, ValueError):  # what Pillow raises for broken pictures
            self._lost.add(number)
            first = self._folder.names[min(self._lost)]
            text = f"{len(self._lost)} of the frames read cannot be decoded, the first is {first!r}"
            self.found["FRAMES_DAMAGED"] = Note("FRAMES_DAMAGED", f"{text}; the one before is shown")
            return None


def _size(path: str, name: str, limits: Limits, upright: bool) -> tuple[int, int] | None:
    """(width, height) as shown of a picture, from its header; None where it has none."""
    file = os.path.join(path, name)  # noqa: PTH118
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_size(file, image.size, limits)
            width, height = image.size
            exchanged = upright and image.getexif().get(0x0112, 1) >= 5  # Exif 2.3, orientation
            return (height, width) if exchanged else (width, height)
    except Image.DecompressionBombError as error:
        raise exceeded(file, "has a picture", "pixels", limits.pixels) from error
    except (OSError, SyntaxError, ValueError):
        return None


def _check_size(file: str, size: tuple[int, int], limits: Limits) -> None:
    if size[0] * size[1] > limits.pixels:
        raise exceeded(file, f"has {size[0]} x {size[1]} pixels", "pixels", limits.pixels)


def _rule(template: str) -> re.Pattern[str]:
    """What file names follow a template such as "img_{:05}.jpg"; its digits may be padded otherwise."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(
            "TEMPLATE", f"template {template!r} is not one: {error}; write img_{{:05}}.jpg"
        ) from error
    if sum(field is not None for _, field, _, _ in parts) != 1 or Path(template).name != template:
        raise UsageError(
            "TEMPLATE", f"template {template!r} must be a file name with one number, such as img_{{:05}}.jpg"
        )
    return re.compile(
        "".join(re.escape(text) + (r"(\d+)" if field is not None else "") for text, field, _, _ in parts),
        re.ASCII,
    )


def _only_series(names: list[str], path: str) -> re.Pattern[str]:
    """What file names the one series of numbered pictures in a folder follows."""
    series: defaultdict[tuple[str, str], int] = defaultdict(int)
    for name in names:
        if match := PICTURE.fullmatch(name):
            series[match[1], match[3]] += 1
    if len(series) > 1:
        known = ", ".join(repr(f"{before}{{}}{after}") for before, after in sorted(series)[:LISTED])
        raise UsageError(
            "TEMPLATE", f"the folder {path!r} has several series of pictures: {known}; name one as template"
        )
    return re.compile(
        "|".join(re.escape(before) + r"(\d+)" + re.escape(after) for before, after in series) or "(?!)"
    )


def _gaps(numbers: list[int]) -> tuple[Note, ...]:
    """FRAMES_MISSING where numbers are left out."""
    steps = itertools.pairwise(numbers)
    gaps = [(low + 1, high - 1) for low, high in steps if high > low + 1]
    if not gaps:
        return ()
    count = sum(high - low + 1 for low, high in gaps)
    listed = ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in gaps[:LISTED])
    listed += ", ..." if len(gaps) > LISTED else ""
    return (Note("FRAMES_MISSING", f"{count} numbers are missing and left out: {listed}"),)
