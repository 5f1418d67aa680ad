"""One for all: every task's question stands in the graph itself, as a prompt node and a node for each class."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.core.outputs import OutputSchema
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.encoders.gnn import GNN, of_interest
from polytask.sharing.layers import Stack, TaskModules, dense_layers, seeded
from polytask.sharing.spec import SharingOptions


class OneForAll(Sharing):
    """Each row's graph gets a prompt node that the nodes of interest (one, two or all of them) lead to, and a node for
    each class, or each number, that a task asks about, which the prompt node leads to. One graph network runs over all
    of it, and one readout gives the output at each class node: tasks on nodes, on links and on graphs have a vector a
    class and one for the prompt to themselves, and no head.

    Source: Liu et al. 2023, arXiv:2310.00149 (OFA): nodes of interest, prompt node, class nodes, a relational network
    with W_r mean_j relu(h_j + e) from each relation r, and a binary output at each class node. The paper's text was not
    at hand, only its abstract and the authors' code.
    Departures: prompt edges lead from the nodes to the prompt and on to the classes; in the authors' code the prompt
    leads back to the nodes, and classes to the prompt unless that is switched off. Here no task changes what another
    reads, and the graph is read once for all of them. Prompt and class nodes begin with learned vectors; the paper
    encodes descriptions by a language model, so that it knows classes without training on them. No examples as prompts;
    the loss is the task's own, so the classes of a multiclass task compete; numbers may be asked for too. The encoder's
    layers are the network's first; of the two more that it takes to reach the class nodes only these are computed.
    Cost: the encoder once; then for a row, layer and named task 2 d^2 multiply-adds for the prompt and d^2 a class.
    """

    reads: ClassVar[tuple[str, ...]] = ("vector", "sequence")

    class Options(SharingOptions):
        """Attributes: hidden_sizes of the readout, which all tasks share."""

        kind: Literal["one_for_all"] = "one_for_all"
        hidden_sizes: tuple[PositiveInt, ...] = (64,)

    def __init__(
        self, make_encoder: MakeEncoder, tasks: Mapping[str, OutputSchema], options: Options, seed: int = 0
    ) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        encoder = make_encoder()
        if not isinstance(encoder, GNN):
            raise BadValue("sharing 'one_for_all': the encoder", type(encoder).__name__, "gnn, a network on graphs")
        if encoder.pooling == "sum":
            raise BadValue(
                "sharing 'one_for_all': the encoder's pooling", "sum", "mean, which its prompts read, or none"
            )
        self.encoder, self.width = encoder, encoder.width
        layers = len(encoder.layers)
        with seeded(seed, "layers"):
            self.layers = Stack(encoder.new_update() for _ in range(2))
        with seeded(seed, "relations"):
            self.to_prompt = Stack(Relation(self.width) for _ in range(layers + 1))
            self.to_class = Stack(Relation(self.width) for _ in range(layers + 2))
        with seeded(seed, "readout"):
            inner = dense_layers(self.width, options.hidden_sizes)
            self.readout = nn.Sequential(inner, nn.Linear((self.width, *options.hidden_sizes)[-1], 1))
        self.prompts: TaskModules[Prompt] = TaskModules()
        for task, outputs in tasks.items():
            with seeded(seed, "prompt", task):
                self.prompts[task] = Prompt(self.width, outputs.width)

    @property
    def representation_width(self) -> int:
        return len(self.to_prompt) * self.width

    def head(self, task: str, outputs: OutputSchema, hidden_sizes: tuple[int, ...]) -> nn.Module:
        """No layers: a class node's score is the output; BadValue for layers of a task's own."""
        if hidden_sizes:
            allowed = "nothing, as sharing 'one_for_all' has one readout for all tasks"
            raise BadValue(f"layers of the head of task {task!r}", list(hidden_sizes), allowed)
        return Scores()

    def condition(self, task: str) -> str | None:
        return "a prompt node and a node a class in each graph"

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """What a prompt node reads of its nodes of interest in each layer, one after the other."""
        graphs = self.encoder.read(inputs)
        states = self.encoder.states(graphs)
        read = [
            relation(of_interest(relation.message(nodes), graphs, "mean"))
            for relation, nodes in zip(self.to_prompt, states, strict=True)
        ]
        return torch.cat(read, dim=1)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        """{task: [B, outputs]}, the scores of its class nodes."""
        if not tasks:
            return {}
        asked = [self.prompts[task] for task in tasks]
        counts = [len(prompt.classes) for prompt in asked]
        prompts = torch.stack([prompt.task for prompt in asked]).to(representation.dtype).unsqueeze(0)
        classes = torch.cat([prompt.classes for prompt in asked]).to(representation.dtype).unsqueeze(0)
        of_class = torch.repeat_interleave(torch.tensor(counts)).to(representation.device)
        reads = representation.unflatten(1, (len(self.to_prompt), 1, self.width)).unbind(1)  # alike for all tasks
        updates = [*(layer.update for layer in self.encoder.layers), *self.layers]
        for layer, (update, relation) in enumerate(zip(updates, self.to_class, strict=True)):
            told = relation(relation.message(prompts))
            classes = update(classes, told.index_select(1, of_class))
            if layer < len(reads):
                prompts = update(prompts, reads[layer])
        scores = self.readout(classes).squeeze(2)
        return dict(zip(tasks, scores.split(counts, dim=1), strict=True))


class Relation(nn.Module):
    """A kind of edge: what it adds to the state that it leads on, and the matrix for what is read along it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge = nn.Parameter(torch.zeros(width))
        self.matrix = nn.Linear(width, width, bias=False)

    def message(self, states: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        return torch.relu(states + self.edge)

    def forward(self, read: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        return self.matrix(read)


class Prompt(nn.Module):
    """What a task's prompt node and class nodes begin with."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.task = nn.Parameter(torch.randn(width))
        self.classes = nn.Parameter(torch.randn(classes, width))


class Scores(nn.Module):
    """A task's outputs from the scores of its class nodes: [B] of one, [B, outputs] of several."""

    def forward(self, scores: Float[Tensor, "B outputs"]) -> Tensor:
        return scores.squeeze(1) if scores.shape[1] == 1 else scores
