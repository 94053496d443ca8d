"""CSN on Kinetics-400: MMAction2's own trainings, its ports of VMZ's files, and VMZ's files themselves.

Sources: open-mmlab/mmaction2@v0.24.1 and @4d6c9347, configs/recognition/csn; facebookresearch/VMZ@4cc542d5,
c2/tutorials/model_zoo.md.

The accuracies of the ports (`vmz_...`) are VMZ's own: MMAction2 0.x copied them. VMZ measured on overlapping
windows of the last map, so they are not quite those of the protocol here. MMAction2 1.x measured some ports
anew by its sampling rule: these figures are under `also`. Ports of IG-65M trainings take ImageNet's mean and
std, the others those of Kinetics, each as its configuration says; VMZ itself used Kinetics' for all.
"""

from typing import Any

from marey.video.preprocess import Preprocess
from marey.weights.release import Release, clip, named

KINETICS: dict[str, Any] = {"mean": (110.2008, 100.63983, 95.99475), "std": (58.14765, 56.46975, 55.332195)}
OLD, OLD_KINETICS = clip(32, 2), clip(32, 2, **KINETICS)
NEW = clip(32, 2, "1.x")
ANEW = "rule 1.x"  # protocol of the second measurement


def _row(
    model: str, clips: Preprocess, top1: float, top5: float, *, frozen: bool = True, **fields: Any
) -> Release:
    """One that MMAction2 publishes; frozen: its configuration keeps batch norms as they start."""
    overrides = {"norm_eval": True, "bn_frozen": True} if frozen else {}
    return Release(model=model, overrides=overrides, preprocess=clips, top1=top1, top5=top5, **fields)


def _port(model: str, recipe: str, clips: Preprocess, top1: float, top5: float, **fields: Any) -> Release:
    """One that MMAction2 ported from VMZ."""
    return _row(model, clips, top1, top5, recipe=recipe, folder="vmz", **fields)


def _start(model: str, dataset: str) -> Release:
    """A backbone that MMAction2 ported from VMZ, for its fine-tunings; without a classifier."""
    clips = OLD if dataset == "IG-65M" else OLD_KINETICS
    return Release(model=model, preprocess=clips, dataset=dataset, headless=True, folder="")


def _vmz(
    model: str, key: str, top1: float | None = None, top5: float | None = None, **fields: Any
) -> Release:
    """One of VMZ's own Caffe2 pickles; `key` is part of its address. The source states no hash."""
    return Release(
        model=model, preprocess=OLD_KINETICS, top1=top1, top5=top5, source="vmz", folder=key, **fields
    )


