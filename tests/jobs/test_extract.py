"""Features of videos: the right vectors, whatever is bad, stopped, killed or shared on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from safetensors import safe_open

import marey
from marey.errors import EnvironmentFault, MareyError, UsageError
from marey.jobs import extract as job
from marey.jobs import pieces as reading
from marey.jobs.extract import extract_features
from marey.jobs.manifest import Shard
from marey.video.preprocess import Preprocess, Protocol, normalize
from marey.weights.native import save_checkpoint

CLIPS = Preprocess(
    frames=4,
    interval=2,
    short_side=36,
    crop=32,
    mean=(100.0, 100.0, 100.0),
    std=(50.0, 60.0, 70.0),
    test=Protocol(clips=3, crops="three", crop=36),
)
HERE = {"workers": 0, "device": "cpu", "quiet": True}


def network(name="tsm_r18", preprocess=CLIPS, seed=0, **options):
    torch.manual_seed(seed)
    options = {"width": 4} | ({"segments": 4} if name.startswith("t") else {}) | options
    model = marey.create_model(name, 5, **options)
    for module in model.modules():  # fresh norms would hide wrong statistics
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    model.preprocess = preprocess
    return model.eval()


def index(folder):
    return [json.loads(line) for line in (folder / "index.jsonl").open()]


def vectors(folder):
    """(source, start) -> vector, read as a user would."""
    return {
        (row["source"], row["start"]): safetensors.numpy.load_file(folder / row["file"])["features"][
            row["row"]
        ]
        for row in index(folder)
        if "file" in row
    }


def outputs(folder):
    """All that must not depend on how it came about."""
    names = sorted(
        p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.parent.name != "done"
    )
    return {str(name): (folder / name).read_bytes() for name in names}


@torch.inference_mode()
def by_hand(model, path, protocol, within=None):
    """float32 [V, C], view by view."""
    with marey.read_video(path) as video:
        views = model.preprocess.views(video, protocol, within)
        rows = [model.embed(normalize(views.batch(i, i + 1), model.preprocess)) for i in range(len(views))]
    return torch.stack([row.mean(0) for row in rows]).numpy()


# The right vectors


@pytest.mark.parametrize("name", ["tsm_r18", "tsn_r18", "slowonly_r50"])
def test_a_row_per_clip_is_the_mean_of_its_crops(videos, tmp_path, name):
    model = network(name)
    found = extract_features(model, videos, tmp_path, **HERE)
    assert (found.done, found.failed, found.rows) == (6, 0, 18)
    read = vectors(tmp_path)
    for path in videos:
        want = by_hand(model, path, CLIPS.test).reshape(3, 3, -1).mean(0)  # crops, clips
        got = np.stack([vector for (source, _), vector in read.items() if source == str(path)])
        assert got.shape == want.shape
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    first = [row for row in index(tmp_path) if row["source"] == str(videos[0])]
    starts = CLIPS.pick_test(30, CLIPS.test)[:, 0]
    assert [row["start"] for row in first] == pytest.approx(starts / 12)
    assert [row["end"] for row in first] == pytest.approx((starts + 7) / 12), "7 frames from first to last"
    assert {row["frames"] for row in first} == {4}


def test_a_row_per_video_is_the_mean_of_all_views(videos, tmp_path):
    model = network()
    extract_features(model, videos[0], tmp_path, per="video", **HERE)
    (row,) = index(tmp_path)
    assert (row["start"], row["end"], row["frames"]) == (0.0, pytest.approx(2.5), 30)
    (got,) = vectors(tmp_path).values()
    want = by_hand(model, videos[0], CLIPS.test).mean(0)
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def test_a_row_per_window_is_of_that_window_alone(videos, tmp_path):
    model = network()
    extract_features(model, videos[0], tmp_path, per=1.0, **HERE)
    rows = index(tmp_path)
    assert [(row["start"], row["end"], row["frames"]) for row in rows] == [
        *((0.0, 1.0, 12), (1.0, 2.0, 12), (2.0, pytest.approx(2.5), 6)),
    ]
    for row, got in zip(rows, vectors(tmp_path).values(), strict=True):
        part = range(round(12 * row["start"]), round(12 * row["end"]))
        want = by_hand(model, videos[0], CLIPS.val, part)[0]
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def test_several_passes_of_a_clip_make_one_vector(videos, tmp_path):
    """TSM's rows of a clip of twice its segments are averaged, not mistaken for clips."""
    twice = msgspec.structs.replace(CLIPS, test=Protocol(clips=3, frames=8))
    model = network(preprocess=twice)
    extract_features(model, videos[0], tmp_path, **HERE)
    got, want = np.stack(list(vectors(tmp_path).values())), by_hand(model, videos[0], twice.test)
    assert got.shape == want.shape == (3, 32)
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def test_a_layer_is_averaged_over_time_and_space(videos, tmp_path):
    model = network()
    extract_features(model, videos[0], tmp_path / "embed", per="video", **HERE)
    extract_features(model, videos[0], tmp_path / "stage4", per="video", layer="trunk.stage4", **HERE)
    extract_features(model, videos[0], tmp_path / "head", per="video", layer="head", **HERE)
    (embed,), (stage4,), (logits,) = (vectors(tmp_path / n).values() for n in ("embed", "stage4", "head"))
    assert stage4 == pytest.approx(embed, rel=1e-4, abs=1e-6)
    assert logits == pytest.approx(model.head(torch.tensor(embed)).detach().numpy(), rel=1e-4, abs=1e-6)
    extract_features(model, videos[0], tmp_path / "inner", per="video", layer="trunk.stage1.0.conv2", **HERE)
    (inner,) = vectors(tmp_path / "inner").values()
    assert (inner < 0).any(), "taken before the block adds to it and cuts at 0 in place"
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"layer": "stage5"}, "UNKNOWN_NAME"),
        ({"layer": ""}, "UNKNOWN_NAME"),
        ({"per": 0.0}, "PER"),
        ({"per": "frame"}, "UNKNOWN_NAME"),
        ({"dtype": "float64"}, "UNKNOWN_NAME"),
        ({"format": "csv"}, "UNKNOWN_NAME"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(videos, tmp_path, options, code):
    with pytest.raises(UsageError) as error:
        extract_features(network(), videos, tmp_path / "out", **HERE | options)
    assert error.value.code == code
    assert not (tmp_path / "out").exists()


def test_a_module_that_no_clip_passes_leaves_the_folder_free(videos, tmp_path):
    model = network()
    model.spare = torch.nn.Identity()
    with pytest.raises(UsageError, match="spare") as error:
        extract_features(model, videos, tmp_path, layer="spare", **HERE)
    assert error.value.code == "LAYER"
    extract_features(model, videos[0], tmp_path, **HERE)


def test_a_map_of_a_transformer_is_not_taken_for_what_it_may_not_be(videos, tmp_path):
    model = marey.create_model(
        "swin3d_t", 5, channels=12, depths=(2, 2), heads=(2, 3), window=(4, 3, 3)
    ).eval()
    model.preprocess = CLIPS
    maps = next(name for name, module in model.named_modules() if type(module).__name__.endswith("Patches"))
    with pytest.raises(UsageError, match="map") as error:
        extract_features(model, videos[0], tmp_path / "map", layer=maps, **HERE)
    assert error.value.code == "LAYER"
    extract_features(model, videos[0], tmp_path / "head", per="video", layer="head", **HERE)
    extract_features(model, videos[0], tmp_path / "embed", per="video", **HERE)
    (logits,), (embed,) = (vectors(tmp_path / name).values() for name in ("head", "embed"))
    assert logits == pytest.approx(model.head(torch.tensor(embed)).detach().numpy(), rel=1e-3, abs=1e-5)


# On disk


def test_the_formats_hold_the_same(videos, tmp_path):
    model, found = network(), {}
    for name in ("safetensors", "npz", "parquet"):
        extract_features(model, videos[0], tmp_path / name, format=name, dtype="float16", **HERE)
        file = tmp_path / name / index(tmp_path / name)[0]["file"]
        if name == "safetensors":
            found[name] = safetensors.numpy.load_file(file)
            with safe_open(file, "np") as opened:
                about = json.loads(opened.metadata()["marey"])
        elif name == "npz":
            with np.load(file) as arrays:
                found[name] = {"features": arrays["features"], "seconds": arrays["seconds"]}
                assert json.loads(str(arrays["about"])) == about
        else:
            table = pq.read_table(file)
            assert json.loads(table.schema.metadata[b"marey"]) == about
            seconds = np.stack([table["start"].to_numpy(), table["end"].to_numpy()], 1)
            found[name] = {"features": np.stack(table["features"].to_numpy()), "seconds": seconds}
    for arrays in found.values():
        assert arrays["features"].dtype == np.float16
        assert np.array_equal(arrays["features"], found["npz"]["features"])
        assert np.array_equal(arrays["seconds"], found["npz"]["seconds"])
    assert about["source"] == str(videos[0])
    assert (about["model"], about["per"], about["dtype"]) == ("tsm_r18", "clip", "float16")


def test_the_folder_says_what_made_it(videos, tmp_path):
    extract_features(network(), videos[0], tmp_path, **HERE)
    card = json.loads((tmp_path / "job.json").read_text())
    assert msgspec.convert(card["settings"]["preprocess"], Preprocess) == CLIPS
    assert len(card["settings"]["weights_sha256"]) == 64
    assert card["versions"]["packages"]["torch"]


def test_values_too_large_for_float16_are_not_stored(videos, tmp_path):
    model = network()
    with torch.no_grad():
        model.head.weight.mul_(1e9)
    found = extract_features(model, videos[0], tmp_path / "half", layer="head", dtype="float16", **HERE)
    assert (found.failed, found.rows, index(tmp_path / "half")[0]["code"]) == (1, 0, "FEATURES_NOT_FINITE")
    assert extract_features(model, videos[0], tmp_path / "full", layer="head", **HERE).failed == 0


# The same, however it came about


def test_workers_do_not_change_a_bit(videos, tmp_path):
    """Windows of four frames, a hundred of them: two pieces of every video."""
    model = network()
    for workers in (0, 2):
        extract_features(model, videos[:2], tmp_path / str(workers), per=0.025, **HERE | {"workers": workers})
    assert outputs(tmp_path / "0") == outputs(tmp_path / "2")
    assert len(index(tmp_path / "0")) > 2 * reading.PIECE / 4


def test_pieces_and_batches_change_nothing_but_rounding(videos, tmp_path, monkeypatch):
    model = network()
    extract_features(model, videos, tmp_path / "whole", per=0.5, **HERE)
    extract_features(model, videos, tmp_path / "single", per=0.5, views_per_forward=1, **HERE)
    monkeypatch.setattr(reading, "PIECE", 8)  # two windows
    extract_features(model, videos, tmp_path / "pieces", per=0.5, **HERE)
    whole, single, pieces = (vectors(tmp_path / name) for name in ("whole", "single", "pieces"))
    assert whole.keys() == single.keys() == pieces.keys()
    assert len(whole) == 6 * 5
    for key, want in whole.items():
        assert single[key] == pytest.approx(want, rel=1e-4, abs=1e-5)
        assert pieces[key] == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_shards_together_leave_what_one_run_leaves(videos, tmp_path):
    model = network()
    extract_features(model, videos, tmp_path / "whole", **HERE)
    parts = [
        extract_features(model, videos, tmp_path / "parts", shard=Shard(i, 3), **HERE) for i in (2, 0, 1)
    ]
    assert sum(part.done for part in parts) == parts[-1].rows / 3 == 6
    assert outputs(tmp_path / "whole") == outputs(tmp_path / "parts")


def test_a_stopped_run_has_saved_all_and_continues_to_the_same(videos, tmp_path, monkeypatch):
    model = network()
    extract_features(model, videos, tmp_path / "whole", **HERE)
    vectors, seen = job.Embedding.vectors, []

    def stopping(self, clips):
        seen.append(len(clips))
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return vectors(self, clips)

    monkeypatch.setattr(job.Embedding, "vectors", stopping)
    with pytest.raises(MareyError, match=r"2 of 6.*--resume") as error:
        extract_features(model, videos, tmp_path / "broken", **HERE)
    assert (error.value.code, error.value.exit_code) == ("INTERRUPTED", 130)
    assert len(index(tmp_path / "broken")) == 2 * 3
    found = extract_features(model, videos, tmp_path / "broken", resume=True, **HERE)
    assert (found.done, found.skipped, len(seen)) == (4, 2, 6)
    assert outputs(tmp_path / "whole") == outputs(tmp_path / "broken")


def test_a_long_video_that_is_stopped_midway_is_not_half_written(videos, tmp_path, monkeypatch):
    model = network()
    add = job.Rows.add
    monkeypatch.setattr(reading, "PIECE", 8)
    monkeypatch.setattr(
        job.Rows, "add", lambda *args, **how: (os.kill(os.getpid(), signal.SIGINT), add(*args, **how))
    )
    with pytest.raises(MareyError, match="0 of 1"):
        extract_features(model, videos[0], tmp_path, per=0.5, **HERE)
    assert index(tmp_path) == []
    assert not list(tmp_path.rglob("*.safetensors"))


# Continuing


def test_what_is_finished_is_skipped_until_it_changes(videos, tmp_path):
    model, folder = network(), tmp_path / "out"
    mine = [shutil.copy(path, tmp_path / f"{i}.mp4") for i, path in enumerate(videos[:3])]
    (tmp_path / "later.mp4").write_bytes(b"not yet a video")
    every = [*map(str, mine), str(tmp_path / "later.mp4")]
    first = extract_features(model, every, folder, **HERE)
    assert (first.done, first.skipped, first.failed, first.bad) == (3, 0, 1, 1)
    shutil.copy(videos[4], mine[1])
    shutil.copy(videos[5], every[3])
    second = extract_features(model, every, folder, resume=True, **HERE)
    assert (second.done, second.skipped, second.failed, second.bad) == (2, 2, 0, 0)
    fresh = extract_features(model, every, tmp_path / "fresh", **HERE)
    assert fresh.rows == second.rows == 12
    assert outputs(folder) == outputs(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"per": "video"}, "per"),
        ({"dtype": "float16"}, "dtype"),
        ({"model": network(seed=1)}, "weights_sha256"),
        ({"model": network(preprocess=msgspec.structs.replace(CLIPS, interval=1))}, r"preprocess\.interval"),
    ],
)
def test_other_weights_and_settings_are_refused_by_name(videos, tmp_path, change, named):
    given = {"model": network(), "sources": videos[:1], "out": tmp_path} | HERE
    extract_features(**given)
    before = outputs(tmp_path)
    with pytest.raises(UsageError, match=named) as error:
        extract_features(**given | change, resume=True)
    assert error.value.code == "RESUME_MISMATCH"
    with pytest.raises(UsageError, match="--resume") as error:
        extract_features(**given)
    assert error.value.code == "FOLDER_USED"
    assert outputs(tmp_path) == before


