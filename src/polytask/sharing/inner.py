"""Layers inside an encoder, whose outputs a task may change while the encoder works for it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput
from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import dry_run

Change = Callable[[str, int, Tensor], Tensor]
"""(task, number of the layer, its output with the channels last) -> what the layers after it read."""

_working_for: ContextVar[str | None] = ContextVar("working_for", default=None)


@contextmanager
def working_for(task: str) -> Iterator[None]:
    """Inside, encoders with changed layers work for this task, in this thread."""
    token = _working_for.set(task)
    try:
        yield
    finally:
        _working_for.reset(token)


def change_layers(
    encoder: nn.Module, patterns: Sequence[str], schema: InputSchema, where: str, change: Change
) -> list[int]:
    """From now on what the encoder's modules with these names give passes through `change`.

    Args:
        encoder: has been checked.
        patterns: of modules' names, as `layers.[02]`.
        schema: of the encoder's inputs.
        where: the option, for messages.

    Returns: the number of channels of each layer: the second axis of a map [B, C, h, w], else the last.

    Raises:
        BadValue: a pattern that fits no module; a module that gives no vectors, tokens or map.
    """
    modules = {name: module for name, module in encoder.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise BadValue(where, pattern, f"a pattern of {', '.join(modules) or 'its layers, of which it has none'}")
    names = [name for name in modules if any(fnmatchcase(name, pattern) for pattern in patterns)]
    found = _outputs(encoder, {name: modules[name] for name in names}, schema, where)
    for number, name in enumerate(names):
        modules[name].register_forward_hook(_Changed(change, number))
    return [output.shape[1 if output.dim() == 4 else -1] for output in found]


class _Changed:
    """A forward hook; an object and not a closure, so that a copy of a model changes its own layers."""

    def __init__(self, change: Change, number: int) -> None:
        self.change, self.number = change, number

    def __call__(self, module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        task = _working_for.get()
        if task is None:
            raise MissingInput("an encoder whose inner layers a task changes was called for no task")
        if output.dim() != 4:
            return self.change(task, self.number, output)
        return self.change(task, self.number, output.movedim(1, -1)).movedim(-1, 1)


def _outputs(encoder: nn.Module, modules: dict[str, nn.Module], schema: InputSchema, where: str) -> list[Tensor]:
    """What each module gives for two rows of zeros."""
    found: dict[nn.Module, Any] = {}
    handles = [module.register_forward_hook(_Noted(found)) for module in modules.values()]
    try:
        dry_run(encoder, schema, where)
    finally:
        for handle in handles:
            handle.remove()
    for name, module in modules.items():
        output = found.get(module)
        if not isinstance(output, Tensor) or output.dim() not in (2, 3, 4) or not output.is_floating_point():
            gives = type(output).__name__ if not isinstance(output, Tensor) else f"{list(output.shape)} {output.dtype}"
            allowed = "a module that gives floats [rows, width], [rows, tokens, width] or [rows, channels, h, w]"
            raise BadValue(f"{where}: what {name!r} gives", gives, allowed)
    return [found[module] for module in modules.values()]


class _Noted:
    """A forward hook that keeps what a module gave."""

    def __init__(self, found: dict[nn.Module, Any]) -> None:
        self.found = found

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self.found[module] = output
