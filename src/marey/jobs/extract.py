"""`marey features`: videos in, pooled feature vectors out, a file per video and one index; resumable."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from marey.errors import MareyError, UsageError, unknown
from marey.jobs.check_files import stamp
from marey.jobs.extract_files import Format, file_of, write_features, write_index
from marey.jobs.manifest import Item, Manifest, Shard
from marey.jobs.pieces import Made, Per, Piece, Span, Task, check_all, each_video, made_by
from marey.jobs.setup_features import takes_features
from marey.models.fold import folded
from marey.models.parts import ResNet
from marey.models.tsn import TSN
from marey.training.devices import device_of
from marey.video.preprocess import Preprocess, Views, normalize
from marey.video.source import Source, expand
from marey.weights.create import create_model, open_model

VERSION = 1  # of the features and the index; what another version made is not continued
Dtype = Literal["float16", "float32"]
Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Source]


class Extracted(NamedTuple):
    """What an extraction did, and what its folder holds by now.

    done, skipped, failed  videos of this run: finished now, finished before, not readable
    rows, bad              of the index: vectors, and videos without any
    """

    folder: Path
    done: int
    skipped: int
    failed: int
    rows: int
    bad: int


def extract_features(
    model: nn.Module | str | os.PathLike[str],
    sources: Sources,
    out: str | os.PathLike[str],
    *,
    per: Per = "clip",
    layer: str | None = None,
    dtype: Dtype = "float32",
    format: Format = "safetensors",
    resume: bool = False,
    shard: Shard | None = None,
    template: str | None = None,
    device: str | None = None,
    workers: int = -1,
    views_per_forward: int = 10,
    frames: int | None = None,
    quiet: bool = False,
) -> Extracted:
    """Pooled features of each video: a file per video in the folder `out`, and `index.jsonl` over them all.

    model    a network made by `create_model`, a checkpoint that `marey train` wrote, or a release's name
    sources  as for `predict`; a video that is named twice is read once
    per      "clip": a row per clip of the network's test protocol, the mean of its crops; "video": one row,
             the mean of all views of the test protocol; a number: a row per window of so many seconds (and at
             least one clip of the network), the mean of the views of the validation protocol
    layer    None: `model.embed`; else a module's name, whose output is averaged over time and space, or over
             tokens. Of transformers, maps are not taken: their channels may stand first or last
    dtype    what is stored; the network computes in float32
    resume   continue the folder: videos that are finished and unchanged are skipped, failed ones tried again
    shard    only this part of the videos; several processes may fill one folder, so it implies `resume`
    workers  decoding processes; -1: one per core, at most eight; 0: this one decodes
    frames   frames of a clip, for networks that look at each frame alone (TSN); 1: a frame per row
    quiet    no progress and no failures on stderr

    A video that cannot be read gets a line with its error code in the index. The rows of a video depend on no
    other video, and not on workers, shards or interruptions. Raises UsageError PER, LAYER, FRAMES, NO_CLIPS,
    UNKNOWN_NAME, FOLDER_USED and RESUME_MISMATCH (other weights or settings made the folder), and Interrupted
    after SIGINT, SIGTERM or SIGUSR1, when all that is finished is saved and in the index.
    """
    _check(per, dtype, format)
    network: Any = model if isinstance(model, nn.Module) else open_model(model)
    if takes_features(network):
        raise UsageError("NO_CLIPS", "features are taken of clips; this network takes features itself")
    clips = network.preprocess if frames is None else of_frames(network, frames)
    embedding = Embedding(network, layer, device, views_per_forward)
    made = made_by(network, clips)
    about = {
        "model": made["model"],
        "weights_sha256": made["weights_sha256"],
        "layer": layer or "embed",
        "per": per,
        "dtype": dtype,
    }
    settings = made | about | {"version": VERSION, "format": format, "template": template}
    manifest = Manifest(out, "features", settings, resume=resume or shard is not None)
    found = sources_by_path(sources, template)
    items = [Item(path, stamp(path)) for path in found if shard is None or shard.holds(path)]
    waiting = manifest.waiting(items)
    tasks = {i: Task(i.key, found[i.key].name, found[i.key].template, clips, per) for i in waiting}

    def store(item: Item, parts: Iterator[Piece]) -> Made:
        rows, name, file = Rows(dtype), {"source": found[item.key].name}, file_of(item.key, format)
        for piece in parts:
            rows.add(piece, embedding(piece.views), mean=per != "clip")
            notes = piece.notes
        write_features(manifest.folder / file, rows.features(), rows.seconds(), name | about, format)
        return file, name | {"spans": rows.spans, "notes": notes}

    ended, failed = each_video("features", manifest, tasks, store, workers=workers, quiet=quiet)
    vectors, bad = write_index(manifest, manifest.folder / "index.jsonl")
    check_all(ended, len(waiting))
    return Extracted(manifest.folder, ended - failed, len(items) - len(waiting), failed, vectors, bad)


def _check(per: Per, dtype: str, format: str) -> None:
    if isinstance(per, str) and per not in ("clip", "video"):
        raise unknown("kind of row", per, ("clip", "video"))
    if not isinstance(per, str) and not per > 0:
        raise UsageError("PER", f"windows must last more than 0 seconds, not {per}")
    for name, value, known in (("dtype", dtype, get_args(Dtype)), ("format", format, get_args(Format))):
        if value not in known:
            raise unknown(name, value, known)


def open_backbone(name: str, weights: str | os.PathLike[str]) -> nn.Module:
    """A network with the weights of a file that need not have its classifier: an ImageNet ResNet for TSN.

    A classifier that the file lacks is zeros, so that the same file always gives the same hash of weights.
    Raises as `create_model`.
    """
    network: Any = create_model(name, weights=weights).eval()
    if network.load_report.head == "fresh":
        with torch.no_grad():
            for parameter in network.head.parameters():
                parameter.zero_()
    model: nn.Module = network
    return model


def of_frames(network: nn.Module, frames: int) -> Preprocess:
    """The network's preprocessing with clips of so many frames. Raises UsageError FRAMES."""
    clips: Preprocess = network.preprocess  # type: ignore[assignment]
    if not isinstance(network, TSN) or frames < 1:
        name = type(network).__name__
        raise UsageError(
            "FRAMES", f"clips of {frames} frames of a {name}; only TSN takes any number of frames, 1 or more"
        )
    val, test = (msgspec.structs.replace(protocol, frames=None) for protocol in (clips.val, clips.test))
    return msgspec.structs.replace(clips, frames=frames, val=val, test=test)


