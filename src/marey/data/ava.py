"""AVA's annotations as samples: key frames, the persons in them with their actions, and proposals.

    rows = read_rows("ava_train_v2.1.csv", "annotation")
    frames = ava_set(rows, proposals=read_proposals("train.pkl"), excluded=read_exclusions("excluded.csv"))
    frames[0].key, frames[0].boxes, frames[0].labels        # "-5KQ66BBWC4,0902", [n, 4], [n, 81]

Nothing here is AVA's alone: `KeyFrames` says how time stamps, frames and key frames belong together, and
any actions may be counted. AVA's own are in `AVA`.
(open-mmlab/mmaction2@v0.24.1:mmaction/datasets/ava_dataset.py)
"""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from marey.data.proposals import Proposals
from marey.errors import DataError, UsageError
from marey.metrics.ava_tables import Faults, Floats, Ints, Rows, error, key_of, split_key
from marey.video.source import VIDEO_NAME

ON_GRID = 1e-3  # seconds that a key frame may lie beside its place


class KeyFrames(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How time stamps, frames and key frames belong together.

    fps    frames per second in which clips count; of a folder of frames the rate it was extracted with, of a
           video any rate, as its frames are taken by their time
    start  time stamp, seconds, of the first frame of every file: 900 for AVA's cut videos, 0 for whole films
    stop   time stamp that clips do not pass; None: the end of the file
    first, last  time stamps between which key frames lie; None: anywhere
    step   seconds from one key frame to the next, counted from time stamp 0
    """

    fps: float = 30.0
    start: float = 0.0
    stop: float | None = None
    first: float | None = None
    last: float | None = None
    step: float = 1.0

    def __post_init__(self) -> None:
        if not (self.fps > 0 and self.step > 0 and self.start >= 0):
            raise UsageError(
                "KEY_FRAMES", f"fps {self.fps}, start {self.start}, step {self.step}: wrong key frames"
            )

    def frame(self, second: float) -> int:
        """Number, from 0, of the frame at a time stamp."""
        return round(self.fps * (second - self.start))

    def limit(self, count: int) -> int:
        """The last frame that clips of a file of `count` frames reach.

        As published they do not reach the last frame before `stop`, which matters for nobody's key frames.
        """
        if self.stop is None:
            return count - 1
        return max(0, min(count - 1, round(self.fps * (self.stop - self.start)) - 2))

    def wrong(self, seconds: Floats) -> NDArray[np.bool_]:
        """bool [R], the time stamps that are no key frames."""
        off = np.abs(seconds / self.step - np.rint(seconds / self.step)) * self.step > ON_GRID
        low = self.start if self.first is None else self.first
        high = np.inf if self.last is None else self.last
        outside: NDArray[np.bool_] = (seconds < low) | (seconds > high) | off
        return outside


AVA = KeyFrames(fps=30.0, start=900.0, stop=1800.0, first=902.0, last=1798.0, step=1.0)


class KeyFrame(NamedTuple):
    """One sample: a key frame with its true boxes and the boxes that a detector proposes.

    key        "video,second"
    boxes      float64 [n, 4], x1, y1, x2, y2 of every person, fractions of width and height; n may be 0
    labels     float32 [n, num_classes], 1 for the actions of each; column 0 stands for none and is never 1
    entities   int64 [n], who it is within the video, -1 where nobody said
    proposals  float64 [m, 4], the same for the boxes that count as persons
    scores     float64 [m], theirs, or None where the file has none
    """

    key: str
    video: str
    second: float
    boxes: Floats
    labels: NDArray[np.float32]
    entities: Ints
    proposals: Floats
    scores: Floats | None


class AvaSet:
    """The key frames of a split, made by `ava_set`: `len(frames)`, `frames[i]`, `for frame in frames`.

    num_classes  columns of the labels, one more than there are actions
    actions      what columns 1, 2, ... stand for in the annotation (custom classes), or None: themselves
    media        video -> file or folder of frames; set it by `find_media` before clips are loaded
    template     names in folders of frames
    threshold, most  which proposals count, see `Proposals.select`
    notes        what was left out
    """

    def __init__(
        self,
        videos: tuple[str, ...],
        frame_video: Ints,
        frame_second: Floats,
        person_ends: Ints,
        boxes: Floats,
        entities: Ints,
        action_ends: Ints,
        actions: Ints,
        *,
        num_classes: int,
        proposals: Proposals | None,
        threshold: float,
        most: int,
        custom: tuple[int, ...] | None,
        notes: Sequence[str],
    ) -> None:
        self.videos, self.num_classes, self.actions = videos, num_classes, custom
        self.proposals, self.threshold, self.most = proposals, threshold, most
        self.media: dict[str, str] = {}
        self.template: str | None = None
        self.notes = tuple(notes)
        self._video, self._second = frame_video, frame_second
        self._person_ends, self._boxes, self._entities = person_ends, boxes, entities
        self._action_ends, self._actions = action_ends, actions

    def __len__(self) -> int:
        return len(self._video)

    @property
    def persons(self) -> int:
        """True boxes in all."""
        return len(self._boxes)

    def key(self, index: int) -> str:
        """The name of key frame `index`."""
        return key_of(self.videos[self._video[index]], float(self._second[index]))

    def __getitem__(self, index: int) -> KeyFrame:
        if not -len(self) <= index < len(self):
            raise IndexError(f"key frame {index} of {len(self)}")
        index = int(index) % len(self)
        first, last = _part(self._person_ends, index)
        labels = np.zeros((last - first, self.num_classes), np.float32)
        for row, person in enumerate(range(first, last)):
            labels[row, self._actions[slice(*_part(self._action_ends, person))]] = 1
        key = self.key(index)
        proposed: tuple[Floats, Floats | None] = np.empty((0, 4)), None
        if self.proposals is not None:
            proposed = self.proposals.select(key, threshold=self.threshold, most=self.most)
        video, second = self.videos[self._video[index]], float(self._second[index])
        return KeyFrame(
            key,
            video,
            second,
            self._boxes[first:last],
            labels,
            self._entities[first:last],
            *proposed,
        )

    def __iter__(self) -> Iterator[KeyFrame]:
        return (self[index] for index in range(len(self)))


def ava_set(
    rows: Rows,
    *,
    proposals: Proposals | None = None,
    excluded: Collection[str] = (),
    training: bool = False,
    num_classes: int = 81,
    custom: Sequence[int] | None = None,
    threshold: float = 0.9,
    most: int = 1000,
) -> AvaSet:
    """The key frames of an annotation, in the order in which they first appear.

    Rows of one key frame with equal boxes are one person: the entity is that of the first, the actions are
    those of all. As published, training leaves out excluded key frames (and those without a person), tests do
    not: the evaluation leaves them out.

    proposals    boxes of a detector; None: none
    num_classes  columns of the labels; actions must be below
    custom       only these actions, renumbered 1, 2, ... in this order; num_classes must be one more
    threshold, most  which proposals count, see `Proposals.select`

    Raises UsageError AVA_CLASSES; DataError AVA_ACTION (names the line), AVA_EMPTY.
    """
    notes = list[str]()
    if custom is not None:
        rows = _renumbered(rows, custom, num_classes)
    wrong = np.flatnonzero(rows.action >= num_classes)
    if len(wrong):
        line, action = int(rows.lines[wrong[0]]), int(rows.action[wrong[0]])
        raise DataError(
            "AVA_ACTION",
            f"line {line} of the annotation, column action: {action}, but there are {num_classes - 1} "
            f"(num_classes - 1); {len(wrong)} rows are like that",
        )
    frames, persons = dict[tuple[int, float], int](), dict[tuple[object, ...], int]()
    of_row, seen, first_rows = list[int](), list[int](), list[int]()
    has_box: NDArray[np.bool_] = np.logical_not(np.isnan(rows.boxes).any(axis=1))
    for row, (video, second, box) in enumerate(
        zip(rows.video.tolist(), rows.second.tolist(), rows.boxes.tolist(), strict=True)
    ):
        frame = frames.setdefault((video, second), len(frames))
        if has_box[row]:
            person = persons.setdefault((frame, *box), len(persons))
            if person == len(first_rows):
                first_rows.append(row)
                seen.append(frame)
            of_row.append(person)
    frame_of, firsts = np.array(seen, np.int64), np.array(first_rows, np.int64)
    kept = np.ones(len(frames), np.bool_)
    if training:
        names = [key_of(rows.videos[video], second) for video, second in frames]
        kept &= ~np.isin(np.arange(len(names)), [i for i, name in enumerate(names) if name in excluded])
        dropped, empty = int((~kept).sum()), np.bincount(frame_of, minlength=len(frames)) == 0
        notes += [f"{dropped} excluded key frames are left out"] * (dropped > 0)
        notes += [f"{(kept & empty).sum()} key frames without a person are left out"] * bool(
            (kept & empty).any()
        )
        kept &= ~empty
    order = np.argsort(frame_of, kind="stable")
    order = order[kept[frame_of[order]]]
    rank = np.full(len(firsts), -1)
    rank[order] = np.arange(len(order))
    owner, acted = rank[np.array(of_row, np.int64)], rows.action[has_box]
    by_person = np.argsort(owner, kind="stable")[int((owner < 0).sum()) :]
    if not kept.any():
        raise DataError("AVA_EMPTY", "no key frame is left; see the classes and the excluded key frames")
    where = np.array(list(frames), np.float64).reshape(-1, 2)[kept]
    entities = np.nan_to_num(rows.extra[firsts[order]], nan=-1.0).astype(np.int64)
    return AvaSet(
        rows.videos,
        where[:, 0].astype(np.int64),
        where[:, 1],
        np.cumsum(np.bincount(frame_of[order], minlength=len(frames))[kept]),
        rows.boxes[firsts[order]],
        entities,
        np.cumsum(np.bincount(owner[by_person], minlength=len(order))),
        acted[by_person].astype(np.int32),
        num_classes=num_classes,
        proposals=proposals,
        threshold=threshold,
        most=most,
        custom=None if custom is None else tuple(custom),
        notes=notes,
    )


def proposed_set(
    proposals: Proposals, *, num_classes: int = 81, threshold: float = 0.9, most: int = 1000
) -> AvaSet:
    """The key frames that proposals name, for videos without annotation: nobody is labelled."""
    names = [split_key(key) or (key, 0.0) for key in proposals.keys]
    videos = tuple(dict.fromkeys(video for video, _ in names))
    places = {video: place for place, video in enumerate(videos)}
    nobody = np.zeros(len(names), np.int64)
    return AvaSet(
        videos,
        np.array([places[video] for video, _ in names], np.int64),
        np.array([second for _, second in names], np.float64),
        nobody,
        np.empty((0, 4)),
        np.empty(0, np.int64),
        np.empty(0, np.int64),
        np.empty(0, np.int32),
        num_classes=num_classes,
        proposals=proposals,
        threshold=threshold,
        most=most,
        custom=None,
        notes=(),
    )


def _part(ends: Ints, index: int) -> tuple[int, int]:
    return int(ends[index - 1]) if index else 0, int(ends[index])


def _renumbered(rows: Rows, custom: Sequence[int], num_classes: int) -> Rows:
    """The rows of some actions, which become 1, 2, ..."""
    if len(set(custom)) < len(custom) or min(custom, default=0) < 1 or num_classes != len(custom) + 1:
        raise UsageError(
            "AVA_CLASSES",
            f"custom classes {list(custom)} must be different, count from 1 and be one fewer than "
            f"num_classes, which is {num_classes}",
        )
    number = np.zeros(max(int(rows.action.max(initial=0)), *custom) + 1, np.int64)
    number[list(custom)] = np.arange(1, len(custom) + 1)
    rows = rows._replace(action=number[rows.action])
    return rows.take(rows.action > 0)


# Media ------------------------------------------------------------------------------------------------


def find_media(root: str | os.PathLike[str], videos: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Where each video lies below a folder, and which are missing.

    A video is the folder of frames of its name, or the video file whose name is its own up to the last dot.
    Raises DataError NOT_FOUND, NO_ACCESS (the root), AVA_MEDIA (a video lies there twice).
    """
    found: dict[str, list[str]] = {}
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.is_dir():
                    found.setdefault(entry.name, []).append(entry.path)
                elif VIDEO_NAME.search(entry.name):
                    found.setdefault(entry.name.rpartition(".")[0], []).append(entry.path)
    except FileNotFoundError:
        raise DataError(
            "NOT_FOUND", f"no folder {os.fspath(root)!r} with videos or folders of frames"
        ) from None
    except OSError as fault:
        raise DataError("NO_ACCESS", f"cannot read {os.fspath(root)!r}: {fault.strerror}") from fault
    videos = list(dict.fromkeys(videos))
    twice = next((name for name in videos if len(found.get(name, ())) > 1), None)
    if twice is not None:
        raise DataError("AVA_MEDIA", f"video {twice!r} lies there twice: {', '.join(sorted(found[twice]))}")
    missing = tuple(name for name in videos if name not in found)
    return {name: found[name][0] for name in videos if name in found}, missing


# Checking ---------------------------------------------------------------------------------------------


def check_rows(rows: Rows, faults: Faults, *, key_frames: KeyFrames, most: int | None) -> None:
    """Note rows whose time stamp is no key frame, or whose action is above `most` (None: none is)."""
    times = f"no key frame: from {_low(key_frames):g} to {_high(key_frames):g} s every {key_frames.step:g} s"
    faults.rows(
        key_frames.wrong(rows.second),
        rows.lines,
        error("AVA_SECOND", "second", "{} is " + times),
        rows.second,
    )
    if most is not None:
        over = rows.action > most
        faults.rows(over, rows.lines, error("AVA_ACTION", "action", f"{{}} is above {most}"), rows.action)


def _low(key_frames: KeyFrames) -> float:
    return key_frames.start if key_frames.first is None else key_frames.first


def _high(key_frames: KeyFrames) -> float:
    return np.inf if key_frames.last is None else key_frames.last
