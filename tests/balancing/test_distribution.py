"""Two gloo processes take the steps of one process with the whole batch, and stay bit-equal."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

import polytask
from polytask.core.errors import NotFinite

TASKS = ["a", "b", "c"]
RULES = [
    "equal",
    "uncertainty",
    "pcgrad",
    "upgrad",
    "data_balanced",
    "convergence_balanced",
    "moco",
    "db_mtl",
    "excess_mtl",
]
DOUBLE_SAMPLING = ["modo", "sdmgrad"]
IN_PARTS = ["upgrad in parts", "uncertainty in parts"]
AGAIN = ["upgrad recomputed", "uncertainty recomputed"]
ENGINES = ["layerwise", "auto", "representation", "interval"]
PROCEDURES = {
    "sharpness_aware": {"inner": "upgrad", "radius": 0.1},
    "auto_lambda": {"learning_rate": 0.05},
    "maxl": {"generator": "b", "primary": ["a"], "virtual_step": 0.1},
}
CLUSTERS = {"pair": ["a", "b"]}
CLUSTERED = {"clusters": {"rule": "upgrad"}, "clusters again": {"rule": "sharpness_aware", "inner": "upgrad"}}
NAMES = [*RULES, *ENGINES, *PROCEDURES, *CLUSTERED]
ROWS = 12
# step -> task -> the rows that have a label: everywhere, task b on the first process only, nothing on the second at all
LABELS = [
    {"a": range(12), "b": range(12), "c": range(3, 11)},
    {"a": range(12), "b": range(4), "c": range(12)},
    {"a": range(5), "b": range(3), "c": range(6)},
    {"a": range(8), "b": range(12), "c": range(0)},
]


def made() -> nn.ModuleDict:
    torch.manual_seed(1)
    parts = {"trunk": nn.Linear(5, 7), "unused": nn.Linear(2, 2), **{task: nn.Linear(7, 1) for task in TASKS}}
    return nn.ModuleDict(parts).double()


def task_losses(
    model: nn.ModuleDict, step: int, rank: int, world: int, *, representation: bool = False
) -> tuple[dict[str, Tensor], dict[str, float], list[Tensor]]:
    """The losses, how many labels are behind each, and what all of them read, if that is asked for."""
    x = torch.randn(ROWS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    losses, counts, shared = {}, {}, []
    if representation and any(row * world // ROWS == rank for task in TASKS for row in LABELS[step][task]):
        shared = [model["trunk"](x).tanh()]
    for task in TASKS:
        rows = [row for row in LABELS[step][task] if row * world // ROWS == rank]
        if rows:
            outputs = model[task](shared[0][rows] if shared else model["trunk"](x[rows]).tanh())
            losses[task] = (outputs - TASKS.index(task)).square().mean()
            counts[task] = float(len(rows))
    return losses, counts, shared


def functional_losses(
    model: nn.ModuleDict, parameters: Mapping[str, Tensor] | None, step: int, rank: int, world: int
) -> dict[str, Tensor]:
    """As `task_losses`, of any parameters."""
    p = {**dict(model.named_parameters()), **(parameters or {})}
    x = torch.randn(ROWS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    hidden = (x @ p["trunk.weight"].T + p["trunk.bias"]).tanh()
    losses = {}
    for task in TASKS:
        rows = [row for row in LABELS[step % len(LABELS)][task] if row * world // ROWS == rank]
        if rows:
            outputs = hidden[rows] @ p[f"{task}.weight"].T + p[f"{task}.bias"]
            losses[task] = (outputs - TASKS.index(task)).square().mean()
    return losses


def trained(name: str, rank: int, world: int) -> dict[str, Tensor]:
    model = made()
    engine = name if name in ENGINES else "exact"
    options = PROCEDURES.get(name, CLUSTERED.get(name, {"rule": "upgrad" if name in ENGINES else name}))
    clusters = CLUSTERS if name in CLUSTERED else None
    balancer = polytask.balancer(**{"rule": name, **options}, tasks=TASKS, engine=engine, clusters=clusters)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in [0, *range(len(LABELS)), 0]:  # twice the same tasks, so that weights may be kept
        optimizer.zero_grad()
        losses, counts, shared = task_losses(model, step, rank, world, representation=name == "representation")
        more: dict[str, Any] = {"representation": shared} if name == "representation" else {}
        if name not in ENGINES:  # the validation batch is the same everywhere
            more["forward"] = lambda parameters=None, batch=0, step=step: (
                functional_losses(model, parameters, step + 4, 0, 1)
                if batch == "validation"
                else functional_losses(model, parameters, step, rank, world)
            )
        report = balancer.backward(losses, model, counts=counts, **more)
        present = [task for task in TASKS if len(LABELS[step][task])]
        seen = present if clusters is None else ["pair" if task in CLUSTERS["pair"] else task for task in present]
        assert report.tasks == list(dict.fromkeys(seen))
        optimizer.step()
    return {key: value.detach() for key, value in model.named_parameters()}


def trained_by_parts(name: str, rank: int, world: int) -> dict[str, Tensor]:
    """Two steps of three parts each, of one rule on gradients and one on losses."""
    model = made()
    balancer = polytask.balancer(name.partition(" ")[0], tasks=TASKS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for steps in ((0, 1, 2), (3, 2, 1)):
        optimizer.zero_grad()
        for step in steps[:2]:
            losses, counts, _ = task_losses(model, step, rank, world)
            balancer.accumulate(losses, model, counts=counts)
        losses, counts, _ = task_losses(model, steps[2], rank, world)
        assert balancer.backward(losses, model, counts=counts).tasks == TASKS
        optimizer.step()
    return {key: value.detach() for key, value in model.named_parameters()}


def trained_again(name: str, rank: int, world: int) -> dict[str, Tensor]:
    """The same steps, with parts that are computed again."""
    model = made()
    rule, gram = name.split()
    balancer = polytask.balancer(rule, tasks=TASKS, gram=gram)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for steps in ((0, 1, 2), (3, 2, 1)):
        optimizer.zero_grad()
        counts = [task_losses(model, step, rank, world)[1] for step in steps]

        def forward(
            parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0, steps: tuple[int, ...] = steps
        ) -> dict[str, Tensor]:
            return functional_losses(model, parameters, steps[int(batch)], rank, world)

        assert balancer.backward_parts(forward, model, parts=3, counts=counts).tasks == TASKS
        optimizer.step()
    return {key: value.detach() for key, value in model.named_parameters()}


def trained_by_batches(name: str, rank: int, world: int) -> dict[str, Tensor]:
    """Three steps of three independent batches each; in the second, task b has labels on the first process only."""
    model = made()
    balancer = polytask.balancer(name, tasks=TASKS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for steps in ((0, 0, 2), (1, 0, 1), (0, 3, 2)):
        optimizer.zero_grad()
        found = [task_losses(model, step, rank, world) for step in steps]
        report = balancer.backward([each[0] for each in found], model, counts=[each[1] for each in found])
        assert report.tasks == [task for task in TASKS if all(len(LABELS[step][task]) for step in steps)]
        optimizer.step()
    return {key: value.detach() for key, value in model.named_parameters()}


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    result: dict[str, object] = {name: trained(name, rank, 2) for name in NAMES}
    result |= {name: trained_by_batches(name, rank, 2) for name in DOUBLE_SAMPLING}
    result |= {name: trained_by_parts(name, rank, 2) for name in IN_PARTS}
    result |= {name: trained_again(name, rank, 2) for name in [*AGAIN, "upgrad micro_mean"]}
    model = made()
    losses, counts, _ = task_losses(model, 0, rank, 2)
    if rank == 1:
        losses["b"] = losses["b"] * float("nan")
    try:
        polytask.balancer("mgda", tasks=TASKS).backward(losses, model, counts=counts)
    except NotFinite as error:
        result["error"] = str(error)
    result["nothing"] = polytask.balancer("mgda", tasks=TASKS).backward({}, model).tasks
    torch.save(result, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(process, args=(folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", NAMES + DOUBLE_SAMPLING + IN_PARTS + AGAIN)
def test_two_processes_equal_one(results: list[dict], name: str) -> None:
    train = trained_by_batches if name in DOUBLE_SAMPLING else trained_by_parts if name in IN_PARTS else trained
    train = trained_again if name in AGAIN else train
    alone = train(name, 0, 1)
    for key, value in alone.items():
        assert torch.equal(results[0][name][key], results[1][name][key]), f"the replicas differ in {key}"
        torch.testing.assert_close(results[0][name][key], value, rtol=1e-9, atol=1e-12)
    assert not torch.equal(alone["trunk.weight"], made()["trunk"].weight)


def test_two_processes_parts_are_averaged(results: list[dict]) -> None:
    """The mean of the parts' Gram matrices is over twice as many parts; the replicas stay equal."""
    one, other = (result["upgrad micro_mean"] for result in results)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(one["trunk.weight"], made()["trunk"].weight)


def test_an_infinite_loss_on_one_process_stops_both(results: list[dict]) -> None:
    assert [result["error"] for result in results] == ["the loss of task 'b' is nan at step 0"] * 2


def test_a_step_without_any_label_is_empty(results: list[dict]) -> None:
    assert [result["nothing"] for result in results] == [[], []]
