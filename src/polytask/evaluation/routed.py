"""A merged model that keeps a router, as a model of several tasks."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from polytask.merging.routing import Routed, Router
from polytask.sharing import MultiTaskModel
from polytask.sharing.stems import Stems


class RoutedModel(nn.Module):
    """Called as the model is; where rows are routed by what a head reads, each task's are by its own head.

    Cost: that of the router, for each task where it reads heads.
    """

    def __init__(self, model: MultiTaskModel, router: Router) -> None:
        super().__init__()
        self.routed, self._model = Routed(model, router), [model]

    @property
    def tasks(self) -> list[str]:
        return self._model[0].tasks

    @property
    def stems(self) -> Stems | None:
        return self._model[0].stems

    def forward(
        self, inputs: Mapping[str, Tensor], tasks: Iterable[str] | None = None, stem: str | None = None
    ) -> dict[str, Tensor]:
        wanted = self.tasks if tasks is None else list(tasks)
        if self.routed.router.reads_heads:
            return {task: self.routed(inputs, [task], stem)[task] for task in wanted}
        return self.routed(inputs, wanted, stem)
