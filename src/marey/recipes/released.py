"""Published recipes as tables: what the release of a recipe says stands there; here, how it was trained.

Networks, clips, test protocols and figures are those of `marey.weights.published.RELEASES`.
"""

from typing import Any, Literal

import msgspec

from marey.recipes.schema import BoxRecipe, Model, Published, Recipe, Training
from marey.training.optim import Optimizer, Schedule
from marey.weights.published import RELEASES, Release
from marey.weights.release import STAMP, protocol_text

SOURCES = {  # by the release's source, or MMAction2's generation
    "0.x": "open-mmlab/mmaction2@v0.24.1:configs/recognition/{}/README.md",
    "1.x": "open-mmlab/mmaction2@4d6c9347:configs/recognition/{}/README.md",
    "pyslowfast": "facebookresearch/SlowFast@287ec007:MODEL_ZOO.md",
    "uniformer": "Sense-X/UniFormer@52a0415e:video_classification/README.md",
    "video-swin": "SwinTransformer/Video-Swin-Transformer@db018fb8:README.md",
}
RESNET50, RESNET50_V2 = "resnet50-0676ba61", "resnet50-11ad3fa6"  # ImageNet, torchvision's first and second
RESNET101, RESNET101_V2 = "resnet101-63fe2227", "resnet101-cd907fc2"
RESNET152 = "resnet152-394f9c45"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A published configuration, as far as its release does not state it.

    training  how the network was trained
    weights   what it started from; None: from scratch
    release   name of the release; None: the first with the recipe's name
    figure    which of the release's other figures (`also`) belong to this recipe; None: the main ones
    figures   figures in percent by name, where the release's are those of another training
    clips     fields of the release's preprocessing that differ
    options   options of the release's network that differ
    note      what else to know
    """

    training: Training
    weights: str | None = None
    release: str | None = None
    figure: str | None = None
    figures: dict[str, float] | None = None
    clips: dict[str, Any] = {}
    options: dict[str, Any] = {}
    note: str = ""


def build(family: str, name: str, row: Row) -> Recipe:
    """The complete recipe of a row; the family is the module whose table it stands in."""
    release = find_release(name, row)
    clips = msgspec.structs.replace(release.preprocess, **row.clips)
    top1, top5 = release.also[row.figure] if row.figure else (release.top1, release.top5)
    figures = row.figures or {"top1": top1, "top5": top5} | ({} if row.figure else release.metrics)
    return Recipe(
        name=f"{family}.{name}",
        model=Model(
            name=release.model,
            num_classes=release.num_classes,
            weights=row.weights,
            options={key: _plain(value) for key, value in {**release.overrides, **row.options}.items()},
        ),
        clips=clips,
        training=row.training,
        published=Published(
            metrics={key: round(value / 100, 6) for key, value in figures.items() if value is not None},
            source=SOURCES[release.source if release.source in SOURCES else clips.rule].format(family),
            protocol=protocol_text(clips, clips.test),
            dataset=release.dataset,
        ),
    )


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def find_release(name: str, row: Row) -> Release:
    """The release that a row builds on."""
    if row.release is not None:
        return RELEASES[row.release]
    return next(release for release in RELEASES.values() if release.recipe == name)


def describe(recipe: Recipe | BoxRecipe, note: str = "") -> str:
    """A line on a recipe of a table: what is trained on what, and the published result."""
    published, clips = recipe.published, recipe.clips
    if published is None:
        return note
    start = f"from {STAMP.sub('', recipe.model.weights)}" if recipe.model.weights else "from scratch"
    frames = f"{clips.frames} frames" + (f" every {clips.interval}" if clips.interval > 1 else "")
    non_local = "non-local blocks" if "non_local" in recipe.model.options else ""
    dense = "dense" if clips.sampling == "dense" else ""
    parts = (recipe.model.name, non_local, frames, dense, published.dataset, start)
    figures = ", ".join(f"{key} {100 * value:.2f}" for key, value in published.metrics.items())
    line = f"{', '.join(filter(None, parts))}; published {figures} on {published.protocol}."
    return f"{line} {note}".rstrip()


def sgd(
    epochs: int,
    batch: int,
    lr: float,
    schedule: Schedule,
    *,
    reference: int | None = None,
    decay: float = 1e-4,
    clip: float = 40.0,
    groups: Literal["all", "tsm"] = "all",
) -> Training:
    """SGD with momentum 0.9; `reference` clips an update are meant, 0.x: eight processes of `batch`."""
    return Training(
        epochs=epochs,
        batch=batch,
        reference_batch=8 * batch if reference is None else reference,
        optimizer=Optimizer(lr=lr, weight_decay=decay, clip_norm=clip, groups=groups),
        schedule=schedule,
        validate_every=5,
    )


def steps(*milestones: int, warmup: int = 0, rule: Literal["0.x", "1.x"] = "0.x") -> Schedule:
    """A tenth at each milestone; 0.x warms up with every iteration, 1.x with every epoch."""
    return Schedule(kind="step", milestones=milestones, warmup_epochs=warmup, **_warmup(rule))


def cosine(warmup: int = 0, *, rule: Literal["0.x", "1.x"] = "0.x", smooth: bool = False) -> Schedule:
    """Down to 0 at the end, in 1.x from the end of the warm-up on; smooth: with every iteration."""
    return Schedule(
        kind="cosine",
        per="iteration" if smooth else "epoch",
        cosine_from=warmup if rule == "1.x" else 0,
        warmup_epochs=warmup,
        **_warmup(rule),
    )


def _warmup(rule: Literal["0.x", "1.x"]) -> dict[str, Any]:
    return {"warmup_per": "epoch", "warmup_rule": "1.x"} if rule == "1.x" else {}
