"""Entropies and divergences against sums written out, for every kind of outputs."""

import math

import pytest
import torch
from torch import Tensor

from merging.learned_problem import drawn
from polytask.core.errors import BadValue
from polytask.merging import distributions
from polytask.merging.distributions import (
    disagreement,
    divergences,
    entropies,
    entropy,
    jensen_shannon,
    kullback_leibler,
)

KINDS = {"classes": (5, 3), "labels": (5,)}


def probabilities(outputs: Tensor, kind: str) -> list[list[float]]:
    """A row's probabilities, by the definitions."""
    if kind == "labels":
        return [[1 / (1 + math.exp(-z)), 1 / (1 + math.exp(z))] for z in outputs.tolist()]
    rows = [[math.exp(z) for z in row] for row in outputs.tolist()]
    return [[each / sum(row) for each in row] for row in rows]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("kind", list(KINDS))
def test_they_are_the_sums(kind: str) -> None:
    one, other = (drawn(key, KINDS[kind]).double() for key in ("one", "other"))
    p, q = probabilities(one, kind), probabilities(other, kind)
    each = [-sum(a * math.log(a) for a in row) for row in p]
    assert entropies(one, kind).tolist() == pytest.approx(each)
    assert float(entropy(one, kind)) == pytest.approx(sum(each) / 5)
    apart = [kl(a, b) for a, b in zip(p, q, strict=True)]
    assert divergences(one, other, kind).tolist() == pytest.approx(apart)
    assert float(kullback_leibler(one, other, kind)) == pytest.approx(sum(apart) / 5)
    middle = [[(a + b) / 2 for a, b in zip(x, y, strict=True)] for x, y in zip(p, q, strict=True)]
    js = sum(kl(a, m) / 2 + kl(b, m) / 2 for a, b, m in zip(p, q, middle, strict=True)) / 5
    assert float(jensen_shannon(one, other, kind)) == pytest.approx(js)
    assert float(jensen_shannon(other, one, kind)) == pytest.approx(js)
    likely = [max(range(len(row)), key=row.__getitem__) for row in q]
    wanted = -sum(math.log(row[best]) for row, best in zip(p, likely, strict=True)) / 5
    assert float(disagreement(one, other, kind)) == pytest.approx(wanted)


def test_extremes_stay_finite() -> None:
    """Certain and opposite predictions: no entropy, log 2 apart at most, gradients that are numbers."""
    sure = torch.tensor([[200.0, -200.0]], requires_grad=True)
    other = torch.tensor([[-200.0, 200.0]])
    assert entropy(sure, "classes").item() == 0.0
    apart = jensen_shannon(sure, other, "classes")
    assert apart.item() == pytest.approx(math.log(2))
    (apart + entropy(sure, "classes")).backward()
    assert sure.grad is not None
    assert bool(sure.grad.isfinite().all())


def test_several_labels_and_pixels_are_means_within_a_row() -> None:
    labels = drawn("labels", (4, 6))
    assert entropies(labels, "labels").shape == (4,)
    torch.testing.assert_close(entropies(labels, "labels").mean(), entropy(labels, "labels"))
    pixels = drawn("pixels", (2, 3, 3, 5))
    torch.testing.assert_close(entropies(pixels, "classes").mean(), entropy(pixels, "classes"))


def test_numbers_have_none_and_shapes_say_the_kind() -> None:
    with pytest.raises(BadValue, match="numbers have no distribution over labels"):
        entropy(torch.ones(3), "values")
    assert [distributions.kind_of(torch.ones(shape)) for shape in ((3,), (3, 1), (3, 2))] == [
        "labels",
        "labels",
        "classes",
    ]
