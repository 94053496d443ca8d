"""Accuracy over resolutions: each point is fed and tested as it says, at the cost of the real network."""

import csv
import json
import re
from pathlib import Path

import msgspec
import pytest
import torch
from PIL import Image

import marey
from marey import cli
from marey.errors import UsageError
from marey.jobs import resolution as job
from marey.jobs.evaluate import test as evaluate
from marey.jobs.resolution import Gap, at_resolution, compare, gaps, lines, rows, views_of
from marey.jobs.resolution_page import as_page, write
from marey.models.cost import macs, parameters
from marey.recipes.schema import Data, Distill, Model, Recipe, Training
from marey.video.preprocess import Preprocess, Protocol
from marey.video.synthetic import CLASSES, render_moving_shapes
from marey.weights.native import save_checkpoint

CLIPS = Preprocess(frames=2, sampling="segments", short_side=36, crop=32)
TAUGHT = msgspec.structs.replace(CLIPS, input_size=16)
QUICK = {"rounds": 1, "batch": 2, "quiet": True, "device": "cpu"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    render_moving_shapes(folder, train=2, val=0, test=0, size=(48, 40), frames=6)
    return folder / "train"


def run_of(folder, videos, clips, *, teacher=None, seed=0, name="tsn_r18"):
    """A run folder with a checkpoint of a drawn network; the path of the folder."""
    torch.manual_seed(seed)
    model = marey.create_model(name, len(CLASSES), width=4, segments=2)
    taught = Distill(teacher=Model(name=teacher), feature_mse=1.0) if teacher else None
    recipe = Recipe(
        name="test.run",
        model=Model(name=name, num_classes=len(CLASSES), options={"width": 4, "segments": 2}),
        data=Data(test=str(videos), workers=0, multi_label=False),
        clips=clips,
        training=Training(epochs=1),
        distill=taught,
    )
    save_checkpoint(
        folder / "checkpoints" / "best.safetensors",
        model,
        preprocess=clips,
        class_names=sorted(CLASSES),
        recipe=msgspec.to_builtins(recipe),
        metrics={},
    )
    (folder / "recipe.json").write_bytes(msgspec.json.encode(recipe))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, videos):
    """A plain network and a student of another, each with results."""
    folder = tmp_path_factory.mktemp("runs")
    plain = run_of(folder / "plain", videos, CLIPS)
    taught = run_of(folder / "taught", videos, TAUGHT, teacher="tsn_r50", seed=1)
    for run in (plain, taught):
        evaluate(run / "recipe.json", run / "checkpoints/best.safetensors", accelerator="cpu")
    return [str(plain), str(taught)]


def results_of(run):
    return json.loads(Path(run, "results.json").read_text())


def by_hand(run, **clips):
    """The metrics of `marey test` with these values."""
    overrides = [f"clips.{key}={value}" for key, value in clips.items()]
    found = evaluate(
        f"{run}/recipe.json",
        f"{run}/checkpoints/best.safetensors",
        overrides,
        out=f"{run}/other/x.json",
        accelerator="cpu",
    )
    return found["metrics"]


# Resolutions


@pytest.mark.parametrize(("side", "short"), [(224, 256), (160, 180), (112, 128), (96, 108), (72, 80)])
def test_short_sides_follow_the_crop_as_reskds_do(side, short):
    clips = at_resolution(Preprocess(short_side=256, crop=224), side)
    assert (clips.short_side, clips.crop, clips.input_size) == (short, side, None)
    small = at_resolution(Preprocess(short_side=128, crop=112), side)
    assert small.crop == side and small.short_side == pytest.approx(short, abs=4)


def test_a_reduced_square_is_cut_as_before():
    clips = Preprocess(short_side=256, crop=224, input_size=112)
    other = at_resolution(clips, 96)
    assert (other.short_side, other.crop, other.input_size) == (256, 224, 96)
    assert at_resolution(clips, 112) == clips


def test_protocols_follow_and_what_is_equal_stays_equal():
    clips = Preprocess(
        short_side=256,
        crop=224,
        train_short_side=(256, 320),
        val=Protocol(),
        test=Protocol(crops="three", crop=256, short_side=256, clips=4),
    )
    small = at_resolution(clips, 112)
    assert (small.test.crop, small.test.short_side, small.val.crop) == (128, 128, None)
    assert small.train_short_side == (128, 160)
    whole = msgspec.structs.replace(clips, test=Protocol(crops="three", crop=224, short_side=224))
    assert at_resolution(whole, 112).test.short_side == 112
    for side in range(16, 300, 7):
        at_resolution(clips, side), at_resolution(whole, side)  # each makes sense, or this raises
    assert at_resolution(clips, 224) == clips


