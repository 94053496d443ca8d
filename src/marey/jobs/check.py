"""`marey data check`: read every file of some lists once, and say what is wrong with which."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from marey.data.lists import ClipList, read_list, same_classes
from marey.errors import DataError
from marey.files import replacing
from marey.jobs.check_files import Facts, Ledger, look_at_all
from marey.jobs.check_problems import (
    SEVERITY,
    SHOWN,
    Problem,
    error,
    file_problems,
    label_problems,
    part_problems,
    printable,
    repeats,
)
from marey.jobs.doctor import environment
from marey.jobs.progress import Progress


class ListReport(msgspec.Struct, frozen=True, kw_only=True):
    """One list: entries, different files, playing time of its entries' files, labels, fingerprint.

    counts  entries of each label, in label order
    notes   what was left out on reading the list
    """

    name: str
    entries: int
    files: int
    seconds: float
    multi_label: bool
    counts: tuple[int, ...]
    fingerprint: str
    notes: tuple[str, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found; `ok` is False when any problem is an error.

    files, readable, read_now  different files, those that can be read, those not taken from an earlier check
    codes                      how many problems there are of each code
    notes                      how many files have what the reader only notes (rotation, HDR, ...)
    frames, seconds            smallest, median, largest and total of the readable files
    sizes, rates, decoders     how many files have which "width x height", frames per second, decoder
    classes                    names in label order, None when the lists have none
    versions                   of everything that reads
    """

    ok: bool
    lists: tuple[ListReport, ...]
    files: int
    readable: int
    read_now: int
    problems: tuple[Problem, ...]
    codes: dict[str, int]
    notes: dict[str, int]
    frames: dict[str, float]
    seconds: dict[str, float]
    sizes: dict[str, int]
    rates: dict[str, int]
    decoders: dict[str, int]
    classes: tuple[str, ...] | None
    versions: dict[str, Any]


def check(
    lists: Sequence[str | os.PathLike[str] | ClipList],
    *,
    workers: int,
    min_frames: int = 1,
    num_classes: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    seconds: float = 600.0,
    quiet: bool = False,
    **reading: Any,
) -> Report:
    """Check lists of one data set: their labels, every file, and what they have in common.

    lists        lists, folders with a folder per class, or ClipLists; one with splits counts as a list each
    workers      decoding processes (0: this one, then a decoder that crashes ends the check)
    min_frames   entries with fewer frames are warned of
    num_classes  what the labels must stay below; None: as many as the lists have
    out          where the report goes as JSON; beside it a .txt for people, and a .files.jsonl with one line
                 per file, which a later check with `resume` continues: only new and changed files are read
    seconds      time limit for one file
    quiet        no progress on stderr
    reading      options of `read_list`

    Never raises for what is wrong with data. Raises EnvironmentFault when the report cannot be written.
    """
    problems: list[Problem] = []
    opened = list(_open(lists, reading, problems))
    clips = [one for _, one in opened]
    classes = _classes(clips, problems)
    files = {entry.path: entry.template for one in clips for entry in one}
    target = None if out is None else Path(out)
    ledger = Ledger(target and target.with_suffix(".files.jsonl"), resume=resume)
    facts, read_now = look_at_all(
        files, ledger, workers=workers, seconds=seconds, progress=Progress("checking", quiet=quiet)
    )
    of_path = {one.path: one for one in facts}
    problems += file_problems(facts)
    for name, one in opened:
        problems += label_problems(name, one, clips, num_classes, classes)
        problems += part_problems(name, one, of_path, min_frames)
    problems += repeats(opened, of_path)
    report = _report(opened, facts, problems, read_now, classes)
    if target is not None:
        _write(report, target)
    return report


def _open(
    lists: Sequence[str | os.PathLike[str] | ClipList], reading: dict[str, Any], problems: list[Problem]
) -> Iterator[tuple[str, ClipList]]:
    """(name, list) of each list or split that can be read; what is wrong with the others is a problem."""
    for given in lists:
        try:
            clips = given if isinstance(given, ClipList) else read_list(given, **reading)
        except DataError as error:
            problems.append(
                Problem(severity="error", code=error.code, message=error.message, list=str(given))
            )
            continue
        if isinstance(given, ClipList) or len(clips.splits) < 2 or "split" in reading:
            yield clips.name, clips
        else:
            for split in clips.splits:
                yield f"{clips.name} [{split}]", read_list(given, split=split, **reading)


