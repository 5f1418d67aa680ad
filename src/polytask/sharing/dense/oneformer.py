"""OneFormer: queries that start from the task's token look for what the task asks for, level after level."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from polytask.sharing.contract import MakeEncoder
from polytask.sharing.dense.decoders import Decoder, output_sizes, resized
from polytask.sharing.dense.frame import PyramidSharing
from polytask.sharing.encoders.levels import Levels
from polytask.sharing.gates import Embedding
from polytask.sharing.layers import Stack, TaskModules, dense_layers, seeded
from polytask.sharing.sequences import Places
from polytask.sharing.spec import DecoderSpec
from polytask.sharing.tape import listening, note_features, note_penalty
from polytask.sharing.transformer_blocks import CrossAttention, TransformerOptions, block, reader_of


class OneFormer(PyramidSharing):
    """Pixel p of task t has the features sum over queries q of sigmoid(m_tq . e_p) c_tq / sqrt(N): each query is a
    class, c, and a mask, m. The head is linear, so its outputs are the sum over queries of class scores times masks.

    N - 1 of a task's queries start as its token, each with a learned vector of its place added, and read the finest
    map e in the first layers; the last query is the token itself. Then layer after layer all read a level, from the
    coarsest on and again, each only where its own mask of the layer before is above 1/2, and then a task's queries read
    each other. A task with one label a row reads what its token has become.

    Source: Jain et al. 2023, arXiv:2211.06220 (OneFormer): a task token that conditions the queries, the queries' start
    in a transformer over the finest features, the query-text contrastive loss with its weight 0.5 and temperature
    0.07. Cheng et al. 2022, arXiv:2112.01527 (Mask2Former): masked attention, one level a layer, a loss at each layer.
    Departures: the papers' full texts were not at hand; the contrastive loss is that of the authors' code but for what
    follows. The token is learned and no text is read: with a text for each of some fixed tasks the paper's token is a
    constant for each as well. An architecture sees no labels, so the texts do not list the classes of a picture: each
    is the task's token, as the paper's text for a picture without objects names the task only, and the other pairs are
    those of the row's other tasks, not of other rows. The temperature is fixed. Queries are not matched to objects: a
    task's own loss on its map trains them, so that depths and normals have them too; class scores are neither
    normalised nor is there a class for no object, and the sum over queries is divided by sqrt(N). As no loss is on the
    masks themselves, the vectors that make them are normalised and layers add little at the start, without which
    they hardly learned. The pixel decoder is this package's, without deformable attention; the finest level gives
    the masks and is read by the first layers only, unless there is no other. Layers normalise before, not after;
    vectors of places are added once.
    Cost: for each named task and row, with N queries, a level of L pixels and width d, about (9 + 2 feedforward) N d^2
    + 2 N L d + 2 N^2 d multiply-adds a layer, and N d a pixel of the finest level for the masks before each layer; for
    all tasks together 2 L d^2 a layer, and the pixel decoder.
    """

    class Options(TransformerOptions):
        """Attributes: those of the transformer; queries of a task, N, its token among them; first_layers, which read
        the finest map before `layers` go through the levels; contrast, weight of the contrastive term; temperature of
        that.
        """

        kind: Literal["oneformer"] = "oneformer"
        layers: PositiveInt = 4
        queries: int = Field(default=16, ge=2)
        first_layers: PositiveInt = 2
        contrast: float = Field(default=0.5, ge=0)
        temperature: float = Field(default=0.07, gt=0)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        spec = make_encoder.decoder or DecoderSpec()
        self.options, self.width, self.supervised = options, spec.width, spec.auxiliary > 0
        self.sizes = output_sizes(self.encoder, tasks, spec)
        self.order = list(range(len(self.shapes) - 1, 0, -1)) or [0]  # of the levels that are read
        self.tokens: TaskModules[Embedding] = TaskModules()
        for task in self.tasks:
            with seeded(seed, "token", task):
                self.tokens[task] = Embedding(self.width)
        with seeded(seed, "pixels"):
            self.pixels = Decoder([shape[0] for shape in self.shapes], self.width)
            self.first_places = Places((self.width, *self.shapes[0][1:]))
            self.places = Stack(Places((self.width, *self.shapes[level][1:])) for level in self.order)
        with seeded(seed, "queries"):
            self.query_places = nn.Parameter(torch.randn(options.queries - 1, self.width))
            self.first_layers = Stack(QueryLayer(self.width, options) for _ in range(options.first_layers))
            self.layers = Stack(QueryLayer(self.width, options) for _ in range(options.layers))
            self.norm = nn.LayerNorm(self.width)
            hidden = dense_layers(self.width, (self.width, self.width))
            self.masks = nn.Sequential(*hidden, nn.Linear(self.width, self.width), nn.LayerNorm(self.width))

    @property
    def map_sizes(self) -> dict[str, tuple[int, int]]:
        return self.sizes

    @property
    def auxiliary(self) -> dict[str, int]:
        return {f"layer.{layer}": self.width for layer in range(self.options.layers)} if self.supervised else {}

    def condition(self, task: str) -> str:
        return f"a token of {self.width} from which {self.options.queries} queries start"

    def decoded(self, levels: Levels, tasks: list[str]) -> dict[str, Tensor]:
        finest, maps = self.pixels(levels)
        queries = self._started(finest, tasks)
        sources = [places(maps[level]) for places, level in zip(self.places, self.order, strict=True)]
        for number, layer in enumerate(self.layers):
            masks = self._masks(queries, finest)
            if self.training and self.supervised and listening():
                for task, inner in self._shown(queries, masks, tasks).items():
                    note_features(f"layer.{number}", task, inner)
            place = number % len(self.order)
            queries = layer(queries, sources[place], self._seen(masks, maps[self.order[place]]))
        found = self._shown(queries, self._masks(queries, finest), tasks)
        return {
            task: resized(each, self.sizes[task]).movedim(1, -1) if task in self.sizes else each.flatten(1)
            for task, each in found.items()
        }

    def _started(self, finest: Float[Tensor, "B d h w"], tasks: list[str]) -> Float[Tensor, "B T N d"]:
        tokens = torch.stack([self.tokens[task].vector for task in tasks])
        queries = (tokens.unsqueeze(1) + self.query_places).to(finest.dtype).expand(finest.shape[0], -1, -1, -1)
        source = self.first_places(finest)
        for layer in self.first_layers:
            queries = layer(queries, source, None)
        self._note_contrast(queries, tokens, tasks)
        own = tokens.unsqueeze(1).to(queries.dtype).expand(finest.shape[0], -1, -1, -1)
        return torch.cat([queries, own], dim=2)

    def _note_contrast(self, queries: Float[Tensor, "B T n d"], tokens: Float[Tensor, "T d"], tasks: list[str]) -> None:
        """A task's term: of the pairs of its queries and its text, among those of the row's tasks, both ways."""
        if not (self.training and listening() and self.options.contrast > 0 and len(tasks) > 1):
            return
        with torch.autocast(queries.device.type, enabled=False):  # cosines are divided by a small temperature
            read = functional.normalize(queries.to(tokens.dtype).flatten(2), dim=2)
            texts = functional.normalize(tokens.repeat(1, queries.shape[2]), dim=1)
            scores = read @ texts.T / self.options.temperature  # [B, T, T], queries by texts
            pairs = scores.log_softmax(2) + scores.log_softmax(1)
            terms = -self.options.contrast * pairs.diagonal(dim1=1, dim2=2).mean(0)
        for task, term in zip(tasks, terms.unbind(), strict=True):
            note_penalty(task, term)

    def _masks(self, queries: Float[Tensor, "B T N d"], finest: Float[Tensor, "B d h w"]) -> Float[Tensor, "B T N h w"]:
        """What a sigmoid makes masks of."""
        return torch.einsum("btnd,bdhw->btnhw", self.masks(self.norm(queries)), finest)

    def _seen(self, masks: Float[Tensor, "B T N h w"], level: Tensor) -> Bool[Tensor, "B M L"]:
        """Which of a level's pixels each query may read: those in its mask; all, where its mask is empty."""
        seen = resized(masks.detach().flatten(1, 2), (level.shape[2], level.shape[3])).flatten(2) >= 0
        return seen | ~seen.any(dim=2, keepdim=True)

    def _shown(self, queries: Tensor, masks: Tensor, tasks: list[str]) -> dict[str, Tensor]:
        """{task: its map of the finest level's size, or what its token has become as a map of one pixel}."""
        classes = self.norm(queries)
        return {
            task: torch.einsum("bnhw,bnd->bdhw", masks[:, place].sigmoid(), classes[:, place]) / classes.shape[2] ** 0.5
            if task in self.sizes
            else classes[:, place, -1, :, None, None]
            for place, task in enumerate(tasks)
        }


class QueryLayer(nn.Module):
    """Queries read a map's pixels, then those of a task read each other, and each passes through a network.

    What each of the three adds is small at the start.
    """

    def __init__(self, width: int, options: TransformerOptions) -> None:
        super().__init__()
        self.reading = CrossAttention(width, options.heads, reader_of(options))
        self.among = block(width, options)
        with torch.no_grad():
            for last in (self.reading.outwards, self.among.outwards, self.among.network[-1]):
                for parameter in last.parameters():
                    parameter.mul_(0.1)

    def forward(
        self, queries: Float[Tensor, "B T N d"], source: Float[Tensor, "B L d"], seen: Bool[Tensor, "B M L"] | None
    ) -> Float[Tensor, "B T N d"]:
        tasks, number = queries.shape[1:3]
        x = self.reading(queries.flatten(1, 2), source, seen)
        x = self.among(x.unflatten(1, (tasks, number)).flatten(0, 1), None)
        return x.unflatten(0, (-1, tasks))
