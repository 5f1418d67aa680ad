"""The contract of a rule: a published method as one pure function, found by name, declaring what it must see.

A combine rule is a function of what it `needs`, then its `state` if it has one, then keyword-only parameters and
`noise`:

    @rule("mean", source="folklore", needs=("gram",), scale="mean", claims={"permutation"})
    def mean(gram):                         # float64 [T, T] -> weights, float64 [T]
        return torch.full((len(gram),), 1 / len(gram), dtype=gram.dtype)

    stateless: (inputs, *, parameters, noise) -> output       stateful: (inputs, state, *, ...) -> (output, state)

A procedure is a function of a session instead, which computes the losses again with other parameters or on another
batch, and it gives gradients: what needs `forward` is one (`polytask.balancing.session`).

State is a NamedTuple of tensors (and of such NamedTuples) whose annotations say which axes are tasks:
`Float[Tensor, "T"]` has one entry a task, `Float[Tensor, "T T"]` one a pair. When tasks are absent the function sees
the entries of those present; the others wait. A parameter with one number a task (`PerTask`) arrives in the same way.

What a rule on vectors must know of the whole tensor or model first is a statistic (`core.statistics`); its result comes
after the inputs, as `measured`.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from polytask.core.blocks import Granularity
from polytask.core.catalogue import Catalogue, summary
from polytask.core.constraints import Parameter, parameters_of
from polytask.core.errors import BadValue, UnknownName
from polytask.core.names import RULES
from polytask.core.statistics import Scope, Statistic
from polytask.core.tracking import Tracker

NEEDS = {
    "losses": "the tasks' losses, float64 [T]",
    "gram": "inner products of the task vectors, float64 [T, T]",
    "cross_gram": "inner products of the task vectors of one batch (rows) with those of another, float64 [T, T]",
    "stack": "the task vectors of one parameter, [T, *shape]",
    "matrix": "the task vectors of one matrix, [T, m, n]",
    "base": "the base model's values of the same elements, [*shape]; beside stack or matrix, in a merge only",
    "counts": "how many labels are behind each loss, float64 [T]",
    "validation": "the losses on a validation batch, float64 [T], NaN where it has no label; of a procedure its rows",
    "forward": "a session, which computes the losses with other parameters or on another batch: a procedure",
}
GRADIENTS = ("gram", "cross_gram", "stack", "matrix")

CLAIMS = {
    "permutation": "the order of the tasks does not matter",
    "homogeneous": "scaling every task's loss and vector by one factor, at every step, scales the result by it",
    "non_conflicting": "to first order a step increases no task's loss",
    "nonnegative_weights": "no task's weight is negative",
    "convex_weights": "the weights are at least 0 and sum to 1",
    "stationary": "the result is zero exactly at Pareto-stationary points: a convex combination of the vectors is 0",
    "strongly_stationary": "the result is zero exactly where a combination with positive weights for every task is",
    "linear_under_scaling": "a sum over tasks, each term of which grows with the scale of that task's loss and vector",
}

_TOGETHER = (
    ("losses", "gram"),
    ("losses", "cross_gram"),
    ("losses", "counts", "validation"),
    ("forward", "validation"),
)

Scale = Literal["sum", "mean", "unit", "own", "part"]
Of = Literal["deltas", "models", "base and models", "either"]


@dataclass(frozen=True)
class RuleSpec:
    """A registered rule; calling it calls the function.

    Attributes:
        name: as in recipes.
        function: the method itself.
        source: paper with the equation or algorithm number.
        needs: what it sees, in the order of its arguments.
        granularity: what one call covers: element, row, tensor or global.
        returns: "weights" (of a weighted sum of the task vectors), "combined" (the combined vector itself) or, of a
            procedure, "gradients".
        scale: whether the published result is a sum over tasks, a mean, of unit norm, of a length of its own, or a part
            of the elements (the others 0, or shortened).
        claims: properties that hold on every input; those not claimed have a counter-example.
        init: (number of tasks, *, parameters) -> the first state.
        after_epoch: (state, *, parameters) -> state, called by the loop when an epoch ends.
        after_step: (state, losses, *, parameters) -> state, called after the optimiser's step with the same batch's new
            losses. All three take those of the rule's parameters that they name.
        tracker: what it remembers of each parameter, if anything.
        parameters: its keyword-only parameters.
        random: True if it takes `noise`.
        prefers: True if it takes `priority`, a published preference vector (float64 [T], mean 1 over all tasks).
        trials: parameters beside the defaults under which the checks look at the claims.
        statistic: builder, from those of the parameters that it names, of what must be measured first; or of None.
        of: what the rows are in a merge: fine-tuned minus base ("deltas"), the models' own values ("models"), the same
            with the base as row 0 ("base and models"), or deltas where there is a base and models where not ("either").
        otherwise: for a rule on matrices, the rule that combines what is no matrix.
        tasks: how many tasks it combines; None for any number.
        groups: what one Gram matrix covers in a merge, unless the plan says otherwise: a tensor, a layer, or all.
    """

    name: str
    function: Callable[..., Any]
    source: str
    needs: tuple[str, ...]
    granularity: Granularity
    returns: Literal["weights", "combined", "gradients"]
    scale: Scale
    claims: frozenset[str]
    init: Callable[..., Any] | None = None
    after_epoch: Callable[..., Any] | None = None
    after_step: Callable[..., Any] | None = None
    tracker: Tracker | None = None
    parameters: dict[str, Parameter] = field(default_factory=dict)
    random: bool = False
    prefers: bool = False
    trials: tuple[dict[str, Any], ...] = ()
    statistic: Callable[..., Statistic | None] | None = None
    of: Of = "deltas"
    otherwise: str | None = None
    tasks: int | None = None
    groups: Scope = "all"

    def __call__(self, *arguments: Any, **parameters: Any) -> Any:
        return self.function(*arguments, **parameters)

    @property
    def form(self) -> Literal["combine", "procedure"]:
        return "procedure" if "forward" in self.needs else "combine"

    @property
    def weighs_losses(self) -> bool:
        """Whether one backward pass of a weighted sum does."""
        return self.form == "combine" and not any(need in GRADIENTS for need in self.needs)

    def looks_again(self, parameters: Mapping[str, Any]) -> bool:
        """Whether it wants the same batch's losses after the optimiser's step: it has `after_step`, and no `lookahead`
        that says otherwise."""
        return self.after_step is not None and parameters.get("lookahead", "same_batch") == "same_batch"

    def check_number(self, tasks: int) -> None:
        """BadValue if it does not combine so many tasks."""
        if tasks == 0 or self.tasks not in (None, tasks):
            allowed = "at least 1" if self.tasks is None else str(self.tasks)
            raise BadValue("the number of tasks", tasks, allowed, f"rule {self.name!r}")

    @property
    def double_sampling(self) -> bool:
        """Whether it reads several independent batches a step."""
        return "cross_gram" in self.needs

    @property
    def summary(self) -> str:
        """The first line of the docstring of the rule's file."""
        return summary(self.function)


