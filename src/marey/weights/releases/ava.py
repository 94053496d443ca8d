"""Detectors of AVA as MMAction2 publishes them in open-mmlab/mmaction2@v0.24.1 and @4d6c9347, banks included.

The mAP is that at IoU 0.5 of the validation set, in percent, as reported. The source gives the same SlowOnly
file 19.48 in another table, and repeats of the bank's sampling differ: half a point is no contradiction.

Left out: ACRN, AVA-Kinetics and MultiSports, which need other heads or data.
"""

from typing import Any

import msgspec

from marey.video.preprocess import Preprocess
from marey.weights.release import Release, named

NL: dict[str, Any] = {"non_local": "embedded_gaussian"}
R50_4x16: dict[str, Any] = {"alpha": 8, "lateral_kernel": 5}


def clips(frames: int, interval: int) -> Preprocess:
    """Clips around key frames: random crops of 256 in training, whole frames of short side 256 in tests."""
    return Preprocess(
        frames=frames,
        interval=interval,
        sampling="key",
        jitter=True,
        short_side=256,
        train_short_side=(256, 320),
        crop=256,
        train_crop="random",
    )


def started(recognizer: Preprocess) -> Preprocess:
    """What a detector is fed that starts from a recognizer: frames and colours are the recognizer's."""
    return msgspec.structs.replace(
        clips(recognizer.frames, recognizer.interval),
        mean=recognizer.mean,
        std=recognizer.std,
        channel_order=recognizer.channel_order,
    )


def _row(model: str, clips: Preprocess, mean_ap: float, folder: str = "ava/*", **fields: Any) -> Release:
    values = {"dataset": "AVA v2.1", **fields}
    return Release(model=f"{model}_det", preprocess=clips, metrics={"map": mean_ap}, folder=folder, **values)


SPARSE, DENSE, FAST = clips(4, 16), clips(8, 8), clips(32, 2)
NEWER = {"dataset": "AVA v2.2"}
MAX = {"time_pool": "max"}

RELEASES = named(
    {
        "slowonly_kinetics_pretrained_r50_4x16x1_20e_ava_rgb_20201217-40061d5f": _row(
            "slowonly_r50", SPARSE, 20.1
        ),
        "slowonly_omnisource_pretrained_r50_4x16x1_20e_ava_rgb_20201217-0c6d2e98": _row(
            "slowonly_r50", SPARSE, 21.8
        ),
        "slowonly_nl_kinetics_pretrained_r50_4x16x1_10e_ava_rgb_20210316-959829ec": _row(
            "slowonly_r50", SPARSE, 21.75, overrides=NL
        ),
        "slowonly_nl_kinetics_pretrained_r50_8x8x1_10e_ava_rgb_20210316-5742e4dd": _row(
            "slowonly_r50", DENSE, 23.79, overrides=NL
        ),
        "slowonly_kinetics_pretrained_r101_8x8x1_20e_ava_rgb_20201217-1c9b4117": _row(
            "slowonly_r101", DENSE, 24.6
        ),
        "slowonly_omnisource_pretrained_r101_8x8x1_20e_ava_rgb_20201217-16378594": _row(
            "slowonly_r101", DENSE, 25.9
        ),
        "slowfast_kinetics_pretrained_r50_4x16x1_20e_ava_rgb_20201217-6e7c704d": _row(
            "slowfast_r50", FAST, 24.4, overrides=R50_4x16
        ),
        "slowfast_context_kinetics_pretrained_r50_4x16x1_20e_ava_rgb_20201222-f4d209c9": _row(
            "slowfast_r50", FAST, 25.4, overrides={**R50_4x16, "context": True}
        ),
        "slowfast_kinetics_pretrained_r50_8x8x1_20e_ava_rgb_20201217-ae225e97": _row(
            "slowfast_r50", FAST, 25.5
        ),
        "slowfast_kinetics_pretrained_r50_8x8x1_cosine_10e_ava22_rgb-b987b516": _row(
            "slowfast_r50", FAST, 26.1, **NEWER
        ),
        "slowfast_temporal_max_kinetics_pretrained_r50_8x8x1_cosine_10e_ava22_rgb-874e0845": _row(
            "slowfast_r50", FAST, 26.4, overrides=MAX, **NEWER
        ),
        "slowfast_temporal_max_focal_alpha3_gamma1_kinetics_pretrained_r50_8x8x1_cosine_10e_ava22_rgb-345618cd": _row(  # noqa: E501
            "slowfast_r50", FAST, 26.8, overrides=MAX, **NEWER
        ),
        "lfb_nl_kinetics_pretrained_slowonly_r50_4x16x1_20e_ava_rgb_20210224-2ae136d9": _row(
            "slowonly_r50", SPARSE, 24.11, "lfb/*", overrides={"long_term": "nl"}
        ),
        "lfb_avg_kinetics_pretrained_slowonly_r50_4x16x1_20e_ava_rgb_20210301-19c330b7": _row(
            "slowonly_r50", SPARSE, 20.17, "lfb/*", overrides={"long_term": "avg"}
        ),
        "lfb_max_kinetics_pretrained_slowonly_r50_4x16x1_20e_ava_rgb_20210301-37efcd15": _row(
            "slowonly_r50", SPARSE, 22.15, "lfb/*", overrides={"long_term": "max"}
        ),
    }
)
