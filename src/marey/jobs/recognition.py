"""What `marey train` does with clips that have class labels: batches, loss, validation."""

from collections.abc import Generator, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from lightning_fabric.fabric import Fabric
from torch import Tensor, nn

from marey.data.clips import Batch, Failures, check_complete, copy_rng, steps_per_epoch, train_batches
from marey.data.workers import Pool
from marey.errors import UsageError
from marey.jobs import setup
from marey.jobs.epochs import Validated, scheduled_rate
from marey.jobs.evaluate import Scored, results, score_list, write_scores
from marey.jobs.runs import Run
from marey.models import DETECTORS
from marey.recipes.schema import Recipe
from marey.training.loop import Outcome
from marey.training.losses import classification_loss, multi_label_loss, soft_targets
from marey.video.augment import draw_mixture, mix, mix_targets, rand_augment, random_erase
from marey.video.preprocess import normalize
from marey.video.sampling import generator
from marey.weights.native import save_checkpoint

MIXING = 2**32  # the first process mixes its batches by this stream of random numbers, the next by the next

LABEL = 2**33  # and draws one of a copy's labels by this one


class Examples(NamedTuple):
    """A batch: clip float [B, 3, T, H, W], targets int64 [B] or float [B, C]; how many of the B count."""

    clip: Tensor
    targets: Tensor
    real: int


