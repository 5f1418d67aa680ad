"""For each property check a rule that is wrong in that way: the check must say so."""

import inspect
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval, parameters_of
from polytask.core.noise import Noise
from polytask.core.rules import CLAIMS, RuleSpec, find
from polytask.core.state import Rule
from polytask.testing import CHECKS, CheckFailure, check_rule


class Memory(NamedTuple):
    """A number a task."""

    value: Float[Tensor, "T"]


class Mislabelled(NamedTuple):
    """A number a task, though the annotation does not say that."""

    value: Float[Tensor, "other"]


def wrong(function: Callable[..., Any], **options: Any) -> RuleSpec:
    """A spec that is in no table."""
    needs = options.pop("needs", ("gram",))
    return RuleSpec(
        name="wrong",
        function=function,
        source="this test",
        needs=needs,
        granularity="element",
        returns="combined" if "stack" in needs else "weights",
        scale=options.pop("scale", "sum"),
        claims=frozenset(options.pop("claims", ())),
        parameters=parameters_of(function, skip=("noise", "priority")),
        random="noise" in inspect.signature(function).parameters,
        **options,
    )


def single_precision(gram: Tensor) -> Tensor:
    return torch.ones(len(gram))


def inverse_squares(gram: Tensor) -> Tensor:
    return 1 / gram.diagonal()


def overwriting(gram: Tensor) -> Tensor:
    gram[0, 0] = 1.0
    return torch.ones_like(gram[0])


def a_view(stack: Tensor) -> Tensor:
    return stack[0]


def drawing_globally(gram: Tensor) -> Tensor:
    random.random()
    return torch.ones_like(gram[0])


def deaf_to_noise(gram: Tensor, *, noise: Noise) -> Tensor:
    return torch.ones_like(gram[0])


CALLS: list[int] = []


def remembering_elsewhere(losses: Tensor, state: Memory) -> tuple[Tensor, Memory]:
    CALLS.append(1)
    return torch.ones_like(losses) * len(CALLS), state


def changing_everybody(losses: Tensor, state: Mislabelled) -> tuple[Tensor, Mislabelled]:
    return torch.ones_like(losses), Mislabelled(state.value + 1)


def half(gram: Tensor) -> Tensor:
    return torch.ones_like(gram[0]) / 2


def one(gram: Tensor) -> Tensor:
    return torch.ones_like(gram[0])


def shifted(stack: Tensor) -> Tensor:
    return stack.mean(0) + 1.0


def the_largest(stack: Tensor) -> Tensor:
    return stack.amax(0)


def by_the_norm(stack: Tensor) -> Tensor:
    return stack.mean(0) * stack.norm()


def by_the_first_column(stack: Tensor) -> Tensor:
    return stack[:, 0] * stack.sum(0)


def undeclared(gram: Tensor, *, decay: float = 0.5) -> Tensor:
    return torch.ones_like(gram[0])


def zeros(tasks: int) -> Memory:
    return Memory(torch.zeros(tasks, dtype=torch.float64))


def mislabelled(tasks: int) -> Mislabelled:
    return Mislabelled(torch.zeros(tasks, dtype=torch.float64))


STACK: dict[str, Any] = {"needs": ("stack",)}
WRONG = [
    ("keeps_shape_and_type", wrong(single_precision), "not float64"),
    ("keeps_shape_and_type", wrong(inverse_squares), "not finite"),
    ("leaves_inputs_alone", wrong(overwriting), "changed its input gram"),
    ("leaves_inputs_alone", wrong(a_view, **STACK), "a view of the input stack"),
    ("leaves_global_randomness_alone", wrong(drawing_globally), "the global random state of random"),
    ("leaves_global_randomness_alone", wrong(deaf_to_noise), "must depend on the seed"),
    ("resumes_exactly", wrong(remembering_elsewhere, needs=("losses",), init=zeros), "gives another result"),
    ("lets_absent_tasks_wait", wrong(changing_everybody, needs=("losses",), init=mislabelled), "absent task changed"),
    ("one_task_keeps_its_vector", wrong(half), "is not 1 times the vector"),
    ("identical_tasks_agree", wrong(one, scale="mean"), "is not 1 times the vector"),
    ("zero_vectors_are_harmless", wrong(shifted, **STACK), "not zero"),
    ("empty_and_scalar_tensors_work", wrong(by_the_first_column, **STACK), "IndexError"),
    ("odd", wrong(the_largest, **STACK), "f\\(-X\\) is not -f\\(X\\)"),
    ("streams", wrong(by_the_norm, **STACK), "two parameters apart"),
    ("refuses_bad_parameters", wrong(undeclared), "decay has no constraint"),
    ("is_documented", wrong(half), "no line 'Source'"),
]


@pytest.mark.parametrize(
    "check, spec, problem", WRONG, ids=[f"{check}-{spec.function.__name__}" for check, spec, _ in WRONG]
)
def test_the_check_sees_it(check: str, spec: RuleSpec, problem: str) -> None:
    with pytest.raises(CheckFailure, match=problem):
        check_rule(spec, only=[check])


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_false_claim_is_seen(claim: str) -> None:
    """Weights 3 - 2 t for task t, times the trace of G: none of the claims is true of them."""

    def unruly(gram: Tensor) -> Tensor:
        return (3.0 - 2.0 * torch.arange(len(gram), dtype=torch.float64)) * gram.trace()

    with pytest.raises(CheckFailure, match=f"{claim} is claimed"):
        check_rule(wrong(unruly, claims=[claim]), only=[f"claims_{claim}"])
    check_rule(wrong(unruly), only=[f"claims_{claim}"])  # not claimed: a counter-example is found


def test_a_claim_is_looked_at_in_every_trial() -> None:
    """Equal weights at the default; with the other sign they are below 0."""

    def signed(gram: Tensor, *, sign: Annotated[float, Interval(-1, 1)] = 1.0) -> Tensor:
        return sign * torch.ones_like(gram[0])

    spec = wrong(signed, claims=["nonnegative_weights"])
    check_rule(spec, only=["claims_nonnegative_weights"])
    with pytest.raises(CheckFailure, match=r"missed by 1 on .* with \{'sign': -1\.0\}"):
        check_rule(replace(spec, trials=({"sign": -1.0},)), only=["claims_nonnegative_weights"])


def test_a_claim_about_weights_by_a_rule_without_weights() -> None:
    with pytest.raises(CheckFailure, match="returns no weights"):
        check_rule(wrong(a_view, claims=["convex_weights"], **STACK), only=["claims_convex_weights"])


def test_refusals_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every rule gets from `Rule` cannot be wrong in one rule: without it the check fails."""
    monkeypatch.setattr(Rule, "_check", lambda self, present, inputs: None)
    with pytest.raises(CheckFailure, match="does not raise an error naming its task"):
        check_rule(find("equal"), only=["refuses_bad_inputs"])


def test_every_check_is_tried() -> None:
    tried = {check for check, _, _ in WRONG} | {f"claims_{claim}" for claim in CLAIMS} | {"refuses_bad_inputs"}
    assert tried == set(CHECKS["combine"])
