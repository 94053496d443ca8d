"""`marey compare`: every number is worked out by hand, from results of a few clips."""

import json
import shutil
import sys

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import marey
from marey import cli
from marey.errors import DataError, UsageError
from marey.jobs.compare import compare, lines
from marey.jobs.compare_clips import class_names, match, sign_test
from marey.video.synthetic import render_moving_shapes
from marey.weights.native import save_checkpoint

CLASSES = ["cut", "jump", "run"]
LABELS = [0, 0, 0, 1, 1, 1, 2, 2]
BEST_A = [0, 0, 1, 1, 1, 1, 0, 2]  # right: all but the third and the seventh
BEST_B = [1, 1, 0, 1, 0, 1, 0, 2]  # right: the third, fourth, sixth and eighth
RUN = {"recipe": {"training": {"epochs": 2}}, "environment": {"seed": 0, "threads": {"torch": 2}}}


def leave(folder, best, *, labels=LABELS, paths=None, classes=CLASSES, run=None, **changes):
    """What `marey test` leaves in a folder, for clips whose best class has 0.8 and whose others have 0.1."""
    folder.mkdir(exist_ok=True)
    count = len(classes)
    scores = np.full((len(best), count), 0.1, np.float32)
    scores[np.arange(len(best)), best] = 0.8
    results = {
        "recipe": "finetune.finetune",
        "checkpoint": "best.safetensors",
        "sha256": "ab" * 32,
        "settings": {"clips": {"rule": "0.x", "test": {"crops": "center"}}, "data": {"workers": 1}},
        "protocol": {"crops": "center", "clips": 1, "average": "prob"},
        "metrics": {
            "top1": float(np.mean(np.equal(best, [row if isinstance(row, int) else -1 for row in labels])))
        },
        "expected": None,
        "listed": len(best),
        "evaluated": len(best),
        "failed": [],
        "classes": list(classes),
        "per_class": [{"class": name, "count": 1, "accuracy": 0.0} for name in classes],
        "confusion": None,
        "list": "test.csv",
        "fingerprint": "f" * 64,
        "versions": {
            "marey": "0.1.0",
            "packages": {"torch": "2.15"},
            "devices": [{"name": "cpu", "memory": 1}],
        },
    }
    (folder / "results.json").write_text(json.dumps(results | changes))
    table = {
        "path": paths or [f"clips/{number}.mp4" for number in range(len(best))],
        "label": pa.array([[row] if isinstance(row, int) else row for row in labels], pa.list_(pa.int32())),
        "view": [0] * len(best),
        "scores": list(scores),
    }
    pq.write_table(pa.table(table), folder / "scores.parquet")
    for name, value in (run or {}).items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def named(found):
    """Fields by name, with both values."""
    return {field.name: (field.a, field.b) for field in found.fields}


def test_the_sign_test_is_the_binomial_one():
    """2 (1 + 8) / 2^8; 2 / 2^5; and 86 to 150, which R's exact2x2 gives 3.716e-05 for."""
    assert sign_test(1, 7) == sign_test(7, 1) == 18 / 256
    assert sign_test(0, 5) == 2 / 32
    assert sign_test(0, 0) == sign_test(3, 3) == sign_test(0, 1) == 1
    assert sign_test(86, 150) == pytest.approx(3.716e-05, rel=2e-4)
    assert sign_test(0, 2000) == 0.0 and sign_test(5000, 5000) == 1.0


def test_clips_are_counted_by_who_is_right(tmp_path):
    a, b = leave(tmp_path / "a", BEST_A), leave(tmp_path / "b", BEST_B)
    found = compare(a, b / "results.json")
    clips = found.clips
    assert (clips.both, clips.only_a, clips.only_b, clips.relabelled) == (8, 0, 0, 0)
    assert (clips.right_both, clips.right_a, clips.right_b, clips.wrong_both) == (3, 3, 1, 1)
    assert clips.p == 2 * (1 + 4) / 2**4  # of 4 clips that one alone has right, B has 1
    [top1] = found.metrics
    assert (top1.a, top1.b, top1.difference) == (6 / 8, 4 / 8, -2 / 8)
    assert [(row.name, row.clips, row.a, row.b) for row in found.classes] == [
        ("cut", 3, 2 / 3, 1 / 3),
        ("jump", 3, 1, 2 / 3),
    ]
    assert found.classes[0].difference == pytest.approx(-1 / 3)
    assert [(row.path, row.labels, row.a, row.b) for row in clips.changed] == [
        ("clips/0.mp4", ("cut",), "cut", "jump"),
        ("clips/1.mp4", ("cut",), "cut", "jump"),
        ("clips/2.mp4", ("cut",), "jump", "cut"),
        ("clips/4.mp4", ("jump",), "jump", "cut"),
    ]
    assert abs(clips.largest.difference) == pytest.approx(0.7) and clips.largest.path == "clips/0.mp4"
    assert found.fields == () and found.notes == () and found.measure == "accuracy"


