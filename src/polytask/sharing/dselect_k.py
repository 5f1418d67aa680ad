"""MMoE whose gates select a few experts differentiably."""

from typing import Literal

from polytask.sharing.gates import GateChoice, GateOptions
from polytask.sharing.mixture import ExpertMixture, MixtureOptions
from polytask.sharing.selection import DSelectK as DSelectKSelection


class DSelectK(ExpertMixture):
    """Shared experts, at most k of them for a task, found through smooth binary codes.

    Source: Hazimeh et al. 2021, arXiv:2106.03760; its per-example gates, or its static ones with `reads: task`.
    Departures: those of `mmoe` and of the selection (see polytask.sharing.selection).
    Cost: as `mmoe`: all experts are computed.
    """

    class Options(MixtureOptions):
        """Attributes: as of mmoe; the gate selects by dselect_k, and `gate.select` holds its k, smoothness, entropy."""

        kind: Literal["dselect_k"] = "dselect_k"
        gate: GateChoice = GateOptions(select=DSelectKSelection())
