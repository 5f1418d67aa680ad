"""A small problem for learned merges: three classifiers on one trunk, fine-tuned from one base by a few plain steps."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.core.noise import Noise
from polytask.merging.samples import MemorySamples, samples

TASKS = ["a", "b", "c"]
WIDTH, CLASSES, ROWS = 6, 3, 12
Batch = dict[str, Tensor]


class Net(nn.Module):
    """A trunk with BatchNorm, and a head a task, of which the model of one task has its own only."""

    def __init__(self, tasks: list[str], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.norm = nn.BatchNorm1d(WIDTH)
        self.heads = nn.ModuleDict({task: nn.Linear(WIDTH, CLASSES) for task in tasks})
        self.to(dtype)
        for name, value in self.named_parameters():
            value.data = drawn(name, value.shape).to(dtype) * 0.7
        with torch.no_grad():
            self.norm.running_mean.add_(0.1)

    def forward(self, x: Tensor, task: str) -> Tensor:
        hidden = self.norm(self.layers[0](x)).tanh()
        return self.heads[task](self.layers[1](hidden).relu())


def drawn(key: str, shape: Any, seed: int = 0) -> Tensor:
    return torch.from_numpy(Noise(seed, key).normal(torch.Size(shape).numel())).reshape(shape).float()


def batch(task: str, number: int) -> Batch:
    """Rows of a task: the class is the largest of three of the inputs, in an order of the task's own."""
    x = drawn(f"{task}/{number}", (ROWS, 4))
    turned = x.roll(TASKS.index(task), dims=1)[:, :CLASSES]
    return {"x": x, "label": turned.argmax(1)}


def trunk(model: nn.Module) -> dict[str, Tensor]:
    """What is merged: all but the heads and the counter."""
    state = model.state_dict()
    return {n: v.detach().clone() for n, v in state.items() if not n.startswith("heads.") and v.is_floating_point()}


def fine_tuned(task: str, steps: int = 30) -> Net:
    model = Net([task])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    model.eval()  # the statistics stay the base's, so a fine-tune is a function of its weights alone
    for step in range(steps):
        rows = batch(task, step)
        optimizer.zero_grad()
        F.cross_entropy(model(rows["x"], task), rows["label"]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.train()


class Problem:
    """base, models, data. `steps`: how far the fine-tunes went."""

    def __init__(self, batches: int = 4) -> None:
        self.base = trunk(Net(["a"]))
        self.nets = {task: fine_tuned(task) for task in TASKS}
        self.models = {task: trunk(net) for task, net in self.nets.items()}
        self.batches = {task: [batch(task, 100 + number) for number in range(batches)] for task in TASKS}

    def samples(self, **options: Any) -> MemorySamples:
        given = {"forward": lambda net, task, rows: net(rows["x"], task), "loss": loss, **options}
        return samples(
            self.nets, options.pop("batches", self.batches), **{k: v for k, v in given.items() if k != "batches"}
        )


def loss(task: str, outputs: Tensor, rows: Batch) -> Tensor | None:
    """None where the batch has no label (-1)."""
    present = rows["label"] >= 0
    return F.cross_entropy(outputs[present], rows["label"][present]) if bool(present.any()) else None
