"""A training from its first epoch to its last: steps, saved states, validations; killed, it continues.

What is learned from and how it is measured is a task's matter: jobs/recognition.py and its neighbours.
"""

import copy
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from lightning_fabric.fabric import Fabric
from torch import Tensor, nn

from marey.data.clips import Failures
from marey.data.workers import Pool
from marey.errors import MareyError, UsageError
from marey.jobs.advice import WAITING, WORTH, faster_data, processes_here
from marey.jobs.interrupt import Interrupted
from marey.jobs.limits import told_of_memory
from marey.jobs.progress import Window, duration
from marey.jobs.report import write_report
from marey.jobs.runs import Run
from marey.models.recompute import recompute_blocks
from marey.models.split_norm import part_statistics, split_batch_norms
from marey.models.transformer import layer_numbers
from marey.recipes.schema import AnyRecipe, Training
from marey.training.adapt import recompute_batch_norm, restore_statistics
from marey.training.checkpoint import load_state, save_state
from marey.training.distributed import anyone, gather, same_buffers
from marey.training.ema import update_average
from marey.training.loop import Outcome, Step, train_steps
from marey.training.optim import build_optimizer, lr_factor


class Trained(NamedTuple):
    """What a training leaves: run folder, best checkpoint, its validation's metrics, files it had to skip."""

    run: Path
    checkpoint: Path
    metrics: dict[str, float]
    skipped: int


class Validated(NamedTuple):
    """A validation's numbers; the larger key, first entry first, tells the better weights."""

    metrics: dict[str, float]
    key: list[float]


class Task(Protocol):
    """What a network is trained for.

    name      the recipe's
    unit      what the samples are called: "clips"
    size      samples of an epoch, over all processes
    steps     steps of an epoch
    classes   names in label order
    recipe    without gaps
    plan      the recipe's `training`
    pool      what reads
    network   drawn from the seed, with its starting weights; it is validated and saved
    learner   what runs in a step: the network, or a module that has it inside
    failures  samples that could not be read, counted
    padded    clips that were shorter than wanted, counted
    validates  whether there is something to validate on
    notes     said when the training begins
    norm_settings  how the statistics of `norm_inputs` are set, see `recompute_batch_norm`
    """

    name: str
    unit: str
    size: int
    steps: int
    classes: tuple[str, ...]
    plan: Training
    pool: Pool
    network: nn.Module
    learner: nn.Module
    failures: Failures
    padded: int
    validates: bool
    notes: list[str]
    norm_settings: Mapping[str, Any]

    @property
    def recipe(self) -> AnyRecipe:
        """What is trained by."""

    def examples(self, epoch: int, first_step: int) -> Iterator[Any]:
        """The epoch's batches from a step on, on the device; each has `real`, see training/loop.py."""

    def outcome(self, model: Any, batch: Any) -> Outcome:
        """Loss and terms of a batch; `model` is the learner as the processes share it."""

    def rate(self, epoch: int, update: int, updates: int) -> float:
        """The learning rate of an update, counted in the epoch, of so many."""

    def current(self) -> list[str]:
        """Names of the samples of the batch that was made last."""

    def norm_inputs(self, epoch: int) -> Iterator[Tensor]:
        """Inputs on which `training.precise_bn` measures batch norms, drawn for no epoch of the training."""

    def validate(self, network: nn.Module, epoch: int) -> Validated:
        """Measure the network; the same in every process."""

    def keep(self) -> None:
        """The last validation was the best: write what belongs to it."""

    def save(self, path: Path, network: nn.Module, metrics: dict[str, float]) -> None:
        """Write a checkpoint that needs nothing else."""


def scheduled_rate(plan: Training, epoch: int, update: int, updates: int, *, world: int) -> float:
    """The learning rate that the recipe's schedule gives an update, of so many in each epoch."""
    factor = lr_factor(
        plan.schedule,
        epoch=epoch,
        iteration=update,
        per_epoch=updates,
        epochs=plan.epochs,
        batch=plan.batch * plan.accumulate * world,
    )
    return plan.optimizer.lr * factor


