"""An experiment: a file experiments/NAME.yaml that says what is run, and how long that takes."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from polytask.core.errors import UnknownName
from polytask.core.validation import Strict, validated

FOLDER = Path(__file__).resolve().parent / "experiments"
COMPARE = "compare"


class Experiment(Strict):
    """What a file in experiments/ says.

    Attributes:
        kind: compare (a recipe's variants beside single-task models) or the measurement with this name.
        title: a heading for people.
        about: a sentence or two on what is compared, and what a reader must know.
        minutes: expected on two idle cores.
        recipe: the name of a shipped recipe.
        settings: changes to it, {path: value}.
        rules, sharing, vary, seeds, learning_rate_multiples: as in `polytask.compare`.
        prepare: how the data folder is changed before: `distinct_texts` takes training rows out whose text is in the
            validation or test split of any source.
    """

    kind: Literal["compare", "trees", "step_overhead", "trainer_overhead", "start_up"] = COMPARE
    title: str
    about: str
    minutes: float = Field(gt=0)
    recipe: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    rules: tuple[str, ...] | None = None
    sharing: tuple[str, ...] | None = None
    vary: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    seeds: int | None = Field(default=None, ge=1)
    learning_rate_multiples: tuple[float, ...] | None = None
    prepare: Literal["distinct_texts"] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Experiment":
        if (self.recipe is None) != (self.kind not in (COMPARE, "trees")):
            raise ValueError("recipe belongs to the kinds compare and trees, which need it")
        told = self.model_fields_set & {"settings", "rules", "sharing", "vary", "seeds", "learning_rate_multiples"}
        if self.kind != COMPARE and told:
            raise ValueError(f"{', '.join(sorted(told))}: belongs to kind compare")
        return self


def experiment_names() -> list[str]:
    """Every experiment, in the order of the documentation: the files' names."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_experiment(name: str) -> Experiment:
    """The checked content of experiments/NAME.yaml."""
    if name not in experiment_names():
        raise UnknownName("experiment", name, experiment_names())
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return validated(Experiment, yaml.safe_load(text), f"experiments/{name}.yaml")
