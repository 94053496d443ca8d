"""Class names of public data sets: counts, order, and a second source where there is one."""

import pytest
from torchvision.models.video import R3D_18_Weights

from marey import classes
from marey.classes import class_names

COUNTS = {
    "Kinetics-400": 400,
    "Kinetics-600": 600,
    "Kinetics-700": 700,
    "HMDB51": 51,
    "AVA v2.1": 81,
    "AVA v2.2": 81,
}


def test_every_list_has_the_published_number_of_names_each_once():
    assert classes.FILES.keys() == COUNTS.keys()
    for dataset, count in COUNTS.items():
        names = class_names(dataset)
        assert names is not None and len(names) == len(set(names)) == count, dataset
        assert all(name and name == name.strip() for name in names), dataset


def test_kinetics_400_is_numbered_as_in_torchvision():
    assert class_names("Kinetics-400") == tuple(R3D_18_Weights.KINETICS400_V1.meta["categories"])


def test_labels_follow_the_sorted_names():
    for dataset in COUNTS:
        names = class_names(dataset)
        assert names is not None
        assert (list(names) == sorted(names)) != dataset.startswith("AVA"), dataset


def test_avas_actions_are_numbered_as_in_its_label_map():
    """Whole groups, each sorted: 1 to 14 movement, 15 to 63 objects, 64 to 80 persons; 0 is never used."""
    names = class_names("AVA v2.2")
    assert names is not None and names == class_names("ava_v2.1")
    for first, last in ((1, 14), (15, 63), (64, 80)):
        group = list(names[first : last + 1])
        assert group == sorted(group)
    for number, name in {12: "stand", 15: "answer phone", 57: "text on/look at a cellphone"}.items():
        assert names[number] == name
    assert (names[62], names[79]) == ("work on a computer", "talk to (e.g., self, a person, a group)")


def test_kinetics_700_keeps_all_but_three_classes_of_kinetics_600():
    """arXiv:1907.06987: all but three are retained; one of those changed its spelling."""
    gone = {*class_names("Kinetics-600")} - {*class_names("Kinetics-700")}
    assert gone == {
        *("bull fighting", "chopping vegetables", "picking fruit"),
        "passing american football (not in game)",
    }
    assert "passing American football (not in game)" in class_names("Kinetics-700")


@pytest.mark.parametrize("spelling", ["kinetics400", "Kinetics 400", "KINETICS_400"])
def test_the_spelling_of_a_data_set_is_free_and_an_unknown_one_has_no_names(spelling):
    assert class_names(spelling) is class_names(spelling)
    assert class_names(spelling) == class_names("Kinetics-400")
    assert class_names("Kinetics") is None
