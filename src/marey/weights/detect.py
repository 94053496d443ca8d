"""Which network a weight file belongs to: by its name or hash where it is a release, else by its tensors.

The tensors are tried on every network there is, as shells without memory, by the same strict rules that load
them; so what is found here also loads. Some settings leave no trace in tensors. They are named in `notes`.
"""

import hashlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from marey.errors import UsageError, WeightsError, unknown
from marey.models import DETECTORS, MODELS, NETWORKS
from marey.models.nonlocal_ import ZOO_PLACES
from marey.models.parts import DEPTHS
from marey.models.shell import shell
from marey.video.preprocess import Preprocess
from marey.weights import reskd
from marey.weights.load import fill, held_classes, of_boxes, recognise
from marey.weights.names import Match
from marey.weights.published import RELEASES, family_preprocess, find

ATTENDING = re.compile(r"\bstage(\d)\.(\d+)\.non_local\.")
BLOCK = re.compile(r"^trunk\.stage[1-4]\.\d+\.")
DEPTH = re.compile(r"_r(\d+)(?=_|$)")
POOLED = re.compile(r"\blayer2\.net\.")
# settings that no tensor shows, where a network has them; a release knows them
UNSEEN = ("segments", "shift_div", "non_local_scale", "alpha", "time_pool", "bins", "samples", "aligned")
OF_BANKS = ("window", "per_step", "pre_activate")  # the same of detectors with long_term


