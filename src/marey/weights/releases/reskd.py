"""The teachers of ResKD (CVMI-Lab/ResKD@c6b85a3, README.md), which are all the weights it publishes.

Its README links to a file-sharing site that programs may not fetch from, so a file has to be brought by hand:
see `Release.by_hand`. It states neither hashes nor what the teachers reach. The names here are those of the
configurations, with `reskd_` before them. Which order ActivityNet's and FCVID's classes have in the files is
not published, so these come without class names.
"""

from typing import Any

import msgspec

from marey.video.preprocess import Preprocess, Protocol
from marey.weights.release import Release, clip, named
from marey.weights.releases import swin, tsm

PAGE = "https://github.com/CVMI-Lab/ResKD#model-zoo"


def frames(segments: int, *, side: int = 256, crop: int = 224, **more: Any) -> Preprocess:
    """One frame of each of so many parts, tested as it is validated: one centre crop."""
    return tsm.clips(segments, Protocol(), short_side=side, crop=crop, **more)


def slowonly(crop: int = 224, side: int = 256) -> Preprocess:
    """8 frames, every 8th; tested on 10 clips x three crops of the training's size."""
    test = Protocol(clips=10, crops="three", short_side=crop)
    return msgspec.structs.replace(clip(8, 8, side=side, crop=crop), test=test)


def _row(model: str, clips: Preprocess, dataset: str, **overrides: Any) -> Release:
    fields: dict[str, Any] = {"source": "reskd", "url": PAGE, "by_hand": True}
    return Release(model=model, preprocess=clips, dataset=dataset, overrides=overrides, **fields)


TSM_TEST = Protocol(twice=True, crops="three", crop=256)
SSV2_CLIPS = msgspec.structs.replace(frames(8, flip=0.0), test=TSM_TEST)
TSN16: dict[str, Any] = {"segments": 16, "dropout": 0.5}
TSN8: dict[str, Any] = {"segments": 8, "dropout": 0.5}
FILES = {
    "tsn_r50_1x1x16_50e_actnet_rgb": _row("tsn_r50", frames(16), "ActivityNet v1.3", **TSN16),
    "tsm_r50_1x1x8_50e_sthv2_rgb": _row("tsm_r50", SSV2_CLIPS, "Something-Something V2"),
    "tsn_r152_1x1x16_50e_actnet_rgb": _row("tsn_r152", frames(16), "ActivityNet v1.3", **TSN16),
    "tsn_r152_1x1x8_50e_minik_rgb": _row("tsn_r152", frames(8), "Mini-Kinetics", **TSN8),
    "tsn_r152_1x1x16_50e_fcvid_rgb": _row("tsn_r152", frames(16), "FCVID", **TSN16),
    "slowonly_r50_8x8x1_150e_k400_rgb": _row("slowonly_r50", slowonly(), "Kinetics-400"),
    "swin_base_32x2x1_50e_k400": _row("swin3d_b", swin.clips(), "Kinetics-400"),
}
RELEASES = named({f"reskd_{name}": msgspec.structs.replace(row, recipe=name) for name, row in FILES.items()})
