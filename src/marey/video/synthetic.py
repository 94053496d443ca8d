"""Rendered labelled videos for `marey demo` and the tests: made in seconds, same bytes for a seed.

Two things are drawn. `render_moving_shapes` makes a small data set whose actions differ by motion
alone: a shape's place and angle are uniform at every moment in every class (the picture wraps around
at its edges), so one frame says nothing about the class, and the two classes of a pair are each other
played backwards, so not even all frames without their order tell them apart. `render_numbered` makes a
video whose frame i shows i, which `number` reads back.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from io import StringIO
from math import atan2, ceil, cos, pi, sin
from os import PathLike
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import av
import numpy as np
import numpy.typing as npt

from marey.errors import EnvironmentFault, MediaError, UsageError
from marey.files import replacing

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

# class -> (right, down, clockwise), each -1, 0 or 1; in alphabetical order, as a folder per class sorts them
MOTIONS = {
    "move_down": (0, 1, 0),
    "move_left": (-1, 0, 0),
    "move_right": (1, 0, 0),
    "move_up": (0, -1, 0),
    "turn_clockwise": (0, 0, 1),
    "turn_counterclockwise": (0, 0, -1),
}
CLASSES = tuple(MOTIONS)
FLIP_LABELS = ((1, 2), (4, 5))  # what a mirror (left and right exchanged) turns into each other
BACKWARDS = ((0, 3), (1, 2), (4, 5))  # what playing backwards turns into each other

# shape -> corners, and how far in (as a share of the radius) the outline lies between two corners
SHAPES = {"circle": (32, cos(pi / 32)), "square": (4, cos(pi / 4)), "star": (5, 0.45), "triangle": (3, 0.5)}

# suffix -> FFmpeg's name of the container, where it is another
CONTAINERS = {".mkv": "matroska", ".ts": "mpegts", ".m4v": "mp4"}

ROWS, COLUMNS = 3, 8  # the bars of a numbered frame: 20 bits of number, 4 bits of check sum
NUMBERS = 1 << 20
TICKS = 10_000  # per second, of a variable rate: MP4 has 32 bits for the time between two frames


class Lists(NamedTuple):
    """The list files of a rendered data set."""

    train: Path
    val: Path
    test: Path


def render_moving_shapes(
    folder: str | PathLike[str],
    *,
    train: int = 40,
    val: int = 10,
    test: int = 10,
    seed: int = 0,
    size: tuple[int, int] = (96, 96),
    frames: int = 24,
    fps: float = 12,
    classes: Sequence[str] = CLASSES,
) -> Lists:
    """Render videos of moving and turning shapes and the lists that label them.

    train, val, test  videos per class in each split
    size              (width, height) in pixels, both even
    frames, fps       length of each video in frames, and frames per second
    classes           some of `CLASSES`, in label order

    Writes `<split>/<class>/<number>.mp4` and `<split>.csv` (columns path, label, class; paths relative to
    the list) into `folder`, which is made if need be. A video depends on seed, split, class and its number
    only: asking for more leaves those that were there as they were.
    Raises UsageError for counts or sizes that cannot be, EnvironmentFault where nothing can be encoded.
    """
    splits = {"train": train, "val": val, "test": test}
    if min(splits.values()) < 0 or frames < 1 or fps <= 0 or seed < 0:
        raise UsageError("BAD_VALUE", "counts and seed cannot be negative; frames and fps must be above zero")
    lists = {}
    for split, count in splits.items():
        rows = [(split, name, index) for name in classes for index in range(count)]
        for row in rows:
            clip = moving_shape(row[1], generator=_generator(seed, *row), size=size, frames=frames)
            write_video(_place(Path(folder), *row), clip, fps=fps)
        lists[split] = _write_list(Path(folder), split, rows, classes)
    return Lists(**lists)


def moving_shape(
    name: str,
    *,
    generator: np.random.Generator,
    size: tuple[int, int] = (96, 96),
    frames: int = 24,
    colour: Sequence[float] | None = None,
) -> Pixels:
    """One clip of the class `name`, uint8 [frames, height, width, 3] RGB.

    colour  of the shape, 0..255 each; None: any bright one
    Speeds are 3 to 5 % of the shorter side, or 4 to 11 degrees, per frame.
    """
    width, height = size
    right, down, clockwise = MOTIONS[name]
    side, time = min(size), np.arange(frames, dtype=np.float32)[:, None, None]
    speed, spin = generator.uniform(0.03, 0.05) * side, generator.uniform(0.07, 0.19)
    place_x, place_y, angle = generator.uniform(0, 1, 3) * (width, height, 2 * pi)
    x = _wrapped(np.arange(width, dtype=np.float32) - (place_x + right * speed * time), width)
    y = _wrapped(np.arange(height, dtype=np.float32)[:, None] - (place_y + down * speed * time), height)
    # y points down, so growing angles turn clockwise
    theta = np.float32(angle) + clockwise * np.float32(spin) * time
    along, across = x * np.cos(theta) + y * np.sin(theta), y * np.cos(theta) - x * np.sin(theta)

    corners, inner = SHAPES[str(generator.choice(list(SHAPES)))]
    depth = _depth(along, across, corners, inner, radius=generator.uniform(0.22, 0.34) * side)
    bright, ground = _colour(generator), _texture(generator, size)
    bright = bright if colour is None else np.asarray(colour, np.float32)
    inside = np.clip(depth + 0.5, 0, 1)[..., None]  # the edge is one pixel soft
    front = np.clip(along + 0.5, 0, 1)[..., None]  # one half is darker, or a turning circle would stand still
    picture: Floats = ground + inside * (bright * (0.35 + 0.65 * front) - ground)
    picture += generator.integers(-4, 5, picture.shape, dtype=np.int8)
    return picture.clip(0, 255).astype(np.uint8)


def darken(
    clip: Pixels,
    *,
    generator: np.random.Generator,
    exposure: float = 0.05,
    colour: Sequence[float] = (1.0, 0.8, 0.55),
    electrons: float = 400.0,
    noise: float = 2.0,
) -> Pixels:
    """A clip as a camera would have taken it in the dark: uint8 [frames, height, width, 3] -> the same.

    exposure   share of the light that is left
    colour     of that light, per channel: a lamp has little blue
    electrons  that a white pixel made in daylight; the fewer, the coarser the shot noise (Poisson)
    noise      of reading the sensor, in electrons, standard deviation
    Levels are taken for light by the power 2.2, and the sum goes back to 8 bits the same way.
    """
    light = (clip.astype(np.float32) / 255) ** 2.2 * np.asarray(colour, np.float32) * exposure
    counted = generator.poisson(light * electrons) + generator.normal(0, noise, clip.shape)
    levels = np.clip(counted / electrons, 0, 1) ** (1 / 2.2) * 255
    return np.rint(levels).astype(np.uint8)


def render_numbered(
    path: str | PathLike[str],
    *,
    frames: int = 50,
    size: tuple[int, int] = (128, 96),
    fps: float = 25,
    codec: str | None = None,
    pixel_format: str = "yuv420p",
    times: Sequence[float] | None = None,
    encoder: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
) -> Path:
    """Write a video whose frame i shows i as bars that `number` reads back after compression and resizing.

    frames     up to 1,048,576
    size       (width, height) in pixels, from 16 x 6; from 32 x 12 compression does no harm
    codec      FFmpeg's name of the encoder; by default libx264, or mpeg4 where that is missing
    times      seconds at which each frame is shown, to 0.1 ms, ascending (variable rate); by default i / fps
    encoder    FFmpeg options of the encoder, for example {"bf": "3", "g": "250"}
    container  FFmpeg options of the container, for example {"movflags": "faststart"}; its format is the
               path's suffix
    """
    if not 0 < frames <= NUMBERS:
        raise UsageError("BAD_VALUE", f"a numbered video has 1 to {NUMBERS} frames, not {frames}")
    pictures = (numbered(i, size) for i in range(frames))
    return write_video(
        path,
        pictures,
        fps=fps,
        codec=codec,
        pixel_format=pixel_format,
        times=times,
        encoder=encoder,
        container=container,
    )


def numbered(number: int, size: tuple[int, int] = (128, 96)) -> Pixels:
    """The picture that shows `number` (0 to 1,048,575) as bars, uint8 [height, width, 3]."""
    width, height = size
    word = number << 4 | _check(number)
    bits = np.array([word >> i & 1 for i in range(ROWS * COLUMNS)], np.uint8).reshape(ROWS, COLUMNS)
    row, column = np.arange(height) * ROWS // height, np.arange(width) * COLUMNS // width
    grey = 24 + 208 * bits[row[:, None], column]
    return np.repeat(grey[..., None], 3, axis=2)


def number(frame: npt.ArrayLike) -> int:
    """The number that a picture of `numbered` shows, however it was compressed or resized since.

    frame  uint8 [height, width, 3] or [height, width], array or CPU tensor
    Raises MediaError NOT_NUMBERED where the bars cannot be read, for example on a turned picture.
    """
    pixels = np.asarray(frame, dtype=np.float32)
    height, width = pixels.shape[:2]
    grey = pixels.reshape(height, width, -1).mean(axis=2)
    word = 0
    for i in range(ROWS * COLUMNS):
        row, column = divmod(i, COLUMNS)
        top, bottom = _middle(row, ROWS, height)
        left, right = _middle(column, COLUMNS, width)
        word |= int(grey[top:bottom, left:right].mean() > 128) << i
    if _check(word >> 4) != word & 15:
        raise MediaError("NOT_NUMBERED", f"this {width}x{height} picture does not show a frame number")
    return word >> 4


def write_video(
    path: str | PathLike[str],
    pictures: Iterable[Pixels],
    *,
    fps: float,
    codec: str | None = None,
    pixel_format: str = "yuv420p",
    times: Sequence[float] | None = None,
    encoder: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
) -> Path:
    """Encode uint8 [height, width, 3] pictures (RGB) into a file; options as of `render_numbered`.

    One thread and no version stamps, so that equal pictures give equal bytes. The file appears under its
    name only when it is complete.
    """
    kind = CONTAINERS.get(Path(path).suffix, Path(path).suffix[1:])
    try:
        with replacing(path) as part, _muxer(part, kind, container) as out:
            stream = _stream(out, codec, fps, pixel_format, times is not None, encoder)
            for i, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                if i == 0:
                    stream.width, stream.height = frame.width, frame.height
                frame.time_base = stream.codec_context.time_base
                frame.pts = i if times is None else round(times[i] / frame.time_base)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        hint = "odd sizes need pixel_format='yuv444p', and a codec fits certain containers only"
        raise EnvironmentFault("CANNOT_ENCODE", f"{path} cannot be encoded: {error}; {hint}") from error
    return Path(path)


def _muxer(path: Path, kind: str, options: Mapping[str, str] | None) -> av.container.OutputContainer:
    return av.open(path, "w", format=kind, options={"fflags": "+bitexact", **(options or {})})


def _stream(
    out: av.container.OutputContainer,
    codec: str | None,
    fps: float,
    pixel_format: str,
    variable: bool,
    encoder: Mapping[str, str] | None,
) -> av.VideoStream:
    codec = codec or ("libx264" if "libx264" in av.codecs_available else "mpeg4")
    # slower presets have x264 look ahead (mbtree), which gives other bytes now and then
    quality = {"libx264": {"preset": "superfast", "crf": "16"}, "mpeg4": {"qmin": "2", "qmax": "4"}}
    options = {**quality.get(codec, {}), "threads": "1", "flags": "+bitexact", **(encoder or {})}
    rate = Fraction(fps).limit_denominator(1001)
    stream = out.add_stream(codec, rate=rate, options=options)
    assert isinstance(stream, av.VideoStream)
    stream.pix_fmt = pixel_format
    stream.codec_context.time_base = Fraction(1, TICKS) if variable else 1 / rate
    return stream


def _generator(seed: int, split: str, name: str, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, crc32(f"{split}/{name}/{index}".encode())]))


def _wrapped(distance: Floats, period: int) -> Floats:
    """Signed distance on a ring: the picture's left edge touches its right edge."""
    half = np.float32(period / 2)
    return (distance.astype(np.float32) + half) % np.float32(period) - half


