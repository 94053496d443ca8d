"""`marey data check-ava`: read AVA's annotations and what belongs to them, and say what is wrong where."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from marey.data.ava import KeyFrames, ava_set, check_rows, find_media
from marey.data.ava_clips import open_timeline
from marey.data.proposals import Proposals, read_proposals, recall
from marey.data.workers import Pool
from marey.errors import DataError, MareyError
from marey.jobs.check_problems import SHOWN, Problem, error, printable, warning
from marey.jobs.progress import Progress
from marey.metrics.ava import PROTOCOLS, frame_map
from marey.metrics.ava_explain import causes
from marey.metrics.ava_tables import Faults, Rows, key_of, read_exclusions, read_label_map, read_rows

LOW_RECALL = 0.5  # a detector that misses more persons than it finds


class AvaReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found; `ok` is False when any problem is an error.

    problems  each with its code; those of rows name line and column
    codes     how many there are of each code, all counted
    facts     numbers of each annotation, by name
    """

    ok: bool
    problems: tuple[Problem, ...]
    codes: dict[str, int]
    facts: dict[str, dict[str, float | str]]


def check_ava(
    annotations: Sequence[str | os.PathLike[str]],
    *,
    key_frames: KeyFrames,
    proposals: str | os.PathLike[str] | None = None,
    exclusions: str | os.PathLike[str] | None = None,
    label_map: str | os.PathLike[str] | None = None,
    media: str | os.PathLike[str] | None = None,
    template: str | None = None,
    results: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    threshold: float = 0.9,
    workers: int = 0,
    seconds: float = 600.0,
    quiet: bool = False,
) -> AvaReport:
    """Check annotations of one data set (its train and val, say), and that the other files go with them.

    media        folder with a video, or a folder of frames, for each video of the annotations; each is
                 measured, in `workers` processes with `seconds` for one
    results      a detector's, evaluated against each annotation by both protocols
    num_classes  columns of the labels; actions must be below
    threshold    of the proposals that count, see `Proposals.select`

    Never raises for what is wrong with the files.
    """
    found = _Found()
    names = None if label_map is None else _read(found, label_map, lambda path, _: read_label_map(path))
    excluded = None if exclusions is None else _read(found, exclusions, read_exclusions)
    proposed = None if proposals is None else _read(found, proposals, read_proposals)
    scored = None if results is None else _read(found, results, lambda path, f: read_rows(path, "result", f))
    limit = None if num_classes is None else num_classes - 1

    def read(path: str | os.PathLike[str], faults: Faults) -> Rows:
        rows = read_rows(path, "truth", faults)
        check_rows(rows, faults, key_frames=key_frames, most=limit)
        return rows

    opened = [(os.fspath(path), _read(found, path, read)) for path in annotations]
    tables = [(name, rows) for name, rows in opened if rows is not None and len(rows.video)]
    for name, rows in tables:
        found.facts[name] = _facts(rows, excluded)
        found.add(_row_problems(name, rows))
        if names is not None:
            found.add(_class_problems(name, rows, names))
        if proposed is not None:
            found.facts[name] |= _proposal_facts(rows, proposed, threshold)
            found.add(_proposal_problems(name, rows, proposed, found.facts[name]))
        if scored is not None:
            found.facts[name] |= _evaluated(rows, scored, names, excluded)
            found.add(_result_problems(name, rows, scored, names, excluded))
    found.add(_leaks(tables))
    if proposed is not None and proposals is not None:
        found.notes(os.fspath(proposals), proposed)
    if media is not None and tables:
        with Pool(workers, seconds) as pool:
            found.add(
                _media_problems(tables, media, template, key_frames, pool, Progress("checking", quiet=quiet))
            )
    order = {"error": 0, "warning": 1}
    return AvaReport(
        ok=not any(problem.severity == "error" for problem in found.problems),
        problems=tuple(sorted(found.problems, key=lambda p: (order[p.severity], p.code, p.list, p.path))),
        codes=dict(found.codes.most_common()),
        facts=found.facts,
    )


def as_json(report: AvaReport) -> str:
    """The report as JSON; names that are no UTF-8 come as escapes (msgspec refuses them)."""
    return json.dumps(msgspec.to_builtins(report), indent=1)


def lines(report: AvaReport) -> list[str]:
    """The report for a person: problems by kind (the first ten of each), then the numbers."""
    text: list[str] = []
    for code, count in report.codes.items():
        some = [problem for problem in report.problems if problem.code == code]
        text.append(f"{some[0].severity} {code}: {count}")
        for problem in some[:SHOWN]:
            where = printable([problem.path or problem.list])
            text.append(f"  {where}: {printable([problem.message])}")
        text += [f"  ... and {count - SHOWN} more"] if count > SHOWN else []
    for name, facts in report.facts.items():
        text.append(f"{printable([name])}:")
        width = max(map(len, facts))
        text += [
            f"  {key:<{width}}  {value if isinstance(value, str) else f'{value:.6g}'}"
            for key, value in facts.items()
        ]
    text.append("all good" if report.ok else "there are errors")
    return text