def test_results_that_do_not_differ_say_so(tmp_path):
    found = compare(leave(tmp_path / "a", BEST_A), tmp_path / "a")
    assert found.clips.p == 1 and found.clips.largest.difference == 0 and found.clips.changed == ()
    text = "\n".join(lines(found, listed=5))
    assert "fields: nothing differs" in text and "+0.0000" in text and "classes whose" not in text


def test_every_field_is_named_with_both_values_by_what_it_is_about(tmp_path):
    a = leave(tmp_path / "a", BEST_A, run=RUN)
    b = leave(
        tmp_path / "b",
        BEST_A,
        run={
            "recipe": {"training": {"epochs": 3}},
            "environment": {"seed": 1, "threads": {"torch": 2}, "marey": "0.2.0"},
        },
        sha256="cd" * 32,
        checkpoint="last.safetensors",
        settings={"clips": {"rule": "1.x", "test": {"crops": "three"}}, "data": {"workers": 2}},
        protocol={"crops": "three", "clips": 1, "average": "prob", "lights": []},
        versions={"marey": "0.2.0", "packages": {"torch": "2.15"}, "devices": [{"name": "cpu", "memory": 2}]},
        failed=[{"path": "clips/bad.mp4", "code": "NOT_DECODABLE"}],
        listed=9,
    )
    found = compare(a, b)
    missing = msgspec.UNSET
    assert {(field.part, field.name): (field.a, field.b) for field in found.fields} == {
        ("weights", "checkpoint"): ("best.safetensors", "last.safetensors"),
        ("weights", "sha256"): ("ab" * 32, "cd" * 32),
        ("data", "listed"): (8, 9),
        ("data", "failed.clips/bad.mp4"): (missing, "NOT_DECODABLE"),
        ("protocol", "protocol.crops"): ("center", "three"),
        ("protocol", "protocol.lights"): (missing, []),
        ("protocol", "settings.clips.test.crops"): ("center", "three"),
        ("preprocessing", "settings.clips.rule"): ("0.x", "1.x"),
        ("environment", "settings.data.workers"): (1, 2),
        ("environment", "versions.marey"): ("0.1.0", "0.2.0"),
        ("environment", "versions.devices.0.memory"): (1, 2),
        ("training", "run.recipe.training.epochs"): (2, 3),
        ("training", "run.environment.seed"): (0, 1),
        ("training", "run.environment.marey"): (missing, "0.2.0"),
    }
    text = lines(found)
    assert any(line.split() == ["protocol.lights", "(not", "there)", "[]"] for line in text)
    assert any(line.split() == ["run.environment.seed", "0", "1"] for line in text)
    plain = json.loads(json.dumps(msgspec.to_builtins(found)))
    light = next(field for field in plain["fields"] if field["name"] == "protocol.lights")
    assert light == {"part": "protocol", "name": "protocol.lights", "b": []}
    assert found.notes == ("B evaluated 8 of 9 listed",)


def test_what_training_and_test_share_is_said_once(tmp_path):
    """Another torch in both is one difference; settings that only one result tells are one row."""
    ours, theirs = ({"marey": "0.1.0", "packages": {"torch": version}} for version in ("2.14", "2.15"))
    a = leave(tmp_path / "a", BEST_A, run={"environment": ours}, versions=ours)
    b = leave(tmp_path / "b", BEST_A, run={"environment": theirs}, versions=theirs)
    file = b / "results.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "settings"}))
    assert list(named(compare(a, b))) == ["versions.packages.torch", "settings"]
    (b / "environment.json").unlink()
    assert "only A lies in a run folder" in compare(a, b).notes[0]


def test_classes_in_another_order_are_compared_by_name(tmp_path):
    """B's numbers mean other classes, but it says the same of every clip."""
    order = ["run", "cut", "jump"]
    place = [order.index(name) for name in CLASSES]
    b = leave(tmp_path / "b", [place[x] for x in BEST_A], labels=[place[x] for x in LABELS], classes=order)
    found = compare(leave(tmp_path / "a", BEST_A), b)
    assert found.clips.changed == () and found.clips.largest.difference == 0
    assert (found.clips.right_both, found.clips.wrong_both, found.clips.relabelled) == (6, 2, 0)
    assert named(found)["classes.0"] == ("cut", "run")


