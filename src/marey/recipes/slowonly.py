"""SlowOnly as MMAction2 publishes it (open-mmlab/mmaction2@v0.24.1:configs/recognition/slowonly)."""

import msgspec

from marey.recipes.schema import Data, Model, Published, Recipe, Training
from marey.training.optim import Optimizer, Schedule
from marey.video.preprocess import Preprocess, Protocol

RELEASE = "open-mmlab/mmaction2@v0.24.1:configs/recognition/slowonly/README.md"


def slowonly_r50_4x16x1_256e_kinetics400_rgb() -> Recipe:
    """SlowOnly R50 from scratch, 4 frames every 16, Kinetics-400; published top-1 72.76 at short side 256.

        marey train slowonly_r50_4x16x1_256e_kinetics400_rgb data.train=LIST data.val=LIST

    The config says 0.1 for batch 64; the published run used 32 processes of 8 videos. Test: 10 clips x
    three crops of 256.
    """
    return Recipe(
        name="slowonly.slowonly_r50_4x16x1_256e_kinetics400_rgb",
        model=Model(name="slowonly_r50", num_classes=400),
        data=Data(),
        clips=Preprocess(
            sampling="clip",
            frames=4,
            interval=16,
            val=Protocol(),
            test=Protocol(clips=10, crops="three", crop=256),
        ),
        training=Training(
            epochs=256,
            batch=8,
            reference_batch=64,
            optimizer=Optimizer(lr=0.1, weight_decay=1e-4, clip_norm=40.0),
            schedule=Schedule(kind="cosine"),
            validate_every=5,
        ),
        published=Published(
            metrics={"top1": 0.7276, "top5": 0.9051}, source=RELEASE, protocol="10 clips x 3 crops of 256"
        ),
    )


def slowonly_r50_8x8x1_256e_kinetics400_rgb() -> Recipe:
    """SlowOnly R50 from scratch, 8 frames every 8, Kinetics-400; published top-1 74.42 at short side 256."""
    base = slowonly_r50_4x16x1_256e_kinetics400_rgb()
    return msgspec.structs.replace(
        base,
        name="slowonly.slowonly_r50_8x8x1_256e_kinetics400_rgb",
        clips=msgspec.structs.replace(base.clips, frames=8, interval=8),
        published=Published(
            metrics={"top1": 0.7442, "top5": 0.9149}, source=RELEASE, protocol="10 clips x 3 crops of 256"
        ),
    )
