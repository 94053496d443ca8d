"""TSN as MMAction2 publishes it (open-mmlab/mmaction2@v0.24.1:configs/recognition/tsn)."""

from marey.recipes.schema import Data, Model, Published, Recipe, Training
from marey.training.optim import Optimizer, Schedule
from marey.video.preprocess import Preprocess, Protocol

RELEASE = "open-mmlab/mmaction2@v0.24.1:configs/recognition/tsn/README.md"


def tsn_r50_1x1x3_100e_kinetics400_rgb() -> Recipe:
    """TSN, ResNet-50 from ImageNet, 3 segments, Kinetics-400; published top-1 70.60 at 340x256.

        marey train tsn_r50_1x1x3_100e_kinetics400_rgb model.weights=FILE data.train=LIST data.val=LIST

    Published on 8 processes of 32 videos. Test: 25 frames x ten crops, averaged as features, which for a
    linear classifier is the mean of the views' logits.
    """
    return Recipe(
        name="tsn.tsn_r50_1x1x3_100e_kinetics400_rgb",
        model=Model(name="tsn_r50", num_classes=400),
        data=Data(),
        clips=Preprocess(
            sampling="segments",
            frames=3,
            train_crop="multiscale5",
            val=Protocol(),
            test=Protocol(frames=25, crops="ten"),
            average="score",
        ),
        training=Training(
            epochs=100,
            batch=32,
            reference_batch=256,
            optimizer=Optimizer(lr=0.01, weight_decay=1e-4, clip_norm=40.0),
            schedule=Schedule(kind="step", milestones=(40, 80)),
            validate_every=5,
        ),
        published=Published(
            metrics={"top1": 0.7060, "top5": 0.8926}, source=RELEASE, protocol="25 frames x 10 crops of 224"
        ),
    )