class _Found:
    """What is collected: problems, how many of each code there are, numbers of each file."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.codes: Counter[str] = Counter()
        self.facts: dict[str, dict[str, float | str]] = {}

    def add(self, problems: Iterable[Problem]) -> None:
        """Problems that count once each."""
        for problem in problems:
            self.problems.append(problem)
            self.codes[problem.code] += 1

    def add_faults(self, faults: Faults) -> None:
        """Faults of rows: all are counted, the first of each code told."""
        for code, text in faults.shown:
            self.problems.append(error(code, text, list=faults.file))
        self.codes.update(faults.counts)

    def notes(self, name: str, proposals: Proposals) -> None:
        """What reading proposals left out."""
        if proposals.notes:
            self.facts[name] = {"left out": "; ".join(proposals.notes)}


T = TypeVar("T")
Path = str | os.PathLike[str]


def _read(found: _Found, path: Path, read: Callable[[Path, Faults], T]) -> T | None:
    """What a file holds; None where it cannot be read."""
    faults, result = Faults(path), None
    try:
        result = read(path, faults)
    except MareyError as wrong:
        found.add([error(wrong.code, wrong.message, list=os.fspath(path))])
    found.add_faults(faults)
    return result


# Tables -----------------------------------------------------------------------------------------------


def _facts(rows: Rows, excluded: frozenset[str] | None) -> dict[str, float | str]:
    """Numbers of an annotation."""
    frames = ava_set(rows, num_classes=int(rows.action.max()) + 1)
    keys = [frames.key(index) for index in range(len(frames))]
    facts: dict[str, float | str] = {
        "rows": len(rows.video),
        "videos": len(np.unique(rows.video)),
        "key frames": len(frames),
        "persons": frames.persons,
        "actions of a person": float((rows.action > 0).sum() / max(frames.persons, 1)),
        "actions": len(np.unique(rows.action[rows.action > 0])),
        "first second": float(rows.second.min()),
        "last second": float(rows.second.max()),
    }
    if excluded is not None:
        facts["excluded"] = sum(key in excluded for key in keys)
    return facts


def _row_problems(name: str, rows: Rows) -> Iterator[Problem]:
    """The same row twice, and one person in two places."""
    where = np.stack([rows.video, rows.second], 1)
    whole = np.concatenate([where, rows.boxes, rows.action[:, None]], axis=1)
    labelled = np.flatnonzero(rows.action > 0)
    _, firsts, counts = np.unique(whole[labelled], axis=0, return_index=True, return_counts=True)
    if (counts > 1).any():
        line = int(rows.lines[labelled[firsts[counts > 1].min()]])
        text = f"{int((counts - 1).sum())} rows repeat another, such as that of line {line}; all count"
        yield warning("AVA_DUPLICATE", text, list=name, line=line)
    known = np.flatnonzero((rows.action > 0) & ~np.isnan(rows.extra) & (rows.extra >= 0))
    persons = np.unique(np.concatenate([where, rows.extra[:, None], rows.boxes], axis=1)[known], axis=0)
    _, firsts, counts = np.unique(persons[:, :3], axis=0, return_index=True, return_counts=True)
    if (counts > 1).any():
        video, second, entity, *_ = persons[firsts[counts > 1][0]].tolist()
        text = (
            f"{int((counts > 1).sum())} entities have several boxes in one key frame, for example entity "
            f"{entity:.0f} in {key_of(rows.videos[int(video)], second)!r}; entities tell persons apart"
        )
        yield warning("AVA_ENTITY", text, list=name)


def _class_problems(name: str, rows: Rows, names: Mapping[int, str]) -> Iterator[Problem]:
    """Actions of the label map that no row has, and those of rows that it does not name."""
    strange = rows.action[(rows.action > 0) & ~np.isin(rows.action, list(names))]
    if len(strange):
        text = f"{len(strange)} rows have {len(np.unique(strange))} actions that the label map does not name"
        yield warning("AVA_UNNAMED", f"{text}, which do not count in an evaluation by it", list=name)
    missing = sorted(names.keys() - set(rows.action.tolist()))
    if missing:
        shown = printable(f"{action} ({names[action]})" for action in missing[:SHOWN])
        text = f"{len(missing)} of {len(names)} actions have no row: {shown}"
        yield warning("CLASS_MISSING", text + (", ..." if len(missing) > SHOWN else ""), list=name)


def _leaks(tables: Sequence[tuple[str, Rows]]) -> Iterator[Problem]:
    """Videos of which two annotations have key frames."""
    for place, (name, rows) in enumerate(tables):
        for other, before in tables[:place]:
            both = sorted(set(rows.videos) & set(before.videos))
            if both:
                text = f"{len(both)} videos are in {other}, too, such as {printable(both[:3])}"
                yield error("LEAK", text, list=name)


# Proposals --------------------------------------------------------------------------------------------


def _proposal_facts(rows: Rows, proposals: Proposals, threshold: float) -> dict[str, float | str]:
    """Numbers of the proposals for an annotation's key frames."""
    frames = ava_set(rows, num_classes=int(rows.action.max()) + 1)
    boxes = {frame.key: frame.boxes for frame in frames}
    chosen = [proposals.select(key, threshold=threshold)[0] for key in boxes if key in proposals]
    share = recall(boxes, proposals, threshold=threshold)
    return {
        "key frames with proposals": len(chosen),
        "proposals of a key frame": float(np.mean([len(one) for one in chosen])) if chosen else 0.0,
        **({} if np.isnan(share) else {"recall of proposals": share}),
    }


