"""Each learned merge on a model of two parameters, where its first step or its optimum is worked out by hand.

The model is z = w . x. The base is w0, task a's fine-tune changed the first number, task b's the second.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput, UnknownName
from polytask.merging import samples
from polytask.merging.learning import Learned, learn
from polytask.merging.masking import concrete, of_unit_mean
from polytask.merging.samples import MemorySamples
from polytask.merging.session import MergeSession
from polytask.merging.vectors import Vectors


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def models(base: tuple[float, float], a: float, b: float) -> dict[str, Any]:
    """`learn`'s models and base, from what fine-tuning changed."""
    w0 = torch.tensor(base)
    return {
        "base": {"w": w0},
        "models": {"a": {"w": w0 + torch.tensor([a, 0.0])}, "b": {"w": w0 + torch.tensor([0.0, b])}},
    }


def rows(a: list[list[float]], b: list[list[float]], **options: Any) -> MemorySamples:
    return samples(Line(), {"a": [torch.tensor(a)], "b": [torch.tensor(b)]}, **options)


def coefficients(name: str, given: dict[str, Any], data: MemorySamples, **parameters: Any) -> tuple[float, float]:
    found, _ = learn(name, given["models"], data, base=given["base"], **parameters)
    assert isinstance(found, Learned)
    return found.coefficient("a", "w"), found.coefficient("b", "w")


def test_adamerging_steps_away_from_even_odds() -> None:
    """The entropy of sigmoid(z) has the slope -z p (1 - p). Task a: z = -2 + 0.3, a larger coefficient brings z nearer
    to 0, so it falls; task b: z = 0.3, it grows. Adam's first step is the learning rate, whatever the slope's size."""
    found = coefficients(
        "adamerging", models((-2.0, 0.0), 1.0, 1.0), rows([[1.0, 0.0]], [[0.0, 1.0]]), steps=1, learning_rate=0.01
    )
    assert found == pytest.approx((0.3 - 0.01, 0.3 + 0.01), abs=1e-6)


def test_wemoe_routers_first_step_is_adamergings() -> None:
    """The same slopes reach a router's output bias, which counts from 0.3. The slope of the hidden bias is 0, as the
    output weights start at 0; these have the slope of the bias times a hidden unit that is not negative."""
    given = models((-2.0, 0.0), 1.0, 1.0)
    alike = {"layers.0.weight": given["base"]["w"][None]}
    tuned = {task: {"layers.0.weight": own["w"][None]} for task, own in given["models"].items()}
    net = nn.Module()
    net.layers = nn.ModuleList([nn.Linear(2, 1, bias=False)])
    data = samples(
        net,
        {"a": [torch.tensor([[1.0, 0.0]])], "b": [torch.tensor([[0.0, 1.0]])]},
        forward=lambda model, task, x: model.layers[0](x),
    )
    found, _ = learn("wemoe", tuned, data, base=alike, steps=1, learning_rate=0.01, hidden=3)
    assert found.coefficients == {"a": 0.3, "b": 0.3}
    assert found.router["router:0:output.bias"].tolist() == pytest.approx([-0.01, 0.01], abs=1e-6)
    assert found.router["router:0:hidden.bias"].tolist() == [0.0, 0.0, 0.0]


def squared(task: str, outputs: Tensor, batch: Tensor) -> Tensor:
    """Both tasks want w = (1.2, 1.2)."""
    return (outputs - batch @ torch.tensor([1.2, 1.2])).square().mean()


def test_atlas_finds_the_least_squares() -> None:
    """w = (2 ca, 4 cb) and the loss wants (1.2, 1.2): ca = 0.6, cb = 0.3."""
    data = rows([[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]], loss=squared)
    found = coefficients("atlas", models((0.0, 0.0), 2.0, 4.0), data, steps=150, learning_rate=0.05)
    assert found == pytest.approx((0.6, 0.3), abs=1e-3)


def test_self_positioning_finds_the_place_between_the_task_vectors() -> None:
    """w = length (2 s, 4 (1 - s)) and the loss wants (1.2, 1.2): length s = 0.6, length (1 - s) = 0.3."""
    data = rows([[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]], loss=squared)
    found = coefficients("self_positioning", models((0.0, 0.0), 2.0, 4.0), data, steps=150, learning_rate=0.08)
    assert found == pytest.approx((0.6, 0.3), abs=1e-3)


@pytest.mark.parametrize("divergence", ["jensen_shannon", "kullback_leibler"])
def test_divmerge_gives_each_expert_back_where_they_do_not_meet(divergence: str) -> None:
    """Each task's inputs see its own number only, so the merged model predicts as the expert does at coefficient 1."""
    given = models((0.5, -0.5), 1.0, -2.0)
    data = rows([[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]])
    found = coefficients("divmerge", given, data, divergence=divergence, steps=150, learning_rate=0.1)
    assert found == pytest.approx((1.0, 1.0), abs=0.01)


