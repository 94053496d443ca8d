"""Rendered videos for benchmarks: a textured scene seen by a moving camera, things that move in it, grain.

Grain and texture matter: a video of flat shapes decodes several times as fast as a filmed one.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from marey.video.synthetic import write_video

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]

GRAIN = 3.0  # grey levels, standard deviation
THINGS = 3  # that move by themselves


def render(folder: Path, name: str, count: int, *, size: Size, frames: int, gop: int) -> list[str]:
    """`count` H.264 files (yuv420p, B-frames, 25 fps, x264's usual quality) in `folder`; kept if there.

    size  (width, height). gop  frames from one key frame to the next, whatever the picture shows
    """
    paths = [folder / f"{name}_{number}.mp4" for number in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    encoder = {"preset": "faster", "crf": "20", "g": str(gop), "keyint_min": str(gop), "sc_threshold": "0"}
    for seed, path in enumerate(paths):
        if not path.exists():
            write_video(path, scene(size, frames, seed), fps=25, encoder=encoder)
    return [str(path) for path in paths]


def scene(size: Size, frames: int, seed: int) -> Iterator[Pixels]:
    """Pictures uint8 [height, width, 3] of a slow pan, turn and zoom."""
    rng = np.random.Generator(np.random.Philox(seed))
    ground, looks = texture(rng, (2 * size[0], 2 * size[1])), [texture(rng, size) for _ in range(THINGS)]
    start, speed = rng.uniform(0, 1, (THINGS, 2)) * size, rng.uniform(-0.02, 0.02, (THINGS, 2)) * size
    pan, turn = rng.uniform(-0.003, 0.003, 2) * size, rng.uniform(-0.1, 0.1)  # degrees a frame
    grain = [rng.normal(0, GRAIN, (size[1], size[0], 1)).astype(np.float32) for _ in range(7)]
    for time in range(frames):
        view = cv2.getRotationMatrix2D((float(size[0]), float(size[1])), turn * time, 1 + 0.0005 * time)
        view[:, 2] += pan * time - np.array(size) / 2
        picture = cv2.warpAffine(ground, view, size, borderMode=cv2.BORDER_REFLECT)
        for look, place in zip(looks, start + speed * time, strict=True):
            mask = np.zeros((size[1], size[0]), np.uint8)
            middle = np.mod(place, size).astype(int).tolist()
            cv2.circle(mask, middle, min(size) // 7, 1, cv2.FILLED)
            cv2.copyTo(look, mask, picture)
        yield (picture + grain[time % len(grain)]).clip(0, 255).astype(np.uint8)


def texture(rng: np.random.Generator, size: Size) -> npt.NDArray[np.float32]:
    """Noise whose details are the fainter the finer they are, as in photographs: float32 [h, w, 3]."""
    picture = np.full((size[1], size[0], 3), rng.uniform(80, 160, 3), np.float32)
    cell = max(size) // 2
    while cell >= 2:
        coarse = rng.uniform(-1, 1, (size[1] // cell + 2, size[0] // cell + 2, 3)).astype(np.float32)
        strength = 60 * (cell / max(size)) ** 0.5
        picture += strength * cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        cell //= 2
    return picture
