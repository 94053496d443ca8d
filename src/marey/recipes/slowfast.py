"""SlowFast as PySlowFast publishes it (names in capitals), and as MMAction2 0.x (names with `_`) and 1.x do.

    marey train SLOWFAST_8x8_R50 data.train=LIST data.val=LIST

PySlowFast's configurations of facebookresearch/SlowFast@287ec007, configs/Kinetics and configs/SSv2; its Slow
networks are here, too. The files of Kinetics were trained with Caffe2; the configurations are those that are
to give the same. MMAction2 0.x states its rates for eight processes; some figures were reached on 16 to 32.

Not here, because a setting is missing: multigrid training, which changes the clips' size and number as it
goes (SLOWFAST_8x8_R50_stepwise_multigrid, SLOWFAST_16x8_R50_multigrid and MMAction2's slowfast_multigrid_...,
whose files are in the zoo), and on Something-Something V2 statistics of batch norms over four GPUs. The 510
iterations of warm-up on V1 are 0.19 epochs. Validation is of random clips at PySlowFast; here it is of the
centre of the middle clip.
"""

import msgspec

from marey.recipes import pyslowfast
from marey.recipes.released import Row, cosine, sgd, steps
from marey.training.optim import Schedule

KINETICS = pyslowfast.sgd(196, 64, 0.1, pyslowfast.cosine(0.1, 34, start=0.01, after=False))
STEPWISE = pyslowfast.sgd(239, 64, 0.1, pyslowfast.steps(0.1, 34, 94, 154, 196, start=0.01))
SPARSE = pyslowfast.sgd(
    22, 16, 0.03, pyslowfast.steps(0.03, 0.19, 14, 18, start=1e-4), decay=1e-6, validate_every=2
)

FULL = sgd(256, 8, 0.1, cosine(34))
STEPS = sgd(256, 8, 0.1, steps(94, 154, 196, warmup=34))
NEW = Schedule(kind="cosine", warmup_epochs=34, warmup_rule="1.x")
NEW_STEPS = Schedule(kind="step", milestones=(94, 154, 196), warmup_epochs=34, warmup_rule="1.x")
FULL_1X = sgd(256, 8, 0.1, NEW)
ROWS = {
    "SLOWFAST_4x16_R50": Row(training=KINETICS),
    "SLOWFAST_8x8_R50": Row(training=KINETICS),
    "SLOWFAST_8x8_R50_stepwise": Row(training=STEPWISE),
    "SLOWFAST_16x8_R50": Row(training=SPARSE, weights="SLOWFAST_8x8_R50"),
    "SLOW_4x16_R50": Row(training=KINETICS),
    "SLOW_8x8_R50": Row(training=KINETICS),
    "slowfast_r50_4x16x1_256e_kinetics400_rgb": Row(training=FULL),
    "slowfast_r50_video_4x16x1_256e_kinetics400_rgb": Row(training=FULL),
    "slowfast_prebn_r50_4x16x1_256e_kinetics400_rgb": Row(
        training=msgspec.structs.replace(FULL, precise_bn=200)
    ),
    "slowfast_r50_8x8x1_256e_kinetics400_rgb": Row(training=FULL),
    "slowfast_r50_8x8x1_256e_kinetics400_rgb_steplr": Row(training=STEPS),
    "slowfast_prebn_r50_8x8x1_256e_kinetics400_rgb_steplr": Row(
        training=msgspec.structs.replace(STEPS, precise_bn=200)
    ),
    "slowfast_r101_r50_4x16x1_256e_kinetics400_rgb": Row(training=FULL),
    "slowfast_r101_8x8x1_256e_kinetics400_rgb": Row(training=FULL),
    "slowfast_r152_r50_4x16x1_256e_kinetics400_rgb": Row(training=FULL),
    "slowfast_r50_16x8x1_22e_sthv1_rgb": Row(
        training=sgd(22, 4, 0.06, Schedule(kind="step", milestones=(14, 18), warmup_epochs=0.19), decay=1e-6),
        weights="slowfast_r50_8x8x1_256e_kinetics400_rgb_20200716-73547d2b",
    ),
    "slowfast_r50_8xb8-4x16x1-256e_kinetics400-rgb": Row(training=FULL_1X),
    "slowfast_r50_8xb8-8x8x1-256e_kinetics400-rgb": Row(training=FULL_1X),
    "slowfast_r50_8xb8-8x8x1-steplr-256e_kinetics400-rgb": Row(training=sgd(256, 8, 0.1, NEW_STEPS)),
    "slowfast_r101_8xb8-8x8x1-256e_kinetics400-rgb": Row(training=FULL_1X),
    "slowfast_r101-r50_32xb8-4x16x1-256e_kinetics400-rgb": Row(training=sgd(256, 8, 0.4, NEW, reference=256)),
}
