"""What every transform and every merge method owes, checked over the whole registry."""

from operator import itemgetter

import pytest
import torch
from torch import Tensor

from polytask.core.constraints import PerTask
from polytask.core.errors import BadValue, MissingInput, UnknownName
from polytask.core.names import METHODS, TRANSFORMS
from polytask.core.noise import Noise
from polytask.core.task_vectors import TaskVectors
from polytask.merging.contract import (
    Pipeline,
    Step,
    find_method,
    find_transform,
    method_names,
    use_rule,
    use_transform,
)
from polytask.merging.memory import apply, as_rule
from polytask.testing import check_rule
from polytask.testing.contract import generators
from polytask.testing.examples import examples

TASKS = ["a", "b", "c"]
numpy_and_torch = itemgetter("numpy", "torch")
# Not: that one task, or equal tasks, keep their direction; a transform may change it.
OWED = [
    "keeps_shape_and_type",
    "leaves_inputs_alone",
    "zero_vectors_are_harmless",
    "empty_and_scalar_tensors_work",
    "odd",
    "refuses_bad_parameters",
    "refuses_bad_inputs",
]


def example(*shapes: tuple[int, ...], tasks: int = 3) -> TaskVectors:
    stacks = {}
    for number, shape in enumerate(shapes):
        values = torch.from_numpy(Noise(0, number).normal(tasks * torch.Size(shape).numel())).float()
        stacks[f"layer{number}.weight"] = values.view(tasks, *shape)
    return TaskVectors(TASKS[:tasks], stacks)


def transformed(step: Step, vectors: TaskVectors) -> TaskVectors:
    """The transform alone, task by task: its result is what a sum of one row gives."""
    rows = []
    for task in range(len(vectors)):
        weights = {name: float(name == vectors.tasks[task]) for name in vectors.tasks}
        pipeline = Pipeline((step,), use_rule("task_arithmetic", weights=weights))
        rows.append(apply(pipeline, vectors, seed=3, depths=dict.fromkeys(vectors.names, 0.5)))
    return TaskVectors(vectors.tasks, {name: torch.stack([row[name] for row in rows]) for name in vectors.names})


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if find_transform(name).separate])
def test_a_separate_transform_sees_no_other_task(name: str) -> None:
    vectors = example((5, 40), (7,), ())
    together = transformed(use_transform(name), vectors)
    for row, task in enumerate(TASKS):
        alone = TaskVectors([task], {key: stack[row : row + 1] for key, stack in vectors.stacks.items()})
        found = transformed(use_transform(name), alone)
        assert all(torch.equal(found.stacks[key][0], together.stacks[key][row]) for key in vectors.names)


