"""Clusters of tasks as one task for any rule, and the intervals that they may be."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polytask
from polytask.balancing.clusters import clusters_of
from polytask.balancing.interval_clusters import best_intervals, interval_clusters
from polytask.core.errors import BadValue, CheckpointError, MissingInput, NotFinite, UnknownName
from polytask.core.noise import Noise

# ---- intervals


def cost(distances: np.ndarray, bounds: tuple[int, ...]) -> float:
    """Of the intervals that begin at these places, one task after the other."""
    total = 0.0
    for first, end in itertools.pairwise((*bounds, len(distances))):
        middle = (first + end - 1) // 2
        total += sum(distances[middle, task] for task in range(first, end))
    return total


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_no_cut_is_better(n: int) -> None:
    """All cuts of n random tasks, symmetric or not, with negative distances too."""
    for seed in range(8):
        distances = Noise(seed, "distances").normal(n * n).reshape(n, n)
        for number in range(1, n + 1):
            cuts = [(0, *rest) for rest in itertools.combinations(range(1, n), number - 1)]
            found = tuple(first for first, _ in best_intervals(distances, number))
            assert len(found) == number
            assert cost(distances, found) == pytest.approx(min(cost(distances, each) for each in cuts), abs=1e-12)


def test_intervals_of_the_index_by_hand() -> None:
    """Nine places in three: each of 3 costs 2, any other division costs more. Values 0, 1, 2, 10, 11: the gap."""
    tasks = [f"t{i}" for i in range(9)]
    assert list(interval_clusters(tasks, kind="index", number=3)) == ["t0..t2", "t3..t5", "t6..t8"]
    values = {"a": 11, "b": 0, "c": 2, "d": 10, "e": 1}
    found = interval_clusters(list(values), kind="index", number=2, values=values)
    assert found == {"b..c": ["b", "e", "c"], "d..a": ["d", "a"]}


def test_intervals_of_the_signal_to_noise_ratio_are_of_its_logarithm() -> None:
    """1, 10 and 100 lie as far apart as 1e6, 1e7, 1e8; as numbers, 1e8 would stand alone."""
    values = dict(zip("abcdef", [1e8, 1e7, 1e6, 100, 10, 1], strict=True))
    assert list(interval_clusters(list(values), kind="signal_to_noise", number=2, values=values)) == ["a..c", "d..f"]


def test_intervals_of_affinity_keep_together_what_agrees() -> None:
    """Tasks 0 to 2 agree fully with each other, and 3; the others not at all."""
    affinity = np.eye(5)
    affinity[:3, :3] = affinity[3:, 3:] = 1.0
    assert list(interval_clusters(list("abcde"), kind="affinity", number=2, values=affinity)) == ["a..c", "d..e"]
    assert list(interval_clusters(list("abcde"), kind="affinity", number=5, values=affinity.tolist())) == list("abcde")


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"kind": "size", "number": 2}, BadValue, r"kind is 'size'; allowed: index \| signal_to_noise \| affinity"),
        ({"kind": "index", "number": 4}, BadValue, "number is 4; allowed: a whole number from 1 to .* 3"),
        ({"kind": "index", "number": 0}, BadValue, "number is 0"),
        ({"kind": "index", "number": True}, BadValue, "number is True"),
        ({"kind": "index", "number": 2, "values": [1, 2, 3]}, BadValue, "values is .*; allowed: {task: number}"),
        ({"kind": "index", "number": 2, "values": {"a": 1, "b": 2}}, MissingInput, "no number for task 'c'"),
        (
            {"kind": "index", "number": 2, "values": {"a": 1, "b": 2, "c": math.nan}},
            BadValue,
            "task 'c' is nan",
        ),
        (
            {"kind": "signal_to_noise", "number": 2, "values": {"a": 1, "b": 0, "c": 1}},
            BadValue,
            "task 'b' is 0",
        ),
        ({"kind": "signal_to_noise", "number": 2}, BadValue, "values is None"),
        ({"kind": "index", "number": 2, "values": {"a": 1, "b": 2, "c": 3, "d": 4}}, UnknownName, "no task 'd'"),
        ({"kind": "affinity", "number": 2, "values": np.eye(2)}, BadValue, r"of shape \[2, 2\]'; allowed: \[3, 3\]"),
        ({"kind": "affinity", "number": 2, "values": "x"}, BadValue, r"allowed: \[3, 3\]"),
        ({"kind": "affinity", "number": 2, "values": np.full((3, 3), np.nan)}, BadValue, "finite affinities"),
    ],
)
def test_what_cannot_be_clustered_is_refused(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        interval_clusters(["a", "b", "c"], **options)


# ---- clusters of a balancer

TASKS = ["a", "b", "c", "d"]
PAIRS = {"left": ["a", "c"], "right": ["b", "d"]}


def model_of(tasks: list[str]) -> nn.ModuleDict:
    model = nn.ModuleDict({"trunk": nn.Linear(3, 5), **{task: nn.Linear(5, 1) for task in tasks}}).double()
    for number, parameter in enumerate(model.parameters()):
        parameter.data = torch.from_numpy(Noise(number, "w").normal(parameter.numel())).reshape(parameter.shape)
    return model


def losses_of(model: nn.ModuleDict, tasks: list[str]) -> dict[str, Tensor]:
    z = model["trunk"](torch.from_numpy(Noise(0, "x").normal(18)).reshape(6, 3)).tanh()
    return {task: (model[task](z) - number).square().mean() for number, task in enumerate(tasks)}


def gradients(model: nn.ModuleDict) -> list[Tensor | None]:
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("rule", ["upgrad", "uncertainty", "famo", "graddrop", "gradnorm"])
def test_a_rule_sees_the_clusters_means(rule: str) -> None:
    """As if the user had averaged the losses, with their counts, and the means were the tasks."""
    counts = {"a": 6.0, "b": 1.0, "c": 2.0, "d": 3.0}
    model, twin = model_of(TASKS), model_of(TASKS)
    clustered = polytask.balancer(rule, tasks=TASKS, clusters=PAIRS, seed=3)
    plain = polytask.balancer(rule, tasks=list(PAIRS), seed=3)
    for present in (TASKS, ["a", "b", "d"], TASKS):
        losses, own = losses_of(model, TASKS), losses_of(twin, TASKS)
        report = clustered.backward({task: losses[task] for task in present}, model, counts=counts)
        means = {}
        for cluster, tasks in PAIRS.items():
            there = [task for task in tasks if task in present]
            means[cluster] = sum(counts[task] * own[task] for task in there) / sum(counts[task] for task in there)
        expected = plain.backward(means, twin)
        assert report.weights == pytest.approx(expected.weights, rel=1e-12)
        assert report.losses == pytest.approx(expected.losses, rel=1e-12)
        for found, wanted in zip(gradients(model), gradients(twin), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)
        if rule == "famo":
            clustered.after_step({task: losses[task] * 0.5 for task in present}, counts=counts)
            plain.after_step({cluster: mean.detach() * 0.5 for cluster, mean in means.items()})


def test_a_cluster_without_present_tasks_is_absent() -> None:
    model = model_of(TASKS)
    losses = losses_of(model, TASKS)
    balancer = polytask.balancer("upgrad", tasks=TASKS, clusters=PAIRS)
    report = balancer.backward({"b": losses["b"], "c": losses["c"]}, model, counts={"b": 4, "c": 0})
    assert report.tasks == ["right"]
    with pytest.raises(MissingInput, match="no task is present"):
        balancer.backward({}, model)


def test_priorities_count_within_a_cluster_and_between_clusters() -> None:
    """Right's tasks matter 3 and 1: its loss is (3 b + d) / 4 and its priority 2, left's 1; their mean is 1.5."""
    model, twin = model_of(TASKS), model_of(TASKS)
    balancer = polytask.balancer("equal", tasks=TASKS, clusters=PAIRS, priority={"b": 3})
    report = balancer.backward(losses_of(model, TASKS), model)
    own = losses_of(twin, TASKS)
    total = (own["a"] + own["c"]) / 2 / 1.5 + (3 * own["b"] + own["d"]) / 4 * 2 / 1.5
    total.backward()
    assert report.weights == pytest.approx({"left": 1 / 1.5, "right": 2 / 1.5})
    for found, wanted in zip(gradients(model), gradients(twin), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_a_thousand_tasks() -> None:
    """Timesteps of which each batch draws some: the rule sees eight intervals, whatever was drawn."""
    tasks = [f"t{step}" for step in range(1000)]
    noise = {task: math.exp(5 - step / 60) for step, task in enumerate(tasks)}
    clusters = {"kind": "signal_to_noise", "number": 8, "values": noise}
    balancer = polytask.balancer("nash_mtl", tasks=tasks, clusters=clusters)
    model = nn.Linear(4, 1).double()
    x = torch.from_numpy(Noise(0, "x").normal(400)).reshape(100, 4)
    for step in range(3):
        drawn = np.unique(Noise(step, "drawn").integers(100, 1000)).tolist()
        errors = (model(x[: len(drawn)])[:, 0] - torch.tensor(drawn) / 500).square()
        report = balancer.backward({tasks[place]: error for place, error in zip(drawn, errors, strict=True)}, model)
        assert len(report.tasks) == 8
    assert report.gram.shape == (8, 8)
    assert list(balancer.state_dict()["clusters"]) == [f"t{i}..t{i + 124}" for i in range(0, 1000, 125)]


def test_state_is_of_the_same_clusters() -> None:
    model = model_of(TASKS)
    straight, resumed = (polytask.balancer("gradvac", tasks=TASKS, clusters=PAIRS) for _ in range(2))
    straight.backward(losses_of(model, TASKS), model)
    resumed.load_state_dict(straight.state_dict())
    reports = [each.backward(losses_of(model, TASKS), model) for each in (straight, resumed)]
    assert reports[0].weights == reports[1].weights
    for other in (None, {"left": ["a", "b"], "right": ["c", "d"]}):
        tasks = TASKS if other else ["left", "right"]
        with pytest.raises(CheckpointError, match="the saved state is of clusters"):
            polytask.balancer("gradvac", tasks=tasks, clusters=other).load_state_dict(straight.state_dict())


def test_tasks_that_no_cluster_names_stay_by_themselves() -> None:
    assert clusters_of({"left": ["c", "a"]}, TASKS) == {"left": ["c", "a"], "b": ["b"], "d": ["d"]}
    assert clusters_of({"left": ["c", "a"]}, None) == {"left": ["c", "a"]}
    balancer = polytask.balancer("static", tasks=TASKS, clusters={"left": ["a", "c"]}, weights={"left": 2.0, "b": 3.0})
    model = model_of(TASKS)
    assert balancer.backward(losses_of(model, TASKS), model).weights == {"left": 2.0, "b": 3.0, "d": 1.0}


@pytest.mark.parametrize(
    "clusters, error, message",
    [
        ({}, BadValue, "clusters is {}"),
        ({"left": "ab"}, BadValue, "cluster 'left' is 'ab'; allowed: a list of tasks"),
        ({"left": []}, BadValue, "cluster 'left' is "),
        ({"left": ["a"], "right": ["b", "a"]}, BadValue, "task 'a' is 'in left and in right'; allowed: one cluster"),
        ({"left": ["c", "a"], "a": ["d"]}, BadValue, "cluster 'a' is .*; allowed: a name that no other task has"),
        ({"left": ["a", "x"]}, UnknownName, "clusters, left: no task 'x'"),
        ({"b": ["a", "c"]}, BadValue, "cluster 'b' is .*; allowed: a name that no other task has"),
        ({"kind": "index", "nubmer": 2}, UnknownName, "no key 'nubmer'"),
        ({"kind": "index"}, MissingInput, "number is missing"),
    ],
)
def test_bad_clusters_are_refused(clusters: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        polytask.balancer("equal", tasks=TASKS, clusters=clusters)


def test_bad_losses_of_clusters_are_refused() -> None:
    model = model_of(TASKS)
    balancer = polytask.balancer("upgrad", tasks=TASKS, clusters=PAIRS)
    losses = losses_of(model, TASKS)
    with pytest.raises(NotFinite, match="the loss of task 'c' is nan at step 0"):
        balancer.backward({**losses, "c": losses["c"] * math.nan}, model)
    with pytest.raises(UnknownName, match="clusters: no task 'e'"):
        balancer.backward({**losses, "e": losses["a"]}, model)
    with pytest.raises(BadValue, match="the shape of the loss of task 'a'"):
        balancer.backward({"a": losses["a"].expand(2)}, model)
    with pytest.raises(UnknownName, match="counts=: no task 'b'"):
        balancer.backward(losses, model, counts={"a": 1})
    with pytest.raises(MissingInput, match="clusters by index need tasks="):
        polytask.balancer("upgrad", clusters={"kind": "index", "number": 2})
    with pytest.raises(UnknownName, match="priority: no task 'e'"):
        polytask.balancer("upgrad", tasks=TASKS, clusters=PAIRS, priority={"e": 2})
    assert gradients(model) == [None] * len(gradients(model))
