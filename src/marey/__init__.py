"""Marey: train, evaluate and run video models on today's PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marey.errors import MareyError as MareyError
    from marey.jobs.evaluate import test as test
    from marey.jobs.predict import predict as predict
    from marey.jobs.train import train as train
    from marey.models import list_models as list_models
    from marey.recipes.catalog import list_recipes as list_recipes
    from marey.recipes.catalog import load_recipe as load_recipe
    from marey.video.preprocess import Preprocess as Preprocess
    from marey.video.reader import read_video as read_video
    from marey.weights.create import create_model as create_model
    from marey.weights.load import load_weights as load_weights

__version__ = "0.1.0.dev0"

_HOMES = {
    "MareyError": "marey.errors",
    "Preprocess": "marey.video.preprocess",
    "create_model": "marey.weights.create",
    "list_models": "marey.models",
    "list_recipes": "marey.recipes.catalog",
    "load_recipe": "marey.recipes.catalog",
    "load_weights": "marey.weights.load",
    "predict": "marey.jobs.predict",
    "read_video": "marey.video.reader",
    "test": "marey.jobs.evaluate",
    "train": "marey.jobs.train",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `marey --help` needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'marey' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return [*__all__, "__version__"]
