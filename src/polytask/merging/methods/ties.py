"""TIES: trim each task vector, elect a sign for each element, merge the values that agree.

Source      Yadav, Tam, Choshen, Raffel and Bansal 2023, arXiv:2306.01708, Algorithm 1: the three steps.
Departures  those of `trim` (equal magnitudes at the threshold) and `elect` (weights; values that cancel).
Cost        that of `trim` over the model, then one pass.
"""

from polytask.merging.contract import composed

ties = composed(__name__, "trim", "elect", source="arXiv:2306.01708, Algorithm 1")
