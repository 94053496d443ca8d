"""The list of releases, and how they are fetched."""

import io
import json
import subprocess
import sys

import pytest

from marey import cli
from marey.errors import MareyError, UsageError
from marey.jobs import zoo as module
from marey.jobs.zoo import get, matching, show, zoo
from marey.models import build
from marey.models.cost import macs, parameters
from marey.weights import download
from marey.weights.published import RELEASES
from tests.weights.server import serving

TSM = "tsm_r50_256p_1x1x8_50e_kinetics400_rgb"
TSM_FULL = f"{TSM}_20200726-020785e2"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAREY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def run(capsys, *words):
    """(exit code, stdout, stderr) of a command line."""
    old, sys.argv = sys.argv, ["marey", *words]
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv = old
    return end.value.code, *capsys.readouterr()


def test_every_release_is_listed_once_with_all_that_is_told_of_it():
    entries = zoo()
    assert sorted(one.name for one in entries) == sorted(RELEASES)
    for one in entries:
        release = RELEASES[one.name]
        assert (one.top1, one.top5, one.dataset) == (release.top1, release.top5, release.dataset)
        assert (one.license, one.sha256, one.url) == (release.license, release.sha256, release.url)
        assert one.parameters > 10**6
        assert one.gmacs > 1
        assert not one.downloaded
        assert one.tested
        assert matching(one.short)


def test_sizes_and_costs_are_those_of_the_networks():
    """Against figures of the originals, with 400 classes; others are counted on the whole network."""
    by_name = {one.short: one for one in zoo()}
    csn = by_name["ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb"]
    assert (csn.parameters, csn.gmacs, csn.frames, csn.crop) == (29_703_568, 96.713, 32, 256)
    start = by_name["ircsn_from_scratch_r152_ig65m"]
    assert (start.headless, start.parameters) == (True, 29_703_568 - 819_600 - 0)
    tsn = by_name["tsn_imagenet-pretrained-r101_8xb32-1x1x8-100e_kinetics400-rgb"]
    assert (tsn.parameters, tsn.gmacs, tsn.frames) == (43_319_760, 194.985, 25)
    for name in ("tsm_r50_1x1x8_50e_jester_rgb", "slowonly_imagenet_pretrained_r50_8x8x1_64e_jester_rgb"):
        one = by_name[name]
        network = build(one.model, RELEASES[one.name].num_classes, **one.overrides)
        assert one.parameters == parameters(network)
        assert one.gmacs == round(macs(network, (3, one.frames, one.crop, one.crop)) / 1e9, 3)


def test_each_shape_is_counted_once():
    zoo()
    counted = module._cost.cache_info().misses
    assert counted < len(RELEASES) / 3
    zoo()
    assert module._cost.cache_info().misses == counted


def test_the_list_can_be_narrowed(cache):
    assert {one.model for one in zoo("csn_ip*")} == {"csn_ip_r152"}
    assert {one.name for one in zoo("IPCSN")} == {one.name for one in zoo(model="csn_ip*")}
    assert {one.dataset for one in zoo(dataset="jester")} == {"Jester"}
    assert {one.model.partition("_")[0] for one in zoo(dataset="Jester", model="tsm*")} == {"tsm"}
    assert zoo("no such thing") == []
    assert zoo(downloaded=True) == []
    (cache / f"{TSM_FULL}.pth").write_bytes(b"")
    assert [one.name for one in zoo(downloaded=True)] == [TSM_FULL]
    best = [one.top1 or 0 for one in zoo(dataset="Kinetics-400")]
    assert best == sorted(best, reverse=True)
    for wrong in ({"dataset": "Kinetics"}, {"model": "tsmm"}):
        with pytest.raises(UsageError, match=r"did you mean (Kinetics|tsm_)"):
            zoo(**wrong)


def test_away_from_a_terminal_a_release_is_one_line(capsys):
    show(zoo("jester"))
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 1 + 2
    row = next(line.split() for line in lines if line.startswith("tsm"))
    assert row[:5] == ["tsm_r50_1x1x8_50e_jester_rgb", "Jester", "8", "segments", "97.20"]
    assert "licence Apache-2.0" in err
    assert "multiply-adds" in err


