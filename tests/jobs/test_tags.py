"""Tags from records: measured as the metrics say, written completely, in every layout."""

import csv
import json

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from marey.data.feature_card import NAME, FeatureCard, write_feature_card
from marey.data.shards import open_shards, record_order, step_records
from marey.data.tfrecord import RecordWriter
from marey.data.workers import Pool
from marey.data.youtube8m import Layout, Video, batches, collate, read_videos, read_vocabulary, record
from marey.errors import DataError, UsageError
from marey.jobs.setup_features import layout_of, records, trained_on
from marey.jobs.tag_files import Tags, write_tags
from marey.jobs.tags import evaluate_tags, predict_tags
from marey.metrics.gap import measure
from marey.models import build
from marey.recipes.nextvlad import ADAM
from marey.training.losses import tagging_loss
from marey.training.optim import build_optimizer

CLASSES, LAYOUT = 12, Layout(rgb=8, audio=4, num_classes=12)


def network():
    torch.manual_seed(0)
    return build(
        "nextvlad",
        CLASSES,
        rgb=8,
        audio=4,
        whitened=False,
        cluster_size=4,
        groups=2,
        hidden_size=32,
        dropout=0.1,
    )


@pytest.fixture
def shards(tmp_path):
    """120 videos whose frames say which two classes they are of."""
    rng = np.random.default_rng(0)
    centres = rng.integers(40, 216, (CLASSES, 12))
    for shard in range(3):
        with RecordWriter(tmp_path / f"{shard}.tfrecord") as writer:
            for number in range(40):
                labels = tuple(sorted(rng.choice(CLASSES, 2, replace=False).tolist()))
                n = int(rng.integers(2, 12))
                frames = centres[rng.choice(labels, n)] + rng.normal(0, 10, (n, 12))
                frames = frames.clip(0, 255).astype(np.uint8)
                writer.write(record(Video(f"{shard}-{number}", labels, frames[:, :8], frames[:, 8:])))
    return open_shards(sorted(tmp_path.glob("*.tfrecord")))


def test_evaluation_is_the_metric_of_all_videos_whatever_the_batches(shards):
    model = network().eval()
    assert layout_of(model) == LAYOUT
    videos = [video for path in shards.paths for video in read_videos(path, LAYOUT)]
    whole = collate(videos, LAYOUT)
    with torch.inference_mode():
        logits = model(whole.rgb, whole.audio, whole.lengths)
    expected = measure(logits.sigmoid().numpy(), whole.labels.numpy())
    for batch in (7, 200):
        found = evaluate_tags(model, shards, batch=batch)
        assert (found["evaluated"], found["listed"], found["failed"]) == (120, 120, [])
        numbers = found["metrics"]
        assert numbers["gap"] == pytest.approx(expected.gap, abs=1e-5)
        assert numbers["map"] == pytest.approx(expected.map, abs=1e-5)
        assert (numbers["hit1"], numbers["perr"]) == pytest.approx((expected.hit_at_1, expected.perr))
        assert [row["count"] for row in found["per_class"]] == whole.labels.sum(0).tolist()
        aps = [np.nan if row["ap"] is None else row["ap"] for row in found["per_class"]]
        np.testing.assert_allclose(aps, expected.ap, atol=1e-5)
        assert numbers["loss"] == pytest.approx(float(tagging_loss(logits, whole.labels)), rel=1e-5)


def test_planted_tags_are_learned(shards):
    model = network()
    before = evaluate_tags(model, shards)["metrics"]
    optimizer = build_optimizer(model, msgspec.structs.replace(ADAM, lr=3e-3))
    with Pool(0, 60) as pool:
        for epoch in range(12):
            order = record_order(shards.counts, seed=0, epoch=epoch, window=2)
            steps = [step_records(order, step, 16) for step in range(8)]
            model.train()
            for batch in batches(shards, steps, LAYOUT, pool=pool):
                optimizer.zero_grad()
                tagging_loss(model(batch.rgb, batch.audio, batch.lengths), batch.labels).backward()
                optimizer.step()
    after = evaluate_tags(model, shards)["metrics"]
    assert before["gap"] < 0.45
    assert after["gap"] > 0.9
    assert after["hit1"] > 0.95


def test_what_cannot_be_read_is_counted_and_limited(shards):
    path, place = shards.paths[1], shards.place(45)
    with open(path, "r+b") as file:  # noqa: PTH123
        file.seek(place.offset + 20)
        byte = file.read(1)
        file.seek(place.offset + 20)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DataError) as error:
        evaluate_tags(network(), shards)
    assert error.value.code == "INCOMPLETE"
    found = evaluate_tags(network(), shards, max_bad=0.01)
    assert (found["evaluated"], found["listed"]) == (119, 120)
    assert [(one["code"], one["path"]) for one in found["failed"]] == [("RECORD_DAMAGED", place.name)]
    rows = list(predict_tags(network(), shards, batch=50))
    assert [row.code for row in rows] == [None] * 45 + ["RECORD_DAMAGED"] + [None] * 74, "in its place"
    assert rows[45].id == place.name and "checksum" in rows[45].message


