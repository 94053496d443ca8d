"""What `marey train` does with key frames that have boxes of persons: batches, loss, validation."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import torch
from lightning_fabric.fabric import Fabric
from torch import Tensor, nn

from marey.data.ava_clips import KeyBatch, key_batches
from marey.data.clips import Failures, check_complete, copy_rng, steps_per_epoch
from marey.data.workers import Pool
from marey.errors import UsageError
from marey.jobs import setup
from marey.jobs.boxes import results, score_keys, windows
from marey.jobs.epochs import Validated, scheduled_rate
from marey.jobs.runs import Run
from marey.jobs.setup_boxes import KeyLists, class_names, complete, counted, open_keys
from marey.metrics.ava_tables import Rows, write_results
from marey.recipes.schema import BoxRecipe
from marey.training.boxes import box_loss, box_terms, shown
from marey.training.loop import Outcome
from marey.video.preprocess import normalize
from marey.weights.native import save_checkpoint


class Examples(NamedTuple):
    """A batch on the device; R boxes of all its clips in a row.

    clip    float [B, 3, T, H, W]
    boxes   B x [N, 4] in pixels of the clip, those of persons and what was proposed
    labels  float [R, C]
    bank    windows [R, S, C'] where the network takes them
    real    how many of the B clips count
    """

    clip: Tensor
    boxes: list[Tensor]
    labels: Tensor
    bank: tuple[Tensor, ...]
    real: int


class Detection:
    """Training of a detector; a `marey.jobs.epochs.Task`."""

    unit = "key frames"
    norm_settings: Mapping[str, Any] = MappingProxyType({})

    @staticmethod
    def prepare(recipe: BoxRecipe, validate: bool | None) -> tuple[BoxRecipe, KeyLists]:
        """The recipe without gaps, and its splits. Raises UsageError NO_DATA, and as `open_keys`."""
        lists = open_keys(recipe, training=True)
        if validate and lists.val is None:
            raise UsageError("NO_DATA", "--validate needs data.val.media and data.val.proposals")
        if validate is False:
            lists = lists._replace(val=None)
        if lists.val is not None and lists.val.truth is None:
            raise UsageError("NO_DATA", "a validation needs the truth; give data.val.annotation")
        return complete(recipe, lists), lists

    def __init__(
        self, recipe: BoxRecipe, lists: KeyLists, *, fabric: Fabric, run: Run, pool: Pool, seed: int
    ) -> None:
        assert lists.train is not None
        self.recipe, self.lists, self.fabric, self.run = recipe, lists, fabric, run
        self.pool, self.seed = pool, seed
        self.name, self.plan = recipe.name, recipe.training
        self.split, self.val = lists.train, lists.val
        self.frames = self.split.frames
        self.size, self.validates = len(self.frames), lists.val is not None
        self.classes = class_names(recipe, lists.actions)
        self.steps = steps_per_epoch(self.size, self.plan.batch, fabric.world_size)
        self.network, report = setup.build_model(recipe, seed)
        self.learner = self.network
        self.notes = [f"{split.name}: {note}" for split in lists.given() for note in split.frames.notes]
        self.notes += [] if report is None else [report.summary()]
        self.failures = Failures(limit=recipe.data.max_bad, listed=self.size, what=self.split.name)
        self.padded = 0
        self.taken: tuple[str, ...] = ()
        self.last: tuple[dict[str, Any], Rows] | None = None

    def current(self) -> list[str]:
        """Names of the key frames of the batch that was made last."""
        return list(self.taken)

    def rate(self, epoch: int, update: int, updates: int) -> float:
        """As the recipe's schedule has it."""
        return scheduled_rate(self.plan, epoch, update, updates, world=self.fabric.world_size)

    def examples(self, epoch: int, first_step: int) -> Iterator[Examples]:
        """Batches of an epoch, on the device; files that cannot be read are counted and named."""
        found = key_batches(
            self.frames,
            self.recipe.clips,
            self.recipe.data.key_frames,
            pool=self.pool,
            batch=self.plan.batch,
            seed=self.seed,
            epoch=epoch,
            first_step=first_step,
            world=self.fabric.world_size,
            rank=self.fabric.global_rank,
            smallest=self.recipe.boxes.smallest,
        )
        for batch in found:
            for failure in batch.failures:
                if self.failures.add(failure):
                    self.run.say(f"skipped {failure.path}: {failure.code}: {failure.message}")
            self.taken = batch.keys
            yield self._on_device(batch, epoch)

    def _on_device(self, batch: KeyBatch, epoch: int) -> Examples:
        recipe, device, real = self.recipe, self.fabric.device, len(batch.keys)
        seen = [
            shown(
                boxes,
                labels,
                proposals,
                rng=copy_rng(self.seed, epoch, index, 0, device=True),
                iou=recipe.boxes.iou,
                most=recipe.boxes.most,
            )
            for boxes, labels, proposals, index in zip(
                batch.boxes, batch.labels, batch.proposals, batch.indices.tolist(), strict=True
            )
        ]
        frames = batch.frames
        if real == 0:  # a stand-in without weight, so that the other processes are not left waiting
            size = recipe.clips.crop
            frames = torch.zeros((1, recipe.clips.frames, size, size, 3), dtype=torch.uint8)
        mirrored = batch.mirrored if real else None
        clip = normalize(frames.to(device, non_blocking=True), recipe.clips, mirrored)
        boxes = [one.boxes.to(device) for one in seen] or [torch.zeros(0, 4, device=device)]
        labels = torch.cat([torch.zeros(0, self.frames.num_classes), *(one.labels for one in seen)])
        bank: tuple[Tensor, ...] = ()
        if self.split.bank is not None:
            moments = [(self.frames[i].video, self.frames[i].second) for i in batch.indices.tolist()]
            counts = [len(one.boxes) for one in seen]
            found = windows(self.split, recipe, moments, counts, seed=self.seed, epoch=epoch)
            bank = (found.to(device),)
        return Examples(clip, boxes, labels.to(device), bank, real)

    def outcome(self, model: Any, batch: Examples) -> Outcome:
        """The loss of the boxes that have an action, and how many of their actions are found."""
        logits, plan = model(batch.clip, batch.boxes, *batch.bank), self.recipe.boxes
        loss = box_loss(logits, batch.labels, alpha=plan.alpha, gamma=plan.gamma, single=plan.single)
        terms = box_terms(logits, batch.labels, top=(3,), single=plan.single)
        return Outcome(loss, {name: value for name, value in terms.items() if not value.isnan()})

    def norm_inputs(self, epoch: int) -> Iterator[Tensor]:
        """None: a recipe for boxes has no precise batch norm."""
        return iter(())

    def validate(self, network: nn.Module, epoch: int) -> Validated:
        """Frame mAP of all validation key frames."""
        assert self.val is not None
        scored = score_keys(network, self.val, self.recipe, pool=self.pool, fabric=self.fabric)
        check_complete(scored.failed, len(self.val.frames), self.recipe.data.max_bad_test, "key frames")
        self.last = results(
            self.recipe,
            scored,
            self.val,
            classes=self.classes,
            actions=counted(self.recipe, self.lists.actions),
            checkpoint=None,
        )
        found, value = self.last[0], self.last[0]["metrics"].get("map")
        if not value:
            for line in found["explained"]:
                self.run.say(f"validation: {line}")
        return Validated({"map": value or 0.0}, [value or 0.0])

    def keep(self) -> None:
        """Results of the last validation into the run's folder."""
        assert self.last is not None
        self.run.write_json(self.run.results, self.last[0])
        write_results(self.run.results.with_suffix(".csv"), self.last[1])

    def save(self, path: Path, network: nn.Module, metrics: dict[str, float]) -> None:
        """A checkpoint that knows network, preprocessing, actions and recipe."""
        save_checkpoint(
            path,
            network,
            preprocess=self.recipe.clips,
            class_names=self.classes,
            recipe=msgspec.to_builtins(self.recipe),
            metrics=metrics,
        )
