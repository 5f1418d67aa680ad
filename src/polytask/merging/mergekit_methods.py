"""mergekit's methods as rules of ours: what their parameters are called here, and where the two differ."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Departure:
    """A line that is told where it applies to the plan at hand. `settled`: `--compat mergekit` removes it."""

    line: str
    applies: Callable[[Any, Mapping[str, Any]], bool] = lambda _file, _plan: True
    settled: bool = False


@dataclass(frozen=True)
class Method:
    """One of mergekit's methods.

    Attributes:
        name: mergekit's.
        rule: ours.
        base: what base_model is: required or optional (deltas to it), input (the first of two models), none.
        models: how many models an interpolation takes.
        per_model, whole: mergekit's parameter -> ours.
        ignored: mergekit's parameter -> why it has no effect here.
        only: mergekit's parameter -> the one value that can be followed.
        convert: mergekit's parameter -> its number or word as ours.
        settled: our parameters that make the rule mergekit's variant; compatible: those that --compat adds.
        whole_vectors: those that hold where the file gives no density, so that nothing is dropped.
        variants: mergekit's truth value, which holds for the whole file -> what of this is another where it is true.
        departures: where results differ.
    """

    name: str
    rule: str
    base: Literal["required", "optional", "input", "none"]
    models: int = 2
    per_model: Mapping[str, str] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    convert: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    settled: Mapping[str, Any] = field(default_factory=dict)
    compatible: Mapping[str, Any] = field(default_factory=dict)
    whole_vectors: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    departures: tuple[Departure, ...] = ()

    @property
    def merges_base(self) -> bool:
        """Whether a base_model that is listed is merged as the others are, and not what changes are taken from."""
        return self.base in ("input", "none")


def _given(file: Any, name: str) -> list[float]:
    """Every number that the file gives a parameter."""
    parts = [file.parameters, *(entry.parameters for entry in file.models or ())]
    parts += [part.parameters for part in file.slices or ()]
    parts += [source.parameters for part in file.slices or () for source in part.sources]
    return [number for part in parts for number in _numbers(part.get(name))]


def _drops(file: Any, _plan: Mapping[str, Any]) -> bool:
    return any(number < 1 for number in _given(file, "density"))


def _numbers(value: Any) -> list[float]:
    if isinstance(value, Mapping):
        return _numbers(value.get("value"))
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


_INT8_MASK = {"int8_mask": "masks take no memory of their own here"}
_WEIGHTS = {"weight": "weights"}
_SUM = {"lambda": "scale"}
_NEGATIVE = Departure(
    "a negative weight turns its model's change around; mergekit divides by it, so that it cancels",
    lambda file, _plan: any(number < 0 for number in _given(file, "weight")),
)
_DROPPED = (
    Departure(
        "kept elements are divided by the density, as in the paper; mergekit rescales to the L1 norm instead", _drops
    ),
    Departure("which elements are dropped depends on the plan's seed; mergekit draws others", _drops),
)
_OUTLIERS = Departure(
    "how many of the largest elements are outliers is rounded down; mergekit's count differs by one element a tensor"
)

# the paper's epsilon is the whole width, mergekit's half of it
_CONVERT: dict[str, Callable[[Any], Any]] = {
    "rescale": lambda value: "density" if value else "none",
    "epsilon": lambda value: 2 * value,
}
_DIVIDE: dict[str, Callable[[Any], Any]] = {"normalize": lambda value: "weights" if value else "none"}
_BY_RANK: dict[str, Any] = {
    "per_model": {"epsilon": "epsilon"},
    "settled": {"epsilon": 0.3, "span": "ends"},
    "whole_vectors": {"epsilon": 0.0},
    "departures": _DROPPED,
}
_BOTH_ENDS: dict[str, Any] = {
    "per_model": {"gamma": "outliers"},
    "settled": {"outliers": 0.01, "scope": "tensor"},
    "whole_vectors": {"outliers": 0.0},
    "departures": (_OUTLIERS,),
}


def _thinned(
    name: str,
    divide: str | None,
    *,
    rescales: bool = False,
    per_model: Mapping[str, str] | None = None,
    settled: Mapping[str, Any] | None = None,
    whole_vectors: Mapping[str, Any] | None = None,
    departures: tuple[Departure, ...] = (),
) -> Method:
    """A method that thins task vectors out and adds them up; or elects signs, and divides by `divide` by default."""
    rescale = {"rescale": "rescale"} if rescales else {}
    normalize = {"normalize": "normalize" if divide is None else "divide"}
    return Method(
        name,
        name,
        "required",
        per_model={**_WEIGHTS, "density": "density", **(per_model or {})},
        whole=_SUM | normalize | rescale,
        ignored=_INT8_MASK,
        only={} if rescales else {"rescale": False},
        convert=_CONVERT if divide is None else _CONVERT | _DIVIDE,
        settled={
            "density": 1.0,
            **(settled or {}),
            **({"rescale": "density"} if rescales else {}),
            **({} if divide is None else {"elect": "weighted", "divide": divide}),
        },
        whole_vectors=whole_vectors or {},
        departures=departures,
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("linear", "linear", "none", per_model=_WEIGHTS, whole={"normalize": "normalize"}),
        Method("passthrough", "passthrough", "none", models=1, whole={"scale": "scale"}),
        Method(
            "slerp",
            "slerp",
            "input",
            whole={"t": "t"},
            settled={"groups": "tensor", "straight": 0.9995},
        ),
        Method(
            "nuslerp",
            "nuslerp",
            "optional",
            per_model=_WEIGHTS,
            whole={"nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"},
        ),
        Method(
            "multislerp",
            "multislerp",
            "optional",
            per_model=_WEIGHTS,
            whole={"normalize_weights": "normalize"},
            ignored={"eps": "lengths that vanish are treated exactly"},
            settled={"groups": "tensor", "project": "orthogonal"},
        ),
        Method(
            "karcher",
            "karcher",
            "none",
            whole={"max_iter": "iterations", "tol": "tolerance"},
            settled={"groups": "tensor", "iterations": 10, "tolerance": 1e-5},
        ),
        Method(
            "task_arithmetic",
            "task_arithmetic",
            "required",
            per_model=_WEIGHTS,
            whole=_SUM | {"normalize": "normalize"},
            ignored=_INT8_MASK,
        ),
        _thinned("ties", "weights", settled={"scope": "tensor"}, departures=(_NEGATIVE,)),
        _thinned("dare_linear", None, rescales=True, departures=_DROPPED),
        _thinned("dare_ties", "none", rescales=True, departures=_DROPPED),
        _thinned("della_linear", None, rescales=True, **_BY_RANK),
        _thinned("della", "weights", rescales=True, **_BY_RANK),
        _thinned("breadcrumbs", None, **_BOTH_ENDS),
        _thinned("breadcrumbs_ties", "none", **_BOTH_ENDS),
        Method(
            "sce",
            "sce",
            "required",
            whole={"select_topk": "density"},
            ignored=_INT8_MASK,
            settled={"density": 1.0, "vote": "plain", "divide": "weights"},
        ),
        Method(
            "model_stock",
            "model_stock",
            "required",
            variants={"filter_wise": {"rule": "model_stock_rows", "settled": {}}},
            settled={"groups": "tensor"},
            compatible={"clip": False},
            departures=(Departure("a negative mean cosine counts as 0, as in the paper's derivation", settled=True),),
        ),
        Method("nearswap", "nearswap", "required", whole={"t": "t"}),
        Method("arcee_fusion", "arcee_fusion", "required"),
    )
}
