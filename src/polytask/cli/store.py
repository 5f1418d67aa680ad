"""`polytask store`: many fine-tuned models in one small directory, and one of them back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from polytask.cli.options import AsJson, Out

PACK_EXAMPLES = (
    "polytask store pack --base base --task a=first --task b=second --out store",
    "polytask store pack --kind emr --base base --task a=first --task b=second --out store",
)
GET_EXAMPLES = ("polytask store get store a --out first-again",)


def pack(
    *,
    out: Out,
    base: Annotated[str, typer.Option("--base", metavar="MODEL", help="What the models were fine-tuned from.")],
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME=MODEL", help="A model to store; repeatable.")
    ] = None,
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="tall_masks or emr.")] = "tall_masks",
    mask_scale: Annotated[
        float, typer.Option("--mask-scale", metavar="X", help="Of TALL-masks: how much of its own a task must have.")
    ] = 0.4,
    offline: Annotated[bool, typer.Option("--offline", help="Models from the Hugging Face cache only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Store fine-tuned models as the base, one merged vector, and a bit an element for each model.

    MODEL is a directory, a file, or a hub id from the Hugging Face cache. What is lost is told for each model.
    """
    from polytask.cli.merge import named_models
    from polytask.cli.showing import show_json
    from polytask.merging.store import pack as run

    found = run(base, named_models(task or []), out, kind=kind, mask_scale=mask_scale, offline=offline)
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
    from polytask.merging.store import get as run

    found = run(store, task, out)
    if as_json:
        show_json(found)
    else:
        console().print(f"{out}: {task}, {size_in_words(found['bytes'])}", soft_wrap=True, markup=False)


def _show(found: Mapping[str, Any]) -> None:
    from polytask.cli.merge import size_in_words
    from polytask.cli.showing import console

    screen = console()
    for task, about in found["tasks"].items():
        screen.print(
            f"{task}: {about['ones']:.1%} of {about['parameters']:,} mask bits set, task vector kept with a relative "
            f"error of {about['relative_error']:.3f}, {about['own_tensors']} tensors kept whole",
            soft_wrap=True,
            markup=False,
        )
    written, models = found["bytes"], found["bytes_of_models"]
    screen.print(
        f"{found['out']}: {size_in_words(written)}, {written / models:.0%} of the models' {size_in_words(models)}",
        soft_wrap=True,
        markup=False,
    )
