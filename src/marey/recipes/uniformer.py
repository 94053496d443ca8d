"""UniFormer as its authors train it: Sense-X/UniFormer@52a0415e, video_classification/exp, run.sh.

    marey train uniformer_s16x4_k400 data.train=LIST data.val=LIST

The values are those of the run.sh files, which replace those of config.yaml. A training on K600's 32 frames
ran on four machines. Something-Something was read as BGR; to begin anew with RGB give
clips.channel_order=rgb.

Not here, because a setting is missing: float16 with a scaler of the gradients (`training.precision=bf16` is
the nearest). Stage 3 ran again in the backward pass there to save memory: `training.checkpoint_activations`
does so for all blocks and changes no value. Validation is of random clips there; here it is of the centre of
the middle clip.
"""

from marey.recipes.pyslowfast import adamw
from marey.recipes.released import Row

SMALL, BASE = "uniformer_small_in1k", "uniformer_base_in1k"
CLIP = 20.0  # largest norm of the gradients


def _kinetics(
    weights: str, videos: int, lr: float, *, epochs: int = 110, machines: int = 1, **fields: object
) -> Row:
    training = adamw(epochs, videos, lr, 10, clip=CLIP, machines=machines, validate_every=5)
    drop = 0.1 if weights == SMALL else 0.3
    return Row(training=training, weights=weights, options={"drop_path": drop}, **fields)  # type: ignore[arg-type]


def _sparse(epochs: int, videos: int, lr: float, drop: float, weights: str) -> Row:
    training = adamw(epochs, videos, lr, 5, clip=CLIP, validate_every=5)
    return Row(training=training, weights=weights, options={"drop_path": drop})


def _something() -> dict[str, Row]:
    """Each network, number of frames and start, on both versions."""
    drops = {  # of V1 and V2
        ("s", 16, 400): (0.2, 0.3),
        ("s", 16, 600): (0.2, 0.3),
        ("s", 32, 400): (0.2, 0.3),
        ("s", 32, 600): (0.3, 0.3),
        ("b", 16, 400): (0.6, 0.4),
        ("b", 16, 600): (0.5, 0.5),
        ("b", 32, 400): (0.6, 0.5),
        ("b", 32, 600): (0.6, 0.5),
    }
    rows = {}
    for version, epochs in (("v1", 60), ("v2", 50)):
        for (size, frames, start), rates in drops.items():
            name = f"uniformer_{size}{frames}_sth{version}_prek{start}"
            videos, lr = (40, 2.5e-4) if (size, frames) == ("b", 16) else (32, 2e-4)
            weights = f"uniformer_{'small' if size == 's' else 'base'}_k{start}_16x4"
            rows[name] = _sparse(epochs, videos, lr, rates[version == "v2"], weights)
    return rows


ROWS = {
    "uniformer_s8x8_k400": _kinetics(SMALL, 128, 4e-4, epochs=100),
    "uniformer_s16x4_k400": _kinetics(SMALL, 32, 1e-4),
    "uniformer_s16x8_k400": _kinetics(SMALL, 32, 1e-4),
    "uniformer_s32x4_k400": _kinetics(  # no file of it is published
        SMALL,
        32,
        1e-4,
        release="uniformer_small_k400_16x4",
        clips={"frames": 32},
        figures={"top1": 82.0},
    ),
    "uniformer_b8x8_k400": _kinetics(BASE, 64, 2e-4, epochs=100),
    "uniformer_b16x4_k400": _kinetics(BASE, 40, 1.25e-4),
    "uniformer_b16x8_k400": _kinetics(BASE, 40, 1.25e-4),
    "uniformer_b32x4_k400": _kinetics(BASE, 32, 1e-4),
    "uniformer_s16x4_k600": _kinetics(SMALL, 96, 3e-4),
    "uniformer_s16x8_k600": _kinetics(SMALL, 32, 1e-4),
    "uniformer_b16x4_k600": _kinetics(BASE, 40, 1.25e-4),
    "uniformer_b16x8_k600": _kinetics(BASE, 32, 1.25e-4),
    "uniformer_b32x4_k600": _kinetics(BASE, 32, 1e-4, machines=4),
    **_something(),
}
