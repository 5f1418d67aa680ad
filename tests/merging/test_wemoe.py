"""WEMoE: each module mixes the experts by what it reads itself, as if each row's weights were formed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from merging.learned_problem import Problem, drawn
from polytask.core.errors import BadValue, CheckpointError, Inconsistent, MissingInput, UnknownName
from polytask.merging.learning import Learned, learn
from polytask.merging.routers import ModuleRouters, read_router, router_of
from polytask.merging.routing import Routed
from polytask.merging.samples import MemorySamples, samples

TASKS = ["a", "b"]
WIDTH, SCALE = 4, 0.4
Rows = dict[str, Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.ModuleDict({"up": nn.Linear(WIDTH, 6), "down": nn.Linear(6, WIDTH, bias=False)})
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(hidden).tanh()
        return self.norm(hidden + self.mlp["down"](self.mlp["up"](hidden).tanh()))


class Backwards(nn.Module):
    """Made in another order than it runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 3), nn.Linear(2, 6)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](self.layers[1](x))


class Sequences(nn.Module):
    """Two blocks over positions, whose mean goes to a head."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, 3)
        for name, value in self.named_parameters():
            key = name if name.startswith("head") else f"{task}/{name}"
            value.data = drawn(name, value.shape) * 0.5 + (drawn(key, value.shape, 1) * 0.2 if task != "base" else 0)

    def forward(self, inputs: Rows) -> Tensor:
        hidden = inputs["x"]
        for layer in self.layers:
            hidden = layer(hidden)
        marked = inputs["attention_mask"].to(hidden).unsqueeze(-1)
        return self.head((hidden * marked).sum(1) / marked.sum(1))


def rows(key: str, count: int = 5, length: int = 4) -> Rows:
    """Rows of 2 and of `length` positions in turn; what is not marked is far off."""
    lengths = torch.tensor([2 if number % 2 else length for number in range(count)])
    mask = torch.arange(length) < lengths[:, None]
    x = drawn(key, (count, length, WIDTH)) + (~mask[..., None]) * 9.0
    return {"x": x, "attention_mask": mask.long()}


def state(task: str) -> dict[str, Tensor]:
    own = Sequences(task).state_dict()
    return {name: value.clone() for name, value in own.items() if not name.startswith("head")}


def data(**options: Any) -> MemorySamples:
    return samples(Sequences("base"), {task: [rows(f"{task}/{n}") for n in range(3)] for task in TASKS}, **options)


def wemoe(**parameters: Any) -> tuple[Learned, dict[str, Tensor]]:
    given = {"scale": SCALE, "hidden": 5, "steps": 8, "learning_rate": 0.05, **parameters}
    return learn("wemoe", {task: state(task) for task in TASKS}, data(), base=state("base"), **given)


def shared(tensors: dict[str, Tensor]) -> Sequences:
    net = Sequences("base")
    net.load_state_dict({**net.state_dict(), **tensors})
    return net.double().eval()


def by_hand(x: Tensor, mask: Tensor, router: ModuleRouters) -> Tensor:
    """One row in float64: an MLP has the weights base + sum_k w_k (model_k - base), w = scale + the mean of
    W2 ReLU(W1 h + b1) + b2 over the row's own positions; all else has base + scale sum_k (model_k - base)."""
    states = {key: {name: own.double() for name, own in state(key).items()} for key in ("base", *TASKS)}

    def mixed(name: str, shares: Tensor) -> Tensor:
        changes = [states[task][name] - states["base"][name] for task in TASKS]
        return states["base"][name] + sum(share * change for share, change in zip(shares, changes, strict=True))

    own = mask.bool()
    even = torch.full((2,), SCALE, dtype=torch.float64)
    hidden = x.double()
    for number in range(2):
        place = f"layers.{number}"
        weight, bias = (mixed(f"{place}.attention.{part}", even) for part in ("weight", "bias"))
        hidden = hidden + (hidden @ weight.T + bias).tanh()
        first, first_bias, second, second_bias = (each.double() for each in router.routers[number])
        scores = (hidden @ first.T + first_bias).relu() @ second.T + second_bias
        shares = SCALE + scores[own].mean(0)
        up, up_bias = (mixed(f"{place}.mlp.up.{part}", shares) for part in ("weight", "bias"))
        hidden = hidden + (hidden @ up.T + up_bias).tanh() @ mixed(f"{place}.mlp.down.weight", shares).T
        scale, offset = (mixed(f"{place}.norm.{part}", even) for part in ("weight", "bias"))
        hidden = nn.functional.layer_norm(hidden, (WIDTH,), scale, offset)
    head = Sequences("base").head.double()
    return head(hidden[own].mean(0))


