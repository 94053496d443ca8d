"""What `marey train` does with a recipe that has a teacher: a student learns from labels and from what the
teacher makes of the same clips.

A clip is decoded, cut and mirrored once, at the teacher's size; the student's input is made from it on the
device. The teacher stands beside the training: what is trained, saved and continued is the student.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from lightning_fabric.fabric import Fabric
from torch import Tensor, nn

from marey.data.clips import Batch
from marey.data.workers import Pool
from marey.errors import UsageError, WeightsError
from marey.jobs import setup
from marey.jobs.lessons import Lessons, lesson_key
from marey.jobs.recognition import Examples, Recognition
from marey.jobs.runs import Run
from marey.models.fold import folded
from marey.models.mvit import MViT
from marey.models.slowfast import SlowFast
from marey.models.transformer import DropPath
from marey.recipes.schema import Distill, Recipe
from marey.training.distill import Seen, Student, Teacher, Wanted, distillation_loss
from marey.training.loop import Outcome
from marey.video.preprocess import Preprocess, to_input_size
from marey.weights.create import create_model
from marey.weights.published import locate

UNMAPPED = (MViT, SlowFast)  # their prediction is not that of the mean of one map


class Distillation(Recognition):
    """Training of a recognizer beside a teacher; a `marey.jobs.epochs.Task`."""

    @staticmethod
    def prepare(recipe: Recipe, validate: bool | None) -> tuple[Recipe, setup.Lists]:
        """As `Recognition.prepare`, with the teacher's file found and its hash in the recipe.

        Raises UsageError NO_TEACHER for a recipe without teacher weights, TEACHER_CHANGED for another file
        than the one the run began with, and what `locate` raises.
        """
        plan = recipe.distill
        assert plan is not None
        if plan.teacher.weights is None:
            raise UsageError(
                "NO_TEACHER",
                "distillation needs a teacher that knows something: give distill.teacher.weights=FILE, a "
                "checkpoint or a release",
            )
        if plan.cache is not None and recipe.training.augment.mixing.probability:
            raise UsageError(
                "RECIPE_VALUE", "distill.cache keeps answers about clips, which mixed clips are not"
            )
        found = _sha256(locate(plan.teacher.weights))
        if plan.sha256 not in (None, found):
            raise UsageError(
                "TEACHER_CHANGED",
                f"the sha256 of {plan.teacher.weights} begins with {found[:8]}, that of the teacher "
                f"which the run began with {(plan.sha256 or '')[:8]}; give that file, or begin a new run",
            )
        recipe, lists = Recognition.prepare(recipe, validate)
        options = setup.segmented(plan.teacher, recipe.clips.frames)
        teacher = msgspec.structs.replace(plan.teacher, options=options)
        plan = msgspec.structs.replace(plan, teacher=teacher, sha256=found)
        return msgspec.structs.replace(recipe, distill=plan), lists

    def __init__(
        self, recipe: Recipe, lists: setup.Lists, *, fabric: Fabric, run: Run, pool: Pool, seed: int
    ) -> None:
        super().__init__(recipe, lists, fabric=fabric, run=run, pool=pool, seed=seed)
        assert recipe.distill is not None
        self.distill = recipe.distill
        # pixels become what the teacher sees
        self.seen = msgspec.structs.replace(recipe.clips, input_size=None, input_antialias=False)
        teacher, told = teacher_of(self.distill, self.network, self.classes)
        self.fed: Preprocess = teacher.preprocess
        wanted = Wanted(
            logits=self.distill.logit_kl > 0,
            maps=self.distill.feature_mse > 0,
            classes=self.distill.map_kl > 0,
        )
        self.teacher = Teacher(
            # running statistics go into the convolutions, and with them a good part of the teacher's cost
            folded(teacher)
            if self.distill.statistics == "running" and not self.distill.drop_path
            else teacher,
            wanted,
            statistics=self.distill.statistics,
            acting=(DropPath,) if self.distill.drop_path else (),
            precision=self.distill.precision,
            compiled=self.distill.compile,
        ).to(fabric.device)
        torch.manual_seed(seed)  # whatever the teacher drew
        channels = (_channels(self.network), _channels(teacher)) if self.distill.projection else None
        self.learner = Student(self.network, wanted._replace(logits=True), channels)
        self.notes += [told, *_other_frames(recipe.clips, self.fed)]
        self.lessons = self._lessons() if self.distill.cache is not None else None
        self.at: tuple[Any, int, Any] | None = None  # places, view and copies of the batch that was made last

    def _lessons(self) -> Lessons:
        """The folder of the teacher's answers."""
        recipe, crop = self.recipe, self.recipe.clips.crop
        example = torch.zeros(1, recipe.clips.frames, crop, crop, 3, device=self.fabric.device)
        said = self.teacher(as_fed(example.permute(0, 4, 1, 2, 3), recipe.clips, self.fed))
        lessons = Lessons(
            Path(self.distill.cache or ""),
            lesson_key(recipe, self.clips, self.seed, self.fabric.device.type),
            said,
            (len(self.clips), self.distill.views, self.plan.augment.copies),
            self.fabric,
        )
        self.notes.append(
            f"{lessons.known.mean():.0%} of the teacher's answers are in {lessons.folder}, which may take "
            f"{lessons.gigabytes:.2g} GB"
        )
        return lessons

    def draws(self, epoch: int) -> int:
        """With kept answers an epoch takes the next of so many views."""
        return epoch if self.distill.cache is None else epoch % self.distill.views

    def _on_device(self, batch: Batch, epoch: int) -> Examples:
        self.at = (batch.indices.numpy(), self.draws(epoch), batch.copies.numpy())
        return super()._on_device(batch, epoch)

    def ask(self, batch: Examples) -> Seen:
        """What the teacher says of the batch that was made last, now or before."""
        if self.lessons is not None and batch.real and self.at is not None:
            said = self.lessons.get(*self.at)
            if said is None:  # the whole batch again, so that its answers are those of the first time
                said = self.lessons.put(
                    *self.at, self.teacher(as_fed(batch.clip, self.recipe.clips, self.fed))
                )
            return Seen(*(None if part is None else part.to(batch.clip.device) for part in said))
        return self.teacher(as_fed(batch.clip, self.recipe.clips, self.fed))

    def outcome(self, model: Any, batch: Examples) -> Outcome:
        """The labels' loss and the distillation loss, in their weights."""
        plan, clips = self.distill, self.recipe.clips
        shown = self.ask(batch)
        seen = model(to_input_size(batch.clip, clips))
        labels = self.loss(seen.logits, batch.targets)
        taught = distillation_loss(
            seen,
            shown,
            feature=plan.feature_mse,
            classes=plan.map_kl,
            logits=plan.logit_kl,
            temperature=plan.temperature,
            mean=plan.map_mean,
            pool_time=plan.pool_time,
            independent=self.recipe.data.independent,
        )
        terms = {"loss_class": labels.detach(), "loss_distill": taught.detach()}
        return Outcome(plan.labels * labels + taught, {**terms, **self.terms(seen.logits, batch.targets)})

    def norm_inputs(self, epoch: int) -> Iterator[Tensor]:
        """As the student sees them."""
        for clip in super().norm_inputs(epoch):
            yield to_input_size(clip, self.recipe.clips) if len(clip) else clip


