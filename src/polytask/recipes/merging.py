"""`polytask.merge`: what the command does, from Python; a learned merge gets its data from the runs that are merged."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polytask.merging.plan import MergePlan
from polytask.merging.run import merge as run
from polytask.merging.samples import Samples
from polytask.merging.settling import Bridge


def merge(
    plan: str | Path | Mapping[str, Any] | MergePlan,
    *,
    out: str | Path,
    settings: Mapping[str, Any] | Sequence[str] = (),
    samples: Samples | None = None,
    data: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    compatible: bool = False,
    offline: bool = False,
    dry_run: bool = False,
    memory: int | str = "300MiB",
    workers: int | None = None,
    whole_hashes: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Merges models into one directory, and returns what was done.

    Args:
        plan: a plan's file or content, ours or mergekit's.
        out: the directory; written whole or not at all, one that is there is replaced if it is a merge.
        settings: changes to the plan, {"rule.density": 0.2}.
        samples: the data of a learned merge of any models, see `polytask.merging.samples`.
        data: of a learned merge of polytask's runs that were trained on rows from Python, {task: {source: rows}}.
        data_dir: where the runs' tables are looked for before the plan's folder.
        compatible: of a mergekit file, follow mergekit's documented formulas where the papers' differ.
        offline: never ask the hub, only its cache.
        dry_run: check everything, write nothing.
        memory: most anonymous memory beyond the interpreter's while tensors are merged, 300MiB or in bytes.
        workers: default: the processors that this process may use.
        whole_hashes: identify inputs by the SHA-256 of all their bytes; else of large files by samples.
        progress: called with (done, all): first steps of a learned merge, then elements, from any thread.
    """
    return run(
        plan,
        out=out,
        settings=settings,
        samples=samples,
        bridge=_bridge(data, data_dir),
        compatible=compatible,
        offline=offline,
        dry_run=dry_run,
        memory=memory,
        workers=workers,
        whole_hashes=whole_hashes,
        progress=progress,
    )


def _bridge(data: Mapping[str, Any] | None, data_dir: str | Path | None) -> Bridge:
    """From the runs' directories; what reads them is imported by a merge that wants data."""

    def made(*arguments: Any) -> Samples:
        from polytask.evaluation.run_samples import run_samples

        return run_samples(*arguments, data_dir=None if data_dir is None else Path(data_dir), data=data)

    return made