def _proposal_problems(
    name: str, rows: Rows, proposals: Proposals, facts: Mapping[str, float | str]
) -> Iterator[Problem]:
    """Key frames without proposals, and proposals that are of other persons."""
    missing = [key for key in dict.fromkeys(rows.keys()) if key not in proposals]
    some = printable(missing[:3])
    if len(missing) == facts["key frames"]:
        text = f"no key frame has proposals, not {some}; the file has {printable(list(proposals.keys)[:3])}"
        yield error("AVA_PROPOSALS", text, list=name)
        return
    if missing:
        text = f"{len(missing)} key frames have no proposals, and are shown whole: {some}"
        yield warning("AVA_PROPOSALS", text, list=name)
    share = facts.get("recall of proposals", 1.0)
    if float(share) < LOW_RECALL:
        text = f"{share:.0%} of the persons are proposed; is it of other videos?"
        yield warning("AVA_PROPOSALS", text, list=name)


# Results ----------------------------------------------------------------------------------------------


def _evaluated(
    rows: Rows, scored: Rows, names: Mapping[int, str] | None, excluded: frozenset[str] | None
) -> dict[str, float | str]:
    """Frame mAP of results by each protocol."""
    facts: dict[str, float | str] = {}
    for protocol in PROTOCOLS:
        result = frame_map(rows, scored, names=names, excluded=excluded or (), protocol=protocol)
        facts[f"mAP at 0.5, {protocol}"] = "no class has truth" if np.isnan(result.map) else result.map
        facts |= {f"mAP of {group}, {protocol}": ap for group, ap in result.groups().items()}
    return facts


def _result_problems(
    name: str,
    rows: Rows,
    scored: Rows,
    names: Mapping[int, str] | None,
    excluded: frozenset[str] | None,
) -> Iterator[Problem]:
    """Why mAP is zero, or far lower than it should be."""
    result = frame_map(rows, scored, names=names, excluded=excluded or ())
    for cause in causes(result, rows, scored):
        yield warning("AVA_RESULTS", cause, list=name)


# Media ------------------------------------------------------------------------------------------------


class _Look(NamedTuple):
    """A video to measure."""

    path: str
    template: str | None
    key_frames: KeyFrames


class _Length(NamedTuple):
    """Frames of a video at the rate of its key frames, and as they are; seconds; whether it is a folder."""

    frames: int
    own: int
    seconds: float
    folder: bool


def measure(task: _Look) -> _Length:
    """Open a video. Raises as `open_timeline`."""
    timeline = open_timeline(task.path, task.key_frames, task.template)
    folder = os.path.isdir(task.path)  # noqa: PTH112
    return _Length(len(timeline), len(timeline.video), timeline.video.seconds, folder)


def _media_problems(
    tables: Sequence[tuple[str, Rows]],
    media: Path,
    template: str | None,
    key_frames: KeyFrames,
    pool: Pool,
    progress: Progress,
) -> Iterator[Problem]:
    """Videos that are missing, cannot be read, or end before their last key frame."""
    last: dict[str, float] = {}
    for _, rows in tables:
        for place, video in enumerate(rows.videos):
            seconds = rows.second[rows.video == place]
            last[video] = max([last.get(video, 0.0), *seconds.tolist()])
    try:
        paths, missing = find_media(media, last)
    except DataError as wrong:
        yield error(wrong.code, wrong.message, path=os.fspath(media))
        return
    for video in missing:
        yield error("AVA_MEDIA", f"no folder or video is called {video!r}", path=os.fspath(media))
    looks = {path: video for video, path in paths.items()}
    tasks = [_Look(path, template, key_frames) for path in looks]
    for done, (task, length) in enumerate(pool.run(measure, tasks), start=1):
        progress(done, len(tasks))
        if isinstance(length, MareyError):
            yield error(length.code, length.message, path=task.path)
        elif key_frames.frame(last[looks[task.path]]) >= length.frames:
            yield error("MEDIA_TRUNCATED", _short(length, last[looks[task.path]], key_frames), path=task.path)


def _short(length: _Length, last: float, key_frames: KeyFrames) -> str:
    """Why a video does not reach its last key frame."""
    text = f"ends at {key_frames.start + length.seconds:.1f} s, before its key frame at {last:g} s"
    rate = length.own / (last + 1 - key_frames.start) if last + 1 > key_frames.start else 0.0
    if length.folder and rate and abs(rate - round(rate)) < 0.1 and round(rate) < key_frames.fps:
        return f"{text}: its {length.own} frames look like {rate:.0f} per second, not {key_frames.fps:g}"
    return f"{text}; is it cut, or KeyFrames.start wrong?"
