"""Feature banks: what a network saw in every person of a film, kept so that other moments can look it up.

Wu et al., "Long-Term Feature Banks for Detailed Video Understanding", arXiv:1812.05038. A bank is a folder of
shards, one for some videos each, and a shard one safetensors file, written once:

    features  float16 or float32 [R, C], a row for each box, by video, time step and order of the boxes
    boxes     float32 [R, 4], fractions of width and height; NaN where unknown
    scores    float32 [R], of the person detector; NaN where unknown
    offsets   int64, for each video the rows where its time steps begin, then where the last one ends

Its metadata say whose features they are (`BankCard`) and which times of which videos are there. Shards are
mapped into memory, so that all workers and processes of a machine share one copy, and nothing is read that is
not looked up. Shapes: R rows, C channels, N boxes that ask, S = window * per_step slots.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from marey.errors import DataError, UsageError, nearest
from marey.files import replacing

Dtype = Literal["float16", "float32"]
Array = NDArray[Any]
KEY = "marey-bank"  # of the metadata entry that holds the head, as JSON
FORMAT = 1
SUFFIX = ".safetensors"
MOST_HEAD = 2**28  # bytes; a million videos take less
MOST_STEPS = 10_000_000  # of a video; each takes 8 bytes
ON_GRID = 1e-3  # time steps that a second may lie beside its own


class BankCard(msgspec.Struct, frozen=True, kw_only=True):
    """What all shards of a bank have in common.

    model         name of the network that saw the boxes
    model_sha256  of its tensors, as `marey.weights.native.digest` gives it; None: unknown
    channels      C
    dtype         how numbers are kept
    step          seconds from one time step to the next; time step 0 is second 0
    window        time steps of a look-up, unless it asks for others: the middle one is at window // 2
    per_step      boxes of a time step that a look-up takes at most
    source        what it was made from, for people
    """

    model: str
    model_sha256: str | None
    channels: int
    dtype: Dtype = "float32"
    step: float = 1.0
    window: int = 60
    per_step: int = 5
    source: str = ""

    def __post_init__(self) -> None:
        if min(self.channels, self.window, self.per_step) < 1 or not self.step > 0:
            raise UsageError(
                "BAD_VALUE",
                f"a bank of {self.channels} channels, window {self.window}, per_step {self.per_step}, step "
                f"{self.step}; needed: 1 or more, and more than 0",
            )


class VideoPart(msgspec.Struct, frozen=True, array_like=True):
    """A video in a shard: its first time step, how many there are up to its last, and how many rows."""

    video: str
    first: int
    steps: int
    rows: int


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of a shard.

    format, marey  version of this layout, and of the toolkit that wrote it
    first, last    seconds of its first and last boxes; None: it has none
    most           boxes of the fullest time step
    sha256         of the bytes of the features
    """

    format: int
    marey: str
    card: BankCard
    first: float | None
    last: float | None
    most: int
    videos: tuple[VideoPart, ...]
    sha256: str


class Rows(NamedTuple):
    """What a bank gets of one video; the order within a second is kept.

    seconds   [R], any order
    features  float [R, C]
    boxes     float [R, 4], fractions of width and height, or None
    scores    float [R], or None
    """

    seconds: Sequence[float] | Array
    features: Tensor
    boxes: Tensor | None = None
    scores: Tensor | None = None


class Shard(NamedTuple):
    """A shard's head and its arrays, which may be mapped files."""

    head: Head
    features: Array
    boxes: Array
    scores: Array
    offsets: Array


# Writing ----------------------------------------------------------------------------------------------


def make_shard(card: BankCard, videos: Mapping[str, Rows]) -> Shard:
    """The rows of some videos as arrays.

    Raises DataError BANK_VALUES, naming the video, for other shapes, seconds between time steps, and numbers
    that are not finite or too large for float16.
    """
    parts, offsets, start = list[VideoPart](), list[Array](), 0
    tables: dict[str, list[Array]] = {"features": [], "boxes": [], "scores": []}
    most, low, high = 0, math.inf, -math.inf
    for video, rows in videos.items():
        steps, values = _checked(card, video, rows)
        order = np.argsort(steps, kind="stable")
        steps = steps[order]
        for name, value in values.items():
            tables[name].append(value[order])
        first = int(steps[0]) if len(steps) else 0
        counts = np.bincount(steps - first)
        offsets.append(start + np.concatenate([[0], np.cumsum(counts)]))
        parts.append(VideoPart(video, first, len(counts), len(steps)))
        start += len(steps)
        if len(steps):
            most, low, high = max(most, int(counts.max())), min(low, first), max(high, int(steps[-1]))
    features = np.concatenate(tables["features"]) if start else np.empty((0, card.channels), card.dtype)
    head = Head(
        format=FORMAT,
        marey=version("marey"),
        card=card,
        first=low * card.step if start else None,
        last=high * card.step if start else None,
        most=most,
        videos=tuple(parts),
        sha256=_sha256(features),
    )
    boxes, scores = (np.concatenate(tables[name]) for name in ("boxes", "scores")) if start else _nothing()
    return Shard(head, features, boxes, scores, np.concatenate([*offsets, np.empty(0, np.int64)]))