def sources_by_path(sources: Sources, template: str | None = None) -> dict[str, Source]:
    """What is named, by full path, each once."""
    names = [sources] if isinstance(sources, str | os.PathLike) else sources
    found: dict[str, Source] = {}
    for name in names or [""]:  # none: `expand` says so
        given = [name] if isinstance(name, Source) else expand([name] if names else [], template)
        for source in given:
            found.setdefault(os.path.abspath(source.path), source)  # noqa: PTH100 - a link stays a link
    return found


# Embedding --------------------------------------------------------------------------------------------


class Embedding:
    """Views in, vectors out: the network's `embed`, or the pooled output of one of its modules.

    Raises UsageError UNKNOWN_NAME for a module that is not there, LAYER for one that gives no vectors.
    """

    def __init__(self, network: Any, layer: str | None, device: str | None, chunk: int) -> None:
        self.device = device_of(device)
        self.preprocess, self.layer, self.chunk = network.preprocess, layer, chunk
        names = [name for name, _ in network.named_modules() if name]
        if layer is not None and layer not in names:
            raise unknown("layer", layer, names)
        # a folded copy has other modules, so only the pooled features come from one
        self.network: Any = (folded(network) if layer is None else network.eval()).to(self.device)

    @torch.inference_mode()
    def __call__(self, windows: Sequence[Views]) -> list[Tensor]:
        """Vectors of each window's views, float32 [V, C] on the CPU; `chunk` views go through at once."""
        singles = (views.batch(i, i + 1) for views in windows for i in range(len(views)))
        rows = []
        while part := list(islice(singles, self.chunk)):
            clips = normalize(torch.cat(part).to(self.device), self.preprocess)
            rows.append(self.vectors(clips).float().cpu())
        return list(torch.split(torch.cat(rows), [len(views) for views in windows]))

    def vectors(self, clips: Tensor) -> Tensor:
        """Float [B, 3, T, H, W] -> float [B, C]; the passes of a clip (TSM) are averaged."""
        if self.layer is None:
            found: Tensor = self.network.embed(clips)
            return _pooled(found, len(clips))
        taken: list[Tensor] = []

        def take(_: nn.Module, __: object, output: Any) -> None:
            if not isinstance(output, Tensor) or output.dim() < 2 or len(output) % len(clips):
                raise UsageError("LAYER", f"layer {self.layer!r} gives no vectors; name another")
            if output.dim() > 3 and not isinstance(self.network, ResNet):  # channels may be first or last
                raise UsageError(
                    "LAYER", f"layer {self.layer!r} gives a map, not tokens or a vector; name another"
                )
            taken.append(_pooled(output, len(clips)))  # at once: the next module may write over it

        hook = self.network.get_submodule(self.layer).register_forward_hook(take)
        try:
            self.network(clips)
        finally:
            hook.remove()
        if not taken:
            raise UsageError("LAYER", f"layer {self.layer!r} is not used in a forward pass; name another")
        return taken[-1]


def _pooled(output: Tensor, clips: int) -> Tensor:
    """[B * k, C], [B * k, tokens, C] or [B * k, C, (T,) H, W] -> [B, C], the mean of everything else.

    k counts what a 2D network makes of a clip: its frames, or its passes.
    """
    rows = output.mean(1) if output.dim() == 3 else output.flatten(2).mean(2) if output.dim() > 3 else output
    return rows.reshape(clips, -1, rows.shape[1]).mean(1)


class Rows:
    """The rows of one video, as they will be stored."""

    def __init__(self, dtype: Dtype) -> None:
        self.dtype = dtype
        self.spans: list[Span] = []
        self.parts: list[NDArray[Any]] = []

    def add(self, piece: Piece, vectors: list[Tensor], *, mean: bool) -> None:
        """Take the rows of a piece: a mean per window, or one per clip of the only window.

        Raises MareyError FEATURES_NOT_FINITE.
        """
        if mean:
            rows = torch.stack([views.mean(0) for views in vectors])
        else:  # view = crop * clips + clip
            rows = vectors[0].reshape(-1, len(piece.spans), vectors[0].shape[1]).mean(0)
        with np.errstate(over="ignore"):
            stored = rows.numpy().astype(self.dtype)
        if not np.isfinite(stored).all():
            raise MareyError(
                "FEATURES_NOT_FINITE", f"features are NaN, or too large for {self.dtype}; nothing is stored"
            )
        self.parts.append(stored)
        self.spans += piece.spans

    def features(self) -> NDArray[Any]:
        """[rows, C]."""
        return np.concatenate(self.parts)

    def seconds(self) -> NDArray[np.float64]:
        """[rows, 2], start and end of each."""
        return np.array([span[:2] for span in self.spans])