def test_views_are_clips_times_crops():
    clips = Preprocess(test=Protocol(clips=10, crops="three", crop=256))
    assert (views_of(clips, clips.test), views_of(clips, clips.val)) == (30, 1)
    twice = Preprocess(sampling="segments", short_side=224, test=Protocol(twice=True, crops="ten"))
    assert views_of(twice, twice.test) == 20


# Points


def test_without_a_test_the_results_of_the_runs_are_taken(runs):
    found = compare(runs, **QUICK)
    plain, taught = found.points
    assert (plain.curve, taught.curve) == ("tsn_r18", "tsn_r18, taught by tsn_r50")
    assert [p.resolution for p in found.points] == [32, 16]
    for point, run in zip(found.points, runs, strict=True):
        results = results_of(run)
        assert point.accuracy == results["metrics"]["top1"]
        assert (point.evaluated, point.listed) == (12, 12)
        assert point.decode_ms is None and point.milliseconds > 0 and point.views_per_second > 0
    assert found.notes == () and found.gaps == ()


def test_cost_is_counted_on_the_network_at_the_side_it_sees(runs):
    network = marey.create_model("tsn_r18", len(CLASSES), width=4, segments=2)
    points = compare(runs, resolutions=(32, 16), **QUICK).points
    assert len({(p.resolution, p.milliseconds, p.views_per_second) for p in points}) == 2, "timed once"
    for point in points:
        assert point.gmacs == macs(network, (3, 2, point.resolution, point.resolution)) / 1e9
        several = msgspec.structs.replace(point, views=30)
        assert several.video_gmacs == 30 * point.gmacs
        assert several.videos_per_second == point.videos_per_second / 30 == point.views_per_second / 30
        assert point.parameters == parameters(network)


def test_each_is_tested_at_each_resolution_by_its_own_path(runs, monkeypatch):
    losses = {}  # finer than an accuracy on twelve clips

    def noted(recipe, checkpoint, **options):
        found = evaluate(recipe, checkpoint, **options)
        losses[checkpoint.split("/")[-3], job.seen_side(recipe.clips)] = found["metrics"]
        return found

    monkeypatch.setattr(job, "test", noted)
    found = compare(runs, resolutions=(32, 16), **QUICK)
    plain, taught = runs
    assert losses == {
        ("plain", 32): by_hand(plain),
        ("plain", 16): by_hand(plain, crop=16, short_side=16),
        ("taught", 32): by_hand(taught, input_size=32),
        ("taught", 16): by_hand(taught),
    }
    assert len({metrics["loss"] for metrics in losses.values()}) == 4
    for point in found.points:
        run = "taught" if point.distilled else "plain"
        assert point.accuracy == losses[run, point.resolution]["top1"]
    assert all(point.decode_ms > 0 for point in found.points)
    cut = {(p.curve, p.resolution): (p.short_side, p.crop, p.trained) for p in found.points}
    assert cut["tsn_r18, trained at 32", 16] == (16, 16, 32)
    assert cut["tsn_r18, taught by tsn_r50, trained at 16", 16] == (36, 32, 16)
    assert found.gaps == (), "neither was trained where the other was"


def test_another_list_is_tested_and_a_kept_test_is_not_made_again(runs, videos, tmp_path, monkeypatch):
    first = sorted(videos.rglob("*.mp4"))[:3]
    names = sorted(CLASSES)
    text = "".join(f"{path},{names.index(path.parent.name)}\n" for path in first)
    (tmp_path / "some.csv").write_text(f"path,label\n{text}")
    found = compare(runs[:1], data=tmp_path / "some.csv", kept=tmp_path / "kept", **QUICK)
    assert found.points[0].listed == 3 and found.points[0].resolution == 32

    def never(*_, **__):
        raise AssertionError("tested again")

    monkeypatch.setattr(job, "test", never)
    again = compare(runs[:1], data=tmp_path / "some.csv", kept=tmp_path / "kept", **QUICK)
    assert again.points[0].accuracy == found.points[0].accuracy
    with pytest.raises(AssertionError, match="tested again"):
        compare(runs[:1], data=tmp_path / "some.csv", resolutions=(16,), kept=tmp_path / "kept", **QUICK)


def test_a_checkpoint_and_a_label_name_a_curve(runs):
    found = compare([f"big={runs[0]}/checkpoints/best.safetensors", runs[1]], **QUICK)
    assert [p.curve for p in found.points] == ["big", "tsn_r18, taught by tsn_r50"]


