"""SlowFast: PySlowFast's files, facebookresearch/SlowFast@287ec007, and MMAction2's, @v0.24.1 and @4d6c9347.

PySlowFast states no hashes; its Slow networks are here as SlowOnly, which averages the probabilities of four
windows of 224 in a crop of 256 as PySlowFast does. Clips are taken by the rules of each source. Of
Something-Something PySlowFast's table states no number of crops, and its configuration one at the left or
top; three are taken here.

Left out: PySlowFast's C2D and I3D, which are other networks, and the files that its AVA models start from,
which have non-local blocks in the slow pathway or are only called C2D; AlphAction's files of Kinetics-700,
whose classifier is not part of the network that is known here; and Nightcrawler's of ARID.
"""

from typing import Any

from marey.video.preprocess import Preprocess, Protocol
from marey.weights.release import PYSLOWFAST, PYSLOWFAST_ZOO, SSV1_PAIRS, Release, clip, named, unresized

JITTER: dict[str, Any] = {"train_short_side": (256, 320), "train_crop": "random", **PYSLOWFAST}
R50_4x16: dict[str, Any] = {"alpha": 8, "lateral_kernel": 5}
R50_8x8: dict[str, Any] = {}
R101_8x8: dict[str, Any] = {"lateral_kernel": 7}
AND_R50: dict[str, Any] = {**R50_4x16, "fast_depth": 50}
OLD, NEW = clip(32, 2), clip(32, 2, "1.x")
V1, V2 = "Something-Something V1", "Something-Something V2"
KINETICS = f"{PYSLOWFAST_ZOO}kinetics400/"
MULTIGRID = "https://dl.fbaipublicfiles.com/pyslowfast/pyslowfast/model_zoo/multigrid/model_zoo/"


def clips(frames: int = 32, interval: int = 2) -> Preprocess:
    """Consecutive frames; tested on ten clips x three crops of the whole short side."""
    return clip(frames, interval, "slowfast", target_fps=30.0, **JITTER)


SPARSE = Preprocess(
    sampling="uniform",
    frames=64,
    rule="slowfast",
    inverse_short_side=True,
    flip=0.0,
    test=Protocol(crops="three", crop=256),
    **JITTER,
)


def _pyslowfast(name: str, folder: str, top1: float, top5: float, **fields: Any) -> dict[str, Release]:
    """`folder` ends with a slash; the file's name follows."""
    fields = {"model": "slowfast_r50", "preprocess": clips(), "recipe": name, **fields}
    url = f"{folder}{name}.pkl"
    return {name: Release(top1=top1, top5=top5, source="pyslowfast", url=url, suffix=".pkl", **fields)}


def _slow(size: str, clips: Preprocess, top1: float, top5: float) -> dict[str, Release]:
    fields = {
        "model": "slowonly_r50",
        "overrides": {"crop": 224},
        "preprocess": clips,
        "recipe": f"SLOW_{size}_R50",
    }
    return _pyslowfast(f"SLOWONLY_{size}_R50", KINETICS, top1, top5, **fields)


def _mmaction(
    clips: Preprocess, settings: dict[str, Any], top1: float, top5: float, **fields: Any
) -> Release:
    fields = {"model": "slowfast_r50", **fields}
    overrides = {"style": "mmaction2", **settings}
    return Release(overrides=overrides, preprocess=clips, top1=top1, top5=top5, **fields)


