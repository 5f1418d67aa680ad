"""Equal parameter budgets: a model's widths, all times one factor, so that it has a given number of parameters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from polytask.core.errors import BadValue
from polytask.core.validation import Strict
from polytask.sharing import ModelSpec
from polytask.training.job import Job

TOLERANCE = 0.05  # of the number asked for: one more channel of every layer is a coarse step in a small model
_HALVINGS = 16


def with_parameters(job: Job, parameters: int) -> Job:
    """The job with the widths of its encoder and architecture scaled, in proportion, to about so many parameters.

    Raises:
        BadValue: no factor comes within `TOLERANCE`, or the model starts from a checkpoint, whose widths are given.
    """
    if job.model.init_from is not None:
        raise BadValue("parameters", parameters, "nothing, as model.init_from says how wide the model is")
    low, high = _bracket(job, parameters)
    found = {factor: _count(job, factor) for factor in (low, high)}
    for _ in range(_HALVINGS):
        if high <= low or scaled_model(job.model, low) == scaled_model(job.model, high):
            break
        middle = (low * high) ** 0.5
        found[middle] = _count(job, middle)
        low, high = (middle, high) if found[middle] < parameters else (low, middle)
    factor = min(found, key=lambda each: abs(found[each] - parameters))
    if abs(found[factor] - parameters) > TOLERANCE * parameters:
        nearest = (
            f"about {found[factor]}, the nearest that sharing {job.model.sharing.kind!r} of {_tasks(job)} can have"
        )
        raise BadValue("parameters", parameters, nearest)
    model = scaled_model(job.model, factor)
    return replace(job, model=model, recipe={**job.recipe, "model": model.model_dump(mode="json")})


def scaled_model(spec: ModelSpec, factor: float) -> ModelSpec:
    """The model with every width of its stems, encoder, architecture and decoders times `factor`."""
    parts = ("encoder", "sharing", "decoder")
    changed: dict[str, Any] = {part: _scaled(getattr(spec, part), factor) for part in parts}
    if spec.stems is not None:
        stems = spec.stems
        of = {name: _scaled(options, factor) for name, options in stems.of.items()}
        width = _times(stems.width, factor, 1)
        default = _scaled(stems.default, factor)
        changed["stems"] = stems.model_copy(update={"of": of, "default": default, "width": width})
    return spec.model_copy(update=changed)


def _scaled(options: Any, factor: float) -> Any:
    if not isinstance(options, Strict):
        return options
    widths: Mapping[str, int] = getattr(options, "widths", {})
    changes = {}
    for field, multiple in widths.items():
        value = getattr(options, field, None)
        if isinstance(value, tuple):
            changes[field] = tuple(_times(size, factor, multiple) for size in value)
        elif value is not None:
            changes[field] = _times(value, factor, multiple)
    return options.model_copy(update=changes)


def _times(size: int, factor: float, multiple: int) -> int:
    return max(1, round(size * factor / multiple)) * multiple


def _bracket(job: Job, parameters: int) -> tuple[float, float]:
    """Two factors, a factor 2 apart, between whose numbers of parameters the one asked for lies, if any do."""
    low = high = 1.0
    if _count(job, 1.0) < parameters:
        while _count(job, high) < parameters and scaled_model(job.model, 2 * high) != scaled_model(job.model, high):
            low, high = high, 2 * high
    else:
        while _count(job, low) > parameters and scaled_model(job.model, low / 2) != scaled_model(job.model, low):
            low, high = low / 2, low
    return low, high


def _count(job: Job, factor: float) -> int:
    model = replace(job, model=scaled_model(job.model, factor)).build()
    return sum(parameter.numel() for parameter in model.parameters())


def _tasks(job: Job) -> str:
    return f"task {job.tasks[0]!r}" if len(job.tasks) == 1 else f"{len(job.tasks)} tasks"
