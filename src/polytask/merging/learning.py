"""The contract of a learned merge: a published method that needs a little data, one small file, found by name.

    @learned("adamerging", source="arXiv:2310.02575")
    def adamerging(session, *, steps=500, ...) -> Learned:
        ...

A method is a function `(session, *, parameters, noise) -> Learned` of a `MergeSession`; it is pure but for the batches
it draws. `noise` (a Noise) is there for those that name it. A method reads labels where `labels` says so: True, or a
function of those parameters that it names. What it learned goes into an ordinary merge, which can be done again without
data: coefficients become numbers of task arithmetic's `weights`, masks become files that a plan names.

`learn` runs a method on models in memory; a plan whose rule is a learned one runs it on directories (`merging.run`).
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polytask.core.catalogue import Catalogue, summary
from polytask.core.constraints import Parameter, check_parameters, named_by, parameters_of
from polytask.core.errors import BadValue
from polytask.core.names import LEARNED
from polytask.core.noise import Noise
from polytask.merging.samples import Samples
from polytask.merging.session import MergeSession
from polytask.merging.vectors import Vectors

_SPECIAL = ("noise",)
_learned = Catalogue("learned merge", LEARNED)


@dataclass(frozen=True)
class Learned:
    """What a method has learned: a merged tensor is base + mask * sum_t coefficients[t] * masks[t] * (model_t - base).

    Attributes:
        coefficients: task -> a number, or tensor -> number; a task or tensor that is not named has 1.
        masks: task -> tensor -> a number an element; a task or tensor that is not named has ones.
        mask: the same for all tasks.
        rule: another data-free merge in the place of the sum, as a plan has it, {kind: ties, density: 0.2}.
        by_rule: tensor -> what that rule makes of it; there where there is a `rule`.
        merged: tensor -> its merged value, for a method that gives the values themselves.
        private: task -> tensor -> value of tensors that are not merged: of the task's head, or a layer of its own.
        router: what mixes the experts for each row, for a method that keeps one (`merging.routing`).
        facts: what the card says beside: the objective's first and last value, ...
    """

    coefficients: Mapping[str, float | Mapping[str, float]] = field(default_factory=dict)
    masks: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    mask: Mapping[str, Tensor] = field(default_factory=dict)
    rule: Mapping[str, Any] | None = None
    by_rule: Mapping[str, Tensor] = field(default_factory=dict)
    merged: Mapping[str, Tensor] = field(default_factory=dict)
    private: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    router: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def coefficient(self, task: str, name: str) -> float:
        own = self.coefficients.get(task, 1.0)
        return own.get(name, 1.0) if isinstance(own, Mapping) else own

    def tensor(self, vectors: Vectors, name: str) -> Tensor:
        """The merged tensor."""
        if name in self.merged:
            return self.merged[name]
        base = vectors.base(name)
        total = torch.zeros_like(base) if self.rule is None else self.by_rule[name] - base
        for task in vectors.tasks if self.rule is None else ():
            if vectors.has(task, name):
                row = vectors.row(task, name)
                mask = self.masks.get(task, {}).get(name)
                row = row if mask is None else row * mask.to(row)
                total.add_(row, alpha=self.coefficient(task, name))
        return base + (total * self.mask[name].to(total) if name in self.mask else total)


@dataclass(frozen=True)
class LearnedSpec:
    """A registered method.

    Attributes:
        name: as in plans.
        function: the method itself.
        source: paper with the equation or algorithm number.
        labels: whether it reads labels, or a function of some of its parameters that says so.
        parameters: its keyword-only parameters.
        random: True if it takes `noise`.
    """

    name: str
    function: Callable[..., Learned]
    source: str
    labels: bool | Callable[..., bool] = False
    parameters: dict[str, Parameter] = field(default_factory=dict)
    random: bool = False

    @property
    def summary(self) -> str:
        """The first line of the docstring of the method's file."""
        return summary(self.function)

    @property
    def reads(self) -> str:
        """Whether it reads labels, in a word: yes, no, or with some parameters."""
        if not isinstance(self.labels, bool):
            return "with some parameters"
        return "yes" if self.labels else "no"

    def checked(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Every parameter; BadValue, UnknownName."""
        return check_parameters(self.parameters, dict(parameters), f"learned merge {self.name!r}")

    def reads_labels(self, parameters: Mapping[str, Any]) -> bool:
        return self.labels if isinstance(self.labels, bool) else self.labels(**named_by(self.labels, parameters))

    def __call__(self, session: MergeSession, *, seed: int = 0, **parameters: Any) -> Learned:
        extra = {"noise": Noise(seed, "merge", self.name)} if self.random else {}
        return self.function(session, **self.checked(parameters), **extra)


def learned(
    name: str, *, source: str, labels: bool | Callable[..., bool] = False
) -> Callable[[Callable[..., Learned]], LearnedSpec]:
    """Declares the decorated function as the learned merge `name`. One not in the shipped table is added to it."""

    def declare(function: Callable[..., Learned]) -> LearnedSpec:
        arguments = list(inspect.signature(function).parameters)
        if arguments[:1] != ["session"]:
            raise BadValue("the signature", arguments, "(session, *, parameters...)", f"learned merge {name!r}")
        parameters = parameters_of(function, skip=_SPECIAL)
        spec = LearnedSpec(name, function, source, labels, parameters, "noise" in arguments)
        _learned.declare(name, spec, function.__module__)
        return spec

    return declare


def find_learned(name: str) -> LearnedSpec:
    """The learned merge called `name`, shipped or added; UnknownName with the nearest match if there is none."""
    return _learned.find(name)


def learned_names() -> list[str]:
    return _learned.names()


def learn(
    method: str | LearnedSpec,
    models: Mapping[str, Mapping[str, Tensor]],
    samples: Samples,
    *,
    base: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    say: Callable[[int, int], None] = lambda done, total: None,
    lean: bool = False,
    **parameters: Any,
) -> tuple[Learned, dict[str, Tensor]]:
    """(what was learned, the merged tensors by name), of models in memory.

    Args:
        method: the name of a learned merge, `polytask rules` lists them.
        models: task -> its fine-tune's tensors, such as a state_dict without its head; they are not changed.
        samples: data and models that read them, see `polytask.merging.samples`.
        base: the tensors that all were fine-tuned from.
        seed: of everything random.
        say: told (steps done, steps in all).
        lean: compose weights layer by layer in every pass, which takes longer and the memory of two models less.
        parameters: of the method.
    """
    spec = find_learned(method) if isinstance(method, str) else method
    vectors = Vectors(models, base)
    labels = spec.reads_labels(spec.checked(parameters))
    session = MergeSession(vectors, samples, labels=labels, say=say, lean=lean)
    found = spec(session, seed=seed, **parameters)
    return found, {name: found.tensor(vectors, name) for name in vectors.names}