class Recognition:
    """Training of a recognizer on clips with class labels; a `marey.jobs.epochs.Task`."""

    unit = "clips"
    norm_settings: Mapping[str, Any] = MappingProxyType({})

    @staticmethod
    def prepare(recipe: Recipe, validate: bool | None) -> tuple[Recipe, setup.Lists]:
        """The recipe without gaps, and its lists.

        Raises UsageError NO_DATA, RECIPE_KIND for a detector, DataError for wrong lists.
        """
        if recipe.model.name in DETECTORS:
            raise UsageError(
                "RECIPE_KIND", f"{recipe.model.name} takes boxes, and {recipe.name!r} names clips alone"
            )
        lists = setup.open_lists(recipe.data, training=True)
        if validate and lists.val is None:
            raise UsageError("NO_DATA", "--validate needs validation videos; give data.val=LIST")
        if validate is False:
            lists = lists._replace(val=None)
        return setup.complete(recipe, lists), lists

    def __init__(
        self, recipe: Recipe, lists: setup.Lists, *, fabric: Fabric, run: Run, pool: Pool, seed: int
    ) -> None:
        assert lists.train is not None
        self.recipe, self.fabric, self.run, self.pool, self.seed = recipe, fabric, run, pool, seed
        self.name, self.plan = recipe.name, recipe.training
        self.clips, self.val = lists.train, lists.val
        self.size, self.validates = len(self.clips), lists.val is not None
        self.classes = setup.class_names(lists, recipe.model.num_classes or 0)
        self.steps = steps_per_epoch(self.size, self.plan.batch, fabric.world_size)
        self.seen = recipe.clips  # how pixels become what `examples` gives
        self.network, report = setup.build_model(recipe, seed)
        self.learner = self.network
        self.notes = [*_data_notes(lists, recipe), *([report.summary()] if report is not None else [])]
        self.failures = Failures(limit=recipe.data.max_bad, listed=self.size, what=self.clips.name)
        self.padded = 0
        self.taken: tuple[int, ...] = ()
        self.weights = self._class_weights()
        self.last: tuple[dict[str, Any], Scored] | None = None

    def current(self) -> list[str]:
        """Paths of the clips of the batch that was made last."""
        return [self.clips[index].path for index in self.taken]

    def rate(self, epoch: int, update: int, updates: int) -> float:
        """As the recipe's schedule has it."""
        return scheduled_rate(self.plan, epoch, update, updates, world=self.fabric.world_size)

    def draws(self, epoch: int) -> int:
        """The epoch whose draws cut and change its clips: its own."""
        return epoch

    def outcome(self, model: Any, batch: Examples) -> Outcome:
        """Classification or multi-label loss; where every clip has one label, the share that is right."""
        logits = model(batch.clip)
        return Outcome(self.loss(logits, batch.targets), self.terms(logits, batch.targets))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of class logits [B, C]."""
        if self.recipe.data.independent:
            return multi_label_loss(logits, targets, class_weights=self.weights)
        smoothing = self.plan.label_smoothing
        return classification_loss(logits, targets, smoothing=smoothing, class_weights=self.weights)

    def terms(self, logits: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Top-1 accuracy, 0..1, on whole labels; mixed clips have none."""
        if targets.is_floating_point():
            return {}
        return {"top1": (logits.argmax(1) == targets).float().mean()}

    def examples(self, epoch: int, first_step: int) -> Iterator[Examples]:
        """Batches of an epoch, on the device, mixed."""
        for number, batch in enumerate(self.batches(epoch, first_step), first_step):
            yield self.example(batch, epoch, number)

    def example(self, batch: Batch, epoch: int, step: int) -> Examples:
        """What a step of an epoch learns from, of the clips that were read for it."""
        self.padded += batch.padded
        self.taken = tuple(batch.indices.tolist())
        return self._mixed(self._on_device(batch, epoch), epoch, step)

    def norm_inputs(self, epoch: int) -> Iterator[Tensor]:
        """Clips drawn as for training, but for no epoch of it."""
        other = self.plan.epochs + epoch
        for batch in islice(self.batches(other, first_step=0), self.plan.precise_bn):
            yield self._on_device(batch, other).clip if len(batch.frames) else torch.empty(0)

    def batches(self, epoch: int, first_step: int, draws: int | None = None) -> Generator[Batch, None, None]:
        """Training batches of an epoch, by the draws of another if wanted; files that cannot be read are
        counted and named."""
        recipe, world = self.recipe, self.fabric.world_size
        batches = train_batches(
            self.clips,
            recipe.clips,
            pool=self.pool,
            batch=self.plan.batch,
            seed=self.seed,
            epoch=epoch,
            first_step=first_step,
            world=world,
            rank=self.fabric.global_rank,
            num_classes=len(self.classes),
            multi_label=bool(recipe.data.multi_label),
            class_power=recipe.data.class_power,
            copies=self.plan.augment.copies,
            draws=self.draws(epoch) if draws is None else draws,
        )
        for batch in batches:
            for failure in batch.failures:
                if self.failures.add(failure):
                    self.run.say(f"skipped {failure.path}: {failure.code}: {failure.message}")
            yield batch

    def _on_device(self, batch: Batch, epoch: int) -> Examples:
        """The network's input, with what `training.augment` does to each clip on its own."""
        frames, targets, real = batch.frames, self._targets(batch, epoch), len(batch.frames)
        places = zip(batch.indices.tolist(), batch.copies.tolist(), strict=True)
        drawn = self.draws(epoch)
        rngs = [copy_rng(self.seed, drawn, index, number, device=True) for index, number in places]
        if real == 0:  # a stand-in without weight, so that the other processes are not left waiting
            shape = (1, self.recipe.clips.frames, self.recipe.clips.crop, self.recipe.clips.crop, 3)
            frames = torch.zeros(shape, dtype=torch.uint8)
            targets = torch.zeros((1, *targets.shape[1:]), dtype=targets.dtype)
        device, augment = self.fabric.device, self.plan.augment
        mirrored = batch.mirrored if real else None
        frames = frames.to(device, non_blocking=True)
        if real:
            frames = rand_augment(frames, augment.rand, rngs)
        clip = normalize(frames, self.seen, mirrored)
        if real:
            clip = random_erase(clip, augment.erasing, rngs)
        return Examples(clip, targets.to(device), real)

    def _targets(self, batch: Batch, epoch: int) -> Tensor:
        """The targets as the loss takes them: of several labels each, one that is drawn, or a share each."""
        data, several = self.recipe.data, batch.targets
        if not data.multi_label or data.independent or not len(several):
            return several
        if data.labels == "shared":
            return several / several.sum(1, keepdim=True)
        drawn = []
        for row, index, copy in zip(several, batch.indices.tolist(), batch.copies.tolist(), strict=True):
            labels = row.nonzero().flatten()
            rng = generator(self.seed, epoch, index, LABEL + copy)
            drawn.append(labels[int(rng.integers(len(labels)))])
        return torch.stack(drawn)

    def _mixed(self, examples: Examples, epoch: int, step: int) -> Examples:
        """The batch with its clips and targets mixed, by draws of its own step and process."""
        clip, targets, real = examples
        settings = self.plan.augment.mixing
        if not settings.probability or not real:
            return examples
        rng = generator(self.seed, epoch, step, MIXING + self.fabric.global_rank)
        mixture = draw_mixture(settings, (clip.shape[4], clip.shape[3]), rng)
        if mixture is None:
            return examples
        soft = soft_targets(targets, len(self.classes), self.plan.label_smoothing)
        return Examples(mix(clip, mixture), mix_targets(soft, mixture), real)

    def _class_weights(self) -> Tensor | None:
        if self.plan.class_weights == "none":
            return None
        counts = np.maximum(self.clips.counts(len(self.classes)), 1)
        return torch.tensor(
            counts.sum() / (len(counts) * counts), dtype=torch.float32, device=self.fabric.device
        )

    def validate(self, network: nn.Module, epoch: int) -> Validated:
        """Score the validation list by the one-view protocol."""
        recipe, clips = self.recipe, self.val
        assert clips is not None
        scored = score_list(
            network,
            clips,
            recipe.clips,
            recipe.clips.val,
            fabric=self.fabric,
            pool=self.pool,
            multi_label=recipe.data.independent,
            views_per_forward=recipe.testing.views_per_forward,
        )
        check_complete(scored.failed, len(clips), recipe.data.max_bad_test)
        found = results(recipe, scored, clips, recipe.clips.val, checkpoint=None, classes=self.classes)
        self.last, metrics = (found, scored), found["metrics"]
        main = metrics["map" if recipe.data.multi_label else "top1"]
        return Validated(metrics, [main, -metrics["loss"]])  # the loss breaks ties

    def keep(self) -> None:
        """Results and scores of the last validation into the run's folder."""
        assert self.last is not None and self.val is not None
        self.run.write_json(self.run.results, self.last[0])
        write_scores(self.run.scores, self.last[1], self.val)

    def save(self, path: Path, network: nn.Module, metrics: dict[str, float]) -> None:
        """A checkpoint that knows network, preprocessing, classes and recipe."""
        save_checkpoint(
            path,
            network,
            preprocess=self.recipe.clips,
            class_names=self.classes,
            recipe=msgspec.to_builtins(self.recipe),
            metrics=metrics,
        )


def _data_notes(lists: setup.Lists, recipe: Recipe) -> Iterator[str]:
    """What the lists left out, and which classes a mirror exchanges."""
    for clips in lists.given():
        for note in clips.notes:
            yield f"{clips.name}: {note}"
    if recipe.clips.flip_labels:
        pairs = ", ".join(f"{a} and {b}" for a, b in recipe.clips.flip_labels)
        yield f"mirrored clips exchange the labels {pairs}"
