"""Whether a rule's combined gradient is another library's, on random Jacobians, both at the paper's parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.balancing.libmtl import mixed_in
from polytask.core.rules import find
from polytask.core.state import Rule

TOLERANCE = 1e-5
_DRAWS, _TASKS, _SIZE = 20, 5, 40
_WITHOUT_ORDER = 2  # tasks with which a rule that meets them in random order has nothing to draw
_RANDOM_ORDER = ("pcgrad", "gradvac")

# rule -> (its parameters, torchjd's class with its arguments)
_PAIRS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "mean": ({}, "Mean", {}),
    "mgda": ({}, "MGDA", {"epsilon": 1e-12, "max_iters": 20000}),
    "pcgrad": ({}, "PCGrad", {}),
    "gradvac": ({"beta": 0.5}, "GradVac", {}),
    "upgrad": ({}, "UPGrad", {}),
    "dualproj": ({}, "DualProj", {}),
    "cagrad": ({"c": 0.5}, "CAGrad", {"c": 0.5}),
    "imtl_g": ({}, "IMTLG", {}),
    "nash_mtl": ({}, "NashMTL", {"n_tasks": _TASKS}),
    "aligned_mtl": ({}, "AlignedMTL", {}),
    "fairgrad": ({}, "FairGrad", {"alpha": 1.0}),
    "config": ({}, "ConFIG", {}),
    "krum": ({"byzantine": 1}, "Krum", {"n_byzantine": 1}),
    "trimmed_mean": ({}, "TrimmedMean", {"trim_number": 1}),
    "graddrop": ({}, "GradDrop", {}),
}

# rule -> (its parameters, LibMTL's weighting, its arguments, tasks); its CAGrad is written for three tasks
_LIBMTL: dict[str, tuple[dict[str, Any], str, dict[str, Any], int]] = {
    "mgda": ({}, "MGDA", {"mgda_gn": "none"}, _TASKS),
    "pcgrad": ({}, "PCGrad", {}, _WITHOUT_ORDER),
    "gradvac": ({"beta": 0.5}, "GradVac", {"beta": 0.5}, _WITHOUT_ORDER),
    "cagrad": ({"c": 0.5}, "CAGrad", {"calpha": 0.5, "rescale": 1}, 3),
    "imtl_g": ({}, "IMTL", {}, _TASKS),
}


def compared_with_libmtl() -> dict[str, dict[str, Any]]:
    """As `compared`; LibMTL computes in float32."""
    found = {}
    for name, (parameters, peer, arguments, tasks) in _LIBMTL.items():
        aggregator = partial(partial, _by_libmtl, peer, arguments)
        try:
            found[name] = {"peer": peer, "tasks": tasks, **_difference(name, parameters, aggregator, tasks)}
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            found[name] = {"peer": peer, "error": f"{type(error).__name__}: {error}"}
    return found


def _by_libmtl(name: str, arguments: dict[str, Any], jacobian: Tensor) -> Tensor:
    parameter = torch.zeros(jacobian.shape[1], requires_grad=True)
    losses = 1.0 + jacobian.float() @ parameter
    mixed_in(name, len(jacobian), [parameter]).backward(losses, **arguments)
    assert parameter.grad is not None
    return parameter.grad.double()


def compared() -> dict[str, dict[str, Any]]:
    """Rule -> the largest relative difference of torchjd's combined gradient, with the best factor between the two.

    What is drawn at random differs, as the generators do, so rules that draw an order are compared with two tasks.
    """
    import torchjd.aggregation as theirs  # ty: ignore[unresolved-import]

    found = {}
    for name, (parameters, peer, arguments) in _PAIRS.items():
        try:
            tasks = _WITHOUT_ORDER if name in _RANDOM_ORDER else _TASKS
            aggregator = partial(getattr(theirs, peer), **arguments)
            found[name] = {"peer": peer, **_difference(name, parameters, aggregator, tasks)}
        except (RuntimeError, TypeError, ValueError) as error:
            found[name] = {"peer": peer, "error": f"{type(error).__name__}: {error}"}
    return found


def _difference(
    name: str, parameters: dict[str, Any], aggregator: Callable[[], Callable[[Tensor], Tensor]], tasks: int
) -> dict[str, Any]:
    spec = find(name)
    worst, factors = 0.0, []
    for draw in range(_DRAWS):
        jacobian = torch.randn(tasks, _SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(draw))
        jacobian -= 0.6 * jacobian.mean(0)
        torch.manual_seed(draw)
        their = aggregator()(jacobian)
        our = _combined(spec, parameters, jacobian)
        factor = float(our @ their / (their @ their))
        worst = max(worst, float((our / factor - their).norm() / their.norm()))
        factors.append(factor)
    return {"difference": worst, "factors": [min(factors), max(factors)]}


def _combined(spec: Any, parameters: dict[str, Any], jacobian: Tensor) -> Tensor:
    rule = Rule(spec, [str(i) for i in range(len(jacobian))], **parameters)
    if "stack" in spec.needs:
        return rule(rule.tasks, jacobian)
    given = {"gram": jacobian @ jacobian.T, "losses": torch.ones(len(jacobian), dtype=torch.float64)}
    return rule(rule.tasks, *(given[need] for need in spec.needs)) @ jacobian
