"""A check names every kind of fault by path and code, and continues where it was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from marey.data.lists import read_list
from marey.jobs.check import check, lines
from marey.video.synthetic import numbered, render_numbered


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos of 20, 21, ... frames (so all differ), and one of each fault."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(8):
        render_numbered(
            folder / f"v{i}.mp4", frames=20 + i, size=(64, 48), container={"movflags": "faststart"}
        )
    long = render_numbered(folder / "long.mp4", frames=200, container={"movflags": "faststart"})
    (folder / "cut.mp4").write_bytes(long.read_bytes()[: int(long.stat().st_size * 0.6)])
    bits = bytearray(long.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(len(bits) // 2, len(bits) - 100, 60):
        bits[place] ^= 1 << int(rng.integers(8))
    (folder / "damaged.mp4").write_bytes(bits)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "page.mp4").write_text("<html>404</html>")
    shutil.copy(folder / "v0.mp4", folder / "copy_of_v0.mp4")
    (folder / "gap").mkdir()
    for i in (1, 2, 3, 5, 6):
        Image.fromarray(numbered(i)).save(folder / "gap" / f"img_{i:05}.png")
    return folder


def listed(folder, name, *rows, header="path,label,class"):
    file = folder / name
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def found(report, *, severity=None):
    """(code, file name) of each problem."""
    return sorted(
        (p.code, p.path.rpartition("/")[2]) for p in report.problems if severity in (None, p.severity)
    )


def test_a_good_data_set_is_ok_and_described(videos, tmp_path):
    train = listed(videos, "train.csv", *(f"v{i}.mp4,{i % 2},{'ab'[i % 2]}" for i in range(6)))
    val = listed(videos, "val.csv", "v6.mp4,0,a", "v7.mp4,1,b")
    report = check([train, val], workers=2, min_frames=20, out=tmp_path / "report.json", quiet=True)
    assert report.ok and not report.problems
    assert (report.files, report.readable, report.read_now, report.classes) == (8, 8, 8, ("a", "b"))
    assert report.frames == {"min": 20, "median": 23.5, "max": 27, "total": sum(range(20, 28))}
    assert report.seconds["total"] == pytest.approx(sum(range(20, 28)) / 25)
    assert (report.sizes, report.rates) == ({"64 x 48": 8}, {"25": 8})
    one = report.lists[0]
    assert (one.entries, one.files, one.counts) == (6, 6, (3, 3))
    assert one.fingerprint == read_list(train).fingerprint()
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["ok"] is True and written["lists"][1]["counts"] == [1, 1]
    assert (tmp_path / "report.txt").read_text().endswith("all good\n")


def test_every_fault_of_a_file_is_named_by_path_and_code(videos):
    names = ("v0", "cut", "damaged", "empty", "page", "missing")
    file = listed(videos, "faults.csv", *(f"{name}.mp4,0,a" for name in names), "gap,0,a")
    report = check([file], workers=2, quiet=True)
    assert not report.ok
    assert found(report, severity="error") == [
        ("FRAMES_DAMAGED", "damaged.mp4"),
        ("FRAMES_MISSING", "gap"),
        ("MEDIA_TRUNCATED", "cut.mp4"),
        ("NOT_FOUND", "missing.mp4"),
        ("NOT_MEDIA", "empty.mp4"),
        ("NOT_MEDIA", "page.mp4"),
    ]
    assert (report.files, report.readable, report.codes["NOT_MEDIA"]) == (7, 4, 2)
    (damaged,) = (p for p in report.problems if p.code == "FRAMES_DAMAGED")
    assert "of 200 frames" in damaged.message
    text = "\n".join(lines(report))
    assert "error NOT_MEDIA: 2" in text and "4 of 7 files can be read" in text and "there are errors" in text


def test_the_same_content_twice_is_a_duplicate_and_in_two_lists_a_leak(videos, tmp_path):
    train = listed(videos, "t.csv", "v0.mp4,0,a", "v1.mp4,1,b", "copy_of_v0.mp4,0,a", "v1.mp4,0,a")
    val = listed(videos, "v.csv", "copy_of_v0.mp4,0,a", "v2.mp4,1,b")
    report = check([train, val], workers=0, quiet=True)
    assert found(report) == [
        ("DUPLICATE", "copy_of_v0.mp4"),
        ("DUPLICATE_LABELS", "v1.mp4"),
        ("LEAK", "copy_of_v0.mp4"),
    ]
    leak = next(p for p in report.problems if p.code == "LEAK")
    assert (leak.severity, leak.list, leak.line) == ("error", str(val), 2)
    assert "t.csv" in leak.message and "v0.mp4" in leak.message
    labels = next(p for p in report.problems if p.code == "DUPLICATE_LABELS")
    assert labels.line == 5 and "t.csv:3" in labels.message


def test_parts_of_one_video_are_no_duplicates_but_a_leak_between_lists(videos):
    header = "path,label,offset,total"
    train = listed(videos, "t.csv", "v0.mp4,0,0,8", "v0.mp4,1,8,12", "v0.mp4,1,8,13", header=header)
    assert found(check([train], workers=0, quiet=True)) == [("MEDIA_TRUNCATED", "v0.mp4")]
    val = listed(videos, "v.csv", "v0.mp4,0,8,8", "v1.mp4,1,0,8", header=header)
    assert ("LEAK", "v0.mp4") in found(check([train, val], workers=0, quiet=True))


def test_copies_of_a_folder_of_frames_are_recognised(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(numbered(i)).save(tmp_path / name / f"img_{i}.png")
    file = listed(tmp_path, "list.csv", "a,0,x", "b,0,x")
    assert found(check([file], workers=0, quiet=True)) == [("DUPLICATE", "b")]


def test_the_splits_of_one_list_are_compared_too(videos):
    rows = ("v0.mp4,0,train", "v1.mp4,1,train", "copy_of_v0.mp4,0,val")
    report = check([listed(videos, "s.csv", *rows, header="path,label,split")], workers=0, quiet=True)
    assert ("LEAK", "copy_of_v0.mp4") in found(report)
    assert [one.name.rpartition("/")[2] for one in report.lists] == ["s.csv [train]", "s.csv [val]"]


def test_labels_are_checked_without_stopping_at_the_first_list(videos):
    one_based = listed(videos, "one.csv", "v0.mp4,1", "v1.mp4,2", "v2.mp4,3", header="path,label")
    high = listed(videos, "high.csv", "v3.mp4,0", "v4.mp4,7", header="path,label")
    wrong = listed(videos, "wrong.csv", "v5.mp4,x;", header="path,label")
    report = check([one_based, high, wrong, videos / "none.csv"], num_classes=3, workers=0, quiet=True)
    codes = {(p.code, p.list.rpartition("/")[2]) for p in report.problems if p.severity == "error"}
    assert codes == {
        ("LABEL_BASE", "one.csv"),
        ("LABEL_RANGE", "high.csv"),
        ("LABEL_TYPE", "wrong.csv"),
        ("NOT_FOUND", "none.csv"),
    }
    assert report.files == 5
    alone = check([one_based], workers=0, quiet=True)
    assert {p.code for p in alone.problems} == {"LABEL_BASE", "CLASS_MISSING"}


def test_missing_classes_contradicting_names_and_short_clips_are_told(videos):
    train = listed(videos, "t.csv", "v0.mp4,0,a", "v1.mp4,1,b", "v2.mp4,2,c")
    val = listed(videos, "v.csv", "v3.mp4,0,a")
    report = check([train, val], workers=0, min_frames=22, quiet=True)
    assert report.ok
    assert found(report) == [("CLASS_MISSING", ""), ("TOO_SHORT", "v0.mp4"), ("TOO_SHORT", "v1.mp4")]
    (missing,) = (p for p in report.problems if p.code == "CLASS_MISSING")
    assert missing.list == str(val) and "2 of 3 classes have no video: 1 (b), 2 (c)" in missing.message
    other = listed(videos, "o.csv", "v4.mp4,0,b")
    assert ("LABEL_NAMES", "") in found(check([train, other], workers=0, quiet=True), severity="error")


def test_a_second_check_reads_only_what_is_new_or_changed(videos, tmp_path):
    for i in range(3):
        shutil.copy(videos / f"v{i}.mp4", tmp_path / f"v{i}.mp4")
    file = listed(tmp_path, "list.csv", *(f"v{i}.mp4,0,a" for i in range(3)), "missing.mp4,0,a")
    out = tmp_path / "report.json"
    first = check([file], workers=0, out=out, quiet=True)
    again = check([file], workers=0, out=out, quiet=True)
    assert (first.read_now, again.read_now) == (4, 1)  # a missing file may have come
    assert (first.problems, first.frames) == (again.problems, again.frames)
    (tmp_path / "v1.mp4").write_text("<html>")
    changed = check([file], workers=0, out=out, quiet=True)
    assert changed.read_now == 2 and ("NOT_MEDIA", "v1.mp4") in found(changed)
    assert check([file], workers=0, out=out, resume=False, quiet=True).read_now == 4


def test_half_a_line_left_by_a_kill_is_dropped(videos, tmp_path):
    file = listed(videos, "list.csv", *(f"v{i}.mp4,0,a" for i in range(3)))
    out = tmp_path / "report.json"
    check([file], workers=0, out=out, quiet=True)
    records = tmp_path / "report.files.jsonl"
    whole = records.read_bytes()
    records.write_bytes(whole[:-20])
    assert check([file], workers=0, out=out, quiet=True).read_now == 1
    assert len(records.read_bytes().splitlines()) == 3
    assert all(json.loads(line)["frames"] >= 20 for line in records.read_bytes().splitlines())


SCRIPT = """
import sys, time
from marey.jobs import check_files
from marey.jobs.check import check
add = check_files.Ledger.add
def slowly(self, facts):
    add(self, facts); print(facts.path, flush=True); time.sleep(0.3)