def _depth(along: Floats, across: Floats, corners: int, inner: float, radius: float) -> Floats:
    """Distance in pixels to the outline of a regular polygon or star, positive inside.

    All edges are one edge seen under 2 x corners angles: fold the plane onto half a corner and measure
    there the distance to the line from the corner, at `radius`, to the dent, at `inner` times that.
    """
    sector = pi / corners
    folded = np.abs((np.arctan2(across, along) + sector) % np.float32(2 * sector) - np.float32(sector))
    normal = atan2(1 - inner * cos(sector), inner * sin(sector))
    return np.float32(radius * cos(normal)) - np.hypot(along, across) * np.cos(folded - np.float32(normal))


def _colour(generator: np.random.Generator) -> Floats:
    """A bright colour, float32 [3] in 0..255: one channel full, one low, one between."""
    return generator.permutation(np.array([250, 60, generator.uniform(60, 250)], np.float32))


def _texture(generator: np.random.Generator, size: tuple[int, int]) -> Floats:
    """A blotched background, float32 [height, width, 3]: coarse and fine squares on a random grey or tint."""
    width, height = size
    ground = np.full((height, width, 3), generator.uniform(60, 140, 3), np.float32)
    for cell, strength in ((max(min(size) // 6, 1), 20), (max(min(size) // 24, 1), 10)):
        blotches = generator.uniform(-strength, strength, (ceil(height / cell), ceil(width / cell), 1))
        ground += np.kron(blotches, np.ones((cell, cell, 1)))[:height, :width]
    return ground


def _middle(index: int, cells: int, length: int) -> tuple[int, int]:
    """First and past-the-last pixel of the middle half of one of `cells` equal parts of `length` pixels."""
    start = round((index + 0.25) * length / cells)
    return start, max(round((index + 0.75) * length / cells), start + 1)


def _check(number: int) -> int:
    """Four bits that a wrong reading rarely fits; neither black nor white pictures do."""
    return 15 - sum(number >> shift & 15 for shift in range(0, 20, 4)) % 16


def _place(folder: Path, split: str, name: str, index: int) -> Path:
    return folder / split / name / f"{index:04}.mp4"


def _write_list(folder: Path, split: str, rows: list[tuple[str, str, int]], classes: Sequence[str]) -> Path:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "class"])
    place = partial(_place, Path())
    writer.writerows([place(*row).as_posix(), classes.index(row[1]), row[1]] for row in rows)
    path = folder / f"{split}.csv"
    with replacing(path) as part:
        part.write_text(text.getvalue(), encoding="utf-8", newline="")
    return path
