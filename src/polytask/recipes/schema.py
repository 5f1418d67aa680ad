"""The recipe: data, never code. Unknown keys are errors; `kind` selects a variant everywhere."""

from typing import Any, Literal

from pydantic import Field, model_validator

from polytask.core.errors import BadValue, UnknownName
from polytask.core.validation import Strict
from polytask.sharing import ModelSpec
from polytask.tasks.data_spec import DataSpec
from polytask.tasks.task import Task, expand_tasks
from polytask.training.spec import RunSpec, StageSpec


def _check_keys(values: dict[str, Any], allowed: list[str], where: str) -> None:
    for key in values:
        if key not in allowed:
            raise UnknownName("key", key, allowed, where)


class CompareSpec(Strict):
    """What `polytask compare` does unless the command says otherwise.

    Attributes:
        rules, sharing: names to try, each with the rest of the recipe; a rule with parameters as in `train`.
        seeds: how many, 0 ... n - 1.
        learning_rate_multiples: of the recipe's learning rate; every row chooses among them on the validation split.
        parameters: what every row is scaled to have, all its tasks together; None leaves the models as they are.
    """

    rules: tuple[str | dict[str, Any], ...] = ()
    sharing: tuple[str, ...] = ()
    seeds: int = Field(default=5, ge=1)
    learning_rate_multiples: tuple[float, ...] = (1 / 3, 1.0, 3.0)
    parameters: int | None = Field(default=None, ge=1)


class Recipe(Strict):
    """A whole recipe.

    Attributes:
        version: of this format.
        description: one line for people.
        data: where the rows are.
        task_defaults, tasks: see `polytask.tasks.task.Task`.
        model: encoder and sharing.
        stages: or `train:`, short for one stage; keys of `run` may stand in it too.
        run: seed, device, precision, checkpoints.
        compare: defaults of `polytask compare`.
    """

    version: Literal[1]
    description: str | None = None
    data: DataSpec = DataSpec()
    task_defaults: dict[str, Any] = Field(default_factory=dict)
    tasks: dict[str, Any]
    model: ModelSpec = ModelSpec()
    stages: tuple[StageSpec, ...] = Field(default=(StageSpec(),), min_length=1)
    run: RunSpec = RunSpec()
    compare: CompareSpec = CompareSpec()

    @model_validator(mode="before")
    @classmethod
    def _train_is_one_stage(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        _check_keys(values, [*cls.model_fields, "train"], "recipe")
        if "train" not in values:
            return values
        if "stages" in values:
            raise ValueError("it has train or stages, not both")
        rest = {key: value for key, value in values.items() if key != "train"}
        train = values["train"] if values["train"] is not None else {}
        if not isinstance(train, dict):
            raise BadValue("recipe.train", train, "a mapping, as {rule: equal, epochs: 5}")
        train = dict(train)
        _check_keys(train, [*StageSpec.model_fields, *RunSpec.model_fields], "recipe.train")
        run = rest.get("run") or {}
        if not isinstance(run, dict):
            raise BadValue("recipe.run", run, "a mapping, {key: value}")
        run = {**run, **{key: train.pop(key) for key in list(train) if key in RunSpec.model_fields}}
        return {**rest, "stages": [train], "run": run}

    @model_validator(mode="after")
    def _tasks_are_tasks(self) -> "Recipe":
        known = [task.name for task in expand_tasks(self.tasks, self.task_defaults)]
        for task in () if self.model.decoder is None else self.model.decoder.strides:
            if task not in known:
                raise UnknownName("task", task, known, "model.decoder.strides")
        return self

    @property
    def task_list(self) -> list[Task]:
        """The tasks with their defaults filled in and shorthands written out."""
        return expand_tasks(self.tasks, self.task_defaults)

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default written out, which is itself a recipe."""
        values = self.model_dump(mode="json")
        values["tasks"] = {
            task.name: {
                key: value for key, value in task.model_dump(mode="json", exclude_none=True).items() if key != "name"
            }
            for task in self.task_list
        }
        values["task_defaults"] = {}
        if self.data.sources is not None:  # a null written out would hide the default that a source takes from `data`
            values["data"]["sources"] = {
                name: source.model_dump(mode="json") for name, source in self.data.named_sources().items()
            }
        return values
