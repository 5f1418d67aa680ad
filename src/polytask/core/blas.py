"""numpy's linear algebra on one thread: a rule's matrices are small, and threads that wait for each other cost more.

Measured with 40 tasks and two threads on a machine that does other things too: 15 ms instead of 1 for UPGrad's weights.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

_SMALL = 16  # tasks, up to which numpy takes one thread anyway


def one_thread(tasks: int) -> AbstractContextManager[Any]:
    """Inside, numpy's OpenBLAS takes one thread; the number is then as it was."""
    return nullcontext() if tasks <= _SMALL else _openblas().limit(limits=1)


@functools.cache
def _openblas() -> Any:
    from threadpoolctl import ThreadpoolController  # here: few rules need it

    return ThreadpoolController().select(internal_api="openblas")
