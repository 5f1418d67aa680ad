"""One vocabulary for all tasks: labels of one token and of several, log odds, numbers, and what the losses then are."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.sharing.conditioning_references import column_tokens
from tests.sharing.models import PICTURES, TABLE, TEXT, TINY_BERT, table_inputs, text_inputs, uniform
from tests.sharing.text_references import memory_of, next_token, spelled, token_of
from torch import Tensor
from torch.nn import functional

from polytask.core.errors import BadValue, MissingInput
from polytask.core.outputs import OutputSchema
from polytask.core.validation import validated
from polytask.sharing import ModelSpec, MultiTaskModel, build_model, describe
from polytask.sharing.output_tokenizers import Numbers, prefix_tree
from polytask.sharing.output_tokenizers import spelled as bytes_of
from polytask.sharing.tape import listen

WORDS = OutputSchema("choice", ("a", "ab", "größer", "grün"))
FLAGS = OutputSchema("flags", ("sport", "politics"))


def model_of(outputs: dict[str, int | OutputSchema], seed: int = 0, **options: Any) -> MultiTaskModel:
    spec = {"encoder": {"kind": "columns", "width": 8}, "sharing": {"kind": "text_to_text", "heads": 2, **options}}
    return build_model(ModelSpec.model_validate(spec), TABLE, outputs, seed=seed).double()


def rows(count: int) -> dict[str, Tensor]:
    inputs = table_inputs(count)
    return {**inputs, "numeric": inputs["numeric"].double()}


# ---- answers of several tokens


def log_probabilities(model: MultiTaskModel, task: str, texts: Sequence[str]) -> Tensor:
    """Of whole texts among all texts, one row, text and byte at a time."""
    tensors = model.state_dict()
    memories = [memory_of(tensors, row) for row in column_tokens(tensors, rows(5))]
    start = token_of(tensors, task)
    return torch.stack([torch.stack([spelled(tensors, start, text, memory) for text in texts]) for memory in memories])


def test_spelled_labels_are_scored_as_by_teacher_forcing_one_at_a_time() -> None:
    model = model_of({"word": WORDS, "size": 1}, spelled=True).eval()
    expected = log_probabilities(model, "word", WORDS.names)
    torch.testing.assert_close(model(rows(5))["word"], expected, rtol=1e-12, atol=1e-12)
    assert (expected.exp().sum(1) < 1).all()  # the rest is on texts that are no labels


def test_spelled_flags_are_the_log_odds_of_yes_against_no() -> None:
    model = model_of({"topics": FLAGS}, spelled=True).eval()
    tensors, memory = model.state_dict(), None
    found = model(rows(3))["topics"]
    for number, row in enumerate(column_tokens(tensors, rows(3))):
        memory = memory_of(tensors, row)
        for column, name in enumerate(FLAGS.names):
            start = token_of(tensors, "topics") + token_of(tensors, name)
            yes, no = (spelled(tensors, start, text, memory) for text in ("yes", "no"))
            torch.testing.assert_close(found[number, column], yes - no, rtol=1e-12, atol=1e-12)


def test_the_prediction_is_what_a_beam_as_wide_as_the_labels_finds() -> None:
    """A beam keeps the best beginnings of allowed answers; as wide as there are labels it drops none of them."""
    model = model_of({"word": WORDS}, spelled=True).eval()
    tensors, start = model.state_dict(), token_of(model.state_dict(), "word")
    texts = [bytes_of(name) for name in WORDS.names]
    for row, outputs in zip(column_tokens(tensors, rows(5)), model(rows(5))["word"], strict=True):
        memory = memory_of(tensors, row)
        beam: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        while any(prefix not in texts for _, prefix in beam):
            grown = []
            for score, prefix in beam:
                table = tensors["sharing.vocabulary.bytes"]
                after = next_token(tensors, [start, *(table[byte] for byte in prefix)], memory, table)
                allowed = {text[len(prefix)] for text in texts if text[: len(prefix)] == prefix and text != prefix}
                grown += [(score + float(after[byte]), (*prefix, byte)) for byte in sorted(allowed)]
                grown += [(score, prefix)] * (prefix in texts)
            beam = sorted(grown, reverse=True)[: len(texts)]
        assert beam[0][1] == texts[int(outputs.argmax())]


def test_the_tree_of_prefixes() -> None:
    """(1 2), (1 3), (4): the empty beginning and (1) are followed by something; two answers go through both."""
    tree = prefix_tree([(1, 2), (1, 3), (4,)])
    assert tree.prefixes == ((), (1,))
    assert tree.steps == (((0, 1), (1, 2)), ((0, 1), (1, 3)), ((0, 4),))


# ---- when the loss is the language model's


def loss_and_penalty(model: MultiTaskModel, task: str, labels: Tensor) -> tuple[Tensor, Tensor]:
    with listen() as tape:
        outputs = model.train()(rows(5), [task])[task]
    return functional.cross_entropy(outputs, labels), tape.penalties.get(task, torch.zeros(()))


def test_with_its_term_the_loss_of_spelled_labels_is_the_language_models() -> None:
    labels, model = torch.tensor([0, 3, 1, 2, 2]), model_of({"word": WORDS}, spelled=True)
    of_texts = -log_probabilities(model, "word", WORDS.names).gather(1, labels[:, None]).mean()
    loss, term = loss_and_penalty(model, "word", labels)
    assert term > 0.1
    torch.testing.assert_close(loss + term, of_texts, rtol=1e-12, atol=1e-12)
    half, _ = loss_and_penalty(model_of({"word": WORDS}, spelled=True, outside=0), "word", labels)
    torch.testing.assert_close(half, loss)
    without = loss_and_penalty(model_of({"word": WORDS}, spelled=True, outside=0), "word", labels)[1]
    assert without == 0


def test_the_term_of_flags_makes_theirs_the_language_models_too() -> None:
    model = model_of({"good": OutputSchema("flags", ("good",))}, spelled=True)
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    texts = log_probabilities(model, "good", ["no", "yes"])
    with listen() as tape:
        odds = model.train()(rows(5))["good"]
    loss = functional.binary_cross_entropy_with_logits(odds, labels) + tape.penalties["good"]
    torch.testing.assert_close(loss, -texts.gather(1, labels.long()[:, None]).mean(), rtol=1e-12, atol=1e-12)


def test_labels_of_one_token_are_all_that_may_be_answered() -> None:
    model = model_of({"word": WORDS})
    outputs = model.eval()(rows(5))["word"]
    torch.testing.assert_close(outputs.exp().sum(1), torch.ones(5, dtype=torch.float64))
    assert loss_and_penalty(model, "word", torch.zeros(5, dtype=torch.int64))[1] == 0


def test_no_term_in_evaluation() -> None:
    with listen() as tape:
        model_of({"word": WORDS}, spelled=True).eval()(rows(5))
    assert tape.penalties == {}


# ---- numbers


def test_numbers_are_means_of_bins() -> None:
    """Four parts of [0, 2]: centres 0.25, 0.75, 1.25, 1.75."""
    numbers = Numbers(("depth",), 0.0, 2.0, 4)
    sure = torch.full((4, 1, 4), -torch.inf, dtype=torch.float64)
    for part in range(4):
        sure[part, 0, part] = 0.0
    assert numbers.outputs(sure).tolist() == [0.25, 0.75, 1.25, 1.75]
    mixed = torch.tensor([[[0.5, 0.0, 0.25, 0.25]]], dtype=torch.float64).log()
    assert numbers.outputs(mixed).tolist() == [0.875]


def test_limits_bound_what_is_answered() -> None:
    outputs: dict[str, int | OutputSchema] = {"speed": OutputSchema("numbers", ("speed",)), "size": 1}
    model = model_of(outputs, bins=4, limits={"speed": [10, 30], "absent": [0, 1]}).eval()
    with torch.no_grad():
        model.sharing.vocabulary.bins.mul_(1000)  # one bin gets all the probability
    found = model(rows(9))
    centres = torch.tensor([12.5, 17.5, 22.5, 27.5], dtype=torch.float64)
    assert ((found["speed"][:, None] - centres).abs().amin(1) < 1e-9).all()
    assert ((found["size"][:, None] - torch.tensor([-3.0, -1.0, 1.0, 3.0])).abs().amin(1) < 1e-9).all()


def test_the_numbers_of_a_vector_are_asked_one_by_one() -> None:
    schema = OutputSchema("numbers", ("x", "y", "z"), (-1.0, 1.0))
    model = model_of({"normal": schema}, bins=6).eval()
    tensors, found = model.state_dict(), model(rows(2))["normal"]
    memory = memory_of(tensors, column_tokens(tensors, rows(2))[1])
    start = token_of(tensors, "normal") + token_of(tensors, "y")
    parts = next_token(tensors, [start], memory, tensors["sharing.vocabulary.bins"]).exp()
    centres = torch.tensor([-5, -3, -1, 1, 3, 5], dtype=torch.float64) / 6
    torch.testing.assert_close(found[1, 1], parts @ centres, rtol=1e-12, atol=1e-12)


# ---- tasks that come and go


def test_a_new_task_needs_no_parameters() -> None:
    model = model_of({"word": WORDS})
    other = model_of({"topics": FLAGS, "word": WORDS, "size": 1}, seed=1).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(rows(3))["word"], model.eval()(rows(3))["word"])
    assert describe(other)["private"] == {"topics": 0, "word": 0, "size": 0}


def test_own_prompts_are_all_that_a_task_has() -> None:
    model = model_of({"word": WORDS, "size": 1}, own_prompts=True).eval()
    assert describe(model)["private"] == {"word": 8, "size": 8}
    before = model(rows(3))
    with torch.no_grad():
        model.sharing.prompts["size"].vector.add_(1)
    after = model(rows(3))
    assert torch.equal(before["word"], after["word"])
    assert not torch.equal(before["size"], after["size"])


# ---- encoders


def test_a_vector_is_one_token() -> None:
    spec = {"encoder": {"kind": "tabular", "hidden_sizes": [7]}, "sharing": {"kind": "text_to_text", "heads": 2}}
    model = build_model(ModelSpec.model_validate(spec), TABLE, {"size": 1}, seed=0).double().eval()
    assert model.sharing.width == 8  # 7, rounded up for two heads
    tensors, vectors = model.state_dict(), model.representation(rows(3))
    assert vectors.shape == (3, 7)
    found = model.from_representation(vectors)["size"]
    bins = tensors["sharing.vocabulary.bins"]
    centres = -4 + (torch.arange(64, dtype=torch.float64) + 0.5) / 8
    for vector, number in zip(vectors, found, strict=True):
        parts = next_token(tensors, [token_of(tensors, "size")], memory_of(tensors, vector[None]), bins)
        torch.testing.assert_close(number, parts.exp() @ centres, rtol=1e-12, atol=1e-12)


def test_padding_is_not_read() -> None:
    encoder = {"kind": "transformer", "config": TINY_BERT, "pooling": "none"}
    spec = ModelSpec.model_validate({"encoder": encoder, "sharing": "text_to_text"})
    model = build_model(spec, TEXT, {"size": 1, "topic": 3}, seed=0).eval()
    inputs = text_inputs([3, 6])
    short = {key: values[:1, :3] for key, values in inputs.items()}
    for task, output in model(short).items():
        torch.testing.assert_close(output, model(inputs)[task][:1])
    with pytest.raises(MissingInput, match="rows of different length share no representation"):
        model.representation(inputs)


def test_points_of_a_picture_do_not_see_each_other() -> None:
    """Changing the maps at one point changes the answer there; its tokens are those of the coarsest map, left alone."""
    spec = {"encoder": {"kind": "pyramid", "channels": [4, 8]}, "sharing": {"kind": "text_to_text", "spelled": True}}
    spec["decoder"] = {"strides": {"classes": 2}, "width": 8}
    model = build_model(ModelSpec.model_validate(spec), PICTURES, {"classes": 3}, seed=0).eval()
    assert model.sharing.map_sizes == {"classes": (4, 6)}  # as large as the finest map: nothing is interpolated
    maps = model.sharing.encoder({"image": uniform(0, 1, 3, 8, 12)})
    before = model.sharing._scores(model.sharing._read(maps), ["classes"])["classes"]
    maps[0] = maps[0].clone()
    maps[0][0, :, 1, 2] += 1
    after = model.sharing._scores(model.sharing._read(maps), ["classes"])["classes"]
    changed = (before != after).any(-1)[0, :, :, 0]
    assert changed.nonzero().tolist() == [[1, 2]]


def test_a_task_with_one_label_a_row_is_asked_once_beside_points() -> None:
    spec = {"encoder": {"kind": "pyramid", "channels": [4, 8]}, "sharing": "text_to_text", "decoder": {"width": 8}}
    outputs = {"age": OutputSchema("numbers", ("age",), (0.0, 99.0), of_rows=True), "parts": 3}
    model = build_model(ModelSpec.model_validate(spec), PICTURES, outputs, seed=0).double().eval()
    image = uniform(0, 2, 3, 8, 12).double()
    found = model({"image": image})
    assert {task: list(output.shape) for task, output in found.items()} == {"age": [2], "parts": [2, 8, 12, 3]}
    torch.testing.assert_close(model({"image": image}, ["age"])["age"], found["age"])
    assert model.sharing.map_sizes == {"parts": (8, 12)}


# ---- what is refused


@pytest.mark.parametrize(
    ("outputs", "heads", "options", "message"),
    [
        ({"a": 2}, {"a": [5]}, {}, r"layers of the head of task 'a' is \[5\].*answers all tasks by one vocabulary"),
        ({"a": OutputSchema("numbers", ("a",))}, {}, {}, r"task 'a': nothing says between which.*limits: \{a: \[low"),
        ({"a": OutputSchema("choice", ("1", "1"))}, {}, {}, r"task 'a': labels as text is .*'1' once"),
        ({"a": 1}, {}, {"limits": {"a": [2, 2]}}, r"limits is \[2\.0, 2\.0\].*the smaller one first"),
        ({"a": 2}, {}, {"limits": {"a": [0, 2]}}, r"limits of task 'a' is \[0\.0, 2\.0\]; .*none, as its answers are"),
        ({"a": 1}, {}, {"bins": 1}, r"bins is 1"),
        ({"a": 1}, {}, {"outside": -1}, r"outside is -1"),
    ],
)
def test_what_cannot_be_answered(outputs: Any, heads: Any, options: Any, message: str) -> None:
    spec = {"encoder": "columns", "sharing": {"kind": "text_to_text", **options}}

    def build() -> None:
        build_model(validated(ModelSpec, spec, "model"), TABLE, outputs, heads, seed=0)

    with pytest.raises((BadValue, MissingInput), match=message):
        build()


def test_decoders_need_a_pyramid() -> None:
    spec = ModelSpec.model_validate({"encoder": "columns", "sharing": "text_to_text", "decoder": {"width": 8}})
    with pytest.raises(BadValue, match=r"model.decoder is .*nothing, as the encoder gives a sequence"):
        build_model(spec, TABLE, {"a": 1}, seed=0)
