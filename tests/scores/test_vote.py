"""Ensembles and votes against what the published code decided, and against sums written out."""

import msgspec
import numpy as np
import pytest
import torch

from marey.errors import DataError, UsageError
from marey.scores.presets import list_presets, load_preset
from marey.scores.select import select
from marey.scores.table import score_table, softmax
from marey.scores.vote import (
    Block,
    Correct,
    Ensemble,
    Mix,
    Override,
    Route,
    Vote,
    combine,
    correct,
    equal,
    fit_weights,
    inputs,
    majority,
)
from tests.scores.draws import drawn, load

STAGES, VOTES = load("stages"), load("votes")


def result(name, members):
    preset = load_preset(name)
    return preset, combine(preset, {key: members[key] for key in preset.members})


@pytest.mark.parametrize("case", STAGES["cases"])
def test_stages_keep_and_label_the_rows_that_the_published_scripts_did(case):
    want = STAGES["cases"][case]
    truth, members = drawn(STAGES)
    preset, got = result(f"nightcrawler-2022/{case.replace('_', '-')}", members)
    kept = np.arange(len(truth))
    if preset.select is not None and "kept" in want:
        kept = np.flatnonzero(select(got.probabilities, got.labels, preset.select).kept)
        assert kept.tolist() == want["kept"]
    assert got.labels[kept].tolist() == want["labels"]
    assert got.probabilities[kept].max(axis=1) == pytest.approx(np.array(want["max_prob"]), abs=1e-6)
    if "prob_sum" in want:
        assert got.probabilities[kept].sum(axis=1) == pytest.approx(np.array(want["prob_sum"]), abs=1e-6)
    if "probabilities" in want:
        first = np.array(want["probabilities"])
        assert got.probabilities[kept][: len(first)] == pytest.approx(first, abs=1e-6)
    if "accuracy" in want:
        assert np.mean(got.labels[kept] == truth[kept]) == want["accuracy"]


@pytest.mark.parametrize("mode", VOTES["cases"])
def test_the_five_files_of_the_vote_are_the_published_ones(mode):
    want = VOTES["cases"][mode]
    truth, members = drawn(VOTES)
    _, got = result(f"nightcrawler-2022/{mode}", members)
    assert got.mixed.tolist() == want["mixture_argmax"] and got.labels.tolist() == want["final"]
    assert got.probabilities.max(axis=1) == pytest.approx(np.array(want["mixture_max"]), abs=1e-6)
    assert got.probabilities.sum(axis=1).min() == pytest.approx(want["mixture_sum_min"], abs=1e-6)
    assert {f"{a}->{b}": rows for (a, b), rows in got.moved.items()} == want["fired"]
    assert int((got.mixed != got.labels).sum()) == want["changed"]
    assert softmax(got.probabilities)[:4] == pytest.approx(np.array(want["output_first4"]), abs=1e-6)
    assert [np.mean(got.mixed == truth), np.mean(got.labels == truth)] == pytest.approx(
        [want["accuracy_before"], want["accuracy_after"]]
    )


def test_votes_over_files_are_the_published_ones():
    truth, members = drawn(VOTES)
    files = [result(f"nightcrawler-2022/mode{mode}", members)[1] for mode in range(5)]
    for chosen, want in VOTES["expected"]["votes"].items():
        some = [files[mode] for mode in msgspec.json.decode(chosen)]
        labels, _ = majority([f.labels for f in some], [f.probabilities for f in some], "lowest")
        assert labels.tolist() == want, chosen
    preset = load_preset("nightcrawler-2022/vote")
    assert preset.of == ("nightcrawler-2022/mode1", "nightcrawler-2022/mode4") and preset.ties == "lowest"
    two = [files[1], files[4]]
    labels, shown = majority([f.labels for f in two], [f.probabilities for f in two], preset.ties)
    assert labels.tolist() == VOTES["expected"]["vote"]
    assert np.mean(labels == truth) == pytest.approx(VOTES["expected"]["vote_accuracy"])
    for row, label in enumerate(labels):
        first = next(f for f in two if f.labels[row] == label)
        assert np.array_equal(shown[row], first.probabilities[row])


