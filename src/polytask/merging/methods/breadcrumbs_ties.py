"""Model Breadcrumbs with TIES: task vectors without their largest and smallest elements, merged where signs agree.

Source      Davari and Belilovsky 2023, arXiv:2312.06795; Yadav et al. 2023, arXiv:2306.01708; documented by mergekit
            under this name.
Departures  those of `two_sided` and `elect`.
Cost        two passes of `two_sided` over the model, then one.
"""

from polytask.merging.contract import composed

breadcrumbs_ties = composed(__name__, "two_sided", "elect", source="arXiv:2312.06795")
