"""What the architectures that a task conditions do beyond what every architecture must."""

import pytest
import torch
from tests.sharing.models import OUTPUTS, table_inputs, table_model
from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput, UnknownName
from polytask.core.inputs import InputSchema
from polytask.sharing import ModelSpec, MultiTaskModel, build_model
from polytask.sharing.channel_masks import window
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.modality_masks import draw_visible
from polytask.sharing.tape import listen


def features(model: MultiTaskModel, inputs: dict[str, Tensor], task: str) -> Tensor:
    return model.sharing(inputs, [task])[task]


@pytest.mark.parametrize(
    "combine, expected", [("add", lambda z, latent: z + latent), ("multiply", lambda z, latent: z * (1 + latent))]
)
@pytest.mark.parametrize("bases", [None, 2])
def test_implicit_latents_are_added_or_multiplied(combine: str, expected: object, bases: int | None) -> None:
    model = table_model({"kind": "yolor", "combine": combine, "bases": bases, "deviation": 0.5})
    inputs, own = table_inputs(4), model.sharing.latents["topic"].vector
    latent = own if bases is None else model.sharing.bases.T @ own
    torch.testing.assert_close(features(model, inputs, "topic"), expected(model.representation(inputs), latent))


def test_windows_slide_with_the_task_and_neighbours_share_most() -> None:
    windows = [window(20, place / 4, 0.5, 1.0) for place in range(5)]
    assert [int(on.argmax()) for on in windows] == [0, 2, 5, 8, 10]  # round(10 p), halves to even
    assert all(on.sum() == 10 for on in windows)
    assert int((windows[0] * windows[1]).sum()) == 8
    assert int((windows[0] * windows[4]).sum()) == 0
    slow = [int(window(20, place / 4, 0.5, 4.0).argmax()) for place in range(5)]
    assert slow == [0, 0, 1, 3, 10]  # 10 p^4: 0, 0.04, 0.6, 3.2, 10


def test_a_masked_channel_gets_no_gradient_from_its_task() -> None:
    model = table_model({"kind": "channel_masks", "hidden_sizes": [8], "active": 0.5, "exponent": 1})
    model(table_inputs(6), ["click"])["click"].sum().backward()
    layer = model.sharing.layers[0].weight.grad
    assert layer[4:].eq(0).all()
    assert layer[:4].ne(0).any()


def test_an_order_that_lacks_a_task_and_one_with_more_tasks() -> None:
    with pytest.raises(UnknownName, match=r"order of channel_masks: no task 'topic'"):
        table_model({"kind": "channel_masks", "order": {"click": 1, "topics": 2, "assays": 3}})
    order = {"click": 0, "topic": 1, "assays": 2}
    whole = table_model({"kind": "channel_masks", "order": order})
    alone = table_model({"kind": "channel_masks", "order": order}, outputs={"topic": 4})
    assert torch.equal(alone.sharing.masks["topic"][0].on, whole.sharing.masks["topic"][0].on)


def test_no_channel_left_is_refused() -> None:
    with pytest.raises(BadValue, match=r"sharing 'channel_masks': active is 0.1; allowed: at least one of 6 channels"):
        table_model({"kind": "channel_masks", "hidden_sizes": [64, 6], "active": 0.1})


# ---- sequences


class Padded(nn.Module):
    """Three tokens a row, of which the mask hides what the input says."""

    gives, width, tokens = "sequence", 4, 3

    def forward(self, inputs: dict[str, Tensor]) -> Tokens:
        x = inputs["numeric"]
        return Tokens(x[:, :3, None] * torch.arange(1.0, 5.0), x[:, 3:] > 0)


class Ragged(Padded):
    """An encoder that does not say how many tokens a row has."""

    tokens = None


PADDED = InputSchema(shapes={"numeric": (6,)})


def padded_model(sharing: dict[str, object]) -> MultiTaskModel:
    spec = ModelSpec.model_validate({"sharing": sharing})
    return build_model(spec, PADDED, {"click": 1, "topic": 2}, seed=0, encoder=Padded).eval()


@pytest.mark.parametrize("kind", ["prefix", "modality_masks", "sequential_state"])
def test_what_is_hidden_changes_nothing(kind: str) -> None:
    model = padded_model({"kind": kind} | ({} if kind == "sequential_state" else {"heads": 2}))
    seen, other = (torch.tensor([[0.3, value, -1.0, 1.0, 0.0, 1.0]]) for value in (0.7, -5.0))
    for task, output in model({"numeric": seen}).items():
        torch.testing.assert_close(model({"numeric": other})[task], output)
    shown = torch.tensor([[0.3, 0.7, -1.0, 1.0, 1.0, 1.0]])
    assert not torch.allclose(model({"numeric": shown})["click"], model({"numeric": seen})["click"])
    with pytest.raises(MissingInput, match=f"sharing '{kind}': rows of different length share no representation"):
        model.representation({"numeric": seen})


