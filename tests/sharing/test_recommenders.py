"""Tasks that depend on one another, the calibrator of ordered tasks, and gates on prior inputs."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.sharing.models import DOMAIN, TABLE, table_inputs, table_model

import polytask
from polytask.core.errors import BadValue, MissingInput, UnknownName
from polytask.core.noise import Noise
from polytask.evaluation.heads import detach
from polytask.recipes.reading import read_recipe
from polytask.recipes.run import make_job
from polytask.sharing import ModelSpec, build_model, describe
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.products import product_log_odds
from polytask.sharing.tape import listen
from polytask.studies.baseline import single_task
from polytask.tasks.task import expand_tasks
from polytask.training.job import products_of

ENCODER = {"kind": "tabular", "embedding": 3, "hidden_sizes": [11, 8]}
ORDERED = {"view": 1, "click": 1, "buy": 1}


def funnel(sharing="esmm", products=None, outputs=None):
    """A model of click, conversion and their product, purchase, which stands first."""
    products = {"purchase": ("click", "conversion")} if products is None else products
    outputs = {"purchase": 1, "click": 1, "conversion": 1} if outputs is None else outputs
    spec = ModelSpec(encoder=ENCODER, sharing=sharing)
    return build_model(spec, TABLE, outputs, seed=0, products=products)


# ---- products


@pytest.mark.parametrize("odds", [[0.3, -1.2], [40.0, 35.0, 50.0], [-60.0, 2.0], [90.0, -90.0], [200.0, 300.0]])
def test_log_odds_of_a_product(odds):
    """With exact fractions of probabilities: p = e^x / (1 + e^x)."""
    from fractions import Fraction

    happened = Fraction(1)
    for odd in odds:
        exponential = Fraction(math.exp(odd)) if odd < 700 else Fraction(0)
        happened *= exponential / (1 + exponential)
    expected = math.log(happened.numerator) - math.log(happened.denominator - happened.numerator)
    found = product_log_odds([torch.tensor([odd], dtype=torch.float64) for odd in odds])
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_a_product_of_extreme_odds_has_a_gradient():
    odds = torch.tensor([[120.0, -120.0, 0.0], [110.0, 3.0, -500.0]], requires_grad=True)
    product_log_odds([odds[0], odds[1]]).sum().backward()
    assert odds.grad.isfinite().all()
    assert (odds.grad >= 0).all()


@pytest.mark.parametrize("sharing", ["esmm", "mmoe", "hard", "aitm"])
def test_a_product_is_that_of_its_factors_and_has_no_part_of_the_model(sharing):
    model, inputs = funnel(sharing).eval(), table_inputs(7)
    outputs = model(inputs)
    assert list(outputs) == model.tasks == ["purchase", "click", "conversion"]
    expected = outputs["click"].sigmoid() * outputs["conversion"].sigmoid()
    torch.testing.assert_close(outputs["purchase"].sigmoid(), expected)
    torch.testing.assert_close(model(inputs, ["purchase"])["purchase"], outputs["purchase"])
    assert list(model(inputs, ["purchase"])) == ["purchase"]
    assert describe(model)["private"]["purchase"] == 0
    representation = model.representation(inputs, ["purchase"])
    torch.testing.assert_close(model.from_representation(representation, ["purchase"])["purchase"], outputs["purchase"])


def test_a_loss_of_the_product_trains_both_factors():
    model = funnel()
    model(table_inputs(4), ["purchase"])["purchase"].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "products, error, message",
    [
        ({"purchase": ("click",)}, BadValue, "two or more tasks, each once"),
        ({"purchase": ("click", "klick")}, UnknownName, "no task 'klick'"),
        (
            {"purchase": ("click", "conversion"), "click": ("conversion", "purchase")},
            UnknownName,
            "a product is no fac",
        ),
    ],
)
def test_products_that_a_model_cannot_have(products, error, message):
    with pytest.raises(error, match=message):
        funnel(products=products)


def test_a_product_of_several_outputs_is_refused():
    with pytest.raises(BadValue, match="outputs of task 'click' in a product"):
        funnel(outputs={"purchase": 1, "click": 3, "conversion": 1})


@pytest.mark.parametrize(
    "tasks, error, message",
    [
        ({"a": "binary", "p": {"kind": "binary", "product_of": ["a", "b"]}}, UnknownName, "no task 'b'"),
        ({"a": "binary", "p": {"kind": "binary", "product_of": ["a"]}}, BadValue, "two or more tasks"),
        (
            {"a": "binary", "b": "regression", "p": {"kind": "binary", "product_of": ["a", "b"]}},
            BadValue,
            "a factor.*of kind 'regression'.*a binary task that is no product",
        ),
        (
            {"a": "binary", "b": "binary", "p": {"kind": "regression", "product_of": ["a", "b"]}},
            BadValue,
            "kind binary",
        ),
        (
            {"a": "binary", "b": {"kind": "binary", "source": "s"}, "p": {"kind": "binary", "product_of": ["a", "b"]}},
            BadValue,
            "source",
        ),
        (
            {
                "a": "binary",
                "b": {"kind": "binary", "role": "training_only"},
                "p": {"kind": "binary", "product_of": ["a", "b"]},
            },
            BadValue,
            "role.*its product 'p' stays in the model",
        ),
    ],
)
def test_products_that_a_recipe_cannot_have(tasks, error, message):
    with pytest.raises(error, match=message):
        expand_tasks(tasks)


def shop(rows: int = 600) -> dict[str, np.ndarray]:
    """Conversions after clicks only; what is clicked is bought for other reasons."""
    noise = Noise(0, "shop")
    x = noise.normal(2 * rows).reshape(rows, 2)
    chance = noise.child("chance").uniform(2 * rows).reshape(2, rows)
    click = chance[0] < 1 / (1 + np.exp(-2 * x[:, 0]))
    buy = click & (chance[1] < 1 / (1 + np.exp(-2 * x[:, 1])))
    return {"a": x[:, 0], "b": x[:, 1], "click": click, "buy": buy}


SHOP = {
    "version": 1,
    "data": {"split": {"fractions": [0.6, 0.2, 0.2], "seed": 0}},
    "tasks": {
        "click": "binary",
        "conversion": {"kind": "binary", "label": "buy", "where": "click"},
        "purchase": {"kind": "binary", "label": "buy", "product_of": ["click", "conversion"]},
    },
    "model": {"encoder": {"kind": "mlp", "hidden_sizes": [8]}, "sharing": {"kind": "esmm", "hidden_sizes": [8]}},
    "train": {"tasks": ["click", "purchase"], "epochs": 12, "batch_size": 32, "optimizer": {"lr": 0.02}, "threads": 1},
}


def test_conversions_are_learned_over_the_entire_space_without_a_loss_of_their_own(tmp_path: Path):
    """The conversion's head is trained by clicks and purchases alone, is scored on clicked rows, and is saved."""
    results = polytask.train(SHOP, out=tmp_path / "run", data={"data": shop()})
    assert results["test"]["conversion"]["auroc"] > 0.8
    trained = polytask.load(tmp_path / "run")
    rows = {name: values[:9] for name, values in shop().items() if name in ("a", "b")}
    found = trained.predict(rows)
    product = found["click"].to_numpy() * found["conversion"].to_numpy()
    np.testing.assert_allclose(found["purchase"].to_numpy(), product, rtol=1e-5)

    with pytest.raises(BadValue, match="the factors of task 'purchase' without 'click'"):
        detach(tmp_path / "run", ["click"], tmp_path / "less")
    detach(tmp_path / "run", ["purchase"], tmp_path / "less")
    assert polytask.load(tmp_path / "less").predict(rows).columns == ["click", "conversion"]


