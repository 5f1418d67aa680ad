"""Published merges by name: each a function from its parameters to a pipeline, found through core/names.py."""
