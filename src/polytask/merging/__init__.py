"""Merging: many fine-tuned checkpoints into one model, streaming.

A merge is a pipeline (`contract`): transforms of the task vectors, then a rule that combines them. `driver.merge` runs
one over files; `contract.apply` in memory.
"""

from polytask.merging.batchnorm import recalibrate_batchnorm, replace_tensors

__all__ = ["recalibrate_batchnorm", "replace_tensors"]
