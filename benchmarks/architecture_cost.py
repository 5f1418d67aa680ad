"""What each sharing architecture costs: parameters, multiply-adds, and the time of a step beside hard sharing's.

    python benchmarks/architecture_cost.py [--steps 60]

Eight tasks on one trunk (256 numbers, a layer of 256), sixteen experts in all where there are experts; architectures
that read a pyramid stand beside hard sharing of the same pyramid (pictures of 3 x 32 x 32, 4 a batch). Steps of all
architectures are interleaved, so that the machine's moods meet all alike. The same MMoE, PLE and AdaTT, written as
plain loops over experts (a module an expert, as torch-rechub and AdaTT's authors have them), stand beside ours.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polytask.core.inputs import GraphWidths, InputSchema
from polytask.sharing import SHARING, ModelSpec, MultiTaskModel, build_model, describe
from polytask.sharing.encoders.contract import evaluating

TASKS = [f"task_{number}" for number in range(8)]
INPUTS, WIDTH, EXPERT, BATCH = 256, 256, 64, 1024
COLUMNS = 32  # of the numbers, for architectures that read a token a number and let each task's attend to each other
OPTIONS: dict[str, dict[str, Any]] = {
    "mmoe": {"experts": 16},
    "dselect_k": {"experts": 16},
    "cgc": {"shared_experts": 8, "task_experts": 1},
    "ple": {"shared_experts": 8, "task_experts": 1},
    "adatt": {"task_experts": 2},
    "home": {"experts": 1},
    "stem": {"shared_experts": 8, "task_experts": 1},
}
ENCODERS = {
    "vector": {"kind": "mlp", "hidden_sizes": [WIDTH]},
    "sequence": {"kind": "columns", "width": 16},  # a token a number
    "pyramid": {"kind": "pyramid"},
    "graph": {"kind": "gnn"},
}
PICTURES, PICTURE = 4, (3, 32, 32)
GRAPHS, NODES, NUMBERS = 64, 12, 16  # of a graph, of a node
ON_PICTURES, ON_GRAPHS = "hard_pyramid", "hard_graph"  # the names under which hard sharing of those is measured
HARD = {"pyramid": ON_PICTURES, "graph": ON_GRAPHS}
ELSEWHERE = {**{name: what for what, name in HARD.items()}, "one_for_all": "graph"}
Step = Callable[[], float]


def reads(name: str) -> str:
    """What the encoder gives that an architecture is measured with."""
    return ELSEWHERE[name] if name in ELSEWHERE else SHARING.find(name).reads[0]


def built(name: str) -> MultiTaskModel:
    kind = "hard" if name in HARD.values() else name
    spec = ModelSpec.model_validate(
        {"encoder": ENCODERS[reads(name)], "sharing": {"kind": kind, **OPTIONS.get(kind, {})}}
    )
    schema = InputSchema(shapes={"numeric": (numbers_read(name),)})
    if reads(name) == "pyramid":
        schema = InputSchema(shapes={"image": PICTURE})
    if reads(name) == "graph":
        schema = InputSchema(graph=GraphWidths(NUMBERS, 0))
    return build_model(spec, schema, dict.fromkeys(TASKS, 1), seed=0)


def inputs_for(name: str) -> dict[str, Tensor]:
    if reads(name) == "pyramid":
        return {"image": torch.randn(PICTURES, *PICTURE)}
    if reads(name) == "graph":
        return rings()
    return {"numeric": torch.randn(BATCH, numbers_read(name))}


def rings() -> dict[str, Tensor]:
    """Graphs whose nodes are joined in a ring, both ways, and are all of interest."""
    there = torch.ones(GRAPHS, NODES, dtype=torch.bool)
    ring = torch.stack([torch.arange(NODES), torch.arange(NODES).roll(-1)], dim=1) + 1
    edges = torch.cat([ring, ring.flip(1)]).expand(GRAPHS, -1, -1)
    return {"nodes": torch.randn(GRAPHS, NODES, NUMBERS), "node_mask": there, "interest": there, "edges": edges}


def numbers_read(name: str) -> int:
    return COLUMNS if reads(name) == "sequence" else INPUTS


def measured(steps: int = 60) -> dict[str, Any]:
    """The numbers of every architecture that is registered, and of the loops."""
    torch.manual_seed(0)
    models = {kind: built(kind) for kind in [*SHARING.names(), *HARD.values()]}
    inputs = {kind: inputs_for(kind) for kind in models}
    whole = {kind: stepper(model, inputs[kind]) for kind, model in models.items()}
    loops = {f"{kind}_loop": stepper(LOOPS[kind](), inputs[kind]["numeric"]) for kind in LOOPS}
    alone = {f"{kind}_one": forward_only(kind, inputs[kind]) for kind in models}
    times = interleaved({**whole, **loops, **alone}, steps)
    beside = {kind: HARD.get(reads(kind), "hard") for kind in models}
    return {
        "benchmark": "architecture_cost",
        "tasks": len(TASKS),
        "batch": BATCH,
        "steps": steps,
        "columns": COLUMNS,
        "threads": torch.get_num_threads(),
        "architectures": {
            kind: {
                **{key: value for key, value in describe(model).items() if key != "private"},
                "private": describe(model)["private"][TASKS[0]],
                "multiply_adds": multiply_adds(model, inputs[kind], TASKS),
                "multiply_adds_one_task": multiply_adds(model, inputs[kind], TASKS[:1]),
                "beside": beside[kind],
                "step": ratio(times[kind], times[beside[kind]]),
                "one_task_forward": ratio(times[f"{kind}_one"], times[f"{beside[kind]}_one"]),
            }
            for kind, model in models.items()
        },
        "loops": {kind: ratio(times[kind], times[f"{kind}_loop"]) for kind in LOOPS},
        "hard_ms": [round(q, 3) for q in statistics.quantiles(times["hard"])],
    }


def multiply_adds(model: MultiTaskModel, inputs: dict[str, Tensor], tasks: list[str]) -> int:
    """Of a row's way through the model, as it is used: what draws its widths while it learns has all of them."""
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(inputs, tasks)
    return counter.get_total_flops() // 2 // len(next(iter(inputs.values())))