class Epochs:
    """One training under way: its task and where it stands.

    The order of samples, their random draws and the dropout of a step are functions of seed, epoch and
    position, so the saved state is weights, optimiser, position and what was counted.
    """

    def __init__(self, task: Task, fabric: Fabric, run: Run, stop: threading.Event, seed: int) -> None:
        self.task, self.fabric, self.run, self.stop, self.seed = task, fabric, run, stop, seed
        self.plan, self.steps = task.plan, task.steps
        # what is validated and saved: with training.ema not the network that learns
        self.scored = copy.deepcopy(task.network).to(fabric.device) if self.plan.ema else task.network
        if self.plan.norm_parts > 1:
            split_batch_norms(task.network, self.plan.norm_parts)
        if self.plan.checkpoint_activations:
            recompute_blocks(task.network)
        layers = layer_numbers(task.network) if self.plan.optimizer.layer_decay < 1 else None
        self.model, self.optimizer = fabric.setup(
            task.learner, build_optimizer(task.learner, self.plan.optimizer, layers)
        )
        self.epoch, self.step = 0, 0
        self.best: list[float] | None = None
        self.best_metrics: dict[str, float] = {}
        self.window = Window()
        self.advised = False
        self.saved_at = time.monotonic()

    def all(self, *, resume: bool) -> Trained:
        """Train to the last epoch, validate when due, and close with best weights and report."""
        task, state = self.task, load_state(self.run.state) if resume else None
        if state is not None:
            self.restore(state)
        self.run.forget_after(self.done)
        for note in task.notes:
            self.run.say(note)
        self.run.say(
            f"{task.name}: {task.size} {task.unit}, {len(task.classes)} classes, "
            f"{self.steps} steps an epoch, {self.plan.epochs} epochs; {self.run.folder}"
            + (f"; continues at epoch {self.epoch}, step {self.step}" if state else "")
        )
        while self.epoch < self.plan.epochs:
            self.one_epoch()
            every, done = self.plan.validate_every, self.epoch + 1
            last = done == self.plan.epochs
            due = task.validates and bool(every and done % every == 0)
            if self.plan.precise_bn and (due or last):
                self.refit_norms()
            self.epoch, self.step = done, 0
            if task.validates and (due or last):
                self.validate()
            self.save()
        return self.finish()

    @property
    def done(self) -> int:
        """Steps done since the run began."""
        return self.epoch * self.steps + self.step

    def one_epoch(self) -> None:
        """The steps of this epoch that are not done yet."""
        plan, task, first = self.plan, self.task, self.step
        updates = -(-self.steps // plan.accumulate)
        steps = train_steps(
            self.fabric,
            self.model,
            self.optimizer,
            task.examples(self.epoch, self.step),
            outcome_of=task.outcome,
            rate_of=lambda update: task.rate(self.epoch, update, updates),
            seed_of=lambda number: _seed(self.seed, self.epoch, number, self.fabric.global_rank),
            steps=self.steps,
            first=first,
            accumulate=plan.accumulate,
            clip_norm=plan.optimizer.clip_norm,
            clip_each=plan.optimizer.clip_each,
        )
        paced = Window()
        try:
            with told_of_memory(task.recipe):
                for step in steps:
                    if step.number > first:  # that one waits for the workers to begin
                        paced.add(step)
                    self._after(step)
        except MareyError as error:
            if error.code != "LOSS_NOT_FINITE":
                raise
            names = task.current()
            self.run.write_json(self.run.folder / "nonfinite.json", {"epoch": self.epoch, task.unit: names})
            some = ", ".join(names[:3])
            raise MareyError(
                error.code,
                f"{error.message}, on {some} and {max(len(names) - 3, 0)} more (nonfinite.json has all); "
                "a lower training.optimizer.lr or clip_norm may help",
            ) from error
        self._advise(paced)

    def _advise(self, paced: Window) -> None:
        """Say once in a run what to change, after an epoch that waited much for its data."""
        share = paced.row()["data_share"]
        if self.advised or self.run.quiet or share <= WAITING or paced.waited < WORTH:
            return
        advice = faster_data(self.task, processes_here(self.fabric))
        if advice is not None:
            self.advised = True
            self.run.say(f"{share:.0%} of epoch {self.epoch + 1} was spent waiting for data: {advice}")

    def _after(self, step: Step) -> None:
        self.step = step.number + 1
        self.window.add(step)
        closed = self.step % self.plan.accumulate == 0 or self.step == self.steps
        if closed and self.plan.ema:
            each = -(-self.steps // self.plan.accumulate)
            updates = self.epoch * each + step.number // self.plan.accumulate + 1
            update_average(self.scored, self.task.network, decay=self.plan.ema, updates=updates)
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
        """Measure the batch norms' statistics anew, on what the task draws for that."""
        seen = 0

        def inputs() -> Iterator[Tensor]:
            nonlocal seen
            for clip in self.task.norm_inputs(self.epoch):
                if anyone(self.fabric, self.stop.is_set()):
                    raise InterruptedError
                seen += len(clip)
                if len(clip):
                    yield clip

        try:
            measured = recompute_batch_norm(
                self.scored, inputs(), fabric=self.fabric, **self.task.norm_settings
            )
        except InterruptedError:  # the norms are what they were again: now they can be saved
            raise self._stopped() from None
        seen = sum(gather(self.fabric, seen))
        self.run.say(
            f"epoch {self.epoch + 1}  statistics of {len(measured)} batch norms measured on {seen} "
            f"{self.task.unit}"
            if measured
            else "no batch norm learns statistics; training.precise_bn has nothing to measure"
        )

    def _log(self, step: Step) -> None:
        row = self.window.row() | {
            "step": self.done,
            "epoch": self.epoch + self.step / self.steps,
            "lr": step.lr,
            "skipped": sum(gather(self.fabric, self.task.failures.count)),
            "padded": sum(gather(self.fabric, self.task.padded)),
        }
        self.run.add_metrics(row)
        left = (self.plan.epochs * self.steps - self.done) * self.window.seconds / max(self.window.steps, 1)
        self.run.say(
            f"epoch {row['epoch']:.2f}  loss {row['loss']:.4f}  lr {step.lr:.2e}  "
            f"{row['clips_per_second']:.1f} {self.task.unit}/s  waiting for data {row['data_share']:.0%}"
            f"  left {duration(left)}" + (f"  skipped {row['skipped']}" if row["skipped"] else "")
        )
        self.window = Window()

    def validate(self) -> None:
        """Measure what will be saved; keep the weights if they are the best."""
        self.scored.eval()
        same_buffers(self.fabric, self.scored)
        metrics, key = self.task.validate(self.scored, self.epoch)
        self.run.add_metrics(
            {"step": self.done, "epoch": float(self.epoch)}
            | {f"val_{name}": value for name, value in metrics.items()}
        )
        self.run.say(
            f"epoch {self.epoch}  validation  " + "  ".join(f"{k} {v:.4f}" for k, v in metrics.items())
        )
        if self.best is None or key > self.best:
            self.best, self.best_metrics = key, metrics
            self._checkpoint(self.run.best, metrics)
            if not self.run.quiet:
                self.task.keep()

    def _checkpoint(self, path: Path, metrics: dict[str, float]) -> None:
        if not self.run.quiet:
            self.task.save(path, self.scored, metrics)

    def save(self) -> None:
        """The state to continue from, in the first process."""
        if not self.run.quiet:
            state = {
                "model": self.task.learner.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "seed": self.seed,
                "clips_per_step": self.plan.batch * self.fabric.world_size,
                "best": self.best,
                "best_metrics": self.best_metrics,
                "failures": self.task.failures.plain(),
                "padded": self.task.padded,
                "window": self.window.plain(),
            }
            if self.plan.ema:
                state["average"] = self.scored.state_dict()
            if self.plan.norm_parts > 1:
                state["parts"] = part_statistics(self.task.network)
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
        self.task.learner.load_state_dict(state["model"])
        if self.plan.ema:
            self.scored.load_state_dict(state["average"])
        if self.plan.norm_parts > 1:
            restore_statistics(self.task.network, state["parts"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.best, self.best_metrics = state["best"], state["best_metrics"]
        self.task.failures.restore(state["failures"])
        self.task.padded = state["padded"]
        self.window = Window(**state["window"])

    def finish(self) -> Trained:
        """Close the run: final checkpoint, report, summary."""
        best = self.run.best if self.task.validates else self.run.last
        skipped = self.task.failures.count
        if not self.run.quiet:
            write_report(self.run.folder)
            self.run.say(
                f"done: {self.run.folder}/report.html, best weights {best}"
                + (f", skipped {skipped} unreadable files" if skipped else "")
            )
        return Trained(self.run.folder, best, self.best_metrics, skipped)


def _seed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
