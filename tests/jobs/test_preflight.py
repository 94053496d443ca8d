"""What is known before a training, what is said while it runs, and that trying changes nothing."""

from types import SimpleNamespace

import msgspec
import pytest
import torch
from safetensors.torch import load_file

import marey
from marey.cli import app
from marey.data.lists import read_list
from marey.data.workers import Pool
from marey.errors import EnvironmentFault, MareyError, UsageError
from marey.jobs import advice, epochs, limits, setup
from marey.jobs import preflight as module
from marey.jobs.advice import faster_data
from marey.jobs.epochs import Epochs
from marey.jobs.preflight import lines, preflight, seconds_per_clip, spread
from marey.jobs.progress import Window
from marey.jobs.recognition import Recognition
from marey.jobs.tagging import Tagging
from marey.recipes.catalog import load_recipe
from marey.recipes.schema import Distill, Model
from marey.video.synthetic import render_moving_shapes

TINY = {
    "model.options": {"width": 8, "segments": 4},
    "clips.frames": 4,
    "clips.short_side": 32,
    "clips.crop": 32,
    "clips.val.crop": 32,
    "clips.test.crop": 32,
    "training.epochs": 2,
    "training.batch": 8,
    "training.reference_batch": 8,
    "training.validate_every": 1,
    "data.workers": 0,
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Lists of six classes: 18 training and 6 validation clips."""
    folder = tmp_path_factory.mktemp("shapes")
    return render_moving_shapes(folder, train=3, val=1, test=0, size=(48, 40), frames=12)


@pytest.fixture
def tiny(shapes, monkeypatch):
    """A training of seconds, and a preflight of less."""
    monkeypatch.setattr(module, "SECONDS", 0.05)
    return TINY | {"data.train": str(shapes.train), "data.val": str(shapes.val)}


def test_everything_is_told_and_nothing_is_written(tiny, shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = preflight("demo.moving_shapes", tiny, accelerator="cpu")
    assert (found.splits, found.classes, found.missing) == ({"train": 18, "val": 6}, 6, ())
    assert found.rarest[1] == found.commonest[1] == 3
    assert (found.clips, found.seen) == (8, 6)
    assert len(found.losses) >= 2 and 0.5 < found.losses[0] < 4
    assert found.decoded > 0 and found.stepped > 0
    each = 1 / found.decoded + 1 / found.stepped
    assert found.epoch_seconds == pytest.approx(18 * each), "without workers one waits for the other"
    assert found.seconds == pytest.approx(2 * found.epoch_seconds)
    assert found.disk > 0 and found.disk_free > 0 and found.device == "cpu"
    assert (found.skipped, found.warnings, found.workers) == ((), (), 0)
    assert [*tmp_path.iterdir()] == []
    text = "\n".join(lines(found, None))
    assert "18 train, 6 val" in text and "8 clips of 6 classes" in text and "fall" not in text
    assert "exchange the labels" in capsys.readouterr().err, "the notes of a training"


def test_a_training_after_a_preflight_gives_the_same_bits(tiny, tmp_path):
    state = torch.get_rng_state()
    first = preflight("demo.moving_shapes", tiny, out=tmp_path / "none", accelerator="cpu", steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    after = marey.train("demo.moving_shapes", tiny, out=tmp_path / "after", accelerator="cpu")
    again = preflight("demo.moving_shapes", tiny, out=tmp_path / "none", accelerator="cpu", steps=2)
    assert first.losses == again.losses
    alone = marey.train("demo.moving_shapes", tiny, out=tmp_path / "alone", accelerator="cpu")
    one, other = (load_file(run.run / "checkpoints/last.safetensors") for run in (after, alone))
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(
    "more", [{}, {"training.optimizer.kind": "adamw", "training.ema": 0.9}], ids=["sgd", "adamw, ema"]
)
def test_checkpoints_take_what_was_told(tiny, tmp_path, more):
    plan = tiny | more | {"training.epochs": 2}
    told = preflight("demo.moving_shapes", plan, out=tmp_path, accelerator="cpu", steps=1).disk
    folder = marey.train("demo.moving_shapes", plan, out=tmp_path, accelerator="cpu").run / "checkpoints"
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert len(sizes) == 4
    assert told == pytest.approx(sum(sizes.values()) + max(sizes.values()), rel=0.05)


def test_a_loss_that_is_no_number_names_the_clips(tiny, monkeypatch):
    build = setup.build_model

    def broken(recipe, seed):
        network, report = build(recipe, seed)
        with torch.no_grad():
            next(iter(network.head.parameters())).fill_(float("nan"))
        return network, report

    monkeypatch.setattr(setup, "build_model", broken)
    with pytest.raises(MareyError, match=r"the loss of step 0 is nan") as raised:
        preflight("demo.moving_shapes", tiny, accelerator="cpu")
    assert raised.value.code == "LOSS_NOT_FINITE"
    assert raised.value.message.count(".mp4") == 8


def test_steps_on_one_batch_tell_whether_the_loss_falls(tiny):
    plan = tiny | {"training.optimizer.lr": 0.05}
    found = preflight("demo.moving_shapes", plan, accelerator="cpu", steps=25)
    assert len(found.losses) == 25 and found.losses[-1] < 0.5 * found.losses[0]
    assert found.top1 is not None and found.top1 > 0.5
    assert "it falls" in "\n".join(lines(found, 25))
    still = preflight(
        "demo.moving_shapes", tiny | {"training.optimizer.lr": 1e-30}, accelerator="cpu", steps=2
    )
    assert "does not fall" in "\n".join(lines(still, 2))


def test_a_student_is_tried_with_its_teacher_and_no_answers_are_kept(tiny, tmp_path, capsys):
    plan = tiny | {"training.epochs": 1}
    teacher = marey.train("demo.moving_shapes", plan, out=tmp_path / "t", accelerator="cpu", validate=False)
    model = Model(name="tsm_r18", weights=str(teacher.checkpoint), options=TINY["model.options"])
    recipe = load_recipe("demo.moving_shapes", plan)
    taught = Distill(teacher=model, logit_kl=1.0, cache=str(tmp_path / "answers"), views=1)
    recipe = msgspec.structs.replace(recipe, distill=taught)
    found = preflight(recipe, accelerator="cpu", steps=2, out=tmp_path / "none")
    plain = preflight("demo.moving_shapes", plan, accelerator="cpu", steps=2, out=tmp_path / "none")
    assert found.losses[0] > plain.losses[0], "what the teacher says is added"
    assert {file.name for file in tmp_path.iterdir()} == {"t"}
    assert "distill.cache is left alone" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_named(tiny, shapes, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    rows = shapes.train.read_text().splitlines()
    listed = [f"{shapes.train.parent}/{row}" for row in rows[1::3]]
    bad = ",".join([f"{tmp_path}/bad.mp4", *rows[1].split(",")[1:]])
    (tmp_path / "list.csv").write_text("\n".join([rows[0], *listed, bad]))
    plan = tiny | {"data.train": str(tmp_path / "list.csv"), "data.val": None, "data.max_bad": 0.5}
    found = preflight("demo.moving_shapes", plan, accelerator="cpu", steps=1)
    assert [bad.path for bad in found.skipped] == [str(tmp_path / "bad.mp4")]
    assert "bad.mp4: " in "\n".join(lines(found, 1))
    (tmp_path / "list.csv").write_text(f"{rows[0]}\n{bad}")
    with pytest.raises(MareyError, match=r"none of the 1 clips.*bad\.mp4") as raised:
        preflight("demo.moving_shapes", plan | {"data.max_bad": 1.0}, accelerator="cpu")
    assert raised.value.code == "TOO_MANY_BAD"


@pytest.mark.parametrize("size", [2, 3, 5, 40])
def test_a_batch_shows_as_many_classes_as_fit(tmp_path, size):
    rows = [f"{number}.mp4,{0 if number < 28 else number - 27}" for number in range(30)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows))
    clips = read_list(tmp_path / "list.csv")
    for seed in range(5):
        chosen = spread(clips, size, seed)
        assert len(set(chosen)) == len(chosen) == min(size, 30)
        assert len({clips.labels(place) for place in chosen}) == min(size, 3)
    assert spread(clips, 5, 0) != spread(clips, 5, 1)


def test_a_clip_takes_as_long_as_the_slower_of_two_that_share_cores():
    assert seconds_per_clip(3.0, 1.0, workers=0, cores=8, threads=8) == 4.0
    assert seconds_per_clip(3.0, 1.0, workers=4, cores=8, threads=1) == 3.0
    assert seconds_per_clip(1.0, 3.0, workers=4, cores=8, threads=1) == 3.0
    assert seconds_per_clip(1.0, 1.0, workers=2, cores=2, threads=2) == 2.0, "both want all cores"
    assert seconds_per_clip(1.0, 1.0, workers=8, cores=4, threads=2) == 1.5


def test_other_kinds_of_trainings_and_options_without_meaning_are_refused(monkeypatch):
    plan = SimpleNamespace(name="nextvlad.nextvlad_yt8m")
    monkeypatch.setattr(module, "start", lambda *_, **__: SimpleNamespace(task=Tagging, plan=plan))
    with pytest.raises(UsageError, match="nextvlad") as raised:
        preflight("nextvlad.nextvlad_yt8m")
    assert raised.value.code == "RECIPE_KIND"
    for words in (["--steps", "3"], ["--preflight", "--resume"]):
        with pytest.raises(UsageError, match="--preflight"):
            app(["train", "demo.moving_shapes", *words], standalone_mode=False)


# Limits of the machine ----------------------------------------------------------------------------------


def test_too_little_disk_too_few_files_and_too_little_shared_memory_are_found(monkeypatch, tmp_path):
    network = torch.nn.Linear(100, 100)
    plan = load_recipe("demo.moving_shapes").training
    alone = SimpleNamespace(world_size=1, device=torch.device("cpu"))
    several = SimpleNamespace(world_size=2, device=torch.device("cuda"))

    def codes(fabric, workers=0):
        notes = limits.lacking(fabric, network, network, plan, out=tmp_path / "runs", workers=workers)
        return [note.code for note in notes]

    monkeypatch.setattr(limits, "most_open_files", lambda: 1024)
    assert codes(alone, workers=8) == []
    assert codes(alone, workers=400) == ["OPEN_FILES"]
    monkeypatch.setattr(limits, "most_open_files", lambda: None)
    assert codes(alone, workers=400) == []
    # weights of 10,100 numbers: twice as they are, three times with their momentum
    needed = 4 * 10_100 * (2 + 3 * 2)
    assert limits.checkpoint_bytes(network, network, plan) == needed
    monkeypatch.setattr(limits, "free_bytes", lambda folder: needed)
    assert (codes(alone), codes(several)) == ([], ["SHARED_MEMORY_SMALL"])
    monkeypatch.setattr(limits, "free_bytes", lambda folder: needed - 1)
    assert codes(alone) == ["DISK_SMALL"]
    (tmp_path / "runs/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/checkpoints/last.safetensors").write_bytes(b"x")
    assert codes(alone) == [], "what a run that goes on has already"


def test_a_training_says_before_it_begins_that_the_disk_is_small(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(limits, "free_bytes", lambda folder: 1000)
    plan = tiny | {"training.epochs": 1}
    marey.train("demo.moving_shapes", plan, out=tmp_path, accelerator="cpu", validate=False)
    said = capsys.readouterr().err.splitlines()
    (place,) = [i for i, line in enumerate(said) if line.startswith("warning: DISK_SMALL: ")]
    assert place < next(i for i, line in enumerate(said) if "steps an epoch" in line)


def test_memory_that_runs_out_names_settings_that_take_less(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Recognition, "outcome", full)
    for run in (preflight, marey.train):
        with pytest.raises(EnvironmentFault, match=r"training\.batch=4 training\.accumulate=2, or") as raised:
            run("demo.moving_shapes", tiny, out=tmp_path, accelerator="cpu")
        assert raised.value.code == "OUT_OF_MEMORY"
        assert "fewer clips.frames than 4" in raised.value.message
    done = {"training.batch": 1, "training.checkpoint_activations": True}
    least = limits.less_memory(load_recipe("demo.moving_shapes", done))
    assert "batch" not in least and "checkpoint" not in least
    monkeypatch.setattr(Recognition, "outcome", lambda *_: torch.ones(2) + torch.ones(3))
    with pytest.raises(RuntimeError, match="size of tensor"):
        preflight("demo.moving_shapes", tiny, accelerator="cpu")


# Advice -------------------------------------------------------------------------------------------------


def test_an_epoch_that_waited_brings_one_line_in_a_run(monkeypatch):
    said = []
    run = Epochs.__new__(Epochs)
    run.task, run.fabric, run.epoch, run.advised = None, SimpleNamespace(strategy=None), 0, False
    run.run = SimpleNamespace(quiet=False, say=said.append)
    monkeypatch.setattr(epochs, "faster_data", lambda task, processes: f"data.workers={processes + 3}")
    run._advise(Window(steps=9, waited=19.9, seconds=100.0))
    run._advise(Window(steps=9, waited=9.0, seconds=12.0))
    assert said == [], "a fifth of the time at most, or seconds"
    run._advise(Window(steps=9, waited=40.0, seconds=100.0))
    run._advise(Window(steps=9, waited=90.0, seconds=100.0))
    assert said == ["40% of epoch 1 was spent waiting for data: data.workers=4"]


def test_a_training_looks_at_every_epoch_without_its_first_step(tiny, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Epochs, "_advise", lambda self, paced: seen.append((self.epoch, paced.steps)))
    marey.train("demo.moving_shapes", tiny, out=tmp_path, accelerator="cpu", validate=False)
    assert seen == [(0, 2), (1, 2)], "three steps an epoch"


def test_advice_is_chosen_by_what_is_known(shapes, monkeypatch):
    monkeypatch.setattr(advice, "cores", lambda: 8)
    crops = {"clips.crop": 24, "clips.val.crop": 24, "clips.test.crop": 24}
    recipe = load_recipe("demo.moving_shapes", {"clips.short_side": 24, **crops})
    clips = read_list(shapes.train)

    def task(workers, recipe=recipe):
        run = Pool(0, 60).run  # in this process
        return SimpleNamespace(recipe=recipe, clips=clips, pool=SimpleNamespace(workers=workers, run=run))

    assert "data.workers=8" in faster_data(task(2), 1)
    assert "data.workers=4" in faster_data(task(2), 2), "two processes share the cores"
    assert "marey data shrink LIST --out FOLDER --short-side 24" in faster_data(task(8), 1)
    for side in (36, None):
        plan = load_recipe("demo.moving_shapes", {"clips.short_side": side, **crops})
        assert "augment.copies=2" in faster_data(task(4, plan), 2), "videos are 40 pixels high"
    assert faster_data(task(8, load_recipe("nextvlad.nextvlad_yt8m")), 1) is None
