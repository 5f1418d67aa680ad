"""Passthrough: one model as it is, times `scale`; for models put together from slices of others.

Source      mergekit's documentation.
Departures  none.
Cost        a copy.
"""

from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import rule


@rule(
    "passthrough",
    source="mergekit's documentation",
    needs=("stack",),
    scale="own",
    claims=(
        "permutation",
        "homogeneous",
        "non_conflicting",
        "stationary",
        "strongly_stationary",
        "linear_under_scaling",
    ),
    of="models",
    tasks=1,
)
def passthrough(stack: Float[Tensor, "1 *shape"]) -> Float[Tensor, "*shape"]:
    """The model's own values.

    Args:    stack: of one model.
    Returns: its values.
    """
    return stack[0].clone()
