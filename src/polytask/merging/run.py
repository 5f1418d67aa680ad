"""`polytask.merge`: from a plan to a merged model's directory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from polytask.checkpoints.checkpoint import CARD, README
from polytask.checkpoints.directory import json_bytes, read_json
from polytask.checkpoints.hashing import facts_of, identified
from polytask.core.errors import CheckpointError
from polytask.merging import driver
from polytask.merging.assembly import Assembly, assemble
from polytask.merging.card import card, readme
from polytask.merging.carried import carried
from polytask.merging.inputs import Inputs, open_inputs
from polytask.merging.outcome import MergeReport
from polytask.merging.pipelines import Pipelines
from polytask.merging.plan import MergePlan, size_in_bytes
from polytask.merging.plan_file import Read, read_plan
from polytask.merging.preflight import check_configs, check_parents, check_space, output_bytes
from polytask.merging.samples import Samples
from polytask.merging.settling import Bridge, Learning, Settled, learned_of, provisional, samples_of
from polytask.merging.summary import FILE as INTERFERENCE
from polytask.merging.summary import interference
from polytask.merging.tokenizers import check_tokenizers

PLAN = "plan.yaml"


def merge(
    plan: str | Path | Mapping[str, Any] | MergePlan,
    *,
    out: str | Path,
    settings: Mapping[str, Any] | Sequence[str] = (),
    compatible: bool = False,
    offline: bool = False,
    dry_run: bool = False,
    memory: int | str = driver.MEMORY,
    workers: int | None = None,
    whole_hashes: bool = False,
    samples: Samples | None = None,
    bridge: Bridge | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Merges models into one directory, and returns what was done.

    Args:
        memory, workers: see `driver.merge`.
        samples: the data of a learned merge, from Python.
        bridge: makes it from the models' own directories, where none is handed over.
        The others as in `polytask.merge`.
    """
    read = read_plan(plan, settings, compatible=compatible)
    out = Path(out)
    _check_out(out)
    spec = learned_of(read.plan)
    plan = read.plan if spec is None else provisional(read.plan)
    Pipelines(plan)  # spelling first: it needs no model
    inputs = open_inputs(plan, read.places, offline=offline)
    try:
        check_configs(plan, inputs)
        check_tokenizers(plan, inputs)
        assembly = assemble(plan, inputs)
        written = output_bytes(assembly.jobs)
        check_parents(plan, inputs, assembly.jobs)
        found = described(read, inputs, assembly, written)
        settled = learning = None
        if spec is not None:
            learning = Learning(spec, read.plan, assembly, samples_of(read, inputs, spec, samples, bridge))
            found["data"] = learning.data()
        if dry_run:  # else the driver looks, who knows what an interrupted merge has left
            check_space(assembly.jobs, out)
            return {**found, "out": str(out), "dry_run": True}
        if learning is not None:
            settled = learning.run(progress or _say_nothing)
            read, assembly = replace(read, plan=settled.plan), settled.assembled(inputs, assembly)
            found["learned"] = settled.about
        report = driver.merge(
            assembly.jobs,
            out,
            seed=read.plan.seed,
            memory=size_in_bytes(memory, "memory"),
            workers=workers,
            shard_size=size_in_bytes(read.plan.shard_size),
            files=lambda report, folder: _files(read, inputs, assembly, report, folder, whole_hashes, settled),
            progress=progress,
        )
    finally:
        inputs.close()
    return {**found, "out": str(out), "dry_run": False, **_outcome(report, read_json(out / INTERFERENCE))}


def _say_nothing(done: int, total: int) -> None: ...


def described(read: Read, inputs: Inputs, assembly: Assembly, written: int) -> dict[str, Any]:
    """What is read, merged and written, as plain data."""
    plan = read.plan
    donor, _ = inputs.donor(plan)
    return {
        "plan": plan.resolved(),
        "departures": list(read.departures),
        "notes": [*assembly.notes, *_same_files(inputs)],
        "read": {name: _read(model.reference, model.weights.files()) for name, model in inputs.named.items()},
        "tensors": {
            "merged": len(assembly.merged),
            "taken": len(assembly.jobs) - len(assembly.merged),
            "left_out": assembly.left_out,
        },
        "parameters": sum(job.elements for job in assembly.jobs),
        "donor": donor,
        "write": {"bytes": written, "files": sorted(carried(plan, inputs, assembly))},
    }


def _same_files(inputs: Inputs) -> list[str]:
    """A line for each input that is the same files as one before it."""
    seen: dict[tuple[Path, ...], str] = {}
    lines = []
    for name, model in inputs.named.items():
        first = seen.setdefault(tuple(Path(file).resolve() for file in model.weights.files()), name)
        if first != name:
            lines.append(f"{name} is the same as {first}: {model.reference}")
    return lines


def _read(reference: str, files: Sequence[Path]) -> dict[str, Any]:
    return {"model": reference, "files": len(files), "bytes": sum(Path(file).stat().st_size for file in files)}


def _files(
    read: Read,
    inputs: Inputs,
    assembly: Assembly,
    report: MergeReport,
    folder: Path,
    whole_hashes: bool,
    settled: Settled | None,
) -> dict[str, bytes | Path]:
    """What the output has beside its weights, which lie in `folder`; the card lists all but itself and README.md."""
    plan_text = yaml.safe_dump(read.plan.resolved(), sort_keys=False, allow_unicode=True)
    files = {
        **carried(read.plan, inputs, assembly),
        PLAN: plan_text.encode(),
        INTERFERENCE: json_bytes(interference(report, list(read.plan.tasks))),
        **({} if settled is None else settled.files()),
    }
    about = card(read.plan, inputs, assembly, [*read.departures, *assembly.notes], whole_hashes=whole_hashes)
    if settled is not None:
        about |= {"rule": settled.about["rule"], "learned": settled.about}
    weights = {name: identified(folder / name, whole=whole_hashes) for name in report.files}
    about["files"] = weights | {name: facts_of(content) for name, content in files.items()}
    return {**files, CARD: json_bytes(about), README: readme(about, plan_text).encode()}


def _outcome(report: MergeReport, found: Mapping[str, Any]) -> dict[str, Any]:
    """What was done; `found` is what stands in interference.json."""
    return {
        "files": report.files,
        "bytes_read": report.bytes_read,
        "bytes_written": report.bytes_written,
        "seconds": report.seconds,
        "shards_kept": report.shards_kept,
        "interference": found["whole"],
        "weights": found["weights"],
    }


def _check_out(out: Path) -> None:
    """A directory is replaced only if a merge wrote it."""
    if out.is_file():
        raise CheckpointError(f"{out}: is a file; name a directory")
    if out.is_dir() and any(out.iterdir()) and not (out / PLAN).is_file():
        raise CheckpointError(f"{out}: not empty and no merge ({PLAN} is not there); name another directory")
