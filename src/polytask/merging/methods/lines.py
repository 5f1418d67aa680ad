"""LiNeS on task arithmetic: the sum of the task vectors, scaled up with depth.

Source      Wang et al. 2024, arXiv:2410.17146; Ilharco et al. 2022, arXiv:2212.04089.
Departures  those of the transform `lines`, which a plan can put before any rule.
Cost        one pass.
"""

from polytask.merging.contract import composed

lines = composed(__name__, "lines", "task_arithmetic", source="arXiv:2410.17146")