def teacher_of(plan: Distill, student: nn.Module, classes: tuple[str, ...]) -> tuple[Any, str]:
    """The teacher with its weights, and a line about it.

    classes  the student's, in label order
    Raises UsageError DISTILL_CLASSES, DISTILL_CHANNELS, DISTILL_MAPS where the pair does not go together;
    WeightsError WEIGHTS_MISMATCH for a teacher without the classifier that is needed; and as `create_model`.
    """
    given = plan.teacher
    teacher: Any = create_model(given.name, given.num_classes, weights=given.weights, **given.options)
    report = teacher.load_report
    if plan.feature_mse or plan.map_kl:
        for which, network in (("teacher", teacher), ("student", student)):
            if isinstance(network, UNMAPPED):
                raise UsageError(
                    "DISTILL_MAPS",
                    f"the {which} is a {type(network).__name__}, which does not classify the mean of one "
                    "map; give distill.logit_kl alone",
                )
    ours, theirs = _channels(student), _channels(teacher)
    if plan.feature_mse and ours != theirs and not plan.projection:
        raise UsageError(
            "DISTILL_CHANNELS",
            f"the student's map has {ours} channels, the teacher's {theirs}; give distill.projection=true to "
            "learn an adapter, or distill.map_kl, which compares classes",
        )
    if plan.map_kl or plan.logit_kl:
        if report.head != "loaded":
            raise WeightsError(
                "WEIGHTS_MISMATCH",
                f"{given.weights} has no classifier for {teacher.num_classes} classes, which this teacher's "
                f"lessons need: {report.summary()}",
            )
        _same_classes(teacher, classes)
    statistics = f", {plan.statistics} statistics"
    return teacher, f"teacher {given.name} from {given.weights}: {report.summary()}{statistics}"


def _same_classes(teacher: Any, classes: tuple[str, ...]) -> None:
    if teacher.num_classes != len(classes):
        raise UsageError(
            "DISTILL_CLASSES",
            f"the teacher knows {teacher.num_classes} classes, the student is to learn {len(classes)}; what "
            "they say can be compared only where these are the same (distill.feature_mse needs none)",
        )
    known = setup.known_names(teacher) or ()
    for label, (theirs, ours) in enumerate(zip(known, classes, strict=False)):
        if theirs != ours and ours != str(label):
            raise UsageError(
                "DISTILL_CLASSES",
                f"label {label} is {theirs!r} to the teacher, but {ours!r} in the lists; give the names in "
                "the teacher's order (data.classes=FILE)",
            )


def as_fed(clip: Tensor, clips: Preprocess, fed: Preprocess) -> Tensor:
    """A clip normalised as `clips` says, as a network sees it that is fed by `fed`: colours and size."""
    if (clips.mean, clips.std, clips.channel_order) != (fed.mean, fed.std, fed.channel_order):
        shape = (1, 3, 1, 1, 1)
        mean, std, mean_fed, std_fed = (
            torch.tensor(values, device=clip.device).view(shape)
            for values in (clips.mean, clips.std, fed.mean, fed.std)
        )
        pixels = clip * std + mean
        pixels = pixels if clips.channel_order == fed.channel_order else pixels.flip(1)
        clip = (pixels - mean_fed) / std_fed
    return to_input_size(clip, fed)


def _other_frames(clips: Preprocess, fed: Preprocess) -> Iterator[str]:
    """How the teacher is shown other clips than it learnt from."""
    names = ("frames", "interval", "sampling", "crop", "target_fps")
    other = [
        f"{n} {getattr(clips, n)} instead of {getattr(fed, n)}"
        for n in names
        if getattr(clips, n) != getattr(fed, n)
    ]
    if other:
        yield f"the teacher sees clips with {', '.join(other)}"


def _channels(network: Any) -> int:
    """Of the map that its classifier takes the mean of."""
    return int(network.head.in_features)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
