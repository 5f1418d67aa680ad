"""A model with what helps it in training beside it: trained and resumed with the stage, no part of what is saved."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn


class WithBeside(nn.Module):
    """Called as the model is.

    Args:
        model: of the run.
        beside: called with the outputs after each of its passes; what it adds to the tasks' losses goes on the tape.
    """

    def __init__(self, model: Any, beside: nn.Module) -> None:
        super().__init__()
        self.model, self.beside = model, beside

    @property
    def sharing(self) -> Any:
        return self.model.sharing

    @property
    def stems(self) -> Any:
        return self.model.stems

    def forward(self, inputs: Mapping[str, Tensor], tasks: Iterable[str], **stem: str) -> dict[str, Tensor]:
        outputs = self.model(inputs, tasks, **stem)
        self.beside(outputs)
        return outputs

    def representation(self, inputs: Mapping[str, Tensor], tasks: Iterable[str], **stem: str) -> Tensor:
        return self.model.representation(inputs, tasks, **stem)

    def from_representation(self, representation: Tensor, tasks: Iterable[str]) -> dict[str, Tensor]:
        outputs = self.model.from_representation(representation, tasks)
        self.beside(outputs)
        return outputs

    def own_parameters(self) -> list[nn.Parameter]:
        return list(self.beside.parameters())