def test_each_row_has_its_own_weights_in_each_module() -> None:
    learned, tensors = wemoe()
    router = ModuleRouters.of_tensors(learned.router)
    assert max(float(own.abs().max()) for own in router.routers[1]) > 0.1
    given = rows("test")
    found = Routed(shared(tensors), router)({**given, "x": given["x"].double()})
    for row in range(len(found)):
        wanted = by_hand(given["x"][row], given["attention_mask"][row], router)
        torch.testing.assert_close(found[row], wanted, rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing() -> None:
    learned, tensors = wemoe()
    routed = Routed(shared(tensors), router_of(learned.router)).float()
    short, long = rows("test", length=4), rows("test", length=4)
    long = {name: torch.cat([value, value[:, :3] * 0], 1) for name, value in long.items()}
    torch.testing.assert_close(routed(long), routed(short))


def test_it_starts_at_task_arithmetic_and_learning_lowers_the_entropy() -> None:
    """A step of no length leaves the shared model. From the first entropy, which is task arithmetic's, it falls."""
    start, tensors = wemoe(steps=1, learning_rate=1e-12)
    given = rows("test")
    whole, plain = Routed(shared(tensors), router_of(start.router)).float(), shared(tensors).float()
    torch.testing.assert_close(whole(given), plain(given))
    for name, base in state("base").items():
        changes = sum(state(task)[name] - base for task in TASKS)
        torch.testing.assert_close(tensors[name], base + SCALE * changes)

    def entropy(model: nn.Module) -> float:
        found = [nn.functional.softmax(model(rows(f"{task}/0")).detach(), -1) for task in TASKS]
        return sum(float(-(p * p.log()).sum(-1).mean()) for p in found)

    learned, _ = wemoe(steps=30)
    assert learned.facts["objective_first"] == pytest.approx(entropy(plain), rel=1e-5)
    assert learned.facts["objective_last"] < learned.facts["objective_first"]
    assert entropy(Routed(plain, router_of(learned.router))) < entropy(plain) - 0.01


@pytest.mark.parametrize(
    "patterns, modules",
    [
        (None, ["layers.0", "layers.1"]),
        (["*.mlp"], ["layers.0.mlp", "layers.1.mlp"]),
        (["*.1.attention", "*.0.mlp"], ["layers.0.mlp", "layers.1.attention"]),
        (["*.mlp.up", "*.mlp"], ["layers.0.mlp", "layers.1.mlp"]),
    ],
)
def test_modules_are_chosen_by_name(patterns: list[str] | None, modules: list[str]) -> None:
    learned, _ = wemoe(steps=1, modules=patterns)
    assert learned.facts["modules"] == modules
    router = ModuleRouters.of_tensors(learned.router)
    assert len(router.routers) == len(modules)
    assert all(modules[number] in weight for weight, number in router.modules.items())
    again = router_of(router.tensors()).tensors()
    assert list(again) == list(router.tensors())
    assert all(torch.equal(again[name], own) for name, own in learned.router.items())


def test_a_transformers_mlps_are_mixed_and_its_mask_is_seen() -> None:
    """Of a model of transformers, whose MLP is two modules of a layer and whose mask is an argument."""
    config = BertConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        num_labels=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = {task: BertForSequenceClassification(config).eval() for task in ("base", *TASKS)}
    states = {
        task: {name: own for name, own in net.state_dict().items() if not name.startswith("classifier")}
        for task, net in nets.items()
    }
    given = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    found = samples(nets["base"], {task: [given] for task in TASKS}, forward=lambda net, task, rows: net(**rows).logits)
    experts = {task: states[task] for task in TASKS}
    learned, tensors = learn("wemoe", experts, found, base=states["base"], steps=5, learning_rate=0.1)
    assert learned.facts["modules"] == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    router = ModuleRouters.of_tensors(learned.router)
    layers = [f"bert.encoder.layer.{n}.{part}.dense.weight" for n in range(2) for part in ("intermediate", "output")]
    assert sorted(router.experts) == layers
    nets["base"].load_state_dict(tensors, strict=False)
    routed = Routed(nets["base"], router)
    longer = {name: nn.functional.pad(own, (0, 4)) for name, own in given.items()}
    with torch.no_grad():
        torch.testing.assert_close(routed(**longer).logits, routed(**given).logits)
        assert not torch.allclose(routed(**given).logits, nets["base"](**given).logits)


def test_a_routers_file_gives_it_back_and_another_says_so(tmp_path: Path) -> None:
    learned, _ = wemoe(steps=1)
    for name, tensors in (
        ("router", learned.router),
        ("model", state("a")),
        ("part", {"expert:0:x": torch.ones(2, 3, 4)}),
    ):
        save_file(dict(tensors), tmp_path / name)
    found = read_router(tmp_path / "router").tensors()
    assert all(torch.equal(found[name], own) for name, own in learned.router.items())
    for name in ("model", "part"):
        with pytest.raises(CheckpointError, match=f"{name}: holds no router; its first tensor is"):
            read_router(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file"):
        read_router(tmp_path / "none")


def test_a_router_moves_with_its_model() -> None:
    learned, tensors = wemoe(steps=1)
    routed = Routed(shared(tensors), router_of(learned.router))
    assert all(own.dtype == torch.float64 for own in routed.double().router.tensors().values())


def test_what_cannot_be_routed_says_why() -> None:
    with pytest.raises(UnknownName, match=r"no module with merged linear layers that fits '\*.mpl'"):
        wemoe(modules=["*.mpl"])
    with pytest.raises(BadValue, match=r"modules is '\*.mlp'; allowed: a list of patterns of modules' names"):
        wemoe(modules="*.mlp")
    net = nn.Linear(2, 2)
    one = {"net.weight": torch.eye(2)}
    bare = samples(nn.ModuleDict({"net": net}), {"a": [torch.ones(1, 2)]}, forward=lambda model, task, x: net(x))
    with pytest.raises(MissingInput, match="no numbered layer has a merged linear layer outside attention"):
        learn("wemoe", {"a": one}, bare, base=one)
    turned = nn.Sequential(Backwards())
    own = turned.state_dict()
    rows_of_two = samples(turned, {"a": [torch.ones(1, 2)]}, forward=lambda model, task, x: model(x))
    with pytest.raises(Inconsistent, match=r"layer '0.layers.1' is the first .* and reads 2 numbers, its router 6"):
        learn("wemoe", {"a": own}, rows_of_two, base=own, steps=1)
    problem = Problem()
    numbers = problem.samples(outputs={"a": "values"})
    with pytest.raises(BadValue, match="this merge reads predicted probabilities"):
        learn("wemoe", problem.models, numbers, base=problem.base, steps=1)