def write_shard(folder: str | os.PathLike[str], card: BankCard, videos: Mapping[str, Rows]) -> Path:
    """Add some videos to a bank: one file, whole or not there, named after the videos, in the folder.

    Raises as `make_shard`, and EnvironmentFault where the disk fails.
    """
    shard = make_shard(card, videos)
    path = shard_path(folder, list(videos))
    arrays = {name: np.ascontiguousarray(getattr(shard, name)) for name in Shard._fields[1:]}
    with replacing(path) as part:
        safetensors.numpy.save_file(arrays, part, {KEY: msgspec.json.encode(shard.head).decode()})
    return path


def shard_path(folder: str | os.PathLike[str], videos: Sequence[str]) -> Path:
    """Where the shard of these videos, in this order, is written."""
    name = hashlib.sha256("\n".join(videos).encode("utf-8", "surrogateescape")).hexdigest()[:20]
    return Path(folder) / f"{name}{SUFFIX}"


def _checked(card: BankCard, video: str, rows: Rows) -> tuple[Array, dict[str, Array]]:
    """Time steps of the rows, and their values as they are kept."""
    seconds = np.asarray(rows.seconds, np.float64).reshape(-1)
    count = len(seconds)
    steps = np.rint(seconds / card.step)
    features = rows.features.detach().cpu()
    with np.errstate(over="ignore"):
        kept = features.float().numpy().astype(card.dtype)
    values = {"features": kept}
    for name, given, width in (("boxes", rows.boxes, (4,)), ("scores", rows.scores, ())):
        value = torch.full((count, *width), math.nan) if given is None else given.detach().cpu().float()
        values[name] = value.numpy()
    wanted = {"features": (count, card.channels), "boxes": (count, 4), "scores": (count,)}
    for name, shape in wanted.items():
        if values[name].shape != shape:
            raise DataError(
                "BANK_VALUES", f"{name} of {video!r} are {list(values[name].shape)}; needed: {list(shape)}"
            )
    if not np.isfinite(kept).all():
        large = " or too large for float16; keep float32" if card.dtype == "float16" else ""
        raise DataError("BANK_VALUES", f"features of {video!r} are not finite{large}")
    if not (np.abs(seconds / card.step - steps) <= ON_GRID).all():
        raise DataError("BANK_VALUES", f"seconds of {video!r} lie between time steps of {card.step} s")
    if count and np.ptp(steps) > MOST_STEPS:
        raise DataError("BANK_VALUES", f"seconds of {video!r} lie {np.ptp(seconds):,.0f} s apart")
    return steps.astype(np.int64), values


def _nothing() -> tuple[Array, Array]:
    return np.empty((0, 4), np.float32), np.empty(0, np.float32)


def _sha256(features: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).reshape(-1).view(np.uint8).data).hexdigest()


# Reading ----------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a video is: shard, place of its offsets there, and its part."""

    shard: int
    offset: int
    part: VideoPart


