"""Generated tables: tasks as many, as alike and as hard as the recipe says."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from polytask.core.errors import BadValue
from polytask.core.noise import Noise
from polytask.tasks.data_spec import DataSpec, SyntheticSpec
from polytask.tasks.sources.synthetic import labels, synthetic, task_weights


def table(rows: int = 4000, seed: int = 0, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the training split."""
    spec = SyntheticSpec.model_validate({"tasks": 3, "columns": 5, **options})
    frame = synthetic(spec, {"train": rows, "valid": 1, "test": 1}, seed)
    assert frame.columns == [*(f"x{n}" for n in range(1, 6)), *(f"y{n}" for n in range(1, 4)), "split"]
    frame = frame.head(rows)
    return frame.select("^x.$").to_numpy(), frame.select("^y.$").to_numpy()


@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.7, 1.0])
def test_any_two_tasks_have_the_cosine(correlation: float) -> None:
    weights = task_weights(SyntheticSpec(tasks=3, columns=5, correlation=correlation), Noise(0))
    expected = np.full((3, 3), correlation) + (1 - correlation) * np.eye(3)
    np.testing.assert_allclose(weights @ weights.T, expected, atol=1e-12)


def test_a_matrix_says_it_for_each_pair() -> None:
    matrix = ((1.0, 0.9, -0.5), (0.9, 1.0, -0.2), (-0.5, -0.2, 1.0))
    weights = task_weights(SyntheticSpec(tasks=3, columns=5, correlation=matrix), Noise(3))
    np.testing.assert_allclose(weights @ weights.T, matrix, atol=1e-12)
    _, y = table(correlation=matrix, complexity=0, noise=0.0)
    np.testing.assert_allclose(np.corrcoef(y.T), matrix, atol=0.05)


def test_a_task_without_sines_is_linear_and_one_with_more_less_so() -> None:
    x, y = table(complexity=[0, 1, 6], noise=0.0)
    residuals = [np.linalg.lstsq(x, y[:, task], rcond=None)[1][0] / len(y) for task in range(3)]
    assert residuals[0] < 1e-20
    assert 0.05 < residuals[1] < residuals[2]


def test_labels_by_hand() -> None:
    spec, noise, linear = SyntheticSpec(tasks=2, columns=2, complexity=(1, 2)), Noise(1), np.array([[0.5, -1.0]])
    frequency = 1 + 3 * noise.child("frequency").uniform(2)
    phase = 2 * np.pi * noise.child("phase").uniform(2)
    first = 0.5 + np.sin(frequency[0] * 0.5 + phase[0])
    second = -1 + np.sin(-frequency[0] + phase[0]) + np.sin(-frequency[1] + phase[1])
    np.testing.assert_allclose(labels(spec, linear, noise), [[first, second]])


def test_noise_and_missing_labels() -> None:
    _, exact = table(noise=0.0)
    _, noisy = table(noise=0.5)
    assert abs(float(np.std(noisy - exact)) - 0.5) < 0.02
    _, holes = table(missing=0.3)
    assert abs(np.isnan(holes).mean() - 0.3) < 0.02


def test_more_rows_and_the_same_seed_change_nothing() -> None:
    (x, y), (more_x, more_y) = table(rows=10), table(rows=50)
    assert np.array_equal(x, more_x[:10])
    assert np.array_equal(y, more_y[:10])
    assert not np.array_equal(x, table(rows=10, seed=1)[0])


@pytest.mark.parametrize(
    "options, said",
    [
        ({"correlation": -0.9}, "positive semi-definite"),
        ({"correlation": [[1, 0.5], [0.5, 1]]}, "a number, or 3 rows of 3"),
        ({"correlation": [[1, 0.5, 0], [0.4, 1, 0], [0, 0, 1]]}, "a symmetric matrix with ones on its diagonal"),
    ],
)
def test_correlations_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadValue, match=said):
        table(rows=2, **options)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"tasks": 6}, "columns is 5; allowed: at least the number of tasks, 6"),
        ({"complexity": [1, 2]}, "complexity has 2 numbers; allowed: one, or 3"),
        ({"correlation": 1.5}, "less than or equal to 1"),
        ({"tasks": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SyntheticSpec.model_validate({"tasks": 3, "columns": 5, **options})


def test_the_split_is_its_own() -> None:
    with pytest.raises(ValidationError, match="synthetic data has its own split, and takes rows as"):
        DataSpec.model_validate({"synthetic": {}, "rows": 100})
