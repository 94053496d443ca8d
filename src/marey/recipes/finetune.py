"""Own videos: any recognizer, the user's own list, as many classes as the data has."""

from typing import Any

import msgspec

from marey.recipes.schema import Data, Distill, Model, Recipe, Training
from marey.training.optim import Optimizer, Schedule
from marey.video.preprocess import Preprocess, Protocol
from marey.weights.create import starting_preprocess


def finetune(model: str = "tsm_r50", weights: str | None = None) -> Recipe:
    """Fine-tune any recognizer, or train it from scratch, on own videos.

        marey train finetune model.name=tsm_r50 model.weights=FILE data.train=LIST data.val=LIST

    Clips are cut as the weights, or else the network's family, expect. The number and names of the classes
    come from the lists. Without weights it trains from scratch, which wants more epochs and a higher rate.
    """
    clips = starting_preprocess(model, weights)
    return Recipe(
        name="finetune.finetune",
        model=Model(name=model, weights=weights),
        data=Data(),
        clips=_simple(clips, one_size=_one_size(model)),
        training=Training(
            epochs=25,
            batch=8,
            reference_batch=64,
            scale_lr=True,
            optimizer=Optimizer(lr=0.01, weight_decay=1e-4, clip_norm=20.0),
            schedule=Schedule(kind="cosine", per="iteration", warmup_epochs=1.0),
        ),
    )


def scratch(model: str = "tsm_r18") -> Recipe:
    """Train a recognizer from scratch on a small set of own videos.

        marey train scratch model.name=tsm_r18 data.train=LIST data.val=LIST

    A higher rate, little dropout and a small picture, so that a CPU will do. A mirror exchanges left and
    right: pairs of classes whose names say so are exchanged with it; name others by their labels
    (clips.flip_labels=[[0,1]]) or give clips.flip=0.
    """
    base = finetune(model)
    small = Protocol(crop=96)
    clips = msgspec.structs.replace(
        base.clips,
        short_side=112,
        train_short_side=None,
        inverse_short_side=False,
        crop=96,
        train_crop="random",
        val=small,
        test=small,
    )
    options: dict[str, Any] = {"dropout": 0.2} | ({"crop": 96} if _one_size(model) else {})
    return msgspec.structs.replace(
        base,
        name="finetune.scratch",
        model=msgspec.structs.replace(base.model, options=options),
        clips=clips,
        training=msgspec.structs.replace(
            base.training,
            epochs=30,
            batch=16,
            reference_batch=16,
            optimizer=Optimizer(lr=0.02, weight_decay=1e-4, clip_norm=20.0),
        ),
    )


def distill(
    model: str = "tsm_r18",
    weights: str | None = None,
    teacher: str = "tsm_r50",
    teacher_weights: str | None = None,
) -> Recipe:
    """Teach a network that sees half-size pictures by one that sees them whole, on own videos.

        marey train distill distill.teacher.name=tsm_r50 distill.teacher.weights=FILE model.weights=FILE \\
            data.train=LIST data.val=LIST

    Clips are cut as the teacher's weights, or else its family, expect; the student gets the same crop at half
    its size (clips.input_size) and is saved with that. The teacher must know the data's classes. Any two
    networks go together, for what they say of classes is compared; docs/distillation.md tells of the other
    losses, and what each needs.
    """
    base = finetune(model, weights)
    clips = starting_preprocess(teacher, teacher_weights)
    clips = _simple(clips, one_size=True)
    clips = msgspec.structs.replace(clips, short_side=max(clips.short_side or 0, clips.crop))
    side = clips.crop // 2
    options: dict[str, Any] = {"crop": side, "frames": clips.frames} if _one_size(model) else {}
    return msgspec.structs.replace(
        base,
        name="finetune.distill",
        model=msgspec.structs.replace(base.model, options=options),
        clips=msgspec.structs.replace(clips, input_size=side),
        distill=Distill(teacher=Model(name=teacher, weights=teacher_weights), logit_kl=1.0),
    )


def _one_size(model: str) -> bool:
    """Whether a network takes clips of one size only."""
    return model.startswith("mvit")


def _simple(clips: Preprocess, *, one_size: bool) -> Preprocess:
    """The same clips with protocols that suit a first look: one centre view, and three crops for the test.

    Which classes a mirror exchanges is a matter of the data, so what the weights' own data had is forgotten.
    """
    number = 3 if clips.sampling == "clip" else 1
    side = clips.plan(clips.test).short_side or clips.crop
    cut = clips.crop if one_size else side
    return msgspec.structs.replace(
        clips,
        short_side=side,
        flip_labels=(),
        val=Protocol(),
        test=Protocol(clips=number, crops="three", crop=cut, short_side=cut if one_size else None),
        average="prob",
    )
