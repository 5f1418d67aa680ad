"""Stems: what reads the inputs before the trunk, one for each source (a sensor, a domain) or for each task."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from polytask.core.errors import Inconsistent, MissingInput, UnknownName
from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import Encoder, Tokens, build, require_gives
from polytask.sharing.layers import NamedModules, TaskModules, seeded
from polytask.sharing.spec import EncoderOptions, StemsSpec

TRUNK_INPUT = "numeric"
"""Under which key the trunk finds what a stem gives, where that is a vector; tokens are under `tokens`."""


class Stem(nn.Module):
    """An encoder, and a linear map to the width that the trunk reads where the encoder's differs."""

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Identity() if encoder.width == width else nn.Linear(encoder.width, width)

    @property
    def gives_tokens(self) -> bool:
        return self.encoder.gives == "sequence"

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor | Tokens:
        read: Any = self.encoder(inputs)
        return Tokens(self.projection(read.values), read.mask) if self.gives_tokens else self.projection(read)


class Stems(nn.Module):
    """The stems of a model.

    Args:
        spec: as in a recipe.
        schemas: source -> its inputs.
        sources: task -> its sources.
        seed: of the start; a stem's depends on its own name only.
    """

    def __init__(
        self, spec: StemsSpec, schemas: Mapping[str, InputSchema], sources: Mapping[str, Sequence[str]], seed: int
    ) -> None:
        super().__init__()
        self.by = spec.by
        self.stems_of = {task: (task,) if spec.by == "task" else tuple(named) for task, named in sources.items()}
        self.stems: NamedModules[Stem] = TaskModules() if spec.by == "task" else NamedModules()
        for task, named in sources.items():
            read = one_schema({name: schemas[name] for name in named}) if spec.by == "task" else None
            for name in self.stems_of[task]:
                if name not in self.stems:
                    with seeded(seed, "stem", name):
                        encoder = build(_options(spec, name), read or schemas[name])
                        require_gives(encoder, ["vector", "sequence"], f"the stem of {spec.by} {name!r}")
                        self.stems[name] = Stem(encoder, spec.width)
        self.give_tokens = any(stem.gives_tokens for stem in self.stems.values())
        vectors = InputSchema(shapes={TRUNK_INPUT: (spec.width,)})
        self.trunk_schema = InputSchema(tokens=spec.width) if self.give_tokens else vectors

    def groups(
        self, inputs: Mapping[str, Tensor], tasks: list[str], stem: str | None = None
    ) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
        """(tasks, what the trunk reads for them), one item a stem that these tasks have; `stem` names one for all."""
        if stem is not None and stem not in self.stems:
            raise UnknownName("stem", stem, self.stems.keys(), "model")
        by_stem: dict[str, list[str]] = {}
        for task in tasks:
            by_stem.setdefault(stem or self._only(task), []).append(task)
        for name, served in by_stem.items():
            yield served, self._trunk_inputs(self.stems[name](inputs))

    def _trunk_inputs(self, read: Tensor | Tokens) -> dict[str, Tensor]:
        if not isinstance(read, Tokens):
            return {"tokens": read.unsqueeze(1)} if self.give_tokens else {TRUNK_INPUT: read}
        padding = {} if read.mask is None else {"tokens_mask": read.mask}
        return {"tokens": read.values, **padding}

    def _only(self, task: str) -> str:
        first, *others = self.stems_of[task]
        if others:
            named = ", ".join(self.stems_of[task])
            raise MissingInput(f"task {task!r} has several stems ({named}): say which, as in stem={first!r}")
        return first

    def one(self, inputs: Mapping[str, Tensor], tasks: list[str], stem: str | None = None) -> dict[str, Tensor]:
        """What the trunk reads for these tasks; MissingInput where they read different stems."""
        found = list(self.groups(inputs, tasks, stem))
        if len(found) != 1:
            raise MissingInput(
                f"tasks {', '.join(tasks)} have a stem each: they share no representation of a row; use engine 'exact'"
            )
        return found[0][1]


def named_stem(model: Any, source: str) -> dict[str, str]:
    """What a call of the model on rows of this source says beside inputs and tasks: their stem, if stems are by source.

    A task of several sources has several stems; a task that never had this one is read through it all the same.
    """
    stems = getattr(model, "stems", None)
    return {"stem": source} if stems is not None and stems.by == "source" else {}


def _options(spec: StemsSpec, name: str) -> EncoderOptions:
    found = spec.of.get(name, spec.default)
    if found is None:
        raise MissingInput(f"model.stems: {spec.by} {name!r} has no stem: name one in `of` or give a `default`")
    return found


def one_schema(schemas: Mapping[str, InputSchema]) -> InputSchema:
    """The inputs of all sources, which are alike where one encoder reads them all."""
    first, *others = schemas
    for other in others:
        if schemas[other] != schemas[first]:
            raise Inconsistent(
                f"sources {first!r} and {other!r} have different inputs ({schemas[first]}; {schemas[other]}): "
                "one encoder cannot read both; give each a stem (model.stems)"
            )
    return schemas[first]
