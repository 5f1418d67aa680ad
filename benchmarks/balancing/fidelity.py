"""How near the cheap engines' updates are to the exact one's over a run: cosines at the same parameters and batch.

The tasks want different classes of the same outputs and their losses differ a hundredfold, so that gradients conflict
and a rule's weights are far from equal: the row for equal weights says what a cosine is worth.
"""

import itertools
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import polytask

TASKS, STEPS, ROWS, WIDTH, CLASSES = 8, 200, 64, 64, 10
RULES = ("upgrad", "mgda")
PROBLEM = (
    f"{TASKS} tasks that want other classes of the same outputs of an MLP, losses from 0.1 to 10 times cross-entropy, "
    f"{ROWS} rows a step"
)
_SCALES = [10 ** (2 * task / (TASKS - 1) - 1) for task in range(TASKS)]


def _model() -> nn.ModuleDict:
    torch.manual_seed(0)
    sizes = [WIDTH, 128, 128]
    trunk = nn.Sequential(*(layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())))
    return nn.ModuleDict({"trunk": trunk, "head": nn.Linear(128, CLASSES)})


def _losses(model: nn.ModuleDict, x: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    features = model["trunk"](x)
    outputs = model["head"](features)
    pairs = zip(_SCALES, labels, strict=True)
    return {str(i): scale * nn.functional.cross_entropy(outputs, y) for i, (scale, y) in enumerate(pairs)}, features


def measure(steps: int = STEPS) -> dict[str, Any]:
    """Rule -> engine -> median and lowest cosine of its update of the trunk, and how many of the tasks conflicted."""
    return {"problem": PROBLEM, "rules": {rule: _measured(rule, steps) for rule in RULES}}


def _measured(rule: str, steps: int) -> dict[str, Any]:
    """The exact engine's update trains the model."""
    model, teachers = _model(), torch.randn(TASKS, WIDTH, CLASSES, generator=torch.Generator().manual_seed(1))
    balancers = {
        "exact": polytask.balancer(rule, engine="exact"),
        "representation": polytask.balancer(rule, engine="representation"),
        "subset": polytask.balancer(rule, engine="subset"),
        "interval": polytask.balancer(rule, engine={"kind": "interval", "every": 10}),
        "equal weights": polytask.balancer("mean"),
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    noise = torch.Generator().manual_seed(2)
    cosines: dict[str, list[float]] = {name: [] for name in balancers if name != "exact"}
    conflicts = []
    for _ in range(steps):
        x = torch.randn(ROWS, WIDTH, generator=noise)
        labels = torch.stack([(x @ teacher).argmax(1) for teacher in teachers])
        updates = {}
        for name in [*cosines, "exact"]:
            optimizer.zero_grad()
            losses, features = _losses(model, x, labels)
            more: dict[str, Any] = {}
            if name == "representation":
                more = {"representation": features}
            if name == "subset":
                more = {"subset": _losses(model, x[: ROWS // 4], labels[:, : ROWS // 4])[0]}
            report = balancers[name].backward(losses, model, **more)
            updates[name] = torch.cat([parameter.grad.flatten() for parameter in model["trunk"].parameters()])
        conflicts.append(report.conflict_rate)
        for name, values in cosines.items():
            values.append(float(nn.functional.cosine_similarity(updates[name], updates["exact"], dim=0)))
        optimizer.step()
    return {"conflicts": round(statistics.mean(conflicts), 3), "cosines": _summary(cosines)}


def _summary(cosines: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {"median": round(statistics.median(values), 4), "lowest": round(min(values), 4)}
        for name, values in cosines.items()
    }
