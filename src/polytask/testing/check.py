"""Every check over one rule."""

from collections.abc import Sequence
from dataclasses import dataclass

from polytask.core.errors import PolytaskError, UnknownName
from polytask.core.rules import RuleSpec, find
from polytask.testing import claims, contract, documentation, elementwise, limits, refusals

CHECKS = {
    name: check
    for topic in (contract, limits, elementwise, refusals, claims, documentation)
    for name, check in topic.CHECKS.items()
}


@dataclass(frozen=True)
class CheckResult:
    """What one check said of a rule; `problem` is empty where it passed."""

    check: str
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem


class CheckFailure(AssertionError):
    """A rule that fails some checks; `results` has all of them."""

    def __init__(self, rule: str, results: Sequence[CheckResult]) -> None:
        failed = [result for result in results if not result.passed]
        lines = [f"  {result.check}: {result.problem}" for result in failed]
        super().__init__("\n".join([f"rule {rule!r} fails {len(failed)} of {len(results)} checks:", *lines]))
        self.results = list(results)


def check_rule(rule: str | RuleSpec, only: Sequence[str] | None = None) -> list[CheckResult]:
    """Runs the property checks on a rule: those every rule must pass, and its claims both ways.

    Args:    rule: a registered rule's name, or its spec.
             only: names of checks (see `CHECKS`); all by default.
    Returns: a result for each check.
    Raises:  CheckFailure listing every check that failed.

    >>> all(result.passed for result in check_rule("equal"))
    True
    """
    spec = find(rule) if isinstance(rule, str) else rule
    for name in only or ():
        if name not in CHECKS:
            raise UnknownName("check of a rule", name, CHECKS)
    results = [CheckResult(name, _problem(spec, name)) for name in (CHECKS if only is None else only)]
    if not all(result.passed for result in results):
        raise CheckFailure(spec.name, results)
    return results


def _problem(spec: RuleSpec, name: str) -> str:
    """What a check found; an error that a rule raises on a valid input is a finding too."""
    try:
        CHECKS[name](spec)
    except AssertionError as error:
        return str(error) or "an assertion of the rule failed"
    except (PolytaskError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