class Bank:
    """A bank on disk, for looking up; cheap to open and to hand to other processes.

    path          folder of shards, or one of them
    model_sha256  of the network whose features are wanted; None: any
    videos        id -> where its rows are, in the order of the shards' names

    Raises DataError BANK_NOT_FOUND, BANK_DAMAGED (naming the file), BANK_MIXED where shards are of different
    networks or kinds or have the same video; UsageError BANK_MODEL for another network's.
    """

    def __init__(self, path: str | os.PathLike[str], *, model_sha256: str | None = None) -> None:
        self.path = Path(path)
        self._open([_mapped(file) for file in shard_files(self.path)])
        self._check_model(model_sha256)

    @classmethod
    def of(cls, card: BankCard, videos: Mapping[str, Rows]) -> "Bank":
        """A bank in memory, for one film for example. Raises as `make_shard`."""
        bank = cls.__new__(cls)
        bank.path = Path()
        bank._open([make_shard(card, videos)])
        return bank

    def _open(self, shards: list[Shard]) -> None:
        self.shards = shards
        self.card = shards[0].head.card
        self.videos: dict[str, Place] = {}
        for number, shard in enumerate(shards):
            alike = msgspec.structs.replace(shard.head.card, source=self.card.source)
            if alike != self.card:
                raise DataError(
                    "BANK_MIXED",
                    f"{str(self.path)!r} holds shards of different banks: {_differs(alike, self.card)}",
                )
            offset = 0
            for part in shard.head.videos:
                if part.video in self.videos:
                    raise DataError(
                        "BANK_MIXED",
                        f"{str(self.path)!r} has {part.video!r} in two shards; remove one of them",
                    )
                self.videos[part.video] = Place(number, offset, part)
                offset += part.steps + 1

    def _check_model(self, wanted: str | None) -> None:
        found = self.card.model_sha256
        if wanted is None or found == wanted:
            return
        told = f"with weights {found[:12]}" if found else "of weights that it does not tell"
        raise UsageError(
            "BANK_MODEL",
            f"{str(self.path)!r} was made by {self.card.model} {told}, and features of weights "
            f"{wanted[:12]} are needed; make a bank with those, or say whose an imported one is (--weights)",
        )

    def __len__(self) -> int:
        """How many rows there are."""
        return sum(len(shard.features) for shard in self.shards)

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes map the files themselves."""
        if self.path == Path():
            return _again, (self.shards,)
        return Bank, (self.path,)

    @property
    def seconds(self) -> tuple[float, float] | None:
        """First and last second with boxes, of all videos; None: there are none."""
        times = [time for shard in self.shards for time in (shard.head.first, shard.head.last)]
        known = [time for time in times if time is not None]
        return (min(known), max(known)) if known else None

    @property
    def most(self) -> int:
        """Boxes of the fullest time step."""
        return max(shard.head.most for shard in self.shards)

    def rows(self, video: str, second: float) -> tuple[Tensor, Tensor, Tensor]:
        """Features [n, C], boxes [n, 4] and scores [n] of a second; n may be 0. Raises BANK_VIDEO."""
        place = self._place(video)
        offsets, step = self._offsets(place), round(second / self.card.step) - place.part.first
        known = 0 <= step < place.part.steps
        start, stop = (int(offsets[step]), int(offsets[step + 1])) if known else (0, 0)
        shard = self.shards[place.shard]
        found = (shard.features, shard.boxes, shard.scores)
        features, boxes, scores = (torch.from_numpy(np.array(array[start:stop])) for array in found)
        return features, boxes, scores

    def look_up(
        self,
        keys: Sequence[tuple[str, float]],
        counts: Sequence[int] | None = None,
        *,
        window: int | None = None,
        per_step: int | None = None,
        seed: int = 0,
        epoch: int | None = None,
    ) -> Tensor:
        """Windows around key frames: [N, window * per_step, C] in the bank's own precision.

        keys      (video, second) of each clip
        counts    boxes of each clip, each of which gets a window; None: one
        window    time steps: from window // 2 before the key frame to one less than that after it
        per_step  slots of each; of more boxes some are drawn, what is not filled is zero
        epoch     training: every box of a clip has a draw of its own, by (seed, epoch, key, number of the
                  box). None: a test, one draw for all boxes of a clip, by (seed, key) alone

        Raises DataError BANK_VIDEO for a video that is not there.
        """
        window = self.card.window if window is None else window
        per_step = self.card.per_step if per_step is None else per_step
        counts = [1] * len(keys) if counts is None else counts
        shape = (sum(counts), window * per_step, self.card.channels)
        found = torch.zeros(shape, dtype=getattr(torch, self.card.dtype))
        blocks, start = found.numpy(), 0
        for (video, second), count in zip(keys, counts, strict=True):
            if count:
                self._fill(blocks[start : start + count], video, second, window, per_step, (seed, epoch))
            start += count
        return found

    def _fill(
        self,
        blocks: Array,
        video: str,
        second: float,
        window: int,
        per_step: int,
        draw: tuple[int, int | None],
    ) -> None:
        """Fill the windows [n, S, C] of the boxes of one clip, which are zero."""
        place = self._place(video)
        key = round(second / self.card.step)
        ahead = key - window // 2 - place.part.first  # of the window's start, in time steps of the video
        low, high = max(ahead, 0), min(ahead + window, place.part.steps)
        if low >= high:
            return
        offsets = self._offsets(place)[low : high + 1]
        counts = np.diff(offsets)
        rows = self.shards[place.shard].features[offsets[0] : offsets[-1]]
        step_of = np.repeat(np.arange(low - ahead, high - ahead), counts)
        for number, block in enumerate(blocks):
            alone = draw[1] is not None and bool((counts > per_step).any())
            if number and not alone:  # the same for all boxes
                block[...] = blocks[0]
                continue
            chosen = np.arange(len(rows))
            if (counts > per_step).any():
                rng = _generator(*draw, video, key, number if alone else None)
                chosen = _drawn(step_of, per_step, rng)
            steps = step_of[chosen]
            block[steps * per_step + _ranks(steps)] = rows[chosen]

    def _place(self, video: str) -> Place:
        if video not in self.videos:
            raise DataError(
                "BANK_VIDEO",
                f"the bank {str(self.path)!r} has no video {video!r}; {nearest(video, self.videos)}",
            )
        return self.videos[video]

    def _offsets(self, place: Place) -> Array:
        return self.shards[place.shard].offsets[place.offset : place.offset + place.part.steps + 1]


def shard_files(path: Path) -> list[Path]:
    """The files of a bank, by name. Raises DataError BANK_NOT_FOUND."""
    files = [path] if path.is_file() else sorted(path.glob(f"*{SUFFIX}"))
    if not files:
        raise DataError(
            "BANK_NOT_FOUND", f"{str(path)!r} is no bank: a folder with *{SUFFIX} that `marey bank` wrote"
        )
    return files


def damage(shard: Shard) -> Iterator[str]:
    """What is wrong with the numbers in a shard, a line each; reads all of them."""
    if _sha256(shard.features) != shard.head.sha256:
        yield "the features have changed since they were written"
    if not np.isfinite(shard.features).all():
        yield "some features are not finite"


def _again(shards: list[Shard]) -> Bank:
    bank = Bank.__new__(Bank)
    bank.path = Path()
    bank._open(shards)
    return bank


def _generator(seed: int, epoch: int | None, *key: str | int | None) -> np.random.Generator:
    text = "\0".join(map(str, (seed, epoch, *key)))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _drawn(step_of: Array, per_step: int, rng: np.random.Generator) -> Array:
    """Of each time step's rows at most so many, all choices equally likely, in the order of the rows."""
    order = np.argsort(step_of + rng.random(len(step_of)))  # shuffled within time steps, which stay in order
    kept = order[_ranks(step_of) < per_step]
    kept.sort()
    return kept


