"""The report on gates: means over rows by hand, and the three anomalies."""

from pathlib import Path

import pytest
import torch
from tests.sharing.models import table_inputs, table_model
from tests.training.runs import train

from polytask.evaluation.gates import anomalies, gate_report
from polytask.evaluation.report import write_report
from polytask.tasks.examples import Examples


class Scored:
    """Stands for a target where only the task's name matters."""


def rows(count: int = 7) -> Examples:
    labels = {"click": torch.zeros(count), "topic": torch.zeros(count)}
    present = {task: torch.ones(count, dtype=torch.bool) for task in labels}
    return Examples(table_inputs(count), labels, present, torch.arange(count), "data")


def test_means_over_rows_by_hand() -> None:
    model = table_model({"kind": "mmoe", "experts": 3, "hidden_sizes": [4]}).eval()
    found = gate_report(model, {"data": rows()}, {"click": Scored(), "topic": Scored()}, batch_size=3)
    assert list(found) == ["experts"]
    about = found["experts"]
    assert about["experts"] == ["shared 1", "shared 2", "shared 3"]
    with torch.no_grad():
        z = model.representation(table_inputs(7))
        weights = (z @ model.sharing.gates.gates["topic"].weight.T).softmax(1).double()
        outputs = model.sharing.experts(z)
    assert about["use"]["topic"] == pytest.approx(weights.mean(0).tolist(), rel=1e-5)
    entropy = -(weights * weights.log()).sum(1).mean() / torch.tensor(3.0).log()
    assert about["entropy"]["topic"] == pytest.approx(entropy.item(), rel=1e-5)
    zeros = (outputs == 0).double().mean((1, 2)).tolist()
    assert list(about["zeros"].values()) == pytest.approx(zeros)


def test_a_task_may_choose_among_its_own_and_the_shared_only() -> None:
    model = table_model({"kind": "cgc", "shared_experts": 1, "task_experts": 1}).eval()
    about = gate_report(model, {"data": rows()}, {"click": Scored(), "topic": Scored()}, batch_size=9)["level.0"]
    assert about["experts"] == ["click 1", "shared 1", "topic 1"]
    assert about["use"]["click"][2] is None
    assert about["use"]["topic"][0] is None


def test_a_model_without_gates_has_no_report() -> None:
    assert gate_report(table_model("hard"), {"data": rows()}, {"click": Scored()}, batch_size=9) == {}


def test_the_three_anomalies() -> None:
    healthy = {"a": {"a 1": 0.4, "shared 1": 0.6}, "b": {"b 1": 0.5, "shared 1": 0.5}}
    assert anomalies(healthy, {"a 1": 0.4, "shared 1": 0.9}) == []
    assert anomalies(healthy, {"a 1": 0.4, "shared 1": 0.97}) == [
        "collapsed: 97% of the activations of shared 1 are zero"
    ]
    ill = {
        "a": {"a 1": 0.01, "shared 1": 0.98, "shared 2": 0.01},
        "b": {"b 1": 0.9, "shared 1": 0.05, "shared 2": 0.05},
    }
    assert anomalies(ill, {}) == [
        "captured: a gives shared 1 95% of the weight it gets from all tasks",
        "ignored: a gives its own experts 1.0% of its weight, where equal weights give 33%",
    ]


def test_a_run_reports_its_gates(tmp_path: Path) -> None:
    sharing = {"kind": "cgc", "shared_experts": 2, "task_experts": 1, "hidden_sizes": [4]}
    results = train(tmp_path / "run", model__sharing=sharing)
    use = results["gates"]["level.0"]["use"]
    assert {task: round(sum(value or 0 for value in row), 5) for task, row in use.items()} == dict.fromkeys(use, 1.0)
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "What the gates do" in page
    assert "Mean weights of the experts at level.0" in page
    assert "gates" not in train(tmp_path / "hard")
