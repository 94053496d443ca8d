"""What `marey train` does with a recipe that has a target domain: its clips set the batch norms, and its
pseudo-labels, once there are some, are learnt from in turn with the source's labels.

After Andy1621/Nightcrawler@259fa5b9e6a8:tools/train_net_bn_pseudo.py. No label of the target's list is read.
"""

import copy
import csv
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from lightning_fabric.fabric import Fabric
from torch import Tensor

from marey.data.clips import Batch, Failures, steps_per_epoch
from marey.data.lists import ClipList, check_labels, named_list, read_list
from marey.data.workers import Pool
from marey.errors import DataError, UsageError
from marey.jobs import setup
from marey.jobs.epochs import scheduled_rate
from marey.jobs.provenance import sha256_of
from marey.jobs.recognition import Examples, Recognition
from marey.jobs.runs import Run
from marey.recipes.schema import Adapt, Pseudo, Recipe
from marey.scores.calibrate import normalised
from marey.scores.labels import read_labels
from marey.scores.table import Floats
from marey.training.loop import Outcome
from marey.training.losses import soft_targets
from marey.video.sampling import generator

LABELLED, MEASURED = 2**34, 2**35  # added to the seed: the target's streams of random numbers


class Sided(NamedTuple):
    """A batch of one domain: `Examples`, and whether they are the target's."""

    clip: Tensor
    targets: Tensor
    real: int
    target: bool


class Pseudos(NamedTuple):
    """Pseudo-labels to learn from.

    clips    the kept rows
    soft     float32 [n, C], their probabilities where these are the targets, else None
    weights  float32 [n], of their losses; None: all alike
    """

    clips: ClipList
    soft: Floats | None = None
    weights: Floats | None = None