def test_a_missing_modality_leaves_the_state() -> None:
    model = padded_model({"kind": "sequential_state"})
    tokens = Padded()({"numeric": torch.tensor([[0.3, 0.7, -1.0, 1.0, 0.0, 1.0]])})
    start, first, second, third = model.sharing.states(tokens)
    assert not torch.equal(start, first)
    assert torch.equal(first, second)
    assert not torch.equal(second, third)
    inputs = {"numeric": torch.tensor([[0.3, 0.7, -1.0, 1.0, 0.0, 1.0]])}
    for task, outputs in model.after_each(inputs).items():
        assert torch.equal(outputs[:, 1], outputs[:, 2])  # nor the prediction
        assert not torch.equal(outputs[:, 2], outputs[:, 3])
        torch.testing.assert_close(outputs[:, 3], model(inputs)[task])
        torch.testing.assert_close(outputs[:, 0], model.heads[task](start))


def test_heads_learn_at_every_state_or_at_the_last() -> None:
    for learn, share in (("every", 1 / 4), ("last", None)):
        model = table_model({"kind": "sequential_state", "modalities": [5, 2, 1], "learn": learn})
        with listen() as tape:
            outputs = model(table_inputs(4), ["click"])
        assert tape.shares.get("click") == share
        assert [list(each.shape) for each in tape.earlier["click"]] == [[4], [4], [4]]
        torch.testing.assert_close(
            torch.stack([*tape.earlier["click"], outputs["click"]], dim=1),
            model.after_each(table_inputs(4), ["click"])["click"],
        )
        with listen() as tape:
            model.eval()(table_inputs(4))
        assert not tape.shares
    with pytest.raises(MissingInput, match="task 'click' is predicted once"):
        table_model("hard").after_each(table_inputs(2))


def test_rows_keep_their_share_of_tokens_and_modalities_take_turns() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kept = draw_visible(2000, (6, 2), 0.5, 1.0)
        even = draw_visible(2000, (4, 4), 0.5, 1000.0)
    assert (kept.sum(1) == 4).all()
    of_second = kept[:, 6:].sum(1)
    assert {int(count) for count in of_second.unique()} == {0, 1, 2}
    assert abs(float(kept[:, :6].float().mean(0).max() - kept[:, :6].float().mean(0).min())) < 0.06  # none is preferred
    assert (even[:, :4].sum(1) == 2).float().mean() > 0.95  # equal shares


