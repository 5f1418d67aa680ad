"""Transforms of task vectors: one small file each, found through core/names.py."""
