"""Cards: what they say, and when a step need not run again."""

import hashlib
import json

import pytest

from marey.jobs.provenance import card_path, is_current, now, read_card, sha256_of, write_card


@pytest.fixture
def step(tmp_path):
    """A step that made out.bin of a.bin; the arguments that ask whether it is current."""
    (tmp_path / "a.bin").write_bytes(b"a")
    (tmp_path / "out.bin").write_bytes(b"out")
    card = card_path(tmp_path / "out.bin")
    settings, inputs = {"rounds": (1, 2), "policy": None}, {"first": tmp_path / "a.bin"}
    write_card(card, "vote", settings, inputs, {"scores": tmp_path / "out.bin"}, started=now())
    return card, "vote", settings, inputs


def test_a_card_names_files_by_their_content(step, tmp_path):
    card = step[0]
    assert card.name == "out.manifest.json"
    found = json.loads(card.read_text())
    assert found["inputs"] == {"first": {"path": "a.bin", "sha256": hashlib.sha256(b"a").hexdigest()}}
    assert found["outputs"]["scores"]["sha256"] == sha256_of(tmp_path / "out.bin")
    assert found["started"] <= found["ended"] and "marey" in found["versions"]
    assert read_card(card).settings == {"rounds": [1, 2], "policy": None}


def test_a_step_is_current_as_long_as_nothing_differs(step, tmp_path):
    card, job, settings, inputs = step
    assert is_current(*step)
    assert not is_current(card, "label", settings, inputs)
    assert not is_current(card, job, {**settings, "policy": "x"}, inputs)
    assert not is_current(card, job, settings, {**inputs, "second": tmp_path / "a.bin"})
    (tmp_path / "moved.bin").write_bytes(b"a")
    assert is_current(card, job, settings, {"first": tmp_path / "moved.bin"}), "content decides, not the name"
    (tmp_path / "a.bin").write_bytes(b"b")
    assert not is_current(*step)


def test_outputs_that_are_gone_or_changed_are_made_again(step, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("out.bin", "out.manifest.json"):
        (folder / name).write_bytes((tmp_path / name).read_bytes())
    assert is_current(folder / "out.manifest.json", *step[1:]), "a folder may be moved"
    (tmp_path / "out.bin").write_bytes(b"other")
    assert not is_current(*step)
    (tmp_path / "out.bin").unlink()
    assert not is_current(*step)


def test_a_card_that_is_cut_short_is_none(step):
    card = step[0]
    card.write_bytes(card.read_bytes()[:100])
    assert read_card(card) is None and not is_current(*step)
    assert read_card(card.with_name("none")) is None
