"""Experts of which a row uses few, chosen by the row and the task together."""

from typing import Literal

from polytask.sharing.gates import GateChoice, GateOptions
from polytask.sharing.mixture import ExpertMixture, MixtureOptions
from polytask.sharing.selection import TopK


class TaskAwareMoE(ExpertMixture):
    """Shared experts behind one gate that reads the row and the task's embedding and takes the k best.

    Source: Gupta et al. 2022, arXiv:2204.07689, its task-aware gating of sparsely activated experts.
    Departures: one layer of experts over the encoder's output, where the paper's replace feed-forward layers of a
    transformer; no term that balances load; the paper's text was not at hand, so the gate's form is that of
    `reads: input_and_embedding`.
    Cost: as `mmoe`: all experts are computed.
    """

    class Options(MixtureOptions):
        """Attributes: as of mmoe; the gate reads input and embedding and selects the two best."""

        kind: Literal["task_aware_moe"] = "task_aware_moe"
        gate: GateChoice = GateOptions(select=TopK(), reads="input_and_embedding")
