"""ResKD: a student at 112 pixels learns from a teacher at 224 (CVMI-Lab/ResKD@c6b85a3, configs/myconfig).

    marey train rkd_r152_1x1x16_200e_actnet data.train=LIST data.val=LIST distill.teacher.weights=FILE

Three kinds of recipes under the names of their configurations: pairs (`rkd_...`), teachers, and networks that
were trained alone at low resolutions, to compare with. Rates are meant for eight processes. What the source
runs is set here as it runs: the teacher's batch norms use the batch's statistics, Swin's teacher drops
branches, all parameters decay alike although other groups were meant (training.optimizer.groups=tsm and
head_factor=1 are those), ActivityNet and FCVID teach one label a visit. docs/distillation.md says what
differs in `finetune.distill`, the recipe for other pairs, and what it does.

Only the teachers were published, without figures; those of three students and of Swin's stand in comments of
the README. Not as upstream: Swin was trained in float16 (`training.precision=bf16` is the nearest), and steps
that do not fill an update at the end of an epoch make one of their own there; networks that could not be
tested at short side 128 with three crops of 112 are tested at short side 112.
"""

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from marey.recipes.released import RESNET50, RESNET152, cosine, steps
from marey.recipes.schema import Data, Distill, Model, Published, Recipe, Training
from marey.training.optim import Optimizer, Schedule
from marey.video.preprocess import Preprocess, Protocol
from marey.weights.release import CLASSES, protocol_text
from marey.weights.releases.reskd import TSM_TEST, frames, slowonly
from marey.weights.releases.swin import clips as swin_clips

