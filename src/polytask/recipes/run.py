"""`polytask.train` and `polytask.compare`: what the commands do, from Python."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from polytask.core.errors import BadValue
from polytask.core.rules import RuleSpec, find
from polytask.evaluation.report.page import write_report
from polytask.recipes.reading import Read, read_recipe
from polytask.recipes.schema import Recipe
from polytask.sharing import SHARING
from polytask.sharing.encoders.pretrained import locate
from polytask.studies.compare import BASELINE, Budget, Variant
from polytask.studies.compare import compare as run_comparison
from polytask.tasks.data import Data, load_data
from polytask.training.events import Listener
from polytask.training.job import Job
from polytask.training.loop import fit


def train(
    recipe: str | Path | Mapping[str, Any],
    *,
    out: str | Path,
    data: Any = None,
    encoder: Callable[..., nn.Module] | None = None,
    data_dir: str | Path | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | Sequence[str] = (),
    listeners: Sequence[Listener] = (),
) -> dict[str, Any]:
    """Trains one run and returns its results (what RUN/results.json holds); the model is `polytask.load(out)`.

    Args:
        recipe: a path, a shipped recipe's name or a mapping.
        out: the run's directory.
        data: {source name: rows from Python} (arrays, a torch Dataset, ...); {"data": rows} where there is one source,
            for which a frame or Dataset may stand alone.
        encoder: a factory that returns a fresh encoder, instead of the recipe's.
        data_dir: where the recipe's paths are looked for before its own folder.
        resume: continue the run in `out`, bit for bit.
        settings: changes to the recipe, {"train.optimizer.lr": 0.01}.
        listeners: called with every event.
    """
    read = read_recipe(recipe, settings)
    job = make_job(read, data=data, encoder=encoder, data_dir=data_dir)
    return fit(job, Path(out), resume=resume, listeners=listeners)


def compare(
    recipe: str | Path | Mapping[str, Any],
    *,
    out: str | Path,
    rules: Sequence[str | RuleSpec | Mapping[str, Any]] | None = None,
    sharing: Sequence[str] | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | None = None,
    learning_rate_multiples: Sequence[float] | None = None,
    parameters: int | None = None,
    data: Any = None,
    encoder: Callable[..., nn.Module] | None = None,
    data_dir: str | Path | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    listeners: Sequence[Listener] = (),
) -> dict[str, Any]:
    """Trains single-task baselines and each variant under one budget, writes DIR with its report.html, and returns what
    DIR/results.json holds.

    Args:
        rules, sharing: names to try; each rule with each architecture, and with each value of `vary`. A rule with
            parameters is a mapping as in a recipe: {"kind": "cagrad", "c": 0.4}.
        vary: {"train.batch_size": [256, 1024]}: other recipe values to try.
        seeds: how many; five or more give an honest interval.
        learning_rate_multiples: every row chooses among these multiples of its learning rate on the validation split.
        parameters: what every row has, all tasks together: the widths of its layers are scaled by one factor.
        The others as in `train`.
    """
    read = read_recipe(recipe, settings)
    wanted = read.recipe.compare
    combinations = _combinations(
        [_known(rule) for rule in (wanted.rules if rules is None else rules)],
        [SHARING.find(name) and name for name in (wanted.sharing if sharing is None else sharing)],
        vary or {},
    )
    base = make_job(read, data=data, encoder=encoder, data_dir=data_dir)
    variants = [_variant(read, combination, base, data, encoder, data_dir) for combination in combinations]
    budget = Budget(
        tuple(range(wanted.seeds if seeds is None else seeds)),
        tuple(wanted.learning_rate_multiples if learning_rate_multiples is None else learning_rate_multiples),
        wanted.parameters if parameters is None else parameters,
    )
    results = run_comparison(variants, base, budget, Path(out), listeners=listeners, recipe=read.recipe.resolved())
    write_report([Path(out)], Path(out) / "report.html")
    return results


def make_job(
    read: Read,
    *,
    data: Any = None,
    encoder: Callable[..., nn.Module] | None = None,
    data_dir: str | Path | None = None,
    loaded: Data | None = None,
) -> Job:
    """The run that a recipe describes, with its data read (or `loaded` already)."""
    recipe = read.recipe
    tasks = recipe.task_list
    for stage in recipe.stages:
        find(stage.rule.kind)
    if loaded is None:
        loaded = load_data(
            recipe.data,
            tasks,
            data_dir=None if data_dir is None else Path(data_dir),
            beside=read.beside,
            tokenizer=_tokenizer(recipe),
            datasets=_by_source(data),
        )
    names = [task.name for task in tasks if task.name in loaded.targets]
    return Job(loaded, names, recipe.model, list(recipe.stages), recipe.run, recipe.resolved(), encoder)


def _by_source(data: Any) -> dict[str, Any]:
    """{source: rows}; rows alone (a frame, a Dataset) are those of the only source."""
    if data is None:
        return {}
    return dict(data) if isinstance(data, Mapping) else {"data": data}


def _known(rule: str | RuleSpec | Mapping[str, Any]) -> str | dict[str, Any]:
    """The rule's name, or its mapping, as a recipe has it."""
    if isinstance(rule, Mapping):
        find(str(rule.get("kind")))
        return dict(rule)
    return find(rule if isinstance(rule, str) else rule.name).name


