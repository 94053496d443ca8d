"""Videos with what is known of them: sources as users name them, labelled by lists and folders."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from marey.data.formats import split_folders
from marey.data.labels import check_names
from marey.data.lists import check_labels, read_list
from marey.errors import DataError
from marey.jobs.extract import Sources, sources_by_path
from marey.video.source import LIST_NAME, Source


class Labelled(NamedTuple):
    """Videos by full path, and what is known of each.

    ids      names that tell them apart: as written, or full paths where two are written alike
    labels   of the videos that a list or a folder per class labels, ascending
    classes  names in label order, or None
    num_classes  number of names, else largest label + 1; 0: nothing is labelled
    """

    sources: dict[str, Source]
    ids: dict[str, str]
    labels: dict[str, tuple[int, ...]]
    classes: tuple[str, ...] | None
    num_classes: int


def labelled_sources(
    sources: Sources,
    *,
    template: str | None = None,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
) -> Labelled:
    """What is named; of lists (.csv, .tsv, .txt, .json, .jsonl) in any layout of `read_list` also the labels.

    So of a folder in which every video lies in a folder of its class; files and patterns label nothing.

    classes  class names in label order, or their file, for all lists and folders

    A video that is named in several rows has the labels of all of them. Raises what `expand` and `read_list`
    raise, DataError LABEL_NAMES where lists disagree about the names, LIST_FORMAT for parts of videos.
    """
    named = [sources] if isinstance(sources, str | os.PathLike | Source) else list(sources)
    found: dict[str, Source] = {}
    labels: dict[str, set[int]] = {}
    names: tuple[str, ...] | None = None
    for one in named or [""]:
        layout = "auto"
        if isinstance(one, Source) or not _is_list(os.fspath(one)):
            there = sources_by_path([one] if named else [], template)
            for path, source in there.items():
                found.setdefault(path, source)
            if isinstance(one, Source) or not _by_class(os.fspath(one), there):
                continue
            layout = "folder"
        clips = read_list(one, format=layout, classes=classes, template=template)
        check_labels(clips, len(clips.classes) if clips.classes else None)
        if clips.classes is not None and names not in (None, clips.classes):
            raise DataError(
                "LABEL_NAMES",
                f"{os.fspath(one)}: other classes than in the lists or folders before it; give --classes, or "
                "name the videos of folders by a pattern, which labels none",
            )
        names = clips.classes or names
        for index, entry in enumerate(clips):
            if entry.seconds is not None or entry.start or (entry.total is not None and not entry.template):
                raise DataError(
                    "LIST_FORMAT", f"{clips.where(index)}: a part of a video; features are of whole videos"
                )
            path = os.path.abspath(entry.path)  # noqa: PTH100 - a link stays a link
            found.setdefault(path, Source(entry.path, clips.written(index), entry.template))
            labels.setdefault(path, set()).update(entry.labels)
    written = Counter(source.name for source in found.values())
    ids = {path: path if written[source.name] > 1 else source.name for path, source in found.items()}
    largest = max((max(values) for values in labels.values() if values), default=-1)
    return Labelled(
        found,
        {
            path: name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            for path, name in ids.items()
        },
        {path: tuple(sorted(values)) for path, values in labels.items() if values},
        check_names(names) if names else None,
        len(names) if names else largest + 1,
    )


def _is_list(name: str) -> bool:
    return bool(LIST_NAME.search(name) or name.endswith(".json")) and Path(name).is_file()


def _by_class(name: str, videos: Iterable[str]) -> bool:
    """Whether this is a folder with every video in a folder of its class, perhaps in train/ and val/."""
    if not Path(name).is_dir():
        return False
    top = os.path.abspath(name)  # noqa: PTH100 - as the videos' paths were made
    depth = min(len(Path(path).relative_to(top).parts) for path in videos)
    return depth > 1 and depth > 1 + bool(split_folders(Path(name)))
