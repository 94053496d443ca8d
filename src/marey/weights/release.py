"""What is known of a published weight file; the files themselves are listed in `releases/`."""

import re
from typing import Any

import msgspec

from marey.classes import class_names
from marey.video.preprocess import Preprocess, Protocol
from marey.video.sampling import Rule

OPENMMLAB = "https://download.openmmlab.com/mmaction/"
DROPBOX = "https://www.dropbox.com/s/"
DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
TORCHVISION = "https://download.pytorch.org/models/"
PYSLOWFAST_ZOO = "https://dl.fbaipublicfiles.com/pyslowfast/model_zoo/"
STAMP = re.compile(r"[_-](\d{8}-)?[0-9a-f]{8}$")  # date and hash at the end of a name

CLASSES = {  # rows of the classifiers in published files
    "Kinetics-400": 400,
    "Kinetics-600": 600,
    "Kinetics-700": 700,
    "Kinetics-710": 710,
    "Something-Something V1": 174,
    "Something-Something V2": 174,
    "UCF101": 101,
    "HMDB51": 51,
    "Jester": 27,
    "Diving48": 48,
    "GYM99": 400,  # of which 99 are used: its config keeps the default
    "Moments in Time": 339,
    "Multi-Moments in Time": 313,
    "ActivityNet v1.3": 200,
    "HVU action": 739,
    "HVU attribute": 117,
    "HVU concept": 291,
    "HVU event": 69,
    "HVU object": 1678,
    "HVU scene": 248,
    "FCVID": 239,
    "Mini-Kinetics": 200,
    "Sports-1M": 487,
    "AVA v2.1": 81,  # the first of which is unused
    "AVA v2.2": 81,
    "IG-65M": 359,
}

# pairs of labels that a mirror exchanges
SSV1_PAIRS = ((2, 4), (30, 41), (52, 66))
SSV2_PAIRS = ((86, 87), (93, 94), (166, 167))
JESTER_PAIRS = ((0, 1), (6, 7))


# normalisation of PySlowFast and what is built on it: 0.45 and 0.225 of the range
PYSLOWFAST: dict[str, Any] = {"mean": (114.75,) * 3, "std": (57.375,) * 3}


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to a weight file.

    name         of the file, without suffix
    model, overrides  arguments of `create_model`
    preprocess   what the network was trained with, and the test protocol of the accuracies
    dataset      what it was trained on last
    headless     the file has no classifier: it is there to start from
    top1, top5   as reported, percent
    metrics      other reported figures by the same protocol, percent
    also         top-1 and top-5 that are reported by another protocol, under its description
    videos       size of the source's copy of the videos, where it says so
    recipe       name that the source gives the configuration
    source       project that publishes the file; its licence of code and weights
    folder       MMAction2: folder of the file, * stands for its name without date and hash; VMZ: key of the
                 address
    url, suffix  where the file is, and the end of its name there
    by_hand      no program can fetch the file; `url` is the page that leads to it
    sha256       first digits; None where the source states none
    label_order  what the rows of the classifier mean, as numbers in the data set's own order; (): as there
    """

    name: str = ""
    model: str
    overrides: dict[str, Any] = {}
    preprocess: Preprocess
    dataset: str = "Kinetics-400"
    headless: bool = False
    top1: float | None = None
    top5: float | None = None
    metrics: dict[str, float] = {}
    also: dict[str, tuple[float, float | None]] = {}
    videos: str = ""
    recipe: str | None = None
    source: str = "mmaction2"
    license: str = "Apache-2.0"
    folder: str = "*"
    url: str = ""
    suffix: str = ".pth"
    by_hand: bool = False
    sha256: str | None = None
    label_order: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int | None:
        """Rows of the classifier; None: there is none."""
        return None if self.headless else CLASSES[self.dataset]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """In the order of the classifier's rows; None where they are not free to ship."""
        names = None if self.headless else class_names(self.dataset)
        return tuple(names[place] for place in self.label_order) if names and self.label_order else names

    @property
    def protocol(self) -> str:
        """Frames and crops of the accuracies, for people."""
        if self.model.endswith("_det"):
            return f"{self.preprocess.frames} whole frames around every second, given boxes"
        return protocol_text(self.preprocess, self.preprocess.test)


def named(rows: dict[str, Release]) -> dict[str, Release]:
    """The releases with what follows from their names: address, hash and, unless given, recipe."""
    return {name: _named(name, row) for name, row in rows.items()}


def _named(name: str, row: Release) -> Release:
    if row.source == "vmz":
        address = row.url or f"{DROPBOX}{row.folder}/{name}.pkl?dl=1"
        return msgspec.structs.replace(row, name=name, url=address, suffix=".pkl")
    if row.url:
        return msgspec.structs.replace(row, name=name)
    short = STAMP.sub("", name)
    generation = "v1.0/" if row.preprocess.rule == "1.x" else ""
    kind = f"recognition/{row.model.partition('_')[0].removesuffix('3d')}"
    kind = "detection" if row.model.endswith("_det") else kind
    parts = (f"{OPENMMLAB}{generation}{kind}", row.folder.replace("*", short), f"{name}.pth")
    return msgspec.structs.replace(
        row,
        name=name,
        url="/".join(filter(None, parts)),
        sha256=name[-8:],
        recipe=row.recipe or (None if row.headless else short),
    )


def clip(
    frames: int, interval: int, rule: Rule = "0.x", *, side: int = 256, crop: int = 224, **more: Any
) -> Preprocess:
    """Of 3D networks: consecutive frames; tested on 10 clips x three crops of the whole short side."""
    test = Protocol(clips=10, crops="three", crop=side)
    return Preprocess(
        frames=frames, interval=interval, rule=rule, short_side=side, crop=crop, test=test, **more
    )


def unresized(clips: Preprocess) -> Preprocess:
    """The same, but training clips are cut from frames of whatever size the videos have."""
    val, test = (
        msgspec.structs.replace(p, short_side=clips.plan(p).short_side) for p in (clips.val, clips.test)
    )
    return msgspec.structs.replace(clips, short_side=None, val=val, test=test)


def protocol_text(clips: Preprocess, protocol: Protocol) -> str:
    """A test protocol in words: "10 clips of 32 frames x 3 crops of 256"."""
    plan = clips.plan(protocol)
    number = plan.positions if plan.sampling == "dense" else plan.clips
    passes = f"{number} clips of " if number > 1 else ""
    frames = f"{passes}{'2 x ' if plan.twice else ''}{plan.frames} frames"
    crops = {"center": "1 crop", "three": "3 crops", "ten": "10 crops"}[plan.crops]
    seen = f" reduced to {plan.input_size}" if plan.input_size != plan.crop else ""
    return f"{frames} x {crops} of {plan.crop}{seen}"
