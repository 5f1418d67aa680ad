"""Attachments against dense references in float64, values worked by hand, and as part of a model."""

import math

import pytest
import torch
from tests.sharing.models import (
    OUTPUTS,
    SHARING_OPTIONS,
    TABLE,
    heads_of,
    inputs_of,
    on_graphs,
    schema_of,
    table_inputs,
    uniform,
)
from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput, NotFinite, UnknownName
from polytask.sharing import (
    ATTACHMENTS,
    SHARING,
    Branches,
    ModelSpec,
    MultiTaskModel,
    attachment,
    build_model,
    describe,
)
from polytask.sharing.attachments.rep_mtl import cross_task_alignment, saliency_entropy
from polytask.sharing.layers import TaskModules

OPTIONS = {
    "rotograd": {"kind": "rotograd", "dimensions": 5},
    "rep_mtl": {"kind": "rep_mtl"},
    "modality_calibration": {"kind": "modality_calibration"},
    "covariance_alignment": {"kind": "covariance_alignment"},
}
every_attachment = pytest.mark.parametrize("kind", ATTACHMENTS.names())


def double(*shape: int, seed: int = 0) -> Tensor:
    return uniform(seed, *shape).double() * 2 - 1


def model_with(*kinds: str, sharing: str = "hard", seed: int = 0) -> MultiTaskModel:
    options = [ATTACHMENTS.find(kind).Options(**OPTIONS[kind]) for kind in kinds]
    tabular, graph = {"kind": "tabular", "embedding": 3, "hidden_sizes": [11, 8]}, {"kind": "gnn", "width": 6}
    spec = ModelSpec(encoder=graph if on_graphs(sharing) else tabular, sharing=SHARING_OPTIONS[sharing])
    return build_model(spec, schema_of(sharing), OUTPUTS, heads_of(sharing), seed=seed, attachments=options)


def test_every_attachment_has_options_here() -> None:
    assert set(OPTIONS) == set(ATTACHMENTS.names())


# ---- RotoGrad


def test_rotations_turn_towards_each_other_by_hand() -> None:
    """Gradients (1, 0) and (0, 1) at one row: v = (1/2, 1/2). With R(s) = [[cos s, -sin s], [sin s, cos s]] the terms
    are -(cos s - sin s) / 2 and -(sin s + cos s) / 2: together -1 at s = 0, where the derivatives are 1/2 and -1/2."""
    roto = attachment("rotograd", ["a", "b"], 2).double()
    z = torch.tensor([[3.0, -4.0]], dtype=torch.float64, requires_grad=True)
    turned = roto.transform({"a": z, "b": z})
    value = roto.backward({"a": turned["a"][0, 0], "b": turned["b"][0, 1]}, z)
    assert value.item() == pytest.approx(-1.0, abs=1e-15)
    grads = {task: rotation.skew.grad.item() for task, rotation in roto.rotations.items()}
    assert grads == pytest.approx({"a": 0.5, "b": -0.5}, abs=1e-15)
    assert z.grad is None


def test_a_rotation_equals_the_series_and_is_one() -> None:
    roto = attachment("rotograd", ["a"], 4).double()
    roto.rotations["a"].skew.data = double(6)
    skew = torch.zeros(4, 4, dtype=torch.float64)
    for (row, column), value in zip(
        [(i, j) for i in range(4) for j in range(i)], roto.rotations["a"].skew.tolist(), strict=True
    ):
        skew[row, column], skew[column, row] = value, -value
    series = sum(torch.linalg.matrix_power(skew, n) / math.factorial(n) for n in range(20))
    rotation = roto.rotations["a"]()
    torch.testing.assert_close(rotation, series, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(4).double(), rtol=0, atol=1e-13)
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0)
    z = double(3, 4)
    torch.testing.assert_close(roto.transform({"a": z})["a"], torch.stack([series @ row for row in z]))


