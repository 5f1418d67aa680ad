"""A task's part of a model taken out: experts that no token of the task's rows uses are closed to it, then removed.

model = trimmed(model, [(["click"], inputs_of_clicks), (["topic"], inputs_of_topics)])
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from polytask.core.errors import BadValue
from polytask.sharing.encoders.contract import evaluating
from polytask.sharing.mod_squad import ModSquad
from polytask.sharing.model import MultiTaskModel
from polytask.sharing.tape import listen

Piece = tuple[list[str], Mapping[str, Tensor]] | tuple[list[str], Mapping[str, Tensor], str | None]
"""Some rows: see `trimmed`."""


def trimmed(model: MultiTaskModel, rows: Iterable[Piece], *, threshold: float = 0.0) -> MultiTaskModel:
    """A new model without the experts that tasks do not use on these rows; `model` is unchanged.

    An expert stays open to a task where more than `threshold` of the task's tokens use it (the most used one always
    does); one that is open to no task is gone. At threshold 0 the outputs on these rows are the same bit by bit. A task
    without rows keeps all of its experts. What is left for which task is in the model's spec, so it is saved and built
    again as it is; and a task that is added later chooses among the experts that are left.

    Source: Chen et al. 2022, arXiv:2212.08066 (Mod-Squad), and Chen et al. 2023, arXiv:2306.17165: a task's experts
    extracted as a model of their own.
    Departures: the papers' text was not at hand: which experts count as used is measured by tokens, and by the
    threshold's default only those go that change nothing.
    Cost: a pass through the model for each piece of the rows.

    Args:
        model: one with sharing `mod_squad`.
        rows: pieces of (tasks, the inputs of rows of theirs), and the stem that reads them where tasks have several.
        threshold: a share of tokens, at least 0 and below 1.

    Raises:
        BadValue: another architecture, or a threshold outside its range.
    """
    sharing, spec = model.sharing, model.spec
    if not isinstance(sharing, ModSquad) or spec is None:
        found = type(sharing).__name__ if spec is None else spec.sharing.kind
        raise BadValue("the model's sharing", found, "mod_squad")
    if not 0 <= threshold < 1:
        raise BadValue("threshold", threshold, "a number from 0, below 1")
    shares, uses = _shares(model, rows), sharing.uses()
    for task, by_place in shares.items():
        for place, used in by_place.items():
            most = max(used, key=used.__getitem__)
            uses[task][place] = tuple(number for number in used if used[number] > threshold or number == most)
    after = copy.deepcopy(model)
    assert isinstance(after.sharing, ModSquad)
    after.sharing.close(uses)
    options = spec.sharing.model_copy(update={"uses": uses})
    after.spec = spec.model_copy(update={"sharing": options})
    return after


def _shares(model: MultiTaskModel, rows: Iterable[Piece]) -> dict[str, dict[str, dict[int, float]]]:
    """task -> place -> number of an expert -> the share of the task's tokens that use it."""
    counts: dict[tuple[str, str], Tensor] = {}
    tokens: dict[tuple[str, str], int] = {}
    numbers: dict[tuple[str, str], list[int]] = {}
    for tasks, inputs, *stem in rows:
        with evaluating(model), torch.no_grad(), listen() as tape:
            model(inputs, tasks, *stem)
        for key, weights in tape.gates.items():
            used = torch.stack([(column > 0).sum() for column in weights.values()]).double()
            counts[key] = counts[key] + used if key in counts else used
            tokens[key] = tokens.get(key, 0) + len(next(iter(weights.values())))
            numbers[key] = [int(name.rpartition(" ")[2]) for name in weights]
    found: dict[str, dict[str, dict[int, float]]] = {}
    for (place, task), used in counts.items():
        share = (used / tokens[place, task]).tolist()
        found.setdefault(task, {})[place] = dict(zip(numbers[place, task], share, strict=True))
    return found
