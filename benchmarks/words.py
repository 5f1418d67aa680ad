"""What results show, in sentences: made from the numbers, the unwelcome ones too."""

from collections.abc import Mapping, Sequence
from typing import Any

from polytask.evaluation.delta import Verdict
from polytask.evaluation.formatting import counted, duration, in_words, listed, percent, percent_range, ratio
from polytask.evaluation.table import Comparison, Row


def comparison_sentences(table: Comparison) -> str:
    """The best shared model by validation, how it does on test, what it costs, and every task made worse by any."""
    chosen = table.chosen
    if chosen is None:
        return "No variant has a validation score."
    variants = table.variants
    among = f"the best of {in_words(len(variants))} shared models" if len(variants) > 1 else "the only shared model"
    sentences = [
        f"Chosen on the validation split, `{chosen.name}` is {among}. {_on_test(chosen)}{_cost(chosen, table)}.",
        _below(variants),
        _worse_tasks(variants),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _on_test(row: Row) -> str:
    value = row.delta.estimate if row.delta else None
    if value is None or value.mean is None:
        return "On the test split its delta-m is undefined"
    if value.low is None or value.high is None:
        return f"On the test split its delta-m is {percent(value.mean)} with one seed, so without an interval"
    if value.low > 0:
        judged = "better than single-task models"
    elif value.high < 0:
        judged = "**worse than single-task models**"
    else:
        judged = "not different from single-task models beyond noise"
    return f"On the test split its delta-m is {percent(value.mean)} ({percent_range(value.low, value.high)}): {judged}"


def _cost(row: Row, table: Comparison) -> str:
    base = table.baseline_row
    if base is None or not (base.parameters and base.seconds and row.parameters and row.seconds):
        return ""
    parameters, seconds = row.parameters / base.parameters, row.seconds / base.seconds
    return f"; it has {ratio(parameters)} times their parameters and took {ratio(seconds)} times their training time"


def _below(variants: Sequence[Row]) -> str:
    """Rows that are worse than the baseline on average, beyond noise."""
    below = [
        f"`{row.name}` ({percent(row.delta.estimate.mean)})"
        for row in variants
        if row.delta is not None and row.delta.estimate.high is not None and row.delta.estimate.high < 0
    ]
    return f"Below the single-task models on average, beyond noise: {listed(below)}." if below else ""


def _worse_tasks(variants: Sequence[Row]) -> str:
    worse = [f"`{row.name}` ({listed(row.worse)})" for row in variants if row.worse]
    if worse:
        return f"Tasks made worse beyond noise (negative transfer): {'; '.join(worse)}."
    if not any(row.judged for row in variants):
        return "With one seed no task can be called better or worse."
    better = any(row.tasks_with(Verdict.BETTER) for row in variants)
    return "No task is made worse beyond noise" + ("." if better else ", and none better.")


def budget_sentence(results: Mapping[str, Any]) -> str:
    """What every row could spend."""
    budget = results["budget"]
    rates = listed(f"{rate:.2g}" for rate in budget["learning_rates"])
    seeds = counted(len(budget["seeds"]), "seed")
    choice = (
        f"learning rates {rates} tried by every row and chosen on the validation split"
        if len(budget["learning_rates"]) > 1
        else f"learning rate {rates}"
    )
    width = f"; layers scaled to about {budget['parameters']:,} parameters a row" if "parameters" in budget else ""
    return f"Budget of every row: {budget['steps']:,} steps, {choice}; {seeds}{width}."


def step_overhead_sentence(results: Mapping[str, Any]) -> str:
    plain, more = results["plain_ms"], results["more_ms"]
    return (
        f"{plain:.2f} ms by hand, {results['equal_ms']:.2f} ms with the balancer (medians of {results['steps']} "
        f"interleaved steps): {_more(more, plain)}. Goal: at most 10 % or 0.3 ms more, whichever is larger: "
        f"{_met(results['goal_met'])}."
    )


def trainer_overhead_sentence(results: Mapping[str, Any]) -> str:
    hand, trainer = (1e3 * results["seconds"][name] for name in ("by_hand", "trainer"))
    met = trainer - hand <= max(results["goal"]["share"] * hand, 1e3 * results["goal"]["seconds"])
    return (
        f"{hand:.2f} ms by hand, {trainer:.2f} ms in the trainer ({results['model']}; medians of {results['rounds']} "
        f"interleaved rounds): {_more(trainer - hand, hand)}. Goal: at most 10 % or 0.3 ms more, whichever is larger: "
        f"{_met(met)}."
    )


def start_up_sentence(results: Mapping[str, Any]) -> str:
    seconds, goals = results["seconds"], results["goals"]
    return (
        f"`import polytask` takes {1e3 * seconds['import_polytask']:.0f} ms beyond importing torch (goal: under "
        f"{1e3 * goals['import_polytask']:.0f} ms: {_met(seconds['import_polytask'] < goals['import_polytask'])}), the "
        f"first use of `train`, `compare` and `load` {duration(seconds['first_use'])} more, and `polytask --help` "
        f"{duration(seconds['help'])} (goal: under {1e3 * goals['help']:.0f} ms: "
        f"{_met(seconds['help'] < goals['help'])}). Medians of {results['repeats']} fresh processes."
    )


def provenance_sentence(record: Mapping[str, Any]) -> str:
    """When, where and from what."""
    about = record["provenance"]
    older = [commit for commit in record.get("commits_of_runs", []) if commit.rstrip("+") not in about["commit"]]
    mixed = f" (some runs at {listed(older)})" if older else ""
    others = record["cores_used_by_others"]
    busy = f"; other processes used {others:.1f} cores meanwhile, so times are too long" if others >= 0.2 else ""
    return (
        f"Measured {about['date'][:10]} at commit {about['commit']}{mixed} on {about['hardware']}; polytask "
        f"{about['polytask']}, torch {about['torch']}, Python {about['python']}; "
        f"{duration(3600 * record['hours'])}{busy}."
    )


def _more(more: float, than: float) -> str:
    share = percent(100 * more / than)
    return f"{abs(more):.2f} ms ({share}) {'more' if more >= 0 else 'less'}"


def _met(is_met: bool) -> str:
    return "met" if is_met else "**not met**"
