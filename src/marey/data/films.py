"""Rendered films in which what persons do is told by what was seen many seconds before.

For tests and benchmarks of long-term feature banks. In every film somebody first shows a red or a green card.
Much later, far outside of any clip, all persons hold up a white board, and what they do then is called by the
colour of that card: "answer red" or "answer green". Films come in pairs that differ by the colour of the card
alone, so no pixel of the later moment tells which it is: a network that sees only the moment has a chance of
one in two, whatever it learns.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marey.data.ava import KeyFrames
from marey.data.proposals import Proposals, write_proposals
from marey.errors import UsageError
from marey.files import replacing
from marey.metrics.ava_tables import key_of, make_rows, write_annotations
from marey.video.sampling import generator
from marey.video.synthetic import write_video

STAND, SHOW, ANSWER = 1, 2, 4  # actions; the later two of the first card, one more of the second
NAMES = ("stand", "show red", "show green", "answer red", "answer green")
CARDS = ((225, 40, 40), (40, 190, 60))
BOARD = (245, 245, 245)
FPS = 8.0
# each second is coded for itself and with the same steps, so that what was before leaves no trace in it
ALONE = {"g": f"{FPS:g}", "sc_threshold": "0", "crf": "-1", "qp": "18"}
KEY_FRAMES = KeyFrames(fps=FPS, start=0.0, step=1.0)

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]


class FilmSplit(NamedTuple):
    """The files of a split: annotations, proposals, the folder of videos."""

    annotation: Path
    proposals: Path
    media: Path


class Films(NamedTuple):
    """A rendered set; `label_map` names the actions."""

    train: FilmSplit
    val: FilmSplit
    label_map: Path

    def overrides(self) -> dict[str, Any]:
        """What tells a recipe of boxes of these films."""
        paths: dict[str, Any] = {
            f"data.{name}.{field}": str(path)
            for name, split in (("train", self.train), ("val", self.val))
            for field, path in split._asdict().items()
        }
        return paths | {"data.label_map": str(self.label_map), "data.key_frames.fps": FPS}


class Film(NamedTuple):
    """One film: its persons and when what happens.

    seconds       how long it is
    card          0 or 1, which one is shown
    actor         who shows it
    shown         first and past-the-last second of the card
    answered      the same of the boards
    places        float [P, 4]: centre of a person (fractions), height, and how far it sways
    colours       float [P, 3]
    phase         float [P], of the swaying
    ground        float [h, w, 3]
    """

    seconds: int
    card: int
    actor: int
    shown: tuple[int, int]
    answered: tuple[int, int]
    places: Floats
    colours: Floats
    phase: Floats
    ground: Floats

    def boxes(self, second: float) -> Floats:
        """[P, 4], x1, y1, x2, y2 of the persons as fractions."""
        height, width = self.ground.shape[:2]
        middle = self.places[:, 0] + self.places[:, 3] * np.sin(second + self.phase)
        tall = self.places[:, 2]
        wide = tall * 0.5 * height / width
        low = self.places[:, 1]
        return np.stack([middle - wide / 2, low - tall / 2, middle + wide / 2, low + tall / 2], 1)

    def action(self, person: int, second: int) -> int:
        """What somebody does in the second that begins half a second before this one."""
        if self.answered[0] <= second < self.answered[1]:
            return ANSWER + self.card
        if self.shown[0] <= second < self.shown[1] and person == self.actor:
            return SHOW + self.card
        return STAND

    def pictures(self) -> Iterator[Pixels]:
        """The frames, uint8 [h, w, 3]."""
        for number in range(round(self.seconds * FPS)):
            second = number / FPS
            picture = self.ground.copy()
            for person, box in enumerate(self.boxes(second)):
                self._draw(picture, box, person, self.action(person, int(second + 0.5)))
            yield picture.clip(0, 255).astype(np.uint8)

    def _draw(self, picture: Floats, box: Floats, person: int, action: int) -> None:
        """A head, a body, legs and, where something is shown, what the hands hold before the body."""
        colour = self.colours[person]
        _fill(picture, box, (0.35, 0.0, 0.65, 0.22), (205, 165, 135))
        _fill(picture, box, (0.15, 0.22, 0.85, 0.66), colour)
        _fill(picture, box, (0.22, 0.66, 0.46, 1.0), colour * 0.5)
        _fill(picture, box, (0.54, 0.66, 0.78, 1.0), colour * 0.5)
        if action >= SHOW:
            held = BOARD if action >= ANSWER else CARDS[action - SHOW]
            _fill(picture, box, (0.05, 0.26, 0.95, 0.6), held)


def render_films(
    folder: str | os.PathLike[str],
    *,
    train: int = 24,
    val: int = 12,
    seconds: int = 36,
    size: tuple[int, int] = (96, 64),
    persons: tuple[int, int] = (1, 3),
    gap: int = 10,
    seed: int = 0,
) -> Films:
    """Render films, their annotations, proposals and label map; the same bytes for the same arguments.

    train, val  films of each split, an even number: they come in pairs
    seconds     how long each is; the card is shown for 3 s in its first quarter, the boards for the last
                third, so that in 36 s all of it lies within 30 s
    size        (width, height) in pixels
    persons     fewest and most in a film
    gap         seconds at least from the card to the boards

    Proposals are the persons' boxes, moved a little, and boxes of nobody whose scores are below 0.9. Raises
    UsageError BAD_VALUE for what cannot be.
    """
    latest = seconds // 9 + 5
    if train < 0 or val < 0 or train % 2 or val % 2 or not 1 <= persons[0] <= persons[1] <= 4:
        raise UsageError("BAD_VALUE", "films come in pairs, with 1 to 4 persons")
    if 2 * seconds // 3 - latest < gap:
        raise UsageError("BAD_VALUE", f"films of {seconds} s leave less than {gap} s between card and boards")
    folder = Path(folder)
    splits = []
    for number, (name, count) in enumerate((("train", train), ("val", val))):
        media = folder / name
        media.mkdir(parents=True, exist_ok=True)
        rows, proposed = _Rows(), dict[str, Floats]()
        for index in range(count):
            video = f"{name}{index:03}"
            # the two films of a pair differ by the card alone
            film = _film(generator(seed, number, index // 2), index % 2, seconds, size, persons)
            path = media / f"{video}.mp4"
            write_video(path, film.pictures(), fps=FPS, encoder=ALONE)
            noise = generator(seed, number, index // 2, 1)
            for second in range(1, seconds - 1):
                key = key_of(video, second)
                boxes = film.boxes(second)
                rows.add(key, boxes, [film.action(person, second) for person in range(len(boxes))])
                proposed[key] = _proposed(boxes, noise)
        split = FilmSplit(folder / f"{name}.csv", folder / f"{name}-proposals.csv", media)
        write_annotations(split.annotation, make_rows(rows.keys, rows.boxes, rows.actions, rows.entities))
        write_proposals(split.proposals, Proposals.of(proposed))
        splits.append(split)
    labels = folder / "actions.csv"
    with replacing(labels) as part:
        text = "".join(f"{number},{name}\n" for number, name in enumerate(NAMES, start=1))
        part.write_text("id,name\n" + text, encoding="utf-8")
    return Films(splits[0], splits[1], labels)


class _Rows:
    """Rows of an annotation."""

    def __init__(self) -> None:
        self.keys = list[str]()
        self.boxes = list[Any]()
        self.actions = list[int]()
        self.entities = list[int]()

    def add(self, key: str, boxes: Floats, actions: list[int]) -> None:
        """The persons of a key frame."""
        self.keys += [key] * len(boxes)
        self.boxes += boxes.round(4).tolist()
        self.actions += actions
        self.entities += range(len(boxes))


def _film(
    rng: np.random.Generator, card: int, seconds: int, size: tuple[int, int], persons: tuple[int, int]
) -> Film:
    count = int(rng.integers(persons[0], persons[1] + 1))
    shown = seconds // 9 + int(rng.integers(3))
    slots = (np.arange(count) + 0.5) / count
    places = np.stack(
        [
            slots + rng.uniform(-0.05, 0.05, count) / count,
            rng.uniform(0.5, 0.56, count),
            rng.uniform(0.62, 0.8, count),
            rng.uniform(0.005, 0.02, count),
        ],
        1,
    )
    coarse = rng.uniform(-18, 18, (size[1] // 8, size[0] // 8, 1))
    ground = np.kron(coarse, np.ones((8, 8, 1))) + rng.uniform(70, 120, 3)
    return Film(
        seconds=seconds,
        card=card,
        actor=int(rng.integers(count)),
        shown=(shown, shown + 3),
        answered=(2 * seconds // 3 + int(rng.integers(3)), seconds),
        places=places,
        colours=rng.uniform(40, 130, (count, 1)) + rng.uniform(0, 40, (count, 3)) * [0, 0, 1],
        phase=rng.uniform(0, 2 * np.pi, count),
        ground=ground,
    )


def _proposed(boxes: Floats, rng: np.random.Generator) -> Floats:
    """Boxes as a detector finds them, [n, 5]: persons a little off, and none to two of nobody."""
    moved = boxes + rng.uniform(-0.005, 0.005, boxes.shape)
    found = np.column_stack([moved, rng.uniform(0.92, 1.0, len(boxes))])
    corners = rng.uniform(0, 0.6, (int(rng.integers(3)), 2))
    nobody = np.column_stack([corners, corners + rng.uniform(0.1, 0.35, corners.shape)])
    nobody = np.column_stack([nobody, rng.uniform(0.1, 0.85, len(corners))])
    return np.concatenate([found, nobody]).clip(0, 1).round(4)


def _fill(
    picture: Floats, box: Floats, part: tuple[float, float, float, float], colour: tuple[int, ...] | Floats
) -> None:
    """Fill a part of a box, given in fractions of it."""
    height, width = picture.shape[:2]
    left, right = (box[0] + (box[2] - box[0]) * np.array(part[0::2])) * width
    top, bottom = (box[1] + (box[3] - box[1]) * np.array(part[1::2])) * height
    rows = slice(max(round(top), 0), max(round(bottom), 0))
    picture[rows, max(round(left), 0) : max(round(right), 0)] = colour
