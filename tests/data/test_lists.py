"""Lists of every layout give the same entries, and what is wrong is named by file and line."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marey.data.lists import ClipList, Entry, check_labels, read_list, same_classes
from marey.errors import DataError, UsageError


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def paths(clips: ClipList) -> list[str]:
    return [os.path.relpath(entry.path, clips.root) for entry in clips]


def labels(clips: ClipList) -> list[tuple[int, ...]]:
    return [entry.labels for entry in clips]


SAME_LIST = {
    "a.csv": "path,label\nx/1.mp4,0\nx/2.mp4,2\n3.avi,1\n",
    "a.tsv": "label\tpath\n0\tx/1.mp4\n2\tx/2.mp4\n1\t3.avi\n",
    "quoted.csv": '\ufeff"path","label"\n"x/1.mp4","0"\n\nx/2.mp4, 2\n3.avi,1\n',
    "a.jsonl": '{"path":"x/1.mp4","label":0}\n\n{"label":[2],"path":"x/2.mp4"}\n{"path":"3.avi","label":1}\n',
    "a.json": json.dumps(
        [{"filename": p, "label": y} for p, y in (("x/1.mp4", [0]), ("x/2.mp4", 2), ("3.avi", 1))]
    ),
    "spaces.txt": "x/1.mp4 0\nx/2.mp4  2\n\n3.avi\t1",
    "commas.txt": "x/1.mp4,0\nx/2.mp4, 2\n3.avi,1\n",
}


@pytest.mark.parametrize("name", SAME_LIST)
def test_every_layout_of_one_list_gives_the_same_entries(tmp_path, name):
    clips = read_list(write(tmp_path, name, SAME_LIST[name]))
    assert [(entry.path, entry.labels) for entry in clips] == [
        (str(tmp_path / "x/1.mp4"), (0,)),
        (str(tmp_path / "x/2.mp4"), (2,)),
        (str(tmp_path / "3.avi"), (1,)),
    ]
    assert (len(clips), clips.num_classes, clips.classes, clips.multi_label) == (3, 3, None, False)
    assert clips[-1] == clips[2]
    with pytest.raises(IndexError):
        clips[3]


RAWFRAMES = {  # text -> (path, start, total, labels) of the first line, several labels
    "v/a 163 5\nv/b 20 0\n": (("v/a", 0, 163, (5,)), False),
    "v/a, 163, 5\nv/b, 20, 0\n": (("v/a", 0, 163, (5,)), False),
    "v/a 10 163 5\nv/b 0 20 0\n": (("v/a", 10, 163, (5,)), False),
    "v/a 163 5 7\nv/b 20 0\n": (("v/a", 0, 163, (5, 7)), True),
    "my folder/a 163 5\nb 20 0\n": (("my folder/a", 0, 163, (5,)), False),
}


@pytest.mark.parametrize("text", RAWFRAMES)
def test_lists_of_frame_folders_are_recognised_with_offset_and_with_several_labels(tmp_path, text):
    (path, start, total, expected), several = RAWFRAMES[text]
    clips = read_list(write(tmp_path, "a.txt", text), template="frame_{:06}.png")
    assert clips[0] == Entry(str(tmp_path / path), expected, start, total, "frame_{:06}.png")
    assert clips.multi_label is several and len(clips) == 2


def test_the_format_and_multi_label_override_what_the_content_suggests(tmp_path):
    file = write(tmp_path, "a.txt", "v/a 163 5 7\nv/b 5 20 1\n")
    assert read_list(file)[0].start == 163
    clips = read_list(file, format="rawframes", multi_label=True)
    assert (clips[0].start, clips[0].total, clips[0].labels) == (0, 163, (5, 7))
    assert read_list(write(tmp_path, "b.txt", "v/a 3\n"), format="videos")[0].total is None
    with pytest.raises(UsageError, match="rawframes") as caught:
        read_list(file, format="rawframe")
    assert caught.value.code == "UNKNOWN_NAME"


def test_several_labels_are_separated_by_semicolons_in_csv_and_by_spaces_in_text(tmp_path):
    table = read_list(write(tmp_path, "a.csv", "path,label\na.mp4,1;5;7\nb.mp4,\nc.mp4,0\n"))
    assert (labels(table), table.multi_label) == ([(1, 5, 7), (), (0,)], True)
    assert table.counts().tolist() == [1, 1, 0, 0, 0, 1, 0, 1]
    text = read_list(write(tmp_path, "a.txt", "a.mp4 1 5 7\nb.mp4 2\n"))
    assert (labels(text), text.multi_label, paths(text)) == ([(1, 5, 7), (2,)], True, ["a.mp4", "b.mp4"])
    lines = read_list(
        write(tmp_path, "a.jsonl", '{"path":"a.mp4","label":[1,5,7]}\n'), classes=list("abcdefgh")
    )
    assert labels(lines) == [(1, 5, 7)]


def test_a_text_line_with_more_numbers_than_expected_is_refused_not_taken_for_a_path(tmp_path):
    text = "".join(f"{i}.mp4 1\n" for i in range(300)) + "x.mp4 1 2\n"
    with pytest.raises(DataError, match=r"a\.txt:301: expected `path label`.*'x\.mp4 1 2'"):
        read_list(write(tmp_path, "a.txt", text))


def test_paths_may_hold_spaces_commas_quotes_newlines_and_any_bytes(tmp_path):
    names = ["my clip.mp4", "a,b.mp4", 'say "hi".mp4', "two\nlines.mp4", "-dash.mp4", "é.mp4"]
    rows = "".join('"{}",{}\n'.format(name.replace('"', '""'), label) for label, name in enumerate(names))
    assert paths(read_list(write(tmp_path, "a.csv", "path,label\n" + rows))) == names
    assert paths(read_list(write(tmp_path, "a.txt", "my clip.mp4 1\na b c.avi 0\n"))) == [
        "my clip.mp4",
        "a b c.avi",
    ]
    (tmp_path / "bytes.csv").write_bytes(b"path,label\nx/\xff\xfe.mp4,0\n")
    assert (
        os.fsencode(read_list(tmp_path / "bytes.csv")[0].path) == os.fsencode(tmp_path) + b"/x/\xff\xfe.mp4"
    )


def test_absolute_paths_stay_and_relative_ones_start_at_the_root(tmp_path):
    file = write(tmp_path, "lists/a.txt", "/data/x.mp4 0\ny.mp4 1\n")
    assert [entry.path for entry in read_list(file)] == ["/data/x.mp4", str(tmp_path / "lists/y.mp4")]
    assert [entry.path for entry in read_list(file, root="/videos")] == ["/data/x.mp4", "/videos/y.mp4"]


def test_parts_of_videos_come_in_seconds_or_frames_and_splits_are_chosen(tmp_path):
    text = (
        "path,start,end,split,label,source\na.mp4,1.5,4,train,0,s1\nb.mp4,,,val,1,s2\nc.mp4,2,,train,2,s3\n"
    )
    file = write(tmp_path, "a.csv", text)
    assert [entry.seconds for entry in read_list(file)] == [(1.5, 4.0), None, (2.0, float("inf"))]
    assert paths(read_list(file, split="val")) == ["b.mp4"]
    assert read_list(file, split="val").splits == ("train", "val")
    assert read_list(file, split="val").num_classes == 3
    with pytest.raises(UsageError, match="known are train, val"):
        read_list(file, split="test")
    frames = read_list(
        write(tmp_path, "b.jsonl", '{"path":"a","offset":3,"total":20,"label":0}\n{"path":"b","label":0}\n')
    )
    assert [(entry.start, entry.total) for entry in frames] == [(3, 20), (0, None)]


def test_minus_one_and_a_path_alone_mean_no_label(tmp_path):
    for text in ("0.mp4,-1\n1.mp4,-1\n", "0.mp4\n1.mp4\n"):
        clips = read_list(write(tmp_path, "a.txt", text))
        assert (labels(clips), clips.num_classes) == ([(), ()], 0)
    with pytest.raises(DataError, match=r"1 of 2 entries have no label: .*a\.txt:2") as caught:
        read_list(write(tmp_path, "a.txt", "0.mp4 3\n1.mp4 -1\n"))
    assert caught.value.code == "LABEL_COUNT"


# Class names ------------------------------------------------------------------------------------------


def test_class_names_come_from_the_class_column_and_unnamed_labels_are_called_by_number(tmp_path):
    clips = read_list(write(tmp_path, "a.csv", "path,label,class\na,0,run\nb,2,a;b\nc,0,run\n"))
    assert clips.classes == ("run", "1", "a;b")


def test_names_used_as_labels_are_numbered_in_sorted_order_or_by_the_given_names(tmp_path):
    file = write(tmp_path, "a.csv", "path,label\na,run\nb,jump\nc,run\nd,swim\n")
    clips = read_list(file)
    assert (clips.classes, labels(clips)) == (("jump", "run", "swim"), [(1,), (0,), (1,), (2,)])
    clips = read_list(file, classes=["swim", "run", "jump", "rest"])
    assert (clips.num_classes, labels(clips)) == (4, [(1,), (2,), (1,), (0,)])
    with pytest.raises(
        DataError, match=r"a\.csv:3: no class is called 'jump'; did you mean jumping\?"
    ) as caught:
        read_list(file, classes=["jumping", "run", "swim"])
    assert caught.value.code == "LABEL_NAMES"
    by_column = read_list(write(tmp_path, "b.csv", "path,class\na,run\nb,jump;run\n"))
    assert (by_column.classes, labels(by_column)) == (("jump", "run"), [(1,), (0, 1)])


CONTRADICTIONS = {
    "path,label,class\na,0,run\nb,1,jump\nc,0,swim\n": r":4: label 0 is 'swim' here, 'run' in line 2",
    "path,label,class\na,0,run\nb,1,run\n": r":3: class 'run' has label 1 here, 0 in line 2",
    "path,label,class\na,0;1,run\n": r":2: 2 labels and 1 class names",
}


@pytest.mark.parametrize("text", CONTRADICTIONS)
def test_contradicting_class_names_are_refused_with_both_lines(tmp_path, text):
    with pytest.raises(DataError, match=CONTRADICTIONS[text]) as caught:
        read_list(write(tmp_path, "a.csv", text))
    assert caught.value.code == "LABEL_NAMES"


def test_a_class_column_must_agree_with_the_given_names(tmp_path):
    file = write(tmp_path, "a.csv", "path,label,class\na,0,run\nb,1,jump\n")
    assert read_list(file, classes=["run", "jump"]).classes == ("run", "jump")
    with pytest.raises(DataError, match=r":2: label 0 is 'run' here, 'jump' in the class names"):
        read_list(file, classes=["jump", "run"])


def test_lists_of_one_data_set_share_their_class_names(tmp_path):
    train = read_list(write(tmp_path, "train.csv", "path,label,class\na,0,run\nb,1,jump\nc,2,swim\n"))
    val = read_list(write(tmp_path, "val.csv", "path,label,class\na,2,swim\nb,0,run\n"))
    assert same_classes(train, val) == ("run", "jump", "swim")
    wide = read_list(write(tmp_path, "wide.csv", "path,label,class\na,3,rest\n"))
    assert same_classes(train, val, wide) == ("run", "jump", "swim", "rest")
    derived = read_list(
        write(tmp_path, "derived.csv", "path,label\na,run\nb,swim\n")
    )  # without jump: run 0, swim 1
    with pytest.raises(
        DataError, match=r"derived\.csv: label 1 is 'swim', but in .*train\.csv label 1 is 'jump'"
    ):
        same_classes(train, derived)
    plain = read_list(write(tmp_path, "plain.txt", "a 0\nb 4\n"))
    assert same_classes(plain, plain) is None
    several = read_list(write(tmp_path, "several.csv", "path,label\na,0;1\n"))
    with pytest.raises(DataError, match=r"several\.csv is multi-label") as caught:
        same_classes(plain, several)
    assert caught.value.code == "LABEL_COUNT"


# Wrong lines ------------------------------------------------------------------------------------------

WRONG = {
    "path,label\na.mp4,0\nb.mp4\n": ("LIST_LINES", r":3: expected 2 fields \(path,label\), found 1"),
    "path,label\na.mp4,1.5\n": ("LABEL_TYPE", r":2: label '1\.5'; expected a whole number from 0 on"),
    "path,label\na.mp4,-3\n": ("LABEL_RANGE", r":2: label '-3'"),
    "path,label\na.mp4,99999999999\n": ("LABEL_RANGE", r":2: label 99999999999"),
    "path,label\na.mp4,1;;2\n": ("LABEL_TYPE", r":2: label ''"),
    "path,label\na.mp4,0\nb.mp4,run\n": ("LABEL_TYPE", r":3: label 'run', but line 2 has a number"),
    "path,label\n,0\n": ("LIST_LINES", r":2: the path is empty"),
    "path,label,start,end\na,0,5,3\n": ("LIST_LINES", r":2: start 5.0 and end 3.0"),
    "path,label,start\na,0,soon\n": ("LIST_LINES", r":2: start 'soon'; expected seconds"),
    "path,path\na,0\n": ("LIST_FORMAT", r":1: expected a header"),
    '{"path":"a","label":0}\n{"path":"b"\n': ("LIST_LINES", r":2: not JSON"),
    '{"path":"a","label":true}\n': ("LABEL_TYPE", r":1: label True"),
    '{"file":"a","label":1}\n': ("LIST_LINES", r":1: expected a text `path`"),
    '["a"]': ("LIST_LINES", r"item 1: expected an object"),
    "a.mp4 0\nb.mp4 run\n": ("LABEL_TYPE", r":2: label 'run' is not a whole number; expected `path label`"),
    "v/a 10 0\nv/b 3\n": ("LIST_LINES", r":2: expected `folder total_frames label`"),
    "v/a 0 3\nv/b 10 3\n": ("LIST_LINES", r":1: .*total_frames >= 1"),
    "": ("LIST_EMPTY", "empty"),
    "path,label\n": ("LIST_EMPTY", "no videos"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_line_is_named_with_what_was_expected(tmp_path, text):
    code, message = WRONG[text]
    with pytest.raises(DataError, match=message) as caught:
        read_list(write(tmp_path, "list.any", text))
    assert caught.value.code == code
    assert str(tmp_path / "list.any") in caught.value.message


def test_all_wrong_lines_are_collected_and_the_first_twenty_shown(tmp_path):
    rows = "".join(f"{i}.mp4,{i if i % 2 else 'x;'}\n" for i in range(100))
    with pytest.raises(DataError, match="50 wrong lines, the first 20:") as caught:
        read_list(write(tmp_path, "a.csv", "path,label\n" + rows))
    shown = [line for line in caught.value.message.splitlines() if "expected a whole number" in line]
    assert len(shown) == 20
    assert "a.csv:2:" in shown[0] and "a.csv:40:" in shown[19]


def test_a_row_after_a_quoted_line_break_is_named_by_its_first_line(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv:4: label"):
        read_list(write(tmp_path, "a.csv", 'path,label\n"two\nlines.mp4",0\nb.mp4,1.5\n'))


def test_labels_beyond_the_classes_are_named_before_any_training(tmp_path):
    clips = read_list(write(tmp_path, "a.txt", "a.mp4 0\nb.mp4 5\nc.mp4 1\nd.mp4 9\n"))
    with pytest.raises(
        DataError, match=r"2 wrong lines(.|\n)*a\.txt:2: label 5 (.|\n)*a\.txt:4: label 9"
    ) as caught:
        check_labels(clips, 5)
    assert caught.value.code == "LABEL_RANGE"
    check_labels(clips, 10)
    with pytest.raises(DataError, match=r"a\.txt:2: label 5"):
        read_list(tmp_path / "a.txt", classes=["a", "b", "c", "d", "e"])


def test_a_list_that_counts_from_one_is_recognised_and_can_be_read_so(tmp_path):
    file = write(tmp_path, "a.txt", "a.mp4 1\nb.mp4 2\nc.mp4 3\n")
    for num_classes in (3, None):
        with pytest.raises(DataError, match=r"count from 1.*first_label=1") as caught:
            check_labels(read_list(file), num_classes)
        assert caught.value.code == "LABEL_BASE"
    with pytest.raises(DataError, match="count from 1"):
        read_list(file, classes=["x", "y", "z"])
    check_labels(read_list(file), 4)
    fixed = read_list(file, first_label=1, classes=["x", "y", "z"])
    assert labels(fixed) == [(0,), (1,), (2,)]
    with pytest.raises(DataError, match=r":1: label 0 is outside 1 \.\. 3"):
        read_list(write(tmp_path, "b.txt", "a.mp4 0\n"), first_label=1, classes=["x", "y", "z"])


# Folders ----------------------------------------------------------------------------------------------


def make_folder(folder: Path, *names: str) -> None:
    for name in names:
        write(folder, name, "x")


def test_a_folder_per_class_is_a_list_sorted_by_class_and_name(tmp_path):
    make_folder(
        tmp_path, "swim/b.mp4", "swim/a.MP4", "run/deep/er/c.avi", "run/notes.txt", "README.md", ".git/x.mp4"
    )
    make_folder(tmp_path, "swim/frames/img_00001.jpg", "swim/frames/img_00002.jpg")
    clips = read_list(tmp_path, template="img_{:05}.jpg")
    assert paths(clips) == ["run/deep/er/c.avi", "swim/a.MP4", "swim/b.mp4", "swim/frames"]
    assert (clips.classes, labels(clips)) == (("run", "swim"), [(0,), (1,), (1,), (1,)])
    assert clips.notes == ("1 files are no videos by their names, for example 'run/notes.txt'",)


def test_split_folders_share_the_classes_of_all_splits(tmp_path):
    make_folder(tmp_path, "train/a/1.mp4", "train/c/2.mp4", "val/b/3.mp4", "val/c/4.mp4")
    train, val = read_list(tmp_path, split="train"), read_list(tmp_path, split="val")
    assert train.classes == val.classes == ("a", "b", "c")
    assert (labels(train), labels(val)) == ([(0,), (2,)], [(1,), (2,)])
    assert len(read_list(tmp_path)) == 4
    with pytest.raises(UsageError, match="did you mean train"):
        read_list(tmp_path, split="trian")


def test_splits_of_one_list_number_their_class_names_alike(tmp_path):
    file = write(tmp_path, "a.csv", "path,label,split\na,run,train\nb,jump,train\nc,run,val\n")
    assert labels(read_list(file, split="val")) == [(1,)]


def test_frame_names_are_those_of_mmaction2_in_its_lists_and_as_found_elsewhere(tmp_path):
    assert read_list(write(tmp_path, "a.txt", "v/a 163 5\n"))[0].template == "img_{:05}.jpg"
    assert read_list(write(tmp_path, "a.csv", "path,label\nv/a,5\n"))[0].template is None
    assert read_list(tmp_path / "a.csv", template="f{}.png")[0].template == "f{}.png"


def test_a_folder_without_class_folders_and_a_missing_list_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is none"):
        read_list(tmp_path)
    with pytest.raises(DataError, match="no list") as caught:
        read_list(tmp_path / "nothing.csv")
    assert caught.value.code == "NOT_FOUND"


# The compact list -------------------------------------------------------------------------------------


def test_a_subset_keeps_entries_lines_and_class_names(tmp_path):
    text = "path,label,class,start,end\na,0,run,,\nbb,1;2,jump;swim,1,2\nccc,2,swim,,\n"
    clips = read_list(write(tmp_path, "a.csv", text))
    chosen = clips.subset([2, 1])
    assert list(chosen) == [clips[2], clips[1]]
    assert (chosen.classes, chosen.line(0), chosen.num_classes) == (("run", "jump", "swim"), 4, 3)
    assert clips.subset([0]).classes == clips.classes


def test_single_labels_come_as_one_array_or_name_who_has_none(tmp_path):
    assert read_list(write(tmp_path, "a.txt", "a.mp4 3\nb.mp4 0\n")).single_labels().tolist() == [3, 0]
    with pytest.raises(DataError, match=r"b\.csv:3: expected one label"):
        read_list(write(tmp_path, "b.csv", "path,label\na,1\nb,1;2\n")).single_labels()


def test_the_fingerprint_sees_names_labels_parts_and_sizes_but_not_order_or_place(tmp_path):
    original = read_list(write(tmp_path, "a/list.txt", "x.mp4 0\ny.mp4 1\n")).fingerprint()
    assert len(original) == 64
    assert (
        read_list(write(tmp_path, "b/list.csv", "path,label\ny.mp4,1\nx.mp4,0\n")).fingerprint() == original
    )
    absolute = f"{tmp_path}/b/x.mp4 0\n{tmp_path}/b/y.mp4 1\n"
    assert read_list(write(tmp_path, "b/abs.txt", absolute)).fingerprint() == original
    for other in ("x.mp4 0\ny.mp4 0\n", "x.mp4 0\nz.mp4 1\n", "x.mp4 0\n", "x.mp4 0\ny.mp4 1\ny.mp4 1\n"):
        assert read_list(write(tmp_path, "c/list.txt", other)).fingerprint() != original
    part = read_list(write(tmp_path, "c/list.csv", "path,label,start\nx.mp4,0,\ny.mp4,1,2\n"))
    assert part.fingerprint() != original
    make_folder(tmp_path, "a/x.mp4", "a/y.mp4")
    clips = read_list(tmp_path / "a/list.txt")
    before = clips.fingerprint(sizes=True)
    write(tmp_path, "a/x.mp4", "longer")
    assert clips.fingerprint() == original and clips.fingerprint(sizes=True) != before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
            st.lists(st.integers(0, 999), max_size=4, unique=True),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_what_is_written_as_jsonl_is_what_is_read(tmp_path, rows):
    text = "".join(json.dumps({"path": path, "label": several}) + "\n" for path, several in rows)
    clips = read_list(write(tmp_path, "a.jsonl", text), multi_label=True)
    assert [clips.written(i) for i in range(len(clips))] == [path for path, _ in rows]
    assert labels(clips) == [tuple(several) for _, several in rows]
    expected = np.bincount([label for _, several in rows for label in several], minlength=clips.num_classes)
    assert clips.counts().tolist() == expected.tolist()
