"""Stems: what reads the inputs before the trunk, one for each source (a sensor, a domain) or for each task."""

from collections.abc import Iterator, Mapping

from jaxtyping import Float
from torch import Tensor, nn

from polytask.core.errors import Inconsistent, MissingInput, UnknownName
from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import Encoder, build, require_gives
from polytask.sharing.layers import NamedModules, TaskModules, seeded
from polytask.sharing.spec import EncoderOptions, StemsSpec

TRUNK_INPUT = "numeric"
"""Under which key the trunk finds what a stem gives."""


class Stem(nn.Module):
    """An encoder, and a linear map to the width that the trunk reads where the encoder's differs."""

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Identity() if encoder.width == width else nn.Linear(encoder.width, width)

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B width"]:
        return self.projection(self.encoder(inputs))


class Stems(nn.Module):
    """The stems of a model.

    Args:
        spec: as in a recipe.
        schemas: source -> its inputs.
        sources: task -> its source.
        seed: of the start; a stem's depends on its own name only.
    """

    def __init__(
        self, spec: StemsSpec, schemas: Mapping[str, InputSchema], sources: Mapping[str, str], seed: int
    ) -> None:
        super().__init__()
        self.by = spec.by
        self.stem_of = {task: task if spec.by == "task" else source for task, source in sources.items()}
        self.stems: NamedModules[Stem] = TaskModules() if spec.by == "task" else NamedModules()
        for task, name in self.stem_of.items():
            if name in self.stems:
                continue
            with seeded(seed, "stem", name):
                encoder = build(_options(spec, name), schemas[sources[task]])
                require_gives(encoder, ["vector"], f"the stem of {spec.by} {name!r}")
                self.stems[name] = Stem(encoder, spec.width)
        self.trunk_schema = InputSchema(shapes={TRUNK_INPUT: (spec.width,)})

    def groups(
        self, inputs: Mapping[str, Tensor], tasks: list[str], stem: str | None = None
    ) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
        """(tasks, what the trunk reads for them), one item a stem that these tasks have; `stem` names one for all."""
        if stem is not None and stem not in self.stems:
            raise UnknownName("stem", stem, self.stems.keys(), "model")
        by_stem: dict[str, list[str]] = {}
        for task in tasks:
            by_stem.setdefault(stem or self.stem_of[task], []).append(task)
        for name, served in by_stem.items():
            yield served, {TRUNK_INPUT: self.stems[name](inputs)}

    def one(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        """What the trunk reads for these tasks; MissingInput where they read different stems."""
        found = list(self.groups(inputs, tasks))
        if len(found) != 1:
            raise MissingInput(
                f"tasks {', '.join(tasks)} have a stem each: they share no representation of a row; use engine 'exact'"
            )
        return found[0][1]


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
