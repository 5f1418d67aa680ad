"""The tables of `make bench-balancing`, made from its newest result."""

from collections.abc import Mapping
from typing import Any

from benchmarks.balancing.sides import INTERVAL
from polytask.evaluation.formatting import fixed, listed

_COLUMNS = {
    "loop": "bare loop",
    "exact": "exact",
    "layerwise": "layerwise",
    "auto": "auto",
    "representation": "representation (floor)",
    "subset": "subset",
    "interval": "interval",
    "torchjd": "torchjd",
    "torchjd, one row at a time": "torchjd, sequential",
    "torchjd, by Gramian": "torchjd, Gramian",
    "LibMTL, MGDA": "LibMTL (MGDA)",
}
_GOALS = {"mlp8": 4.4, "mlp40": 12.0}
_PEERS = [name for name in _COLUMNS if name.startswith(("torchjd", "LibMTL"))]

_HOW_TO_READ = (
    "Time of a step as a multiple of one with equal weights: the median, below it the quartiles; of `interval`, which "
    f"keeps weights for {INTERVAL} steps, the mean, since its steps differ. The floor of `representation` is one pass "
    "of each head, their inner products and one pass of the trunk."
)

Results = Mapping[str, Any]


def blocks(results: Results) -> list[str]:
    """Steps, memory, what the cheap engines lose, rules on losses, solvers, agreement."""
    return [
        _HOW_TO_READ,
        _steps(results),
        _verdicts(results),
        "Peak memory of a process in MB, imports included:",
        _memory(results),
        _fidelity(results),
        _losses(results),
        _solvers(results),
        _agreement(results),
        *(f"{peer} did not run: `{why}`." for peer, why in results["peers_missing"].items()),
    ]


def _shown(results: Results) -> list[str]:
    return [name for name in _COLUMNS if all(name in model["sides"] for model in results["steps"].values())]


def _steps(results: Results) -> str:
    names = _shown(results)
    rows = [["", "equal weights", *(_COLUMNS[name] for name in names)]]
    for model, found in results["steps"].items():
        sides = found["sides"]
        unit = sides["ew"]["ms"]
        cells = [results["titles"][model], f"{unit:.1f} ms"]
        for name in names:
            low, high = (quartile / unit for quartile in sides[name]["quartiles_ms"])
            floor = f" ({sides['representation floor']['ratio']:.2f})" if name == "representation" else ""
            cells.append(f"{sides[name]['ratio']:.2f}{floor}<br>{low:.2f}–{high:.2f}")
        rows.append(cells)
    return _table(rows)


def _verdicts(results: Results) -> str:
    lines = []
    for model, found in results["steps"].items():
        sides, title = found["sides"], results["titles"][model]
        auto, loop = sides["auto"]["ratio"], sides["loop"]["ratio"]
        goal = _GOALS.get(model, 1.05 * loop)
        said = f"{goal:g}" if model in _GOALS else f"1.05 of the bare loop, {goal:.2f}"
        peers = [sides[name]["ratio"] for name in _PEERS if name in sides]
        against = f"; best of the others {min(peers):.2f}" if peers else ""
        lines.append(f"- {title}: `auto` {auto:.2f} (goal: at most {said}: {_met(auto <= goal)}{against}).")
    return "\n".join(lines)


def _memory(results: Results) -> str:
    names = ["ew", *_shown(results)]
    rows = [["", *("equal weights" if name == "ew" else _COLUMNS[name] for name in names)]]
    for model, found in results["memory_mb"].items():
        rows.append([results["titles"][model], *(f"{found[name]:.0f}" for name in names)])
    return _table(rows)


def _fidelity(results: Results) -> str:
    found = results["fidelity"]
    said = []
    for rule, seen in found["rules"].items():
        cosines = [
            f"`{name}` {fixed(each['median'], 4)} ({fixed(each['lowest'], 4)})"
            for name, each in seen["cosines"].items()
        ]
        said.append(f"`{rule}`, where {100 * seen['conflicts']:.0f} % of the pairs conflict: {listed(cosines)}")
    return (
        "Cosine of the update with the exact one at the same parameters and batch, median (lowest) over 200 steps of "
        f"{found['problem']}, a quarter of the rows for `subset` and 10 steps for "
        f"`interval`: {'; '.join(said)}."
    )


def _losses(results: Results) -> str:
    sides = results["losses"]["sides"]
    plain, twice = sides["ew"]["ms"], sides["two forwards"]["ms"]
    said = []
    for name in ("equal", "uncertainty", "famo, next batch"):
        more = sides[name]["ms"] - plain
        said.append(f"`{name}` {more:+.2f} ms ({_met(more <= max(0.03 * plain, 0.3))})")
    more = sides["famo"]["ms"] - twice
    said.append(f"`famo` as published {more:+.2f} ms beyond its second forward pass ({_met(more <= 0.03 * twice)})")
    return f"Rules on losses, beside {plain:.1f} ms for equal weights (goal: at most 3 % or 0.3 ms): {listed(said)}."


def _solvers(results: Results) -> str:
    rows = [["rule", "T = 8", "T = 100"]]
    for name, found in results["solvers"].items():
        cells = [
            f"{one['ms']:.2f} ms" + ("" if one["met"] else f" (limit {one['limit_ms']:g})") for one in found.values()
        ]
        rows.append([f"`{name}`", *cells])
    inner = " (of `sdmgrad` one of its 20 inner steps)" if "sdmgrad" in results["solvers"] else ""
    text = f"The rules themselves, milliseconds a call{inner} on the slowest of four kinds of Gram matrices:"
    return f"{text}\n\n{_table(rows)}"


def _agreement(results: Results) -> str:
    rows = [["rule", "beside", "difference", "factor"]]
    for library, rules in results["agreement"].items():
        rows += [_agreement_row(name, library, about) for name, about in rules.items()]
    if len(rows) == 1:
        return "No other library was there to compare with."
    text = (
        "Combined gradients beside other libraries' on 20 random Jacobians: the largest relative difference after the "
        "best factor between the two, and that factor. More than 1e-5 is in bold; the docstrings say why. Rules that "
        "draw an order (PCGrad, GradVac) are compared with two tasks, where there is none; GradDrop draws signs, each "
        "library its own, so its difference means nothing. LibMTL computes in float32, and its CAGrad takes three "
        "tasks only."
    )
    return f"{text}\n\n{_table(rows)}"


def _agreement_row(name: str, library: str, about: Mapping[str, Any]) -> list[str]:
    beside = f"{library}'s {about['peer']}"
    if "error" in about:
        return [f"`{name}`", beside, f"`{about['error']}`", ""]
    low, high = about["factors"]
    factor = f"{low:.4f}" if high - low < 1e-4 else f"{low:.4f} to {high:.4f}"
    difference = f"{about['difference']:.1e}"
    return [f"`{name}`", beside, difference if about["difference"] <= 1e-5 else f"**{difference}**", factor]


def _met(is_met: bool) -> str:
    return "met" if is_met else "**not met**"


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"| --- |{' ---: |' * (len(rows[0]) - 1)}", *lines[1:]])
