"""Sources with labels: whatever lists and folders say, for the right videos."""

import json

import pytest

from marey.errors import DataError, MareyError
from marey.jobs.labelled import labelled_sources


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a.mp4", "b.mp4", "sub/a.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def by_name(found):
    return {found.ids[path]: found.labels.get(path, ()) for path in found.sources}


def test_lists_give_labels_and_names(folder):
    (folder / "l.csv").write_text("path,label\na.mp4,run;jump\nb.mp4,\nsub/a.mp4,jump\n")
    found = labelled_sources("l.csv")
    assert by_name(found) == {"a.mp4": (0, 1), "b.mp4": (), "sub/a.mp4": (0,)}
    assert (found.classes, found.num_classes) == (("jump", "run"), 2)
    assert set(found.sources) == {str(folder / name) for name in ("a.mp4", "b.mp4", "sub/a.mp4")}
    (folder / "l.txt").write_text("a.mp4 3\nb.mp4 7\n")
    found = labelled_sources("l.txt")
    assert (by_name(found), found.classes, found.num_classes) == ({"a.mp4": (3,), "b.mp4": (7,)}, None, 8)
    (folder / "l.json").write_text(json.dumps([{"path": "a.mp4", "label": [2, 0]}]))
    assert by_name(labelled_sources("l.json")) == {"a.mp4": (0, 2)}


def test_rows_of_one_video_add_up(folder):
    (folder / "l.csv").write_text("path,label\na.mp4,4\nsub/../a.mp4,1\na.mp4,4\n")
    assert by_name(labelled_sources("l.csv")) == {"a.mp4": (1, 4)}


def test_files_folders_and_plain_lists_have_no_labels(folder):
    (folder / "plain.txt").write_text("a.mp4\nb.mp4\n")
    for sources in ("plain.txt", ["a.mp4", "b.mp4"], "[ab].mp4"):
        found = labelled_sources(sources)
        assert (by_name(found), found.num_classes) == ({"a.mp4": (), "b.mp4": ()}, 0)
    assert set(by_name(labelled_sources(folder))) == {
        str(folder / n) for n in ("a.mp4", "b.mp4", "sub/a.mp4")
    }


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_a_folder_per_class_labels_what_it_holds(tmp_path, monkeypatch):
    clips = touched(tmp_path / "clips", "run/a.mp4", "run/day 2/b.mp4", "jump/b.mp4", "walk/c/0001.jpg")
    want = {"jump/b.mp4": (0,), "run/a.mp4": (1,), "run/day 2/b.mp4": (1,), "walk/c": (2,)}
    found = labelled_sources(clips)
    assert by_name(found) == {str(clips / name): labels for name, labels in want.items()}
    assert (found.classes, found.num_classes) == (("jump", "run", "walk"), 3)
    monkeypatch.chdir(tmp_path)
    assert by_name(labelled_sources("clips")) == {f"clips/{name}": labels for name, labels in want.items()}
    given = labelled_sources("clips", classes=["walk", "jump", "run"])
    assert by_name(given)["clips/run/a.mp4"] == (2,)
    split = touched(tmp_path / "split", "train/run/a.mp4", "train/jump/b.mp4", "val/run/c.mp4")
    found = labelled_sources(split)
    assert (list(found.labels.values()), found.classes) == ([(0,), (1,), (1,)], ("jump", "run"))


@pytest.mark.parametrize(
    "names",
    [
        ("run/a.mp4", "b.mp4"),  # a video of no class
        ("run/img_1.jpg", "jump/img_1.jpg"),  # folders of frames are videos themselves
        ("train/a.mp4", "val/b.mp4"),  # splits are no classes
        ("train/run/a.mp4", "val/b.mp4"),
        ("img_1.jpg", "img_2.jpg"),
    ],
    ids=" ".join,
)
def test_other_folders_label_nothing(tmp_path, names):
    found = labelled_sources(touched(tmp_path, *names))
    assert (found.labels, found.classes, found.num_classes) == ({}, None, 0)
    assert found.sources


def test_folders_of_other_classes_are_told_how_to_go_without(tmp_path, monkeypatch):
    touched(tmp_path, "one/run/a.mp4", "two/jump/b.mp4")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="pattern") as error:
        labelled_sources(["one", "two"])
    assert error.value.code == "LABEL_NAMES"
    assert not labelled_sources(["one/*/*.mp4", "two/*/*.mp4"]).labels


def test_names_that_two_videos_share_become_full_paths(folder):
    (folder / "l.txt").write_text("a.mp4 0\nb.mp4 1\n")
    (folder / "sub" / "l.txt").write_text("a.mp4 2\n")
    assert by_name(labelled_sources(["l.txt", "sub/l.txt"])) == {
        str(folder / "a.mp4"): (0,),
        "b.mp4": (1,),
        str(folder / "sub/a.mp4"): (2,),
    }


def test_lists_number_their_classes_alike(folder):
    (folder / "1.csv").write_text("path,label\na.mp4,run\nb.mp4,jump\n")
    (folder / "2.csv").write_text("path,label\nsub/a.mp4,run\n")
    with pytest.raises(DataError, match="--classes") as error:
        labelled_sources(["1.csv", "2.csv"])
    assert error.value.code == "LABEL_NAMES"
    (folder / "classes.txt").write_text("walk\nrun\njump\n")
    found = labelled_sources(["1.csv", "2.csv"], classes="classes.txt")
    assert by_name(found) == {"a.mp4": (1,), "b.mp4": (2,), "sub/a.mp4": (1,)}
    assert (found.classes, found.num_classes) == (("walk", "run", "jump"), 3)


@pytest.mark.parametrize(
    ("text", "code"),
    [("path,label,start,end\na.mp4,1,2,4\n", "LIST_FORMAT"), ("path,label\na.mp4,0.5\n", "LABEL_TYPE")],
)
def test_parts_of_videos_and_bad_labels_are_refused(folder, text, code):
    (folder / "l.csv").write_text(text)
    with pytest.raises(MareyError, match=r"l\.csv:2") as error:
        labelled_sources("l.csv")
    assert error.value.code == code


def test_no_source_is_an_error():
    with pytest.raises(MareyError) as error:
        labelled_sources([])
    assert error.value.code == "NOTHING_FOUND"