class Adaptation(Recognition):
    """Training of a recognizer for a target domain; a `marey.jobs.epochs.Task`.

    With pseudo-labels a step is a batch of one domain: the source's in even steps, the target's in odd ones.
    """

    @staticmethod
    def prepare(recipe: Recipe, validate: bool | None) -> tuple[Recipe, setup.Lists]:
        """As `Recognition.prepare`, with full paths and the hash of the pseudo-labels in the recipe.

        Raises UsageError NO_DATA, RECIPE_VALUE, LABELS_CHANGED for other labels than the run began with.
        """
        plan = recipe.adapt
        assert plan is not None
        _check(recipe, plan)
        recipe, lists = Recognition.prepare(recipe, validate)
        assert lists.train is not None
        if lists.train.multi_label:
            raise UsageError("RECIPE_VALUE", "adapt is for clips with one label each")
        pseudo = plan.pseudo
        if pseudo is not None and pseudo.labels is not None:
            found = _sha256(pseudo.labels)
            if pseudo.sha256 not in (None, found):
                raise UsageError(
                    "LABELS_CHANGED",
                    f"{pseudo.labels} is not the file that the run began with (sha256 {found[:8]}, not "
                    f"{(pseudo.sha256 or '')[:8]}); put that back, or begin a new run",
                )
            full = {"labels": setup.full_path(pseudo.labels), "root": setup.full_path(pseudo.root)}
            pseudo = msgspec.structs.replace(pseudo, sha256=found, **full)
        places = {"target": setup.full_path(plan.target), "root": setup.full_path(plan.root)}
        plan = msgspec.structs.replace(plan, pseudo=pseudo, **places)
        return msgspec.structs.replace(recipe, adapt=plan), lists

    def __init__(
        self, recipe: Recipe, lists: setup.Lists, *, fabric: Fabric, run: Run, pool: Pool, seed: int
    ) -> None:
        super().__init__(recipe, lists, fabric=fabric, run=run, pool=pool, seed=seed)
        assert recipe.adapt is not None
        self.adapt, template = recipe.adapt, recipe.data.template
        self.norm_settings = {"share": self.adapt.share, "dropout": self.adapt.dropout}
        self.soft: Floats | None = None
        self.row_weights: Floats | None = None
        self.now: Recognition = self  # whose batch was made last
        target = unlabelled(self.adapt, template) if self.adapt.target is not None else None
        pseudo = self.adapt.pseudo
        found = read_pseudo(pseudo, self.classes, template) if pseudo is not None else None
        if found is not None and found.weights is not None and self.weights is not None:
            raise UsageError(
                "RECIPE_VALUE",
                "the pseudo-labels have weights of their own, so training.class_weights cannot be balanced",
            )
        labelled = None if found is None else found.clips
        read = [clips for clips in (self.clips, target, labelled) if clips is not None]
        self.size = sum(len(clips) for clips in read if clips is not target)
        self.failures = Failures(
            limit=recipe.data.max_bad,
            listed=sum(map(len, read)),
            what=" and ".join(clips.name for clips in read),
        )
        self.measured = self._part(target, MEASURED) if target is not None else None
        self.labelled = self._part(labelled, LABELLED) if labelled is not None else None
        if pseudo is not None and found is not None and self.labelled is not None:
            self.labelled.soft, self.labelled.row_weights = found.soft, found.weights
            lengths = (self.steps, self.labelled.steps)
            pairs = max(lengths) if pseudo.ending == "longer" else min(lengths)
            self.own, self.steps = self.steps, 2 * pairs
        self.notes += list(self._told())

    def _part(self, clips: ClipList, stream: int) -> "Adaptation":
        """The same training with other clips and draws of their own; failures are counted together."""
        part = copy.copy(self)
        part.clips, part.seed, part.padded = clips, self.seed + stream, 0
        part.steps = steps_per_epoch(len(clips), self.plan.batch, self.fabric.world_size)
        if stream == MEASURED:  # its classes are not known, so they cannot be drawn by
            data = msgspec.structs.replace(self.recipe.data, class_power=None)
            part.recipe = msgspec.structs.replace(self.recipe, data=data)
        return part

    def _told(self) -> Iterator[str]:
        if self.measured is not None:
            clips = self.measured.clips
            yield f"batch norms are measured on {len(clips)} clips of {clips.name}"
        if self.labelled is not None:
            kind = "probabilities" if self.labelled.soft is not None else "labels"
            kind += "" if self.labelled.row_weights is None else ", weighted,"
            yield f"learns from {len(self.labelled.clips)} {kind} of {self.labelled.clips.name}, too"

    def current(self) -> list[str]:
        """Paths of the clips of the batch that was made last."""
        return [self.now.clips[index].path for index in self.now.taken]

    def rate(self, epoch: int, update: int, updates: int) -> float:
        """As the recipe's schedule has it; both steps of a pair have the pair's."""
        if self.labelled is None:
            return super().rate(epoch, update, updates)
        pair = update * self.plan.accumulate // 2
        return scheduled_rate(self.plan, epoch, pair, self.steps // 2, world=self.fabric.world_size)

    def examples(self, epoch: int, first_step: int) -> Iterator[Any]:
        """Batches of an epoch; with pseudo-labels the source's and the target's in turn."""
        if self.labelled is None:
            for batch in super().examples(epoch, first_step):
                yield Sided(*batch, target=False)
            return
        pairs = self.steps // 2
        sides = (
            self._pass(self, self.own, epoch, (first_step + 1) // 2, pairs),
            self._pass(self.labelled, self.labelled.steps, epoch, first_step // 2, pairs),
        )
        for step in range(first_step, self.steps):
            batch = next(sides[step % 2])
            self.padded += self.labelled.padded
            self.labelled.padded = 0
            self.now = self.labelled if step % 2 else self
            yield Sided(*batch, target=bool(step % 2))

    @staticmethod
    def _pass(part: "Adaptation", steps: int, epoch: int, first: int, pairs: int) -> Iterator[Examples]:
        """Its batches `first` .. `pairs` - 1 of an epoch; a list that ends sooner begins anew, drawn anew."""
        turns = -(-pairs // steps)
        while first < pairs:
            turn, step = divmod(first, steps)
            for batch in islice(Recognition.examples(part, epoch * turns + turn, step), pairs - first):
                yield batch
                first += 1

    def outcome(self, model: Any, batch: Any) -> Outcome:
        """The classification loss of a domain, in its weight."""
        logits = model(batch.clip)
        loss = self.loss(logits, batch.targets)
        if batch.target:
            assert self.adapt.pseudo is not None
            return Outcome(self.adapt.pseudo.weight * loss, {"loss_target": loss.detach()})
        terms: Mapping[str, Tensor] = self.terms(logits, batch.targets)
        return Outcome(loss, {"loss_source": loss.detach(), **terms} if self.labelled is not None else terms)

    def norm_inputs(self, epoch: int) -> Iterator[Tensor]:
        """Clips of the target, cut and changed as for training, but not mixed; the source's without one."""
        if self.measured is None:
            yield from super().norm_inputs(epoch)
            return
        part, order = self.measured, 0 if self.adapt.same else epoch
        batches = islice(part.batches(order, 0, draws=epoch), self.plan.precise_bn)
        for number, batch in enumerate(batches):
            rng = generator(part.seed, epoch, number, self.fabric.global_rank)
            torch.manual_seed(int(rng.integers(2**63)))  # of dropout, should it act
            yield part._on_device(batch, epoch).clip if len(batch.frames) else torch.empty(0)

    def _targets(self, batch: Batch, epoch: int) -> Tensor:
        """Labels, or soft ones, whose classes a mirror exchanges as it does labels; a row's weight is that of
        its target, and so of its share in a mixed clip."""
        if not len(batch.targets):
            return super()._targets(batch, epoch)
        index = batch.indices.numpy()
        if self.soft is not None:
            rows = torch.from_numpy(self.soft[index])
            mirrored = [self.recipe.clips.mirror_label(label) for label in range(rows.shape[1])]
            targets = torch.where(batch.mirrored[:, None], rows[:, mirrored], rows)
        else:
            targets = super()._targets(batch, epoch)
        if self.row_weights is None:
            return targets
        spread = soft_targets(targets, len(self.classes), self.plan.label_smoothing)
        return spread * torch.from_numpy(self.row_weights[index])[:, None]


def _check(recipe: Recipe, plan: Adapt) -> None:
    """What a recipe with a target needs. Raises UsageError NO_DATA, RECIPE_VALUE."""
    norms, pseudo = recipe.training.precise_bn, plan.pseudo
    if pseudo is not None and pseudo.labels is None:
        raise UsageError(
            "NO_DATA", "the recipe learns from pseudo-labels; give adapt.pseudo.labels=FILE, a table or list"
        )
    if norms and plan.target is None:
        raise UsageError(
            "NO_DATA",
            "the recipe measures batch norms on a target; give adapt.target=LIST, whose labels are not read",
        )
    if plan.target is not None and not norms:
        raise UsageError(
            "RECIPE_VALUE", "adapt.target is what batch norms are measured on; give training.precise_bn=200"
        )
    if plan.target is None and pseudo is None:
        raise UsageError("RECIPE_VALUE", "adapt names neither a target nor pseudo-labels")
    if pseudo is not None and recipe.training.accumulate % 2 and recipe.training.accumulate > 1:
        raise UsageError(
            "RECIPE_VALUE",
            "with adapt.pseudo, training.accumulate is 1, or even: source and target are pairs",
        )


def unlabelled(plan: Adapt, template: str | None = None) -> ClipList:
    """The target's list, whatever labels it had set to 0. Raises DataError as `read_list`."""
    assert plan.target is not None
    clips = read_list(plan.target, root=plan.root, template=template)
    return clips.relabelled(np.zeros(len(clips), np.int64))


def read_pseudo(plan: Pseudo, classes: tuple[str, ...], template: str | None = None) -> Pseudos:
    """The kept rows of pseudo-labels as a list, with `soft` their probabilities, and their weights.

    Raises DataError LABEL_NAMES, LABEL_RANGE for other classes than the source's, LIST_EMPTY where nothing
    was kept; UsageError RECIPE_VALUE for soft labels of a file without probabilities.
    """
    assert plan.labels is not None
    file = Path(plan.labels)
    if not _is_table(file):
        if plan.soft:
            raise UsageError(
                "RECIPE_VALUE", f"adapt.pseudo.soft: {plan.labels} has no probabilities; give the table"
            )
        clips = read_list(file, root=plan.root, classes=_named(classes), template=template)
        check_labels(clips, len(classes))
        return Pseudos(clips)
    table = read_labels(file)
    names = _named(classes)
    if table.num_classes != len(classes) or (table.classes and names and table.classes != names):
        raise DataError(
            "LABEL_NAMES",
            f"{plan.labels} has {table.num_classes} classes, {', '.join(table.classes or ('unnamed',))}, but "
            f"the source has {', '.join(classes)}; label the target with networks of these",
        )
    rows = np.flatnonzero(table.kept)
    clips = named_list(
        str(file),
        plan.root or file.parent,
        [table.ids[row] for row in rows],
        table.labels[rows].tolist(),
        classes=classes,
        template=template,
    )
    weights = table.facts["weight"][rows].astype(np.float32)
    return Pseudos(
        clips,
        normalised(table.probabilities[rows]).astype(np.float32) if plan.soft else None,
        None if (weights == 1).all() else weights,
    )


def _named(classes: tuple[str, ...]) -> tuple[str, ...] | None:
    """None for names that are only the labels' numbers."""
    return None if classes == tuple(map(str, range(len(classes)))) else classes


def _is_table(file: Path) -> bool:
    """Whether a file holds probabilities: a table of pseudo-labels, or a published list of them."""
    if file.suffix.lower() == ".parquet":
        return True
    if file.name.endswith(".csv.gz"):
        return True
    try:
        with file.open(newline="", encoding="utf-8") as text:
            first = next(csv.reader(text), [])
    except (OSError, UnicodeDecodeError):
        return False  # `read_list` says what is wrong
    return first[:2] == ["id", "label"] or (len(first) > 3 and all(map(_is_number, first[1:])))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _sha256(path: str) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError("NOT_FOUND", f"cannot read the pseudo-labels {path!r}: {error.strerror}") from None
