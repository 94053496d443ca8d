"""Video Swin: files of its authors, of MMAction2 1.x and of torchvision, and of 2D Swin, to start from.

SwinTransformer/Video-Swin-Transformer@db018fb8, which states no hashes; open-mmlab/mmaction2@4d6c9347;
torchvision.models.video; microsoft/Swin-Transformer. Of Something-Something the authors' frames are those of
PySlowFast's rule, which is taken for their sizes too: a frame's long side may be a pixel shorter than theirs.
torchvision's figures are of its own test, whose frames are exactly half of 30 per second apart, where ours
are spread over the clip's whole span.
"""

from typing import Any

from marey.video.preprocess import Preprocess, Protocol
from marey.video.sampling import Rule
from marey.weights.release import OPENMMLAB, TORCHVISION, Release, named

STORAGE = "https://github.com/SwinTransformer/storage/releases/download/"
LARGE: dict[str, Any] = {"channels": 192, "heads": (6, 12, 24, 48)}
WIDE: dict[str, Any] = {"window": (16, 7, 7)}
T, S, B = "swin3d_t", "swin3d_s", "swin3d_b"


def clips(rule: Rule = "0.x") -> Preprocess:
    """32 frames, every second; tested on four clips x three crops of 224."""
    test = Protocol(clips=4, crops="three", short_side=224)
    return Preprocess(frames=32, interval=2, rule=rule, test=test)


SPARSE = Preprocess(
    sampling="uniform", frames=32, rule="slowfast", flip=0.0, test=Protocol(crops="three", short_side=224)
)
RESAMPLED = Preprocess(  # 15 frames per second
    frames=32, interval=2, rule="slowfast_offset", target_fps=30.0, test=Protocol(clips=12)
)


def _row(model: str, top1: float | None, top5: float | None, **fields: Any) -> Release:
    fields = {"preprocess": clips(), **fields}
    return Release(model=model, top1=top1, top5=top5, **fields)


def _authors(
    name: str, model: str, top1: float | None, top5: float | None, **fields: Any
) -> dict[str, Release]:
    url = f"{STORAGE}v1.0.4/{name}.pth"
    fields = {"source": "video-swin", "recipe": name, **fields}
    return {name: _row(model, top1, top5, url=url, **fields)}


def _torchvision(name: str, model: str, top1: float, top5: float) -> dict[str, Release]:
    url, digits = f"{TORCHVISION}{name}.pth", name[-8:]
    fields: dict[str, Any] = {"source": "torchvision", "license": "BSD-3-Clause", "preprocess": RESAMPLED}
    return {name: _row(model, top1, top5, url=url, sha256=digits, **fields)}


def _start(name: str, model: str, folder: str = f"{OPENMMLAB}v1.0/recognition/swin/") -> dict[str, Release]:
    """A 2D network; its classifier of ImageNet is not used."""
    dataset = f"ImageNet-{'22K' if name.endswith('22k') else '1K'}"
    overrides = LARGE if "large" in name else {}
    fields: dict[str, Any] = {"headless": True, "source": "swin", "license": "MIT", "overrides": overrides}
    return {name: _row(model, None, None, url=f"{folder}{name}.pth", dataset=dataset, **fields)}


NEW: dict[str, Any] = {"preprocess": clips("1.x")}
RELEASES = named(
    _authors("swin_tiny_patch244_window877_kinetics400_1k", T, 78.8, 93.6)
    | _authors("swin_small_patch244_window877_kinetics400_1k", S, 80.6, 94.5)
    | _authors("swin_base_patch244_window877_kinetics400_1k", B, 80.6, 94.6)
    | _authors("swin_base_patch244_window877_kinetics400_22k", B, 82.7, 95.5)
    | _authors("swin_base_patch244_window877_kinetics600_22k", B, 84.0, 96.5, dataset="Kinetics-600")
    | _authors("swin_base_patch244_window1677_kinetics400_22k", B, None, None, overrides=WIDE, recipe=None)
    | _authors(
        "swin_base_patch244_window1677_sthv2",
        B,
        69.6,
        92.7,
        overrides=WIDE,
        dataset="Something-Something V2",
        preprocess=SPARSE,
    )
    | {
        "swin-tiny-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb_20220930-241016b2": _row(
            T, 78.9, 93.77, **NEW
        ),
        "swin-small-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb_20220930-e91ab986": _row(
            S, 80.54, 94.46, **NEW
        ),
        "swin-base-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb_20220930-182ec6cc": _row(
            B, 80.57, 94.49, **NEW
        ),
        "swin-large-p244-w877_in22k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb_20220930-78ad8b11": _row(
            B, 83.46, 95.91, overrides=LARGE, **NEW
        ),
        "swin-large-p244-w877_in22k-pre_16xb8-amp-32x2x1-30e_kinetics700-rgb_20220930-f8d74db7": _row(
            B, 75.92, 92.72, overrides=LARGE, dataset="Kinetics-700", **NEW
        ),
        "swin-small-p244-w877_in1k-pre_32xb4-amp-32x2x1-30e_kinetics710-rgb_20230612-8e082ff1": _row(
            S, 76.9, 92.96, dataset="Kinetics-710", **NEW
        ),
    }
    | _torchvision("swin3d_t-7615ae03", T, 77.715, 93.519)
    | _torchvision("swin3d_s-da41c237", S, 79.521, 94.158)
    | _torchvision("swin3d_b_1k-24f7c7c6", B, 79.427, 94.386)
    | _torchvision("swin3d_b_22k-7c6ae6fa", B, 81.643, 95.574)
    | _start("swin_tiny_patch4_window7_224", T)
    | _start("swin_small_patch4_window7_224", S)
    | _start("swin_base_patch4_window7_224", B)
    | _start("swin_base_patch4_window7_224_22k", B, f"{STORAGE}v1.0.0/")
    | _start("swin_large_patch4_window7_224_22k", B)
)