README = "CVMI-Lab/ResKD@c6b85a3:README.md (in comments)"
ACTNET, FCVID, MINIK = "ActivityNet v1.3", "FCVID", "Mini-Kinetics"
SSV2, K400 = "Something-Something V2", "Kinetics-400"
TSN: dict[str, Any] = {"dropout": 0.5, "head_std": 0.001}
SWIN_S, SWIN_B = "swin_small_patch4_window7_224", "swin_base_patch4_window7_224_22k"
STARTS = {"tsn_r152": RESNET152, "swin3d_s": SWIN_S, "swin3d_b": SWIN_B}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration.

    model, clips, training, dataset   as in recipes; the start is ImageNet's
    teacher  (network, release or None where none was published) of a pair
    lesson   the losses between the two
    figure   what the source says that it reaches
    gmacs    1e9 multiply-adds of one view, counted by Marey and held by a test
    """

    model: str
    clips: Preprocess
    training: Training
    dataset: str
    teacher: tuple[str, str | None] | None = None
    lesson: dict[str, Any] = {}
    figure: dict[str, float] | None = None
    gmacs: float


def _sgd(
    epochs: int,
    schedule: Schedule,
    *,
    groups: Literal["all", "tsm"] = "all",
    clip: float = 20.0,
    lr: float = 0.01,
    decay: float = 1e-4,
    batch: int = 8,
    every: int = 5,
) -> Training:
    factor = 1.0 if groups == "tsm" else 5.0  # else nobody asks
    return Training(
        epochs=epochs,
        batch=batch,
        reference_batch=8 * batch,
        optimizer=Optimizer(lr=lr, weight_decay=decay, clip_norm=clip, groups=groups, head_factor=factor),
        schedule=schedule,
        validate_every=every,
    )


def _adamw(epochs: int, lr: float, decay: float, *, batch: int, gathered: int, every: int = 3) -> Training:
    return Training(
        epochs=epochs,
        batch=batch,
        accumulate=gathered,
        reference_batch=8 * batch * gathered,
        optimizer=Optimizer(
            kind="adamw", lr=lr, weight_decay=decay, groups="tables", backbone_factor=0.1, clip_norm=None
        ),
        schedule=Schedule(kind="cosine", warmup_epochs=2.5),
        validate_every=every,
    )


def _halved(clips: Preprocess, **more: Any) -> Preprocess:
    """The student's: the teacher's crop of 224, reduced to 112."""
    return msgspec.structs.replace(clips, input_size=112, **more)


def _swin(crop: int = 224, side: int = 256) -> Preprocess:
    test = Protocol(clips=4, crops="three", short_side=crop)
    return msgspec.structs.replace(swin_clips(), crop=crop, short_side=side, test=test)


ALONE, APART = _sgd(50, cosine(), clip=40.0), _sgd(50, cosine(), groups="tsm")
TSM = _sgd(50, cosine(), groups="tsm", lr=0.0075, decay=5e-4, batch=12)
SLOWONLY = _sgd(150, steps(90, 130, warmup=10), clip=40.0)
SMALL = _adamw(30, 1e-3, 0.02, batch=8, gathered=8)
MSE: dict[str, Any] = {"feature_mse": 100.0}
KL: dict[str, Any] = {"map_kl": 200.0, "map_mean": "elements", "temperature": 2.0, "drop_path": True}
TSN_112, TSN8_112 = _halved(frames(16)), _halved(frames(8))
SSV2_224 = msgspec.structs.replace(frames(8, flip=0.0), test=TSM_TEST)
SSV2_LOW = msgspec.structs.replace(
    frames(8, side=128, crop=112, flip=0.0),
    test=Protocol(twice=True, crops="three", short_side=112),
)


def _pair(epochs: int, every: int = 2) -> Training:
    return _sgd(epochs, cosine(), every=every)


def _low(size: int, side: int, gmacs: float, training: Training = ALONE, model: str = "tsn_r50") -> Row:
    snap = side if model == "tsn_r50" else None  # R152's scaled crops snap to the crop
    clips = msgspec.structs.replace(frames(16, side=side, crop=size), scale_snap=snap)
    return Row(model=model, clips=clips, training=training, dataset=ACTNET, gmacs=gmacs)


PAIRS = {
    "rkd_r152_1x1x16_200e_actnet": Row(
        model="tsn_r50", clips=TSN_112, training=_pair(200), dataset=ACTNET, lesson=MSE, gmacs=17.2,
        teacher=("tsn_r152", "reskd_tsn_r152_1x1x16_50e_actnet_rgb"), figure={"map": 0.80},
    ),
    "rkd_r50_1x1x16_200e_actnet": Row(
        model="tsn_r50", clips=TSN_112, training=_pair(200), dataset=ACTNET, lesson=MSE, gmacs=17.2,
        teacher=("tsn_r50", "reskd_tsn_r50_1x1x16_50e_actnet_rgb"),
    ),
    "rkd_r152_1x1x16_200e_fcvid": Row(
        model="tsn_r50", clips=TSN_112, training=_pair(200), dataset=FCVID, lesson=MSE, gmacs=17.2,
        teacher=("tsn_r152", "reskd_tsn_r152_1x1x16_50e_fcvid_rgb"),
    ),
    "rkd_r152_1x1x8_100e_minik": Row(
        model="tsn_r50", clips=TSN8_112, training=_pair(100), dataset=MINIK, lesson=MSE, gmacs=8.6,
        teacher=("tsn_r152", "reskd_tsn_r152_1x1x8_50e_minik_rgb"), figure={"top1": 0.754},
    ),
    "rkd_r50_1x1x8_100e_minik": Row(
        model="tsn_r50", clips=TSN8_112, training=_pair(100), dataset=MINIK, lesson=MSE, gmacs=8.6,
        teacher=("tsn_r50", None),
    ),
    "rkd_tsm_1x1x8_100e_sthv2": Row(
        model="tsm_r50", clips=_halved(frames(8, flip=0.0)), training=_pair(100), dataset=SSV2, lesson=MSE,
        teacher=("tsm_r50", "reskd_tsm_r50_1x1x8_50e_sthv2_rgb"), figure={"top1": 0.606}, gmacs=8.6,
    ),
    "rkd_slowonly_8x8x1_150e_k400": Row(
        model="slowonly_r50", clips=_halved(slowonly(), flip=0.0), dataset=K400, lesson=MSE, gmacs=11.0,
        training=_sgd(150, steps(90, 130, warmup=10), clip=40.0, every=4),
        teacher=("slowonly_r50", "reskd_slowonly_r50_8x8x1_150e_k400_rgb"), figure={"top1": 0.727},
    ),
    "rkd_swins_32x2x1_60e_k400": Row(
        model="swin3d_s", clips=_halved(_swin()), dataset=K400, lesson=KL, gmacs=42.2,
        training=_adamw(60, 1e-3, 0.02, batch=4, gathered=16),
        teacher=("swin3d_b", "reskd_swin_base_32x2x1_50e_k400"), figure={"top1": 0.80},
    ),
}  # fmt: skip
TEACHERS = {
    "tsn_r50_1x1x16_50e_actnet_rgb": Row(
        model="tsn_r50", clips=frames(16), training=APART, dataset=ACTNET, gmacs=65.4
    ),
    "tsm_r50_1x1x8_50e_sthv2_rgb": Row(
        model="tsm_r50", clips=SSV2_224, training=TSM, dataset=SSV2, gmacs=42.7
    ),
    "tsn_r152_1x1x16_50e_actnet_rgb": Row(
        model="tsn_r152", clips=frames(16), training=APART, dataset=ACTNET, gmacs=184.2
    ),
    "tsn_r152_1x1x8_50e_minik_rgb": Row(
        model="tsn_r152", clips=frames(8), training=APART, dataset=MINIK, gmacs=92.1
    ),
    "tsn_r152_1x1x16_50e_fcvid_rgb": Row(
        model="tsn_r152", clips=frames(16), training=APART, dataset=FCVID, gmacs=184.2
    ),
    "slowonly_r50_8x8x1_150e_k400_rgb": Row(
        model="slowonly_r50", clips=slowonly(), training=SLOWONLY, dataset=K400, gmacs=41.7
    ),
    "swin_base_32x2x1_50e_k400": Row(
        model="swin3d_b",
        clips=_swin(),
        training=_adamw(50, 5e-4, 0.05, batch=8, gathered=8),
        dataset=K400,
        gmacs=281.3,
    ),
    "tsn_r50_1x1x8_50e_minik": Row(
        model="tsn_r50", clips=frames(8), training=APART, dataset=MINIK, gmacs=32.7
    ),
}
BASELINES = {
    "tsn_r50_160p_1x1x16_50e_actnet": _low(160, 180, 33.4),
    "tsn_r50_112p_1x1x16_50e_actnet": _low(112, 128, 17.2),
    "tsn_r50_96p_1x1x16_50e_actnet": _low(96, 108, 12.0),
    "tsn_r50_72p_1x1x16_50e_actnet": _low(72, 80, 8.2),
    "tsn_r152_112p_1x1x16_50e_actnet": _low(112, 128, 46.9, APART, "tsn_r152"),
    "tsn_r50_112p_1x1x8_50e_minik": Row(
        model="tsn_r50", clips=frames(8, side=128, crop=112), training=ALONE, dataset=MINIK, gmacs=8.6
    ),
    "tsm_r50_112p_1x1x8_50e_sthv2": Row(
        model="tsm_r50", clips=SSV2_LOW, training=TSM, dataset=SSV2, gmacs=8.6
    ),
    "slowonly_r50_112p_8x8x1_150e_k400": Row(
        model="slowonly_r50", clips=slowonly(112, 128), training=SLOWONLY, dataset=K400, gmacs=11.0
    ),
    "swin_small_224_32x2x1_30e_k400": Row(
        model="swin3d_s", clips=_swin(), training=SMALL, dataset=K400, gmacs=165.7
    ),
    "swin_small_112p_32x2x1_30e_k400": Row(
        model="swin3d_s", clips=_swin(112, 128), training=SMALL, dataset=K400, gmacs=42.2
    ),
}


def _options(model: str) -> dict[str, Any]:
    """What the source sets otherwise than the network's class."""
    if model.startswith("tsn"):
        return dict(TSN)
    return {"drop_path": 0.2} if model == "swin3d_b" else {}