def test_a_file_that_is_cut_gives_what_is_left_and_says_so(shards):
    with open(shards.paths[2], "r+b") as file:  # noqa: PTH123
        file.truncate(shards.place(99).offset + 5)
    cut = records(shards.paths[2].replace("2.tfrecord", "*.tfrecord"))
    assert len(cut) == 99
    with pytest.raises(DataError, match="RECORD_LOST"):
        evaluate_tags(network(), cut)
    found = evaluate_tags(network(), cut, max_bad=0.02)
    assert (found["evaluated"], [one["code"] for one in found["failed"]]) == (99, ["RECORD_LOST"])
    rows = list(predict_tags(network(), cut))
    assert [row.code for row in rows] == ["RECORD_LOST"] + [None] * 99
    with open(shards.paths[2], "r+b") as file:  # noqa: PTH123
        file.truncate(5)
    with pytest.raises(DataError) as error:
        records(shards.paths[2])
    assert error.value.code == "RECORD_LOST"


def test_predictions_are_the_best_above_the_threshold(shards):
    model = network()
    found = list(predict_tags(model, shards, top=3, names=[f"n{i}" for i in range(CLASSES)], batch=50))
    assert [one.id for one in found] == [f"{s}-{n}" for s in range(3) for n in range(40)]
    assert all(
        len(one.classes) == 3 and one.scores == tuple(sorted(one.scores, reverse=True)) for one in found
    )
    assert found[0].names == tuple(f"n{c}" for c in found[0].classes)
    limit = float(np.median([score for one in found for score in one.scores]))
    fewer = list(predict_tags(model, shards, top=3, threshold=limit))
    assert 0 < sum(len(one.scores) for one in fewer) < 360
    assert all(score >= limit for one in fewer for score in one.scores)
    assert fewer[0].names == tuple(map(str, fewer[0].classes))
    with pytest.raises(UsageError) as error:
        next(predict_tags(model, shards, names=["one"]))
    assert error.value.code == "CLASS_NAMES"


def test_every_layout_holds_every_tag(tmp_path):
    lost = Tags("x.tfrecord#4", (), (), (), code="RECORD_DAMAGED", message="the checksum is wrong")
    tags = [Tags("a", (3, 1), ("three", "one"), (0.75, 0.1234567)), Tags("b", (), (), ())]
    assert write_tags(tags, tmp_path / "t.jsonl") == 2
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert rows[0] == {"id": "a", "classes": [3, 1], "names": ["three", "one"], "scores": [0.75, 0.1234567]}
    write_tags([*tags, lost], tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    expected = {"id": "a", "classes": "3;1", "names": "three;one", "scores": "0.75;0.1234567"}
    assert rows[0] == expected | {"comparable": "true", "code": "", "message": ""}
    assert (rows[2]["id"], rows[2]["code"]) == ("x.tfrecord#4", "RECORD_DAMAGED")
    write_tags(tags * 700, tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert len(table) == 1400
    assert table[-2]["classes"] == [3, 1]
    assert write_tags([*tags, lost], tmp_path / "s.csv", submission=True) == 2
    assert (tmp_path / "s.csv").read_text() == "VideoId,LabelConfidencePairs\na,3 0.75 1 0.123457\nb,\n"
    for name, submission in (("t.txt", False), ("t.jsonl", True)):
        with pytest.raises(UsageError) as error:
            write_tags(tags, tmp_path / name, submission=submission)
        assert error.value.code == "OUT_SUFFIX"


def test_scores_on_features_of_another_kind_are_called_not_comparable(shards, tmp_path, capsys):
    model: torch.nn.Module = network()
    assert evaluate_tags(model, shards)["comparable"], "a fresh network knows no features"
    assert trained_on(model) is None
    assert trained_on(build("nextvlad", 5, cluster_size=4, groups=2, hidden_size=32)) == "youtube8m"
    card = FeatureCard(rgb=8, audio=4, made_by={"rgb": {"model": "tsn_r50"}, "audio": {"name": "mine"}})
    write_feature_card(tmp_path, card)
    model.metadata = {"features": card.identity()}
    assert evaluate_tags(model, shards)["comparable"]
    assert capsys.readouterr().err == ""
    for known in ({"features": card.identity() | {"fingerprint": "0" * 64}}, {"features": None}):
        model.metadata = known
        assert not evaluate_tags(model, shards)["comparable"]
        found = list(predict_tags(model, shards, top=1))
        assert capsys.readouterr().err.count("FEATURES_DIFFER") == 2
        assert not any(one.comparable for one in found)
    write_tags(found, tmp_path / "t.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert {row["comparable"] for row in rows} == {False}
    (tmp_path / NAME).unlink()
    model.metadata = {"features": card.identity()}
    assert not evaluate_tags(model, shards)["comparable"], "and these might be YouTube-8M's"


def test_networks_of_clips_are_refused():
    with pytest.raises(UsageError) as error:
        layout_of(build("tsn_r18", 5, width=8))
    assert error.value.code == "NO_CLIPS"


def test_names_come_from_the_vocabulary(tmp_path):
    path = tmp_path / "vocabulary.csv"
    head = (
        "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,Vertical1,Vertical2,Vertical3,WikiDescription\n"
    )
    path.write_text(
        head + '1,5,/m/1,Car,u,A,,,"a, b"\n0,9,/m/0,Game,u,B,,,"text\nover lines"\n2,1,/m/2,,u,,,,\n'
    )
    assert read_vocabulary(path) == ("Game", "Car", "2")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheets save it
    assert read_vocabulary(path) == ("Game", "Car", "2")
    for text in (head + "1,5,/m/1,Car,u,A,,,\n", "a,b\n1,2\n", ""):
        path.write_text(text)
        with pytest.raises(DataError) as error:
            read_vocabulary(path)
        assert error.value.code == "LIST_FORMAT"
