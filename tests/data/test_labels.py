"""Class names from files, and the targets of a loss."""

import pytest
import torch

from marey.classes import class_names
from marey.data.labels import mirror_pairs, read_classes, targets
from marey.errors import DataError
from marey.video import synthetic


@pytest.mark.parametrize(
    "text",
    ["run\njump high\nswim\n", '["run", "jump high", "swim"]', '{"swim": 2, "run": 0, "jump high": 1}'],
)
def test_class_names_are_read_from_lines_a_list_or_an_index(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    assert read_classes(tmp_path / "classes.txt") == ("run", "jump high", "swim")


WRONG = {
    "run\njump\nrun\n": ("LABEL_NAMES", r"line 3 repeats 'run' of number 1"),
    "run\n\njump\n": ("LABEL_NAMES", "line 2 is empty"),
    '{"run": 1, "jump": 2}': ("LABEL_NAMES", r"must be 0 \.\. 1"),
    '{"run": "zero"}': ("LIST_FORMAT", "expected a list of names"),
    '{"run": "0", "jump": "2"}': ("LABEL_NAMES", r"must be 0 \.\. 1"),
    '["run", 3]': ("LIST_FORMAT", "expected a list of names"),
    '["run"': ("LIST_FORMAT", ":1: not JSON"),
    "": ("LABEL_NAMES", "there is none"),
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_class_names_are_refused_by_file_and_line(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    code, message = WRONG[text]
    with pytest.raises(DataError, match=message) as caught:
        read_classes(tmp_path / "classes.txt")
    assert caught.value.code == code and "classes.txt" in caught.value.message


OWNERS = {
    "classInd.txt": "1 run\r\n2 jump\r\n3 swim\r\n",
    "moments_categories.txt": "jump,1\nswim,2\nrun,0\n",
    "something-something-v2-labels.json": '{"jump": "1", "run": "0", "swim": "2"}',
}


@pytest.mark.parametrize("name", OWNERS)
def test_the_owners_own_files_of_class_names_are_read(tmp_path, name):
    (tmp_path / name).write_text(OWNERS[name])
    assert read_classes(tmp_path / name) == ("run", "jump", "swim")


def test_names_of_several_words_are_joined_and_lines_that_only_look_counted_stay_names(tmp_path):
    (tmp_path / "vocab.json").write_text('[["Back", "15som"], ["Back", "25som"]]')
    assert read_classes(tmp_path / "vocab.json") == ("Back+15som", "Back+25som")
    for text in ("1 run\n3 jump\n", "run,0\njump,2\n", "1 run\njump\n", "run,0\njump\n", "a,1\nb,1\n"):
        (tmp_path / "plain.txt").write_text(text)
        assert read_classes(tmp_path / "plain.txt") == tuple(text.splitlines())


def test_a_data_set_whose_names_ship_can_be_named_unless_a_file_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_classes("kinetics-400")[-1] == "zumba"
    (tmp_path / "hmdb51").write_text("one\ntwo\n")
    assert read_classes("hmdb51") == ("one", "two")


def test_classes_that_a_mirror_exchanges_are_found_by_their_names():
    """Names of Something-Something and Jester; the rendered videos, which know what a mirror does to them."""
    names = [
        "Pulling something from left to right",
        "Pulling something from right to left",
        "Swiping Left",
        "Swiping Right",
        "Turning the camera left while filming something",
        "Holding something next to something",
        "Turning the camera right while filming something",
        "Moving something to the right",  # without a partner
        "Leaving brightly",
    ]
    assert mirror_pairs(names) == ((0, 1), (2, 3), (4, 6))
    assert mirror_pairs(["left", "alright", "aleft", "right"]) == ((0, 3),)
    assert mirror_pairs(synthetic.CLASSES) == synthetic.FLIP_LABELS
    assert mirror_pairs(class_names("Kinetics-700")) == ()


def test_a_missing_file_of_class_names_is_named(tmp_path):
    with pytest.raises(DataError, match=r"classes\.txt: No such file") as caught:
        read_classes(tmp_path / "classes.txt")
    assert caught.value.code == "NOT_FOUND"


def test_one_label_is_a_number_and_several_are_a_vector():
    one, several = targets((2,), 4, False), targets((0, 3), 4, True)
    assert (one.dtype, one.shape, one.item()) == (torch.int64, (), 2)
    assert (several.dtype, several.tolist()) == (torch.float32, [1.0, 0.0, 0.0, 1.0])
    assert targets((), 2, True).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("labels", "several", "code"),
    [
        ((4,), False, "LABEL_RANGE"),
        ((-1,), True, "LABEL_RANGE"),
        ((), False, "LABEL_COUNT"),
        ((0, 1), False, "LABEL_COUNT"),
    ],
)
def test_labels_that_make_no_target_are_refused(labels, several, code):
    with pytest.raises(DataError) as caught:
        targets(labels, 4, several)
    assert caught.value.code == code
