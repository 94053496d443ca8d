"""THE preprocessing object: which frames, what size, which colours, and the views of a test protocol.

One frozen `Preprocess` serves training, testing, predicting and export, and travels with the weights.
Pixels stay uint8 `[T, H, W, 3]` RGB until `normalize` turns a batch into the network's input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args
from typing import Protocol as Interface

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from marey.errors import MareyError, UsageError, unknown
from marey.video import sampling
from marey.video.light import Light, relight
from marey.video.sampling import Indices, OutOfBound, Rule
from marey.video.transforms import (
    Box,
    Crops,
    Resize,
    Size,
    area_crop,
    color_jitter,
    crop_boxes,
    crop_resize,
    move_boxes,
    random_crop,
    resize,
    scale_crop,
    to_short_side,
)

Sampling = Literal["clip", "segments", "dense", "untrimmed", "uniform", "key"]
TrainCrop = Literal["area", "multiscale5", "multiscale13", "random", "center"]
Average = Literal["prob", "score", "max", "none"]
Triple = tuple[float, float, float]

STEPPED = ("clip", "untrimmed", "key")  # samplings with an interval
DECODED_AT_ONCE = 64  # frames; 400 MB at 1920x1080


class Source(Interface):
    """What frames come from: `marey.video.reader.Video`, or anything like it."""

    @property
    def fps(self) -> float:
        """Frames per second."""

    def __len__(self) -> int: ...

    def frames(self, indices: Sequence[int] | Indices) -> Tensor:
        """The frames asked for, uint8 `[T, H, W, 3]`."""


class TrainClip(NamedTuple):
    """One training sample: frames uint8 `[T, crop, crop, 3]`, and whether `normalize` shall mirror them."""

    frames: Tensor
    mirrored: bool


class KeyClip(NamedTuple):
    """A clip around a key frame, with the boxes of what is seen in it.

    frames    uint8 `[T, h, w, 3]`; for training square, for tests the whole frame
    mirrored  whether `normalize` shall mirror them
    boxes     float32 `[N, 4]` each, left, top, right, bottom in pixels of the frames, once these are mirrored
    """

    frames: Tensor
    mirrored: bool
    boxes: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Views:
    """A video's views, cut from its resized frames only when they are needed.

    View = (light * C + crop) * K + clip, where a test has lights; else view = crop * K + clip.

    frames   uint8 `[N, h, w, 3]`, every frame that some clip holds, once; `[D * N, h, w, 3]` where lights
             correct frames as decoded, for each of the D ways in turn
    index    int64 `[K, T]`, the clips, as rows of `frames`
    boxes    int64 `[C, 4]`, the crops; left, top, right, bottom
    mirror   bool `[C]`, which crops are mirrored
    numbers  int64 `[N]`, frame numbers of `frames` in the video
    lights   the corrections that every crop of every clip is shown under
    """

    frames: Tensor
    index: Indices
    boxes: Indices
    mirror: NDArray[np.bool_]
    numbers: Indices
    lights: tuple[Light | None, ...] = (None,)

    def __len__(self) -> int:
        return len(self.index) * len(self.boxes) * len(self.lights)

    def batch(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Views start..stop-1, or up to the last: uint8 `[n, T, crop, crop, 3]`."""
        chosen = range(len(self))[start:stop]
        side = int(self.boxes[0, 2] - self.boxes[0, 0])
        views = torch.empty((len(chosen), self.index.shape[1], side, side, 3), dtype=torch.uint8)
        for view, number in zip(views, chosen, strict=True):
            shown, clip = divmod(number, len(self.index))
            lamp, crop = divmod(shown, len(self.boxes))
            light = self.lights[lamp]
            way = 0 if light is None else _decoded(self.lights).index(_as_decoded(light))
            first = way * len(self.numbers)
            left, top, right, bottom = self.boxes[crop]
            cut, rows = self.frames[:, top:bottom, left:right], torch.from_numpy(self.index[clip] + first)
            torch.index_select(cut, 0, rows, out=view)  # 20 times as fast as cut[rows]
            if light is not None and not light.decoded:
                view.copy_(relight(view[None], light)[0])
            if self.mirror[crop]:
                view.copy_(view.flip(2))
        return views


