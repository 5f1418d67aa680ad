"""The reconstruction of masked tokens: what is reconstructed, from what, and what it costs."""

import math
from typing import Any

import pytest
import torch
from tests.sharing.models import IMAGES, TABLE, table_inputs, table_model, uniform
from torch import Tensor
from torch.nn import functional

from polytask.core.errors import BadValue, MissingInput
from polytask.core.inputs import InputSchema
from polytask.core.validation import validated
from polytask.sharing import ENCODERS, ModelSpec, MultiTaskModel, build_model
from polytask.sharing.encoders.contract import MadeOf, build
from polytask.sharing.encoders.patches import patches_of
from polytask.sharing.reconstruction import Masked, Reconstruction, ReconstructionOptions, runs_within
from polytask.sharing.tape import listen
from polytask.training.beside import WithBeside

KIND = {"kind": "modality_masks", "heads": 2, "modalities": [4, 2, 2]}
SMALL = ReconstructionOptions(width=8, heads=2)


def columns(**options: Any) -> Any:
    return build(ENCODERS.find("columns").Options(width=8, **options), TABLE)


def reconstruction(encoder: Any, sizes: list[int], options: ReconstructionOptions = SMALL) -> Reconstruction:
    return Reconstruction(encoder, sizes, options, 0, "sharing 'modality_masks'")


def masked(rows: int, hidden: list[list[int]], tokens: int = 8, seed: int = 0) -> Masked:
    """Random values; the tokens that are hidden in each row, all others visible."""
    mask = torch.zeros(rows, tokens, dtype=torch.bool)
    for row, places in enumerate(hidden):
        mask[row, places] = True
    return Masked(uniform(seed, rows, tokens, 8), ~mask, mask)


# ---- raw inputs


def test_raw_inputs_of_columns_and_of_patches() -> None:
    inputs = table_inputs(3)
    encoder = columns()
    assert encoder.made_of == (MadeOf(5, numbers=1), MadeOf(1, classes=4), MadeOf(1, classes=7), MadeOf(1, classes=3))
    numbers, *categories = encoder.raw(inputs)
    assert torch.equal(numbers, inputs["numeric"].unsqueeze(2))
    assert all(torch.equal(raw[:, 0], inputs["categorical"][:, place]) for place, raw in enumerate(categories))
    image = {"image": uniform(0, 2, 1, 12, 12)}
    patches = build(ENCODERS.find("patches").Options(patch=6), IMAGES)
    assert patches.made_of == (MadeOf(4, numbers=36),)
    assert torch.equal(patches.raw(image)[0], patches_of(image["image"], 6))


def test_a_number_that_marks_another_as_missing_is_not_reconstructed() -> None:
    schema = InputSchema(shapes={"numeric": (3,)}, markers=(1, 1, -1))
    encoder: Any = build(ENCODERS.find("columns").Options(width=8, missing="hidden"), schema)
    assert encoder.made_of == (MadeOf(2, numbers=1),)
    assert encoder.raw({"numeric": torch.tensor([[0.5, 0.0, 2.0]])})[0].tolist() == [[[0.5], [2.0]]]


def test_runs_of_a_modality_that_reaches_over_several() -> None:
    made_of = (MadeOf(5, numbers=1), MadeOf(1, classes=4), MadeOf(2, numbers=3))
    runs = runs_within(slice(3, 7), made_of)
    assert [(run.here, run.of, run.there, run.outputs, run.is_category) for run in runs] == [
        (slice(0, 2), 0, slice(3, 5), 1, False),
        (slice(2, 3), 1, slice(0, 1), 4, True),
        (slice(3, 4), 2, slice(0, 1), 3, False),
    ]


# ---- the loss


def constant(decoders: Reconstruction) -> Reconstruction:
    """Whatever they read, numbers are made 1 and all categories are as likely."""
    with torch.no_grad():
        for decoder in decoders.decoders:
            for run, linear in zip(decoder.runs, decoder.made, strict=True):
                linear.weight.zero_()
                linear.bias.fill_(0.0 if run.is_category else 1.0)
    return decoders


