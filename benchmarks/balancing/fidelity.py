"""How near the cheap engines' updates are to the exact one's over a run: cosines at the same parameters and batch."""

import itertools
import statistics
from typing import Any

import torch
from torch import Tensor, nn

import polytask

TASKS, STEPS, ROWS = 8, 200, 256


def _model() -> nn.ModuleDict:
    torch.manual_seed(0)
    sizes = [64, 128, 128]
    trunk = nn.Sequential(*(layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())))
    return nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleList(nn.Linear(128, 10) for _ in range(TASKS))})


def _losses(model: nn.ModuleDict, x: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    features = model["trunk"](x)
    heads = zip(model["heads"], labels, strict=True)
    return {str(i): nn.functional.cross_entropy(head(features), y) for i, (head, y) in enumerate(heads)}, features


def measure() -> dict[str, Any]:
    """Engine -> median and lowest cosine of its update of the trunk with the exact one, which trains the model."""
    model, teachers = _model(), torch.randn(TASKS, 64, 10, generator=torch.Generator().manual_seed(1))
    balancers = {
        "exact": polytask.balancer("upgrad", engine="exact"),
        "representation": polytask.balancer("upgrad", engine="representation"),
        "subset": polytask.balancer("upgrad", engine="subset"),
        "interval": polytask.balancer("upgrad", engine={"kind": "interval", "every": 10}),
        "equal weights": polytask.balancer("mean"),
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    noise = torch.Generator().manual_seed(2)
    cosines: dict[str, list[float]] = {name: [] for name in balancers if name != "exact"}
    for _ in range(STEPS):
        x = torch.randn(ROWS, 64, generator=noise)
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
            balancers[name].backward(losses, model, **more)
            updates[name] = torch.cat([parameter.grad.flatten() for parameter in model["trunk"].parameters()])
        for name, values in cosines.items():
            values.append(float(nn.functional.cosine_similarity(updates[name], updates["exact"], dim=0)))
        optimizer.step()
    return {
        name: {"median": round(statistics.median(values), 4), "lowest": round(min(values), 4)}
        for name, values in cosines.items()
    }
