"""ActivityNet, FCVID and Mini-Kinetics: lists as their owners and ResKD's relatives write them."""

import json

import pytest

from marey.data import datasets
from marey.data.labels import read_classes
from marey.data.lists import read_list
from marey.errors import DataError

JUMP, ROW, SHAVE = "Long jump", "Rowing", "Shaving legs"
DATABASE = {
    "version": "VERSION 1.3",
    "taxonomy": [{"nodeName": "Root"}],
    "database": {
        "sJFgo9H6zNo": {
            "duration": 141.1,
            "subset": "training",
            "annotations": [
                {"segment": [0, 20.5], "label": SHAVE},
                {"segment": [40, 60], "label": JUMP},
                {"segment": [70, 80], "label": SHAVE},
            ],
        },
        "-a7_xQ1rd2g": {"subset": "validation", "annotations": [{"segment": [0, 1], "label": ROW}]},
        "FFFFFFFFFFF": {"subset": "testing", "annotations": []},
    },
}
CLASSES = (SHAVE, ROW, JUMP)  # an order that is not sorted


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text if isinstance(text, str) else json.dumps(text))


def rows_of(clips):
    return [(clips.written(i), clips.labels(i)) for i in range(len(clips))]


# ActivityNet's JSON


@pytest.fixture
def activitynet(tmp_path):
    write(tmp_path, {"activity_net.v1-3.min.json": DATABASE, "classes.txt": "\n".join(CLASSES)})
    write(tmp_path, {"v/train/v_sJFgo9H6zNo.mkv": "x", "v/v_-a7_xQ1rd2g/img_00001.png": "x"})
    return tmp_path / "activity_net.v1-3.min.json"


def test_the_owners_json_gives_every_video_all_its_labels_once(activitynet):
    here = activitynet.parent
    assert datasets.detect(activitynet) == "activitynet"
    clips = read_list(activitynet, root=here / "v", classes=here / "classes.txt")
    assert rows_of(clips) == [("train/v_sJFgo9H6zNo.mkv", (0, 2)), ("v_-a7_xQ1rd2g", (1,))]
    assert (clips.multi_label, clips.splits, clips.classes) == (True, ("training", "validation"), CLASSES)
    assert clips.notes == ("1 videos of the testing subset have no labels and are left out",)
    assert clips[1].total is None, "all frames that are there"
    only = read_list(activitynet, root=here / "v", classes=CLASSES, split="validation")
    assert (rows_of(only), only.multi_label) == ([("v_-a7_xQ1rd2g", (1,))], True)


def test_pretty_printed_json_is_the_same(activitynet):
    activitynet.write_text(json.dumps(DATABASE, indent=2))
    assert datasets.detect(activitynet) == "activitynet"


def test_an_order_of_the_classes_has_to_be_named(activitynet):
    here = activitynet.parent
    write(here, {"classInd.txt": "\n".join(CLASSES)})  # lying beside is not enough: there are several
    with pytest.raises(DataError, match=r"name the file with the class names .* data\.classes") as caught:
        read_list(activitynet, root=here / "v")
    assert caught.value.code == "LABEL_NAMES"
    assert read_classes(activitynet) == (JUMP, ROW, SHAVE), "the JSON itself stands for the sorted names"
    assert read_list(activitynet, root=here / "v", classes=activitynet).labels(0) == (2, 0)