def test_the_baseline_of_a_product_has_a_head():
    job = make_job(read_recipe({**SHOP, "train": {"epochs": 1}}), data={"data": shop()})
    assert products_of(job.targets) == {"purchase": ("click", "conversion")}
    alone = single_task(job, "purchase")
    assert products_of(alone.targets) == {}
    assert list(alone.build().heads) == ["purchase"]


# ---- ordered tasks


def ordered(**options):
    return table_model({"kind": "aitm", "hidden_sizes": [6], **options}, outputs=ORDERED)


def test_the_calibrator_penalises_a_step_that_is_more_probable_than_the_one_before():
    model, inputs = ordered(calibrator=0.6), table_inputs(5)
    with listen() as tape:
        outputs = model(inputs)
    p = {task: output.detach().sigmoid() for task, output in outputs.items()}
    assert set(tape.penalties) == {"click", "buy"}
    for before, after in (("view", "click"), ("click", "buy")):
        excess = [max(float(b - a), 0) for a, b in zip(p[before], p[after], strict=True)]
        assert tape.penalties[after].item() == pytest.approx(0.6 * sum(excess) / 5, rel=1e-5)
    with listen() as tape:
        model(inputs, ["view", "buy"])
    assert tape.penalties == {}
    with listen() as tape:
        ordered()(inputs)
    assert tape.penalties == {}


