"""MViT: PySlowFast's files, facebookresearch/SlowFast@287ec007, MODEL_ZOO.md and projects/mvitv2, and
torchvision's copies of two of them.

Files called k400.pyth and k600.pyth there, and one on Google Drive, have the names of their networks here.
PySlowFast states no hashes. Its clips are taken by its own rules; torchvision's figures are of its own test,
whose frames are exactly a quarter of 30 per second apart, where ours are spread over the clip's whole span.

MViTv2 L, which began with ImageNet-21K, sees colours as networks of images do; its configuration on Kinetics
is of its test alone.

Left out: the reversible rev-MViT, and MMAction2's copies, whose tensors have names that are not known here.
"""

from typing import Any

import msgspec

from marey.video.preprocess import Preprocess, Protocol
from marey.weights.release import DRIVE, PYSLOWFAST, PYSLOWFAST_ZOO, TORCHVISION, Release, named

V2 = "Something-Something V2"
ZOO2 = f"{PYSLOWFAST_ZOO}mvitv2/pysf_video_models/"


def clips(frames: int, interval: int) -> Preprocess:
    """Consecutive frames, cut in training from whole ones; tested on five clips of the centre."""
    return Preprocess(
        frames=frames,
        interval=interval,
        rule="slowfast_offset",
        target_fps=30.0,
        short_side=None,
        val=Protocol(short_side=256),
        test=Protocol(clips=5, short_side=256),
        **PYSLOWFAST,
    )


def _sparse(frames: int, crop: int = 224, **fields: Any) -> Preprocess:
    """A frame from each part of the video; tested on three crops."""
    return Preprocess(
        sampling="uniform",
        frames=frames,
        rule="slowfast",
        crop=crop,
        inverse_short_side=True,
        train_crop="random",
        flip=0.0,
        test=Protocol(crops="three", short_side=crop),
        **{"train_short_side": (256, 320), **PYSLOWFAST, **fields},
    )


def _row(
    model: str,
    clips: Preprocess,
    top1: float,
    top5: float,
    url: str,
    recipe: str | None,
    dataset: str = "Kinetics-400",
    **fields: Any,
) -> Release:
    return Release(
        model=model,
        preprocess=clips,
        top1=top1,
        top5=top5,
        url=url,
        recipe=recipe,
        dataset=dataset,
        **{"source": "pyslowfast", "suffix": ".pyth", **fields},
    )


def _second(
    name: str, clips: Preprocess, top1: float, top5: float, dataset: str = "Kinetics-400", **fields: Any
) -> dict[str, Release]:
    """Version 2; there are two configurations of a name there, in folders of the data sets."""
    model = "mvit_v2_s" if "_S_" in name else "mvit_v2_b"
    folder = "SSv2_" if dataset == V2 else ""
    recipe = f"{folder}{'_'.join(name.split('_')[:3]).replace('MViT', 'MVIT')}"
    fields = {"recipe": recipe, **fields}
    return {name: _row(model, clips, top1, top5, f"{ZOO2}{name}.pyth", dataset=dataset, **fields)}


def _torchvision(name: str, model: str, top1: float, top5: float) -> dict[str, Release]:
    fields = {"source": "torchvision", "license": "BSD-3-Clause", "suffix": ".pth", "sha256": name[-8:]}
    return {name: _row(model, clips(16, 4), top1, top5, f"{TORCHVISION}{name}.pth", None, **fields)}


LARGE: dict[str, Any] = {
    "channels": 144,
    "heads": 2,
    "depth": 48,
    "starts": (2, 8, 44),
    "frames": 40,
    "crop": 312,
    "drop_path": 0.75,
}
COLOURS: dict[str, Any] = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
LARGE_CLIPS = msgspec.structs.replace(
    clips(40, 3),
    crop=312,
    val=Protocol(short_side=356),
    test=Protocol(clips=5, crops="three", short_side=312),
    **COLOURS,
)
OLD = "mvit_b_16x4", "mvit_b_32x3"
DRIVE_KEY = "194gJinVejq6A1FmySNKQ8vAN5-FOY-QL"
K400, K600 = f"{PYSLOWFAST_ZOO}mvit/k400.pyth", f"{PYSLOWFAST_ZOO}mvit/k600.pyth"
RELEASES = named(
    {
        "mvit_b_16x4_k400": _row(
            OLD[0], clips(16, 4), 78.4, 93.5, DRIVE.format(DRIVE_KEY), "MVIT_B_16x4_CONV"
        ),
        "mvit_b_32x3_k400": _row(OLD[1], clips(32, 3), 80.4, 94.8, K400, "MVIT_B_32x3_CONV"),
        "mvit_b_32x3_k600": _row(
            OLD[1], clips(32, 3), 83.9, 96.5, K600, "MVIT_B_32x3_CONV_K600", "Kinetics-600"
        ),
    }
    | _second("MViTv2_S_16x4_k400_f302660347", clips(16, 4), 81.0, 94.6)
    | _second("MViTv2_B_32x3_k400_f304025456", clips(32, 3), 82.9, 95.7)
    | _second("MViTv2_L_40x3_k400_f306903192", LARGE_CLIPS, 86.1, 97.0, recipe=None, overrides=LARGE)
    | _second("MViTv2_S_16x4_ssv2_f308341823", _sparse(16), 68.2, 91.4, V2)
    | _second("MViTv2_B_32x3_ssv2_f305803282", _sparse(32), 70.5, 92.7, V2)
    | _second(
        "MViTv2_L_40x3_ssv2_f309603968",
        _sparse(40, 312, short_side=356, train_short_side=(356, 446), **COLOURS),
        73.3,
        94.1,
        V2,
        overrides=LARGE,
    )
    | _torchvision("mvit_v1_b-dbeb1030", "mvit_b_16x4", 78.477, 93.582)
    | _torchvision("mvit_v2_s-ae3be167", "mvit_v2_s", 80.757, 94.665)
)