def _as_decoded(light: Light | None) -> Light | None:
    """What a light does to frames before they are resized."""
    return light if light is not None and light.decoded else None


def _decoded(lights: Sequence[Light | None]) -> list[Light | None]:
    """The different ways in which lights want frames before they are resized."""
    return list(dict.fromkeys(map(_as_decoded, lights)))


class Protocol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which views of a video are scored; a view is one crop of one clip, under one light.

    clips                clips per video ("clip" and "uniform" sampling; others have their own number)
    crops                "center", "three" or "ten" squares
    positions            windows of "dense" sampling, one clip each
    twice                as many clips again at the beginnings of the parts ("clip" and "segments")
    lights               corrections of light; each crop is scored under each of them, before `light` of the
                         Preprocess. None: as it is
    crop, short_side, frames, interval, sampling    where they differ from those of the Preprocess
    """

    clips: int = 1
    crops: Crops = "center"
    positions: int = 10
    twice: bool = False
    lights: tuple[Light, ...] = ()
    crop: int | None = None
    short_side: int | None = None
    frames: int | None = None
    interval: int | None = None
    sampling: Sampling | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A Protocol with everything filled in: what is really done, for samplers and for results."""

    sampling: Sampling
    frames: int
    interval: int
    clips: int
    positions: int
    twice: bool
    lights: tuple[Light, ...]
    short_side: int | None
    crops: Crops
    crop: int
    input_size: int


