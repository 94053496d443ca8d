"""Predictions of many videos: those of `predict`, whatever is bad, stopped or shared on the way."""

import json
import os
import shutil
import signal

import pytest
import torch

import marey
from marey.errors import MareyError, UsageError
from marey.jobs import pieces
from marey.jobs import predict_many as job
from marey.jobs.manifest import Shard
from marey.jobs.output import write_predictions
from marey.jobs.predict import predict
from marey.jobs.predict_many import predict_many
from marey.video.preprocess import Preprocess, Protocol
from marey.weights.native import save_checkpoint

CLIPS = Preprocess(
    frames=4, interval=2, short_side=36, crop=32, test=Protocol(clips=3, crops="three", crop=36)
)
HERE = {"workers": 0, "device": "cpu", "quiet": True}


def network(seed=0, **options):
    torch.manual_seed(seed)
    model = marey.create_model("tsm_r18", 5, width=4, segments=4, **options)
    model.preprocess = CLIPS
    return model.eval()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def wanted(folder, sources, **options):
    """The file that `predict` gives."""
    for _ in write_predictions(predict(network(), sources, device="cpu", **options), folder / "want.jsonl"):
        pass
    return lines(folder / "want.jsonl")


@pytest.mark.parametrize("options", [{}, {"every": 0.5}, {"every": 1.0, "span": 2.0, "top": 2}], ids=str)
@pytest.mark.parametrize("piece", [256, 8])
def test_rows_are_those_of_predict(videos, tmp_path, monkeypatch, options, piece):
    monkeypatch.setattr(pieces, "PIECE", piece)  # 8: a window or two at a time
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"\0" * 5000)
    sources = [videos[3], videos[0], bad, videos[1]]
    found = predict_many(network(), sources, tmp_path / "out.jsonl", **HERE | options)
    assert found == (tmp_path / "out.jsonl", 3, 0, 1, 0)
    assert lines(tmp_path / "out.jsonl") == wanted(tmp_path, sources, **options)


def test_workers_change_nothing(videos, tmp_path):
    predict_many(network(), videos[:2], tmp_path / "out.jsonl", **HERE | {"workers": 1})
    assert lines(tmp_path / "out.jsonl") == wanted(tmp_path, videos[:2])


def test_parts_leave_the_file_to_the_one_that_ends_last(videos, tmp_path):
    out = tmp_path / "out.jsonl"
    found = [predict_many(network(), videos, out, shard=Shard(i, 3), **HERE) for i in (2, 0, 1)]
    assert [one.out for one in found] == [None, None, out]
    assert [one.left for one in found][-1] == 0 < found[1].left < found[0].left
    assert sum(one.done for one in found) == len(videos)
    assert lines(out) == wanted(tmp_path, videos)


@pytest.mark.parametrize("options", [{}, {"every": 0.5}], ids=str)
def test_a_stopped_run_has_kept_what_it_scored_and_goes_on(videos, tmp_path, monkeypatch, options):
    score, seen, out = job.Scorer.__call__, [], tmp_path / "out.jsonl"
    stop_at = 2 if not options else 12  # of five windows each

    def stopping(self, views):
        seen.append(len(views))
        if len(seen) == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return score(self, views)

    monkeypatch.setattr(job.Scorer, "__call__", stopping)
    with pytest.raises(MareyError, match=r"[23] of 6.*--resume") as error:
        predict_many(network(), videos, out, **HERE | options)
    assert (error.value.code, error.value.exit_code) == ("INTERRUPTED", 130)
    assert not out.exists()
    before = len(seen)
    found = predict_many(network(), videos, out, resume=True, **HERE | options)
    assert found.skipped in (2, 3) and found.done + found.skipped == 6
    assert len(seen) - before == found.done * (5 if options else 1)
    monkeypatch.undo()
    assert lines(out) == wanted(tmp_path, videos, **options)


def test_new_and_changed_videos_are_scored_when_it_goes_on(videos, tmp_path):
    mine = [shutil.copy(path, tmp_path / f"{i}.mp4") for i, path in enumerate(videos[:3])]
    out = tmp_path / "out.jsonl"
    predict_many(network(), mine[:2], out, **HERE)
    shutil.copy(videos[5], mine[1])
    found = predict_many(network(), mine, out, resume=True, **HERE)
    assert (found.done, found.skipped) == (2, 1)
    assert lines(out) == wanted(tmp_path, mine)


def test_another_network_or_setting_and_a_used_name_are_refused(videos, tmp_path):
    out = tmp_path / "out.jsonl"
    predict_many(network(), videos[:1], out, **HERE)
    with pytest.raises(UsageError, match="--resume") as error:
        predict_many(network(), videos[:1], out, **HERE)
    assert error.value.code == "FOLDER_USED"
    for model, options, named in (
        (network(1), {}, "weights_sha256"),
        (network(shift_div=4), {}, "options.shift_div"),  # which no tensor shows
        (network(), {"top": 2}, "top"),
    ):
        with pytest.raises(UsageError, match=named) as error:
            predict_many(model, videos[:1], out, resume=True, **HERE | options)
        assert error.value.code == "RESUME_MISMATCH"
    with pytest.raises(UsageError) as error:
        predict_many(network(), videos[:1], tmp_path / "out.txt", **HERE)
    assert error.value.code == "OUT_SUFFIX" and not (tmp_path / "out.txt.work").exists()


def test_the_command_prints_a_summary_and_ends_with_3_where_files_failed(
    videos, tmp_path, monkeypatch, capsys
):
    from marey import cli

    def run(*words):
        monkeypatch.setattr("sys.argv", ["marey", "predict", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    save_checkpoint(
        tmp_path / "best.safetensors", network(), preprocess=CLIPS, class_names=None, recipe={}, metrics={}
    )
    words = ["--checkpoint", tmp_path / "best.safetensors", "--device", "cpu", "--workers", 0]
    assert run(videos[0], *words) == 2
    assert "--out" in capsys.readouterr().err
    out = tmp_path / "out.csv"
    assert run(videos[0], tmp_path / "no.mp4", *words, "--out", out, "--json") == 3
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"out": str(out), "done": 1, "skipped": 0, "failed": 1, "left": 0}
    assert len(out.read_text().splitlines()) == 3
    assert run(videos[0], *words, "--out", out, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 1
