"""TSN as MMAction2 publishes it: open-mmlab/mmaction2@v0.24.1 and @4d6c9347, configs/recognition/tsn.

Features of all frames and crops are averaged before the linear classifier, which is the mean of logits:
average="score".

Left out: optical flow and RGB difference, and ResNeXt, DenseNet, Swin, MobileOne as backbones.
"""

from typing import Any

from marey.video.preprocess import Preprocess, Protocol
from marey.video.sampling import Rule
from marey.weights.release import SSV2_PAIRS, Release, named, unresized
from marey.weights.releases import tsm
from marey.weights.releases.tsm import Cut

TEN = Protocol(frames=25, crops="ten")
THREE = Protocol(frames=25, crops="three", crop=256)
OWN, OWN_WHOLE, OWN_THREE = Protocol(), Protocol(crop=256), Protocol(crops="three", crop=256)  # of training's
TEN_TEXT, THREE_TEXT = "25 frames x 10 crops of 224", "25 frames x 3 crops of 256"


def clips(
    segments: int,
    test: Protocol = TEN,
    cut: Cut = "multiscale5",
    *,
    rule: Rule = "0.x",
    dense: bool = False,
    **more: Any,
) -> Preprocess:
    """One frame of each segment, or with `dense` at equal steps within 64 frames, at 10 places in a test."""
    return tsm.clips(segments, test, cut=cut, rule=rule, dense=dense, average="score", **more)


def _row(
    clips: Preprocess,
    top1: float | None = None,
    top5: float | None = None,
    *,
    model: str = "tsn_r50",
    dropout: float = 0.4,
    norm_eval: bool = False,
    **fields: Any,
) -> Release:
    overrides: dict[str, Any] = {"segments": clips.frames}
    overrides |= {"dropout": dropout} if dropout != 0.4 else {}
    overrides |= {"norm_eval": True} if norm_eval else {}
    return Release(model=model, overrides=overrides, preprocess=clips, top1=top1, top5=top5, **fields)


def _hvu(kind: str, mean_ap: float) -> Release:
    area = clips(8, THREE, "area")
    metrics, folder = {"map": mean_ap}, f"hvu/{kind}"
    return _row(
        area,
        model="tsn_r18",
        dataset=f"HVU {kind}",
        metrics=metrics,
        folder=folder,
        videos="short side 256",
    )


