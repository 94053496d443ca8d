"""`report.html` of a run folder: one page that stands alone, for looking at what a training or a test did."""

import base64
import hashlib
import os
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from marey.files import replacing
from marey.jobs import report_sections as sections
from marey.jobs.markup import escaped, note, section
from marey.jobs.report_contents import Contents, read_folder
from marey.jobs.runs import plain_json


def write_report(run_folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run folder from the files that are there, and return its path.

    Reads recipe.json, metrics.csv, environment.json, results.json, scores.parquet and log.txt, each optional,
    and a few frames of the videos that scores.parquet names; the page says what is missing. It makes no
    requests and depends on these files only. Raises EnvironmentFault where it cannot be written.
    """
    contents = read_folder(Path(run_folder))
    parts = [
        _guarded(key, title, part, contents)
        for key, title, part in (
            ("numbers", "Numbers", sections.numbers),
            ("curves", "Curves", sections.curves),
            ("classes", "Classes", sections.classes),
            ("confusion", "Confusion", sections.confusion),
            ("clips", "Clips", sections.clips),
            ("files", "Files that could not be read", sections.files),
            ("recipe", "Recipe", sections.recipe),
            ("environment", "Environment", sections.environment),
            ("log", "Log", sections.log),
        )
    ]
    there = [(key, title, body) for key, title, body in parts if body]
    links = "".join(f'<a href="#{key}">{escaped(title)}</a>' for key, title, _ in there)
    content = [
        _header(contents),
        f'<nav aria-label="Sections">{links}</nav>',
        "<main>",
        *(note(f"Not here: {text}") for text in contents.missing),
        *(section(key, title, body) for key, title, body in there),
        "</main>",
        f"<footer>Written by marey from {escaped(contents.folder)}</footer>",
    ]
    path = contents.folder / "report.html"
    with replacing(path) as part:
        part.write_text(page(_title(contents), "\n".join(content)), encoding="utf-8", newline="\n")
    return path


def leave_results(
    found: dict[str, Any], out: Path | None, run: Path | None, also: Callable[[Path], None] | None = None
) -> None:
    """Write a test's results to a file, else into its run's folder, whose report is then made anew.

    also  writes what stands beside the file, whose path it gets
    """
    path = out or (None if run is None else run / "results.json")
    if path is None:
        return
    with replacing(path) as part:
        part.write_text(plain_json(found) + "\n", encoding="utf-8")
    if also is not None:
        also(path)
    if out is None:
        write_report(path.parent)


def page(title: str, content: str) -> str:
    """A whole page that makes no requests; `content` is markup."""
    template = files("marey.jobs").joinpath("report.html").read_text(encoding="utf-8")
    script = template.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(template).substitute(title=escaped(title), content=content, script_hash=digest)


def _guarded(
    key: str, title: str, part: Callable[[Contents], str], contents: Contents
) -> tuple[str, str, str]:
    """A section, or why it could not be made: a training must not fail at its report."""
    try:
        return key, title, part(contents)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        text = f"{type(error).__name__}: {error}"
        return key, title, note(f"The files of this run have another form than expected: {text}", "warning")


def _title(contents: Contents) -> str:
    name = (
        (contents.recipe or {}).get("name") or (contents.results or {}).get("recipe") or contents.folder.name
    )
    return f"{name}, run {contents.folder.name}"


def _header(contents: Contents) -> str:
    recipe, results = contents.recipe or {}, contents.results or {}
    facts = []
    if isinstance(model := recipe.get("model"), dict):
        count = model.get("num_classes") or len(results.get("classes") or ())
        facts.append(f"{model.get('name')}, {count} classes" if count else model.get("name"))
    if results:
        facts.append(f"evaluated on {results.get('list')}")
    times = [line[:19] for line in contents.log if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line)]
    if times:
        facts.append(f"{times[0]} to {times[-1]}")
    lines = "".join(f"<p>{escaped(fact)}</p>" for fact in facts)
    return f"<header><h1>{escaped(_title(contents))}</h1>{lines}</header>"