def test_other_classes_leave_scores_uncompared_and_clips_with_other_labels_uncounted(tmp_path):
    b = leave(tmp_path / "b", BEST_A, classes=["cut", "leap", "run"])
    found = compare(leave(tmp_path / "a", BEST_A), b)
    assert found.clips.largest is None and found.clips.relabelled == 3  # the three of "jump"
    assert (found.clips.right_both, found.clips.wrong_both) == (3, 2)
    assert any("classes are not the same" in note for note in found.notes)
    assert "3 have another label" in "\n".join(lines(found))


def test_numbers_for_classes_are_taken_for_the_other_results_names():
    names = class_names(["0", "1"], ["b", "a"])
    assert names.a == names.b == ["b", "a"] and names.order.tolist() == [0, 1] and names.note.startswith("A ")
    assert class_names(["0", "1", "2"], ["b", "a"]).order is None


def test_other_data_is_said_and_only_shared_clips_are_counted(tmp_path):
    paths = [f"clips/{number}.mp4" for number in (3, 4, 5, 6, 7, 8, 9, 10)]
    b = leave(
        tmp_path / "b",
        [1, 0, 1, 0, 2, 0, 0, 0],
        labels=[1, 1, 1, 2, 2, 0, 0, 0],
        paths=paths,
        fingerprint="e" * 64,
    )
    found = compare(leave(tmp_path / "a", BEST_A), b)
    assert (found.clips.both, found.clips.only_a, found.clips.only_b) == (5, 3, 3)
    assert (found.clips.right_both, found.clips.right_a, found.clips.right_b) == (3, 1, 0)
    assert found.clips.p == 1 and found.clips.matched_by == "path"
    assert any("of different clips" in note for note in found.notes)


def test_one_list_under_two_roots_is_matched_below_them_and_other_lists_are_not():
    a, b = ["/data/x/1.mp4", "/data/y/2.mp4"], ["clips/y/2.mp4", "clips/x/1.mp4"]
    pairs = match(a, b, same_list=True)
    assert (pairs.a.tolist(), pairs.b.tolist(), pairs.matched_by) == (
        [0, 1],
        [1, 0],
        "path below the common folder",
    )
    assert len(match(a, b, same_list=False).a) == 0


def test_clips_of_one_path_are_matched_in_order_or_left_out():
    pairs = match(["f", "g", "f", "h", "h"], ["f", "f", "g", "h"], same_list=False)
    assert list(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)) == [(0, 0), (1, 2), (2, 1)]
    assert (pairs.repeated, pairs.unclear) == (2, 2)


def test_logits_are_not_compared_with_probabilities(tmp_path):
    b = leave(tmp_path / "b", BEST_B, protocol={"crops": "center", "clips": 1, "average": "score"})
    found = compare(leave(tmp_path / "a", BEST_A), b)
    assert found.clips.largest is None and found.clips.right_a == 3
    assert found.notes == ("scores are probabilities in A and logits in B: they are not compared",)


def test_several_labels_count_any_and_average_precision_says_which_classes(tmp_path):
    labels = [[0, 1], [0], [2]]
    ours, theirs = (
        [{"class": name, "count": 2, "ap": ap} for name, ap in zip(CLASSES, values, strict=True)]
        for values in ((0.5, 0.25, None), (0.25, 0.75, 0.5))
    )
    a = leave(tmp_path / "a", [1, 0, 0], labels=labels, per_class=ours)
    b = leave(tmp_path / "b", [0, 1, 0], labels=labels, per_class=theirs)
    found = compare(a, b)
    assert (found.clips.right_both, found.clips.right_a, found.clips.wrong_both) == (1, 1, 1)
    assert found.measure == "ap"
    assert [(row.name, row.difference) for row in found.classes] == [("jump", 0.5), ("cut", -0.25)]


def test_results_without_scores_compare_what_there_is(tmp_path):
    """Of key frames and of tags no scores are kept; a file that lies there is of something else."""
    a, b = leave(tmp_path / "a", BEST_A, unit="key frames"), leave(tmp_path / "b", BEST_B)
    (b / "scores.parquet").unlink()
    found = compare(a, b)
    assert found.clips is None and found.metrics[0].difference == -0.25
    assert [note.partition(":")[0] for note in found.notes] == [
        "A has no scores of single clips",
        "B has no scores of single clips",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not there"),
        ("{", "is damaged, or no JSON"),
        ("[1]", "is no result of `marey test`"),
        ('{"protocol": {}, "metrics": {"top1": "much"}}', r"got `str` - at `\$.metrics\[...\]`"),
        ("[" * 100_000, "is damaged"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, words):
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=words) as error:
        compare(tmp_path, tmp_path)
    assert error.value.code == "RESULTS_FILE" and str(file) in error.value.message
    assert "\n" not in error.value.message