V1, V2 = "Something-Something V1", "Something-Something V2"
NEW = clips(8, rule="1.x")
RELEASES = named(
    {
        "tsn_r50_1x1x3_75e_ucf101_rgb_20201023-d85ab600": _row(
            clips(3, THREE, "area"), 83.03, 96.78, dataset="UCF101"
        ),
        "tsn_r50_video_1x1x8_100e_diving48_rgb_20210426-6dde0185": _row(
            clips(8, OWN), 71.27, 95.74, dataset="Diving48"
        ),
        "tsn_r50_video_1x1x16_100e_diving48_rgb_20210426-63c5f2f7": _row(
            clips(16, OWN), 76.75, 96.95, dataset="Diving48"
        ),
        "tsn_r50_1x1x8_50e_hmdb51_imagenet_rgb_20201123-ce6c27ed": _row(
            clips(8, OWN_WHOLE, "area"), 48.95, 80.19, dataset="HMDB51"
        ),
        "tsn_r50_1x1x8_50e_hmdb51_kinetics400_rgb_20201123-7f84701b": _row(
            clips(8, OWN_WHOLE, "area"), 56.08, 84.31, dataset="HMDB51"
        ),
        "tsn_r50_1x1x8_50e_hmdb51_mit_rgb_20201123-01526d41": _row(
            clips(8, OWN_WHOLE, "area"), 54.25, 83.86, dataset="HMDB51"
        ),
        "tsn_r50_1x1x3_100e_kinetics400_rgb_20200614-e508be42": _row(
            clips(3), 70.6, 89.26, videos="340x256", also={THREE_TEXT: (70.52, 89.39)}
        ),
        "tsn_r50_256p_1x1x3_100e_kinetics400_rgb_20200725-22592236": _row(
            clips(3),
            70.42,
            89.03,
            recipe="tsn_r50_1x1x3_100e_kinetics400_rgb",
            videos="short side 256",
            also={THREE_TEXT: (70.79, 89.42)},
        ),
        "tsn_r50_dense_1x1x5_100e_kinetics400_rgb_20200627-a063165f": _row(
            clips(5, Protocol(frames=8), "multiscale13", dense=True),
            70.18,
            89.1,
            dropout=0.5,
            videos="340x256",
        ),
        "tsn_r50_320p_1x1x3_100e_kinetics400_rgb_20200702-cc665e2a": _row(
            clips(3, THREE, "area"), 70.91, 89.51, videos="short side 320", also={TEN_TEXT: (70.44, 89.23)}
        ),
        "tsn_r50_256p_1x1x8_100e_kinetics400_rgb_20200817-883baf16": _row(
            clips(8, THREE, "area"),
            71.8,
            90.17,
            recipe="tsn_r50_320p_1x1x8_100e_kinetics400_rgb",
            videos="short side 256",
        ),
        "tsn_r50_320p_1x1x8_100e_kinetics400_rgb_20200702-ef80e3d7": _row(
            clips(8, THREE, "area"), 72.41, 90.55, videos="short side 320"
        ),
        "tsn_r50_video_320p_1x1x3_100e_kinetics400_rgb_20201014-5ae1ee79": _row(
            unresized(clips(3, THREE, "area")), 71.11, 90.04, videos="short side 320"
        ),
        "tsn_r50_dense_1x1x8_100e_kinetics400_rgb_20200606-e925e6e3": _row(
            clips(8, OWN, "multiscale13", dense=True), 70.77, 89.3, videos="340x256"
        ),
        "tsn_r50_video_1x1x8_100e_kinetics400_rgb_20200702-568cde33": _row(
            unresized(clips(8)), 71.14, 89.63, videos="short side 256"
        ),
        "tsn_r50_video_dense_1x1x8_100e_kinetics400_rgb_20200703-0f19175f": _row(
            unresized(clips(8, Protocol(crops="ten"), dense=True)), 70.4, 89.12, videos="short side 256"
        ),
        "tsn_r50_randomresizedcrop_340x256_1x1x3_100e_kinetics400_rgb_20200725-88cb325a": _row(
            clips(3, TEN, "area"),
            70.11,
            89.01,
            folder="data_benchmark/*",
            videos="340x256",
            also={THREE_TEXT: (69.95, 89.02)},
        ),
        "tsn_r50_multiscalecrop_320p_1x1x3_100e_kinetics400_rgb_20200725-9922802f": _row(
            clips(3),
            70.32,
            89.25,
            folder="data_benchmark/*",
            videos="short side 320",
            also={THREE_TEXT: (70.54, 89.39)},
        ),
        "tsn_r50_256p_randomresize_1x1x3_100e_kinetics400_rgb_20200817-ae7963ca": _row(
            clips(3, THREE, "area"),
            70.48,
            89.89,
            recipe="tsn_r50_randomresizedcrop_256p_1x1x3_100e_kinetics400_rgb",
            videos="short side 256",
            also={TEN_TEXT: (69.8, 89.06)},
        ),
        "tsn_imagenet_pretrained_r50_omni_1x1x3_kinetics400_rgb_20200926-54192355": _row(
            clips(3),
            73.6,
            91.0,
            folder="omni",
            recipe="tsn_r50_1x1x3_100e_kinetics400_rgb",
            videos="340x256, with OmniSource's web data",
        ),
        "tsn_1G1B_pretrained_r50_without_omni_1x1x3_kinetics400_rgb_20200926-c133dd49": _row(
            clips(3),
            73.1,
            90.4,
            folder="omni",
            recipe="tsn_r50_1x1x3_100e_kinetics400_rgb",
            videos="short side 320; from IG-1B",
        ),
        "tsn_1G1B_pretrained_r50_omni_1x1x3_kinetics400_rgb_20200926-2863fed0": _row(
            clips(3),
            75.7,
            91.9,
            folder="omni",
            recipe="tsn_r50_1x1x3_100e_kinetics400_rgb",
            videos="short side 320; from IG-1B, with OmniSource's web data",
        ),
        "tsn_r50_video_1x1x8_100e_kinetics600_rgb_20201015-4db3c461": _row(
            unresized(clips(8, THREE, "area")), 74.8, 92.3, dataset="Kinetics-600", videos="short side 256"
        ),
        "tsn_r50_video_1x1x8_100e_kinetics700_rgb_20201015-e381a6c7": _row(
            unresized(clips(8, THREE, "area")), 61.7, 83.6, dataset="Kinetics-700", videos="short side 256"
        ),
        "tsn_r50_1x1x8_50e_sthv1_rgb_20200618-061b9195": _row(
            clips(8, Protocol(crops="ten"), "multiscale13", flip=0.0),
            18.55,
            44.8,
            dataset=V1,
            dropout=0.5,
            norm_eval=True,
            videos="height 100",
        ),
        "tsn_r50_1x1x16_50e_sthv1_rgb_20200614-7e2fe4f1": _row(
            clips(16, Protocol(frames=8), "multiscale13"),
            15.77,
            39.85,
            dataset=V1,
            dropout=0.5,
            norm_eval=True,
            videos="height 100",
        ),
        "tsn_r50_1x1x8_50e_sthv2_rgb_20210816-1aafee8f": _row(
            clips(8, OWN_THREE, flip=0.0), 28.59, 59.56, dataset=V2, dropout=0.5, videos="height 256"
        ),
        "tsn_r50_1x1x16_50e_sthv2_rgb_20210816-5d23ac6e": _row(
            clips(16, OWN_THREE, flip=0.0), 20.89, 49.16, dataset=V2, dropout=0.5, videos="height 256"
        ),
        "tsn_r50_1x1x6_100e_mit_rgb_20200618-d512ab1b": _row(
            clips(6, OWN_THREE, scales=(1.0, 0.8), scale_gap=0),
            26.84,
            51.6,
            dataset="Moments in Time",
            videos="short side 256",
        ),
        "tsn_r101_1x1x5_50e_mmit_rgb_20200618-642f450d": _row(
            clips(5, OWN_WHOLE),
            metrics={"mmit_map": 61.09},
            model="tsn_r101",
            dataset="Multi-Moments in Time",
            dropout=0.5,
            videos="short side 256",
        ),
        "tsn_r50_320p_1x1x8_50e_activitynet_video_rgb_20210301-7f8da0c6": _row(
            clips(8, THREE, "area"),
            73.93,
            93.44,
            dataset="ActivityNet v1.3",
            dropout=0.8,
            videos="short side 320",
        ),
        "tsn_r50_320p_1x1x8_50e_activitynet_clip_rgb_20210301-c0f04a7e": _row(
            clips(8, THREE, "area"),
            76.9,
            94.47,
            dataset="ActivityNet v1.3",
            dropout=0.8,
            videos="short side 320",
        ),
        "tsn_r18_1x1x8_100e_hvu_action_rgb_20201027-011b282b": _hvu("action", 57.5),
        "tsn_r18_1x1x8_100e_hvu_scene_rgb_20201027-00e5748d": _hvu("scene", 55.2),
        "tsn_r18_1x1x8_100e_hvu_object_rgb_20201102-24a22f30": _hvu("object", 45.7),
        "tsn_r18_1x1x8_100e_hvu_event_rgb_20201027-dea8cd71": _hvu("event", 63.7),
        "tsn_r18_1x1x8_100e_hvu_concept_rgb_20201027-fc1dd8e3": _hvu("concept", 47.5),
        "tsn_r18_1x1x8_100e_hvu_attribute_rgb_20201027-0b3b49d2": _hvu("attribute", 46.1),
        "tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb_20220906-cd10898e": _row(
            clips(3, rule="1.x"), 72.83, 90.65
        ),
        "tsn_imagenet-pretrained-r50_8xb32-1x1x5-100e_kinetics400-rgb_20220906-65d68713": _row(
            clips(5, rule="1.x"), 73.8, 91.21
        ),
        "tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb_20220906-2692d16c": _row(
            NEW, 74.12, 91.34
        ),
        "tsn_imagenet-pretrained-r50_8xb32-dense-1x1x5-100e_kinetics400-rgb_20220906-dcbc6e01": _row(
            clips(5, Protocol(frames=25), "multiscale13", dense=True, rule="1.x"), 71.37, 89.67, dropout=0.5
        ),
        "tsn_imagenet-pretrained-r101_8xb32-1x1x8-100e_kinetics400-rgb_20220906-23cff032": _row(
            NEW, 75.89, 92.07, model="tsn_r101"
        ),
        "tsn_imagenet-pretrained-r50_8xb32-1x1x8-50e_sthv2-rgb_20230313-06ad7d03": _row(
            clips(8, rule="1.x", flip_labels=SSV2_PAIRS), 35.51, 67.09, dataset=V2, dropout=0.5
        ),
        "tsn_imagenet-pretrained-r50_8xb32-1x1x16-50e_sthv2-rgb_20230221-85bcc1c3": _row(
            clips(16, TEN, "multiscale13", rule="1.x", flip_labels=SSV2_PAIRS),
            36.91,
            68.77,
            dataset=V2,
            dropout=0.5,
        ),
    }
)
