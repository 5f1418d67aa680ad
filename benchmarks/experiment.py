"""An experiment: a file experiments/NAME.yaml that says what is run, and how long that takes."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from polytask.core.errors import BadValue, UnknownName
from polytask.core.validation import Strict, validated

FOLDER = Path(__file__).resolve().parent / "experiments"
COMPARE, EXPERT_MERGES, EXPERT_GRAFTS = "compare", "expert_merges", "expert_grafts"
_SHARED = ("recipe", "settings", "seeds", "learning_rate_multiples", "parameters", "prepare", "against")


class Experiment(Strict):
    """What a file in experiments/ says.

    Attributes:
        kind: compare (a recipe's variants beside single-task models) or the measurement with this name.
        title: a heading for people.
        about: a sentence or two on what is compared, and what a reader must know.
        minutes: expected on two idle cores.
        recipe: the name of a shipped recipe.
        settings: changes to it, {path: value}.
        rules, sharing, vary, seeds, learning_rate_multiples: as in `polytask.compare`. Of kind expert_merges `rules`
            are merge methods, or rooms that have some; null is every one. Of kind expert_grafts they are what
            `expert_merges.grafts` takes.
        against: the row that the others are seen beside: the page then shows a line a row with its difference to that
            one, and no scores of tasks.
        beside: the experiment whose table shows these rows too (of kinds toy and expert_merges: these rules), or beside
            whose table stands what was found of its experts (of kind expert_grafts). Recipe, settings, seeds, learning
            rates and `against` are that one's; single-task models and the row `against` are measured again, and must
            come out the same.
        other_seeds: of kind expert_merges, beside another: experts of these seeds are trained too, and the rules merge
            them; what stands beside the rules has the first seed alone.
        parameters: of the models that are merged; of every row of a comparison, if all are to have as many.
        prepare: how the data folder is changed before: `distinct_texts` takes training rows out whose text is in the
            validation or test split of any source.
    """

    kind: Literal[
        "compare",
        "trees",
        "step_overhead",
        "trainer_overhead",
        "start_up",
        "toy",
        "architecture_cost",
        "merging",
        "balancing",
        "expert_merges",
        "expert_grafts",
        "school_boosting",
    ] = COMPARE
    title: str
    about: str
    minutes: float = Field(gt=0)
    recipe: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    rules: tuple[str | dict[str, Any], ...] | None = None
    sharing: tuple[str, ...] | None = None
    vary: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    seeds: int | None = Field(default=None, ge=1)
    other_seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    learning_rate_multiples: tuple[float, ...] | None = None
    prepare: Literal["distinct_texts"] | None = None
    parameters: float | None = Field(default=None, gt=0)
    against: str | None = None
    beside: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "Experiment":
        if (self.recipe is None) != (self.kind not in (COMPARE, "trees", EXPERT_MERGES, EXPERT_GRAFTS)):
            raise ValueError(
                "recipe belongs to the kinds compare, trees, expert_merges and expert_grafts, which need it"
            )
        if self.parameters is None and self.kind == "merging":
            raise ValueError("parameters: the kind merging needs it")
        if self.parameters is not None and self.kind not in ("merging", COMPARE):
            raise ValueError("parameters belongs to the kinds merging and compare")
        told = self.model_fields_set & {"settings", "rules", "sharing", "vary", "seeds", "learning_rate_multiples"}
        if self.kind == "toy" and self.beside is not None:
            told -= {"rules"}
        if self.kind in (EXPERT_MERGES, EXPERT_GRAFTS):
            told -= {"rules", "settings"}
        if self.kind != COMPARE and told:
            raise ValueError(f"{', '.join(sorted(told))}: belongs to kind compare")
        if self.other_seeds is not None and (self.kind != EXPERT_MERGES or self.beside is None):
            raise ValueError("other_seeds belongs to kind expert_merges, beside another experiment")
        if self.against is not None and self.against not in (self.rules or ()):
            raise ValueError(f"against: {self.against!r} is none of the rules")
        return self


def experiment_names() -> list[str]:
    """Every experiment, in the order of the documentation: the files' names."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_experiment(name: str) -> Experiment:
    """The checked content of experiments/NAME.yaml."""
    values = _values(name)
    if values.get("beside") is not None:
        shared = _values(str(values["beside"]))
        values = {**{key: shared[key] for key in _SHARED if key in shared}, **values}
    return validated(Experiment, values, f"experiments/{name}.yaml")


def _values(name: str) -> dict[str, Any]:
    if name not in experiment_names():
        raise UnknownName("experiment", name, experiment_names())
    path = FOLDER / f"{name}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    own = [key for key in _SHARED if key in values]
    if values.get("beside") is not None and own:
        raise BadValue(
            "keys", own, f"none of them, as they are those of {values['beside']}", f"experiments/{name}.yaml"
        )
    return values