def test_videos_that_are_gone_stay_and_are_noted(activitynet):
    here = activitynet.parent
    (here / "v/train/v_sJFgo9H6zNo.mkv").unlink()
    clips = read_list(activitynet, root=here / "v", classes=CLASSES)
    assert rows_of(clips)[0] == ("v_sJFgo9H6zNo.mp4", (0, 2))
    assert "1 of 2 videos are not below" in clips.notes[0]
    with pytest.raises(DataError, match="none of its 2 videos is below") as caught:
        read_list(activitynet, root=here / "nowhere", classes=CLASSES)
    assert caught.value.code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"annotations": []}, "LABEL_COUNT", r"json: video 2: '-a7_xQ1rd2g' of the validation subset has no"),
        ({"annotations": [{"segment": [0, 1]}]}, "LIST_LINES", r"video 2: .* expected a text `label`"),
        ({"subset": 3}, "LIST_LINES", r"video 2: .* expected `subset` and `annotations`"),
        (
            {"annotations": [{"label": "Rowin"}]},
            "LABEL_NAMES",
            r"video 2: no class is called 'Rowin'; .*Rowing",
        ),
    ],
)
def test_what_is_wrong_with_a_video_is_named(activitynet, change, code, message):
    second = DATABASE["database"]["-a7_xQ1rd2g"] | change
    activitynet.write_text(
        json.dumps(DATABASE | {"database": DATABASE["database"] | {"-a7_xQ1rd2g": second}})
    )
    with pytest.raises(DataError, match=message) as caught:
        read_list(activitynet, root=activitynet.parent / "v", classes=CLASSES)
    assert caught.value.code == code


@pytest.mark.parametrize("text", ['{"version": 1, ', '{"version": "1", "database": [1]}'])
def test_other_json_is_refused(tmp_path, text):
    write(tmp_path, {"a.json": text})
    with pytest.raises(DataError, match=r"a\.json") as caught:
        read_list(tmp_path / "a.json", classes=CLASSES)
    assert caught.value.code == "LIST_FORMAT"


# Lines


LINES = {
    "actnet_png_img_train_split.txt": "v_aaa 480 3\nv_-b_2 77 3 12 3\n",  # ResKD's
    "actnet_train_split.txt": "v_aaa,120,3\nv_-b_2,9,3,12\n",  # the community's
    "fcvid_png_img_val_split.txt": "v_aaa 480 3\nv_-b_2 77\t3 12\n",
}


@pytest.mark.parametrize("name", LINES)
def test_lines_are_read_with_spaces_and_commas_and_their_frames_recounted(tmp_path, name):
    write(tmp_path, {name: LINES[name], "imgs_test/v_aaa/image_00001.jpg": "x"})
    write(tmp_path, {"imgs_test/v_-b_2/img_00001.png": "x"})
    kind = "fcvid" if "fcvid" in name else "activitynet"
    assert datasets.detect(tmp_path / name) == kind
    count = {"activitynet": 200, "fcvid": 239}[kind]
    names = [f"class {i}" for i in range(count)]
    clips = read_list(tmp_path / name, classes=names)
    assert rows_of(clips) == [("imgs_test/v_aaa", (3,)), ("imgs_test/v_-b_2", (3, 12))]
    assert (clips.multi_label, clips.num_classes, clips.template) == (True, count, None)
    assert [clip.total for clip in clips] == [None, None], "480, 120 and 77 are somebody else's"
    # under another name the lines are a general list, unless the format is named
    write(tmp_path, {"list.txt": LINES[name]})
    assert datasets.detect(tmp_path / "list.txt") is None
    assert rows_of(read_list(tmp_path / "list.txt", format=kind, classes=names)) == rows_of(clips)


def test_lines_find_videos_too_and_need_no_v(tmp_path):
    write(tmp_path, {"actnet_val_split.txt": "aaa,1,3\nv_bbb,1,4\n", "t/v_aaa.mp4": "x", "bbb.webm": "x"})
    clips = read_list(tmp_path / "actnet_val_split.txt", classes=[str(i) for i in range(200)])
    assert rows_of(clips) == [("t/v_aaa.mp4", (3,)), ("bbb.webm", (4,))]


def test_fcvid_has_239_classes_whatever_a_list_has(tmp_path):
    write(tmp_path, {"fcvid_train_split.txt": "aaa,1,238\n", "aaa/img_00001.png": "x"})
    assert read_list(tmp_path / "fcvid_train_split.txt").num_classes == 239
    write(tmp_path, {"fcvid_train_split.txt": "aaa,1,3\nbbb,1,5,239\n"})
    with pytest.raises(DataError, match=r"split\.txt:2: label 239 is outside 0 \.\. 238") as caught:
        read_list(tmp_path / "fcvid_train_split.txt")
    assert caught.value.code == "LABEL_RANGE"