def test_masks_are_drawn_in_training_only() -> None:
    model, inputs = table_model({"kind": "modality_masks", "heads": 2, "visible": 0.4}), table_inputs(5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other = model(inputs)["click"], model(inputs)["click"]
        torch.manual_seed(0)
        again = model(inputs)["click"]
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    model.eval()
    assert torch.equal(model(inputs)["click"], model(inputs)["click"])


@pytest.mark.parametrize("kind", ["modality_masks", "sequential_state"])
def test_modalities_that_do_not_fit(kind: str) -> None:
    with pytest.raises(BadValue, match=rf"'{kind}': modalities is \[5, 2\]; allowed: .* add up to the 8 tokens"):
        table_model({"kind": kind, "modalities": [5, 2]})
    with pytest.raises(BadValue, match=rf"'{kind}': the encoder is 'Ragged, whose rows .* the attribute `tokens`"):
        build_model(ModelSpec.model_validate({"sharing": kind}), PADDED, {"click": 1}, seed=0, encoder=Ragged)


def test_heads_that_do_not_divide_a_token() -> None:
    with pytest.raises(BadValue, match="sharing 'prefix': heads is 3; allowed: a divisor of the width of a token, 8"):
        table_model({"kind": "prefix", "heads": 3})


# ---- layers


def test_gates_choose_whole_layers_and_learn() -> None:
    model, inputs = table_model({"kind": "layer_gates", "hidden_sizes": [6, 6], "sharing": 0.1}), table_inputs(4)
    assert torch.equal(features(model, inputs, "click"), features(model, inputs, "topic"))  # all shared at the start
    with torch.no_grad():
        model.sharing.scores["topic"].scores[1] = -1.0
    assert not torch.equal(features(model, inputs, "click"), features(model, inputs, "topic"))
    with listen() as tape:
        model(inputs, ["topic"])["topic"].sum().backward()
    assert {place: {name: float(rows[0]) for name, rows in of.items()} for (place, _), of in tape.gates.items()} == {
        "layer.0": {"shared": 1.0, "topic": 0.0},
        "layer.1": {"shared": 0.0, "topic": 1.0},
    }
    own = 1 - torch.tensor([0.6, 1 / (1 + 2.718281828459045)])
    torch.testing.assert_close(tape.penalties["topic"].detach(), 0.1 * own.mean())
    assert model.sharing.scores["topic"].scores.grad.ne(0).all()


def test_a_shallow_task_computes_no_deep_layer() -> None:
    model, called = table_model({"kind": "hmtl", "depths": {"click": 1, "assays": 2}}), []
    for number, layer in enumerate(model.sharing.layers):
        layer.register_forward_hook(lambda *_, number=number: called.append(number))
    model(table_inputs(3), ["click"])
    assert called == [0]
    model(table_inputs(3), ["click", "assays"])
    assert called == [0, 0, 1]
    with pytest.raises(BadValue, match="the depth of 'click' is 4; allowed: at most the number of layers, 3"):
        table_model({"kind": "hmtl", "depths": {"click": 4}})


def test_the_group_penalty_by_hand() -> None:
    model = table_model({"kind": "factorised", "rank": 2, "groups": {"pair": ["click", "topic"]}, "sparsity": 0.5})
    for task, vector in {"click": [3.0, 0.0], "topic": [4.0, 2.0], "assays": [-1.0, 2.0]}.items():
        model.sharing.taken[task].vector.data = torch.tensor(vector)
    with listen() as tape:
        model(table_inputs(2))
    # the pair: sqrt(9 + 16) + sqrt(0 + 4) = 7, half of it for each; assays: 1 + 2
    assert {task: float(term.detach()) for task, term in tape.penalties.items()} == pytest.approx(
        {"click": 1.75, "topic": 1.75, "assays": 1.5}
    )


# ---- experts that part, and domains


def test_experts_are_one_until_they_part_and_the_gate_becomes_sparse() -> None:
    options = {"kind": "evomoe", "experts": 4, "width": 6, "spawn": 2, "sparse": 6, "cold": 0.01, "threshold": 0.2}
    model, inputs = table_model(options), table_inputs(5)
    used = []
    for _ in range(7):
        with listen() as tape:
            model(inputs, ["click"])
        experts = torch.stack([tape.experts["experts", f"shared {number}"] for number in range(1, 5)])
        weights = torch.stack(list(tape.gates["experts", "click"].values()), dim=1)
        torch.testing.assert_close(weights.sum(1), torch.ones(5))
        used.append((bool(experts.eq(experts[0]).all()), int((weights > 0).sum(1).max())))
    assert [one for one, _ in used] == [True, False, False, False, False, False, False]
    assert used[1][1] == 4  # dense when they part
    assert used[6][1] < 4
    assert int(model.sharing.passes.count) == 7
    model.eval()(inputs)
    assert int(model.sharing.passes.count) == 7


def test_a_pass_is_counted_once_where_each_task_reads_the_inputs_by_itself() -> None:
    stems = {"by": "task", "default": {"kind": "mlp", "hidden_sizes": []}, "width": 4}
    spec = ModelSpec.model_validate({"stems": stems, "sharing": {"kind": "evomoe", "experts": 2}})
    model = build_model(spec, InputSchema(shapes={"numeric": (5,)}), OUTPUTS, seed=0)
    model({"numeric": torch.ones(3, 5)})
    assert int(model.sharing.passes.count) == 1


def test_domains_start_from_the_encoder_and_learn_apart() -> None:
    groups = {"one": ["click", "topic"], "other": ["assays"]}
    model, hard = table_model({"kind": "domain_experts", "groups": groups, "own": ["layers.2.*"]}), table_model("hard")
    inputs = table_inputs(4)
    for task in OUTPUTS:
        torch.testing.assert_close(features(model, inputs, task), hard.representation(inputs))
    model(inputs, ["assays"])["assays"].sum().backward()
    with_gradient = {
        name.split(".")[1] for name, value in model.sharing.experts.named_parameters() if value.grad is None
    }
    assert with_gradient == {"values"}
    assert all(value.grad is None for value in model.sharing.experts["one"].parameters())
    assert all(value.grad is not None for value in model.sharing.experts["other"].parameters())
    assert "sharing.encoder.layers.2.weight" not in model.state_dict()


def test_domains_that_do_not_fit() -> None:
    with pytest.raises(BadValue, match=r"'domain_experts': own is 'layer.9.\*'; allowed: a pattern of .*layers.0"):
        table_model({"kind": "domain_experts", "own": ["layer.9.*"]})
    with pytest.raises(UnknownName, match="groups of dmoerm: no task 'assays'"):
        table_model({"kind": "dmoerm", "groups": {"a": ["click", "topic"]}})
    with pytest.raises(BadValue, match="sharing 'dmoerm': the groups of task 'click'"):
        table_model({"kind": "dmoerm", "groups": {"a": ["click"], "b": ["click", "topic", "assays"]}})


def test_a_gate_that_is_sparse_before_experts_part() -> None:
    with pytest.raises(BadValue, match="sharing 'evomoe': sparse is 4; allowed: more than spawn, 4"):
        table_model({"kind": "evomoe", "spawn": 4, "sparse": 4})
