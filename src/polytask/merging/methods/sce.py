"""SCE: select the positions that differ most, weigh tasks by their squared change, erase what opposes the majority.

Source      Wan et al. 2024, arXiv:2408.07990 (FuseChat).
Departures  those of `select` and `calculate_erase`.
Cost        that of `select`, one pass more, then one.
"""

from polytask.merging.contract import composed

sce = composed(__name__, "select", "calculate_erase", source="arXiv:2408.07990")
