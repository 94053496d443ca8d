"""TSM as MMAction2 publishes it: open-mmlab/mmaction2@v0.24.1 and @4d6c9347, configs/recognition/tsm.

On Something-Something and Jester two accuracies are reported: "accurate", on twice the clips and three crops,
which is the test protocol here, and "efficient", on one centre crop, under `also`.

Left out: optical flow, and MobileNetV2 and MobileOne as backbones. Of trainings with image augmentation
(randaugment, augmix) or blending (mixup, cutmix) the files are here, but not these parts of the training.
"""

from typing import Any, Literal

from marey.video.preprocess import Preprocess, Protocol
from marey.video.sampling import Rule
from marey.weights.release import JESTER_PAIRS, SSV1_PAIRS, SSV2_PAIRS, Release, named, unresized

ONE, TEN = Protocol(), Protocol(crops="ten")
TWICE = Protocol(twice=True, crops="three", crop=256)
V1, V2 = "Something-Something V1", "Something-Something V2"
Cut = Literal["area", "multiscale5", "multiscale13"]


def clips(
    segments: int = 8,
    test: Protocol = ONE,
    *,
    cut: Cut = "multiscale13",
    rule: Rule = "0.x",
    dense: bool = False,
    **more: Any,
) -> Preprocess:
    """One frame of each segment, or with `dense` at equal steps within 64 frames, at 10 places in a test."""
    return Preprocess(
        sampling="dense" if dense else "segments",
        frames=segments,
        rule=rule,
        train_crop=cut,
        test=test,
        **more,
    )


def _row(
    clips: Preprocess, top1: float, top5: float | None = None, *, model: str = "tsm_r50", **fields: Any
) -> Release:
    overrides = {"segments": clips.frames, **fields.pop("overrides", {})}
    return Release(model=model, overrides=overrides, preprocess=clips, top1=top1, top5=top5, **fields)


def _two(
    clips: Preprocess, efficient: tuple[float, float], accurate: tuple[float, float], **fields: Any
) -> Release:
    also = {f"{clips.frames} frames x 1 crop of 224": efficient}
    return _row(clips, *accurate, also=also, **fields)


def _of(recipe: str) -> dict[str, str]:
    """The file lies in the folder of a recipe that has another name."""
    return {"recipe": recipe, "folder": recipe}


