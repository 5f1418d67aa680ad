"""DELLA without signs: task vectors thinned out at random, small elements more than large ones, then added up.

Source      Deep et al. 2024, arXiv:2406.11617, without the step "elect"; documented by mergekit under this name.
Departures  those of `magprune`.
Cost        a sort of each row and a draw of 32 bits an element and task, one pass.
"""

from polytask.merging.contract import composed

della_linear = composed(__name__, "magprune", "task_arithmetic", source="arXiv:2406.11617")
