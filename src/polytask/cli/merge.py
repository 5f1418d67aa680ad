"""`polytask merge`: many fine-tuned models into one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from polytask.cli.options import AsJson, DataDir, Out

EXAMPLES = (
    "polytask merge plan.yaml --out merged",
    "polytask merge --rule ties --base base --task a=first --task b=second --out merged",
    "polytask merge mergekit.yaml --out merged --dry-run",
)


def merge(
    plan: Annotated[str | None, typer.Argument(metavar="PLAN", help="A plan, or a mergekit file.")] = None,
    *,
    out: Out,
    rule: Annotated[str | None, typer.Option("--rule", metavar="NAME", help="Without a plan: how to merge.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="What the tasks' models were fine-tuned from.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME=MODEL", help="A model to merge; repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a value of the plan: rule.density=0.2; repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and show what would be done.")] = False,
    compat: Annotated[
        str | None, typer.Option("--compat", metavar="mergekit", help="Follow mergekit's formulas, of its files.")
    ] = None,
    data_dir: DataDir = None,
    offline: Annotated[bool, typer.Option("--offline", help="Models from the Hugging Face cache only.")] = False,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Most memory to use.")] = "300MiB",
    workers: Annotated[int | None, typer.Option("--workers", metavar="N", min=1, help="Processors to use.")] = None,
    whole_hashes: Annotated[
        bool, typer.Option("--whole-hashes", help="Identify large inputs by all their bytes, not by samples.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Merge fine-tuned models into one, and measure how much they interfere.

    MODEL is a directory, a file, or a hub id from the Hugging Face cache; @revision and +adapter may follow. Everything
    is checked before the first tensor is merged; DIR appears whole or not at all, and the same command continues after
    an interruption.
    """
    from polytask.cli.options import data_folder
    from polytask.cli.showing import show_json
    from polytask.core.errors import BadValue

    if compat not in (None, "mergekit"):
        raise BadValue("--compat", compat, "mergekit")
    given, changes = _plan(plan, rule, base, task or [], settings or [])
    options: dict[str, Any] = {"compatible": compat is not None, "offline": offline, "memory": memory}
    options |= {"workers": workers, "whole_hashes": whole_hashes, "data_dir": data_folder(data_dir)}
    found = _merged(given, out, changes, dry_run, options, quiet=as_json)
    if as_json:
        show_json(found)
    else:
        _show(found)


def _plan(
    plan: str | None, rule: str | None, base: str | None, tasks: list[str], settings: list[str]
) -> tuple[Any, list[str]]:
    """The plan's file, or a plan from the options; and the changes, in which a plan of options needs no `rule.`."""
    from polytask.core.errors import BadValue, MissingInput

    if plan is not None:
        for option, value in (("--rule", rule), ("--base", base), ("--task", tasks)):
            if value:
                raise BadValue(option, value, f"nothing beside a plan; change the plan's with --set ({plan})")
        return plan, settings
    if rule is None or not tasks:
        raise MissingInput("a merge needs PLAN, or --rule NAME and --task NAME=MODEL")
    changes = [_of_rule(setting) for setting in settings]
    return {"version": 1, "base": base, "tasks": named_models(tasks), "rule": {"kind": rule, "parameters": {}}}, changes


def named_models(tasks: list[str]) -> dict[str, str]:
    """`NAME=MODEL` of each --task, name -> model."""
    from polytask.core.errors import BadValue

    models: dict[str, str] = {}
    for given in tasks:
        name, equals, model = given.partition("=")
        if not equals or not name or not model:
            raise BadValue("--task", given, "NAME=MODEL, such as --task reviews=models/reviews")
        if name in models:
            raise BadValue("--task", given, f"a name that is not taken; {name} is {models[name]}")
        models[name] = model
    return models


def _of_rule(setting: str) -> str:
    from polytask.merging.plan import MergePlan

    head = setting.partition("=")[0].partition(".")[0].strip()
    return setting if head in MergePlan.model_fields else f"rule.{setting}"


def _merged(plan: Any, out: Path, changes: list[str], dry_run: bool, options: dict[str, Any], quiet: bool) -> Any:
    from polytask.cli.work_progress import WorkProgress
    from polytask.recipes.merging import merge as run

    with WorkProgress("merging", shown=not quiet and not dry_run) as progress:
        return run(plan, out=out, settings=changes, dry_run=dry_run, progress=progress.update, **options)


def _show(found: Mapping[str, Any]) -> None:
    from polytask.cli.showing import console

    screen = console()
    for line in found["departures"]:
        screen.print(f"differs from mergekit: {line}", soft_wrap=True, markup=False)
    for line in found["notes"]:
        screen.print(f"note: {line}", soft_wrap=True, markup=False)
    tensors = found["tensors"]
    rule = found["plan"]["rule"]["kind"]
    would = "would be " if found["dry_run"] else ""
    for name, about in found["read"].items():
        screen.print(f"{name}: {about['model']} ({size_in_words(about['bytes'])})", soft_wrap=True, markup=False)
    for line in _data_lines(found):
        screen.print(line, soft_wrap=True, markup=False)
    screen.print(
        f"{tensors['merged']:,} tensors {would}merged by {rule}, {tensors['taken']:,} taken over, "
        f"{len(tensors['left_out']):,} left out; {found['parameters']:,} parameters.",
        soft_wrap=True,
    )
    if found["dry_run"]:
        files = ", ".join(["the weights", *found["write"]["files"]])
        screen.print(
            f"{found['out']} would get {size_in_words(found['write']['bytes'])}: {files}.", soft_wrap=True, markup=False
        )
        return
    _show_interference(found, screen)
    out = found["out"]
    screen.print(f"{size_in_words(found['bytes_written'])} written in {found['seconds']:.1f} s.", soft_wrap=True)
    screen.print(f"\nThe model:   {out}", soft_wrap=True, markup=False)
    screen.print(f"The report:  polytask report {out}", soft_wrap=True, markup=False)


def _data_lines(found: Mapping[str, Any]) -> list[str]:
    """What a learned merge reads of each task, or has read."""
    lines = []
    for task, about in found.get("learned", found).get("data", {}).items():
        labels = "with labels" if about["labels"] else "without labels"
        if about.get("rows") is None:
            lines.append(f"{task}: {about['batches']} batches from Python, {labels}")
            continue
        seen = f", {about['rows_seen']:,} of them read" if "rows_seen" in about else ""
        sources = ", ".join(about["from"])
        lines.append(f"{task}: {about['rows']:,} rows of {sources} ({about['split']}), {labels}{seen}")
    return lines


def _show_interference(found: Mapping[str, Any], screen: Any) -> None:
    """The pair of tasks that disagrees most."""
    tasks, whole = list(found["plan"]["tasks"]), found["interference"]
    pairs = [
        (whole["cosines"][i][j], whole["conflicts"][i][j], first, second)
        for i, first in enumerate(tasks)
        for j, second in enumerate(tasks)
        if i < j and whole["cosines"][i][j] is not None
    ]
    if not pairs:
        return
    cosine, conflict, first, second = min(pairs, key=lambda pair: pair[0])
    signs = "" if conflict is None else f", {100 * conflict:.0f} % of their signs differ"
    screen.print(f"Least alike: {first} and {second}, cosine {cosine:.2f}{signs}.", soft_wrap=True, markup=False)


def size_in_words(count: int) -> str:
    """Bytes as people read them."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:,.0f} bytes" if units[0] == "bytes" else f"{value:,.1f} {units[0]}"