check_files.Ledger.add = slowly
check([sys.argv[1]], workers=1, out=sys.argv[2], quiet=True)
"""


def test_a_killed_check_continues_with_what_is_left(videos, tmp_path):
    file = listed(videos, "list.csv", *(f"v{i}.mp4,0,a" for i in range(8)))
    out = tmp_path / "report.json"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, file, out], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    report = check([file], workers=0, out=out, quiet=True)
    assert 4 <= report.read_now <= 5 and report.readable == 8


def test_names_that_are_no_text_are_reported(videos, tmp_path):
    name = os.fsdecode(b"v\xff\n.mp4")
    shutil.copy(videos / "page.mp4", tmp_path / name)
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": name, "label": 0}) + "\n")
    report = check([tmp_path / "list.jsonl"], workers=1, out=tmp_path / "report.json", quiet=True)
    assert found(report) == [("NOT_MEDIA", name)]
    assert json.loads((tmp_path / "report.json").read_text())["problems"][0]["path"].endswith(name)
    assert all(line.isprintable() for line in lines(report))


def crash(task):
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_decoder_that_crashes_is_reported_like_any_bad_file(videos, monkeypatch):
    monkeypatch.setattr("marey.jobs.check_files.look", crash)
    file = listed(videos, "list.csv", "v0.mp4,0,a", "v1.mp4,0,a")
    report = check([file], workers=2, quiet=True)
    assert found(report) == [("DECODER_DIED", "v0.mp4"), ("DECODER_DIED", "v1.mp4")]


def test_progress_tells_rate_and_time_left_on_stderr(videos, capsys):
    start = time.monotonic()
    check([listed(videos, "list.csv", "v0.mp4,0,a")], workers=0)
    captured = capsys.readouterr()
    assert captured.out == "" and "checking 1/1" in captured.err and "left" in captured.err
    assert time.monotonic() - start < 60


if real := os.environ.get("MAREY_TEST_VIDEOS"):

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["camera-motion", "surveillance-fights"])
    def test_real_data_sets_are_in_order(name):
        folder = f"{real}/{name}"
        report = check([f"{folder}/train.csv", f"{folder}/val.csv"], workers=2, quiet=True)
        assert report.readable == report.files
        assert not [p for p in report.problems if p.code == "LEAK"]
