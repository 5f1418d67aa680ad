"""The `data:` part of a recipe. Reading it loads neither polars nor any optional package."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from polytask.tasks.features.options import AnyOptions, NumberOptions, NumericOptions
from polytask.tasks.names import GENERATED, SOURCES

SPLITS = ("train", "valid", "test")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitSpec(_Strict):
    """Which rows train, select and test. One of these ways; `split: name` is short for `split: {column: name}`.

    column: a column that says it (the values "train", "valid" and "test", or those given as train, valid, test).
    time: rows in the order of this column; the latest are the test rows. group: rows with one value here stay together.
    scaffold: molecules with one Bemis-Murcko scaffold stay together, the rarest scaffolds are the test rows.
    None of them: rows at random. `fractions` are the shares of train, valid and test.
    """

    column: str | None = None
    train: Any = None
    valid: Any = None
    test: Any = None
    time: str | None = None
    group: str | None = None
    scaffold: str | None = None
    fractions: tuple[float, float, float] | None = None
    seed: int | None = None

    @property
    def kind(self) -> str:
        return next(
            (kind for kind in ("column", "time", "group", "scaffold") if getattr(self, kind) is not None), "fractions"
        )

    @property
    def by(self) -> str:
        """The column that decides; without one ("fractions"), no column at all."""
        return getattr(self, self.kind) if self.kind != "fractions" else ""

    @model_validator(mode="after")
    def _check(self) -> "SplitSpec":
        ways = [kind for kind in ("column", "time", "group", "scaffold") if getattr(self, kind) is not None]
        if len(ways) > 1:
            raise ValueError(f"a split has one of column, time, group, scaffold; found {' and '.join(ways)}")
        if self.kind == "column" and (self.fractions is not None or self.seed is not None):
            raise ValueError("a split by column takes no fractions and no seed")
        if self.kind != "column" and any(getattr(self, split) is not None for split in SPLITS):
            raise ValueError("train, valid and test name values of a split column: give `column` too")
        if self.kind in ("time", "scaffold") and self.seed is not None:
            raise ValueError(f"a split by {self.kind} draws nothing, so it takes no seed")
        if self.kind != "column":
            fractions = self.fractions or (0.8, 0.1, 0.1)
            if min(fractions) < 0 or fractions[0] == 0 or abs(sum(fractions) - 1) > 1e-6:
                raise ValueError(
                    f"fractions {list(fractions)}: allowed are three shares of train, valid and test that sum to 1"
                )
        return self


class StreamSpec(_Strict):
    """Rows read from disk block by block and shuffled within a buffer, for tables larger than memory."""

    buffer_rows: int = Field(default=200_000, ge=1)
    block_rows: int = Field(default=50_000, ge=1)


class RowsSpec(_Strict):
    """At most so many rows of each split; null keeps all."""

    train: int | None = Field(default=None, ge=1)
    valid: int | None = Field(default=None, ge=1)
    test: int | None = Field(default=None, ge=1)


def _split(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


def _known(name: str) -> str:
    SOURCES.find(name)
    return name


def _stream(value: Any) -> Any:
    return StreamSpec() if value is True else value


class SceneSpec(_Strict):
    """Generated pictures with a class, a depth, a normal and an edge for each pixel.

    size: height and width. objects: of each picture, beside floor and wall. missing: the share of each map's labels
    that is left out, cell by cell.
    """

    size: tuple[Annotated[int, Field(ge=4)], Annotated[int, Field(ge=4)]] = (48, 64)
    objects: int = Field(default=4, ge=1)
    missing: float = Field(default=0.0, ge=0, lt=1)


class SyntheticSpec(_Strict):
    """A generated table of regression tasks that are related as one says.

    tasks: how many; labels y1, y2, ... columns: features x1, x2, ..., at least as many as tasks. correlation: of any
    two tasks' linear parts, or a matrix with a row a task. complexity: how many sines a label has beyond its linear
    part, a number for all tasks or one for each. noise: standard deviation of what is added to a label. missing: the
    share of each task's training labels that is left out.
    """

    tasks: int = Field(default=4, ge=1)
    columns: int = Field(default=32, ge=1)
    correlation: Annotated[float, Field(ge=-1, le=1)] | tuple[tuple[float, ...], ...] = 0.5
    complexity: Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=0)], ...] = 3
    noise: float = Field(default=0.1, ge=0)
    missing: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> "SyntheticSpec":
        if self.columns < self.tasks:
            raise ValueError(f"columns is {self.columns}; allowed: at least the number of tasks, {self.tasks}")
        if isinstance(self.complexity, tuple) and len(self.complexity) != self.tasks:
            raise ValueError(f"complexity has {len(self.complexity)} numbers; allowed: one, or {self.tasks}")
        return self


class SensorSpec(_Strict):
    """The pictures of two handwritten digits (`builtin: multidigits`) as another sensor would see them.

    size: height and width. style: `plain`, `inverted` (both of one channel), `colours` of ink and paper that differ
    from picture to picture, or `edges` (both of three). pairs: another number pairs the digits otherwise.
    """

    size: tuple[Annotated[int, Field(ge=4)], Annotated[int, Field(ge=4)]] = (28, 28)
    style: Literal["plain", "inverted", "colours", "edges"] = "plain"
    pairs: int = Field(default=0, ge=0)


class GraphSpec(_Strict):
    """Generated graphs whose nodes belong to communities.

    interest: what a row asks about: the community of a `node`, whether the ends of a `link` are of the same one, or the
    largest of a `graph`. nodes: least and most of a graph. communities: how many. inside, between: how often two nodes
    of the same and of different communities are joined. shown: the share of nodes whose numbers tell their community.
    """

    interest: Literal["node", "link", "graph"] = "graph"
    nodes: tuple[Annotated[int, Field(ge=2)], Annotated[int, Field(ge=2)]] = (8, 16)
    communities: int = Field(default=3, ge=2)
    inside: float = Field(default=0.6, ge=0, le=1)
    between: float = Field(default=0.05, ge=0, le=1)
    shown: float = Field(default=0.6, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "GraphSpec":
        if self.nodes[0] > self.nodes[1]:
            raise ValueError(f"nodes is {list(self.nodes)}; allowed: the least and then the most")
        return self


MADE = ("builtin", *GENERATED.names())
"""Origins whose rows come with a split and in the number that is asked for."""

ORIGINS = ("table", "arrays", "images", *MADE)
"""The fields of a source that say where the rows are."""


class SourceSpec(_Strict):
    """One source of rows.

    table: file, directory or glob of .parquet or .csv. arrays: an .npz file, one column an array, or a folder
    SPLIT/COLUMN/ROW.npy. images: a table with the paths of images in a column of kind image, relative to `root`
    (default: the table's folder). builtin: bundled data. scenes, synthetic, graphs: generated pictures, table, graphs.
    sensor: the bundled pictures seen otherwise.
    None of these: rows handed over from Python under the source's name.
    join: more columns of a table's rows, {another table: the column that both have}.
    features: column -> kind, where the column's type does not say enough; numeric: what other number columns are.
    rows: a seeded sample, of the whole table (a number) or of each split. degenerate: what to do with a task that has
    one class in training. stream: null streams tables above 2 GB on disk, true or {buffer_rows: N} always, false never.
    """

    table: str | None = None
    arrays: str | None = None
    images: str | None = None
    root: str | None = None
    join: dict[str, str] = Field(default_factory=dict)
    builtin: Annotated[str, AfterValidator(_known), WithJsonSchema({"enum": SOURCES.names()})] | None = None
    scenes: SceneSpec | None = None
    synthetic: SyntheticSpec | None = None
    sensor: SensorSpec | None = None
    graphs: GraphSpec | None = None
    split: Annotated[SplitSpec | None, BeforeValidator(_split)] = None
    drop: tuple[str, ...] = ()
    features: dict[str, AnyOptions] = Field(default_factory=dict)
    numeric: NumberOptions = NumericOptions()
    degenerate: Literal["error", "drop", "keep"] = "error"
    stream: Annotated[StreamSpec | Literal[False] | None, BeforeValidator(_stream)] = None
    rows: Annotated[int, Field(ge=1)] | RowsSpec | None = None
    seed: int = 0

    @property
    def origin(self) -> str | None:
        """Which field says where the rows are; None when Python hands them over."""
        return next((field for field in ORIGINS if getattr(self, field) is not None), None)

    @model_validator(mode="after")
    def _check_origin(self) -> "SourceSpec":
        ways = (*ORIGINS, "sources")
        given = [field for field in ways if getattr(self, field, None)]
        if len(given) > 1:
            raise ValueError(f"a source has one of {', '.join(ways)}; found {' and '.join(given)}")
        if self.root is not None and self.images is None:
            raise ValueError("root goes with images")
        if self.join and self.origin not in ("table", "images"):
            raise ValueError("join goes with table or images")
        made = self.origin in MADE
        if made and (self.split or self.stream or isinstance(self.rows, int)):
            has = "scenes have their own split, and take" if self.scenes else "data has its own split, and takes"
            what = has if self.scenes else f"{self.origin} {has}"
            raise ValueError(f"{what} rows as {{train: n, valid: n, test: n}}")
        return self


class DataSpec(SourceSpec):
    """One source for all tasks, or named `sources`, for which split, drop, features and the like are the defaults."""

    sources: dict[str, SourceSpec] | None = Field(default=None, min_length=1)

    def named_sources(self, handed_over: tuple[str, ...] = ()) -> dict[str, SourceSpec]:
        """name -> the source with the defaults filled in; `handed_over`: names of the data given from Python.

        A single source without a name is called "data".
        """
        defaults = {
            field: getattr(self, field)
            for field in SourceSpec.model_fields
            if field in self.model_fields_set and self.origin is None
        }
        if self.sources is None and self.origin is not None:
            return {
                "data": SourceSpec(
                    **{field: getattr(self, field) for field in self.model_fields_set if field != "sources"}
                )
            }
        named = dict(self.sources or {})
        for name in handed_over:
            named.setdefault(name, SourceSpec())
        return {name: self._merged(defaults, spec) for name, spec in named.items()}

    @staticmethod
    def _merged(defaults: dict[str, Any], spec: SourceSpec) -> SourceSpec:
        return SourceSpec(**{**defaults, **{field: getattr(spec, field) for field in spec.model_fields_set}})
