"""The engine `auto`, the default: what it takes by shapes, and what it finds by the clock."""

import io

import pytest
import torch
from tests.balancing.test_layerwise import TASKS, checked
from torch import Tensor, nn

import polytask
from polytask.balancing.auto import Timing
from polytask.core.errors import BadValue, CheckpointError, GraphError

WIDE, ROWS = 400, 6  # few rows: by inner products a hundredth of the work


def made(dtype: torch.dtype = torch.float64, tasks: int = 3) -> nn.ModuleDict:
    """A wide layer, one with fewer inputs than rows, and heads."""
    torch.manual_seed(0)
    parts = {"narrow": nn.Linear(4, WIDE), "wide": nn.Linear(WIDE, WIDE), "norm": nn.LayerNorm(WIDE)}
    return nn.ModuleDict({**parts, **{task: nn.Linear(WIDE, 1) for task in TASKS[:tasks]}}).to(dtype)


def losses_of(model: nn.ModuleDict, step: int = 0, tasks: list[str] = TASKS) -> dict[str, Tensor]:
    x = torch.randn(ROWS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    hidden = model["norm"](model["wide"](model["narrow"](x.to(model["wide"].weight.dtype)).tanh()).tanh())
    return {task: (model[task](hidden) - TASKS.index(task)).square().mean() for task in tasks}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_default_and_exact(dtype: torch.dtype) -> None:
    model = made(dtype)
    size = sum(parameter.numel() for parameter in model.parameters())
    tolerance = 1e-10 if dtype == torch.float64 else size**0.5 * torch.finfo(torch.float32).eps
    report = checked(model, losses_of(model), polytask.balancer("upgrad"), tolerance)
    assert report.route == {"narrow": f"exact: {ROWS} rows, fan-in 4", "wide": "layerwise", "norm": "exact"}


def test_many_rows_take_no_more_memory_than_exact() -> None:
    """With forty tasks inner products would still be less work for somewhat more rows than fan-in."""
    model = nn.ModuleDict({"trunk": nn.Linear(256, 640), **{str(i): nn.Linear(640, 1) for i in range(40)}})
    routes = []
    for rows in (256, 257):
        hidden = model["trunk"](torch.randn(rows, 256)).relu()
        losses = {str(i): model[str(i)](hidden).square().mean() for i in range(40)}
        routes.append(polytask.balancer("upgrad").backward(losses, model).route["trunk"])
    assert routes == ["layerwise", "exact: 257 rows, fan-in 256"]


@pytest.mark.parametrize("first", ["narrow", "wide"])
def test_a_hook_on_a_layers_output_is_heard(first: str) -> None:
    """Of a layer whose inputs need gradients, and of the first one, through which no backward pass goes."""
    grads = []
    for factor in (3.0, 1.0):
        model = made()
        x = torch.ones(2, 4, dtype=torch.float64)
        hidden = model["narrow"](x).tanh() if first == "narrow" else torch.ones(2, WIDE, dtype=torch.float64)
        output = model["wide"](hidden)
        output.register_hook(lambda grad, factor=factor: factor * grad)
        report = polytask.balancer("mean").backward({task: model[task](output).sum() for task in TASKS}, model)
        assert report.route["wide"] == "layerwise"
        grads.append((model["wide"].weight.grad, report.gram))
    (tripled, gram), (plain, other) = grads
    torch.testing.assert_close(tripled, 3 * plain)
    if first == "wide":
        torch.testing.assert_close(gram, 9 * other)


def test_a_graph_that_is_used_up_or_changed() -> None:
    model = made()
    losses = losses_of(model)
    polytask.balancer("upgrad").backward(losses, model)
    model.zero_grad()
    with pytest.raises(GraphError, match="backward was already called on it"):
        polytask.balancer("upgrad").backward(losses, model)
    hidden = model["narrow"](torch.ones(2, 4, dtype=torch.float64)).relu()
    losses = {task: model[task](model["wide"](hidden)).sum() for task in TASKS}
    with torch.no_grad():
        hidden.add_(1)
    with pytest.raises(GraphError, match="was changed between the forward pass and backward"):
        polytask.balancer("upgrad").backward(losses, model)
    assert all(parameter.grad is None for parameter in model.parameters())


TUNED = {"kind": "auto", "tune": True}


def test_the_fastest_is_kept() -> None:
    """By the median of the steps that count: not the first of a candidate's turn, which allocates."""
    timing = Timing(TASKS)
    seconds = {"auto": [90, 3, 5, 0, 4, 4], "exact": [1, 6, 1, 1, 6, 5], "layerwise": [50, 3, 3, 50, 3, 90]}
    turns = []
    for _ in range(18):
        assert not timing.is_done
        turns.append(timing.candidate)
        timing.note(seconds[timing.candidate].pop(0), (timing.candidate,))
    assert turns == [name for name in ("auto", "exact", "layerwise") * 2 for _ in range(3)]
    assert timing.is_done
    assert timing.seconds == {"auto": [3, 5, 4, 4], "exact": [6, 1, 6, 5], "layerwise": [3, 3, 3, 90]}
    assert timing.fastest == "layerwise"


def test_a_timing_ends_and_stays_exact() -> None:
    """The routes of `auto` and `layerwise` are one here, and the second is left out."""
    model = made()
    balancer = polytask.balancer("upgrad", engine=TUNED)
    routes = []
    for step in range(13):
        assert balancer.engine.chosen is None
        model.zero_grad()
        routes.append(checked(model, losses_of(model, step), balancer, 1e-10).route["wide"])
    assert routes == ["layerwise"] * 3 + ["exact"] * 3 + ["layerwise"] * 4 + ["exact"] * 3
    assert balancer.engine.chosen in ("auto", "exact")
    model.zero_grad()
    chosen = {"auto": "layerwise", "exact": "exact"}[balancer.engine.chosen]
    assert checked(model, losses_of(model), balancer, 1e-10).route["wide"] == chosen


def test_steps_of_other_tasks_are_not_timed() -> None:
    model = made()
    balancer = polytask.balancer("upgrad", tasks=TASKS, engine=TUNED)
    for step in range(40):
        model.zero_grad()
        balancer.backward(losses_of(model, step, TASKS if step % 2 == 0 else ["a", "c"]), model)
        assert (balancer.engine.chosen is None) == (step < 24)  # two candidates differ: 12 steps, and one that was not


def test_what_was_chosen_is_saved() -> None:
    model, balancer = made(), polytask.balancer("upgrad", engine=TUNED)
    while balancer.engine.chosen is None:
        balancer.backward(losses_of(model), model)
    file = io.BytesIO()
    torch.save(balancer.state_dict(), file)
    file.seek(0)
    other = polytask.balancer("upgrad", engine=TUNED)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.engine.chosen == balancer.engine.chosen
    saved = balancer.state_dict()
    saved["engine"]["chosen"] = "fastest"
    with pytest.raises(CheckpointError, match="has chosen engine 'fastest'; allowed: auto"):
        other.load_state_dict(saved)
    known = polytask.balancer("upgrad", engine={**TUNED, "chosen": "exact"})
    assert known.backward(losses_of(model), model).route["wide"] == "exact"


@pytest.mark.parametrize("rule", ["equal", "graddrop", "moco", "sharpness_aware", "modo"])
def test_nothing_to_time(rule: str) -> None:
    with pytest.raises(BadValue, match=f"tune is True; allowed: false: rule '{rule}' has one route"):
        polytask.balancer(rule, engine=TUNED)
    polytask.balancer(rule, engine="auto")


def test_bad_options() -> None:
    for engine, match in [
        ({"kind": "auto", "tune": 1}, "tune is 1; allowed: true or false"),
        ({"kind": "auto", "chosen": "fast"}, "chosen is 'fast'; allowed: auto | exact | layerwise"),
    ]:
        with pytest.raises(BadValue, match=match):
            polytask.balancer("upgrad", engine=engine)
