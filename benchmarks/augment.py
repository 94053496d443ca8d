"""RandAugment for a clip: Marey beside Pillow and torchvision, which go frame by frame.

python benchmarks/augment.py [--frames 16] [--side 224] [--clips 24] [--rounds 3] [--threads 1] [--device cpu]

All make the same changes, drawn once for each clip (`rand-m7-n4-mstd0.5-inc1`). `pillow` is what PySlowFast
and UniFormer run: each frame becomes an image, goes through the changes and becomes an array again.
`torchvision` is its `v2.functional` on uint8 tensors, which knows no bicubic warps and rounds elsewhere: a
peer in time only. Marey and Pillow are compared before anything is timed. After the first row, each operation
alone. Times on the CPU are processor time, which other programs disturb less.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from marey.video.augment import FILL, OPERATIONS, Change, RandAugment, apply, change, draw_changes
from marey.video.sampling import generator

PUBLISHED = RandAugment(layers=4, magnitude=7.0, spread=0.5)
CUBIC, GREY = Image.Resampling.BICUBIC, (FILL, FILL, FILL)
BILINEAR = tv.InterpolationMode.BILINEAR
WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=CUBIC, fillcolor=GREY)


PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "auto_contrast": lambda i, a: ImageOps.autocontrast(i),
    "equalize": lambda i, a: ImageOps.equalize(i),
    "invert": lambda i, a: ImageOps.invert(i),
    "rotate": lambda i, a: i.rotate(a, resample=CUBIC, fillcolor=GREY),
    "posterize": lambda i, a: ImageOps.posterize(i, int(a)),
    "solarize": lambda i, a: ImageOps.solarize(i, int(a)),
    "solarize_add": lambda i, a: i.point([v + int(a) if v < 128 else v for v in range(256)] * 3),
    "color": lambda i, a: ImageEnhance.Color(i).enhance(a),
    "contrast": lambda i, a: ImageEnhance.Contrast(i).enhance(a),
    "brightness": lambda i, a: ImageEnhance.Brightness(i).enhance(a),
    "sharpness": lambda i, a: ImageEnhance.Sharpness(i).enhance(a),
    "shear_x": lambda i, a: affine(i, 1, a, 0, 0, 1, 0),
    "shear_y": lambda i, a: affine(i, 1, 0, 0, a, 1, 0),
    "translate_x": lambda i, a: affine(i, 1, 0, a * i.width, 0, 1, 0),
    "translate_y": lambda i, a: affine(i, 1, 0, 0, 0, 1, a * i.height),
}


def moved(
    frame: Tensor,
    *,
    angle: float = 0.0,
    move: tuple[float, float] = (0, 0),
    shear: tuple[float, float] = (0, 0),
) -> Tensor:
    return tv.affine(
        frame, angle, list(move), 1.0, list(shear), interpolation=BILINEAR, fill=[float(FILL)] * 3
    )


TORCHVISION: dict[str, Callable[[Tensor, float], Tensor]] = {
    "auto_contrast": lambda f, a: tv.autocontrast(f),
    "equalize": lambda f, a: tv.equalize(f),
    "invert": lambda f, a: tv.invert(f),
    "rotate": lambda f, a: tv.rotate(f, a, interpolation=BILINEAR, fill=[float(FILL)] * 3),
    "posterize": lambda f, a: tv.posterize(f, int(a)),
    "solarize": lambda f, a: tv.solarize(f, min(int(a), 255)),
    "solarize_add": lambda f, a: torch.where(f < 128, f + int(a), f),
    "color": tv.adjust_saturation,
    "contrast": tv.adjust_contrast,
    "brightness": tv.adjust_brightness,
    "sharpness": tv.adjust_sharpness,
    "shear_x": lambda f, a: moved(f, shear=(float(np.degrees(np.arctan(a))), 0)),
    "shear_y": lambda f, a: moved(f, shear=(0, float(np.degrees(np.arctan(a))))),
    "translate_x": lambda f, a: moved(f, move=(-a * f.shape[2], 0)),
    "translate_y": lambda f, a: moved(f, move=(0, -a * f.shape[1])),
}


def marey(clip: Tensor, changes: list[Change]) -> Tensor:
    return apply(clip, changes)


def pillow(clip: Tensor, changes: list[Change]) -> Tensor:
    images = []
    for frame in clip.cpu().numpy():
        image = Image.fromarray(frame)
        for name, amount in changes:
            image = PILLOW[name](image, amount)
        images.append(np.asarray(image))
    return torch.from_numpy(np.stack(images))


def torchvision(clip: Tensor, changes: list[Change]) -> Tensor:
    frames = []
    for frame in clip.permute(0, 3, 1, 2):
        for name, amount in changes:
            frame = TORCHVISION[name](frame, amount)
        frames.append(frame)
    return torch.stack(frames).permute(0, 2, 3, 1)


WAYS = (marey, pillow, torchvision)


def seconds(way: Callable[[Tensor, list[Change]], Tensor], clip: Tensor, work: list[list[Change]]) -> float:
    clock = time.perf_counter if clip.is_cuda else time.process_time
    start = clock()
    for changes in work:
        way(clip, changes)
    if clip.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def picture(frames: int, side: int) -> Tensor:
    """Smooth moving colours with some noise: uint8 [T, side, side, 3]."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((frames, 3, 12, 12), dtype=np.float32))
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").permute(0, 2, 3, 1)
    noise = torch.from_numpy(rng.normal(0, 3, fine.shape).astype(np.float32))
    return (fine * 255 + noise).clamp(0, 255).to(torch.uint8).contiguous()


