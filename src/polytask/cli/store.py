"""`polytask store`: many fine-tuned models in one small directory, and one of them back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from polytask.cli.options import AsJson, DataDir, Out, data_folder

PACK_EXAMPLES = (
    "polytask store pack --base base --task a=first --task b=second --out store",
    "polytask store pack --kind sparse --set density=0.01 --base base --task a=first --task b=second --out store",
)
GET_EXAMPLES = ("polytask store get store a --out first-again",)


def pack(
    *,
    out: Out,
    base: Annotated[str, typer.Option("--base", metavar="MODEL", help="What the models were fine-tuned from.")],
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME=MODEL", help="A model to store; repeatable.")
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help="tall_masks, emr, sparse, low_rank or seeded.")
    ] = "tall_masks",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the kind: density=0.01; repeatable."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Models from the Hugging Face cache only.")] = False,
    score: Annotated[
        bool, typer.Option("--score/--no-score", help="Whether models of `polytask train` are scored before and after.")
    ] = True,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Store fine-tuned models as their base and, for each model, masks, grafts, thin factors or numbers of a seed.

    MODEL is a directory, a file, or a hub id from the Hugging Face cache. What is lost is told for each model; what
    `polytask train` wrote is scored on the validation rows that its recipe names, as it was and as it comes back.
    """
    from polytask.cli.merge import named_models
    from polytask.cli.showing import show_json
    from polytask.merging.stores.packing import pack as run
    from polytask.recipes.stored import scores_kept

    found = run(base, named_models(task or []), out, kind=kind, settings=settings or [], offline=offline)
    if score and found["paths"]:
        found["scores"] = scores_kept(out, found["paths"], data_dir=data_folder(data_dir))
    if as_json:
        show_json(found)
    else:
        _show(found)


def get(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="What `polytask store pack` wrote.")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="One of its tasks.")],
    *,
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Give one model of a store back, as a directory of its own."""
    from polytask.cli.merge import size_in_words
    from polytask.cli.showing import console, show_json
    from polytask.merging.stores.unpacking import get as run

    found = run(store, task, out)
    if as_json:
        show_json(found)
    else:
        console().print(f"{out}: {task}, {size_in_words(found['bytes'])}", soft_wrap=True, markup=False)


_NUMBERS = {
    "ones": "{:.1%} of the mask's bits set",
    "kept": "{:.2%} of the elements kept",
    "factored": "{:.1%} of the elements in thin factors",
    "fitted": "{:.1%} of the elements from the seed",
}


def _show(found: Mapping[str, Any]) -> None:
    from polytask.cli.merge import size_in_words
    from polytask.cli.showing import console

    screen = console()
    for task, about in found["tasks"].items():
        own, model = found["bytes_of_tasks"][task], found["bytes_of_models"][task]
        parts = [
            f"{size_in_words(own)} for {size_in_words(model)}",
            *(text.format(about[number]) for number, text in _NUMBERS.items() if number in about),
            f"task vector kept with a relative error of {about['relative_error']:.3f}",
            f"{about['own_tensors']} tensors kept whole",
        ]
        screen.print(f"{task}: {', '.join(parts)}", soft_wrap=True, markup=False)
        for line in _scores(found.get("scores", {}).get(task, {})):
            screen.print(f"  {line}", soft_wrap=True, markup=False)
    written, models = found["bytes"], sum(found["bytes_of_models"].values())
    screen.print(
        f"{found['out']}: {size_in_words(written)}, {written / models:.0%} of the models' {size_in_words(models)}",
        soft_wrap=True,
        markup=False,
    )


def _scores(scores: Mapping[str, Any]) -> list[str]:
    """A line for each task that a model predicts: its score as it was, and as it comes back."""
    from polytask.evaluation.formatting import decimals, fixed

    if "not_scored" in scores:
        return [f"not scored: {scores['not_scored']}"]
    lines = []
    for task, about in scores.items():
        before, after = about["before"], about["after"]
        places = decimals([before, after])
        line = f"{task}: validation {about['metric']} {fixed(after, places)}, before {fixed(before, places)}"
        if about["higher_is_better"] and before and after is not None and before > 0:
            line += f": {after / before:.1%} kept"
        lines.append(line)
    return lines
