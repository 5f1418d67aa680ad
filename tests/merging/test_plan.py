import pytest
from pydantic import ValidationError

from polytask.core.errors import PolytaskError
from polytask.core.validation import validated
from polytask.merging.plan import MergePlan, size_in_bytes
from polytask.merging.plan_file import read_plan

PLAN = {"version": 1, "base": "base", "tasks": {"a": "a", "b": {"model": "b"}}, "rule": "mean"}


def test_short_forms_are_written_out() -> None:
    plan = validated(MergePlan, {**PLAN, "rule": {"kind": "mean", "scale": 0.5}, "transforms": ["trim"]}, "plan")
    assert plan.tasks["a"].model == "a"
    assert plan.rule.parameters == {"scale": 0.5}
    assert plan.transforms[0].kind == "trim"


def test_a_resolved_plan_is_a_plan() -> None:
    plan = read_plan({**PLAN, "rule": {"kind": "mean", "scale": [0, 1]}, "keep": [{"pattern": "x"}]}).plan
    assert read_plan(plan.resolved()).plan == plan


@pytest.mark.parametrize(
    "change, message",
    [
        ({"densty": 1}, "plan: no key 'densty'; allowed: version, description, base, tasks, rule, "),
        ({"bass": "x"}, "plan: no key 'bass' (did you mean 'base'?); allowed: "),
        ({"version": 2}, "plan.version is 2; allowed: 1"),
        ({"tasks": {}}, "plan.tasks is {}; allowed: "),
        ({"tasks": {"base": "x"}}, "the name of a task is 'base'; allowed: another name"),
        ({"tasks": {"a": {"modl": "x"}}}, "no key 'modl' (did you mean 'model'?)"),
        ({"partial": "bas"}, "plan.partial is 'bas'; allowed: 'error', 'base', 'available' or 'drop'"),
        ({"donor": "c"}, "plan.donor: no input 'c'; allowed: base, a, b"),
        ({"keep": [{"pattern": "x", "take": "c"}]}, "plan.keep.0.take: no input 'c'; allowed: base, a, b, drop"),
        ({"rule": {"kind": "mean", "weight": {"c": 1}}}, "plan.rule.weight: no task 'c'; allowed: a, b"),
        ({"rule": {"kind": "mean", "weight": {3: 1}}}, "plan.rule.weight: no task '3'; allowed: a, b"),
        ({"rule": {"kind": "mean", "scale": []}}, "mean.scale is []; allowed: a value, a list of numbers over depth"),
        ({"shard_size": "5 parsecs"}, "shard_size is '5 parsecs'; allowed: a size such as 5GB, 300MiB"),
        ({"slices": [{"inputs": {"a": {"layers": [2, 1]}}}]}, "layers is [2, 1]; allowed: [start, stop] with"),
        ({"slices": [{"inputs": {"c": {"layers": [0, 1]}}}]}, "plan.slices.0.inputs: no task 'c'; allowed: a, b"),
    ],
)
def test_what_is_wrong_is_named(change: dict, message: str) -> None:
    with pytest.raises(PolytaskError) as caught:
        validated(MergePlan, {**PLAN, **change}, "plan")
    assert message in str(caught.value)


def test_a_plan_does_not_change() -> None:
    plan = validated(MergePlan, PLAN, "plan")
    with pytest.raises(ValidationError):
        plan.seed = 3


@pytest.mark.parametrize("text, bytes_", [("5GB", 5 * 10**9), ("300MiB", 300 * 2**20), ("1.5 kB", 1500), (7, 7)])
def test_sizes(text: int | str, bytes_: int) -> None:
    assert size_in_bytes(text) == bytes_


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1TBB", "five"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(PolytaskError, match="a size such as 5GB"):
        size_in_bytes(text)


def test_settings_change_a_plan() -> None:
    plan = read_plan(PLAN, ["rule.scale=0.5", "tasks.a.parameters={weight: 2}", "seed=3", "base=other"]).plan
    assert plan.rule.parameters == {"scale": 0.5}
    assert plan.tasks["a"].parameters == {"weight": 2}
    assert plan.tasks["a"].model == "a"
    assert (plan.seed, plan.base) == (3, "other")
