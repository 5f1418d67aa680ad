"""What the merges of experts show, in sentences and a table: made from the numbers, the unwelcome ones too."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.expert_merges.measure import share
from polytask.core.errors import CheckpointError
from polytask.evaluation.formatting import MINUS, counted, duration, fixed, in_words, listed

MIB = 2**20
KEPT_BY_TALL_MASKS = 99.0
"""Percent of the experts' accuracy that arXiv:2405.07813 reports TALL-masks to keep, at least."""

KEPT_BY_GRAFTS = 95.0
"""Percent that arXiv:2302.06600 reports of grafts, at least."""

SAME = 0.01
"""How far two scores of one expert may be apart: in bf16 batches of other rows turn over a row of hundreds."""

OF_GRAFTS = 1e-4
"""The share of the elements that it reports this of."""

WEAK = 0.3
"""A test score below this makes a task's shares large or negative by few rows."""

APART = 2.0
"""Percent between two means of shares below which nothing is said: a mean over six tasks of 250 to 400 test rows each,
with scores near 0.85, has a standard error of about 1."""

ORDERINGS = (
    ("adamerging", "task_arithmetic", "arXiv:2310.02575"),
    ("consensus_ties", "ties", "arXiv:2405.07813"),
    ("ties", "task_arithmetic", "arXiv:2306.01708"),
    ("consensus", "task_arithmetic", "arXiv:2405.07813"),
    ("regmean", "linear", "arXiv:2212.09849"),
    ("fisher", "linear", "arXiv:2111.09832"),
)
"""(method, the one that its paper reports it to beat, the paper); those that were measured are compared."""

_BESIDE = {
    "base": "the base with the experts' heads",
    "joint": "one model trained on all tasks",
    "atm": "tuning and merging in turn (ATM)",
    "tall_masks": "a store of `tall_masks`: a task's own model",
    "emr": "a store of `emr`: a task's own model",
    "sparse": "a store of `sparse`, 5 % of the elements: a task's own model",
}
_NOT_MERGED = ("–", "–", "–")
Results = Mapping[str, Any]


def blocks(results: Results) -> list[str]:
    """Sentences, the table, what is left out, and the table of grafts."""
    shown = [_sentences(results), _orderings(results), _table(results), _caption(results), *_left_out(results)]
    grafts = results.get("grafts")
    return [*shown, *([] if grafts is None else [_about_grafts(grafts), _table_of_grafts(grafts)])]


def joined(first: Results, *others: Results) -> dict[str, Any]:
    """The methods of several results as one, and `grafts`: the result on grafts of these experts, if there is one.

    Raises:
        CheckpointError: they did not merge the same experts.
    """
    rows = {row["name"]: row for row in first["rows"]}
    left_out, seeds, grafts = dict(first["left_out"]), list[Results](), dict[str, Results]()
    for other in others:
        if "elements" in other:
            grafts = {"grafts": _of_same_experts(other, first)}
            continue
        if "other_seeds" in other:
            seeds += other["other_seeds"]
            continue
        if other["tasks"] != first["tasks"]:
            raise CheckpointError("results of merged experts cannot be joined: the experts' scores differ")
        rows = {**{row["name"]: row for row in other["rows"]}, **rows}
        left_out = {**other["left_out"], **left_out}
    return {
        **first,
        **grafts,
        "rows": list(rows.values()),
        "other_seeds": seeds,
        "left_out": {name: why for name, why in left_out.items() if name not in rows},
    }


def _of_same_experts(grafts: Results, first: Results) -> Results:
    for task, own in grafts["tasks"].items():
        if any(abs(score - first["tasks"][task][split]) > SAME for split, score in own["expert"].items()):
            raise CheckpointError(f"results of grafted experts cannot be joined: the scores of {task} differ")
    return grafts