def _classes(clips: Sequence[ClipList], problems: list[Problem]) -> tuple[str, ...] | None:
    if not clips:
        return None
    try:
        return same_classes(*clips)
    except DataError as wrong:
        problems.append(error(wrong.code, wrong.message))
        return clips[0].classes


# Report -----------------------------------------------------------------------------------------------


def _report(
    opened: Sequence[tuple[str, ClipList]],
    facts: Sequence[Facts],
    problems: list[Problem],
    read_now: int,
    classes: tuple[str, ...] | None,
) -> Report:
    good = [one for one in facts if one.code is None]
    seconds = {one.path: one.seconds for one in good}
    order = {"error": 0, "warning": 1}
    return Report(
        ok=not any(problem.severity == "error" for problem in problems),
        lists=tuple(_list_report(name, clips, seconds) for name, clips in opened),
        files=len(facts),
        readable=len(good),
        read_now=read_now,
        problems=tuple(sorted(problems, key=lambda p: (order[p.severity], p.code, p.list, p.line, p.path))),
        codes=_most(problem.code for problem in problems),
        notes=_most(code for one in good for code, _ in one.notes if code not in SEVERITY),
        frames=_spread([one.frames for one in good]),
        seconds=_spread([one.seconds for one in good]),
        sizes=_most(f"{one.width} x {one.height}" for one in good),
        rates=_most(f"{one.fps:.4g}" for one in good),
        decoders=_most(one.decoder for one in good),
        classes=classes,
        versions=environment(),
    )


def _list_report(name: str, clips: ClipList, seconds: dict[str, float]) -> ListReport:
    paths = {entry.path for entry in clips}
    return ListReport(
        name=name,
        entries=len(clips),
        files=len(paths),
        seconds=sum(seconds.get(path, 0.0) for path in paths),
        multi_label=clips.multi_label,
        counts=tuple(clips.counts().tolist()),
        fingerprint=clips.fingerprint(),
        notes=clips.notes,
    )


def _most(values: Iterator[str]) -> dict[str, int]:
    """How often each value comes, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"min": min(values), "median": float(np.median(values)), "max": max(values), "total": sum(values)}


def _write(report: Report, target: Path) -> None:
    with replacing(target) as part:
        part.write_text(as_json(report), encoding="utf-8")
    with replacing(target.with_suffix(".txt")) as part:
        part.write_text("\n".join(lines(report)) + "\n", encoding="utf-8")


def as_json(report: Report) -> str:
    """The report as JSON; bytes of names that are no UTF-8 come as escapes (msgspec refuses them)."""
    return json.dumps(msgspec.to_builtins(report), indent=1) + "\n"


def lines(report: Report) -> list[str]:
    """The report for a person: problems by kind (the first ten of each), then what there is."""
    text: list[str] = []
    for code, count in report.codes.items():
        some = [problem for problem in report.problems if problem.code == code]
        text.append(f"{some[0].severity} {code}: {count}")
        text += [f"  {_where(problem)}{printable([problem.message])}" for problem in some[:SHOWN]]
        text += [f"  ... and {count - SHOWN} more"] if count > SHOWN else []
    for one in report.lists:
        text.append(
            f"{printable([one.name])}: {one.entries} entries, {one.files} files, {one.seconds / 3600:.2f} h, "
            f"{sum(n > 0 for n in one.counts)} classes with {min(one.counts, default=0)} to "
            f"{max(one.counts, default=0)} entries, fingerprint {one.fingerprint[:16]}"
        )
        text += [f"  {printable([note])}" for note in one.notes]
    text.append(f"{report.readable} of {report.files} files can be read; {report.read_now} were read now")
    for title, spread, unit in (("frames", report.frames, ""), ("length", report.seconds, " s")):
        if spread:
            numbers = (f"{key} {spread[key]:.6g}{unit}" for key in ("min", "median", "max"))
            text.append(f"{title}: {', '.join(numbers)}")
    for title, table in (
        ("sizes", report.sizes),
        ("frames per second", report.rates),
        ("notes", report.notes),
    ):
        some_of = [f"{value} ({count})" for value, count in list(table.items())[:SHOWN]]
        text += [f"{title}: {printable(some_of)}{', ...' if len(table) > SHOWN else ''}"] if some_of else []
    text.append("all good" if report.ok else "there are errors")
    return text


def _where(problem: Problem) -> str:
    place = f"{problem.list}:{problem.line}" if problem.line else problem.list if not problem.path else ""
    where = [part for part in (place, problem.path) if part]
    return f"{printable(where)}: " if where else ""
