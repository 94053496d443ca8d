"""Recipes: every one resolves, wrong keys and values are refused with the nearest name, nothing is idle."""

import ast
from pathlib import Path

import msgspec
import pytest
import torch

import marey
from marey.errors import UsageError
from marey.recipes import schema
from marey.recipes.catalog import describe_recipe, list_recipes, load_recipe, override
from marey.recipes.schema import Recipe, TagRecipe, clip_recipe
from marey.training.optim import Optimizer, Schedule
from marey.video.augment import Augment, Erasing, Mixing, RandAugment
from marey.video.preprocess import Preprocess, Protocol
from marey.weights.create import create_model

SOURCE = Path(marey.__file__).parent


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_resolves_and_survives_json(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert describe_recipe(name).endswith(".")
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=type(recipe)) == recipe


CLIPS = [recipe for name in list_recipes() if isinstance(recipe := load_recipe(name), Recipe)]
TAGS = [recipe for name in list_recipes() if isinstance(recipe := load_recipe(name), TagRecipe)]


def network(recipe):
    """What a recipe's network and its input depend on."""
    options = tuple(
        (key, tuple(value) if isinstance(value, list) else value)
        for key, value in sorted(recipe.model.options.items())
    )
    return (recipe.model.name, recipe.model.num_classes or 7, options, recipe.clips.frames, recipe.clips.crop)


@pytest.mark.parametrize("case", dict.fromkeys(map(network, CLIPS)), ids=str)
def test_every_recipe_builds_its_network(case):
    name, classes, options, frames, side = case
    with torch.device("meta"):
        logits = create_model(name, classes, **dict(options))(torch.empty(1, 3, frames, side, side))
    assert logits.shape == (1, classes)


@pytest.mark.parametrize("recipe", TAGS, ids=lambda recipe: recipe.name)
def test_every_recipe_for_features_builds_its_network(recipe):
    with torch.device("meta"):
        model = create_model(recipe.model.name, recipe.model.num_classes or 7, **recipe.model.options)
    parameters = sum(p.numel() for p in model.parameters())
    # the first by Paddle's own count, the second by TensorFlow's, the third the authors' 79 M
    published = {"yt8m": 89_088_550, "yt8m_authors": 88_889_378, "yt8m_112k": 78_643_170}
    assert parameters == published.get(recipe.name.partition("nextvlad_")[2], parameters)


def test_a_recipe_for_features_is_trained_as_published():
    """PaddlePaddle/models@b71cf63: Adam 2e-4, 1e-5 on the classifier, 0.8 for 2 M videos, 160 a batch."""
    plan = load_recipe("nextvlad_yt8m").training
    made = plan.optimizer
    assert (made.kind, made.lr, made.weight_decay, made.groups) == ("adam", 2e-4, 1e-5, "head")
    assert made.clip_norm is None
    assert (plan.schedule.kind, plan.schedule.samples, plan.schedule.gamma) == ("samples", 2_000_000, 0.8)
    assert (plan.epochs, plan.batch, plan.reference_batch, plan.scale_lr) == (6, 160, 160, False)
    assert load_recipe("nextvlad_yt8m").published.metrics == {"gap": 0.8709, "hit1": 0.896, "perr": 0.8132}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("finetune", "model.name=nextvlad"),
        ("nextvlad_yt8m", "model.name=tsm_r50"),
        ("nextvlad_yt8m", "training.augment.copies=2"),
        ("nextvlad_yt8m", "training.precise_bn=5"),
        ("own_tags", "training.label_smoothing=0.1"),
        ("own_tags", "training.checkpoint_activations=true"),
        ("own_tags", "training.class_weights=balanced"),
    ],
)
def test_clips_and_features_are_not_mixed_up(name, change):
    with pytest.raises(UsageError) as error:
        load_recipe(name, [change])
    assert error.value.code == "RECIPE_KIND"


def test_a_job_on_clips_refuses_a_recipe_for_features():
    assert clip_recipe(load_recipe("finetune")) == load_recipe("finetune")
    with pytest.raises(UsageError, match="needs clips") as error:
        clip_recipe(load_recipe("own_tags"))
    assert error.value.code == "RECIPE_KIND"


def test_the_published_part_of_a_name_will_do():
    full = load_recipe("tsm.tsm_r50_1x1x8_50e_kinetics400_rgb")
    assert load_recipe("tsm_r50_1x1x8_50e_kinetics400_rgb") == full
    assert "tsm.tsm_r50_1x1x8_50e_kinetics400_rgb" in list_recipes("tsm*")