def _sentences(results: Results) -> str:
    rows = _ranked(results)
    best, *_ = rows
    ahead = [f"`{row['name']}` ({_percent(_mean(results, row))})" for row in rows[:10]]
    joint = _mean(results, results["beside"]["joint"])
    above = [row for row in rows if _mean(results, row) > joint]
    return (
        f"{counted(len(rows), 'method')} merged the experts of {listed(results['tasks'])}. Chosen on the validation "
        f"split, `{best['name']}` leads; it keeps {_percent(_mean(results, best))} of the experts' test scores, one "
        f"model trained on all tasks {_percent(joint)}, and the base with the experts' heads "
        f"{_percent(_mean(results, results['beside']['base']))}. "
        f"{str(len(above)) if above else 'None'} of the {counted(len(rows), 'merge')} did better than joint training. "
        f"The ten that validation ranks first: {listed(ahead)}."
    )


def _orderings(results: Results) -> str:
    """What the papers report, and what was found."""
    rows = {row["name"].partition(" ")[0]: row for row in results["rows"]}
    sentences = [_of_tall_masks(results), *_of_grafts(rows, results)]
    for name, other, paper in ORDERINGS:
        if name in rows and other in rows:
            pairs = _paired(results, rows[name]["name"], rows[other]["name"])
            found = _verdict([ours - theirs for ours, theirs in pairs])
            means = [_percent(sum(values) / len(pairs)) for values in zip(*pairs, strict=True)]
            seeds = f" over {in_words(len(pairs))} seeds" if len(pairs) > 1 else ""
            sentences.append(f"`{name}` beats `{other}` ({paper}): {found}, {means[0]} beside {means[1]}{seeds}.")
    return f"What the papers report, with one seed of experts where no more are named: {' '.join(sentences)}"


def _paired(results: Results, name: str, other: str) -> list[tuple[float, float]]:
    """The means of two methods, a pair for each seed that has both."""
    ours, theirs = (_of_seeds(results, each) for each in (name, other))
    return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]


def _verdict(differences: Sequence[float]) -> str:
    """On one method's means minus another's, a seed each: apart where they are on average and no seed disagrees."""
    mean = sum(differences) / len(differences)
    if abs(mean) <= APART or any(each * mean <= 0 for each in differences):
        return "not told apart here"
    return "so it is here" if mean > 0 else "**not so here**"


def _of_seeds(results: Results, name: str) -> dict[int, float]:
    """Seed of the experts -> the method's mean, where it merged them."""
    return {
        found["seed"]: _mean(found, row)
        for found in (results, *results.get("other_seeds", ()))
        for row in found["rows"]
        if row["name"] == name
    }


def _of_tall_masks(results: Results) -> str:
    found = results["beside"]["tall_masks"]
    kept, size = _mean(results, found), 100 * found["bytes"] / found["bytes_of_models"]
    so = "so it is here" if kept >= KEPT_BY_TALL_MASKS else "**not so here**"
    return (
        f"TALL-masks keep over {KEPT_BY_TALL_MASKS:.0f} % of the experts' accuracy at a fraction of the storage "
        f"(arXiv:2405.07813): {so}, {_percent(kept)} at {_percent(size)} of the bytes."
    )


def _of_grafts(rows: Mapping[str, Results], results: Results) -> list[str]:
    """The claim, and what was found: each task's graft alone, where that was measured, and all of them on one base."""
    found, so = list[str](), ""
    if "grafts" in results:
        learned = _least_graft(results["grafts"], "graft")
        kept = _kept(results["grafts"], learned)
        so = "so it is here" if kept > KEPT_BY_GRAFTS else "**not so here**"
        largest = _kept(results["grafts"], _least_graft(results["grafts"], "trim"), list(learned["tasks"]))
        base = _kept(results["grafts"], {"tasks": _bases(results["grafts"])}, list(learned["tasks"]))
        found.append(
            f"{_percent(kept)} on average over {listed(learned['tasks'])} after {_steps(learned)}, each graft alone on "
            f"the base, beside {_percent(largest)} with the elements that moved furthest and {_percent(base)} with none"
        )
    if "graft" in rows:
        kept = _mean(results, rows["graft"])
        so = so or ("so it is here" if kept > KEPT_BY_GRAFTS else "**not so here**")
        together = "where the grafts of all tasks lie on one base, after the few steps that the row's name tells"
        found.append(f"{_percent(kept)} {together}")
    claim = (
        f"A graft of about {100 * OF_GRAFTS:g} % of the parameters keeps over {KEPT_BY_GRAFTS:.0f} % of a fine-tune's "
        "accuracy (arXiv:2302.06600, one task at a time)"
    )
    return [f"{claim}: {so}, {'; '.join(found)}."] if found else []


