"""Records from own videos: the right bytes and labels, whatever was stopped; taggers read them."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import marey
from marey.data.feature_card import read_feature_card
from marey.data.projection import read_projections
from marey.data.shards import list_shards, open_shards
from marey.data.youtube8m import Layout, dequantise, quantise, read_videos
from marey.errors import DataError, UsageError
from marey.jobs import records as job
from marey.jobs.extract import extract_features
from marey.jobs.manifest import Shard
from marey.jobs.records import extract_records
from marey.jobs.setup_features import open_records
from marey.jobs.tags import evaluate_tags
from marey.recipes.schema import Records
from marey.video.preprocess import Preprocess, normalize
from marey.video.synthetic import render_moving_shapes
from marey.weights.native import save_checkpoint

CLIPS = Preprocess(frames=4, sampling="segments", short_side=36, crop=32)
HERE = {"workers": 0, "device": "cpu", "quiet": True}
WIDTH = 32


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six videos of 30 frames at 12 frames per second, and a list of them with two labels each."""
    folder = tmp_path_factory.mktemp("videos")
    render_moving_shapes(folder, train=1, val=0, test=0, size=(48, 40), frames=30)
    paths = sorted(folder.rglob("*.mp4"))
    lines = [f"{path.relative_to(folder)},{'odd' if i % 2 else 'even'};all" for i, path in enumerate(paths)]
    (folder / "list.csv").write_text("\n".join(["path,label", *lines]))
    return folder / "list.csv"


def network(seed=0):
    torch.manual_seed(seed)
    model = marey.create_model("tsn_r18", 5, width=4, segments=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    model.preprocess = CLIPS
    return model.eval()


def read(folder, **layout):
    card = read_feature_card(folder)
    given = Layout(rgb=card.rgb, audio=card.audio, num_classes=card.num_classes or 1, **layout)
    assert [path.rpartition("/")[2] for path in list_shards(folder)] == list(card.shards)
    return [video for path in list_shards(folder) for video in read_videos(path, given)]


def names(videos):
    return [line.partition(",")[0] for line in videos.read_text().splitlines()[1:]]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "features.json"}


def test_records_hold_features_as_bytes_and_the_lists_labels(videos, tmp_path):
    found = extract_records(network(), videos, tmp_path / "out", per=0.5, videos_per_file=4, **HERE)
    assert (found.videos, found.labelled, found.rows, found.failed) == (6, 6, 30, 0)
    assert (found.rgb, found.audio, found.extracted.done) == (WIDTH, 0, 6)
    extract_features(
        network(), [videos.parent / name for name in names(videos)], tmp_path / "raw", per=0.5, **HERE
    )
    index = [json.loads(line) for line in (tmp_path / "raw" / "index.jsonl").open()]
    raw = {row["source"]: load_file(tmp_path / "raw" / row["file"])["features"] for row in index}
    rows = np.concatenate(list(raw.values()))
    scale = np.sqrt(rows.var(0, ddof=1) + 1e-4 * rows.var(0, ddof=1).mean())
    got = {video.id: video for video in read(found.folder)}
    cut = 0
    for number, name in enumerate(names(videos)):
        want = (raw[str(videos.parent / name)] - rows.mean(0)) / scale
        cut += (np.abs(want) > 2).sum()
        stored = np.rint((want.clip(-2, 2) + 2) * 255 / 4)
        assert np.abs(got[name].rgb - stored).max() <= 1, "rounding of the scale may move a value by one step"
        assert (got[name].rgb != stored).mean() < 0.01
        assert got[name].labels == (0, 1 + number % 2)
    assert found.cut_off == pytest.approx(cut / rows.size, abs=0.002)
    card = read_feature_card(found.folder)
    assert (card.class_names, card.num_classes, card.seconds, card.longest) == (
        ("all", "even", "odd"),
        3,
        0.5,
        5,
    )
    assert card.made_by["rgb"]["weights_sha256"]
    want = {"frames": 4, "sampling": "segments", "short_side": 36, "crop": 32}
    assert card.made_by["rgb"]["preprocess"] == want, "and no field that this version happens to have"
    assert (found.folder / "classes.txt").read_text() == "all\neven\nodd\n"
    order = [video.id for video in read(found.folder)]
    assert order != names(videos), "neighbours in the list are not neighbours in the records"
    assert sorted(order) == sorted(names(videos))


