"""A task: what a model is to predict, where its labels are, and what counts as doing it well."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from polytask.core.errors import BadValue, MissingInput, UnknownName
from polytask.core.validation import UNKNOWN_KEY, first_mistake, typed
from polytask.tasks.kinds import KINDS, Kind

# Strict, so that `classes: [1, 2]` stays integers and YAML's `no` (a boolean) is not taken for the string "no".
LabelValue = StrictBool | StrictInt | StrictFloat | StrictStr

# Fields that only some kinds read (Kind.options); given to another kind they are an error rather than ignored.
_KIND_OPTIONS = ("labels", "positive", "at_least", "classes")


class HeadSpec(BaseModel):
    """The part of the model that belongs to one task: hidden layers between the shared features and the outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_sizes: tuple[Annotated[int, Field(gt=0)], ...] = ()


class Task(BaseModel):
    """One task. Defaults of loss and metric come from the kind; what is returned by `model_dump` is fully resolved.

    Attributes:
        name: unique; names the head's parameters and result columns, so it has no '.', '/' or '\\' in it.
        kind: a name in `polytask.tasks.kinds.KINDS`.
        label: the column with the labels; the name if not given.
        labels: the columns of a multilabel task, in the order of its outputs.
        positive: the value of a binary label that counts as 1; without it the label must be true/false or 0/1.
        at_least: instead: a number from which on a label counts as 1.
        classes: the values of a multiclass or segmentation label, in the order of its outputs; without it those of the
            training split, sorted.
        ignore: a label value that means that the label is absent (as a missing value does).
        where: a column: the label exists only where it is true or not zero.
        group_by: a column whose rows with one value belong together (a user's): what ranking compares within, and some
            metrics. It may be a feature.
        source: the name of the data source, where there are several, or of those that have labels of it.
        held_out: more sources that have labels of it, on which it is scored at the end and never trained or selected.
        product_of: binary tasks; the task's probability is the product of theirs, and it has no head of its own.
        loss, metric: names that the kind allows.
        role: `target` tasks are what the model is for and make the selection score; `auxiliary` ones help;
            `training_only` ones are left out of what is exported.
        priority: relative weight, given to the rule that balances the tasks.
        head: see HeadSpec.
        domain, language, difficulty, group, index: descriptive; `index` orders a family of tasks (horizons, time
            steps).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    label: str | None = None
    labels: tuple[str, ...] | None = None
    positive: LabelValue | None = None
    at_least: StrictInt | StrictFloat | None = None
    classes: tuple[LabelValue, ...] | None = None
    ignore: LabelValue | None = None
    where: str | None = None
    group_by: str | None = None
    source: str | tuple[str, ...] | None = None
    held_out: tuple[str, ...] = ()
    product_of: tuple[str, ...] | None = None
    loss: str = ""
    metric: str = ""
    role: Literal["target", "auxiliary", "training_only"] = "target"
    priority: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    head: HeadSpec = HeadSpec()
    domain: str | None = None
    language: str | None = None
    difficulty: str | StrictInt | StrictFloat | None = None
    group: str | None = None
    index: StrictInt | StrictFloat | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that the labels are read from, `where` included: none of them may be a feature of any task."""
        return self.label_columns + ((self.where,) if self.where else ())

    @property
    def read_columns(self) -> tuple[str, ...]:
        """Every column that is read for this task beside the features."""
        return self.columns + ((self.group_by,) if self.group_by else ())

    @property
    def label_columns(self) -> tuple[str, ...]:
        return self.labels if self.labels is not None else (self.label or self.name,)

    @property
    def sources(self) -> tuple[str, ...]:
        """Those that are named; none where the only source, or the one of the task's name, is meant."""
        return (self.source,) if isinstance(self.source, str) else self.source or ()

    @property
    def behaviour(self) -> Kind:
        """What the kind brings."""
        return KINDS.find(self.kind)

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, fields: Any) -> Any:
        """Resolves label, loss and metric before the checks below."""
        if not isinstance(fields, Mapping) or not isinstance(fields.get("kind"), str) or "name" not in fields:
            return fields
        where = f"tasks.{fields['name']}"
        kind = _find_kind(fields["kind"], where)
        filled = dict(fields)
        for option, choices in (("loss", kind.losses), ("metric", kind.metrics)):
            filled[option] = filled.get(option) or choices[0]
            if filled[option] not in choices:
                raise UnknownName(f"{option} of a {fields['kind']} task", filled[option], choices, where)
        if filled.get("label") is None and "labels" not in kind.options:
            filled["label"] = fields["name"]
        return filled

    @model_validator(mode="after")
    def _check(self) -> "Task":
        where = f"tasks.{self.name}"
        if not self.name.strip() or self.name != self.name.strip() or any(sign in self.name for sign in "./\\\n"):
            raise BadValue("a task's name", self.name, "text without '.', '/', '\\' or space at its ends", where)
        for option in _KIND_OPTIONS:
            found = getattr(self, option)
            if found is not None and option not in self.behaviour.options:
                raise BadValue(option, found, f"nothing, as kind {self.kind!r} has no such option", where)
        if "labels" in self.behaviour.options and (self.label is not None or not self.labels):
            found = self.labels if self.label is None else self.label
            raise BadValue("labels", found, f"the label columns of a {self.kind} task (`labels`, not `label`)", where)
        if self.positive is not None and self.at_least is not None:
            raise BadValue("at_least", self.at_least, "nothing beside `positive`: one of them says what is 1", where)
        self._check_groups(where)
        self._check_sources(where)
        if self.product_of is not None and (self.kind != "binary" or self.head.hidden_sizes):
            found = self.kind if self.kind != "binary" else f"a head with layers {list(self.head.hidden_sizes)}"
            raise BadValue("a task with product_of", found, "kind binary without a head: its factors have heads", where)
        for option, least in (("labels", 1), ("classes", 2)):
            values = getattr(self, option)
            if values is not None and (len(values) < least or _repeats(values)):
                raise BadValue(option, list(values), f"{least} or more values, each once", where)
        return self

    def _check_sources(self, where: str) -> None:
        if self.source is not None and (not self.sources or _repeats(self.sources)):
            raise BadValue("source", list(self.sources), "one or more sources, each once", where)
        if _repeats((*self.sources, *self.held_out)):
            raise BadValue("held_out", list(self.held_out), "sources that `source` does not name, each once", where)

    def _check_groups(self, where: str) -> None:
        from polytask.tasks.metrics import METRICS  # needs torch, which a recipe's schema does not

        if self.group_by is not None and self.group_by in self.columns:
            raise BadValue("group_by", self.group_by, "a column that is neither label nor `where`", where)
        if self.group_by is None and self.behaviour.grouped:
            raise MissingInput(f"{where}: kind {self.kind!r} compares rows within groups; group_by names their column")
        if self.group_by is None and METRICS[self.metric].grouped is not None:
            raise MissingInput(f"{where}: metric {self.metric!r} is taken within groups; group_by names their column")


