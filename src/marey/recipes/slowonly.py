"""SlowOnly as MMAction2 publishes it, in 0.x (names with `_`) and 1.x (names with `-`).

    marey train slowonly_r50_4x16x1_256e_kinetics400_rgb data.train=LIST data.val=LIST

0.x states its rates for eight processes; some figures were reached on 16 to 32. Where a figure stands for
videos of another size than the recipe's first, the release of that size has it.

Not as upstream: the 64-epoch configurations of HMDB51, UCF101 and Something-Something V1 do not start there
(a cosine schedule is given steps); here they have the cosine and the warm-up.
"""

from marey.recipes.released import RESNET50, RESNET50_V2, Row, cosine, sgd, steps

FULL = sgd(256, 8, 0.1, cosine())
BENCHMARK = sgd(256, 16, 0.6, cosine())
FINE = sgd(150, 8, 0.01, steps(90, 130, warmup=10))
SMALL = sgd(64, 8, 0.1, cosine(10, smooth=True))
FROM_KINETICS = sgd(40, 8, 0.001, steps(15, 30), clip=20.0)
KINETICS = "slowonly_r50_8x8x1_256e_kinetics400_rgb_20200703-a79c555a"
FULL_1X = sgd(256, 16, 0.2, cosine(34, rule="1.x"), reference=128)
STEPS_1X = steps(90, 130, warmup=10, rule="1.x")
FINE_1X = sgd(150, 16, 0.02, STEPS_1X, reference=128)
NL_1X = sgd(256, 16, 0.01, STEPS_1X, reference=128)
NL_NOTE = "256 epochs, as its configuration has it, whatever its name."

ROWS = {
    "slowonly_r50_4x16x1_256e_kinetics400_rgb": Row(training=FULL),
    "slowonly_r50_video_4x16x1_256e_kinetics400_rgb": Row(training=sgd(256, 24, 0.3, cosine())),
    "slowonly_r50_8x8x1_256e_kinetics400_rgb": Row(training=FULL),
    "slowonly_imagenet_pretrained_r50_4x16x1_150e_kinetics400_rgb": Row(training=FINE, weights=RESNET50),
    "slowonly_imagenet_pretrained_r50_8x8x1_150e_kinetics400_rgb": Row(training=FINE, weights=RESNET50),
    "slowonly_nl_embedded_gaussian_r50_4x16x1_150e_kinetics400_rgb": Row(training=FINE, weights=RESNET50),
    "slowonly_nl_embedded_gaussian_r50_8x8x1_150e_kinetics400_rgb": Row(training=FINE, weights=RESNET50),
    "slowonly_r50_randomresizedcrop_340x256_4x16x1_256e_kinetics400_rgb": Row(training=BENCHMARK),
    "slowonly_r50_randomresizedcrop_320p_4x16x1_256e_kinetics400_rgb": Row(
        training=BENCHMARK, release="slowonly_r50_4x16x1_256e_kinetics400_rgb_20200704-a69556c6"
    ),
    "slowonly_r50_randomresizedcrop_256p_4x16x1_256e_kinetics400_rgb": Row(
        training=BENCHMARK, release="slowonly_r50_256p_4x16x1_256e_kinetics400_rgb_20200820-bea7701f"
    ),
    "slowonly_r101_8x8x1_196e_kinetics400_rgb": Row(training=sgd(196, 8, 0.1, cosine(34))),
    "slowonly_r50_video_8x8x1_256e_kinetics600_rgb": Row(training=sgd(256, 12, 0.15, cosine())),
    "slowonly_r50_video_8x8x1_256e_kinetics700_rgb": Row(training=sgd(256, 12, 0.15, cosine())),
    "slowonly_imagenet_pretrained_r50_4x16x1_120e_gym99_rgb": Row(
        training=sgd(120, 24, 0.03, steps(90, 110)), weights=RESNET50
    ),
    "slowonly_imagenet_pretrained_r50_8x8x1_64e_jester_rgb": Row(
        training=sgd(64, 8, 0.1, cosine(smooth=True)),
        weights=RESNET50,
        note="8 frames every 4, whatever its name.",
    ),
    "slowonly_imagenet_pretrained_r50_8x4x1_64e_hmdb51_rgb": Row(training=SMALL, weights=RESNET50),
    "slowonly_k400_pretrained_r50_8x4x1_40e_hmdb51_rgb": Row(training=FROM_KINETICS, weights=KINETICS),
    "slowonly_imagenet_pretrained_r50_8x4x1_64e_ucf101_rgb": Row(training=SMALL, weights=RESNET50),
    "slowonly_k400_pretrained_r50_8x4x1_40e_ucf101_rgb": Row(training=FROM_KINETICS, weights=KINETICS),
    "slowonly_imagenet_pretrained_r50_8x4x1_64e_sthv1_rgb": Row(
        training=sgd(64, 8, 0.1, cosine(10)), weights=RESNET50
    ),
    "slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb": Row(training=FULL_1X),
    "slowonly_r50_8xb16-8x8x1-256e_kinetics400-rgb": Row(training=FULL_1X),
    "slowonly_r101_8xb16-8x8x1-196e_kinetics400-rgb": Row(
        training=sgd(196, 16, 0.2, cosine(34, rule="1.x"), reference=128)
    ),
    "slowonly_imagenet-pretrained-r50_8xb16-4x16x1-steplr-150e_kinetics400-rgb": Row(
        training=FINE_1X, weights=RESNET50_V2
    ),
    "slowonly_imagenet-pretrained-r50_8xb16-8x8x1-steplr-150e_kinetics400-rgb": Row(
        training=FINE_1X, weights=RESNET50_V2
    ),
    "slowonly_r50-in1k-pre-nl-embedded-gaussian_8xb16-4x16x1-steplr-150e_kinetics400-rgb": Row(
        training=NL_1X, weights=RESNET50_V2, note=NL_NOTE
    ),
    "slowonly_imagenet-pretrained-r50_16xb16-4x16x1-steplr-150e_kinetics700-rgb": Row(
        training=sgd(150, 16, 0.04, STEPS_1X, reference=256), weights=RESNET50_V2
    ),
    "slowonly_imagenet-pretrained-r50_16xb16-8x8x1-steplr-150e_kinetics700-rgb": Row(
        training=sgd(150, 16, 0.04, STEPS_1X, reference=256), weights=RESNET50_V2
    ),
    "slowonly_imagenet-pretrained-r50_32xb8-8x8x1-steplr-150e_kinetics710-rgb": Row(
        training=sgd(150, 8, 0.04, STEPS_1X, reference=256), weights=RESNET50_V2
    ),
}
