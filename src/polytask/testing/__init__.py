"""Property checks for rules: `check_rule("mine")` runs every one and says which fail."""

from polytask.testing.check import CHECKS, CheckFailure, CheckResult, check_rule

__all__ = ["CHECKS", "CheckFailure", "CheckResult", "check_rule"]
