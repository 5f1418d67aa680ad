"""For each check of a procedure a rule that is wrong in that way: the check must say so."""

import itertools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing.engine import Combined
from polytask.balancing.session import Session
from polytask.core.constraints import parameters_of
from polytask.core.errors import BadValue
from polytask.core.rules import RuleSpec, rule
from polytask.testing import CHECKS, CheckFailure, check_rule


class Steps(NamedTuple):
    """How often each task was seen."""

    seen: Float[Tensor, "T"]


class Unnamed(NamedTuple):
    """The same, though the annotation does not say that an entry is a task's."""

    seen: Float[Tensor, "other"]


def total(session: Session, factor: float = 1.0) -> Combined:
    """The gradient of the plain sum, times a factor."""
    losses = list(session.step.losses.values())
    grads = session.gradient(sum(losses[1:], start=losses[0]), session.step.trainable, "the sum")
    pairs = [(session.step.trainable[name], factor * grad) for name, grad in grads.items()]
    return Combined(pairs, {}, {}, [])


def right(session: Session, state: Steps) -> tuple[Combined, Steps]:
    return total(session, 1 / (1 + float(state.seen.sum()))), Steps(state.seen + 1)


def infinite(session: Session) -> Combined:
    return total(session, torch.inf)


def incomplete(session: Session) -> Combined:
    return Combined(total(session).grads[1:], {}, {}, [])


def overwriting(session: Session) -> Combined:
    for parameter in session.step.trainable.values():
        parameter.grad = None
    return total(session)


def descending(session: Session) -> Combined:
    found = total(session)
    with torch.no_grad():
        for parameter, grad in found.grads:
            parameter -= 0.1 * grad
    return found


def drawing(session: Session) -> Combined:
    return total(session, float(torch.rand(())))


def forgetful(session: Session) -> Combined:
    return total(session, float(next(CALLS)))


CALLS = itertools.count(1)


def impatient(session: Session, state: Unnamed) -> tuple[Combined, Unnamed]:
    return total(session), Unnamed(state.seen + 1)


def blind(session: Session) -> Combined:
    session.forward()
    return total(session)


def wrong(function: Callable[..., Any], **options: Any) -> RuleSpec:
    """A procedure that is in no table."""
    needs = options.pop("needs", ("forward",))
    return RuleSpec(
        name="wrong", function=function, source="this test", needs=needs, granularity="global", returns="gradients",
        scale="own", claims=frozenset(), parameters=parameters_of(function), **options,
    )  # fmt: skip


def started(kind: type) -> dict[str, Any]:
    return {"init": lambda tasks: kind(torch.zeros(tasks, dtype=torch.float64))}


WRONG = [
    ("gives_finite_gradients", "is not finite", wrong(infinite)),
    ("gives_finite_gradients", "has no gradient", wrong(incomplete)),
    ("adds_to_gradients", "replaces what was there", wrong(overwriting)),
    ("leaves_the_model_alone", r"changed trunk\.weight", wrong(descending)),
    ("repeats_itself", "moved the global random state of torch", wrong(drawing)),
    ("repeats_itself", "two results", wrong(forgetful)),
    ("resumes_from_its_state", "another result", wrong(forgetful)),
    ("lets_absent_tasks_wait_in_a_run", "state changed", wrong(impatient, **started(Unnamed))),
    ("says_its_cost_in_passes", "no line 'Cost'", wrong(blind)),
    ("is_documented", "no line 'Source'", wrong(blind)),
]


@pytest.mark.parametrize("check, problem, spec", WRONG)
def test_a_wrong_procedure_is_seen(check: str, problem: str, spec: RuleSpec) -> None:
    with pytest.raises(CheckFailure, match=problem) as failure:
        check_rule(spec, only=[check])
    assert failure.value.results[0].form == "procedure"


def test_a_right_one_passes_them() -> None:
    spec = wrong(right, **started(Steps))
    check_rule(spec, only=[name for name, _, _ in WRONG if not name.startswith(("says", "is_documented"))])
    check_rule(spec, only=["refuses_what_it_cannot_use", "refuses_bad_parameters"])


def test_a_parameter_without_a_constraint_is_seen() -> None:
    def loose(session: Session, *, size: float = 1.0) -> Combined:
        return total(session, size)

    with pytest.raises(CheckFailure, match="size has no constraint"):
        check_rule(wrong(loose), only=["refuses_bad_parameters"])


def test_refusals_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every procedure gets from the balancer cannot be wrong in one of them: without it the check fails."""
    balancer = sys.modules["polytask.balancing.balancer"]  # the package has a function of this name
    monkeypatch.setattr(balancer, "require", lambda spec, applied, **given: None)
    with pytest.raises(CheckFailure, match="fails 1 of 1"):
        check_rule(wrong(right, **started(Steps)), only=["refuses_what_it_cannot_use"])


def test_every_check_is_tried() -> None:
    tried = {check for check, _, _ in WRONG} | {"refuses_what_it_cannot_use", "refuses_bad_parameters"}
    assert tried == set(CHECKS["procedure"])


def test_a_declaration_that_does_not_fit() -> None:
    def procedure(session: Session) -> Combined:
        return total(session)

    with pytest.raises(BadValue, match="claims are about rules that combine"):
        rule("mine", source="x", needs=("forward",), scale="own", claims=("permutation",))(procedure)
    with pytest.raises(BadValue, match="needs is"):
        rule("mine", source="x", needs=("forward", "gram"), scale="own")(procedure)
    with pytest.raises(BadValue, match="the signature"):
        rule("mine", source="x", needs=("losses",), scale="sum")(procedure)
