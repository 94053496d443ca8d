"""`marey bank build`: what a trained detector sees in every person of a split, kept as a bank.

As the source infers its banks: whole frames as in a test, the boxes that count as persons there, one key
frame at a time, so that a row depends on nothing else.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from marey.data.ava_clips import KeySample, key_tests
from marey.data.bank import Bank, BankCard, Rows, damage, shard_path, write_shard
from marey.data.clips import Failure, check_complete
from marey.data.workers import Pool
from marey.errors import DataError, MediaError, UsageError, unknown
from marey.jobs import setup
from marey.jobs.bank import DTYPES, BankReport, check_new, describe, model_hash
from marey.jobs.boxes import clip_of, window_size
from marey.jobs.interrupt import Interrupted, stop_signals
from marey.jobs.manifest import Shard
from marey.jobs.progress import Progress
from marey.jobs.setup_boxes import Split, open_split
from marey.models.fold import folded
from marey.recipes.catalog import load_recipe
from marey.recipes.schema import AnyRecipe, BoxRecipe
from marey.training.devices import device_of
from marey.weights.create import open_model

SPLITS = ("train", "val", "test")
SHARD_ROWS = 4096  # boxes at least of a shard, but for the last one; whole videos only


class Built(NamedTuple):
    """What was done.

    bank      what is in the folder now; None: nothing yet, as other parts of the work are elsewhere
    made      key frames that went through the network, in how many seconds
    kept      key frames whose shards were there
    failed    key frames that could not be read
    """

    bank: BankReport | None
    made: int
    seconds: float
    kept: int
    failed: list[Failure]


class Part(NamedTuple):
    """The videos of a shard, and their key frames in the split."""

    videos: list[str]
    indices: list[int]


def build_bank(
    recipe: AnyRecipe | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    split: str = "train",
    dtype: str = "float16",
    proposed: bool = False,
    shard: Shard | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Built:
    """Make the bank of a split, or the part of it that the folder `out` does not have yet.

    checkpoint  the detector whose features are kept: a baseline trained on boxes, or a release
    split       "train", "val" or "test"; the folder may hold the banks of several
    dtype       "float16" or "float32"
    proposed    every key frame that the proposals name, not only those of the annotation
    shard       only this part of the work; several processes may fill one folder

    A shard holds some videos and is written once, whole; those that are there are checked and kept. So a run
    that was stopped or killed goes on by the same call, and the files are the same. Excluded key frames have
    rows, as in the source. Raises UsageError RECIPE_KIND, NO_BOXES, NO_DATA; DataError INCOMPLETE (files that
    cannot be read, see `data.max_bad_test`; what could be read is kept), BANK_MIXED for a folder with another
    bank, BANK_VALUES; Interrupted after SIGINT, SIGTERM or SIGUSR1.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS, "BAD_VALUE")
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES, "BAD_VALUE")
    plan = load_recipe(recipe, overrides)
    if not isinstance(plan, BoxRecipe):
        raise UsageError("RECIPE_KIND", f"the recipe {plan.name!r} has no boxes; see `marey recipes 'ava.*'`")
    model: Any = open_model(checkpoint)
    plan = plan if model_clips(model) is None else msgspec.structs.replace(plan, clips=model.preprocess)
    opened = open_split(plan, split, banked=False, annotated=not proposed)
    card = card_of(model, plan, dtype)
    parts = list(parts_of(opened))
    if shard is not None:
        parts = [part for part in parts if shard.holds("\n".join(part.videos))]
    check_new(out, card, [part.videos for part in parts])
    waiting = [part for part in parts if not _done(out, part, opened, plan)]
    total = sum(len(part.indices) for part in waiting)
    place = device_of(device)
    network: Any = folded(model).to(place)
    progress, started = Progress(f"bank of {opened.name}: key frames", quiet=quiet), time.monotonic()
    failed, made = list[Failure](), 0
    with Pool(setup.decoding_workers(plan.data), plan.data.seconds) as pool, stop_signals() as stop:
        order = [index for part in waiting for index in part.indices]
        samples = key_tests(opened.frames, order, plan.clips, plan.data.key_frames, pool=pool)
        with closing(samples):  # type: ignore[type-var]
            for done, part in enumerate(waiting):
                rows, bad = _Gathered(part.videos, card.channels), list[Failure]()
                for _ in part.indices:
                    if stop.is_set():
                        raise Interrupted(
                            "INTERRUPTED",
                            f"stopped after {done} of {len(waiting)} shards, which are saved; the same "
                            "command goes on",
                        )
                    index, sample = next(samples)
                    frame = opened.frames[index]
                    if isinstance(sample, MediaError):
                        path = opened.frames.media[frame.video]
                        bad.append(Failure(index, path, sample.code, sample.message))
                    else:
                        rows.add(
                            frame.video,
                            frame.second,
                            sample,
                            frame.proposals,
                            _see(network, sample, plan, place),
                        )
                    made += 1
                    progress(made, total)
                if not bad or plan.data.max_bad_test:
                    write_shard(out, card, rows.by_video())
                failed += bad
    check_complete(failed, len(opened.frames), plan.data.max_bad_test, "key frames")
    kept = sum(len(part.indices) for part in parts) - total
    there = any(shard_path(out, part.videos).exists() for part in parts) or kept
    report = describe(Bank(out)) if there else None
    return Built(report, made, time.monotonic() - started, kept, failed)