def test_what_distilling_gains_is_a_difference_of_means():
    class Row:
        def __init__(self, distilled, resolution, accuracy, model="a", trained=None):
            self.model, self.distilled, self.trained = model, distilled, trained or resolution
            self.resolution, self.accuracy = resolution, accuracy

    points = [Row(None, 112, 0.5), Row(None, 112, 0.6), Row("t", 112, 0.7), Row("t", 96, 0.7)]
    points += [Row("t", 112, 0.1, "b"), Row(None, 224, 0.9), Row(None, 112, 0.1, trained=224)]
    (gap,) = gaps(points)
    assert (gap.model, gap.teacher, gap.resolution, gap.runs) == ("a", "t", 112, (1, 2))
    assert gap.gain == pytest.approx(0.15)
    assert isinstance(gap, Gap) and "+15.0 points" in job.gap_line(gap)


def test_lists_that_differ_and_clips_that_are_missing_are_told(runs, tmp_path, videos):
    other = run_of(tmp_path / "other", videos, CLIPS)
    results = results_of(runs[0])
    results |= {"fingerprint": "other", "list": "elsewhere.csv", "evaluated": 11, "checkpoint": None}
    (other / "results.json").write_text(json.dumps(results))
    notes = compare([*runs, str(other)], **QUICK).notes
    assert any("different lists" in note and "elsewhere.csv" in note for note in notes)
    assert any("11 of 12 clips" in note for note in notes)


# What cannot be compared


def test_a_run_without_results_says_what_to_do(videos, tmp_path):
    run = run_of(tmp_path / "new", videos, CLIPS)
    with pytest.raises(UsageError, match="marey test") as caught:
        compare([str(run)], **QUICK)
    assert caught.value.code == "RESOLUTION_RESULTS"


def test_results_of_other_weights_or_another_protocol_are_not_taken(runs, videos, tmp_path):
    results = results_of(runs[0])
    run = run_of(tmp_path / "new", videos, CLIPS)
    (run / "results.json").write_text(json.dumps(results))  # names the other run's checkpoint
    with pytest.raises(UsageError, match="has no results of"):
        compare([str(run)], **QUICK)
    results["checkpoint"] = None
    results["protocol"]["short_side"] = 40
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(UsageError, match="measured otherwise"):
        compare([str(run)], **QUICK)


def test_accuracies_of_two_kinds_are_refused(runs, videos, tmp_path):
    run = run_of(tmp_path / "new", videos, CLIPS)
    results = results_of(runs[0])
    results |= {"checkpoint": None, "metrics": {"map": 0.5}}
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(UsageError) as caught:
        compare([runs[0], str(run)], **QUICK)
    assert caught.value.code == "RESOLUTION_METRIC"


# What is written


def test_the_table_the_picture_and_the_page_hold_every_point(runs, tmp_path, capsys, monkeypatch):
    names = ["report.html", "report.png", "report.svg", "report.csv", "report.json"]
    files = [tmp_path / name for name in names]
    options = [part for file in files for part in ("--out", str(file))]
    command = ["marey", "report", "resolution", *runs, "--resolutions", "32,16", "--device", "cpu", *options]
    monkeypatch.setattr("sys.argv", [*command, "--rounds", "1", "--batch", "2"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.count("tsn_r18, taught by tsn_r50, trained at 16  ") == 2
    table = list(csv.DictReader(files[3].open()))
    assert [row["resolution"] for row in table] == ["16", "32", "16", "32"]
    assert json.loads(files[4].read_text())["points"][0]["accuracy"] == float(table[0]["accuracy"])
    assert Image.open(files[1]).size[0] > 1000
    page = files[0].read_text()
    assert "<svg" in page and page.count("<tr>") == 5 and not re.search(r"https?://", page)
    for row in table:
        assert f">{row['resolution']}<" in page and f"{100 * float(row['accuracy']):.1f}%" in page
    assert "taught by tsn_r50" in page
    assert "$" not in page[page.index("<svg") : page.index("</svg>")], "ticks are plain numbers"


def test_names_are_text_in_the_page(runs):
    found = compare([f"<b>big={runs[0]}"], **QUICK)
    page = as_page(found)
    assert "<b>big" not in page and "&lt;b&gt;big" in page
    assert lines(found)[1].startswith("<b>big") and rows(found)[0]["curve"] == "<b>big"


def test_a_file_of_another_kind_and_wrong_sides_are_refused_at_once(runs, tmp_path, monkeypatch, capsys):
    with pytest.raises(UsageError, match=r"\.html"):
        write(compare(runs[:1], **QUICK), tmp_path / "report.pdf")
    for options in (["--out", "report.pdf"], ["--resolutions", "112;96"]):
        monkeypatch.setattr("sys.argv", ["marey", "report", "resolution", "nowhere", *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
    assert "OUT_SUFFIX" in (text := capsys.readouterr().err) and "RESOLUTION_LIST" in text
