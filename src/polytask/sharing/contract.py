"""What a sharing architecture is."""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from polytask.core.errors import MissingInput
from polytask.core.inputs import InputSchema
from polytask.core.outputs import OutputSchema
from polytask.sharing.dense.decoders import Decoders
from polytask.sharing.encoders.contract import Encoder
from polytask.sharing.layers import Head
from polytask.sharing.spec import DecoderSpec, EncoderOptions, SharingOptions


class MakeEncoder(Protocol):
    """Gives a new encoder at each call, always with the same start.

    Attributes:
        schema: of the inputs that they read.
        decoder: what a recipe says of the tasks' decoders, for encoders that give a pyramid.
    """

    schema: InputSchema
    decoder: DecoderSpec | None

    def __call__(self) -> Encoder: ...

    def of(self, options: EncoderOptions, name: str) -> Encoder:
        """Another encoder of the same inputs, which gives a vector; `name` is that of its start."""
        ...


class Sharing(nn.Module):
    """How tasks share an encoder.

    A subclass has `Options` (a subclass of `SharingOptions`) and is built with `(make_encoder, tasks, options, seed)`;
    `tasks` maps names, in order, to what their outputs stand for (None where only what others read of a task is left),
    and most need the names alone. It has `representation` and `features`, which are abstract here, or is a
    `ReadsApart`. What belongs to one task only lies in `TaskModules`, started from `seeded(seed, what, task)`, so that
    it depends on no other task.
    """

    width: int
    reads: ClassVar[tuple[str, ...]] = ("vector",)  # what the encoder may give: see encoders.contract
    shares: bool = True  # whether `representation` is there to be asked for
    isolated: bool = True  # whether a task's outputs depend on nothing that other tasks own
    encodes_by_task: bool = False  # whether what the encoder gives depends on the task that it works for

    @property
    def auxiliary(self) -> dict[str, int]:
        """Place -> width of the inner maps that heads may read in training, see `polytask.sharing.tape`."""
        decoders = self._of_tasks()
        return {} if decoders is None else decoders.auxiliary

    @property
    def map_sizes(self) -> dict[str, tuple[int, int]]:
        """Task -> height and width of its outputs, where they are maps."""
        decoders = self._of_tasks()
        return {} if decoders is None else decoders.sizes

    def _of_tasks(self) -> Decoders | None:
        """The tasks' decoders, where the encoder gives a pyramid."""
        found = getattr(self, "decoders", None)
        return found if isinstance(found, Decoders) else None

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: SharingOptions, seed: int = 0) -> None:
        super().__init__()

    @property
    def representation_width(self) -> int:
        """Of what `representation` gives: the encoder's where the tasks have one in common."""
        return getattr(self, "encoder", self).width

    def read_by(self, task: str, tasks: Sequence[str]) -> list[str]:
        """Those of the architecture's `tasks` whose parts this task's outputs read, itself among them."""
        return [task] if self.isolated else list(tasks)

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """What all tasks share; MissingInput where nothing is."""
        raise NotImplementedError

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        """{task: [B, width]} from what `representation` gave, computing nothing for tasks that are not named."""
        raise NotImplementedError

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        """{task: [B, width]}."""
        return self.features(self.representation(inputs), tasks)

    def condition(self, task: str) -> str | None:
        """What tells the network that it works for this task, in words; None where it is not told."""
        return None

    def head(self, task: str, outputs: OutputSchema, hidden_sizes: tuple[int, ...]) -> nn.Module:
        """What makes a task's outputs of its features: layers of its own, unless the architecture brings others."""
        return Head(self.width, outputs.width, hidden_sizes)

    def beside(self, seed: int) -> nn.Module | None:
        """What helps it to learn and is no part of it: a module that is called with the outputs, {task: ...}, after
        each pass of training, finds on the tape what the pass has noted, and notes the tasks' terms there."""
        return None

    def note_outputs(self, outputs: Mapping[str, Tensor]) -> None:
        """Called with what the heads made, {task: [B] or [B, outputs]}, while somebody listens: a method's own term on
        the outputs of several tasks goes on the tape from here."""


class ReadsApart(Sharing):
    """One in which several encoders read the inputs, so that there is no one representation; a subclass has `forward`.

    `reading` says how the inputs are read, for the message.
    """

    shares = False
    reading: ClassVar[str]

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        raise MissingInput(f"{self.reading}: no representation is shared")

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        return dict.fromkeys(tasks, self.representation({}))
