"""Merging: many fine-tuned checkpoints into one model, streaming.

A merge is a pipeline (`contract`): transforms of the task vectors, then a rule that combines them. `driver.merge` runs
one over files. `learn` runs a merge that reads a little data, on models in memory.
"""

from polytask.merging.batchnorm import recalibrate_batchnorm, replace_tensors
from polytask.merging.learning import learn, learned
from polytask.merging.samples import samples

__all__ = ["learn", "learned", "recalibrate_batchnorm", "replace_tensors", "samples"]