@pytest.mark.parametrize("dimensions", [None, 3])
def test_rotograd_equals_equation_3_written_out(dimensions: int | None) -> None:
    roto = attachment("rotograd", ["a", "b", "absent"], 4, dimensions=dimensions).double()
    for number, rotation in enumerate(roto.rotations.values()):
        rotation.skew.data = double(*rotation.skew.shape, seed=number)
    z = double(5, 4, seed=7).requires_grad_()
    turned = roto.transform({"a": z, "b": z})
    losses = {"a": turned["a"].sin().sum(), "b": (turned["b"] ** 3).mean() * 100}
    value = roto.backward(losses, z)
    m = dimensions or 4
    at_rotated = {"a": turned["a"].cos(), "b": turned["b"] ** 2 * 15}  # the derivatives, by hand
    matrices = {task: roto.rotations[task]().detach().requires_grad_() for task in losses}
    whole = {task: torch.block_diag(matrix, torch.eye(4 - m).double()) for task, matrix in matrices.items()}
    at_z = {task: torch.stack([whole[task].T @ row for row in at_rotated[task].detach()]) for task in losses}
    unit = [grad.detach() / grad.detach().square().sum().sqrt() for grad in at_z.values()]
    target = (unit[0] + unit[1]) / 2
    expected = -sum(
        (matrices[task].T @ at_rotated[task][row, :m].detach()) @ target[row, :m] for task in losses for row in range(5)
    )
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    expected.backward()
    for task in losses:
        (found,) = torch.autograd.grad(
            (roto.rotations[task]() * matrices[task].grad).sum(), roto.rotations[task].skew
        )  # the same gradient through the exponential
        torch.testing.assert_close(roto.rotations[task].skew.grad, found, rtol=1e-10, atol=1e-10)
    assert roto.rotations["absent"].skew.grad is None


def test_following_the_rotations_brings_gradients_together() -> None:
    roto = attachment("rotograd", ["a", "b"], 6, learning_rate=0.05).double()
    optimizer = roto.optimizer()
    z, heads = double(32, 6).requires_grad_(), {"a": double(6, seed=1), "b": double(6, seed=2)}
    seen = []
    for _ in range(60):
        turned = roto.transform({"a": z, "b": z})
        losses = {task: (turned[task] @ heads[task]).tanh().sum() for task in heads}
        left, right = (torch.autograd.grad(loss, z, retain_graph=True)[0].flatten() for loss in losses.values())
        seen.append(torch.cosine_similarity(left, right, dim=0).item())
        optimizer.zero_grad()
        roto.backward(losses, z)
        optimizer.step()
    assert seen[0] < 0.2
    assert seen[-1] > 0.9


def test_a_task_without_gradient_turns_nothing() -> None:
    roto = attachment("rotograd", ["a", "b"], 3).double()
    z = double(2, 3).requires_grad_()
    turned = roto.transform({"a": z, "b": z})
    roto.backward({"a": turned["a"].sum(), "b": turned["b"].sum() * 0}, z)
    assert roto.rotations["b"].skew.grad.abs().max() == 0


def test_the_learning_rate_of_rotations_falls() -> None:
    roto = attachment("rotograd", ["a"], 3, learning_rate=0.1, decay=0.5)
    assert [roto.learning_rate(step) for step in range(3)] == [0.1, 0.05, 0.025]


# ---- Rep-MTL


def test_entropy_by_hand() -> None:
    """Mean saliencies 1 and -3 of one row: P = (1/4, 3/4); the second row is one task's alone: mean over two rows."""
    saliency = torch.tensor([[[2.0, 0.0], [5.0, 5.0]], [[-3.0, -3.0], [0.0, 0.0]]], dtype=torch.float64)
    entropy = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert saliency_entropy(saliency).item() == pytest.approx(entropy / 2, rel=1e-15)


def test_alignment_by_hand() -> None:
    """Row 1 has saliencies e1 and e2: its anchor is I, of norm sqrt 2, and the cosine with either map 1/sqrt 2. Row 2
    has e1 twice: anchor 2 e1 e1', cosine 1 with both. The anchors' cosine is 2 / (2 sqrt 2) = 1/sqrt 2, which is each
    row's only negative: (0 + 0 + 2 (1/sqrt 2 - 1)) / 4."""
    saliency = torch.tensor([[[1.0, 0.0], [7.0, 0.0]], [[0.0, 1.0], [7.0, 0.0]]], dtype=torch.float64)
    assert cross_task_alignment(saliency, 1.0).item() == pytest.approx((0.5**0.5 - 1) / 2, rel=1e-14)
    orthogonal = torch.eye(2, dtype=torch.float64)[None]  # one task, two rows: cosine 1 with itself, 0 with the other
    assert cross_task_alignment(orthogonal, 0.1).item() == pytest.approx(-10.0, rel=1e-14)


