"""EMR: one vector with the sign that the tasks elect and the largest magnitude among those that agree.

Source      Huang et al. 2024, arXiv:2405.17461, "elect": the sign of the sum, and of the values with that sign the one
            of largest magnitude. The paper's masks and rescalers give each task's model back from this vector; they
            are of the store (`store pack --kind emr`).
Departures  none known. Where the sum is 0 the result is 0.
Cost        O(T) an element.
"""

from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import rule


@rule("emr", source="arXiv:2405.17461", needs=("stack",), scale="own", claims=("permutation", "homogeneous"))
def emr(stack: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """The elected vector.

    Args:    stack: the task vectors of one parameter.
    Returns: the combined vector.
    """
    sign = stack.sum(0).sign()
    return sign * (stack * sign).amax(0).clamp(min=0)
