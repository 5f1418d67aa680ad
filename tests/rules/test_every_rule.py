"""Every property check over every registered rule."""

import pytest

from polytask.core.errors import UnknownName
from polytask.core.names import RULES
from polytask.core.rules import CLAIMS, find, rule_names
from polytask.testing import CHECKS, CheckFailure, check_rule
from polytask.testing.claims import MEASURES
from polytask.testing.examples import examples

THINNED = {"doge": 6, "wudi": 4}  # descents of hundreds of steps: one example in so many


@pytest.mark.parametrize("name, check", [(name, check) for name in rule_names() for check in CHECKS[find(name).form]])
def test_rule(name: str, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in THINNED:
        monkeypatch.setattr("polytask.testing.trial.examples", lambda: examples()[:: THINNED[name]])
    (result,) = check_rule(name, only=[check])
    assert result.form == find(name).form


@pytest.mark.parametrize("name", list(RULES))
def test_a_rule_is_named_as_its_file_and_function(name: str) -> None:
    module, _, attribute = RULES[name].partition(":")
    assert (find(name).name, attribute, module.rpartition(".")[2]) == (name, name, name)


def test_every_claim_has_a_check() -> None:
    assert list(MEASURES) == list(CLAIMS)


def test_the_examples_do_not_change() -> None:
    examples.cache_clear()
    first = examples()
    examples.cache_clear()
    assert all(
        (a.vectors == b.vectors).all() and (a.losses == b.losses).all() for a, b in zip(first, examples(), strict=True)
    )


def test_the_examples_cover_every_kind() -> None:
    assert {example.stationary for example in examples()} == {"strongly", "weakly", "no", "unknown"}
    assert any(len(example.vectors) > example.vectors.shape[1] for example in examples())


def test_an_unknown_rule_and_an_unknown_check_are_named() -> None:
    with pytest.raises(UnknownName, match="did you mean 'pcgrad'"):
        check_rule("pcgrd")
    with pytest.raises(UnknownName, match="did you mean 'resumes_exactly'"):
        check_rule("equal", only=["resume_exactly"])


def test_a_failure_lists_what_failed() -> None:
    from dataclasses import replace

    boastful = replace(find("equal"), claims=frozenset({"convex_weights"}))
    with pytest.raises(CheckFailure, match="claims_convex_weights: convex_weights is claimed") as failure:
        check_rule(boastful)
    failed = [result.check for result in failure.value.results if not result.passed]
    assert failed == [
        "claims_permutation",
        "claims_homogeneous",
        "claims_nonnegative_weights",
        "claims_convex_weights",
        "claims_linear_under_scaling",
    ]
