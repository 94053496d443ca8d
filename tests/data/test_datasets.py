"""The owners' own lists: each is recognised as itself, read with the owner's numbers, refused by line."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marey.data import datasets
from marey.data.lists import ClipList, read_list
from marey.errors import DataError
from marey.jobs.check import check
from marey.video.synthetic import render_numbered

KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
testifying,---QUuC4vJs,84,94,val,0
"washing feet",--3ouPhoy2A,20,30,val,0
"massaging person's head",_dbcJuKJQNs,7,17,val,1
"""
SOMETHING_V2 = [
    {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
    {"id": "42326", "label": "x", "template": "Pushing [something] from [left] to right", "placeholders": []},
]
DIVING48 = [
    {"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48},
    {"vid_name": "-mmq0PT-u8k_00156", "label": 2, "start_frame": 0, "end_frame": 70},
]
NAMES = {  # the owners' files of class names, cut short
    "something-something-v1-labels.csv": "Holding something\nTurning something; twice\nAbove, something\n",
    "something-something-v2-labels.json": json.dumps(
        {"Holding something": "1", "Pushing something from left to right": "0"}
    ),
    "jester-v1-labels.csv": "Swiping Left\nNo gesture\nDoing other things\n",
    "classInd.txt": "1 Hammering\r\n2 HammerThrow\r\n3 YoYo\r\n",
    "moments_categories.txt": "clapping,0\nadult+male+singing,1\nplaying fetch,2\n",
    "Diving48_vocab.json": '[["Back","15som","05Twis","FREE"],["Back","15som"],["Inward","Dive"]]',
}
HMDB51 = {
    "wave_test_split1.txt": "#20_Rhythm_wave_0.avi 1 \n(HQ)_wave_1.avi 2 \nc_wave.avi 0 \n",
    "clap_test_split1.txt": "a_clap.avi 2 \n",
    "clap_test_split2.txt": "a_clap.avi 1 \n",
}
SAMPLES = {  # layout -> file name, text, (path, label) of the rows, class names
    "kinetics": (
        "val.csv",
        KINETICS,
        [
            ("---QUuC4vJs_000084_000094.mp4", 1),
            ("--3ouPhoy2A_000020_000030.mp4", 2),
            ("_dbcJuKJQNs_000007_000017.mp4", 0),
        ],
        ("massaging person's head", "testifying", "washing feet"),
    ),
    "something_v1": (
        "something-something-v1-train.csv",
        "100218;Turning something; twice\n24413;Above, something\n7;Holding something\n",
        [("100218", 1), ("24413", 2), ("7", 0)],
        ("Holding something", "Turning something; twice", "Above, something"),
    ),
    "something_v2": (
        "something-something-v2-train.json",
        json.dumps(SOMETHING_V2),
        [("78687.webm", 1), ("42326.webm", 0)],
        ("Pushing something from left to right", "Holding something"),
    ),
    "jester": (
        "jester-v1-validation.csv",
        "9223;Doing other things\n107090;No gesture\n",
        [("9223", 2), ("107090", 1)],
        ("Swiping Left", "No gesture", "Doing other things"),
    ),
    "ucf101": (
        "trainlist01.txt",
        "HammerThrow/v_HammerThrow_g08_c01.avi 2\r\nHammering/v_Hammering_g01_c02.avi 1\r\n",
        [("HammerThrow/v_HammerThrow_g08_c01.avi", 1), ("Hammering/v_Hammering_g01_c02.avi", 0)],
        ("Hammering", "HammerThrow", "YoYo"),
    ),
    "hmdb51": (
        "wave_test_split1.txt",
        HMDB51["wave_test_split1.txt"],
        [("clap/a_clap.avi", 0), ("wave/#20_Rhythm_wave_0.avi", 1), ("wave/(HQ)_wave_1.avi", 1)],
        ("clap", "wave"),
    ),
    "moments": (
        "trainingSet.csv",
        "clapping/yt-5of6ffo6-Bw_205.mp4,clapping,3,0\nplaying+fetch/flickr-3-1.mp4,playing fetch,12,1\n",
        [("clapping/yt-5of6ffo6-Bw_205.mp4", 0), ("playing+fetch/flickr-3-1.mp4", 2)],
        ("clapping", "adult+male+singing", "playing fetch"),
    ),
    "diving48": (
        "Diving48_V2_train.json",
        json.dumps(DIVING48, indent=1),
        [("-mmq0PT-u8k_00155.mp4", 0), ("-mmq0PT-u8k_00156.mp4", 2)],
        ("Back+15som+05Twis+FREE", "Back+15som", "Inward+Dive"),
    ),
}
OTHERS = {  # none of them
    "a.csv": "path,label\nx/1.mp4,0\n",
    "split.csv": "path,label,split\nx/1.mp4,0,train\n",
    "a.jsonl": '{"path":"x/1.mp4","label":0,"id":3}\n',
    "a.json": '[{"filename":"x/1.mp4","label":[0],"id":"7"}]',
    "broken.json": '[{"id": 1,',
    "numbers.json": "[1, 2]",
    "videos.txt": "HammerThrow/v_HammerThrow_g08_c01.avi 1\n",  # MMAction2's list of UCF101 counts from 0
    "trainlist01.txt": "jump/a.mp4 1\n",
    "commas.txt": "clapping/a.mp4,3\n",
    "several.txt": "clapping/a.mp4,3,1,2\n",
    "rawframes.txt": "100218 163 5\n",
    "ids.txt": "100218\n7\n",
    "wave_test_split1.txt": "wave/a.avi\n",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, newline="")


def place(folder: Path, layout: str, *, without: str = "") -> Path:
    """The sample list of a layout, beside it all owners' files of names and (Kinetics) its first video."""
    name, text, rows, _ = SAMPLES[layout]
    files = NAMES | (HMDB51 if layout == "hmdb51" else {}) | {name: text}
    write(folder, {one: content for one, content in files.items() if one != without})
    if layout == "kinetics":
        write(folder, {rows[0][0]: "x"})
    return folder / name


def rows_of(clips: ClipList) -> list[tuple[str, int | None]]:
    return [(clips.written(i), next(iter(clips.labels(i)), None)) for i in range(len(clips))]


@pytest.mark.parametrize("layout", SAMPLES)
def test_each_list_is_found_to_be_its_own_and_read_with_the_owners_numbers(tmp_path, layout):
    file = place(tmp_path, layout)
    assert datasets.detect(file) == layout
    _, _, rows, names = SAMPLES[layout]
    for clips in (read_list(file), read_list(file, format=layout)):
        assert rows_of(clips) == rows
        assert (clips.classes, clips.multi_label, clips.template) == (names, False, None)
        assert clips.root == str(tmp_path)


def test_every_layout_has_a_sample():
    elsewhere = {"activitynet", "fcvid", "mini_kinetics"}  # in test_untrimmed.py
    assert SAMPLES.keys() | elsewhere == datasets.LAYOUTS.keys()


@pytest.mark.parametrize("name", OTHERS)
def test_other_lists_are_not_taken_for_an_owners(tmp_path, name):
    write(tmp_path, {name: OTHERS[name]})
    assert datasets.detect(tmp_path / name) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.from_regex(r"[\w;. -]{1,12}(/[\w;. -]{1,12})?\.(mp4|avi)", fullmatch=True),
            st.lists(st.integers(0, 500), min_size=1, max_size=3),
            st.sampled_from(" ,\t"),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_no_list_of_videos_and_numbers_is_taken_for_an_owners(tmp_path, rows):
    text = "".join(path + "".join(f"{gap}{label}" for label in labels) + "\n" for path, labels, gap in rows)
    write(tmp_path, {"list.txt": text})
    assert datasets.detect(tmp_path / "list.txt") is None


# Class names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [name for name, layout in datasets.LAYOUTS.items() if layout.names])
def test_without_the_owners_numbers_names_are_not_numbered_by_guess(tmp_path, layout):
    beside = datasets.LAYOUTS[layout].names[0]
    file = place(tmp_path, layout, without=beside)
    write(tmp_path, {"elsewhere/" + beside: NAMES[beside]})
    if layout == "diving48":  # its labels are numbers, only nameless
        assert read_list(file).classes is None
    else:
        with pytest.raises(DataError, match=f"numbered by {beside}, which is not beside it") as caught:
            read_list(file)
        assert caught.value.code == "LABEL_NAMES"
    clips = read_list(file, classes=tmp_path / "elsewhere" / beside)
    assert (rows_of(clips), clips.classes) == SAMPLES[layout][2:]


def test_a_name_that_the_owners_file_does_not_have_is_named_by_line(tmp_path):
    file = place(tmp_path, "jester")
    write(tmp_path, {file.name: "1;No gesture\n2;No gestures\n"})
    with pytest.raises(DataError, match=r"validation\.csv:2: no class is called 'No gestures'; did you mean"):
        read_list(file)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("something-something-v1-test.csv", "100218\n7\n"),
        ("jester-v1-test.csv", "100218\n7\n"),
        ("something-something-v2-test.json", '[{"id": "100218"}, {"id": "7"}]'),
        ("test.csv", "youtube_id,time_start,time_end,split\n100218,0,10,test\n7,10,20,test\n"),
    ],
)
def test_lists_that_keep_their_labels_secret_are_read_without(tmp_path, name, text):
    write(tmp_path, {name: text, "100218_000000_000010.mp4": "x"})
    clips = read_list(tmp_path / name)
    assert [clips.written(i).split("_")[0].split(".")[0] for i in range(2)] == ["100218", "7"]
    assert (clips.num_classes, clips.classes) == (0, None)


