"""Projections against numpy's own decomposition of all rows at once."""

import numpy as np
import pytest
import safetensors.numpy

from marey.data.projection import FLOOR, Moments, fit_projection, read_projections, write_projections
from marey.errors import DataError, UsageError

RNG = np.random.default_rng(0)
ROWS = (RNG.standard_normal((5000, 12)) @ RNG.standard_normal((12, 12)) + 100 * RNG.random(12)).astype(
    np.float32
)
PARTS = np.split(ROWS, [1, 700, 4900])


def test_axes_are_those_of_all_rows_at_once():
    found = fit_projection(PARTS, 5, seed=3)
    centred = ROWS.astype(np.float64) - ROWS.astype(np.float64).mean(0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    variances = values**2 / 4999
    assert found.variances == pytest.approx(variances[:5], rel=1e-4)
    assert np.abs((found.axes * axes[:5]).sum(1)) == pytest.approx(np.ones(5), abs=1e-5)
    assert (found.axes[np.arange(5), np.abs(found.axes).argmax(1)] > 0).all()
    assert found.about == {
        "rows": 5000,
        "seed": 3,
        "explained": pytest.approx(variances[:5].sum() / variances.sum()),
    }
    floor = FLOOR * variances.sum() / 12
    assert found.floor == pytest.approx(floor, rel=1e-4)
    want = centred @ found.axes.T / np.sqrt(variances[:5] + floor)
    assert found(ROWS) == pytest.approx(want, abs=2e-3)
    whitened = np.cov(found(ROWS).T)
    assert whitened == pytest.approx(np.eye(5), abs=2e-3)


def test_without_axes_every_feature_keeps_its_place():
    constant = np.concatenate([ROWS, np.full((5000, 1), 7, np.float32)], axis=1)
    found = fit_projection([constant], None)
    assert found.axes is None
    assert found.width == 13
    got = found(constant)
    assert got[:, :12].std(0) == pytest.approx(np.ones(12), rel=1e-3)
    assert got.mean(0) == pytest.approx(np.zeros(13), abs=1e-4)
    assert (got[:, 12] == 0).all(), "a feature that never changes says nothing"


def test_the_parts_do_not_matter_and_large_means_do_no_harm():
    far = ROWS.astype(np.float64) + 1e5
    whole, parts = Moments(12, full=True), Moments(12, full=True)
    whole.add(far)
    for part in np.split(far, [3, 17, 4500]):
        parts.add(part)
    assert whole.count == parts.count == 5000
    assert parts.mean == pytest.approx(far.mean(0), rel=1e-12)
    want = np.cov(far.T)
    assert parts.scatter / 4999 == pytest.approx(want, rel=1e-6, abs=1e-6)
    assert whole.scatter / 4999 == pytest.approx(want, rel=1e-6, abs=1e-6)
    again = fit_projection(PARTS, 3)
    assert again.fingerprint == fit_projection(PARTS, 3).fingerprint
    assert again.fingerprint != fit_projection(PARTS, 4).fingerprint


@pytest.mark.parametrize(
    ("rows", "components"),
    [
        ([], 1),
        ([ROWS[:1]], None),
        ([ROWS[:5]], 5),
        ([ROWS], 13),
        ([np.ones((9, 4))], 2),
        ([np.ones((9, 4))], None),
    ],
)
def test_what_cannot_be_fitted_is_refused(rows, components):
    with pytest.raises(UsageError) as error:
        fit_projection(rows, components)
    assert error.value.code == "PROJECTION"


def test_files_come_back_and_others_are_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    found = {"rgb": fit_projection(PARTS, 4), "audio": fit_projection([ROWS[:, :3]], None)}
    write_projections(path, found)
    again = read_projections(path)
    assert {name: one.fingerprint for name, one in again.items()} == {
        name: one.fingerprint for name, one in found.items()
    }
    assert again["rgb"].about == found["rgb"].about
    assert (again["rgb"](ROWS) == found["rgb"](ROWS)).all()
    with pytest.raises(UsageError, match="of 12 features, there are 3"):
        again["rgb"](ROWS[:, :3])
    with pytest.raises(DataError) as error:
        read_projections(tmp_path / "none")
    assert error.value.code == "NOT_FOUND"
    whole = path.read_bytes()
    tensors = {"rgb.mean": np.zeros(3, np.float32), "rgb.variances": np.zeros(2, np.float32)}
    tensors["rgb.floor"] = np.zeros(1, np.float32)
    for write in (
        lambda: path.write_bytes(whole[:-4]),
        lambda: path.write_bytes(b"nothing"),
        lambda: safetensors.numpy.save_file(tensors, path, {"marey": '{"rgb": {}}'}),
        lambda: safetensors.numpy.save_file(tensors, path, {"marey": "[]"}),
        lambda: safetensors.numpy.save_file(tensors, path),
    ):
        write()
        with pytest.raises(DataError) as error:
            read_projections(path)
        assert error.value.code == "PROJECTION_FORMAT"
