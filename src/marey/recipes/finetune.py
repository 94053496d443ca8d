"""Own videos: any recognizer, the user's own list, as many classes as the data has."""

from marey.recipes.schema import Data, Model, Recipe, Training
from marey.training.optim import Optimizer, Schedule
from marey.video.preprocess import Preprocess, Protocol


def finetune() -> Recipe:
    """Fine-tune (or train from scratch) any recognizer on own videos.

        marey train finetune data.train=train.csv data.val=val.csv model.weights=FILE

    The number and names of the classes come from the lists. `model.name` takes any recognizer; set
    `clips.*` to what it expects where that differs from TSM's (`marey recipe` of a published recipe shows
    it). Without `model.weights` it trains from scratch: then raise training.epochs and optimizer.lr.
    """
    return Recipe(
        name="finetune.finetune",
        model=Model(name="tsm_r50"),
        data=Data(),
        clips=Preprocess(
            sampling="segments",
            frames=8,
            short_side=256,
            crop=224,
            train_crop="area",
            flip=0.5,
            val=Protocol(clips=1, crops="center", crop=224),
            test=Protocol(clips=1, crops="three", crop=256),
        ),
        training=Training(
            epochs=25,
            batch=8,
            reference_batch=64,
            scale_lr=True,
            optimizer=Optimizer(lr=0.01, weight_decay=1e-4, clip_norm=20.0),
            schedule=Schedule(kind="cosine", per="iteration", warmup_epochs=1.0),
        ),
    )
