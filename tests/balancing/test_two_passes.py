"""A step in parts that are computed again: G and the gradients are those of the whole batch."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.balancing.test_accumulation import PARTS, part_of
from tests.balancing.test_double_sampling import written
from tests.balancing.test_gradients import TASKS, dense_gram, is_shared, jacobian, made
from torch import Tensor, nn

import polytask
from polytask.core.errors import BadValue, Inconsistent, MissingInput, NotFinite, UnknownName

COUNTS = [part_of(made(), rows)[1] for rows in PARTS]


class Called(nn.Module):
    """A model that is called as a function of its parameters, `forward=` of the balancer."""

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        super().__init__()
        self.model, self.seed = model, seed

    def forward(self, rows: Any) -> dict[str, Tensor]:
        return part_of(self.model, rows, self.seed)[0]

    def again(self, parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> dict[str, Tensor]:
        given = {f"model.{name}": tensor for name, tensor in (parameters or {}).items()}
        return torch.func.functional_call(self, given, (PARTS[int(batch)],))


@pytest.mark.parametrize("name", ["equal", "uncertainty", "dwa", "data_balanced", "upgrad", "mgda", "gradnorm"])
def test_parts_computed_again_are_the_whole(name: str) -> None:
    """Over three steps, the state of the rule included; tasks b and c have labels in some parts only."""
    parts, whole = made(), made()
    one, other = polytask.balancer(name, tasks=TASKS, gram="recomputed"), polytask.balancer(name, tasks=TASKS)
    for step in range(3):
        parts.zero_grad()
        whole.zero_grad()
        report = one.backward_parts(Called(parts, step).again, parts, parts=3, counts=COUNTS)
        losses, counts = part_of(whole, range(12), step)
        wanted = other.backward(losses, whole, counts=counts)
        assert report.losses == pytest.approx(wanted.losses)
        assert report.weights == pytest.approx(wanted.weights)
        assert report.tasks == wanted.tasks == TASKS
        assert report.shared == wanted.shared
        if wanted.gram is not None:
            lengths = wanted.gram.diagonal().sqrt()
            assert float(((report.gram - wanted.gram) / lengths[:, None] / lengths).abs().max()) < 1e-10
            assert report.route == {"all": "recomputed in 3 parts"}
        assert list(written(parts)) == list(written(whole))
        for (key, a), b in zip(written(parts).items(), written(whole).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("options", [{"priority": {"a": 3.0}}, {"scale": "unit"}, {"clusters": {"ab": ["a", "b"]}}])
def test_with_the_options_of_a_balancer(options: dict[str, Any]) -> None:
    parts, whole = made(), made()
    again = polytask.balancer("upgrad", tasks=TASKS, gram="recomputed", **options)
    again.backward_parts(Called(parts).again, parts, parts=3, counts=COUNTS)
    losses, counts = part_of(whole, range(12))
    polytask.balancer("upgrad", tasks=TASKS, **options).backward(losses, whole, counts=counts)
    torch.testing.assert_close(written(parts), written(whole), rtol=1e-9, atol=1e-12)


def test_the_caller_says_what_is_shared() -> None:
    parts, whole = made(), made()
    again = polytask.balancer("upgrad", tasks=TASKS, gram="recomputed")
    again.backward_parts(Called(parts).again, parts, parts=3, counts=COUNTS, shared=["trunk.0.weight"])
    losses, counts = part_of(whole, range(12))
    polytask.balancer("upgrad", tasks=TASKS).backward(losses, whole, counts=counts, shared=["trunk.0.weight"])
    torch.testing.assert_close(written(parts), written(whole), rtol=1e-9, atol=1e-12)


def test_the_mean_of_the_parts_gram_matrices() -> None:
    """Each part taken for the whole: its gradients times the parts and its share of the task's labels."""
    model = made()
    report = polytask.balancer("upgrad", tasks=TASKS, gram="micro_mean").backward_parts(
        Called(model).again, model, parts=3, counts=COUNTS
    )
    named = {name: parameter for name, parameter in model.named_parameters() if is_shared(name)}
    total = {task: sum(count.get(task, 0.0) for count in COUNTS) for task in TASKS}
    mean = torch.zeros(3, 3, dtype=torch.float64)
    for rows, count in zip(PARTS, COUNTS, strict=True):
        losses = part_of(model, rows)[0]
        stacks = jacobian({task: 3 * count[task] / total[task] * loss for task, loss in losses.items()}, named)
        index = torch.tensor([TASKS.index(task) for task in losses])
        mean[index[:, None], index] += dense_gram(stacks) / 3
    torch.testing.assert_close(report.gram, mean, rtol=1e-10, atol=1e-14)
    weights = torch.tensor(list(report.weights.values()), dtype=torch.float64)
    whole = jacobian(part_of(model, range(12))[0], dict(model.named_parameters()))
    for name, parameter in model.named_parameters():
        used = weights if is_shared(name) else torch.ones(3, dtype=torch.float64)
        torch.testing.assert_close(parameter.grad, torch.einsum("t,t...->...", used, whole[name]))


