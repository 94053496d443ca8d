"""`marey train`: from a recipe to a run folder; killed at any moment it continues as if nothing had been."""

import copy
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from lightning_fabric.fabric import Fabric
from torch import Tensor

from marey.data.clips import Batch, Failures, copy_rng, steps_per_epoch, train_batches
from marey.data.workers import Pool
from marey.errors import MareyError, UsageError
from marey.jobs import setup
from marey.jobs.doctor import environment
from marey.jobs.evaluate import check_complete, results, score_list, write_scores
from marey.jobs.interrupt import Interrupted, stop_signals
from marey.jobs.progress import Window, duration
from marey.jobs.report import write_report
from marey.jobs.runs import Run, check_same, last_run, new_run
from marey.models.recompute import recompute_blocks
from marey.models.transformer import layer_numbers
from marey.recipes.catalog import load_recipe
from marey.recipes.schema import Recipe
from marey.training.adapt import recompute_batch_norm
from marey.training.checkpoint import load_state, save_state
from marey.training.distributed import anyone, gather, launch, same_buffers
from marey.training.ema import update_average
from marey.training.loop import Examples, Step, train_steps
from marey.training.losses import classification_loss, multi_label_loss, soft_targets
from marey.training.optim import build_optimizer, lr_factor
from marey.video.augment import draw_mixture, mix, mix_targets, rand_augment, random_erase
from marey.video.preprocess import normalize
from marey.video.sampling import generator
from marey.weights.native import save_checkpoint

MIXING = 2**32  # the first process mixes its batches by this stream of random numbers, the next by the next


class Trained(NamedTuple):
    """What a training leaves: run folder, best checkpoint, its validation's metrics, files it had to skip."""

    run: Path
    checkpoint: Path
    metrics: dict[str, float]
    skipped: int


