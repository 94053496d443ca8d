"""`marey train`: from a recipe to a run folder; killed at any moment it continues as if nothing had been."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from lightning_fabric.fabric import Fabric

from marey.data.workers import Pool
from marey.jobs import setup
from marey.jobs.adaptation import Adaptation
from marey.jobs.detection import Detection
from marey.jobs.distillation import Distillation
from marey.jobs.doctor import environment
from marey.jobs.epochs import Epochs, Trained
from marey.jobs.interrupt import stop_signals
from marey.jobs.limits import lacking
from marey.jobs.recognition import Recognition
from marey.jobs.runs import Run, check_same, last_run, new_run
from marey.jobs.tagging import Tagging
from marey.recipes.catalog import load_recipe
from marey.recipes.schema import AnyRecipe, BoxRecipe, TagRecipe
from marey.training.distributed import gather, launch


def train(
    recipe: AnyRecipe | str | os.PathLike[str],
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
    given = Path(recipe).parent if isinstance(recipe, str | os.PathLike) else None
    given = given if Path(str(recipe)).name == "recipe.json" else None
    begun = start(
        recipe,
        overrides,
        validate=validate,
        auto_scale_lr=auto_scale_lr,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
    )
    plan, fabric = begun.plan, begun.fabric
    folder = gather(fabric, _folder(plan, Path(out), resume, given) if fabric.is_global_zero else None)[0]
    run = Run(folder, quiet=not fabric.is_global_zero)
    make_deterministic(deterministic)
    _prepare(run, plan, seed, deterministic)
    say_rate(run, begun)
    workers = setup.decoding_workers(plan.data)
    with Pool(workers, plan.data.seconds) as pool, stop_signals() as stop:
        work = begun.task(plan, begun.lists, fabric=fabric, run=run, pool=pool, seed=seed)
        for note in lacking(fabric, work.network, work.learner, work.plan, out=folder, workers=workers):
            run.say(f"warning: {note.code}: {note.text}")
        return Epochs(work, fabric, run, stop, seed).all(resume=resume)


class Start(NamedTuple):
    """What a training begins with: a class like Recognition, its recipe as written and as it is run."""

    task: Any
    written: AnyRecipe
    plan: AnyRecipe
    lists: Any
    fabric: Fabric


def start(
    recipe: AnyRecipe | str | os.PathLike[str],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    validate: bool | None = None,
    auto_scale_lr: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> Start:
    """Resolve the recipe, read its lists and start the processes; arguments are those of `train`."""
    plan = load_recipe(recipe, overrides)
    fabric = launch(accelerator=accelerator, devices=devices, nodes=nodes, precision=plan.training.precision)
    task = task_of(plan)
    written, lists = task.prepare(plan, validate)
    return Start(task, written, _rescaled(written, fabric.world_size, auto_scale_lr), lists, fabric)


def task_of(recipe: AnyRecipe) -> Any:
    """What a recipe trains for: a class like Recognition."""
    if isinstance(recipe, TagRecipe):
        return Tagging
    if isinstance(recipe, BoxRecipe):
        return Detection
    if recipe.adapt is not None:
        return Adaptation
    return Distillation if recipe.distill else Recognition


def _folder(recipe: AnyRecipe, out: Path, resume: bool, given: Path | None) -> Path:
    if resume and given is not None and (given / "metrics.csv").exists():
        check_same(given, recipe)
        return given
    return (last_run(out, recipe) if resume else None) or new_run(out, recipe)


def make_deterministic(wanted: bool) -> None:
    """Let torch take only algorithms that give the same bits every time, or the fastest."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or CUDA's matrix products refuse
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted


def _prepare(run: Run, recipe: AnyRecipe, seed: int, deterministic: bool) -> None:
    run.write_json(run.recipe, recipe)
    run.write_json(
        run.folder / "environment.json", {"seed": seed, "deterministic": deterministic} | environment()
    )


def say_rate(run: Run, begun: Start) -> None:
    """Say from what to what the learning rate was scaled, or that it was not."""
    before, plan, unit = begun.written.training, begun.plan.training, begun.task.unit
    clips, rate = plan.batch * plan.accumulate * begun.fabric.world_size, plan.optimizer.lr
    if rate != before.optimizer.lr:
        run.say(
            f"learning rate {rate:g}: scaled from {before.optimizer.lr:g} for {before.reference_batch} "
            f"{unit} an update to {clips}"
        )
    elif clips != plan.reference_batch:
        run.say(
            f"learning rate {rate:g} as written, for {plan.reference_batch} {unit} an update; here are "
            f"{clips} (--auto-scale-lr scales it)"
        )


def _rescaled(recipe: AnyRecipe, world: int, wanted: bool) -> AnyRecipe:
    """Learning rate for the clips of one update here (linear scaling), once: scale_lr ends False."""
    plan = recipe.training
    clips = plan.batch * plan.accumulate * world
    if clips == plan.reference_batch or not (wanted or plan.scale_lr):
        return recipe
    lr = plan.optimizer.lr * clips / plan.reference_batch
    optimizer = msgspec.structs.replace(plan.optimizer, lr=lr)
    plan = msgspec.structs.replace(plan, optimizer=optimizer, reference_batch=clips, scale_lr=False)
    return msgspec.structs.replace(recipe, training=plan)
