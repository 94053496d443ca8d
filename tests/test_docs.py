"""The documentation: what it names exists, what it shows runs, and every code of an error is explained.

Conventions: every ```python block of a page runs, top to bottom, in a folder that holds what `workplace` puts
there. Every `marey` line of a ```sh or ```console block is parsed by the real command line. An error that a
console block shows is the one that comes.
"""

import ast
import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from typer import Exit
from typer.main import get_command

import marey
from marey.cli import app
from marey.errors import MareyError
from marey.recipes.catalog import load_recipe
from marey.video.synthetic import render_moving_shapes
from marey.weights.native import save_checkpoint

ROOT = Path(__file__).parents[1]
SOURCE = Path(marey.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*")


def blocks(page: Path, *kinds: str) -> Iterator[tuple[int, str]]:
    """The fenced blocks of a page that are of these kinds, with the line they begin at."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        if found[1] in kinds:
            yield text.count("\n", 0, found.start(2)) + 1, found[2]


# Codes ------------------------------------------------------------------------------------------------


def trees() -> list[ast.Module]:
    return [ast.parse(file.read_text(encoding="utf-8")) for file in sorted(SOURCE.rglob("*.py"))]


def makers_of_codes(modules: list[ast.Module]) -> set[str]:
    """MareyError and its children, `Note`, and the functions that make errors, notes and problems."""
    makers = {"MareyError"}
    while True:
        classes = (node for module in modules for node in ast.walk(module) if isinstance(node, ast.ClassDef))
        more = {c.name for c in classes if {getattr(base, "id", "") for base in c.bases} & makers}
        if more <= makers:
            return makers | {"Note", "error", "warning", "unknown"}
        makers |= more


def codes_in(node: ast.AST | None) -> set[str]:
    texts = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant)) if node else ()
    return {text for text in texts if isinstance(text, str) and CODE.fullmatch(text)}


def raised_codes() -> set[str]:
    """Every code in the source: first arguments of errors and notes, and whatever is called `code`."""
    modules = trees()
    makers, found = makers_of_codes(modules), {"USAGE"}  # the command line's own, printed by `main`
    for node in (node for module in modules for node in ast.walk(module)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in makers:
            place = 3 if getattr(node.func, "id", "") == "unknown" else 0
            for argument in node.args[place : place + 1]:
                found |= codes_in(argument)
            found |= {c for k in node.keywords if k.arg == "code" for c in codes_in(k.value)}
        elif isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "code" for t in node.targets):
            found |= codes_in(node.value)
        elif isinstance(node, ast.arguments):
            named = zip(reversed(node.args), reversed(node.defaults), strict=False)
            found |= {c for argument, value in named if argument.arg == "code" for c in codes_in(value)}
    return found


def listed_codes() -> set[str]:
    """The codes that errors.md explains: first cells of its tables."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    return set(re.findall(rf"^\| `({CODE.pattern})` \|", text, re.MULTILINE))


def test_every_code_is_explained_and_every_explained_code_exists():
    raised, listed = raised_codes(), listed_codes()
    assert len(raised) > 80, "the search for codes finds too few"
    assert sorted(raised - listed) == [], "raised, but not in docs/errors.md"
    assert sorted(listed - raised) == [], "in docs/errors.md, but never raised"


def test_codes_that_other_pages_name_exist():
    known = listed_codes() | {
        "MAREY_CACHE",
        "MAREY_DECODER",
        "MAREY_MIRROR",
        "MAREY_OFFLINE",
        "MAREY_TEST_VIDEOS",
    }
    pages = [page for page in PAGES if page.name != "errors.md"]
    wrong = [
        f"{page.name}: {name}"
        for page in pages
        for name in re.findall(r"`([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+)`", page.read_text(encoding="utf-8"))
        if name not in known and not name.startswith("XDG_")
    ]
    assert not wrong


# Commands ---------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """A `marey` command line of a page, and the output shown below it (of console blocks)."""

    where: str
    words: list[str]
    output: str


def commands() -> list[Shown]:
    """Every `marey` command line in README and docs; those of console blocks follow a `$`."""
    found = []
    for page in PAGES:
        for line, text in blocks(page, "sh", "console"):
            text = text.replace("\\\n", " ")
            parts = (
                re.split(r"^\$ ", text, flags=re.MULTILINE) if text.startswith("$ ") else text.splitlines()
            )
            for part in parts:
                command, _, output = part.partition("\n")
                found += [Shown(f"{page.name}:{line}", words, output) for words in marey_words(command)]
    return found


def marey_words(line: str) -> Iterator[list[str]]:
    """The words after `marey` in each part of a pipe."""
    words = shlex.split(line, comments=True) if "marey" in line else []
    while words:
        end = next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";")), len(words))
        for place, word in enumerate(words[:end]):
            if Path(word).name == "marey":
                yield words[place + 1 : end]
                break
        words = words[end + 1 :]


def parse(words: list[str]) -> tuple[str, dict[str, object]]:
    """The command that these words call and its arguments; nothing is run. Raises typer's errors."""
    command, context, name = get_command(app), None, "marey"
    while True:
        context = command.make_context(name, list(words), parent=context)
        if not hasattr(command, "commands"):
            return name, context.params
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


def test_the_pages_show_every_command():
    names = {parse(shown.words)[0] for shown in commands()}
    assert names >= {"predict", "train", "test", "recipes", "recipe", "check", "doctor", "zoo", "convert"}


