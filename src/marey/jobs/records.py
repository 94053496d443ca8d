"""`marey features --format youtube8m`: own videos as records laid out like YouTube-8M's, to train taggers on.

The features of each video are extracted first (`marey.jobs.extract`), with all that this has for long runs.
Then they are centred and scaled, perhaps projected, stored as bytes and written as TFRecord files:

    OUT/records/frames-0000.tfrecord ...   the videos, in an order that depends on their ids alone
    OUT/records/features.json              what made them: `marey.data.feature_card`
    OUT/records/projection.safetensors     `marey.data.projection`; other videos need the same
    OUT/records/classes.txt                names of the classes, where there are any
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from torch import nn

from marey.data.feature_card import NAME, FeatureCard, read_feature_card, write_feature_card
from marey.data.projection import Projection, fit_projection, read_projections, write_projections
from marey.data.shards import RECORDS
from marey.data.tfrecord import RecordWriter
from marey.data.youtube8m import Video, quantise, record
from marey.errors import DataError, UsageError
from marey.files import replacing
from marey.jobs.check_files import stamp
from marey.jobs.extract import Dtype, Extracted, Sources, extract_features
from marey.jobs.labelled import Labelled, labelled_sources
from marey.jobs.manifest import Entry, Manifest, Shard, digest
from marey.jobs.own_audio import OwnAudio
from marey.jobs.progress import Progress
from marey.video.preprocess import Preprocess
from marey.video.sampling import generator

PROJECTION, CLASSES = "projection.safetensors", "classes.txt"
VIDEOS = 512  # of a file
SAMPLE = 200_000  # rows that a projection is fitted to
RANGE = 2.0  # bytes stand for -2 to 2
VERSION = 1  # of the records; what another version made is written anew


class Records(NamedTuple):
    """What the records hold; `extracted` is what was done to get there.

    folder         None: --shard was given, so that the records are still to be written
    videos, labelled, rows   in the records
    failed         videos that could not be read and are missing
    without_audio  videos for which there were no audio features, where others have them
    cut_off        share of the rgb values that were beyond the range of a byte
    """

    folder: Path | None
    extracted: Extracted
    videos: int = 0
    labelled: int = 0
    rows: int = 0
    failed: int = 0
    without_audio: int = 0
    rgb: int = 0
    audio: int = 0
    cut_off: float = 0.0


def extract_records(
    model: nn.Module | str | os.PathLike[str],
    sources: Sources,
    out: str | os.PathLike[str],
    *,
    per: float | Literal["clip", "video"] = 1.0,
    frames: int | None = None,
    layer: str | None = None,
    pca: int | None = None,
    projection: str | os.PathLike[str] | None = None,
    audio: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    seed: int = 0,
    dtype: Dtype = "float32",
    resume: bool = False,
    shard: Shard | None = None,
    template: str | None = None,
    device: str | None = None,
    workers: int = -1,
    videos_per_file: int = VIDEOS,
    quiet: bool = False,
) -> Records:
    """Features of videos as records that `nextvlad` is trained on, `rgb` and, if given, `audio`.

    sources     as for `predict`; the labels of lists and of folders per class go into the records
    per         seconds from a frame of features to the next; "clip", "video": as for `extract_features`
    frames      1: a TSN looks at a single frame of the video for each row
    pca         principal axes to keep; None: every feature keeps its place and is scaled to unit variance
    projection  file of a former run, in place of one fitted here; videos to test on need that of the training
    audio       own audio features, see `OwnAudio`; uint8 are stored as they are, floats are scaled
    classes     class names in label order, or their file, where the lists do not number them alike
    seed        of the rows that the projection is fitted to
    shard       only extract this part; the records are written by a last run without it
    other options: see `extract_features`. `resume` also keeps records that would be written again the same.

    Raises what `extract_features` and `labelled_sources` raise; UsageError PROJECTION, DataError
    PROJECTION_FORMAT, AUDIO_FEATURES, LIST_EMPTY.
    """
    if pca is not None and projection is not None:
        raise UsageError("PROJECTION", "give either a number of axes to fit, or a file of fitted ones")
    if pca is not None and pca < 1:
        raise UsageError("PROJECTION", f"{pca} axes; give 1 or more")
    named = labelled_sources(sources, template=template, classes=classes)
    given = None if projection is None else read_projections(projection)
    sound = None if audio is None else OwnAudio(audio, list(named.ids.values()))
    missing = sorted(_scaled(sound) - given.keys()) if given is not None else []
    if missing:
        where = os.fspath(projection or "")
        raise UsageError(
            "PROJECTION", f"{where!r} is not for {missing[0]}; take that of records that have it"
        )
    extracted = extract_features(
        model,
        list(named.sources.values()),
        out,
        per=per,
        layer=layer,
        dtype=dtype,
        resume=resume,
        shard=shard,
        device=device,
        workers=workers,
        frames=frames,
        quiet=quiet,
    )
    if shard is not None:
        return Records(None, extracted)
    wanted = Wanted(named, sound, pca, given, seed, videos_per_file, quiet)
    manifest, made = Manifest.of(out, "features"), list[FeatureCard]()
    manifest.publish(lambda _: made.append(write_records(manifest, wanted)))
    card = made[0]
    return Records(
        manifest.folder / RECORDS,
        extracted,
        card.videos,
        card.labelled,
        card.rows,
        card.failed,
        card.without_audio,
        card.rgb,
        card.audio,
        card.cut_off["rgb"],
    )


def _scaled(sound: OwnAudio | None) -> set[str]:
    """The streams that need a projection."""
    return {"rgb"} if sound is None or sound.bytes else {"rgb", "audio"}


class Wanted(NamedTuple):
    """What the records are to hold; see `extract_records`."""

    named: Labelled
    sound: OwnAudio | None
    pca: int | None
    given: dict[str, Projection] | None
    seed: int
    videos_per_file: int
    quiet: bool


def write_records(manifest: Manifest, wanted: Wanted) -> FeatureCard:
    """The records of a finished extraction, and their card, which is written last.

    They are made in a folder of their own and then moved: `records/` never holds a mixture. A run that
    was killed goes on with the next file.
    """
    found = [manifest.entries[path] for path in wanted.named.sources if path in manifest.entries]
    entries = [entry for entry in found if entry.file is not None]
    if not entries:
        raise DataError("LIST_EMPTY", f"no video could be read; {manifest.folder / 'index.jsonl'} says why")
    entries.sort(key=lambda entry: digest(wanted.named.ids[entry.key].encode()))
    folder, inputs = manifest.folder / RECORDS, _inputs(manifest, entries, wanted)
    there = read_feature_card(folder)
    if (
        there is not None
        and there.inputs == inputs
        and all((folder / name).exists() for name in there.shards)
    ):
        return there
    making = folder / f".making-{inputs[:12]}"
    making.mkdir(parents=True, exist_ok=True)
    if not (making / PROJECTION).exists():
        write_projections(making / PROJECTION, wanted.given or _fitted(manifest, entries, wanted))
    projections = read_projections(making / PROJECTION)
    parts = [
        entries[first : first + wanted.videos_per_file]
        for first in range(0, len(entries), wanted.videos_per_file)
    ]
    progress, counts = Progress("records", quiet=wanted.quiet), list[dict[str, Any]]()
    for number, part in enumerate(parts):
        path = making / f"frames-{number:04}.tfrecord"
        done = path.with_suffix(".json")  # written when the records are complete
        if not done.exists():
            count = _write_file(path, part, manifest, wanted, projections)
            with replacing(done) as file:
                file.write_text(json.dumps(count), encoding="ascii")
        counts.append(json.loads(done.read_bytes()))
        progress(number + 1, len(parts))
    if wanted.named.classes:
        with replacing(making / CLASSES) as file:
            file.write_text("".join(f"{name}\n" for name in wanted.named.classes), encoding="utf-8")
    card = _card(manifest.settings, wanted, projections, counts, len(found) - len(entries), inputs)
    for path in (folder / NAME, *folder.glob("*.tfrecord")):
        path.unlink(missing_ok=True)
    for path in [*making.glob("*.tfrecord"), making / PROJECTION, making / CLASSES]:
        if path.exists():
            path.replace(folder / path.name)
    write_feature_card(folder, card)
    for path in folder.glob(".making-*"):
        shutil.rmtree(path)
    return card


def _inputs(manifest: Manifest, entries: Sequence[Entry], wanted: Wanted) -> str:
    """A digest of all that the records depend on."""
    named, sound = wanted.named, wanted.sound
    parts = [
        *(VERSION, manifest.settings, wanted.pca, wanted.seed, wanted.videos_per_file),
        {name: one.fingerprint for name, one in (wanted.given or {}).items()},
        sound and [str(sound.source.absolute()), stamp(str(sound.source))],
        *(named.classes, named.num_classes),
        [(named.ids[e.key], e.ended, named.labels.get(e.key)) for e in entries],
    ]
    return digest(json.dumps(parts).encode())


def _fitted(manifest: Manifest, entries: Sequence[Entry], wanted: Wanted) -> dict[str, Projection]:
    """Projections of the streams, fitted to these videos."""
    counts = [len(entry.result["spans"]) for entry in entries]
    ends, total = np.cumsum(counts), sum(counts)
    chosen = np.arange(total)
    if total > SAMPLE:
        chosen = np.sort(generator(wanted.seed, 0, 0).choice(total, SAMPLE, replace=False))

    def visual() -> Iterator[NDArray[Any]]:
        for entry, count, end in zip(entries, counts, ends.tolist(), strict=True):
            first, last = np.searchsorted(chosen, [end - count, end])
            if last > first:
                yield _features(manifest, entry)[chosen[first:last] - (end - count)]

    def audible(sound: OwnAudio) -> Iterator[NDArray[Any]]:
        for entry in entries:
            rows = sound(wanted.named.ids[entry.key])
            if rows is not None and len(rows):
                yield rows

    found = {"rgb": fit_projection(visual(), wanted.pca, seed=wanted.seed)}
    if wanted.sound is not None and not wanted.sound.bytes:
        found["audio"] = fit_projection(audible(wanted.sound), None)
    return found


def _features(manifest: Manifest, entry: Entry) -> NDArray[Any]:
    path = manifest.folder / str(entry.file)
    try:
        return safetensors.numpy.load_file(path)["features"]
    except (OSError, safetensors.SafetensorError, KeyError) as error:
        raise DataError("NO_ACCESS", f"{path}: {error}; delete it and run again with --resume") from None


def _write_file(
    path: Path, part: Sequence[Entry], manifest: Manifest, wanted: Wanted, projections: dict[str, Projection]
) -> dict[str, Any]:
    """One file of records; what it holds."""
    named, sound = wanted.named, wanted.sound
    labelled = rows = longest = without_audio = 0
    cut, values = {"rgb": 0, "audio": 0}, {"rgb": 0, "audio": 0}

    def stored(stream: str, features: NDArray[Any]) -> NDArray[np.uint8]:
        numbers = projections[stream](features)
        cut[stream] += int((np.abs(numbers) > RANGE).sum())
        values[stream] += numbers.size
        return quantise(numbers)

    with replacing(path) as partial, RecordWriter(partial) as writer:
        for entry in part:
            name, labels = named.ids[entry.key], named.labels.get(entry.key, ())
            rgb = stored("rgb", _features(manifest, entry))
            heard = sound(name) if sound is not None else None
            audio = np.empty((0, sound.width if sound is not None else 0), np.uint8)
            if sound is not None and heard is not None and len(heard):
                audio = heard if sound.bytes else stored("audio", heard)
            writer.write(record(Video(name, labels, rgb, audio)))
            labelled, without_audio = (
                labelled + bool(labels),
                without_audio + (sound is not None and not len(audio)),
            )
            rows, longest = rows + len(rgb), max(longest, len(rgb))
    return {
        "file": path.name,
        "videos": len(part),
        "labelled": labelled,
        "without_audio": without_audio,
        "rows": rows,
        "longest": longest,
        "cut": cut,
        "values": values,
    }


def _card(
    settings: dict[str, Any],
    wanted: Wanted,
    projections: dict[str, Projection],
    counts: list[dict[str, Any]],
    failed: int,
    inputs: str,
) -> FeatureCard:
    sound, per = wanted.sound, settings["per"]
    keys = ("model", "options", "weights_sha256", "layer")
    clips = changed(settings["preprocess"], json.loads(msgspec.json.encode(Preprocess())))
    made_by = {
        "rgb": {key: settings[key] for key in keys} | {"preprocess": clips} | _stored(projections["rgb"])
    }
    if sound is not None:
        made_by["audio"] = (
            {"given": "bytes"} if sound.bytes else {"given": "floats"} | _stored(projections["audio"])
        )
    total = {
        key: sum(count[key] for count in counts) for key in ("videos", "labelled", "without_audio", "rows")
    }
    return FeatureCard(
        rgb=projections["rgb"].width,
        audio=sound.width if sound is not None else 0,
        num_classes=wanted.named.num_classes,
        class_names=wanted.named.classes,
        failed=failed,
        longest=max(count["longest"] for count in counts),
        seconds=None if isinstance(per, str) else float(per),
        made_by=made_by,
        cut_off={
            stream: sum(count["cut"][stream] for count in counts)
            / sum(count["values"][stream] for count in counts)
            for stream in projections
            if any(count["values"][stream] for count in counts)
        },
        shards=tuple(count["file"] for count in counts),
        inputs=inputs,
        **total,
    )


def changed(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """What differs from the defaults, at any depth: a field that a later version adds changes nothing."""
    return {
        key: changed(value, usual[key])
        if isinstance(value, dict) and isinstance(usual.get(key), dict)
        else value
        for key, value in values.items()
        if key not in usual or value != usual[key]
    }


def _stored(projection: Projection) -> dict[str, Any]:
    """How features became bytes."""
    return {
        "projection": projection.fingerprint,
        "axes": projection.axes is not None,
        "range": [-RANGE, RANGE],
    }
