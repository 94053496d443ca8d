"""Downloads from servers that misbehave: the right file, or a named error and nothing under its name."""

import hashlib
import io
import subprocess
import sys
import threading

import pytest

from marey.errors import EnvironmentFault, MareyError, UsageError, WeightsError
from marey.weights import download as module
from marey.weights.download import download, sources
from tests.weights.server import serving

DATA = bytes(range(256)) * 400
HASH = hashlib.sha256(DATA).hexdigest()
OTHER = DATA[::-1]
TAG = '"one"'


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Short waits, no proxies, nothing in the environment."""
    for name in ("MAREY_OFFLINE", "MAREY_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_OPENER", module._opener())
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.05)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "net.pth"


def failure(address, target, kind=EnvironmentFault, sha256=HASH[:8]):
    """The error; there must be no file, and how to get it by hand must be told."""
    with pytest.raises(kind) as error:
        download(address, target, sha256)
    assert not target.exists()
    assert "\n" not in error.value.message
    for part in (address, str(target)):
        assert part in error.value.message
    return error.value


def left(target):
    return sorted(path.name for path in target.parent.iterdir())


def test_a_file_comes_whole_and_alone_and_is_told_of_once(target, capsys):
    with serving(lambda r: r.rest(DATA)) as (base, seen):
        download(f"{base}/a/net.pth", target, HASH[:8])
        download(f"{base}/a/net.pth", target, HASH[:8])  # it is there
    assert target.read_bytes() == DATA
    assert left(target) == ["net.pth"]
    assert [r.path for r in seen] == ["/a/net.pth"]
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"marey: fetching {base}/a/net.pth to {target} (102.4 kB)\n".replace("102.4 kB", "0.1 MB")


def test_a_drop_in_the_middle_goes_on_from_there(target, capsys):
    def script(r):
        if r.number == 0:
            r.head(200, Content_Length=len(DATA), ETag=TAG)
            r.body(DATA[:5000])
        else:
            r.rest(DATA, ETag=TAG)

    with serving(script) as (base, seen):
        download(base, target, HASH)
    assert target.read_bytes() == DATA
    assert [r.start for r in seen] == [None, 5000]
    assert seen[1].headers["If-Range"] == TAG
    assert "broke after 5,000 of 102,400 bytes; trying again" in capsys.readouterr().err


def test_a_later_run_goes_on_where_an_earlier_one_was_ended(target):
    with serving(lambda r: (r.head(200, Content_Length=len(DATA)), r.body(DATA[:7000]))) as (base, _):
        error = failure(base, target)
    assert error.code == "DOWNLOAD_FAILED"
    assert left(target) == [".net.pth.lock", ".net.pth.part", ".net.pth.part.json"]
    with serving(lambda r: r.rest(DATA)) as (base, seen):
        download(base, target, HASH)
    assert target.read_bytes() == DATA
    assert [r.start for r in seen] == [7000]
    assert "If-Range" not in seen[0].headers  # another address: its validator says nothing there


@pytest.mark.parametrize("validator", [{"ETag": TAG}, {"Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, {}])
def test_a_server_that_ignores_ranges_starts_anew(target, validator):
    def script(r):
        r.head(200, Content_Length=len(DATA), **validator)
        r.body(DATA if r.number else OTHER[:5000])

    with serving(script) as (base, seen):
        download(base, target, HASH)
    assert target.read_bytes() == DATA
    assert [r.start for r in seen] == [None, 5000]
    assert seen[1].headers["If-Range"] == next(iter(validator.values()), None)


def test_an_interrupted_download_keeps_what_came_under_another_name(target, monkeypatch):
    def interrupt(self, done):
        raise KeyboardInterrupt

    with serving(lambda r: r.rest(DATA)) as (base, seen):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module.Meter, "__call__", interrupt)
            download(base, target, HASH)
        assert not target.exists()
        assert target.with_name(".net.pth.part").stat().st_size > 0
        download(base, target, HASH)
    assert target.read_bytes() == DATA
    assert left(target) == ["net.pth"]
    assert len(seen) == 2


def test_a_weak_tag_is_not_asked_for(target):
    def script(r):
        if r.number == 0:
            r.head(200, Content_Length=len(DATA), ETag='W/"x"')
            r.body(DATA[:100])
        else:
            r.rest(DATA)

    with serving(script) as (base, seen):
        download(base, target, HASH)
    assert "If-Range" not in seen[1].headers


def test_without_hash_and_validator_two_halves_are_never_put_together(target):
    def script(r):
        r.head(200, Content_Length=len(DATA))
        r.body(DATA if r.number else OTHER[:5000])

    with serving(script) as (base, seen):
        download(base, target, None)
    assert target.read_bytes() == DATA
    assert [r.start for r in seen] == [None, None]


def test_halves_of_two_files_are_noticed_and_fetched_anew(target):
    target.parent.mkdir()
    target.with_name(".net.pth.part").write_bytes(OTHER[:3000])
    with serving(lambda r: r.rest(DATA)) as (base, seen):
        download(base, target, HASH)
    assert target.read_bytes() == DATA
    assert [r.start for r in seen] == [3000, None]


@pytest.mark.parametrize("begun", [DATA, DATA + b"more"])
def test_what_was_fetched_whole_before_needs_no_more_or_starts_anew(target, begun):
    target.parent.mkdir()
    target.with_name(".net.pth.part").write_bytes(begun)
    with serving(lambda r: r.rest(DATA)) as (base, seen):
        download(base, target, HASH)
    assert target.read_bytes() == DATA
    assert len(seen) == (1 if begun == DATA else 2)


@pytest.mark.parametrize(
    "span", ["bytes 4000-102399/102400", "bytes 5000-102399/999", "lines 5000-/102400", ""]
)
def test_another_range_than_was_asked_for_is_not_used(target, span):
    def script(r):
        if r.number == 0:
            r.head(200, Content_Length=len(DATA))
            r.body(DATA[:5000])
        elif r.start is not None:
            r.head(206, Content_Length=len(DATA) - 5000, Content_Range=span)
            r.body(DATA[5000:])
        else:
            r.whole(DATA)

    with serving(script) as (base, seen):
        download(base, target, HASH)
    assert target.read_bytes() == DATA
    assert [r.start for r in seen] == [None, 5000, None]


def test_a_length_that_is_never_reached_fails(target):
    def script(r):
        if r.start is None:
            r.head(200, Content_Length=len(DATA) + 10)
            r.body(DATA)
        else:
            r.head(206, Content_Length=10, Content_Range=f"bytes {r.start}-{r.start + 9}/{len(DATA) + 10}")

    with serving(script) as (base, seen):
        error = failure(base, target)
    assert error.code == "DOWNLOAD_FAILED"
    assert "102,400 of 102,410 bytes" in error.message
    assert len(seen) == module.TRIES


@pytest.mark.parametrize("body", [OTHER, DATA[:-1], b"", b"<html>log in</html>"])
def test_a_wrong_file_is_thrown_away(target, body):
    with serving(lambda r: r.whole(body)) as (base, seen):
        error = failure(base, target, WeightsError)
    assert error.code == "WEIGHTS_HASH"
    assert hashlib.sha256(body).hexdigest()[:8] in error.message
    assert HASH[:8] in error.message
    assert ("web page" in error.message) == body.startswith(b"<")
    assert left(target) == [".net.pth.lock"]
    assert len(seen) == 1


def test_a_body_that_goes_on_after_its_length_is_cut_there(target):
    def script(r):
        r.head(200, Content_Length=len(DATA))
        while True:
            r.body(DATA)

    with serving(script) as (base, _):
        download(base, target, HASH)
    assert target.read_bytes() == DATA


def test_a_body_without_length_is_taken_when_it_ends(target):
    with serving(lambda r: (r.head(200), r.body(DATA))) as (base, _):
        download(base, target, HASH)
    assert target.read_bytes() == DATA


def test_a_body_that_never_ends_is_given_up(target, monkeypatch):
    monkeypatch.setattr(module, "MOST", 10**6)

    def script(r):
        r.head(200)
        while True:
            r.body(DATA)

    with serving(script) as (base, seen):
        error = failure(base, target)
    assert error.code == "DOWNLOAD_SIZE"
    assert target.with_name(".net.pth.part").stat().st_size <= 10**6
    assert len(seen) == 1


def test_a_length_beyond_reason_is_not_begun(target):
    with serving(lambda r: r.head(200, Content_Length=10**15)) as (base, _):
        assert failure(base, target).code == "DOWNLOAD_SIZE"
    assert left(target) == [".net.pth.lock"]


def test_a_file_that_the_disk_cannot_hold_is_not_begun(target, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with serving(lambda r: r.whole(DATA)) as (base, _), pytest.raises(EnvironmentFault) as error:
        download(base, target, HASH)
    assert error.value.code == "DISK_FULL"
    assert left(target) == [".net.pth.lock"]


@pytest.mark.parametrize(("status", "times"), [(404, 1), (403, 1), (500, 4), (503, 4), (429, 4)])
def test_a_refusal_is_told_and_repeated_only_where_that_may_help(target, status, times):
    with serving(lambda r: r.head(status, Content_Length=0, Retry_After="9999")) as (base, seen):
        error = failure(f"{base}/net.pth", target)
    assert (error.code, len(seen)) == ("DOWNLOAD_FAILED", times)
    assert f"says {status}" in error.message


def test_a_server_that_recovers_is_waited_for(target):
    with serving(lambda r: r.whole(DATA) if r.number > 1 else r.head(500)) as (base, seen):
        download(base, target, HASH)
    assert target.read_bytes() == DATA
    assert len(seen) == 3


def test_a_stalled_server_is_left_and_asked_for_the_rest(target):
    done = threading.Event()

    def script(r):
        if r.number == 0:
            r.head(200, Content_Length=len(DATA))
            r.body(DATA[:1000])
            done.wait(20)
        else:
            r.rest(DATA)

    with serving(script) as (base, seen):
        download(base, target, HASH)
        done.set()
    assert target.read_bytes() == DATA
    assert [r.start for r in seen] == [None, 1000]


def test_a_server_that_always_stalls_fails(target, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    done = threading.Event()
    with serving(lambda r: (r.head(200, Content_Length=9), done.wait(20))) as (base, _):
        error = failure(base, target)
        done.set()
    assert "no byte came" in error.message


def test_a_server_that_drops_after_every_byte_is_given_up(target, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 12)
    monkeypatch.setattr(module, "PAUSE", 0.0)

    def script(r):
        first = r.start or 0
        r.head(206 if first else 200, Content_Length=len(DATA) - first,
               Content_Range=f"bytes {first}-{len(DATA) - 1}/{len(DATA)}")  # fmt: skip
        r.body(DATA[first : first + 1])

    with serving(script) as (base, seen):
        assert failure(base, target).code == "DOWNLOAD_FAILED"
    assert len(seen) == 12


def test_redirects_are_followed_with_the_range(target):
    target.parent.mkdir()
    target.with_name(".net.pth.part").write_bytes(DATA[:3000])
    with serving(lambda r: r.rest(DATA) if r.path == "/there" else r.redirect("/there")) as (base, seen):
        download(f"{base}/here", target, HASH)
    assert target.read_bytes() == DATA
    assert [(r.path, r.start) for r in seen] == [("/here", 3000), ("/there", 3000)]


def test_a_circle_of_redirects_ends(target):
    with serving(lambda r: r.redirect("/here")) as (base, seen):
        assert failure(f"{base}/here", target).code == "DOWNLOAD_REDIRECT"
    assert len(seen) == module.REDIRECTS + 1


@pytest.mark.parametrize("place", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_away_from_the_web_is_not_followed(target, place):
    with serving(lambda r: r.redirect(place)) as (base, _):
        assert failure(base, target).code == "DOWNLOAD_REDIRECT"


def test_a_redirect_from_https_to_http_is_not_followed(target, monkeypatch):
    class Answers:
        def open(self, asked, timeout):
            place = {"Location": "http://example.org/x"}
            raise module.HTTPError(asked.full_url, 302, "Found", place, io.BytesIO())

    monkeypatch.setattr(module, "_OPENER", Answers())
    error = failure("https://example.org/x", target)
    assert error.code == "DOWNLOAD_REDIRECT"
    assert "leads to http://example.org/x, which is not followed" in error.message


def test_the_answer_of_a_redirect_is_not_read(target):
    def script(r):
        if r.path == "/there":
            return r.whole(DATA)
        r.head(302, Location="/there")
        while True:
            r.body(DATA)

    with serving(script) as (base, _):
        download(base, target, HASH)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/x", "/etc/hostname"])
def test_only_the_web_is_asked(target, address):
    with pytest.raises(MareyError):
        download(address, target, None)
    assert not target.exists()


def test_when_nobody_answers_the_way_by_hand_is_told(target):
    with serving(lambda r: None) as (base, _):
        pass
    error = failure(base, target, WeightsError)
    assert error.code == "WEIGHTS_OFFLINE"
    assert "refused" in error.message
    assert f"sha256 begins with {HASH[:8]}" in error.message


def test_offline_nobody_is_asked(target, monkeypatch):
    monkeypatch.setenv("MAREY_OFFLINE", "1")
    with serving(lambda r: r.whole(DATA)) as (base, seen):
        monkeypatch.setenv("MAREY_MIRROR", base)
        error = failure(base, target, WeightsError)
    assert (error.code, seen) == ("WEIGHTS_OFFLINE", [])
    assert "MAREY_OFFLINE is set" in error.message


@pytest.mark.parametrize("name", ["a/b/net.pth", "net.pth"])
def test_a_folder_serves_as_mirror_even_offline(target, tmp_path, monkeypatch, name):
    mirror = tmp_path / "mirror, of mine"
    (mirror / name).parent.mkdir(parents=True)
    (mirror / name).write_bytes(DATA)
    monkeypatch.setenv("MAREY_OFFLINE", "1")
    monkeypatch.setenv("MAREY_MIRROR", str(mirror))
    download("https://example.org/a/b/net.pth", target, HASH[:8])
    assert target.read_bytes() == DATA
    assert left(target) == ["net.pth"]


def test_mirrors_come_first_and_the_publisher_last(target, tmp_path, monkeypatch):
    (tmp_path / "net.pth").write_bytes(OTHER)  # damaged: passed over
    mirrored = {"/mirror/net.pth": OTHER, "/a/net.pth": DATA}
    with serving(lambda r: r.whole(mirrored[r.path]) if r.path in mirrored else r.head(404)) as (base, seen):
        monkeypatch.setenv("MAREY_MIRROR", f"{tmp_path}, {base}/mirror/")
        download(f"{base}/a/net.pth", target, HASH[:8])
    assert target.read_bytes() == DATA
    assert [r.path for r in seen] == ["/mirror/a/net.pth", "/mirror/net.pth", "/a/net.pth"]


def test_a_file_whose_address_names_none_is_found_in_a_mirror_by_ours(target, tmp_path, monkeypatch):
    (tmp_path / "of mine").mkdir()
    (tmp_path / "of mine" / target.name).write_bytes(DATA)
    monkeypatch.setenv("MAREY_OFFLINE", "1")
    monkeypatch.setenv("MAREY_MIRROR", str(tmp_path / "of mine"))
    download("https://example.org/download?id=1", target, None)
    assert target.read_bytes() == DATA


def test_a_page_is_no_file_even_where_no_hash_is_known(target):
    """Google Drive answers with a page when it has something to ask."""
    with serving(lambda r: r.whole(b"<!DOCTYPE html><html>too large to scan</html>")) as (base, _):
        error = failure(f"{base}/download?id=1", target, WeightsError, None)
    assert (error.code, "web page" in error.message) == ("WEIGHTS_HASH", True)
    assert left(target) == [".net.pth.lock"]


def test_when_all_fail_each_source_is_named(target, tmp_path, monkeypatch):
    with serving(lambda r: r.head(404)) as (base, _):
        monkeypatch.setenv("MAREY_MIRROR", f"{base}/mirror")
        error = failure(f"{base}/net.pth", target)
    assert error.message.count("says 404") == 2  # the mirror's and its own; not the same one twice
    assert f"{base}/mirror/net.pth" in error.message


def test_a_mirror_that_does_not_answer_is_asked_once(target, monkeypatch):
    with serving(lambda r: None) as (gone, _):
        pass
    monkeypatch.setattr(module, "TRIES", 1)
    monkeypatch.setenv("MAREY_MIRROR", gone)
    with serving(lambda r: r.head(404)) as (base, _):
        error = failure(f"{base}/a/net.pth", target)
    assert error.message.count("refused") == 1


@pytest.mark.parametrize("text", [None, "", " ,"])
def test_without_mirrors_only_the_publisher_is_asked(text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pth").write_bytes(b"of the folder one happens to be in")
    if text is not None:
        monkeypatch.setenv("MAREY_MIRROR", text)
    assert sources("https://example.org/a/net.pth") == ["https://example.org/a/net.pth"]
    monkeypatch.setenv("MAREY_OFFLINE", "yes")
    assert sources("https://example.org/a/net.pth") == []


def test_a_mirror_that_is_no_place_is_refused(target, monkeypatch):
    for text in ("/no/such/folder", "file:///tmp", "ftp://x"):
        monkeypatch.setenv("MAREY_MIRROR", text)
        with pytest.raises(UsageError) as error:
            download("https://example.org/net.pth", target, HASH)
        assert error.value.code == "MIRROR"


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EnvironmentFault) as error:
        download("http://127.0.0.1:9/x", tmp_path / "cache" / "net.pth", HASH)
    assert error.value.code == "NOT_WRITABLE"


def test_of_several_processes_one_fetches_and_all_have_it(target):
    def script(r):
        r.head(200, Content_Length=len(DATA))
        for start in range(0, len(DATA), 1024):
            r.body(DATA[start : start + 1024])
            threading.Event().wait(0.01)

    code = (
        "import sys; from pathlib import Path; from marey.weights.download import download;"
        "download(sys.argv[1], Path(sys.argv[2]), sys.argv[3])"
    )
    with serving(script) as (base, seen):
        command = [sys.executable, "-c", code, base, str(target), HASH]
        running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        said = "".join(process.communicate(timeout=60)[1] for process in running)
    assert [process.returncode for process in running] == [0, 0, 0]
    assert target.read_bytes() == DATA
    assert left(target) == ["net.pth"]
    assert len(seen) == said.count("fetching") == 1


def test_where_files_cannot_be_locked_each_process_has_its_own_part(target, monkeypatch):
    def refuse(file):
        raise OSError("no locks here")

    monkeypatch.setattr(module, "_locked", refuse)
    target.parent.mkdir()
    target.with_name(".net.pth.part").write_bytes(OTHER[:3000])  # of somebody else
    with serving(lambda r: r.rest(DATA)) as (base, seen):
        download(base, target, HASH)
    assert target.read_bytes() == DATA
    assert [r.start for r in seen] == [None]
    assert target.with_name(".net.pth.part").read_bytes() == OTHER[:3000]


def test_on_a_terminal_rate_and_time_left_are_shown(target, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def script(r):
        r.head(200, Content_Length=len(DATA))
        r.body(DATA[: len(DATA) // 2])
        threading.Event().wait(0.3)
        r.body(DATA[len(DATA) // 2 :])

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with serving(script) as (base, _):
        download(base, target, HASH)
    text = screen.getvalue()
    assert "of 0.1 MB" in text
    assert "left 0:00" in text
    assert "/s" in text
    assert text.endswith("\r\033[K")  # the line is left clean