def test_a_concrete_mask_at_a_given_draw() -> None:
    """sigmoid((x + log(u / (1 - u))) / t): with x = 0, u = 3/4 and t = 1/2 it is sigmoid(2 log 3) = 9 / 10."""
    noise = torch.tensor([math.log(3.0)], dtype=torch.float64)
    assert float(concrete(torch.zeros(1, dtype=torch.float64), 0.5, noise)) == pytest.approx(0.9)
    assert of_unit_mean(torch.tensor([0.5, 1.0, 0.0])).tolist() == [1.0, 2.0, 0.0]
    assert of_unit_mean(torch.zeros(2)).tolist() == [0.0, 0.0]


def test_concrete_masks_out_what_makes_predictions_less_certain() -> None:
    """One tensor, one mask: the first number is drawn towards 0 by its task vector (z = -2 + 1.7), the second away from
    0. Less of the first and more of the second are more certain, and the mask's mean stays 1."""
    given = models((-2.0, 0.0), 1.7, 1.7)
    data = rows([[1.0, 0.0]], [[0.0, 1.0]])
    found, merged = learn(
        "concrete", given["models"], data, base=given["base"], around="task_arithmetic", steps=20, learning_rate=0.2
    )
    mask = found.mask["w"]
    assert float(mask.mean()) == pytest.approx(1.0, abs=1e-5)
    assert float(mask[0]) < 0.5 < 1.5 < float(mask[1])
    expected = torch.tensor([-2.0, 0.0]) + mask * 1.7
    torch.testing.assert_close(merged["w"], expected)


def test_a_graft_finds_the_element_that_matters() -> None:
    """Task a's fine-tune moved the second number most, but its rows see the first one only: of one element in two the
    first is kept, though the mask starts at the second. Task b's rows see the second, which is kept."""
    w0 = torch.zeros(2)
    fine = {"a": {"w": torch.tensor([1.0, 3.0])}, "b": {"w": torch.tensor([1.0, 3.0])}}
    wanted = {"a": 1.0, "b": 3.0}
    data = rows([[1.0, 0.0]], [[0.0, 1.0]], loss=lambda task, outputs, batch: (outputs - wanted[task]).square().mean())
    found, merged = learn("graft", fine, data, base={"w": w0}, density=0.5, start=-2.0, steps=40, learning_rate=8.0)
    assert found.masks["a"]["w"].tolist() == [True, False]
    assert found.masks["b"]["w"].tolist() == [False, True]
    assert found.facts["turned_over"] == {"a": 1, "b": 0}
    assert merged["w"].tolist() == [1.0, 3.0]