class Fit(msgspec.Struct, frozen=True):
    """A network that a file fits: arguments of `create_model`."""

    model: str
    overrides: dict[str, Any]

    def __str__(self) -> str:
        values = (f"{key}={msgspec.json.encode(value).decode()}" for key, value in self.overrides.items())
        return " ".join([self.model, *(value.replace('"', "") for value in values)])


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to a weight file.

    model, num_classes, overrides   arguments of `create_model`
    preprocess   what the network is fed; None: features of frames, no clips
    class_names  in label order, or None where unknown
    release      the release that it is, or None
    notes        what was assumed, a line each
    """

    model: str
    num_classes: int
    overrides: dict[str, Any]
    preprocess: Preprocess | None
    class_names: tuple[str, ...] | None
    release: str | None
    notes: tuple[str, ...] = ()


def identify(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    model: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Identity:
    """What belongs to a file with these tensors.

    model      name of a network, or of a release that the file is like in everything else; None: find it
    overrides  arguments of the network that are known

    Raises UsageError MODEL_AMBIGUOUS with the networks that come into question, or UNKNOWN_NAME; WeightsError
    WEIGHTS_LAYOUT where the file fits no network, WEIGHTS_MISMATCH where it does not fit the given one or has
    no classifier.
    """
    found, given = recognise(tensors), dict(overrides or {})
    classes = _classes(tensors, found)
    if classes is None:
        raise WeightsError(
            "WEIGHTS_MISMATCH",
            f"{str(path)!r} holds no classifier for videos: a training can start from it (model.weights), "
            "but it cannot predict",
        )
    notes: list[str] = []
    if model is None or model in NETWORKS:
        name = release_of(path, notes)
        if name is not None and model not in (None, RELEASES[name].model):
            name = None
    else:
        name = find(model)
        if name not in RELEASES:
            raise unknown("network or release", model, [*NETWORKS, *RELEASES])
        notes.append(f"preprocessing and class names as of {name}, as it was told")
    if name is not None:
        release = RELEASES[name]
        arguments = {**release.overrides, **given}
        _load(tensors, found, Fit(release.model, arguments))
        names = release.class_names if classes == len(release.class_names or ()) else None
        return Identity(
            model=release.model,
            num_classes=classes,
            overrides=arguments,
            preprocess=release.preprocess,
            class_names=names,
            release=name if model is None or model in NETWORKS else None,
            notes=tuple(notes),
        )
    kind = DETECTORS if of_boxes(found) else MODELS
    fits = candidates(tensors, [model] if model else kind, given)
    if not fits and model:
        _load(tensors, found, Fit(model, given))  # says what does not fit
    if not fits:
        raise WeightsError(
            "WEIGHTS_LAYOUT", f"the tensors of {str(path)!r} fit none of the {len(kind)} networks there are"
        )
    if len(fits) > 1:
        raise UsageError(
            "MODEL_AMBIGUOUS",
            f"the tensors of {str(path)!r} fit {' and '.join(map(str, fits))}; say which it is: `marey "
            "convert FILE OUT.safetensors --model NAME [KEY=VALUE]`, NAME a network or a release like it",
        )
    fit = fits[0]
    known = inspect.signature(NETWORKS[fit.model]).parameters
    settings = UNSEEN + (OF_BANKS if "long_term" in fit.overrides else ())
    unseen = [key for key in settings if key in known and key not in fit.overrides]
    if "non_local" not in fit.overrides:
        unseen = [key for key in unseen if key != "non_local_scale"]
    if unseen:
        values = ", ".join(f"{key}={known[key].default}" for key in unseen)
        notes.append(f"tensors do not show {' and '.join(unseen)}: {values} assumed")
    segments = fit.overrides.get("segments", known["segments"].default if "segments" in known else 8)
    features = fit.model == "nextvlad"
    family = fit.model.partition("_")[0]
    notes.append(
        "not a known release: no class names"
        if features
        else f"not a known release: preprocessing as of {family} assumed, no class names"
    )
    clips = None if features else family_preprocess(fit.model, segments)
    if clips is not None and found.layout is not None and found.layout.source == reskd.SOURCE:
        clips = reskd.student_clips(clips)
        notes.append(
            f"a student of ResKD's: crops of {clips.crop} reduced to {clips.input_size}, as it was fed"
        )
    return Identity(
        model=fit.model,
        num_classes=classes,
        overrides=fit.overrides,
        preprocess=clips,
        class_names=None,
        release=None,
        notes=tuple(notes),
    )


def release_of(path: Path, notes: list[str]) -> str | None:
    """The release that a file is, by its hash, else by its name; `notes` tells if hash and name differ."""
    if path.is_dir():  # Paddle's, a file for each tensor
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for name, release in RELEASES.items():
        if release.sha256 and digest.startswith(release.sha256):
            return name
    if path.stem not in RELEASES:
        return None
    if RELEASES[path.stem].sha256:
        notes.append(
            f"named as a release, but with a sha256 that begins with {digest[:8]}: changed, or saved anew"
        )
    return path.stem


def candidates(
    tensors: Mapping[str, Tensor], names: Iterable[str] = MODELS, given: Mapping[str, Any] | None = None
) -> list[Fit]:
    """The networks, of those named, that the tensors fill completely; `given` are known arguments."""
    found, fits = recognise(tensors), []
    blocks = {hit[0] for name in found.filled if (hit := BLOCK.search(name))}
    counts = tuple(sum(f"stage{stage}." in block for block in blocks) for stage in (1, 2, 3, 4))
    for name in names:
        depth = DEPTH.search(name)
        if blocks and depth and DEPTHS[int(depth[1])][1] != counts:
            continue  # saves building it
        known = inspect.signature(NETWORKS[name]).parameters
        for seen in _settings(tensors, found):
            other = {key: value for key, value in seen.items() if not _usual(known.get(key), value)}
            if "style" in other and "style" in getattr(NETWORKS[name], "keywords", {}):
                continue  # a name that stands for a style already
            fit = Fit(name, {**other, **(given or {})})
            if fit.overrides.keys() <= known.keys() and fit not in fits and _fits(tensors, found, fit):
                fits.append(fit)
    return fits


def _settings(tensors: Mapping[str, Tensor], found: Match) -> Iterator[dict[str, Any]]:
    """What the tensors show of a network's arguments, in each way that comes into question."""
    seen: dict[str, Any] = {}
    if any(POOLED.search(name) for name in found.filled.values()):
        seen["temporal_pool"] = True
    places = {(int(hit[1]), int(hit[2])) for name in found.filled if (hit := ATTENDING.search(name))}
    modes: list[dict[str, Any]] = [{}]
    if places:
        blocks = tuple(tuple(sorted(b for s, b in places if s == stage)) for stage in (1, 2, 3, 4))
        if blocks != ZOO_PLACES:
            seen["non_local_blocks"] = blocks
        keyed = any(".non_local.theta." in name for name in found.filled)
        kinds = ("embedded_gaussian", "dot_product") if keyed else ("gaussian",)
        modes = [{"non_local": kind} for kind in kinds]
        if found.layout is not None and "pooled" not in found.marks.values():
            seen["non_local_sub_sample"] = False
    seen |= _slowfast(tensors, found) | _mvit(tensors, found) | _nextvlad(tensors, found)
    heads = list(_detector(tensors, found)) or [{}]
    stems = {len(value) for value in tensors.values() if value.ndim > 3 and value.shape[1] == 3}
    widths = [{}, *({"width": channels} for channels in sorted(stems - {64}))]
    for mode, width, head in product(modes, widths, heads):
        yield {**seen, **mode, **width, **head}


def _usual(known: inspect.Parameter | None, value: Any) -> bool:
    return known is not None and known.default == value


