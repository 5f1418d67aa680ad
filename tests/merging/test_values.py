import pytest

from polytask.core.errors import PolytaskError
from polytask.merging.values import NOTHING, check_value, interpolated, patterns_in, value_at


@pytest.mark.parametrize(
    "value, name, depth, expected",
    [
        (0.3, "a", None, 0.3),
        ("tensor", "a", None, "tensor"),
        ([0, 1, 4], "a", 0.0, 0.0),
        ([0, 1, 4], "a", 0.75, 2.5),  # half of the way from 1 to 4
        ([0, 1, 4], "a", 1.0, 4.0),
        ([7], "a", 0.4, 7.0),
        ([{"pattern": "*.mlp.*", "value": 1}, {"value": 2}], "layers.0.mlp.weight", 0.0, 1),
        ([{"pattern": "*.mlp.*", "value": 1}, {"value": 2}], "layers.0.attention.weight", 0.0, 2),
        ([{"pattern": "*.mlp.*", "value": [0, 1]}], "layers.0.mlp.weight", 0.25, 0.25),
        ([{"pattern": "*.mlp.*", "value": 1}], "norm", None, NOTHING),
    ],
)
def test_value_at(value: object, name: str, depth: float | None, expected: object) -> None:
    assert value_at(value, name, depth, "here") == expected


def test_a_single_point_is_constant_and_ends_are_exact() -> None:
    assert interpolated([0.1, 0.3], 1.0) == 0.3
    assert interpolated([0.1], 0.9) == 0.1


@pytest.mark.parametrize(
    "value, message",
    [
        ([], "here is []; allowed: a value, a list of numbers over depth, or a list of {pattern, value}"),
        ([{"patern": "x", "value": 1}], "here.0: no key 'patern' (did you mean 'pattern'?); allowed: pattern, value"),
        ([{"pattern": "x"}], "here.0 is {'pattern': 'x'}; allowed: {pattern, value}"),
        ([{"pattern": 3, "value": 1}], "here.0.pattern is 3; allowed: text, as *.mlp.*"),
        ([1, {"value": 2}], "here.0 is 1; allowed: {pattern, value}"),
        ([{"value": [{"value": []}]}], "here.0.value.0.value is []"),
    ],
)
def test_other_forms_are_refused(value: object, message: str) -> None:
    with pytest.raises(PolytaskError) as caught:
        check_value(value, "here")
    assert message.split("allowed: {pattern, value}")[0] in str(caught.value)


def test_a_value_over_depth_needs_a_depth() -> None:
    with pytest.raises(PolytaskError, match="'norm' has no depth"):
        value_at([0, 1], "norm", None, "rule.density")


def test_every_pattern_is_found() -> None:
    value = {"a": [{"pattern": "x*", "value": [{"pattern": "y*", "value": 1}]}, {"value": 2}], "b": 3}
    assert list(patterns_in(value)) == ["x*", "y*"]
