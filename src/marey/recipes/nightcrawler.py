"""Nightcrawler: recognizers adapted to dark video (Andy1621/Nightcrawler@259fa5b9e6a8, second in UG2+ 2022).

    marey train exp_adapt_bn_uniformer_b32_k600 data.train=LIST data.root=DIR adapt.target=LIST adapt.root=DIR

Three kinds of recipes under the names of their folders: `exp_adapt_bn_...` learns from labelled daylight and
takes the statistics of batch norms from dark video; `exp_pseudo_stage1_...` to `stage4` also learn from
pseudo-labels (adapt.pseudo.labels=FILE, the published stage1.csv and so on) and start from the recipe before;
`exp_experts_uniformer_b32_ssv2` samples densely. `marey adapt` runs such rounds for any networks without
touching a file between them. Training and statistics see frames as they are, tests see them by gamma 0.25.

Published figures are on ARID's 6207 videos, which were also trained on without labels, and whose labels chose
the epoch. To do as they did give data.val=LIST (with full paths) and let the best epoch be kept; without
data.val the last epoch's weights stay, and no label of the target is looked at.

Not as upstream: a last batch that is not full is kept (2955 videos make 93 steps, not 92); statistics are
those of all processes together, not the first one's; RandAugment changes the cut clip, not the whole frame;
training in float16 (`training.precision=bf16` is the nearest). Of step 1 the logs show two trainings, the
second begun from the first's best weights: train twice with model.weights=FILE. UniFormer and SlowFast never
read their starting weights there, by a missing comma, in the code as published; here they do. SlowFast's is a
file of AlphAction that has no release here: put it in the folder or give model.weights=FILE. What the expert
started from is not known; its configuration names what stands here.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from marey.recipes.pyslowfast import AUGMENT, cosine
from marey.recipes.schema import Adapt, Model, Pseudo, Published, Recipe, Training
from marey.training.optim import Optimizer
from marey.video.light import Light
from marey.video.preprocess import Preprocess, Protocol
from marey.weights.release import PYSLOWFAST, protocol_text

SOURCE = "Andy1621/Nightcrawler@259fa5b9e6a8:MODEL_ZOO.md"
CLASSES = ("Drink", "Jump", "Pick", "Pour", "Push", "Run", "Sit", "Stand", "Turn", "Walk", "Wave")
GAMMA = Light(gamma=0.25, decoded=True)
GPUS, VIDEOS, LR = 4, 32, 1e-4
ROUNDS = 4


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A network of the ensemble.

    weights  what it starts from
    epochs   of every training of its own
    figures  top-1 on ARID in percent after step 1 and each round
    """

    model: str
    weights: str
    options: dict[str, Any]
    weight_decay: float
    epochs: int
    probabilities: bool = False
    figures: tuple[float, ...]


MEMBERS = {
    "uniformer_b32_k600": Member(
        model="uniformer_b", weights="uniformer_base_k600_32x4", options={"drop_path": 0.3},
        weight_decay=0.03, epochs=20, figures=(62.64, 83.50, 87.84, 89.48, 89.91),
    ),
    "uniformer_b32_ssv2": Member(
        model="uniformer_b", weights="uniformer_base_sthv2_32_prek400", options={"drop_path": 0.3},
        weight_decay=0.03, epochs=30, figures=(58.90, 81.04, 85.95, 88.74, 90.25),
    ),
    "mvit_b32_k600": Member(
        model="mvit_b_32x3", weights="mvit_b_32x3_k600", options={"drop_path": 0.3, "dropout": 0.5},
        weight_decay=0.1, epochs=20, probabilities=True, figures=(58.14, 81.68, 86.63, 88.75, 90.30),
    ),
    "sf32_k700": Member(
        model="slowfast_r101_alphaction", weights="SlowFast-ResNet101-8x8.pth", options={"dropout": 0.3},
        weight_decay=0.03, epochs=40, figures=(57.79, 80.78, 85.63, 88.59, 89.49),
    ),
}  # fmt: skip
EXPERT, EXPERT_FIGURE = "uniformer_b32_ssv2", 89.51


def clips(*, dense: bool = False, probabilities: bool = False) -> Preprocess:
    """32 frames spread over the whole video, or dense ones; tests see them brightened.

    probabilities  the network's scores were softmaxed before views were summed
    """
    view = Protocol(short_side=224, lights=(GAMMA,))
    return Preprocess(
        frames=32,
        sampling="clip" if dense else "uniform",
        interval=2 if dense else 1,
        rule="slowfast_offset",
        short_side=None,
        average="prob" if probabilities else "score",
        val=view,
        test=view,
        **PYSLOWFAST,
    )


def training(member: Member) -> Training:
    """As run.sh has it; 32 videos over four processes."""
    return Training(
        epochs=member.epochs,
        batch=VIDEOS // GPUS,
        reference_batch=VIDEOS,
        optimizer=Optimizer(
            kind="adamw", lr=LR, weight_decay=member.weight_decay, groups="vectors", clip_norm=20.0
        ),
        schedule=cosine(LR, 10, start=1e-6, end=1e-6),
        augment=AUGMENT,
        label_smoothing=0.1,
        validate_every=1,
        precise_bn=200,
    )


def _build(name: str, member: Member, weights: str, figure: float, *, stage: int, dense: bool) -> Recipe:
    seen = clips(dense=dense, probabilities=member.probabilities)
    return Recipe(
        name=f"nightcrawler.{name}",
        model=Model(
            name=member.model, num_classes=len(CLASSES), weights=weights, options=dict(member.options)
        ),
        clips=seen,
        training=training(member),
        adapt=Adapt(same=True, dropout=True, pseudo=Pseudo(ending="shorter") if stage else None),
        published=Published(
            metrics={"top1": round(figure / 100, 6)},
            source=SOURCE,
            protocol=f"{protocol_text(seen, seen.test)}, gamma 0.25",
            dataset="ARID v1.5",
        ),
    )


def _recipe(
    name: str, member: Member, weights: str, figure: float, what: str, *, stage: int, dense: bool = False
) -> Callable[[], Recipe]:
    """A function that returns the recipe, with a line about it."""

    def build() -> Recipe:
        return _build(name, member, weights, figure, stage=stage, dense=dense)

    frames = "32 frames every 2" if dense else "32 frames of the whole video"
    build.__doc__ = f"{member.model}, {frames}, {what}; published top1 {figure:.2f} on ARID, dark."
    return build


def _all() -> dict[str, Callable[[], Recipe]]:
    found: dict[str, Callable[[], Recipe]] = {}
    for key, member in MEMBERS.items():
        name, what = f"exp_adapt_bn_{key}", "daylight, statistics of dark video"
        found[name] = _recipe(name, member, member.weights, member.figures[0], what, stage=0)
    for stage in range(1, ROUNDS + 1):
        before = "exp_adapt_bn" if stage == 1 else f"exp_pseudo_stage{stage - 1}"
        for key, member in MEMBERS.items():
            name, what = f"exp_pseudo_stage{stage}_{key}", f"daylight and pseudo-labels {stage}"
            weights = f"runs/nightcrawler.{before}_{key}/1/checkpoints/best.safetensors"
            found[name] = _recipe(name, member, weights, member.figures[stage], what, stage=stage)
    name, member = f"exp_experts_{EXPERT}", MEMBERS[EXPERT]
    what = f"daylight and pseudo-labels {ROUNDS}"
    found[name] = _recipe(name, member, member.weights, EXPERT_FIGURE, what, stage=ROUNDS, dense=True)
    return found


RECIPES = _all()