RELEASES = named(
    _pyslowfast("SLOWFAST_4x16_R50", KINETICS, 75.6, 92.0, overrides=R50_4x16)
    | _pyslowfast("SLOWFAST_8x8_R50", KINETICS, 77.0, 92.6)
    | _pyslowfast("SLOWFAST_8x8_R50_stepwise", f"{MULTIGRID}Kinetics/", 76.8, 92.7)
    | _pyslowfast("SLOWFAST_8x8_R50_stepwise_multigrid", f"{MULTIGRID}Kinetics/", 76.6, 92.7)
    | _pyslowfast("SLOWFAST_16x8_R50", f"{MULTIGRID}SSv2/", 63.0, 88.5, dataset=V2, preprocess=SPARSE)
    | _pyslowfast(
        "SLOWFAST_16x8_R50_multigrid", f"{MULTIGRID}SSv2/", 63.5, 88.7, dataset=V2, preprocess=SPARSE
    )
    | _slow("4x16", clips(4, 16), 72.7, 90.3)
    | _slow("8x8", clips(8, 8), 74.8, 91.6)
    | {
        "slowfast_r50_256p_4x16x1_256e_kinetics400_rgb_20200728-145f1097": _mmaction(
            OLD,
            R50_4x16,
            74.75,
            91.73,
            recipe="slowfast_r50_4x16x1_256e_kinetics400_rgb",
            videos="short side 256",
        ),
        "slowfast_r50_video_4x16x1_256e_kinetics400_rgb_20200826-f85b90c5": _mmaction(
            OLD, R50_4x16, 73.95, 91.5, videos="short side 256"
        ),
        "slowfast_r50_4x16x1_256e_kinetics400_rgb_20210722-04e43ed4": _mmaction(
            OLD, R50_4x16, 76.0, 92.54, videos="short side 320"
        ),
        "slowfast_prebn_r50_4x16x1_256e_kinetics400_rgb_20210722-bb725050": _mmaction(
            OLD, R50_4x16, 76.34, 92.67, videos="short side 320"
        ),
        "slowfast_r50_8x8x1_256e_kinetics400_rgb_20200716-73547d2b": _mmaction(
            OLD, R50_8x8, 76.94, 92.8, videos="short side 320"
        ),
        "slowfast_r50_8x8x1_256e_kinetics400_rgb_steplr-43988bac": _mmaction(
            OLD, R50_8x8, 76.34, 92.61, videos="short side 320"
        ),
        "slowfast_multigrid_r50_8x8x1_358e_kinetics400_rgb-f82bd304": _mmaction(
            OLD, R50_8x8, 76.07, 92.21, videos="short side 320"
        ),
        "slowfast_prebn_r50_8x8x1_256e_kinetics400_rgb_steplr-28474e54": _mmaction(
            OLD, R50_8x8, 76.58, 92.85, videos="short side 320"
        ),
        "slowfast_r101_4x16x1_256e_kinetics400_rgb_20210218-d8b58813": _mmaction(
            OLD,
            AND_R50,
            76.69,
            93.07,
            model="slowfast_r101",
            recipe="slowfast_r101_r50_4x16x1_256e_kinetics400_rgb",
            videos="short side 256",
        ),
        "slowfast_r101_8x8x1_256e_kinetics400_rgb_20210218-0dd54025": _mmaction(
            OLD, R101_8x8, 77.9, 93.51, model="slowfast_r101", videos="short side 256"
        ),
        "slowfast_r152_4x16x1_256e_kinetics400_rgb_20210122-bdeb6b87": _mmaction(
            OLD,
            AND_R50,
            77.13,
            93.2,
            model="slowfast_r152",
            recipe="slowfast_r152_r50_4x16x1_256e_kinetics400_rgb",
            videos="short side 256",
        ),
        "slowfast_r50_16x8x1_22e_sthv1_rgb_20211202-aaaf9279": _mmaction(
            unresized(Preprocess(frames=64, interval=2, flip_labels=SSV1_PAIRS, test=Protocol(crop=256))),
            R50_8x8,
            49.67,
            79.0,
            dataset=V1,
            videos="height 100",
        ),
        "slowfast_r50_8xb8-4x16x1-256e_kinetics400-rgb_20220901-701b0f6f": _mmaction(
            NEW, R50_4x16, 75.55, 92.35
        ),
        "slowfast_r50_8xb8-8x8x1-256e_kinetics400-rgb_20220818-1cb6dfc8": _mmaction(
            NEW, R50_8x8, 76.8, 92.99
        ),
        "slowfast_r50_8xb8-8x8x1-steplr-256e_kinetics400-rgb_20220818-b62a501f": _mmaction(
            NEW, R50_8x8, 76.65, 92.86
        ),
        "slowfast_r101_8xb8-8x8x1-256e_kinetics400-rgb_20220818-9c0e09bd": _mmaction(
            NEW, R101_8x8, 78.65, 93.88, model="slowfast_r101"
        ),
        "slowfast_r101-r50_32xb8-4x16x1-256e_kinetics400-rgb_20220901-a77ac3ee": _mmaction(
            NEW, AND_R50, 77.03, 92.99, model="slowfast_r101"
        ),
    }
)
