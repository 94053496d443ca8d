"""Recipes found by name or file, changed by `key=value`, and refused with the nearest name."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from marey.errors import UsageError, nearest
from marey.recipes import released
from marey.recipes.schema import OF_BOXES, OF_FEATURES, AnyRecipe, BoxRecipe, Recipe, TagRecipe

# each function of these that returns a recipe is one, and so is each entry of their tables ROWS
MODULES = (
    "ava",
    "csn",
    "demo",
    "finetune",
    "lfb",
    "mvit",
    "nextvlad",
    "nightcrawler",
    "reskd",
    "slowfast",
    "slowonly",
    "swin",
    "tsm",
    "tsn",
    "uniformer",
)


def list_recipes(pattern: str = "*") -> list[str]:
    """Names `module.function` that match the shell pattern, in the whole or in the part after the dot."""
    names = [f"{module}.{name}" for module in MODULES for name in _functions(module)]
    return [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n.partition(".")[2], pattern)]


def describe_recipe(name: str) -> str:
    """First line of a recipe's docstring, or of a published one what it is and what it reached."""
    module, _, function = _full_name(name).partition(".")
    build = _functions(module)[function]
    if isinstance(build, partial):  # a row of a table
        return released.describe(build(), build.args[-1].note)
    return (inspect.getdoc(build) or "").partition("\n")[0]


def load_recipe(
    name_or_path: str | os.PathLike[str] | AnyRecipe, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> AnyRecipe:
    """A recipe by name (`tsm.tsm_r50_...`, or the part after the dot where it is unique) or from a
    `recipe.json`, with overrides such as `["training.epochs=8"]` or `{"training.epochs": 8}` applied.

    Raises UsageError: UNKNOWN_RECIPE, UNKNOWN_KEY (both with the nearest name), RECIPE_VALUE, RECIPE_FILE.
    """
    if isinstance(name_or_path, AnyRecipe):
        recipe = name_or_path
    elif str(name_or_path).endswith(".json") or os.sep in str(name_or_path):
        recipe = _read(Path(name_or_path))
    else:
        module, _, name = _full_name(str(name_or_path)).partition(".")
        build = _functions(module)[name]
        recipe = build(**_arguments(build, overrides))
    return override(recipe, overrides) if overrides else recipe


def _arguments(
    build: Callable[..., AnyRecipe], overrides: Sequence[str] | Mapping[str, Any]
) -> dict[str, Any]:
    """Overrides that a recipe wants to know from the start, because other values follow from them."""
    wanted = {"model": "model.name", "weights": "model.weights"}
    wanted |= {"teacher": "distill.teacher.name", "teacher_weights": "distill.teacher.weights"}
    given = pairs(overrides)
    names = inspect.signature(build).parameters
    return {name: given[key] for name, key in wanted.items() if name in names and key in given}


def pairs(overrides: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Overrides by key; values of `key=value` are JSON, or plain text where they are not."""
    return dict(overrides.items() if isinstance(overrides, Mapping) else map(_pair, overrides))


def override(recipe: AnyRecipe, overrides: Sequence[str] | Mapping[str, Any]) -> AnyRecipe:
    """The recipe with some fields changed; values are JSON, or plain text where they are not."""
    tree = msgspec.to_builtins(recipe)
    for key, value in pairs(overrides).items():
        _set(tree, key, msgspec.to_builtins(value))
    return _convert(tree, "", type(recipe))


def _pair(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign:
        raise UsageError("OVERRIDE_SYNTAX", f"{text!r} is not key=value, for example training.epochs=8")
    try:
        return key.strip(), msgspec.json.decode(value)
    except msgspec.DecodeError:
        return key.strip(), {"None": None, "True": True, "False": False}.get(value, value)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    node = tree
    *parents, leaf = key.split(".")
    for depth, part in enumerate(parents):
        if not isinstance(node.get(part), dict):
            raise _unknown_key(tree, key, ".".join(parents[: depth + 1]))
        node = node[part]
    free = parents[-2:] in (["model", "options"], ["teacher", "options"]) or (
        parents[:1] == ["published"] and len(parents) > 1
    )
    if leaf not in node and not free:
        raise _unknown_key(tree, key, key)
    node[leaf] = value


def _unknown_key(tree: dict[str, Any], key: str, part: str) -> UsageError:
    known = _keys(tree)
    leaf = key.rpartition(".")[2]
    same = [k for k in known if k.rpartition(".")[2] == leaf]
    close = same or get_close_matches(key, known, n=3, cutoff=0.5)
    close = close or [k for k in known if get_close_matches(leaf, [k.rpartition(".")[2]], cutoff=0.7)]
    hint = f"did you mean {' or '.join(close[:3])}?" if close else "`marey recipe NAME` prints all keys"
    return UsageError("UNKNOWN_KEY", f"a recipe has no key {part!r}; {hint}")


def _keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    rows = [(f"{prefix}{key}", value) for key, value in tree.items()]
    return [k for key, v in rows for k in (key, *(_keys(v, f"{key}.") if isinstance(v, dict) else ()))]


def _convert(tree: Any, where: str, kind: type[AnyRecipe]) -> AnyRecipe:
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise UsageError("RECIPE_VALUE", f"recipe{where}: {error}") from None


def _read(path: Path) -> AnyRecipe:
    try:
        tree = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise UsageError("RECIPE_FILE", f"cannot read the recipe {str(path)!r}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise UsageError("RECIPE_FILE", f"{str(path)!r} is not JSON: {error}") from None
    return _convert(tree, f" {path}", _kind(tree))


def _kind(tree: Any) -> type[AnyRecipe]:
    """What a file is meant to be: of boxes, of tags (for a network that takes no clips), or of clips."""
    model = tree.get("model") if isinstance(tree, dict) else None
    name = str(model.get("name")) if isinstance(model, dict) else ""
    if name.endswith(OF_BOXES) and "boxes" in tree:
        return BoxRecipe
    return TagRecipe if name in OF_FEATURES and "clips" not in tree else Recipe


def _functions(module: str) -> dict[str, Callable[..., AnyRecipe]]:
    members = vars(import_module(f"marey.recipes.{module}"))
    own: dict[str, Callable[..., AnyRecipe]] = {
        name: f
        for name, f in members.items()
        if inspect.isfunction(f)
        and not name.startswith("_")
        and inspect.signature(f).return_annotation in (Recipe, TagRecipe, BoxRecipe)
        and f.__module__ == f"marey.recipes.{module}"
        and all(p.default is not p.empty for p in inspect.signature(f).parameters.values())
    }
    rows: dict[str, released.Row] = members.get("ROWS", {})
    named: dict[str, Callable[..., AnyRecipe]] = members.get("RECIPES", {})
    return own | named | {name: partial(released.build, module, name, row) for name, row in rows.items()}


def _full_name(name: str) -> str:
    module, dot, function = name.partition(".")
    if dot and module in MODULES and function in _functions(module):
        return name
    matches = [full for full in list_recipes() if name in (full, full.partition(".")[2])]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError("UNKNOWN_RECIPE", f"{name!r} is ambiguous: {', '.join(matches)}")
    names = list_recipes()
    short = [n.partition(".")[2] for n in names]
    raise UsageError(
        "UNKNOWN_RECIPE", f"no recipe is called {name!r}; {nearest(name, names if dot else short)}"
    )
