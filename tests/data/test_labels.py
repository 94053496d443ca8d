"""Class names from files, and the targets of a loss."""

import pytest
import torch

from marey.data.labels import read_classes, targets
from marey.errors import DataError


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
    '{"run": "0"}': ("LIST_FORMAT", "expected a list of names"),
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