# Where the videos lie ---------------------------------------------------------------------------------

KINETICS_PLACES = {  # file below the root -> what the first row finds
    "---QUuC4vJs_000084_000094.mp4": True,
    "val/---QUuC4vJs_000084_000094.mp4": True,
    "val/testifying/---QUuC4vJs_000084_000094.mkv": True,
    "giving_or_receiving/---QUuC4vJs.webm": True,
    "---QUuC4vJs_000084_000095.mp4": False,
    "---QUuC4vJs_000084_000094.part": False,
}


@pytest.mark.parametrize("name", KINETICS_PLACES)
def test_kinetics_videos_are_found_flat_by_class_by_split_and_by_id(tmp_path, name):
    write(tmp_path, {"lists/val.csv": KINETICS, f"videos/{name}": "x", "videos/--3ouPhoy2A.mp4": "x"})
    clips = read_list(tmp_path / "lists/val.csv", root=tmp_path / "videos")
    found = KINETICS_PLACES[name]
    assert clips.written(0) == (name if found else "---QUuC4vJs_000084_000094.mp4")
    missing = "_dbcJuKJQNs_000007_000017.mp4" if found else "---QUuC4vJs_000084_000094.mp4"
    assert clips.notes == (
        f"{2 - found} of 3 videos are not below {tmp_path / 'videos'}, for example {missing}",
    )
    assert len(clips) == 3, "what has vanished stays in the list, to be counted"