def test_published_figures_are_those_of_the_release():
    """Table of open-mmlab/mmaction2@v0.24.1: TSN 70.60 / 89.26, TSM 70.24 / 89.56, SlowOnly 72.76 / 90.51."""
    expected = {
        "tsn_r50_1x1x3_100e_kinetics400_rgb": (0.7060, 0.8926),
        "tsm_r50_1x1x8_50e_kinetics400_rgb": (0.7024, 0.8956),
        "slowonly_r50_4x16x1_256e_kinetics400_rgb": (0.7276, 0.9051),
        "slowonly_r50_8x8x1_256e_kinetics400_rgb": (0.7442, 0.9149),
    }
    for name, (top1, top5) in expected.items():
        assert load_recipe(name).published.metrics == {"top1": top1, "top5": top5}


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("training.epoch=3", "training.epochs"),
        ("epochs=3", "training.epochs"),
        ("training.optimiser.lr=1", "training.optimizer"),
        ("clips.test.crop_size=3", "clips.test.crop"),
        ("data.trian=x", "data.train"),
    ],
)
def test_an_unknown_key_names_its_nearest(wrong, nearest):
    with pytest.raises(UsageError, match=nearest.replace(".", r"\.")) as error:
        load_recipe("finetune", [wrong])
    assert error.value.code == "UNKNOWN_KEY"
    assert error.value.exit_code == 2


def test_an_unknown_recipe_names_its_nearest():
    with pytest.raises(UsageError, match="tsm_r50_1x1x8_50e_kinetics400_rgb"):
        load_recipe("tsm_r50_1x1x8_50e_kinetics_rgb")
    with pytest.raises(UsageError, match=r"tsn\.tsn_r50"):
        load_recipe("tsn.tsn_r50")


@pytest.mark.parametrize(
    "wrong",
    [
        "training.epochs=many",
        "training.epochs=0",
        "clips.flip=2",
        "clips.sampling=sometimes",
        "training.optimizer.lr=-1",
    ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_runs(wrong):
    with pytest.raises(UsageError, match=wrong.partition("=")[0].rpartition(".")[2]) as error:
        load_recipe("finetune", [wrong])
    assert error.value.exit_code == 2


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(UsageError, match="key=value"):
        load_recipe("finetune", ["training.epochs"])


def test_values_are_json_or_plain_text():
    recipe = load_recipe(
        "finetune",
        [
            "data.train=my list.csv",
            "clips.mean=[1,2,3]",
            "model.options.width=16",
            "data.multi_label=true",
            "data.root=null",
        ],
    )
    assert recipe.data.train == "my list.csv"
    assert recipe.clips.mean == (1.0, 2.0, 3.0)
    assert recipe.model.options == {"width": 16}
    assert recipe.data.multi_label is True
    assert recipe.data.root is None


def test_overriding_changes_a_copy():
    recipe = load_recipe("finetune")
    assert override(recipe, {"training.epochs": 3}).training.epochs == 3
    assert load_recipe("finetune") == recipe


def test_a_saved_recipe_is_a_recipe(tmp_path):
    file = tmp_path / "recipe.json"
    recipe = load_recipe("finetune", {"training.epochs": 3})
    file.write_bytes(msgspec.json.encode(recipe))
    assert load_recipe(file) == recipe
    assert load_recipe(str(file), ["training.epochs=4"]).training.epochs == 4
    tags = load_recipe("own_tags", {"training.epochs": 3})
    file.write_bytes(msgspec.json.encode(tags))
    assert load_recipe(file) == tags


@pytest.mark.parametrize("text", ["{", "[]", '{"name": 3}', '{"nme": "x"}'])
def test_a_file_that_is_no_recipe_is_named(tmp_path, text):
    file = tmp_path / "recipe.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"recipe\.json"):
        load_recipe(file)
    with pytest.raises(UsageError, match=r"missing\.json"):
        load_recipe(tmp_path / "missing.json")


def test_no_field_of_a_recipe_is_idle():
    """Every field is read somewhere outside the place that declares it."""
    structs = [
        getattr(schema, name)
        for name in (
            *("Model", "Data", "Training", "Testing", "Published", "Recipe"),
            *("Records", "TagTesting", "TagRecipe"),
        )
    ]
    read = {
        node.attr
        for file in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    report = (SOURCE / "jobs" / "report.py").read_text()
    for struct in (
        *structs,
        Optimizer,
        Schedule,
        Augment,
        RandAugment,
        Erasing,
        Mixing,
        Preprocess,
        Protocol,
    ):
        idle = [f for f in struct.__struct_fields__ if f not in read and f'"{f}"' not in report]
        assert not idle, f"{struct.__name__}: nothing reads {idle}"
