import math

import pytest
import torch

from polytask.core.errors import BadValue
from polytask.tasks.losses import LOSSES, ordered_pairs, pairwise_logistic
from polytask.tasks.target import Target
from polytask.tasks.task import Task

NAN = float("nan")
ALL = torch.ones(3, dtype=torch.bool)


def test_binary_cross_entropy_by_hand():
    # sigmoid(0) = 1/2, sigmoid(log 3) = 3/4: -log 1/2 - log 3/4 - log 1/4
    outputs, labels = torch.tensor([0.0, math.log(3), math.log(3)]), torch.tensor([1.0, 1.0, 0.0])
    loss = LOSSES["binary_cross_entropy"](outputs, labels, ALL)
    assert loss.item() == pytest.approx(math.log(2) + math.log(4 / 3) + math.log(4))


def test_cross_entropy_by_hand():
    # softmax(log 1, log 2, log 5) = 1/8, 2/8, 5/8
    outputs = torch.tensor([[0.0, math.log(2), math.log(5)]]).expand(3, 3)
    loss = LOSSES["cross_entropy"](outputs, torch.tensor([0, 1, 2]), ALL)
    assert loss.item() == pytest.approx(math.log(8) + math.log(4) + math.log(8 / 5))


@pytest.mark.parametrize(
    "name, expected",
    [("mean_squared_error", 0.25 + 9 + 0), ("l1", 0.5 + 3 + 0), ("huber", 0.125 + 2.5 + 0)],
)
def test_regression_losses_by_hand(name, expected):
    loss = LOSSES[name](torch.tensor([1.5, -2.0, 4.0]), torch.tensor([1.0, 1.0, 4.0]), ALL)
    assert loss.item() == pytest.approx(expected)


CASES = [
    ("binary_cross_entropy", (6,), "float"),
    ("binary_cross_entropy", (6, 3), "float"),
    ("cross_entropy", (6, 4), "class"),
    ("mean_squared_error", (6,), "float"),
    ("l1", (6,), "float"),
    ("huber", (6,), "float"),
]


def example(shape, labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(shape, generator=generator)
    if labels == "class":
        return (
            outputs,
            torch.randint(shape[1], shape[:1], generator=generator),
            torch.rand(6, generator=generator) < 0.5,
        )
    return outputs, torch.rand(shape, generator=generator).round(), torch.rand(shape, generator=generator) < 0.5


@pytest.mark.parametrize("name, shape, kind", CASES)
def test_what_is_absent_influences_nothing(name, shape, kind):
    outputs, labels, present = example(shape, kind)
    assert 0 < present.sum() < present.numel()
    results = []
    for outputs_fill, labels_fill in [(0.0, 0), (NAN, NAN), (math.inf, -5), (1e30, 99)]:
        filled = torch.where(present[:, None] if kind == "class" else present, outputs, outputs_fill).requires_grad_()
        if kind == "class":
            given = torch.where(present, labels, 0 if math.isnan(labels_fill) else int(labels_fill))
        else:
            given = torch.where(present, labels, float(labels_fill))
        loss = LOSSES[name](filled, given, present)
        (gradient,) = torch.autograd.grad(loss, filled)
        results.append((loss, gradient))
        assert torch.isfinite(gradient).all()
        assert (gradient[~present] == 0).all()
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("name, shape, kind", CASES)
def test_a_masked_sum_is_the_sum_over_the_present_rows(name, shape, kind):
    outputs, labels, present = example(shape, kind)
    loss = LOSSES[name](outputs, labels, present)
    kept = outputs[present], labels[present]
    assert loss.item() == pytest.approx(LOSSES[name](*kept, torch.ones_like(kept[1], dtype=torch.bool)).item())


@pytest.mark.parametrize("name, shape, kind", CASES)
def test_gradients_are_those_of_finite_differences(name, shape, kind):
    outputs, labels, present = example(shape, kind)
    labels = labels if kind == "class" else labels.double()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels, present), outputs.double().requires_grad_())


@pytest.mark.parametrize("name, shape, kind", CASES)
@pytest.mark.parametrize("rows", [0, 6])
def test_a_batch_without_labels_gives_zero_with_a_graph(name, shape, kind, rows):
    outputs, labels, _ = example(shape, kind)
    outputs = outputs[:rows].requires_grad_()
    loss = LOSSES[name](outputs, labels[:rows], torch.zeros_like(labels[:rows], dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not outputs.grad.any()


def test_half_precision_outputs_are_summed_in_single_precision():
    outputs = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    loss = LOSSES["mean_squared_error"](outputs, torch.zeros(4096), torch.ones(4096, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss.item() == 4096


def test_the_target_gives_numerator_and_count():
    target = Target(Task(name="t", kind="multilabel", labels=["a", "b"]))
    present = torch.tensor([[True, False], [True, True]])
    numerator, count = target.loss(torch.zeros(2, 2), torch.ones(2, 2), present)
    assert (numerator.item(), count.item()) == (pytest.approx(3 * math.log(2)), 3)
    assert numerator.ndim == count.ndim == 0


@pytest.mark.parametrize("name, outputs, labels", [("l1", (4, 1), (4,)), ("cross_entropy", (4,), (4,))])
def test_shapes_that_would_broadcast_are_refused(name, outputs, labels):
    with pytest.raises(BadValue, match="shape"):
        LOSSES[name](torch.zeros(outputs), torch.zeros(labels).long(), torch.ones(labels, dtype=torch.bool))


def test_pairs_are_those_of_a_loop_over_all_rows():
    generator = torch.Generator().manual_seed(0)
    labels, groups = (torch.randint(high, (40,), generator=generator) for high in (3, 7))
    present = torch.rand(40, generator=generator) < 0.8
    rows = [row for row in range(40) if present[row]]
    expected = {(i, j) for i in rows for j in rows if groups[i] == groups[j] and labels[i] > labels[j]}
    higher, lower = ordered_pairs(labels, present, groups)
    assert len(higher) == len(expected)
    assert set(zip(higher.tolist(), lower.tolist(), strict=True)) == expected


def test_a_batch_without_a_pair_has_the_loss_0_and_a_graph():
    outputs = torch.zeros(3, requires_grad=True)
    loss = pairwise_logistic(outputs, torch.tensor([1.0, NAN, 2.0]), torch.tensor([True, False, True]), torch.arange(3))
    loss.backward()
    assert loss == 0
    assert outputs.grad.tolist() == [0, 0, 0]


def test_pairs_of_labels_and_groups_that_do_not_fit():
    with pytest.raises(BadValue, match="labels, present and groups"):
        ordered_pairs(torch.zeros(3), ALL, torch.zeros(2))
