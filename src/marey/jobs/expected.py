"""What a measured figure is compared with: a published one, where both are about the same thing."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marey.classes import class_names
from marey.recipes.catalog import list_recipes, load_recipe
from marey.recipes.nextvlad import VALIDATION, YOUTUBE8M
from marey.recipes.schema import Published, Recipe, TagRecipe, clip_recipe
from marey.video.preprocess import Preprocess, Protocol
from marey.weights.published import RELEASES, find
from marey.weights.release import Release

FREE = (  # of training only
    *("dropout", "head_std", "drop_path", "norm_eval", "bn_frozen", "frozen_stages", "partial_bn"),
)
SEEN = (
    *("rule", "average", "mean", "std", "channel_order", "target_fps", "sample_range", "out_of_bound"),
    *("light", "input_antialias"),
)


def expected(
    recipe: Recipe,
    protocol: Protocol,
    classes: Sequence[str],
    checkpoint: str | os.PathLike[str] | None = None,
) -> tuple[Published | None, str]:
    """The published figures of the checkpoint, where it is a release, else of the recipe; and why there are
    none although the recipe has some: what is tested is not what they were measured on.

    classes  names in label order, or numbers where names are unknown
    """
    full = find(str(checkpoint)) or Path(str(checkpoint)).stem
    release = RELEASES.get(full)
    published = _of_release(release) if release and release.top1 else recipe.published
    if published is None:
        return None, ""
    if release and release.top1:
        original, model = release.preprocess, (release.model, release.overrides, release.num_classes)
    else:
        origin = clip_recipe(load_recipe(recipe.name)) if recipe.name in list_recipes() else recipe
        original = origin.clips
        model = (origin.model.name, origin.model.options, origin.model.num_classes)
    why = [
        *_other_network(recipe, *model),
        *_other_views(recipe.clips, protocol, original),
        *_other_classes(classes, published.dataset),
    ]
    return (None, ", ".join(why)) if why else (published, "")


def expected_tags(recipe: TagRecipe, videos: int, *, own: bool) -> tuple[Published | None, str]:
    """The same for tags: published are figures of YouTube-8M's validation set.

    videos  how many were measured
    own     their features are not YouTube-8M's
    """
    published = recipe.published
    if published is None:
        return None, ""
    origin = load_recipe(recipe.name) if recipe.name in list_recipes() else recipe
    model = origin.model
    why = _other_network(recipe, model.name, model.options, model.num_classes)
    if isinstance(origin, TagRecipe) and recipe.testing.top != origin.testing.top:
        why.append("testing.top")
    if own:
        why.append("the features")
    if published.dataset != YOUTUBE8M:
        why.append(f"the data, which were {published.dataset}")
    elif videos != VALIDATION:
        why.append(f"the videos, {videos:,} of {VALIDATION:,}")
    return (None, ", ".join(why)) if why else (published, "")


def _of_release(release: Release) -> Published:
    figures = {"top1": release.top1, "top5": release.top5, **release.metrics}
    return Published(
        metrics={key: round(value / 100, 6) for key, value in figures.items() if value is not None},
        source=release.url,
        protocol=release.protocol,
        dataset=release.dataset,
    )


def _other_network(
    recipe: Recipe | TagRecipe, name: str, options: dict[str, Any], classes: int | None
) -> list[str]:
    options = {key: _listed(value) for key, value in options.items()}
    ours = {**options, **recipe.model.options}  # what the recipe leaves open is as there
    wrong = [
        f"model.options.{key}" for key in ours if key not in FREE and _listed(ours[key]) != options.get(key)
    ]
    wrong = [key for key in wrong if key != "model.options.segments"]  # clips.frames tells
    if recipe.model.name != name:
        return ["model.name"]
    return wrong + ([] if classes in (None, recipe.model.num_classes) else ["model.num_classes"])


def _listed(value: Any) -> Any:
    """A setting as a recipe.json has it."""
    return list(value) if isinstance(value, tuple) else value


def _other_views(clips: Preprocess, protocol: Protocol, original: Preprocess) -> list[str]:
    now, then = clips.plan(protocol), original.plan(original.test)
    views = [f"the test's {key}" for key in now.__struct_fields__ if getattr(now, key) != getattr(then, key)]
    return views + [f"clips.{key}" for key in SEEN if getattr(clips, key) != getattr(original, key)]


def _other_classes(classes: Sequence[str], dataset: str) -> list[str]:
    """Names decide where both are known."""
    known = class_names(dataset)
    if known is None or all(name == str(label) for label, name in enumerate(classes)):
        return []
    same = [_plain(name) for name in classes] == [_plain(name) for name in known]
    return [] if same else [f"classes other than those of {dataset}"]


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
