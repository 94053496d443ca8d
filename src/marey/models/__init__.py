"""Networks: a clip becomes logits or features; a clip with boxes the logits of each box."""

import inspect
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn

from marey.errors import UsageError, unknown
from marey.models.csn import CSN
from marey.models.detector import SlowFastDetector, SlowOnlyDetector
from marey.models.mvit import MViT
from marey.models.nextvlad import NeXtVLAD
from marey.models.r2plus1d import R2Plus1D
from marey.models.slowfast import SlowFast
from marey.models.slowonly import SlowOnly
from marey.models.swin import Swin3D
from marey.models.tsm import TSM
from marey.models.tsn import TSN
from marey.models.uniformer import UniFormer

MVIT_DEEP: dict[str, Any] = {"frames": 32, "depth": 24, "starts": (2, 5, 21), "drop_path": 0.3}

# name -> builder(num_classes=400, **overrides); the overrides are the keyword arguments of the class
MODELS: dict[str, Callable[..., nn.Module]] = {
    "csn_ip_r50": partial(CSN, 50, "ip"),
    "csn_ip_r101": partial(CSN, 101, "ip"),
    "csn_ip_r152": partial(CSN, 152, "ip"),
    "csn_ir_r50": partial(CSN, 50, "ir"),
    "csn_ir_r101": partial(CSN, 101, "ir"),
    "csn_ir_r152": partial(CSN, 152, "ir"),
    "mvit_b_16x4": partial(MViT),
    "mvit_b_32x3": partial(MViT, **MVIT_DEEP, pool_kernel=()),
    "mvit_v2_s": partial(MViT, version=2),
    "mvit_v2_b": partial(MViT, **MVIT_DEEP, version=2),
    "nextvlad": partial(NeXtVLAD),
    "r2plus1d_r34": partial(R2Plus1D, 34),
    "r2plus1d_r152": partial(R2Plus1D, 152),
    "slowfast_r50": partial(SlowFast, 50),
    "slowfast_r101": partial(SlowFast, 101, lateral_kernel=5),
    "slowfast_r152": partial(SlowFast, 152),
    "slowfast_r101_alphaction": partial(SlowFast, 101, style="alphaction", lateral_kernel=5, dropout=0.3),
    "slowonly_r50": partial(SlowOnly, 50),
    "slowonly_r101": partial(SlowOnly, 101),
    "slowonly_r152": partial(SlowOnly, 152),
    "swin3d_t": partial(Swin3D),
    "swin3d_s": partial(Swin3D, depths=(2, 2, 18, 2), drop_path=0.1),
    "swin3d_b": partial(Swin3D, channels=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), drop_path=0.3),
    "tsm_r18": partial(TSM, 18),
    "tsm_r34": partial(TSM, 34),
    "tsm_r50": partial(TSM, 50),
    "tsm_r101": partial(TSM, 101),
    "tsm_r152": partial(TSM, 152),
    "tsn_r18": partial(TSN, 18),
    "tsn_r34": partial(TSN, 34),
    "tsn_r50": partial(TSN, 50),
    "tsn_r101": partial(TSN, 101),
    "tsn_r152": partial(TSN, 152),
    "uniformer_s": partial(UniFormer),
    "uniformer_b": partial(UniFormer, depths=(5, 8, 20, 7), drop_path=0.3),
}
# what takes boxes beside the clip, called as the recognizer whose trunk and weights it has
DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "slowfast_r50_det": partial(SlowFastDetector, 50),
    "slowfast_r101_det": partial(SlowFastDetector, 101, lateral_kernel=5),
    "slowonly_r50_det": partial(SlowOnlyDetector, 50),
    "slowonly_r101_det": partial(SlowOnlyDetector, 101),
}
NETWORKS: dict[str, Callable[..., nn.Module]] = {**MODELS, **DETECTORS}


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows, sorted, those that match the shell pattern (`*`, `?`, `[ab]`)."""
    return sorted(name for name in NETWORKS if fnmatchcase(name, pattern))


def build(name: str, num_classes: int = 400, **overrides: Any) -> nn.Module:
    """A fresh network; raises UsageError, with the nearest names, where something does not fit."""
    if name not in NETWORKS:
        raise unknown("model", name, NETWORKS)
    known = dict(inspect.signature(NETWORKS[name]).parameters)
    del known["num_classes"]
    for key, value in overrides.items():
        if key not in known:
            raise unknown(f"override of {name}", key, known, "UNKNOWN_OVERRIDE")
        default = known[key].default
        kinds = {float: (int, float), tuple: (list, tuple)}.get(type(default), (type(default),))
        if default is not None and type(value) not in kinds:
            raise UsageError("BAD_VALUE", f"{key} of {name} is {value!r}; give something like {default!r}")
    return NETWORKS[name](num_classes, **overrides)
