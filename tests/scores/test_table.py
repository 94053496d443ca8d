"""Tables of scores: what they refuse, what ensembles read of them, and that files bring them back."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marey.errors import DataError, MareyError, UsageError, WeightsError
from marey.scores.files import read_published, read_scores, repeated_rows, write_published, write_scores
from marey.scores.table import Producer, align, read_as, score_table, softmax

RNG = np.random.RandomState(0)
CLIPS = RNG.standard_normal((3, 4, 5)).astype(np.float32)  # clips, videos, classes
IDS = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


def same(one, other):
    for name in ("logits", "probabilities", "clips", "labels"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b)), name
    assert (one.ids, one.classes, one.producer) == (other.ids, other.classes, other.producer)


def test_what_an_ensemble_reads_is_worked_out_from_the_clips():
    """Sums come back exactly from means in float64; softmax of a mean is not the mean of softmaxes."""
    total, sure = CLIPS.sum(axis=0), np.stack([softmax(clip) for clip in CLIPS])
    table = score_table(
        IDS,
        logits=total.astype(np.float64) / 3,
        probabilities=sure.sum(axis=0).astype(np.float64) / 3,
        clips=3,
    )
    assert np.array_equal(read_as(table, "summed_logits"), softmax(total))
    assert np.array_equal(read_as(table, "summed_probabilities"), softmax(sure.sum(axis=0)))
    assert read_as(table, "probabilities") == pytest.approx(sure.mean(axis=0), abs=1e-7)
    assert read_as(table, "mean_logits") == pytest.approx(softmax(CLIPS.mean(axis=0)), abs=1e-6)
    flat = read_as(score_table(IDS, probabilities=sure[0], clips=1), "summed_probabilities")
    assert flat.max() < np.e / (np.e + 4) + 1e-6, "a softmax of one softmax is nearly flat"
    assert read_as(table, "summed_logits").dtype == np.float32


def test_one_clip_gives_both_kinds_and_several_do_not():
    sure = softmax(CLIPS[0])
    one = score_table(IDS, logits=CLIPS[0], clips=1)
    assert np.array_equal(read_as(one, "probabilities"), sure)
    back = score_table(IDS, probabilities=sure, clips=1)
    assert read_as(back, "mean_logits") == pytest.approx(sure, abs=1e-6)
    for table, reading in (
        (score_table(IDS, logits=CLIPS[0], clips=2), "probabilities"),
        (score_table(IDS, probabilities=sure), "mean_logits"),
        (score_table(IDS, logits=CLIPS[0]), "summed_logits"),
    ):
        with pytest.raises(DataError) as error:
            read_as(table, reading)
        assert error.value.code == "SCORES_KIND"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "SCORES_KIND"),
        ({"logits": CLIPS[0][:3]}, "SCORES_SHAPE"),
        ({"logits": CLIPS}, "SCORES_SHAPE"),
        ({"logits": CLIPS[0], "classes": ["x"]}, "SCORES_SHAPE"),
        ({"logits": CLIPS[0], "probabilities": softmax(CLIPS[0])[:, :4]}, "SCORES_SHAPE"),
        ({"probabilities": CLIPS[0]}, "SCORES_KIND"),
        ({"logits": np.where(np.eye(4, 5) > 0, np.nan, CLIPS[0])}, "SCORES_NAN"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_that_makes_no_sense_is_refused(fields, code):
    with pytest.raises(MareyError) as error:
        score_table(IDS, **fields)
    assert error.value.code == code


def test_a_row_that_comes_again_is_dropped_unless_it_differs():
    rows = CLIPS[0][[0, 1, 2, 0]]
    table = score_table(["a", "b", "c", "a"], logits=rows, clips=[1, 1, 1, 1], labels=[0, 1, 2, 0])
    assert table.ids == ("a", "b", "c") and table.labels.tolist() == [0, 1, 2]
    rows[3] += 1
    with pytest.raises(DataError, match="rows of different scores, 0 and 3") as error:
        score_table(["a", "b", "c", "a"], logits=rows)
    assert error.value.code == "SCORES_DUPLICATE"


def test_tables_are_put_into_one_order_or_refused():
    one = score_table(IDS, logits=CLIPS[0], classes=list("vwxyz"))
    two = score_table(IDS[::-1], logits=CLIPS[1][::-1], labels=[3, 2, 1, 0])
    got = align({"one": one, "two": two})["two"]
    assert got.ids == one.ids and np.array_equal(got.logits, CLIPS[1]) and got.labels.tolist() == [0, 1, 2, 3]
    others = {
        "SCORES_IDS": score_table([*IDS[:3], "e.mp4"], logits=CLIPS[0]),
        "SCORES_SHAPE": score_table(IDS, logits=CLIPS[0][:, :4]),
        "LABEL_NAMES": score_table(IDS, logits=CLIPS[0], classes=list("vwyxz")),
    }
    for code, other in others.items():
        with pytest.raises(DataError) as error:
            align({"one": one, "other": other})
        assert error.value.code == code


# Files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_table_comes_back_from_its_file(tmp_path, dtype):
    made = Producer(model="uniformer_b", sha256="ab", recipe="r", views="3 x 1", inputs={"x": "cd"})
    table = score_table(
        IDS,
        logits=CLIPS[0].astype(dtype) / 3,
        probabilities=softmax(CLIPS[1]),
        clips=[1, 2, 3, 0],
        labels=[0, -1, 2, 3],
        classes=list("vwxyz"),
        producer=made,
    )
    write_scores(tmp_path / "x.parquet", table)
    same(read_scores(tmp_path / "x.parquet"), table)
    bare = score_table(IDS, logits=CLIPS[0])
    write_scores(tmp_path / "x.parquet", bare)
    same(read_scores(tmp_path / "x.parquet"), bare)


def of_a_test(path, scores, views=None, labels=None):
    """As `marey test` writes it."""
    views = [0] * len(scores) if views is None else views
    firsts = np.cumsum(np.array(views) == 0) - 1
    pq.write_table(
        pa.table(
            {
                "path": pa.array([IDS[row] for row in firsts]),
                "label": pa.array(labels or [[int(row)] for row in firsts], pa.list_(pa.int32())),
                "view": pa.array(views, pa.int32()),
                "scores": pa.array([row.tolist() for row in scores], pa.list_(pa.float32())),
            }
        ),
        path,
    )
    return path


def test_scores_of_a_test_are_read_and_their_kind_seen(tmp_path):
    file = tmp_path / "scores.parquet"
    logits = read_scores(of_a_test(file, CLIPS[0]))
    assert np.array_equal(logits.logits, CLIPS[0]) and logits.probabilities is None
    assert logits.ids == tuple(IDS) and logits.labels.tolist() == [0, 1, 2, 3] and not logits.clips.any()
    sure = read_scores(of_a_test(file, softmax(CLIPS[0])))
    assert sure.logits is None and np.array_equal(sure.probabilities, softmax(CLIPS[0]))
    several = of_a_test(file, 1 / (1 + np.exp(-CLIPS[0])), labels=[[0, 1], [], [2], [3]])
    with pytest.raises(DataError, match="--kind") as error:
        read_scores(several)
    assert error.value.code == "SCORES_KIND"
    assert read_scores(several, kind="probabilities", clips=3).clips.tolist() == [3] * 4
    assert read_scores(several, kind="logits").labels.tolist() == [-1, -1, 2, 3]


def test_single_views_are_averaged_both_ways(tmp_path):
    """Two views of the first video and three of the second."""
    rows = CLIPS.reshape(-1, 5)[:5]
    got = read_scores(of_a_test(tmp_path / "scores.parquet", rows, views=[0, 1, 0, 1, 2]))
    assert got.ids == tuple(IDS[:2]) and got.clips.tolist() == [2, 3]
    assert got.logits == pytest.approx(np.stack([rows[:2].mean(0), rows[2:].mean(0)]), abs=1e-6)
    sure = softmax(rows)
    assert got.probabilities == pytest.approx(np.stack([sure[:2].mean(0), sure[2:].mean(0)]), abs=1e-6)


def test_other_files_are_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not one")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "b.parquet")
    ragged = pa.table({"id": ["a", "b"], "logits": [[1.0], [1.0, 2.0]]})
    pq.write_table(ragged, tmp_path / "c.parquet")
    for name in ("a", "b", "c", "missing"):
        with pytest.raises(DataError, match=f"{name}.parquet") as error:
            read_scores(tmp_path / f"{name}.parquet")
        assert error.value.code == "SCORES_FORMAT"
    with pytest.raises(DataError, match=r"no file .*missing"):
        read_scores(tmp_path / "missing.parquet")


# Pickles of Nightcrawler ------------------------------------------------------------------------------


def pickled(path, scores, labels=(0, 1, 2, -1)):
    content = {"video_preds": scores, "video_labels": np.array(labels)}
    path.write_bytes(pickle.dumps(content))
    return path


def test_pickled_sums_become_means_and_come_back_to_the_bit(tmp_path):
    total = CLIPS.sum(axis=0)
    file = pickled(tmp_path / "testx32x224x1x3.pkl", total)
    table = read_published(file, IDS, kind="logits")
    assert table.clips.tolist() == [3] * 4 and table.labels.tolist() == [0, 1, 2, -1]
    assert table.logits == pytest.approx(CLIPS.mean(axis=0), abs=1e-6)
    assert np.array_equal(read_as(table, "summed_logits"), softmax(total))
    write_published(tmp_path / "again.pkl", table, kind="logits")
    # safe: this test wrote the file just now
    content = pickle.loads((tmp_path / "again.pkl").read_bytes())
    assert np.array_equal(content["video_preds"], total) and content["video_preds"].dtype == np.float32
    assert np.array_equal(content["video_labels"], [0, 1, 2, -1])


def test_the_sum_of_a_video_that_was_padded_in_is_divided_by_its_own_count(tmp_path):
    """9295 videos on 2 processes: item 7699 comes twice, as the published tables show."""
    assert repeated_rows(9295, 1, 2) == [7699] and repeated_rows(9296, 1, 2) == []
    assert repeated_rows(4, 3, 5)[0] == repeated_rows(12, 1, 5)[0] // 3 and len(repeated_rows(4, 3, 5)) == 3
    twice = repeated_rows(4, 1, 3)
    assert len(twice) == 2
    scores = CLIPS[0].copy()
    scores[twice] *= 2
    table = read_published(pickled(tmp_path / "x.pkl", scores), IDS, kind="logits", clips=1, processes=3)
    assert table.logits == pytest.approx(CLIPS[0], abs=1e-6)
    assert sorted(np.flatnonzero(table.clips == 2)) == sorted(twice)
    assert np.array_equal(read_as(table, "summed_logits"), softmax(scores)), "the published sums"


def test_probabilities_that_were_counted_twice_are_told_from_logits(tmp_path):
    sure = softmax(4 * CLIPS[0])
    for row in repeated_rows(4, 1, 3):
        sure[row] *= 2
    file = pickled(tmp_path / "aridx32x224x1x1.pkl", sure)
    with pytest.raises(DataError, match="--processes") as error:
        read_published(file, IDS, kind="probabilities")
    assert error.value.code == "SCORES_KIND"
    assert read_published(file, IDS, kind="probabilities", processes=3).clips.sum() == 6


def test_a_pickle_is_never_run_and_what_it_lacks_is_named(tmp_path):
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    file = tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps({"video_preds": Harm()}))
    with pytest.raises(WeightsError) as unsafe:
        read_published(file, IDS, kind="logits", clips=1)
    assert unsafe.value.code == "WEIGHTS_UNSAFE"
    for content in ({"video_preds": CLIPS[0]}, [1, 2]):
        file.write_bytes(pickle.dumps(content))
        with pytest.raises(DataError) as error:
            read_published(file, IDS, kind="logits", clips=1)
        assert error.value.code == "SCORES_FORMAT"
    pickled(file, CLIPS[0])
    with pytest.raises(DataError, match="list"):
        read_published(file, IDS[:3], kind="logits", clips=1)
    with pytest.raises(UsageError) as unknown:
        read_published(file, IDS, kind="logits")
    assert unknown.value.code == "CLIPS_UNKNOWN"