def train(
    recipe: Recipe | str | os.PathLike[str],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    out: str | os.PathLike[str] = "runs",
    resume: bool = False,
    validate: bool | None = None,
    seed: int = 0,
    deterministic: bool = False,
    auto_scale_lr: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> Trained:
    """Train by a recipe and leave everything in `<out>/<recipe>/<n>/`.

    resume         continue this recipe's newest run (or the run whose recipe.json is given)
    validate       True: there must be a validation list; False: do not validate; None: if there is one
    deterministic  only algorithms that give the same bits every time
    auto_scale_lr  learning rate times (clips per update) / training.reference_batch
    Raises UsageError and DataError before the first step for what is wrong in recipe or lists; Interrupted
    after SIGINT, SIGTERM or SIGUSR1, with everything saved.
    """
    given = (
        Path(recipe).parent if not isinstance(recipe, Recipe) and Path(recipe).name == "recipe.json" else None
    )
    recipe = load_recipe(recipe, overrides)
    fabric = launch(
        accelerator=accelerator, devices=devices, nodes=nodes, precision=recipe.training.precision
    )
    lists = setup.open_lists(recipe.data, training=True)
    if validate and lists.val is None:
        raise UsageError("NO_DATA", "--validate needs validation videos; give data.val=LIST")
    if validate is False:
        lists = lists._replace(val=None)
    written = setup.complete(recipe, lists)
    recipe = _rescaled(written, fabric.world_size, auto_scale_lr)
    folder = gather(fabric, _folder(recipe, Path(out), resume, given) if fabric.is_global_zero else None)[0]
    run = Run(folder, quiet=not fabric.is_global_zero)
    _prepare(run, recipe, seed, deterministic)
    _say_rate(run, written, recipe, fabric.world_size)
    _say_data(run, lists, recipe)
    workers = setup.decoding_workers(recipe.data)
    with Pool(workers, recipe.data.seconds) as pool, stop_signals() as stop:
        return Training(recipe, lists, fabric, run, pool, stop, seed).all_epochs(resume=resume)


class Training:
    """One training under way: the parts it is made of and where it stands.

    The order of samples, their random draws and the dropout of a step are functions of seed, epoch and
    position, so the saved state is weights, optimiser, position and what was counted.
    """

    def __init__(
        self,
        recipe: Recipe,
        lists: setup.Lists,
        fabric: Fabric,
        run: Run,
        pool: Pool,
        stop: threading.Event,
        seed: int,
    ) -> None:
        assert lists.train is not None
        self.recipe, self.fabric, self.run, self.pool, self.stop, self.seed = (
            recipe,
            fabric,
            run,
            pool,
            stop,
            seed,
        )
        self.clips, self.val = lists.train, lists.val
        self.plan = recipe.training
        self.classes = setup.class_names(lists, recipe.model.num_classes or 0)
        self.steps = steps_per_epoch(len(self.clips), self.plan.batch, fabric.world_size)
        network, report = setup.build_model(recipe, seed)
        if report is not None:
            run.say(report.summary())
        # what is validated and saved: with training.ema not the network that learns
        self.scored = copy.deepcopy(network).to(fabric.device) if self.plan.ema else network
        if self.plan.checkpoint_activations:
            recompute_blocks(network)
        self.network = network
        layers = layer_numbers(network) if self.plan.optimizer.layer_decay < 1 else None
        self.model, self.optimizer = fabric.setup(
            network, build_optimizer(network, self.plan.optimizer, layers)
        )
        self.epoch, self.step = 0, 0
        self.best: list[float] | None = None
        self.best_metrics: dict[str, float] = {}
        self.failures = Failures(limit=recipe.data.max_bad, listed=len(self.clips), what=self.clips.name)
        self.padded = 0
        self.current: tuple[int, ...] = ()
        self.window = Window()
        self.saved_at = time.monotonic()

    def all_epochs(self, *, resume: bool) -> Trained:
        """Train to the last epoch, validate when due, and close with best weights and report."""
        state = load_state(self.run.state) if resume else None
        if state is not None:
            self.restore(state)
        self.run.forget_after(self.done)
        self.run.say(
            f"{self.recipe.name}: {len(self.clips)} clips, {len(self.classes)} classes, "
            f"{self.steps} steps an epoch, {self.plan.epochs} epochs; {self.run.folder}"
            + (f"; continues at epoch {self.epoch}, step {self.step}" if state else "")
        )
        while self.epoch < self.plan.epochs:
            self.one_epoch()
            every, done = self.plan.validate_every, self.epoch + 1
            last = done == self.plan.epochs
            due = self.val is not None and bool(every and done % every == 0)
            if self.plan.precise_bn and (due or last):
                self.refit_norms()
            self.epoch, self.step = done, 0
            if self.val is not None and (due or last):
                self.validate(self.val)
            self.save()
        return self.finish()

    @property
    def done(self) -> int:
        """Steps done since the run began."""
        return self.epoch * self.steps + self.step

    def one_epoch(self) -> None:
        """The steps of this epoch that are not done yet."""
        plan = self.plan
        updates = -(-self.steps // plan.accumulate)
        weights = self._class_weights()

        def loss(logits: Tensor, targets: Tensor) -> Tensor:
            if self.recipe.data.multi_label:
                return multi_label_loss(logits, targets, class_weights=weights)
            return classification_loss(logits, targets, smoothing=plan.label_smoothing, class_weights=weights)

        def rate(update: int) -> float:
            return plan.optimizer.lr * lr_factor(
                plan.schedule, epoch=self.epoch, iteration=update, per_epoch=updates, epochs=plan.epochs
            )

        steps = train_steps(
            self.fabric,
            self.model,
            self.optimizer,
            self._examples(),
            loss_of=loss,
            rate_of=rate,
            seed_of=lambda number: _seed(self.seed, self.epoch, number, self.fabric.global_rank),
            steps=self.steps,
            first=self.step,
            accumulate=plan.accumulate,
            clip_norm=plan.optimizer.clip_norm,
        )
        try:
            for step in steps:
                self._after(step)
        except MareyError as error:
            if error.code != "LOSS_NOT_FINITE":
                raise
            paths = [self.clips[index].path for index in self.current]
            self.run.write_json(self.run.folder / "nonfinite.json", {"epoch": self.epoch, "clips": paths})
            first = ", ".join(paths[:3])
            raise MareyError(
                error.code,
                f"{error.message}, on {first} and {max(len(paths) - 3, 0)} more (nonfinite.json has all); "
                "a lower training.optimizer.lr or clip_norm may help",
            ) from error

    def _after(self, step: Step) -> None:
        self.step = step.number + 1
        self.window.add(step)
        closed = self.step % self.plan.accumulate == 0 or self.step == self.steps
        if closed and self.plan.ema:
            each = -(-self.steps // self.plan.accumulate)
            updates = self.epoch * each + step.number // self.plan.accumulate + 1
            update_average(self.scored, self.network, decay=self.plan.ema, updates=updates)
        if self.window.steps >= self.plan.log_every * self.plan.accumulate or self.step == self.steps:
            self._log(step)
        if closed and anyone(self.fabric, self.stop.is_set()):
            raise self._stopped()
        if (
            closed
            and self.step < self.steps
            and time.monotonic() - self.saved_at > 60 * self.plan.save_minutes
        ):
            self.save()

    def _stopped(self) -> Interrupted:
        self.save()
        return Interrupted("INTERRUPTED", f"stopped and saved; continue with --resume ({self.run.folder})")

    def refit_norms(self) -> None:
        """Measure the batch norms' statistics anew, on clips drawn as for training but for no epoch of it."""
        clips = 0

        def batches() -> Iterator[Tensor]:
            nonlocal clips
            drawn = self._batches(self.plan.epochs + self.epoch, first_step=0)
            for batch in islice(drawn, self.plan.precise_bn):
                if anyone(self.fabric, self.stop.is_set()):
                    raise InterruptedError
                clips += len(batch.frames)
                if len(batch.frames):
                    yield self._on_device(batch, self.plan.epochs + self.epoch).clip

        try:
            measured = recompute_batch_norm(self.scored, batches(), fabric=self.fabric)
        except InterruptedError:  # the norms are what they were again: now they can be saved
            raise self._stopped() from None
        clips = sum(gather(self.fabric, clips))
        self.run.say(
            f"epoch {self.epoch + 1}  statistics of {len(measured)} batch norms measured on {clips} clips"
            if measured
            else "no batch norm learns statistics; training.precise_bn has nothing to measure"
        )

    def _log(self, step: Step) -> None:
        row = self.window.row() | {
            "step": self.done,
            "epoch": self.epoch + self.step / self.steps,
            "lr": step.lr,
            "skipped": sum(gather(self.fabric, self.failures.count)),
            "padded": sum(gather(self.fabric, self.padded)),
        }
        self.run.add_metrics(row)
        left = (self.plan.epochs * self.steps - self.done) * self.window.seconds / max(self.window.steps, 1)
        self.run.say(
            f"epoch {row['epoch']:.2f}  loss {row['loss']:.4f}  lr {step.lr:.2e}  "
            f"{row['clips_per_second']:.1f} clips/s  waiting for data {row['data_share']:.0%}"
            f"  left {duration(left)}" + (f"  skipped {row['skipped']}" if row["skipped"] else "")
        )
        self.window = Window()

    def _examples(self) -> Iterator[Examples]:
        """Batches of this epoch from the first step that is not done, on the device."""
        for number, batch in enumerate(self._batches(self.epoch, self.step), self.step):
            self.padded += batch.padded
            self.current = tuple(batch.indices.tolist())
            yield self._mixed(self._on_device(batch, self.epoch), number)

    def _batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Training batches of an epoch; files that cannot be read are counted and named."""
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
        )
        for batch in batches:
            for failure in batch.failures:
                if self.failures.add(failure):
                    self.run.say(f"skipped {failure.path}: {failure.code}: {failure.message}")
            yield batch

    def _on_device(self, batch: Batch, epoch: int) -> Examples:
        """The network's input, with what `training.augment` does to each clip on its own."""
        frames, targets, real = batch.frames, batch.targets, len(batch.frames)
        places = zip(batch.indices.tolist(), batch.copies.tolist(), strict=True)
        rngs = [copy_rng(self.seed, epoch, index, number, device=True) for index, number in places]
        if real == 0:  # a stand-in without weight, so that the other processes are not left waiting
            shape = (1, self.recipe.clips.frames, self.recipe.clips.crop, self.recipe.clips.crop, 3)
            frames = torch.zeros(shape, dtype=torch.uint8)
            targets = torch.zeros((1, *batch.targets.shape[1:]), dtype=batch.targets.dtype)
        device, augment = self.fabric.device, self.plan.augment
        mirrored = batch.mirrored if real else None
        frames = frames.to(device, non_blocking=True)
        if real:
            frames = rand_augment(frames, augment.rand, rngs)
        clip = normalize(frames, self.recipe.clips, mirrored)
        if real:
            clip = random_erase(clip, augment.erasing, rngs)
        return Examples(clip, targets.to(device), real)

    def _mixed(self, examples: Examples, step: int) -> Examples:
        """The batch with its clips and targets mixed, by draws of its own step and process."""
        clip, targets, real = examples
        settings = self.plan.augment.mixing
        if not settings.probability or not real:
            return examples
        rng = generator(self.seed, self.epoch, step, MIXING + self.fabric.global_rank)
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

    def validate(self, clips: Any) -> None:
        """Score the validation list by the one-view protocol; keep the weights if they are the best."""
        recipe = self.recipe
        self.scored.eval()
        same_buffers(self.fabric, self.scored)
        scored = score_list(
            self.scored,
            clips,
            recipe.clips,
            recipe.clips.val,
            fabric=self.fabric,
            pool=self.pool,
            multi_label=bool(recipe.data.multi_label),
            views_per_forward=recipe.testing.views_per_forward,
        )
        check_complete(scored, len(clips), recipe.data.max_bad_test)
        found = results(recipe, scored, clips, recipe.clips.val, checkpoint=None, classes=self.classes)
        metrics = found["metrics"]
        self.run.add_metrics(
            {"step": self.done, "epoch": float(self.epoch)}
            | {f"val_{name}": value for name, value in metrics.items()}
        )
        self.run.say(
            f"epoch {self.epoch}  validation  " + "  ".join(f"{k} {v:.4f}" for k, v in metrics.items())
        )
        key = [metrics["map" if recipe.data.multi_label else "top1"], -metrics["loss"]]  # loss breaks ties
        if self.best is None or key > self.best:
            self.best, self.best_metrics = key, metrics
            self._checkpoint(self.run.best, metrics)
            if not self.run.quiet:
                self.run.write_json(self.run.results, found)
                write_scores(self.run.scores, scored, clips)

    def _checkpoint(self, path: Path, metrics: dict[str, float]) -> None:
        if not self.run.quiet:
            save_checkpoint(
                path,
                self.scored,
                preprocess=self.recipe.clips,
                class_names=self.classes,
                recipe=msgspec.to_builtins(self.recipe),
                metrics=metrics,
            )

    def save(self) -> None:
        """The state to continue from, in the first process."""
        if not self.run.quiet:
            state = {
                "model": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "seed": self.seed,
                "clips_per_step": self.plan.batch * self.fabric.world_size,
                "best": self.best,
                "best_metrics": self.best_metrics,
                "failures": self.failures.plain(),
                "padded": self.padded,
                "window": self.window.plain(),
            }
            if self.plan.ema:
                state["average"] = self.scored.state_dict()
            save_state(self.run.state, state)
            self._checkpoint(self.run.last, self.best_metrics)
        self.saved_at = time.monotonic()

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where the state was saved. Raises UsageError RESUME_MISMATCH for another seed or batch."""
        now = {"seed": self.seed, "clips_per_step": self.plan.batch * self.fabric.world_size}
        for name, value in now.items():
            if state[name] != value:
                raise UsageError(
                    "RESUME_MISMATCH", f"the run has {name} {state[name]}, not {value}; give the same"
                )
        self.network.load_state_dict(state["model"])
        if self.plan.ema:
            self.scored.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.best, self.best_metrics = state["best"], state["best_metrics"]
        self.failures.restore(state["failures"])
        self.padded = state["padded"]
        self.window = Window(**state["window"])

    def finish(self) -> Trained:
        """Close the run: final checkpoint, report, summary."""
        best = self.run.best if self.val is not None else self.run.last
        if not self.run.quiet:
            write_report(self.run.folder)
            self.run.say(
                f"done: {self.run.folder}/report.html, best weights {best}"
                + (f", skipped {self.failures.count} unreadable files" if self.failures.count else "")
            )
        return Trained(self.run.folder, best, self.best_metrics, self.failures.count)


def _folder(recipe: Recipe, out: Path, resume: bool, given: Path | None) -> Path:
    if resume and given is not None and (given / "metrics.csv").exists():
        check_same(given, recipe)
        return given
    return (last_run(out, recipe) if resume else None) or new_run(out, recipe)


def _prepare(run: Run, recipe: Recipe, seed: int, deterministic: bool) -> None:
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or CUDA's matrix products refuse
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    run.write_json(run.recipe, recipe)
    run.write_json(
        run.folder / "environment.json", {"seed": seed, "deterministic": deterministic} | environment()
    )


def _say_data(run: Run, lists: setup.Lists, recipe: Recipe) -> None:
    """Say what the lists left out, and which classes a mirror exchanges."""
    for clips in lists.given():
        for note in clips.notes:
            run.say(f"{clips.name}: {note}")
    if recipe.clips.flip_labels:
        pairs = ", ".join(f"{a} and {b}" for a, b in recipe.clips.flip_labels)
        run.say(f"mirrored clips exchange the labels {pairs}")


def _say_rate(run: Run, written: Recipe, recipe: Recipe, world: int) -> None:
    """Say from what to what the learning rate was scaled, or that it was not."""
    before, plan = written.training, recipe.training
    clips, rate = plan.batch * plan.accumulate * world, plan.optimizer.lr
    if rate != before.optimizer.lr:
        run.say(
            f"learning rate {rate:g}: scaled from {before.optimizer.lr:g} for {before.reference_batch} clips "
            f"an update to {clips}"
        )
    elif clips != plan.reference_batch:
        run.say(
            f"learning rate {rate:g} as written, for {plan.reference_batch} clips an update; here are "
            f"{clips} (--auto-scale-lr scales it)"
        )


def _rescaled(recipe: Recipe, world: int, wanted: bool) -> Recipe:
    """Learning rate for the clips of one update here (linear scaling), once: scale_lr ends False."""
    plan = recipe.training
    clips = plan.batch * plan.accumulate * world
    if clips == plan.reference_batch or not (wanted or plan.scale_lr):
        return recipe
    lr = plan.optimizer.lr * clips / plan.reference_batch
    optimizer = msgspec.structs.replace(plan.optimizer, lr=lr)
    plan = msgspec.structs.replace(plan, optimizer=optimizer, reference_batch=clips, scale_lr=False)
    return msgspec.structs.replace(recipe, training=plan)


def _seed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
