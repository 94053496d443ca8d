"""Releases: published weight files with everything that belongs to them.

The name of a release is the name of its file without `.pth`; it ends with the first eight hex digits of the
file's SHA-256. Nothing is downloaded: a release is looked for in the cache folder. Facts: READMEs and configs
of open-mmlab/mmaction2@v0.24.1 and @4d6c9347; licence of code and weights Apache-2.0. Accuracies are percent
on the Kinetics-400 validation set, by the test protocol of `preprocess`.

Left out: tsm_r50_gpu_normalize (its source states no normalisation) and the 1.x 8x8 SlowOnly with non-local
blocks (its file name carries the hash of another file).
"""

import hashlib
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from marey.errors import UsageError, WeightsError, nearest
from marey.video.geometry import Crops
from marey.video.preprocess import Preprocess, Protocol
from marey.video.sampling import Rule

BASE = "https://download.openmmlab.com/mmaction/"
STAMP = re.compile(r"[_-](\d{8}-)?[0-9a-f]{8}$")  # date and hash at the end of a name


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to a weight file.

    model, overrides  arguments of `create_model`
    preprocess        what the network was trained with, and the test protocol of the accuracies
    top1, top5        as reported, percent
    folder            folder of the file; * stands for its name without date and hash
    """

    model: str
    overrides: dict[str, Any]
    preprocess: Preprocess
    top1: float
    top5: float
    folder: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """Kinetics-400 in alphabetical order, as MMAction2 and torchvision number it."""
        from torchvision.models.video import R3D_18_Weights  # late: it imports many networks

        return tuple(R3D_18_Weights.KINETICS400_V1.meta["categories"])


def family_preprocess(name: str, segments: int = 8) -> Preprocess:
    """What a fresh network of that name is fed: as the first release of its family, in so many segments."""
    family = name.partition("_")[0]
    if family == "slowonly":
        return _slowonly("4x16", 0, 0).preprocess
    release = _tsn(segments, "ten", 0, 0) if family == "tsn" else _tsm(segments, "center", 0, 0)
    return release.preprocess


def find(name: str) -> str | None:
    """The full name of a release that is named in full, or without date and hash where one alone fits."""
    fits = [full for full in RELEASES if name in (full, STAMP.sub("", full))]
    return fits[0] if len(fits) == 1 else None


def url(name: str) -> str:
    """Where the file of a release is published."""
    release = RELEASES[name]
    generation = "v1.0/" if release.preprocess.rule == "1.x" else ""
    folder = release.folder.replace("*", STAMP.sub("", name))
    return f"{BASE}{generation}recognition/{release.model.partition('_')[0]}/{folder}/{name}.pth"


def locate(source: str | os.PathLike[str]) -> Path:
    """The file that is meant: itself, or that of a release, in the cache folder and with the right hash.

    Raises UsageError UNKNOWN_NAME with the nearest releases; WeightsError WEIGHTS_OFFLINE with what to fetch
    from where to where, or WEIGHTS_HASH.
    """
    path, text = Path(source), os.fspath(source)
    if path.exists() or len(path.parts) > 1 or path.suffix in (".pth", ".pt", ".pkl", ".safetensors"):
        return path
    name = find(text)
    if name is None:
        counts = Counter(STAMP.sub("", full) for full in RELEASES)
        short = [name for name, count in counts.items() if count == 1]
        raise UsageError(
            "UNKNOWN_NAME", f"{text!r} is neither a file nor a release; {nearest(text, [*RELEASES, *short])}"
        )
    file = cache_folder() / f"{name}.pth"
    if not file.exists():
        raise WeightsError(
            "WEIGHTS_OFFLINE",
            f"{name}.pth is not in the cache: get {url(name)} (sha256 begins with {name[-8:]}) and put it at "
            f"{str(file)!r}; MAREY_CACHE names another folder",
        )
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(name[-8:]):
        raise WeightsError(
            "WEIGHTS_HASH", f"{str(file)!r} is damaged: its sha256 begins with {found[:8]}; get {url(name)}"
        )
    return file


def cache_folder() -> Path:
    """MAREY_CACHE, or `marey` in the platform's cache folder; it need not exist."""
    if "MAREY_CACHE" in os.environ:
        return Path(os.environ["MAREY_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "marey"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/marey"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "marey"


def _crops(crops: Crops) -> dict[str, Any]:
    return {"crops": crops, "crop": 256 if crops == "three" else 224}


def _slowonly(
    clip: str,
    top1: float,
    top5: float,
    *,
    model: str = "slowonly_r50",
    rule: Rule = "0.x",
    folder: str = "*",
    **overrides: Any,
) -> Release:
    """`clip` is frames x interval; tested on 10 clips x 3 crops."""
    frames, interval = map(int, clip.split("x"))
    preprocess = Preprocess(
        sampling="clip",
        frames=frames,
        interval=interval,
        rule=rule,
        train_crop="area",
        test=Protocol(clips=10, **_crops("three")),
    )
    return Release(
        model=model, overrides=overrides, preprocess=preprocess, top1=top1, top5=top5, folder=folder
    )


def _tsn(
    segments: int,
    crops: Crops,
    top1: float,
    top5: float,
    *,
    dense: bool = False,
    test_frames: int | None = None,
    model: str = "tsn_r50",
    rule: Rule = "0.x",
    folder: str = "*",
) -> Release:
    """Tested on 25 segments, or in dense sampling on 10 windows of 8 frames, of each crop.

    Upstream averages the features of all frames and crops before the linear classifier, which is the mean of
    logits: average="score".
    """
    preprocess = Preprocess(
        sampling="dense" if dense else "segments",
        frames=segments,
        rule=rule,
        train_crop="multiscale5",
        average="score",
        test=Protocol(frames=test_frames or (8 if dense else 25), **_crops(crops)),
    )
    return Release(
        model=model,
        overrides={"segments": segments},
        preprocess=preprocess,
        top1=top1,
        top5=top5,
        folder=folder,
    )


def _tsm(
    segments: int,
    crops: Crops,
    top1: float,
    top5: float,
    *,
    dense: bool = False,
    model: str = "tsm_r50",
    rule: Rule = "0.x",
    folder: str = "*",
    **overrides: Any,
) -> Release:
    """Tested on one clip of the segments, or in dense sampling on 10 windows, of each crop."""
    preprocess = Preprocess(
        sampling="dense" if dense else "segments",
        frames=segments,
        rule=rule,
        train_crop="multiscale13",
        test=Protocol(**_crops(crops)),
    )
    return Release(
        model=model,
        overrides={"segments": segments, **overrides},
        preprocess=preprocess,
        top1=top1,
        top5=top5,
        folder=folder,
    )


RELEASES: dict[str, Release] = {
    "slowonly_r50_256p_4x16x1_256e_kinetics400_rgb_20200820-bea7701f": _slowonly("4x16", 72.76, 90.51),
    "slowonly_r50_video_320p_4x16x1_256e_kinetics400_rgb_20201014-c9cdc656": _slowonly("4x16", 72.9, 90.82),
    "slowonly_r50_256p_8x8x1_256e_kinetics400_rgb_20200820-75851a7d": _slowonly("8x8", 74.42, 91.49),
    "slowonly_r50_4x16x1_256e_kinetics400_rgb_20200704-a69556c6": _slowonly("4x16", 73.02, 90.77),
    "slowonly_r50_8x8x1_256e_kinetics400_rgb_20200703-a79c555a": _slowonly("8x8", 74.93, 91.92),
    "slowonly_imagenet_pretrained_r50_4x16x1_150e_kinetics400_rgb_20200912-1e8fc736": _slowonly(
        "4x16", 73.39, 91.12
    ),
    "slowonly_imagenet_pretrained_r50_8x8x1_150e_kinetics400_rgb_20200912-3f9ce182": _slowonly(
        "8x8", 75.55, 92.04
    ),
    "slowonly_nl_embedded_gaussian_r50_4x16x1_150e_kinetics400_rgb_20210308-0d6e5a69": _slowonly(
        "4x16", 74.54, 91.73, non_local="embedded_gaussian"
    ),
    "slowonly_nl_embedded_gaussian_r50_8x8x1_150e_kinetics400_rgb_20210308-e8dd9e82": _slowonly(
        "8x8", 76.07, 92.42, non_local="embedded_gaussian"
    ),
    "slowonly_r50_randomresizedcrop_340x256_4x16x1_256e_kinetics400_rgb_20200803-dadca1a3": _slowonly(
        "4x16", 71.61, 90.05, folder="data_benchmark/*"
    ),
    "slowonly_r50_omni_4x16x1_kinetics400_rgb_20200926-51b1f7ea": _slowonly(
        "4x16", 76.8, 92.5, folder="omni"
    ),
    "slowonly_r101_without_omni_8x8x1_kinetics400_rgb_20200926-0c730aef": _slowonly(
        "8x8", 76.5, 92.7, model="slowonly_r101", folder="omni"
    ),
    "slowonly_r101_omni_8x8x1_kinetics400_rgb_20200926-b5dbb701": _slowonly(
        "8x8", 80.4, 94.4, model="slowonly_r101", folder="omni"
    ),
    "slowonly_r50_4x16x1_256e_8xb16_kinetics400-rgb_20220901-f6a40d08": _slowonly(
        "4x16", 72.97, 90.88, rule="1.x", folder="slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb"
    ),
    "slowonly_r50_8xb16-8x8x1-256e_kinetics400-rgb_20220901-2132fc87": _slowonly(
        "8x8", 75.15, 92.11, rule="1.x"
    ),
    "slowonly_r101_8xb16-8x8x1-196e_kinetics400-rgb_20220901-e6281431": _slowonly(
        "8x8", 76.59, 92.8, model="slowonly_r101", rule="1.x"
    ),
    "slowonly_imagenet-pretrained-r50_8xb16-4x16x1-steplr-150e_kinetics400-rgb_20220901-e7b65fad": _slowonly(
        "4x16", 75.12, 91.72, rule="1.x"
    ),
    "slowonly_imagenet-pretrained-r50_8xb16-8x8x1-steplr-150e_kinetics400-rgb_20220901-df42dc84": _slowonly(
        "8x8", 76.45, 92.55, rule="1.x"
    ),
    "slowonly_r50-in1k-pre-nl-embedded-gaussian_8xb16-4x16x1-steplr-150e_kinetics400-rgb_20220901-cf739c75": _slowonly(  # noqa: E501
        "4x16", 75.07, 91.69, non_local="embedded_gaussian", rule="1.x"
    ),
    "tsn_r50_1x1x3_100e_kinetics400_rgb_20200614-e508be42": _tsn(3, "ten", 70.6, 89.26),
    "tsn_r50_256p_1x1x3_100e_kinetics400_rgb_20200725-22592236": _tsn(3, "ten", 70.42, 89.03),
    "tsn_r50_dense_1x1x5_100e_kinetics400_rgb_20200627-a063165f": _tsn(5, "center", 70.18, 89.1, dense=True),
    "tsn_r50_320p_1x1x3_100e_kinetics400_rgb_20200702-cc665e2a": _tsn(3, "three", 70.91, 89.51),
    "tsn_r50_256p_1x1x8_100e_kinetics400_rgb_20200817-883baf16": _tsn(8, "three", 71.8, 90.17),
    "tsn_r50_320p_1x1x8_100e_kinetics400_rgb_20200702-ef80e3d7": _tsn(8, "three", 72.41, 90.55),
    "tsn_r50_video_320p_1x1x3_100e_kinetics400_rgb_20201014-5ae1ee79": _tsn(3, "three", 71.11, 90.04),
    "tsn_r50_dense_1x1x8_100e_kinetics400_rgb_20200606-e925e6e3": _tsn(8, "center", 70.77, 89.3, dense=True),
    "tsn_r50_video_1x1x8_100e_kinetics400_rgb_20200702-568cde33": _tsn(8, "ten", 71.14, 89.63),
    "tsn_r50_video_dense_1x1x8_100e_kinetics400_rgb_20200703-0f19175f": _tsn(
        8, "ten", 70.4, 89.12, dense=True
    ),
    "tsn_r50_randomresizedcrop_340x256_1x1x3_100e_kinetics400_rgb_20200725-88cb325a": _tsn(
        3, "ten", 70.11, 89.01, folder="data_benchmark/*"
    ),
    "tsn_r50_multiscalecrop_320p_1x1x3_100e_kinetics400_rgb_20200725-9922802f": _tsn(
        3, "ten", 70.32, 89.25, folder="data_benchmark/*"
    ),
    "tsn_r50_256p_randomresize_1x1x3_100e_kinetics400_rgb_20200817-ae7963ca": _tsn(3, "three", 69.8, 89.06),
    "tsn_imagenet_pretrained_r50_omni_1x1x3_kinetics400_rgb_20200926-54192355": _tsn(
        3, "ten", 73.6, 91.0, folder="omni"
    ),
    "tsn_1G1B_pretrained_r50_without_omni_1x1x3_kinetics400_rgb_20200926-c133dd49": _tsn(
        3, "ten", 73.1, 90.4, folder="omni"
    ),
    "tsn_1G1B_pretrained_r50_omni_1x1x3_kinetics400_rgb_20200926-2863fed0": _tsn(
        3, "ten", 75.7, 91.9, folder="omni"
    ),
    "tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb_20220906-cd10898e": _tsn(
        3, "ten", 72.83, 90.65, rule="1.x"
    ),
    "tsn_imagenet-pretrained-r50_8xb32-1x1x5-100e_kinetics400-rgb_20220906-65d68713": _tsn(
        5, "ten", 73.8, 91.21, rule="1.x"
    ),
    "tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb_20220906-2692d16c": _tsn(
        8, "ten", 74.12, 91.34, rule="1.x"
    ),
    "tsn_imagenet-pretrained-r50_8xb32-dense-1x1x5-100e_kinetics400-rgb_20220906-dcbc6e01": _tsn(
        5, "center", 71.37, 89.67, dense=True, test_frames=25, rule="1.x"
    ),
    "tsn_imagenet-pretrained-r101_8xb32-1x1x8-100e_kinetics400-rgb_20220906-23cff032": _tsn(
        8, "ten", 75.89, 92.07, model="tsn_r101", rule="1.x"
    ),
    "tsm_r50_1x1x8_50e_kinetics400_rgb_20200607-af7fb746": _tsm(8, "center", 70.24, 89.56),
    "tsm_r50_256p_1x1x8_50e_kinetics400_rgb_20200726-020785e2": _tsm(8, "center", 70.59, 89.52),
    "tsm_r50_1x1x8_50e_kinetics400_rgb_20210701-68d582b4": _tsm(8, "center", 70.73, 89.81),
    "tsm_r50_1x1x8_100e_kinetics400_rgb_20210701-7ff22268": _tsm(8, "center", 71.9, 90.03),
    "tsm_r50_video_1x1x8_100e_kinetics400_rgb_20200702-a77f4328": _tsm(8, "center", 70.25, 89.66),
    "tsm_r50_dense_1x1x8_50e_kinetics400_rgb_20210701-a54ff3d3": _tsm(8, "ten", 73.46, 90.84, dense=True),
    "tsm_r50_dense_1x1x8_100e_kinetics400_rgb_20210701-e3e5e97f": _tsm(8, "ten", 74.55, 91.74, dense=True),
    "tsm_r50_340x256_1x1x16_50e_kinetics400_rgb_20201011-2f27f229": _tsm(
        16, "ten", 72.09, 90.37, folder="tsm_r50_1x1x16_50e_kinetics400_rgb"
    ),
    "tsm_r50_256p_1x1x16_50e_kinetics400_rgb_20201010-85645c2a": _tsm(16, "ten", 71.89, 90.73),
    "tsm_r50_1x1x16_100e_kinetics400_rgb_20210701-41ac92b9": _tsm(16, "ten", 72.8, 90.75),
    "tsm_nl_embedded_gaussian_r50_1x1x8_50e_kinetics400_rgb_20200724-f00f1336": _tsm(
        8, "center", 72.03, 90.25, non_local="embedded_gaussian"
    ),
    "tsm_nl_gaussian_r50_1x1x8_50e_kinetics400_rgb_20200816-b93fd297": _tsm(
        8, "center", 70.7, 89.9, non_local="gaussian"
    ),
    "tsm_nl_dot_product_r50_1x1x8_50e_kinetics400_rgb_20200724-d8ad84d2": _tsm(
        8, "center", 71.6, 90.34, non_local="dot_product"
    ),
    "tsm_r50_1x1x16_50e_kinetics400_rgb_20210701-7c0c5d54": _tsm(16, "ten", 72.8, 90.75),
    "tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb_20220831-64d69186": _tsm(
        8, "ten", 73.18, 90.56, rule="1.x"
    ),
    "tsm_imagenet-pretrained-r50_8xb16-1x1x8-100e_kinetics400-rgb_20220831-a6db1e5d": _tsm(
        8, "ten", 73.22, 90.22, rule="1.x"
    ),
    "tsm_imagenet-pretrained-r50_8xb16-1x1x16-50e_kinetics400-rgb_20220831-042b1748": _tsm(
        16, "ten", 75.12, 91.55, rule="1.x"
    ),
    "tsm_imagenet-pretrained-r50_8xb16-dense-1x1x8-50e_kinetics400-rgb_20220831-f55d3c2b": _tsm(
        8, "ten", 73.38, 90.78, dense=True, rule="1.x"
    ),
    "tsm_imagenet-pretrained-r50-nl-dot-product_8xb16-1x1x8-50e_kinetics400-rgb_20220831-108bfde5": _tsm(
        8, "ten", 74.49, 91.15, non_local="dot_product", rule="1.x"
    ),
    "tsm_imagenet-pretrained-r50-nl-gaussian_8xb16-1x1x8-50e_kinetics400-rgb_20220831-7e54dacf": _tsm(
        8, "ten", 73.66, 90.99, non_local="gaussian", rule="1.x"
    ),
    "tsm_imagenet-pretrained-r50-nl-embedded-gaussian_8xb16-1x1x8-50e_kinetics400-rgb_20220831-35eddb57": _tsm(  # noqa: E501
        8, "ten", 74.34, 91.23, non_local="embedded_gaussian", rule="1.x"
    ),
}