def expand_tasks(tasks: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> list[Task]:
    """The `tasks:` part of a recipe, in its order; `defaults` (`task_defaults:`) fill in what a task does not say.

    Besides the full form, `name: binary` is short for `name: {kind: binary}`, and `labels` with a kind of
    one label column makes one task a column, named as the column, with the entry's name as `group`:

    >>> [task.name for task in expand_tasks({"assays": {"kind": "binary", "labels": ["NR-AR", "SR-p53"]}})]
    ['NR-AR', 'SR-p53']
    """
    defaults = dict(defaults or {})
    _check_keys(defaults, "task_defaults")
    if not isinstance(tasks, Mapping) or not tasks:
        raise BadValue("tasks", tasks, "a mapping with at least one task: {name: {kind: ...}}")
    expanded: dict[str, Task] = {}
    for name, entry in tasks.items():
        for task in _expand_one(str(name), entry, defaults):
            if task.name in expanded:
                raise BadValue("the name of a task", task.name, "each name once", f"tasks.{name}")
            expanded[task.name] = task
    for task in expanded.values():
        _check_product(task, expanded)
    return list(expanded.values())


def _check_product(task: Task, tasks: Mapping[str, Task]) -> None:
    """Its factors are binary tasks with heads of their own, from the same source."""
    where = f"tasks.{task.name}.product_of"
    if task.product_of is not None and (len(task.product_of) < 2 or _repeats(task.product_of)):
        raise BadValue("product_of", list(task.product_of), "two or more tasks, each once", where)
    for name in task.product_of or ():
        if name not in tasks:
            raise UnknownName("task", name, tasks, where)
        factor = tasks[name]
        if factor.kind != "binary" or factor.product_of is not None:
            found = f"{name!r}, {'itself a product' if factor.product_of else f'of kind {factor.kind!r}'}"
            raise BadValue("a factor", found, "a binary task that is no product", where)
        if factor.role == "training_only" and task.role != "training_only":
            raise BadValue("role", factor.role, f"{task.role}, as its product {task.name!r} stays in the model", where)
        if factor.sources != task.sources:
            raise BadValue("source", factor.source, f"{task.source}, as that of its product {task.name!r}", where)


def _expand_one(name: str, entry: Any, defaults: dict[str, Any]) -> list[Task]:
    where = f"tasks.{name}"
    if isinstance(entry, Task):
        return [entry]
    fields = {"kind": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, Mapping):
        raise BadValue("a task", entry, "a mapping {kind: ..., label: ...} or the name of a kind", where)
    _check_keys(fields, where)
    fields = {**defaults, **fields}
    if "kind" not in fields:
        raise MissingInput(f"{where}: a task needs a kind; allowed: {', '.join(KINDS.names())}")
    if fields.get("labels") is None or "labels" in _find_kind(fields["kind"], where).options:
        return [_validated(name, fields)]
    columns = fields.pop("labels")
    is_list = isinstance(columns, list | tuple) and all(isinstance(column, str) for column in columns)
    if not is_list or not columns or "label" in fields:
        raise BadValue("labels", columns, "a list of columns, and no `label` beside it", where)
    return [_validated(column, {"group": name, **fields, "label": column}) for column in columns]


def _repeats(values: tuple[Any, ...]) -> bool:
    return len({(isinstance(value, bool), value) for value in values}) < len(values)  # True == 1, and yet they differ


def _find_kind(name: Any, where: str) -> Kind:
    if name not in KINDS:
        raise UnknownName("kind", name, KINDS.names(), where)
    return KINDS.find(name)


def _check_keys(fields: Mapping[str, Any], where: str) -> None:
    keys = [key for key in Task.model_fields if key != "name"]
    for key in fields:
        if key not in keys:
            raise UnknownName("key", key, keys, where)


def _validated(name: str, fields: Mapping[str, Any]) -> Task:
    """The task; pydantic's report is turned into one typed line about the first mistake."""
    try:
        return Task(name=name, **fields)
    except ValidationError as error:
        first = first_mistake(error)
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] in UNKNOWN_KEY:  # the task's own keys are checked before
            raise UnknownName("key", first["loc"][-1], HeadSpec.model_fields, f"tasks.{name}.head") from None
        raise typed(first, place, f"tasks.{name}") from None
