"""What a user can name, and what is read for it."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marey.errors import DataError, MediaError, UsageError
from marey.video.reader import read_video
from marey.video.source import Source, expand
from marey.video.synthetic import render_numbered

HOSTILE = [
    "a b.mp4",
    "new\nline.mp4",
    "qu'o\"te.mp4",
    "-x.mp4",
    "<b>&amp;.mp4",
    "#1.mp4",
    "[1].mp4",
    "日本 *.mp4",
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names):
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def paths(*sources, **options):
    return [source.path for source in expand(sources, **options)]


def same_files(found, expected):
    return [Path(p).resolve() for p in found] == [Path(p).resolve() for p in expected]


def standard_input(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# Files and folders


def test_files_come_in_the_order_named_whatever_their_suffix():
    make("b.mp4", "a.bin")
    assert paths("b.mp4", "a.bin", "b.mp4") == ["b.mp4", "a.bin", "b.mp4"]


def test_a_missing_file_is_given_for_the_reader_to_report_and_does_not_stop_the_others():
    make("b.mp4")
    assert paths("gone.mp4", "b.mp4", "") == ["gone.mp4", "b.mp4", ""]


def test_a_folder_gives_the_videos_in_and_below_it_sorted():
    make(
        "d/b.mp4",
        "d/a.MKV",
        "d/c/z.webm",
        "d/c/y.avi",
        "d/notes.txt",
        "d/poster.png",
        "d/.hidden.mp4",
        "d/.git/x.mp4",
    )
    assert paths("d") == ["d/a.MKV", "d/b.mp4", "d/c/y.avi", "d/c/z.webm"]


def test_a_folder_of_numbered_frames_is_one_video():
    make(
        "d/v1/img_00001.jpg",
        "d/v1/img_00002.jpg",
        "d/v2/7.png",
        "d/clip.mp4",
        "d/cover01.jpg",
        "d/v3/logo.png",
    )
    assert paths("d") == ["d/clip.mp4", "d/v1", "d/v2"]
    assert list(expand(["d/v1"], template="img_{:05}.jpg")) == [Source("d/v1", "d/v1", "img_{:05}.jpg")]


def test_links_are_followed_but_never_in_circles():
    make("real/a.mp4", "d/b.mp4")
    Path("d/linked").symlink_to("../real", target_is_directory=True)
    Path("d/circle").symlink_to("../d", target_is_directory=True)
    Path("d/broken.mp4").symlink_to("nowhere")
    assert paths("d") == ["d/b.mp4", "d/broken.mp4", "d/linked/a.mp4"]


def test_a_folder_without_access_is_given_for_the_reader_to_report(monkeypatch):
    make("d/closed/a.mp4", "d/b.mp4")
    scandir = os.scandir

    def closed(path):
        if Path(path).name == "closed":  # a mode of 0 would not keep the superuser out
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert paths("d") == ["d/b.mp4", "d/closed"]


# Patterns


def test_patterns_match_like_a_shell_and_a_file_of_that_very_name_comes_first():
    make("c/a1.mp4", "c/a2.mp4", "c/b1.mp4", "c/deep/a3.mp4", "c/[ab]1.mp4")
    assert paths("c/a?.mp4") == ["c/a1.mp4", "c/a2.mp4"]
    assert paths("c/**/a*.mp4") == ["c/a1.mp4", "c/a2.mp4", "c/deep/a3.mp4"]
    assert paths("c/[ab]1.mp4") == ["c/[ab]1.mp4"]
    assert paths("c/[ab]2.mp4") == ["c/a2.mp4"]
    assert paths("c/d*") == ["c/deep/a3.mp4"]


# Lists


def test_the_four_kinds_of_list_name_the_same_videos_relative_to_the_list(here):
    names = [name for name in HOSTILE if "\n" not in name]
    make("lists/one.txt")
    Path("lists/one.txt").write_text(
        "\r\n".join(["", *names, "", "/abs/x.mp4"]), encoding="utf-8", newline=""
    )
    quoted = ['"' + n.replace('"', '""') + '"' for n in [*names, "/abs/x.mp4"]]
    Path("lists/two.csv").write_text(
        "label,Path\n" + "".join(f"3,{q}\n" for q in quoted), encoding="utf-8-sig"
    )
    Path("lists/three.jsonl").write_text(
        "".join(json.dumps({"path": n, "label": 1}) + "\n\n" for n in names) + '"/abs/x.mp4"\n'
    )
    for file in ("lists/one.txt", "lists/two.csv", "lists/three.jsonl"):
        found = list(expand([file]))
        assert [s.name for s in found] == [*names, "/abs/x.mp4"]
        assert same_files([s.path for s in found], [*(here / "lists" / n for n in names), "/abs/x.mp4"])


def test_names_that_hold_a_newline_are_listed_with_nul_csv_quotes_or_json_escapes():
    Path("a.txt").write_bytes(b"new\nline.mp4\0b.mp4\0")
    Path("a.csv").write_text('path\n"new\nline.mp4"\nb.mp4\n')
    Path("a.jsonl").write_text('"new\\nline.mp4"\n"b.mp4"\n')
    for file in ("a.txt", "a.csv", "a.jsonl"):
        assert [s.name for s in expand([file])] == ["new\nline.mp4", "b.mp4"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
@pytest.mark.parametrize("kind", ["txt", "csv", "stdin"])
def test_names_that_are_not_utf_8_lead_to_their_files(monkeypatch, kind):
    name = b"caf\xe9.mp4"
    Path(os.fsdecode(name)).write_bytes(b"x")
    if kind == "stdin":
        standard_input(monkeypatch, name + b"\n")
    else:
        Path(f"a.{kind}").write_bytes((b"path\n" if kind == "csv" else b"") + name + b"\n")
    (found,) = expand(["-" if kind == "stdin" else f"a.{kind}"])
    assert Path(found.path).read_bytes() == b"x"


def test_a_list_in_utf_16_is_read():
    Path("a.txt").write_text("x y.mp4\nü.mp4\n", encoding="utf-16")
    assert [s.name for s in expand(["a.txt"])] == ["x y.mp4", "ü.mp4"]


def test_entries_of_a_list_are_given_even_when_they_are_missing_or_addresses():
    Path("a.txt").write_text("gone.mp4\nhttp://example.com/x.mp4\n-x.mp4\n")
    assert [s.name for s in expand(["a.txt"])] == ["gone.mp4", "http://example.com/x.mp4", "-x.mp4"]


def test_a_dash_reads_the_list_on_standard_input(monkeypatch):
    make("z.mp4")
    standard_input(monkeypatch, b"a b.mp4\nsub/c.mp4\n")
    assert paths("z.mp4", "-") == ["z.mp4", "a b.mp4", "sub/c.mp4"]
    standard_input(monkeypatch, b"-\x00n\nl.mp4\x00")
    assert paths("-") == ["-", "n\nl.mp4"]


# Hostile names


@pytest.mark.parametrize("name", [*HOSTILE, "x" * 251 + ".mp4"])
def test_hostile_names_are_found_as_named_and_in_a_folder(name):
    make(f"d/{name}")
    assert same_files(paths(f"d/{name}"), [f"d/{name}"])
    assert paths("d") == [f"d/{name}"]


@given(st.lists(st.text(st.characters(exclude_characters="/\0\r\n", codec="utf-8"), min_size=1), min_size=1))
def test_any_names_survive_a_json_list(names):
    Path("h.jsonl").write_text("".join(json.dumps(n) + "\n" for n in names))
    assert [s.name for s in expand(["h.jsonl"])] == names


def test_what_is_found_can_be_read_and_what_is_missing_says_so():
    names = [*HOSTILE, os.fsdecode(b"caf\xe9.mp4")] if sys.platform == "linux" else ["a b.mp4"]
    for index, name in enumerate(names):
        render_numbered(Path("d") / name, frames=index + 1, size=(32, 24))
    Path("d/broken.mp4").symlink_to("nowhere")
    lengths = {}
    for source in expand(["d", "gone.mp4"]):
        try:
            with read_video(source.path, template=source.template) as video:
                lengths[source.name] = len(video)
        except MediaError as error:
            lengths[source.name] = error.code
    expected = {f"d/{name}": index + 1 for index, name in enumerate(names)}
    assert lengths == expected | {"d/broken.mp4": "NOT_FOUND", "gone.mp4": "NOT_FOUND"}


# Refusals


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("http://example.com/a.mp4", "NETWORK_SOURCE", "download"),
        ("RTSP://camera/1", "NETWORK_SOURCE", "download"),
        ("empty", "NOTHING_FOUND", "no videos"),
        ("*.mkv", "NOTHING_FOUND", "matches no file"),
        ("none.txt", "NOTHING_FOUND", "without entries"),
        ("gone.csv", "NOT_FOUND", "does not exist"),
    ],
)
def test_what_cannot_be_read_is_refused_before_any_video_is(source, code, words):
    make("a.mp4", "empty/readme.md")
    Path("none.txt").write_text("\n\n")
    with pytest.raises(UsageError, match=words) as caught:
        expand(["a.mp4", source])
    assert caught.value.code == code
    assert source in caught.value.message


def test_nothing_named_or_nothing_on_standard_input_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="no source"):
        expand([])
    standard_input(monkeypatch, b"\n")
    with pytest.raises(UsageError, match="standard input holds no paths"):
        list(expand(["-"]))


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.csv", "file,label\nx.mp4,1\n", "a.csv:1"),
        ("a.csv", 'path\nx.mp4\n"open\n', "a.csv:3"),
        ("a.jsonl", '"a.mp4"\n\n{"path": 3}\n', "a.jsonl:3"),
        ("a.jsonl", '"a.mp4"\nplain.mp4\n', "a.jsonl:2"),
    ],
)
def test_a_mistake_in_a_list_is_named_by_line(name, text, where):
    Path(name).write_text(text)
    with pytest.raises(DataError, match=where) as caught:
        expand([name])
    assert caught.value.code == "LIST_FORMAT"