def _least_graft(grafts: Results, kind: str) -> Results:
    return next(row for row in grafts["rows"] if (row["kind"], row["density"]) == (kind, OF_GRAFTS))


def _bases(grafts: Results) -> dict[str, Results]:
    return {task: own["base"] for task, own in grafts["tasks"].items()}


def _kept(grafts: Results, row: Results, tasks: Sequence[str] | None = None) -> float:
    """The mean over tasks of the test score in percent of the expert's."""
    named = row["tasks"] if tasks is None else tasks
    scores = {task: row["tasks"][task]["test"] for task in named}
    return 100 * share(scores, {task: grafts["tasks"][task]["expert"]["test"] for task in named})


def _steps(row: Results) -> str:
    return counted(next(iter(row["tasks"].values()))["steps"], "step")


def _about_grafts(grafts: Results) -> str:
    learned = [found["seconds"] for row in grafts["rows"] if row["kind"] == "graft" for found in row["tasks"].values()]
    return (
        "Each expert's graft on the base alone, with its own head: test scores as a share of the expert's, one seed of "
        f"experts (seed {grafts['seed']}), {grafts['elements']:,} elements without heads. `trim` keeps the elements "
        f"that moved furthest; `graft` learns them on training rows, {grafts['batch_size']} a step and "
        f"{_steps_of(grafts)}, a graft in {duration(min(learned))} to {duration(max(learned))}. So few steps do not "
        "tell what a long descent would find."
    )


def _steps_of(grafts: Results) -> str:
    return listed(dict.fromkeys(_steps(row) for row in grafts["rows"] if row["kind"] == "graft"))


