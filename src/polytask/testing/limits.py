"""Checks at the limits: one task, identical tasks, zero vectors, empty and 0-d tensors."""

from collections.abc import Callable

import torch
from torch import Tensor

from polytask.core.rules import RuleSpec
from polytask.core.state import Rule
from polytask.testing.examples import Example
from polytask.testing.trial import outcome, suited


def one_task_keeps_its_vector(spec: RuleSpec) -> None:
    """A single task's vector comes back as it is, or of unit norm; times some number where the rule's scale is its own
    or losses are weighed; in part where it chooses elements."""
    for example in suited(spec):
        if len(example.vectors) == 1:
            _same_direction(spec, example, example.vectors[0], tasks=1)


def identical_tasks_agree(spec: RuleSpec) -> None:
    """Tasks with one and the same vector: their sum, mean or direction, as the rule's scale says."""
    for example in suited(spec):
        if example.name.startswith("identical"):
            same = Example(example.name, example.vectors, torch.ones_like(example.losses))
            _same_direction(spec, same, example.vectors[0], tasks=len(example.vectors))


def zero_vectors_are_harmless(spec: RuleSpec) -> None:
    """Nothing but zeros gives zeros; a zero vector among others leaves the result finite."""
    for example in suited(spec):
        found = outcome(spec, example).combined
        if example.name.startswith("zero"):
            assert (found == 0).all(), f"{example.name}: the result is not zero"
        elif example.name.startswith("one zero task"):
            assert found.isfinite().all(), f"{example.name}: the result is not finite"


def empty_and_scalar_tensors_work(spec: RuleSpec) -> None:
    """Parameters without elements, with one, and without dimensions."""
    tasks = ["a", "b", "c"][: spec.tasks]
    for shape in ((), (0,), (1,), (2, 0), (1, 1, 1)):
        values = torch.arange(1.0, len(tasks) + 1, dtype=torch.float64)
        stack = values.view(-1, *[1] * len(shape)).expand(-1, *shape).clone()
        flat = stack.flatten(1) if shape else stack[:, None]
        rule, ones = Rule(spec, tasks), torch.ones_like(values)
        if spec.tracker is not None:
            seen = rule.tracked(tasks, "parameter", stack, losses=ones, norms=flat.norm(dim=1))
            assert seen.shape == stack.shape, f"parameters of shape {shape}: the tracker gives {tuple(seen.shape)}"
            flat = seen.flatten(1) if shape else seen[:, None]
        products = {"gram": flat @ flat.T, "cross_gram": flat @ flat.T}
        given = {"losses": ones, "counts": ones, "validation": ones, "stack": stack, **products}
        given |= {"matrix": stack, "base": torch.ones(shape, dtype=torch.float64)}
        output = rule(tasks, *(given[need] for need in spec.needs))
        wanted = shape if spec.returns == "combined" else (len(tasks),)
        assert tuple(output.shape) == wanted, f"parameters of shape {shape}: the result has shape {tuple(output.shape)}"
        assert output.isfinite().all(), f"parameters of shape {shape}: the result is not finite"


def _same_direction(spec: RuleSpec, example: Example, vector: Tensor, tasks: int) -> None:
    found = outcome(spec, example).combined
    size = float(vector.norm())
    if spec.scale == "part":
        assert (found * vector >= 0).all(), f"{example.name}: an element has the wrong sign"
        return
    if spec.weighs_losses or spec.scale == "own":
        factor = float(found @ vector) / size**2 if size else 1.0
        assert factor > 0, f"{example.name}: the result is {factor:g} times the vector"
        if "matrix" in spec.needs:  # its singular directions may get other lengths
            return
    else:
        factor = {"sum": float(tasks), "mean": 1.0, "unit": 1 / size if size else 0.0}[spec.scale]
    error = float((found - factor * vector).norm())
    assert error <= 1e-6 * max(factor, 1.0) * size, f"{example.name}: the result is not {factor:g} times the vector"


CHECKS: dict[str, Callable[[RuleSpec], None]] = {
    check.__name__: check
    for check in (
        one_task_keeps_its_vector,
        identical_tasks_agree,
        zero_vectors_are_harmless,
        empty_and_scalar_tensors_work,
    )
}
