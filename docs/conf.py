"""Sphinx settings, and how docstrings become pages.

Tables of fields, recipes, releases and models are made from the code when the pages are built: a line
`<!-- fields: marey.recipes.schema.Data -->` in a page is where such a table goes.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import msgspec

project = "Marey"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "Marey"
html_show_copyright = False
smartquotes = False  # docstrings quote values
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

# Docstrings -------------------------------------------------------------------------------------------

ROW = re.compile(r"(\S(?:.*?\S)?) {2,}(\S.*)")  # "names  what they are", as in the docstrings of this package


def rows_of(docstring: str) -> dict[str, str]:
    """The rows `name, name  text` of a docstring: name -> text, on one line."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in docstring.splitlines():
        if row := ROW.fullmatch(line):
            names = row[1].split(", ")
            found.update(dict.fromkeys(names, row[2]))
        elif names and line.startswith("  "):
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
        else:
            names = []
    return found


def to_rst(lines: list[str]) -> list[str]:
    """A docstring in reStructuredText: rows become definitions, indented parts are shown as they are."""
    rst: list[str] = []
    state = "text"  # or "rows", or "code"
    for line in lines:
        row = ROW.fullmatch(line)
        if not line.strip():
            state, line = ("rows" if state == "rows" else "text"), ""
        elif row:
            names = ", ".join(f"``{name}``" for name in row[1].split(", "))
            rst += [*([""] if state == "text" else []), names]
            state, line = "rows", f"    {_roles(row[2])}"
        elif line.startswith("  ") and state == "rows" and rst[-1]:
            line = f"    {_roles(line.strip())}"
        elif line.startswith("  "):
            rst += [] if state == "code" else ["", "::", ""]
            state, line = "code", f"    {line}"
        else:
            rst += [""] if state != "text" else []
            state, line = "text", _roles(line)
        rst.append(line)
    return [*rst, ""]


def _roles(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"``\1``", text)


def process_docstring(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Autodoc's lines, rewritten in place."""
    lines[:] = to_rst(lines)


# Tables -----------------------------------------------------------------------------------------------


def fields(path: str) -> Iterator[str]:
    """A Markdown table of a record's fields: name, type, default (as `key=value` takes it), meaning."""
    module, _, name = path.rpartition(".")
    record: Any = getattr(import_module(module), name)
    told = rows_of(inspect.getdoc(record) or "")
    known = [field.name for field in msgspec.structs.fields(record)]
    unknown = sorted(told.keys() - {*known})
    if unknown:
        raise ValueError(f"the docstring of {path} tells of {unknown}, which are no fields")
    titles = ("field", "type", "default", "meaning")[: 4 if told else 3]
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for field in msgspec.structs.fields(record):
        kind = inspect.formatannotation(record.__annotations__[field.name]).replace("typing.", "")
        kind = re.sub(r"\bmarey(\.\w+)*\.", "", kind)
        cells = (f"`{field.name}`", f"`{kind}`", _default(field), told.get(field.name, ""))[: len(titles)]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: Any) -> str:
    value = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
    if value is msgspec.NODEFAULT:
        return "required"
    if isinstance(value, msgspec.Struct):
        return "its own defaults"
    return f"`{msgspec.json.encode(value).decode()}`"


def published_recipes(_: str = "") -> Iterator[str]:
    """Markdown tables of the recipes with a published figure, one for each kind of figures."""
    from marey.recipes.catalog import list_recipes, load_recipe

    kinds = {
        "top1": {"top1": "top-1", "top5": "top-5"},
        "gap": {"gap": "GAP", "hit1": "Hit@1", "perr": "PERR"},
        "map": {"map": "mAP"},
    }
    figures = {name: figure for name in list_recipes() if (figure := load_recipe(name).published)}
    for first, titles in kinds.items():
        yield ""
        yield f"| recipe | {' | '.join(titles.values())} | protocol | data |"
        yield "|---" * (3 + len(titles)) + "|"
        for name, figure in figures.items():
            if next((kind for kind in kinds if kind in figure.metrics), "top1") == first:
                known = (figure.metrics.get(key) for key in titles)
                numbers = " | ".join("" if value is None else f"{value:.2%}" for value in known)
                yield f"| `{name}` | {numbers} | {figure.protocol} | {figure.dataset} |"


def releases(_: str = "") -> Iterator[str]:
    """A Markdown table of the releases, with the accuracies that their source reports."""
    from marey.weights.published import RELEASES

    yield "| release | model | data | top-1 | top-5 | mAP | protocol | sampling rule |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, one in RELEASES.items():
        figures = (one.top1, one.top5, one.metrics.get("map"))
        numbers = " | ".join("" if value is None else f"{value}" for value in figures)
        data = f"{one.dataset}, no classifier" if one.headless else one.dataset
        yield f"| `{name}` | `{one.model}` | {data} | {numbers} | {one.protocol} | {one.preprocess.rule} |"


def models(_: str = "") -> Iterator[str]:
    """A Markdown table of the networks' families and names."""
    from marey.models import NETWORKS

    families: dict[Any, list[str]] = {}
    for name, builder in NETWORKS.items():
        families.setdefault(builder.func, []).append(f"`{name}`")  # type: ignore[attr-defined]
    yield "| family | names | what it is |"
    yield "|---|---|---|"
    for family, names in families.items():
        first = (inspect.getdoc(family) or "").partition("\n")[0]
        yield f"| {family.__name__} | {', '.join(names)} | {first} |"


TABLES: dict[str, Callable[[str], Iterator[str]]] = {
    "fields": fields,
    "published recipes": published_recipes,
    "releases": releases,
    "models": models,
}
PLACE = re.compile(r"^<!-- (fields|published recipes|releases|models)(?:: (\S+))? -->$", re.MULTILINE)


def filled(page: str) -> str:
    """A page with its tables in their places."""
    return PLACE.sub(lambda place: "\n".join(TABLES[place[1]](place[2] or "")), page)


def fill(app: object, name: str, source: list[str]) -> None:
    """Sphinx's source of a page, rewritten in place."""
    source[0] = filled(source[0])


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("source-read", fill)