def reference(saliency: Tensor, temperature: float) -> Tensor:
    """Equations 7 to 9 with the maps written out."""
    tasks, rows, _ = saliency.shape
    maps = [[torch.outer(saliency[t, b], saliency[t, b]) for b in range(rows)] for t in range(tasks)]
    anchors = [torch.stack([maps[t][b] for t in range(tasks)]).sum(0) for b in range(rows)]

    def cosine(left: Tensor, right: Tensor) -> Tensor:
        return (left * right).sum() / (left.square().sum().sqrt() * right.square().sum().sqrt())

    terms = []
    for b in range(rows):
        others = torch.stack([torch.exp(cosine(anchors[b], anchors[k]) / temperature) for k in range(rows) if k != b])
        for t in range(tasks):
            terms.append(-torch.log(torch.exp(cosine(anchors[b], maps[t][b]) / temperature) / others.sum()))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("tasks, rows, width", [(1, 2, 3), (2, 5, 9), (3, 6, 2), (4, 3, 7)])
def test_alignment_equals_the_maps_written_out_both_ways_round(tasks: int, rows: int, width: int) -> None:
    """With few channels through the maps themselves, with many through inner products."""
    saliency = double(tasks, rows, width, seed=3) * torch.logspace(-3, 3, rows).double()[:, None]
    expected = reference(saliency, 0.3)
    torch.testing.assert_close(cross_task_alignment(saliency, 0.3), expected, rtol=1e-11, atol=1e-12)
    for scale in (1e-30, 1e25):  # whose squares single precision does not hold
        found = cross_task_alignment((saliency * scale).float(), 0.3)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_rep_mtl_and_its_gradient_equal_the_maps_written_out() -> None:
    encoder = nn.Linear(3, 4).double()
    heads = [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double() for _ in range(3)]
    tensors = [*encoder.parameters(), *(parameter for head in heads for parameter in head.parameters())]
    for number, tensor in enumerate(tensors):
        tensor.data = double(*tensor.shape, seed=number)
    x = double(6, 3, seed=50)

    def computed() -> tuple[Tensor, dict[str, Tensor]]:
        z = encoder(x).tanh()
        return z, {f"t{i}": head(z).square().mean() * 10**i for i, head in enumerate(heads)}

    z, losses = computed()
    saliency = torch.stack([torch.autograd.grad(loss, z, create_graph=True)[0] for loss in losses.values()])
    shares = saliency.mean(2).abs() / saliency.mean(2).abs().sum(0)
    expected = 0.7 * -(shares * shares.log()).sum(0).mean() + 1.3 * reference(saliency, 0.5)
    gradients = torch.autograd.grad(expected, tensors, allow_unused=True)

    z, losses = computed()
    term = attachment("rep_mtl", list(losses), 4, regulation=0.7, alignment=1.3, temperature=0.5)
    assert term.backward(losses, z).item() == pytest.approx(expected.item(), rel=1e-12)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        if gradient is None:  # the last layer's bias does not move a gradient
            assert tensor.grad is None or tensor.grad.abs().max() == 0
        else:
            torch.testing.assert_close(tensor.grad, gradient, rtol=1e-9, atol=1e-12)
    torch.stack(list(losses.values())).sum().backward()  # the losses' graph is still there


def test_rows_without_labels_and_tiny_gradients_stay_finite() -> None:
    z = double(4, 3).float().requires_grad_()
    has = {"a": torch.tensor([1.0, 0, 0, 1]), "b": torch.tensor([0.0, 1, 0, 1])}
    losses = {task: ((z**2).sum(1) * mask).sum() * 1e-12 for task, mask in has.items()}
    assert attachment("rep_mtl", ["a", "b"], 3).backward(losses, z).isfinite()
    assert bool(z.grad.isfinite().all())
    assert cross_task_alignment(torch.zeros(2, 3, 4), 0.1).item() == 0.0


# ---- covariance alignment