# Bad input


def test_bad_files_are_named_and_the_others_finish(videos, tmp_path, capsys):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"\0" * 5000)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(videos[1].read_bytes()[:300])
    sources = [videos[0], bad, tmp_path / "missing.mp4", cut, videos[2], videos[0]]
    found = extract_features(network(), sources, tmp_path / "out", **HERE | {"quiet": False})
    assert (found.done, found.failed, found.rows, found.bad) == (2, 3, 6, 3)
    failed = {row["source"]: row["code"] for row in index(tmp_path / "out") if "code" in row}
    assert failed.keys() == {str(bad), str(tmp_path / "missing.mp4"), str(cut)}
    assert (failed[str(bad)], failed[str(tmp_path / "missing.mp4")]) == ("NOT_MEDIA", "NOT_FOUND")
    errors = capsys.readouterr().err
    assert all(f"{name}: {code}: " in errors for name, code in failed.items())
    assert "features 5/5" in errors


def test_names_that_are_no_text_come_through(videos, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9\n.mp4"
    shutil.copy(videos[0], name)
    extract_features(network(), os.fsdecode(name), tmp_path / "out", **HERE)
    assert {row["source"] for row in index(tmp_path / "out")} == {os.fsdecode(name)}
    assert index(tmp_path / "out")[0]["file"].isascii()
    assert len(vectors(tmp_path / "out")) == 3


def test_a_full_disk_ends_the_run_and_keeps_what_was_made(videos, tmp_path, monkeypatch):
    from marey import files

    model, sync, count = network(), files._sync, []

    def full(path):
        count.append(path)
        if len(count) > 3:
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(files, "_sync", full)
    with pytest.raises(EnvironmentFault) as error:
        extract_features(model, videos, tmp_path, **HERE)
    assert error.value.code == "DISK_FULL"
    monkeypatch.undo()
    found = extract_features(model, videos, tmp_path, resume=True, **HERE)
    assert (found.skipped, found.done, found.rows) == (2, 4, 18)


# The command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best.safetensors"
    save_checkpoint(path, network(), preprocess=CLIPS, class_names=None, recipe={}, metrics={})
    return path


def run(monkeypatch, *words):
    """The command line in this process: its exit code."""
    from marey import cli

    monkeypatch.setattr("sys.argv", ["marey", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_ends_with_3_when_files_failed_and_prints_a_summary(
    videos, checkpoint, tmp_path, monkeypatch, capsys
):
    words = ["--checkpoint", checkpoint, "--out", tmp_path / "out", "--workers", 0, "--device", "cpu"]
    assert run(monkeypatch, "features", videos[0], videos[1], *words, "--per", "second", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(tmp_path / "out"),
        "done": 2,
        "skipped": 0,
        "failed": 0,
        "rows": 6,
        "bad": 0,
    }
    again = [*words, "--per", "1s", "--resume"]
    assert run(monkeypatch, "features", videos[0], tmp_path / "no.mp4", *again) == 3
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert (shown["skipped"], shown["failed"], shown["rows"]) == ("1", "1", "6")
    assert run(monkeypatch, "features", videos[0], *words, "--per", "1s") == 2
    assert "FOLDER_USED" in capsys.readouterr().err
    assert run(monkeypatch, "features", videos[0], *words, "--per", "soon", "--resume") == 2
    assert run(monkeypatch, "features", videos[0], *words, "--shard", "2/2") == 2
    assert run(monkeypatch, "features", videos[0], "--out", tmp_path / "x") == 2


@pytest.mark.slow
def test_runs_killed_at_any_moment_lose_one_video_at_most(videos, checkpoint, tmp_path):
    """SIGKILL after the first, third and fifth finished video, SIGINT in the next run, then to the end."""
    words = [sys.executable, "-m", "marey", "features", *map(str, videos), "--checkpoint", str(checkpoint)]
    words += ["--per", "0.025", "--device", "cpu", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, broken = [*words, str(tmp_path / "whole"), "--workers", "0"], tmp_path / "broken"
    subprocess.run(whole, env=environment, check=True, capture_output=True)
    again = [*words, str(broken), "--resume", "--json", "--workers"]

    def finished():
        return sum(path.read_bytes().count(b'"spans"') for path in broken.glob("done/*.jsonl"))

    ends = []
    for number, kind in ((1, signal.SIGKILL), (3, signal.SIGKILL), (5, signal.SIGINT)):
        workers = "1" if kind == signal.SIGINT else "0"
        process = subprocess.Popen([*again, workers], env=environment, stderr=subprocess.PIPE)
        while finished() < number and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(kind)
        _, errors = process.communicate(timeout=60)
        ends.append(process.returncode)
    assert ends[:2] == [-signal.SIGKILL] * 2
    if ends[2]:  # else it was done before the signal came
        assert ends[2] == 130 and b"INTERRUPTED" in errors
    last = subprocess.run([*again, "0"], env=environment, capture_output=True)
    found = json.loads(last.stdout)
    assert (found["done"] + found["skipped"], found["failed"], found["bad"]) == (6, 0, 0)
    assert found["skipped"] >= 5
    assert outputs(tmp_path / "whole") == outputs(broken)
