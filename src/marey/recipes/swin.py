"""Video Swin as its authors publish it (names with `_`) and as MMAction2 1.x does (names with `-`).

    marey train swin_tiny_patch244_window877_kinetics400_1k data.train=LIST data.val=LIST

SwinTransformer/Video-Swin-Transformer@db018fb8 and open-mmlab/mmaction2@4d6c9347, configs/recognition/swin.
The rate falls with every epoch and rises with every iteration. How the settings for the backbone, for norms
and for the tables of relative positions combine differs between the two: see `parameter_groups`. The authors
gather the gradients of four or eight steps for an update.

Not here, because a setting is missing: mixed precision was float16 with a scaler of the gradients
(`training.precision=bf16` is the nearest); on Something-Something RandAugment was imgaug's, whose changes are
others: here it is that of PySlowFast, four changes of strength 7.
"""

import msgspec

from marey.recipes.released import Row
from marey.recipes.schema import Training
from marey.training.optim import Optimizer, Schedule
from marey.video.augment import Augment, Erasing, RandAugment

TINY, SMALL, BASE = (f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base"))
BASE_22K, LARGE = f"{BASE}_22k", "swin_large_patch4_window7_224_22k"
WIDE = "swin_base_patch244_window1677_kinetics400_22k"
SWIN_L = "The network is Swin-L: 192 channels."


def _authors(lr: float, decay: float, *, gathered: int = 8, epochs: int = 30) -> Training:
    return Training(
        epochs=epochs,
        batch=8,
        accumulate=gathered,
        reference_batch=8 * 8 * gathered,
        optimizer=Optimizer(
            kind="adamw",
            lr=lr,
            weight_decay=decay,
            groups="tables",
            backbone_factor=0.1,
            clip_norm=None,
        ),
        schedule=Schedule(kind="cosine", warmup_epochs=2.5),
        validate_every=5,
    )


def _mmaction(decay: float, *, batch: int = 8, videos: int = 64, lr: float = 1e-3) -> Training:
    return Training(
        epochs=30,
        batch=batch,
        reference_batch=videos,
        optimizer=Optimizer(
            kind="adamw",
            lr=lr,
            weight_decay=decay,
            groups="norms",
            decay_tables=False,
            backbone_factor=0.1,
            clip_norm=None,
        ),
        schedule=Schedule(kind="cosine", warmup_epochs=2.5, warmup_rule="1.x"),
        validate_every=3,
    )


ROWS = {
    "swin_tiny_patch244_window877_kinetics400_1k": Row(
        training=_authors(1e-3, 0.02, gathered=4), weights=TINY
    ),
    "swin_small_patch244_window877_kinetics400_1k": Row(training=_authors(1e-3, 0.02), weights=SMALL),
    "swin_base_patch244_window877_kinetics400_1k": Row(training=_authors(1e-3, 0.05), weights=BASE),
    "swin_base_patch244_window877_kinetics400_22k": Row(
        training=_authors(3e-4, 0.05), weights=BASE_22K, options={"drop_path": 0.2}
    ),
    "swin_base_patch244_window877_kinetics600_22k": Row(
        training=_authors(3e-4, 0.05), weights=BASE_22K, options={"drop_path": 0.2}
    ),
    "swin_base_patch244_window1677_sthv2": Row(
        training=msgspec.structs.replace(
            _authors(3e-4, 0.05, epochs=60),
            augment=Augment(rand=RandAugment(layers=4), erasing=Erasing(probability=0.25)),
            label_smoothing=0.1,
        ),
        weights=WIDE,
        options={"drop_path": 0.4},
    ),
    "swin-tiny-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb": Row(
        training=_mmaction(0.02), weights=TINY
    ),
    "swin-small-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb": Row(
        training=_mmaction(0.02), weights=SMALL, options={"drop_path": 0.2}
    ),
    "swin-base-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb": Row(
        training=_mmaction(0.05), weights=BASE
    ),
    "swin-large-p244-w877_in22k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb": Row(
        training=_mmaction(0.05), weights=LARGE, options={"drop_path": 0.4}, note=SWIN_L
    ),
    "swin-large-p244-w877_in22k-pre_16xb8-amp-32x2x1-30e_kinetics700-rgb": Row(
        training=_mmaction(0.05, videos=128, lr=2e-3),
        weights=LARGE,
        options={"drop_path": 0.4},
        note=SWIN_L,
    ),
    "swin-small-p244-w877_in1k-pre_32xb4-amp-32x2x1-30e_kinetics710-rgb": Row(
        training=_mmaction(0.02, batch=4, videos=128, lr=2e-3), weights=SMALL, options={"drop_path": 0.2}
    ),
}