_catalogue = Catalogue("rule", RULES)


def rule(
    name: str,
    *,
    source: str,
    needs: Iterable[str],
    scale: Scale,
    claims: Iterable[str] = (),
    granularity: Granularity | None = None,
    init: Callable[..., Any] | None = None,
    after_epoch: Callable[..., Any] | None = None,
    after_step: Callable[..., Any] | None = None,
    tracker: Tracker | None = None,
    trials: Iterable[dict[str, Any]] = (),
    statistic: Callable[..., Statistic | None] | None = None,
    of: Of = "deltas",
    otherwise: str | None = None,
    tasks: int | None = None,
    groups: Scope = "all",
) -> Callable[[Callable[..., Any]], RuleSpec]:
    """Declares the decorated function as the rule `name`. One not in the shipped table is added to the catalogue."""
    needs, claims = tuple(needs), frozenset(claims)
    for need in needs:
        if need not in NEEDS:
            raise UnknownName("input of a rule", need, NEEDS, f"rule {name!r}")
    for claim in sorted(claims):
        if claim not in CLAIMS:
            raise UnknownName("claim of a rule", claim, CLAIMS, f"rule {name!r}")
    vectors = needs[:1] in (("stack",), ("matrix",))
    alone = vectors and needs[1:] in ((), ("base",))
    if not needs or not (alone or any(set(needs) <= set(together) for together in _TOGETHER)):
        allowed = ["stack or matrix, base after it", *(", ".join(each) for each in _TOGETHER)]
        raise BadValue("needs", needs, " | ".join(allowed), f"rule {name!r}")
    if "forward" in needs and claims:
        raise BadValue("claims", sorted(claims), "none: claims are about rules that combine", f"rule {name!r}")
    if (needs[0] == "matrix") != (otherwise is not None):
        raise BadValue("otherwise", otherwise, "a rule's name for a rule on matrices, else None", f"rule {name!r}")
    if statistic and (not vectors or init):
        raise BadValue("statistic", statistic, "None for a rule on losses or Gram matrices, or with state", name)
    if (after_step or after_epoch) and not init:
        raise BadValue("init", init, "a first state: after_step and after_epoch change it", f"rule {name!r}")

    def declare(function: Callable[..., Any]) -> RuleSpec:
        arguments = inspect.signature(function).parameters
        usual: Granularity = "element" if needs[0] == "stack" else "tensor" if vectors else "global"
        spec = RuleSpec(
            name=name,
            function=function,
            source=source,
            needs=needs,
            granularity=granularity or usual,
            returns="gradients" if "forward" in needs else "combined" if vectors else "weights",
            scale=scale,
            claims=claims,
            init=init,
            after_epoch=after_epoch,
            after_step=after_step,
            tracker=tracker,
            parameters=parameters_of(function, skip=("noise", "priority")),
            random="noise" in arguments,
            prefers="priority" in arguments,
            trials=tuple(trials),
            statistic=statistic,
            of=of,
            otherwise=otherwise,
            tasks=tasks,
            groups=groups,
        )
        _check_signature(spec, list(arguments))
        _catalogue.declare(name, spec, function.__module__)
        return spec

    return declare


