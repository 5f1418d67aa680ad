"""DARE with TIES: task vectors thinned out at random and rescaled, then merged where their signs agree.

Source      Yu et al. 2023, arXiv:2311.03099; Yadav et al. 2023, arXiv:2306.01708.
Departures  those of `drop` and `elect`; TIES' own trimming is left out, as in other tools: put `trim` after `drop` in
            a plan of your own to have it.
Cost        a draw of 32 bits an element and task, one pass.
"""

from polytask.merging.contract import composed

dare_ties = composed(__name__, "drop", "elect", source="arXiv:2311.03099")