def test_alignment_equals_its_algorithm_in_float64() -> None:
    found = attachment("covariance_alignment", ["a", "b"], 3, layers=1).double()
    z = double(4, 3)
    before = found.transform({"a": z, "b": z})
    assert torch.equal(before["a"], before["b"])  # the alignments start at the identity
    matrices = {"a": double(3, 3, seed=1), "b": double(3, 3, seed=2)}
    for task, matrix in matrices.items():
        found.alignments[task].weight.data = matrix.T
    after = found.transform({"b": z, "a": z})
    assert list(after) == ["b", "a"]
    layer = found.shared[0]
    for task, matrix in matrices.items():
        expected = torch.relu((z @ matrix) @ layer.weight.T + layer.bias)
        torch.testing.assert_close(after[task], expected, rtol=1e-12, atol=1e-12)
    assert attachment("covariance_alignment", ["a"], 3, layers=0).transform({"a": z.float()})["a"].equal(z.float())


# ---- modality calibration


def test_branches_by_hand() -> None:
    """Gradients (3, 4), (0, 0) and (0, 1) of norms 5, 0 and 1: the mean of the two that are there is 3."""
    x = {name: torch.zeros(2, dtype=torch.float64, requires_grad=True) for name in ("image", "unused", "points")}
    outputs = attachment("modality_calibration", ["a"], 2).branches({name: value * 2 for name, value in x.items()})
    assert list(outputs) == list(x)
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64)
    loss = outputs["image"] @ slope + outputs["unused"].sum() * 0 + outputs["points"][1]
    loss.backward()
    expected = torch.tensor([[3.6, 4.8], [0.0, 0.0], [0.0, 6.0]], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([value.grad for value in x.values()]), expected, rtol=1e-14, atol=0)


def test_branches_with_nothing_put_in_or_in_evaluation_are_as_they_were() -> None:
    slot, outputs = Branches(), {"image": uniform(0, 2, 3).requires_grad_(), "points": uniform(1, 2, 3)}
    assert slot(outputs) == outputs
    slot.calibration = attachment("modality_calibration", ["a"], 3)
    assert slot.eval()(outputs) == outputs
    found = slot.train()(outputs)
    assert all(torch.equal(found[name], output) for name, output in outputs.items())
    assert not slot.state_dict()


# ---- in a model


@pytest.mark.parametrize("sharing", ["hard", "mmoe"])
@pytest.mark.parametrize("kind", ["rotograd", "covariance_alignment"])
def test_a_model_computes_with_it(kind: str, sharing: str) -> None:
    model, inputs = model_with(kind, sharing=sharing).eval(), table_inputs(6)
    for module in model.modules():
        if isinstance(module, TaskModules):
            for name, parameter in module.named_parameters():
                parameter.data += uniform(len(name), *parameter.shape) / 5
    outputs = model(inputs)
    z = model.representation(inputs)
    attached = model.attachments[kind]
    for task in OUTPUTS:
        alone = model.sharing.features(attached.transform({task: z})[task], [task])
        torch.testing.assert_close(outputs[task], model.heads[task](alone[task]))
        torch.testing.assert_close(model(inputs, [task])[task], outputs[task])
    without = MultiTaskModel(model.sharing, model.heads)(inputs)
    assert all(not torch.allclose(without[task], outputs[task]) for task in OUTPUTS)
    assert sorted(describe(model)["private"]) == sorted(OUTPUTS)
    again = model_with(kind, sharing=sharing, seed=9).eval()
    again.load_state_dict(model.state_dict())
    assert all(torch.equal(again(inputs)[task], outputs[task]) for task in OUTPUTS)


def test_a_sequence_takes_none() -> None:
    spec = ModelSpec(encoder={"kind": "columns", "width": 8}, sharing="task_tokens")
    with pytest.raises(MissingInput, match="attachment 'rotograd' reads vectors; the encoder gives a sequence"):
        build_model(spec, TABLE, OUTPUTS, seed=0, attachments=[ATTACHMENTS.find("rotograd").Options(dimensions=2)])


VECTORS = [kind for kind in SHARING.names() if kind != "single" and "vector" in SHARING.find(kind).reads]