def _slowfast(tensors: Mapping[str, Tensor], found: Match) -> dict[str, Any]:
    """Style, lateral kernel and depth of the fast pathway of a SlowFast file."""
    lateral = "trunk.stem.lateral"
    held = found.filled.get(f"{lateral}.conv.weight", found.filled.get(f"{lateral}.weight"))
    if held is None or tensors[held].ndim < 3:
        return {}
    seen: dict[str, Any] = {"lateral_kernel": tensors[held].shape[2]}
    if f"{lateral}.weight" in found.filled and f"{lateral}.bias" not in found.filled:
        seen["style"] = "mmaction2"
    by_blocks, depths = {DEPTHS[depth][1][2]: depth for depth in (50, 101, 152)}, []
    for path in ("slow", "fast"):
        start = f"trunk.stage3.{path}."
        names = [name.removeprefix(start) for name in found.filled if name.startswith(start)]
        blocks = {name.partition(".")[0] for name in names}
        depths.append(by_blocks.get(len(blocks)))
    if depths[1] and depths[0] != depths[1]:
        seen["fast_depth"] = depths[1]
    return seen


def _detector(tensors: Mapping[str, Tensor], found: Match) -> Iterator[dict[str, Any]]:
    """What a detector's file shows of its long-term operator and its context, in each way there is."""
    if not of_boxes(found):
        return
    held = found.filled.get("long_term.short.weight")
    if held is None:
        yield from ({}, {"context": True}, {"long_term": "avg"}, {"long_term": "max"})
        return
    layers = {name.split(".")[2] for name in found.filled if name.startswith("long_term.layers.")}
    latent, channels = tensors[held].shape[:2] if tensors[held].ndim > 1 else (0, 0)
    seen = {"long_term": "nl", "latent": latent, "long_term_layers": len(layers)}
    long = found.filled.get("long_term.long.weight")
    if long is not None and tensors[long].ndim > 1 and tensors[long].shape[1] != channels:
        seen["bank_channels"] = tensors[long].shape[1]
    yield from (seen, {**seen, "context": True})


def _mvit(tensors: Mapping[str, Tensor], found: Match) -> dict[str, Any]:
    """Frames and sides of the clips that an MViT file's positions are made for."""
    rows = {}
    for name in ("pos_time", "pos_space"):
        if held := found.filled.get(f"trunk.patches.{name}"):
            rows[name] = tensors[held].numel() // max(tensors[held].shape[-1], 1) if tensors[held].ndim else 0
    if len(rows) == 2:
        return {"frames": 2 * rows["pos_time"], "crop": 4 * round(rows["pos_space"] ** 0.5)}
    for axis in "th":
        if held := found.filled.get(f"trunk.blocks.0.attn.relative.{axis}"):
            rows[axis] = (len(tensors[held]) + 1) // 2 if tensors[held].ndim else 0
    return {"frames": 2 * rows["t"], "crop": 4 * rows["h"]} if len(rows) == 2 else {}


def _nextvlad(tensors: Mapping[str, Tensor], found: Match) -> dict[str, Any]:
    """The sizes of a NeXtVLAD; {} where its matrices are missing or none."""
    names = ("rgb.expansion", "rgb.attention", "audio.expansion", "audio.attention", "squeeze")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in (*(f"{name}.weight" for name in names), "rgb.centres", "audio.centres"):
        if held := found.filled.get(name):
            shape = tuple(tensors[held].shape)
            shapes[name] = shape[::-1] if found.marks.get(name) == "transpose" else shape
    if "rgb.expansion.weight" not in shapes or any(len(s) != 2 or 0 in s for s in shapes.values()):
        return {}
    wide, rgb = shapes["rgb.expansion.weight"]
    reduced, hidden = shapes.get("squeeze.weight", (1, 1))
    seen: dict[str, Any] = {"rgb": rgb, "audio": 0, "expansion": wide // rgb}
    seen |= {"hidden_size": hidden, "gating_reduction": hidden // reduced}
    seen["whitened"] = rgb == 1024 and (found.layout is not None or "rgb.scale" in found.filled)
    for name, sizes in (("cluster_size", "centres"), ("groups", "attention.weight")):
        seen[name] = shapes.get(f"rgb.{sizes}", (1, 1))[0]
        if shapes.get(f"audio.{sizes}", (seen[name], 1))[0] != seen[name]:
            seen[f"audio_{name}"] = shapes[f"audio.{sizes}"][0]
    if "audio.expansion.weight" in shapes:
        seen["audio"] = shapes["audio.expansion.weight"][1]
    return seen


def _fits(tensors: Mapping[str, Tensor], found: Match, fit: Fit) -> bool:
    try:
        _load(tensors, found, fit)
    except (WeightsError, UsageError):
        return False
    return True


def _load(tensors: Mapping[str, Tensor], found: Match, fit: Fit) -> None:
    """Raises what loading the file into that network would raise."""
    network = shell(fit.model, _classes(tensors, found) or 400, **fit.overrides)
    if fill(network, tensors, found).head != "loaded":  # checks everything and copies nothing
        raise WeightsError("WEIGHTS_MISMATCH", f"the file's classifier is not that of {fit.model}")


def _classes(tensors: Mapping[str, Tensor], found: Match) -> int | None:
    return held_classes(tensors, found)
