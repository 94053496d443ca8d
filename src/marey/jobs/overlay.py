"""A film with boxes around its persons and what they do written beside them."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from marey.jobs.predict_boxes import Person, Watched
from marey.video.reader import read_video
from marey.video.synthetic import write_video

COLOURS = ("#ffd23f", "#3bceac", "#ee6c9c", "#6ab7ff", "#ff8c42", "#b388eb", "#c5e063", "#f25f5c")
HEIGHT = 360  # smaller pictures are enlarged to about this
CHUNK = 16  # frames that are in memory at once
NAMED = 3  # actions of a person that are written

Pixels = NDArray[np.uint8]


def write_overlay(
    path: str | os.PathLike[str],
    film: Watched,
    *,
    threshold: float = 0.5,
    template: str | None = None,
    fps: float | None = None,
) -> Path:
    """Write a film again, with boxes and the actions whose probability is `threshold` or more.

    Boxes move straight from key frame to key frame; what is written is of the nearest one. There is no sound.
    fps is of a folder of frames. Raises MediaError, EnvironmentFault CANNOT_ENCODE.
    """
    folder = Path(film.path).is_dir()
    with read_video(film.path, template=template if folder else None, fps=fps if folder else None) as video:
        times = video.timestamps - video.timestamps[0]
        scenes = Scenes(film)

        def pictures() -> Iterator[Pixels]:
            for start in range(0, len(video), CHUNK):
                part = range(start, min(start + CHUNK, len(video)))
                for number, frame in zip(part, video.frames(part).numpy(), strict=True):
                    yield drawn(frame, scenes.at(float(times[number])), threshold)

        return write_video(path, pictures(), fps=video.fps)


class Scenes:
    """Who is where at any moment of a film."""

    def __init__(self, film: Watched) -> None:
        self.step = film.step
        self.by_second: dict[float, dict[int, Person]] = {}
        for person in film.persons:
            self.by_second.setdefault(person.second, {})[person.track] = person
        self.seconds = sorted(self.by_second)

    def at(self, second: float) -> list[tuple[Person, tuple[float, float, float, float]]]:
        """The persons of the nearest key frame, and their boxes at this moment."""
        place = bisect_right(self.seconds, second)
        around = [self.seconds[k] for k in (place - 1, place) if 0 <= k < len(self.seconds)]
        near = [key for key in around if abs(key - second) <= self.step / 2 + 1e-6]
        if not near:
            return []
        key = min(near, key=lambda one: abs(one - second))
        other = next((one for one in around if one != key), None)
        found = []
        for track, person in self.by_second[key].items():
            box = person.box
            mate = self.by_second[other].get(track) if other is not None else None
            if mate is not None and other is not None and abs(other - key) <= 1.5 * self.step:
                share = (second - key) / (other - key)
                a, b, c, d = (p + share * (q - p) for p, q in zip(box, mate.box, strict=True))
                box = (a, b, c, d)
            found.append((person, box))
        return found


def drawn(
    frame: Pixels, persons: Sequence[tuple[Person, tuple[float, float, float, float]]], threshold: float
) -> Pixels:
    """A frame [h, w, 3] with boxes and text, of even height and width, enlarged if it is small."""
    factor = max(1, round(HEIGHT / frame.shape[0]))
    picture = Image.fromarray(frame)
    width, height = frame.shape[1] * factor // 2 * 2, frame.shape[0] * factor // 2 * 2
    picture = picture.resize((frame.shape[1] * factor, frame.shape[0] * factor)).crop((0, 0, width, height))
    size = max(13, height // 26)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    for person, (x1, y1, x2, y2) in persons:
        colour = COLOURS[person.track % len(COLOURS)]
        left, above, right, below = x1 * width, y1 * height, x2 * width, y2 * height
        pen.rectangle((left, above, right, below), outline=colour, width=max(2, height // 180))
        shown = [one for one in person.actions if one.score >= threshold][:NAMED]
        lines = [f"{one.name} {one.score:.0%}" for one in shown] or [f"person {person.track}"]
        wide = max(pen.textlength(line, font) for line in lines) + 6
        tall = len(lines) * (size + 3) + 3
        x = min(max(left, 0), max(width - wide, 0))
        y = above - tall if above >= tall else min(max(above, 0) + 3, height - tall)
        pen.rectangle((x, y, x + wide, y + tall), fill="#101418")
        for number, line in enumerate(lines):
            pen.text((x + 3, y + 2 + number * (size + 3)), line, fill=colour, font=font)
    return np.asarray(picture)
