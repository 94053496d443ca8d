"""CSN on Kinetics-400 as MMAction2 publishes it, in 0.x (names with `_`) and 1.x (names with `-`).

    marey train ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb data.train=LIST data.val=LIST

Fine-tuning keeps batch norms as they start: statistics, scales and shifts. 0.x states 0.000125 for 24 clips
an update, 1.x 0.0005 for 96.

Not as upstream, because upstream cannot be meant: the 180-epoch configurations of 0.x do not start (a
cosine schedule is given steps), those of 1.x inherit the schedule of 58 epochs, and both freeze batch norms
that have learned nothing. Here all five have the cosine over 180 epochs with a warm-up of 40, and batch
norms that learn. `ircsn_ig65m-pretrained-r152_8xb12-...` says otherwise by its name, but freezes them, too:
so was its figure reached. The figures of 0.x are VMZ's own where the weights are VMZ's; those of 1.x were
measured on them.
"""

from marey.recipes.released import Row, cosine, sgd, steps

FINE = sgd(58, 3, 0.000125, steps(32, 48, warmup=16))
FINE_1X = sgd(58, 12, 0.0005, steps(32, 48, warmup=16, rule="1.x"), reference=96)
SCRATCH = sgd(180, 4, 0.08, cosine(40))
LEARNING = {"norm_eval": False, "bn_frozen": False}
MEANT = "Schedule and batch norms as meant."

IR50_IG65M = "ircsn_from_scratch_r50_ig65m_20210617-ce545a37"
IR152_IG65M = "ircsn_from_scratch_r152_ig65m_20200807-771c4135"
IR152_SPORTS1M = "ircsn_from_scratch_r152_sports1m_20210617-bcc9c0dd"
IP152_IG65M = "ipcsn_from_scratch_r152_ig65m_20210617-c4b99d38"
IP152_SPORTS1M = "ipcsn_from_scratch_r152_sports1m_20210617-7a7cc5b9"


def _anew(release: str, weights: str | None) -> Row:
    """A port of VMZ's weights that 1.x lists with a figure of its own."""
    return Row(
        training=FINE_1X if weights else SCRATCH,
        weights=weights,
        release=release,
        figure="rule 1.x",
        clips={"rule": "1.x"},
        options={} if weights else LEARNING,
        note="" if weights else MEANT,
    )


ROWS = {
    "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb": Row(training=SCRATCH, options=LEARNING, note=MEANT),
    "ircsn_ig65m_pretrained_bnfrozen_r50_32x2x1_58e_kinetics400_rgb": Row(training=FINE, weights=IR50_IG65M),
    "ircsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb": Row(training=SCRATCH, options=LEARNING, note=MEANT),
    "ircsn_sports1m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": Row(
        training=FINE, weights=IR152_SPORTS1M
    ),
    "ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": Row(
        training=FINE, weights=IR152_IG65M
    ),
    "ipcsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb": Row(training=SCRATCH, options=LEARNING, note=MEANT),
    "ipcsn_sports1m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": Row(
        training=FINE, weights=IP152_SPORTS1M
    ),
    "ipcsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": Row(
        training=FINE, weights=IP152_IG65M
    ),
    "ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb": Row(training=FINE, weights=IR152_IG65M),
    "ircsn_ig65m-pretrained-r152_8xb12-32x2x1-58e_kinetics400-rgb": Row(
        training=FINE_1X, weights=IR152_IG65M, note="With frozen batch norms, whatever its name."
    ),
    "ircsn_ig65m-pretrained-r152-bnfrozen_8xb12-32x2x1-58e_kinetics400-rgb": Row(
        training=FINE_1X, weights=IR152_IG65M
    ),
    "ircsn_ig65m-pretrained-r50-bnfrozen_8xb12-32x2x1-58e_kinetics400-rgb": Row(
        training=FINE_1X, weights=IR50_IG65M
    ),
    "ipcsn_r152_32x2x1-180e_kinetics400-rgb": _anew(
        "vmz_ipcsn_from_scratch_r152_32x2x1_180e_kinetics400_rgb_20210617-d565828d", None
    ),
    "ircsn_r152_32x2x1-180e_kinetics400-rgb": _anew(
        "vmz_ircsn_from_scratch_r152_32x2x1_180e_kinetics400_rgb_20210617-5c933ae1", None
    ),
    "ipcsn_ig65m-pretrained-r152-bnfrozen_32x2x1-58e_kinetics400-rgb": _anew(
        "vmz_ipcsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb_20210617-c3be9793", IP152_IG65M
    ),
    "ipcsn_sports1m-pretrained-r152-bnfrozen_32x2x1-58e_kinetics400-rgb": _anew(
        "vmz_ipcsn_sports1m_pretrained_r152_32x2x1_58e_kinetics400_rgb_20210617-3367437a", IP152_SPORTS1M
    ),
    "ircsn_sports1m-pretrained-r152-bnfrozen_32x2x1-58e_kinetics400-rgb": _anew(
        "vmz_ircsn_sports1m_pretrained_r152_32x2x1_58e_kinetics400_rgb_20210617-b9b10241", IR152_SPORTS1M
    ),
}
