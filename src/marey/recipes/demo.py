"""The network of `marey demo`: small enough to be trained on a laptop's CPU in a minute."""

from marey.recipes.schema import Data, Model, Recipe, Training
from marey.training.optim import Optimizer, Schedule
from marey.video.preprocess import Preprocess, Protocol
from marey.video.synthetic import CLASSES, FLIP_LABELS

DEMO_CLASSES = CLASSES[:4]  # the directions; in 20 epochs this network does not learn the turns


def moving_shapes() -> Recipe:
    """A narrow TSM-R18 on rendered shapes whose actions only motion tells apart.

        marey demo

    Mirroring exchanges left and right.
    """
    view = Protocol(crop=64)
    return Recipe(
        name="demo.moving_shapes",
        model=Model(name="tsm_r18", options={"width": 16, "segments": 8, "dropout": 0.0}),
        data=Data(),
        clips=Preprocess(
            sampling="segments",
            frames=8,
            short_side=64,
            crop=64,
            train_crop="center",
            flip=0.5,
            flip_labels=FLIP_LABELS[:1],
            val=view,
            test=view,
        ),
        training=Training(
            epochs=24,
            batch=8,
            reference_batch=8,
            optimizer=Optimizer(lr=0.02, weight_decay=1e-4, clip_norm=20.0),
            schedule=Schedule(kind="cosine", per="iteration", warmup_epochs=1.0),
            validate_every=3,
            log_every=15,
        ),
    )
