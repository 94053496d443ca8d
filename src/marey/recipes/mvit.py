"""MViT as PySlowFast publishes it: facebookresearch/SlowFast@287ec007, configs/Kinetics and configs/SSv2.

    marey train MVIT_B_16x4_CONV data.train=LIST data.val=LIST

Both folders there have an MVITv2_S_16x4 and an MVITv2_B_32x3: those of Something-Something begin with SSv2_
here. Their configurations say SGD, one machine and one copy of a video.

Validation is of random clips there; here it is of the centre of the middle clip.
"""

import msgspec

from marey.recipes.pyslowfast import GPUS, ONCE, adamw, cosine
from marey.recipes.released import Row
from marey.recipes.schema import Training
from marey.training.optim import Optimizer
from marey.video.augment import Mixing

KINETICS = adamw(200, 16, 1e-4, 30, clip=1.0)


def _sparse(
    lr: float, *, epochs: int = 100, videos: int = 16, start: float = 1e-4, clip: float | None = None
) -> Training:
    return msgspec.structs.replace(
        KINETICS,
        epochs=epochs,
        batch=videos // GPUS,
        reference_batch=videos,
        optimizer=Optimizer(lr=lr, nesterov=True, weight_decay=1e-4, groups="vectors", clip_norm=clip),
        schedule=cosine(lr, 3, start=start, end=1e-6),
        augment=ONCE,
        validate_every=2,
    )


def _large(training: Training) -> Training:
    """Clips are not mixed, in the place of which there are only the smoothed labels, and blocks run twice."""
    changes = msgspec.structs.replace(training.augment, mixing=Mixing())
    return msgspec.structs.replace(training, augment=changes, checkpoint_activations=True)


DROP = {"drop_path": 0.4}
ROWS = {
    "MVIT_B_16x4_CONV": Row(training=KINETICS),
    "MVIT_B_32x3_CONV": Row(training=KINETICS),
    "MVIT_B_32x3_CONV_K600": Row(training=KINETICS),
    "MVITv2_S_16x4": Row(training=KINETICS),
    "MVITv2_B_32x3": Row(training=KINETICS),
    "SSv2_MVITv2_S_16x4": Row(
        training=_sparse(0.0025), weights="MViTv2_S_16x4_k400_f302660347", options=DROP
    ),
    "SSv2_MVITv2_B_32x3": Row(
        training=_sparse(0.0015), weights="MViTv2_B_32x3_k400_f304025456", options=DROP
    ),
    "SSv2_MVITv2_L_40x3": Row(
        training=_large(_sparse(0.00125, epochs=40, videos=8, start=1e-6, clip=2.0)),
        weights="MViTv2_L_40x3_k400_f306903192",
    ),
}
