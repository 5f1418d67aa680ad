"""Rules that remember gradients: what they write over several steps, what waits, what is saved."""

import copy
from functools import partial

import pytest
import torch
from tests.balancing.references import check_saved, jacobian, written
from tests.balancing.test_gradients import TASKS, dense_gram, is_shared, losses_of, made
from torch import Tensor, nn

import polytask
from polytask.core.errors import BadValue, CheckpointError, NotFinite, UnknownName
from polytask.core.rules import rule
from polytask.core.tracking import Tracker

RULES = ["moco", "db_mtl", "excess_mtl"]


def shared_jacobian(model: nn.Module, step: int) -> dict[str, Tensor]:
    J = jacobian(losses_of(model, step), dict(model.named_parameters()))
    return {name: stack for name, stack in J.items() if is_shared(name)}


def test_moco_over_steps() -> None:
    """y <- y / 2 + g / 2 over three batches, written out; the weights are the report's."""
    model = made()
    balancer = polytask.balancer("moco", beta=0.5, beta_decay=0.0)
    average = {name: torch.zeros_like(stack) for name, stack in shared_jacobian(model, 0).items()}
    for step in range(3):
        average = {name: average[name] / 2 + stack / 2 for name, stack in shared_jacobian(model, step).items()}
        model.zero_grad()
        report = balancer.backward(losses_of(model, step), model)
        weights = torch.tensor(list(report.weights.values()), dtype=torch.float64)
        torch.testing.assert_close(report.gram, dense_gram(average))
        for name, stack in average.items():
            torch.testing.assert_close(written(model)[name], torch.einsum("t,t...->...", weights, stack))
    own = jacobian(losses_of(model, 2), dict(model.named_parameters()))["heads.a.weight"].sum(0)
    torch.testing.assert_close(model.heads["a"].weight.grad, own)


def test_db_mtl_brings_all_to_one_length() -> None:
    model = made()
    losses = losses_of(model)
    values = torch.stack(list(losses.values())).detach()
    of_logarithms = {
        name: torch.einsum("t,t...->t...", 0.1 / values, J) for name, J in shared_jacobian(model, 0).items()
    }
    lengths = dense_gram(of_logarithms).diagonal().sqrt()
    polytask.balancer("db_mtl").backward(losses, model)
    for name, stack in of_logarithms.items():
        wanted = torch.einsum("t,t...->...", lengths.max() / lengths, stack)
        torch.testing.assert_close(written(model)[name], wanted)


def test_excess_mtl_combines_the_gradients_themselves() -> None:
    model = made()
    balancer = polytask.balancer("excess_mtl", learning_rate=0.5)
    total = {name: torch.zeros_like(stack) for name, stack in shared_jacobian(model, 0).items()}
    risks = []
    for step in range(2):
        J = shared_jacobian(model, step)
        total = {name: total[name] + stack.square() for name, stack in J.items()}
        risks.append(sum((J[name].square() / total[name].sqrt().clamp(min=1e-30)).flatten(1).sum(1) for name in J))
        model.zero_grad()
        balancer.backward(losses_of(model, step), model)
    weights = torch.softmax(0.5 * risks[1] / risks[0], dim=0)
    for name, stack in J.items():
        torch.testing.assert_close(written(model)[name], torch.einsum("t,t...->...", weights, stack))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("groups", ["all", "layer"])
def test_a_saved_balancer_goes_on_bit_for_bit(name: str, groups: str) -> None:
    model = made()
    check_saved(partial(polytask.balancer, name, groups=groups), model, lambda step: losses_of(model, step))


@pytest.mark.parametrize("name", RULES)
def test_absent_tasks_wait(name: str) -> None:
    model = made()
    balancer = polytask.balancer(name, tasks=TASKS)
    balancer.backward(losses_of(model), model)
    before = balancer.state_dict()["rules"]["all"]
    without = {task: loss for task, loss in losses_of(model, 1).items() if task != "b"}
    balancer.backward(without, model)
    after = balancer.state_dict()["rules"]["all"]
    memories = [key for key in before if key.startswith("memory.")]
    assert memories
    for key in memories:
        assert torch.equal(before[key][1], after[key][1]), f"{key} of the absent task changed"
        still_shared = "trunk" in key  # without b the block is a's own
        assert torch.equal(before[key][0], after[key][0]) != still_shared


@pytest.mark.parametrize("name", RULES)
def test_a_step_that_did_not_happen_leaves_no_trace(name: str) -> None:
    model = made()
    balancer = polytask.balancer(name)
    balancer.backward(losses_of(model), model)
    before = copy.deepcopy(balancer.state_dict())
    losses = losses_of(model, 1)
    losses["b"] = losses["b"] * 0 + 1 + (model.block.weight.sum() * 0).sqrt()
    model.zero_grad()
    with pytest.raises(NotFinite, match="the gradient of task 'b' is not finite at step 1"):
        balancer.backward(losses, model)
    after = balancer.state_dict()
    assert not written(model)
    assert after["step"] == 1
    assert all(torch.equal(after["rules"]["all"][key], value) for key, value in before["rules"]["all"].items()
               if isinstance(value, Tensor))  # fmt: skip