RELEASES = named(
    {
        "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb_20210618-4e29e2e8": _row(
            "csn_ir_r50", OLD, 73.6, 91.3, videos="short side 320"
        ),
        "vmz_ircsn_ig65m_pretrained_r50_32x2x1_58e_kinetics400_rgb_20210617-86d33018": _port(
            "csn_ir_r50", "ircsn_ig65m_pretrained_bnfrozen_r50_32x2x1_58e_kinetics400_rgb", OLD, 79.0, 94.2
        ),
        "vmz_ircsn_from_scratch_r152_32x2x1_180e_kinetics400_rgb_20210617-5c933ae1": _port(
            "csn_ir_r152",
            "ircsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb",
            OLD_KINETICS,
            76.5,
            92.1,
            also={ANEW: (76.53, 92.28)},
        ),
        "vmz_ircsn_sports1m_pretrained_r152_32x2x1_58e_kinetics400_rgb_20210617-b9b10241": _port(
            "csn_ir_r152",
            "ircsn_sports1m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb",
            OLD_KINETICS,
            78.2,
            93.0,
            also={ANEW: (78.57, 93.44)},
        ),
        "ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb_20200812-9037a758": _row(
            "csn_ir_r152", OLD, 82.76, 95.68, videos="short side 320"
        ),
        "vmz_ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb_20210617-e63ee1bd": _port(
            "csn_ir_r152", "ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb", OLD, 82.6, 95.3
        ),
        "vmz_ipcsn_from_scratch_r152_32x2x1_180e_kinetics400_rgb_20210617-d565828d": _port(
            "csn_ip_r152",
            "ipcsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb",
            OLD_KINETICS,
            77.8,
            92.8,
            also={ANEW: (77.80, 93.10)},
        ),
        "vmz_ipcsn_sports1m_pretrained_r152_32x2x1_58e_kinetics400_rgb_20210617-3367437a": _port(
            "csn_ip_r152",
            "ipcsn_sports1m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb",
            OLD_KINETICS,
            78.8,
            93.5,
            also={ANEW: (79.07, 93.82)},
        ),
        "vmz_ipcsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb_20210617-c3be9793": _port(
            "csn_ip_r152",
            "ipcsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb",
            OLD,
            82.5,
            95.3,
            also={ANEW: (82.68, 95.69)},
        ),
        "ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb_20200803-fc66ce8d": _row(
            "csn_ir_r152", OLD, 80.14, 94.93, frozen=False, videos="short side 320"
        ),
        "ircsn_ig65m-pretrained-r152_8xb12-32x2x1-58e_kinetics400-rgb_20220811-c7a3cc5b": _row(
            "csn_ir_r152", NEW, 82.87, 95.90
        ),
        "ircsn_ig65m-pretrained-r152-bnfrozen_8xb12-32x2x1-58e_kinetics400-rgb_20220811-7d1dacde": _row(
            "csn_ir_r152", NEW, 82.84, 95.92
        ),
        "ircsn_ig65m-pretrained-r50-bnfrozen_8xb12-32x2x1-58e_kinetics400-rgb_20220811-44395bae": _row(
            "csn_ir_r50", NEW, 79.44, 94.26
        ),
        "ircsn_from_scratch_r50_ig65m_20210617-ce545a37": _start("csn_ir_r50", "IG-65M"),
        "ircsn_from_scratch_r152_ig65m_20200807-771c4135": _start("csn_ir_r152", "IG-65M"),
        "ircsn_from_scratch_r152_sports1m_20210617-bcc9c0dd": _start("csn_ir_r152", "Sports-1M"),
        "ipcsn_from_scratch_r152_ig65m_20210617-c4b99d38": _start("csn_ip_r152", "IG-65M"),
        "ipcsn_from_scratch_r152_sports1m_20210617-7a7cc5b9": _start("csn_ip_r152", "Sports-1M"),
        "irCSN_50_ft_kinetics_from_ig65m_f233743920": _vmz("csn_ir_r50", "b6o2mvoqrvupatt"),
        "irCSN_152_kinetics_from_scratch_f98268019": _vmz("csn_ir_r152", "46gcm7up60ssx5c", 76.5, 92.1),
        "irCSN_152_ft_kinetics_from_sports1m_f101599884": _vmz("csn_ir_r152", "zuoj1aqouh6bo6k", 78.2, 93.0),
        "irCSN_152_ft_kinetics_from_ig65m_f126851907": _vmz("csn_ir_r152", "gmd8r87l3wmkn3h", 82.6, 95.3),
        "ipCSN_152_kinetics_from_scratch_f129594342": _vmz("csn_ip_r152", "3fihu6ti60047mu", 77.8, 92.8),
        "ipCSN_152_ft_kinetics_from_sports1m_f111279053": _vmz("csn_ip_r152", "ir7cr0hda36knux", 78.8, 93.5),
        "ipCSN_152_ft_kinetics_from_ig65m_f133090949": _vmz("csn_ip_r152", "zpp3p0vn2i7bibl", 82.5, 95.3),
        "irCSN_50_pretrained_ig65m_f231921860": _vmz("csn_ir_r50", "1cqzndm1zobxvhh", dataset="IG-65M"),
        "irCSN_152_sports1m_from_scratch_f99918785": _vmz(
            "csn_ir_r152", "woh99y2hll1mlqv", dataset="Sports-1M"
        ),
        "irCSN_152_ig65m_from_scratch_f125286141": _vmz("csn_ir_r152", "r0kppq7ox6c57no", dataset="IG-65M"),
        "ipCSN_152_sports1m_from_scratch_f111018543": _vmz(
            "csn_ip_r152", "70di7o7qz6gjq6x", dataset="Sports-1M"
        ),
        "ipCSN_152_ig65m_from_scratch_f130601052": _vmz("csn_ip_r152", "1ryvx8k7kzs8od6", dataset="IG-65M"),
    }
)
