"""Small models and inputs that the tests of this room share."""

from typing import Any

import torch
from torch import Tensor

from polytask.core.inputs import GraphWidths, InputSchema
from polytask.core.noise import Noise
from polytask.sharing import SHARING, ModelSpec, MultiTaskModel, build_model
from polytask.sharing.contract import Sharing

TABLE = InputSchema(shapes={"numeric": (5,)}, cardinalities=(4, 7, 3), names=("page", "user", "item"))
IMAGES = InputSchema(shapes={"image": (1, 12, 12)})
PICTURES = InputSchema(shapes={"image": (3, 8, 12)})
TEXT = InputSchema(text=True)
GRAPHS = InputSchema(graph=GraphWidths(3, 2))
OUTPUTS = {"click": 1, "topic": 4, "assays": 3}
TINY_BERT = {
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
GROUPS = {"reactions": ["click", "topic", "type"], "chemistry": ["assays", "a.b"]}
ORDER = {"click": 10, "topic": 40, "assays": 30, "type": 20, "a.b": 50}
DOMAIN = {"kind": "tabular", "columns": ["page"], "keys": [], "embedding": 2, "hidden_sizes": []}
PRIOR = {**DOMAIN, "columns": ["item", "user"], "embedding": 3}
SHARING_OPTIONS: dict[str, dict[str, Any]] = {
    "hard": {"kind": "hard"},
    "mmoe": {"kind": "mmoe", "experts": 3, "hidden_sizes": [7, 6]},
    "cgc": {"kind": "cgc", "shared_experts": 2, "task_experts": 3, "hidden_sizes": [7, 6]},
    "ple": {"kind": "ple", "shared_experts": 2, "task_experts": 3, "hidden_sizes": [7, 6]},
    "dselect_k": {"kind": "dselect_k", "experts": 3, "hidden_sizes": [7, 6]},
    "adatt": {"kind": "adatt", "task_experts": 2, "shared_experts": 1, "hidden_sizes": [6]},
    "home": {"kind": "home", "groups": GROUPS, "hidden_sizes": [6], "rank": 3},
    "stem": {"kind": "stem", "hidden_sizes": [7, 6]},
    "cross_stitch": {"kind": "cross_stitch", "hidden_sizes": [7, 6]},
    "nddr": {"kind": "nddr", "hidden_sizes": [7, 6]},
    "sluice": {"kind": "sluice", "hidden_size": 6, "orthogonality": 0.1},
    "esmm": {"kind": "esmm", "hidden_sizes": [7, 6]},
    "aitm": {"kind": "aitm", "hidden_sizes": [7, 6]},
    "pepnet": {"kind": "pepnet", "hidden_sizes": [7, 6], "gate": 5, "domain": DOMAIN, "prior": PRIOR},
    "dtrn": {"kind": "dtrn", "hidden_sizes": [7, 6], "heads": 2, "embedding": 3, "refinement": 4},
    "apem": {"kind": "apem", "points": 3, "heads": 2, "hidden_sizes": [7, 6]},
    "m2trec": {"kind": "m2trec", "heads": 2},
    "task_tokens": {"kind": "task_tokens", "heads": 2},
    "facexformer": {"kind": "facexformer", "heads": 2},
    "text_to_text": {"kind": "text_to_text", "heads": 2, "bins": 5, "limits": {"depth": [0, 4]}},
    "one_for_all": {"kind": "one_for_all", "hidden_sizes": [5]},
    "safe": {"kind": "safe", "start": 0.3},
    "mtan": {"kind": "mtan"},
    "pad": {"kind": "pad"},
    "medusa": {"kind": "medusa"},
    "task_expert": {"kind": "task_expert", "experts": 2, "width": 4},
    "m3vit": {"kind": "m3vit", "heads": 2, "experts": 3},
    "oneformer": {"kind": "oneformer", "heads": 2, "layers": 2, "queries": 3, "first_layers": 1},
    "mod_squad": {"kind": "mod_squad", "heads": 3, "experts": 4},
    "film": {"kind": "film", "hidden_sizes": [7, 6], "deviation": 0.3},
    "task_embedding": {"kind": "task_embedding", "hidden_sizes": [7, 6], "embedding": 3},
    "yolor": {"kind": "yolor", "combine": "concatenate", "bases": 2, "deviation": 0.3},
    "channel_masks": {"kind": "channel_masks", "hidden_sizes": [7, 6], "active": 0.6, "exponent": 1.5, "order": ORDER},
    "prefix": {"kind": "prefix", "heads": 2, "length": 3},
    "modality_masks": {"kind": "modality_masks", "heads": 2, "modalities": [5, 3]},
    "sequential_state": {"kind": "sequential_state", "modalities": [5, 2, 1], "state": 6, "hidden_size": 7},
    "layer_gates": {"kind": "layer_gates", "hidden_sizes": [7, 6], "start": 0.4},
    "layer_groups": {"kind": "layer_groups", "hidden_sizes": [7, 6], "groups": [GROUPS, {"pair": ["click", "assays"]}]},
    "slimmable": {"kind": "slimmable", "hidden_sizes": [7, 6], "decoder_sizes": [5, 4], "shares": [0.5, 1.0]},
    "hmtl": {"kind": "hmtl", "hidden_size": 6, "depths": {"click": 1, "topic": 2}},
    "factorised": {"kind": "factorised", "rank": 5, "groups": {"reactions": ["click", "topic"]}},
    "level_attention": {"kind": "level_attention", "hidden_sizes": [7, 6], "width": 5},
    "task_moe": {"kind": "task_moe", "experts": 3, "hidden_sizes": [7, 6], "gate": {"reads": "embedding"}},
    "task_aware_moe": {"kind": "task_aware_moe", "experts": 4, "hidden_sizes": [7, 6]},
    "dmoerm": {"kind": "dmoerm", "groups": GROUPS, "experts": 3, "rank": 2, "width": 6},
    "evomoe": {"kind": "evomoe", "experts": 3, "width": 6, "spawn": 0, "sparse": 4},
    "domain_experts": {"kind": "domain_experts", "groups": GROUPS, "own": ["layers.2.*"]},
    "single": {"kind": "single"},
}
PYRAMIDS = ("hard", "single", "task_tokens", "facexformer", "mod_squad", "text_to_text")
VARIANTS = {
    **{f"{kind} on a pyramid": SHARING_OPTIONS[kind] for kind in PYRAMIDS},
    "film inside a table": {"kind": "film", "hidden_sizes": [6], "inner": ["layers.0"], "deviation": 0.3},
    "film inside a pyramid": {"kind": "film", "hidden_sizes": [], "inner": ["levels.?"], "deviation": 0.3},
}
"""Architectures in another place, beside what they are tested with under their own name."""

CASES = [*SHARING.names(), *VARIANTS]
DECODER = {"width": 8, "strides": {"assays": 2}}


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(Noise(seed, "inputs").uniform(int(torch.Size(shape).numel()))).float().reshape(shape)


def table_inputs(rows: int, seed: int = 0) -> dict[str, Tensor]:
    columns = [
        torch.from_numpy(Noise(seed, "column", column).integers(rows, cardinality))
        for column, cardinality in enumerate(TABLE.cardinalities)
    ]
    return {"numeric": uniform(seed, rows, 5) * 2 - 1, "categorical": torch.stack(columns, dim=1)}


def text_inputs(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    longest = max(lengths)
    tokens = torch.from_numpy(Noise(seed, "tokens").integers(len(lengths) * longest, 55)).reshape(-1, longest) + 5
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}


def graph_inputs(rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Graphs of 2 to 6 nodes in a path, whose ends are of interest, each with an edge back from its end."""
    sizes = 2 + torch.from_numpy(Noise(seed, "sizes").integers(rows, 5))
    mask = torch.arange(6) < sizes[:, None]
    interest = (torch.arange(6) == 0) | (torch.arange(6) == sizes[:, None] - 1)
    steps = torch.stack([torch.arange(1, 6), torch.arange(2, 7)], dim=1).expand(rows, -1, -1)
    back = torch.stack([sizes, torch.ones_like(sizes)], dim=1)[:, None]
    edges = torch.cat([steps * (steps[:, :, 1:] <= sizes[:, None, None]), back], dim=1)
    nodes, features = uniform(seed, rows, 6, 3) * mask[:, :, None], uniform(seed + 1, rows, 6, 2)
    return {
        "nodes": nodes,
        "node_mask": mask,
        "interest": interest,
        "edges": edges,
        "edge_features": features * (edges[:, :, :1] > 0),
    }


def table_model(
    sharing: Any = "hard",
    seed: int = 0,
    outputs: dict[str, int] = OUTPUTS,
    sharing_tasks: list[str] | None = None,
    **encoder: Any,
) -> MultiTaskModel:
    heads = heads_of(sharing if isinstance(sharing, str) else sharing["kind"], outputs)
    options = {"kind": "tabular", "embedding": 3, "hidden_sizes": [11, 8], **encoder}
    if isinstance(sharing, dict) and SHARING.find(sharing["kind"]).reads[0] == "sequence":
        options = {"kind": "columns", "width": 8}
    return build_model(
        ModelSpec(encoder=options, sharing=sharing), TABLE, outputs, heads, seed=seed, sharing_tasks=sharing_tasks
    )


def heads_of(kind: str, outputs: dict[str, int] = OUTPUTS) -> dict[str, list[int]]:
    """The hidden layers of heads, where an architecture leaves heads to the tasks."""
    leaves_heads = SHARING.find(kind).head is Sharing.head
    return {"topic": [9]} if "topic" in outputs and leaves_heads else {}


def on_graphs(case: str) -> bool:
    return options_of(case)["kind"] == "one_for_all"


def on_pictures(case: str) -> bool:
    return case.endswith("a pyramid") or SHARING.find(options_of(case)["kind"]).reads == ("pyramid",)


def options_of(case: str) -> dict[str, Any]:
    return VARIANTS[case] if case in VARIANTS else SHARING_OPTIONS[case]


def schema_of(case: str) -> InputSchema:
    if on_graphs(case):
        return GRAPHS
    return PICTURES if on_pictures(case) else TABLE


def inputs_of(case: str, rows: int, seed: int = 0) -> dict[str, Tensor]:
    if on_graphs(case):
        return graph_inputs(rows, seed)
    return {"image": uniform(seed, rows, 3, 8, 12)} if on_pictures(case) else table_inputs(rows, seed)


def model_of(
    case: str, seed: int = 0, outputs: dict[str, int] = OUTPUTS, sharing_tasks: list[str] | None = None, **encoder: Any
) -> MultiTaskModel:
    """The small model that this architecture's tests are about."""
    sharing = options_of(case)
    if on_graphs(case):
        model: dict[str, Any] = {"encoder": {"kind": "gnn", "width": 6, "layers": 2, **encoder}}
    elif on_pictures(case):
        options = {"kind": "pyramid", "channels": [4, 8], "convolutions": 1, **encoder}
        model = {"encoder": options, "decoder": DECODER}
    else:
        return table_model(sharing, seed, outputs, sharing_tasks, **encoder)
    spec = ModelSpec.model_validate({**model, "sharing": sharing})
    heads = heads_of(sharing["kind"], outputs)
    return build_model(spec, schema_of(case), outputs, heads, seed=seed, sharing_tasks=sharing_tasks)
