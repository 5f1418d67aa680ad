"""`synthetic:` a generated table whose number, correlation and complexity of tasks one chooses.

Source: Sinodinos et al. 2025, arXiv:2511.09970 (MultiTab-Bench), for the three knobs; the labels are those of Ma et
al., KDD 2018 (MMoE), section 3.2: y_t = w_t x + sum_i sin(a_i w_t x + b_i) + noise, with the cosine of two tasks'
weights set.
Departures: MultiTab-Bench's own equations were not at hand. For more than two tasks the weights are the rows of F U, F
a factor of the matrix of correlations and U orthonormal, so that every pair has its cosine exactly; complexity is
the number of sines, which all tasks take from one list.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

from polytask.core.errors import BadValue
from polytask.core.noise import Noise
from polytask.tasks.data_spec import SyntheticSpec

DEFAULT_ROWS = {"train": 4000, "valid": 1000, "test": 1000}


def synthetic(spec: SyntheticSpec, rows: Mapping[str, int], seed: int) -> pl.DataFrame:
    """Columns x1, x2, ..., y1, y2, ..., split; more rows of a split leave those that were there as they were."""
    noise = Noise(seed, "synthetic")
    weights = task_weights(spec, noise)
    frames = []
    for split, count in (DEFAULT_ROWS | dict(rows)).items():
        draw = noise.child(split)
        x = draw.child("x").normal(count * spec.columns).reshape(count, spec.columns)
        y = labels(spec, x @ weights.T, noise)
        y += spec.noise * draw.child("noise").normal(count * spec.tasks).reshape(count, spec.tasks)
        if split == "train":
            y[draw.child("missing").uniform(count * spec.tasks).reshape(count, spec.tasks) < spec.missing] = np.nan
        columns = {f"x{number + 1}": values for number, values in enumerate(x.T)}
        columns |= {f"y{number + 1}": values for number, values in enumerate(y.T)}
        frames.append(pl.DataFrame(columns, nan_to_null=True).with_columns(pl.lit(split).alias("split")))
    return pl.concat(frames)


def task_weights(spec: SyntheticSpec, noise: Noise) -> np.ndarray:
    """[T, columns]: unit vectors, any two with the cosine that `correlation` says.

    Raises: BadValue where no such vectors exist.
    """
    matrix = correlations(spec)
    values, vectors = np.linalg.eigh(matrix)
    if values[0] < -1e-9:
        raise BadValue("synthetic: correlation", spec.correlation, "what is positive semi-definite as a matrix")
    factor = vectors * np.sqrt(values.clip(min=0))  # any factor has the right products; this one allows correlation 1
    draws = noise.child("directions").normal(spec.tasks * spec.columns).reshape(spec.columns, spec.tasks)
    directions, _ = np.linalg.qr(draws)
    return factor @ directions.T


def correlations(spec: SyntheticSpec) -> np.ndarray:
    """[T, T]; BadValue for a matrix that is not one of correlations."""
    if isinstance(spec.correlation, float | int):
        return np.full((spec.tasks, spec.tasks), float(spec.correlation)) + (1 - spec.correlation) * np.eye(spec.tasks)
    rows = [len(row) for row in spec.correlation]
    if rows != [spec.tasks] * spec.tasks:
        raise BadValue("synthetic: correlation", spec.correlation, f"a number, or {spec.tasks} rows of {spec.tasks}")
    matrix = np.array(spec.correlation)
    if not np.array_equal(matrix, matrix.T) or not np.array_equal(np.diag(matrix), np.ones(spec.tasks)):
        raise BadValue("synthetic: correlation", spec.correlation, "a symmetric matrix with ones on its diagonal")
    return matrix


def labels(spec: SyntheticSpec, linear: np.ndarray, noise: Noise) -> np.ndarray:
    """[n, T]: the linear parts and each task's sines of them, without noise."""
    counts = spec.complexity if isinstance(spec.complexity, tuple) else (spec.complexity,) * spec.tasks
    most = max(counts)
    frequency = 1 + noise.child("frequency").uniform(most) * 3  # the more sines, the faster some of them
    phase = 2 * np.pi * noise.child("phase").uniform(most)
    y = linear.copy()
    for task, count in enumerate(counts):
        for sine in range(count):
            y[:, task] += np.sin(frequency[sine] * linear[:, task] + phase[sine])
    return y
