"""`marey predict` with a detector: a film in, what each person of it does out, second by second.

Boxes come from a person detector or a file. A detector that takes a feature bank gets one of the film itself,
made on the way by the baseline that made the bank it was trained with.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from marey.data.ava import AvaSet, KeyFrame, KeyFrames, proposed_set
from marey.data.ava_clips import KeySample, Timeline, key_tests, open_timeline
from marey.data.bank import Bank, BankCard
from marey.data.proposals import Proposals, read_proposals
from marey.data.workers import Pool
from marey.errors import DataError, MareyError, MediaError, UsageError
from marey.jobs.bank import model_hash
from marey.jobs.bank_build import bank_rows, model_clips
from marey.jobs.persons import PersonDetector
from marey.jobs.predict import Score
from marey.jobs.progress import Progress
from marey.jobs.setup import cores
from marey.metrics.ava import overlaps
from marey.metrics.ava_tables import Floats, key_of, split_key
from marey.models.fold import folded
from marey.training.devices import device_of
from marey.video.preprocess import Preprocess, normalize
from marey.video.source import Source, expand
from marey.weights.create import open_model

FILM = "film"  # what key frames are called while one film is worked on
SAME = 0.3  # overlap from which a box goes on with a track
LOST = 2  # key frames that a person may be out of sight
AT_ONCE = 8  # pictures that go through the person detector
SECONDS = 60.0  # time limit of one clip
# whose features the banks of MMAction2's published detectors hold
PUBLISHED = "slowonly_kinetics_pretrained_r50_4x16x1_20e_ava_rgb_20201217-40061d5f"


class Person(msgspec.Struct, frozen=True, omit_defaults=True):
    """What somebody does at a moment.

    second   of the film
    box      left, top, right, bottom, fractions of width and height
    person   how sure it is that this is one, None where the file does not say
    track    number of the person within the film, as far as boxes tell
    actions  most probable first
    """

    second: float
    box: tuple[float, float, float, float]
    track: int
    actions: tuple[Score, ...]
    person: float | None = None


class Watched(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was seen in a film; `code` and `message` if it could not be read.

    path     of the file or folder
    step     seconds between key frames
    skipped  key frames that could not be read, each "second: CODE: message"
    """

    source: str
    path: str
    step: float
    persons: tuple[Person, ...] = ()
    skipped: tuple[str, ...] = ()
    code: str | None = None
    message: str | None = None

    def lines(self) -> Iterator[str]:
        """JSON, a line for each person of each key frame, or one that says why there is none."""
        if self.code is not None:
            yield json.dumps({"source": self.source, "code": self.code, "message": self.message})
        for person in self.persons:
            yield json.dumps({"source": self.source} | msgspec.to_builtins(person))
        for text in self.skipped:
            yield json.dumps({"source": self.source, "code": "KEY_FRAME_SKIPPED", "message": text})


class Eye(NamedTuple):
    """A network that looks at key frames, and how its clips are cut."""

    network: Any
    clips: Preprocess


