"""Merges that keep a router: a row is computed with its own mixture of the experts, as if its weights were formed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from polars.testing import assert_frame_equal
from torch import Tensor, nn

import polytask
from cli.small_recipe import table
from merging.learned_problem import TASKS, Net, Problem, drawn
from merging.test_learned_runs import plan, runs
from polytask.checkpoints import verify_checkpoint
from polytask.core.errors import BadValue, CheckpointError, Inconsistent, MissingInput, UnknownName
from polytask.merging.learning import learn
from polytask.merging.routers import EmbeddingRouter, scores
from polytask.merging.routing import FILE, Routed, embedding, mixed
from polytask.merging.samples import samples

__all__ = ["runs"]

LINEAR = ("layers.0.weight", "layers.1.weight")


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


def merged(problem: Problem, **parameters: Any) -> tuple[EmbeddingRouter, dict[str, Tensor], dict[str, Any]]:
    found, tensors = learn("twin_merging", problem.models, problem.samples(), base=problem.base, **parameters)
    return EmbeddingRouter.of_tensors(found.router), tensors, dict(found.facts)


def shared_net(task: str, tensors: dict[str, Tensor], problem: Problem) -> Net:
    net = Net([task])
    net.load_state_dict({**problem.nets[task].state_dict(), **tensors})
    return net.double().eval()


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_each_row_has_its_own_weights(problem: Problem, rank: int) -> None:
    """Against a model a row, in float64: W* + sum_t w_t SVD_r(W_t - W*), w = softmax of the router's scores."""
    router, tensors, _ = merged(problem, scale=0.4, rank=rank, batches=2, steps=20)
    for task in TASKS:
        net, x = shared_net(task, tensors, problem), drawn("rows", (7, 4), 5).double()
        found = Routed(net, router)(x, task)
        with torch.no_grad():
            hidden = net.norm(net.layers[0](x)).tanh()
            read = net.layers[1](hidden).relu()
        weights = scores(tuple(each.double() for each in router.layers), read).softmax(1)
        for row in range(len(x)):
            own = shared_net(task, tensors, problem)
            state = own.state_dict()
            for name in LINEAR:
                base = problem.base[name].double()
                deltas = [problem.models[t][name].double() - base for t in TASKS]
                shared = base + 0.4 * sum(deltas)
                torch.testing.assert_close(state[name], shared, rtol=1e-6, atol=1e-6)
                for share, delta in zip(weights[row], deltas, strict=True):
                    U, S, Vh = torch.linalg.svd(base + delta - shared, full_matrices=False)
                    state[name] = state[name] + share * U[:, :rank] * S[:rank] @ Vh[:rank]
            own.load_state_dict(state)
            torch.testing.assert_close(found[row], own(x[row : row + 1], task)[0], rtol=1e-5, atol=1e-6)


def test_a_router_that_is_sure_gives_the_expert(problem: Problem) -> None:
    """With a factor for every direction; what is no linear layer stays the shared expert's."""
    router, tensors, _ = merged(problem, rank=6, batches=1, steps=1)
    hidden, bias, output, output_bias = router.layers
    for number, task in enumerate(TASKS):
        sure = torch.zeros_like(output_bias)
        sure[number] = 1e4
        one = EmbeddingRouter(router.experts, (hidden, bias, output, sure))
        net = shared_net(task, tensors, problem)
        expert = shared_net(task, {**tensors, **{n: problem.models[task][n] for n in LINEAR}}, problem)
        x = drawn("rows", (5, 4), 6).double()
        torch.testing.assert_close(Routed(net, one)(x, task), expert(x, task), rtol=1e-5, atol=1e-5)


def test_rows_that_look_alike_within_a_task_are_told_apart(problem: Problem) -> None:
    batches = {
        task: [{**rows, "x": rows["x"] + 4.0 * number} for rows in problem.batches[task]]
        for number, task in enumerate(TASKS)
    }
    found = problem.samples(batches=batches)
    learned, _ = learn("twin_merging", problem.models, found, base=problem.base, batches=3)
    assert learned.facts["router_accuracy"] > 0.9
    assert learned.facts["router_loss_last"] < learned.facts["router_loss_first"]
    router = EmbeddingRouter.of_tensors(learned.router)
    assert torch.allclose(router.weights(torch.randn(4, 6)).sum(1), torch.ones(4))
    assert all(
        torch.equal(value, EmbeddingRouter.of_tensors(router.tensors()).tensors()[n])
        for n, value in learned.router.items()
    )


def test_what_cannot_be_routed_says_why(problem: Problem) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 6)])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0](x)

    net = Bare()
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    some = samples(net, {"a": [torch.ones(2, 4)]})
    with pytest.raises(MissingInput, match="a linear layer that is not merged, and the model has none: keep one"):
        learn("twin_merging", {"a": state}, some, base=state, batches=1, steps=1)
    router, tensors, _ = merged(problem, batches=1, steps=1)
    routed = Routed(shared_net("a", tensors, problem), router)
    unlike = pytest.raises(Inconsistent, match=r"layer 'layers.0' reads 3 rows where the router has seen 2")
    with unlike, mixed(routed.model, router.experts, lambda name, rows: torch.ones(2, 3)):
        routed.model(torch.ones(3, 4).double(), "a")
    with pytest.raises(UnknownName, match=r"the routed model: no linear layer with the weight 'layers.1.weight'"):
        Routed(Bare(), router)


def test_positions_are_averaged() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    x = torch.randn(3, 7, 4)
    with embedding(net, ["0.weight"]) as seen:
        net(x)
        net(x[:2])
    torch.testing.assert_close(seen[0], net[0](x).mean(1))
    assert [len(each) for each in seen] == [3, 2]


RULES = [
    {"kind": "twin_merging", "rank": 4, "steps": 50, "batches": 2},
    {"kind": "wemoe", "steps": 30, "learning_rate": 0.05, "hidden": 4},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["kind"])
def test_a_merge_of_runs_predicts_with_its_router(runs: Path, tmp_path: Path, rule: dict[str, Any]) -> None:
    found = polytask.merge(plan(runs, rule=rule), out=tmp_path / "out", data_dir=runs)
    assert found["learned"]["coefficients"] == {"sold": 0.3, "size": 0.3}
    assert FILE in verify_checkpoint(tmp_path / "out").card["files"]
    rows = table().drop("sold", "size", "price", "split")
    model = polytask.load(tmp_path / "out")
    both, one = model.predict(rows), model.predict(rows, ["size"])
    assert one.equals(both.select(one.columns))
    assert_frame_equal(model.predict(rows[:3]), both[:3])
    static = {"kind": "task_arithmetic", "scale": 0.3}
    polytask.merge(plan(runs, rule=static, data=None), out=tmp_path / "shared")
    shared = polytask.load(tmp_path / "shared").predict(rows)
    assert not both.select("sold").equals(shared.select("sold"))
    with pytest.raises(CheckpointError, match=r"keeps a router \(router.safetensors\), which a merge would lose"):
        polytask.merge(plan(runs, tasks={"again": str(tmp_path / "out")}, rule="ties", data=None), out=tmp_path / "x")
    with pytest.raises(BadValue, match="steps is 0; allowed: a number in"):
        polytask.merge(plan(runs, rule={**rule, "steps": 0}), out=tmp_path / "y", data_dir=runs)
    experts = {task: polytask.load(runs / task).evaluate(table())[task] for task in ("sold", "size")}
    assert set(model.evaluate(table())) == set(experts)
