"""`polytask rules`: what balances tasks, and what each rule needs."""

from typing import Annotated, Any

import typer

from polytask.cli.options import AsJson

EXAMPLES = ("polytask rules", "polytask rules upgrad", "polytask rules --json")


def rules(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One rule, in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the rules that balance tasks; NAME shows one with its source, parameters and promises."""
    from polytask.cli.showing import show_json
    from polytask.core.catalogue import load_entry_points
    from polytask.core.rules import find, rule_names

    load_entry_points()
    specs = [find(rule) for rule in (rule_names() if name is None else [name])]
    if as_json:
        described = [_described(spec) for spec in specs]
        show_json(described if name is None else described[0])
    elif name is None:
        _list(specs)
    else:
        _show(specs[0])


def _described(spec: Any) -> dict[str, Any]:
    return {
        "name": spec.name,
        "summary": spec.summary,
        "source": spec.source,
        "needs": list(spec.needs),
        "granularity": spec.granularity,
        "returns": spec.returns,
        "scale": spec.scale,
        "claims": sorted(spec.claims),
        "parameters": {
            parameter: {"default": about.default, "allowed": str(about.constraint)}
            for parameter, about in spec.parameters.items()
        },
        "random": spec.random,
        "calls": _calls(spec),
    }


def _calls(spec: Any) -> list[str]:
    """What a training loop calls, in order."""
    calls = ["balancer.backward(losses, model)", "optimizer.step()"]
    if spec.after_step is not None:
        calls.append("balancer.after_step(losses)")
    if spec.after_epoch is not None:
        calls.append("balancer.after_epoch()")
    return calls


def _list(specs: list[Any]) -> None:
    from polytask.cli.showing import console

    screen = console()
    width = max(len(spec.name) for spec in specs)
    for spec in specs:
        options = f"; options {', '.join(spec.parameters)}" if spec.parameters else ""
        screen.print(f"[bold]{spec.name:<{width}}[/]  {_escaped(spec.summary.partition(': ')[2] or spec.summary)}")
        screen.print(f"{'':<{width}}  [dim]needs {' and '.join(spec.needs)}{options}; {_escaped(spec.source)}[/]")
    screen.print("\nOne in full: polytask rules NAME. In a recipe: train: {rule: NAME}.", soft_wrap=True)


def _show(spec: Any) -> None:
    import inspect

    from polytask.cli.showing import console
    from polytask.core.rules import CLAIMS, NEEDS

    screen = console()
    text = inspect.getdoc(inspect.getmodule(spec.function)) or inspect.getdoc(spec.function) or spec.name
    lines = [text, "", f"Name        {spec.name}", "Needs"]
    lines += [f"  {need}: {NEEDS[need]}" for need in spec.needs]
    shape = "weights of a weighted sum" if spec.returns == "weights" else "the combined vector"
    lines += [f"Returns     {shape}; {_SCALES[spec.scale]}", "Parameters" if spec.parameters else "Parameters  none"]
    lines += [f"  {name}: {about.constraint}; default {about.default!r}" for name, about in spec.parameters.items()]
    lines += ["Promises" if spec.claims else "Promises    none"]
    lines += [f"  {claim}: {CLAIMS[claim]}" for claim in CLAIMS if claim in spec.claims]
    lines += ["In a loop", f"  balancer = polytask.balancer({spec.name!r})", *(f"  {call}" for call in _calls(spec))]
    lines += ["In a recipe", f"  train: {{rule: {spec.name}}}"]
    screen.print("\n".join(lines), markup=False)


_SCALES = {"sum": "scaled as a sum over tasks", "mean": "scaled as a mean over tasks", "unit": "of unit norm"}


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
