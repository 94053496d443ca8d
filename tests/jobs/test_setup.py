"""What the data decides about a recipe: class names that ship, and labels that a mirror exchanges."""

import pytest
import torch

from marey.classes import class_names
from marey.errors import DataError
from marey.jobs.setup import complete, open_lists, trained_model
from marey.jobs.setup_boxes import open_keys
from marey.recipes.catalog import load_recipe
from marey.weights.create import create_model
from marey.weights.native import save_checkpoint


def completed(tmp_path, rows, overrides):
    (tmp_path / "train.csv").write_text(
        "path,label\n" + "".join(f"{i}.mp4,{row}\n" for i, row in enumerate(rows))
    )
    recipe = load_recipe("finetune.finetune", {"data.train": str(tmp_path / "train.csv")} | overrides)
    return complete(recipe, open_lists(recipe.data, training=True))


@pytest.mark.parametrize(
    ("overrides", "pairs"),
    [
        ({"clips.flip": 0.5}, ((1, 2),)),
        ({"clips.flip": 0.5, "clips.flip_labels": [[0, 2]]}, ((0, 2),)),
        ({"clips.flip": 0.0}, ()),
    ],
)
def test_classes_called_left_and_right_are_exchanged_by_a_mirror_unless_the_recipe_says_which(
    tmp_path, overrides, pairs
):
    recipe = completed(tmp_path, ["jump", "turn left", "turn right"], overrides)
    assert recipe.clips.flip_labels == pairs
    assert completed(tmp_path, ["0", "1", "2"], {"clips.flip": 0.5}).clips.flip_labels == ()


def test_networks_that_average_over_places_know_what_the_labels_ask(tmp_path):
    several = {"model.name": "slowfast_r50", "data.multi_label": True}
    assert completed(tmp_path, ["0", "1"], several).model.options == {"independent": True}
    for other in ({"data.labels": "one"}, {"data.multi_label": False}, {"model.name": "csn_ir_r50"}):
        assert "independent" not in completed(tmp_path, ["0", "1"], several | other).model.options


def test_a_data_set_whose_names_ship_numbers_the_classes_and_stays_written_so(tmp_path):
    recipe = completed(tmp_path, ["zumba", "abseiling"], {"data.classes": "Kinetics-400"})
    assert (recipe.model.num_classes, recipe.data.classes) == (400, "Kinetics-400")
    (tmp_path / "names.txt").write_text("zumba\nabseiling\n")
    recipe = completed(tmp_path, ["zumba"], {"data.classes": str(tmp_path / "names.txt")})
    assert (recipe.model.num_classes, recipe.data.classes) == (2, str(tmp_path / "names.txt"))


def test_classes_in_an_order_of_their_own_are_put_in_that_of_the_data_set(tmp_path):
    """As of UniFormer's releases: a list of numbers follows the data set, not the classifier."""
    names = class_names("HMDB51")
    torch.manual_seed(0)
    model = create_model("tsn_r18", 51, width=8)
    path = tmp_path / "turned.safetensors"
    options = {"preprocess": model.preprocess, "recipe": {}, "metrics": {}}
    save_checkpoint(path, model, class_names=names[::-1], **options)
    plan = load_recipe("finetune", {"model.name": "tsn_r18", "model.options": {"width": 8}})
    turned = trained_model(plan, path)
    assert turned.class_names == names
    assert torch.equal(turned.head.weight, model.head.weight.flip(0))
    assert torch.equal(turned.head.bias, model.head.bias.flip(0))
    for order in (names, (*names[:-1], "juggling"), tuple(map(str, range(51)))):
        save_checkpoint(path, model, class_names=order, **options)
        assert torch.equal(trained_model(plan, path).head.weight, model.head.weight)


def test_a_truth_may_have_key_frames_without_anybody_and_a_training_not(tmp_path):
    (tmp_path / "truth.csv").write_text("a,0001,0,0,1,1,3,0\na,0002,0,0,1,1,5\na,0003\n")
    (tmp_path / "boxes.csv").write_text("a,0001,0,0,1,1,0.95\n")
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.mp4").touch()
    paths = {"annotation": "truth.csv", "proposals": "boxes.csv", "media": "media"}
    overrides = {
        f"data.{s}.{key}": str(tmp_path / file) for s in ("train", "val") for key, file in paths.items()
    }
    recipe = load_recipe("own_boxes", overrides)
    test = open_keys(recipe, training=False).test
    assert [frame.key for frame in test.frames] == ["a,0001", "a,0002", "a,0003"]
    assert [len(frame.boxes) for frame in test.frames] == [1, 1, 0]
    assert test.frames.num_classes == 6
    with pytest.raises(DataError, match="2 faults") as error:
        open_keys(recipe, training=True)
    assert error.value.code == "AVA_COLUMNS"
