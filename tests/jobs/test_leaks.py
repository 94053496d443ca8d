"""Videos that are trained and tested on, by name and by content."""

from marey.jobs.leaks import leaks


def test_names_decide_where_files_are_not_known():
    assert leaks(["a", "b"], ["c", "d"]) == []
    assert leaks(["a", "b"], ["b", "c", "b"]) == [("b", "b", "same name")]


def test_files_decide_where_they_are_there(tmp_path):
    """The same name in two folders is no leak, the same content or the same file under another name is."""
    train, test = tmp_path / "train", tmp_path / "test"
    for folder, contents in (
        (train, {"0": b"zero", "1": b"one", "x": b"ten"}),
        (test, {"0": b"null", "9": b"one"}),
    ):
        folder.mkdir()
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    (test / "link").symlink_to(train / "0")
    got = leaks(["0", "1", "x", "gone"], ["0", "9", "link", "gone", "lost"], roots=(train, test))
    assert got == [("1", "9", "same content"), ("0", "link", "same file"), ("gone", "gone", "same name")]


def test_only_files_of_one_size_are_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("marey.jobs.leaks.sha256_of", lambda path: read.append(path.name) or path.name)
    for name, size in (("a", 3), ("b", 4), ("c", 5)):
        (tmp_path / name).write_bytes(bytes(size))
    assert leaks(["a", "b"], ["c"], roots=(tmp_path, tmp_path)) == [] and not read
    (tmp_path / "d").write_bytes(bytes(4))
    assert leaks(["a", "b"], ["d"], roots=(tmp_path, tmp_path)) == [] and sorted(read) == ["b", "d"]
