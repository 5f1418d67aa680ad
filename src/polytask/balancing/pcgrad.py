"""PCGrad: removes from each task's gradient the component that conflicts with another task's.

Source      Yu et al. 2020, arXiv:2001.06782, Algorithm 1.
Departures  none in exact arithmetic. It works on the Gram matrix: a projected gradient is a combination of the tasks'
            gradients, and only its coefficients are kept. torchjd 0.18 does the same, in orders of its own generator:
            with two tasks, where there is no order, the two agree within 1e-12.
Cost        O(T^3) time, O(T^2) memory; no copy of the gradients.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.noise import Noise
from polytask.core.rules import rule


@rule(
    "pcgrad",
    source="arXiv:2001.06782, Algorithm 1",
    needs=("gram",),
    scale="sum",
    claims=("homogeneous", "nonnegative_weights", "linear_under_scaling"),
)
def pcgrad(gram: Float[Tensor, "T T"], *, noise: Noise) -> Float[Tensor, "T"]:
    """Weights w such that the update is sum_t w[t] * g[t].

    Args:    gram: inner products of the task vectors (units of g squared).
             noise: decides the order in which each task meets the others.
    Returns: dimensionless weights; all 1 when no two tasks conflict.
    """
    G = gram.numpy()
    tasks = len(G)
    rows = np.arange(tasks)
    order = np.argsort(noise.raw(tasks * tasks).reshape(tasks, tasks), axis=1, kind="stable")
    coefficients = np.eye(tasks)  # row i: the projected gradient of task i
    for met in order.T:  # the tasks that each i meets next; the i do not depend on one another
        inner = np.einsum("ij,ij->i", coefficients, G[met])
        conflict = (inner < 0) & (met != rows)
        coefficients[rows[conflict], met[conflict]] -= inner[conflict] / G[met, met][conflict]
    return torch.from_numpy(coefficients.sum(0))
