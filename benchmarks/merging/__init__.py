"""Merging, timed: polytask and mergekit on the same synthetic models, in processes of their own, taken in turn."""
