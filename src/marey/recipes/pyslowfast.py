"""What trainings by PySlowFast, and by what is built on it, have in common.

Source: facebookresearch/SlowFast@287ec007, slowfast/config/defaults.py, slowfast/models/optimizer.py and
slowfast/utils/lr_policy.py. Batches are stated for a machine of eight GPUs; copies of a video do not count.
RandAugment changes the cut clip here, and whole frames before they are cut there.
"""

from marey.recipes.schema import Training
from marey.training.optim import Optimizer, Schedule
from marey.video.augment import Augment, Erasing, Mixing, RandAugment

GPUS = 8  # of a machine
AUGMENT = Augment(  # rand-m7-n4-mstd0.5-inc1
    copies=2,
    rand=RandAugment(layers=4, magnitude=7.0, spread=0.5),
    erasing=Erasing(probability=0.25),
    mixing=Mixing(probability=1.0, mixup=0.8, cutmix=1.0),
)
ONCE = Augment(rand=AUGMENT.rand, erasing=AUGMENT.erasing, mixing=AUGMENT.mixing)  # one copy


def cosine(lr: float, warmup: float, *, start: float, end: float = 0.0, after: bool = True) -> Schedule:
    """From `lr` down to `end` with every iteration, after a straight rise from `start`.

    after  the cosine begins where the rise ends; else with the training, and the rise meets it
    """
    return Schedule(
        kind="cosine",
        per="iteration",
        cosine_from=warmup if after else 0.0,
        final=end / lr,
        warmup_epochs=warmup,
        warmup_start=start / lr,
        warmup_rule="slowfast",
    )


def steps(lr: float, warmup: float, *milestones: int, start: float) -> Schedule:
    """A tenth at each milestone, after a straight rise from `start`."""
    return Schedule(
        kind="step",
        per="iteration",
        milestones=milestones,
        warmup_epochs=warmup,
        warmup_start=start / lr,
        warmup_rule="slowfast",
    )


def sgd(
    epochs: int, videos: int, lr: float, schedule: Schedule, *, decay: float = 1e-4, validate_every: int = 10
) -> Training:
    """Networks with batch norms, whose statistics are measured anew for each validation."""
    return Training(
        epochs=epochs,
        batch=videos // GPUS,
        reference_batch=videos,
        optimizer=Optimizer(lr=lr, nesterov=True, weight_decay=decay, groups="norms", clip_norm=None),
        schedule=schedule,
        validate_every=validate_every,
        precise_bn=200,
    )


def adamw(
    epochs: int,
    videos: int,
    lr: float,
    warmup: float,
    *,
    clip: float,
    machines: int = 1,
    validate_every: int = 10,
) -> Training:
    """Transformers on strongly augmented clips; rates rise from and fall to 1e-6.

    videos, lr  for one machine; with more there are as many times the videos, and the rates are multiplied
    clip        largest 2-norm of the gradients
    """
    return Training(
        epochs=epochs,
        batch=videos // GPUS,
        reference_batch=videos * machines,
        optimizer=Optimizer(
            kind="adamw", lr=lr * machines, weight_decay=0.05, groups="vectors", clip_norm=clip
        ),
        schedule=cosine(lr, warmup, start=1e-6, end=1e-6),
        augment=AUGMENT,
        label_smoothing=0.1,
        validate_every=validate_every,
    )
