"""A rule that somebody else writes: registered by importing its file, checked, and used in a training step."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import polytask
from polytask.core.errors import BadValue, UnknownName
from polytask.core.rules import RuleSpec, find, rule, rule_names
from polytask.testing import check_rule

RULE = '''"""Sign agreement: a coordinate moves only where all tasks want it to move the same way.

Source      folklore, for this test.
Departures  none.
Cost        one pass over the vectors.
"""

from typing import Annotated

import torch
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule


@rule(
    "sign_agreement",
    source="a test",
    needs=("stack",),
    scale="mean",
    claims=("permutation", "homogeneous", "non_conflicting", "linear_under_scaling"),
)
def sign_agreement(stack: Tensor, *, share: Annotated[float, Interval(0.5, 1, open="left")] = 1.0) -> Tensor:
    """The mean where at least a share of the tasks has the sign of the majority, else 0.

    Args:    stack: the task vectors of one parameter.
             share: of the tasks that must agree.
    Returns: the combined vector.
    """
    agree = stack.sign().sum(0).abs() >= (2 * share - 1) * len(stack)
    return stack.mean(0) * agree
'''


@pytest.fixture
def sign_agreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RuleSpec]:
    path = tmp_path / "my_rule.py"
    path.write_text(RULE)
    module_spec = importlib.util.spec_from_file_location("my_rule", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    monkeypatch.setitem(__import__("sys").modules, "my_rule", module)
    module_spec.loader.exec_module(module)
    return find("sign_agreement")


def test_it_passes_the_checks(sign_agreement: RuleSpec) -> None:
    assert rule_names()[-1] == "sign_agreement"
    assert all(result.passed for result in check_rule("sign_agreement"))


def test_it_trains(sign_agreement: RuleSpec) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(6, 5), "a": nn.Linear(5, 1), "b": nn.Linear(5, 1)})
    hidden = model["trunk"](torch.randn(8, 6)).tanh()
    losses = {task: (model[task](hidden) - 1).square().mean() for task in ("a", "b")}
    wanted = {}
    for name in ("trunk.weight", "trunk.bias"):
        parameter = model.get_parameter(name)
        grads = torch.stack([torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in losses.values()])
        wanted[name] = grads.mean(0) * (grads[0] * grads[1] > 0)
    report = polytask.balancer("sign_agreement").backward(losses, model)
    for name, grad in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad)
        assert 0 < (grad == 0).double().mean() < 1
    assert report.weights == {}
    assert report.gram is not None


@pytest.mark.parametrize("scale, factor", [("sum", 2.0), ("mean", 1.0)])
def test_its_scale_can_be_chosen(sign_agreement: RuleSpec, scale: str, factor: float) -> None:
    one, two = torch.tensor([1.0, -1.0], requires_grad=True), torch.tensor([1.0, -1.0], requires_grad=True)
    for parameter, chosen in ((one, "published"), (two, scale)):
        losses = {"a": (parameter * torch.tensor([1.0, 2.0])).sum(), "b": (parameter * torch.tensor([3.0, -2.0])).sum()}
        polytask.balancer("sign_agreement", scale=chosen).backward(losses, [parameter])
    assert one.grad.tolist() == [2.0, 0.0]
    assert two.grad.tolist() == [2.0 * factor, 0.0]


def test_its_parameter_is_checked(sign_agreement: RuleSpec) -> None:
    with pytest.raises(BadValue, match=r"share is 0\.5; allowed: a number in"):
        polytask.balancer("sign_agreement", share=0.5)


def test_a_taken_name_and_a_bad_declaration_are_refused() -> None:
    def function(gram: torch.Tensor) -> torch.Tensor:
        return gram[0]

    with pytest.raises(BadValue, match="a name that is not taken"):
        rule("mgda", source="x", needs=("gram",), scale="sum")(function)
    with pytest.raises(UnknownName, match="did you mean 'gram'"):
        rule("mine", source="x", needs=("grams",), scale="sum")(function)
    with pytest.raises(UnknownName, match="did you mean 'stationary'"):
        rule("mine", source="x", needs=("gram",), scale="sum", claims=("stationery",))(function)
    with pytest.raises(BadValue, match="the signature"):
        rule("mine", source="x", needs=("losses",), scale="sum")(function)
    assert "mine" not in rule_names()