class Preprocess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a video becomes what a network sees. A combination that makes no sense is a UsageError.

    frames            frames the network sees at once (TSN, TSM: their segments)
    interval          video frames from one of them to the next ("clip" and "untrimmed")
    sampling          "clip": consecutive frames at the interval. "segments": one frame from each of `frames`
                      equal parts. "uniform": the same by the 1.x rule of its own. "dense": at equal steps
                      within a window of `sample_range` frames. "untrimmed": a clip every `clip_interval`
                      frames, for tests only. "key": one clip around a given key frame, for detectors; their
                      tests show the whole frame at `short_side`
    rule              whose arithmetic: test positions of the "0.x" or the "1.x" generation of MMAction2; or
                      positions, sizes and crops of PySlowFast, "slowfast", or "slowfast_offset" with its
                      USE_OFFSET_SAMPLING ("clip" and "uniform"). Published accuracies belong to one
    out_of_bound      what stands in for frames after the last: "loop" from the first, or "repeat_last"
    target_fps        frames are taken as if the video had this rate ("clip", not rule 0.x)
    jitter            training: each frame moves on by an independent 0..interval-1 ("clip"), or to both
                      sides by half of that ("key", see `sampling.around`; there also at an interval of 1)
    keep_tail         training: starts reach the very end of the video
    short_side        frames are first resized to this short side; None: used as they are
    train_short_side  training: the short side is drawn from lowest..highest instead
    inverse_short_side  training: not the short side is drawn uniformly, but its inverse, so that small ones
                      are more frequent (PySlowFast's INV_UNIFORM_SAMPLE)
    crop, train_crop  training: side of the square the network sees, and how it is cut: "area"
                      (RandomResizedCrop), "multiscale5", "multiscale13" (with scales, scale_gap; sides within
                      two pixels of scale_snap become it, None: of the crop), "random", "center"
    resize            "bilinear", or "opencv" for the exact bits of the published pipelines
    flip              training: probability of a mirrored clip
    flip_labels       pairs of classes that a mirror exchanges (see `mirror_label`)
    color_jitter      training: strengths of brightness, contrast, saturation, hue; None: off
    light             correction of light, in training and tests; None: frames as they are
    mean, std         of the channels, 0..255, in channel_order
    input_size        the normalised square is resized to this side, on the device, before the network sees
                      it; None: it is seen as it is cut. A reduced picture is another than a small crop, so a
                      student of a larger teacher carries its own way there (docs/distillation.md)
    input_antialias   that resize averages over all pixels; else it is bilinear between the nearest four,
                      which for a half is the mean of 2 x 2 pixels
    val, test         protocols of validation and test
    average           how view scores become one: mean of "prob"abilities, of logits ("score"), the largest
                      probability of each class ("max", which do not sum to 1; PySlowFast's ENSEMBLE_METHOD
                      max), or "none"
    """

    frames: int = 8
    interval: int = 1
    sampling: Sampling = "clip"
    rule: Rule = "0.x"
    out_of_bound: OutOfBound = "loop"
    target_fps: float | None = None
    jitter: bool = False
    keep_tail: bool = False
    sample_range: int = 64
    clip_interval: int = 16
    short_side: int | None = 256
    train_short_side: tuple[int, int] | None = None
    inverse_short_side: bool = False
    crop: int = 224
    train_crop: TrainCrop = "area"
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    scale_gap: int = 1
    scale_snap: int | None = None
    resize: Resize = "bilinear"
    flip: float = 0.5
    flip_labels: tuple[tuple[int, int], ...] = ()
    color_jitter: tuple[float, float, float, float] | None = None
    light: Light | None = None
    mean: Triple = (123.675, 116.28, 103.53)
    std: Triple = (58.395, 57.12, 57.375)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    input_size: int | None = None
    input_antialias: bool = False
    val: Protocol = Protocol()
    test: Protocol = Protocol()
    average: Average = "prob"

    def __post_init__(self) -> None:
        for text, wrong in _faults(self).items():
            if wrong:
                raise UsageError("PREPROCESS_INVALID", f"preprocessing: {text}")
        self.plan(self.val)
        self.plan(self.test)

    @property
    def pyslowfast(self) -> bool:
        """Whether the rule is one of PySlowFast's."""
        return self.rule in ("slowfast", "slowfast_offset")

    def plan(self, protocol: Protocol) -> Plan:
        """What a protocol comes to with this Preprocess; UsageError if the two do not go together."""
        p = protocol
        short = self.short_side if p.short_side is None else p.short_side
        plan = Plan(
            sampling=p.sampling or self.sampling,
            frames=self.frames if p.frames is None else p.frames,
            interval=self.interval if p.interval is None else p.interval,
            clips=p.clips,
            positions=p.positions,
            twice=p.twice,
            lights=p.lights,
            short_side=short,
            crops=p.crops,
            crop=self.crop if p.crop is None else p.crop,
            input_size=self.input_size or (self.crop if p.crop is None else p.crop),
        )
        how, crop, twice = plan.sampling, plan.crop, plan.twice
        smallest = min(plan.clips, crop, plan.positions, plan.frames, plan.interval, short or 1)
        resampled = self.target_fps is not None
        pyslowfast = self.pyslowfast
        faults = {
            "clips, crop, positions, frames, interval and short_side must be at least 1": smallest < 1,
            f"{how} sampling takes no clips": p.clips != 1 and how not in ("clip", "uniform"),
            f"{how} sampling takes no interval": plan.interval != 1 and how not in STEPPED,
            f"{how} sampling cannot be twice": twice and how not in ("clip", "segments"),
            "dense sampling needs sample_range >= frames": how == "dense" and self.sample_range < plan.frames,
            f"rule {self.rule} knows no {how} sampling": pyslowfast and how not in ("clip", "uniform"),
            f"rule {self.rule} knows no ten crops, and nothing twice": (
                pyslowfast and (plan.crops == "ten" or twice)
            ),
            "rule slowfast has one clip by uniform sampling": (
                how == "uniform" and self.rule == "slowfast" and plan.clips > 1
            ),
            "rule 1.x samples only single frames twice": (
                twice and self.rule == "1.x" and how == "clip" and plan.frames > 1
            ),
            "target_fps needs clip sampling, not twice": resampled and (how != "clip" or twice),
            f"three crops of {crop} do not cover a short side of {short}; make them equal": (
                plan.crops == "three" and short is not None and crop != short
            ),
            f"a crop of {crop} does not fit into a short side of {short}": short is not None and crop > short,
        }
        for text, wrong in faults.items():
            if wrong:
                raise UsageError("PREPROCESS_INVALID", f"preprocessing, test protocol: {text}")
        return plan

    def span(self, fps: float | None = None) -> int:
        """The fewest frames a video needs for no test clip to repeat one; fps is the video's own."""
        if self.sampling in ("segments", "uniform"):
            return self.frames + (self.sampling == "uniform")
        if fps and self.target_fps:
            return max(1, int(self.frames * self.interval * fps / self.target_fps))
        if self.pyslowfast:
            return self.frames * self.interval
        interval = self.sample_range // self.frames if self.sampling == "dense" else self.interval
        return (self.frames - 1) * interval + 1

    def pick_train(self, n: int, rng: np.random.Generator, fps: float | None = None) -> Indices:
        """Frame numbers of a random clip of a video of n >= 1 frames: int64 `[T]`, 0..n-1."""
        length = self.frames
        if self.sampling == "uniform":
            return sampling.uniform_train(n, length=length, rng=rng).reshape(-1)
        if self.sampling == "dense":
            window = self.sample_range
            step = window // length
            return sampling.dense_train(
                n, length=length, interval=step, sample_range=window, rng=rng
            ).reshape(-1)
        if self.sampling in ("untrimmed", "key"):
            raise UsageError(
                "PREPROCESS_INVALID", f"{self.sampling} sampling has no random clips to train on"
            )
        if self.pyslowfast:
            return sampling.spread_train(
                n, length=length, interval=self.interval, rng=rng, fps=fps, target_fps=self.target_fps
            ).reshape(-1)
        segments = self.sampling == "segments"
        return sampling.clip_train(
            n,
            length=1 if segments else length,
            clips=length if segments else 1,
            interval=self.interval,
            rng=rng,
            keep_tail=self.keep_tail,
            jitter=self.jitter,
            out_of_bound=self.out_of_bound,
            fps=fps,
            target_fps=self.target_fps,
        ).reshape(-1)

    def pick_test(self, n: int, protocol: Protocol, fps: float | None = None) -> Indices:
        """Frame numbers of a protocol's clips of a video of n >= 1 frames: int64 `[K, T]`, 0..n-1."""
        plan = self.plan(protocol)
        length = plan.frames
        if plan.sampling == "key":
            raise UsageError(
                "PREPROCESS_INVALID", "key sampling needs key frames; a detector's clips have them"
            )
        if plan.sampling == "uniform":
            return sampling.uniform_test(n, length=length, clips=plan.clips, middle=self.rule == "slowfast")
        if plan.sampling == "dense":
            window, positions = self.sample_range, plan.positions
            step = window // length
            return sampling.dense_test(
                n, length=length, interval=step, sample_range=window, positions=positions
            )
        if plan.sampling == "untrimmed":
            return sampling.untrimmed(n, length=length, every=self.clip_interval, interval=plan.interval)
        if self.pyslowfast:
            return sampling.spread_test(
                n,
                length=length,
                interval=plan.interval,
                clips=plan.clips,
                offset=self.rule == "slowfast_offset",
                fps=fps,
                target_fps=self.target_fps,
            )
        segments = plan.sampling == "segments"
        return sampling.clip_test(
            n,
            length=1 if segments else length,
            clips=length if segments else plan.clips,
            interval=plan.interval,
            twice=plan.twice,
            rule=self.rule,
            out_of_bound=self.out_of_bound,
            fps=fps,
            target_fps=self.target_fps,
        ).reshape(-1, length)

    def train(self, video: Source, rng: np.random.Generator, within: range | None = None) -> TrainClip:
        """A random clip, cut at random; `within` limits it to some of the video's frames.

        All draws come from `rng`. Only the frames of the clip are decoded, each once.
        """
        return self.train_copies(video, (rng,), within)[0]

    def train_copies(
        self, video: Source, rngs: Sequence[np.random.Generator], within: range | None = None
    ) -> list[TrainClip]:
        """One random clip, decoded once and cut at random for each generator, the first of which picks it."""
        part = np.arange(len(video)) if within is None else np.array(within)
        index = part[self.pick_train(len(part), rngs[0], video.fps)]
        numbers, place = np.unique(index, return_inverse=True)
        decoded, rows, copies = self._decode(video, numbers), torch.from_numpy(place), []
        for rng in rngs:
            size, box = self._draw_box((decoded.shape[2], decoded.shape[1]), rng)
            frames = crop_resize(decoded, size, box, (self.crop, self.crop), self.resize)
            if self.color_jitter:
                frames = color_jitter(frames, rng, self.color_jitter)
            copies.append(TrainClip(frames.index_select(0, rows), bool(rng.random() < self.flip)))
        return copies

    def views(self, video: Source, protocol: Protocol, within: range | None = None) -> Views:
        """The views of a protocol; `within` limits them to some of the video's frames.

        Every frame that is needed is decoded and resized once, however many clips and crops hold it; they are
        asked for in ascending order, some at a time, so that full-size frames of a whole video fit in memory.
        """
        plan = self.plan(protocol)
        part = np.arange(len(video)) if within is None else np.array(within)
        index = part[self.pick_test(len(part), protocol, video.fps)]
        numbers, place = np.unique(index, return_inverse=True)
        lights = plan.lights or (None,)
        ways = _decoded(plan.lights) if plan.lights else [None]
        pieces: list[list[Tensor]] = [[] for _ in ways]
        for first in range(0, len(numbers), DECODED_AT_ONCE):
            frames = video.frames(numbers[first : first + DECODED_AT_ONCE])
            size = (frames.shape[2], frames.shape[1])
            size = to_short_side(size, plan.short_side, down=self.pyslowfast) if plan.short_side else size
            boxes, mirror = crop_boxes(plan.crops, size, plan.crop, flush=self.pyslowfast)
            left, top = boxes[:, :2].min(axis=0).tolist()
            right, bottom = boxes[:, 2:].max(axis=0).tolist()
            for way, resized in zip(ways, pieces, strict=True):
                lit = frames if way is None else relight(frames, way)
                if self.light is not None and self.light.decoded:
                    lit = relight(lit, self.light)
                shown = resize(lit, size, self.resize, (left, top, right, bottom))  # by some crop
                resized.append(shown)
        moved = boxes - [left, top, left, top]
        together = torch.cat([piece for resized in pieces for piece in resized])
        return Views(together, place.reshape(index.shape), moved, mirror, numbers, lights)

    def _decode(self, video: Source, numbers: Indices) -> Tensor:
        """Frames of a video, corrected if `light` wants them as decoded."""
        return relight(video.frames(numbers), _as_decoded(self.light))

    def key_clip(
        self,
        video: Source,
        centre: int,
        boxes: Sequence[NDArray[np.floating]] = (),
        *,
        rng: np.random.Generator | None = None,
        last: int | None = None,
    ) -> KeyClip:
        """The clip around frame `centre` of a video, and boxes that follow its pixels.

        boxes  arrays `[N, 4]`, left, top, right, bottom, as fractions of width and height of the frame
        rng    training: frames, size, crop and mirror are drawn from it. None: the test's clip, whole frames
               at `short_side`, whose size differs between videos
        last   frame that the clip may reach; None: the last one
        Raises what `video.frames` raises.
        """
        jitter = rng if self.jitter else None
        last = len(video) - 1 if last is None else min(last, len(video) - 1)
        index = sampling.around(centre, length=self.frames, interval=self.interval, last=last, rng=jitter)
        numbers, place = np.unique(index, return_inverse=True)
        decoded, rows = self._decode(video, numbers), torch.from_numpy(place)
        source = (decoded.shape[2], decoded.shape[1])
        pixels = [(b * np.tile(source, 2)).astype(np.float32) for b in boxes]
        if rng is None:
            size = to_short_side(source, self.short_side) if self.short_side else source
            frames = resize(decoded, size, self.resize).index_select(0, rows)
            return KeyClip(frames, False, tuple(move_boxes(b, source, size) for b in pixels))
        size, box = self._draw_box(source, rng)
        frames = crop_resize(decoded, size, box, (self.crop, self.crop), self.resize)
        if self.color_jitter:
            frames = color_jitter(frames, rng, self.color_jitter)
        mirrored = bool(rng.random() < self.flip)
        cut, out = (box[2] - box[0], box[3] - box[1]), (self.crop, self.crop)
        moved = [move_boxes(move_boxes(b, source, size, box), cut, out, mirrored=mirrored) for b in pixels]
        return KeyClip(frames.index_select(0, rows), mirrored, tuple(moved))

    def mirror_label(self, label: int) -> int:
        """The class that a mirrored clip of class `label` shows."""
        both = {a: b for pair in self.flip_labels for a, b in (pair, pair[::-1])}
        return both.get(label, label)

    def _draw_box(self, size: Size, rng: np.random.Generator) -> tuple[Size, Box]:
        """Size that frames are resized to, and the box of it that is cut."""
        short = self.short_side
        if self.train_short_side:
            low, high = self.train_short_side
            if self.inverse_short_side:
                short = round(1 / rng.uniform(1 / high, 1 / low))
            elif self.pyslowfast:  # so the ends are drawn half as often as what lies between
                short = round(rng.uniform(low, high))
            else:
                short = int(rng.integers(low, high, endpoint=True))
        size = to_short_side(size, short, down=self.pyslowfast) if short else size
        if self.train_crop == "area":
            return size, area_crop(size, rng, square=not self.pyslowfast)
        if self.train_crop == "random":
            return size, random_crop(size, self.crop, rng)
        if self.train_crop == "center":
            boxes, _ = crop_boxes("center", size, self.crop, flush=self.pyslowfast)
            left, top, right, bottom = boxes[0].tolist()
            return size, (left, top, right, bottom)
        points: Literal[5, 13] = 5 if self.train_crop == "multiscale5" else 13
        snap = self.scale_snap or self.crop
        return size, scale_crop(size, snap, rng, scales=self.scales, gap=self.scale_gap, points=points)


def normalize(batch: Tensor, preprocess: Preprocess, mirrored: Tensor | None = None) -> Tensor:
    """The network's input: (pixel - mean) / std, float32 `[B, 3, T, H, W]`, channels_last_3d.

    batch     uint8 `[B, T, H, W, 3]` RGB, on the device where the work is to be done; it is not changed
    mirrored  bool `[B]`, which clips are mirrored left to right

    With `input_size` it is resized to that, see `to_input_size`.
    """
    if preprocess.light is not None and not preprocess.light.decoded:
        batch = relight(batch, preprocess.light)
    if mirrored is not None and mirrored.any():
        batch = torch.stack(
            [clip.flip(2) if flip else clip for clip, flip in zip(batch, mirrored.tolist(), strict=True)]
        )
    if preprocess.channel_order == "bgr":
        batch = batch.flip(4)
    lines = batch.reshape(*batch.shape[:3], -1).float()  # along whole lines: an axis of three is slow
    mean = torch.tensor(preprocess.mean, device=batch.device).repeat(batch.shape[3])
    std = torch.tensor(preprocess.std, device=batch.device).repeat(batch.shape[3])
    clip = lines.sub_(mean).div_(std).view(batch.shape).permute(0, 4, 1, 2, 3)
    return to_input_size(clip, preprocess)


def to_input_size(clip: Tensor, preprocess: Preprocess) -> Tensor:
    """Normalised clips at the size that the network sees: float `[B, 3, T, H, W]` -> `[B, 3, T, S, S]`.

    Bilinear with half-pixel centres, frame by frame; a clip that has the size, or a Preprocess without
    `input_size`, changes nothing. Memory order stays channels_last_3d.
    """
    side = preprocess.input_size
    if side is None or clip.shape[3:] == (side, side):
        return clip
    frames = clip.transpose(1, 2).flatten(0, 1)  # nothing is copied where the channels lie last
    frames = F.interpolate(
        frames, (side, side), mode="bilinear", align_corners=False, antialias=preprocess.input_antialias
    )
    return frames.view(clip.shape[0], clip.shape[2], *frames.shape[1:]).transpose(1, 2)


def average_views(logits: Tensor, how: Average = "prob", *, multi_label: bool = False) -> Tensor:
    """Scores of a video from those of its views.

    logits       float [V, C], V >= 1
    how          "prob": mean of the views' probabilities, float [C]. "score": mean of the logits, float [C].
                 "max": the largest of the views' probabilities of each class, float [C]. "none": the logits
                 of every view, [V, C], as they are
    multi_label  probabilities are sigmoids, not a softmax
    Raises MareyError SCORES_SHAPE, UNKNOWN_NAME.
    """
    if logits.ndim != 2 or not len(logits):
        raise MareyError("SCORES_SHAPE", f"logits must be [views, classes], not {list(logits.shape)}")
    if how in ("prob", "max"):
        probabilities = logits.sigmoid() if multi_label else logits.softmax(1)
        return probabilities.mean(0) if how == "prob" else probabilities.amax(0)
    if how == "score":
        return logits.mean(0)
    if how == "none":
        return logits
    raise unknown("way to average views", how, get_args(Average))


def _faults(p: Preprocess) -> dict[str, bool]:
    """What can be wrong with the fields for training, and whether it is."""
    clip, stepped = p.sampling == "clip", p.sampling in STEPPED
    lowest, highest = p.train_short_side or (p.short_side, p.short_side)
    paired = sum(p.flip_labels, ())
    return {
        "frames, interval, sample_range and clip_interval must be at least 1": (
            min(p.frames, p.interval, p.sample_range, p.clip_interval) < 1
        ),
        f"{p.sampling} sampling takes no interval": p.interval != 1 and not stepped,
        "target_fps must be above 0": p.target_fps is not None and not p.target_fps > 0,
        f"rule {p.rule} knows no {p.sampling} sampling": p.pyslowfast
        and p.sampling not in ("clip", "uniform"),
        f"rule {p.rule} holds the last frame and knows no jitter, keep_tail or out_of_bound": (
            p.pyslowfast and (p.jitter or p.keep_tail or p.out_of_bound != "loop")
        ),
        "target_fps needs clip sampling, and not rule 0.x": (
            p.target_fps is not None and (not clip or p.rule == "0.x")
        ),
        "jitter needs key sampling, or clip sampling with an interval above 1": (
            p.jitter and p.sampling != "key" and (p.interval == 1 or not clip)
        ),
        "repeat_last needs clip or segments sampling": (
            p.out_of_bound == "repeat_last" and p.sampling not in ("clip", "segments")
        ),
        "keep_tail needs clip or segments sampling": p.keep_tail and p.sampling not in ("clip", "segments"),
        "dense sampling needs sample_range >= frames": p.sampling == "dense" and p.sample_range < p.frames,
        "crop and short_side must be at least 1": min(p.crop, lowest or 1) < 1,
        "inverse_short_side needs train_short_side": p.inverse_short_side and p.train_short_side is None,
        "train_short_side must be (lowest, highest)": lowest is not None
        and highest is not None
        and lowest > highest,
        f"train_crop {p.train_crop} of {p.crop} does not fit into a short side of {lowest}": (
            p.train_crop in ("random", "center") and lowest is not None and p.crop > lowest
        ),
        "scales must lie in 0..1, scale_gap not below 0 and scale_snap not below 1": (
            min(p.scales, default=0) <= 0
            or max(p.scales, default=0) > 1
            or p.scale_gap < 0
            or (p.scale_snap is not None and p.scale_snap < 1)
        ),
        "flip must lie in 0..1": not 0 <= p.flip <= 1,
        "flip_labels must name each class once": len(set(paired)) < len(paired) or min(paired, default=0) < 0,
        "flip_labels have no effect while flip is 0": bool(paired) and p.flip == 0,
        "color_jitter must not be below 0, nor its hue above 0.5": (
            p.color_jitter is not None and (min(p.color_jitter) < 0 or p.color_jitter[3] > 0.5)
        ),
        "std must be above 0": not min(p.std) > 0,
        "input_size must be at least 1": p.input_size is not None and p.input_size < 1,
        "key sampling has no input_size, which would not move boxes": (
            p.sampling == "key" and p.input_size is not None
        ),
        "input_antialias needs input_size": p.input_antialias and p.input_size is None,
    }