def test_the_first_page_names_every_command():
    def names(command, prefix: str) -> Iterator[str]:
        for name, child in command.commands.items():
            under = f"{prefix} {name}"
            yield from names(child, under) if hasattr(child, "commands") else [under]

    table = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    unsaid = {"marey adapt run": "marey adapt", "marey pseudo-label make": "marey pseudo-label"}
    found = [unsaid.get(name, name) for name in names(get_command(app), "marey")]
    assert len(found) > 20
    assert [name for name in found if f"`{name}`" not in table] == []


@pytest.mark.parametrize("shown", commands(), ids=lambda shown: f"{shown.where} {' '.join(shown.words)[:60]}")
def test_a_command_that_is_shown_is_understood(shown):
    try:
        _, arguments = parse(shown.words)
    except Exit:  # --help
        return
    name = arguments.get("recipe", arguments.get("name"))
    if name is None or "RECIPE" in name:
        return
    keys = list(arguments.get("overrides") or ())
    for word in keys:
        assert word.partition("=")[0] != word, f"{word} is no key=value"
    files = ("model.weights=", "distill.teacher.weights=")
    keys = [word for word in keys if not word.startswith(files)]  # these files are not here
    if name.endswith(".json"):  # of a run, which is not here
        name = "own_boxes" if "/ava." in name else "finetune"
    if shown.output.startswith("marey: "):
        with pytest.raises(MareyError) as error:
            load_recipe(name, keys)
        assert shown.output.strip() == f"marey: {error.value.code}: {error.value.message}"
    else:
        load_recipe(name, keys)


def test_a_wrong_option_or_key_would_be_noticed():
    for words in (["predict", "x.mp4", "--chekpoint", "y"], ["tran", "finetune"], ["test", "finetune"]):
        with pytest.raises(Exception, match=r"(?i)no such|missing"):
            parse(words)
    shown = Shown("here", ["train", "finetune", "training.epoch=3"], "")
    with pytest.raises(MareyError, match=r"training\.epochs"):
        test_a_command_that_is_shown_is_understood(shown)


# Python -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """What the pages' examples work on: clips/{train,val,test}/<class>/, the lists train.csv, val.csv and
    test.csv, clip.mp4, frames/img_00001.jpg ..., and best.safetensors, the checkpoint of a tiny network."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("workplace")
    lists = render_moving_shapes(folder / "clips", train=2, val=1, test=1, size=(64, 64), frames=20)
    for file in lists:
        lines = file.read_text().splitlines()
        (folder / file.name).write_text("\n".join([lines[0], *(f"clips/{line}" for line in lines[1:])]))
        file.unlink()
    shutil.copy(next(folder.glob("clips/test/*/*.mp4")), folder / "clip.mp4")
    (folder / "frames").mkdir()
    for number in range(1, 6):
        Image.new("RGB", (64, 48), (40 * number, 0, 0)).save(folder / "frames" / f"img_{number:05}.jpg")
    model = marey.create_model("tsm_r18", 6, width=8, segments=4)
    recipe = marey.load_recipe(
        "demo.moving_shapes", {"clips.frames": 4, "model.options": {"width": 8, "segments": 4}}
    )
    classes = sorted(path.name for path in (folder / "clips" / "train").iterdir())
    save_checkpoint(
        folder / "best.safetensors",
        model,
        preprocess=recipe.clips,
        class_names=classes,
        recipe={},
        metrics={},
    )
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page, workplace, tmp_path, monkeypatch):
    examples = list(blocks(page, "python"))
    if not examples:
        return
    folder = tmp_path / "work"
    shutil.copytree(workplace, folder)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "__example__"}
    for line, text in examples:
        # safe: the text is a page of this repository
        exec(compile("\n" * line + text, str(page), "exec"), names)


# Pages ------------------------------------------------------------------------------------------------


def heading_anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as MyST and GitHub make them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in file or file.startswith("mailto:"):
            continue
        there = page.parent / file if file else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in heading_anchors(there), f"{page.name} links to {target}"


def test_every_page_is_in_the_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.MULTILINE | re.DOTALL)
    listed = {line.strip() for tree in trees for line in tree.splitlines()}
    assert {page.stem for page in PAGES[1:]} - listed == {"index"}


def test_tables_are_made_from_fields_that_exist():
    """docs/conf.py fills them in; a docstring that tells of a field which is gone is an error there."""
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    filled = {page.name: conf.filled(page.read_text(encoding="utf-8")) for page in PAGES}
    assert "| `max_bad` | `float` | `0.01` | largest share" in filled["recipes.md"]
    assert "| `tsm.tsm_r50_1x1x8_50e_kinetics400_rgb` | 70.24% | 89.56% |" in filled["recipes.md"]
    assert "| TSM | `tsm_r18`, " in filled["index.md"]
    assert not [name for name, text in filled.items() if re.search(r"^<!-- ", text, re.MULTILINE)]


def test_files_that_the_pages_name_exist():
    """`video/reader.py` and the like are files of the package, `benchmarks/gap.py` beside it."""
    for page in PAGES:
        for name in re.findall(r"`((?:[a-z]+/)?\w+\.py)`", page.read_text(encoding="utf-8")):
            home = ROOT if name.startswith("benchmarks/") else SOURCE
            assert (home / name).exists(), f"{page.name} names {name}"
