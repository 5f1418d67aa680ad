"""From the scale that a rule publishes to the one asked for."""

from polytask.core.errors import NotFinite


def rescaled(published: str, wanted: str, tasks: int, square: float) -> float:
    """The factor that turns a rule's result into a sum or mean over tasks, or gives it unit norm.

    Args:
        published: sum | mean | unit | own, what the rule returns.
        wanted: published | sum | mean | unit.
        tasks: number of tasks present.
        square: squared norm of the result as published.

    >>> rescaled("mean", "sum", 3, square=4.0)
    3.0
    >>> rescaled("sum", "unit", 3, square=4.0)
    0.5
    """
    if wanted in ("published", published):
        return 1.0
    if wanted == "unit":
        return square**-0.5 if square > 0 else 1.0  # a zero update stays zero
    if published in ("unit", "own"):
        length = "unit norm" if published == "unit" else "a length of its own"
        raise NotFinite(
            f"a result of {length} is neither a sum nor a mean over tasks: it cannot be scaled to {wanted!r}"
        )
    return float(tasks) if wanted == "sum" else 1.0 / tasks
