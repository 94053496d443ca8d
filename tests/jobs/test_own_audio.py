"""A user's audio features: found by any reasonable name, never taken for another video's."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from marey.errors import DataError
from marey.jobs.own_audio import OwnAudio

IDS = ["clips/a.mp4", "clips/b.mp4", "more/c.mp4", "other/c.mp4", "none.mp4"]
ROWS = {name: np.arange(6, dtype=np.uint8).reshape(2, 3) + 10 * i for i, name in enumerate(IDS[:4])}


def test_folders_hold_a_file_for_each_video(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "more").mkdir()
    np.save(tmp_path / "clips" / "a.npy", ROWS[IDS[0]])
    np.savez(tmp_path / "b.npz", audio=ROWS[IDS[1]], other=np.zeros(3))
    safetensors.numpy.save_file({"x": ROWS[IDS[2]]}, tmp_path / "more" / "c.mp4.safetensors")
    np.save(tmp_path / "c.npy", ROWS[IDS[3]])  # of which of the two?
    found = OwnAudio(tmp_path, IDS)
    assert (found.width, found.bytes) == (3, True)
    for name in IDS[:3]:
        assert (found(name) == ROWS[name]).all()
    assert found(IDS[3]) is None
    assert found("none.mp4") is None


def test_one_file_holds_all_videos(tmp_path):
    names = ["clips/a.mp4", "clips/b", "more/c.mp4", "other/c"]
    np.savez(tmp_path / "all.npz", **dict(zip(names, ROWS.values(), strict=True)))
    nested = pa.table({"id": names, "features": [rows.tolist() for rows in ROWS.values()]})
    kind = pa.list_(pa.list_(pa.uint8()))
    pq.write_table(
        nested.set_column(1, "features", nested["features"].cast(kind)), tmp_path / "nested.parquet"
    )
    each = [(name, row.tolist()) for name, rows in zip(names, ROWS.values(), strict=True) for row in rows]
    flat = {
        "id": [name for name, _ in each],
        "features": pa.array([r for _, r in each], pa.list_(pa.uint8(), 3)),
    }
    pq.write_table(pa.table(flat), tmp_path / "flat.parquet")
    for file in ("all.npz", "nested.parquet", "flat.parquet"):
        found = OwnAudio(tmp_path / file, IDS)
        for name, rows in ROWS.items():
            assert found(name).dtype == np.uint8
            assert (found(name) == rows).all()
        assert found("none.mp4") is None


def test_floats_stay_floats(tmp_path):
    np.savez(tmp_path / "f.npz", a=np.ones((4, 2)), b=np.zeros((0, 2), np.float16))
    found = OwnAudio(tmp_path / "f.npz", ["a.mp4", "b.mp4"])
    assert (found.width, found.bytes) == (2, False)
    assert found("a.mp4").dtype == np.float32
    assert found("b.mp4").shape == (0, 2)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))}, "'b.mp4' is float64"),
        ({"a": np.zeros((2, 3)), "b": np.zeros((2, 3), np.uint8)}, "'b.mp4' is uint8"),
        ({"a": np.zeros((2, 3)), "b": np.full((2, 3), np.nan)}, "finite"),
        ({"a": np.zeros(3)}, "rows, width"),
        ({"a": np.zeros((2, 3), np.int32)}, "rows, width"),
        ({"z": np.zeros((2, 3))}, "nothing for any of 2"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(tmp_path, arrays, reason):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(DataError, match=reason) as error:
        OwnAudio(tmp_path / "f.npz", ["a.mp4", "b.mp4"])("b.mp4")
    assert error.value.code == "AUDIO_FEATURES"


def test_sources_that_are_none_are_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"nothing")
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "y.parquet")
    np.savez(tmp_path / "p.npz", a=np.array([{}], object))
    for name, code in (
        ("x.npz", "AUDIO_FEATURES"),
        ("x.parquet", "AUDIO_FEATURES"),
        ("y.parquet", "AUDIO_FEATURES"),
        ("p.npz", "AUDIO_FEATURES"),
        ("missing", "NOT_FOUND"),
        ("missing.npz", "NOT_FOUND"),
        ("missing.parquet", "NOT_FOUND"),
    ):
        with pytest.raises(DataError, match=name) as error:
            OwnAudio(tmp_path / name, ["a.mp4"])
        assert error.value.code == code