def _build(name: str, row: Row) -> Recipe:
    distill = None
    if row.teacher is not None:
        network, weights = row.teacher
        options = {"drop_path": 0.1} if "drop_path" in row.lesson else {}
        teacher = Model(name=network, num_classes=CLASSES[row.dataset], weights=weights, options=options)
        distill = Distill(teacher=teacher, statistics="batch", precision="32", **row.lesson)
    published = None
    if row.figure:
        text = protocol_text(row.clips, row.clips.test)
        published = Published(metrics=row.figure, source=README, protocol=text, dataset=row.dataset)
    start = STARTS.get(row.model, RESNET50)
    options = _options(row.model)
    return Recipe(
        name=f"reskd.{name}",
        model=Model(name=row.model, num_classes=CLASSES[row.dataset], weights=start, options=options),
        data=Data(multi_label=True, labels="one") if row.dataset in (ACTNET, FCVID) else Data(),
        clips=row.clips,
        training=row.training,
        distill=distill,
        published=published,
    )


def _recipe(name: str, row: Row) -> Callable[[], Recipe]:
    """A function that returns the recipe, with a line about it."""

    def build() -> Recipe:
        return _build(name, row)

    seen = row.clips.plan(row.clips.test).input_size
    line = f"{row.model} at {seen} pixels, {row.clips.frames} frames, {row.dataset}"
    line += f", {row.gmacs:.1f} GMACs a view"
    if row.teacher is not None:
        line += f", taught by {row.teacher[0]} at {row.clips.crop}"
    for key, value in (row.figure or {}).items():
        line += f"; published {key} {100 * value:.1f}"
    build.__doc__ = f"{line}."
    return build


RECIPES = {name: _recipe(name, row) for name, row in (PAIRS | TEACHERS | BASELINES).items()}