def test_an_error_of_the_rule_leaves_its_memory_alone() -> None:
    """The tracker has seen every parameter by then."""
    from jaxtyping import Float

    def remembered(stack: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return stack.clone(), memory + 1

    @rule("test_fails", source="this test", needs=("gram",), scale="sum", tracker=Tracker(remembered))
    def test_fails(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T"]:
        raise BadValue("nothing", 0, "something")

    model = made()
    balancer = polytask.balancer(test_fails, tasks=TASKS)
    with pytest.raises(BadValue, match="nothing"):
        balancer.backward(losses_of(model), model)
    assert balancer.state_dict()["rules"] == {}


@pytest.mark.parametrize("name", RULES)
def test_a_gradient_scaler_changes_nothing_but_the_scale(name: str) -> None:
    """Not even when its factor changes from step to step, since what is remembered does not carry it."""
    model, plain = made(torch.float32), made(torch.float32)
    scaled, balancer = polytask.balancer(name), polytask.balancer(name)
    for step, factor in enumerate((2.0**10, 2.0**4)):
        model.zero_grad()
        plain.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=factor)
        scaled.backward(losses_of(model, step), model, scaler=scaler)
        balancer.backward(losses_of(plain, step), plain)
        for a, b in zip(written(model).values(), written(plain).values(), strict=True):
            torch.testing.assert_close(a / factor, b)


@pytest.mark.parametrize("name", RULES)
def test_an_overflow_is_not_remembered(name: str) -> None:
    model = made(torch.float32)
    balancer = polytask.balancer(name)
    balancer.backward(losses_of(model), model)
    before = copy.deepcopy(balancer.state_dict()["rules"]["all"])
    losses = losses_of(model, 1)
    losses["b"] = losses["b"] * 0 + 1 + (model.block.weight.sum() * 0).sqrt()
    report = balancer.backward(losses, model, scaler=torch.amp.GradScaler("cpu"))
    assert report.skipped
    after = balancer.state_dict()["rules"]["all"]
    assert all(torch.equal(after[key], value) for key, value in before.items() if isinstance(value, Tensor))


@pytest.mark.parametrize("name", ["moco", "excess_mtl"])
def test_a_priority_multiplies_the_loss(name: str) -> None:
    model, other = made(), made()
    factors = {"a": 1.5, "b": 0.5, "c": 1.0}
    prioritised = polytask.balancer(name, priority={"a": 3.0, "b": 1.0, "c": 2.0})
    plain = polytask.balancer(name)
    for step in range(2):
        model.zero_grad()
        other.zero_grad()
        prioritised.backward(losses_of(model, step), model)
        plain.backward({task: loss * factors[task] for task, loss in losses_of(other, step).items()}, other)
        torch.testing.assert_close(model.block.weight.grad, other.block.weight.grad)


def test_db_mtl_weighs_by_priority() -> None:
    """A factor of the loss cancels in the logarithm, so it would change nothing there."""
    model, other = made(), made()
    found = polytask.balancer("db_mtl", priority={"a": 3.0, "b": 1.0, "c": 2.0}).backward(losses_of(model), model)
    plain = polytask.balancer("db_mtl").backward(losses_of(other), other)
    wanted = [weight * factor for weight, factor in zip(plain.weights.values(), (1.5, 0.5, 1.0), strict=True)]
    assert list(found.weights.values()) == pytest.approx(wanted)


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_of_an_embedding_that_no_batch_touched_are_remembered(sparse: bool) -> None:
    """What is combined is an average, so rows of earlier batches move too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        table = nn.Embedding(5, 3, sparse=sparse).double()
    balancer = polytask.balancer("moco", beta=0.5, beta_decay=0.0)
    for row in (1, 3):
        values = table(torch.tensor([row]))
        table.zero_grad()
        balancer.backward({"a": values.square().sum(), "b": values.exp().sum()}, table)
    assert (table.weight.grad.to_dense().abs().sum(1) > 0).tolist() == [False, True, False, True, False]


def test_what_does_not_fit_is_refused() -> None:
    for engine in ("representation", "interval"):
        with pytest.raises(BadValue, match="exact: the rule remembers gradients"):
            polytask.balancer("moco", engine=engine)
    model, balancer = made(), polytask.balancer("moco")
    balancer.backward(losses_of(model), model)
    saved = balancer.state_dict()
    saved["rules"]["all"]["surprise"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="surprise"):
        polytask.balancer("moco").load_state_dict(saved)
    weight = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(BadValue, match=r"the shape of 'trunk.0.weight' is .*as before"):
        balancer.backward({task: weight.sum() for task in TASKS}, {"trunk.0.weight": weight})
    with pytest.raises(UnknownName, match="argument of its tracker 'bet'"):
        rule(
            "test_typo", source="this test", needs=("gram",), scale="sum", tracker=Tracker(lambda x, m, *, bet: (x, m))
        )(lambda gram, *, beta=1: gram)
