"""TSM as MMAction2 publishes it (open-mmlab/mmaction2@v0.24.1:configs/recognition/tsm)."""

from marey.recipes.schema import Data, Model, Published, Recipe, Training
from marey.training.optim import Optimizer, Schedule
from marey.video.preprocess import Preprocess, Protocol

RELEASE = "open-mmlab/mmaction2@v0.24.1:configs/recognition/tsm/README.md"


def tsm_r50_1x1x8_50e_kinetics400_rgb() -> Recipe:
    """TSM, ResNet-50 from ImageNet, 8 segments, Kinetics-400; published top-1 70.24 at 340x256.

        marey train tsm_r50_1x1x8_50e_kinetics400_rgb model.weights=resnet50.pth data.train=LIST data.val=LIST

    Published on 8 processes of 8 videos. Test: 8 frames, one centre crop.
    """
    return Recipe(
        name="tsm.tsm_r50_1x1x8_50e_kinetics400_rgb",
        model=Model(name="tsm_r50", num_classes=400),
        data=Data(),
        clips=Preprocess(
            sampling="segments", frames=8, train_crop="multiscale13", val=Protocol(), test=Protocol()
        ),
        training=Training(
            epochs=50,
            batch=8,
            reference_batch=64,
            optimizer=Optimizer(lr=0.01, weight_decay=1e-4, groups="tsm", clip_norm=20.0),
            schedule=Schedule(kind="step", milestones=(20, 40)),
            validate_every=5,
        ),
        published=Published(
            metrics={"top1": 0.7024, "top5": 0.8956}, source=RELEASE, protocol="8 frames x 1 crop of 224"
        ),
    )