def test_a_folder_per_class_gives_labelled_records(videos, tmp_path):
    for number, name in enumerate(names(videos)[:3]):
        path = tmp_path / "clips" / ("run" if number else "jump") / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos.parent / name, path)
    found = extract_records(network(), tmp_path / "clips", tmp_path / "out", per=0.5, **HERE)
    assert (found.videos, found.labelled) == (3, 3)
    assert {video.id[-5:]: video.labels for video in read(found.folder)} == {
        "0.mp4": (0,),
        "1.mp4": (1,),
        "2.mp4": (1,),
    }
    assert (found.folder / "classes.txt").read_text() == "jump\nrun\n"


def test_axes_are_kept_for_other_videos(videos, tmp_path):
    first = extract_records(network(), videos, tmp_path / "train", per=0.5, pca=6, **HERE)
    assert first.rgb == 6
    rows = np.concatenate(
        [load_file(path)["features"] for path in (tmp_path / "train" / "data").rglob("*.s*")]
    )
    numbers = read_projections(first.folder / "projection.safetensors")["rgb"](rows)
    assert np.cov(numbers.T) == pytest.approx(np.eye(6), abs=0.01)
    stored = np.concatenate([video.rgb for video in read(first.folder)])
    assert sorted(map(bytes, stored)) == sorted(map(bytes, quantise(numbers)))
    other = [videos.parent / name for name in names(videos)[:2]]
    second = extract_records(
        network(),
        other,
        tmp_path / "test",
        per=0.5,
        projection=first.folder / "projection.safetensors",
        **HERE,
    )
    cards = [read_feature_card(one.folder) for one in (first, second)]
    assert cards[0].fingerprint == cards[1].fingerprint
    assert (cards[1].num_classes, cards[1].labelled) == (0, 0)
    before = {video.id: video.rgb for video in read(first.folder)}
    for video in read(second.folder):
        assert (video.rgb == before[video.id.removeprefix(f"{videos.parent}/")]).all()
    own = extract_records(network(), other, tmp_path / "own", per=0.5, pca=6, **HERE)
    assert read_feature_card(own.folder).fingerprint != cards[0].fingerprint


def test_a_picture_a_row_is_one_frame_of_each_second(videos, tmp_path):
    model = network()
    extract_features(model, videos.parent / names(videos)[0], tmp_path, per=1.0, frames=1, **HERE)
    (path,) = (tmp_path / "data").rglob("*.safetensors")
    got = load_file(path)["features"]
    with marey.read_video(videos.parent / names(videos)[0]) as video, torch.inference_mode():
        for row, middle in zip(got, (6, 18, 27), strict=True):
            frame = video.frames([middle])
            view = Preprocess(frames=1, sampling="segments", short_side=36, crop=32)
            clip = view.views(video, view.val, range(middle, middle + 1)).batch()
            assert clip.shape == (1, 1, 32, 32, 3)
            assert frame.shape[0] == 1
            want = model.embed(normalize(clip, view))[0].numpy()
            assert np.abs(row - want).max() < 1e-5 * np.abs(want).max()
    with pytest.raises(UsageError) as error:
        extract_features(marey.create_model("tsm_r18", 5, width=4), videos, tmp_path / "x", frames=1, **HERE)
    assert error.value.code == "FRAMES"