def test_damaged_or_foreign_scores_are_refused(tmp_path):
    a = leave(tmp_path / "a", BEST_A)
    (a / "scores.parquet").write_bytes(b"PAR1 nothing")
    b = leave(tmp_path / "b", BEST_B)
    pq.write_table(pq.read_table(b / "scores.parquet").slice(1), b / "scores.parquet")
    c = leave(tmp_path / "c", BEST_A, labels=[3, *LABELS[1:]])
    d = leave(tmp_path / "d", BEST_A)
    table = pq.read_table(d / "scores.parquet")
    broken = pa.array([[float("nan")] * 3] * 8, pa.list_(pa.float32()))
    pq.write_table(table.set_column(3, "scores", broken), d / "scores.parquet")
    wanted = {a: "damaged", b: "of two tests", c: "of two tests", d: "NaN"}
    for folder, words in wanted.items():
        with pytest.raises(DataError, match=words) as error:
            compare(folder, folder)
        assert error.value.code == ("SCORES_NAN" if folder == d else "SCORES_FORMAT")


def command(monkeypatch, capsys, *words):
    """Exit code, output and errors of a command line."""
    monkeypatch.setattr(sys, "argv", ["marey", "compare", *map(str, words)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return (done.value.code, *capsys.readouterr())


def test_the_command_lists_clips_when_asked_and_prints_json(tmp_path, monkeypatch, capsys):
    a = leave(tmp_path / "a", BEST_A)
    b = leave(tmp_path / "b", BEST_B, list="caf\udce9.csv")
    code, out, _ = command(monkeypatch, capsys, a, b, "--list", 2)
    assert code == 0 and "p = 0.625" in out and r"caf\udce9.csv" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["clips/1.mp4", "cut", "cut", "jump"] in rows and not any("clips/2.mp4" in row for row in rows)
    code, out, _ = command(monkeypatch, capsys, a, b, "--json")
    found = json.loads(out)
    assert code == 0 and found["clips"]["p"] == 0.625 and len(found["clips"]["changed"]) == 4
    assert found["fields"][0]["b"] == "caf\udce9.csv"
    code, _, err = command(monkeypatch, capsys, a, tmp_path)
    assert code == 2 and err.startswith("marey: RESULTS_FILE: ")


def test_two_real_tests_by_different_protocols(tmp_path):
    """One checkpoint, tested as it is, by another rule with three crops, and by a copy of other weights."""
    lists = render_moving_shapes(tmp_path / "shapes", train=1, val=0, test=1, size=(48, 40), frames=12)
    classes = sorted(path.name for path in (tmp_path / "shapes" / "test").iterdir())
    recipe = marey.load_recipe(
        "demo.moving_shapes",
        {
            "model.options": {"width": 8, "segments": 4},
            "clips.frames": 4,
            "clips.short_side": 32,
            "clips.crop": 32,
            "clips.val.crop": 32,
            "clips.test.crop": 32,
            "data.workers": 0,
            "data.test": str(lists.test),
        },
    )
    for name in ("one", "two"):
        model = marey.create_model("tsm_r18", len(classes), width=8, segments=4)
        file = tmp_path / f"{name}.safetensors"
        save_checkpoint(file, model, preprocess=recipe.clips, class_names=classes, recipe={}, metrics={})
    out = {name: tmp_path / f"{name}.json" for name in ("plain", "again", "crops", "other")}
    marey.test(recipe, tmp_path / "one.safetensors", out=out["plain"])
    shutil.copy(tmp_path / "one.safetensors", tmp_path / "copy.safetensors")
    marey.test(recipe, tmp_path / "copy.safetensors", {"testing.views_per_forward": 1}, out=out["again"])
    protocol = {"clips.test.crops": "three", "clips.rule": "1.x"}
    marey.test(recipe, tmp_path / "one.safetensors", protocol, out=out["crops"])
    marey.test(recipe, tmp_path / "two.safetensors", out=out["other"])

    same = compare(out["plain"], out["again"])
    assert set(named(same)) == {"checkpoint", "settings.testing.views_per_forward"}
    assert {field.part for field in same.fields} == {"weights", "environment"}
    assert same.clips.both == len(classes) and same.clips.largest.difference == pytest.approx(0, abs=1e-6)

    crops = compare(out["plain"], out["crops"])
    assert named(crops) == {
        "protocol.crops": ("center", "three"),
        "settings.clips.test.crops": ("center", "three"),
        "settings.clips.rule": ("0.x", "1.x"),
    }
    assert abs(crops.clips.largest.difference) > 1e-4 and crops.notes == ()
    assert [row.name for row in crops.metrics] == ["top1", "top5", "mean_class", "loss"]

    other = named(compare(out["plain"], out["other"]))
    assert set(other) == {"checkpoint", "sha256"} and other["sha256"][0] != other["sha256"][1]