def test_the_calibrator_refuses_tasks_of_several_outputs():
    model = table_model({"kind": "aitm", "calibrator": 0.6}, outputs={"click": 1, "topic": 4})
    with listen(), pytest.raises(BadValue, match=r"'aitm'.*'topic'.*one output a row"):
        model(table_inputs(3))


def test_the_order_may_be_another_than_the_recipes():
    model, inputs = ordered(order=["buy", "view", "other", "click"]).eval(), table_inputs(4)
    assert list(model.sharing.transfers) == ["view", "click"]
    whole = model(inputs)
    assert list(whole) == list(ORDERED)
    with torch.no_grad():
        model.sharing.towers["buy"][0].weight.add_(1)
    changed = model(inputs)
    assert not any(torch.equal(whole[task], changed[task]) for task in ORDERED)


@pytest.mark.parametrize(
    "order, error, message",
    [
        (["view", "click"], UnknownName, "no task 'buy'"),
        (["view", "click", "buy", "click"], BadValue, "'click' once"),
    ],
)
def test_an_order_that_does_not_fit(order, error, message):
    with pytest.raises(error, match=message):
        ordered(order=order)


# ---- gates on prior inputs


def test_no_gradient_goes_through_the_embeddings_into_the_gates():
    """Where the towers give nothing (weights 0), only the gates could carry a gradient to the encoder."""
    model = table_model({"kind": "pepnet", "hidden_sizes": [6], "prior": DOMAIN})
    with torch.no_grad():
        for tower in model.sharing.towers.values():
            tower.layers[0].weight.zero_()
            tower.layers[0].bias.fill_(1)
    sum(output.sum() for output in model(table_inputs(5)).values()).backward()
    gradients = [parameter.grad for parameter in model.sharing.encoder.parameters()]
    assert not any(gradient.any() for gradient in gradients)
    assert any(parameter.grad.any() for parameter in model.sharing.prior.parameters())


def test_a_side_encoder_names_its_columns():
    with pytest.raises(UnknownName, match=r"no categorical column 'pge'.*did you mean 'page'"):
        table_model({"kind": "pepnet", "prior": {**DOMAIN, "columns": ["pge"]}})
    with pytest.raises(BadValue, match=r"pepnet.*prior.*a sequence"):
        table_model({"kind": "pepnet", "prior": {"kind": "columns"}})


def test_without_side_inputs_the_gates_read_the_embeddings():
    model = table_model({"kind": "pepnet", "hidden_sizes": [6]})
    assert model.representation(table_inputs(3)).shape == (3, 8)
    assert {output.shape[0] for output in model(table_inputs(3)).values()} == {3}


# ---- tokens


def test_dtrn_needs_a_token_a_column():
    def factory():
        return Words()

    spec = ModelSpec(sharing="dtrn")
    with pytest.raises(MissingInput, match="'dtrn' weighs columns"):
        build_model(spec, TABLE, {"click": 1}, seed=0, encoder=factory)
    with pytest.raises(BadValue, match=r"'dtrn': heads.*5.*a divisor of the width of a token, 8"):
        table_model({"kind": "dtrn", "heads": 5})


class Words(torch.nn.Module):
    """Numbers as two to five words of width 4; the rest of a row is padding, which holds anything."""

    width, gives = 4, "sequence"

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Parameter(torch.ones(5, 4))

    def forward(self, inputs):
        values = inputs["numeric"].unsqueeze(2) * self.words
        lengths = inputs["categorical"][:, 0] + 2
        return Tokens(values, torch.arange(5) < lengths[:, None])


@pytest.mark.parametrize("kind", ["m2trec", "apem"])
def test_padding_is_left_out(kind):
    spec, inputs = ModelSpec(sharing={"kind": kind, "heads": 2}), table_inputs(6)
    model = build_model(spec, TABLE, {"click": 1}, seed=0, encoder=Words).eval()
    padded = torch.arange(5) >= inputs["categorical"][:, :1] + 2
    assert padded.any()
    other = {**inputs, "numeric": torch.where(padded, 1e3, inputs["numeric"])}
    torch.testing.assert_close(model(other)["click"], model(inputs)["click"])
    with pytest.raises(BadValue, match=rf"'{kind}': heads.*3.*a divisor of the width of a token, 8"):
        table_model({"kind": kind, "heads": 3})