def _ranks(steps: Array) -> Array:
    """The number of each row among those of its time step; the steps ascend."""
    ranks: Array = np.arange(len(steps)) - np.searchsorted(steps, steps)
    return ranks


def _differs(card: BankCard, other: BankCard) -> str:
    names = [name for name in BankCard.__struct_fields__ if getattr(card, name) != getattr(other, name)]
    return ", ".join(f"{name} {getattr(other, name)} and {getattr(card, name)}" for name in names)


def _check_order(parts: Sequence[VideoPart], offsets: Array) -> None:
    start = ends = 0
    for part in parts:
        rows = offsets[start : start + part.steps + 1]
        if part.steps < 0 or rows[0] != ends or rows[-1] != ends + part.rows or (np.diff(rows) < 0).any():
            raise ValueError(f"the rows of {part.video!r} are out of order")
        start, ends = start + part.steps + 1, ends + part.rows


def _mapped(path: Path) -> Shard:
    """A shard whose arrays are mapped. Raises DataError BANK_DAMAGED."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= min(MOST_HEAD, path.stat().st_size - 8):
                raise ValueError("it is no safetensors file")
            table = json.loads(file.read(size))
        head = msgspec.json.decode(table.pop("__metadata__", {}).get(KEY, "{}"), type=Head)
        if head.format != FORMAT:
            raise ValueError(f"its layout is {head.format}, written by marey {head.marey}; update marey")
        rows = sum(part.rows for part in head.videos)
        starts = sum(part.steps + 1 for part in head.videos)
        shapes = {
            "features": ((rows, head.card.channels), {"float16": "F16", "float32": "F32"}[head.card.dtype]),
            "boxes": ((rows, 4), "F32"),
            "scores": ((rows,), "F32"),
            "offsets": ((starts,), "I64"),
        }
        arrays = {}
        for name, (shape, code) in shapes.items():
            entry = table[name]
            if (tuple(entry["shape"]), entry["dtype"]) != (shape, code):
                raise ValueError(f"{name} are {entry['dtype']} {entry['shape']}")
            kind = {"F16": np.float16, "F32": np.float32, "I64": np.int64}[code]
            start, stop = entry["data_offsets"]
            if stop - start != math.prod(shape) * np.dtype(kind).itemsize:
                raise ValueError(f"{name} have {stop - start} bytes")
            if not math.prod(shape):
                arrays[name] = np.empty(shape, kind)
            else:
                arrays[name] = np.memmap(path, kind, "r", 8 + size + start, shape).view(np.ndarray)
        _check_order(head.videos, arrays["offsets"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, msgspec.MsgspecError) as error:
        raise DataError("BANK_DAMAGED", f"{str(path)!r} is no shard of a bank, or damaged: {error}") from None
    return Shard(head, **arrays)
