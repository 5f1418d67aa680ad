"""DELLA: task vectors thinned out at random, small elements more than large ones, then merged where signs agree.

Source      Deep et al. 2024, arXiv:2406.11617: drop (MagPrune), elect, fuse (the mean of the elected values, times a
            factor: `scale`).
Departures  those of `magprune` and `elect`.
Cost        a sort of each row and a draw of 32 bits an element and task, one pass.
"""

from polytask.merging.contract import composed

della = composed(__name__, "magprune", "elect", source="arXiv:2406.11617")
