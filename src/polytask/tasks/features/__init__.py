"""Features: what turns raw columns into a model's inputs, one kind a file; the table of kinds is in kinds.py."""
