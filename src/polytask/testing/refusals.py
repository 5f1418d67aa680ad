"""Checks that what a rule cannot use is refused by a typed error that names the culprit."""

import math
from collections.abc import Callable
from typing import Any

import torch

from polytask.core.errors import BadValue, NotFinite, PolytaskError, UnknownName
from polytask.core.rules import RuleSpec
from polytask.core.state import Rule
from polytask.testing.trial import inputs, some


def refuses_bad_parameters(spec: RuleSpec) -> None:
    """Every number is declared with what it may be; a value outside, and an unknown name, is an error naming it."""
    for name, parameter in spec.parameters.items():
        if parameter.constraint is None:
            assert not isinstance(parameter.default, float | str), (
                f"{name} has no constraint: which values are allowed?"
            )
            continue
        assert parameter.constraint.allows(parameter.default), f"the default of {name} is not allowed"
        for bad in parameter.constraint.bad_values():
            given: dict[str, Any] = {name: bad}
            message = refusal(lambda given=given: Rule(spec, ["a"], **given), PolytaskError)
            assert message, f"{name} = {bad!r} is accepted"
            assert name in message, f"the error for {name} = {bad!r} does not name it: {message}"
    assert refusal(lambda: Rule(spec, ["a"], no_such_parameter=1), UnknownName), "an unknown parameter is accepted"


def refuses_bad_inputs(spec: RuleSpec) -> None:
    """NaN and infinite inputs name the task; a wrong number of tasks and an unknown task are refused."""
    example = some(spec)
    last = len(example.tasks) - 1
    for value in (math.nan, math.inf):
        vectors, losses = example.vectors.clone(), example.losses.clone()
        vectors[last, -1] = losses[last] = value
        given = inputs(spec, losses, vectors)
        message = refusal(lambda given=given: Rule(spec, example.tasks)(example.tasks, *given), NotFinite)
        assert f"task{last}" in message, f"an input that is {value} does not raise an error naming its task: {message}"
    given = inputs(spec, example.losses[:-1], example.vectors[:-1])
    fewer = refusal(lambda: Rule(spec, example.tasks)(example.tasks, *given), BadValue)
    assert fewer, f"{last} rows pass for {last + 1} tasks"
    none = inputs(spec, torch.zeros(0, dtype=torch.float64), torch.zeros(0, 2, dtype=torch.float64))
    assert refusal(lambda: Rule(spec, example.tasks)([], *none), BadValue), "no task at all is accepted"


def refusal(call: Callable[[], object], error: type[PolytaskError]) -> str:
    """The message of the error that the call raises, "" if it raises none."""
    try:
        call()
    except error as raised:
        return str(raised)
    return ""


CHECKS: dict[str, Callable[[RuleSpec], None]] = {
    check.__name__: check for check in (refuses_bad_parameters, refuses_bad_inputs)
}