def predict_boxes(
    model: nn.Module | str | os.PathLike[str],
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    proposals: str | os.PathLike[str] | None = None,
    person_detector: str | os.PathLike[str] | None = None,
    bank_model: nn.Module | str | os.PathLike[str] | None = None,
    person_threshold: float | None = None,
    top: int = 5,
    threshold: float = 0.0,
    every: float | None = None,
    template: str | None = None,
    device: str | None = None,
    workers: int = -1,
    seed: int = 0,
    quiet: bool = False,
) -> Iterator[Watched]:
    """What the persons of each film do, in order; a film that cannot be read gives its error code.

    model            a detector, its checkpoint, or a release's name
    sources          as for `marey.predict`
    proposals        a file of boxes (see `read_proposals`), named by the film's file without its suffix
    person_detector  without proposals: see `PersonDetector`
    bank_model       of a detector with long_term: the baseline whose bank it was trained with. None: of a
                     published one the published baseline
    person_threshold  score from which a box counts as a person; one counts in any case. None: as in training
    top, threshold   how many actions of a person, and how probable they must be
    every            seconds between key frames; None: as in training. With a bank nothing else is possible
    seed             of what is drawn from the bank, where a second has more persons than a window takes
    quiet            no progress on stderr

    Raises UsageError NO_BOXES, NO_BANK, BANK_MODEL, EVERY, and what `read_proposals` and `PersonDetector` do.
    """
    opened: Any = model if isinstance(model, nn.Module) else open_model(model)
    watcher = Watcher(opened, bank_model, every=every, device=device, seed=seed, quiet=quiet)
    given = None if proposals is None else read_proposals(proposals)
    detector = PersonDetector(person_detector, device) if given is None else None
    watcher.least = watcher.least if person_threshold is None else person_threshold
    films = [sources] if isinstance(sources, str | os.PathLike) else sources
    with Pool(cores() if workers < 0 else workers, SECONDS) as pool:
        for source in expand(films, template=template):
            try:
                timeline = open_timeline(source.path, watcher.key_frames, source.template)
                with timeline.video:
                    if detector is not None:
                        boxes = watcher.detected(detector, timeline, source.name)
                    else:
                        boxes = named(given or Proposals.of({}), source.path)
                yield watcher.watch(source, boxes, pool, top=top, threshold=threshold)
            except UsageError:
                raise
            except MareyError as error:
                step = watcher.key_frames.step
                yield Watched(source.name, source.path, step, code=error.code, message=error.message)


