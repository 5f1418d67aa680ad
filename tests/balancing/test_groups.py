"""Per-layer and per-tensor variants of every rule on gradients: each group is balanced as if it were all there is."""

import pytest
import torch
from tests.balancing.references import jacobian
from tests.balancing.test_gradients import dense_gram, is_shared, losses_of, made

import polytask
from polytask.core.rules import find, rule_names
from polytask.core.state import Rule

ANY_NUMBER = [name for name in rule_names() if find(name).tasks is None]
GRAM = [name for name in ANY_NUMBER if "gram" in find(name).needs and set(find(name).needs) <= {"losses", "gram"}]
STACK = [name for name in ANY_NUMBER if find(name).needs == ("stack",) and find(name).granularity == "element"]
STEPS = (["a", "b", "c"], ["a", "c"], ["b"], ["a", "b", "c"])  # with absent tasks, and one alone


def group_of(name: str, groups: str) -> str:
    return name.rpartition(".")[0] if groups == "layer" else name


def test_every_rule_on_gradients_is_here() -> None:
    assert len(GRAM) > 15
    assert len(STACK) > 2


@pytest.mark.parametrize("groups", ["layer", "tensor"])
@pytest.mark.parametrize("name", GRAM)
def test_each_group_has_a_rule_of_its_own(name: str, groups: str) -> None:
    """Weights and gradients over four steps, against the rule alone on each group's dense Gram matrix."""
    model = made()
    balancer = polytask.balancer(name, tasks=["a", "b", "c"], groups=groups, seed=5)
    alone: dict[str, Rule] = {}
    for step, present in enumerate(STEPS):
        losses = {task: loss for task, loss in losses_of(model, step).items() if task in present}
        named = dict(model.named_parameters())
        slices = jacobian(losses, named)
        reached = {key: int((stack != 0).flatten(1).any(1).sum()) for key, stack in slices.items()}
        shared = [
            key for key in named if (is_shared(key) or len(present) == 1) and reached[key] >= min(2, len(present))
        ]
        model.zero_grad()
        report = balancer.backward(losses, model)
        assert report.shared == shared
        values = torch.stack([loss.detach() for loss in losses.values()])
        for key in dict.fromkeys(group_of(each, groups) for each in shared):
            stacks = {each: slices[each] for each in shared if group_of(each, groups) == key}
            rule = alone.setdefault(key, Rule(name, ["a", "b", "c"], seed=5))
            while rule.step < step:  # a group that was not there lets a step pass all the same
                rule.advance()
            seen, tracker = stacks, find(name).tracker
            if tracker is not None:
                norms = dense_gram(stacks).diagonal().sqrt()
                seen = {each: rule.tracked(present, each, x, losses=values, norms=norms) for each, x in stacks.items()}
            inputs = {"losses": values, "gram": dense_gram(seen)}
            weights = rule(present, *(inputs[need] for need in find(name).needs))
            torch.testing.assert_close(report.weights_by_group[key], weights, rtol=1e-6, atol=1e-9)
            for each, stack in (stacks if tracker is not None and not tracker.replaces else seen).items():
                expected = torch.einsum("t,t...->...", weights, stack)
                torch.testing.assert_close(named[each].grad, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("groups", ["layer", "tensor"])
@pytest.mark.parametrize("name", STACK)
def test_elementwise_rules_know_no_groups(name: str, groups: str) -> None:
    """What they do to an element depends on that element: groups change nothing."""
    grads = []
    for options in ({}, {"groups": groups}):
        model = made()
        polytask.balancer(name, seed=5, **options).backward(losses_of(model), model)
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(whole, part) for whole, part in zip(*grads, strict=True))
