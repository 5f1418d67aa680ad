"""What every sharing architecture computes, written without the code under test: plain loops over the state_dict."""

from collections.abc import Callable

import torch
from tests.sharing.models import OUTPUTS, TABLE
from torch import Tensor

Tensors = dict[str, Tensor]
TASKS = list(OUTPUTS)


def dense(tensors: dict[str, Tensor], prefix: str, x: Tensor, layers: tuple[int, ...]) -> Tensor:
    for layer in layers:
        x = (x @ tensors[f"{prefix}.{layer}.weight"].T + tensors[f"{prefix}.{layer}.bias"]).clamp(min=0)
    return x


def encoder_reference(tensors: dict[str, Tensor], prefix: str, inputs: dict[str, Tensor]) -> Tensor:
    return dense(tensors, f"{prefix}.layers", embedded(tensors, prefix, inputs), (0, 2))


def embedded(tensors: dict[str, Tensor], prefix: str, inputs: dict[str, Tensor]) -> Tensor:
    table, offset, vectors = tensors[f"{prefix}.embeddings.tables.3.weight"], 0, [inputs["numeric"]]
    for column, cardinality in enumerate(TABLE.cardinalities):
        vectors.append(table[offset + inputs["categorical"][:, column]])
        offset += cardinality
    return torch.cat(vectors, dim=1)


def hard_reference(tensors: dict[str, Tensor], inputs: dict[str, Tensor], task: str) -> Tensor:
    return encoder_reference(tensors, "sharing.encoder", inputs)


def single_reference(tensors: dict[str, Tensor], inputs: dict[str, Tensor], task: str) -> Tensor:
    return encoder_reference(tensors, f"sharing.encoders.{task}", inputs)


def mmoe_reference(tensors: dict[str, Tensor], inputs: dict[str, Tensor], task: str) -> Tensor:
    """Equations 5 to 7 of the paper, one row and one expert at a time."""
    z = encoder_reference(tensors, "sharing.encoder", inputs)
    rows = []
    for row in z:
        scores = torch.stack([gate @ row for gate in tensors[f"sharing.gates.gates.{task}.weight"]])
        weights = scores.exp() / scores.exp().sum()
        mixed = torch.zeros(6, dtype=z.dtype)
        for expert, weight in enumerate(weights):
            x = row
            for layer in (0, 1):
                matrix = tensors[f"sharing.experts.weights.{layer}"][expert]
                x = torch.relu(matrix @ x + tensors[f"sharing.experts.biases.{layer}"][expert])
            mixed = mixed + weight * x
        rows.append(mixed)
    return torch.stack(rows)


def head_reference(tensors: dict[str, Tensor], task: str, features: Tensor) -> Tensor:
    if f"heads.{task}.output.weight" not in tensors:
        return features  # the architecture has made outputs of them
    if task == "topic":
        features = dense(tensors, "heads.topic.hidden", features, (0,))
    outputs = features @ tensors[f"heads.{task}.output.weight"].T + tensors[f"heads.{task}.output.bias"]
    return outputs[..., 0] if task == "click" else outputs


# ---- experts: one row and one expert at a time where the paper writes it so, else one expert at a time


def expert(tensors: Tensors, prefix: str, number: int, x: Tensor) -> Tensor:
    """The output of one expert of a bank: linear layers, each followed by relu."""
    layer = 0
    while f"{prefix}.weights.{layer}" in tensors:
        x = torch.relu(x @ tensors[f"{prefix}.weights.{layer}"][number].T + tensors[f"{prefix}.biases.{layer}"][number])
        layer += 1
    return x


def bank(tensors: Tensors, prefix: str, x: Tensor) -> list[Tensor]:
    return [expert(tensors, prefix, number, x) for number in range(len(tensors[f"{prefix}.weights.0"]))]


