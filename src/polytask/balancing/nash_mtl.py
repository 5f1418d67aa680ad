"""Nash-MTL: the direction on which the tasks agree when each bargains for its own improvement.

Source      Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik and Fetaya 2022, "Multi-task learning as a bargaining
            game", arXiv:2202.01017, Algorithm 1 and claim 3.1: the a > 0 with G a = 1 / a maximises
            sum_t log(g_t . d) over a ball.
Departures  the equation is solved exactly, as a convex problem, where the paper approximates it by a sequence of
            convex-concave programs, and anew at every step (the paper's experiments also keep a for several). A zero
            gradient cannot gain and is left out, weight 0. Where no bargain exists (a convex combination of the other
            gradients vanishes, to about 1e-6 of their lengths) no direction improves all of them: the weights are 0.
            The length is that of Algorithm 1, sqrt(T); the authors' code then clips the update to norm 1, and torchjd
            0.18 does. The latter stops its convex-concave programs early: up to 0.34 of its length away, lengths made
            equal, on random Jacobians, where G a = 1 / a holds here to 1e-9.
Cost        about six solves of size T.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing.proportional import proportional_weights
from polytask.core.geometry import unit_gram
from polytask.core.rules import rule


@rule(
    "nash_mtl",
    source="arXiv:2202.01017, Algorithm 1",
    needs=("gram",),
    scale="own",
    claims=("permutation", "non_conflicting", "nonnegative_weights"),
)
def nash_mtl(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T"]:
    """The positive solution a of G a = 1 / a.

    Args:    gram: inner products of the task vectors (units of g squared).
    Returns: weights in units of 1 / g. The update has length sqrt(T) and does not change when a loss is scaled.
    """
    unit, norms = unit_gram(gram.numpy())
    present = np.flatnonzero(unit.diagonal() > 0)
    weights = np.zeros(len(unit))
    if len(present):
        found = proportional_weights(unit[np.ix_(present, present)], norms[present], 1.0)
        weights[present] = 0.0 if found is None else found
    return torch.from_numpy(weights)