def _table_of_grafts(grafts: Results) -> str:
    tasks = grafts["tasks"]
    lines = [["", "elements", *tasks], ["---", *["---:"] * (1 + len(tasks))]]
    rows = [{"name": _BESIDE["base"], "density": 0.0, "tasks": _bases(grafts)}, *grafts["rows"]]
    for row in rows:
        name = f"`{row['name']}`" if row["density"] else row["name"]
        cells = [_kept_of(grafts, row, task) if task in row["tasks"] else "–" for task in tasks]
        lines.append([name, f"{round(row['density'] * grafts['elements']):,}", *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _kept_of(grafts: Results, row: Results, task: str) -> str:
    worth = grafts["tasks"][task]["expert"]["test"] > 0
    return _percent(_kept(grafts, row, [task])) if worth else fixed(row["tasks"][task]["test"], 3)


def _table(results: Results) -> str:
    tasks = results["tasks"]
    seeds = 1 + len(results.get("other_seeds", ()))
    over = [f"mean of {in_words(seeds)} seeds (lowest, highest)"] if seeds > 1 else []
    head = ["", "chosen", "mean", *over, *tasks, "mean, defaults", "time", "memory"]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    own = [fixed(about["test"], 3) for about in tasks.values()]
    metrics = [about["metric"] for about in tasks.values()]
    lines.append(
        [
            "the experts themselves",
            *("" for _ in ["chosen", "mean", *over]),
            *(f"{a}<br>{b}" for a, b in zip(metrics, own, strict=True)),
            *_NOT_MERGED,
        ]
    )
    for name, words in _BESIDE.items():
        if name in results["beside"]:
            beside = results["beside"][name]
            size = (
                f"{_percent(100 * beside['bytes'] / beside['bytes_of_models'])} of the bytes"
                if "bytes" in beside
                else ""
            )
            mean, *shares = _shares(results, beside)
            lines.append([words, size, mean, *("" for _ in over), *shares, *_NOT_MERGED])
    lines += [_line(results, row) for row in _ranked(results)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _line(results: Results, row: Results) -> list[str]:
    defaults = _percent(share(row["defaults"]["test"], _experts(results, "test")) * 100)
    costs = [duration(row["seconds"]), f"{row['anonymous'] / MIB:.0f} MiB"]
    mean, *shares = _shares(results, row)
    found = list(_of_seeds(results, row["name"]).values())
    seeds = 1 + len(results.get("other_seeds", ()))
    range_ = f"{_percent(sum(found) / seeds)} ({_percent(min(found))}, {_percent(max(found))})"
    over = [range_ if len(found) == seeds else ""] if seeds > 1 else []
    return [f"`{row['name']}`", _settings(row["settings"]), mean, *over, *shares, defaults, *costs]


def _shares(results: Results, row: Results) -> list[str]:
    """The mean, then a share a task."""
    experts = _experts(results, "test")
    each = [
        _percent(100 * row["test"][task] / own) if own > 0 else fixed(row["test"][task], 3)
        for task, own in experts.items()
    ]
    return [f"**{_percent(_mean(results, row))}**", *each]


def _caption(results: Results) -> str:
    useless = [task for task, own in _experts(results, "test").items() if own <= 0]
    nothing = (
        f"The expert of {listed(useless)} learned nothing in these few steps (its metric is 0 or less): its task has "
        "no shares, is shown by its own score, and is in no mean."
    )
    weak = [f"{task} ({fixed(own, 3)})" for task, own in _experts(results, "test").items() if 0 < own < WEAK]
    swings = f"The expert of {listed(weak)} is weak, so shares of it swing, and the mean with them."
    settings = (
        f"Every method tried {results['settings_tried']} settings, its defaults among them, chosen on the validation "
        "split, by which rows are ordered: lengths of the merged vector (`scale`), and for a method with a density "
        "another density."
    )
    data = "Merges that read data read validation rows; numbers in a name are not the defaults."
    seconds = [duration(sum(_training(results).values())), duration(results["training"]["joint"]["seconds"])]
    told = [
        "Test scores as a share of the expert's own, whose scores are in the first row; the mean is over tasks.",
        nothing if useless else "",
        swings if weak else "",
        settings,
        data if any("=" in row["name"] for row in results["rows"]) else "",
        "Time and memory are those of the merge with the defaults, beyond a process that has imported polytask.",
        _on_seeds(results),
        f"Training took {seconds[0]} for the experts, {seconds[1]} for the joint model.",
    ]
    return " ".join(part for part in told if part)


def _on_seeds(results: Results) -> str:
    first, others = results["seed"], [found["seed"] for found in results.get("other_seeds", ())]
    if not others:
        return f"One seed of experts (seed {first}), so differences of a few percent mean nothing."
    return (
        f"The experts are those of seed {first}; the methods with a mean over seeds merged those of "
        f"{listed([str(seed) for seed in others])} too, with the settings chosen anew. Differences of a few percent "
        "mean nothing."
    )


def _training(results: Results) -> dict[str, float]:
    """Seconds of each expert."""
    return {task: results["training"][task]["seconds"] for task in results["tasks"]}


def _left_out(results: Results) -> list[str]:
    if not results["left_out"]:
        return []
    return [f"Left out: {'; '.join(f'`{name}` ({why})' for name, why in results['left_out'].items())}."]


def _ranked(results: Results) -> list[Results]:
    """By the validation split; the name decides between equals."""
    experts = _experts(results, "valid")
    rows: Sequence[Results] = results["rows"]
    return sorted(rows, key=lambda row: (-share(row["valid"], experts), row["name"]))


def _experts(results: Results, split: str) -> dict[str, float]:
    return {task: about[split] for task, about in results["tasks"].items()}


def _mean(results: Results, row: Results) -> float:
    return 100 * share(row["test"], _experts(results, "test"))


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())


def _percent(value: float) -> str:
    return f"{value:.1f} %".replace("-", MINUS)