def test_audio_is_merged_by_name(videos, tmp_path):
    rng = np.random.default_rng(0)
    own = {name: rng.normal(5, 3, (4, 3)).astype(np.float32) for name in names(videos)[1:]}
    np.savez(tmp_path / "floats.npz", **own)
    found = extract_records(
        network(), videos, tmp_path / "out", per=0.5, audio=tmp_path / "floats.npz", **HERE
    )
    assert (found.audio, found.without_audio) == (3, 1)
    rows = np.concatenate(list(own.values()))
    for video in read(found.folder):
        if video.id not in own:
            assert video.audio.shape == (0, 3)
            continue
        want = (own[video.id] - rows.mean(0)) / rows.std(0, ddof=1)
        assert dequantise(video.audio) == pytest.approx(want.clip(-2, 2), abs=0.02)
    stored = {name: rng.integers(0, 256, (2, 5), np.uint8) for name in names(videos)}
    np.savez(tmp_path / "bytes.npz", **stored)
    again = extract_records(
        network(), videos, tmp_path / "out", per=0.5, audio=tmp_path / "bytes.npz", resume=True, **HERE
    )
    assert (again.audio, again.without_audio, again.extracted.skipped) == (5, 0, 6)
    assert all((video.audio == stored[video.id]).all() for video in read(again.folder))
    with pytest.raises(UsageError, match="not for audio") as error:
        extract_records(
            network(), videos, tmp_path / "out", per=0.5, audio=tmp_path / "floats.npz", resume=True,
            projection=again.folder / "projection.safetensors", **HERE,
        )  # fmt: skip
    assert error.value.code == "PROJECTION"


def test_a_stopped_run_goes_on_and_what_is_there_is_not_written_again(videos, tmp_path, monkeypatch):
    given = {"model": network(), "sources": videos, "per": 0.5, "videos_per_file": 2} | HERE
    whole = extract_records(out=tmp_path / "whole", **given)
    write, done = job._write_file, []

    def stopped(path, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path.name)
        return write(path, *rest)

    monkeypatch.setattr(job, "_write_file", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract_records(out=tmp_path / "broken", **given)
    assert list_shards_or_none(tmp_path / "broken" / "records") == []
    assert read_feature_card(tmp_path / "broken" / "records") is None
    monkeypatch.setattr(
        job, "_write_file", lambda path, *rest: (done.append(path.name), write(path, *rest))[1]
    )
    found = extract_records(out=tmp_path / "broken", resume=True, **given)
    assert done == ["frames-0000.tfrecord", "frames-0001.tfrecord", "frames-0002.tfrecord"]
    assert files(found.folder) == files(whole.folder)
    assert found._replace(extracted=None, folder=None) == whole._replace(extracted=None, folder=None)
    assert extract_records(out=tmp_path / "broken", resume=True, **given).rows == found.rows
    assert len(done) == 3
    given["videos_per_file"] = 5
    fewer = extract_records(out=tmp_path / "broken", resume=True, **given)
    assert len(list_shards(fewer.folder)) == 2


def list_shards_or_none(folder):
    try:
        return list_shards(folder)
    except DataError:
        return []


def test_parts_extract_and_a_last_run_writes(videos, tmp_path):
    given = {"model": network(), "sources": videos, "per": 0.5} | HERE
    parts = [extract_records(out=tmp_path / "out", shard=Shard(i, 2), **given) for i in range(2)]
    assert [part.folder for part in parts] == [None, None]
    assert sum(part.extracted.done for part in parts) == 6
    last = extract_records(out=tmp_path / "out", resume=True, **given)
    assert (last.extracted.skipped, last.videos) == (6, 6)
    assert files(last.folder) == files(extract_records(out=tmp_path / "one", **given).folder)


def test_videos_that_cannot_be_read_are_counted(videos, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"\0" * 5000)
    found = extract_records(network(), [videos, bad], tmp_path / "out", per=0.5, **HERE)
    assert (found.videos, found.failed, found.extracted.failed) == (6, 1, 1)
    assert read_feature_card(found.folder).failed == 1
    with pytest.raises(DataError) as error:
        extract_records(network(), bad, tmp_path / "none", per=0.5, **HERE)
    assert error.value.code == "LIST_EMPTY"


def test_a_training_says_when_videos_have_more_frames_than_it_takes(videos, tmp_path, capsys):
    extract_records(network(), videos, tmp_path, per=0.5, **HERE)
    open_records(Records(train=str(tmp_path), max_frames=5), training=True)
    assert capsys.readouterr().err == ""
    open_records(Records(train=str(tmp_path), max_frames=4), training=True)
    assert "has 5 frames, of which the first 4" in capsys.readouterr().err


def test_only_what_differs_from_the_defaults_counts():
    usual = {"a": 1, "b": {"c": 2, "d": None}, "e": None}
    assert job.changed({"a": 1, "b": {"c": 3, "d": None}, "f": {}}, usual) == {"b": {"c": 3}, "f": {}}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"pca": 33}, "PROJECTION"),
        ({"pca": 0}, "PROJECTION"),
        ({"pca": 2, "projection": "x"}, "PROJECTION"),
        ({"projection": "missing"}, "NOT_FOUND"),
        ({"audio": "missing"}, "NOT_FOUND"),
    ],
)
def test_options_that_cannot_be_are_refused(videos, tmp_path, options, code):
    with pytest.raises((UsageError, DataError)) as error:
        extract_records(network(), videos, tmp_path, per=0.5, **options, **HERE)
    assert error.value.code == code


