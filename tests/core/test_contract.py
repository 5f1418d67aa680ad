"""Constraints, catalogues, noise and errors: what rules and other named things are declared with."""

import math
from typing import Annotated

import numpy as np
import pytest

from polytask.core.catalogue import Catalogue
from polytask.core.constraints import Choice, Interval, check_parameters, parameters_of
from polytask.core.errors import BadValue, UnknownName, nearest
from polytask.core.noise import Noise


@pytest.mark.parametrize("interval, inside, outside", [
    (Interval(0, 1), [0, 0.5, 1], [-0.1, 1.1, math.nan, True, "0.5", None]),
    (Interval(0, 1, open="left"), [1e-9, 1], [0]),
    (Interval(0, 1, open="right"), [0, 0.9], [1]),
    (Interval(0, 1, open="both"), [0.5], [0, 1]),
    (Interval(0), [0, 1e300], [-1e-9, math.inf]),
])  # fmt: skip
def test_intervals(interval: Interval, inside: list, outside: list) -> None:
    assert all(interval.allows(value) for value in inside)
    assert not any(interval.allows(value) for value in [*outside, *interval.bad_values()])


def test_intervals_are_written_as_in_mathematics() -> None:
    assert str(Interval(0, 1, open="left")) == "a number in (0, 1]"
    assert str(Interval(0)) == "a number in [0, inf)"


def test_parameters_are_read_from_the_signature() -> None:
    def function(
        x: int,
        *,
        decay: Annotated[float, Interval(0, 1)] = 0.5,
        kind: Annotated[str, Choice("a", "b")] = "a",
        n: int = 3,
        clip: bool = True,
    ) -> None: ...

    declared = parameters_of(function)
    assert [str(parameter) for parameter in declared.values()] == [
        "decay: float = 0.5 (a number in [0, 1])",
        "kind: str = a (a | b)",
        "n: int = 3",
        "clip: bool = True",
    ]
    allowed = [parameter.allowed for parameter in declared.values()]
    assert allowed == ["a number in [0, 1]", "a | b", "a value of type int", "true or false"]
    checked = check_parameters(declared, {"decay": 1}, "here")
    assert checked == {"decay": 1.0, "kind": "a", "n": 3, "clip": True}
    assert isinstance(checked["decay"], float)
    for given, error, match in [
        ({"decay": 2}, BadValue, r"here: decay is 2; allowed: a number in \[0, 1\]"),
        ({"kind": "c"}, BadValue, r"here: kind is 'c'; allowed: a \| b"),
        ({"n": "many"}, BadValue, "here: n is 'many'; allowed: a value of type int"),
        ({"clip": 1}, BadValue, "here: clip is 1; allowed: true or false"),
        ({"decy": 0.1}, UnknownName, "here: no parameter 'decy' .did you mean 'decay'"),
    ]:
        with pytest.raises(error, match=match):
            check_parameters(declared, given, "here")


def test_a_catalogue() -> None:
    shelf = Catalogue("number", {"pi": "math:pi", "e": "math:e"})
    assert shelf.find("pi") == math.pi
    shelf.add("tau", math.tau)
    assert (shelf.names(), "tau" in shelf, "phi" in shelf) == (["pi", "e", "tau"], True, False)
    with pytest.raises(UnknownName, match=r"no number 'ta' .did you mean 'tau'.*allowed: pi, e, tau"):
        shelf.find("ta")
    with pytest.raises(BadValue, match="a name that is not taken"):
        shelf.add("e", 3)


def test_nearest() -> None:
    assert nearest("PCGRAD", ["mgda", "pcgrad"]) == " (did you mean 'pcgrad'?)"
    assert nearest("completely else", ["mgda"]) == ""


def test_errors_are_one_line() -> None:
    error = UnknownName("rule", "x", [f"rule{i}" for i in range(40)], "here")
    assert str(error).startswith("here: no rule 'x'")
    assert str(error).endswith("and 10 more")
    assert "\n" not in str(error)


def test_noise_depends_on_seed_keys_and_index_only() -> None:
    noise = Noise(3, "order", 1)
    for draw in (noise.uniform, noise.normal, noise.raw):
        whole = draw(50)
        for start in (1, 4, 7, 30):
            assert (draw(50 - start, start=start) == whole[start:]).all()
    assert (Noise(3, "order").child(1).uniform(5) == noise.uniform(5)).all()
    for other in (Noise(4, "order", 1), Noise(3, "order", 2), Noise(3, "order", "1"), Noise(3, "order1")):
        assert (other.uniform(5) != noise.uniform(5)).all()


def test_noise_has_the_distributions_it_says() -> None:
    noise = Noise(0, "moments")
    uniform, normal, integers = noise.uniform(100_000), noise.normal(100_000), noise.integers(70_000, 7)
    assert (uniform.min() >= 0, uniform.max() < 1) == (True, True)
    assert (uniform.mean(), uniform.var()) == (pytest.approx(0.5, abs=0.01), pytest.approx(1 / 12, abs=0.002))
    assert (normal.mean(), normal.var()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))
    assert (np.abs(np.bincount(integers, minlength=7) - 10_000) < 500).all()
    assert sorted(noise.permutation(100)) == list(range(100))
    firsts = np.bincount([Noise(0, i).permutation(3)[0] for i in range(3000)])
    assert (np.abs(firsts - 1000) < 120).all()
