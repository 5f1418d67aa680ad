"""What an encoder is, and the checks that a model makes when it is built.

An encoder is a module with `forward(inputs) -> [B, width]`, where `inputs` is a mapping as described in
`polytask.core.inputs`, and an attribute `width: int`. A named encoder is a class with `Options` (a subclass of
`EncoderOptions`) that is built with `(options, schema)`; one that reads files has an attribute
`options`, the options that build it again without them.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput, PolytaskError, nearest
from polytask.core.inputs import GraphWidths, InputSchema
from polytask.sharing.encoders.levels import checked_pyramid
from polytask.sharing.names import ENCODERS
from polytask.sharing.spec import EncoderOptions


class Tokens(NamedTuple):
    """What an encoder that gives a sequence returns: values [B, L, width], and which are no padding, bool [B, L].

    `mask` is None where every row has all L tokens.
    """

    values: Tensor
    mask: Tensor | None = None


class MadeOf(NamedTuple):
    """What a run of an encoder's tokens is made of: `tokens` of them, each of so many `numbers`, or of a category out
    of so many `classes`."""

    tokens: int
    numbers: int = 0
    classes: int = 0


class Encoder(nn.Module):
    """Inputs -> features; a person's own module need not be a subclass, only do the same.

    One whose tokens can be reconstructed has `made_of`, a tuple of `MadeOf` for its tokens in order, and
    `raw(inputs)`, a tensor for each: [B, tokens, numbers] of floats, or [B, tokens] of class numbers.

    Attributes:
        width: the last dimension of the features.
        gives: "vector", [B, width]; "map", a vector a pixel, [B, H, W, width], as heads work on the last axis;
            "sequence", `Tokens`; or "pyramid", see `polytask.sharing.encoders.levels`.
    """

    gives: str = "vector"
    width: int


EncoderFactory = Callable[..., nn.Module]
"""A callable without arguments, or one that takes the schema, which returns a new module at each call."""


def build(options: EncoderOptions | None, schema: InputSchema) -> Encoder:
    """The encoder that these options name, for inputs of this schema."""
    if options is None:
        raise MissingInput("the model has no encoder: name one in model.encoder or pass encoder=, a factory")
    return checked(ENCODERS.find(options.kind)(options, schema), schema, f"encoder {options.kind!r}")


def build_from_factory(factory: EncoderFactory, schema: InputSchema) -> Encoder:
    """The encoder that a person's callable returns.

    A module with `width` follows the contract and gets the mapping. A plain module (no `width`) gets the bare tensor if
    the schema has one key and the mapping otherwise; its width is found by running it once on two rows of zeros.
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        found = type(factory).__name__
        raise BadValue("encoder", found, "a factory: a class or function that returns a new module at each call")
    module = factory(schema) if _takes_an_argument(factory) else factory()
    if not isinstance(module, nn.Module):
        raise BadValue("what the encoder factory returned", type(module).__name__, "a torch.nn.Module")
    if isinstance(getattr(module, "width", None), int) or _gives(module) == "pyramid":
        return checked(module, schema, "the encoder from the factory")
    keys = schema_keys(schema)
    plain = PlainEncoder(module, keys[0] if len(keys) == 1 else None)
    plain.width = dry_run(plain, schema, "the encoder from the factory").shape[-1]
    return plain


class PlainEncoder(Encoder):
    """A person's module that knows nothing of schemas, made an encoder.

    Args:
        module: maps a tensor (or the mapping of inputs) to [B, width].
        key: the input to pass as the bare tensor; None passes the mapping.
    """

    def __init__(self, module: nn.Module, key: str | None) -> None:
        super().__init__()
        self.module = module
        self.key = key

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.module(inputs if self.key is None else take(inputs, self.key))


def checked(encoder: nn.Module, schema: InputSchema, what: str) -> Encoder:
    """The encoder, after one run on two rows of zeros has shown that its output is [2, width]."""
    if _gives(encoder) == "pyramid":
        return cast(Encoder, checked_pyramid(encoder, dry_run(encoder, schema, what), schema, what))
    width = getattr(encoder, "width", None)
    if not isinstance(width, int):
        raise BadValue(f"{what}: width", width, "an int, the last dimension of its output")
    features = dry_run(encoder, schema, what)
    if isinstance(features, Tokens):
        return cast(Encoder, _checked_tokens(encoder, features, width, what))
    if features.shape[-1] != width:
        raise BadValue(f"{what}: output", list(features.shape), f"[rows, width] = [2, {width}], as its width says")
    return cast(Encoder, encoder)


def dry_run(encoder: nn.Module, schema: InputSchema, what: str) -> Any:
    """The encoder's output on two rows of zeros, in evaluation mode, without a graph: [2, width], Tokens, or what one
    that gives a pyramid gave."""
    inputs = zeros(schema, rows=2)
    try:
        with torch.no_grad(), evaluating(encoder):
            features = encoder(inputs)
    except PolytaskError:
        raise
    except Exception as error:
        shapes = {key: list(tensor.shape) for key, tensor in inputs.items()}
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        raise BadValue(f"{what}: inputs", shapes, f"what it can take (it raised {reason})") from error
    if isinstance(features, Tokens) or _gives(encoder) == "pyramid":
        return features
    if not isinstance(features, Tensor):
        hint = "" if not isinstance(features, list | tuple) else ", or the attribute gives = 'pyramid'"
        raise BadValue(f"{what}: output", type(features).__name__, f"a tensor [rows, width]{hint}")
    is_map = _gives(encoder) == "map"
    if features.dim() != (4 if is_map else 2) or features.shape[0] != 2 or not features.is_floating_point():
        found = f"{list(features.shape)} {features.dtype}"
        allowed = "[2, height, width of the map, width]" if is_map else "[2, width] of floats, one feature vector a row"
        raise BadValue(f"{what}: output for 2 rows", found, allowed)
    return features


