"""DARE with task arithmetic: task vectors thinned out at random and rescaled, then added up.

Source      Yu et al. 2023, arXiv:2311.03099; Ilharco et al. 2022, arXiv:2212.04089.
Departures  those of `drop`.
Cost        a draw of 32 bits an element and task, one pass.
"""

from polytask.merging.contract import composed

dare_linear = composed(__name__, "drop", "task_arithmetic", source="arXiv:2311.03099")
