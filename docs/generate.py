"""Writes the parts of the pages that come from the registry: between `<!-- generated: name -->` and `<!-- end -->`.

`python docs/generate.py` (or `make docs`) rewrites them; a test checks that they are current.
"""

import inspect
import re
from pathlib import Path
from typing import Any

from polytask.core.constraints import Parameter
from polytask.core.names import RULES
from polytask.core.rules import CLAIMS, NEEDS, RuleSpec, find
from polytask.evaluation.formatting import listed
from polytask.sharing.names import ATTACHMENTS, ENCODERS, SHARING
from polytask.tasks.kinds import KINDS
from polytask.tasks.losses import LOSSES
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
        ["rules that balance tasks", f"{some(list(RULES))} ([all, and what they promise](docs/rules.md))"],
        ["attachments", f"{code(ATTACHMENTS.names())} ([docs](docs/attachments.md))"],
        ["sharing architectures", f"{code(SHARING.names())} ([docs](docs/sharing.md))"],
        ["encoders", f"{code(ENCODERS.names())}, or a factory from Python"],
        ["kinds of tasks", f"{code(KINDS.names())} ([docs](docs/tasks.md))"],
        ["data", "parquet and CSV, streamed where large; molecules, text, images, arrays ([docs](docs/data.md))"],
    ]
    return table(["what", "which"], rows)


def rules() -> str:
    """A row a rule."""
    specs = [find(name) for name in RULES]
    rows = [
        [f"`{spec.name}`", _summary(spec), _needs(spec), _parameters(spec.parameters.values()), _source(spec)]
        for spec in specs
    ]
    return table(["rule", "what it does", "reads", "parameters", "source"], rows)


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
    return table(["loss", "summed over the labels that exist"], [[f"`{n}`", _first_line(f)] for n, f in LOSSES.items()])


def lower() -> str:
    """The metrics that are errors, in a sentence."""
    return f"Lower is better for {listed([f'`{n}`' for n, m in METRICS.items() if not m.higher_is_better])}.\n"


def _summary(spec: RuleSpec) -> str:
    return spec.summary.partition(": ")[2].rstrip(".")


def _needs(spec: RuleSpec) -> str:
    state = "; has state" if spec.init else ""
    form = "; a procedure" if spec.form == "procedure" else ""
    return f"{code(spec.needs)}{form}{'; random' if spec.random else ''}{state}"


def _parameters(parameters: object) -> str:
    found: list[Parameter] = list(parameters)  # type: ignore[call-overload]
    shown = [f"`{each.name}` = {each.default}{f' ({each.constraint})' if each.constraint else ''}" for each in found]
    return "; ".join(shown) or "none"


def _source(spec: RuleSpec) -> str:
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", spec.source)


def _first_line(function: object) -> str:
    return " ".join((function.__doc__ or "").split("\n\n")[0].split()).rstrip(".")


PARTS = {part.__name__: part for part in (inside, rules, claims, needs, attachments, kinds, losses, lower)}


def rewritten(page: Path) -> str:
    """The page's text with its generated parts as they are now."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[3]}", page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rewritten(page), encoding="utf-8")
