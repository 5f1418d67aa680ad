"""Writes the parts of the pages that come from the registry: between `<!-- generated: name -->` and `<!-- end -->`.

`python docs/generate.py` (or `make docs`) rewrites them; a test checks that they are current.
"""

import inspect
import re
from pathlib import Path
from typing import Any

from polytask.core.constraints import Parameter
from polytask.core.names import LEARNED, METHODS, RULES, TRANSFORMS
from polytask.core.rules import CLAIMS, NEEDS, RuleSpec, find
from polytask.evaluation.formatting import listed
from polytask.merging.contract import MethodSpec, Pipeline, TransformSpec, find_method, find_transform
from polytask.merging.learning import find_learned
from polytask.sharing.names import ATTACHMENTS, ENCODERS, SHARING
from polytask.tasks.kinds import KINDS
from polytask.tasks.losses import GROUPED_LOSSES, LOSSES
from polytask.tasks.metrics import METRICS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def code(names: object) -> str:
    return ", ".join(f"`{name}`" for name in names)  # type: ignore[attr-defined]


def some(names: list[str], most: int = 12) -> str:
    """The first names, and how many more there are."""
    return code(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def inside() -> str:
    """What there is to choose from, for the README."""
    rows = [
        ["rules that balance tasks", f"{some(_balancing())} ([all, and what they promise](docs/rules.md))"],
        ["merges", f"{some([*METHODS, *_merging()])}, and every rule on vectors ([all](docs/rules.md#merging))"],
        ["merges with a little data", f"{code(LEARNED)} ([docs](docs/merging_data.md))"],
        ["attachments", f"{code(ATTACHMENTS.names())} ([docs](docs/attachments.md))"],
        ["sharing architectures", f"{code(SHARING.names())} ([docs](docs/sharing.md))"],
        ["encoders", f"{code(ENCODERS.names())}, or a factory from Python"],
        ["kinds of tasks", f"{code(KINDS.names())} ([docs](docs/tasks.md))"],
        ["data", "parquet and CSV, streamed where large; molecules, text, images, arrays ([docs](docs/data.md))"],
    ]
    return table(["what", "which"], rows)


def rules() -> str:
    """A row a rule that balances tasks."""
    return _listing([find(name) for name in _balancing()])


def merge_rules() -> str:
    """A row a rule that merges checkpoints."""
    return _listing([find(name) for name in _merging()])


def methods() -> str:
    """A row a merge that is put together from transforms and a rule."""
    found = [find_method(name) for name in METHODS]
    rows = [
        [f"`{each.name}`", _summary(each), _made_of(each()), _parameters(each.parameters.values()), _source(each)]
        for each in found
    ]
    return table(["method", "what it does", "transforms, then the rule", "parameters", "source"], rows)


def learned() -> str:
    """A row a merge that reads data."""
    found = [find_learned(name) for name in LEARNED]
    rows = [
        [f"`{each.name}`", _summary(each), each.reads, _parameters(each.parameters.values()), _source(each)]
        for each in found
    ]
    return table(["rule", "what it does", "labels", "parameters", "source"], rows)


def transforms() -> str:
    """A row a transform."""
    found = [find_transform(name) for name in TRANSFORMS]
    rows = [[f"`{each.name}`", _summary(each), _parameters(each.parameters.values()), _source(each)] for each in found]
    return table(["transform", "what it does", "parameters", "source"], rows)


def _listing(specs: list[RuleSpec]) -> str:
    rows = [
        [f"`{spec.name}`", _summary(spec), _needs(spec), _parameters(spec.parameters.values()), _source(spec)]
        for spec in specs
    ]
    return table(["rule", "what it does", "reads", "parameters", "source"], rows)


def _made_of(pipeline: Pipeline) -> str:
    return ", ".join(f"`{step.spec.name}`" for step in pipeline.steps)


def _balancing() -> list[str]:
    return [name for name in RULES if name not in _merging()]


def _merging() -> list[str]:
    return [name for name, target in RULES.items() if target.startswith("polytask.merging.")]


def claims() -> str:
    """A row a promise, and the rules that give it."""
    specs = [find(name) for name in RULES]
    rows = [
        [f"`{claim}`", meaning, code(spec.name for spec in specs if claim in spec.claims)]
        for claim, meaning in CLAIMS.items()
    ]
    return table(["promise", "meaning", "rules that promise it"], rows)


def needs() -> str:
    return table(["in `needs`", "what the function gets"], [[f"`{name}`", meaning] for name, meaning in NEEDS.items()])


def attachments() -> str:
    """A row an attachment."""
    found = [(name, ATTACHMENTS.find(name)) for name in ATTACHMENTS.names()]
    rows = [
        [
            f"`{name}`",
            _first_line(inspect.getmodule(each)).partition(": ")[2].rstrip("."),
            "yes" if each.transforms else "no",
            _acts(each),
        ]
        for name, each in found
    ]
    return table(["attachment", "what it does", "part of the model", "otherwise"], rows)


def _acts(attachment: Any) -> str:
    if attachment.calibrates_branches:
        return "on gradients of modality branches"
    if attachment.trains_itself:
        return "an objective and an optimiser of its own"
    return "a term of the loss" if attachment.has_term else "trained with the model"


def kinds() -> str:
    """A row a kind of task; the first loss and the first metric are the defaults."""
    found = [(name, KINDS.find(name)) for name in KINDS.names()]
    return table(
        ["kind", "losses", "metrics"], [[f"`{n}`", code(kind.losses), code(kind.metrics)] for n, kind in found]
    )


def losses() -> str:
    return table(
        ["loss", "summed over the labels that exist"],
        [[f"`{n}`", _first_line(f)] for n, f in {**LOSSES, **GROUPED_LOSSES}.items()],
    )


def lower() -> str:
    """The metrics that are errors, in a sentence."""
    return f"Lower is better for {listed([f'`{n}`' for n, m in METRICS.items() if not m.higher_is_better])}.\n"


def _summary(spec: RuleSpec | MethodSpec | TransformSpec) -> str:
    return spec.summary.partition(": ")[2].rstrip(".")


def _needs(spec: RuleSpec) -> str:
    state = "; remembers gradients" if spec.tracker else "; has state" if spec.init else ""
    form = "; a procedure" if spec.form == "procedure" else ""
    models = {"models": "; of models", "either": "; of deltas, or of models without a base"}.get(spec.of, "")
    number = f"; {spec.tasks} task{'s' if spec.tasks > 1 else ''}" if spec.tasks else ""
    return f"{code(spec.needs)}{form}{'; random' if spec.random else ''}{state}{models}{number}"


def _parameters(parameters: object) -> str:
    found: list[Parameter] = list(parameters)  # type: ignore[call-overload]
    shown = [f"`{each.name}` = {each.default}{f' ({each.constraint})' if each.constraint else ''}" for each in found]
    return "; ".join(shown) or "none"


def _source(spec: RuleSpec | MethodSpec | TransformSpec) -> str:
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", spec.source)


def _first_line(function: object) -> str:
    return " ".join((function.__doc__ or "").split("\n\n")[0].split()).rstrip(".")


PARTS = {
    part.__name__: part
    for part in (
        inside,
        rules,
        merge_rules,
        methods,
        learned,
        transforms,
        claims,
        needs,
        attachments,
        kinds,
        losses,
        lower,
    )
}


def rewritten(page: Path) -> str:
    """The page's text with its generated parts as they are now."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[3]}", page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rewritten(page), encoding="utf-8")
