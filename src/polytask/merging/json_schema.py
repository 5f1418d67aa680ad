"""The plan's JSON schema, for editors: `python -m polytask.merging.json_schema` writes plan.schema.json anew.

It is made from the models that check plans, with the short forms, the names of methods and transforms, and the forms of
a value (by depth, by pattern) added.
"""

import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from polytask.core.constraints import Parameter, Patterns, PerTask
from polytask.core.names import LEARNED
from polytask.merging.contract import find_method, find_transform, method_names, transform_names
from polytask.merging.learning import find_learned
from polytask.merging.plan import MergePlan

FILE = "plan.schema.json"
_REFERENCE = "#/$defs/{model}"


def shipped_schema() -> dict[str, Any]:
    """What stands in the package."""
    return json.loads((resources.files("polytask.merging") / FILE).read_text(encoding="utf-8"))


def plan_schema() -> dict[str, Any]:
    """The schema, made from the models."""
    schema = MergePlan.model_json_schema(ref_template=_REFERENCE)
    definitions = schema["$defs"]
    definitions["Value"] = _VALUE
    methods = {name: find_method(name).parameters for name in method_names()}
    methods |= {name: find_learned(name).parameters for name in LEARNED}
    transforms = {name: find_transform(name).parameters for name in transform_names()}
    definitions["RuleChoice"] |= _choice(methods)
    definitions["TransformChoice"] |= _choice(transforms)
    definitions["TaskInput"]["properties"]["parameters"] = _VALUES
    properties = schema["properties"]
    properties["rule"] = {"anyOf": [{"enum": list(methods)}, {"$ref": "#/$defs/RuleChoice"}]}
    short = {"anyOf": [{"enum": list(transforms)}, {"$ref": "#/$defs/TransformChoice"}]}
    properties["transforms"] = {**properties["transforms"], "items": short}
    model = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/TaskInput"}]}
    properties["tasks"] = {**properties["tasks"], "additionalProperties": model}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "polytask merge plan"}
    return {**head, **{key: value for key, value in schema.items() if key != "title"}}


_VALUE: dict[str, Any] = {
    "description": "The same everywhere; a list of numbers over depth; or a list of {pattern, value}.",
    "anyOf": [
        {"type": ["number", "string", "boolean", "null"]},
        {"type": "array", "items": {"type": "number"}, "minItems": 1},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {"pattern": {"type": "string"}, "value": {"$ref": "#/$defs/Value"}},
                "required": ["value"],
                "additionalProperties": False,
            },
        },
    ],
}
_VALUES: dict[str, Any] = {"type": "object", "additionalProperties": {"$ref": "#/$defs/Value"}}
_NAMES: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "minItems": 1}


def _choice(declared: Mapping[str, Mapping[str, Parameter]]) -> dict[str, Any]:
    """The names, and what any of them takes; which parameter is whose stands in its description."""
    parameters: dict[str, dict[str, Any]] = {}
    for name, own in declared.items():
        for parameter, about in own.items():
            known = parameters.setdefault(parameter, {"description": "", "anyOf": [{"$ref": "#/$defs/Value"}]})
            known["description"] = "; ".join(_parts(known["description"], f"{name}: {about.allowed}"))
            also = {PerTask: _VALUES, Patterns: _NAMES}.get(type(about.constraint))
            if also is not None and also not in known["anyOf"]:
                known["anyOf"].append(also)
    own = {"type": "object", "properties": parameters, "additionalProperties": False}
    properties = {"kind": {"enum": list(declared)}, "parameters": own, **parameters}
    return {"properties": properties, "required": ["kind"], "additionalProperties": False}


def _parts(*texts: str) -> Iterable[str]:
    return (text for text in texts if text)


if __name__ == "__main__":
    content = json.dumps(plan_schema(), indent=1, ensure_ascii=False) + "\n"
    (Path(__file__).parent / FILE).write_text(content, encoding="utf-8")
