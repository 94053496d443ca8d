"""Networks: a clip becomes logits or features."""

import inspect
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn

from marey.errors import UsageError, unknown
from marey.models.csn import CSN
from marey.models.slowonly import SlowOnly
from marey.models.tsm import TSM
from marey.models.tsn import TSN

# name -> builder(num_classes=400, **overrides); the overrides are the keyword arguments of the class
MODELS: dict[str, Callable[..., nn.Module]] = {
    "csn_ip_r50": partial(CSN, 50, "ip"),
    "csn_ip_r101": partial(CSN, 101, "ip"),
    "csn_ip_r152": partial(CSN, 152, "ip"),
    "csn_ir_r50": partial(CSN, 50, "ir"),
    "csn_ir_r101": partial(CSN, 101, "ir"),
    "csn_ir_r152": partial(CSN, 152, "ir"),
    "slowonly_r50": partial(SlowOnly, 50),
    "slowonly_r101": partial(SlowOnly, 101),
    "tsm_r18": partial(TSM, 18),
    "tsm_r50": partial(TSM, 50),
    "tsm_r101": partial(TSM, 101),
    "tsn_r18": partial(TSN, 18),
    "tsn_r34": partial(TSN, 34),
    "tsn_r50": partial(TSN, 50),
    "tsn_r101": partial(TSN, 101),
    "tsn_r152": partial(TSN, 152),
}


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows, sorted, those that match the shell pattern (`*`, `?`, `[ab]`)."""
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def build(name: str, num_classes: int = 400, **overrides: Any) -> nn.Module:
    """A fresh network of MODELS; raises UsageError, with the nearest names, where something does not fit."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    known = dict(inspect.signature(MODELS[name]).parameters)
    del known["num_classes"]
    for key, value in overrides.items():
        if key not in known:
            raise unknown(f"override of {name}", key, known, "UNKNOWN_OVERRIDE")
        default = known[key].default
        kinds = {float: (int, float), tuple: (list, tuple)}.get(type(default), (type(default),))
        if default is not None and type(value) not in kinds:
            raise UsageError("BAD_VALUE", f"{key} of {name} is {value!r}; give something like {default!r}")
    return MODELS[name](num_classes, **overrides)
