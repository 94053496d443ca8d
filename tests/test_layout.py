"""The walls of the house: import order, public names, what may not be imported."""

import ast
import subprocess
import sys
from pathlib import Path

import marey

SRC = Path(marey.__file__).parent
LAYERS = (
    {"errors"},
    {"files", "classes", "pickles"},
    {"video", "models", "metrics", "scores", "training"},
    {"weights", "data"},
    {"recipes"},
    {"jobs"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def modules() -> list[Path]:
    return sorted(f for f in SRC.rglob("*.py") if f.parent != SRC or f.stem in LEVEL)


def part_of(file: Path) -> str:
    relative = file.relative_to(SRC)
    return relative.parts[0].removesuffix(".py")


def test_a_layer_imports_only_the_layers_below_it_and_itself():
    wrong = [
        f"{file.relative_to(SRC)} imports {name}"
        for file in modules()
        for name in imports_of(file)
        if name.startswith("marey.")
        and (target := name.split(".")[1]) != (own := part_of(file))
        and LEVEL[target] >= LEVEL[own]
    ]
    assert not wrong


def test_every_folder_of_the_package_has_its_place_in_the_order():
    assert {f.name for f in SRC.iterdir() if (f / "__init__.py").exists()} <= LEVEL.keys()


def test_nothing_that_is_ruled_out_is_imported():
    forbidden = {"decord", "mmcv", "pytorchvideo", "fvcore", "detectron2", "torchvision.io", "cv2", "pickle5"}
    assert not [
        f"{file}: {name}" for file in SRC.rglob("*.py") for name in imports_of(file) if name in forbidden
    ]


def test_the_public_names_are_these_and_each_can_be_imported():
    assert marey.__all__ == [
        *("MareyError", "Preprocess", "create_model", "list_models", "list_recipes", "load_recipe"),
        *("load_weights", "predict", "read_video", "test", "train"),
    ]
    for name in marey.__all__:
        assert getattr(marey, name).__module__.startswith("marey.")


def test_help_does_not_wait_for_torch():
    code = "import sys, marey.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