@pytest.mark.parametrize("mode", VOTES["expected"]["direct"])
def test_every_rule_alone_does_what_the_published_function_does(mode):
    count, rng = VOTES["input"]["direct_n"], np.random.RandomState(VOTES["input"]["direct_seed"])
    probabilities, start = rng.dirichlet(0.3 * np.ones(11), count), rng.randint(0, 11, count)
    blocks = load_preset(f"nightcrawler-2022/{mode}").steps[-1].blocks
    got = correct(start, probabilities, blocks)
    assert got.tolist() == VOTES["expected"]["direct"][mode]
    assert np.any(got != start)


def test_a_limit_is_compared_as_the_decimal_that_it_is():
    """As the source compares, in float64: a probability on a limit counts as both sides of it, and a float32
    that rounds to a limit is what it is."""
    block = Block(label=0, column=0, at_most=0.73, then=({"to": 2, "at_least": 0.03},))
    (rule,) = msgspec.convert(msgspec.to_builtins(Correct(blocks=(block,))), Correct).blocks
    start = np.zeros(4, np.int64)
    on = np.array([[0.73, 0, 0.03], [0.73, 0, 0.2], [0.7301, 0, 0.03], [0.2, 0, 0.0299]])
    assert correct(start, on, (rule,)).tolist() == [2, 2, 0, 0]
    near = on.astype(np.float32)  # 0.73 becomes more, 0.03 less
    near[1, 0] = np.nextafter(np.float32(0.73), np.float32(0))
    assert correct(start, near, (rule,)).tolist() == [0, 2, 0, 0]


def test_probabilities_are_those_of_the_source_s_softmax_to_the_bit():
    scores = np.random.RandomState(0).standard_normal((500, 11)).astype(np.float32) * 3
    assert np.array_equal(softmax(scores), torch.from_numpy(scores).softmax(-1).numpy())


# What the mechanism does ------------------------------------------------------------------------------

A = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], np.float32)
B = np.array([[0.1, 0.8, 0.1], [0.3, 0.6, 0.1]], np.float32)


def ensemble(*steps):
    return Ensemble(about="", members={"a": "probabilities", "b": "probabilities"}, steps=steps)


def test_a_mixture_is_a_weighted_mean_and_sums_to_one_unless_told_otherwise():
    for weights, renormalise, want in (
        ({"a": 3.0, "b": 1.0}, True, 0.75 * A + 0.25 * B),
        ({"a": 0.5, "b": 0.1}, False, 0.5 * A + 0.1 * B),
    ):
        got = combine(ensemble(Mix(weights=weights, renormalise=renormalise)), {"a": A, "b": B})
        assert got.probabilities == pytest.approx(want, abs=1e-7) and got.probabilities.dtype == np.float32
        assert got.labels.tolist() == want.argmax(axis=1).tolist()
    assert got.members["b"].tolist() == [1, 1] and got.sure["a"].tolist() == pytest.approx([0.6, 0.6])


def test_the_first_route_that_fits_replaces_the_weights():
    one = Route(by="a", classes=(0,), weights={"b": 2.0})
    other = Route(by="b", classes=(1,), weights={"a": 1.0})
    got = combine(ensemble(Mix(weights={"a": 1.0, "b": 1.0}, routes=(one, other))), {"a": A, "b": B})
    assert got.probabilities == pytest.approx(np.stack([B[0], A[1]]))


def test_an_override_hands_rows_over_whatever_the_member_says():
    got = combine(ensemble(Mix(weights={"a": 1.0}), Override(classes=(2,), member="b")), {"a": A, "b": B})
    assert got.probabilities == pytest.approx(np.stack([A[0], B[1]])) and got.labels.tolist() == [0, 1]