@pytest.mark.parametrize("check", OWED)
@pytest.mark.parametrize("name", list(METHODS))
def test_method(name: str, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every third example, which are enough: rules have been checked on all of them."""
    chosen = examples()[::3]
    assert any(each.name.startswith("zero") for each in chosen)
    monkeypatch.setattr("polytask.testing.trial.examples", lambda: chosen)
    check_rule(as_rule(find_method(name)), only=[check])


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_moves_no_global_generator_and_a_seed_gives_the_same_bits(name: str) -> None:
    """Python's own generator is left out: beartype draws from it to check lists while tests run."""
    pipeline = find_method(name)()
    vectors = example((30, 40), tasks=pipeline.tasks or 3)
    before = numpy_and_torch(generators())
    depths = {"layer0.weight": 0.5}
    first, again, other = (apply(pipeline, vectors, seed=seed, depths=depths)["layer0.weight"] for seed in (1, 1, 2))
    assert numpy_and_torch(generators()) == before
    assert torch.equal(first, again)
    assert torch.equal(first, other) != any(step.spec.random for step in pipeline.steps)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_is_named_as_its_file_and_function_and_says_what_it_is(name: str) -> None:
    module, _, attribute = METHODS[name].partition(":")
    method = find_method(name)
    assert (method.name, attribute, module.rpartition(".")[2]) == (name, name, name)
    assert isinstance(method(), Pipeline)
    assert method.summary.endswith(".")
    assert method.source


@pytest.mark.parametrize("name", list(TRANSFORMS))
class TestTransform:
    def test_is_named_as_its_file_and_function(self, name: str) -> None:
        module, _, attribute = TRANSFORMS[name].partition(":")
        spec = find_transform(name)
        assert (spec.name, attribute, module.rpartition(".")[2]) == (name, name, name)
        assert spec.summary.endswith(".")
        assert spec.source

    def test_is_odd(self, name: str) -> None:
        vectors = example((5, 40), (7,), ())
        back = TaskVectors(TASKS, {key: -stack for key, stack in vectors.stacks.items()})
        forth, back = (transformed(use_transform(name), given) for given in (vectors, back))
        assert all(torch.equal(back.stacks[key], -forth.stacks[key]) for key in vectors.names)

    def test_does_not_depend_on_where_blocks_end(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Blocks are fixed, but a method must not owe its result to their length (sums may differ in the last bits)."""
        vectors = example((50, 40), (700,), (3, 4, 5))
        wanted = transformed(use_transform(name), vectors)
        for block in (64, 1 << 20):
            monkeypatch.setattr("polytask.core.blocks.BLOCK", block)
            found = transformed(use_transform(name), vectors)
            for key in vectors.names:
                torch.testing.assert_close(found.stacks[key], wanted.stacks[key], rtol=1e-6, atol=1e-7)

    def test_empty_tensors_and_single_numbers_pass(self, name: str) -> None:
        vectors = example((), (0,), (1,), (2, 0), (1, 1, 1))
        found = transformed(use_transform(name), vectors)
        assert all(found.stacks[key].shape == stack.shape for key, stack in vectors.stacks.items())
        assert all(stack.isfinite().all() for stack in found.stacks.values())

    def test_zeros_stay_zeros(self, name: str) -> None:
        vectors = TaskVectors(TASKS, {"x": torch.zeros(3, 6, 4)})
        assert not transformed(use_transform(name), vectors).stacks["x"].any()

    def test_refuses_bad_parameters(self, name: str) -> None:
        for key, parameter in find_transform(name).parameters.items():
            for bad in parameter.constraint.bad_values() if parameter.constraint else []:
                with pytest.raises((BadValue, UnknownName), match=key):
                    use_transform(name, **{key: bad})
        with pytest.raises(UnknownName, match="no parameter 'no_such'"):
            use_transform(name, no_such=1)


def test_every_rule_without_losses_is_a_method() -> None:
    names = method_names()
    assert {"ties", "linear", "upgrad", "graddrop"} <= set(names)
    assert not {"uncertainty", "static"} & set(names)
    for name in names:
        pipeline = find_method(name)()
        vectors = example((6, 4), (3,), tasks=pipeline.tasks or 3)
        base = {key: stack[0] for key, stack in vectors.stacks.items()}
        found = apply(pipeline, vectors, base=base, depths=dict.fromkeys(vectors.names, 0.5))
        assert {key: value.shape for key, value in found.items()} == {"layer0.weight": (6, 4), "layer1.weight": (3,)}


def test_unknown_names_and_rules_on_losses_are_refused() -> None:
    with pytest.raises(UnknownName, match=r"no merge method 'tise' .did you mean 'ties'"):
        find_method("tise")
    with pytest.raises(UnknownName, match=r"no transform 'trm' .did you mean 'trim'"):
        use_transform("trm")
    with pytest.raises(MissingInput, match="rule 'uncertainty' needs losses"):
        use_rule("uncertainty")
    with pytest.raises(UnknownName, match="no task 'd'"):
        apply(find_method("task_arithmetic")(weights={"d": 1}), example((3,)))


def test_a_rule_says_what_its_gram_matrix_covers_by_default() -> None:
    assert find_method("model_stock")().groups == find_method("slerp")().groups == "tensor"
    assert find_method("metagpt")().groups == find_method("mgda")().groups == "all"
    assert find_method("slerp")(groups="layer").groups == "layer"


def test_numbers_by_task_reach_the_function_in_the_order_of_the_rows() -> None:
    vectors = example((4,))
    found = apply(find_method("task_arithmetic")(weights={"c": 2, "a": 0}, scale=3), vectors)
    stack = vectors.stacks["layer0.weight"]
    torch.testing.assert_close(found["layer0.weight"], 3 * (stack[1] + 2 * stack[2]))
    assert isinstance(find_method("task_arithmetic").parameters["weights"].constraint, PerTask)


@pytest.mark.parametrize("groups", ["tensor", "layer", "all"])
def test_a_gram_rule_sees_one_matrix_a_group(groups: str) -> None:
    """MGDA's weights depend on nothing but G, so they are worked out for each group's G beside it."""
    vectors = example((6, 4), (3,), (5, 5))
    layers = {"layer0.weight": "x", "layer1.weight": "y", "layer2.weight": "x"}
    covered = {
        "tensor": [["layer0.weight"], ["layer1.weight"], ["layer2.weight"]],
        "layer": [["layer0.weight", "layer2.weight"], ["layer1.weight"]],
        "all": [vectors.names],
    }[groups]
    found = apply(find_method("mgda")(groups=groups), vectors, groups=layers)
    for names in covered:
        weights: Tensor = use_rule("mgda").spec.function(vectors.gram(names))
        for name, wanted in vectors.combined(weights, names).items():
            torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-6)
