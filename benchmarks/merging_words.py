"""What the timing of merges shows, in sentences and a table: made from the numbers, the unwelcome ones too."""

from collections.abc import Mapping, Sequence
from typing import Any

from polytask.evaluation.formatting import duration, listed, magnitude

MIB = 2**20


def blocks(results: Mapping[str, Any]) -> list[str]:
    """Sentences, and the table."""
    return [_sentences(results), _table(results)]


def _sentences(results: Mapping[str, Any]) -> str:
    parts = (_about(results), _on_time(results["methods"]), _on_memory(results), _on_matrices(results), _runs(results))
    return " ".join(part for part in parts if part)


def _about(results: Mapping[str, Any]) -> str:
    floor = results["floor"]
    return (
        f"Models of {magnitude(results['parameters'])} parameters, {results['threads']} processors. Reading four "
        f"models and writing one takes {duration(floor['copy']['seconds'])}, a mean in NumPy "
        f"{duration(floor['mean']['seconds'])}, and importing torch {duration(results['torch_imported']['seconds'])}, "
        "which every row includes."
    )


def _on_time(methods: Sequence[Mapping[str, Any]]) -> str:
    met = [f"`{method['name']}`" for method in methods if _ratio(method) <= method["goal"]]
    missed = [
        f"`{method['name']}` ({_ratio(method):.2f}, goal {method['goal']:.2f})"
        for method in methods
        if _ratio(method) > method["goal"]
    ]
    sentences = [f"The goal for the ratio is met by {listed(met)}."] if met else []
    return " ".join([*sentences, *([f"**Not met** by {listed(missed)}."] if missed else [])])


def _on_memory(results: Mapping[str, Any]) -> str:
    goal = results["goals"]["memory"]
    most = max(_beyond(results, run) for run in _runs_of_polytask(results))
    return (
        "Memory is anonymous, beyond an interpreter that has imported torch; what processes share counts once. "
        f"Polytask held at most {most / MIB:.0f} MiB, with {magnitude(results['parameters_of_the_larger'])} "
        f"parameters too (goal: at most {goal / MIB:.0f} MiB: {_met(most <= goal)})."
    )


def _on_matrices(results: Mapping[str, Any]) -> str:
    matrices, goal = results["matrices"], results["goals"]["matrices"]
    share = matrices["polytask"]["seconds"] / matrices["decompositions"]["seconds"]
    return (
        f"`{matrices['rule']}` took {share:.2f} times as long as its singular value decompositions alone "
        f"(goal: at most {goal:.1f}: {_met(share <= goal)})."
    )


def _runs(results: Mapping[str, Any]) -> str:
    return (
        f"Medians of {results['repeats']} runs in turn; mergekit's slow methods and the larger models were run once. "
        "Polytask's memory is from one more run, as looking at it takes time."
    )


def _table(results: Mapping[str, Any]) -> str:
    """A row a method."""
    head = ["method", f"mergekit {results['mergekit']}", "polytask", "ratio", "goal", "mergekit's memory", "polytask's"]
    rows = [[*head, "polytask, twice the size"], ["---", *["---:"] * len(head)]]
    for method in results["methods"]:
        larger = method["polytask_larger"]
        rows.append(
            [
                f"`{method['name']}`",
                duration(method["mergekit"]["seconds"]),
                duration(method["polytask"]["seconds"]),
                f"{_ratio(method):.3f}",
                f"{method['goal']:.3f}",
                *(_memory(results, method[tool]) for tool in ("mergekit", "polytask")),
                f"{duration(larger['seconds'])}, {_memory(results, larger)}",
            ]
        )
    for own in results["own"]:
        run, larger = own["polytask"], own["polytask_larger"]
        more = f"{duration(larger['seconds'])}, {_memory(results, larger)}"
        rows.append([own["name"], "–", duration(run["seconds"]), "–", "–", "–", _memory(results, run), more])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _ratio(method: Mapping[str, Any]) -> float:
    return method["polytask"]["seconds"] / method["mergekit"]["seconds"]


def _runs_of_polytask(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of elementwise and Gram rules; a rule on matrices needs its largest one besides."""
    return [entry[size] for entry in [*results["methods"], *results["own"]] for size in ("polytask", "polytask_larger")]


def _beyond(results: Mapping[str, Any], run: Mapping[str, Any]) -> float:
    """Anonymous bytes beyond the interpreter with torch imported."""
    return run["anonymous"] - results["torch_imported"]["anonymous"]


def _memory(results: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    return f"{_beyond(results, run) / MIB:.0f} MiB"


def _met(is_met: bool) -> str:
    return "met" if is_met else "**not met**"
