"""A small network learns from a large one: what each makes of a clip, and losses between the two.

Published as ResKD (CVMI-Lab/ResKD@c6b85a3:mmaction/models/{backbones/rkd.py,heads/*rkd*.py}): the teacher
sees a clip, the student the same clip reduced; the student's last map is brought to the size of the teacher's
and compared with it, as it is (`feature_mse`) or as class probabilities at every place (`map_kl`). `logit_kl`
compares the two predictions (Hinton et al., arXiv:1503.02531).

Shapes: B clips, C channels, K classes, T x H x W places of a map.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from marey.errors import UsageError

Mean = Literal["positions", "elements"]
Statistics = Literal["running", "batch"]
Precision = Literal["auto", "32", "bf16"]


class Seen(NamedTuple):
    """What a network makes of a batch of clips, as far as it is asked for.

    logits   float [B, K]
    maps     float [B, C, T, H, W], the last map, before pooling
    classes  float [B, K, T, H, W], logits of every place of it
    """

    logits: Tensor | None
    maps: Tensor | None
    classes: Tensor | None


class Wanted(NamedTuple):
    """Which parts of `Seen` somebody needs."""

    logits: bool
    maps: bool
    classes: bool


def look(network: Any, clip: Tensor, wanted: Wanted, projection: nn.Module | None = None) -> Seen:
    """One pass of a network, with or without gradients: float [B, 3, T, H, W] -> Seen.

    Where maps are wanted the prediction is that of their mean, with one dropout mask for it: what the heads
    of ResKD do with every network, TSM included, and what networks that classify the mean of their map do.

    projection  what the map passes before it is compared; the prediction is made without it
    """
    if not (wanted.maps or wanted.classes):
        return Seen(network(clip), None, None)
    maps: Tensor = network.features(clip)
    logits = network.head(network.dropout(maps.mean(dim=(2, 3, 4)))) if wanted.logits else None
    classes = None
    if wanted.classes:
        classes = network.head(maps.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
    if not wanted.maps:
        return Seen(logits, None, classes)
    return Seen(logits, maps if projection is None else projection(maps), classes)


class Student(nn.Module):
    """The network that learns, as a step needs it: prediction and map from one pass, so that processes can
    share its gradients.

    channels  (own, the teacher's) channels of maps that a learnt 1 x 1 x 1 convolution adapts; None: as they
              are. It is needed in training only and is no part of what is saved as the student
    """

    def __init__(self, network: nn.Module, wanted: Wanted, channels: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.network, self.wanted = network, wanted
        self.projection = None if channels is None else nn.Conv3d(*channels, 1)

    def forward(self, clip: Tensor) -> Seen:
        """Float [B, 3, T, H, W] -> Seen, with its logits in any case."""
        return look(self.network, clip, self.wanted, self.projection)


class Teacher:
    """A network that is asked and never changed: no gradients, no updates, statistics as they were.

    statistics  of its batch norms: "running" as in evaluation, or "batch", those of the clips at hand, which
                are not remembered. Without norms over the batch both are the same
    acting      kinds of modules that do what they do in training, for example dropping branches
    precision   "32", "bf16" autocast, or "auto": bf16 on a GPU that has it, else 32
    compiled    through torch.compile; the first batch then waits for the compiler

    It is no module, so that no optimiser, checkpoint or wrapper finds it inside of the student's.
    """

    def __init__(
        self,
        network: nn.Module,
        wanted: Wanted,
        *,
        statistics: Statistics = "running",
        acting: tuple[type[nn.Module], ...] = (),
        precision: Precision = "auto",
        compiled: bool = False,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        for module in self.network.modules():
            if statistics == "batch" and isinstance(module, _BatchNorm):
                module.training, module.track_running_stats = True, False  # momentum 0, and no counting
            if isinstance(module, acting):
                module.training = True
        for parameter in self.network.parameters():
            order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.ndim)
            if order is not None:
                parameter.data = parameter.data.contiguous(memory_format=order)
        self.wanted, self.precision = wanted, precision
        self.run: Any = torch.compile(look) if compiled else look

    def to(self, device: torch.device) -> "Teacher":
        """On that device."""
        self.network.to(device)
        return self

    @torch.no_grad()  # not inference_mode: what comes out is kept for the student's gradients
    def __call__(self, clip: Tensor) -> Seen:
        """Float [B, 3, T, H, W] -> Seen."""
        place = clip.device.type
        half = self.precision == "bf16" or (
            self.precision == "auto" and place == "cuda" and torch.cuda.is_bf16_supported()
        )
        with torch.autocast(place, torch.bfloat16, enabled=half):
            seen: Seen = self.run(self.network, clip, self.wanted)
        return Seen(*(None if part is None else _full(part) for part in seen))


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps at another height and width: float [B, C, T, H, W] or [B, C, H, W].

    Bilinear with half-pixel centres, without antialiasing, each moment on its own: 224 to 112 is the mean of
    2 x 2 pixels, 4 to 7 interpolates and holds the values of the edge.
    """
    if maps.shape[-2:] == size:
        return maps
    flat = maps.flatten(1, 2) if maps.ndim == 5 else maps
    flat = F.interpolate(flat, size, mode="bilinear", align_corners=False)
    return flat.view(*maps.shape[:-2], *size)


def same_places(student: Tensor, teacher: Tensor, *, pool_time: bool = False) -> tuple[Tensor, Tensor]:
    """Both maps with the teacher's height and width, and as many moments: float [B, ..., T, H, W].

    pool_time  the longer one is averaged down in time, in equal parts as far as they go
    Raises UsageError DISTILL_TIME where the moments differ and must not be pooled.
    """
    ours, theirs = student.shape[2], teacher.shape[2]
    if ours != theirs and not pool_time:
        raise UsageError(
            "DISTILL_TIME",
            f"the student's map has {ours} moments, the teacher's {theirs}; give distill.pool_time=true to "
            "average the longer one, or distill.logit_kl instead of losses between maps",
        )
    least = min(ours, theirs)
    student, teacher = (_shorter(maps, least) for maps in (student, teacher))
    return resize(student, (teacher.shape[3], teacher.shape[4])), teacher


def _shorter(maps: Tensor, length: int) -> Tensor:
    if maps.shape[2] == length:
        return maps
    return F.adaptive_avg_pool3d(maps, (length, maps.shape[3], maps.shape[4]))


def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two maps of the same shape, over everything.

    Raises UsageError DISTILL_CHANNELS where their channels differ.
    """
    if student.shape[1] != teacher.shape[1]:
        raise UsageError(
            "DISTILL_CHANNELS",
            f"the student's map has {student.shape[1]} channels, the teacher's {teacher.shape[1]}; give "
            "distill.projection=true to learn an adapter, or distill.map_kl, which compares classes",
        )
    return F.mse_loss(_full(student), _full(teacher))


def map_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 2.0,
    mean: Mean = "positions",
    independent: bool = False,
) -> Tensor:
    """Divergence of the student's class probabilities from the teacher's at every place, times temperature^2.

    student, teacher  float [B, K, ...], logits
    mean         "positions": over places, of the sum over classes, which does not depend on how many classes
                 there are. "elements": over classes as well, as published; 1/K of it
    independent  every class is a question of its own (sigmoids): the mean over the classes' divergences, in
                 both units
    """
    t, s = (_full(logits) / temperature for logits in (teacher, student))
    if independent:
        yes, no = t.sigmoid(), (-t).sigmoid()
        apart = yes * (F.logsigmoid(t) - F.logsigmoid(s)) + no * (F.logsigmoid(-t) - F.logsigmoid(-s))
        return temperature**2 * apart.mean()
    log_t = t.log_softmax(1)
    apart = log_t.exp() * (log_t - s.log_softmax(1))
    return temperature**2 * (apart.mean() if mean == "elements" else apart.sum(1).mean())


def logit_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 2.0, independent: bool = False
) -> Tensor:
    """The same between two predictions, float [B, K]: mean over the clips."""
    return map_kl(student, teacher, temperature=temperature, independent=independent)


def distillation_loss(
    student: Seen,
    teacher: Seen,
    *,
    feature: float = 0.0,
    classes: float = 0.0,
    logits: float = 0.0,
    temperature: float = 2.0,
    mean: Mean = "positions",
    pool_time: bool = False,
    independent: bool = False,
) -> Tensor:
    """What the student is to learn from the teacher beside the labels: the weighted losses' sum.

    feature, classes, logits  weights of `feature_mse`, `map_kl` and `logit_kl`; 0: it is not computed
    Raises UsageError DISTILL_CHANNELS, DISTILL_TIME.
    """
    total: Tensor | None = None
    for weight, which in ((feature, "maps"), (classes, "classes"), (logits, "logits")):
        ours, theirs = getattr(student, which), getattr(teacher, which)
        if not weight:
            continue
        if which != "logits":
            ours, theirs = same_places(ours, theirs, pool_time=pool_time)
        if which == "maps":
            loss = feature_mse(ours, theirs)
        elif which == "classes":
            loss = map_kl(ours, theirs, temperature=temperature, mean=mean, independent=independent)
        else:
            loss = logit_kl(ours, theirs, temperature=temperature, independent=independent)
        total = weight * loss if total is None else total + weight * loss
    assert total is not None, "some weight is above 0"
    return total


def _full(values: Tensor) -> Tensor:
    """In float32, or float64 where it is that."""
    return values if values.dtype == torch.float64 else values.float()
