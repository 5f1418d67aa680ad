"""What the toy shows, in sentences and a table."""

from collections.abc import Mapping
from typing import Any

from benchmarks.toy import EXPECTED, fitting
from polytask.core.names import RULES
from polytask.evaluation.formatting import fixed, listed

PICTURE = (
    "![A panel a rule: the five paths on the contours of the summed losses; the Pareto front is the black line]"
    "(images/toy.png)"
)


def blocks(results: Mapping[str, Any]) -> list[str]:
    """What the page says."""
    return [sentences(results), PICTURE, table(results)]


def sentences(results: Mapping[str, Any]) -> str:
    """Who reaches the front from all starts, and whether the published methods did what is known of them."""
    rules, starts = results["rules"], len(results["starts"])
    everywhere = [f"`{name}`" for name, about in rules.items() if about["reached"] == starts]
    known = {name: wanted for name, wanted in EXPECTED.items() if name in rules}
    departed = [
        f"`{name}` ({rules[name]['reached']} of {starts}, expected {wanted})"
        for name, wanted in known.items()
        if rules[name]["reached"] != wanted
    ]
    said = [
        f"From all {starts} starts the front is reached by {listed(everywhere)}.",
        f"Of the {len(known)} methods with a known outcome, {len(known) - len(departed)} have it"
        + (f"; **departures**: {listed(departed)}." if departed else "."),
    ]
    said += [
        f"Stopped by an error: `{name}` ({about['errors'][0]})." for name, about in rules.items() if about["errors"]
    ]
    later, unfit = fitting([name for name in RULES if name not in rules])  # rules that came after the result too
    left_out = {**results["left_out"], **unfit}
    if left_out:
        said.append(f"Left out: {listed(f'`{name}` ({why})' for name, why in left_out.items())}.")
    if later:
        said.append(f"Without a walk yet: {listed(f'`{name}`' for name in later)}.")
    return " ".join(said)


def table(results: Mapping[str, Any]) -> str:
    """The pipe table: a line a rule."""
    starts = len(results["starts"])
    lines = [["rule", "starts that reach the front", "expected", "at step", "where (x1)"], ["---", *["---:"] * 4]]
    for name, about in results["rules"].items():
        wanted = EXPECTED.get(name)
        reached = f"{about['reached']} of {starts}"
        arrivals = [step for step in about["arrivals"] if step is not None]
        when = f"{min(arrivals):,} to {max(arrivals):,}" if arrivals else "–"
        ends = [
            fixed(x1, 1) if step is not None else f"({fixed(x1, 1)}, {fixed(x2, 1)})"
            for step, (x1, x2) in zip(about["arrivals"], about["ends"], strict=True)
        ]
        mark = "" if wanted in (None, about["reached"]) else " **!**"
        lines.append([name, reached + mark, "–" if wanted is None else str(wanted), when, " ".join(ends)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