def _words(value: Any) -> str:
    """A value of a variant in the name of its row: `cagrad c=0.4`, `static weights=(left 2, right 1)`."""
    if not isinstance(value, Mapping):
        return str(value)
    if "kind" in value:
        return " ".join([str(value["kind"]), *(f"{key}={_words(of)}" for key, of in value.items() if key != "kind")])
    return f"({', '.join(f'{key} {_words(of)}' for key, of in value.items())})"


def _combinations(
    rules: list[str | dict[str, Any]], sharing: list[str], vary: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """{recipe path: value} for each rule with each architecture with each further value."""
    axes: list[tuple[str, list[Any]]] = [("rule", rules)] if rules else []
    axes += [("model.sharing", [name for name in sharing if name != BASELINE])] if sharing else []
    axes += [(path, list(values)) for path, values in vary.items()]
    combinations: list[dict[str, Any]] = [{}]
    for path, values in axes:
        if not values and path != "model.sharing":
            raise BadValue(f"the values of {path!r}", values, "at least one")
        combinations = [{**combination, path: value} for combination in combinations for value in values]
    return combinations


def _variant(
    read: Read,
    combination: Mapping[str, Any],
    base: Job,
    data: Any,
    encoder: Callable[..., nn.Module] | None,
    data_dir: str | Path | None,
) -> Variant:
    """One row: the recipe with these values; the data is read again only where they change it."""
    settings: dict[str, Any] = {}
    for path, value in combination.items():
        if path != "rule":
            settings[path] = value
            continue
        stages = read.values.get("stages")
        settings |= {"train.rule": value} if stages is None else {f"stages.{i}.rule": value for i in range(len(stages))}
    varied = read_recipe(read.values, settings)
    varied = Read(varied.recipe, varied.values, read.beside)
    same_data = all(
        getattr(varied.recipe, part) == getattr(read.recipe, part) for part in ("data", "tasks", "task_defaults")
    )
    same_tokenizer = getattr(varied.recipe.model.encoder, "pretrained", None) == getattr(
        read.recipe.model.encoder, "pretrained", None
    )
    loaded = base.data if same_data and same_tokenizer else None
    job = make_job(varied, data=data, encoder=encoder, data_dir=data_dir, loaded=loaded)
    parts = [
        _words(value) if path in ("rule", "model.sharing") else f"{path.rpartition('.')[2]}={value}"
        for path, value in combination.items()
    ]
    name = ", ".join(parts) or job.stages[-1].rule.kind
    return Variant(name, job, dict(combination))


def _tokenizer(recipe: Recipe) -> str | None:
    """Where the tokenizer of the recipe's text encoder is: in the directory of its weights."""
    pretrained = getattr(recipe.model.encoder, "pretrained", None)
    return None if pretrained is None else str(locate(pretrained))
