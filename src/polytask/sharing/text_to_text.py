"""Text to text: every task is answered in tokens, by one decoder and one vocabulary."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import BadValue, MissingInput
from polytask.core.outputs import OutputSchema
from polytask.sharing.answering import NOTHING, AnswerDecoder, Questions, Vocabulary
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.dense.decoders import output_sizes, refuse_decoder, resized, resized_outputs
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.encoders.levels import Levels, packed, unpacked
from polytask.sharing.gates import Embedding
from polytask.sharing.layers import NamedModules, TaskModules, seeded
from polytask.sharing.output_tokenizers import OutputTokenizer, tokenizer_of
from polytask.sharing.sequences import Places
from polytask.sharing.spec import DecoderSpec
from polytask.sharing.tape import listening, note_penalty
from polytask.sharing.transformer_blocks import TransformerOptions


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] < limits[1]:
        raise BadValue("limits", list(limits), "two numbers, the smaller one first")
    return limits


Limits = Annotated[tuple[float, float], AfterValidator(_ordered)]


class Read(NamedTuple):
    """What answers read: tokens of the input, which of them are no padding, and of a picture [B, h, w, d], a vector a
    point."""

    memory: Tensor
    mask: Tensor | None = None
    points: Tensor | None = None


class TextToText(Sharing):
    """An answer begins with a token that is made of the task's name; the decoder reads the input's tokens (a vector is
    one) and gives the log-probability of every answer that the task allows. Heads have no parameters: labels, log odds
    and numbers are read off those (`output_tokenizers`).

    Where the encoder gives a pyramid, the input's tokens are the pixels of its coarsest map, and each pixel of the
    finest is a point with an answer of its own, to whose first token the maps' features there are added; all points are
    answered at once, and outputs are interpolated between them to the task's resolution. A task with one label a row
    is asked without points.

    Source: Cho et al. 2021, arXiv:2102.02779 (VL-T5): text prefixes for tasks, labels generated as text by one language
    model. Wang et al. 2024, arXiv:2403.09394 (GiT): one vocabulary with bins for numbers, one token for a label of
    several pieces, points of a picture decoded in parallel, each with its local feature.
    Departures: the papers' full texts were not at hand, only abstracts and others' summaries. The vocabulary is bytes,
    bins and what is made of bytes; nothing is pretrained. Answers are not generated but all scored, so that the
    prediction is the best of those allowed, not a greedy one. Numbers are learned through the mean of their bins. A
    point gives one answer, GiT's several. The numbers of a vector (a normal) are answered apart, not in a sequence.
    Cost: a row, question and layer: S (6 + 2 feedforward) width^2 + 2 S (L + S) width multiply-adds, for S prefixes of
    the answers (1 unless they are spelled) and L tokens of the input, which cost 2 L width^2 for all questions; then
    S V width for the V tokens that may follow. Tokens of texts are made once a batch.
    """

    reads: ClassVar[tuple[str, ...]] = ("sequence", "vector", "pyramid")

    class Options(TransformerOptions):
        """Attributes: those of the decoder; bins of a number; limits, task -> between which numbers its labels lie, as
        the loss reads them (by default the kind's); spelled: labels are sequences of bytes instead of a token each;
        outside: factor of -log of the probability that a spelled answer is an allowed one, 1 makes cross-entropy the
        loss of the language model; own_prompts: adds a learned vector of the task's own to its name.
        """

        kind: Literal["text_to_text"] = "text_to_text"
        bins: int = Field(default=64, ge=2)
        limits: dict[str, Limits] = Field(default_factory=dict)
        spelled: bool = False
        outside: float = Field(default=1.0, ge=0)
        own_prompts: bool = False

    def __init__(
        self, make_encoder: MakeEncoder, tasks: Mapping[str, OutputSchema], options: Options, seed: int = 0
    ) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.options, self.map_sizes_of = options, {}
        self.encoder = make_encoder()
        self.gives = getattr(self.encoder, "gives", "vector")
        encoder: Any = self.encoder
        if self.gives == "pyramid":
            spec = make_encoder.decoder or DecoderSpec()
            self.map_sizes_of, self.shapes = output_sizes(encoder, tasks, spec), list(encoder.shapes)
            width, inputs = spec.width, encoder.shapes[-1][0]
        else:
            refuse_decoder(self.gives, make_encoder.decoder)
            width = inputs = encoder.width
        self.width = options.heads * math.ceil(width / options.heads)
        with seeded(seed, "memory"):
            self.inwards, self.memory_norm = nn.Linear(inputs, self.width), nn.LayerNorm(self.width)
        with seeded(seed, "points"):
            self.points = None if self.gives != "pyramid" else Points(self.shapes, self.width)
        with seeded(seed, "vocabulary"):
            self.vocabulary = Vocabulary(self.width, options.bins, options)
        with seeded(seed, "decoder"):
            self.decoder = AnswerDecoder(self.width, options)
        self.questions: NamedModules[Questions] = NamedModules()
        self.prompts: TaskModules[Embedding] = TaskModules()
        for task, schema in tasks.items():
            tokenizer = tokenizer_of(task, schema, options.bins, options.limits.get(task))
            self.questions[task] = Questions(task, tokenizer, options.spelled)
            if options.own_prompts:
                with seeded(seed, "prompt", task):
                    self.prompts[task] = Embedding(self.width)

    @property
    def map_sizes(self) -> dict[str, tuple[int, int]]:
        return dict(self.map_sizes_of)

    def condition(self, task: str) -> str:
        own = f", and a vector of {self.width}" if task in self.prompts else ""
        return f"the token of its name, which its answers begin with{own}"

    def head(self, task: str, outputs: OutputSchema, hidden_sizes: tuple[int, ...]) -> nn.Module:
        """Reads outputs off the scores of a task's answers; BadValue for layers of its own."""
        if hidden_sizes:
            allowed = "nothing, as sharing 'text_to_text' answers all tasks by one vocabulary"
            raise BadValue(f"layers of the head of task {task!r}", list(hidden_sizes), allowed)
        return Outputs(self.questions[task].tokenizer, self.map_sizes_of.get(task))

    def representation(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the encoder gives: a vector, tokens (MissingInput where rows are padded), or all maps of a pyramid, one
        after the other."""
        given: Any = self.encoder(inputs)
        if self.gives == "pyramid":
            return packed(given)
        if self.gives == "vector":
            return given
        if given.mask is not None:
            raise MissingInput("sharing 'text_to_text': rows of different length share no representation of one shape")
        return given.values

    def features(self, representation: Tensor, tasks: list[str]) -> dict[str, Tensor]:
        """{task: [B, questions, answers]}, log-probabilities; of a picture [B, h, w, questions, answers]."""
        if self.gives == "pyramid":
            return self._scores(self._read(unpacked(representation, self.shapes)), tasks)
        return self._scores(self._read(Tokens(representation) if self.gives == "sequence" else representation), tasks)

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        return self._scores(self._read(self.encoder(inputs)), tasks)

    def _read(self, given: Any) -> Read:
        if self.points is not None:
            tokens, points = self.points(given)
            return Read(self.memory_norm(self.inwards(tokens)), None, points)
        values, mask = given if self.gives == "sequence" else (given.unsqueeze(1), None)
        return Read(self.memory_norm(self.inwards(values)), mask)

    def _scores(self, read: Read, tasks: list[str]) -> dict[str, Tensor]:
        """Tasks whose answers have the same prefixes go through the decoder together, those of points and those of rows
        apart."""
        starts, choices = self._texts(tasks)
        alike: dict[tuple[bool, tuple[tuple[int, ...], ...]], list[str]] = {}
        for task in tasks:
            alike.setdefault((task in self.map_sizes_of, self.questions[task].prefixes), []).append(task)
        found: dict[str, Tensor] = {}
        for (of_points, _), members in alike.items():
            asked = read if of_points else read._replace(points=None)
            hidden = self._decoded(asked, torch.cat([starts[task] for task in members]), self.questions[members[0]])
            parts = hidden.split([len(starts[task]) for task in members], dim=-3)
            for task, part in zip(members, parts, strict=True):
                found[task] = self.questions[task].scores(part, choices[task])
                self._note(task, found[task])
        return {task: found[task] for task in tasks}

    def _texts(self, tasks: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """{task: the token that each of its questions begins with}, {task: the tokens that may follow a prefix}."""
        texts = [self.questions[task].texts for task in tasks]
        longest = max(each.shape[1] for each in texts)
        filled = torch.cat([functional.pad(each, (0, longest - each.shape[1]), value=NOTHING) for each in texts])
        made = dict(zip(tasks, self.vocabulary(filled).split([len(each) for each in texts]), strict=True))
        starts, choices = {}, {}
        for task, vectors in made.items():
            asked = self.questions[task]
            name, questions, answers = vectors.split([1, len(asked.tokenizer.questions), asked.whole_answers])
            if task in self.prompts:
                name = name + self.prompts[task].vector.to(name.dtype)
            starts[task] = name + questions if len(questions) else name
            choices[task] = answers if len(answers) else self.vocabulary.bytes
            if asked.tokenizer.bins:
                choices[task] = self.vocabulary.bins
        return starts, choices

    def _decoded(self, read: Read, starts: Float[Tensor, "Q d"], asked: Questions) -> Tensor:
        """[B, Q, S, d], or [B, h, w, Q, S, d] where a picture's points are asked."""
        rows, points = read.memory.shape[0], read.points
        if points is None:
            begin = starts.expand(rows, -1, -1)
        else:
            begin = (points.unsqueeze(3) + starts).flatten(1, 3)
        tokens = self.vocabulary.bytes[asked.tokens]
        hidden = self.decoder(begin, tokens, asked.depths, asked.allowed, read.memory, read.mask)
        return hidden if points is None else hidden.unflatten(1, (*points.shape[1:3], len(starts)))

    def _note(self, task: str, scores: Tensor) -> None:
        spells = self.options.spelled and self.questions[task].tokenizer.answers
        if spells and self.options.outside > 0 and self.training and listening():
            note_penalty(task, -self.options.outside * scores.logsumexp(-1).mean())


class Outputs(nn.Module):
    """A task's outputs from the scores of its answers, brought to the size of its labels where they are maps."""

    def __init__(self, tokenizer: OutputTokenizer, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.tokenizer, self.size = tokenizer, size

    def forward(self, scores: Float[Tensor, "*B questions answers"]) -> Tensor:
        outputs = self.tokenizer.outputs(scores)
        return outputs if self.size is None else resized_outputs(outputs, self.size)


class Points(nn.Module):
    """The pixels of the coarsest map as tokens, and those of the finest as points: the sum of all maps there."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], width: int) -> None:
        super().__init__()
        self.places = Places(shapes[-1])
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels, _, _ in shapes)
        self.norm = nn.LayerNorm(width)

    def forward(self, levels: Levels) -> tuple[Float[Tensor, "B L c"], Float[Tensor, "B h w d"]]:
        height, width = levels[0].shape[2:]
        maps = [resized(lateral(level), (height, width)) for lateral, level in zip(self.laterals, levels, strict=True)]
        return self.places(levels[-1]), self.norm(torch.stack(maps).sum(0).movedim(1, -1))
