"""`polytask rules`: what balances tasks or merges models, and what each rule needs."""

import re
from typing import Annotated, Any

import typer

from polytask.cli.options import AsJson

EXAMPLES = ("polytask rules", "polytask rules upgrad", "polytask rules ties", "polytask rules --json")


def rules(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One rule, in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the rules that balance tasks or merge checkpoints, and attachments; NAME shows one in full."""
    from polytask.cli import attachments, merges
    from polytask.cli.showing import show_json
    from polytask.core.catalogue import documentation, load_entry_points
    from polytask.core.errors import UnknownName
    from polytask.core.rules import find, rule_names

    load_entry_points()
    of_merges = [*merges.methods(), *merges.learned(), *merges.transforms()]
    every = [*rule_names(), *attachments.ATTACHMENTS.names(), *dict.fromkeys(spec.name for spec in of_merges)]
    if name is not None and name not in every:
        raise UnknownName("rule", name, every)
    specs = [find(rule) for rule in rule_names() if name in (None, rule)]
    attached = [each for each in attachments.ATTACHMENTS.names() if name in (None, each)]
    merging = [spec for spec in of_merges if name in (None, spec.name)]
    if as_json:
        described = [_described(spec) for spec in specs] + [attachments.described(each) for each in attached]
        described += [merges.described(each) for each in merging]
        show_json(described if name is None else described[0])
    elif name is None:
        _list(specs, attachments.listed())
    elif specs:
        _show(specs[0])
    elif attached:
        heading, fields = documented(documentation(attachments.ATTACHMENTS.find(name)))
        _print_one(name, heading, fields + attachments.fields(name))
    else:
        for spec in merging:  # a method may have the name of its transform
            heading, fields = documented(documentation(spec.function))
            _print_one(name, heading, fields + merges.fields(spec))


def _described(spec: Any) -> dict[str, Any]:
    return {
        "name": spec.name,
        "form": spec.form,
        "summary": spec.summary,
        "source": spec.source,
        "needs": list(spec.needs),
        "granularity": spec.granularity,
        "returns": spec.returns,
        "scale": spec.scale,
        "claims": sorted(spec.claims),
        "parameters": {
            parameter: {"default": about.default, "allowed": about.allowed}
            for parameter, about in spec.parameters.items()
        },
        "random": spec.random,
        "remembers_gradients": spec.tracker is not None,
        "calls": _calls(spec),
    }


def _calls(spec: Any) -> list[str]:
    """What a training loop calls, in order."""
    more = [name for name, needs in _ARGUMENTS.items() if needs & {*spec.needs}]
    losses = "[losses_a, losses_b, losses_c]" if spec.double_sampling else "losses"
    arguments = ", ".join([losses, "model", *(f"{name}={name}" for name in more)])
    calls = [f"balancer.backward({arguments})", "optimizer.step()"]
    if spec.after_step is not None:
        calls.append("balancer.after_step(losses)")
    if spec.after_epoch is not None:
        calls.append("balancer.after_epoch()")
    return calls


_ARGUMENTS = {"forward": {"forward", "validation"}, "counts": {"counts"}}  # of backward -> needs that it serves


def _list(specs: list[Any], attached: list[tuple[str, str]]) -> None:
    from polytask.cli import merges
    from polytask.cli.showing import console

    screen = console()
    screen.print(
        "Rules that balance tasks while they train; those that need gram or stack alone merge too:\n", soft_wrap=True
    )
    screen.print(_grid([_row(spec) for spec in specs if not _merges(spec)]))
    screen.print("\nRules that merge models:\n", soft_wrap=True)
    screen.print(_grid([_row(spec) for spec in specs if _merges(spec)]))
    screen.print("\nAttachments, at the representation that tasks share, beside any rule:\n", soft_wrap=True)
    screen.print(_grid(attached))
    of_merges = {
        merges.HEADING: merges.methods(),
        merges.LEARNED: merges.learned(),
        merges.TRANSFORMS: merges.transforms(),
    }
    for heading, specs_of in of_merges.items():
        screen.print(f"\n{heading}\n", soft_wrap=True)
        screen.print(_grid(merges.listed(specs_of)))
    text = "One in full: polytask rules NAME. In a recipe: train: {rule: NAME, attachments: [NAME]}."
    screen.print(f"\n{text}", soft_wrap=True, markup=False)


def _row(spec: Any) -> tuple[str, str]:
    about = spec.summary.partition(": ")[2] or spec.summary
    parameters = f"; parameters {', '.join(spec.parameters)}" if spec.parameters else ""
    return spec.name, f"{about}\nneeds {' and '.join(spec.needs)}{parameters}; {spec.source}"


def _merges(spec: Any) -> bool:
    """Whether a rule was written for merging, not for training."""
    return spec.function.__module__.startswith("polytask.merging.")


def _show(spec: Any) -> None:
    from polytask.core.catalogue import documentation
    from polytask.core.rules import CLAIMS, NEEDS
    from polytask.merging.contract import on_vectors

    heading, fields = documented(documentation(spec.function))
    if not any(name == "Source" for name, _ in fields):
        fields = [("Source", spec.source), *fields]
    shape = _RETURNS[spec.returns]
    about = [f"{name}: {about.allowed}; default {about.default!r}" for name, about in spec.parameters.items()]
    claims = [f"{claim}: {CLAIMS[claim]}" for claim in CLAIMS if claim in spec.claims]
    rows = [
        *fields,
        ("Needs", "\n".join(f"{need}: {NEEDS[need]}" for need in spec.needs)),
        ("Returns", f"{shape}, {_SCALES[spec.scale]}"),
        ("Parameters", "\n".join(about) or "none"),
        ("Promises", "\n".join(claims) or "none"),
        ("In a loop", "\n".join([f"balancer = polytask.balancer({spec.name!r})", *_calls(spec)])),
        ("In a recipe", f"train: {{rule: {spec.name}}}"),
        *([("In a merge", f"polytask merge --rule {spec.name} ...")] if on_vectors(spec) else []),
    ]
    _print_one(spec.name, heading, rows)


def _print_one(name: str, heading: str, rows: list[tuple[str, str]]) -> None:
    from polytask.cli.showing import console

    screen = console()
    screen.print(f"{name}\n", style="bold", markup=False)
    screen.print(heading + "\n", markup=False)
    screen.print(_grid(rows))


_RETURNS = {
    "weights": "weights of a weighted sum",
    "combined": "the combined vector",
    "gradients": "gradients of every parameter",
}
_SCALES = {
    "sum": "scaled as a sum over tasks",
    "mean": "scaled as a mean over tasks",
    "unit": "of unit norm",
    "own": "of a length that the method sets",
    "part": "a part of the elements",
}


def documented(text: str) -> tuple[str, list[tuple[str, str]]]:
    """A docstring's running text, and its fields (Source, Departures, Cost), unwrapped."""
    heading: list[str] = []
    fields: list[tuple[str, str]] = []
    for line in text.splitlines():
        field = re.match(r"([A-Z][a-z]+) {2,}(\S.*)", line)
        if field:
            fields.append((field[1], field[2]))
        elif fields and line.startswith(" "):
            fields[-1] = (fields[-1][0], f"{fields[-1][1]} {line.strip()}")
        else:
            heading.append(line)
    paragraphs = [" ".join(part.split()) for part in "\n".join(heading).strip().split("\n\n")]
    return "\n\n".join(paragraphs), fields


def _grid(rows: list[tuple[str, str]]) -> Any:
    """Names at the left, texts wrapped beside them."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(name, Text(text))
    return grid