def test_a_row_moved_into_a_later_block_moves_again_and_a_tie_takes_the_lower_class():
    blocks = (
        Block(label=0, column=0, at_most=0.61, then=({"to": 2, "at_least": 0.9}, {"to": 1, "at_least": 0.3})),
        Block(label=1, column=1, at_most=0.5, then=({"to": 2, "at_least": 0.1},)),
    )
    rules = msgspec.convert(msgspec.to_builtins(Correct(blocks=blocks)), Correct)
    got = combine(ensemble(Mix(weights={"a": 1.0, "b": 0.0}), rules), {"a": A, "b": B})
    assert got.labels.tolist() == [2, 2] and got.mixed.tolist() == [0, 2]
    assert got.moved == {(0, 1): 1, (1, 2): 1}
    assert got.probabilities == pytest.approx(A), "corrections leave probabilities alone"
    tie = np.array([[0.5, 0.5, 0.0]], np.float32)
    assert combine(ensemble(Mix(weights={"a": 1.0, "b": 1.0})), {"a": tie, "b": tie}).labels.tolist() == [0]


def test_a_vote_takes_the_more_probable_label_where_two_disagree():
    labels = [np.array([2, 1]), np.array([0, 1])]
    probabilities = [np.array([[0.1, 0.0, 0.9], [0, 1, 0]]), np.array([[0.6, 0.1, 0.3], [0, 1, 0]])]
    probabilities = [values.astype(np.float32) for values in probabilities]
    assert majority(labels, probabilities, "probable")[0].tolist() == [2, 1]
    assert majority(labels, probabilities, "lowest")[0].tolist() == [0, 1]
    got, shown = majority([*labels, labels[1]], [*probabilities, probabilities[1]])
    assert got.tolist() == [0, 1] and shown[0] == pytest.approx(probabilities[1][0])


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((Override(classes=(0,), member="a"), Mix(weights={"a": 1.0, "b": 1.0})), "first step"),
        ((Mix(weights={"a": 1.0, "c": 1.0, "b": 1.0}),), "'c'"),
        ((Mix(weights={"a": 1.0}),), "'b'"),
        ((Mix(weights={"a": 0.0, "b": 0.0}),), "not be below 0, nor all 0"),
        ((Mix(weights={"a": 1.0, "b": 1.0}), Override(classes=(-1,), member="a")), "count from 0"),
    ],
    ids=str,
)
def test_an_ensemble_that_makes_no_sense_is_refused(steps, said):
    with pytest.raises(UsageError, match=said) as error:
        ensemble(*steps)
    assert error.value.code == "PRESET_INVALID"


def test_members_are_read_as_the_ensemble_says_and_put_into_one_order():
    logits = np.log(A).astype(np.float32)
    tables = {
        "a": score_table(["x", "y"], logits=2 * logits, clips=2),
        "b": score_table(["y", "x"], probabilities=B[::-1], clips=2),
    }
    preset = Ensemble(
        about="",
        members={"a": "summed_logits", "b": "summed_probabilities"},
        steps=(Mix(weights={"a": 1.0, "b": 1.0}),),
    )
    got = inputs(preset, tables)
    assert got["a"] == pytest.approx(softmax(4 * logits), abs=1e-6)
    assert got["b"] == pytest.approx(softmax(2 * B), abs=1e-6)
    rule = Correct(blocks=(Block(label=0, column=3, at_most=0.5, then=()),))
    with pytest.raises(DataError, match="name class 3") as error:
        inputs(ensemble(*preset.steps, rule), tables)
    assert error.value.code == "SCORES_SHAPE"
    with pytest.raises(UsageError, match="no scores of b") as error:
        inputs(preset, {"a": tables["a"]})
    assert error.value.code == "SCORES_NAMES"
    with pytest.raises(DataError, match="member b") as error:
        inputs(equal(["b"], reading="mean_logits"), {"b": tables["b"]})
    assert error.value.code == "SCORES_KIND"


