"""Where the persons of a picture are: torchvision's detectors, with weights of a file or of the cache."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models import detection
from torchvision.models._api import get_model, get_model_weights, list_models

from marey.data.proposals import PERSON
from marey.errors import WeightsError, unknown
from marey.metrics.ava_tables import Floats
from marey.training.devices import device_of
from marey.weights.download import download
from marey.weights.published import cache_folder
from marey.weights.reading import read_weights

USUAL = "fasterrcnn_resnet50_fpn"
LEAST = 0.05  # score below which a box is nobody
HEAD = "roi_heads.box_predictor.cls_score.weight"  # its rows are the classes


class Found(NamedTuple):
    """The persons of a picture.

    boxes   float64 [n, 4], x1, y1, x2, y2 as fractions of width and height
    scores  float64 [n], 0..1, descending
    """

    boxes: Floats
    scores: Floats


class PersonDetector:
    """Finds persons in pictures: `detector(frames)`.

    source  a name of torchvision.models.detection, for example "fasterrcnn_resnet50_fpn_v2", whose weights
            are taken from Marey's cache folder or torch's, or are fetched; or a weight file of such a
            network, named like torchvision names it; None: fasterrcnn_resnet50_fpn

    Raises UsageError UNKNOWN_NAME; WeightsError WEIGHTS_MISMATCH, WEIGHTS_NOT_FOUND and those of `download`:
    without a network WEIGHTS_OFFLINE says which file is needed, and where.
    """

    def __init__(self, source: str | os.PathLike[str] | None = None, device: str | None = None) -> None:
        text = USUAL if source is None else os.fspath(source)
        known = list_models(module=detection)
        path = Path(text)
        if path.suffix or path.exists() or len(path.parts) > 1:
            fits = [name for name in known if path.name.startswith(name)]
            self.name = max(fits, key=len, default=USUAL)
        elif text in known:
            self.name, path = text, weights_of(text)
        else:
            raise unknown("person detector", text, known)
        tensors, _ = read_weights(path)
        classes = {"num_classes": len(tensors[HEAD])} if HEAD in tensors else {}
        network = get_model(self.name, weights=None, weights_backbone=None, **classes)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            told = " ".join(str(error).split())
            raise WeightsError(
                "WEIGHTS_MISMATCH",
                f"{str(path)!r} does not fit torchvision's {self.name}: {told:.200}; call the file as "
                "torchvision does, its name says which network it is of",
            ) from None
        self.device = device_of(device)
        self.network: Any = network.eval().requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> list[Found]:
        """The persons of each picture: uint8 [B, H, W, 3] RGB -> B x Found."""
        pictures = [frame.to(self.device).permute(2, 0, 1).float() / 255 for frame in frames]
        size = torch.tensor([frames.shape[2], frames.shape[1]] * 2)
        return [_persons(found, size) for found in self.network(pictures)]


def _persons(found: dict[str, Tensor], size: Tensor) -> Found:
    kept = (found["labels"] == PERSON) & (found["scores"] >= LEAST)
    boxes, scores = (found[name][kept].cpu().double() for name in ("boxes", "scores"))
    area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    order = scores[area].argsort(descending=True, stable=True)
    return Found((boxes[area] / size)[order].clamp(0, 1).numpy(), scores[area][order].numpy())


def weights_of(name: str) -> Path:
    """The file of a detector's usual weights, in Marey's cache folder or torch's; else it is fetched."""
    address = get_model_weights(name).DEFAULT.url  # type: ignore[attr-defined]
    file = address.rpartition("/")[2]
    places: Sequence[Path] = (cache_folder() / file, Path(torch.hub.get_dir()) / "checkpoints" / file)
    for place in places:
        if place.exists():
            return place
    download(address, places[0], Path(file).stem.rpartition("-")[2])
    return places[0]