@pytest.mark.parametrize("line", ["v_aaa 480", "v_aaa 480 3 x", "v a 480 3 4.5", "v_aaa"])
def test_a_line_without_its_fields_is_named(tmp_path, line):
    write(tmp_path, {"list.txt": f"v_aaa 480 3\n{line}\n"})
    with pytest.raises(DataError, match=r"list\.txt:2: expected `folder frames label"):
        read_list(tmp_path / "list.txt", format="fcvid")


# Mini-Kinetics


MINI = "images/val/riding a bike/--07WQ2iBlw_000001_000011 300 1\nimages/val/yoga/zzz_000020_000030 41 199\n"


def test_class_folders_of_mini_kinetics_may_hold_spaces(tmp_path):
    write(tmp_path, {"mini_val_videofolder.txt": MINI, "riding a bike/--07WQ2iBlw_000001_000011.mp4": "x"})
    write(tmp_path, {"val/zzz_000020_000030/img_00001.jpg": "x"})
    file = tmp_path / "mini_val_videofolder.txt"
    assert datasets.detect(file) == "mini_kinetics"
    clips = read_list(file)
    assert rows_of(clips) == [
        ("riding a bike/--07WQ2iBlw_000001_000011.mp4", (1,)),
        ("val/zzz_000020_000030", (199,)),
    ]
    assert (clips.multi_label, clips.num_classes, clips.notes) == (False, 200, ())
    assert (clips.classes[1], clips.classes[199], clips.classes[7]) == ("riding a bike", "yoga", "7")
    assert clips[1].total is None
    (tmp_path / "riding a bike/--07WQ2iBlw_000001_000011.mp4").unlink()
    assert read_list(file).written(0) == "riding a bike/--07WQ2iBlw_000001_000011.mp4", (
        "no images/val/ before"
    )


def test_reskds_lists_of_mini_kinetics_name_video_files(tmp_path):
    text = "riding_a_bike/--07WQ2iBlw_000001_000011.mp4 1\nyoga/zzz_000020_000030.mp4 199\n"
    write(tmp_path, {"minik_val_videofolder.txt": text, "val/zzz_000020_000030.mkv": "x"})
    file = tmp_path / "minik_val_videofolder.txt"
    plain = read_list(file)  # a common video list
    assert rows_of(plain)[1] == ("yoga/zzz_000020_000030.mp4", (199,))
    clips = read_list(file, format="mini_kinetics")
    assert rows_of(clips) == [
        ("riding_a_bike/--07WQ2iBlw_000001_000011.mp4", (1,)),
        ("val/zzz_000020_000030.mkv", (199,)),
    ]
    assert clips.classes[1] == "riding a bike"
    assert "1 of 2 videos are not below" in clips.notes[0]


def test_a_label_that_names_two_classes_is_refused(tmp_path):
    write(
        tmp_path,
        {"list.txt": MINI + "images/val/jumping/aaa_000020_000030 41 199\n", "zzz_000020_000030.mp4": ""},
    )
    with pytest.raises(DataError, match=r"list\.txt:3: label 199 is 'jumping' here, 'yoga' in line 2"):
        read_list(tmp_path / "list.txt")
    write(tmp_path, {"list.txt": "images/val/yoga/short 41 199\n"})
    with pytest.raises(DataError, match=r"list\.txt:1: expected `class/ID_START_END\.mp4 label`"):
        read_list(tmp_path / "list.txt", format="mini_kinetics")


# The lists that need nothing new


@pytest.mark.parametrize(
    ("name", "line", "want"),
    [
        (
            "k400_video_val.txt",
            "jf7RDuUTrsQ_000325_000335.mp4 325",
            ("jf7RDuUTrsQ_000325_000335.mp4", (325,)),
        ),
        ("sthv2_val_list_videos.txt", "74225.webm 140", ("74225.webm", (140,))),
        (
            "minik_train_videofolder.txt",
            "yoga/zzz_000020_000030.mp4 199",
            ("yoga/zzz_000020_000030.mp4", (199,)),
        ),
    ],
)
def test_reskds_video_lists_are_common_ones(tmp_path, name, line, want):
    write(tmp_path, {name: line + "\n"})
    assert rows_of(read_list(tmp_path / name)) == [want]
