"""Detectors on AVA: what the persons of a film do, told from the seconds around a moment.

    marey train slowonly_kinetics_pretrained_r50_4x16x1_20e_ava_rgb data.train.annotation=train.csv \\
        data.train.media=rawframes/ data.train.proposals=train.pkl data.train.excluded=excluded.csv ...

open-mmlab/mmaction2@v0.24.1:configs/detection/ava under the names of its configurations; networks, clips and
figures are those of the releases. Rates are meant for eight processes (some releases had sixteen). The
networks start from recognizers of Kinetics-400. Of the start of the SlowFast networks 4x16 a later
training is named here, the one upstream names being no longer listed.
"""

from collections.abc import Callable
from functools import partial

import msgspec

from marey.data.ava import KeyFrames
from marey.recipes.released import cosine, sgd, steps
from marey.recipes.schema import Boxes, BoxRecipe, KeyData, Model, Published, Training
from marey.training.optim import Optimizer, Schedule
from marey.weights.create import starting_preprocess
from marey.weights.published import RELEASES
from marey.weights.release import STAMP

README = "open-mmlab/mmaction2@v0.24.1:configs/detection/{}/README.md"

SPARSE_START = "slowonly_r50_4x16x1_256e_kinetics400_rgb_20200704-a69556c6"
FAST_START = "slowfast_r50_4x16x1_256e_kinetics400_rgb_20210722-04e43ed4"
DENSE_FAST_START = "slowfast_r50_8x8x1_256e_kinetics400_rgb_20200716-73547d2b"
NL_START = "slowonly_nl_embedded_gaussian_r50_{}x1_150e_kinetics400_rgb_20210308-{}"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration, as far as its release does not state it.

    start     name of the release that it starts from
    training  how it was trained
    boxes     what was learnt from boxes
    note      what else to know
    """

    start: str
    training: Training
    boxes: Boxes = Boxes()
    note: str = ""


def trained(batch: int, lr: float, schedule: Schedule, *, epochs: int = 20, decay: float = 1e-5) -> Training:
    """SGD on eight processes, gradients cut at 40, validated after every epoch."""
    return msgspec.structs.replace(sgd(epochs, batch, lr, schedule, decay=decay), validate_every=1)


def twenty(batch: int, lr: float) -> Training:
    """20 epochs, a tenth of the rate after 10 and 15; it rises over the first five."""
    return trained(batch, lr, steps(10, 15, warmup=5))


def _ten(batch: int, lr: float, rise: int) -> Training:
    schedule = Schedule(kind="step", milestones=(4, 6, 8), warmup_updates=rise, warmup_start=0.01)
    return trained(batch, lr, schedule, epochs=10, decay=1e-6)


def _newer() -> Training:
    return trained(6, 0.075, cosine(2, smooth=True), epochs=10)


ROWS_OF_DETECTORS = {
    "slowonly_kinetics_pretrained_r50_4x16x1_20e_ava_rgb": Row(start=SPARSE_START, training=twenty(16, 0.2)),
    "slowonly_omnisource_pretrained_r50_4x16x1_20e_ava_rgb": Row(
        start="slowonly_r50_omni_4x16x1_kinetics400_rgb_20200926-51b1f7ea", training=twenty(16, 0.2)
    ),
    "slowonly_nl_kinetics_pretrained_r50_4x16x1_10e_ava_rgb": Row(
        start=NL_START.format("4x16", "0d6e5a69"), training=_ten(12, 0.3, 800)
    ),
    "slowonly_nl_kinetics_pretrained_r50_8x8x1_10e_ava_rgb": Row(
        start=NL_START.format("8x8", "e8dd9e82"), training=_ten(6, 0.15, 1600)
    ),
    "slowonly_kinetics_pretrained_r101_8x8x1_20e_ava_rgb": Row(
        start="slowonly_r101_without_omni_8x8x1_kinetics400_rgb_20200926-0c730aef",
        training=twenty(6, 0.075),
    ),
    "slowonly_omnisource_pretrained_r101_8x8x1_20e_ava_rgb": Row(
        start="slowonly_r101_omni_8x8x1_kinetics400_rgb_20200926-b5dbb701", training=twenty(6, 0.075)
    ),
    "slowfast_kinetics_pretrained_r50_4x16x1_20e_ava_rgb": Row(start=FAST_START, training=twenty(9, 0.1125)),
    "slowfast_context_kinetics_pretrained_r50_4x16x1_20e_ava_rgb": Row(
        start=FAST_START, training=twenty(9, 0.1125)
    ),
    "slowfast_kinetics_pretrained_r50_8x8x1_20e_ava_rgb": Row(
        start=DENSE_FAST_START, training=twenty(5, 0.075)
    ),
    "slowfast_kinetics_pretrained_r50_8x8x1_cosine_10e_ava22_rgb": Row(
        start=DENSE_FAST_START, training=_newer()
    ),
    "slowfast_temporal_max_kinetics_pretrained_r50_8x8x1_cosine_10e_ava22_rgb": Row(
        start=DENSE_FAST_START, training=_newer()
    ),
    "slowfast_temporal_max_focal_alpha3_gamma1_kinetics_pretrained_r50_8x8x1_cosine_10e_ava22_rgb": Row(
        start=DENSE_FAST_START, training=_newer(), boxes=Boxes(alpha=3.0, gamma=1.0)
    ),
}


def build(module: str, name: str, row: Row) -> BoxRecipe:
    """The complete recipe of a row; the module is where its table stands."""
    release = next(one for one in RELEASES.values() if STAMP.sub("", one.name) == name)
    return BoxRecipe(
        name=f"{module}.{name}",
        model=Model(
            name=release.model, num_classes=release.num_classes, weights=row.start, options=release.overrides
        ),
        clips=release.preprocess,
        boxes=row.boxes,
        training=row.training,
        published=Published(
            metrics={
                key: round(value / 100, 6) for key, value in release.metrics.items() if value is not None
            },
            source=README.format(module),
            protocol="whole frames of short side 256, proposals from 0.9 on, frame mAP at IoU 0.5",
            dataset=f"{release.dataset} validation",
        ),
    )


def own_boxes(model: str = "slowonly_r50_det", weights: str | None = None) -> BoxRecipe:
    """A detector for own films, own actions and own boxes of persons.

        marey train own_boxes model.weights=FILE data.train.annotation=train.csv data.train.media=videos/

    Weights are those of a recognizer or a detector; without any it trains from scratch. Films are counted
    from second 0, with a key frame every second (data.key_frames). Persons of whom the crop leaves less than
    8 pixels are left out, where published recipes learn their actions from an empty box.
    """
    return BoxRecipe(
        name="ava.own_boxes",
        model=Model(name=model, weights=weights),
        data=KeyData(key_frames=KeyFrames()),
        clips=starting_preprocess(model, weights),
        boxes=Boxes(smallest=8.0),
        training=Training(
            epochs=20,
            batch=8,
            reference_batch=64,
            scale_lr=True,
            optimizer=Optimizer(lr=0.1, weight_decay=1e-5, clip_norm=40.0),
            schedule=Schedule(kind="cosine", per="iteration", warmup_epochs=2.0),
        ),
    )


RECIPES: dict[str, Callable[..., BoxRecipe]] = {
    name: partial(build, "ava", name, row) for name, row in ROWS_OF_DETECTORS.items()
}
