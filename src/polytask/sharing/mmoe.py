"""Multi-gate mixture of experts."""

from typing import Literal

from polytask.sharing.mixture import ExpertMixture, MixtureOptions


class MMoE(ExpertMixture):
    """Experts that all tasks share, mixed for each task by its own gate: h_t = sum_e softmax(W_t z)_e f_e(z).

    Source: Ma et al. 2018 ("Modeling task relationships in multi-task learning with multi-gate
    mixture-of-experts", KDD), equations 5 to 7.
    Departures: gates and experts read the encoder's output z, where the paper's read the embedded input (an encoder
    without hidden layers gives that); experts may have several layers; other gates than the softmax may be chosen.
    Cost: the experts once for any number of tasks, and B x width x E multiply-adds for each named task's gate.
    """

    class Options(MixtureOptions):
        """As described for mixtures."""

        kind: Literal["mmoe"] = "mmoe"
