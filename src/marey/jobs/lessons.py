"""What a teacher said about the views of a training's clips, kept in a folder, so that it is asked once.

Only a view that comes again can be answered from memory: each clip has so many views (a seed's draws of
frames, crop and mirror), and an epoch takes the next one. What is kept is small: predictions, or class logits
of places, in float16, and rounded so from the first time on, so that a run is the same to the bit whether its
folder was empty or full.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from lightning_fabric.fabric import Fabric
from torch import Tensor

from marey.data.lists import ClipList
from marey.errors import UsageError
from marey.files import replacing
from marey.jobs.runs import flat, plain_json
from marey.recipes.schema import Recipe
from marey.training.distill import Seen

FORMAT = 1
LARGEST = 65504.0  # of float16
UNSEEN = (
    "input_size",
    "input_antialias",
    "val",
    "test",
    "average",
)  # of the preprocessing: not the teacher's


def lesson_key(recipe: Recipe, clips: ClipList, seed: int, device: str) -> dict[str, Any]:
    """What answers depend on: teacher, preprocessing, augmentation, the list and its draws."""
    plan = recipe.distill
    assert plan is not None
    preprocess = msgspec.to_builtins(recipe.clips)
    return {
        "format": FORMAT,
        "teacher": {**msgspec.to_builtins(plan.teacher), "weights": plan.sha256},
        "arithmetic": [plan.precision, device],
        "clips": {name: value for name, value in preprocess.items() if name not in UNSEEN},
        "augment": msgspec.to_builtins(recipe.training.augment),
        "list": clips.fingerprint(),
        "views": plan.views,
        "seed": seed,
    }


class Lessons:
    """The folder: lessons.json, and per part of `Seen` an array [clips, views, copies, ...] with its flags.

    key      of `lesson_key`; UsageError DISTILL_CACHE where the folder was made with another
    example  what the teacher says of one clip
    sizes    (clips, views, copies)
    """

    def __init__(
        self, folder: Path, key: dict[str, Any], example: Seen, sizes: tuple[int, int, int], fabric: Fabric
    ) -> None:
        self.folder, self.arrays = folder, dict[str, Any]()
        parts = {name: part[0] for name, part in example._asdict().items() if part is not None}
        key = {**key, "parts": {name: list(part.shape) for name, part in parts.items()}, "sizes": list(sizes)}
        self._check(key)
        if fabric.is_global_zero and not (folder / "lessons.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            for name, part in parts.items():
                np.lib.format.open_memmap(self._file(name), "w+", np.float16, (*sizes, *part.shape)).flush()
            np.lib.format.open_memmap(self._file("known"), "w+", np.bool_, sizes).flush()
            with replacing(folder / "lessons.json") as file:
                file.write_text(plain_json(key) + "\n", encoding="utf-8")
        fabric.barrier()
        self.arrays = {name: np.load(self._file(name), mmap_mode="r+") for name in parts}
        self.known = np.load(self._file("known"), mmap_mode="r+")

    @property
    def gigabytes(self) -> float:
        """How large the files can become."""
        return float(sum(array.nbytes for array in self.arrays.values())) / 1e9

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _check(self, key: dict[str, Any]) -> None:
        file = self.folder / "lessons.json"
        if not file.exists():
            return
        before, now = flat(msgspec.json.decode(file.read_bytes())), flat(key)
        other = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if other:
            raise UsageError(
                "DISTILL_CACHE",
                f"{self.folder} was made with another {', '.join(other[:5])}; give another folder as "
                "distill.cache, or delete this one",
            )

    def get(self, clips: np.ndarray, view: int, copies: np.ndarray) -> Seen | None:
        """What was said of a batch, on the CPU in float32; None where some of it is missing."""
        place = (clips, view, copies)
        if not self.known[place].all():
            return None
        return Seen(
            **{
                name: torch.from_numpy(self.arrays[name][place].astype(np.float32))
                if name in self.arrays
                else None
                for name in Seen._fields
            }
        )

    def put(self, clips: np.ndarray, view: int, copies: np.ndarray, said: Seen) -> Seen:
        """Keep what was said of a batch, and give it back as it is kept."""
        place, kept = (clips, view, copies), dict[str, Tensor | None]()
        for name, part in said._asdict().items():
            if part is None:
                kept[name] = None
                continue
            half = part.clamp(-LARGEST, LARGEST).half()
            self.arrays[name][place] = half.cpu().numpy()
            kept[name] = half.float()
        self.known[place] = True  # last, so that a killed process leaves nothing half said
        return Seen(**kept)