def test_a_kinetics_folder_of_frames_is_a_video_and_the_first_of_two_copies_is_taken(tmp_path):
    stem = "---QUuC4vJs_000084_000094"
    write(tmp_path, {"val.csv": KINETICS, f"val/{stem}/img_00001.jpg": "x", f"copies/{stem}.mp4": "x"})
    clips = read_list(tmp_path / "val.csv")
    assert clips.written(0) == f"copies/{stem}.mp4"
    assert clips.notes[1] == f"1 videos are there more than once, the first is taken, for example val/{stem}"


def test_a_wrong_root_is_said_at_once(tmp_path):
    write(tmp_path, {"val.csv": KINETICS})
    with pytest.raises(DataError, match=r"none of its 3 videos is below .* name their folder") as caught:
        read_list(tmp_path / "val.csv")
    assert caught.value.code == "NOT_FOUND"


def test_converted_videos_and_extracted_frames_are_found_by_the_same_list(tmp_path):
    file = place(tmp_path, "something_v2")
    write(tmp_path, {"mp4/42326.mp4": "x", "frames/78687/000001.jpg": "x"})
    by_root = {where: rows_of(read_list(file, root=tmp_path / where)) for where in ("mp4", "frames")}
    assert [path for path, _ in by_root["frames"]] == ["78687", "42326"]
    assert by_root["mp4"][1] == ("42326.mp4", 0)


