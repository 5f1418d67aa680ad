"""Checks that a rule's file says where the method comes from, how it departs from it and what it costs."""

import inspect
import re
from collections.abc import Callable

from polytask.core.rules import RuleSpec

SECTIONS = ("Source", "Departures", "Cost")


def is_documented(spec: RuleSpec) -> None:
    """The file or function says Source, Departures (also "none") and Cost; the function what it takes and returns."""
    module = inspect.getdoc(inspect.getmodule(spec.function)) or ""
    function = inspect.getdoc(spec.function) or ""
    for section in SECTIONS:
        said = re.search(rf"^{section}\b:?[ ]+\S", module, re.MULTILINE) or re.search(
            rf"^{section}\b:?[ ]+\S", function, re.MULTILINE
        )
        assert said, f"the docstring has no line {section!r}"
    assert spec.source, "the rule names no source"
    assert function, "the function has no docstring"
    assert "Returns:" in function, "the function's docstring does not say what it returns"
    missing = [name for name in spec.parameters if not re.search(rf"\b{name}\b", function)]
    assert not missing, f"the function's docstring does not explain {', '.join(missing)}"


CHECKS: dict[str, Callable[[RuleSpec], None]] = {"is_documented": is_documented}