def stepper(model: nn.Module, inputs: Any) -> Step:
    """Milliseconds of a forward and a backward pass through all tasks."""

    def step() -> float:
        start = time.perf_counter()
        model.zero_grad()
        outputs: Mapping[str, Tensor] = model(inputs)
        torch.stack([output.square().mean() for output in outputs.values()]).sum().backward()
        return (time.perf_counter() - start) * 1e3

    return step


def forward_only(name: str, inputs: dict[str, Tensor]) -> Step:
    """Milliseconds of a forward pass for one task of the eight."""
    model_one = built(name).eval()

    def step() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            model_one(inputs, TASKS[:1])
        return (time.perf_counter() - start) * 1e3

    return step


def interleaved(steps: Mapping[str, Step], count: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(count + 5):
        for name in list(steps) if turn % 2 else list(steps)[::-1]:
            milliseconds = steps[name]()
            if turn >= 5:
                times[name].append(milliseconds)
    return times


def ratio(times: list[float], base: list[float]) -> dict[str, float]:
    """Of medians, with the quartiles of the ratios of steps taken side by side."""
    low, _, high = statistics.quantiles([one / other for one, other in zip(times, base, strict=True)])
    return {
        "median": round(statistics.median(times) / statistics.median(base), 3),
        "low": round(low, 3),
        "high": round(high, 3),
    }


# ---- the same formulas as loops over experts


def layer(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, EXPERT), nn.ReLU())


class Loop(nn.Module):
    """The trunk and heads; a subclass turns the trunk's output into a feature a task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(EXPERT, 1) for _ in TASKS)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.features(self.trunk(x))
        return {task: head(feature) for task, head, feature in zip(TASKS, self.heads, features, strict=True)}

    def features(self, z: Tensor) -> list[Tensor]:
        raise NotImplementedError


def weighted(gate: nn.Module, x: Tensor, experts: list[Tensor]) -> Tensor:
    weights = gate(x).softmax(1).unsqueeze(2)
    return (weights * torch.stack(experts, dim=1)).sum(1)


class MMoELoop(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(layer(WIDTH) for _ in range(16))
        self.gates = nn.ModuleList(nn.Linear(WIDTH, 16, bias=False) for _ in TASKS)

    def features(self, z: Tensor) -> list[Tensor]:
        experts = [expert(z) for expert in self.experts]
        return [weighted(gate, z, experts) for gate in self.gates]


class PLELoop(Loop):
    def __init__(self) -> None:
        super().__init__()
        widths = (WIDTH, EXPERT)
        self.own = nn.ModuleList(nn.ModuleList(layer(width) for _ in TASKS) for width in widths)
        self.common = nn.ModuleList(nn.ModuleList(layer(width) for _ in range(8)) for width in widths)
        self.gates = nn.ModuleList(nn.ModuleList(nn.Linear(width, 9, bias=False) for _ in TASKS) for width in widths)
        self.shared_gate = nn.Linear(WIDTH, 16, bias=False)

    def features(self, z: Tensor) -> list[Tensor]:
        streams, shared = [z] * len(TASKS), z
        for level, (own, common, gates) in enumerate(zip(self.own, self.common, self.gates, strict=True)):
            mine = [expert(stream) for expert, stream in zip(own, streams, strict=True)]
            for_all = [expert(shared) for expert in common]
            mixed = [
                weighted(gate, stream, [expert, *for_all])
                for gate, stream, expert in zip(gates, streams, mine, strict=True)
            ]
            if level == 0:
                shared = weighted(self.shared_gate, shared, [*mine, *for_all])
            streams = mixed
        return streams


class AdaTTLoop(Loop):
    def __init__(self) -> None:
        super().__init__()
        widths = (WIDTH, EXPERT)
        self.own = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(layer(width) for _ in range(2)) for _ in TASKS) for width in widths
        )
        self.gates = nn.ModuleList(nn.ModuleList(nn.Linear(width, 16, bias=False) for _ in TASKS) for width in widths)
        self.native = nn.Parameter(torch.full((2, len(TASKS), 2), 0.5))

    def features(self, z: Tensor) -> list[Tensor]:
        streams = [z] * len(TASKS)
        for level, (own, gates) in enumerate(zip(self.own, self.gates, strict=True)):
            mine = [[expert(stream) for expert in experts] for experts, stream in zip(own, streams, strict=True)]
            every = [expert for experts in mine for expert in experts]
            streams = [
                weighted(gate, stream, every)
                + sum(v * e for v, e in zip(self.native[level, task], mine[task], strict=True))
                for task, (gate, stream) in enumerate(zip(gates, streams, strict=True))
            ]
        return streams


LOOPS: dict[str, Callable[[], Loop]] = {"mmoe": MMoELoop, "ple": PLELoop, "adatt": AdaTTLoop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=60)
    print(json.dumps(measured(parser.parse_args().steps), indent=2))


if __name__ == "__main__":
    main()
