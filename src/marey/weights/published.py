"""Releases: published weight files with everything that belongs to them, and where they lie.

The name of a release is the name of its file without suffix; MMAction2's end with the first eight hex digits
of the file's SHA-256. What is listed, what is left out and why stands in the modules of `releases/`. The 2D
ImageNet files of torchvision that trainings start from go by their names, too.
"""

import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

from marey.errors import UsageError, WeightsError, nearest
from marey.models import MODELS
from marey.video.preprocess import Preprocess
from marey.weights.download import download
from marey.weights.release import STAMP, TORCHVISION, clip
from marey.weights.release import Release as Release  # part of this module's interface
from marey.weights.releases import (
    ava,
    csn,
    mvit,
    r2plus1d,
    reskd,
    slowfast,
    slowonly,
    swin,
    tsm,
    tsn,
    uniformer,
)

RELEASES: dict[str, Release] = (
    ava.RELEASES
    | csn.RELEASES
    | mvit.RELEASES
    | r2plus1d.RELEASES
    | slowfast.RELEASES
    | slowonly.RELEASES
    | swin.RELEASES
    | tsm.RELEASES
    | tsn.RELEASES
    | uniformer.RELEASES
    | reskd.RELEASES  # last: one of its configurations has the name of one of MMAction2's
)
IMAGENET_FILES = (  # IMAGENET1K_V1 and V2 of torchvision
    "resnet50-0676ba61",
    "resnet50-11ad3fa6",
    "resnet101-63fe2227",
    "resnet101-cd907fc2",
    "resnet152-394f9c45",
)


def family_preprocess(name: str, segments: int = 8) -> Preprocess:
    """What a fresh network of that name is fed: as the releases of its family, in so many segments.

    3D networks without releases here see 32 frames, every second, as most that are published.
    """
    family = name.partition("_")[0]
    if name.endswith("_det"):
        return ava.clips(32, 2) if family == "slowfast" else ava.clips(4, 16)
    if family == "tsn":
        return tsn.clips(segments)
    if family == "tsm":
        return tsm.clips(segments)
    if family == "slowonly":
        return clip(4, 16)
    if family == "slowfast":
        return slowfast.clips()
    if family == "mvit":
        return mvit.clips(32, 3) if name in ("mvit_b_32x3", "mvit_v2_b") else mvit.clips(16, 4)
    if family == "swin3d":
        return swin.clips()
    if family == "uniformer":
        return uniformer.CLIPS
    return r2plus1d.clips(32) if family == "r2plus1d" else clip(32, 2)


def find(name: str) -> str | None:
    """The full name of a file that is named in full, or without date and hash where one alone fits."""
    fits = [full for full in (*RELEASES, *IMAGENET_FILES) if name in (full, STAMP.sub("", full))]
    return fits[0] if len(fits) == 1 else None


def url(name: str) -> str:
    """Where the file of that full name is published."""
    return RELEASES[name].url if name in RELEASES else f"{TORCHVISION}{name}.pth"


def checksum(name: str) -> str | None:
    """The first digits of its SHA-256, where they are known."""
    return RELEASES[name].sha256 if name in RELEASES else name[-8:]


def cached(name: str) -> Path:
    """Where it lies in the cache folder, once it is there."""
    return cache_folder() / f"{name}{RELEASES[name].suffix if name in RELEASES else '.pth'}"


def locate(source: str | os.PathLike[str]) -> Path:
    """The file that is meant: itself, or that of a release, in the cache folder and with the right hash.

    A release that is not there yet is fetched, and a line on stderr tells of it. Raises UsageError
    UNKNOWN_NAME with the nearest releases; WeightsError WEIGHTS_HASH, WEIGHTS_BY_HAND; and what `download`
    raises.
    """
    path, text = Path(source), os.fspath(source)
    if (
        path.exists()
        or len(path.parts) > 1
        or path.suffix in (".pth", ".pyth", ".pt", ".pkl", ".safetensors")
    ):
        return path
    name = find(text)
    if name is None:
        if text in MODELS:
            raise UsageError(
                "UNKNOWN_NAME",
                f"{text!r} is a network, not a release: `marey zoo --model {text}` lists its releases; "
                "weights of your own are given as a file",
            )
        counts = Counter(STAMP.sub("", full) for full in RELEASES)
        short = [name for name, count in counts.items() if count == 1]
        raise UsageError(
            "UNKNOWN_NAME", f"{text!r} is neither a file nor a release; {nearest(text, [*RELEASES, *short])}"
        )
    file, known = cached(name), checksum(name)
    if not file.exists() and name in RELEASES and RELEASES[name].by_hand:
        raise WeightsError(
            "WEIGHTS_BY_HAND",
            f"{name} lies where no program may fetch it: take it from {url(name)} and put it at "
            f"{str(file)!r}, or give its path instead of its name",
        )
    if not file.exists():
        download(url(name), file, known)
        return file
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if known and not found.startswith(known):
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
