"""The recipe's JSON schema, for editors: `python -m polytask.recipes.json_schema` writes recipe.schema.json anew.

It is made from the models that check recipes, with what a pydantic model does not say of itself added: the short forms
(`rule: pcgrad`), the options of each encoder and sharing architecture, and the names of rules.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from polytask.core.catalogue import Catalogue
from polytask.core.rules import find, rule_names
from polytask.recipes.schema import Recipe
from polytask.sharing.names import ATTACHMENTS, ENCODERS, SHARING
from polytask.tasks.kinds import KINDS
from polytask.tasks.task import Task
from polytask.training.spec import RunSpec

FILE = "recipe.schema.json"
_REFERENCE = "#/$defs/{model}"


def shipped_schema() -> dict[str, Any]:
    """What stands in the package."""
    return json.loads((resources.files("polytask.recipes") / FILE).read_text(encoding="utf-8"))


def recipe_schema() -> dict[str, Any]:
    """The schema, made from the models."""
    schema = Recipe.model_json_schema(ref_template=_REFERENCE)
    definitions = schema["$defs"]
    definitions |= _tasks(definitions)
    recipe, model = schema["properties"], definitions["ModelSpec"]["properties"]
    recipe["tasks"] = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"anyOf": [{"enum": KINDS.names()}, {"$ref": "#/$defs/Task"}]},
    }
    recipe["task_defaults"] = {"$ref": "#/$defs/TaskDefaults"}
    model["encoder"] = {"anyOf": [*_variants(ENCODERS, definitions), {"type": "null"}]}
    model["sharing"] = {"anyOf": _variants(SHARING, definitions), "default": "hard"}
    stage = definitions["StageSpec"]["properties"]
    stage["rule"] = {"anyOf": [{"enum": rule_names()}, {"$ref": "#/$defs/RuleChoice"}]}
    definitions["CompareSpec"]["properties"]["rules"]["items"] = stage["rule"]
    stage["attachments"] = {"type": "array", "items": {"anyOf": _variants(ATTACHMENTS, definitions)}, "default": []}
    definitions["RuleChoice"] |= _rule(definitions["RuleChoice"])
    for field, name in (("optimizer", "OptimizerSpec"), ("schedule", "ScheduleSpec"), ("mixture", "MixtureSpec")):
        kinds = definitions[name]["properties"]["kind"]["enum"]
        stage[field] = {"anyOf": [{"enum": kinds}, {"$ref": f"#/$defs/{name}"}]}
    for name in ("DataSpec", "SourceSpec"):
        data = definitions[name]["properties"]
        data["split"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/SplitSpec"}, {"type": "null"}]}
        data["stream"] = {"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/StreamSpec"}, {"type": "null"}]}
    run = RunSpec.model_json_schema(ref_template=_REFERENCE)["properties"]
    recipe["train"] = {
        "description": "Short for one stage; what holds for the whole run may stand in it too.",
        "type": "object",
        "properties": {**stage, **run},
        "additionalProperties": False,
    }
    schema["not"] = {"required": ["train", "stages"]}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "polytask recipe"}
    return {**head, **{key: value for key, value in schema.items() if key != "title"}}


def _tasks(definitions: dict[str, Any]) -> dict[str, Any]:
    """A task without its name, and the same with nothing required; they also allow the shorthand `labels`."""
    task = _defined(Task, definitions)
    properties = {key: value for key, value in task["properties"].items() if key != "name"}
    properties["kind"] = {"enum": KINDS.names()}
    for option in ("loss", "metric"):
        names = dict.fromkeys(name for kind in KINDS.names() for name in getattr(KINDS.find(kind), _PLURAL[option]))
        properties[option] = {"enum": list(names)}
    shared = {**task, "properties": properties, "required": []}
    return {"Task": shared, "TaskDefaults": {**shared, "title": "TaskDefaults"}}


_PLURAL = {"loss": "losses", "metric": "metrics"}


def _variants(catalogue: Catalogue, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The short form, and each kind with its options."""
    found: list[dict[str, Any]] = [{"enum": catalogue.names()}]
    for name in catalogue.names():
        options = catalogue.find(name).Options
        own = f"{catalogue.find(name).__name__}Options"
        definitions[own] = {**_defined(options, definitions), "title": own, "required": ["kind"]}
        found.append({"$ref": f"#/$defs/{own}"})
    return found


def _rule(choice: dict[str, Any]) -> dict[str, Any]:
    """The names of rules, and what any of them takes; which parameter is whose stands in its description."""
    parameters: dict[str, dict[str, Any]] = {}
    for name in rule_names():
        for parameter, about in find(name).parameters.items():
            earlier = parameters.setdefault(parameter, {"description": ""})
            earlier["description"] = "; ".join(
                part for part in (earlier["description"], f"{name}: {about.allowed}") if part
            )
    own = {"type": "object", "properties": parameters, "additionalProperties": False}
    properties = {**choice["properties"], "kind": {"enum": rule_names()}, "parameters": own, **parameters}
    return {"properties": properties, "required": ["kind"]}


def _defined(model: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """A model's schema, its own definitions moved to the common ones."""
    schema = model.model_json_schema(ref_template=_REFERENCE)
    definitions |= schema.pop("$defs", {})
    return schema


if __name__ == "__main__":
    text = json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"
    (Path(__file__).parent / FILE).write_text(text, encoding="utf-8")
