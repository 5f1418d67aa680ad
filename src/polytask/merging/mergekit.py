"""mergekit's YAML, read as a plan of ours. Written from its documentation and by watching what it does.

What it says is kept: per-model and per-slice parameters, gradients over depth, filters (a part of the name), `slices`,
`base_model`, `dtype`, `out_dtype`, `tokenizer` and `tokenizer_source`. Where polytask does something else, a line
says so; only departures that this file meets are told.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from pydantic import Field

from polytask.core.errors import BadValue, Inconsistent, MissingInput, UnknownName
from polytask.core.validation import Strict, validated
from polytask.merging.mergekit_methods import METHODS, Method
from polytask.merging.plan import MergePlan


class Source(Strict):
    """Layers of a model in a slice."""

    model: Any
    layer_range: tuple[int, int] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class OutputSlice(Strict):
    """The next layers of the output."""

    sources: tuple[Source, ...] = Field(min_length=1)
    base_model: Any = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class Model(Strict):
    """A model that is merged whole."""

    model: Any
    parameters: dict[str, Any] = Field(default_factory=dict)


class MergekitFile(Strict):
    """The keys of mergekit's merge configuration."""

    merge_method: str
    models: tuple[Model, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    base_model: Any = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Any = None
    tokenizer: Any = None
    chat_template: str | None = None


@dataclass
class _Names:
    """reference -> task name, the last part of the reference's path; a second of that name gets a number."""

    known: dict[str, str] = field(default_factory=dict)

    def of(self, reference: str) -> str:
        if reference not in self.known:
            stem = re.sub(r"[^\w.-]+", "-", PurePath(reference).name).strip("-.") or "model"
            taken = {*self.known.values(), "base"}
            numbers = (f"{stem}-{number}" for number in range(2, len(taken) + 3))
            self.known[reference] = stem if stem not in taken else next(name for name in numbers if name not in taken)
        return self.known[reference]


def is_mergekit(values: Mapping[str, Any]) -> bool:
    """Whether a file is mergekit's and not a plan of ours."""
    return "merge_method" in values


def translated(values: Mapping[str, Any], where: str, *, compatible: bool = False) -> tuple[MergePlan, list[str]]:
    """The plan, and a line for each departure that it meets.

    Args:
        values: the YAML file's.
        where: its name, for messages.
        compatible: follow mergekit's documented formula where it differs from the paper's (`--compat mergekit`).
    """
    file = validated(MergekitFile, values, where)
    if file.merge_method not in METHODS:
        raise UnknownName("merge_method", file.merge_method, METHODS, where)
    if (file.models is None) == (file.slices is None):
        raise Inconsistent(f"{where}: it has models or slices, one of the two")
    method, names = _variant(METHODS[file.merge_method], file), _Names()
    base = None if file.base_model is None else reference(file.base_model, f"{where}.base_model")
    entries = _entries(file, where)
    _check_parameters(file, method, where)
    models = list(dict.fromkeys(model for model, _ in entries))
    merged = [model for model in models if model != base or method.merges_base]
    if method.base == "input":
        _check_number(file, base, method, where)
        merged = merged if base is None else list(dict.fromkeys([base, *merged]))  # its way starts there
    tasks = {names.of(model): {"model": model, "parameters": {}} for model in merged}
    if file.models is not None:
        twice = [model for model, times in Counter(model for model, _ in entries).items() if times > 1]
        if twice:
            raise Inconsistent(f"{where}.models: {twice[0]!r} stands twice")
        for model, parameters in entries:
            if model in merged:
                tasks[names.of(model)]["parameters"] = _parameters(parameters, method.per_model, method)
    plan: dict[str, Any] = {
        "version": 1,
        "base": base if method.base in ("required", "optional") else None,
        "tasks": tasks,
        "rule": {"kind": method.rule, "parameters": _rule_parameters(file, method, compatible)},
        "dtype": _dtype(file, where),
        "depth": [{"pattern": "*", "value": 0.0, "outside": True}],
        "slices": _slices(file, method, names, base, where),
    }
    _check_base(method, base, where)
    if method.name == "nuslerp":
        _settle_nuslerp(plan, where)
    plan["tokenizer"] = _tokenizer(file, base, names, plan, where)
    plan["donor"] = _donor(plan, base, names) if plan["tokenizer"] is None else None
    return validated(MergePlan, plan, where), _departures(file, method, plan, compatible)


def _variant(method: Method, file: MergekitFile) -> Method:
    """The method as the file's truth values make it."""
    for name, changes in method.variants.items():
        if file.parameters.get(name):
            method = replace(method, **changes)
    return method


def reference(value: Any, where: str) -> str:
    """A model as text, from text or from mergekit's mapping {model: {path, revision}, lora: {path, revision}}."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise BadValue(where, value, "a path, a hub id, or {path, revision}")
    allowed = ("model", "lora") if "model" in value else ("path", "revision")
    for key in value:
        if key not in allowed:
            raise UnknownName("key", key, allowed, where)
    if "model" in value:
        adapter = f"+{reference(value['lora'], f'{where}.lora')}" if value.get("lora") else ""
        return reference(value["model"], f"{where}.model") + adapter
    if "path" not in value:
        raise MissingInput(f"{where}.path is missing")
    return f"{value['path']}@{value['revision']}" if value.get("revision") else str(value["path"])


def value_of(value: Any, where: str) -> Any:
    """A parameter's value: `{filter, value}` becomes `{pattern, value}`."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    return [_conditional(item, where) if isinstance(item, Mapping) else item for item in value]


def _conditional(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    for key in item:
        if key not in ("filter", "value"):
            raise UnknownName("key", key, ("filter", "value"), where)
    if "value" not in item:
        raise MissingInput(f"{where}: {dict(item)} has no value")
    wanted = item.get("filter")
    plain = {"value": value_of(item["value"], where)}
    # A part of the name, as it stands; only `*` alone means every name.
    return plain if wanted in (None, "*") else {"pattern": f"*{_literal(str(wanted))}*", **plain}


def _literal(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def _entries(file: MergekitFile, where: str) -> list[tuple[str, dict[str, Any]]]:
    """(model, parameters) in the order of the file."""
    if file.models is not None:
        return [
            (reference(entry.model, f"{where}.models.{number}"), entry.parameters)
            for number, entry in enumerate(file.models)
        ]
    return [
        (reference(entry.model, f"{where}.slices.{number}.sources.{place}"), entry.parameters)
        for number, part in enumerate(file.slices or ())
        for place, entry in enumerate(part.sources)
    ]


def _check_number(file: MergekitFile, base: str | None, method: Method, where: str) -> None:
    """BadValue where an interpolation, or that of a slice, is of too many models or too few, the base among them."""
    slices = [(f"{where}.slices.{number}", part.sources) for number, part in enumerate(file.slices or ())]
    for place, entries in slices or [(where, file.models or ())]:
        models = dict.fromkeys([base, *(reference(entry.model, place) for entry in entries)])
        number = len(models) - (base is None)
        if number != method.models:
            raise BadValue("the number of models", number, f"{method.models} for {method.rule}", place)


def _check_base(method: Method, base: str | None, where: str) -> None:
    if method.base in ("required", "input") and base is None:
        raise MissingInput(f"{where}: {method.name} needs base_model")


def _check_parameters(file: MergekitFile, method: Method, where: str) -> None:
    allowed = [*method.per_model, *method.whole, *method.ignored, *method.only, *method.variants]
    places = [(f"{where}.parameters", file.parameters)]
    places += [(f"{where}.models.{n}.parameters", entry.parameters) for n, entry in enumerate(file.models or ())]
    for number, part in enumerate(file.slices or ()):
        places.append((f"{where}.slices.{number}.parameters", part.parameters))
        places += [
            (f"{where}.slices.{number}.sources.{place}.parameters", entry.parameters)
            for place, entry in enumerate(part.sources)
        ]
    for place, parameters in places:
        for name, value in parameters.items():
            if name not in allowed:
                raise UnknownName("parameter", name, allowed, f"{place} ({file.merge_method})")
            if name in method.only and value != method.only[name]:
                raise BadValue(name, value, f"{method.only[name]}, with {file.merge_method} here", place)
            if name in method.variants and not (isinstance(value, bool) and parameters is file.parameters):
                raise BadValue(name, value, f"true or false, in {where}.parameters", place)


def _parameters(given: Mapping[str, Any], renamed: Mapping[str, str], method: Method) -> dict[str, Any]:
    """Under our names, with our numbers and words."""
    return {
        renamed[name]: _converted(value_of(value, name), method.convert.get(name))
        for name, value in given.items()
        if name in renamed
    }


def _converted(value: Any, convert: Callable[[Any], Any] | None) -> Any:
    if convert is None:
        return value
    if isinstance(value, list):
        return [_converted(item, convert) for item in value]
    if isinstance(value, Mapping):
        return {**value, "value": _converted(value["value"], convert)}
    return convert(value)


def _rule_parameters(file: MergekitFile, method: Method, compatible: bool) -> dict[str, Any]:
    own = _parameters(file.parameters, {**method.per_model, **method.whole}, method)
    if method.models == 1:  # what is given with the only model holds for all
        for entry in file.models or ():
            own |= _parameters(entry.parameters, method.whole, method)
    settled = {**method.settled, **(method.compatible if compatible else {})}
    dense = {} if "density" in _used(file) else method.whole_vectors
    return {**settled, **dense, **own}


def _used(file: MergekitFile) -> set[str]:
    """Every parameter that the file gives anywhere."""
    given = [file.parameters, *(entry.parameters for entry in file.models or ())]
    given += [part.parameters for part in file.slices or ()]
    given += [entry.parameters for part in file.slices or () for entry in part.sources]
    return {name for parameters in given for name in parameters}


def _slices(file: MergekitFile, method: Method, names: _Names, base: str | None, where: str) -> list[dict[str, Any]]:
    found = []
    for number, part in enumerate(file.slices or ()):
        place = f"{where}.slices.{number}"
        if part.base_model is not None and reference(part.base_model, place) != base:
            raise Inconsistent(f"{place}.base_model: another base in a slice; a plan has one base for all slices")
        inputs: dict[str, Any] = {}
        base_layers = None
        for position, entry in enumerate(part.sources):
            if entry.layer_range is None:
                raise MissingInput(f"{place}.sources.{position}.layer_range is missing")
            model = reference(entry.model, f"{place}.sources.{position}")
            if model == base and not method.merges_base:
                base_layers = entry.layer_range
                continue
            if names.of(model) in inputs:
                raise Inconsistent(f"{place}: {model!r} stands twice in one slice")
            inputs[names.of(model)] = {
                "layers": list(entry.layer_range),
                "parameters": _parameters(entry.parameters, method.per_model, method),
            }
        own = _parameters(part.parameters, {**method.per_model, **method.whole}, method)
        if method.models == 1:
            own |= _parameters(part.sources[0].parameters, method.whole, method)
        found.append({"inputs": inputs, "base": base_layers, "parameters": own})
    return found


def _settle_nuslerp(plan: dict[str, Any], where: str) -> None:
    """Along what it goes; and each model has a weight, by itself, in its slice or for all."""
    rule = plan["rule"]["parameters"]
    if not rule.pop("flatten", True):
        # What it calls row-wise takes each column as one vector, as its results show.
        rule["along"] = "column" if rule.pop("row_wise", False) else "row"
    rule.pop("row_wise", None)
    places = [
        (f"{where}.slices.{number}", part["inputs"], part["parameters"]) for number, part in enumerate(plan["slices"])
    ]
    for place, inputs, around in places or [(where, plan["tasks"], {})]:
        for task, given in inputs.items():
            if not any("weights" in parameters for parameters in (given["parameters"], around, rule)):
                raise MissingInput(f"{place}: nuslerp needs the weight of {task!r}")


_DTYPES = ("float32", "float16", "bfloat16", "float64")


def _dtype(file: MergekitFile, where: str) -> str | None:
    found = file.out_dtype or file.dtype
    if found is not None and found not in _DTYPES:
        raise UnknownName("dtype", found, _DTYPES, where)
    return found


def _tokenizer(file: MergekitFile, base: str | None, names: _Names, plan: Mapping[str, Any], where: str) -> Any:
    """`tokenizer` of a plan, from tokenizer or tokenizer_source; None where the file says nothing."""
    if file.tokenizer is not None and file.tokenizer_source is not None:
        raise Inconsistent(f"{where}: it has tokenizer and tokenizer_source, one of the two")
    if file.tokenizer is None and file.tokenizer_source is None:
        return None
    given = {"source": file.tokenizer_source} if file.tokenizer is None else file.tokenizer
    place = f"{where}.tokenizer" if file.tokenizer is not None else f"{where}.tokenizer_source"
    if not isinstance(given, Mapping):
        raise BadValue(place, given, "{source, tokens, pad_to_multiple_of}")
    for key in given:
        if key not in ("source", "tokens", "pad_to_multiple_of"):
            raise UnknownName("key", key, ("source", "tokens", "pad_to_multiple_of"), place)

    def input_of(model: Any, where: str = place) -> str:
        found = reference(model, where).removeprefix("model:")
        if found == base and plan["base"] is not None:
            return "base"
        if found not in names.known:
            raise UnknownName("model", found, names.known, where)
        return names.known[found]

    source = given.get("source", "union")
    if source == "base":
        if base is None:
            raise MissingInput(f"{place}: base, and there is no base_model")
        source = input_of(base)
    elif source != "union":
        source = input_of(source)
    tokens = {token: _token(choice, input_of, f"{place}.{token}") for token, choice in given.get("tokens", {}).items()}
    return {"source": source, "tokens": tokens, "pad_to_multiple_of": given.get("pad_to_multiple_of")}


def _token(choice: Any, input_of: Callable[[Any, str], str], where: str) -> dict[str, Any]:
    """A token's entry: a model, {kind: model_token, model, token or token_id} or {kind: zero}."""
    if not isinstance(choice, Mapping) or "source" not in choice:
        raise BadValue(where, choice, "{source: ..., force: ...}")
    source = choice["source"]
    if isinstance(source, Mapping) and source.get("kind") == "zero":
        found: Any = None
    elif isinstance(source, Mapping) and source.get("kind") == "model_token":
        found = {
            **{key: value for key, value in source.items() if key != "kind"},
            "model": input_of(source.get("model"), where),
        }
    else:
        found = input_of(source, where)
    return {"source": found, **{key: value for key, value in choice.items() if key != "source"}}


def _donor(plan: Mapping[str, Any], base: str | None, names: _Names) -> str | None:
    """Whose config, and whose tokenizer where the file names none: the base's."""
    if base is None:
        return None
    return "base" if plan["base"] is not None else names.known.get(base)


def _departures(file: MergekitFile, method: Method, plan: Mapping[str, Any], compatible: bool) -> list[str]:
    used = _used(file)
    lines = []
    if file.dtype not in (None, "float32", "float64"):
        lines.append(
            f"dtype: {file.dtype}: arithmetic is in float32, rounded once at the end; mergekit computes in {file.dtype}"
        )
    for name in method.ignored:
        if name in used:
            lines.append(f"{name}: {method.ignored[name]}")
    if file.chat_template is not None:
        lines.append("chat_template: not written anew; the donor's is carried over")
    numbers = [len(part.sources) for part in file.slices or ()]
    if numbers and numbers[-1] > numbers[0]:
        lines.append(
            f"slices: what comes after the layers is merged from all {numbers[-1]} sources of the last slice; mergekit "
            f"leaves out those beyond the first slice's {numbers[0]}"
        )
    for departure in method.departures:
        if departure.applies(file, plan) and not (compatible and departure.settled):
            lines.append(f"{method.name}: {departure.line}")
    return lines
