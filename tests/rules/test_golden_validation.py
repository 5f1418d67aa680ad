"""Worked values of the rules on label counts and validation losses: by the papers' formulas, by hand."""

import math

import pytest
import torch
from torch import Tensor

import polytask
from polytask.core.errors import BadValue, MissingInput, NotFinite
from polytask.core.state import Rule

TASKS = ["a", "b"]


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def softmax(*numbers: float) -> list[float]:
    exponentials = [math.exp(number) for number in numbers]
    return [each / sum(exponentials) for each in exponentials]


def test_data_balanced_weighs_a_batch_by_its_share_of_the_labels() -> None:
    """Task b: 8 labels, then 2, so 5 a step: the second batch's sum over 5 is its mean times 2 / 5."""
    rule = Rule("data_balanced", TASKS)
    assert rule(TASKS, tensor(1.0, 3.0), tensor(100.0, 8.0)).tolist() == [0.5, 0.5]
    assert rule(TASKS, tensor(1.0, 3.0), tensor(100.0, 2.0)).tolist() == [0.5, 0.2]
    assert rule(["b"], tensor(3.0), tensor(5.0)).tolist() == [1.0]  # 15 labels in 3 steps


def test_convergence_balanced_raises_the_weight_of_the_slowest() -> None:
    """Equal logits at first, so weights 1 / L. Then b's validation loss has fallen to a half and a's has not: Adam's
    first step moves the logits apart by twice the learning rate."""
    rule = Rule("convergence_balanced", TASKS, learning_rate=0.1, decay=0.0)
    assert rule(TASKS, tensor(1.0, 4.0), tensor(7.0, 8.0)).tolist() == pytest.approx([0.8, 0.2])
    found = rule(TASKS, tensor(1.0, 4.0), tensor(7.0, 4.0)).tolist()
    assert found == pytest.approx(softmax(0.1, -0.1 - math.log(4)))


def test_convergence_balanced_waits_for_a_label() -> None:
    """A batch without a label of a task is no news of it: its fall is that between the batches around."""
    whole, gap = (Rule("convergence_balanced", TASKS, learning_rate=0.1) for _ in range(2))
    whole(TASKS, tensor(1.0, 4.0), tensor(7.0, 8.0))
    gap(TASKS, tensor(1.0, 4.0), tensor(7.0, 8.0))
    before = gap.state_dict()
    gap(TASKS, tensor(1.0, 4.0), tensor(math.nan, math.nan))
    for key, value in gap.state_dict().items():
        assert torch.equal(value, before[key]) if isinstance(value, Tensor) else value == before[key]
    wanted = whole(TASKS, tensor(1.0, 4.0), tensor(6.0, 4.0))
    assert torch.equal(gap(TASKS, tensor(1.0, 4.0), tensor(6.0, 4.0)), wanted)


def test_coba_by_hand() -> None:
    """History 2, so slopes are differences of the relative losses: first -0.1 and -0.02, then -0.05 and 0.02.

    Relative scores: softmax of 2 a / sum |a|. Absolute: the slopes over the sum of a task's last two, times -2. The
    largest slopes are -0.02 and 0.02: task b begins to diverge, and the factor is 2 softmax(5, -5)[1].
    """
    rule = Rule("coba", TASKS, history=2, warmup=0)
    losses = tensor(1.0, 1.0)
    assert rule(TASKS, losses, tensor(1.0, 2.0)).tolist() == [0.5, 0.5]
    assert rule(TASKS, losses, tensor(0.9, 1.96)).tolist() == pytest.approx(softmax(-0.2 / 0.12, -0.04 / 0.12))
    relative = softmax(-0.1 / 0.07, 0.04 / 0.07)
    absolute = softmax(0.1 / 0.15, -0.04 / 0.04)
    factor = 2 * softmax(5.0, -5.0)[1]
    wanted = [factor * r + (1 - factor) * a for r, a in zip(relative, absolute, strict=True)]
    assert rule(TASKS, losses, tensor(0.85, 2.0)).tolist() == pytest.approx(wanted)


def test_coba_fits_a_line() -> None:
    """Relative losses 1, 0.7, 0.6, 0.7: the slope of numpy's line. A task without a label keeps its last slope."""
    rule = Rule("coba", TASKS, history=4, warmup=0)
    for a, b in ((2.0, 1.0), (1.4, 1.0), (1.2, math.nan), (1.4, 0.5)):
        rule(TASKS, tensor(1.0, 1.0), tensor(a, b))
    slopes = rule.state_dict()["state.slopes"]
    assert float(slopes[0, -1]) == pytest.approx(-0.1)  # (-1.5, -0.5, 0.5, 1.5) . y / 5
    assert slopes[1].isnan().tolist() == [True, True, False, False]
    assert float(slopes[1, -1]) == pytest.approx(-0.25)  # 1, 1, 0.5
    assert int((~rule.state_dict()["state.largest"].isnan()).sum()) == 3


def test_coba_warms_up() -> None:
    rule = Rule("coba", TASKS, warmup=3)
    found = [rule(TASKS, tensor(1.0, 1.0), tensor(1.0 - 0.1 * n, 1.0)).tolist() for n in range(4)]
    assert found[:3] == [[0.5, 0.5]] * 3
    assert found[3] != [0.5, 0.5]


def test_what_they_need_is_named() -> None:
    x = torch.ones(2, requires_grad=True)
    losses = {"a": x.square().sum(), "b": x.sum()}
    with pytest.raises(MissingInput, match=r"rule 'data_balanced' needs the number of labels .* counts="):
        polytask.balancer("data_balanced").backward(losses)
    with pytest.raises(MissingInput, match=r"rule 'coba' needs the losses on a validation batch: .*forward="):
        polytask.balancer("coba").backward(losses)
    with pytest.raises(BadValue, match=r"the loss of task 'b' is -1\.0; allowed: at least 0"):
        polytask.balancer("convergence_balanced").backward(losses, forward=given({"a": 1.0, "b": -1.0}))
    with pytest.raises(NotFinite, match="the loss of task 'b' is nan at step 0"):
        polytask.balancer("coba").backward(losses, forward=given({"a": 1.0, "b": math.nan}))
    assert x.grad is None


def given(values: dict[str, float]):
    return lambda parameters=None, batch=0: {task: torch.tensor(value) for task, value in values.items()}


def test_the_balancer_asks_for_the_validation_batch() -> None:
    """It is asked for without a graph, once a step; a task that it lacks is unknown there."""
    x, asked = torch.ones(2, requires_grad=True), []

    def forward(parameters=None, batch=0):
        asked.append((parameters, batch, torch.is_grad_enabled()))
        return {"a": x.square().sum()}

    balancer = polytask.balancer("convergence_balanced", tasks=TASKS)
    report = balancer.backward({"a": x.square().sum(), "b": x.sum()}, forward=forward)
    assert asked == [(None, "validation", False)]
    assert report.weights == pytest.approx({"a": 0.5, "b": 0.5})
    assert balancer.state_dict()["rules"]["all"]["state.before"].isnan().tolist() == [False, True]
