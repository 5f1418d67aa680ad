"""Checks of what every rule owes its caller: shapes, untouched inputs, reproducible randomness, exact state."""

import copy
import functools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.core.rules import RuleSpec
from polytask.core.state import Rule
from polytask.testing.examples import Example
from polytask.testing.trial import call, history, inputs, outcome, play, some, suited


def keeps_shape_and_type(spec: RuleSpec) -> None:
    """Weights are finite float64 [T]; a combined vector is finite and has the stack's shape, type and device."""
    for example in suited(spec):
        found = outcome(spec, example)
        output = found.combined if found.weights is None else found.weights
        wanted = example.vectors.shape[1:] if found.weights is None else (len(example.vectors),)
        assert output.dtype == torch.float64, f"{example.name}: the result is {output.dtype}, not float64"
        assert output.shape == wanted, (
            f"{example.name}: the result has shape {tuple(output.shape)}, not {tuple(wanted)}"
        )
        assert output.isfinite().all(), f"{example.name}: the result is not finite"
    if spec.returns == "combined":
        for dtype in (torch.float32, torch.bfloat16):
            tasks = ["a", "b", "c"][: spec.tasks]
            given = [torch.ones(len(tasks), 2, 4, dtype=dtype), torch.ones(2, 4, dtype=dtype)][: len(spec.needs)]
            output = Rule(spec, tasks)(tasks, *given)
            assert output.dtype == dtype, f"a stack of {dtype} gives {output.dtype}"
            assert output.shape == (2, 4), f"a stack of shape {tuple(given[0].shape)} gives {tuple(output.shape)}"


def leaves_inputs_alone(spec: RuleSpec) -> None:
    """Inputs and the state given are not changed, and the result shares no memory with them."""
    for example in suited(spec)[:12]:
        rule = Rule(spec, example.tasks)
        given = inputs(spec, example.losses, example.vectors)
        before, state = [value.clone() for value in given], rule.state
        saved = copy.deepcopy(state)
        output = rule(example.tasks, *given)
        for need, value, kept in zip(spec.needs, given, before, strict=True):
            assert torch.equal(value, kept), f"{example.name}: the rule changed its input {need}"
            assert not _share(output, value), f"{example.name}: the result is a view of the input {need}"
        for value, kept in zip(_tensors(state), _tensors(saved), strict=True):
            assert _equal(value, kept), "the rule changed its old state"
            assert not _share(output, value), "the result is a view of the state"
        if spec.tracker is not None:
            _leaves_memory_alone(spec, example)


def _leaves_memory_alone(spec: RuleSpec, example: Example) -> None:
    rule = Rule(spec, example.tasks)
    call(rule, example.tasks, example.losses, example.vectors)
    moment, stack = rule.moment, example.vectors.clone()
    saved, norms = copy.deepcopy(moment), stack.norm(dim=1)
    seen = rule.tracked(example.tasks, "parameter", stack, losses=example.losses, norms=norms)
    assert torch.equal(stack, example.vectors), f"{example.name}: the tracker changed its input"
    assert not _share(seen, stack), f"{example.name}: what the tracker gives is a view of its input"
    same = torch.equal(moment[1]["parameter"], saved[1]["parameter"])
    assert same, f"{example.name}: the tracker changed its old memory"


def leaves_global_randomness_alone(spec: RuleSpec) -> None:
    """torch's, numpy's and Python's generators are where they were; a seed gives the same bits, another seed others."""
    moved: list[str] = []

    @functools.wraps(spec.function)
    def watched(*arguments: Any, **parameters: Any) -> Any:
        before = generators()
        result = spec.function(*arguments, **parameters)
        moved.extend(name for name, state in generators().items() if state != before[name])
        return result

    spec_watched = replace(spec, function=watched)
    bits: dict[int, list[Tensor]] = {}
    for seed in (0, 0, 1):
        again = [play(Rule(spec_watched, e.tasks, seed=seed), e.tasks, history(spec, e)).combined for e in suited(spec)]
        same = all(torch.equal(a, b) for a, b in zip(again, bits.setdefault(seed, again), strict=True))
        assert same, f"the same seed {seed} gave two results"
    assert not moved, f"the rule moved the global random state of {', '.join(dict.fromkeys(moved))}"
    differ = any(not torch.equal(a, b) for a, b in zip(bits[0], bits[1], strict=True))
    assert differ == spec.random, "a rule that takes noise must depend on the seed, another must not"


def resumes_exactly(spec: RuleSpec) -> None:
    """Some steps, saved and loaded into a fresh rule, and one more are bit for bit the steps without a stop."""
    for example in suited(spec)[:12]:
        steps = [*history(spec, example), (example.losses * 1.1, example.vectors * 0.9)]
        straight = Rule(spec, example.tasks, seed=4)
        wanted = play(straight, example.tasks, steps)
        first, second = Rule(spec, example.tasks, seed=4), Rule(spec, example.tasks, seed=4)
        play(first, example.tasks, steps[:-1])
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        found = play(second, example.tasks, steps[-1:])
        assert torch.equal(found.combined, wanted.combined), f"{example.name}: a resumed rule gives another result"
        ended = zip(second.state_dict().items(), straight.state_dict().values(), strict=True)
        changed = [key for (key, a), b in ended if not _equal(a, b)]
        assert not changed, f"{example.name}: a resumed rule ends in another state: {', '.join(changed)}"


def lets_absent_tasks_wait(spec: RuleSpec) -> None:
    """A task that is absent from a step keeps its state, so steps of other tasks do not change its own."""
    if spec.tasks is not None:  # it has no absent tasks
        return
    example = some(spec)
    tasks, present = example.tasks, torch.tensor([0, 2])
    rule = Rule(spec, tasks)
    call(rule, tasks, example.losses, example.vectors)
    before = _entries_of(rule, 1)
    call(rule, [tasks[i] for i in present.tolist()], example.losses[present], example.vectors[present])
    for (name, value), kept in zip(_entries_of(rule, 1).items(), before.values(), strict=True):
        assert _equal(value, kept), f"the state {name!r} of an absent task changed"


def _entries_of(rule: Rule, task: int) -> dict[str, Tensor]:
    """The entries of one task in the state's tensors that have one a task."""
    tasks = len(rule.tasks)
    saved = {name: value for name, value in rule.state_dict().items() if isinstance(value, Tensor) and value.dim()}
    return {name: value[task] for name, value in saved.items() if len(value) == tasks}


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a.nan_to_num(nan=0.5), b.nan_to_num(nan=0.5)) if isinstance(a, Tensor) else a == b


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and b.numel() > 0


def _tensors(state: Any) -> list[Tensor]:
    if state is None:
        return []
    return [tensor for value in state for tensor in ([value] if isinstance(value, Tensor) else _tensors(value))]


def generators() -> dict[str, object]:
    """The states of the global generators."""
    state: Any = np.random.get_state()  # noqa: NPY002 (the global state is what is watched)
    _, keys, position, has_gauss, gauss = state
    return {
        "random": random.getstate(),
        "numpy": (keys.tobytes(), position, has_gauss, gauss),
        "torch": torch.random.get_rng_state().numpy().tobytes(),
    }


CHECKS: dict[str, Callable[[RuleSpec], None]] = {
    check.__name__: check
    for check in (
        keeps_shape_and_type,
        leaves_inputs_alone,
        leaves_global_randomness_alone,
        resumes_exactly,
        lets_absent_tasks_wait,
    )
}