class Watcher:
    """A detector ready to run on films, and the baseline that it remembers with."""

    def __init__(
        self,
        model: Any,
        bank_model: nn.Module | str | os.PathLike[str] | None,
        *,
        every: float | None,
        device: str | None,
        seed: int,
        quiet: bool,
    ) -> None:
        self.device = device_of(device)
        self.seed, self.quiet = seed, quiet
        recipe = (getattr(model, "metadata", None) or {}).get("recipe") or {}
        data = recipe.get("data") or {}
        self.single = bool((recipe.get("boxes") or {}).get("single"))
        self.least = float(data.get("threshold", 0.9))
        self.key_frames = _of_films(data.get("key_frames") or {}, every, banked=_remembers(model))
        self.names, self.columns = model.class_names, int(model.num_classes)
        self.eye = self._eye(model)
        self.size = {"window": int(model.window), "per_step": int(model.per_step)}
        self.baseline, self.card = None, None
        if _remembers(model):
            base = _baseline(model, bank_model, data.get("bank_weights"))
            self.baseline = self._eye(base)
            self.card = BankCard(
                model=base.spec["name"],
                model_sha256=model_hash(base),
                channels=int(base.box_channels),
                step=self.key_frames.step,
                window=self.size["window"],
                per_step=self.size["per_step"],
            )
        elif bank_model is not None:
            raise UsageError(
                "NO_BANK", "the detector takes no bank, so a baseline for one has no meaning here"
            )

    def _eye(self, model: Any) -> Eye:
        clips = model_clips(model)
        if clips is None:
            raise UsageError("NO_BOXES", "the network does not tell how clips around key frames are cut")
        return Eye(folded(model).to(self.device), clips)

    def detected(self, detector: PersonDetector, timeline: Timeline, name: str) -> Proposals:
        """The persons of every key frame of a film. Raises MediaError, and DataError NO_PERSONS."""
        seconds = self.seconds(timeline)
        found = dict[str, Any]()
        progress = Progress(f"{name}: persons", quiet=self.quiet)
        for start in range(0, len(seconds), AT_ONCE):
            part = seconds[start : start + AT_ONCE]
            frames = timeline.frames([self.key_frames.frame(second) for second in part])
            for second, persons in zip(part, detector(frames), strict=True):
                if len(persons.boxes):
                    found[key_of(FILM, second)] = np.column_stack([persons.boxes, persons.scores])
            progress(start + len(part), len(seconds))
        if not found:
            raise DataError(
                "NO_PERSONS", f"{name}: {detector.name} found nobody in {len(seconds)} key frames"
            )
        return Proposals.of(found)

    def seconds(self, timeline: Timeline) -> list[float]:
        """The key frames of a film."""
        step, count = self.key_frames.step, len(timeline)
        last = int(count / self.key_frames.fps / step) + 1
        return [k * step for k in range(last + 1) if self.key_frames.frame(k * step) < count]

    def watch(
        self, source: Source, boxes: Proposals, pool: Pool, *, top: int = 5, threshold: float = 0.0
    ) -> Watched:
        """What the persons of a film do. Raises UsageError, and MareyError where nothing could be read."""
        frames = proposed_set(boxes, num_classes=self.columns, threshold=self.least)
        frames.media, frames.template = {FILM: source.path}, source.template
        bank = None if self.baseline is None else self._bank(source.name, frames, pool)
        tracks, persons = Tracks(self.key_frames.step), list[Person]()
        failed = list[str]()
        for frame, sample in self._samples(self.eye, frames, pool, f"{source.name}: key frames", failed):
            window = []
            if bank is not None:
                moment, count = [(FILM, frame.second)], [len(frame.proposals)]
                window = [bank.look_up(moment, count, seed=self.seed, **self.size).to(self.device)]
            with torch.inference_mode():
                logits = self.eye.network(*self._inputs(self.eye, sample), *window).float().cpu()
            chances = (logits.softmax(1) if self.single else logits.sigmoid()).numpy()
            numbers = tracks.follow(frame.second, frame.proposals)
            for row, (left, above, right, below) in enumerate(frame.proposals.tolist()):
                persons.append(
                    Person(
                        second=frame.second,
                        box=(left, above, right, below),
                        track=numbers[row],
                        actions=tuple(best_actions(chances[row], self.names, top, threshold)),
                        person=None if frame.scores is None else round(float(frame.scores[row]), 6),
                    )
                )
        return Watched(
            source.name, source.path, self.key_frames.step, persons=tuple(persons), skipped=tuple(failed)
        )

    def _bank(self, name: str, frames: AvaSet, pool: Pool) -> Bank:
        """The bank of a film, in memory."""
        assert self.baseline is not None
        assert self.card is not None
        rows = []
        for frame, sample in self._samples(self.baseline, frames, pool, f"{name}: bank", []):
            with torch.inference_mode():
                seen = self.baseline.network.box_features(*self._inputs(self.baseline, sample)).float().cpu()
            rows.append((frame.second, seen, torch.from_numpy(frame.proposals.copy()), sample.scores))
        return Bank.of(self.card, {FILM: bank_rows(rows, self.card.channels)})

    def _samples(
        self, eye: Eye, frames: AvaSet, pool: Pool, what: str, failed: list[str]
    ) -> Iterator[tuple[KeyFrame, KeySample]]:
        """The key frames that can be read; the others go to `failed`, or raise the error if all do."""
        progress, error = Progress(what, quiet=self.quiet), None
        for index, sample in key_tests(frames, range(len(frames)), eye.clips, self.key_frames, pool=pool):
            progress(index + 1, len(frames))
            if isinstance(sample, MediaError):
                error = sample
                failed.append(f"{frames[index].second:g}: {sample.code}: {sample.message}")
            else:
                yield frames[index], sample
        if error is not None and len(failed) == len(frames):
            raise error

    def _inputs(self, eye: Eye, sample: KeySample) -> tuple[Tensor, list[Tensor]]:
        clip = normalize(sample.frames.unsqueeze(0).to(self.device), eye.clips)
        return clip, [sample.proposals.to(self.device)]


class Tracks:
    """Numbers of persons from key frame to key frame: a box goes on with the one that it overlaps most."""

    def __init__(self, step: float) -> None:
        self.longest = (LOST + 0.5) * step
        self.seen = dict[int, tuple[float, Floats]]()  # number -> where it was last

    def follow(self, second: float, boxes: Floats) -> list[int]:
        """The number of each box [n, 4] of the next key frame; who is new gets a new one."""
        there = [number for number, (when, _) in self.seen.items() if second - when <= self.longest]
        numbers = [-1] * len(boxes)
        if there and len(boxes):
            last = np.stack([self.seen[number][1] for number in there])
            shared = np.nan_to_num(overlaps(last[:, None], boxes[None]))
            while shared.max() >= SAME:
                row, column = divmod(int(shared.argmax()), len(boxes))
                numbers[column] = there[row]
                shared[row], shared[:, column] = -1, -1
        for column, box in enumerate(boxes):
            if numbers[column] < 0:
                numbers[column] = len(self.seen)
            self.seen[numbers[column]] = (second, box)
        return numbers


