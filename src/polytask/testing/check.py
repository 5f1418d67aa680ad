"""Every check over one rule."""

from collections.abc import Sequence
from dataclasses import dataclass

from polytask.core.errors import PolytaskError, UnknownName
from polytask.core.rules import RuleSpec, find
from polytask.testing import claims, contract, documentation, elementwise, limits, procedure, refusals

CHECKS = {
    "combine": {
        name: check
        for topic in (contract, limits, elementwise, refusals, claims, documentation)
        for name, check in topic.CHECKS.items()
    },
    "procedure": {
        **procedure.CHECKS,
        "refuses_bad_parameters": refusals.refuses_bad_parameters,
        **documentation.CHECKS,
    },
}
"""Form of a rule -> name -> check. Claims are about the form that combines: a procedure makes none."""


@dataclass(frozen=True)
class CheckResult:
    """What one check said of a rule of this form; `problem` is empty where it passed."""

    check: str
    form: str
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem


class CheckFailure(AssertionError):
    """A rule that fails some checks; `results` has all of them."""

    def __init__(self, rule: str, form: str, results: Sequence[CheckResult]) -> None:
        failed = [result for result in results if not result.passed]
        lines = [f"  {result.check}: {result.problem}" for result in failed]
        super().__init__(
            "\n".join([f"rule {rule!r} fails {len(failed)} of {len(results)} checks of form {form!r}:", *lines])
        )
        self.results = list(results)


def check_rule(rule: str | RuleSpec, only: Sequence[str] | None = None) -> list[CheckResult]:
    """Runs the property checks of a rule's form: those every such rule must pass, and its claims both ways.

    Args:    rule: a registered rule's name, or its spec.
             only: names of checks (see `CHECKS`); all of the form by default.
    Returns: a result for each check, which says the form.
    Raises:  CheckFailure listing every check that failed.

    >>> all(result.passed for result in check_rule("equal"))
    True
    """
    spec = find(rule) if isinstance(rule, str) else rule
    checks = CHECKS[spec.form]
    for name in only or ():
        if name not in checks:
            raise UnknownName(f"check of a rule of form {spec.form!r}", name, checks)
    results = [CheckResult(name, spec.form, _problem(spec, name)) for name in (checks if only is None else only)]
    if not all(result.passed for result in results):
        raise CheckFailure(spec.name, spec.form, results)
    return results


def _problem(spec: RuleSpec, name: str) -> str:
    """What a check found; an error that a rule raises on a valid input is a finding too."""
    try:
        CHECKS[spec.form][name](spec)
    except AssertionError as error:
        return str(error) or "an assertion of the rule failed"
    except (PolytaskError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
