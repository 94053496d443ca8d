"""TSN as MMAction2 publishes it, in 0.x (names with `_`) and 1.x (names with `-`).

    marey train tsn_r50_1x1x3_100e_kinetics400_rgb data.train=LIST data.val=LIST

0.x states its rates for eight processes. Tests average the features of all frames and crops, which for a
linear classifier is the mean of the views' logits.

Left out: ResNeXt, DenseNet, Swin and MobileOne; HVU and Multi-Moments in Time, whose losses have factors of
their own; trainings on OmniSource's web data and from IG-1B, of which only weights were published.
"""

from marey.recipes.released import RESNET50, RESNET50_V2, RESNET101_V2, Row, sgd, steps
from marey.recipes.schema import Training
from marey.training.optim import Schedule

LATE, HALF = steps(40, 80), steps(20, 40)
WIDE, NARROW = sgd(100, 32, 0.01, LATE), sgd(100, 12, 0.00375, LATE)
HMDB51 = sgd(50, 32, 0.025, HALF)
ACTIVITYNET = sgd(50, 8, 0.001, HALF)
ACTIVITYNET_START = "tsn_r50_320p_1x1x8_100e_kinetics400_rgb_20200702-ef80e3d7"
STHV_1X = sgd(50, 32, 0.01, HALF)


def _from(training: Training, weights: str = RESNET50, *, release: str | None = None, note: str = "") -> Row:
    return Row(training=training, weights=weights, release=release, note=note)


ROWS = {
    "tsn_r50_1x1x3_75e_ucf101_rgb": _from(sgd(75, 32, 0.00128, Schedule(kind="constant"), decay=5e-4)),
    "tsn_r50_video_1x1x8_100e_diving48_rgb": _from(sgd(100, 8, 0.0025, LATE)),
    "tsn_r50_video_1x1x16_100e_diving48_rgb": _from(sgd(100, 4, 0.00125, LATE)),
    "tsn_r50_1x1x8_50e_hmdb51_imagenet_rgb": _from(HMDB51),
    "tsn_r50_1x1x8_50e_hmdb51_kinetics400_rgb": _from(
        HMDB51, "tsn_r50_256p_1x1x8_100e_kinetics400_rgb_20200817-883baf16"
    ),
    "tsn_r50_1x1x8_50e_hmdb51_mit_rgb": _from(
        HMDB51,
        "tsn_r50_1x1x6_100e_mit_rgb_20200618-d512ab1b",
        note="Its configuration states no batch; this is its siblings'.",
    ),
    "tsn_r50_1x1x3_100e_kinetics400_rgb": _from(WIDE),
    "tsn_r50_dense_1x1x5_100e_kinetics400_rgb": _from(sgd(100, 16, 0.03, LATE, clip=20.0)),
    "tsn_r50_320p_1x1x3_100e_kinetics400_rgb": _from(WIDE),
    "tsn_r50_320p_1x1x8_100e_kinetics400_rgb": _from(NARROW),
    "tsn_r50_video_320p_1x1x3_100e_kinetics400_rgb": _from(WIDE),
    "tsn_r50_dense_1x1x8_100e_kinetics400_rgb": _from(sgd(100, 12, 0.005, LATE)),
    "tsn_r50_video_1x1x8_100e_kinetics400_rgb": _from(WIDE),
    "tsn_r50_video_dense_1x1x8_100e_kinetics400_rgb": _from(WIDE),
    "tsn_r50_multiscalecrop_340x256_1x1x3_100e_kinetics400_rgb": _from(
        WIDE, release="tsn_r50_1x1x3_100e_kinetics400_rgb_20200614-e508be42"
    ),
    "tsn_r50_randomresizedcrop_340x256_1x1x3_100e_kinetics400_rgb": _from(WIDE),
    "tsn_r50_multiscalecrop_320p_1x1x3_100e_kinetics400_rgb": _from(WIDE),
    "tsn_r50_randomresizedcrop_320p_1x1x3_100e_kinetics400_rgb": _from(
        WIDE, release="tsn_r50_320p_1x1x3_100e_kinetics400_rgb_20200702-cc665e2a"
    ),
    "tsn_r50_multiscalecrop_256p_1x1x3_100e_kinetics400_rgb": _from(
        WIDE, release="tsn_r50_256p_1x1x3_100e_kinetics400_rgb_20200725-22592236"
    ),
    "tsn_r50_randomresizedcrop_256p_1x1x3_100e_kinetics400_rgb": _from(WIDE),
    "tsn_r50_video_1x1x8_100e_kinetics600_rgb": _from(NARROW),
    "tsn_r50_video_1x1x8_100e_kinetics700_rgb": _from(NARROW),
    "tsn_r50_1x1x8_50e_sthv1_rgb": _from(sgd(50, 16, 0.02, HALF, decay=5e-4, clip=20.0)),
    "tsn_r50_1x1x16_50e_sthv1_rgb": _from(
        sgd(50, 4, 0.01, HALF, decay=5e-4, clip=20.0),
        note="Its configuration mirrors without exchanging labels and tests 8 frames.",
    ),
    "tsn_r50_1x1x8_50e_sthv2_rgb": _from(sgd(50, 16, 0.02, HALF)),
    "tsn_r50_1x1x16_50e_sthv2_rgb": _from(sgd(50, 4, 0.005, HALF, decay=5e-4, clip=20.0)),
    "tsn_r50_1x1x6_100e_mit_rgb": _from(sgd(100, 16, 0.005, LATE)),
    "tsn_r50_320p_1x1x8_50e_activitynet_video_rgb": _from(ACTIVITYNET, ACTIVITYNET_START),
    "tsn_r50_320p_1x1x8_50e_activitynet_clip_rgb": _from(ACTIVITYNET, ACTIVITYNET_START),
    "tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb": _from(WIDE, RESNET50_V2),
    "tsn_imagenet-pretrained-r50_8xb32-1x1x5-100e_kinetics400-rgb": _from(WIDE, RESNET50_V2),
    "tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb": _from(WIDE, RESNET50_V2),
    "tsn_imagenet-pretrained-r50_8xb32-dense-1x1x5-100e_kinetics400-rgb": _from(
        sgd(100, 32, 0.06, LATE), RESNET50_V2
    ),
    "tsn_imagenet-pretrained-r101_8xb32-1x1x8-100e_kinetics400-rgb": _from(WIDE, RESNET101_V2),
    "tsn_imagenet-pretrained-r50_8xb32-1x1x8-50e_sthv2-rgb": _from(STHV_1X, RESNET50_V2),
    "tsn_imagenet-pretrained-r50_8xb32-1x1x16-50e_sthv2-rgb": _from(STHV_1X, RESNET50_V2),
}