SHAPES = {
    "vector": "[rows, width]",
    "map": "[rows, height, width of the map, width]",
    "sequence": "[rows, tokens, width]",
    "pyramid": "of maps [rows, channels, height, width]",
}
"""What an encoder may give."""


def require_gives(encoder: nn.Module, reads: Sequence[str], reader: str) -> None:
    """BadValue unless the encoder gives what its reader can read."""
    gives = _gives(encoder)
    if gives not in reads:
        such = [name for name in ENCODERS.names() if getattr(ENCODERS.find(name), "gives", "vector") in reads]
        allowed = f"{' or '.join(f'a {one} {SHAPES[one]}' for one in reads)} (encoder: {' | '.join(such)})"
        hint = "; a transformer's `pooling` makes a vector of its tokens" if gives == "sequence" else ""
        raise BadValue(f"{reader}: what the encoder gives", f"a {gives} {SHAPES[gives]}", f"{allowed}{hint}")


def _gives(encoder: nn.Module) -> str:
    return getattr(encoder, "gives", "vector")


def _checked_tokens(encoder: nn.Module, tokens: Tokens, width: int, what: str) -> nn.Module:
    values, mask = tokens
    if _gives(encoder) != "sequence":
        raise BadValue(f"{what}: output", "tokens", "a vector a row, or the attribute gives = 'sequence'")
    if values.dim() != 3 or values.shape[0] != 2 or values.shape[2] != width:
        raise BadValue(f"{what}: output for 2 rows", list(values.shape), f"[2, tokens, width = {width}]")
    if mask is not None and (mask.shape != values.shape[:2] or mask.dtype != torch.bool):
        raise BadValue(f"{what}: mask", f"{list(mask.shape)} {mask.dtype}", f"{list(values.shape[:2])} torch.bool")
    return encoder


def zeros(schema: InputSchema, rows: int) -> dict[str, Tensor]:
    """Inputs of this schema that mean nothing; a text has three tokens, a sequence three elements."""
    inputs = {key: torch.zeros(rows, *shape) for key, shape in schema.shapes.items()}
    if schema.cardinalities:
        inputs["categorical"] = torch.zeros(rows, len(schema.cardinalities), dtype=torch.int64)
    if schema.sequences:
        inputs["sequence"] = torch.ones(rows, min(3, schema.longest), len(schema.sequences), dtype=torch.int64)
    if schema.text:
        inputs["input_ids"] = torch.zeros(rows, 3, dtype=torch.int64)
        inputs["attention_mask"] = torch.ones(rows, 3, dtype=torch.int64)
    if schema.tokens:
        inputs["tokens"] = torch.zeros(rows, 3, schema.tokens)
    if schema.graph is not None:
        inputs |= _single_nodes(schema.graph, rows)
    return inputs


def _single_nodes(widths: GraphWidths, rows: int) -> dict[str, Tensor]:
    """Graphs of one node each, beside which there is room for a second and for an edge."""
    there = torch.tensor([True, False]).expand(rows, -1)
    graphs = {
        "nodes": torch.zeros(rows, 2, widths.nodes),
        "node_mask": there,
        "interest": there,
        "edges": torch.zeros(rows, 1, 2, dtype=torch.int64),
    }
    if widths.edges:
        graphs["edge_features"] = torch.zeros(rows, 1, widths.edges)
    return graphs


def schema_keys(schema: InputSchema) -> list[str]:
    """What a source gives, one name a kind of input; a text is one (`text`), and so is a graph (`graph`)."""
    given = {
        "categorical": schema.cardinalities,
        "sequence": schema.sequences,
        "text": schema.text,
        "tokens": schema.tokens,
        "graph": schema.graph,
    }
    return [*schema.shapes, *(name for name, there in given.items() if there)]


def require(encoder: str, schema: InputSchema, reads: Iterable[str], *, rest: bool = False) -> None:
    """Raises if the source lacks a key that is read or, unless `rest` is allowed, gives one that is not."""
    given, read = schema_keys(schema), list(reads)
    for key in read:
        if key not in given:
            found = ", ".join(given) or "nothing"
            raise MissingInput(f"encoder {encoder!r} reads {key!r}{nearest(key, given)}; the source gives: {found}")
    ignored = [] if rest else [key for key in given if key not in read]
    if ignored:
        raise BadValue(
            f"the inputs of encoder {encoder!r}",
            given,
            f"{read} (it would ignore {', '.join(ignored)}: drop those columns or choose an encoder that reads them)",
        )


def take(inputs: Mapping[str, Tensor], key: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """`inputs[key]`, after a check that it is there and that a row has the expected shape."""
    if key not in inputs:
        raise MissingInput(f"the model reads the input {key!r}; found: {', '.join(inputs) or 'none'}")
    tensor = inputs[key]
    if shape is not None and tuple(tensor.shape[1:]) != shape:
        raise BadValue(f"input {key!r}", list(tensor.shape), f"[rows, {', '.join(map(str, shape))}]")
    return tensor


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and each submodule's own mode afterwards (a frozen part may differ from the rest)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _takes_an_argument(factory: EncoderFactory) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a builtin without a signature
        return False
    kinds: tuple[Any, ...] = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(parameter.kind in kinds and parameter.default is parameter.empty for parameter in parameters)
