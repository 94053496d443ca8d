"""MViT as PySlowFast publishes it: facebookresearch/SlowFast@287ec007, MODEL_ZOO.md and projects/mvitv2.

Files called k400.pyth and k600.pyth there, and one on Google Drive, have the names of their networks here.
No hashes are stated. Clips are taken by the rules of MMAction2 0.x; PySlowFast's steps between frames are a
little longer, so that the last frame is that of the whole span, and its sparse clips take other frames within
the parts.

Left out: MViTv2 L, which is another plan of blocks, and the reversible rev-MViT.
"""

from marey.video.preprocess import Preprocess, Protocol
from marey.weights.release import DRIVE, PYSLOWFAST, PYSLOWFAST_ZOO, Release, named

V2 = "Something-Something V2"
ZOO2 = f"{PYSLOWFAST_ZOO}mvitv2/pysf_video_models/"


def clips(frames: int, interval: int) -> Preprocess:
    """Consecutive frames; tested on five clips of the centre."""
    test = Protocol(clips=5)
    return Preprocess(frames=frames, interval=interval, out_of_bound="repeat_last", test=test, **PYSLOWFAST)


def _sparse(frames: int) -> Preprocess:
    """A frame from each part of the video; tested on three crops."""
    test = Protocol(crops="three", short_side=224)
    return Preprocess(sampling="segments", frames=frames, flip=0.0, test=test, **PYSLOWFAST)


def _row(
    model: str,
    clips: Preprocess,
    top1: float,
    top5: float,
    url: str,
    recipe: str,
    dataset: str = "Kinetics-400",
) -> Release:
    return Release(
        model=model,
        preprocess=clips,
        top1=top1,
        top5=top5,
        url=url,
        recipe=recipe,
        dataset=dataset,
        source="pyslowfast",
        suffix=".pyth",
    )


def _second(
    name: str, clips: Preprocess, top1: float, top5: float, dataset: str = "Kinetics-400"
) -> dict[str, Release]:
    """Version 2, whose files are called as their recipes."""
    model = "mvit_v2_s" if "_S_" in name else "mvit_v2_b"
    recipe = "_".join(name.split("_")[:3])
    return {name: _row(model, clips, top1, top5, f"{ZOO2}{name}.pyth", recipe, dataset)}


OLD = "mvit_b_16x4", "mvit_b_32x3"
DRIVE_KEY = "194gJinVejq6A1FmySNKQ8vAN5-FOY-QL"
K400, K600 = f"{PYSLOWFAST_ZOO}mvit/k400.pyth", f"{PYSLOWFAST_ZOO}mvit/k600.pyth"
RELEASES = named(
    {
        "mvit_b_16x4_k400": _row(
            OLD[0], clips(16, 4), 78.4, 93.5, DRIVE.format(DRIVE_KEY), "MVIT_B_16x4_CONV"
        ),
        "mvit_b_32x3_k400": _row(OLD[1], clips(32, 3), 80.4, 94.8, K400, "MVIT_B_32x3_CONV"),
        "mvit_b_32x3_k600": _row(
            OLD[1], clips(32, 3), 83.9, 96.5, K600, "MVIT_B_32x3_CONV_K600", "Kinetics-600"
        ),
    }
    | _second("MViTv2_S_16x4_k400_f302660347", clips(16, 4), 81.0, 94.6)
    | _second("MViTv2_B_32x3_k400_f304025456", clips(32, 3), 82.9, 95.7)
    | _second("MViTv2_S_16x4_ssv2_f308341823", _sparse(16), 68.2, 91.4, V2)
    | _second("MViTv2_B_32x3_ssv2_f305803282", _sparse(32), 70.5, 92.7, V2)
)
