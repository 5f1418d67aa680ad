"""Checks of rules that combine one parameter's vectors: symmetry under a change of sign, and streaming."""

from collections.abc import Callable

import torch

from polytask.core.rules import RuleSpec
from polytask.core.state import Rule
from polytask.testing.trial import inputs, suited


def odd(spec: RuleSpec) -> None:
    """f(-X) = -f(X) with the same noise: descent directions and task vectors obey the same mathematics."""
    if spec.returns != "combined" or "base" in spec.needs:
        return
    for example in suited(spec):
        forth = Rule(spec, example.tasks)(example.tasks, *inputs(spec, example.losses, example.vectors))
        back = Rule(spec, example.tasks)(example.tasks, *inputs(spec, example.losses, -example.vectors))
        assert torch.allclose(back, -forth, rtol=1e-9, atol=1e-12 * example.size), f"{example.name}: f(-X) is not -f(X)"


def streams(spec: RuleSpec) -> None:
    """Parameter by parameter gives the same as all at once, for rules that see one element at a time."""
    if "stack" not in spec.needs or spec.granularity != "element" or spec.random or spec.statistic:
        return
    for example in suited(spec):
        whole = Rule(spec, example.tasks)(example.tasks, example.vectors)
        middle = example.vectors.shape[1] // 2
        rule = Rule(spec, example.tasks)
        parts = [example.vectors[:, :middle], example.vectors[:, middle:]]
        streamed = torch.cat([rule(example.tasks, part, keys=(str(i),)) for i, part in enumerate(parts)])
        same = torch.allclose(streamed, whole, rtol=1e-9, atol=1e-12 * example.size)
        assert same, f"{example.name}: two parameters apart give another result than as one"


CHECKS: dict[str, Callable[[RuleSpec], None]] = {check.__name__: check for check in (odd, streams)}
