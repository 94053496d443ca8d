"""A correction of light goes from a recipe into training, the checkpoint, tests, predictions and features."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from marey.jobs.evaluate import test as evaluate
from marey.jobs.extract import extract_features
from marey.jobs.predict import predict
from marey.jobs.provenance import read_card, sha256_of
from marey.jobs.scores import find_truth, open_scores
from marey.jobs.scoring import score_videos
from marey.jobs.train import train
from marey.scores.files import read_scores
from marey.scores.table import read_as
from marey.video.light import Light, relight
from marey.video.preprocess import Protocol, normalize
from marey.video.reader import read_video
from marey.video.synthetic import render_moving_shapes
from marey.weights.create import open_model

SMALL = {
    "model.options": {"width": 4, "segments": 2},
    "clips.frames": 2,
    "clips.short_side": 32,
    "clips.crop": 32,
    "clips.light": {"target": 120.0},
    "clips.val": {},
    "clips.test": {"lights": [{}, {"gamma": 0.5, "decoded": True}, {"gain": 2.0}]},
    "training.epochs": 1,
    "training.batch": 4,
    "data.workers": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("light")
    lists = render_moving_shapes(folder / "clips", train=1, val=1, test=1, size=(48, 48), frames=8)
    data = {f"data.{file.stem}": str(file) for file in lists}
    found = train("demo.moving_shapes", {**SMALL, **data}, out=folder / "runs", accelerator="cpu")
    return folder, found, data


def test_the_checkpoint_carries_it_and_every_use_goes_through_it(run):
    """Three lights by hand: probabilities of each view are averaged, the recipe's own light comes last."""
    folder, found, data = run
    model = open_model(found.checkpoint)
    assert model.preprocess.light == Light(target=120.0) and len(model.preprocess.test.lights) == 3
    clip = next((folder / "clips" / "test").rglob("*.mp4"))
    plain = msgspec.structs.replace(model.preprocess, light=None, test=Protocol())
    scores, vectors = [], []
    for light in (None, Light(gamma=0.5, decoded=True), Light(gain=2.0)):
        before = msgspec.structs.replace(plain, light=light if light and light.decoded else None)
        with read_video(clip) as video:
            pixels = before.views(video, before.test).batch()
        pixels = relight(pixels, None if light and light.decoded else light)
        inputs = normalize(relight(pixels, Light(target=120.0)), plain)
        with torch.inference_mode():
            scores.append(model(inputs).softmax(1).mean(0))
            vectors.append(model.embed(inputs).mean(0, keepdim=True))
    want = torch.stack(scores).mean(0)
    (seen,) = predict(model, clip, top=6, device="cpu")
    assert {c.label: c.score for c in seen.classes} == pytest.approx(dict(enumerate(want.tolist())), abs=1e-5)
    tested = evaluate(
        found.run / "recipe.json", found.checkpoint, {"data.test": data["data.test"]}, accelerator="cpu"
    )
    assert len(tested["protocol"]["lights"]) == 3
    table = open_scores([str(found.run / "scores.parquet")]).tables["scores"]
    row = next(row for row, name in enumerate(table.ids) if clip.name in name and clip.parent.name in name)
    assert table.probabilities[row] == pytest.approx(want.numpy(), abs=1e-5)
    assert "lights" in table.producer.views and table.producer.recipe.startswith("demo")
    options = {"per": "video", "format": "npz", "device": "cpu", "workers": 0}
    done = extract_features(found.checkpoint, [clip], folder / "features", **options)
    with np.load(next(done.folder.rglob("*.npz"))) as stored:
        got = stored["features"].reshape(-1).astype(np.float32)
    assert got == pytest.approx(torch.cat(vectors).mean(0).numpy(), abs=1e-2)


def test_a_list_is_scored_without_labels_as_a_test_scores_it(run, tmp_path):
    """Names as in the list, both kinds, what made it; true labels are matched by name or by path."""
    folder, found, data = run
    names = [line.split(",")[0] for line in Path(data["data.test"]).read_text().splitlines()[1:]]
    (tmp_path / "target.csv").write_text("path\n" + "".join(f"{name}\n" for name in names))
    out = tmp_path / "target.parquet"
    got = score_videos(
        found.checkpoint,
        tmp_path / "target.csv",
        root=folder / "clips",
        out=out,
        accelerator="cpu",
        workers=0,
    )
    table = read_scores(out)
    assert table.ids == tuple(names) == got.table.ids and not got.failed
    assert table.clips.tolist() == [3] * len(names) and set(table.labels.tolist()) == {-1}
    evaluate(found.run / "recipe.json", found.checkpoint, {"data.test": data["data.test"]}, accelerator="cpu")
    tested = open_scores([str(found.run / "scores.parquet")])
    assert read_as(table, "probabilities") == pytest.approx(tested.tables["scores"].probabilities, abs=1e-6)
    one = score_videos(
        found.checkpoint,
        tmp_path / "target.csv",
        root=folder / "clips",
        protocol=Protocol(),
        accelerator="cpu",
        workers=0,
    ).table
    assert read_as(one, "mean_logits") == pytest.approx(read_as(one, "probabilities"), abs=1e-6)
    card = read_card(tmp_path / "target.manifest.json")
    assert card.inputs["checkpoint"].sha256 == sha256_of(found.checkpoint) == table.producer.sha256
    assert table.producer.model == "tsm_r18" and "lights" in table.producer.views
    named = open_scores([str(out)])
    assert find_truth(data["data.test"], named).tolist() == find_truth(data["data.test"], tested).tolist()
    assert (find_truth(data["data.test"], named) >= 0).all()
