"""scikit-learn is the independent reference."""

import math

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn import metrics as reference

from polytask.core.errors import BadValue, NotFinite
from polytask.tasks.metrics import METRICS

NAN = float("nan")
BINARY = [
    "auroc",
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "matthews",
    "log_loss",
    "calibration_error",
]
REGRESSION = ["r2", "explained_variance", "rmse", "mae"]


def compute(name, outputs, labels, present=None):
    outputs, labels = torch.as_tensor(outputs), torch.as_tensor(labels)
    present = torch.ones_like(labels, dtype=torch.bool) if present is None else torch.as_tensor(present)
    return METRICS[name].compute(outputs, labels, present)


def calibration(confidence, correct, bins=15):
    """Weighted distance of mean confidence and frequency over equal bins, one bin at a time."""
    bin_of_row = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = [bin_of_row == b for b in range(bins) if (bin_of_row == b).any()]
    return sum(r.mean() * abs(confidence[r].mean() - correct[r].mean()) for r in rows)


BINARY_REFERENCE = {
    "auroc": lambda y, p: reference.roc_auc_score(y, p),
    "average_precision": lambda y, p: reference.average_precision_score(y, p),
    "accuracy": lambda y, p: reference.accuracy_score(y, p > 0.5),
    "balanced_accuracy": lambda y, p: reference.balanced_accuracy_score(y, p > 0.5),
    "f1": lambda y, p: reference.f1_score(y, p > 0.5),
    "matthews": lambda y, p: reference.matthews_corrcoef(y, p > 0.5),
    "log_loss": lambda y, p: reference.log_loss(y, p),
    "calibration_error": lambda y, p: calibration(p, y),
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("rate", [0.05, 0.6])
def test_binary(name, rate):
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < rate).astype(np.float32)
    outputs = (rng.normal(size=500) + labels).round(1)  # rounded: with ties
    expected = BINARY_REFERENCE[name](labels, 1 / (1 + np.exp(-outputs)))
    assert compute(name, outputs, labels) == pytest.approx(expected, rel=1e-6)


MULTICLASS_REFERENCE = {
    "auroc": lambda y, p: reference.roc_auc_score(y, p, multi_class="ovr"),
    "average_precision": lambda y, p: reference.average_precision_score(y, p),
    "accuracy": lambda y, p: reference.accuracy_score(y, p.argmax(1)),
    "balanced_accuracy": lambda y, p: reference.balanced_accuracy_score(y, p.argmax(1)),
    "f1": lambda y, p: reference.f1_score(y, p.argmax(1), average="macro"),
    "matthews": lambda y, p: reference.matthews_corrcoef(y, p.argmax(1)),
    "log_loss": lambda y, p: reference.log_loss(y, p),
    "calibration_error": lambda y, p: calibration(p.max(1), p.argmax(1) == y),
}


@pytest.mark.parametrize("name", BINARY)
def test_multiclass(name):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, size=400)
    outputs = rng.normal(size=(400, 4)) + 2 * np.eye(4)[labels]
    expected = MULTICLASS_REFERENCE[name](labels, np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True))
    assert compute(name, outputs, labels) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", BINARY)
def test_multilabel_is_the_mean_over_the_defined_columns(name):
    rng = np.random.default_rng(2)
    labels = (rng.random((300, 3)) < 0.3).astype(np.float32)
    outputs, present = rng.normal(size=(300, 3)) + labels, rng.random((300, 3)) < 0.7
    present[:, 1] = False
    expected = np.mean([compute(name, outputs[present[:, c], c], labels[present[:, c], c]) for c in (0, 2)])
    assert compute(name, outputs, labels, present) == pytest.approx(expected)


REGRESSION_REFERENCE = {
    "r2": reference.r2_score,
    "explained_variance": reference.explained_variance_score,
    "rmse": reference.root_mean_squared_error,
    "mae": reference.mean_absolute_error,
}


@pytest.mark.parametrize("name", REGRESSION)
@pytest.mark.parametrize("offset", [0.0, 1.7e9])  # seconds since 1970: large and close together
def test_regression(name, offset):
    rng = np.random.default_rng(3)
    labels = rng.normal(size=200) + offset
    outputs = labels + 0.5 * rng.normal(size=200) + 0.1
    assert compute(name, outputs, labels) == pytest.approx(REGRESSION_REFERENCE[name](labels, outputs), rel=1e-6)


UNDEFINED = [
    *[(name, []) for name in BINARY + REGRESSION],
    *[("auroc", [label, label]) for label in (0.0, 1.0)],
    *[("balanced_accuracy", [label, label]) for label in (0.0, 1.0)],
    *[("matthews", [label, label]) for label in (0.0, 1.0)],
    ("average_precision", [0.0, 0.0]),
    ("f1", [0.0, 0.0]),
    ("r2", [2.0, 2.0]),
    ("r2", [2.0]),
    ("explained_variance", [2.0, 2.0]),
]


@pytest.mark.parametrize("name, labels", UNDEFINED)
def test_undefined_is_none_and_never_a_number(name, labels):
    assert compute(name, torch.linspace(-1, 1, len(labels)), torch.tensor(labels)) is None


