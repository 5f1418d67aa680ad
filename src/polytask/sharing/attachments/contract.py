"""What an attachment is: a module or a term of the training loss at the representation that tasks share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polytask.core.errors import Inconsistent, MissingInput, NotFinite
from polytask.core.validation import validated
from polytask.sharing.names import ATTACHMENTS
from polytask.sharing.spec import AttachmentOptions

if TYPE_CHECKING:
    from polytask.sharing.contract import Sharing


class Attachment(nn.Module):
    """What a method adds at the shared representation z, [B, width].

    A subclass has `Options` (a subclass of `AttachmentOptions`) and is built with `(tasks, width, options, seed)`. What
    belongs to one task only lies in `TaskModules`.

    Attributes:
        options: what it was built from.
        transforms: whether the model computes with it: `transform` is then part of predicting, and it is saved with
            the model. Otherwise it has no parameters.
        has_term: whether there is a `term`, which is abstract here.
        calibrates_branches: whether it stands between the branches of an encoder that fuses modalities and what fuses
            them (`branches`).
        spreads: whether its term is a sum over rows once `total` has summed what it needs of all of them: each process
            may then take its own rows' part.
        total: sums a tensor over processes; by default there is one.
        trains_itself: its parameters follow its own term only, by an optimiser of their own (`optimizer` and
            `learning_rate`, abstract here), and the term's gradient goes nowhere else.
    """

    transforms: bool = False
    has_term: bool = False
    calibrates_branches: bool = False
    spreads: bool = False
    trains_itself: bool = False

    def __init__(self, tasks: Iterable[str], width: int, options: AttachmentOptions, seed: int = 0) -> None:
        super().__init__()
        self.options: Any = options  # of the subclass's own kind
        self.total: Callable[[Tensor], Tensor] = _alone

    def transform(self, representations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{task: its representation} -> {task: what is read instead}, both [B, width], for any subset of the tasks."""
        return dict(representations)

    def branches(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{modality: output of its branch} -> what is fused instead, of the same shapes."""
        return dict(outputs)

    def term(self, losses: Mapping[str, Tensor], representation: Tensor) -> Tensor:
        """The term, 0-d, from the present tasks' losses and the representation that they were computed from; the
        losses' graph stays usable."""
        raise NotImplementedError

    def backward(self, losses: Mapping[str, Tensor], representation: Tensor) -> Tensor:
        """Adds the gradient of the term to `.grad` and returns its value; to be called before the losses' own backward
        pass.

        Raises: NotFinite, before anything is written; MissingInput if a loss was not computed from the representation.
        """
        term = self.term(losses, representation)
        self.require_finite(term)
        own = list(self.parameters()) if self.trains_itself else None
        torch.autograd.backward(term, retain_graph=True, inputs=own)
        return term.detach()

    def require_finite(self, term: Tensor) -> None:
        if not bool(term.isfinite()):
            raise NotFinite(f"the term of attachment {self.options.kind!r} is {term.item()}")

    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimiser of its parameters, for one that trains itself."""
        raise NotImplementedError

    def learning_rate(self, step: int) -> float:
        """Of that optimiser at a step, before the stage's schedule."""
        raise NotImplementedError


def attachment(kind: str, tasks: Sequence[str], width: int, *, seed: int = 0, **options: Any) -> Attachment:
    """An attachment by name, for a loop of one's own.

    Args:
        kind: its name.
        tasks: every task that may be present.
        width: of the representation.
        seed: of its start.
        options: its own, see `polytask rules NAME`.
    """
    found = ATTACHMENTS.find(kind)
    return found(tasks, width, validated(found.Options, {"kind": kind, **options}, f"attachment {kind!r}"), seed)


def attached(
    options: Sequence[AttachmentOptions], sharing: "Sharing", tasks: Sequence[str], seed: int
) -> dict[str, Attachment]:
    """The attachments of a model by kind.

    Raises: MissingInput if its tasks share no representation; Inconsistent if one that trains itself, and so looks at
            the gradient of the representation that it gets, is not the first.
    """
    found: dict[str, Attachment] = {}
    for each in options:
        require_shared(each.kind, sharing)
        attachment = ATTACHMENTS.find(each.kind)
        if attachment.trains_itself and found:
            raise Inconsistent(f"attachment {each.kind!r} reads the shared representation itself: name it first")
        found[each.kind] = attachment(tasks, sharing.representation_width, each, seed)
    return found


def require_shared(kind: str, sharing: "Sharing") -> None:
    """MissingInput where there is nothing to attach to."""
    gives = getattr(getattr(sharing, "encoder", None), "gives", "vector")
    if gives != "vector":
        raise MissingInput(f"attachment {kind!r} reads vectors; the encoder gives a {gives}")
    if not sharing.shares:
        raise MissingInput(f"attachment {kind!r}: the tasks share no representation; choose another `sharing`")


def _alone(tensor: Tensor) -> Tensor:
    return tensor


def gradient_at(task: str, loss: Tensor, representation: Tensor, *, differentiable: bool = False) -> Tensor:
    """The gradient of a task's loss at the representation, [B, width], in single precision at least; the graph stays
    usable."""
    if not representation.requires_grad:
        raise MissingInput("the representation depends on no parameter that is trained: nothing can be attached to it")
    (found,) = torch.autograd.grad(
        loss, representation, retain_graph=True, create_graph=differentiable, allow_unused=True
    )
    if found is None:
        raise MissingInput(
            f"the loss of task {task!r} does not depend on the representation given: compute it from that tensor"
        )
    return found.float() if found.dtype in (torch.bfloat16, torch.float16) else found
