"""What `marey train` does with records of frame features that have tags: batches, loss, validation."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import torch
from lightning_fabric.fabric import Fabric
from torch import Tensor, nn

from marey.data.clips import Failures, steps_per_epoch
from marey.data.shards import record_order, step_records
from marey.data.workers import Pool
from marey.data.youtube8m import Batch, batches
from marey.errors import UsageError
from marey.jobs import setup
from marey.jobs.epochs import Validated, scheduled_rate
from marey.jobs.runs import Run
from marey.jobs.setup_features import (
    RecordLists,
    class_names,
    comparable,
    complete,
    layout_of,
    lost_records,
    open_records,
)
from marey.jobs.tags import results
from marey.metrics.gap import measure
from marey.recipes.schema import TagRecipe
from marey.training.loop import Outcome
from marey.training.losses import tagging_loss
from marey.weights.native import save_checkpoint


class Examples(NamedTuple):
    """A batch on the device, see `marey.data.youtube8m.Batch`.

    real     how many of its videos count
    logged   its step is one that a row of metrics.csv is written after
    """

    rgb: Tensor
    audio: Tensor
    lengths: Tensor
    labels: Tensor
    real: int
    logged: bool


class Tagging:
    """Training of a network that tags features; a `marey.jobs.epochs.Task`."""

    unit = "videos"
    norm_settings: Mapping[str, Any] = MappingProxyType({})

    @staticmethod
    def prepare(recipe: TagRecipe, validate: bool | None) -> tuple[TagRecipe, RecordLists]:
        """The recipe without gaps, and its records. Raises UsageError NO_DATA, and as `open_records`."""
        lists = open_records(recipe.data, training=True)
        if validate and lists.val is None:
            raise UsageError("NO_DATA", "--validate needs validation records; give data.val=RECORDS")
        if validate is False:
            lists = lists._replace(val=None)
        return complete(recipe, lists), lists

    def __init__(
        self, recipe: TagRecipe, lists: RecordLists, *, fabric: Fabric, run: Run, pool: Pool, seed: int
    ) -> None:
        assert lists.train is not None
        self.recipe, self.lists, self.fabric, self.run = recipe, lists, fabric, run
        self.pool, self.seed = pool, seed
        self.name, self.plan = recipe.name, recipe.training
        self.shards, self.val = lists.train, lists.val
        self.size, self.validates = len(self.shards), lists.val is not None
        self.classes = class_names(lists, recipe.model.num_classes or 0)
        self.steps = steps_per_epoch(self.size, self.plan.batch, fabric.world_size)
        self.network, report = setup.build_model(recipe, seed)
        self.learner = self.network
        self.layout = layout_of(self.network, max_frames=recipe.data.max_frames)
        self.notes = [] if report is None else [report.summary()]
        if report is not None:
            comparable(self.network, self.shards)  # says so where they are not
        self.network.metadata = {}  # type: ignore[assignment]  # what it was trained on before counts no more
        self.failures = Failures(limit=recipe.data.max_bad, listed=self.size, what="the training records")
        for lost in lost_records(self.shards):
            self.failures.add(lost)
            self.notes.append(f"skipped {lost.path}: {lost.code}: {lost.message}")
        self.padded = 0
        self.taken: tuple[str, ...] = ()
        self.last: dict[str, Any] | None = None

    def current(self) -> list[str]:
        """Names of the videos of the batch that was made last."""
        return list(self.taken)

    def rate(self, epoch: int, update: int, updates: int) -> float:
        """As the recipe's schedule has it."""
        return scheduled_rate(self.plan, epoch, update, updates, world=self.fabric.world_size)

    def examples(self, epoch: int, first_step: int) -> Iterator[Examples]:
        """Batches of an epoch, on the device; records that cannot be read are counted and named."""
        world, rank, plan = self.fabric.world_size, self.fabric.global_rank, self.plan
        order = record_order(self.shards.counts, seed=self.seed, epoch=epoch, window=self.recipe.data.window)
        steps = (step_records(order, step, plan.batch, world, rank) for step in range(first_step, self.steps))
        found = batches(self.shards, steps, self.layout, pool=self.pool)
        for number, batch in enumerate(found, first_step):
            for failure in batch.failures:
                if self.failures.add(failure):
                    self.run.say(f"skipped {failure.path}: {failure.code}: {failure.message}")
            self.taken = batch.ids
            done = number + 1
            logged = done % (plan.log_every * plan.accumulate) == 0 or done == self.steps
            yield self._on_device(batch, logged)

    def _on_device(self, batch: Batch, logged: bool) -> Examples:
        real, layout = len(batch.ids), self.layout
        rgb, audio, lengths, labels = batch.rgb, batch.audio, batch.lengths, batch.labels
        if real == 0:  # a stand-in without weight, so that the other processes are not left waiting
            rgb, audio = (torch.zeros(1, 1, width, dtype=torch.uint8) for width in (layout.rgb, layout.audio))
            lengths, labels = torch.ones(1, 2, dtype=torch.int64), torch.zeros(1, layout.num_classes).bool()
        tensors = [one.to(self.fabric.device, non_blocking=True) for one in (rgb, audio, lengths, labels)]
        return Examples(tensors[0], tensors[1], tensors[2], tensors[3], real, logged and real > 0)

    def outcome(self, model: Any, batch: Examples) -> Outcome:
        """Loss of each class, summed; on steps that are logged also the metrics of the batch alone."""
        logits = model(batch.rgb, batch.audio, batch.lengths)
        terms = self.terms(logits.detach(), batch.labels) if batch.logged else {}
        return Outcome(tagging_loss(logits, batch.labels), terms)

    def terms(self, logits: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """GAP, Hit@1 and PERR of one batch."""
        if not logits.isfinite().all():
            return {}  # the step will be refused for it
        found = measure(logits.float().sigmoid().cpu().numpy(), labels.cpu().numpy(), self.recipe.testing.top)
        values = {"gap": found.gap, "hit1": found.hit_at_1, "perr": found.perr}
        return {name: torch.tensor(value) for name, value in values.items()}

    def norm_inputs(self, epoch: int) -> Iterator[Tensor]:
        """None: a recipe for features has no precise batch norm."""
        return iter(())

    def validate(self, network: nn.Module, epoch: int) -> Validated:
        """Measure all validation records."""
        assert self.val is not None
        found = results(
            self.recipe,
            network,
            self.val,
            self.lists,
            source=self.recipe.data.val,
            checkpoint=None,
            names=self.classes,
            pool=self.pool,
            fabric=self.fabric,
        )
        self.last = found
        metrics = {name: value for name, value in found["metrics"].items() if value is not None}
        return Validated(metrics, [metrics["gap"], -metrics["loss"]])  # the loss breaks ties

    def keep(self) -> None:
        """Results of the last validation into the run's folder."""
        assert self.last is not None
        self.run.write_json(self.run.results, self.last)

    def save(self, path: Path, network: nn.Module, metrics: dict[str, float]) -> None:
        """A checkpoint that knows network, tags, recipe, and what features it was trained on."""
        card = self.lists.card
        save_checkpoint(
            path,
            network,
            preprocess=None,
            class_names=self.classes,
            recipe=msgspec.to_builtins(self.recipe),
            metrics=metrics,
            features=None if card is None else card.identity(),
        )
