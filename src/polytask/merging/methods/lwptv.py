"""LwPTV on task arithmetic: the sum of the task vectors without the layers in which each changed least.

Source      Zhang et al. 2025, arXiv:2506.09093; Ilharco et al. 2022, arXiv:2212.04089.
Departures  those of `layer_pruning`, which a plan can put before any rule.
Cost        two passes.
"""

from polytask.merging.contract import composed

lwptv = composed(__name__, "layer_pruning", "task_arithmetic", source="arXiv:2506.09093")
