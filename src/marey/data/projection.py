"""Features as numbers that fit into bytes: centred, perhaps onto principal axes, of unit variance.

YouTube-8M's visual features were made so: minus the mean, onto 1024 principal axes, divided by the root of
the variances plus a little (google/youtube-8m@e6f6bf6: feature_extractor). Without axes each feature keeps
its place. A file holds `mean` [C], `variances` [K], `floor` [1] and, with axes, `axes` [K, C].
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from marey.errors import DataError, UsageError
from marey.files import replacing

KEY = "marey"  # of the metadata entry that says how it was fitted, as JSON
FLOOR = 1e-4  # what is added to the variances, as a share of their mean
CHUNK = 4096  # rows that are added at once

Floats = NDArray[np.float32]


class Projection(NamedTuple):
    """(x - mean) @ axes.T / sqrt(variances + floor); without axes, feature by feature.

    mean [C], axes [K, C] or None, variances [K], floor []: float32
    about  how it was fitted: rows, explained (share of the variance that the axes hold), ...
    """

    mean: Floats
    axes: Floats | None
    variances: Floats
    floor: np.float32
    about: dict[str, Any]

    @property
    def width(self) -> int:
        """K, numbers that come out for a row."""
        return len(self.variances)

    @property
    def fingerprint(self) -> str:
        """SHA-256, as hex, of the numbers."""
        total = hashlib.sha256()
        for name, value in sorted(_tensors(self).items()):
            total.update(f"{name} {value.shape}\n".encode())
            total.update(value.tobytes())
        return total.hexdigest()

    def __call__(self, rows: NDArray[np.floating[Any]]) -> Floats:
        """[n, C] -> float32 [n, K]. Raises UsageError PROJECTION where C is another."""
        if rows.shape[1] != len(self.mean):
            raise UsageError(
                "PROJECTION",
                f"the projection is of {len(self.mean)} features, there are {rows.shape[1]}; take one that "
                "was fitted on features of the same network and layer",
            )
        centred = rows.astype(np.float32) - self.mean
        turned = centred if self.axes is None else centred @ self.axes.T
        return np.asarray(turned / np.sqrt(self.variances + self.floor), np.float32)


class Moments:
    """Mean and covariance (or variances alone) of rows that come bit by bit, in float64."""

    def __init__(self, width: int, *, full: bool) -> None:
        self.count, self.full = 0, full
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width) if full else width)

    def add(self, rows: NDArray[np.floating[Any]]) -> None:
        """More rows, [n, C]."""
        for first in range(0, len(rows), CHUNK):
            part = rows[first : first + CHUNK].astype(np.float64)
            mean = part.mean(0)
            centred, shift = part - mean, mean - self.mean
            total = self.count + len(part)
            weight = self.count * len(part) / total
            if self.full:
                self.scatter += centred.T @ centred + weight * np.outer(shift, shift)
            else:
                self.scatter += (centred**2).sum(0) + weight * shift**2
            self.mean += shift * (len(part) / total)
            self.count = total


def fit_projection(
    rows: Iterable[NDArray[np.floating[Any]]], components: int | None, **about: Any
) -> Projection:
    """Fit to arrays [n, C] of rows; components: principal axes to keep, None: every feature keeps its place.

    Memory is that of one array and of a [C, C] matrix. The largest entry of each axis is positive. Raises
    UsageError PROJECTION where there are fewer features, or not more rows, than components.
    """
    moments: Moments | None = None
    for part in rows:
        if moments is None:
            moments = Moments(part.shape[1], full=components is not None)
        moments.add(part)
    if moments is None or moments.count < 2 or (components or 1) >= moments.count:
        count = moments.count if moments is not None else 0
        raise UsageError(
            "PROJECTION",
            f"{components or 'no'} components from {count} rows; there must be more rows than that",
        )
    scatter = moments.scatter / (moments.count - 1)
    if components is None:
        variances, axes, share = scatter, None, 1.0
        total = float(scatter.sum())
    else:
        if not 0 < components <= len(moments.mean):
            raise UsageError(
                "PROJECTION", f"{components} components of {len(moments.mean)} features; give 1 to that many"
            )
        values, vectors = np.linalg.eigh(scatter)
        variances = values[::-1][:components].clip(min=0)
        turned = vectors[:, ::-1][:, :components].T
        signs = np.sign(turned[np.arange(components), np.abs(turned).argmax(1)])
        axes = np.ascontiguousarray(turned * signs[:, None], np.float32)
        total = float(np.trace(scatter))
        share = float(variances.sum() / total) if total > 0 else 1.0
    if not total > 0:
        raise UsageError(
            "PROJECTION", f"all {moments.count} rows are the same: nothing can be told apart by them"
        )
    return Projection(
        moments.mean.astype(np.float32),
        axes,
        variances.astype(np.float32),
        np.float32(FLOOR * total / len(moments.mean)),
        {"rows": moments.count, "explained": share, **about},
    )


def write_projections(path: str | os.PathLike[str], found: dict[str, Projection]) -> None:
    """Write the projections of streams, "rgb" and perhaps "audio", to one .safetensors file."""
    tensors = {f"{name}.{key}": value for name, one in found.items() for key, value in _tensors(one).items()}
    about = {name: one.about for name, one in found.items()}
    with replacing(path) as part:
        safetensors.numpy.save_file(tensors, part, {KEY: json.dumps(about)})


def read_projections(path: str | os.PathLike[str]) -> dict[str, Projection]:
    """The projections of a file. Raises DataError NOT_FOUND, PROJECTION_FORMAT."""
    if not Path(path).is_file():
        raise DataError("NOT_FOUND", f"no projection {os.fspath(path)!r}; name a projection.safetensors")
    try:
        with safetensors.safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = {}
        for name, text in about.items():
            mean, variances = tensors[f"{name}.mean"], tensors[f"{name}.variances"]
            axes, floor = tensors.get(f"{name}.axes"), tensors[f"{name}.floor"]
            if (
                (mean.ndim, variances.ndim) != (1, 1)
                or floor.shape != (1,)
                or (
                    len(variances) != len(mean) if axes is None else axes.shape != (len(variances), len(mean))
                )
            ):
                raise ValueError(f"its shapes do not fit together: {name}")
            found[name] = Projection(mean, axes, variances, floor[0], dict(text))
        return found
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise DataError(
            "PROJECTION_FORMAT", f"{os.fspath(path)}: not what `marey features` writes ({error})"
        ) from None


def _tensors(one: Projection) -> dict[str, NDArray[np.float32]]:
    axes = {} if one.axes is None else {"axes": one.axes}
    return {"mean": one.mean, "variances": one.variances, "floor": np.array([one.floor], np.float32), **axes}
