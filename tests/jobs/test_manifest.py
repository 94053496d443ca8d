"""The folder of a bulk job: what counts as finished, who may continue it, and what a kill leaves."""

import multiprocessing
import os
import sys
import time

import pytest

from marey.errors import UsageError
from marey.jobs.manifest import Item, Manifest, Shard, shard

SETTINGS = {"model": "a", "options": {"depth": 18}}


def opened(folder, settings=SETTINGS, job="count", resume=True):
    return Manifest(folder, job, settings, resume=resume)


def finish(manifest, key, stamp=(1, 2)):
    name = f"{key}.out"
    (manifest.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (manifest.folder / name).write_text(key)
    manifest.add(Item(key, stamp), file=name, result={"length": len(key)})


def keys(manifest, *items):
    return [item.key for item in manifest.waiting(items)]


def test_an_item_is_finished_as_long_as_it_and_its_output_are_as_they_were(tmp_path):
    first = opened(tmp_path)
    items = [Item(key, (1, 2)) for key in "abcd"]
    for key in "abc":
        finish(first, key)
    first.add(items[3], code="BAD", message="cannot be read", result={})
    (tmp_path / "b.out").unlink()
    again = opened(tmp_path)
    assert keys(again, *items) == ["b", "d"], "without output, and failed"
    assert keys(again, Item("a", (1, 3)), Item("e", (1, 2))) == ["a", "e"], "changed, and new"
    assert again.entries["a"].result == {"length": 1}
    assert (again.entries["d"].code, again.entries["d"].file) == ("BAD", None)


def test_the_latest_entry_of_an_item_counts_whichever_journal_it_is_in(tmp_path):
    one, other = opened(tmp_path), opened(tmp_path)
    one.add(Item("a", (1, 2)), code="BAD", message="", result={})
    finish(other, "a")
    one.add(Item("b", (1, 2)), code="BAD", message="", result={})
    finish(one, "b")
    assert len(list((tmp_path / "done").iterdir())) == 2
    again = opened(tmp_path)
    assert keys(again, Item("a", (1, 2)), Item("b", (1, 2))) == []


def test_a_line_that_a_kill_cut_short_is_not_counted(tmp_path):
    first = opened(tmp_path)
    finish(first, "a")
    finish(first, "b")
    (journal,) = (tmp_path / "done").iterdir()
    data = journal.read_bytes()
    for length in [*range(0, len(data), 97), len(data) - 1]:
        journal.write_bytes(data[:length])
        found = set(opened(tmp_path).entries)
        assert found <= {"a", "b"}
        assert found != {"b"}, "the first was whole before the second began"
    journal.write_bytes(data)
    assert set(opened(tmp_path).entries) == {"a", "b"}


def test_names_that_are_no_text_come_back(tmp_path):
    name = os.fsdecode(b"caf\xe9\n.mp4")
    opened(tmp_path).add(Item(name, (1, 2)), code="BAD", message=name, result={"source": name})
    entry = opened(tmp_path).entries[name]
    assert (entry.key, entry.message, entry.result) == (name, name, {"source": name})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": SETTINGS | {"model": "b"}}, "model"),
        ({"settings": SETTINGS | {"options": {"depth": 50}}}, r"options\.depth"),
        ({"settings": SETTINGS | {"more": 1}}, "more"),
        ({"settings": {"model": "a"}}, r"options\.depth"),
        ({"job": "other"}, "job"),
    ],
)
def test_another_job_is_refused_with_what_differs(tmp_path, changes, named):
    finish(opened(tmp_path), "a")
    with pytest.raises(UsageError, match=named) as error:
        opened(tmp_path, **changes)
    assert error.value.code == "RESUME_MISMATCH"


def test_two_jobs_that_began_at_once_are_found_out(tmp_path):
    one, other = opened(tmp_path), opened(tmp_path, {"model": "b"})
    finish(one, "a")
    finish(other, "b")
    with pytest.raises(UsageError, match="other settings") as error:
        other.publish(lambda entries: None)
    assert error.value.code == "RESUME_MISMATCH"


def test_a_used_folder_is_continued_only_when_asked(tmp_path):
    opened(tmp_path, resume=False)
    opened(tmp_path, resume=False)  # nothing was made yet
    finish(opened(tmp_path), "a")
    with pytest.raises(UsageError, match="--resume") as error:
        opened(tmp_path, resume=False)
    assert error.value.code == "FOLDER_USED"
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(UsageError, match=r"job\.json") as error:
        opened(tmp_path)
    assert error.value.code == "RESUME_MISMATCH"


def test_shards_hold_every_item_once_and_are_about_equal():
    names = [f"/videos/{number}.mp4" for number in range(4000)]
    for count in (1, 3, 8):
        holders = [sum(Shard(part, count).holds(name) for part in range(count)) for name in names]
        assert holders == [1] * len(names)
        sizes = [sum(Shard(part, count).holds(name) for name in names) for part in range(count)]
        assert min(sizes) > 0.8 * len(names) / count
    assert Shard(1, 4).holds("/videos/0.mp4") is Shard(1, 4).holds("/videos/0.mp4")


def test_a_shard_is_written_from_zero():
    assert shard("0/4") == (0, 4)
    for text in ("4/4", "1", "a/b", "-1/4", "1/0", ""):
        with pytest.raises(UsageError) as error:
            shard(text)
        assert error.value.code == "SHARD"


def _early(folder, inside, added):
    """Read everything, then take one's time with writing."""

    def write(entries):
        inside.set()
        assert added.wait(60)
        time.sleep(0.3)
        (folder / "summary").write_text(" ".join(entry.key for entry in entries))

    manifest = opened(folder)
    finish(manifest, "a")
    manifest.publish(write)


def _late(folder, inside, added):
    """Finish something meanwhile."""
    manifest = opened(folder)
    assert inside.wait(60)
    finish(manifest, "b")
    added.set()
    manifest.publish(
        lambda entries: (folder / "summary").write_text(" ".join(entry.key for entry in entries))
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_a_slow_process_does_not_overwrite_a_later_summary(tmp_path):
    context = multiprocessing.get_context("fork")
    inside, added = context.Event(), context.Event()
    both = [context.Process(target=work, args=(tmp_path, inside, added)) for work in (_early, _late)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "summary").read_text() == "a b"