class BadRow(ValueError):
    """A rule cannot use one task's input; `core.state.Rule` turns it into an error that names the task."""

    def __init__(self, row: int, what: str, found: float, allowed: str) -> None:
        super().__init__(f"{what} of row {row} is {found!r}; allowed: {allowed}")
        self.row, self.what, self.found, self.allowed = row, what, found, allowed


def require_at_least(losses: Tensor, least: Tensor | float, why: str) -> None:
    """BadRow for the first task whose loss is below `least`."""
    below = losses < least
    if bool(below.any()):
        row = int(below.int().argmax())
        number = float(torch.as_tensor(least).expand_as(losses)[row])
        raise BadRow(row, "the loss", float(losses[row]), f"at least {number:g}, since {why}")


def find(name: str) -> RuleSpec:
    """The rule called `name`, shipped or added; UnknownName with the nearest match if there is none."""
    return _catalogue.find(name)


def rule_names() -> list[str]:
    """Every registered rule, in the table's order."""
    return _catalogue.names()


def _check_signature(spec: RuleSpec, arguments: list[str]) -> None:
    inputs = ["session"] if spec.form == "procedure" else [*spec.needs]
    positional = [*inputs, *(["state"] if spec.init else []), *(["measured"] if spec.statistic else [])]
    for name in spec.tracker.keywords if spec.tracker else ():
        if name not in Tracker.GIVEN and name not in spec.parameters:
            allowed = [*Tracker.GIVEN, *spec.parameters]
            raise UnknownName("argument of its tracker", name, allowed, f"rule {spec.name!r}")
    extra = [*spec.parameters, *(["noise"] if spec.random else []), *(["priority"] if spec.prefers else [])]
    if sorted(arguments) != sorted([*positional, *extra]) or arguments[: len(positional)] != positional:
        raise BadValue(
            "the signature", arguments, f"({', '.join(positional)}, *, parameters...)", f"rule {spec.name!r}"
        )