def test_parts_that_are_alike_have_the_whole_ones_gram_matrix() -> None:
    """Without counts each part counts the same."""
    model, other = made(), made()

    def losses(parameters=None, batch=0):
        return part_of(model, range(12))[0]

    report = polytask.balancer("upgrad", gram="micro_mean").backward_parts(losses, model, parts=4)
    wanted = polytask.balancer("upgrad").backward(part_of(other, range(12))[0], other)
    torch.testing.assert_close(report.gram, wanted.gram, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(written(model), written(other), rtol=1e-9, atol=1e-12)


class Layers(nn.Module):
    """Normalisation, dropout, attention, a convolution and a sparse embedding under two heads."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8, sparse=True)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({"left": nn.Linear(8, 3), "right": nn.Linear(8, 1)})

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        hidden = self.attention(self.convolution(self.words(words).mT).mT).mean(1)
        hidden = self.dropout(self.norm(hidden))
        return {
            "left": nn.functional.cross_entropy(self.heads["left"](hidden).float(), words[:, 0] % 3),
            "right": nn.functional.binary_cross_entropy_with_logits(
                self.heads["right"](hidden).float()[:, 0], (words[:, 1] % 2).float()
            ),
        }


def layers(dropout: float = 0.0) -> tuple[Layers, list[Tensor], Any]:
    """(the model, two parts of a batch, the losses as a function with a part's own dropout in each pass)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, words = Layers(dropout), [torch.randint(11, (6, 5)) for _ in range(2)]

    def forward(parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> dict[str, Tensor]:
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with torch.random.fork_rng():
            torch.manual_seed(10 + int(batch))
            return torch.func.functional_call(model, {**buffers, **(parameters or {})}, (words[int(batch)],))

    return model, words, forward


@pytest.mark.parametrize("gram", ["recomputed", "micro_mean"])
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
def test_every_layer_dropout_and_half_precision(gram: str, half: torch.dtype | None) -> None:
    """Against the parts kept: the same masks in every pass, the running statistics of BatchNorm left alone."""
    model, _, forward = layers(0.3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if half is torch.float16 else None

    def losses(parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=half, enabled=half is not None):
            return forward(parameters, batch)

    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    again = polytask.balancer("upgrad", gram=gram)
    report = again.backward_parts(losses, model, parts=2, scaler=scaler)
    torch.testing.assert_close(dict(model.named_buffers()), before)
    found = written(model)
    model.zero_grad()
    kept = polytask.balancer("upgrad")
    kept.accumulate(losses(None, 0), model, scaler=scaler)
    wanted = kept.backward(losses(None, 1), model, scaler=scaler)
    assert list(found) == list(written(model))
    tolerance = 1e-4 if half is None else 0.05
    if gram == "recomputed":
        lengths = wanted.gram.diagonal().sqrt()
        assert float(((report.gram - wanted.gram) / lengths[:, None] / lengths).abs().max()) < tolerance
        difference = {name: found[name].to_dense() - grad.to_dense() for name, grad in written(model).items()}
        assert (
            float(
                nn.utils.get_total_norm(difference.values())
                / nn.utils.get_total_norm([grad.to_dense() for grad in found.values()])
            )
            < tolerance
        )
    assert report.losses == pytest.approx(wanted.losses, rel=1e-3)
    assert all(grad.to_dense().isfinite().all() for grad in found.values())


def test_an_overflow_is_left_to_the_scaler() -> None:
    model = made(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = polytask.balancer("upgrad", tasks=TASKS, gram="recomputed")
    report = balancer.backward_parts(
        lambda parameters=None, batch=0: {
            task: 1e3 * loss for task, loss in Called(model).again(parameters, batch).items()
        },
        model, parts=3, counts=COUNTS, scaler=scaler,
    )  # fmt: skip
    assert report.skipped
    assert report.weights == {}
    scaler.unscale_(optimizer)
    assert any(float(found) for found in scaler._found_inf_per_device(optimizer).values())


def test_one_gradient_is_held() -> None:
    """No tensor has a row a task, however many tasks there are."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                largest = max(largest, tensor.numel()) if isinstance(tensor, Tensor) else largest
            return out

    tasks = [str(i) for i in range(6)]
    model = nn.ModuleDict({"trunk": nn.Linear(50, 50), **{task: nn.Linear(50, 1) for task in tasks}})
    x = torch.randn(2, 4, 50)

    def losses(parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> dict[str, Tensor]:
        given = dict(model.named_parameters()) | dict(parameters or {})
        hidden = nn.functional.linear(x[int(batch)], given["trunk.weight"], given["trunk.bias"]).tanh()
        return {
            task: nn.functional.linear(hidden, given[f"{task}.weight"], given[f"{task}.bias"]).square().mean()
            for task in tasks
        }

    with Watch():
        polytask.balancer("upgrad", gram="recomputed").backward_parts(losses, model, parts=2)
    assert largest == 50 * 50


def test_what_is_refused() -> None:
    model = made()
    call = Called(model).again
    again = polytask.balancer("upgrad", tasks=TASKS, gram="recomputed")
    changing = iter(range(100))

    def other(parameters=None, batch=0):
        return {task: loss * next(changing) for task, loss in call(None, batch).items()}

    first = iter([True] * 3)

    def gone(parameters=None, batch=0):
        return call(None, batch) if next(first, False) else {}

    def infinite(parameters=None, batch=0):
        return {"a": call(None, 0)["a"] * float("inf")}

    def bad(parameters=None, batch=0):
        return {
            task: loss + (model.trunk[0].weight.sum() * 0).clamp(min=0).sqrt()
            for task, loss in call(None, batch).items()
        }

    def alone(parameters=None, batch=0):
        return {task: model.heads[task].weight.sum() for task in ("a", "b")}

    def unknown(parameters=None, batch=0):
        return {"d": model.trunk[0].weight.sum()}

    for error, match, function, options in [
        (Inconsistent, "for task 'a' in part 0, and .* before: each pass of a part must draw the same", other, {}),
        (Inconsistent, "forward= gives no loss of task 'a' for part 0", gone, {}),
        (NotFinite, "the loss of task 'a' is inf at step 0", infinite, {"parts": 1, "counts": None}),
        (NotFinite, "the gradient of task 'a' is not finite at step 0", bad, {}),
        (MissingInput, "no parameter is reached by two of the tasks a, b", alone, {"counts": None}),
        (UnknownName, "part 0: no task 'd'", unknown, {"counts": None}),
        (UnknownName, "shared=: no parameter 'trunk.0.weigth'", call, {"shared": ["trunk.0.weigth"]}),
        (BadValue, "parts is 2; allowed: 1 or more, and as many as counts has", call, {"parts": 2}),
        (BadValue, "parts is 0", call, {"parts": 0, "counts": None}),
    ]:
        with pytest.raises(error, match=match):
            again.backward_parts(function, model, **{"parts": 3, "counts": COUNTS, **options})
        assert not written(model)
        assert again.step == 0
    with pytest.raises(Inconsistent, match="backward_parts computes the parts again: balancer"):
        polytask.balancer("upgrad").backward_parts(call, model, parts=3, counts=COUNTS)
    with pytest.raises(Inconsistent, match="call backward_parts in place of accumulate"):
        again.accumulate(call(None, 0), model)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 3 * ctx.saved_tensors[0] ** 2


def test_an_operation_without_a_forward_mode() -> None:
    model = made()

    def losses(parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> dict[str, Tensor]:
        weight = (parameters or {}).get("trunk.0.weight", model.trunk[0].weight)
        return {"a": Cube.apply(weight).sum(), "b": weight.sum()}

    with pytest.raises(Inconsistent, match="needs every operation's forward-mode derivative, which one lacks: use"):
        polytask.balancer("upgrad", gram="recomputed").backward_parts(losses, model, parts=2)
    assert not written(model)
    polytask.balancer("upgrad", gram="micro_mean").backward_parts(losses, model, parts=2)


def test_options_that_do_not_fit() -> None:
    for match, options in [
        ("gram is 'mean'; allowed: kept | recomputed | micro_mean", {"gram": "mean"}),
        ("kept: the rule reads more of each task", {"rule": "graddrop"}),
        ("kept: the rule reads more of each task", {"rule": "modo"}),
        ("kept: the rule reads more of each task", {"rule": "moco"}),
        ("kept: the rule reads more of each task", {"rule": "sharpness_aware"}),
        ("the rule weighs losses, and needs no Gram matrix", {"rule": "equal", "gram": "micro_mean"}),
        ("engine is 'interval'; allowed: auto", {"engine": "interval"}),
        ("groups is 'layer'; allowed: all", {"groups": "layer"}),
        ("scale is 'unit'; allowed: published", {"scale": "unit", "gram": "micro_mean"}),
    ]:
        with pytest.raises(BadValue, match=match):
            polytask.balancer(**{"rule": "upgrad", "gram": "recomputed", **options})