def test_the_command_writes_records_that_a_tagger_reads(videos, tmp_path, monkeypatch, capsys):
    from marey import cli

    checkpoint = tmp_path / "best.safetensors"
    save_checkpoint(checkpoint, network(), preprocess=CLIPS, class_names=None, recipe={}, metrics={})

    def run(*words):
        monkeypatch.setattr(
            "sys.argv", ["marey", "features", *map(str, words), "--workers", "0", "--device", "cpu"]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    words = [videos, "--checkpoint", checkpoint, "--out", tmp_path / "out"]
    assert run(*words, "--pca", "4") == 2
    assert "--format youtube8m" in capsys.readouterr().err
    assert run(*words, "--format", "youtube8m", "--pca", "4", "--frames", "1", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["videos"], shown["rows"], shown["rgb"]) == (6, 18, 4)
    tagger = marey.create_model(
        "nextvlad", 3, rgb=4, audio=0, whitened=False, cluster_size=4, groups=2, hidden_size=32
    )
    assert list_shards(tmp_path / "out") == list_shards(shown["folder"])
    found = evaluate_tags(tagger, open_shards(list_shards(tmp_path / "out")))
    assert (found["evaluated"], found["comparable"]) == (6, True)
    assert run(*words, "--format", "youtube8m", "--frames", "1", "--resume") == 0
    assert dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())["rgb"] == str(WIDTH)
    assert run(*words, "--format", "youtube8m", "--frames", "1", "--resume", "--shard", "0/2") == 0
    assert "without --shard" in capsys.readouterr().err


def test_pictures_of_a_2d_file_become_features(videos, tmp_path, monkeypatch, capsys):
    """A ResNet of torchvision's layout, as `--model tsn_r18 --checkpoint resnet18.pth`."""
    from torchvision.models import resnet18

    from marey import cli

    torch.manual_seed(0)
    theirs = resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    one = shutil.copy(videos.parent / names(videos)[0], tmp_path / "one.mp4")
    words = [
        "features",
        one,
        "--model",
        "tsn_r18",
        "--checkpoint",
        tmp_path / "resnet18.pth",
        "--frames",
        "1",
    ]
    words += ["--per", "second", "--workers", "0", "--device", "cpu", "--out", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", ["marey", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, capsys.readouterr().err
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["marey", *map(str, words), "--resume", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert json.loads(capsys.readouterr().out)["skipped"] == 1, (
        "the same weights, though without a classifier"
    )
    (path,) = (tmp_path / "out" / "data").rglob("*.safetensors")
    got = load_file(path)["features"]
    clips = marey.create_model("tsn_r18").preprocess
    with marey.read_video(one) as video, torch.inference_mode():
        picture = normalize(clips.views(video, clips.val, range(6, 7)).batch()[:, :1], clips)[:, :, 0]
        theirs.fc = torch.nn.Identity()
        want = theirs(picture)[0].numpy()
    assert got.shape == (3, 512)
    assert np.abs(got[0] - want).max() < 1e-4 * np.abs(want).max()