def compare(clip: Tensor, work: list[list[Change]]) -> float:
    """Share of values that differ between Marey and Pillow; more than 1 apart is too far."""
    for name in OPERATIONS:
        one = [change(name, 7.0)]
        apart = (marey(clip, one).cpu().int() - pillow(clip, one).int()).abs()
        if apart.max() > (name in WARPS):
            raise SystemExit(f"{name} differs from Pillow by up to {apart.max()} grey levels")
    differing = [(marey(clip, c).cpu() != pillow(clip, c)).float().mean().item() for c in work]
    return statistics.fmean(differing)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("frames", 16), ("side", 224), ("clips", 24), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clip = picture(given.frames, given.side).to(given.device)
    work = [draw_changes(PUBLISHED, generator(0, 0, i)) for i in range(given.clips)]
    apart = compare(clip, work[:4])
    print(
        f"{given.frames} frames of {given.side} x {given.side}, {given.clips} clips, {given.threads} thread, "
        f"{given.device}; torch {version('torch')}, pillow {version('pillow')}; not Pillow's: {apart:.1e}"
    )
    rows: dict[str, dict[str, float]] = {}
    print(
        f"{'':14}"
        + "".join(f"{way.__name__ + ' ms':>16}" for way in WAYS)
        + f"{'pillow/marey':>16}{'range':>16}"
    )
    for label, tasks in [("rand augment", work)] + [(name, [[change(name, 7.0)]]) for name in OPERATIONS]:
        times: dict[str, list[float]] = {way.__name__: [] for way in WAYS}
        for turn in range(given.rounds):
            for place in range(len(WAYS)):
                way = WAYS[(turn + place) % len(WAYS)]
                times[way.__name__].append(1000 * seconds(way, clip, tasks) / len(tasks))
        ratios = [p / m for p, m in zip(times["pillow"], times["marey"], strict=True)]
        rows[label] = {name: statistics.median(found) for name, found in times.items()}
        rows[label] |= {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        cells = "".join(f"{rows[label][way.__name__]:16.2f}" for way in WAYS)
        span = f"{min(ratios):.1f}..{max(ratios):.1f}"
        print(f"{label:14}{cells}{rows[label]['ratio']:16.1f}{span:>16}")
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