NL = {kind: {"non_local": kind} for kind in ("embedded_gaussian", "gaussian", "dot_product")}
STILL, STILL_16 = clips(8, TWICE, flip=0.0), clips(16, TWICE, flip=0.0)  # a mirror would change the label
NEW, NEW_16 = clips(8, TEN, rule="1.x"), clips(16, TEN, rule="1.x")
LOW = {"dataset": V1, "videos": "height 100"}
HIGH = {"dataset": V2, "videos": "height 256"}
RELEASES = named(
    {
        "tsm_r50_1x1x8_50e_kinetics400_rgb_20200607-af7fb746": _row(clips(), 70.24, 89.56, videos="340x256"),
        "tsm_r50_256p_1x1x8_50e_kinetics400_rgb_20200726-020785e2": _row(
            clips(), 70.59, 89.52, recipe="tsm_r50_1x1x8_50e_kinetics400_rgb", videos="short side 256"
        ),
        "tsm_r50_1x1x8_50e_kinetics400_rgb_20210701-68d582b4": _row(
            clips(), 70.73, 89.81, videos="short side 320"
        ),
        "tsm_r50_1x1x8_100e_kinetics400_rgb_20210701-7ff22268": _row(
            clips(), 71.9, 90.03, videos="short side 320"
        ),
        "tsm_r50_gpu_normalize_1x1x8_50e_kinetics400_rgb_20210219-bf96e6cc": _row(
            clips(), 70.48, 89.4, videos="short side 256"
        ),
        "tsm_r50_video_1x1x8_100e_kinetics400_rgb_20200702-a77f4328": _row(
            clips(), 70.25, 89.66, recipe="tsm_r50_video_1x1x8_50e_kinetics400_rgb", videos="short side 256"
        ),
        "tsm_r50_dense_1x1x8_50e_kinetics400_rgb_20210701-a54ff3d3": _row(
            clips(8, TEN, dense=True), 73.46, 90.84, videos="short side 320"
        ),
        "tsm_r50_dense_1x1x8_100e_kinetics400_rgb_20210701-e3e5e97f": _row(
            clips(8, TEN, dense=True), 74.55, 91.74, videos="short side 320"
        ),
        "tsm_r50_340x256_1x1x16_50e_kinetics400_rgb_20201011-2f27f229": _row(
            clips(16, TEN),
            72.09,
            90.37,
            **_of("tsm_r50_1x1x16_50e_kinetics400_rgb"),
            videos="340x256",
        ),
        "tsm_r50_256p_1x1x16_50e_kinetics400_rgb_20201010-85645c2a": _row(
            clips(16, TEN),
            71.89,
            90.73,
            recipe="tsm_r50_1x1x16_50e_kinetics400_rgb",
            videos="short side 256",
        ),
        "tsm_r50_1x1x16_100e_kinetics400_rgb_20210701-41ac92b9": _row(
            clips(16, TEN), 72.8, 90.75, videos="short side 320"
        ),
        "tsm_nl_embedded_gaussian_r50_1x1x8_50e_kinetics400_rgb_20200724-f00f1336": _row(
            clips(), 72.03, 90.25, overrides=NL["embedded_gaussian"], videos="short side 320"
        ),
        "tsm_nl_gaussian_r50_1x1x8_50e_kinetics400_rgb_20200816-b93fd297": _row(
            clips(), 70.7, 89.9, overrides=NL["gaussian"], videos="short side 320"
        ),
        "tsm_nl_dot_product_r50_1x1x8_50e_kinetics400_rgb_20200724-d8ad84d2": _row(
            clips(), 71.6, 90.34, overrides=NL["dot_product"], videos="short side 320"
        ),
        # the source lists this file, by its name of 50 epochs, with the figures of 100 epochs
        "tsm_r50_1x1x16_50e_kinetics400_rgb_20210701-7c0c5d54": _row(
            clips(16, TEN),
            72.8,
            90.75,
            recipe="tsm_r50_1x1x16_100e_kinetics400_rgb",
            videos="short side 320",
        ),
        "tsm_r50_video_1x1x8_50e_diving48_rgb_20210426-aba5aa3d": _row(
            clips(), 75.99, 97.16, dataset="Diving48"
        ),
        "tsm_r50_video_1x1x16_50e_diving48_rgb_20210426-aa9631c0": _row(
            clips(16), 81.62, 97.66, dataset="Diving48"
        ),
        "tsm_r50_1x1x8_50e_sthv1_rgb_20210203-01dce462": _two(STILL, (45.58, 75.02), (47.70, 76.12), **LOW),
        "tsm_r50_flip_1x1x8_50e_sthv1_rgb_20210203-12596f16": _two(
            clips(8, TWICE, flip_labels=SSV1_PAIRS), (47.10, 76.02), (48.51, 77.56), **LOW
        ),
        "tsm_r50_randaugment_1x1x8_50e_sthv1_rgb_20210324-481268d9": _two(
            STILL, (47.16, 76.07), (48.90, 77.92), **LOW
        ),
        "tsm_r50_ptv_randaugment_1x1x8_50e_sthv1_rgb-ee93e5e3": _two(
            STILL, (47.65, 76.67), (48.66, 77.41), **LOW
        ),
        "tsm_r50_ptv_augmix_1x1x8_50e_sthv1_rgb-4f4f4740": _two(STILL, (46.26, 75.92), (47.68, 76.49), **LOW),
        "tsm_r50_flip_randaugment_1x1x8_50e_sthv1_rgb_20210324-76937692": _two(
            clips(8, TWICE, flip_labels=SSV1_PAIRS), (47.85, 76.78), (50.31, 78.18), **LOW
        ),
        "tsm_r50_1x1x16_50e_sthv1_rgb_20211202-b922e5d2": _two(
            STILL_16, (47.77, 76.82), (49.03, 77.83), **LOW
        ),
        "tsm_r101_1x1x8_50e_sthv1_rgb_20211202-49970a5b": _two(
            STILL, (46.09, 75.41), (48.59, 77.10), model="tsm_r101", **LOW
        ),
        "tsm_r50_256h_1x1x8_50e_sthv2_rgb_20210816-032aa4da": _two(
            STILL, (59.11, 85.39), (61.82, 86.80), **_of("tsm_r50_1x1x8_50e_sthv2_rgb"), **HIGH
        ),
        "tsm_r50_256h_1x1x16_50e_sthv2_rgb_20210331-0a45549c": _two(
            STILL_16, (61.06, 86.66), (63.19, 87.93), **_of("tsm_r50_1x1x16_50e_sthv2_rgb"), **HIGH
        ),
        "tsm_r101_256h_1x1x8_50e_sthv2_rgb_20210401-df97f3e1": _two(
            STILL,
            (60.88, 86.56),
            (63.84, 88.30),
            model="tsm_r101",
            **_of("tsm_r101_1x1x8_50e_sthv2_rgb"),
            **HIGH,
        ),
        "tsm_r50_mixup_1x1x8_50e_sthv1_rgb-9eca48e5": _two(STILL, (46.35, 75.07), (48.49, 76.88), **LOW),
        "tsm_r50_cutmix_1x1x8_50e_sthv1_rgb-34934615": _two(STILL, (45.92, 75.23), (47.46, 76.71), **LOW),
        "tsm_r50_1x1x8_50e_jester_rgb-c799267e": _row(
            unresized(clips(8, TWICE, cut="area", flip_labels=JESTER_PAIRS)),
            97.2,
            also={"8 frames x 1 crop of 224": (96.5, None)},
            dataset="Jester",
            videos="height 100",
        ),
        "tsm_k400_pretrained_r50_1x1x8_25e_hmdb51_rgb_20210630-10c74ee5": _row(
            clips(8, flip=0.0), 72.68, 92.03, dataset="HMDB51"
        ),
        "tsm_k400_pretrained_r50_1x1x16_25e_hmdb51_rgb_20210630-4785548e": _row(
            clips(16, flip=0.0), 74.77, 93.86, dataset="HMDB51"
        ),
        "tsm_k400_pretrained_r50_1x1x8_25e_ucf101_rgb_20210630-1fae312b": _row(
            clips(8, flip=0.0), 94.50, 99.58, dataset="UCF101"
        ),
        "tsm_k400_pretrained_r50_1x1x16_25e_ucf101_rgb_20210630-8df9c358": _row(
            clips(16, flip=0.0), 94.58, 99.37, dataset="UCF101"
        ),
        "tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb_20220831-64d69186": _row(
            NEW, 73.18, 90.56
        ),
        "tsm_imagenet-pretrained-r50_8xb16-1x1x8-100e_kinetics400-rgb_20220831-a6db1e5d": _row(
            NEW, 73.22, 90.22
        ),
        "tsm_imagenet-pretrained-r50_8xb16-1x1x16-50e_kinetics400-rgb_20220831-042b1748": _row(
            NEW_16, 75.12, 91.55
        ),
        "tsm_imagenet-pretrained-r50_8xb16-dense-1x1x8-50e_kinetics400-rgb_20220831-f55d3c2b": _row(
            clips(8, TEN, rule="1.x", dense=True), 73.38, 90.78
        ),
        "tsm_imagenet-pretrained-r50-nl-dot-product_8xb16-1x1x8-50e_kinetics400-rgb_20220831-108bfde5": _row(
            NEW, 74.49, 91.15, overrides=NL["dot_product"]
        ),
        "tsm_imagenet-pretrained-r50-nl-gaussian_8xb16-1x1x8-50e_kinetics400-rgb_20220831-7e54dacf": _row(
            NEW, 73.66, 90.99, overrides=NL["gaussian"]
        ),
        "tsm_imagenet-pretrained-r50-nl-embedded-gaussian_8xb16-1x1x8-50e_kinetics400-rgb_20220831-35eddb57": _row(  # noqa: E501
            NEW, 74.34, 91.23, overrides=NL["embedded_gaussian"]
        ),
        "tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_sthv2-rgb_20230317-be0fc26e": _row(
            clips(8, TWICE, rule="1.x", flip_labels=SSV2_PAIRS), 62.72, 87.7, dataset=V2
        ),
        "tsm_imagenet-pretrained-r50_8xb16-1x1x16-50e_sthv2-rgb_20230317-ec6696ad": _row(
            clips(16, TWICE, rule="1.x", flip_labels=SSV2_PAIRS), 64.16, 88.61, dataset=V2
        ),
        "tsm_imagenet-pretrained-r101_8xb16-1x1x8-50e_sthv2-rgb_20230320-efcc0d1b": _row(
            clips(8, TWICE, rule="1.x", flip_labels=SSV2_PAIRS),
            63.7,
            88.28,
            model="tsm_r101",
            dataset=V2,
        ),
    }
)
