"""Scores of a model over splits."""

import pytest
import torch
from torch import Tensor, nn

from polytask.core.errors import MissingInput
from polytask.evaluation.scores import evaluate, selection_score
from polytask.tasks.examples import Examples
from polytask.tasks.target import Target
from polytask.tasks.task import Task


class Linear(nn.Module):
    """Two heads on the inputs; a dropout that must be off and a frozen layer that must stay in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(1).eval()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.asked: list[list[str]] = []

    def forward(self, inputs: dict[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        self.asked.append(tasks)
        return {task: self.dropout(inputs["numeric"][:, 0]) * self.scale for task in tasks}


def targets() -> dict[str, Target]:
    click = Task(name="click", kind="binary", metric="accuracy")
    value = Task(name="value", kind="regression", metric="rmse")
    return {"click": Target(click), "value": Target(value, mean=1.0, std=2.0)}


def examples(x: list[float], click: list[float] | None, value: list[float] | None, source: str) -> Examples:
    labels = {name: torch.tensor(y) for name, y in (("click", click), ("value", value)) if y is not None}
    present = {name: torch.ones(len(x), dtype=torch.bool) for name in labels}
    return Examples({"numeric": torch.tensor(x)[:, None]}, labels, present, torch.arange(len(x)), source)


def test_metrics_and_losses_by_hand() -> None:
    model = Linear()
    split = examples([1.0, -1.0, 0.5], [1.0, 0.0, 0.0], [2.0, 0.0, 1.0], "s")
    metrics, losses = evaluate(model, {"s": split}, targets(), batch_size=2)
    # Outputs are 2x: 2, -2, 1. Two of three signs are right. Standardised errors 0, -2, 0; in units of std 2: 0, -4, 0.
    assert metrics["click"]["accuracy"] == pytest.approx(2 / 3)
    assert metrics["value"]["rmse"] == pytest.approx((16 / 3) ** 0.5)
    assert losses["value"] == pytest.approx(4 / 3)
    entropy = [torch.log1p(torch.exp(torch.tensor(z))).item() for z in (-2.0, -2.0, 1.0)]
    assert losses["click"] == pytest.approx(sum(entropy) / 3, rel=1e-6)


def test_batch_size_changes_nothing_and_flags_are_restored() -> None:
    model = Linear()
    model.train()
    model.frozen.eval()
    split = examples([0.3, -0.7, 1.1, 0.2, -0.4], [1.0, 0.0, 1.0, 0.0, 1.0], [0.1, 0.2, 0.3, 0.4, 0.5], "s")
    whole, one = (evaluate(model, {"s": split}, targets(), size) for size in (64, 1))
    assert whole[0] == one[0]
    assert whole[1] == pytest.approx(one[1])
    assert model.training
    assert model.dropout.training
    assert not model.frozen.training
    assert model.scale.grad is None


def test_each_source_computes_its_own_tasks() -> None:
    model = Linear()
    splits = {"a": examples([1.0], [1.0], None, "a"), "b": examples([1.0, 2.0], None, [2.0, 4.0], "b")}
    metrics, _ = evaluate(model, splits, targets(), batch_size=8)
    assert model.asked == [["click"], ["value"]]
    assert list(metrics) == ["click", "value"]


def test_absent_labels_are_undefined_and_left_out_of_the_selection() -> None:
    split = examples([1.0, -1.0], [1.0, 0.0], [2.0, 0.0], "s")
    split.present["value"][:] = False
    fitted = targets()
    metrics, losses = evaluate(Linear(), {"s": split}, fitted, batch_size=8)
    assert metrics["value"]["rmse"] is None
    assert losses["value"] is None
    found = selection_score(metrics, fitted)
    assert (found.value, found.left_out) == (1.0, ("value",))


def test_selection_turns_errors_and_skips_auxiliary_tasks() -> None:
    helper = Target(Task(name="helper", kind="regression", metric="rmse", role="auxiliary"))
    fitted = {**targets(), "helper": helper}
    metrics = {"click": {"accuracy": 0.75}, "value": {"rmse": 0.25}, "helper": {"rmse": 100.0}}
    assert selection_score(metrics, fitted).value == pytest.approx((0.75 - 0.25) / 2)
    assert selection_score({"click": {"accuracy": None}}, {"click": fitted["click"]}).value is None


def test_a_task_without_rows_is_an_error() -> None:
    with pytest.raises(MissingInput, match="no rows to score for task 'value'"):
        evaluate(Linear(), {"a": examples([1.0], [1.0], None, "a")}, targets(), batch_size=8)


def test_flags_are_restored_after_an_error() -> None:
    model = Linear()
    model.train()
    with pytest.raises(KeyError):
        evaluate(
            model,
            {
                "a": Examples(
                    {}, {"click": torch.ones(1)}, {"click": torch.ones(1, dtype=torch.bool)}, torch.arange(1), "a"
                )
            },
            {"click": targets()["click"]},
            4,
        )
    assert model.training