def model_clips(model: Any) -> Any:
    """The preprocessing of a detector's own clips; None where it came without. Raises UsageError NO_BOXES."""
    if not hasattr(model, "box_features"):
        raise UsageError(
            "NO_BOXES",
            f"{type(model).__name__} takes no boxes; give a detector, for example one that `marey train "
            "own_boxes` wrote",
        )
    clips = getattr(model, "preprocess", None)
    return clips if clips is not None and clips.sampling == "key" else None


def card_of(model: Any, recipe: BoxRecipe, dtype: str) -> BankCard:
    """What the bank says of itself, also how its features were made."""
    clips, data = recipe.clips, recipe.data
    settings = (clips, data.key_frames, data.threshold, data.most, data.template)
    digest = hashlib.sha256(msgspec.json.encode(msgspec.to_builtins(settings))).hexdigest()[:12]
    return BankCard(
        model=model.spec["name"],
        model_sha256=model_hash(model),
        channels=model.box_channels,
        dtype="float16" if dtype == "float16" else "float32",
        step=data.key_frames.step,
        source=f"clips of {clips.frames} x {clips.interval}, short side {clips.short_side}, proposals from "
        f"{data.threshold:g}, settings {digest}",
        **window_size(recipe),
    )


def parts_of(split: Split) -> Iterator[Part]:
    """The shards of a split: whole videos, in the order of the split, about as large as each other."""
    videos: dict[str, list[int]] = {}
    for index, frame in enumerate(split.frames):
        videos.setdefault(frame.video, []).append(index)
    part, size = Part([], []), 0
    for video, indices in videos.items():
        part.videos.append(video)
        part.indices.extend(indices)
        size += sum(len(split.frames[index].proposals) for index in indices)
        if size >= SHARD_ROWS:
            yield part
            part, size = Part([], []), 0
    if part.videos:
        yield part


class _Gathered:
    """Rows of the videos of a shard."""

    def __init__(self, videos: list[str], channels: int) -> None:
        self.channels = channels
        self.rows: dict[str, list[tuple[float, Tensor, Tensor, Tensor]]] = {video: [] for video in videos}

    def add(self, video: str, second: float, sample: KeySample, boxes: Any, features: Tensor) -> None:
        self.rows[video].append((second, features, torch.from_numpy(np.array(boxes)), sample.scores))

    def by_video(self) -> dict[str, Rows]:
        return {video: bank_rows(rows, self.channels) for video, rows in self.rows.items()}


def bank_rows(rows: Sequence[tuple[float, Tensor, Tensor, Tensor]], channels: int) -> Rows:
    """Rows of a video from (second, features [n, C], boxes [n, 4], scores [n]) of its key frames."""
    seconds = [second for second, features, _, _ in rows for _ in range(len(features))]
    features = torch.cat([torch.empty(0, channels), *(row[1] for row in rows)])
    boxes = torch.cat([torch.empty(0, 4), *(row[2] for row in rows)])
    return Rows(seconds, features, boxes, torch.cat([torch.empty(0), *(row[3] for row in rows)]))


@torch.inference_mode()
def _see(network: Any, sample: KeySample, recipe: BoxRecipe, device: torch.device) -> Tensor:
    """What is kept of the boxes of a key frame: float [n, C] on the CPU."""
    found: Tensor = network.box_features(clip_of(sample, recipe, device), [sample.proposals.to(device)])
    return found.float().cpu()


def _done(out: str | os.PathLike[str], part: Part, split: Split, recipe: BoxRecipe) -> bool:
    """Whether the shard is there, sound, and of these boxes. Raises DataError BANK_MIXED for other boxes."""
    path = shard_path(out, part.videos)
    if not path.exists():
        return False
    bank = Bank(path)
    if any(damage(bank.shards[0])):
        path.unlink()
        return False
    wanted = {
        (frame.video, frame.second): frame.proposals for frame in (split.frames[i] for i in part.indices)
    }
    same = sum(map(len, wanted.values())) == len(bank) and all(
        np.array_equal(bank.rows(*key)[1].numpy(), boxes.astype(np.float32)) for key, boxes in wanted.items()
    )
    if not same and not recipe.data.max_bad_test:
        raise DataError(
            "BANK_MIXED",
            f"{str(path)!r} has rows of other boxes than these proposals; give another folder, or remove it",
        )
    return True
