"""The rules of a balancer whose rule is a procedure: its own, and those that it applies."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from polytask.balancing.engine import Combined
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.session import Session
from polytask.core.constraints import RuleChoice
from polytask.core.errors import BadValue
from polytask.core.rules import RuleSpec, find
from polytask.core.state import Rule


class ProcedureRules:
    """Saves and restores like `GroupRules`.

    Args:
        new_rule: makes the procedure's own rule.
        new_inner: makes one that it applies; each purpose has one of its own.
    """

    def __init__(self, new_rule: Callable[[], Rule], new_inner: Callable[[], GroupRules]) -> None:
        self._new_rule, self._new_inner = new_rule, new_inner
        self._own: Rule | None = None
        self._inner: dict[str, GroupRules] = {}

    def __iter__(self) -> Iterator[Rule]:
        if self._own is not None:
            yield self._own
        for rules in self._inner.values():
            yield from rules

    @property
    def own(self) -> Rule:
        if self._own is None:
            self._own = self._new_rule()
        return self._own

    def inner(self, purpose: str) -> GroupRules:
        if purpose not in self._inner:
            self._inner[purpose] = self._new_inner()
        return self._inner[purpose]

    def run(self, session: Session) -> Combined:
        return self.own(session.tasks, session)

    def states(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {"own": self.own.state, "inner": {purpose: rules.states() for purpose, rules in self._inner.items()}}

    def restore(self, states: Mapping[str, Any]) -> None:
        self.own.state = states["own"]
        self._inner = {purpose: rules for purpose, rules in self._inner.items() if purpose in states["inner"]}
        for purpose, saved in states["inner"].items():
            self._inner[purpose].restore(saved)

    def state_dict(self) -> dict[str, Any]:
        inner = {purpose: rules.state_dict() for purpose, rules in self._inner.items()}
        return {"own": self.own.state_dict(), "inner": inner}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        self.own.load_state_dict(values["own"])
        for purpose, saved in values["inner"].items():
            self.inner(purpose).load_state_dict(saved)


def applied(spec: RuleSpec, parameters: Mapping[str, Any]) -> tuple[RuleSpec, dict[str, Any]]:
    """The rule that is applied to the losses or gradients, and its parameters: the one inside a procedure around one.

    Raises: UnknownName, or BadValue where that is a procedure itself or wants more than one batch's gradients.
    """
    for name, about in spec.parameters.items():
        if isinstance(about.constraint, RuleChoice):
            value = parameters[name]
            options = {"kind": value} if isinstance(value, str) else dict(value)
            inner = find(options.pop("kind"))
            if inner.form == "procedure":
                raise BadValue(name, inner.name, "a rule that is not a procedure itself", f"rule {spec.name!r}")
            if inner.double_sampling or inner.tracker:
                allowed = "a rule that reads one batch and remembers no gradients"
                raise BadValue(name, inner.name, allowed, f"rule {spec.name!r}")
            return inner, options
    return spec, dict(parameters)
