"""Consensus TIES: TIES without the elements that matter to one task only, or to none.

Source      Wang et al. 2024, arXiv:2405.07813, consensus merging around TIES (arXiv:2306.01708).
Departures  those of `trim`, `elect` and `consensus`. The masks are of the trimmed task vectors, where the paper may
            mean the whole ones; an element that trimming takes is small beside the merged one, as is its mask.
Cost        that of `ties`.
"""

from polytask.merging.contract import composed

consensus_ties = composed(__name__, "trim", "consensus", source="arXiv:2405.07813", merged="elect")