def test_moments_are_looked_for_in_the_owners_folders_where_they_are(tmp_path):
    file = place(tmp_path, "moments")
    write(tmp_path, {"training/clapping/x.mp4": "x"})
    assert rows_of(read_list(file))[0] == ("training/clapping/yt-5of6ffo6-Bw_205.mp4", 0)
    assert rows_of(read_list(file, root=tmp_path / "training"))[0][0] == "clapping/yt-5of6ffo6-Bw_205.mp4"


def test_a_dive_is_the_whole_file_unless_it_starts_later(tmp_path):
    dives = [*DIVING48, {"vid_name": "a", "label": 1, "start_frame": 5, "end_frame": 30}]
    file = place(tmp_path, "diving48")
    write(tmp_path, {file.name: json.dumps(dives)})
    assert [(clip.start, clip.total) for clip in read_list(file)] == [(0, None), (0, None), (5, 25)]


# UCF101 and HMDB51 ------------------------------------------------------------------------------------


def test_the_test_list_of_ucf101_is_labelled_by_its_folders_in_the_owners_order(tmp_path):
    place(tmp_path, "ucf101")
    write(tmp_path, {"testlist01.txt": "HammerThrow/v_HammerThrow_g01_c01.avi\nYoYo/v_YoYo_g01_c01.avi\n"})
    clips = read_list(tmp_path / "testlist01.txt")
    assert [label for _, label in rows_of(clips)] == [1, 2], "sorted, HammerThrow would be 0"


def test_a_number_that_is_not_its_folders_is_refused(tmp_path):
    file = place(tmp_path, "ucf101")
    write(tmp_path, {file.name: "Hammering/v_Hammering_g01_c01.avi 1\nYoYo/v_YoYo_g01_c01.avi 2\n"})
    with pytest.raises(
        DataError, match=r"trainlist01\.txt:2: label 1 is 'YoYo' here, 'HammerThrow' in the class"
    ):
        read_list(file)


def test_a_split_of_hmdb51_is_all_classes_files_together(tmp_path):
    file = place(tmp_path, "hmdb51")
    train, test = read_list(file, split="train"), read_list(file, split="test")
    assert rows_of(train) == [("wave/#20_Rhythm_wave_0.avi", 1)]
    assert rows_of(test) == [("clap/a_clap.avi", 0), ("wave/(HQ)_wave_1.avi", 1)]
    assert train.where(0) == f"{file}: wave/#20_Rhythm_wave_0.avi", "its line is one of another file"
    assert train.notes == ("1 videos belong to neither part of split 1",)
    assert read_list(tmp_path / "clap_test_split1.txt").fingerprint() == read_list(file).fingerprint()
    second = read_list(tmp_path / "clap_test_split2.txt", classes="HMDB51", split="train")
    assert (rows_of(second), second.num_classes) == ([("clap/a_clap.avi", 4)], 51)


# Wrong lines ------------------------------------------------------------------------------------------

