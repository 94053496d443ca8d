"""TSM as MMAction2 publishes it, in 0.x (names with `_`) and 1.x (names with `-`).

    marey train tsm_r50_1x1x8_50e_kinetics400_rgb data.train=LIST data.val=LIST

0.x states its rates for eight processes. The classifier learns five times as fast, biases twice, and
neither batch norms nor biases decay. On Something-Something and Jester the figure is the one on twice the
clips and three crops ("accurate"); the "efficient" one belongs to the validation's protocol.

Left out: MobileNetV2 and MobileOne; on Something-Something V1 the trainings with randaugment and augmix
(whose libraries decide what they do) and with mixup and cutmix, which the training here does not have.
"""

from marey.recipes.released import RESNET50, RESNET101, Row, sgd, steps
from marey.recipes.schema import Training
from marey.training.optim import Schedule


def _train(
    epochs: int,
    batch: int,
    lr: float,
    schedule: Schedule,
    *,
    decay: float = 1e-4,
    reference: int | None = None,
) -> Training:
    return sgd(epochs, batch, lr, schedule, decay=decay, reference=reference, clip=20.0, groups="tsm")


HALF = steps(20, 40)
SHORT, LONG = _train(50, 8, 0.01, HALF), _train(100, 8, 0.01, steps(40, 80))
SHORT_16 = _train(50, 6, 0.0075, HALF)
STHV, STHV_16 = _train(50, 8, 0.01, HALF, decay=5e-4), _train(50, 6, 0.0075, HALF, decay=5e-4)
FINE, FINE_16 = _train(25, 12, 0.0015, steps(10, 20)), _train(25, 6, 0.00075, steps(10, 20))
KINETICS = "tsm_r50_256p_1x1x8_50e_kinetics400_rgb_20200726-020785e2"
KINETICS_16 = "tsm_r50_256p_1x1x16_50e_kinetics400_rgb_20201010-85645c2a"
STEPS_1X = steps(25, 45, warmup=5, rule="1.x")
SHORT_1X = _train(50, 16, 0.02, STEPS_1X, reference=128)
STHV_1X = _train(50, 16, 0.02, STEPS_1X, decay=5e-4, reference=128)


def _from(training: Training, weights: str = RESNET50) -> Row:
    return Row(training=training, weights=weights)


ROWS = {
    "tsm_r50_1x1x8_50e_kinetics400_rgb": _from(SHORT),
    "tsm_r50_1x1x8_100e_kinetics400_rgb": _from(LONG),
    "tsm_r50_gpu_normalize_1x1x8_50e_kinetics400_rgb": _from(SHORT),
    "tsm_r50_video_1x1x8_50e_kinetics400_rgb": _from(_train(50, 8, 0.02, HALF)),
    "tsm_r50_dense_1x1x8_50e_kinetics400_rgb": _from(SHORT),
    "tsm_r50_dense_1x1x8_100e_kinetics400_rgb": _from(LONG),
    "tsm_r50_1x1x16_50e_kinetics400_rgb": _from(SHORT_16),
    "tsm_r50_1x1x16_100e_kinetics400_rgb": _from(_train(100, 6, 0.0075, steps(40, 80))),
    "tsm_nl_embedded_gaussian_r50_1x1x8_50e_kinetics400_rgb": _from(SHORT),
    "tsm_nl_gaussian_r50_1x1x8_50e_kinetics400_rgb": _from(SHORT),
    "tsm_nl_dot_product_r50_1x1x8_50e_kinetics400_rgb": _from(SHORT),
    "tsm_r50_video_1x1x8_50e_diving48_rgb": _from(SHORT),
    "tsm_r50_video_1x1x16_50e_diving48_rgb": _from(_train(50, 4, 0.005, HALF)),
    "tsm_r50_1x1x8_50e_sthv1_rgb": _from(STHV),
    "tsm_r50_flip_1x1x8_50e_sthv1_rgb": _from(STHV),
    "tsm_r50_1x1x16_50e_sthv1_rgb": _from(STHV_16),
    "tsm_r101_1x1x8_50e_sthv1_rgb": _from(STHV, RESNET101),
    "tsm_r50_1x1x8_50e_sthv2_rgb": _from(STHV_16),  # 6 clips here, too
    "tsm_r50_1x1x16_50e_sthv2_rgb": _from(STHV_16),
    "tsm_r101_1x1x8_50e_sthv2_rgb": _from(STHV, RESNET101),
    "tsm_r50_1x1x8_50e_jester_rgb": _from(STHV),
    "tsm_k400_pretrained_r50_1x1x8_25e_hmdb51_rgb": _from(FINE, KINETICS),
    "tsm_k400_pretrained_r50_1x1x16_25e_hmdb51_rgb": _from(FINE_16, KINETICS_16),
    "tsm_k400_pretrained_r50_1x1x8_25e_ucf101_rgb": _from(FINE, KINETICS),
    "tsm_k400_pretrained_r50_1x1x16_25e_ucf101_rgb": _from(FINE_16, KINETICS_16),
    "tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb": _from(SHORT_1X),
    "tsm_imagenet-pretrained-r50_8xb16-1x1x8-100e_kinetics400-rgb": _from(
        _train(100, 16, 0.02, steps(50, 90, warmup=10, rule="1.x"), reference=128)
    ),
    "tsm_imagenet-pretrained-r50_8xb16-1x1x16-50e_kinetics400-rgb": _from(SHORT_1X),
    "tsm_imagenet-pretrained-r50_8xb16-dense-1x1x8-50e_kinetics400-rgb": _from(SHORT_1X),
    "tsm_imagenet-pretrained-r50-nl-dot-product_8xb16-1x1x8-50e_kinetics400-rgb": _from(SHORT_1X),
    "tsm_imagenet-pretrained-r50-nl-gaussian_8xb16-1x1x8-50e_kinetics400-rgb": _from(SHORT_1X),
    "tsm_imagenet-pretrained-r50-nl-embedded-gaussian_8xb16-1x1x8-50e_kinetics400-rgb": _from(SHORT_1X),
    "tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_sthv2-rgb": _from(STHV_1X),
    "tsm_imagenet-pretrained-r50_8xb16-1x1x16-50e_sthv2-rgb": _from(STHV_1X),
    "tsm_imagenet-pretrained-r101_8xb16-1x1x8-50e_sthv2-rgb": _from(STHV_1X, RESNET101),
}
