"""SlowOnly as MMAction2 publishes it in open-mmlab/mmaction2@v0.24.1 and @4d6c9347.

Left out: optical flow, and `slowonly_r50-in1k-pre-nl-embedded-gaussian_8xb16-8x8x1-...`, whose file name
carries the hash of another file.
"""

from typing import Any

from marey.video.preprocess import Preprocess
from marey.weights.release import JESTER_PAIRS, Release, clip, named, unresized

OLD_4x16, OLD_8x8, OLD_8x4 = clip(4, 16), clip(8, 8), clip(8, 4)
NEW_4x16, NEW_8x8 = clip(4, 16, "1.x"), clip(8, 8, "1.x")
NL = {"non_local": "embedded_gaussian"}


def _row(
    clips: Preprocess,
    top1: float,
    top5: float | None = None,
    *,
    model: str = "slowonly_r50",
    **fields: Any,
) -> Release:
    return Release(model=model, preprocess=clips, top1=top1, top5=top5, **fields)


RELEASES = named(
    {
        "slowonly_r50_256p_4x16x1_256e_kinetics400_rgb_20200820-bea7701f": _row(
            OLD_4x16,
            72.76,
            90.51,
            recipe="slowonly_r50_4x16x1_256e_kinetics400_rgb",
            videos="short side 256",
        ),
        "slowonly_r50_video_320p_4x16x1_256e_kinetics400_rgb_20201014-c9cdc656": _row(
            OLD_4x16,
            72.9,
            90.82,
            recipe="slowonly_r50_video_4x16x1_256e_kinetics400_rgb",
            videos="short side 320",
        ),
        "slowonly_r50_256p_8x8x1_256e_kinetics400_rgb_20200820-75851a7d": _row(
            OLD_8x8, 74.42, 91.49, recipe="slowonly_r50_8x8x1_256e_kinetics400_rgb", videos="short side 256"
        ),
        "slowonly_r50_4x16x1_256e_kinetics400_rgb_20200704-a69556c6": _row(
            OLD_4x16, 73.02, 90.77, videos="short side 320"
        ),
        "slowonly_r50_8x8x1_256e_kinetics400_rgb_20200703-a79c555a": _row(
            OLD_8x8, 74.93, 91.92, videos="short side 320"
        ),
        "slowonly_imagenet_pretrained_r50_4x16x1_150e_kinetics400_rgb_20200912-1e8fc736": _row(
            OLD_4x16, 73.39, 91.12, videos="short side 320"
        ),
        "slowonly_imagenet_pretrained_r50_8x8x1_150e_kinetics400_rgb_20200912-3f9ce182": _row(
            OLD_8x8, 75.55, 92.04, videos="short side 320"
        ),
        "slowonly_nl_embedded_gaussian_r50_4x16x1_150e_kinetics400_rgb_20210308-0d6e5a69": _row(
            OLD_4x16, 74.54, 91.73, overrides=NL, videos="short side 320"
        ),
        "slowonly_nl_embedded_gaussian_r50_8x8x1_150e_kinetics400_rgb_20210308-e8dd9e82": _row(
            OLD_8x8, 76.07, 92.42, overrides=NL, videos="short side 320"
        ),
        "slowonly_r50_randomresizedcrop_340x256_4x16x1_256e_kinetics400_rgb_20200803-dadca1a3": _row(
            OLD_4x16, 71.61, 90.05, folder="data_benchmark/*", videos="340x256"
        ),
        "slowonly_r50_omni_4x16x1_kinetics400_rgb_20200926-51b1f7ea": _row(
            OLD_4x16,
            76.8,
            92.5,
            folder="omni",
            recipe="slowonly_r50_4x16x1_256e_kinetics400_rgb",
            videos="with OmniSource's web data",
        ),
        "slowonly_r101_without_omni_8x8x1_kinetics400_rgb_20200926-0c730aef": _row(
            OLD_8x8,
            76.5,
            92.7,
            model="slowonly_r101",
            folder="omni",
            recipe="slowonly_r101_8x8x1_196e_kinetics400_rgb",
        ),
        "slowonly_r101_omni_8x8x1_kinetics400_rgb_20200926-b5dbb701": _row(
            OLD_8x8,
            80.4,
            94.4,
            model="slowonly_r101",
            folder="omni",
            recipe="slowonly_r101_8x8x1_196e_kinetics400_rgb",
            videos="with OmniSource's web data",
        ),
        "slowonly_r50_video_8x8x1_256e_kinetics600_rgb_20201015-81e5153e": _row(
            unresized(OLD_8x8), 77.5, 93.7, dataset="Kinetics-600", videos="short side 256"
        ),
        "slowonly_r50_video_8x8x1_256e_kinetics700_rgb_20201015-9250f662": _row(
            unresized(OLD_8x8), 65.0, 86.1, dataset="Kinetics-700", videos="short side 256"
        ),
        "slowonly_imagenet_pretrained_r50_4x16x1_120e_gym99_rgb_20201111-a9c34b54": _row(
            OLD_4x16, 79.3, metrics={"mean_class": 70.2}, dataset="GYM99", videos="short side 256"
        ),
        "slowonly_imagenet_pretrained_r50_8x8x1_64e_jester_rgb-b56a5389": _row(
            unresized(clip(8, 4, flip_labels=JESTER_PAIRS)), 97.2, dataset="Jester", videos="height 100"
        ),
        "slowonly_imagenet_pretrained_r50_8x4x1_64e_hmdb51_rgb_20210630-16faeb6a": _row(
            OLD_8x4, 37.52, 71.50, dataset="HMDB51"
        ),
        "slowonly_k400_pretrained_r50_8x4x1_40e_hmdb51_rgb_20210630-cee5f725": _row(
            OLD_8x4, 65.95, 91.05, dataset="HMDB51"
        ),
        "slowonly_imagenet_pretrained_r50_8x4x1_64e_ucf101_rgb_20210630-181e1661": _row(
            OLD_8x4, 71.35, 89.35, dataset="UCF101"
        ),
        "slowonly_k400_pretrained_r50_8x4x1_40e_ucf101_rgb_20210630-ee8c850f": _row(
            OLD_8x4, 92.78, 99.42, dataset="UCF101"
        ),
        "slowonly_imagenet_pretrained_r50_8x4x1_64e_sthv1_rgb_20211202-d034ff12": _row(
            clip(8, 4, side=128, crop=112), 47.76, 77.49, dataset="Something-Something V1"
        ),
        "slowonly_r50_4x16x1_256e_8xb16_kinetics400-rgb_20220901-f6a40d08": _row(
            NEW_4x16,
            72.97,
            90.88,
            recipe="slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb",
            folder="slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb",
        ),
        "slowonly_r50_8xb16-8x8x1-256e_kinetics400-rgb_20220901-2132fc87": _row(NEW_8x8, 75.15, 92.11),
        "slowonly_r101_8xb16-8x8x1-196e_kinetics400-rgb_20220901-e6281431": _row(
            NEW_8x8, 76.59, 92.8, model="slowonly_r101"
        ),
        "slowonly_imagenet-pretrained-r50_8xb16-4x16x1-steplr-150e_kinetics400-rgb_20220901-e7b65fad": _row(
            NEW_4x16, 75.12, 91.72
        ),
        "slowonly_imagenet-pretrained-r50_8xb16-8x8x1-steplr-150e_kinetics400-rgb_20220901-df42dc84": _row(
            NEW_8x8, 76.45, 92.55
        ),
        "slowonly_r50-in1k-pre-nl-embedded-gaussian_8xb16-4x16x1-steplr-150e_kinetics400-rgb_20220901-cf739c75": _row(  # noqa: E501
            NEW_4x16, 75.07, 91.69, overrides=NL
        ),
        "slowonly_imagenet-pretrained-r50_16xb16-4x16x1-steplr-150e_kinetics700-rgb_20221013-98b1b0a7": _row(
            NEW_4x16, 65.52, 86.39, dataset="Kinetics-700"
        ),
        "slowonly_imagenet-pretrained-r50_16xb16-8x8x1-steplr-150e_kinetics700-rgb_20221013-15b93b10": _row(
            NEW_8x8, 67.67, 87.8, dataset="Kinetics-700"
        ),
        "slowonly_imagenet-pretrained-r50_32xb8-8x8x1-steplr-150e_kinetics710-rgb_20230612-12ce977c": _row(
            NEW_8x8, 72.39, 90.6, dataset="Kinetics-710"
        ),
        "slowonly_imagenet-pretrained-r50_16xb16-4x16x1-steplr-150e_kinetics700-rgb_20220901-f73b3e89": _row(
            NEW_4x16,
            65.18,
            86.05,
            dataset="Kinetics-700",
            folder="slowonly_imagenet-pretrained-r50_8xb16-4x16x1-steplr-150e_kinetics700-rgb",
            videos="short side 320",
        ),
        "slowonly_imagenet-pretrained-r50_16xb16-8x8x1-steplr-150e_kinetics700-rgb_20220901-4098e1eb": _row(
            NEW_8x8,
            66.93,
            87.47,
            dataset="Kinetics-700",
            folder="slowonly_imagenet-pretrained-r50_8xb16-8x8x1-steplr-150e_kinetics700-rgb",
            videos="short side 320",
        ),
    }
)