class Headed(Line):
    """With a number of the task's own: z = head * w . x."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.head * (x @ self.w)


def test_tinting_follows_an_expert_that_is_surer_and_no_other() -> None:
    """Task a: the expert says z = 1, the merged model 0.3, so its coefficient (z grows with it) and its head (which
    multiplies 0.3) take Adam's first step upwards. Task b: the expert says 0.1, and the merged model is surer with
    2 + 0.3 (0.1 - 2) = 1.43: nothing of it moves."""
    given = models((0.0, 2.0), 1.0, -1.9)
    nets = {task: Headed() for task in ("a", "b")}
    data = samples(nets, {"a": [torch.tensor([[1.0, 0.0]])], "b": [torch.tensor([[0.0, 1.0]])]})
    found, _ = learn("tint", given["models"], data, base=given["base"], steps=1, learning_rate=0.01)
    assert found.coefficient("a", "w") == pytest.approx(0.31, abs=1e-6)
    assert found.coefficient("b", "w") == pytest.approx(0.3, abs=1e-6)
    assert float(found.private["a"]["head"]) == pytest.approx(1.01, abs=1e-6)
    assert float(found.private["b"]["head"]) == 1.0
    assert [net.head.item() for net in nets.values()] == [1.0, 1.0]


def test_tinting_a_merged_layer_gives_each_task_a_copy_of_it() -> None:
    """The layer is the whole model: a task's copy is base + 0.3 of its change, and Adam's first step from there."""
    given = models((0.0, 0.0), 1.0, 1.0)
    data = rows([[1.0, 0.0]], [[0.0, 1.0]])
    found, merged = learn(
        "tint", given["models"], data, base=given["base"], layer="w", each="task", steps=1, learning_rate=0.01
    )
    torch.testing.assert_close(merged["w"], torch.tensor([0.31, 0.31]))
    torch.testing.assert_close(found.private["a"]["w"], torch.tensor([0.31 + 0.01, 0.31]))
    torch.testing.assert_close(found.private["b"]["w"], torch.tensor([0.31, 0.31 + 0.01]))
    with pytest.raises(UnknownName, match="no merged layer 'v'"):
        learn("tint", given["models"], data, base=given["base"], layer="v")
    with pytest.raises(MissingInput, match="task 'a' has no layer of its own; name a merged one"):
        learn("tint", given["models"], data, base=given["base"])


@pytest.mark.parametrize("safety", ["entropy", "agreement"])
def test_dams_masks_take_their_first_step(safety: str) -> None:
    """As for the Concrete mask, whatever is drawn: less of the first number and more of the second is more certain, so
    after one step of 0.1 the logits are (-0.1, 0.1) in both masks. At temperature 1/2 a mask is (sigmoid(-0.2),
    sigmoid(0.2)), over its mean of 1/2; two of them are multiplied."""
    given = models((-2.0, 0.0), 1.7, 1.7)
    data = rows([[1.0, 0.0]], [[0.0, 1.0]])
    found, _ = learn(
        "dam", given["models"], data, base=given["base"], safety=safety, weight=0.0, steps=1, learning_rate=0.1
    )
    expected = [(2 / (1 + math.exp(0.2))) ** 2, (2 / (1 + math.exp(-0.2))) ** 2]
    assert found.mask["w"].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_disturbance_stays_within_its_radius_and_is_added_to_the_first_layer() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    base = {name: value.detach().clone() for name, value in net.state_dict().items()}
    data = samples(net, {"a": [torch.ones(4, 2)]})
    session = MergeSession(Vectors({"a": base}, base), data)
    batch = session.batch("a", 0)
    name, output = session.first_layer(base, "a", batch)
    assert name == "0"
    torch.testing.assert_close(output, net[0](batch).detach())
    added = torch.tensor([1.0, 0.0, -1.0])
    found = session.forward(base, "a", batch, shift=(name, added))["a"]
    torch.testing.assert_close(found, net[1](net[0](batch) + added))
    torch.testing.assert_close(session.forward(base, "a", batch)["a"], net(batch))  # and it is gone afterwards


def test_atlas_without_labels_makes_predictions_certain() -> None:
    """Its first step is AdaMerging's: see there."""
    given = models((-2.0, 0.0), 1.0, 1.0)
    data = rows([[1.0, 0.0]], [[0.0, 1.0]])
    found = coefficients("atlas", given, data, objective="unsupervised", steps=1, learning_rate=0.01)
    assert found == pytest.approx((0.29, 0.31), abs=1e-6)


@pytest.mark.parametrize("name", ["adamerging", "divmerge", "concrete", "dam"])
def test_numbers_have_no_entropy(name: str) -> None:
    given = models((0.0, 0.0), 1.0, 1.0)
    data = rows([[1.0, 0.0]], [[0.0, 1.0]], outputs={"a": "values"})
    with pytest.raises(BadValue, match="task 'a': what 'a' predicts is 'values'; allowed: classes or labels"):
        learn(name, given["models"], data, base=given["base"], steps=1)


def test_concrete_around_a_merge_that_is_not_of_changes() -> None:
    given = models((0.0, 0.0), 1.0, 1.0)
    data = rows([[1.0, 0.0]], [[0.0, 1.0]])
    with pytest.raises(
        BadValue, match="around is 'linear'; allowed: adamerging, or a merge of what fine-tuning changed"
    ):
        learn("concrete", given["models"], data, base=given["base"], around="linear", steps=1)
    with pytest.raises(UnknownName, match="no merge method 'tiez'"):
        learn("concrete", given["models"], data, base=given["base"], around={"kind": "tiez"}, steps=1)


def test_a_binary_concrete_mask_around_ties_is_ties_within_it() -> None:
    """What is kept is base + mask * (ties - base), with the mask over its mean."""
    given = models((0.5, 0.5), 1.0, -1.0)
    data = rows([[1.0, 0.0]], [[0.0, 1.0]])
    around = {"kind": "ties", "density": 1.0}
    found, merged = learn(
        "concrete", given["models"], data, base=given["base"], around=around, mask="binary", steps=3, learning_rate=0.3
    )
    ties = torch.tensor([1.5, -0.5])  # each number was changed by one task, so its sign is elected
    mask = found.mask["w"]
    assert set(mask.tolist()) <= {0.0, 1.0, 2.0}
    torch.testing.assert_close(merged["w"], 0.5 + mask * (ties - 0.5))
    assert found.rule == around