def test_fitted_weights_are_those_of_least_loss():
    """Against a grid over all weights of two members; a member that knows nothing gets next to none."""
    rng = np.random.RandomState(0)
    truth = rng.randint(0, 4, 600)
    members = {}
    for name, strength in (("good", 2.0), ("fair", 1.0), ("blind", 0.0)):
        scores = rng.standard_normal((600, 4))
        scores[np.arange(600), truth] += strength
        members[name] = softmax(scores)
    pair = {name: members[name] for name in ("good", "fair")}
    fitted = fit_weights(pair, truth)
    own = [values[np.arange(600), truth].astype(np.float64) for values in pair.values()]
    grid = np.linspace(0, 1, 1001)
    best = grid[np.argmin([-np.log(w * own[0] + (1 - w) * own[1]).mean() for w in grid])]
    assert fitted.weights["good"] == pytest.approx(best, abs=0.002)
    assert sum(fitted.weights.values()) == pytest.approx(1)
    all_ = fit_weights(members, truth)
    assert all_.weights["blind"] < 0.1 and all_.loss < all_.equal
    unknown = np.where(np.arange(600) < 300, truth, -1)
    half = fit_weights({name: values[:300] for name, values in pair.items()}, truth[:300])
    assert fit_weights(pair, unknown).weights == pytest.approx(half.weights)
    with pytest.raises(DataError, match="too few"):
        fit_weights(pair, np.full(600, -1))


# Presets ----------------------------------------------------------------------------------------------


def test_every_published_preset_says_what_is_odd_and_has_one_without_beside_it():
    found = list_presets()
    published = [name for name in found if name.startswith("nightcrawler-2022/")]
    assert len(published) == 13 and len(found) == 24
    for name in published:
        preset, beside = found[name], found[found[name].corrected]
        assert preset.quirks and not beside.quirks and beside.corrected is None
        if isinstance(beside, Vote):
            assert beside.ties == "probable" and all(
                part.startswith("nightcrawler-corrected") for part in beside.of
            )
            continue
        assert set(beside.members.values()) == {"probabilities"} and not beside.selected_on
        assert all(step.renormalise for step in beside.steps if isinstance(step, Mix))
        for step in beside.steps:
            for block in step.blocks if isinstance(step, Correct) else ():
                assert block.label == block.column


def test_rules_of_the_corrected_modes_are_the_published_ones_but_for_their_slips():
    """Class 7 is reached through the router, whose rows sum to 0.3 there and to 1 here."""
    for mode in range(1, 5):
        old, new = (
            load_preset(f"nightcrawler-{kind}/mode{mode}").steps[-1].blocks for kind in ("2022", "corrected")
        )
        for a, b in zip(old, new, strict=True):
            scale = 0.3 if a.label == 7 else 1.0
            assert (a.label, b.column) == (b.label, a.label)
            assert b.at_most * scale == pytest.approx(a.at_most, abs=1e-4)
            for x, y in zip(a.then, b.then, strict=True):
                assert (x.to, x.at_least) == (y.to, pytest.approx(y.at_least * scale, abs=1e-4))
    slip = load_preset("nightcrawler-2022/mode1").steps[-1].blocks[2]
    assert (slip.label, slip.column) == (8, 9)


def test_a_preset_of_one_s_own_is_read_from_a_file(tmp_path):
    file = tmp_path / "mine.json"
    own = equal(["x", "y"], [2.0, 1.0])
    file.write_bytes(msgspec.json.encode({"two": own}))
    assert load_preset(str(file)) == own and load_preset(f"{file}/two") == own
    file.write_bytes(msgspec.json.encode({"two": own, "three": own}))
    with pytest.raises(UsageError) as error:
        load_preset(str(file))
    assert error.value.code == "UNKNOWN_PRESET" and "three" in error.value.message
    for text in (
        "{",
        '{"a": {"kind": "ensemble"}}',
        '{"a": {"kind": "vote", "about": "", "of": [], "x": 1}}',
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"mine\.json"):
            load_preset(str(file))
    with pytest.raises(UsageError, match="did you mean nightcrawler-2022/stage") as error:
        load_preset("nightcrawler-2022/stage")
    assert error.value.code == "UNKNOWN_PRESET"
    with pytest.raises(UsageError, match="2 weights for 3"):
        equal(["a", "b", "c"], [1.0, 2.0])
