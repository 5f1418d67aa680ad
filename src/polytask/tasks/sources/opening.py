"""From what a recipe says about a source to its raw rows."""

from pathlib import Path
from typing import Any

from polytask.core.errors import MissingInput
from polytask.tasks.data_spec import MADE, ORIGINS, RowsSpec, SourceSpec, SplitSpec
from polytask.tasks.names import GENERATED, SOURCES
from polytask.tasks.origins import missing_file
from polytask.tasks.sources.arrays import rows_from_npz, rows_from_python
from polytask.tasks.sources.folders import rows_from_folder
from polytask.tasks.sources.raw import FrameRows, RawRows
from polytask.tasks.task import Task


def resolve(name: str, data_dir: Path | None, beside: Path | None) -> Path:
    """The path under the data folder, else beside the recipe, else from the working directory; it need not exist.

    A glob counts as existing where it matches something.
    """
    places = [place for place in (data_dir, beside, Path()) if place is not None]
    for place in places:
        path = place / Path(name).expanduser()
        if path.exists() or (_is_glob(name) and any(place.glob(name) if not Path(name).is_absolute() else _glob(path))):
            return path
    raise missing_file(name, [place / name for place in places])


def open_rows(
    name: str,
    spec: SourceSpec,
    tasks: list[Task],
    *,
    data_dir: Path | None,
    beside: Path | None,
    handed_over: Any = None,
) -> RawRows:
    """Raises: DataError when a file is missing, damaged or empty; MissingInput when nothing says where the rows are."""
    if handed_over is not None:
        return rows_from_python(handed_over, tasks, f"source {name!r}")
    if spec.builtin is not None:
        return _builtin(name, spec.builtin, spec)
    if spec.origin in GENERATED.names():
        made = GENERATED.find(spec.origin)(getattr(spec, spec.origin), _rows(spec), spec.seed)
        return FrameRows(made, f"source {name!r} ({spec.origin})")
    located = spec.table or spec.images or spec.arrays
    if located is None:
        raise MissingInput(
            f"source {name!r}: say where the rows are ({', '.join(ORIGINS)}), or hand them over from Python"
        )
    path = resolve(located, data_dir, beside)
    if spec.arrays is not None:
        return rows_from_folder(path) if path.is_dir() else rows_from_npz(path)
    from polytask.tasks.sources.join import joined
    from polytask.tasks.sources.table import open_table

    rows = open_table(path)
    for other, column in spec.join.items():
        rows = joined(rows, open_table(resolve(other, data_dir, beside)), column)
    return rows


def image_root(spec: SourceSpec, data_dir: Path | None, beside: Path | None) -> Path | None:
    """The folder that the paths of an image table start from."""
    if spec.images is None:
        return None
    return (
        resolve(spec.root, data_dir, beside) if spec.root is not None else resolve(spec.images, data_dir, beside).parent
    )


def effective_split(spec: SourceSpec) -> SplitSpec:
    """The declared split; builtin data has a column for it; else the default fractions at random."""
    if spec.split is not None:
        return spec.split
    return SplitSpec(column="split") if spec.origin in MADE else SplitSpec()


def _builtin(name: str, bundled: str, spec: SourceSpec) -> FrameRows:
    return FrameRows(SOURCES.find(bundled)(_rows(spec), spec.seed), f"source {name!r} (builtin {bundled})")


def _rows(spec: SourceSpec) -> dict[str, int]:
    return spec.rows.model_dump(exclude_none=True) if isinstance(spec.rows, RowsSpec) else {}


def _is_glob(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _glob(path: Path) -> list[Path]:
    return list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
