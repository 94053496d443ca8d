"""`marey vote` and `marey pseudo-label`, from score files to tables, reports and cards."""

import csv
import json
import pickle
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from marey import cli
from marey.data.lists import read_list
from marey.errors import DataError, UsageError
from marey.jobs import pseudo_label as label_job
from marey.jobs import vote as vote_job
from marey.jobs.provenance import is_current, read_card, sha256_of
from marey.jobs.pseudo_label import check, pseudo_label
from marey.jobs.scores import open_scores
from marey.jobs.vote import vote, write_submission
from marey.scores.files import read_published, read_scores, write_scores
from marey.scores.labels import read_labels
from marey.scores.presets import load_preset
from marey.scores.select import Filters
from marey.scores.table import score_table, softmax
from marey.scores.vote import Combined
from tests.scores.draws import draw_scores, load

STAGES, VOTES = load("stages"), load("votes")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Score files of four members as the source writes them, list.csv and truth.csv; all are logits, mvit's
    too, as in the reference case."""
    spec = STAGES["input"]
    truth, scores = draw_scores(*(spec[key] for key in ("seed", "n", "members", "spread", "strength")))
    for name, values in scores.items():
        content = {"video_preds": values, "video_labels": np.full(len(truth), -1)}
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content))
    (tmp_path / "list.csv").write_text("".join(f"{row}.mp4,-1\n" for row in range(len(truth))))
    (tmp_path / "truth.csv").write_text("".join(f"{row}.mp4,{y}\n" for row, y in enumerate(truth)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


FOUR = ["ssv2.pkl", "uni.pkl", "mvit.pkl", "slowfast.pkl"]
GIVEN = {"listed": "list.csv", "clips": 1, "kind": "logits"}


def marey(monkeypatch, capsys, *words):
    """Exit code, output and errors of a command line."""
    monkeypatch.setattr(sys, "argv", ["marey", *words])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return (done.value.code, *capsys.readouterr())


def test_published_pickles_give_the_published_labels(folder):
    """From the files to the list, and back; the logits of mvit stand in as what is summed."""
    preset = msgspec.to_builtins(load_preset("nightcrawler-2022/stage2"))
    preset["members"]["mvit"] = "summed_logits"
    (folder / "mine.json").write_bytes(msgspec.json.encode({"stage2": preset}))
    made = pseudo_label(
        FOUR,
        out="labels.parquet",
        preset="mine.json",
        published="stage2.csv",
        round=2,
        truth="truth.csv",
        **GIVEN,
    )
    want = STAGES["cases"]["stage2"]
    got = read_labels("stage2.csv")
    assert got.ids == tuple(f"{row}.mp4" for row in want["kept"]) and got.labels.tolist() == want["labels"]
    report = made.report
    assert (report["kept"], report["measured"]["accuracy"]) == (len(want["kept"]), want["accuracy"])
    assert report["labels_used"].startswith("thresholds were taken by hand")
    table = read_labels("labels.parquet")
    assert len(table) == 300 and table.origin.round == 2 and set(table.members) == set(preset["members"])
    assert table.origin.members["uni"] == sha256_of("uni.pkl")


def test_a_vote_is_a_table_again_with_a_card_of_its_inputs(folder):
    found = vote(FOUR[:2], weights=[3, 1], truth="truth.csv", out="both.parquet", **GIVEN)
    table, parts = (
        read_scores("both.parquet"),
        [read_published(f, found.ids, kind="logits", clips=1) for f in FOUR[:2]],
    )
    want = 0.75 * softmax(parts[0].logits) + 0.25 * softmax(parts[1].logits)
    assert table.probabilities == pytest.approx(want, abs=1e-6)
    assert table.producer.inputs == {"ssv2": sha256_of("ssv2.pkl"), "uni": sha256_of("uni.pkl")}
    card = read_card("both.manifest.json")
    assert set(card.inputs) == {"ssv2", "uni", "list"} and card.outputs["scores"].path == "both.parquet"
    assert is_current(
        "both.manifest.json",
        "vote",
        card.settings,
        {"ssv2": "ssv2.pkl", "uni": "uni.pkl", "list": "list.csv"},
    )
    again = vote(["both.parquet", "third=mvit.pkl"], truth="truth.csv", **GIVEN)
    assert again.report["measured"]["accuracy"] > found.report["members"]["uni"]["measured"]["accuracy"]
    assert again.report["videos"] == 300 and set(again.report["members"]) == {"both", "third"}


def test_the_published_vote_reads_ten_files_and_writes_what_was_submitted(folder, tmp_path):
    spec = VOTES["input"]
    _, scores = draw_scores(*(spec[key] for key in ("seed", "n", "members", "spread", "strength")))
    ids = [f"{row}.mp4" for row in range(spec["n"])]
    for name, values in scores.items():
        write_scores(tmp_path / f"{name}.parquet", score_table(ids, logits=values, clips=1))
    preset = {}
    for mode in (1, 4):
        plain = msgspec.to_builtins(load_preset(f"nightcrawler-2022/mode{mode}"))
        plain["members"] = dict.fromkeys(plain["members"], "summed_logits")
        preset[f"mode{mode}"] = plain
    file = tmp_path / "modes.json"
    file.write_bytes(msgspec.json.encode(preset))
    both = {"kind": "vote", "about": "", "of": [f"{file}/mode1", f"{file}/mode4"], "ties": "lowest"}
    (tmp_path / "vote.json").write_bytes(msgspec.json.encode({"vote": both}))
    files = [str(tmp_path / f"{name}.parquet") for name in scores]
    found = vote(files, preset=str(tmp_path / "vote.json"), out="arid_pred.csv")
    assert found.combined.labels.tolist() == VOTES["expected"]["vote"]
    with Path("arid_pred.csv").open(newline="") as opened:
        head, *rows = csv.reader(opened)
    assert head == VOTES["expected"]["header"] and [int(row[2]) for row in rows] == VOTES["expected"]["vote"]
    assert rows[7][:2] == ["7", "7.mp4"] and rows[7][3].startswith("tensor([[")
    with pytest.raises(DataError) as error:
        vote(files, preset=f"{file}/mode1", out="mode1.parquet")
    assert error.value.code == "VOTE_LABELS"


def test_a_submission_s_digits_are_rounded_once(tmp_path):
    """The source softmaxes in float64; in float32 one of these would end in another digit."""
    row = np.random.RandomState(0).dirichlet(0.5 * np.ones(11), 4000).astype(np.float32)[[1275, 1951]]
    labels = row.argmax(axis=1)
    write_submission(tmp_path / "out.csv", ["a", "b"], Combined(row, labels, labels, {}, {}, {}))
    with (tmp_path / "out.csv").open(newline="") as opened:
        _, *rows = csv.reader(opened)
    want = torch.from_numpy(row.astype(np.float64)).softmax(1).to(torch.float32)
    assert [line[3] for line in rows] == [str(one.unsqueeze(0)) for one in want]


def test_fitted_weights_say_on_what_they_were_fitted(folder):
    found = vote(FOUR[:2], fit=True, truth="truth.csv", **GIVEN)
    assert sum(found.report["fitted"]["weights"].values()) == pytest.approx(1)
    weights = found.report["fitted"]["weights"]
    scores = {
        name: read_published(f"{name}.pkl", found.ids, kind="logits", clips=1).logits for name in weights
    }
    want = sum(weight * softmax(scores[name]) for name, weight in weights.items())
    assert found.combined.probabilities == pytest.approx(want, abs=1e-6)
    assert "fitted on the true labels" in found.report["labels_used"]
    assert "log loss held out" in "\n".join(vote_job.lines(found.report))
    with pytest.raises(DataError) as error:
        vote(FOUR[:2], fit=True, **GIVEN)
    assert error.value.code == "TRUTH_MISSING"


def test_selection_reads_no_label_unless_the_policy_needs_them(folder):
    """The same table with and without truth; with a policy that needs it the table says so."""
    plain = pseudo_label(FOUR, out="a.csv", filters=Filters(agreement=0.75), **GIVEN)
    told = pseudo_label(FOUR, out="b.csv", filters=Filters(agreement=0.75), truth="truth.csv", **GIVEN)
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()
    assert plain.labels.origin.labels_used == told.labels.origin.labels_used == ""
    assert "measured" not in plain.report and told.report["measured"]["accuracy"] > 0.95
    assert "truth" not in read_card("b.manifest.json").inputs
    best = pseudo_label(FOUR, out="c.parquet", policy="precision:0.97", truth="truth.csv", **GIVEN)
    assert "true labels" in best.labels.origin.labels_used
    assert "truth" in read_card("c.manifest.json").inputs
    with pytest.raises(UsageError) as error:
        pseudo_label(FOUR, out=None, policy="precision:0.97", **GIVEN)
    assert error.value.code == "TRUTH_MISSING"


def test_rounds_are_compared(folder):
    first = pseudo_label(FOUR[:2], out="one.parquet", policy="quantile:0.4", **GIVEN)
    second = pseudo_label(FOUR, out="two.parquet", policy="quantile:0.8", previous="one.parquet", **GIVEN)
    report = check("two.parquet", truth="truth.csv", previous="one.parquet")
    changes, old, new = report["previous"], first.labels, second.labels
    assert changes["new"] == int((new.kept & ~old.kept).sum()) == changes["new_known"]
    assert changes["dropped"] == int((old.kept & ~new.kept).sum())
    assert changes["changed"] == int((old.kept & new.kept & (old.labels != new.labels)).sum())
    assert f"{changes['new']:,} new" in "\n".join(label_job.lines(report))


def test_a_test_video_is_never_labelled(folder):
    (folder / "test.csv").write_text("7.mp4,-1\nother.mp4,-1\n")
    with pytest.raises(DataError, match=r"7\.mp4") as error:
        pseudo_label(FOUR, out="x.csv", test="test.csv", **GIVEN)
    assert error.value.code == "TEST_LEAK" and not (folder / "x.csv").exists()


def test_a_copy_of_a_test_video_is_found_under_another_name(folder):
    for place, content in (("target", b"dark"), ("tests", b"light")):
        (folder / place).mkdir()
        (folder / place / "7.mp4").write_bytes(content)
    (folder / "test.csv").write_text("7.mp4,-1\n")
    roots = ("target", "tests")
    pseudo_label(FOUR, out=None, test="test.csv", roots=roots, **GIVEN)  # other content
    (folder / "target" / "9.mp4").write_bytes(b"light")
    with pytest.raises(DataError, match=r"9\.mp4 \(same content\)") as error:
        pseudo_label(FOUR, out=None, test="test.csv", roots=roots, **GIVEN)
    assert error.value.code == "TEST_LEAK"


def test_what_is_missing_is_named(folder):
    for words, code in (
        ({"sources": ["ssv2.pkl"]}, "LIST_NEEDED"),
        ({"sources": ["ssv2.pkl"], "listed": "list.csv"}, "SCORES_KIND"),
        ({"sources": ["ssv2.pkl"], "listed": "list.csv", "kind": "logits"}, "CLIPS_UNKNOWN"),
        ({"sources": ["ssv2.pkl", "ssv2=uni.pkl"], **GIVEN}, "SCORES_NAMES"),
    ):
        with pytest.raises(UsageError) as error:
            open_scores(**words)
        assert error.value.code == code
    with pytest.raises(UsageError, match="slowfast") as error:
        vote(FOUR[:3], preset="nightcrawler-2022/stage1", **GIVEN)
    assert error.value.code == "SCORES_NAMES"
    for out in ("x.txt", "x"):
        with pytest.raises(UsageError) as error:
            vote(FOUR, out=out, **GIVEN)
        assert error.value.code == "OUT_SUFFIX"


def test_scores_of_marey_test_bring_their_protocol(tmp_path):
    """Whether they are probabilities is said by the results beside them."""
    from tests.scores.test_table import of_a_test

    run = tmp_path / "run"
    run.mkdir()
    of_a_test(run / "scores.parquet", np.zeros((4, 5)) + np.arange(5) / 4)  # in 0..1, and no softmax
    with pytest.raises(DataError):
        open_scores([str(run / "scores.parquet")])
    results = {
        "protocol": {"average": "score", "clips": 3},
        "recipe": "finetune",
        "checkpoint": "x.safetensors",
    }
    (run / "results.json").write_text(json.dumps(results))
    table = open_scores([f"a={run / 'scores.parquet'}"]).tables["a"]
    assert table.logits is not None and table.probabilities is None
    assert (table.producer.recipe, table.producer.model) == ("finetune", "x.safetensors")
    assert "clips 3" in table.producer.views


def test_temperatures_of_members_are_found_on_labels_and_used_without(folder):
    """A member that is too sure of itself by 3 gets that temperature; then it is mixed as if it were not."""
    table = read_published("uni.pkl", [f"{row}.mp4" for row in range(300)], kind="logits", clips=1)
    write_scores("sure.parquet", score_table(table.ids, logits=3 * table.logits, clips=1))
    found = [
        vote([file], truth="truth.csv", **GIVEN).report["members"][name]["measured"]["temperature"]
        for name, file in (("uni", "uni.pkl"), ("sure", "sure.parquet"))
    ]
    assert found[1] == pytest.approx(3 * found[0], rel=1e-3)
    mixed = vote(["ssv2.pkl", "sure.parquet"], temperatures={"sure": 3.0}, **GIVEN).combined.probabilities
    want = vote(["ssv2.pkl", "uni.pkl"], **GIVEN).combined.probabilities
    assert mixed == pytest.approx(want, abs=1e-5)
    with pytest.raises(UsageError, match="'other'"):
        vote(["ssv2.pkl"], temperatures={"other": 2.0}, **GIVEN)


def test_the_kept_rows_are_a_list_to_train_on(folder):
    made = pseudo_label(FOUR, out="l.parquet", train="train.csv", **GIVEN).labels
    clips = read_list("train.csv", root="")
    assert [(Path(clip.path).name, clip.labels) for clip in clips] == [
        (made.ids[row], (made.labels[row],)) for row in np.flatnonzero(made.kept)
    ]


# The command line -------------------------------------------------------------------------------------


def test_the_commands_print_reports_and_json(folder, monkeypatch, capsys):
    given = ["--list", "list.csv", "--clips", "1", "--kind", "logits"]
    code, out, _ = marey(monkeypatch, capsys, "vote", *FOUR, *given, "--truth", "truth.csv", "--json")
    assert code == 0 and json.loads(out)["measured"]["rows"] == 300
    code, out, _ = marey(monkeypatch, capsys, "vote", "--presets")
    assert code == 0 and "nightcrawler-2022/vote" in out
    code, out, _ = marey(monkeypatch, capsys, "vote", "--presets", "--preset", "nightcrawler-2022/mode1")
    assert code == 0 and json.loads(out)["mode1"]["steps"][2]["step"] == "correct"
    code, out, _ = marey(
        monkeypatch, capsys, "pseudo-label", *FOUR, *given, "--out", "l.csv", "--margin", "0.2"
    )
    assert code == 0 and "videos kept" in out and read_labels("l.csv").kept.sum() < 150
    code, out, _ = marey(
        monkeypatch, capsys, "pseudo-label", "check", "l.csv", "--truth", "truth.csv", "--json"
    )
    assert code == 0 and json.loads(out)["measured"]["accuracy"] > 0.9
    mixed = ["--kind", "logits", "--kind", "mvit=probabilities"]
    code, _, errors = marey(monkeypatch, capsys, "vote", *FOUR, *given[:4], *mixed)
    assert code == 4 and "SCORES_KIND" in errors, "mvit's are logits here"


def test_wrong_use_is_one_line_and_two(folder, monkeypatch, capsys):
    for words, said in (
        (["vote"], "NO_SCORES"),
        (["vote", "ssv2.pkl", "--weights", "a"], "PRESET_INVALID"),
        (["vote", "ssv2.pkl", "--preset", "nightcrawler-2022/stage9"], "UNKNOWN_PRESET"),
        (["vote", "ssv2.pkl", "--kind", "odds"], "SCORES_KIND"),
        (
            [
                "pseudo-label",
                "ssv2.pkl",
                "--list",
                "list.csv",
                "--kind",
                "logits",
                "--clips",
                "1",
                "--policy",
                "x",
            ],
            "POLICY",
        ),
    ):
        code, _, errors = marey(monkeypatch, capsys, *words)
        assert code == 2 and said in errors and len(errors.strip().splitlines()) == 1, words


@pytest.mark.parametrize("command", [["vote"], ["pseudo-label", "make"]])
def test_scores_of_one_class_are_refused_in_one_line(tmp_path, monkeypatch, capsys, command):
    table = score_table(["a", "b"], probabilities=[[0.9], [0.3]], clips=1)
    write_scores(tmp_path / "one.parquet", table)
    code, out, said = marey(
        monkeypatch, capsys, *command, str(tmp_path / "one.parquet"), "--out", str(tmp_path / "out.parquet")
    )
    assert (code, out) == (4, "") and len(said.splitlines()) == 1
    assert said.startswith("marey: SCORES_SHAPE: scores of a single class")