def test_on_a_narrow_terminal_nothing_is_cut(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "70")
    entries = zoo("jester")
    show(entries)
    lines = sys.stdout.getvalue().splitlines()
    assert max(map(len, lines)) <= 70
    assert [line for line in lines if line[0] != " "] == [one.short for one in entries]
    text = " ".join(" ".join(lines).split())
    for part in (
        "data Jester, frames 8 segments, top-1 97.20, tested on 2 x 8 frames x 3 crops",
        "sha256 b56a",
    ):
        assert part in text
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "160")
    show(entries)
    assert len(sys.stdout.getvalue().splitlines()) == 3


def test_json_holds_what_the_table_shows_and_more(capsys):
    code, out, _ = run(capsys, "zoo", "jester", "--model", "tsm*", "--json")
    (one,) = json.loads(out)
    assert code == 0
    assert (one["top1"], one["model"], one["downloaded"]) == (97.2, "tsm_r50", False)
    assert one["url"].endswith(f"{one['name']}.pth")


def test_releases_are_fetched_and_their_files_named(cache, capsys, monkeypatch, tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / f"{TSM_FULL}.pth").write_bytes(b"not it")
    monkeypatch.setenv("MAREY_MIRROR", str(mirror))
    code, out, err = run(capsys, "zoo", "get", TSM)
    assert (code, out) == (4, "")
    assert f"{TSM_FULL}: WEIGHTS_OFFLINE" in err
    digest = module.msgspec.structs.replace(RELEASES[TSM_FULL], sha256="")
    monkeypatch.setitem(RELEASES, TSM_FULL, digest)
    code, out, err = run(capsys, "zoo", "get", TSM)
    assert (code, out) == (0, f"{cache / TSM_FULL}.pth\n")
    code, out, _ = run(capsys, "zoo", "get", "tsm_r50_256p_1x1x*", "--json")
    assert code == 3  # the other is not there
    rows = json.loads(out)
    assert rows[TSM_FULL] == {"file": f"{cache / TSM_FULL}.pth"}
    assert rows["tsm_r50_256p_1x1x16_50e_kinetics400_rgb_20201010-85645c2a"] == {"code": "WEIGHTS_OFFLINE"}


def test_a_release_comes_from_its_address(cache, monkeypatch, capsys):
    import hashlib

    monkeypatch.setenv("MAREY_OFFLINE", "0")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "_OPENER", download._opener())
    data = b"weights" * 1000
    with serving(lambda r: r.rest(data)) as (base, seen):
        release = module.msgspec.structs.replace(
            RELEASES[TSM_FULL], url=f"{base}/x/net.pth", sha256=hashlib.sha256(data).hexdigest()[:8]
        )
        monkeypatch.setitem(RELEASES, TSM_FULL, release)
        assert list(get([TSM, TSM_FULL])) == [(TSM_FULL, cache / f"{TSM_FULL}.pth")]
        assert (cache / f"{TSM_FULL}.pth").read_bytes() == data
        assert [r.path for r in seen] == ["/x/net.pth"]
    assert f"fetching {base}/x/net.pth" in capsys.readouterr().err


def test_a_wrong_name_is_refused_before_anything_is_fetched():
    with pytest.raises(MareyError, match="did you mean"):
        list(get([TSM, "tsm_r50_1x1x8_51e_kinetics400_rgb"]))
    with pytest.raises(MareyError):
        list(get(["tsm_r50_1x1x8_50e_kinetics400_rgb"]))  # two files


def test_wrong_use_is_told(capsys):
    assert run(capsys, "zoo", "get")[0] == 2
    assert run(capsys, "zoo", "tsm", "tsn")[0] == 2


def test_the_help_does_not_wait_for_torch():
    code = (
        "import sys; sys.argv = ['marey', 'zoo', '--help']\nimport marey.cli\n"
        "try: marey.cli.main()\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