@pytest.mark.parametrize("sharing", VECTORS)
def test_every_architecture_takes_them_or_says_why_not(sharing: str) -> None:
    """Each task's features come from its own version of the representation, whoever else is asked for."""
    model, inputs = model_with(sharing=sharing).eval(), inputs_of(sharing, 5)
    if not model.sharing.shares:
        with pytest.raises(MissingInput, match="the tasks share no representation"):
            model_with("rotograd", sharing=sharing)
        return
    aligned = model_with("covariance_alignment", sharing=sharing).eval()
    for alignment in aligned.attachments["covariance_alignment"].alignments.values():
        alignment.weight.data += uniform(1, *alignment.weight.shape) / 5
    outputs = aligned(inputs)
    for task in OUTPUTS:
        torch.testing.assert_close(aligned(inputs, [task])[task], outputs[task])
        assert outputs[task].shape == model(inputs)[task].shape
    sum(output.sum() for output in outputs.values()).backward()
    assert all(p.grad is not None for p in aligned.attachments.parameters())


def test_rotations_at_the_start_leave_the_model_as_it_is() -> None:
    inputs = table_inputs(5)
    plain, turned = model_with()(inputs), model_with("rotograd")(inputs)
    for task in OUTPUTS:
        torch.testing.assert_close(turned[task], plain[task])


def test_a_tasks_loss_does_not_move_its_rotation() -> None:
    model = model_with("rotograd")
    sum(output.sum() for output in model(table_inputs(5)).values()).backward()
    assert all(rotation.skew.grad is None for rotation in model.attachments["rotograd"].rotations.values())
    assert all(parameter.grad is not None for parameter in model.sharing.parameters())


def test_a_models_rotations_are_found_by_name_and_are_private() -> None:
    names = [name for name in model_with("rotograd").state_dict() if name.startswith("attachments")]
    assert names == [f"attachments.rotograd.rotations.{task}.skew" for task in OUTPUTS]
    plain, turned = describe(model_with()), describe(model_with("rotograd"))
    assert {task: turned["private"][task] - plain["private"][task] for task in OUTPUTS} == dict.fromkeys(OUTPUTS, 10)


# ---- bad input


@every_attachment
def test_sharing_that_shares_nothing_is_refused(kind: str) -> None:
    with pytest.raises(MissingInput, match=f"attachment '{kind}': the tasks share no representation; choose another"):
        model_with(kind, sharing="single")


def test_bad_options_are_refused() -> None:
    with pytest.raises(UnknownName, match=r"no attachment 'rotogard' \(did you mean 'rotograd'\?\)"):
        attachment("rotogard", ["a"], 4)
    with pytest.raises(
        UnknownName, match=r"attachment 'rep_mtl': no key 'temprature' \(did you mean 'temperature'\?\)"
    ):
        attachment("rep_mtl", ["a"], 4, temprature=1)
    with pytest.raises(BadValue, match="dimensions is 5; allowed: from 2 to the representation's width, 4"):
        attachment("rotograd", ["a"], 4, dimensions=5)
    with pytest.raises(BadValue, match="dimensions is 1; allowed: from 2"):
        attachment("rotograd", ["a"], 1)
    for kind, option, value in (
        ("rotograd", "decay", 1.5),
        ("rotograd", "learning_rate", 0),
        ("rep_mtl", "temperature", 0),
        ("rep_mtl", "alignment", -1),
        ("covariance_alignment", "layers", -1),
        ("covariance_alignment", "activation", "wave"),
    ):
        with pytest.raises(BadValue, match=f"attachment '{kind}'.{option} is"):
            attachment(kind, ["a"], 4, **{option: value})


@pytest.mark.parametrize("kind", ["rotograd", "rep_mtl"])
def test_losses_and_representations_that_do_not_fit_are_refused(kind: str) -> None:
    found = attachment(kind, ["a", "b"], 3)
    z = uniform(0, 4, 3).requires_grad_()
    other = uniform(1, 4, 3).requires_grad_()
    with pytest.raises(MissingInput, match="the loss of task 'b' does not depend on the representation given"):
        found.backward({"a": z.square().sum(), "b": other.square().sum()}, z)
    with pytest.raises(MissingInput, match="the representation depends on no parameter that is trained"):
        found.backward({"a": other.sum()}, z.detach())
    with pytest.raises(NotFinite, match=f"the term of attachment '{kind}' is nan"):
        found.backward({"a": (z * torch.nan).square().sum(), "b": z.square().sum()}, z)
    assert z.grad is None
    assert all(parameter.grad is None for parameter in found.parameters())