def test_the_loss_by_hand() -> None:
    """Modalities: four numbers; a number and a category of 4; categories of 7 and 3."""
    inputs = {
        "numeric": torch.tensor([[1.0, 0, 3, 5, 2], [0.0, 0, 0, 0, 0]]),
        "categorical": table_inputs(2)["categorical"],
    }
    encoder = columns()
    made = constant(reconstruction(encoder, [4, 2, 2]))
    state = masked(2, [[1, 2, 4], [0, 5]])
    # The first modality: (1-0)^2 = 1 and (1-3)^2 = 4 in the first row, 1 in the second: 2. The second: (1-2)^2 = 1, and
    # -log(1/4). The third has no masked token: 0.
    expected = (2 + (1 + math.log(4)) / 2 + 0) / 3
    assert made.loss(state, encoder.raw(inputs)).item() == pytest.approx(expected, rel=1e-6)
    others = {**inputs, "numeric": torch.tensor([[9.0, 0, 3, 9, 2], [0.0, 9, 9, 9, 9]])}  # visible ones are no targets
    assert made.loss(state, encoder.raw(others)).item() == pytest.approx(expected, rel=1e-6)


def test_patches_have_the_mean_squared_error_of_their_pixels() -> None:
    encoder: Any = build(ENCODERS.find("patches").Options(patch=6, width=8), IMAGES)
    made = constant(reconstruction(encoder, [4]))
    image = uniform(0, 2, 1, 12, 12)
    state = masked(2, [[3], [0, 1]], tokens=4)
    errors = [(image[0, 0, 6:, 6:] - 1).square().mean(), (image[1, 0, :6] - 1).square().mean()]
    expected = (errors[0] + 2 * errors[1]) / 3
    torch.testing.assert_close(made.loss(state, encoder.raw({"image": image})), expected)


def test_patches_have_no_negative_number_of_layers() -> None:
    with pytest.raises(BadValue, match="layers is -1"):
        validated(ENCODERS.find("patches").Options, {"layers": -1}, "encoder")