def softmaxed(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    scores = (x @ tensors[name].T).exp()
    return scores / scores.sum(1, keepdim=True)


def weighted(weights: Tensor, experts: list[Tensor]) -> Tensor:
    assert weights.shape[1] == len(experts)
    return sum((weights[:, [place]] * output for place, output in enumerate(experts)), torch.zeros(1))


def dselect_k_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """Three experts by two codes of two bits each, normalised over the experts that exist."""
    z = encoder_reference(tensors, "sharing.encoder", inputs)
    rows = []
    for row in z:
        scores = [float(gate @ row) for gate in tensors[f"sharing.gates.gates.{task}.weight"]]
        alphas = torch.tensor(scores[:2], dtype=torch.float64).softmax(0)
        steps = [min(max(-2 * x**3 + 1.5 * x + 0.5, 0.0), 1.0) if abs(x) < 0.5 else float(x > 0) for x in scores[2:]]
        chosen = torch.zeros(3, dtype=torch.float64)
        for selector in (0, 1):
            low, high = steps[2 * selector], steps[2 * selector + 1]
            for code in range(3):
                bits = (low if code & 1 else 1 - low) * (high if code & 2 else 1 - high)
                chosen[code] += alphas[selector] * bits
        rows.append(chosen / chosen.sum())
    return weighted(torch.stack(rows), bank(tensors, "sharing.experts", z))


def cgc_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    z = encoder_reference(tensors, "sharing.encoder", inputs)
    experts = bank(tensors, f"sharing.level.own.{task}", z) + bank(tensors, "sharing.level.shared", z)
    return weighted(softmaxed(tensors, f"sharing.level.gates.gates.{task}.weight", z), experts)


def ple_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """Two levels; the shared stream of the second is the first's mixture of everybody's experts."""
    shared = encoder_reference(tensors, "sharing.encoder", inputs)
    streams = dict.fromkeys(TASKS, shared)
    for level in (0, 1):
        place = f"sharing.levels.{level}"
        own = {name: bank(tensors, f"{place}.own.{name}", streams[name]) for name in TASKS}
        common = bank(tensors, f"{place}.shared", shared)
        gates = {name: softmaxed(tensors, f"{place}.gates.gates.{name}.weight", streams[name]) for name in TASKS}
        if level == 0:
            every = [output for name in TASKS for output in own[name]] + common
            shared = weighted(softmaxed(tensors, f"{place}.shared_gate.weight", shared), every)
        streams = {name: weighted(gates[name], own[name] + common) for name in TASKS}
    return streams[task]


def adatt_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    shared = encoder_reference(tensors, "sharing.encoder", inputs)
    streams = dict.fromkeys(TASKS, shared)
    for level in (0, 1):
        place = f"sharing.levels.{level}"
        own = {name: bank(tensors, f"{place}.own.{name}", streams[name]) for name in TASKS}
        every = [output for name in TASKS for output in own[name]] + bank(tensors, f"{place}.shared", shared)
        if level == 0:
            passed = weighted(softmaxed(tensors, f"{place}.shared_gate.weight", shared), every)
        fused = {}
        for name in TASKS:
            native = tensors[f"{place}.native.{name}.weights"].expand(len(shared), -1)
            gate = softmaxed(tensors, f"{place}.gates.{name}.weight", streams[name])
            fused[name] = weighted(gate, every) + weighted(native, own[name])
        streams, shared = fused, passed
    return streams[task]


def stem_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    shared = encoder_reference(tensors, "sharing.encoder", inputs)
    own = {name: encoder_reference(tensors, f"sharing.encoders.{name}", inputs) for name in TASKS}
    every = [output for name in TASKS for output in bank(tensors, f"sharing.own.{name}", own[name])]
    every += bank(tensors, "sharing.shared", shared)
    return weighted(softmaxed(tensors, f"sharing.gates.gates.{task}.weight", own[task] + shared), every)


def home_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """Groups: reactions = click and topic, chemistry = assays; batch statistics as they are saved."""
    z = encoder_reference(tensors, "sharing.encoder", inputs)
    group = "chemistry" if task == "assays" else "reactions"

    def experts(unit: str, x: Tensor) -> list[Tensor]:
        gate = (x @ tensors[f"{unit}.down.weight"].T) @ tensors[f"{unit}.up.weight"].T
        gated = x * 2 / (1 + (-gate).exp())
        outputs = []
        for number in range(2):
            h = gated @ tensors[f"{unit}.bank.weights.0"][number].T + tensors[f"{unit}.bank.biases.0"][number]
            norm, part = f"{unit}.bank.normalizations.0.norm", slice(6 * number, 6 * number + 6)
            mean, variance = tensors[f"{norm}.running_mean"][part], tensors[f"{norm}.running_var"][part]
            h = (h - mean) / (variance + 1e-5).sqrt() * tensors[f"{norm}.weight"][part] + tensors[f"{norm}.bias"][part]
            outputs.append(h / (1 + (-h).exp()))
        return outputs

    def mixture(unit: str, x: Tensor, every: list[Tensor], own: list[Tensor]) -> Tensor:
        self_gate = 1 / (1 + (-(x @ tensors[f"{unit}.self_gate.weight"].T)).exp())
        return weighted(softmaxed(tensors, f"{unit}.gate.weight", x), every) + weighted(self_gate, own)

    common, own = experts("sharing.meta_all.experts", z), experts(f"sharing.meta_groups.{group}.experts", z)
    for_all = experts("sharing.for_all", mixture("sharing.meta_all", z, common, common))
    stream = mixture(f"sharing.meta_groups.{group}", z, own + common, own)
    mine, of_group = experts(f"sharing.own.{task}.experts", stream), experts(f"sharing.for_groups.{group}", stream)
    return mixture(f"sharing.own.{task}", stream, mine + of_group + for_all, mine)


def safe_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    share = 1 / (1 + (-tensors[f"sharing.gates.{task}.logit"]).exp())
    own = encoder_reference(tensors, f"sharing.encoders.{task}", inputs)
    return share * encoder_reference(tensors, "sharing.encoder", inputs) + (1 - share) * own


def normalised(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


# ---- towers


def towers(tensors: Tensors, level: int, streams: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: expert(tensors, f"sharing.levels.{level}.layers.{name}", 0, streams[name]) for name in TASKS}


def cross_stitch_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    streams = dict.fromkeys(TASKS, encoder_reference(tensors, "sharing.encoder", inputs))
    for level in (0, 1):
        seen, numbers = towers(tensors, level, streams), tensors[f"sharing.stitches.{level}.weights"]
        streams = {
            name: sum((numbers[to, of] * seen[other] for of, other in enumerate(TASKS)), torch.zeros(1))
            for to, name in enumerate(TASKS)
        }
    return streams[task]


def nddr_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    streams = dict.fromkeys(TASKS, encoder_reference(tensors, "sharing.encoder", inputs))
    for level in (0, 1):
        joined = torch.cat(list(towers(tensors, level, streams).values()), dim=1)
        streams = {name: joined @ tensors[f"sharing.fusions.{level}.weights"][to].T for to, name in enumerate(TASKS)}
    return streams[task]


def sluice_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    streams = dict.fromkeys(TASKS, encoder_reference(tensors, "sharing.encoder", inputs))
    features = torch.zeros(1, dtype=torch.float64)
    for level in (0, 1):
        halves = [half for stream in towers(tensors, level, streams).values() for half in stream.chunk(2, dim=1)]
        alpha = tensors[f"sharing.alphas.{level}"]
        mixed = [sum((alpha[to, of] * half for of, half in enumerate(halves)), torch.zeros(1)) for to in range(6)]
        streams = {name: torch.cat(mixed[2 * to : 2 * to + 2], dim=1) for to, name in enumerate(TASKS)}
        features = features + tensors[f"sharing.betas.{task}.weights"][level] * streams[task]
    return features


# ---- depth, factors, levels


def layer_gates_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """Scores start at sigmoid 0.4, below one half: the task's own layers."""
    x = encoder_reference(tensors, "sharing.encoder", inputs)
    for layer in (0, 1):
        shared = bool(tensors[f"sharing.scores.{task}.scores"][layer] >= 0)
        x = expert(tensors, f"sharing.shared.{layer}" if shared else f"sharing.own.{layer}.layers.{task}", 0, x)
    return x


def layer_groups_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    x = encoder_reference(tensors, "sharing.encoder", inputs)
    first = "chemistry" if task == "assays" else "reactions"
    for level, group in enumerate((first, "topic" if task == "topic" else "pair")):
        x = torch.relu(linear(tensors, f"sharing.levels.{level}.{group}", x))
    return x


def slimmable_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """At full width."""
    x = encoder_reference(tensors, "sharing.encoder", inputs)
    for layer in ("layers.0", "layers.1", f"decoders.{task}.0", f"decoders.{task}.1"):
        x = torch.relu(linear(tensors, f"sharing.{layer}", x))
    return x


def hmtl_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    z = encoder_reference(tensors, "sharing.encoder", inputs)
    x = torch.relu(linear(tensors, "sharing.layers.0", z))
    for layer in range(1, {"click": 1, "topic": 2, "assays": 3}[task]):
        x = torch.relu(linear(tensors, f"sharing.layers.{layer}", torch.cat([x, z], dim=1)))
    return x


def factorised_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    z = encoder_reference(tensors, "sharing.encoder", inputs)
    return z @ tensors["sharing.latent.weight"].T @ torch.diag(tensors[f"sharing.taken.{task}.vector"])


def level_attention_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    levels = [encoder_reference(tensors, "sharing.encoder", inputs)]
    for layer in (0, 1):
        levels.append(torch.relu(linear(tensors, f"sharing.layers.{layer}", levels[-1])))
    c, own = torch.cat(levels, dim=1), f"sharing.subnets.{task}"
    excited = linear(tensors, f"{own}.outwards", torch.relu(linear(tensors, f"{own}.inwards", c)))
    return torch.relu(linear(tensors, f"{own}.projection", c / (1 + (-excited).exp())))


# ---- more experts


def task_moe_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    x = encoder_reference(tensors, "sharing.encoder", inputs)
    for level in (0, 1):
        gates = f"sharing.gates.{level}"
        scores = (tensors[f"{gates}.shared.weight"] @ tensors[f"{gates}.embeddings.{task}.vector"]).exp()
        outputs = bank(tensors, f"sharing.experts.{level}", x)
        x = sum((score / scores.sum() * output for score, output in zip(scores, outputs, strict=True)), torch.zeros(1))
    return x


def task_aware_moe_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    z = encoder_reference(tensors, "sharing.encoder", inputs)
    own, rows = tensors[f"sharing.gates.embeddings.{task}.vector"], []
    for row in z:
        scores = tensors["sharing.gates.shared.weight"] @ torch.cat([row, own])
        best = sorted(range(4), key=lambda number: -float(scores[number]))[:2]
        total = sum(scores[number].exp() for number in best)
        outputs = [scores[number].exp() / total * expert(tensors, "sharing.experts", number, row) for number in best]
        rows.append(outputs[0] + outputs[1])
    return torch.stack(rows)


def dmoerm_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    z = encoder_reference(tensors, "sharing.encoder", inputs)
    group = f"sharing.groups.{'chemistry' if task == 'assays' else 'reactions'}"
    down, up = tensors[f"{group}.down"], tensors[f"{group}.up"]
    weights = [tensors["sharing.base.weight"] + up[number] @ down[number] for number in range(3)]
    experts = [torch.relu(z @ weight.T + tensors["sharing.base.bias"]) for weight in weights]
    return torch.relu(linear(tensors, f"{group}.join", torch.cat(experts, dim=1)))


def evomoe_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """At the first step after the experts have parted: the temperature is 2 and none has dropped out."""
    z = encoder_reference(tensors, "sharing.encoder", inputs)
    scores = (z @ tensors[f"sharing.gates.{task}.weight"].T / 2).exp()
    weights = scores / scores.sum(1, keepdim=True)
    experts = []
    for mask, difference in zip(tensors["sharing.masks"], tensors["sharing.differences"], strict=True):
        layer = tensors["sharing.base.weight"] * mask + difference
        experts.append(torch.relu(z @ layer.T + tensors["sharing.base.bias"]))
    return weighted(weights, experts)


def domain_experts_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    group = "chemistry" if task == "assays" else "reactions"
    weight, bias = (tensors[f"sharing.experts.{group}.values.{number}"] for number in (0, 1))
    return encoder_reference(
        {**tensors, "sharing.encoder.layers.2.weight": weight, "sharing.encoder.layers.2.bias": bias},
        "sharing.encoder",
        inputs,
    )


REFERENCES: dict[str, Callable[[Tensors, Tensors, str], Tensor]] = {
    "hard": hard_reference,
    "mmoe": mmoe_reference,
    "cgc": cgc_reference,
    "ple": ple_reference,
    "dselect_k": dselect_k_reference,
    "adatt": adatt_reference,
    "home": home_reference,
    "stem": stem_reference,
    "cross_stitch": cross_stitch_reference,
    "nddr": nddr_reference,
    "sluice": sluice_reference,
    "safe": safe_reference,
    "layer_gates": layer_gates_reference,
    "layer_groups": layer_groups_reference,
    "slimmable": slimmable_reference,
    "hmtl": hmtl_reference,
    "factorised": factorised_reference,
    "level_attention": level_attention_reference,
    "task_moe": task_moe_reference,
    "task_aware_moe": task_aware_moe_reference,
    "dmoerm": dmoerm_reference,
    "evomoe": evomoe_reference,
    "domain_experts": domain_experts_reference,
    "single": single_reference,
}
