"""Entire space multi-task model: shared embeddings and a tower a task, where one task is the product of others."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.experts import Experts, run_together
from polytask.sharing.layers import Activation, TaskModules, seeded
from polytask.sharing.spec import SharingOptions


class ESMM(Sharing):
    """A tower for each task that has a head, above what all of them share. The entire space is declared by the tasks,
    for this architecture or any other: `purchase: {kind: binary, product_of: [click, conversion]}` has the product of
    their probabilities as its own, over all rows, and no part of the model to itself.

    Source: Ma et al. 2018, arXiv:1804.07931 (ESMM): pCTCVR = pCTR pCVR over shared embeddings, losses of pCTR and
    pCTCVR only (a stage's `tasks: [click, purchase]`).
    Departures: what is shared is a whole encoder (one without hidden layers is an embedding table); a loss of the
    conversion on the clicked rows is possible too.
    Cost: the encoder once; for each named task, or factor of one, its tower.
    """

    class Options(SharingOptions):
        """Attributes: hidden_sizes of a tower; the last is the width that the head reads."""

        kind: Literal["esmm"] = "esmm"
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
        activation: Activation = "relu"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        self.towers: TaskModules[Experts] = TaskModules()
        for task in tasks:
            with seeded(seed, "tower", task):
                self.towers[task] = Experts(1, self.encoder.width, options.hidden_sizes, activation=options.activation)
        self.width = options.hidden_sizes[-1]

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which every tower reads."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        streams = run_together([self.towers[task] for task in tasks], representation)
        return dict(zip(tasks, streams.unbind(0), strict=True))