def attend(heads: int, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """[n, w] reads [L, w], head by head."""
    found = []
    for q, k, v in zip(*(each.chunk(heads, dim=1) for each in (query, key, value)), strict=True):
        scores = (q @ k.T / q.shape[1] ** 0.5).masked_fill(~allowed, -math.inf)
        found.append(scores.softmax(1) @ v)
    return torch.cat(found, dim=1)


def test_a_decoder_equals_its_reference_in_float64() -> None:
    encoder = columns().double()
    made = reconstruction(encoder, [4, 2, 2]).double()
    inputs = table_inputs(2) | {"numeric": table_inputs(2)["numeric"].double()}
    state = masked(2, [[1, 2, 4], [0, 5, 7]])
    state = Masked(state.values.double(), state.visible, state.hidden)
    decoder, raw = made.decoders[1], encoder.raw(inputs)
    reading, block = decoder.reading, decoder.blocks[0]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(2):
        seen = state.values[row] @ made.visible.weight.T + made.visible.bias
        x = (
            torch.stack([seen[place] if state.visible[row, place] else decoder.hidden for place in (4, 5)])
            + decoder.places
        )
        key, value = reading.keys_values(reading.source_norm(seen)).chunk(2, dim=1)
        read = attend(2, reading.queries(reading.own_norm(x)), key, value, state.visible[row])
        x = x + reading.outwards(read)
        x = x + reading.network(reading.network_norm(x))
        query, key, value = block.inwards(block.attention_norm(x)).chunk(3, dim=1)
        x = x + block.outwards(attend(2, query, key, value, torch.ones(2, dtype=torch.bool)))
        x = x + block.network(block.network_norm(x))
        if state.hidden[row, 4]:
            total, count = total + (decoder.made[0](x[0])[0] - raw[0][row, 4, 0]) ** 2, count + 1
        if state.hidden[row, 5]:
            total, count = total + functional.cross_entropy(decoder.made[1](x[1]), raw[1][row, 0]), count + 1
    found = decoder(made.visible(state.values), state, raw)
    torch.testing.assert_close(found, total / count, rtol=1e-12, atol=1e-12)


# ---- with a model


def beside(model: MultiTaskModel) -> WithBeside:
    made = model.sharing.beside(0)
    assert made is not None
    return WithBeside(model, made)


def seeded_pass(model: Any, inputs: dict[str, Tensor], tasks: list[str]) -> Any:
    with torch.random.fork_rng(), listen() as tape:
        torch.manual_seed(0)
        model(inputs, tasks)
    return tape


def test_tasks_share_the_term_in_training_and_have_none_later() -> None:
    options = {"strength": 0.6, "width": 8, "heads": 2}
    model, inputs = table_model({**KIND, "reconstruct": options}), table_inputs(6)
    both = beside(model)
    tape = seeded_pass(both, inputs, ["click", "topic"])
    term = both.beside.loss(tape.notes["masked"], tape.notes["raw"])
    torch.testing.assert_close(tape.penalties["click"], 0.3 * term)
    torch.testing.assert_close(tape.penalties["topic"], 0.3 * term)
    term.backward()
    assert all(parameter.grad is not None for parameter in both.beside.parameters())
    assert model.sharing.encoder.weight.grad is not None  # what is visible teaches the encoder too
    assert not seeded_pass(both.eval(), inputs, ["click"]).penalties
    assert not [name for name in model.state_dict() if "decoder" in name]


def test_engines_that_ask_for_the_representation_have_the_term() -> None:
    both, inputs = beside(table_model(KIND)), table_inputs(6)
    whole = seeded_pass(both, inputs, ["click"])
    with torch.random.fork_rng(), listen() as tape:
        torch.manual_seed(0)
        both.from_representation(both.representation(inputs, ["click"]), ["click"])
    torch.testing.assert_close(tape.penalties["click"], whole.penalties["click"])


def test_missing_values_are_neither_visible_nor_masked() -> None:
    schema = InputSchema(shapes={"numeric": (4,)}, markers=(1, 1, 3, 3))
    spec = ModelSpec.model_validate(
        {"encoder": {"kind": "columns", "width": 8, "missing": "hidden"}, "sharing": {"kind": "modality_masks"}}
    )
    both = beside(build_model(spec, schema, {"click": 1}, seed=0))
    nothing = {"numeric": torch.tensor([[0.0, 1.0, 0.5, 0.0], [0.0, 1.0, 0.0, 1.0]])}
    tape = seeded_pass(both, nothing, ["click"])
    state = tape.notes["masked"]
    assert not (state.visible | state.hidden)[:, 0].any()
    assert int((state.visible | state.hidden).sum()) == 1
    assert tape.penalties["click"].isfinite()


@pytest.mark.parametrize("changed", [{"reconstruct": {"strength": 0}}, {"visible": 1}])
def test_nothing_to_reconstruct(changed: dict[str, Any]) -> None:
    model = table_model({**KIND, **changed})
    assert model.sharing.beside(0) is None
    assert not seeded_pass(model, table_inputs(3), ["click"]).notes.get("raw")


def test_the_term_goes_down() -> None:
    """Columns that say the same are reconstructed from each other."""
    shared = uniform(0, 64, 1) * 2 - 1
    schema, inputs = InputSchema(shapes={"numeric": (6,)}), {"numeric": shared.expand(-1, 6) * torch.arange(1.0, 7.0)}
    kind = {"kind": "modality_masks", "heads": 2, "layers": 1, "modalities": [3, 3], "reconstruct": {"width": 16}}
    spec = ModelSpec.model_validate({"encoder": {"kind": "columns", "width": 16}, "sharing": kind})
    both = beside(build_model(spec, schema, {"click": 1}, seed=0))
    optimizer, terms = torch.optim.Adam(both.parameters(), lr=3e-3), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(120):
            optimizer.zero_grad()
            with listen() as tape:
                both(inputs, ["click"])
            tape.penalties["click"].backward()
            optimizer.step()
            terms.append(tape.penalties["click"].item())
    assert sum(terms[-10:]) < 0.25 * sum(terms[:10])


class Opaque(torch.nn.Module):
    """An encoder that does not say what its tokens are made of."""

    gives, width, tokens = "sequence", 4, 3

    def forward(self, inputs: dict[str, Tensor]) -> Any:
        from polytask.sharing.encoders.contract import Tokens

        return Tokens(inputs["numeric"][:, :3, None] * torch.ones(4))


def test_mistakes() -> None:
    spec = ModelSpec.model_validate({"sharing": {"kind": "modality_masks", "heads": 2}})
    model = build_model(spec, InputSchema(shapes={"numeric": (6,)}), {"click": 1}, seed=0, encoder=Opaque)
    with pytest.raises(
        MissingInput, match=r"the encoder is Opaque, which does not say .* reconstruct: \{strength: 0\}"
    ):
        model.sharing.beside(0)
    bad = table_model({**KIND, "reconstruct": {"width": 9}})
    with pytest.raises(BadValue, match=r"'modality_masks': reconstruct: heads is 4; allowed: a divisor of .* 9"):
        bad.sharing.beside(0)
    with pytest.raises(BadValue, match=r"model\.sharing\.reconstruct\.strength is -1; allowed: greater than or equal"):
        validated(ModelSpec, {"sharing": {**KIND, "reconstruct": {"strength": -1}}}, "model")
