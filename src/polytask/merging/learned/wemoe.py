"""WEMoE: shared weights by task arithmetic, and in chosen modules a router that mixes the experts for each input.

Source      Tang et al. 2024, arXiv:2402.00433: equation (2), a module computes with the base's weights plus the task
            vectors times the mean over tokens of its router's outputs for the module's input; equation (3), the router,
            W2 ReLU(W1 h + b1) + b2 with b2 at task arithmetic's coefficient; routers are trained by minimising the
            entropy of predictions on unlabelled samples of every task; all else is merged by task arithmetic.
Departures  the paper was read in a copy that could not be checked, and in FusionBench's pages. W2 starts at 0 and W1
            with variance 1 / d, so that the start is task arithmetic exactly and at any width (the copy has a variance
            of 0.01 for both, for a start near it). The hidden layer has a width of its own (the paper's is as wide as
            h). Of a module its linear layers are mixed; norms in it are task arithmetic's. By default a module is what
            a numbered layer has outside attention: the MLP of a transformer's, or the whole of a plain network's.
            Positions that a model's mask leaves out do not count. Samples are never of a test split.
Cost        a forward and a backward pass of one batch of every task a step; every expert's copy of the mixed layers.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

import torch
from torch import Tensor

from polytask.core.constraints import Interval, Patterns
from polytask.core.errors import MissingInput, UnknownName
from polytask.core.noise import Noise
from polytask.merging.coefficients import columns
from polytask.merging.composing import Scaled
from polytask.merging.descending import LearningRate, Steps, descend, facts_of
from polytask.merging.layers import place_of
from polytask.merging.learning import Learned, learned
from polytask.merging.routers import Layers, ModuleRouters, detached, drawn
from polytask.merging.routing import WholeExperts
from polytask.merging.session import MergeSession


@learned("wemoe", source="arXiv:2402.00433")
def wemoe(
    session: MergeSession,
    *,
    noise: Noise,
    modules: Annotated[list[str] | None, Patterns()] = None,
    scale: Annotated[float, Interval()] = 0.3,
    hidden: Annotated[int, Interval(1)] = 64,
    steps: Steps = 1000,
    learning_rate: LearningRate = 1e-3,
) -> Learned:
    """The routers, and the coefficients of all else.

    Args:    modules: patterns of their names, each module that fits gets a router; none takes the MLPs of layers.
             scale: of the task vectors where there is no router, and where routers start.
             hidden: width of a router's hidden layer.
             steps: of Adam, each on one batch of every task.
             learning_rate: of Adam.
    """
    chosen = _chosen(session, modules)
    layers = session.linear_layers()
    widths = [layers[own[0]].in_features for own in chosen.values()]
    starts = [
        _start(noise.child(name), width, hidden, len(session.tasks)) for name, width in zip(chosen, widths, strict=True)
    ]
    experts = {f"{layer}.weight": _experts(session, layer) for own in chosen.values() for layer in own}
    numbers = {f"{layer}.weight": number for number, own in enumerate(chosen.values()) for layer in own}
    router = ModuleRouters(experts, numbers, starts)
    shared = session.composed(
        Scaled(session.vectors, torch.full((len(session.tasks), 1), scale), columns(session.vectors, "task"))
    )

    def entropy(task: str, batch: Any, step: int) -> Tensor:
        with router.mixture(session.samples.module(task)):
            return session.entropy(task, session.forward(shared, task, batch))

    leaves = [leaf for start in starts for leaf in start]
    optimizer = torch.optim.Adam(leaves, lr=learning_rate)
    history = descend(session, leaves, entropy, steps=steps, optimizer=optimizer, through=[])
    kept = ModuleRouters(experts, numbers, [detached(start) for start in starts])
    facts = {**facts_of(history), "modules": list(chosen)}
    return Learned(dict.fromkeys(session.tasks, scale), router=kept.tensors(), facts=facts)


def _chosen(session: MergeSession, patterns: Sequence[str] | None) -> dict[str, list[str]]:
    """module -> its linear layers, in the order of the model's."""
    layers = list(session.linear_layers())
    found: dict[str, list[str]] = {}
    if patterns is None:
        for name in layers:
            place = place_of(name)
            if place is not None and not _is_attention(name):
                found.setdefault(place.layer, []).append(name)
        if not found:
            raise MissingInput(
                "learned merge 'wemoe': no numbered layer has a merged linear layer outside attention; name modules, "
                "modules: [a pattern]"
            )
        return found
    names = list(dict.fromkeys(module for name in layers for module in _around(name)))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UnknownName("module with merged linear layers that fits", pattern, names, "learned merge 'wemoe'")
    for name in layers:
        fitting = [module for module in _around(name) if any(fnmatchcase(module, pattern) for pattern in patterns)]
        if fitting:
            found.setdefault(fitting[0], []).append(name)
    return found


def _around(layer: str) -> Iterable[str]:
    """The modules that a layer is in, from the outermost to itself."""
    parts = layer.split(".")
    return [".".join(parts[: number + 1]) for number in range(len(parts))]


def _is_attention(name: str) -> bool:
    return "attn" in name.lower() or "attention" in name.lower()


def _start(noise: Noise, width: int, hidden: int, tasks: int) -> Layers:
    """A router whose scores are 0: what it gives counts from task arithmetic's coefficient."""
    bias, output, output_bias = (
        torch.zeros(size, requires_grad=True) for size in ((hidden,), (tasks, hidden), (tasks,))
    )
    return drawn(noise, hidden, width), bias, output, output_bias


def _experts(session: MergeSession, layer: str) -> WholeExperts:
    """The task vectors of a linear layer; 0 where a task's model lacks it."""
    bias = f"{layer}.bias"
    return WholeExperts(
        _stacked(session, f"{layer}.weight"), _stacked(session, bias) if bias in session.vectors.names else None
    )


def _stacked(session: MergeSession, name: str) -> Tensor:
    vectors = session.vectors
    zeros = torch.zeros(vectors.shape(name))
    return torch.stack([vectors.row(task, name) if vectors.has(task, name) else zeros for task in vectors.tasks])