WRONG = {
    "kinetics": [
        ("label,youtube_id,time_start,time_end\nrun,../x,0,10\n", r":2: expected an id and whole seconds"),
        ("label,youtube_id,time_start,time_end\nrun,x,soon,10\n", r":2: expected .* found 'x', 'soon', '10'"),
        ("label,youtube_id,time_start,time_end\nrun,x,10\n", r":2: expected 4 fields \(label,youtube_id"),
        ("label,youtube_id\nrun,x\n", r":1: expected a header with youtube_id, time_start and time_end"),
    ],
    "something_v1": [
        ("1;Holding something\nx;Holding something\n", r":2: expected `id;name` .* 'x;Holding"),
        ("1;Holding something\n2;\n", r":2: expected `id;name`"),
    ],
    "something_v2": [
        ('[{"id": "1"}, {"id": "a/b"}]', r"item 2: expected a number as `id`, found 'a/b'"),
        ('[{"id": [1]}]', r"item 1: expected a text as `id`"),
        ('[{"id": "1", "template": 3}]', r"item 1: expected a text as `template`"),
        ('["1"]', r"item 1: expected an object with id and template"),
        ('{"id": "1"}', r"expected a list of objects"),
    ],
    "jester": [("1;No gesture\nNo gesture\n", r":2: expected `id;name`")],
    "ucf101": [
        (
            "YoYo/v_YoYo_g01_c01.avi 3\nYoYo/YoYo.avi 3\n",
            r":2: expected `Class/v_x\.avi` and a number from 1",
        ),
        ("YoYo/v_YoYo_g01_c01.avi 0\n", r":1: expected .* a number from 1"),
    ],
    "hmdb51": [("a.avi 1\nb.avi 3\n", r"wave_test_split1\.txt:2: expected `x\.avi` and 0, 1 or 2")],
    "moments": [
        ("clapping/a.mp4,clapping,3\n", r":1: expected `class/x\.mp4,class,number,number`"),
        ("clapping/a.mp4,clapping,3,many\n", r":1: expected"),
    ],
    "diving48": [
        (
            '[{"vid_name":"a","label":"0","start_frame":0,"end_frame":9}]',
            "item 1: expected a whole number as `la",
        ),
        (
            '[{"vid_name":"a","label":0,"start_frame":9,"end_frame":9}]',
            "item 1: expected label >= 0 and 0 <= st",
        ),
        ('[{"vid_name":"a","label":true,"start_frame":0,"end_frame":9}]', "item 1: expected a whole number"),
    ],
}


@pytest.mark.parametrize(
    ("layout", "text", "message"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_a_wrong_line_is_named_by_file_and_line(tmp_path, layout, text, message):
    file = place(tmp_path, layout)
    write(tmp_path, {file.name: text})
    with pytest.raises(DataError, match=message) as caught:
        read_list(file, format=layout)
    assert str(file) in caught.value.message
    assert caught.value.code in ("LIST_LINES", "LIST_FORMAT")


def test_wrong_lines_of_several_hmdb51_files_are_each_named_by_their_own(tmp_path):
    place(tmp_path, "hmdb51")
    write(tmp_path, {"clap_test_split1.txt": "a.avi 1\nb.avi x\n", "run_test_split1.txt": "c\n"})
    with pytest.raises(DataError, match=r"clap_test_split1\.txt:2: (.|\n)*run_test_split1\.txt:1: "):
        read_list(tmp_path / "wave_test_split1.txt")
    with pytest.raises(DataError, match=r"expected the name <class>_test_split1\.txt"):
        write(tmp_path, {"wave.txt": "a.avi 1\n"})
        read_list(tmp_path / "wave.txt", format="hmdb51")


# A check of real files --------------------------------------------------------------------------------


def test_a_data_set_as_its_owner_gives_it_is_checked_and_the_missing_video_named(tmp_path):
    place(tmp_path, "kinetics")
    for folder, stem in (
        ("testifying", "---QUuC4vJs_000084_000094"),
        ("washing feet", "--3ouPhoy2A_000020_000030"),
    ):
        (tmp_path / "videos" / folder).mkdir(parents=True)
        render_numbered(tmp_path / "videos" / folder / f"{stem}.mp4", frames=4 + len(folder), size=(64, 48))
    report = check([tmp_path / "val.csv"], workers=0, root=tmp_path / "videos", quiet=True)
    errors = [(p.code, Path(p.path).name) for p in report.problems if p.severity == "error"]
    assert errors == [("NOT_FOUND", "_dbcJuKJQNs_000007_000017.mp4")]
    assert (report.files, report.readable) == (3, 2)
    assert report.lists[0].notes[0].startswith("1 of 3 videos are not below")
    assert report.classes == SAMPLES["kinetics"][3]
