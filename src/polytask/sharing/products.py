"""Tasks whose probability is the product of other tasks': conversion after a click, over all rows."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from polytask.core.errors import BadValue, UnknownName


def product_log_odds(factors: Sequence[Float[Tensor, "B"]]) -> Float[Tensor, "B"]:
    """log q / (1 - q) of q = p_1 ... p_n from the factors' log-odds; no rounding to 0 or 1 in between.

    1 - q = (1 - p_1) + p_1 (1 - p_2) + p_1 p_2 (1 - p_3) + ..., a sum of positive terms.

    Source: Ma et al. 2018, arXiv:1804.07931 (ESMM): pCTCVR = pCTR pCVR.
    """
    odds = torch.stack([factor.float() if factor.dtype != torch.float64 else factor for factor in factors])
    happened = functional.logsigmoid(odds).cumsum(0)  # log p_1 ... p_i
    before = torch.cat([torch.zeros_like(happened[:1]), happened[:-1]])
    return happened[-1] - (before + functional.logsigmoid(-odds)).logsumexp(0)


def with_factors(tasks: Sequence[str], products: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks whose heads are needed for the outputs of `tasks`, each once."""
    return list(dict.fromkeys(own for task in tasks for own in products.get(task, (task,))))


def check_products(products: Mapping[str, Sequence[str]], outputs: Mapping[str, int]) -> None:
    """Each product has an output a row and so have its factors, which are tasks of the model with heads of their own.

    Raises: UnknownName, BadValue.
    """
    own = [task for task in outputs if task not in products]
    for product, factors in products.items():
        if len(factors) < 2 or len(set(factors)) < len(factors):
            raise BadValue(f"the factors of task {product!r}", list(factors), "two or more tasks, each once")
        for factor in factors:
            if factor not in own:
                raise UnknownName("task", factor, own, f"product_of of task {product!r} (a product is no factor)")
        for task in (product, *factors):
            if outputs[task] != 1:
                raise BadValue(f"outputs of task {task!r} in a product", outputs[task], "1, a binary task")
