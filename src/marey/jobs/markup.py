"""Pieces of an HTML page. Every text that comes in is escaped here; what comes out is markup."""

import base64
import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# control characters, and those that turn the direction of text around and so can disguise a name
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Cell(NamedTuple):
    """A table's cell: its markup, what it is sorted by, and its CSS class."""

    markup: str
    sort: float | str
    kind: str = ""


def plain(value: object) -> str:
    """The text of a value with nothing invisible in it: newlines, half characters and so on as escapes."""
    text = str(value).encode("utf-8", errors="backslashreplace").decode("utf-8")
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def escaped(value: object) -> str:
    """The text of a value, safe in an element and in a quoted attribute."""
    return html.escape(plain(value), quote=True)


def words(value: object) -> Cell:
    """A cell of text."""
    return Cell(f"<bdi>{escaped(value)}</bdi>", plain(value).casefold())


def count(value: float) -> Cell:
    """A cell with a number of things."""
    return Cell(f"{value:,}", value, "number")


def share(value: float | None, *, bar: bool = False) -> Cell:
    """A cell with a share of one in percent, perhaps with a bar; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return Cell("–", -1.0, "number")
    text = f"{100 * value:.1f}%"
    if bar:
        text = f'<span class="bar" style="--share:{100 * min(max(value, 0), 1):.1f}%">{text}</span>'
    return Cell(text, value, "number")


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    sortable: bool = False,
    tall: bool = False,
) -> str:
    """A table whose rows begin with their heading; a tall one scrolls by itself."""
    titles = (f'<button type="button">{escaped(t)}</button>' if sortable else escaped(t) for t in head)
    columns = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "\n".join(f"<tr>{''.join(map(_cell, row, (True,) + (False,) * len(row)))}</tr>" for row in rows)
    scroll = ' tabindex="0" role="region"' if tall else ""
    return (
        f'<div class="scroll{" tall" if tall else ""}"{scroll} aria-label="{escaped(caption)}">'
        f"<table{' class=sortable' if sortable else ''}><caption>{escaped(caption)}</caption>"
        f"<thead><tr>{columns}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell, heading: bool) -> str:
    kind = f' class="{cell.kind}"' if cell.kind else ""
    if heading:
        return f'<th scope="row" data-sort="{escaped(cell.sort)}"{kind}>{cell.markup}</th>'
    return f'<td data-sort="{escaped(cell.sort)}"{kind}>{cell.markup}</td>'


def settings(tree: Any, title: str = "general") -> str:
    """Nested settings as one small table per part; its own parts come after it, under their full name."""
    if not isinstance(tree, dict):
        return note(f"{title}: {tree}")
    inner: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            inner[name] = value
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            inner |= {f"{name}[{number}]": item for number, item in enumerate(value)}
    plain_names = [name for name in tree if name not in inner and f"{name}[0]" not in inner]
    rows = [(words(name), words(_value(tree[name]))) for name in plain_names]
    own = table(title, ("setting", "value"), rows) if rows else ""
    prefix = "" if title == "general" else f"{title}."
    return own + "".join(settings(value, f"{prefix}{name}") for name, value in inner.items())


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and value:
        return ", ".join(map(_value, value)) if not any(isinstance(v, list) for v in value) else str(value)
    return "(empty)" if value in ("", {}, []) else str(value)


def tile(name: str, value: str, below: str = "", state: str = "") -> str:
    """A number to be seen first. `state` "warning" marks it."""
    small = f"<small>{escaped(below)}</small>" if below else ""
    return f'<div class="tile {state}"><span>{escaped(name)}</span><b>{escaped(value)}</b>{small}</div>'


def note(text: str, state: str = "") -> str:
    """A remark."""
    return f'<p class="note {state}">{escaped(text)}</p>'


def folded(title: str, text: str) -> str:
    """Preformatted text behind a heading that opens it."""
    return f"<details><summary>{escaped(title)}</summary><pre>{_lines(text)}</pre></details>"


def _lines(text: str) -> str:
    return "\n".join(map(escaped, text.split("\n")))


def figure(svg: str, title: str, alt: str, kind: str = "") -> str:
    """A drawing with its title, and its content in words for those who cannot see it."""
    drawing = svg.replace("<svg", f'<svg role="img" aria-label="{escaped(alt)}"', 1)
    return f'<figure class="{kind}"><figcaption>{escaped(title)}</figcaption>{drawing}</figure>'


def picture(jpeg: bytes, alt: str) -> str:
    """A JPEG inside the page."""
    data = base64.b64encode(jpeg).decode("ascii")
    return f'<img alt="{escaped(alt)}" src="data:image/jpeg;base64,{data}">'


def section(key: str, title: str, body: str) -> str:
    """A part of the page with its heading."""
    return f'<section id="{key}"><h2>{escaped(title)}</h2>{body}</section>'
