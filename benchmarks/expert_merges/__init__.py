"""Experts of several tasks, merged by every method: the experiments of kind `expert_merges`."""