@pytest.mark.parametrize("name", BINARY)
def test_no_label_at_all_in_the_other_forms(name):
    assert compute(name, torch.zeros(3, 4), torch.zeros(3).long(), [False] * 3) is None
    assert compute(name, torch.zeros(3, 2), torch.zeros(3, 2), np.zeros((3, 2), dtype=bool)) is None


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
def test_ranking_agrees_with_torchmetrics(name):
    generator = torch.Generator().manual_seed(0)
    labels, outputs = torch.randint(2, (400,), generator=generator), torch.randn(400, generator=generator)
    expected = getattr(torchmetrics.functional.classification, f"binary_{name}")(outputs, labels)
    assert compute(name, outputs, labels) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["auroc", "balanced_accuracy", "matthews"])
def test_multiclass_with_one_class_is_undefined(name):
    assert compute(name, torch.randn(5, 3), torch.full((5,), 2)) is None


def test_multiclass_auroc_leaves_out_classes_that_do_not_occur():
    outputs, labels = torch.tensor([[2.0, 0, 0], [0, 2, 0], [2, 0, 0], [0, 2, 0]]), torch.tensor([0, 1, 0, 1])
    assert compute("auroc", outputs, labels) == 1.0


def test_constant_predictions_are_uncorrelated_rather_than_undefined():
    assert compute("matthews", torch.full((4,), -1.0), torch.tensor([0.0, 1.0, 0.0, 0.0])) == 0.0


def test_order_is_kept_where_probabilities_round_to_one():
    assert compute("auroc", torch.tensor([100.0, 200.0, 300.0, 400.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])) == 1.0
    outputs = torch.tensor([[50.0, 0.0], [60.0, 0.0], [70.0, 0.0]])
    assert compute("auroc", outputs, torch.tensor([1, 1, 0])) == 1.0


def test_logits_that_look_like_probabilities_are_logits():
    assert compute("accuracy", torch.tensor([0.2, 0.3]), torch.tensor([1.0, 1.0])) == 1.0


@pytest.mark.parametrize("name", BINARY + REGRESSION)
def test_rows_without_a_label_are_not_read(name):
    rng = np.random.default_rng(4)
    outputs, labels = rng.normal(size=50), (rng.random(50) < 0.5).astype(float)
    present = rng.random(50) < 0.5
    expected = compute(name, outputs[present], labels[present])
    assert compute(name, np.where(present, outputs, NAN), np.where(present, labels, NAN), present) == expected


@pytest.mark.parametrize("name", BINARY + REGRESSION)
@pytest.mark.parametrize("value", [NAN, math.inf])
def test_outputs_that_are_not_finite_are_an_error(name, value):
    with pytest.raises(NotFinite, match="1 of 2 outputs are NaN or infinite"):
        compute(name, torch.tensor([value, 0.0]), torch.tensor([0.0, 1.0]))


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(BadValue, match="shape"):
        compute("mae", torch.zeros(3), torch.zeros(4))
    with pytest.raises(BadValue, match="one output a row"):
        compute("mae", torch.zeros(3, 2), torch.zeros(3))


def test_only_errors_are_better_when_lower():
    assert [name for name, metric in METRICS.items() if not metric.higher_is_better] == [
        "log_loss",
        "calibration_error",
        "rmse",
        "mae",
        "relative_error",
        "mean_angle",
        "median_angle",
    ]


@pytest.mark.parametrize("levels", [2, 5])
def test_grouped_auroc_is_the_mean_over_groups_weighted_by_their_rows(levels):
    """Every pair of a group, one after the other; for two levels scikit-learn's AUROC of the group too."""
    rng = np.random.default_rng(levels)
    groups = torch.from_numpy(rng.integers(0, 12, 150))
    labels = torch.from_numpy(rng.integers(0, levels, 150)).float()
    outputs = torch.from_numpy(rng.normal(size=150).round(1)) + labels / 3
    present = torch.from_numpy(rng.random(150) < 0.9)
    shares, weights = [], []
    for group in range(12):
        rows = ((groups == group) & present).nonzero()[:, 0].tolist()
        pairs = [(i, j) for i in rows for j in rows if labels[i] > labels[j]]
        if pairs:
            shares.append(
                np.mean([1.0 if outputs[i] > outputs[j] else 0.5 * (outputs[i] == outputs[j]) for i, j in pairs])
            )
            weights.append(len(rows))
            if levels == 2:
                assert shares[-1] == pytest.approx(reference.roc_auc_score(labels[rows], outputs[rows]))
    found = METRICS["grouped_auroc"].compute(outputs, labels, present, groups)
    assert found == pytest.approx(np.average(shares, weights=weights))


def test_grouped_auroc_where_no_group_has_two_labels():
    ones, present = torch.ones(4), torch.ones(4, dtype=torch.bool)
    assert (
        METRICS["grouped_auroc"].compute(ones, torch.tensor([1.0, 1, 0, 0]), present, torch.tensor([0, 0, 1, 1]))
        is None
    )
    with pytest.raises(BadValue, match="within groups"):
        METRICS["grouped_auroc"].compute(ones, ones, present)