def best_actions(
    chances: NDArray[np.floating[Any]], names: Sequence[str] | None, top: int, threshold: float
) -> Iterator[Score]:
    """The most probable actions of a person, [C]; column 0 stands for none and is left out."""
    for label in (np.argsort(-chances[1:], kind="stable")[:top] + 1).tolist():
        if chances[label] >= threshold:
            yield Score(label, names[label] if names else str(label), float(chances[label]))


def named(proposals: Proposals, path: str) -> Proposals:
    """The boxes of a film among those of a file. Raises DataError NO_PERSONS."""
    name = Path(path).name
    wanted = {name, name.rpartition(".")[0] or name}
    found = dict[str, Any]()
    for key in proposals.keys:
        parts = split_key(key)
        if parts is not None and parts[0] in wanted:
            boxes, scores = proposals.all_of(key)
            if len(boxes):
                scored = not np.isnan(scores).any()
                found[key_of(FILM, parts[1])] = np.column_stack([boxes, scores]) if scored else boxes
    if not found:
        there = sorted({(split_key(key) or (key, 0))[0] for key in proposals.keys})
        raise DataError(
            "NO_PERSONS",
            f"the proposals have no box of {name!r}; they are of {', '.join(there[:3])}"
            f"{', ...' if len(there) > 3 else ''}, and the film's name without its suffix has to be there",
        )
    return Proposals.of(dict(sorted(found.items(), key=lambda item: (split_key(item[0]) or ("", 0.0))[1])))


def _remembers(model: Any) -> bool:
    return getattr(model, "long_term", None) is not None


def _of_films(trained: dict[str, Any], every: float | None, *, banked: bool) -> KeyFrames:
    """Key frames of whole films: rate and distance as in training, from the beginning to the end."""
    step = float(trained.get("step", 1.0))
    if every is not None and not every > 0:
        raise UsageError("EVERY", f"key frames must lie more than 0 seconds apart, not {every}")
    if banked and every is not None and every != step:
        raise UsageError(
            "EVERY",
            f"the detector's bank has a time step of {step:g} s, so its key frames do; leave --every out",
        )
    return KeyFrames(fps=float(trained.get("fps", 30.0)), step=every or step)


def _baseline(model: Any, given: nn.Module | str | os.PathLike[str] | None, wanted: str | None) -> Any:
    """The network that a film's bank is made with; of a published detector the published one.

    Raises UsageError NO_BANK, BANK_MODEL, and what `open_model` does.
    """
    if given is None and wanted is None and getattr(model, "metadata", None) is None:
        print(f"the bank of the film is made with {PUBLISHED}", file=sys.stderr)
        given = PUBLISHED
    if given is None:
        of = f" of the weights {wanted[:12]}" if wanted else ""
        raise UsageError(
            "NO_BANK",
            "the detector takes a feature bank; give --bank-checkpoint, the baseline whose bank it was "
            f"trained with{of}",
        )
    base: Any = given if isinstance(given, nn.Module) else open_model(given)
    model_clips(base)
    if base.box_channels != model.bank_channels:
        raise UsageError(
            "BANK_MODEL",
            f"features of the baseline have {base.box_channels} channels, and the detector takes "
            f"{model.bank_channels}",
        )
    if wanted and model_hash(base) != wanted:
        raise UsageError(
            "BANK_MODEL",
            f"the detector was trained with a bank of weights {wanted[:12]}, and these are "
            f"{model_hash(base)[:12]}; give the checkpoint that its bank was built with",
        )
    return base
