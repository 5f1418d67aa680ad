"""Model Breadcrumbs: task vectors without their largest and smallest elements, added up.

Source      Davari and Belilovsky 2023, arXiv:2312.06795: the masked task vectors are added with a common factor
            (`scale`).
Departures  those of `two_sided`.
Cost        two passes of `two_sided` over the model, then one.
"""

from polytask.merging.contract import composed

breadcrumbs = composed(__name__, "two_sided", "task_arithmetic", source="arXiv:2312.06795")
